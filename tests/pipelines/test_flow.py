"""The logic of the executor on Ray, played without Ray: whatever dies, is lost or is late, the story is the same."""

from __future__ import annotations

import functools
import random
from dataclasses import replace

import pytest

from pipelines.flow import Flow
from pipelines.graph import Graph, RunContext
from pipelines.local import run_local
from pipelines.placement import Recovery
from tests.pipelines.playing import Memory, Odds, Player
from tests.pipelines.small_stages import graph, source, told

ALL = ["unpack", "paint", "window", "total"]
SPLIT = [{"stages": [name], "num_cpus": 1} for name in ALL]
CPU = RunContext(device="cpu")
CROWD = [
    source("a", length=5),
    source("b", "fault", "ok", "fault"),
    source("empty"),
    *[source(f"s{i}", length=3 * i + 1) for i in range(6)],
    source("poisoned", "ok", "ok", "ok", "poison", *["ok"] * 20),
    source("bad", length=24),
]


@functools.cache
def _calm() -> dict[str, list[tuple]]:
    """What each stream gives when it runs alone, in this process."""
    alone = [told(run_local(graph(total={"fail_at": 9}), [one], CPU)) for one in CROWD]
    return {name: story for stories in alone for name, story in stories.items()}


def _any_graph(chance: random.Random) -> Graph:
    """Any split into groups, replicas, batching and distance of snapshots."""
    groups: list[list[str]] = [[]]
    for name in ALL:
        groups[-1].append(name)
        if chance.random() < 0.5 and name != ALL[-1]:
            groups.append([])
    placement = [{"stages": group, "replicas": chance.randint(1, 3), "num_cpus": 1} for group in groups]
    batching = {
        "streams": chance.randint(1, 6),
        "frames": chance.randint(1, 9),
        "in_flight": chance.randint(1, 3),
        "max_wait_s": chance.choice([0.0, 0.02]),
    }
    recovery = Recovery(snapshot_every=chance.choice([1, 2, 5, 64]), max_kills=100)
    return replace(graph(placement, batching, total={"fail_at": 9}), recovery=recovery)


@pytest.mark.parametrize(
    ("odds", "seeds"),
    [
        pytest.param(Odds(), range(8), id="calm"),
        pytest.param(Odds(death=0.02), range(100, 112), id="deaths"),
        pytest.param(Odds(loss=0.03), range(200, 206), id="losses"),
        pytest.param(Odds(death=0.08, loss=0.03), range(300, 306), id="a-bad-night"),
    ],
)
def test_any_interleaving_gives_what_each_stream_gives_alone(odds, seeds):
    rewinds = 0
    for seed in seeds:
        player = Player(_any_graph(random.Random(seed)), CROWD, seed, odds)
        story = told(player.results())
        assert story == _calm(), f"seed {seed}"
        assert not any(place.lane or place.streams for places in player.flow.places for place in places), f"seed {seed}"
        assert not player.store.kept, f"seed {seed}"
        rewinds += player.flow.recoverer.rewinds
    assert (rewinds > 0) == (odds.death + odds.loss > 0)


@pytest.mark.parametrize("group", range(4), ids=ALL)
@pytest.mark.parametrize("frame", [0, 7, 23])
def test_a_poison_frame_ends_its_stream_and_no_other(group, frame):
    sources = [source("a", length=9), source("bane", length=24), source("c", length=30)]
    split = replace(
        graph(SPLIT, {"streams": 3, "frames": 6, "in_flight": 2}), recovery=Recovery(snapshot_every=5, max_kills=2)
    )
    player = Player(split, sources, seed=frame, poison=[(group, "bane", frame)])
    story = told(player.results())
    for one in (sources[0], sources[2]):
        assert story[one.name] == told(run_local(graph(), [one], CPU))[one.name]
    *frames, end = story["bane"]
    calm = told(run_local(graph(), [sources[1]], CPU))["bane"]
    safe = frame - frame % 2  # windows step by two: the one that holds the frame is cut short
    assert frames[:safe] == calm[:safe]
    assert [line[0] for line in frames] == list(range(frame))
    assert end[:3] == ("end", frame, True)
    said = f"'{ALL[group]}', stream 'bane', frame {frame}: its worker process died 2 times, each time with nothing else"
    assert end[3].startswith(said)
    assert player.flow.recoverer.set_aside == 1
    assert player.deaths <= 4  # together with others, then twice alone; and a frame that others kept company


def test_frames_that_die_with_others_are_not_blamed_for_it():
    """Two deaths of the same frames in company: both times each came through alone afterwards."""
    one = replace(graph(SPLIT, {"frames": 4}), recovery=Recovery(max_kills=1))
    player = Player(one, [source("a", length=8)], seed=1)
    results = player.results()
    died = 0
    while died < 2:
        player.now += 0.01
        for call in player.flow.calls():
            player.queues.setdefault((call.group, call.replica), []).append(call)
        busy = [spot for spot, queue in player.queues.items() if queue and queue[0].group == 1 and not queue[0].alone]
        if busy:
            player._die(busy[0], "kill -9")
            player._revive(busy[0])
            died += 1
        else:
            player._work(next(spot for spot, queue in player.queues.items() if queue))
    assert told(results)["a"] == told(run_local(graph(), [source("a", length=8)], CPU))["a"]


def test_a_full_edge_stops_what_comes_before_it():
    """Nothing is taken from the last group: what is under way stays within `in_flight` chunks of each edge."""
    flow = Flow(graph(SPLIT, {"streams": 2, "frames": 4, "in_flight": 2}), _endless(), Memory(), clock=lambda: 0.0)
    player = Player.around(flow, graph(SPLIT))
    for _ in range(500):
        for call in flow.calls():
            player.queues.setdefault((call.group, call.replica), []).append(call)
        busy = [spot for spot, queue in player.queues.items() if queue and spot[0] < 3]
        if not busy:
            break
        player._work(busy[0])
    asked = [stream.attempt.asked for stream in flow.open.values()]
    # two calls in `total`, two chunks before it, before `window` and before `paint`, of two frames each; and its window
    assert not busy and all(8 <= frames <= 4 * 2 * 2 + 4 for frames in asked)


def _endless():
    for number in range(10**9):
        yield source(f"s{number}", length=10**6)


def test_sources_are_taken_when_there_is_room():
    taken = []

    def endless():
        for number in range(10**9):
            taken.append(number)
            yield source(f"s{number}", length=1)

    player = Player(graph(SPLIT, {"streams": 3}), endless(), seed=0)
    ends = 0
    for line in player.results():
        ends += hasattr(line, "num_frames")
        if ends == 5:
            break
    assert len(taken) <= 5 + 2 * 3  # what was given out, is open, and ended just now


def test_no_sources_no_calls():
    player = Player(graph(SPLIT), [], seed=0)
    assert list(player.results()) == []
    assert not player.queues


def test_a_stream_that_gives_nothing_does_not_keep_the_others_waiting():
    """A pull for it alone would hold the replica until it gives something: it goes with a pull for the others."""
    flow = Flow(graph(None, {"streams": 2, "frames": 4, "in_flight": 2}), [source("slow"), source("b")], Memory())
    first, second = flow.calls()
    slow, quick = (flow.open[name].attempt for name in ("slow", "b"))
    for attempt in (slow, quick):
        attempt.held[1] = attempt.pulls = 0
    flow.places[0][0].calls.clear()
    slow.idle, quick.held[1] = True, 2  # the other has no room just now
    assert list(flow.calls()) == []
    quick.held[1] = 1
    (call,) = flow.calls()
    assert {part.attempt.stream.name for part in call.parts} == {"slow", "b"}


@pytest.mark.parametrize("seed", range(3))
def test_the_streams_of_a_replica_that_stays_away_go_to_the_others(seed):
    two = [{"stages": ALL[:2], "num_cpus": 1}, {"stages": ALL[2:], "replicas": 2, "num_cpus": 1}]
    sources = [source(f"s{i}", length=20) for i in range(4)]
    player = Player(graph(two, {"frames": 4}), sources, seed, forever=True)
    results, story = player.results(), []
    for result in results:
        story.append(result)
        if len(story) == 10:
            player._die((1, 0), "gone for good")
            player.flow.recoverer.move(player.flow.places[1][0])
    calm = told(run_local(graph(), sources, CPU))
    assert told(story) == calm
