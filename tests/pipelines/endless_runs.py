"""Streams without end in a process of their own, and the memory that they leave behind.

    python -m tests.pipelines.endless_runs FOLDER       of each NAME that it is given, a line of standard input,
                                                        {"frames": ..., "grown": bytes since it was warm, at most}

RSS is read while frames go through the stages, each time after all that lies free was given back. In a process of its
own: in one where thousands of tests ran before, what is kept finds room that they left, or what they held is freed. So
each run is forked off one that has done nothing but load what all of them use.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import sys
import traceback
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from models.crossvis import CrossVIS
from operators.decode import Decode, DecodeConfig
from operators.records import Features, Frame, FrameDetections, FrameInfo, FrameTracks, Pull, StreamEnd
from operators.sources import Source
from operators.weights import save_weights
from pipelines.drive import Result
from pipelines.graph import Graph, RunContext, StageKind, parse_graph
from pipelines.local import run_local
from pipelines.networks import as_plain, read_network
from pipelines.stages import STAGES
from tests.operators.small_videos import write_video
from tests.pipelines.small_scenes import SCENES, Find, See, Trunk
from tests.pipelines.small_stages import NoSettings
from tests.pipelines.test_networks import MODEL, written

CPU = RunContext(device="cpu")
STATM = Path("/proc/self/statm")
FAST = {"preset": "ultrafast"}
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}
"""Of such a process: one heap, and large blocks go back as they are freed."""


def rss() -> float:
    """Of what is held: room that lies free is given back first."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
    return int(STATM.read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


class Reel:
    """Pull -> records out of a few made beforehand: a source of endless frames that cost nothing.

    How many a stream has stands in its source's path.
    """

    def __init__(self, records: list[Any]) -> None:
        self._records = records
        self._given: dict[str, tuple[int, int]] = {}

    def open(self, stream: str) -> None:
        self._given[stream] = (0, 0)

    def __call__(self, batch: list[Pull]) -> list[Any]:
        return [record for pull in batch for record in self._of(pull)]

    def _of(self, pull: Pull) -> list[Any]:
        start, length = self._given[pull.stream]
        length = length or int(pull.source.path)
        stop = min(start + pull.count, length)
        self._given[pull.stream] = (stop, length)
        ended = [StreamEnd(pull.stream, length)] if start + pull.count > length else []
        return [self._frame(pull.stream, index) for index in range(start, stop)] + ended

    def _frame(self, stream: str, index: int) -> Any:
        record = self._records[index % len(self._records)]
        return replace(record, info=replace(record.info, stream=stream, index=index, time_s=index / 10))

    def snapshot(self, stream: str) -> bytes:
        return repr(self._given[stream]).encode()

    def restore(self, stream: str, state: bytes) -> None:
        raise NotImplementedError

    def close(self, stream: str) -> list[Any]:
        self._given.pop(stream, None)
        return []


class Pick:
    """Features -> FrameDetections out of a few made beforehand."""

    def __init__(self) -> None:
        self._found = [replace(one, detections=one.detections[:2]) for one in Find()(See()(blank(101)))]

    def __call__(self, batch: list[Features]) -> list[FrameDetections]:
        return [replace(self._found[frame.info.index % len(self._found)], info=frame.info) for frame in batch]


class Hoard:
    """Pass on frames without instances, and keep a kilobyte of each."""

    def __init__(self) -> None:
        self._kept: list[bytearray] = []

    def __call__(self, batch: list[FrameDetections]) -> list[FrameTracks]:
        self._kept += [bytearray(1024) for _ in batch]
        none = np.zeros(0, np.int64)
        return [FrameTracks(one.info, none, none, none, np.zeros((0, 4)), ()) for one in batch]


class Refuse:
    """Fails on the second frame of stream 7."""

    def __call__(self, batch: list[FrameDetections]) -> list[FrameDetections]:
        if any(one.info.stream == "stream 7" and one.info.index == 1 for one in batch):
            raise ValueError("not this one")
        return batch


def blank(length: int, side: int = 2, seed: int = 0) -> list[Frame]:
    """Frames of noise."""
    rng = np.random.default_rng(seed)
    infos = [FrameInfo("reel", index, 0.0, side, side) for index in range(length)]
    return [Frame(info, rng.integers(0, 255, (side, side, 3), dtype=np.uint8)) for info in infos]


def _reel(gives: type, make: Callable[[], list[Any]]) -> StageKind:
    return StageKind("operator", Pull, gives, NoSettings, lambda own, context: Reel(make()), stateful=True)


KINDS = {
    **SCENES,
    **{name: STAGES[name] for name in ("decode", "preprocess", "backbone", "heads")},
    "features": _reel(Features, lambda: See()(blank(101))),
    "trunk": _reel(Features, lambda: Trunk()(blank(31))),
    "frames": _reel(Frame, lambda: blank(101, side=32)),
    "hoard": StageKind("operator", FrameDetections, FrameTracks, NoSettings, lambda own, context: Hoard()),
    "refuse": StageKind("operator", FrameDetections, FrameDetections, NoSettings, lambda own, context: Refuse()),
    "pick": StageKind("operator", Features, FrameDetections, NoSettings, lambda own, context: Pick()),
}


def graph_of(*stages: str, batching: dict, **settings: dict) -> Graph:
    entries = {}
    for name in stages:
        keyed = {"keyed_by": "stream"} if KINDS[name].stateful else {}
        entries[name] = {KINDS[name].word: name} | keyed | settings.get(name, {})
    return parse_graph({"stages": entries, "batching": batching}, KINDS, "endless.yaml")


def grown(results: Iterable[Result], warm: int, looks: list[int]) -> tuple[int, float]:
    """Frames that came; and by how much RSS rose after `warm` of them, at most, as seen when `looks` had come."""
    frames, start, most = 0, 0.0, 0.0
    for result in results:
        frames += isinstance(result, FrameTracks)
        if isinstance(result, FrameTracks) and frames == warm:
            start = most = rss()
        elif isinstance(result, FrameTracks) and frames in looks:
            most = max(most, rss())
    return frames, most - start


def sources(*lengths: int) -> list[Source]:
    return [Source(f"stream {number}", "images", str(length)) for number, length in enumerate(lengths)]


ENDLESS = {"neighbours": {"past": 2, "future": 1}, "associate": {"max_unseen": 5}, "identify": {"mode": "stream"}}


def stages(folder: Path) -> tuple[int, float]:
    """Three streams that go on and on, and beside them two hundred that come and go."""
    names = ("features", "neighbours", "pick", "associate", "encode_masks")
    graph = graph_of(*names, batching={"streams": 4, "frames": 32}, **ENDLESS)
    flowing = run_local(graph, sources(5000, 5000, 6000, *[20] * 200), CPU)
    return grown(flowing, 3000, list(range(4000, 20_001, 1000)))


def hoard(folder: Path) -> tuple[int, float]:
    """A stage that keeps a kilobyte of each of 6,000 frames."""
    graph = graph_of("features", "pick", "hoard", batching={"streams": 4, "frames": 32})
    return grown(run_local(graph, sources(3000, 3000, *[20] * 50), CPU), 1000, [4000, 7000])


def network(folder: Path) -> tuple[int, float]:
    """A whole small network, from pixels to tracks."""
    small = {"input": {"short_side": 32, "long_side": 32}, "fcos": {"tower_convs": 1, "groups": 4,
             "size_bounds": [16, 32, 64, 128]}}  # fmt: skip
    spec = read_network(written(folder, {"network": "crossvis", "model": MODEL | small,
                                         "detect": {"max_per_frame": 2, "min_score": 0.0}}))  # fmt: skip
    torch.manual_seed(0)
    weights = folder / "small.safetensors"
    save_weights(weights, CrossVIS(spec.config).state_dict(), spec.name, as_plain(spec.config), ("a", "b", "c"))
    names = ("frames", "preprocess", "backbone", "heads", "associate", "encode_masks")
    graph = graph_of(*names, batching={"streams": 4, "frames": 32}, backbone={"batch": 16}, heads={"batch": 16},
                     **ENDLESS)  # fmt: skip
    context = RunContext(replace(spec, weights=weights), "cpu")
    return grown(run_local(graph, sources(400, 400, *[20] * 10), context), 400, list(range(500, 1001, 100)))


def identities(folder: Path) -> tuple[int, float]:
    graph = graph_of("trunk", "identify", "encode_masks", batching={"streams": 2, "frames": 8}, **ENDLESS)
    return grown(run_local(graph, sources(400, *[20] * 10), CPU), 200, [300, 400, 500, 600])


def video(folder: Path, prefetch: int = 0) -> tuple[int, float]:
    """A long video is decoded."""
    length = 4000
    path = folder / "long.mp4"
    if not path.exists():
        write_video(path, count=length, options=FAST)
    source = Source("long", "video", str(path))
    stage = Decode(DecodeConfig(prefetch=prefetch))
    stage.open("long")
    given, start, most, ended = 0, 0.0, 0.0, False
    while not ended:
        records = stage([Pull(source, 8)])
        given, ended = given + len(records), isinstance(records[-1], StreamEnd)
        if given > length // 5 and given % 400 < 8:
            start = start or rss()
            most = max(most, rss())
    stage.close("long")
    return given - 1, most - start


def video_ahead(folder: Path) -> tuple[int, float]:
    return video(folder, prefetch=4)


RUNS = {run.__name__: run for run in (stages, hoard, network, identities, video, video_ahead)}


def in_fork(name: str, folder: Path) -> None:
    """One run, and its line: an empty one where the run failed, which then says on standard error with what."""
    child = os.fork()
    if child == 0:
        try:
            frames, most = RUNS[name](folder)
            print(json.dumps({"frames": frames, "grown": most}), flush=True)
        except Exception:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if status != 0:
        print(flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    gc.freeze()                                 # what is loaded does not grow: looking through it takes half a second
    for line in sys.stdin:
        in_fork(line.strip(), Path(sys.argv[1]))
