"""The MaskTrack R-CNN release, and Mask R-CNN files that share its names -> MaskTrack R-CNN here.

Layouts agree: hidden layers take regions flattened channel first (256 x 7 x 7), class 0 is the background, deltas are
four a class, the classes one behind the other.
Source: CrossVIS specification 6.4
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from models.importers.renaming import Renamed, from_torchvision_spelling, rename, resnet_rules

_AFFINE = r"(weight|bias)"
_LAYERS = {
    r"rpn_head\.rpn_conv": "rpn.conv",
    r"rpn_head\.rpn_cls": "rpn.logits",
    r"rpn_head\.rpn_reg": "rpn.deltas",
    r"bbox_head\.shared_fcs\.0": "box_head.fc1",
    r"bbox_head\.shared_fcs\.1": "box_head.fc2",
    r"bbox_head\.fc_cls": "box_head.class_logits",
    r"bbox_head\.fc_reg": "box_head.deltas",
    r"track_head\.fcs\.0": "track_head.fc1",
    r"track_head\.fcs\.1": "track_head.fc2",
    r"mask_head\.upsample": "mask_head.upsample",
    r"mask_head\.conv_logits": "mask_head.logits",
}
_RULES = (
    *resnet_rules(r"backbone\."),
    (rf"neck\.lateral_convs\.(\d)\.conv\.{_AFFINE}", r"fpn.lateral.\1.\2"),
    (rf"neck\.fpn_convs\.(\d)\.conv\.{_AFFINE}", r"fpn.output.\1.\2"),
    *((rf"{theirs}\.{_AFFINE}", rf"{ours}.\1") for theirs, ours in _LAYERS.items()),
    (rf"mask_head\.convs\.(\d+)\.conv\.{_AFFINE}", r"mask_head.convs.\1.\2"),
    (r"track_head\.((?:offset_convs\.\d\.conv|conv_offset|dconv_featureflow)\.(?:weight|bias))", r"calibration.\1"),
)


def from_masktrack(state: Mapping[str, Tensor]) -> Renamed:
    """MaskTrack R-CNN's names -> ours."""
    return rename(state, _RULES, ((r"backbone\.fc\..*", "the ImageNet classifier"),), from_torchvision_spelling)
