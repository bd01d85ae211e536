"""The CiCo release, and the COCO checkpoints that it begins with -> CiCo here; and 2D weights -> 3D.

In:     tensors by the release's names; `inflated`: a network's tensors too, whose shapes say what has to grow
Out:    `Renamed`
State:  none
Source: CiCo specification 6.1 for the names, 6.3 for what grows. The release leaves the weights of the grown box layer
        random and tiles its bias in another order; here every frame's boxes begin as the still's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from models.cico_heads import ANCHORS
from models.cico_masks import MaskForm
from models.importers.renaming import AFFINE, NORM, Renamed, Rules, rename
from models.importers.swin import swin_rules
from models.importers.yolact import without_copies, yolact_pyramid, yolact_spelling

_HEADS = r"prediction_layers\.(?:0\.)?"
_MASKS = r"(?:ProtoNet\.)?"
_LAYERS = {
    "bbox": "boxes",
    "centerness": "centerness",
    "conf": "class_logits",
    "track": "embeddings",
    "mask": "mask_parameters",
}
_TOWERS = {"bbox": "box_tower", "track": "track_tower", "conf": "class_tower"}
_RULES: Rules = (
    *yolact_pyramid(),
    *swin_rules(r"backbone\."),
    *((rf"{_HEADS}{theirs}_layer\.{AFFINE}", rf"clip_heads.{ours}.\1") for theirs, ours in _LAYERS.items()),
    *((rf"{_HEADS}{theirs}_extra\.{2 * i}\.{AFFINE}", rf"clip_heads.{ours}.convs.{i}.\1")
      for theirs, ours in _TOWERS.items() for i in range(4)),
    (rf"{_MASKS}mask_refine\.([0-2])\.0\.{AFFINE}", r"prototypes.refine.\1.0.\2"),
    (rf"{_MASKS}mask_refine\.([0-2])\.1\.{NORM}", r"prototypes.refine.\1.1.\2"),
    *((rf"{_MASKS}proto_net\.{3 * i}\.{AFFINE}", rf"prototypes.tower.{i}.0.\1") for i in range(3)),
    *((rf"{_MASKS}proto_net\.{3 * i + 1}\.{NORM}", rf"prototypes.tower.{i}.1.\1") for i in range(3)),
    (rf"{_MASKS}proto_conv\.0\.{AFFINE}", r"prototypes.last.0.\1"),
    (rf"{_MASKS}proto_conv\.1\.{NORM}", r"prototypes.last.1.\1"),
    (rf"{_MASKS}proto_conv\.3\.{AFFINE}", r"prototypes.output.\1"),
)  # fmt: skip
_IGNORED: Rules = (
    (r"backbone\..*\.(attn_mask|attn\.relative_position_index)", "counted anew from sizes"),
    (r"semantic_seg_conv\..*", "an auxiliary loss, which is off everywhere here"),
)
TAPS = {"prototypes.tower.": (0.125, 0.75, 0.125), "clip_heads.": (1 / 3, 1 / 3, 1 / 3)}
"""Beginning of our name -> what a 2D kernel is multiplied by in the frame before, at and behind."""
FRESH_AFTER_STILLS = ("clip_heads.class_logits.", "clip_heads.track_tower.", "clip_heads.embeddings.")
"""Stills have other classes, and no tracks."""


def from_cico(state: Mapping[str, Tensor]) -> Renamed:
    """CiCo's names, of clips or of stills -> ours. Kernels over space alone are stored with or without an axis of time.

    `told` says which masks the numbers of prototypes and mask parameters make, where they make any.
    """
    rest, copies = without_copies(state)
    renamed = rename(rest, _RULES, _IGNORED, respell=yolact_spelling)
    flat = {name: _without_time(value) for name, value in renamed.state.items()}
    return Renamed(flat, renamed.sources, renamed.unused | copies, _masks_of(flat))


def from_cico_stills(state: Mapping[str, Tensor]) -> Renamed:
    """The COCO files that training on videos begins with: without classes, which are others. What is left out keeps
    its sources: its names are of this release all the same."""
    renamed = from_cico(state)
    left = [name for name in renamed.state if name.startswith(FRESH_AFTER_STILLS)]
    unused = {source: "of other classes, or of no tracks" for name in left for source in renamed.sources[name]}
    kept = {name: value for name, value in renamed.state.items() if name not in left}
    return replace(renamed, state=kept, unused=renamed.unused | unused)


def _without_time(value: Tensor) -> Tensor:
    return value.squeeze(2) if value.dim() == 5 and value.shape[2] == 1 else value


def _masks_of(state: Mapping[str, Tensor]) -> dict[str, object]:
    """Settings that two shapes tell: 483 outputs of the mask layer and 8 prototypes are CondInst with one Gaussian."""
    layer, output = state.get("clip_heads.mask_parameters.bias"), state.get("prototypes.output.bias")
    if layer is None or output is None:
        return {}
    forms = [MaskForm(kind="yolact", prototypes=len(output))]
    forms += [MaskForm(kind="condinst", prototypes=len(output), rel_coord=r) for r in ("offset2", "gauss1")]
    for form in forms:
        if len(layer) == ANCHORS * form.num_parameters:
            told = {"masks.kind": form.kind, "masks.prototypes": form.prototypes}
            return told | ({"masks.rel_coord": form.rel_coord} if form.kind == "condinst" else {})
    return {}


def inflated(renamed: Renamed, own: Mapping[str, Tensor]) -> Renamed:
    """`grown`, of what was renamed."""
    return replace(renamed, state=grown(renamed.state, own))


def grown(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """2D weights as the 3D ones `own` that they begin: kernels get taps in time that sum to 1, and the box layer gives
    each of T frames the still's boxes. What has its shape already, or fits none of this, stays as it is."""
    return {name: _inflated(name, value, own[name]) if name in own else value for name, value in state.items()}


def _inflated(name: str, value: Tensor, own: Tensor) -> Tensor:
    if name.startswith("clip_heads.boxes.") and len(value) == 4 * ANCHORS and len(own) % len(value) == 0:
        by_anchor = value.unflatten(0, (ANCHORS, 1, 4))                                 # (3, 1, 4, ..)
        value = torch.cat([by_anchor] * (len(own) // len(value)), dim=1).flatten(0, 2)
    if own.dim() == 5 and value.shape == own.shape[:2] + own.shape[3:]:
        taps = next((taps for begin, taps in TAPS.items() if name.startswith(begin)), None)
        if taps is not None and len(taps) != own.shape[2]:              # last layers of slots of two frames
            taps = (1 / own.shape[2],) * own.shape[2]
        return value if taps is None else value[:, :, None] * value.new_tensor(taps)[:, None, None]
    return value
