"""Step 6 for networks that see clips: windows of features to tubes, clips of several streams in one call.

In:     ClipFeatures
Out:    ClipTubes    tubes in falling score, boxes divided by the padded width and height; the clip's prototypes
State:  none: any clips may share a batch
Source: CiCo specification 4.2, 4.3

A network sees batches of exactly `batch` clips of one size; the last is filled up with zeros, so that a clip's result
does not depend on which clips, and how many, happened to come with it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from models.cico_tubes import Tubes
from operators.network import Network, chunks, stack
from operators.records import ClipFeatures, ClipTubes

Find = Callable[[Network, Any, int], Tubes]
"""(network, what its heads said, which clip of the batch) -> its tubes, best score first."""


@dataclass(frozen=True, kw_only=True)
class ClipBatchConfig:
    """How many clips go through the heads at once."""

    batch: int = 1
    """Clips of a network call. Higher: better use of a GPU, more memory, more waste when clips do not fill it."""

    def __post_init__(self) -> None:
        if not 1 <= self.batch <= 1024:
            raise ValueError(f"batch is {self.batch}, expected 1..1024")


class FindTubes:
    """ClipFeatures -> ClipTubes. `find` is the network's own detector (operators/detectors.py)."""

    def __init__(self, network: Network, config: ClipBatchConfig, find: Find, device: torch.device) -> None:
        self.network, self.batch, self.find, self.device = network, config.batch, find, device

    @torch.inference_mode()
    def __call__(self, batch: list[ClipFeatures]) -> list[ClipTubes]:
        out: list[ClipTubes | None] = [None] * len(batch)
        for places in chunks(batch, self.batch, {i: clip.padded for i, clip in enumerate(batch)}):
            said = self._heads([batch[i] for i in places])
            for row, i in enumerate(places):
                clip, first = batch[i], batch[i].frames[0]
                infos = tuple(frame.info for frame in clip.frames)
                tubes = self.find(self.network, said, row)
                out[i] = ClipTubes(infos, clip.real, clip.new, tubes, said.prototypes[row], first.size, first.padded)
        return out

    def _heads(self, clips: list[ClipFeatures]) -> Any:
        """One call of the network, the frames of each clip side by side."""
        frames = [frame.levels for clip in clips for frame in clip.frames]
        rows = self.batch * len(clips[0].frames)
        maps = zip(*frames, strict=True)
        return self.network.heads(tuple(stack([m.to(self.device) for m in level], rows) for level in maps))
