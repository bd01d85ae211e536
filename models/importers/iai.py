"""The IAI + CondInst release, the COCO CondInst it begins with, and MMDetection 3's CondInst -> IAI here.

What is stored otherwise than here: local attention's relative keys, biases and values, which a 1x1 convolution and a
tensor (1, heads, d, offsets, 1) hold head by head there; the levels' scales, single numbers there.
Source: IAI specification 6. Its norm1 is the memory's and norm2 the self-attention's, unlike AOT's own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from torch import Tensor

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

_BLOCK = "association.block"
_LINEAR = {
    r"self_attn\.linear_Q": "self_attention.query",
    r"self_attn\.linear_K": "self_attention.key",
    r"self_attn\.linear_V": "self_attention.value",
    r"self_attn\.projection": "self_attention.projection",
    r"linear_Q": "query",
    r"linear_V": "value",
    r"long_term_attn\.projection": "global_projection",
    r"short_term_attn\.fc": "local.projection",
    r"norm1": "norm_memory",
    r"norm2": "norm_self",
    r"norm3": "norm_feed_forward",
    r"linear1": "feed_forward.expand",
    r"linear2": "feed_forward.contract",
    r"activation\.gn": "feed_forward.norm",
}
_RELATIVE = {
    r"relative_emb\.weight": "relative_keys",
    r"relative_emb\.bias": "relative_bias",
    r"V_bias": "relative_values",
}
_LAYER = r"lstt\.LSTT\.layers\.0\."
_OUTPUTS = {
    r"(?:conv|fcos)_cls": "fcos.class_logits",
    r"(?:conv|fcos)_reg": "fcos.distances",
    r"(?:conv|fcos)_centerness": "fcos.centerness",
    r"conv_id": "identity_head.logits",
    r"controller": "controller",
}
_TOWERS = {"cls_convs": "fcos.class_tower", "reg_convs": "fcos.box_tower", "id_convs": "identity_head.tower"}


def _towers() -> Rules:
    """Convolution i and its norm are modules 3i and 3i + 1 here, a ReLU between."""
    return tuple(
        (rf"bbox_head\.{theirs}\.{i}\.{part}\.{AFFINE}", rf"{ours}.{3 * i + place}.\1")
        for theirs, ours in _TOWERS.items() for i in range(4) for place, part in enumerate(("conv", "gn"))
    )  # fmt: skip


_SHARED: Rules = (
    *resnet_rules(r"backbone\."),
    *((rf"neck\.lateral_convs\.{i}\.conv\.{AFFINE}", rf"fpn.lateral.{i}.\1") for i in range(3)),
    *((rf"neck\.fpn_convs\.{i}\.conv\.{AFFINE}", rf"fpn.output.{i}.\1") for i in range(3)),
    *((rf"neck\.fpn_convs\.{i}\.conv\.{AFFINE}", rf"fpn.p{i + 3}.\1") for i in (3, 4)),
    *_towers(),
    *((rf"bbox_head\.{theirs}\.{AFFINE}", rf"{ours}.\1") for theirs, ours in _OUTPUTS.items()),
    (r"bbox_head\.scales\.(\d+)\.scale", r"fcos.scales.\1"),
)
_IAI: Rules = (
    *_SHARED,
    (rf"(encoder_projector|backbone_projector)\.{AFFINE}", r"association.\1.\2"),
    (rf"lstt\.patch_wise_id_bank\.{AFFINE}", r"association.bank.conv.\1"),
    *((rf"{_LAYER}{theirs}\.{AFFINE}", rf"{_BLOCK}.{ours}.\1") for theirs, ours in _LINEAR.items()),
    *((rf"{_LAYER}short_term_attn\.{theirs}", f"{_BLOCK}.local.{ours}") for theirs, ours in _RELATIVE.items()),
    (rf"{_LAYER}activation\.GCT\.(alpha|gamma|beta)", rf"{_BLOCK}.feed_forward.gate.\1"),
    (rf"{_LAYER}activation\.conv\.weight", f"{_BLOCK}.feed_forward.mix.weight"),
    (rf"lstt\.LSTT\.decoder_norms\.0\.{AFFINE}", rf"{_BLOCK}.norm_out.\1"),
    (r"bbox_head\.mask_refine\.([0-2]\.0)\.weight", r"mask_branch.refine.\1.weight"),
    (rf"bbox_head\.mask_refine\.([0-2]\.1)\.{NORM}", r"mask_branch.refine.\1.\2"),
    (r"bbox_head\.mask_head\.([0-3]\.0)\.weight", r"mask_branch.tower.\1.weight"),
    (rf"bbox_head\.mask_head\.([0-3]\.1)\.{NORM}", r"mask_branch.tower.\1.\2"),
    (rf"bbox_head\.mask_head\.4\.{AFFINE}", r"mask_branch.output.\1"),
)
_FEATURES = r"mask_head\.mask_feature_head\."
_MMDETECTION: Rules = (
    *_SHARED,
    (rf"{_FEATURES}convs_all_levels\.([0-2])\.conv\d\.conv\.weight", r"mask_branch.refine.\1.0.weight"),
    (rf"{_FEATURES}convs_all_levels\.([0-2])\.conv\d\.bn\.{NORM}", r"mask_branch.refine.\1.1.\2"),
    (rf"{_FEATURES}conv_branch\.([0-3])\.conv\.weight", r"mask_branch.tower.\1.0.weight"),
    (rf"{_FEATURES}conv_branch\.([0-3])\.bn\.{NORM}", r"mask_branch.tower.\1.1.\2"),
    (rf"{_FEATURES}conv_pred\.(?:0\.)?{AFFINE}", r"mask_branch.output.\1"),
)
_IGNORED: Rules = ((r"backbone\.fc\..*", "the ImageNet classifier"),)


def from_iai(state: Mapping[str, Tensor]) -> Renamed:
    """IAI's names, or those of the COCO CondInst of its code family, which lack some -> ours."""
    renamed = stack(rename(state, _IAI, _IGNORED, from_torchvision_spelling), "fcos.scales")
    return _relative(renamed)


def from_mmdetection(state: Mapping[str, Tensor]) -> Renamed:
    """MMDetection 3's CondInst -> ours; its towers' convolutions have biases."""
    auxiliary = (rf"{_FEATURES}(seg_head|conv_seg).*", "the auxiliary semantic head, which is off everywhere here")
    return stack(rename(state, _MMDETECTION, (*_IGNORED, auxiliary), from_torchvision_spelling), "fcos.scales")


def _relative(renamed: Renamed) -> Renamed:
    """Local attention's relative terms as (heads, offsets, ..). What has not the shape it should stays, and will not
    fit."""
    state, local = dict(renamed.state), f"{_BLOCK}.local."
    values = state.get(f"{local}relative_values")
    if values is None or values.dim() != 5:
        return renamed
    _, heads, _, offsets, _ = values.shape
    layouts: dict[str, Callable[[Tensor], Tensor]] = {
        "relative_values": lambda x: x[0, :, :, :, 0].transpose(1, 2),
        "relative_keys": lambda x: x.reshape(heads, offsets, -1),
        "relative_bias": lambda x: x.reshape(heads, offsets),
    }
    for name, laid_out in layouts.items():
        tensor = state.get(local + name)
        if tensor is not None and tensor.numel() % (heads * offsets) == 0:
            state[local + name] = laid_out(tensor).contiguous()
    return replace(renamed, state=state)
