"""The MaskTrack R-CNN release, and MMDetection's Mask R-CNN, whose names it shares -> two-stage networks here.

Layouts agree: hidden layers take regions flattened channel first (256 x 7 x 7), deltas are four a class, the classes
one behind the other. Class 0 is the background here, in MaskTrack R-CNN and in MMDetection 1; in MMDetection from 2 on
the background is the last class, and has neither a box nor a mask.
Source: CrossVIS specification 6.4; IAI specification 5 for what training begins with. Mask R-CNN's names from 2 on are
        those of MaskTrack R-CNN, with `roi_head.` before the heads of the second stage.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from models.importers.renaming import AFFINE, Renamed, Rules, from_torchvision_spelling, rename, resnet_rules

_LAYERS = {
    r"rpn_head\.rpn_conv": "rpn.conv",
    r"rpn_head\.rpn_cls": "rpn.logits",
    r"rpn_head\.rpn_reg": "rpn.deltas",
    r"(?:roi_head\.)?bbox_head\.shared_fcs\.0": "box_head.fc1",
    r"(?:roi_head\.)?bbox_head\.shared_fcs\.1": "box_head.fc2",
    r"(?:roi_head\.)?bbox_head\.fc_cls": "box_head.class_logits",
    r"(?:roi_head\.)?bbox_head\.fc_reg": "box_head.deltas",
    r"(?:roi_head\.)?mask_head\.upsample": "mask_head.upsample",
    r"(?:roi_head\.)?mask_head\.conv_logits": "mask_head.logits",
}
_MASK_RCNN: Rules = (
    *resnet_rules(r"backbone\."),
    (rf"neck\.lateral_convs\.(\d)\.conv\.{AFFINE}", r"fpn.lateral.\1.\2"),
    (rf"neck\.fpn_convs\.(\d)\.conv\.{AFFINE}", r"fpn.output.\1.\2"),
    *((rf"{theirs}\.{AFFINE}", rf"{ours}.\1") for theirs, ours in _LAYERS.items()),
    (rf"(?:roi_head\.)?mask_head\.convs\.(\d+)\.conv\.{AFFINE}", r"mask_head.convs.\1.\2"),
)
_MASKTRACK: Rules = (
    *_MASK_RCNN,
    (rf"track_head\.fcs\.0\.{AFFINE}", r"track_head.fc1.\1"),
    (rf"track_head\.fcs\.1\.{AFFINE}", r"track_head.fc2.\1"),
    (r"track_head\.((?:offset_convs\.\d\.conv|conv_offset|dconv_featureflow)\.(?:weight|bias))", r"calibration.\1"),
)
_IGNORED: Rules = ((r"backbone\.fc\..*", "the ImageNet classifier"),)


def from_masktrack(state: Mapping[str, Tensor]) -> Renamed:
    """MaskTrack R-CNN's names -> ours."""
    return rename(state, _MASKTRACK, _IGNORED, from_torchvision_spelling)


def from_mask_rcnn(state: Mapping[str, Tensor]) -> Renamed:
    """MMDetection's Mask R-CNN -> ours, the background first among the classes."""
    renamed = rename(state, _MASK_RCNN, _IGNORED, from_torchvision_spelling)
    of_class = {name: x for name, x in renamed.state.items() if name.startswith("box_head.class_logits.") and x.dim()}
    boxes = renamed.state.get("box_head.deltas.bias")
    if boxes is None or any(boxes.numel() != 4 * (len(x) - 1) for x in of_class.values()):
        return renamed                                                                      # the background is first
    return replace(renamed, state=renamed.state | {name: x.roll(1, 0) for name, x in of_class.items()})
