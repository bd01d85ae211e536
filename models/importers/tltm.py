"""The TLTM release -> TLTM here: CenterMask2's names, and those of fuser, encoder and graph.

Source: TLTM specification 6
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from models.importers.centermask import CENTERMASK_RULES, IGNORED, without_wrapper
from models.importers.renaming import AFFINE, Renamed, Rules, rename, stack

_GRAPH = {"edge_mlp": "edge_mlp", "node_mlp": "node_mlp", "edge_predictor": "scorer"}

_RULES: Rules = (
    *CENTERMASK_RULES,
    (rf"proposal_generator\.fcos_head\.resfuser_([0-4])\.cn([12])\.{AFFINE}", r"fuser.levels.\1.conv\2.\3"),
    (rf"obj_encoder\.cn([123])\.{AFFINE}", r"encoder.conv\1.\2"),
    (rf"obj_encoder\.fc\.{AFFINE}", r"encoder.fc.\1"),
    *((rf"obj2obj_gnn\.{theirs}\.(\d)\.{AFFINE}", rf"graph.{ours}.\1.\2") for theirs, ours in _GRAPH.items()),
)


def from_tltm(state: Mapping[str, Tensor]) -> Renamed:
    """TLTM's names -> ours."""
    return stack(rename(state, _RULES, IGNORED, without_wrapper), "fcos.scales")
