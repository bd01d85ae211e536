"""Yolact's COCO checkpoints -> what CiCo can begin with: backbone, pyramid, and the convolutions of its mask head.

The rest is Yolact's own and fits nothing here: boxes are told relative to square anchors of fixed sizes, classes have a
softmax, and there are no towers. Norms of the mask head, which Yolact has not, start as identities.
Source: CiCo specification 6.1, 6.2
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from models.importers.renaming import AFFINE, Renamed, Rules, from_torchvision_spelling, rename, resnet_rules

DEEPEST_FIRST = 3
"""Laterals and outputs of the pyramid: the release counts them from the coarsest map, we from the finest."""


def yolact_pyramid() -> Rules:
    """Backbone and pyramid, which CiCo's own files name alike."""
    rules = [*resnet_rules(r"backbone\.")]
    for theirs in range(DEEPEST_FIRST):
        ours = DEEPEST_FIRST - 1 - theirs
        rules.append((rf"fpn\.lat_layers\.{theirs}\.{AFFINE}", rf"fpn.lateral.{ours}.\1"))
        rules.append((rf"fpn\.pred_layers\.{theirs}\.{AFFINE}", rf"fpn.output.{ours}.\1"))
    for theirs, ours in enumerate(("p6", "p7")):
        rules.append((rf"fpn\.downsample_layers\.{theirs}\.{AFFINE}", rf"fpn.{ours}.\1"))
    return tuple(rules)


def yolact_spelling(name: str) -> str:
    """Yolact's ResNet names -> detectron2's; every other name as it is. layers.0..3, or layer.0..3 -> res2..5."""
    name = name.removeprefix("module.")
    name = re.sub(r"^backbone\.layers?\.([0-3])\.(?=\d)", lambda f: f"backbone.res{int(f[1]) + 2}.", name)
    return from_torchvision_spelling(name)


def without_copies(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Old files hold the backbone twice, as `backbone.layers` and as `backbone.layer`: what is left, and what is not,
    with the reason."""
    twice = any(re.match(r"(module\.)?backbone\.layers\.", name) for name in state)
    copies = [name for name in state if twice and re.match(r"(module\.)?backbone\.layer\.", name)]
    rest = {name: value for name, value in state.items() if name not in copies}
    return rest, dict.fromkeys(copies, "a second copy of backbone.layers")


_RULES = (
    *yolact_pyramid(),
    *((rf"proto_net\.{theirs}\.{AFFINE}", rf"prototypes.tower.{i}.0.\1") for i, theirs in enumerate((0, 2, 4))),
    (rf"proto_net\.8\.{AFFINE}", r"prototypes.last.0.\1"),
    (rf"proto_net\.10\.{AFFINE}", r"prototypes.output.\1"),
)
_IGNORED = (
    (r"prediction_layers\..*bbox_layer\..*", "boxes relative to square anchors of fixed sizes"),
    (r"prediction_layers\..*conf_layer\..*", "a softmax over COCO's classes"),
    (r"prediction_layers\..*", "Yolact's heads, which have no towers"),
    (r"semantic_seg_conv\..*", "an auxiliary loss of Yolact"),
)


def from_yolact(state: Mapping[str, Tensor]) -> Renamed:
    """Yolact's names -> ours; its mask head's kernels are 2D still (models/importers/cico.py, `inflated`)."""
    rest, copies = without_copies(state)
    renamed = rename(rest, _RULES, _IGNORED, respell=yolact_spelling)
    return Renamed(renamed.state, renamed.sources, renamed.unused | copies)
