"""CenterMask2's releases -> CenterMask here.

Their mask IoU head, which COCO files have, is left behind: no network here scores masks apart from boxes. Files on
other trunks than a ResNet (VoVNet) do not fit, and the report says what is missing.
Source: TLTM specification 6 for the names
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from models.importers.crossvis import FCOS_RULES
from models.importers.renaming import AFFINE, Renamed, Rules, rename, stack

_MASK = r"roi_heads\.mask_head\."

CENTERMASK_RULES: Rules = (
    *FCOS_RULES,
    *((rf"{_MASK}mask_fcn{i + 1}\.{AFFINE}", rf"mask_head.convs.{i}.\1") for i in range(4)),
    (rf"{_MASK}(?i:spatialAtt)\.conv\.weight", "mask_head.attention.conv.weight"),
    (rf"{_MASK}deconv\.{AFFINE}", r"mask_head.upsample.\1"),
    (rf"{_MASK}predictor\.{AFFINE}", r"mask_head.logits.\1"),
)
IGNORED: Rules = (
    (r"roi_heads\.maskiou_head\..*", "the mask IoU head, which is off everywhere here"),
    (r"(?:backbone\.bottom_up\.)?stem\.fc\..*", "the ImageNet classifier"),
    (r"pixel_(mean|std)", "a setting; model.input has it"),
)


def from_centermask(state: Mapping[str, Tensor]) -> Renamed:
    """CenterMask2's names -> ours."""
    return stack(rename(state, CENTERMASK_RULES, IGNORED, without_wrapper), "fcos.scales")


def without_wrapper(name: str) -> str:
    """Without the prefix that training on several GPUs leaves."""
    return name.removeprefix("module.")
