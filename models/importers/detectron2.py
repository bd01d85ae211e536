"""detectron2's ImageNet files (MSRA ResNets): Caffe2's names or detectron2's -> the backbone.

Source: CrossVIS specification 6.3, rules 5 and 6. Caffe's norms carry a weight and a bias alone; what they lack is
        filled in: mean 0, variance 1 - 1e-5, to which the norm adds its own 1e-5.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from models.importers.renaming import Renamed, rename, resnet_rules
from models.norms import BATCH_NORM_EPS

_BRANCHES = {"1": "shortcut", "2a": "conv1", "2b": "conv2", "2c": "conv3"}
_TENSORS = {"w": "weight", "bn_s": "norm.weight", "bn_b": "norm.bias"}
_IGNORED = (
    (r"(fc1000|pred|stem\.fc|fc|linear)[._].*", "the ImageNet classifier"),
    (r".*_momentum", "state of the optimiser"),
)


def from_detectron2(state: Mapping[str, Tensor]) -> Renamed:
    """detectron2's ResNet at the top of the file -> `backbone.*`."""
    renamed = rename(state, resnet_rules(r"(?:backbone\.bottom_up\.)?"), _IGNORED, respell=_from_caffe)
    return renamed if any(re.search(r"running|bn_rm|bn_riv", name) for name in state) else _filled(renamed)


def _from_caffe(name: str) -> str:
    """res2_0_branch2a_w -> res2.0.conv1.weight, res_conv1_bn_s -> stem.conv1.norm.weight; other names as they are."""
    block = re.fullmatch(r"(res[2-5])_(\d+)_branch(1|2[abc])_(w|bn_s|bn_b)", name)
    if block:
        return f"{block[1]}.{block[2]}.{_BRANCHES[block[3]]}.{_TENSORS[block[4]]}"
    stem = re.fullmatch(r"(?:res_)?conv1_(w|bn_s|bn_b)", name)
    return f"stem.conv1.{_TENSORS[stem[1]]}" if stem else name


def _filled(renamed: Renamed) -> Renamed:
    """With mean 0 and variance 1 - 1e-5 beside every norm's weight."""
    norms = [name.removesuffix("weight") for name in renamed.state if name.endswith(".norm.weight")]
    state, sources = dict(renamed.state), dict(renamed.sources)
    for norm in norms:
        weight = renamed.state[f"{norm}weight"]
        state[f"{norm}running_mean"] = torch.zeros(weight.shape)
        state[f"{norm}running_var"] = torch.ones(weight.shape) - BATCH_NORM_EPS
        sources |= {f"{norm}running_mean": (), f"{norm}running_var": ()}
    return Renamed(state, sources, renamed.unused)
