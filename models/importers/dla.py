"""Public ImageNet files of DLA-34 -> the backbone, whose parts bear the same names.

Source: CrossVIS specification 6.4. `level3.project` and `level4.project` are in these files and read by nothing; where
        a file lacks them they stay fresh, and do no harm.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from models.importers.renaming import NORM, Renamed, Rules, rename

_LEAF = rf"(?:(?:conv[12]?|project\.0|0)\.weight|(?:bn[12]?|project\.1|1)\.{NORM})"


def dla_rules(prefix: str) -> Rules:
    """DLA's names behind `prefix` (a pattern) -> those of models/dla.py, under `backbone`."""
    path = r"(?:base_layer|level[0-5](?:\.tree[12])*(?:\.root)?)"
    return ((rf"{prefix}({path}\.{_LEAF})", r"backbone.\1"),)


def from_dla(state: Mapping[str, Tensor]) -> Renamed:
    """DLA-34 at the top of the file -> `backbone.*`."""
    return rename(state, dla_rules(""), ((r"fc\..*", "the ImageNet classifier"),))
