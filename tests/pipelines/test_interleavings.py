"""What a stream gives does not depend on its company: K streams shuffled in every way against K runs alone.

Ids and masks are to be equal, and boxes, scores and classes with them, bit for bit.
"""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from operators.records import FrameTracks, StreamEnd
from operators.shapes import PRESETS, write_videos
from operators.sources import Source
from pipelines.config import CHECKOUT
from pipelines.graph import Graph, RunContext, load_graph
from pipelines.local import run_local
from pipelines.networks import read_network
from pipelines.placement import Placement
from pipelines.stages import STAGES
from tests.pipelines.contract import plain
from tests.pipelines.small_scenes import GRAPHS, scene_graph
from tests.pipelines.small_shuffle import Shuffled
from tests.pipelines.small_stages import source

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = RunContext(device="cpu")
CONFIGS = CHECKOUT / "configs"


def story(results: list) -> list:
    """Of one stream all that was given, frames in order, its end last, as values that compare bit for bit."""
    frames = sorted((one for one in results if not isinstance(one, StreamEnd)), key=lambda one: one.info.index)
    return [plain(one) for one in (*frames, *(one for one in results if isinstance(one, StreamEnd)))]


def alone(graph: Graph, one: Source, context: RunContext) -> list:
    one_thread = tuple(replace(placement, num_cpus=1) for placement in graph.placement)     # as `Shuffled` has
    return story(list(run_local(replace(graph, placement=one_thread), [one], context)))


def shuffled(graph: Graph, sources: list[Source], context: RunContext, rng: random.Random) -> dict[str, list]:
    executor = Shuffled(graph, context, rng)
    executor.run(sources, most_open=rng.randint(1, len(sources)))
    return {name: story([*executor.results[name].values(), executor.ends[name]]) for name in executor.results}


def in_groups(graph: Graph, rng: random.Random) -> Graph:
    """The same stages, cut into groups anywhere, each with up to three replicas."""
    names = [stage.name for stage in graph.stages]
    cuts = [0, *(i for i in range(1, len(names)) if rng.random() < 0.5), len(names)]
    groups = [tuple(names[begin:end]) for begin, end in zip(cuts, cuts[1:], strict=False)]
    placement = tuple(Placement(stages=group, replicas=rng.randint(1, 3), num_cpus=1) for group in groups)
    return replace(graph, placement=placement)


words = st.lists(st.sampled_from(["ok"] * 9 + ["fault"]), max_size=14)


@pytest.mark.parametrize("name", ["associate", "neighbours"])
@settings(max_examples=15, deadline=None)
@given(st.lists(words, min_size=1, max_size=6), st.integers(0, 2**32), st.sampled_from([None, 0, 2]))
def test_streams_shuffled_give_what_each_gives_alone(name, streams, seed, expire):
    check(name, streams, seed, associate={"max_unseen": expire}, neighbours={"past": 2, "future": seed % 3})


@settings(max_examples=6, deadline=None)
@given(st.lists(words, min_size=2, max_size=4), st.integers(0, 2**32), st.sampled_from(["reference", "stream"]))
def test_streams_with_identities_too(streams, seed, mode):
    check("identify", streams, seed, identify={"mode": mode, "max_stored": 2})


def check(name: str, streams: list[list[str]], seed: int, **own: dict) -> None:
    sources = [source(f"s{number}", *frames) for number, frames in enumerate(streams)]
    graph, rng = scene_graph(name, **own), random.Random(seed)
    expected = {one.name: alone(graph, one, CPU) for one in sources}
    assert shuffled(in_groups(graph, rng), sources, CPU, rng) == expected
    batching = {"streams": rng.randint(1, 6), "frames": rng.randint(1, 20), "in_flight": rng.randint(1, 4)}
    streams_of: dict[str, list] = {one.name: [] for one in sources}
    for one in run_local(scene_graph(name, None, batching, **own), sources, CPU):
        streams_of[one.stream if isinstance(one, StreamEnd) else one.info.stream].append(one)
    assert {stream: story(given) for stream, given in streams_of.items()} == expected


def test_the_scenes_are_lively():
    """What the property stands on: ids last, come back and differ; streams meet in one call, and are moved half-way."""
    for name in GRAPHS:
        (frames, _) = _split(list(run_local(scene_graph(name), [source("s0", length=20)], CPU)))
        ids = [set(frame.track_ids.tolist()) for frame in frames]
        assert sum(map(len, ids)) > 30 and len(set().union(*ids)) >= 4, name
        assert any(one & other for one, other in zip(ids, ids[2:], strict=False)), name
        assert all(mask["counts"] for frame in frames for mask in frame.masks)
    rng = random.Random(1)
    executor = Shuffled(in_groups(scene_graph("neighbours"), random.Random(3)), CPU, rng)
    executor.run([source(f"s{i}", length=12) for i in range(5)], most_open=5)
    assert executor.most_together >= 3 and executor.moves >= 5


def _split(results: list) -> tuple[list[FrameTracks], list[StreamEnd]]:
    frames = [one for one in results if isinstance(one, FrameTracks)]
    return frames, [one for one in results if isinstance(one, StreamEnd)]


# ------------------------------------------------------------------------------------------------ a network, and videos


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> list[Source]:
    """Three videos of two sizes, H.264 with B-frames and VP9, of 7, 5 and 4 frames."""
    folder, sources = tmp_path_factory.mktemp("videos"), []
    kinds = [(128, 80, 7, "h264"), (80, 112, 5, "vp9"), (128, 80, 4, "h264")]
    for number, (width, height, frames, codec) in enumerate(kinds):
        look = replace(PRESETS["easy"], width=width, height=height, num_frames=frames)
        (path,) = write_videos(folder, look, seed=number, num_clips=1, first=number, codec=codec)
        sources.append(Source(f"v{number}", "video", str(path)))
    return sources


@pytest.fixture(scope="module")
def tiny() -> RunContext:
    return RunContext(read_network(CONFIGS / "networks" / "tiny.yaml", ("detect.min_score=0.05",)), "cpu")


@pytest.fixture(scope="module")
def each_alone(videos, tiny) -> dict[str, list]:
    graph = load_graph(CONFIGS / "graphs" / "offline.yaml", STAGES)
    expected = {one.name: alone(graph, one, tiny) for one in videos}
    num_found = [len(dict(frame[1:])["track_ids"][2]) // 8 for frame in expected["v0"][:-1]]
    assert sum(num_found) > 7, "of less than an object a frame the ids say nothing"
    return expected


@pytest.mark.parametrize("seed", range(2))
def test_the_shipped_network_gives_each_video_what_it_gives_it_alone(videos, tiny, each_alone, seed):
    """Batches of the network put together by chance, decoding in turn and ahead, tracks apart."""
    rng = random.Random(seed)
    graph = load_graph(CONFIGS / "graphs" / "offline.yaml", STAGES, [f"decode.prefetch={[0, 3][seed]}"])
    assert shuffled(in_groups(graph, rng), videos, tiny, rng) == each_alone
