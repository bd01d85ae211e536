"""The CrossVIS release, and AdelaiDet's CondInst whose names it shares -> CrossVIS and CondInst here.

Source: CrossVIS specification 6.2 for the names; 6.3, rule 7, for those of older files; 6.4 for a DLA-34 in the trunk
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from models.importers.dla import dla_rules
from models.importers.renaming import (
    AFFINE,
    NORM,
    Renamed,
    Rules,
    from_torchvision_spelling,
    rename,
    resnet_rules,
    stack,
)

_TRUNK = r"backbone\.bottom_up\."
_HEAD = r"proposal_generator\.fcos_head\."
_TOWERS = {"cls": "fcos.class_tower", "bbox": "fcos.box_tower"}
_OUTPUTS = {"cls_logits": "fcos.class_logits", "bbox_pred": "fcos.distances", "ctrness": "fcos.centerness"}

FCOS_RULES: Rules = (
    *resnet_rules(_TRUNK),
    *((rf"backbone\.fpn_{kind}{i + 3}\.{AFFINE}", rf"fpn.{kind}.{i}.\1") for kind in ("lateral", "output")
      for i in range(3)),
    (rf"backbone\.top_block\.(p[67])\.{AFFINE}", r"fpn.\1.\2"),
    *((rf"{_HEAD}{theirs}_tower\.(\d+)\.{AFFINE}", rf"{ours}.\1.\2") for theirs, ours in _TOWERS.items()),
    *((rf"{_HEAD}{theirs}\.{AFFINE}", rf"{ours}.\1") for theirs, ours in _OUTPUTS.items()),
    (rf"{_HEAD}scales\.(\d+)\.scale", r"fcos.scales.\1"),
)  # fmt: skip
"""ResNet, pyramid and FCOS, which several releases name alike."""
_RULES: Rules = (
    *FCOS_RULES,
    *dla_rules(_TRUNK),
    (rf"{_HEAD}reid_tower\.(\d+)\.{AFFINE}", r"embedding.tower.\1.\2"),
    (rf"{_HEAD}reid_pred\.{AFFINE}", r"embedding.project.\1"),
    (rf"{_HEAD}reid_pred_bn\.{NORM}", r"embedding.norm.\1"),
    (r"mask_branch\.(refine\.\d\.0|tower\.[0-3]\.0)\.weight", r"mask_branch.\1.weight"),
    (rf"mask_branch\.(refine\.\d\.1|tower\.[0-3]\.1)\.{NORM}", r"mask_branch.\1.\2"),
    (rf"mask_branch\.tower\.4\.{AFFINE}", r"mask_branch.output.\1"),
    (rf"controller\.{AFFINE}", r"controller.\1"),
    (rf"cls\.{AFFINE}", r"proxies.proxies.\1"),
)
_IGNORED = (
    (r"mask_head\._iter", "a counter that only the release's own training reads"),
    (r"mask_head\.sizes_of_interest", "a setting; held against the network's"),
    (r"mask_branch\.(seg_head|logits)\..*", "the auxiliary semantic head, which is off everywhere here"),
)


def from_crossvis(state: Mapping[str, Tensor]) -> Renamed:
    """CrossVIS's or CondInst's names, of today or of older files -> ours.

    Raises ValueError for a BiFPN variant, which no network here has.
    """
    if any("bifpn" in name for name in state):
        raise ValueError("a variant with a BiFPN, which no network here has; only FPN variants can be imported")
    renamed = stack(rename(state, _RULES, _IGNORED, respell=_from_older), "fcos.scales")
    sizes = state.get("mask_head.sizes_of_interest")
    return renamed if sizes is None else replace(renamed, told={"fcos.divisors": tuple(sizes.flatten().tolist())})


def _from_older(name: str) -> str:
    """Names from before FCOS stood on detectron2 -> those of today."""
    name = name.removeprefix("module.").replace(".body.", ".bottom_up.", 1).replace(".top_blocks.", ".top_block.", 1)
    name = re.sub(r"^rpn\.(?:fcos_)?(?:head\.)?", "proposal_generator.fcos_head.", name)
    name = re.sub(r"^backbone\.fpn\.(?=fpn_|top_block)", "backbone.", name)
    name = re.sub(r"\.fpn_inner([2-4])\.", lambda found: f".fpn_lateral{int(found[1]) + 1}.", name)
    name = re.sub(r"\.fpn_layer([2-4])\.", lambda found: f".fpn_output{int(found[1]) + 1}.", name)
    return from_torchvision_spelling(name)
