"""Small stages for tests of the executors: real records, no media, and every habit that a stage may have.

A source is a list of words, a word a frame: "ok", "fault" (cannot be decoded) or "poison" (makes `Paint` fail). The
graph `unpack, paint, window, total` has a stage that gives events, one without memory, one that holds frames back as
CiCo does, and one that counts.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from operators.records import Frame, FrameFault, FrameInfo, FrameTracks, Pull, StreamEnd
from operators.sources import Source
from pipelines.graph import Graph, StageKind, parse_graph

POISON = 255


def source(name: str, *words: str, length: int = 0) -> Source:
    """A stream of the given words; `length` stands for so many times "ok"."""
    return Source(name, "images", "nowhere", files=(*words, *["ok"] * length))


@dataclass(frozen=True, kw_only=True)
class NoSettings:
    pass


@dataclass(frozen=True, kw_only=True)
class UnpackConfig:
    side: int = 2
    """Of a frame, in pixels; 2 travels inside of messages, 400 through the object store."""


@dataclass(frozen=True, kw_only=True)
class WindowConfig:
    frames: int = 3
    overlap: int = 1


@dataclass(frozen=True, kw_only=True)
class TotalConfig:
    fail_at: int = -1
    """Frame that raises."""
    die_at: int = -1
    """Frame at which the process ends without a word,"""
    die_in: str = ""
    """in streams whose name begins so."""
    slow_s: float = 0.0
    """How long a frame takes of streams whose name begins with 'slow'."""


class Unpack:
    """Pull -> Frame.  Each frame is (side, side, 3), all of its index, or of 255 when poisoned."""

    def __init__(self, config: UnpackConfig = UnpackConfig()) -> None:
        self._side = config.side
        self._position: dict[str, int] = {}
        self._sources: dict[str, Source] = {}

    def open(self, stream: str) -> None:
        assert stream not in self._position
        self._position[stream] = 0

    def __call__(self, batch: list[Pull]) -> list[Frame | FrameFault | StreamEnd]:
        return [event for pull in batch for event in self._one(pull)]

    def _one(self, pull: Pull) -> list[Frame | FrameFault | StreamEnd]:
        if isinstance(pull.source, Source):     # else its name alone: it came with an earlier pull
            self._sources[pull.stream] = pull.source
        name, words, fps = pull.stream, self._sources[pull.stream].files, self._sources[pull.stream].fps
        start = self._position[name]
        stop = self._position[name] = min(start + pull.count, len(words))
        given: list[Frame | FrameFault | StreamEnd] = []
        for index in range(start, stop):
            info = FrameInfo(name, index, index / fps, self._side, self._side)
            value = POISON if words[index] == "poison" else index % POISON
            frame = Frame(info, np.full((self._side, self._side, 3), value, np.uint8))
            given.append(FrameFault(info, "a torn packet") if words[index] == "fault" else frame)
        if start + pull.count > len(words):
            given.append(StreamEnd(name, num_frames=len(words)))
        return given

    def snapshot(self, stream: str) -> bytes:
        return json.dumps(self._position[stream]).encode()

    def restore(self, stream: str, state: bytes) -> None:
        self._position[stream] = json.loads(state)

    def close(self, stream: str) -> list[Frame]:
        self._position.pop(stream, None)
        self._sources.pop(stream, None)
        return []


class Paint:
    """Frame -> Frame, without memory; fails on a batch with a poisoned frame."""

    def __call__(self, batch: list[Frame]) -> list[Frame]:
        if any(frame.image.max() == POISON for frame in batch):
            raise ValueError("this frame is poisoned")
        return [replace(frame, image=frame.image + 1) for frame in batch]


class Window:
    """Frame -> Frame, in windows: a frame becomes the sum of its window, known only when that is full (CiCo 4.1)."""

    def __init__(self, config: WindowConfig) -> None:
        self._frames, self._step = config.frames, config.frames - config.overlap
        self._held: dict[str, list[tuple[FrameInfo, int]]] = {}

    def open(self, stream: str) -> None:
        assert stream not in self._held
        self._held[stream] = []

    def __call__(self, batch: list[Frame]) -> list[Frame]:
        given = []
        for frame in batch:
            held = self._held[frame.info.stream]
            held.append((frame.info, int(frame.image.max())))
            if len(held) == self._frames:
                given += self._summed(held, self._step)
                del held[: self._step]
        return given

    def _summed(self, held: list[tuple[FrameInfo, int]], count: int) -> list[Frame]:
        total = sum(value for _, value in held) % 251
        return [Frame(info, np.full((info.height, info.width, 3), total, np.uint8)) for info, _ in held[:count]]

    def snapshot(self, stream: str) -> bytes:
        return json.dumps([[vars(info), value] for info, value in self._held[stream]]).encode()

    def restore(self, stream: str, state: bytes) -> None:
        self._held[stream] = [(FrameInfo(**info), value) for info, value in json.loads(state)]

    def close(self, stream: str) -> list[Frame]:
        held = self._held.pop(stream, [])
        return self._summed(held, len(held))


class Total:
    """Frame -> FrameTracks: one instance, its id the number of frames so far, its score the sum of all so far."""

    def __init__(self, config: TotalConfig) -> None:
        self._config = config
        self._state: dict[str, tuple[int, int]] = {}

    def open(self, stream: str) -> None:
        assert stream not in self._state
        self._state[stream] = (0, 0)

    def __call__(self, batch: list[Frame]) -> list[FrameTracks]:
        return [self._one(frame) for frame in batch]

    def _one(self, frame: Frame) -> FrameTracks:
        if frame.info.stream.startswith("bad") and frame.info.index == self._config.fail_at:
            raise RuntimeError("no more of this")
        if frame.info.index == self._config.die_at and frame.info.stream.startswith(self._config.die_in):
            os._exit(3)
        if frame.info.stream.startswith("slow"):
            time.sleep(self._config.slow_s)
        count, total = self._state[frame.info.stream]
        count, total = count + 1, total + int(frame.image.max())
        self._state[frame.info.stream] = (count, total)
        boxes, labels = np.zeros((1, 4), np.float32), np.zeros(1, np.int64)
        return FrameTracks(frame.info, np.array([count]), labels, np.array([total], np.float32), boxes, ({},))

    def snapshot(self, stream: str) -> bytes:
        return json.dumps(self._state[stream]).encode()

    def restore(self, stream: str, state: bytes) -> None:
        self._state[stream] = tuple(json.loads(state))

    def close(self, stream: str) -> list[FrameTracks]:
        self._state.pop(stream, None)
        return []


KINDS = {
    "unpack": StageKind("operator", Pull, Frame, UnpackConfig, lambda own, context: Unpack(own), stateful=True),
    "paint": StageKind("network", Frame, Frame, NoSettings, lambda settings, context: Paint(), on_device=True),
    "window": StageKind("operator", Frame, Frame, WindowConfig, lambda own, context: Window(own), stateful=True),
    "total": StageKind("operator", Frame, FrameTracks, TotalConfig, lambda own, context: Total(own), stateful=True),
}

STAGES = {
    "unpack": {"operator": "unpack", "keyed_by": "stream"},
    "paint": {"network": "paint"},
    "window": {"operator": "window", "keyed_by": "stream"},
    "total": {"operator": "total", "keyed_by": "stream"},
}


def graph(placement: list[dict] | None = None, batching: dict | None = None, **settings: dict) -> Graph:
    """The graph of all four; `settings` per stage, as in total={"fail_at": 3}."""
    stages = {name: entry | settings.get(name, {}) for name, entry in STAGES.items()}
    mapping = {"stages": stages, "batching": batching or {}}
    return parse_graph(mapping | ({"placement": placement} if placement else {}), KINDS, "test.yaml")


def told(results: Any) -> dict[str, list[tuple]]:
    """What was given out of each stream, in the order in which it came, as values that compare."""
    story: dict[str, list[tuple]] = {}
    for result in results:
        if isinstance(result, FrameTracks):
            line = (result.info.index, int(result.track_ids[0]), float(result.scores[0]))
        elif isinstance(result, FrameFault):
            line = (result.info.index, result.reason)
        else:
            line = ("end", result.num_frames, result.fatal, result.error)
        story.setdefault(result.stream if isinstance(result, StreamEnd) else result.info.stream, []).append(line)
    return story
