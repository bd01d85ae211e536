"""Streams without end: memory is flat after a while, and of a stream that has ended nothing is left.

RSS is read from /proc while frames go through the stages. What is allowed is what an allocator may sway by, far below
what the frames since then would take had a stage kept a kilobyte of each.
"""

from __future__ import annotations

import ctypes
import gc
import os
import threading
import types
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
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
MB = 1e6
STATM = Path("/proc/self/statm")
FAST = {"preset": "ultrafast"}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    if not STATM.exists():
        pytest.skip("this system does not tell a process its memory")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def rss() -> float:
    return int(STATM.read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


def trimmed_rss() -> float:
    """RSS once what lies free is given back: room that earlier tests left would hide what is kept from now on."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
    return rss()


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


def reel_of(gives: type, maker: Any, length: int = 101) -> StageKind:
    """A kind of stage that gives what `maker` makes of empty frames."""

    def build(settings: Any, context: RunContext) -> Reel:
        from operators.records import FrameInfo

        blank = np.zeros((2, 2, 3), np.uint8)
        return Reel(maker([Frame(FrameInfo("reel", index, 0.0, 2, 2), blank) for index in range(length)]))

    return StageKind("operator", Pull, gives, NoSettings, build, stateful=True)


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


def flow(results: Iterable[Result], warm: int, look_every: int = 100) -> tuple[int, float, float]:
    """Frames that came; RSS after `warm` of them, and the most that it was from then on."""
    frames, start, most = 0, 0.0, 0.0
    for result in results:
        frames += isinstance(result, FrameTracks)
        if not isinstance(result, FrameTracks) or frames < warm or frames % look_every:
            continue
        if not start:
            start = trimmed_rss()
        most = max(most, rss())
    print(f"{frames} frames; {start / MB:.1f} MB after {warm}, at most {(most - start) / MB:+.1f} MB since")
    return frames, start, most


def sources(*lengths: int) -> list[Source]:
    return [Source(f"stream {number}", "images", str(length)) for number, length in enumerate(lengths)]


ENDLESS = {"neighbours": {"past": 2, "future": 1}, "associate": {"max_unseen": 5}, "identify": {"mode": "stream"}}


@pytest.mark.slow
def test_twenty_thousand_frames_in_flat_memory():
    """Three streams that go on and on, and beside them two hundred that come and go."""
    stages = ("features", "neighbours", "pick", "associate", "encode_masks")
    graph = graph_of(*stages, batching={"streams": 4, "frames": 32}, **ENDLESS)
    frames, start, most = flow(run_local(graph, sources(5000, 5000, 6000, *[20] * 200), CPU), warm=3000)
    assert frames == 20_000
    assert most - start < 4 * MB, "17,000 frames that leave 256 bytes each"


def test_a_stage_that_keeps_a_kilobyte_a_frame_is_found_out():
    graph = graph_of("features", "pick", "hoard", batching={"streams": 4, "frames": 32})
    frames, start, most = flow(run_local(graph, sources(3000, 3000, *[20] * 50), CPU), warm=1000)
    assert frames == 7000 and most - start > 5 * MB


def test_the_network_keeps_nothing_of_frames(tmp_path):
    """A whole small network, from pixels to tracks: its stages remember nothing, so fewer frames will show it."""
    small = {"input": {"short_side": 32, "long_side": 32}, "fcos": {"tower_convs": 1, "groups": 4,
             "size_bounds": [16, 32, 64, 128]}}  # fmt: skip
    spec = read_network(written(tmp_path, {"network": "crossvis", "model": MODEL | small,
                                           "detect": {"max_per_frame": 2, "min_score": 0.0}}))  # fmt: skip
    torch.manual_seed(0)
    weights = tmp_path / "small.safetensors"
    save_weights(weights, CrossVIS(spec.config).state_dict(), spec.name, as_plain(spec.config), ("a", "b", "c"))
    stages = ("frames", "preprocess", "backbone", "heads", "associate", "encode_masks")
    graph = graph_of(*stages, batching={"streams": 4, "frames": 32}, backbone={"batch": 16}, heads={"batch": 16},
                     **ENDLESS)  # fmt: skip
    context = RunContext(replace(spec, weights=weights), "cpu")
    frames, start, most = flow(run_local(graph, sources(600, 600, *[20] * 30), context), warm=600)
    assert frames == 1800
    assert most - start < 4 * MB, "a frame's input and maps take 20 kB: 24 MB of 1200"


def test_identities_of_a_stream_without_end():
    graph = graph_of("trunk", "identify", "encode_masks", batching={"streams": 2, "frames": 8}, **ENDLESS)
    frames, start, most = flow(run_local(graph, sources(400, *[20] * 10), CPU), warm=200)
    assert frames == 600
    assert most - start < 4 * MB, "an entry of memory takes 5 kB here; without end there is one every third frame"


@pytest.mark.parametrize("prefetch", [0, 4])
def test_a_long_video_is_decoded_in_flat_memory(tmp_path, prefetch):
    length = 4000
    source = Source("long", "video", str(write_video(tmp_path / "long.mp4", count=length, options=FAST)))
    stage = Decode(DecodeConfig(prefetch=prefetch))
    stage.open("long")
    given, start, most, ended = 0, 0.0, 0.0, False
    while not ended:
        records = stage([Pull(source, 8)])
        given, ended = given + len(records), isinstance(records[-1], StreamEnd)
        if given > length // 5:
            start, most = start or trimmed_rss(), max(most, rss())
    stage.close("long")
    print(f"prefetch {prefetch}: {start / MB:.1f} MB, at most {(most - start) / MB:+.1f} MB since")
    assert given == length + 1
    assert most - start < 4 * MB, "its frames together take 59 MB"


# ------------------------------------------------------------------------------------------------ streams that are over


CODE = (type, types.ModuleType, types.FunctionType, types.CodeType)


def known_names(root: Any) -> set[str]:
    """All texts that can be reached from an object by what it holds: not its code, classes and modules."""
    seen, names, queue = {id(root)}, set(), [root]
    while queue:
        for held in gc.get_referents(queue.pop()):
            if isinstance(held, str):
                names.add(held)
            elif id(held) not in seen and not isinstance(held, CODE):
                seen.add(id(held))
                queue.append(held)
    return names


@pytest.mark.parametrize("prefetch", [0, 2])
def test_of_a_stream_that_is_over_nothing_is_known(tmp_path, prefetch):
    """All that the run holds is searched for names while one stream goes on: of healthy, damaged and failed ones."""
    lengths = [63, *[3] * 11]
    videos = [write_video(tmp_path / f"v{i}.mp4", count=n, options=FAST) for i, n in enumerate(lengths)]
    videos[3].write_bytes(videos[3].read_bytes()[:-700])
    videos[5].write_bytes(b"")
    one_by_one = [Source(f"stream {i}", "video", str(path)) for i, path in enumerate(videos)]
    graph = graph_of("decode", "see", "neighbours", "find", "refuse", "associate", "encode_masks",
                     batching={"streams": 3, "frames": 6}, decode={"prefetch": prefetch}, **ENDLESS)  # fmt: skip
    results, ended = run_local(graph, iter(one_by_one), CPU), []
    for result in results:
        if isinstance(result, StreamEnd):
            ended.append((result.stream, result.fatal))
        elif result.info.stream == "stream 0" and result.info.index == 50:
            break
    assert [name for name, _ in ended] and {name for name, fatal in ended if fatal} >= {"stream 5", "stream 7"}
    assert len(ended) == 11, "all but the first are to be over by then"
    known = known_names(results)
    assert "stream 0" in known, "the search must find what is there"
    assert not {f"stream {i}" for i in range(1, 10)} & known
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("decode ")] == (
        ["decode stream 0"] if prefetch else []
    )
    results.close()
