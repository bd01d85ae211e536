"""Which tensor of a file went where: the account that every import and every start from weights gives.

In:     tensors by our names (`Renamed`), and the tensors that a network has
Out:    the network's tensors with the file's in them, and a `Report` that leaves no name out, on either side
State:  none
Source: CrossVIS specification 6.3, rules 1 to 4
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from models.importers.renaming import Renamed

COUNTER = "num_batches_tracked"


@dataclass(frozen=True, kw_only=True)
class Allowance:
    """What a file may leave open. All are beginnings of our names; '' is every name."""

    needed: tuple[str, ...] = ("",)
    """Must come from the file."""
    absent: tuple[str, ...] = ()
    """May be missing all the same, and then stays fresh."""
    resizable: tuple[str, ...] = ()
    """May have another shape in the file, and then stays fresh: what depends on the classes or identities."""
    unread: tuple[str, ...] = ("proxies.", "backbone.level3.project.", "backbone.level4.project.")
    """Nothing reads them at inference: fresh or not, results are the same."""


@dataclass(frozen=True)
class Report:
    """Every tensor of the network is in one of `used`, `partial`, `filled`, `fresh`, `missing` and `faulty`; every one
    of the file in `used` or `unused`, but for those in `partial` and `faulty`."""

    used: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """ours -> the file's."""
    filled: dict[str, str] = field(default_factory=dict)
    """ours, in place without a source -> with what."""
    fresh: dict[str, str] = field(default_factory=dict)
    """ours, as freshly initialised -> why that is allowed."""
    missing: tuple[str, ...] = ()
    """ours, needed and not in the file."""
    faulty: dict[str, str] = field(default_factory=dict)
    """ours, in the file but not usable -> what is wrong with it."""
    unused: dict[str, str] = field(default_factory=dict)
    """the file's -> why."""
    partial: dict[str, str] = field(default_factory=dict)
    """ours, some of its rows from the file, the others as freshly initialised -> how many."""

    @property
    def complete(self) -> bool:
        return not self.missing and not self.faulty


def fit(renamed: Renamed, own: Mapping[str, Tensor], allowed: Allowance) -> tuple[dict[str, Tensor], Report]:
    """The tensors `own` of a network with those of the file in their place, in the network's types, and the account.

    Nothing is changed in place. With a report that is not complete, the tensors are of no use.
    """
    report = Report(unused=dict(renamed.unused))
    state = {}
    for name, mine in own.items():
        state[name] = mine
        theirs = renamed.state.get(name)
        if theirs is None:
            _without_source(name, allowed, report)
        elif theirs.shape != mine.shape and _begins(name, allowed.resizable):
            report.fresh[name] = f"{_shape(theirs)} in the file, {_shape(mine)} here"
            report.unused.update(dict.fromkeys(renamed.sources[name], "of another shape than here, as it may be"))
        elif fault := _fault(theirs, mine):
            report.faulty[name] = fault
        else:
            state[name] = theirs.to(mine.dtype, copy=True)
            _account(name, renamed, report)
    for name in renamed.state:
        if name not in own:
            _without_place(name, renamed.sources[name], report)
    told = report.used | report.filled | report.fresh | report.faulty | report.partial
    return state, replace(report, missing=tuple(name for name in own if name not in told))


def _without_source(name: str, allowed: Allowance, report: Report) -> None:
    if _begins(name, allowed.unread):
        report.fresh[name] = "not read at inference"
    elif _begins(name, allowed.absent) or not _begins(name, allowed.needed):
        report.fresh[name] = "not part of this release"
    elif name.endswith(COUNTER):
        report.filled[name] = "0: a counter that nothing reads"


def _without_place(name: str, sources: tuple[str, ...], report: Report) -> None:
    """A head that the network does without is left behind; part of a backbone is not: the rest would be another's."""
    if name.startswith("backbone.") and not name.endswith(COUNTER):
        report.faulty[name] = "the network has no such part: its backbone is another"
    else:
        report.unused.update(dict.fromkeys(sources, "the network has no such part"))


def _account(name: str, renamed: Renamed, report: Report) -> None:
    if name in renamed.partial:
        report.partial[name] = renamed.partial[name]
    elif sources := renamed.sources[name]:
        report.used[name] = sources
    else:
        report.filled[name] = "mean 0, variance 1 - 1e-5: the file's norms have none"


def _fault(theirs: Tensor, mine: Tensor) -> str:
    if theirs.shape != mine.shape:
        return f"{_shape(theirs)} in the file, {_shape(mine)} here"
    if theirs.is_floating_point() != mine.is_floating_point():
        return f"{theirs.dtype} in the file, {mine.dtype} here".replace("torch.", "")
    if theirs.is_floating_point() and not torch.isfinite(theirs).all():
        return "has values that are not finite"
    return ""


def _begins(name: str, prefixes: tuple[str, ...]) -> bool:
    return name.startswith(prefixes) if prefixes else False


def _shape(tensor: Tensor) -> str:
    return str(tuple(tensor.shape))
