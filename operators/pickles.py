"""Released checkpoints off the disk: pickles read without running what they ask for.

In:     a file of somebody else's training: .pth, .pt, .bin (torch), .pkl (numpy arrays, Python 2's too), .safetensors
Out:    `ReleasedFile`: tensors by name, on the CPU, and what else the file holds, in words
Limits: files above 8 GiB are refused, unpacked size counted; nothing in a file is called but the stand-ins below
Source: CrossVIS specification 6.1 for the containers

A pickle is a program that names functions to call. torch.load(weights_only=True) knows the few that tensors need; those
that numpy arrays need have stand-ins here, which check what they get and share no code with numpy's own: numpy's take
dtypes of objects, sizes without a limit and flags that no array has. Every other name is refused, and told.
"""

from __future__ import annotations

import math
import pickle
import re
import warnings
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from operators.errors import CheckpointError
from operators.weights import check_is_file

MAX_BYTES = 8 << 30
CONTAINERS = ("model", "state_dict", "blobs")
"""Under which of these names the tensors lie, if they do not lie at the top."""
TORCH_SUFFIXES = (".pth", ".pt", ".bin")
SUFFIXES = (*TORCH_SUFFIXES, ".pkl", ".safetensors")

_DTYPES = ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1")


@dataclass(frozen=True)
class ReleasedFile:
    """What a released checkpoint holds."""

    state: dict[str, Tensor]
    """Dense tensors of numbers, by the names the release gave them."""
    container: str
    """One of CONTAINERS, or '' where the tensors lie at the top."""
    others: dict[str, str]
    """What else is there, in words: entries that are no such tensors, and what lies beside the container."""


def read_released(path: Path) -> ReleasedFile:
    """Raises CheckpointError for a file that is missing, too large, damaged, of another kind, or that names anything to
    call but what tensors and arrays need."""
    check_is_file(path)
    if path.suffix not in SUFFIXES:
        raise CheckpointError(f"{path}: a file of weights ends in {', '.join(SUFFIXES)}; this one in '{path.suffix}'.")
    _check_size(path)
    if path.suffix == ".safetensors":
        return ReleasedFile(_read_safetensors(path), "", {})
    content = read_torch(path) if path.suffix in TORCH_SUFFIXES or zipfile.is_zipfile(path) else read_pickle(path)
    return _contents(path, content)


def read_pickle(path: Path) -> Any:
    """A plain pickle of containers, texts, numbers and arrays; arrays come as `Array`.

    Raises CheckpointError that names the first thing that is none of these.
    """
    with path.open("rb") as file:
        return _guarded(path, _Unpickler(file, encoding="latin1").load)


def read_torch(path: Path) -> Any:
    """A file of torch.save; arrays of numpy come as `Array`. Raises CheckpointError, as `read_pickle`."""
    allowed = [(stand_in, f"{module}.{name}") for (module, name), stand_in in _STAND_INS.items()]
    with warnings.catch_warnings(), torch.serialization.safe_globals(allowed):
        warnings.simplefilter("ignore")             # of unusual pickle protocols, which either load or fail
        return _guarded(path, lambda: torch.load(path, map_location="cpu", weights_only=True))


def _check_size(path: Path) -> None:
    size = path.stat().st_size
    if zipfile.is_zipfile(path):                    # a small archive may hold much
        size = max(size, _guarded(path, lambda: _unpacked_size(path)))
    if size > MAX_BYTES:
        raise CheckpointError(f"{path}: {size} bytes, more than {MAX_BYTES} are refused.")


def _unpacked_size(path: Path) -> int:
    with zipfile.ZipFile(path) as archive:
        return sum(entry.file_size for entry in archive.infolist())


def _guarded(path: Path, load: Callable[[], Any]) -> Any:
    try:
        return load()
    except Forbidden as error:
        raise CheckpointError(f"{path}: refused, nothing of it was run: it wants {error}.") from error
    except Exception as error:  # a damaged pickle raises nearly anything, as Python's documentation of pickle warns
        text = str(error)
        named = re.search(r"GLOBAL ([\w.]+)", text)
        if named:
            raise CheckpointError(f"{path}: refused, nothing of it was run: it wants {_call(named[1])}.") from error
        # torch tells the reason behind advice to load the file without protection, which is not passed on
        reason = text.partition("WeightsUnpickler error:")[2].strip() or text.strip() or type(error).__name__
        reason = f"{type(error).__name__}: {reason.splitlines()[0]}"
        raise CheckpointError(f"{path}: not a readable checkpoint, damaged or cut: {reason}") from error


def _contents(path: Path, content: Any) -> ReleasedFile:
    """Find the tensors. Containers are read by dict's own methods: a pickle may give an OrderedDict attributes."""
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: holds {_in_words(content)}, expected a dict of tensors by name.")
    top = dict(dict.items(content))
    container = next((name for name in CONTAINERS if isinstance(top.get(name), dict)), "")
    entries = dict(dict.items(top.pop(container))) if container else top
    state = {name: _tensor(value) for name, value in entries.items() if _is_name(name) and _usable(value)}
    if not state:
        shown = ", ".join(_shown(name) for name in list(top)[:8]) or "nothing"
        wanted = " or ".join(f"'{name}'" for name in CONTAINERS)
        raise CheckpointError(f"{path}: no tensors at its top or under {wanted}. It holds: {shown}.")
    others = {_shown(name): _in_words(value) for name, value in entries.items() if name not in state}
    if container:
        others |= {_shown(name): _in_words(value) for name, value in top.items()}
    return ReleasedFile(state, container, others)


def _is_name(name: Any) -> bool:
    """Names are printed: nothing that moves a terminal's cursor."""
    return isinstance(name, str) and name.isprintable() and 0 < len(name) <= 200


def _shown(name: Any) -> str:
    return name if _is_name(name) else f"an entry named by a {_in_words(name)}"


def _usable(value: Any) -> bool:
    if isinstance(value, Array):
        return value.tensor is not None
    plain = isinstance(value, Tensor) and value.layout == torch.strided and value.device.type == "cpu"
    return plain and not value.is_quantized and not value.is_complex()


def _tensor(value: Tensor | Array) -> Tensor:
    return value.tensor if isinstance(value, Array) else value.detach()


def _in_words(value: Any) -> str:
    if isinstance(value, (bool, float)) or value is None or isinstance(value, int) and value.bit_length() <= 64:
        return repr(value)
    if isinstance(value, str):
        return repr(value) if len(value) <= 40 else f"{value[:37]!r}..."
    if isinstance(value, (dict, list, tuple, set)):
        return f"a {type(value).__name__} of {len(value)}"
    if isinstance(value, Tensor):
        return f"a tensor of {value.dtype} on {value.device.type}, layout {value.layout}"
    return f"a {type(value).__name__}"


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            if "maskstream" in (file.metadata() or {}):
                raise CheckpointError(f"{path}: these are Maskstream's own weights already; they need no import.")
            return {name: file.get_tensor(name) for name in file.keys()}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: not a readable safetensors file: {error}.") from error


# -------------------------------------------------------------------------------------------------------- the stand-ins


class Forbidden(ValueError):
    """A pickle asks for something else than data; the text says what."""


class _Dtype:
    """For numpy.dtype: numbers and truth values alone."""

    def __init__(self, code: str, *_: Any) -> None:
        if code not in _DTYPES:
            raise Forbidden(f"an array of dtype {str(code)[:40]!r}, which is not one of numbers")
        self.code, self.order = code, "<"

    def __setstate__(self, state: Any) -> None:
        order = state[1]
        if order not in ("<", ">", "|", "="):
            raise Forbidden(f"an array of byte order {str(order)[:40]!r}")
        self.order = "<" if order == "=" else order


class Array:
    """For numpy.ndarray: filled when its bytes come."""

    def __init__(self) -> None:
        self.tensor: Tensor | None = None

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, raw = state
        self.tensor = _from_bytes(raw, dtype, shape, "F" if fortran else "C")


def _from_bytes(raw: Any, dtype: Any, shape: Any, order: str) -> Tensor:
    if isinstance(raw, str):
        raw = raw.encode("latin1")                  # a Python 2 string
    if not isinstance(dtype, _Dtype) or not isinstance(raw, (bytes, bytearray)):
        raise Forbidden("an array that is not made of plain bytes")
    shape = (shape,) if isinstance(shape, int) else tuple(shape)
    kind = np.dtype(dtype.order + dtype.code)
    if min(shape, default=0) < 0 or len(shape) > 8 or len(raw) != math.prod(shape) * kind.itemsize:
        raise Forbidden(f"an array of shape {str(shape)[:60]} and {kind} out of {len(raw)} bytes")
    values = np.frombuffer(raw, kind).reshape(shape, order="F" if order == "F" else "C")
    # torch does little with unsigned integers of several bytes; counters are what they hold
    native = np.int64 if kind.kind == "u" and kind.itemsize > 1 else kind.newbyteorder("=")
    return torch.from_numpy(np.array(values, native, order="C"))


def _reconstruct(kind: Any, *_: Any) -> Array:
    """For numpy's own of that name: an array without content, whose bytes come by `__setstate__`."""
    if kind is not Array:
        raise Forbidden("an array of a class that is not numpy.ndarray")
    return Array()


def _scalar(dtype: Any, raw: Any) -> Array:
    return _frombuffer(raw, dtype, (), "C")


def _frombuffer(raw: Any, dtype: Any, shape: Any, order: Any) -> Array:
    """For numpy's own of that name: how arrays are written since pickle protocol 5."""
    array = Array()
    array.tensor = _from_bytes(raw, dtype, shape, order)
    return array


def _encode(text: Any, encoding: Any = "") -> bytes:
    """For _codecs.encode: how Python 3 writes bytes in the protocols of Python 2."""
    if not isinstance(text, str) or encoding != "latin1":
        raise Forbidden(f"_codecs.encode to {str(encoding)[:40]!r}")
    return text.encode("latin1")


def _bytes(*arguments: Any) -> bytes:
    """For bytes: how Python 3 writes b'' in the protocols of Python 2."""
    if arguments:
        raise Forbidden(_call("bytes with arguments"))
    return b""


class _Dict(dict):
    """For collections.OrderedDict: attributes that a pickle wants to give it are dropped."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        pass


_NUMPY: Mapping[str, Any] = {
    "multiarray._reconstruct": _reconstruct,
    "multiarray.scalar": _scalar,
    "numeric._frombuffer": _frombuffer,
}
_STAND_INS: dict[tuple[str, str], Any] = {
    (f"numpy.{core}.{name.split('.')[0]}", name.split(".")[1]): stand_in
    for core in ("core", "_core")
    for name, stand_in in _NUMPY.items()
} | {
    ("numpy", "ndarray"): Array,
    ("numpy", "dtype"): _Dtype,
    ("builtins", "bytes"): _bytes,
    ("__builtin__", "bytes"): _bytes,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        known = {**_STAND_INS, ("_codecs", "encode"): _encode, ("collections", "OrderedDict"): _Dict}
        if (module, name) not in known:
            raise Forbidden(_call(f"{module}.{name}"))
        return known[module, name]


def _call(name: str) -> str:
    return f"to call {name[:80]}, and only arrays, tensors and plain containers are read"
