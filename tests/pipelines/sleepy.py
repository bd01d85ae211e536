"""A live graph whose cost is known: a batch of b frames takes `base_s + b * frame_s`, asleep, so that a busy machine
changes little. For tests of plans and of overload."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from operators.live.stage import LiveConfig
from operators.records import Frame, FrameTracks, Pull
from pipelines.graph import Graph, RunContext, StageKind, parse_graph
from pipelines.graph_bytes import generated_clip
from pipelines.plan_live import Lab, lab
from pipelines.stages import STAGES


@dataclass(frozen=True, kw_only=True)
class SleepConfig:
    base_s: float = 0.06
    frame_s: float = 0.02


class Sleep:
    """Frame -> FrameTracks: nothing is found, slowly."""

    def __init__(self, config: SleepConfig) -> None:
        self._config = config

    def __call__(self, batch: list[Frame]) -> list[FrameTracks]:
        time.sleep(self._config.base_s + self._config.frame_s * len(batch))
        none, boxes = np.zeros(0, np.int64), np.zeros((0, 4), np.float32)
        return [FrameTracks(frame.info, none, none, np.zeros(0, np.float32), boxes, ()) for frame in batch]


KINDS = {
    "receive": STAGES["receive"],
    "sleep": StageKind("operator", Frame, FrameTracks, SleepConfig, lambda own, context: Sleep(own)),
}
assert KINDS["receive"].takes is Pull and KINDS["receive"].settings is LiveConfig


def sleepy(frames: int = 4, **settings: float) -> Graph:
    """`frames`: most of a batch."""
    receive = {"operator": "receive", "keyed_by": "stream"}
    mapping = {
        "stages": {"receive": receive, "sleep": {"operator": "sleep", **settings}},
        "placement": [{"stages": ["receive", "sleep"], "num_cpus": 2.0, "num_gpus": 0.0}],
        "batching": {"frames": frames},
    }
    return parse_graph(mapping, KINDS, "sleepy.yaml")


@contextmanager
def sleepy_lab(frames: int = 4, **settings: float) -> Iterator[Lab]:
    """A lab with that graph, and a small clip."""
    with generated_clip(64, 64, 12) as clip, lab(sleepy(frames, **settings), RunContext(device="cpu"), clip) as bench:
        yield bench
