"""TLTM: CenterMask with relations at two levels: features fused with the frame before, objects joined by a graph.

In:     images (B, 3, Hp, Wp), normalised, sides multiples of 32, and per row the raw pyramid of its stream's last frame
Out:    `features()` the raw pyramid P3..P7, `heads()` a `CenterMaskOutputs`; of what is found there, `objects()` a
        vector each, and `edges()` how much each is one of those known; in training, `forward()` the losses of pairs
State:  none; the last pyramid and the known objects are their stream's (operators/object_graph.py)
Source: Coban et al., Two-Level Temporal Relation Model for Online Video Instance Segmentation, 2022; TLTM
        specification. Where paper and release differ there is a setting: the defaults are the release;
        `train_reference: previous` and `regions: proposals` are the paper, to train from scratch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from models.area_regions import area_features
from models.centermask import CenterMask, CenterMaskConfig, CenterMaskOutputs, added, areas_of, by_cells
from models.fcos_losses import Average
from models.fuser import FORMS, FuserForm, PyramidFuser
from models.gnn import ObjectGraph, edge_loss, side_by_side
from models.object_encoder import ObjectEncoder
from models.region_losses import Regions
from models.targets import FrameTargets, PairBatch

Pyramid = tuple[Tensor, ...]


@dataclass(frozen=True, kw_only=True)
class TLTMConfig(CenterMaskConfig):
    """The defaults are TLTM R-50 as released."""

    regions: Literal["proposals", "truth"] = "truth"
    """What training reads masks and this frame's objects from: the `truth` as released, FCOS's `proposals` beside it as
    in the paper. The earlier frame's objects are the truth either way."""
    fuser: Literal["none", "single", "double"] = "single"
    """`single` fuses this frame alone, and trains detection and masks on it alone. `double` also fuses the earlier
    frame with this one, and trains on both: twice the cost; inference is the same. `none` trains on both, unfused."""
    fuser_form: FuserForm = "plain"
    """`twice` sees wider, at 3.7 times the fuser's cost; `correlated` also compares places, at 1.3 times. Both are in
    the release, and nothing published was made with them (models/fuser.py)."""
    fuser_scope: Literal["det", "all"] = "det"
    """Who reads the fused maps: FCOS's towers alone, or masks and objects too (equation 1 taken literally)."""
    train_reference: Literal["own", "previous"] = "own"
    """What this frame is fused with in training: itself, as released, so that the fuser never sees time pass before
    inference; or the frame before, as in the paper."""
    relations: bool = True
    """The object encoder and graph. Without, tracks follow boxes and classes alone."""
    object_dim: int = 512
    """Length of an object's vector, a multiple of 16; a stream's state and the encoder's cost grow with it."""
    graph_hidden: int = 128
    """Width of the graph's networks."""
    graph_rounds: int = 1
    """Times that messages are passed."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.fuser not in ("none", "single", "double"):
            raise ValueError(f"fuser is {self.fuser!r}, expected 'none', 'single' or 'double'")
        if self.fuser_form not in FORMS:
            raise ValueError(f"fuser_form is {self.fuser_form!r}, expected one of {', '.join(FORMS)}")
        if self.fuser_scope not in ("det", "all"):
            raise ValueError(f"fuser_scope is {self.fuser_scope!r}, expected 'det' or 'all'")
        if self.train_reference not in ("own", "previous"):
            raise ValueError(f"train_reference is {self.train_reference!r}, expected 'own' or 'previous'")
        if self.object_dim < 16 or self.object_dim % 16:
            raise ValueError(f"object_dim is {self.object_dim}, expected a positive multiple of 16")
        if min(self.graph_hidden, self.graph_rounds) < 1:
            raise ValueError("graph_hidden and graph_rounds must be at least 1")


class TLTM(CenterMask):
    """CenterMask, a fuser before its heads and a graph behind them."""

    config: TLTMConfig

    def __init__(self, config: TLTMConfig, num_identities: int | None = None) -> None:
        super().__init__(config)
        self.fuser = None if config.fuser == "none" else PyramidFuser(
            config.channels, config.fcos.num_levels, config.fuser_form
        )
        self.encoder = self.graph = None
        if config.relations:
            self.encoder = ObjectEncoder(config.channels, config.object_dim)
            self.graph = ObjectGraph(config.object_dim, config.graph_hidden, config.graph_rounds)

    def heads(
        self, levels: Pyramid, references: tuple[Pyramid, ...] = (), counts: Tensor | None = None
    ) -> CenterMaskOutputs:
        """The raw pyramid, and as the only reference the raw one of the frame before -> everything said of every
        location; stateless. Without a reference a frame is its own, as the first of a stream. `counts` is taken so that
        all networks with references are called alike.

        Raises ValueError for more than one reference, or one of another size.
        """
        if len(references) > 1:
            raise ValueError(f"TLTM was given {len(references)} references of a frame; it reads the last frame's alone")
        if self.fuser is None:
            return super().heads(levels)
        fused = self.fuser(references[0] if references else levels, levels)
        return self._outputs(fused, fused if self.config.fuser_scope == "all" else levels)

    def objects(self, regions: Tensor) -> Tensor:
        """Features of regions (N, C, 14, 14) -> (N, D); D = 0 without relations."""
        return super().objects(regions) if self.encoder is None else self.encoder(regions)

    def edges(self, known: Tensor, current: Tensor) -> Tensor:
        """Logits of each of N objects of a frame being each of M known ones.  (M, D), (N, D) -> (N, M)

        Without relations all are 0.
        """
        return super().edges(known, current) if self.graph is None else self.graph(known, current).T

    # ------------------------------------------------------------------------------------------ training

    def forward(self, batch: PairBatch, average: Average = lambda x: x) -> dict[str, Tensor]:
        """The parts of the total, whose plain sum is to be minimised (specification 3.2, 3.4).

        Slot 0 has the frames that are detected in, slot 1 those before them. `average` takes the mean of a number over
        all workers: positives are counted over all of them, the other means are a worker's own.
        """
        (images, targets), (earlier, known) = batch.slots
        sizes, earlier_sizes = batch.sizes or (None, None)
        current, before = self.features(images), self.features(earlier)
        out = self.heads(current, () if self.config.train_reference == "own" else (before,))
        regions, features = self._sampled(out, targets, sizes)
        losses, past = self._frame_losses(out, targets, regions, features, average), by_cells(before)
        if self.config.fuser != "single":
            second = self.heads(before, (current,))
            sampled, past = self._sampled(second, known, earlier_sizes), second.levels
            losses = added([losses, self._frame_losses(second, known, *sampled, average)])
        if self.graph is not None:
            nodes = self._true_objects(past, known, areas_of(out, earlier_sizes))
            losses["edge"] = self._edge_loss(*nodes, self.objects(features), regions, batch.counterparts[0])
        return losses

    def _true_objects(self, levels: Pyramid, known: list[FrameTargets], areas: Tensor) -> tuple[Tensor, Tensor]:
        """All true objects of the earlier frames (n, D), and in which image each lies (n,)."""
        counts = torch.tensor([len(t) for t in known], device=areas.device)
        image = torch.arange(len(known), device=areas.device).repeat_interleave(counts)
        boxes = torch.cat([t.boxes for t in known])
        return self.objects(area_features(levels, boxes, image, areas)), image

    def _edge_loss(
        self, known: Tensor, image: Tensor, objects: Tensor, regions: Regions, into: list[Tensor]
    ) -> Tensor:
        """Of `objects` (m, D), found in `regions`, with those `known` before (n, D), pair by pair; into[b][i] is where
        instance i of the later frame stands in the earlier one, -1 if it is new."""
        nodes, there = side_by_side(known, image, len(into))                                      # (B, N, D), (B, N)
        current, present = side_by_side(objects, regions.image, len(into))                        # (B, M, D), (B, M)
        partner, _ = side_by_side(regions.truth(into), regions.image, len(into))                  # (B, M)
        same = partner[:, None] == torch.arange(nodes.shape[1], device=partner.device)[:, None]   # (B, N, M)
        real = there[:, :, None] & present[:, None]
        return edge_loss(self.graph(nodes, current, present), same, real)
