"""The executor on a real cluster: real videos through a real network, long runs, and a node that is lost."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from operators.records import StreamEnd
from operators.shapes import PRESETS, write_videos
from operators.sources import Source
from pipelines.actors import run_actors
from pipelines.config import CHECKOUT
from pipelines.graph import RunContext, load_graph
from pipelines.local import run_local
from pipelines.networks import read_network
from pipelines.placement import Batching, Placement, Recovery
from pipelines.stages import STAGES
from tests.conftest import TIMEOUT_S
from tests.pipelines.contract import plain
from tests.pipelines.real_cluster import assert_nothing_is_left, killed_at, objects, stream_of, workers
from tests.pipelines.small_stages import graph, source

pytestmark = pytest.mark.usefixtures("cluster", "in_time")

ALL = ["unpack", "paint", "window", "total"]
CPU = RunContext(device="cpu")


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[Source]:
    config = replace(PRESETS["medium"], width=192, height=128, num_frames=40)
    videos = write_videos(tmp_path_factory.mktemp("clips"), config, seed=8, num_clips=2)
    return [Source(path.stem, "video", str(path)) for path in videos]


@pytest.mark.parametrize(
    ("transport", "killed"), [("object_store", "heads"), ("gloo", "decode")], ids=["object-store", "gloo"]
)
def test_real_videos_through_a_real_network_are_equal_to_the_last_bit(clips, transport, killed):
    chance = random.Random(3)
    network = read_network(CHECKOUT / "configs" / "networks" / "tiny.yaml")
    whole = load_graph(CHECKOUT / "configs" / "graphs" / "offline.yaml", STAGES)
    names = [stage.name for stage in whole.stages]
    cuts = [names[:3], names[3:]]
    first = Placement(stages=tuple(cuts[0]), num_cpus=1, transport=transport)
    placement = (first, Placement(stages=tuple(cuts[1]), num_cpus=1))
    settings = Batching(streams=2, frames=5)
    split = replace(whole, placement=placement, batching=settings, recovery=Recovery(snapshot_every=8, max_kills=20))
    context, before = RunContext(network, "cpu"), objects()
    given = killed_at(run_actors(split, clips, context), {chance.randrange(3, 70): killed}, chance)
    assert_nothing_is_left(before)
    calm = list(run_local(replace(split, placement=placement), clips, context))
    for one in clips:
        assert [plain(each) for each in given if stream_of(each) == one.name] == [
            plain(each) for each in calm if stream_of(each) == one.name
        ]


def _memory_mb(pids: list[int]) -> float:
    """What these processes have to themselves: pages shared through the object store are not theirs."""
    total = 0
    for pid in pids:
        status = Path(f"/proc/{pid}/status").read_text()
        total += sum(int(line.split()[1]) for line in status.splitlines() if line.startswith("RssAnon"))
    return total / 1024


def test_memory_is_flat_over_twenty_thousand_frames():
    """Of the driver and the actors, and of the object store, through which every frame goes."""
    two = [{"stages": ALL[:3], "num_cpus": 1}, {"stages": ["total"], "num_cpus": 1}]
    held = graph(two, {"streams": 2, "frames": 64, "in_flight": 2}, unpack={"side": 64})
    memory, store, given = {}, [], 0
    sources = (source(f"s{number}", length=2500) for number in range(8))
    for result in run_actors(held, sources, CPU):
        given += not isinstance(result, StreamEnd)
        if given in (5_000, 12_000, 19_900):
            memory[given] = _memory_mb([os.getpid(), *workers()])
            store.append(objects()[1])
    assert given == 20_000
    assert max(memory.values()) - memory[5_000] < 16, memory
    assert max(store) < 30e6, store


def test_a_node_that_is_lost_costs_no_frame(tmp_path):
    """In a process of its own: a cluster of several nodes cannot be had beside another one."""
    program = [sys.executable, "-m", "tests.pipelines.lost_node", str(tmp_path / "told")]
    done = subprocess.run(program, cwd=CHECKOUT, timeout=TIMEOUT_S - 10, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "told").read_text() == "equal rewound blameless"
