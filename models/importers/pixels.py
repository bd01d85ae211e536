"""The first convolution, written anew for pixels of another order and scale: its outputs stay what they were.

In:     the weight of a first convolution without bias (O, 3, k, k), and how pixels came to it before and come to it now
Out:    the same, in new axes
State:  none
Limits: both must take off the same mean: then the padding, 0 after normalisation, means the same colour to both, and
        the two convolutions agree at the borders too

Where a release wants RGB over a standard deviation and a network is set to plain BGR, the release's
sum_c w_c (p_c - m_c) / s_c is written as sum_c (w_c s'_c / s_c) (p_c - m_c) / s'_c, c running in the network's order.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from models.inputs import InputConfig

FIRST_CONVOLUTIONS = ("backbone.stem.conv.weight", "backbone.base_layer.0.weight")


def adapt_first_convolution(weight: Tensor, theirs: InputConfig, ours: InputConfig) -> Tensor:
    """(O, 3, k, k) trained on pixels as `theirs`, for pixels as `ours`. Raises ValueError when the means differ."""
    turn = slice(None) if theirs.channel_order == ours.channel_order else slice(None, None, -1)
    mean, std = theirs.mean[turn], theirs.std[turn]
    if not all(math.isclose(a, b, abs_tol=0.05) for a, b in zip(mean, ours.mean, strict=True)):
        raise ValueError(f"the means differ: {mean} and {ours.mean}, as {ours.channel_order}")
    scale = torch.tensor([b / a for a, b in zip(std, ours.std, strict=True)], dtype=torch.float64)
    turned = weight if theirs.channel_order == ours.channel_order else weight.flip(1)
    return (turned.double() * scale[:, None, None]).to(weight.dtype)
