"""YAML -> frozen settings, or one error that names file, key and what was expected.

In:   a YAML file, `--set key.sub=value` overrides, and the dataclass that the settings belong to
Out:  that dataclass, its nested dataclasses built and every value checked against its type hint

Settings stand beside the class they set; a YAML file says which and how much; this file joins the two. It is the only
place where YAML becomes a dataclass. A file of settings is data: plain values, no aliases, at most 1 MiB, no key twice.
"""

from __future__ import annotations

import copy
import math
import re
import types
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from operators.errors import ConfigError, did_you_mean

CHECKOUT = Path(__file__).resolve().parents[1]
MAX_BYTES = 1 << 20

T = TypeVar("T")


def resolve(path: str | Path) -> Path:
    """The path as given if it exists, else relative to the checkout if it exists there, else as given.

    So `configs/networks/tiny.yaml` is found from any folder, and an error later names what the user wrote.
    """
    given = Path(path).expanduser()
    shipped = CHECKOUT / given
    return shipped if not given.exists() and shipped.exists() else given


class _Loader(yaml.SafeLoader):
    """Plain YAML: no tags that make objects, no aliases (they can nest without end), no key twice."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark
            raise yaml.MarkedYAMLError(problem="aliases (*name) are not allowed in settings", problem_mark=mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = set()
        for name, _ in node.value:
            if not isinstance(name, yaml.ScalarNode):
                raise yaml.MarkedYAMLError(problem="a key must be a single word", problem_mark=name.start_mark)
            if name.value in seen:
                problem = f"the key '{name.value}' stands here twice"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=name.start_mark)
            seen.add(name.value)
        return super().construct_mapping(node, deep=deep)


# YAML 1.1 takes 1e-4 for a text, because it has no dot: nobody means that in a learning rate.
_EXPONENT = re.compile(r"^[-+]?[0-9]+[eE][-+]?[0-9]+$")
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _EXPONENT, list("-+0123456789"))


def load_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping that a YAML file holds.

    Raises: ConfigError, naming file and line, if the file is missing, larger than 1 MiB, not UTF-8, not valid YAML,
    holds a key twice, or is not a mapping.
    """
    path = Path(path)
    text = _read(path)
    content = _parse(text, str(path))
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: expected settings as 'key: value' lines, got {_shown(content)}.")
    return content


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        folders = [folder for folder in (path.parent, CHECKOUT / path.parent) if folder.is_dir()]
        siblings = [sibling.name for folder in folders for sibling in folder.glob("*.yaml")]
        shipped = sorted(CHECKOUT.glob(f"configs/*/{path.stem}.yaml")) if path.stem.replace("_", "").isalnum() else []
        hint = did_you_mean(path.name, siblings) if siblings else ""
        if shipped:  # 'crossvis_r50', 'network/crossvis_r50.yaml'
            hint = f" Did you mean {' or '.join(str(file.relative_to(CHECKOUT)) for file in shipped)}?"
        raise ConfigError(f"{path}: no such file.{hint}") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror or error}.") from error
    if len(raw) > MAX_BYTES:
        raise ConfigError(f"{path}: larger than {MAX_BYTES} bytes. Is this a file of settings?")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not text in UTF-8 (byte {error.start}). Is this a file of settings?") from error


def _parse(text: str, where: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506  a SafeLoader with more refusals
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f", line {mark.line + 1}" if mark else ""
        raise ConfigError(f"{where}{line}: not valid YAML: {error.problem or error.context}.") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{where}: not valid YAML: {' '.join(str(error).split())}.") from error
    except RecursionError:
        raise ConfigError(f"{where}: nested too deep to be settings.") from None
    except ValueError as error:  # a date such as 2024-13-45, or a number beyond Python's limit of digits
        raise ConfigError(f"{where}: not valid YAML: {error}.") from error


def apply_overrides(mapping: Mapping[str, Any], overrides: Iterable[str], where: str) -> dict[str, Any]:
    """A deep copy of `mapping` in which each 'key.sub=value' is set; values are read as YAML: 3, 0.5, true, [1, 2].

    Whether a key is known is checked by `build`. No overrides: an equal copy.
    Raises: ConfigError for one without '=', with an empty key, or whose parent is a single value.
    """
    result = copy.deepcopy(dict(mapping))
    for override in overrides:
        key, equals, text = override.partition("=")
        names = key.strip().split(".")
        if not equals or not all(names):
            raise ConfigError(f"{where}: '{override}' is not of the form key.sub=value.")
        parent = result
        for depth, name in enumerate(names[:-1], start=1):
            parent = parent.setdefault(name, {})
            if not isinstance(parent, dict):
                at = ".".join(names[:depth])
                raise ConfigError(f"{where}: '{override}': {at} is {_shown(parent)}, not a group of settings.")
        parent[names[-1]] = _parse(text, f"{where}: '{override}'")
    return result


def build(cls: type[T], mapping: Any, where: str, key: str = "") -> T:
    """An instance of the dataclass `cls` out of a mapping; nested dataclasses are built the same way.

    `where` names the file, `key` the place in it ("associate"); both stand in front of every error. Types are strict:
    an int passes for a float, nothing else is converted but a list to a tuple. An absent group of settings is {}.
    Raises: ConfigError for an unknown key, a missing one, a wrong type, or a value that `cls` refuses by ValueError.
    """
    at = _place(where, key)
    mapping = {} if mapping is None else mapping
    if not isinstance(mapping, Mapping):
        raise ConfigError(f"{at}: expected a group of settings, got {_shown(mapping)}.")
    known = {field.name: field for field in fields(cls) if field.init}
    hints = get_type_hints(cls)
    for name in mapping:
        if name not in known:
            raise ConfigError(f"{_place(where, _join(key, name))}: no such setting.{did_you_mean(str(name), known)}")
    values = {}
    for name, field in known.items():
        inner = _join(key, name)
        if name in mapping:
            values[name] = _convert(hints[name], mapping[name], where, inner)
        elif _required(field):
            raise ConfigError(f"{_place(where, inner)}: missing; expected {_expected(hints[name])}.")
    try:
        return cls(**values)
    except ValueError as error:
        raise ConfigError(f"{at}: {error}") from error


def _required(field: Field) -> bool:
    return field.default is MISSING and field.default_factory is MISSING


def _convert(hint: Any, value: Any, where: str, key: str) -> Any:
    """`value` as `hint` asks, or ConfigError."""
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if is_dataclass(hint):
        return build(hint, value, where, key)
    if origin in (Union, types.UnionType):
        return _convert_union(hint, arguments, value, where, key)
    if origin is Literal:
        if any(value == choice and type(value) is type(choice) for choice in arguments):
            return value
    elif origin is tuple and isinstance(value, (list, tuple)):
        return _convert_tuple(hint, arguments, value, where, key)
    elif origin is list and isinstance(value, (list, tuple)):
        return [_convert(arguments[0], item, where, f"{key}[{i}]") for i, item in enumerate(value)]
    elif origin is dict and isinstance(value, Mapping):
        return {
            _convert(arguments[0], name, where, _join(key, name)): _convert(arguments[1], item, where, _join(key, name))
            for name, item in value.items()
        }
    elif hint is Path and isinstance(value, str):
        return Path(value)
    elif hint is float and type(value) is int:
        return float(value)
    elif isinstance(hint, type) and type(value) is hint and (hint is not float or math.isfinite(value)):
        return value                            # True is no int; nan and 1e999 are no numbers to set anything to
    raise ConfigError(f"{_place(where, key)}: expected {_expected(hint)}, got {_shown(value)}.")


def _convert_union(hint: Any, arguments: tuple, value: Any, where: str, key: str) -> Any:
    if value is None and type(None) in arguments:
        return None
    choices = [choice for choice in arguments if choice is not type(None)]
    if len(choices) > 1 and all(map(is_dataclass, choices)):
        choices = [_named(choices, value, where, key)]
    if len(choices) == 1:
        return _convert(choices[0], value, where, key)  # its own error names the setting inside
    for choice in choices:
        try:
            return _convert(choice, value, where, key)
        except ConfigError:
            continue
    raise ConfigError(f"{_place(where, key)}: expected {_expected(hint)}, got {_shown(value)}.")


def _named(choices: list[type], value: Any, where: str, key: str) -> type:
    """Of several groups of settings the one whose `name` the value gives; the first where it gives none."""
    names = {get_args(get_type_hints(choice)["name"])[0]: choice for choice in choices}
    name = value.get("name", next(iter(names))) if isinstance(value, Mapping) else next(iter(names))
    if name not in names:
        known = " or ".join(map(repr, names))
        raise ConfigError(f"{_place(where, _join(key, 'name'))}: expected {known}, got {_shown(name)}.")
    return names[name]


def _convert_tuple(hint: Any, arguments: tuple, value: Any, where: str, key: str) -> tuple:
    if len(arguments) == 2 and arguments[1] is Ellipsis:
        arguments = (arguments[0],) * len(value)
    elif len(arguments) != len(value):
        raise ConfigError(f"{_place(where, key)}: expected {_expected(hint)}, got {len(value)}: {_shown(value)}.")
    pairs = zip(arguments, value, strict=True)
    return tuple(_convert(inner, item, where, f"{key}[{i}]") for i, (inner, item) in enumerate(pairs))


_NAMES = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    Path: "a path",
    type(None): "null",
    list: "a list",
    dict: "a group of settings",
}


def _expected(hint: Any) -> str:
    """A type hint in words: 'a whole number', "'auto' or 'cpu'", 'a list of 2 values (a number, a number)'."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        return " or ".join(repr(choice) for choice in arguments)
    if origin in (Union, types.UnionType):
        return " or ".join(_expected(argument) for argument in arguments)
    if origin is tuple and not (len(arguments) == 2 and arguments[1] is Ellipsis):
        return f"a list of {len(arguments)} values ({', '.join(map(_expected, arguments))})"
    if origin in (tuple, list):
        return f"a list, each value {_expected(arguments[0])}"
    if origin is dict or is_dataclass(hint):
        return "a group of settings"
    return _NAMES.get(hint, getattr(hint, "__name__", str(hint)))


def _shown(value: Any) -> str:
    """A value as an error quotes it: short, and telling a text '3' from a number 3."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "true" if value else "false"
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _join(key: str, name: Any) -> str:
    return f"{key}.{name}" if key else str(name)


def _place(where: str, key: str) -> str:
    return f"{where}, {key}" if key else where
