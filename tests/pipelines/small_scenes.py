"""Graphs of real stages on frames made up on the spot, cheap enough for thousands: no media, no trained network.

A source is that of `small_stages.source`: a word a frame. `see` makes up what a frame shows from the stream's name and
the frame's number alone: objects that move, cross, leave and come back, with looks of their own.
"""

from __future__ import annotations

import functools
import zlib
from dataclasses import fields, replace
from typing import Any

import numpy as np
import torch

from models.outputs import Detections
from operators.identify import Identify
from operators.identities import IdentityDetectConfig
from operators.neighbours import Neighbours
from operators.records import Features, Frame, FrameDetections, FrameInfo
from pipelines.graph import Graph, StageKind, parse_graph
from pipelines.stages import STAGES
from tests.operators.small_identities import PADDED, small_iai, stage
from tests.pipelines.small_stages import KINDS, NoSettings

HEIGHT, WIDTH = 48, 64
OBJECTS = 6


def _shown(info: FrameInfo) -> FrameInfo:
    return replace(info, height=HEIGHT, width=WIDTH)


def _rng(info: FrameInfo, *more: int) -> np.random.Generator:
    return np.random.default_rng([zlib.crc32(info.stream.encode()), *more])


class See:
    """Frame -> Features of two levels: noise of the stream's own, still but for a little that each frame adds."""

    def __call__(self, batch: list[Frame]) -> list[Features]:
        return [self._one(_shown(frame.info)) for frame in batch]

    def _one(self, info: FrameInfo) -> Features:
        shapes = (4, 6, 8), (4, 3, 4)
        still, noise = _rng(info), _rng(info, info.index)
        levels = [still.normal(0, 1, shape) + 0.3 * noise.normal(0, 1, shape) for shape in shapes]
        return Features(info, tuple(torch.from_numpy(level).float() for level in levels), (48, 64), (64, 64))


class Find:
    """Features -> FrameDetections: up to OBJECTS on their ways; references, if there are any, change their looks."""

    def __call__(self, batch: list[Features]) -> list[FrameDetections]:
        return [FrameDetections(one.info, self._of(one), one.size, one.padded) for one in batch]

    def _of(self, frame: Features) -> Detections:
        ways, now = _rng(frame.info, 1, 0), _rng(frame.info, 2, frame.info.index)
        start, step = ways.uniform(0, 40, (OBJECTS, 2)), ways.uniform(-2, 2, (OBJECTS, 2))
        looks, labels = ways.normal(0, 1, (OBJECTS, 8)), ways.integers(0, 2, OBJECTS)
        there = now.random(OBJECTS) < 0.7
        corner = start + step * frame.info.index
        boxes = np.concatenate([corner, corner + 12], axis=1)[there]
        borrowed = sum(float(levels[0].mean()) for levels in frame.references)
        looks = looks + 0.2 * now.normal(0, 1, looks.shape) + borrowed
        y, x = np.mgrid[2:64:4, 2:64:4]
        inside = [(x >= a) & (x < c) & (y >= b) & (y < d) for a, b, c, d in boxes]
        masks = np.stack([np.where(one, 4.0, -4.0) for one in inside]) if inside else np.zeros((0, 16, 16))
        return Detections(
            *(torch.from_numpy(each).float() for each in (boxes, np.linspace(0.9, 0.5, len(boxes)))),
            torch.from_numpy(labels[there]), *(torch.from_numpy(each).float() for each in (looks[there], masks)),
        )  # fmt: skip


@functools.cache
def network() -> torch.nn.Module:
    return small_iai(seed=6)


class Trunk:
    """Frame -> Features of C3, C4, C5 of a small network of IAI's kind, whose picture is noise of the stream's own."""

    @torch.inference_mode()
    def __call__(self, batch: list[Frame]) -> list[Features]:
        return [self._one(_shown(frame.info)) for frame in batch]

    def _one(self, info: FrameInfo) -> Features:
        still, noise = _rng(info, 3), _rng(info, 4, info.index)
        image = still.normal(0, 1, (1, 3, *PADDED)) + 0.5 * noise.normal(0, 1, (1, 3, *PADDED))
        levels = network().features(torch.from_numpy(image).float())
        return Features(info, tuple(level[0] for level in levels), (48, 64), PADDED)


def _identify(settings: Any, context: Any) -> Identify:
    detect = IdentityDetectConfig(min_class=0.05, min_identity=0.05, max_iou=0.7, max_per_frame=5)
    return stage(network(), detect, **{field.name: getattr(settings, field.name) for field in fields(settings)})


SCENES = {
    "unpack": KINDS["unpack"],
    "see": StageKind("operator", Frame, Features, NoSettings, lambda own, context: See()),
    "trunk": StageKind("operator", Frame, Features, NoSettings, lambda own, context: Trunk()),
    "neighbours": replace(STAGES["neighbours"], build=lambda own, context: Neighbours(own)),
    "find": StageKind("operator", Features, FrameDetections, NoSettings, lambda own, context: Find()),
    "identify": replace(STAGES["identify"], build=_identify),
    "associate": STAGES["associate"],
    "encode_masks": STAGES["encode_masks"],
}

GRAPHS = {
    "associate": ["unpack", "see", "find", "associate", "encode_masks"],
    "neighbours": ["unpack", "see", "neighbours", "find", "associate", "encode_masks"],
    "identify": ["unpack", "trunk", "identify", "encode_masks"],
}


def scene_graph(
    name: str, placement: list[dict] | None = None, batching: dict | None = None, **settings: dict
) -> Graph:
    """One of GRAPHS; `settings` per stage, as in associate={"max_unseen": 3}."""
    stages = {}
    for stage_name in GRAPHS[name]:
        kind = SCENES[stage_name]
        stages[stage_name] = {kind.word: stage_name} | ({"keyed_by": "stream"} if kind.stateful else {})
        stages[stage_name] |= settings.get(stage_name, {})
    mapping = {"stages": stages, "batching": batching or {}}
    return parse_graph(mapping | ({"placement": placement} if placement else {}), SCENES, "scenes.yaml")
