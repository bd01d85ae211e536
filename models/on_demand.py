"""Step 6 on a CPU: heads that compute nothing no detection asks for. CondInst and CrossVIS, fused.

In:     P3..P7 (B, C, h_l, w_l), channels last
Out:    `DenseOutputs` whose class logits and mask features are tensors; distances, centre-ness, filters and embeddings
        are computed where they are looked at: dense.filters[image, locations (N,)] -> (N, 169)
State:  what has been computed, until the `DenseOutputs` is dropped
Limits: read within the process that made them, on its device; no arithmetic on them as a whole

Of 66 GMAC of CrossVIS R-50 at 384x640, the towers of box and identity are 24, three quarters of that on P3. A location
passes as a candidate by its class score alone before anything else of it is read, for centre-ness can only lower it. So
a tower runs on a level when the first location there is asked for, on the whole batch, in one shape: what a frame gets
does not depend on the others. What hangs on the towers is a matrix product with the cells asked for, in float32.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.condinst import CondInst, DenseOutputs
from models.fcos import Locations


class ByLevel:
    """(B, P, *shape) float32 that is computed where it is looked at: x[image, locations (N,)] -> (N, *shape)"""

    def __init__(
        self, spans: list[tuple[int, int]], shape: tuple[int, ...], rows: Callable[[int, int, Tensor], Tensor]
    ) -> None:
        """`spans`: of each level the first location and the one past the last; `rows`: (level, image, cells (n,)) ->
        (n, *shape), cells counted within the level."""
        self.spans, self.shape, self.rows = spans, shape, rows

    def __getitem__(self, place: tuple[int, Tensor]) -> Tensor:
        image, locations = place
        out = torch.empty(len(locations), *self.shape, device=locations.device)
        for level, (begin, end) in enumerate(self.spans):                       # five at most
            here = ((locations >= begin) & (locations < end)).nonzero().squeeze(1)
            if len(here):
                out[here] = self.rows(level, image, locations[here] - begin)
        return out


@dataclass
class _Asked:
    """One call of the heads: its levels, and what was computed of them so far."""

    network: CondInst
    levels: tuple[Tensor, ...]
    done: dict[tuple[str, int], Tensor] = field(default_factory=dict)

    def once(self, what: str, level: int, compute: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        if (what, level) not in self.done:
            self.done[what, level] = compute(x)
        return self.done[what, level]

    def box_tower(self, level: int) -> Tensor:
        return self.once("box", level, self.network.fcos.box_tower, self.levels[level])

    def distances(self, level: int, image: int, cells: Tensor) -> Tensor:
        fcos = self.network.fcos
        said = self.once("distances", level, fcos.distances, self.box_tower(level))
        return F.relu(rows_of(said[image])[cells] * fcos.scales[level])

    def centerness(self, level: int, image: int, cells: Tensor) -> Tensor:
        said = self.once("centerness", level, self.network.fcos.centerness, self.box_tower(level))
        return rows_of(said[image])[cells, 0]

    def filters(self, level: int, image: int, cells: Tensor) -> Tensor:
        return conv3x3_at(self.box_tower(level)[image], self.network.controller, cells)

    def embeddings(self, level: int, image: int, cells: Tensor) -> Tensor:
        head = self.network.embedding
        tower = self.once("identity", level, head.tower, self.levels[level])
        return F.linear(rows_of(tower[image])[cells].float(), head.project.weight.flatten(1), head.project.bias)


def rows_of(x: Tensor) -> Tensor:
    """(C, h, w) -> (h * w, C): a view, channels being last in memory."""
    return x.permute(1, 2, 0).flatten(0, 1)


def conv3x3_at(x: Tensor, conv: nn.Module, cells: Tensor) -> Tensor:
    """What a 3x3 convolution, zeros around the map, says of some cells.  (C, h, w), (n,) -> (n, O)"""
    _, h, w = x.shape
    step = torch.arange(-1, 2, device=x.device)
    y = (cells // w)[:, None, None] + step[:, None]                                     # (n, 3, 1)
    x_ = (cells % w)[:, None, None] + step                                              # (n, 1, 3)
    inside = (y >= 0) & (y < h) & (x_ >= 0) & (x_ < w)                                  # (n, 3, 3)
    neighbours = y.clamp(0, h - 1) * w + x_.clamp(0, w - 1)
    patches = rows_of(x)[neighbours].float() * inside[..., None]                        # (n, 3, 3, C)
    return F.linear(patches.flatten(1), conv.weight.permute(0, 2, 3, 1).flatten(1), conv.bias)


def heads_on_demand(network: CondInst, levels: tuple[Tensor, ...]) -> DenseOutputs:
    """`network.heads(levels)` of a CondInst or CrossVIS made of fused layers, without calibration."""
    fcos, asked = network.fcos, _Asked(network, levels)
    classes = [fcos.class_logits(fcos.class_tower(level)) for level in levels]
    at = _locations(tuple(tuple(level.shape[-2:]) for level in levels), levels[0].device)
    ends = torch.tensor([level.shape[-2] * level.shape[-1] for level in levels]).cumsum(0).tolist()
    spans = list(zip([0, *ends[:-1]], ends, strict=True))
    if hasattr(network, "embedding"):
        embeddings = ByLevel(spans, (len(network.embedding.project.bias),), asked.embeddings)
    else:
        embeddings = classes[0].new_zeros(len(levels[0]), ends[-1], 0)
    return DenseOutputs(
        torch.cat([c.permute(0, 2, 3, 1).flatten(1, 2) for c in classes], dim=1),
        ByLevel(spans, (4,), asked.distances),
        ByLevel(spans, (), asked.centerness),
        ByLevel(spans, (len(network.controller.bias),), asked.filters),
        embeddings,
        network.mask_branch(*levels[:3]),
        at,
    )


@functools.lru_cache(maxsize=16)
def _locations(sizes: tuple[tuple[int, int], ...], device: torch.device) -> Locations:
    return Locations.of(list(sizes), device)
