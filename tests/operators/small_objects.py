"""TLTM and CenterMask for the tests of `previous` and `relate`: small, finding something everywhere, and clips of which
one frame resembles the next."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from models.centermask import CenterMask
from models.fcos_decode import FCOSDecodeConfig
from operators.detectors import DETECTORS
from operators.object_graph import ObjectGraphConfig
from operators.previous import Previous
from operators.records import Features, FrameDetections, FrameInfo
from operators.relate import ByBoxes, ByEdges, Relate, RelateConfig
from tests.models.small_tltm import small_centermask, small_tltm

CPU = torch.device("cpu")
SIZE, PADDED, ORIGINAL = (60, 50), (64, 64), (90, 125)
DETECT = FCOSDecodeConfig(min_class=0.5, max_iou=0.5, max_per_frame=12)


def finding(network: CenterMask) -> CenterMask:
    """In evaluation mode; classes are as good as even, and boxes have some size."""
    with torch.no_grad():
        network.fcos.class_logits.bias.fill_(-0.5)
        network.fcos.distances.bias.fill_(1.5)
        network.mask_head.logits.weight.mul_(4)
    return network.eval()


def finding_tltm(**changes: Any) -> CenterMask:
    return finding(small_tltm(**changes))


def finding_centermask() -> CenterMask:
    return finding(small_centermask())


def images(seed: int, frames: int, noise: float = 0.3) -> torch.Tensor:
    """A still picture under changing noise, and every five frames another one.  (T, 3, 64, 64)"""
    generator = torch.Generator().manual_seed(seed)
    stills = 2 * torch.randn(frames // 5 + 1, 3, *PADDED, generator=generator)
    pictures = stills.repeat_interleave(5, dim=0)[:frames]
    return pictures + noise * torch.randn(pictures.shape, generator=generator)


@torch.inference_mode()
def clip(network: CenterMask, seed: int = 0, stream: str = "s", frames: int = 9) -> list[Features]:
    levels = network.features(images(seed, frames))
    infos = [FrameInfo(stream, t, t / 10, *ORIGINAL) for t in range(frames)]
    return [Features(info, tuple(level[t] for level in levels), SIZE, PADDED) for t, info in enumerate(infos)]


def relate(network: CenterMask, edges: ObjectGraphConfig | None = None, **settings: Any) -> Relate:
    """The stage as pipelines/stages.py builds it."""
    config = RelateConfig(**settings)
    kind = DETECTORS["centermask" if type(network) is CenterMask else "tltm"]
    if config.rule == "boxes":
        rule: Any = ByBoxes(config.boxes)
    else:
        rule = ByEdges(network.edges, config.edges_of(edges or ObjectGraphConfig()), CPU)
    fuses = getattr(network, "fuser", None) is not None
    return Relate(network, config, kind.of(DETECT), rule, CPU, fuses)


class Both:
    """`previous` and `relate`, one behind the other."""

    def __init__(self, network: CenterMask, **settings: Any) -> None:
        self.previous, self.relate = Previous(CPU), relate(network, **settings)

    def open(self, stream: str) -> None:
        self.previous.open(stream)
        self.relate.open(stream)

    def __call__(self, batch: list[Features]) -> list[FrameDetections]:
        return self.relate(self.previous(batch))

    def snapshot(self, stream: str) -> tuple[bytes, bytes]:
        return self.previous.snapshot(stream), self.relate.snapshot(stream)

    def restore(self, stream: str, state: tuple[bytes, bytes]) -> None:
        self.previous.restore(stream, state[0])
        self.relate.restore(stream, state[1])


def of_stream(records: list[Features], stream: str) -> list[Features]:
    return [replace(record, info=replace(record.info, stream=stream)) for record in records]


def run(stage: Any, records: list[Features], per_call: int = 1) -> list[FrameDetections]:
    """Of streams that are opened here, frame by frame or some at a time."""
    for stream in dict.fromkeys(record.info.stream for record in records):
        stage.open(stream)
    return [given for at in range(0, len(records), per_call) for given in stage(records[at : at + per_call])]


def ids(records: list[FrameDetections]) -> list[list[int]]:
    return [record.detections.track_ids.tolist() for record in records]
