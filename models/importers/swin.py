"""Swin transformers of the original release and of torchvision -> the backbone.

Source: CiCo specification 6.1. The norms of single stages are in neither: they start fresh. In detectors of the
original's family they are `norm0` to `norm3`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from models.importers.renaming import AFFINE, Renamed, Rules, rename

_ATTENTION = rf"attn\.(qkv|proj)\.{AFFINE}"
_MERGE = r"(reduction\.weight|norm\.(?:weight|bias))"
_TABLE = r"attn\.relative_position_bias_table"
SWIN_IGNORED = (
    (r".*\.(attn_mask|attn\.relative_position_index)", "counted anew from sizes"),
    (r"(norm|head)\..*", "the ImageNet classifier, and the norm before it"),
)


def swin_rules(prefix: str) -> Rules:
    """The original release's names behind `prefix` (a pattern) -> those of models/swin.py, under `backbone`."""
    block, ours = rf"{prefix}layers\.(\d)\.blocks\.(\d+)\.", r"backbone.stages.\1.\2."
    return (
        (rf"{prefix}patch_embed\.proj\.{AFFINE}", r"backbone.embed.\1"),
        (rf"{prefix}patch_embed\.norm\.{AFFINE}", r"backbone.embed_norm.\1"),
        (rf"{block}(norm[12])\.{AFFINE}", rf"{ours}\3.\4"),
        (rf"{block}{_ATTENTION}", rf"{ours}attention.\3.\4"),
        (rf"{block}{_TABLE}", rf"{ours}attention.relative_bias"),
        (rf"{block}mlp\.fc1\.{AFFINE}", rf"{ours}expand.\3"),
        (rf"{block}mlp\.fc2\.{AFFINE}", rf"{ours}contract.\3"),
        (rf"{prefix}layers\.(\d)\.downsample\.{_MERGE}", r"backbone.merges.\1.\2"),
        (rf"{prefix}norm([0-3])\.{AFFINE}", r"backbone.norms.\1.\2"),
    )


def from_swin(state: Mapping[str, Tensor]) -> Renamed:
    """A Swin at the top of the file, of either release -> `backbone.*`."""
    return rename(state, swin_rules(""), SWIN_IGNORED, respell=_from_torchvision)


def _from_torchvision(name: str) -> str:
    """torchvision's names -> the original release's; every other name as it is.

    features.0 is the embedding; then stages and mergings take turns.
    """
    name = re.sub(r"^features\.0\.0\.", "patch_embed.proj.", name)
    name = re.sub(r"^features\.0\.2\.", "patch_embed.norm.", name)
    name = re.sub(r"^features\.([1357])\.", lambda f: f"layers.{int(f[1]) // 2}.blocks.", name)
    name = re.sub(r"^features\.([246])\.", lambda f: f"layers.{int(f[1]) // 2 - 1}.downsample.", name)
    return re.sub(r"\.mlp\.([03])\.", lambda f: f".mlp.fc{1 if f[1] == '0' else 2}.", name)
