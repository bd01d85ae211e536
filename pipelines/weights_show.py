"""What the terminal shows of weights: an import's account, a file of ours, a released file. Names are told in groups.

In:     `Imported`, or a path
Out:    tables on stdout; nothing is kept, nothing of a file is executed
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text
from safetensors import SafetensorError, safe_open
from torch import Tensor

from models.importers import RELEASES, Report, guess
from operators.pickles import read_released
from operators.weights import Checkpoint, read_weights
from pipelines.weights import Imported, part_sizes, settings_lines

Group = tuple[str, int, str]
"""(names with {..} for what varies, how many there are, what holds for all of them)."""


def print_import(done: Imported, verbose: bool = False, console: Console | None = None) -> None:
    """Used, unused, filled in, fresh, missing, not usable: how many tensors of each, then which; of rows of classes
    that were copied one by one, which. `verbose` tells every tensor, and where it came from."""
    console = console or Console(highlight=False)
    _line(console, f"{done.source} as {done.release} ({RELEASES[done.release].what}) -> {done.spec.where}")
    sections = _sections(done.report, verbose)
    counts = Table("tensors", "", box=None)
    for title, labels in sections:
        counts.add_row(str(len(labels)), title)
    console.print(counts)
    for title, labels in sections:
        if labels:
            _line(console, f"\n{title}:")
            _print_groups(console, [(n, 1, label) for n, label in labels.items()] if verbose else grouped(labels))
    for line in () if done.rows is None else done.rows.lines():
        _line(console, f"\n{line}")


def print_saved(
    done: Imported, out: Path, names: tuple[str, ...], kept_proxies: bool = False, console: Console | None = None
) -> None:
    """Where the weights are, what their classes are called, and what they are good for."""
    console = console or Console(highlight=False)
    shown = ", ".join(names[:3]) + (f", .. ({len(names)} in all)" if len(names) > 3 else "")
    _line(console, f"\n{out}")
    _line(console, f"classes: {shown or 'none yet; training names its own'}")
    if done.has_proxies and not kept_proxies:
        _line(console, "without the proxies of the training identities; --keep-proxies keeps them")
    if done.untrained:
        _line(console, f"for training alone: {len(done.untrained)} tensors that inference reads are yet to be trained")


def _sections(report: Report, verbose: bool) -> list[tuple[str, dict[str, str]]]:
    """(title, name -> label), all of them, empty or not; rows that were copied only where some were."""
    return [
        ("used", {ours: f"<- {', '.join(theirs)}" if verbose else "" for ours, theirs in report.used.items()}),
        *([("used in part, the other rows as initialised", report.partial)] if report.partial else []),
        ("filled in", report.filled),
        ("fresh, as initialised", report.fresh),
        ("missing", dict.fromkeys(report.missing, "needed, and not in the file")),
        ("not usable", report.faulty),
        ("unused, of the file", report.unused),
    ]


def print_weights(path: Path, keys: bool = False, console: Console | None = None) -> None:
    """What a file of weights holds, ours or a release's. Raises CheckpointError for one that cannot be read."""
    console = console or Console(highlight=False)
    if path.suffix == ".safetensors" and _is_ours(path):
        _print_ours(read_weights(path), keys, console)
    else:
        _print_released(path, keys, console)


def _is_ours(path: Path) -> bool:
    """Of a file that cannot be read too: reading it as ours gives the error."""
    try:
        with safe_open(path, framework="pt") as file:
            return "maskstream" in (file.metadata() or {})
    except (SafetensorError, OSError):
        return True


def _print_ours(checkpoint: Checkpoint, keys: bool, console: Console) -> None:
    own = {"maskstream", "network", "config", "classes", "fresh"}
    _line(console, f"network  {checkpoint.network}")
    for line in settings_lines(checkpoint.config):
        _line(console, f"  {line}")
    _line(console, f"classes  {', '.join(checkpoint.classes) or 'none: the class scores are fresh'}")
    for name, value in sorted(checkpoint.metadata.items()):
        if name not in own:
            _line(console, f"{name}  {value}")
    if "fresh" in checkpoint.metadata:
        _line(console, "for training alone: fresh parts, told in the metadata, are not trained yet")
    _print_parts(checkpoint.state, console)
    if keys:
        _print_groups(console, [(name, 1, _shape(value)) for name, value in checkpoint.state.items()])


def _print_released(path: Path, keys: bool, console: Console) -> None:
    file = read_released(path)
    where = f"under '{file.container}'" if file.container else "at the top"
    _line(console, f"{len(file.state)} tensors {where}; not a file of Maskstream's")
    for name, value in file.others.items():
        _line(console, f"  beside them {name}: {value}")
    release = guess(file.state)
    fits = f"--release {release} ({RELEASES[release].what})" if release else "none of " + ", ".join(RELEASES)
    _line(console, f"names of  {fits}")
    shapes = {name: _shape(value) for name, value in file.state.items()}
    _print_groups(console, [(n, 1, s) for n, s in shapes.items()] if keys else grouped(shapes))


def _print_parts(state: Mapping[str, Tensor], console: Console) -> None:
    table = Table("part", box=None)
    for column in ("tensors", "numbers"):
        table.add_column(column, justify="right")
    sizes = part_sizes(state)
    for part, (tensors, numbers) in sizes.items():
        table.add_row(Text(part), str(tensors), f"{numbers:,}")
    table.add_row("all", str(len(state)), f"{sum(numbers for _, numbers in sizes.values()):,}")
    console.print(table)


def _print_groups(console: Console, groups: Iterable[Group]) -> None:
    for pattern, count, label in groups:
        _line(console, f"  {count:>4}  {pattern}  {label}".rstrip())


def _line(console: Console, text: str) -> None:
    """Whatever a file says of itself: nothing that moves the cursor or changes colours reaches the terminal."""
    shown = "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)
    console.print(Text(shown), soft_wrap=True)


def _shape(value: Tensor) -> str:
    return f"{list(value.shape)} {value.dtype}".replace("torch.", "")


# --------------------------------------------------------------------------------------------------------------- groups


def grouped(labels: Mapping[str, str]) -> list[Group]:
    """Names that differ in one part alone and have the same label, told as one: res4.{0..5}.conv1.weight.

    In the order of their first names. No names: [].
    """
    leaves = [(tuple(name.split(".")), label) for name, label in labels.items()]
    return [(".".join(parts), count, label) for parts, count, label in _merged(leaves)]


def _merged(leaves: list[tuple[tuple[str, ...], str]]) -> list[tuple[tuple[str, ...], int, str]]:
    """Bottom up: what stands behind each first part is grouped, then first parts with the same group behind them."""
    behind: dict[str, list[tuple[tuple[str, ...], str]]] = {}
    for parts, label in leaves:
        behind.setdefault(parts[0], []).append((parts[1:], label))
    heads: dict[tuple[tuple[str, ...], int, str], list[str]] = {}
    for first, rest in behind.items():
        ends = [((), 1, label) for parts, label in rest if not parts]
        for group in ends + _merged([leaf for leaf in rest if leaf[0]]):
            heads.setdefault(group, []).append(first)
    return [((_braces(firsts), *tail), count * len(firsts), label) for (tail, count, label), firsts in heads.items()]


def _braces(parts: list[str]) -> str:
    """['0', '1', '2'] -> {0..2}, ['res2', 'res3'] -> res{2,3}, ['weight', 'bias'] -> {weight,bias}, ['a'] -> a."""
    if len(parts) == 1:
        return parts[0]
    split = [re.fullmatch(r"(.*?)(0|[1-9]\d*)", part) for part in parts]
    stems = {found[1] if found else None for found in split}
    if len(stems) > 1 or None in stems:
        return "{" + ",".join(parts) + "}"
    return stems.pop() + "{" + _ranges(sorted(int(found[2]) for found in split)) + "}"


def _ranges(numbers: list[int]) -> str:
    """[0, 1, 2, 5, 6] -> 0..2,5,6"""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    told = [f"{run[0]}..{run[-1]}" if len(run) > 2 else ",".join(map(str, run)) for run in runs]
    return ",".join(told)
