"""Streams without end: memory is flat after a while, and of a stream that has ended nothing is left.

What is allowed is what an allocator may sway by, far below what the frames since then would take had a stage kept a
kilobyte of each. The runs, each in a process of its own: `endless_runs`.
"""

from __future__ import annotations

import gc
import json
import os
import select
import signal
import subprocess
import sys
import threading
import types
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from operators.records import StreamEnd
from operators.sources import Source
from pipelines.local import run_local
from tests.conftest import ROOT
from tests.operators.small_videos import write_video
from tests.pipelines.endless_runs import CPU, ENDLESS, ENVIRONMENT, FAST, STATM, graph_of

MB = 1e6
TIMEOUT_S = 240


Run = Callable[[str], tuple[int, float]]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Iterator[Run]:
    """Of a run's name: frames that came, and the megabytes by which memory grew."""
    if not STATM.exists():
        pytest.skip("this system does not tell a process its memory")
    folder = tmp_path_factory.mktemp("endless")
    command = [sys.executable, "-m", "tests.pipelines.endless_runs", str(folder)]
    with open(folder / "said.txt", "w+", encoding="utf-8") as said, subprocess.Popen(
        command, cwd=ROOT, env={**os.environ, **ENVIRONMENT}, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=said, start_new_session=True) as runs:  # fmt: skip

        def one(name: str) -> tuple[int, float]:
            print(name, file=runs.stdin, flush=True)
            ready, _, _ = select.select([runs.stdout], [], [], TIMEOUT_S)
            line = runs.stdout.readline().strip() if ready else ""
            assert line, f"{name}: failed, or took longer than {TIMEOUT_S} s:\n{(folder / 'said.txt').read_text()}"
            seen = json.loads(line)
            print(f"{name}: {seen['frames']} frames, {seen['grown'] / MB:+.1f} MB at most once warm")
            return seen["frames"], seen["grown"] / MB

        yield one
        os.killpg(runs.pid, signal.SIGKILL)         # with a run that took too long


@pytest.mark.slow
def test_twenty_thousand_frames_in_flat_memory(run):
    frames, grown = run("stages")
    assert frames == 20_000
    assert grown < 1, "17,000 frames that leave 64 bytes each"


def test_a_stage_that_keeps_a_kilobyte_a_frame_is_found_out(run):
    frames, grown = run("hoard")
    assert frames == 7000 and grown > 5


def test_the_network_keeps_nothing_of_frames(run):
    """Its stages remember nothing, so fewer frames will show it."""
    frames, grown = run("network")
    assert frames == 1000
    assert grown < 1, "a frame's input and maps take 20 kB: 12 MB of 600"


def test_identities_of_a_stream_without_end(run):
    frames, grown = run("identities")
    assert frames == 600
    assert grown < 1, "an entry of memory takes 5 kB here, of 400 frames; without end there is one every third frame"


@pytest.mark.parametrize("name", ["video", "video_ahead"])
def test_a_long_video_is_decoded_in_flat_memory(run, name):
    frames, grown = run(name)
    assert frames == 4000
    assert grown < 1, "its frames together take 59 MB"


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
    lengths = [300, *[3] * 11]
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
        elif result.info.stream == "stream 0" and result.info.index >= 50:
            if len(ended) == 11:
                break
            threading.Event().wait(0.05)        # threads that decode the others ahead are late on a busy machine
    assert [name for name, _ in ended] and {name for name, fatal in ended if fatal} >= {"stream 5", "stream 7"}
    assert len(ended) == 11, "all but the first are to be over by then"
    known = known_names(results)
    assert "stream 0" in known, "the search must find what is there"
    assert not {f"stream {i}" for i in range(1, 10)} & known
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("decode ")] == (
        ["decode stream 0"] if prefetch else []
    )
    results.close()
