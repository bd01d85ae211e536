"""Twice as many frames as can be worked on: the engine of live streams, with cameras at their own rates."""

from __future__ import annotations

import pytest

from pipelines.plan_try import run_cameras
from tests.pipelines.sleepy import sleepy_lab

FRAMES, BASE_S, FRAME_S = 4, 0.06, 0.02
FULL_S = BASE_S + FRAMES * FRAME_S
"""A batch of 4 takes 140 ms: 28.6 frames/s at most."""
QUEUE = 2


@pytest.fixture(scope="module")
def bench():
    with sleepy_lab(FRAMES, base_s=BASE_S, frame_s=FRAME_S) as found:
        yield found


def test_twice_the_sustainable_load(bench):
    """6 cameras of 9.6 frames/s: what can be done is done, the rest is dropped and counted, nobody waits for long, and
    nobody is served at another's cost.

    A frame that is worked on waited behind its camera's queue at most: 6 x 2 frames, then the batch under way and its
    own, at the rate at which frames came out; twice that, as rates sway.
    """
    found = run_cameras(bench, 6, 9.6, seconds=2.5, warm_s=0.7, queue=QUEUE)
    assert found.add_up, "frames in = out + dropped + in flight, at every look"
    assert 0 < found.fps_out < 1.1 * FRAMES / FULL_S < found.fps_in
    assert found.dropped == pytest.approx(1 - found.fps_out / found.fps_in, abs=0.15) and found.dropped > 0.2
    assert found.p95_s < 2 * (6 * QUEUE + 2 * FRAMES) / found.fps_out
    assert found.worst_share > 0.6


def test_the_oldest_makes_room_for_fresher_results(bench):
    """With one camera far too fast, frames are fresher than where the newest are turned away."""
    fresh = run_cameras(bench, 1, 80.0, seconds=1.2, warm_s=0.5, queue=8, policy="drop_oldest")
    stale = run_cameras(bench, 1, 80.0, seconds=1.2, warm_s=0.5, queue=8, policy="drop_newest")
    assert fresh.add_up and stale.add_up and min(fresh.dropped, stale.dropped) > 0.3
    assert fresh.p50_s < stale.p50_s


def test_a_fast_camera_takes_nothing_from_a_slow_one(bench):
    """Beside one of 60 frames/s, one of 4 frames/s loses none: frames are dealt out evenly. Dealt out as they come, it
    would get 1.8 a second. Its queue holds what a machine that stands still for a second leaves behind."""
    from pipelines.plan_live import SimulatedCamera
    from pipelines.serving.streams import Opening, StreamSpec

    fast = bench.engine.open(
        Opening(StreamSpec(id="fast", queue=QUEUE)),
        lambda spec, queue: SimulatedCamera("fast", bench.clip, 60.0, 0.0, queue),
    )
    try:
        slow = run_cameras(bench, 1, 4.0, seconds=2.5, warm_s=0.5, queue=6)
        assert slow.dropped == 0 and slow.fps_out > slow.fps_in / 2
        assert sum(fast.status()["frames"]["dropped"].values()) > 0
    finally:
        bench.engine.remove("fast")
