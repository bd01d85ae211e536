"""A network that sees clips, in the stages of a graph: what benchmarks/network.py measures of CiCo.

In:     the new frames of a clip; those that it shares with the last stay from the call before
Out:    seconds of each part, and how many tubes were found
State:  the stages' own: features of shared frames, tracks

Each frame goes through the backbone once, each clip through the heads: so a clip gives `new` frames and no more,
however many it sees. The authors count all T of them.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import nn

from operators.clip_tracking import ClipTrackConfig
from operators.detectors import DETECTORS
from operators.find_tubes import ClipBatchConfig, FindTubes
from operators.masks import EncodeMasks
from operators.network import Backbone, BatchConfig
from operators.records import Image
from operators.track_tubes import TrackTubes
from operators.windows import Windows, WindowsConfig
from pipelines.networks import NetworkSpec

STREAM = "benchmark"
WHOLE = "whole clip"


class AnyClock(Protocol):
    seconds: dict[str, float]

    def part(self, name: str) -> Any: ...


class ClipRunner:
    """One form of the network, and a stream whose clips it sees one after the other."""

    whole = WHOLE

    def __init__(
        self, spec: NetworkSpec, network: nn.Module, device: torch.device, clock: AnyClock, overlap: int | None
    ) -> None:  # fmt: skip
        """Raises ValueError for an overlap that leaves no new frame."""
        self.clock = clock
        self.windows = Windows(spec.config.clip_length, WindowsConfig(overlap=overlap))
        self.seen, self.new = spec.config.clip_length, self.windows.new
        self.backbone = Backbone(network, BatchConfig(batch=self.new), device)
        self.tubes = FindTubes(network, ClipBatchConfig(), DETECTORS[spec.name].of(spec.detect), device)
        self.track = TrackTubes(ClipTrackConfig(), spec.config.masks, device)
        self.encode = EncodeMasks()
        for stage in (self.windows, self.track):
            stage.open(STREAM)
        self.shown = 0

    def __call__(self, images: list[Image]) -> tuple[dict[str, float], int]:
        """As many frames as are new in a clip; before the first, what the first shares with none is shown too."""
        if not self.shown:
            shared = [images[i % len(images)] for i in range(self.seen - self.new)]
            self.windows(self.backbone(self._numbered(shared)))
        self.clock.seconds.clear()
        records = self._numbered(images)
        with self.clock.part(WHOLE):
            clips = self.windows(self.backbone(records))
            with self.clock.part("heads"):
                found = self.tubes(clips)
            with self.clock.part("tracks"):
                tracked = self.track(found)
            with self.clock.part("run lengths"):
                self.encode(tracked)
        return dict(self.clock.seconds), len(found[0].tubes)

    def _numbered(self, images: list[Image]) -> list[Image]:
        """The frames in the order in which the stream shows them."""
        first, self.shown = self.shown, self.shown + len(images)
        return [replace(image, info=replace(image.info, index=first + i)) for i, image in enumerate(images)]
