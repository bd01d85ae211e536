"""The class rows of a COCO checkpoint that an import copies into a network of YouTube-VIS 2019: only where asked for.

In:     a release's tensors by our names, the network's own as freshly initialised
Out:    `ClassRows`: which rows are copied and which stay as initialised, by the names of their classes; the tensors
Limits: releases that say which of their tensors have a row for each of COCO's 80 classes; networks of 40 classes
Source: TLTM specification 6; which classes are the same says operators/datasets/class_maps.py
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from models.importers import RELEASES, Renamed, transplanted
from operators.class_names import CLASS_NAMES
from operators.datasets.class_maps import shared_rows
from operators.errors import CheckpointError, ConfigError
from pipelines.networks import NetworkSpec

OPTION = "--transplant-classes"
THEIRS, OURS = "coco", "youtube-vis-2019"
TRANSPLANTED = "transplanted"
"""Key in a file's metadata: the names, a JSON list, of the classes whose rows come from the release."""


@dataclass(frozen=True)
class ClassRows:
    """Rows of the release -> rows of the network."""

    theirs: tuple[str, ...]
    """Names of the release's classes."""
    ours: tuple[str, ...]
    """Names of the network's classes, which its weights are saved with."""
    places: Mapping[int, int]
    """Row of theirs -> row of ours."""

    @property
    def copied(self) -> tuple[str, ...]:
        """Ours, in the order of the network."""
        return tuple(self.ours[k] for k in sorted(self.places.values()))

    @property
    def fresh(self) -> tuple[str, ...]:
        """Ours that are as freshly initialised, in the order of the network."""
        return tuple(name for k, name in enumerate(self.ours) if k not in self.places.values())

    def lines(self) -> list[str]:
        """For people: every class of ours is named once."""
        pairs = sorted(self.places.items(), key=lambda pair: pair[1])
        copied = [f"{self.ours[k]} {k} <- {self.theirs[row]} {row}" for row, k in pairs]
        fresh = [f"{name} {self.ours.index(name)}" for name in self.fresh]
        return [f"rows of {len(copied)} classes copied: {', '.join(copied)}",
                f"rows of {len(fresh)} classes as initialised: {', '.join(fresh)}"]                       # fmt: skip


def class_rows(release: str, spec: NetworkSpec) -> ClassRows:
    """What can be copied. Raises ConfigError for a release without such rows, and a network of another number of
    classes."""
    able = [name for name, one in RELEASES.items() if one.class_rows]
    if release not in able:
        raise ConfigError(f"{OPTION}: the class rows of --release {release} cannot be copied one by one, those of "
                          f"{', '.join(able)} can. Leave the option out: its class scores then begin anew.")
    theirs, ours = CLASS_NAMES[THEIRS], CLASS_NAMES[OURS]
    if spec.config.num_classes != len(ours):
        raise ConfigError(f"{OPTION}: copies rows to the {len(ours)} classes of YouTube-VIS 2019, but {spec.where} has "
                          f"model.num_classes: {spec.config.num_classes}.")
    return ClassRows(theirs, ours, shared_rows(theirs, ours, THEIRS))


def transplant(source: Path, release: str, rows: ClassRows, renamed: Renamed, own: Mapping[str, Tensor]) -> Renamed:
    """`renamed` with the rows in place. Raises CheckpointError for a file that is not of COCO's classes."""
    try:
        return transplanted(renamed, own, RELEASES[release].class_rows, len(rows.theirs), rows.places)
    except ValueError as error:
        raise CheckpointError(f"{source}, {OPTION}: {error}. Expected a file trained on COCO; for another leave the "
                              "option out.") from error
