"""The queue on paper: against cases worked by hand, and a slow simulation written another way."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest

from pipelines.plan_queue import Service, forecast, most_that_fit, rates_of, samples_of


def service(seconds: dict[int, float], decode_s: float = 0.0, **more) -> Service:
    """Batches that always take the same."""
    values = {"cpus": 2.0, "busy_cpus": 2.0} | more
    return Service({size: (one,) for size, one in seconds.items()}, {"only": 0.01}, decode_s, **values)


LINEAR = {size: 0.02 + 0.01 * size for size in range(1, 9)}


@pytest.mark.parametrize("frames, expected", [
    pytest.param(1, 0.1, id="measured"),
    pytest.param(3, 0.3, id="in between"),
    pytest.param(8, 0.5 + 4 * 0.1, id="beyond"),
])  # fmt: skip
def test_batches_that_were_not_measured(frames, expected):
    measured = {1: (0.1,), 2: (0.2,), 4: (0.4,), 5: (0.5,)}
    assert np.median(samples_of(measured, frames)) == pytest.approx(expected, rel=0.2)
    assert np.median(samples_of({1: (0.1,), 4: (0.4,)}, 3)) == pytest.approx(0.3)
    assert np.median(samples_of({2: (0.1,)}, 6)) == pytest.approx(0.3)


def test_the_spread_is_that_of_all_sizes():
    """One batch in ten is held up threefold: so is one frame in ten of a lone camera, though size 1 told nothing."""
    times = {1: (0.01,), 2: (0.02,) * 9 + (0.06,), 4: (0.04,) * 9 + (0.12,)}
    held_up = Service(times, {"only": 0.01}, 0.0, 2.0, 1.0)
    assert sorted(held_up.spread()) == pytest.approx([1.0] * 18 + [3.0] * 2)
    found = forecast(held_up, 1, 5.0, most=4, queue=8)
    assert found.p50_s == pytest.approx(0.01) and found.p95_s == pytest.approx(0.03)
    assert service(LINEAR).spread() == [1.0]


def test_the_spread_comes_in_the_order_of_measuring():
    """Batches of 1 took half, once and twice the usual; those of 2 likewise, in between; one of 4 tells nothing."""
    times = {1: (0.01, 0.02, 0.04), 2: (0.1, 0.2, 0.05), 4: (0.3,)}
    measured = Service(times, {"only": 0.01}, 0.0, 2.0, 1.0, order=(1, 2, 4, 1, 2, 2, 1))
    assert measured.spread() == pytest.approx([0.5, 1.0, 1.0, 2.0, 0.5, 2.0])
    assert measured.slower(3.0).usual_s(2) == pytest.approx(0.3)
    assert measured.slower(3.0).spread() == pytest.approx(measured.spread())


@pytest.mark.parametrize("slow_at, p95_s", [
    pytest.param(range(0, 100, 10), 0.15, id="now and then"),
    pytest.param(range(10), 0.5, id="in a row"),
])  # fmt: skip
def test_what_slows_a_machine_down_lasts(slow_at, p95_s):
    """A camera of 10 frames/s, one frame at a time: 50 ms, and 150 ms for ten in a hundred.

    In a row each of them makes the next wait 50 ms longer: 150, 200 ... 600 ms, and then 550, 500 ... 50: five of a
    hundred are above 500 ms. Apart, the next frame waits 50 ms, and all is over.
    """
    times = tuple(0.15 if number in slow_at else 0.05 for number in range(100))
    found = forecast(Service({1: times}, {"only": 0.01}, 0.0, 2.0, 1.0, order=(1,) * 100), 1, 10.0, most=1, queue=8)
    assert found.p50_s == pytest.approx(0.05) and found.p95_s == pytest.approx(p95_s, abs=0.06) and found.dropped == 0


@pytest.mark.parametrize("cameras, beside, expected", [
    pytest.param(0, 0, 1.0, id="nobody decodes"),
    pytest.param(10, 0, 2.0 / 1.0, id="half of the CPUs go to decoding"),
    pytest.param(10, 10, 1.0, id="and did so when it was measured"),
    pytest.param(0, 10, 0.5, id="then without them it is faster"),
])  # fmt: skip
def test_decoding_takes_from_the_graph(cameras, beside, expected):
    """10 cameras of 10 frames/s at 10 ms each take one CPU of two."""
    found = service({1: 0.1}, decode_s=0.01, beside=beside, beside_fps=10.0)
    assert found.stretch(cameras, 10.0) == pytest.approx(expected)


def test_a_graph_that_leaves_cpus_idle_does_not_mind():
    assert service({1: 0.1}, decode_s=0.01, busy_cpus=1.0).stretch(10, 10.0) == 1.0
    assert math.isfinite(service({1: 0.1}, decode_s=0.01).stretch(10_000, 10.0))


def test_one_camera_by_hand():
    """Each frame finds the graph free: its latency is a batch of one, at 10 frames/s a load of 0.3 frames out of 80."""
    found = forecast(service(LINEAR), 1, 10.0, most=8, queue=8)
    assert (found.p50_s, found.p95_s, found.dropped, found.batch) == (pytest.approx(0.03), pytest.approx(0.03), 0, 1)
    assert found.load == pytest.approx(10 * 0.1 / 8) and found.fps_out == pytest.approx(10, rel=0.02)


def test_overload_by_hand():
    """Twice what it can do: it gives what it can, half is dropped, and a frame waits no longer than its queue.

    A full batch of 8 takes 100 ms: 80 frames/s of 160 that come from 4 cameras. A queue of 2 frames each is 8 frames.
    """
    found = forecast(service(LINEAR), 4, 40.0, most=8, queue=2)
    assert found.load == pytest.approx(2.0) and found.fps_out == pytest.approx(80, rel=0.03)
    assert found.dropped == pytest.approx(0.5, abs=0.02) and found.batch == pytest.approx(8, abs=0.1)
    assert 0.1 < found.p95_s < 0.1 + 0.1


@pytest.mark.parametrize("cameras, fps, queue", [(2, 10, 8), (5, 10, 8), (7, 10, 8), (12, 10, 2), (3, 30, 1)])
def test_against_a_slow_simulation(cameras, fps, queue):
    """Time in steps of a millisecond, frames as a list: medians and tails agree within the width of a step or 5 %."""
    found = forecast(service(LINEAR), cameras, fps, most=8, queue=queue)
    late, came, lost = slow_simulation(cameras, fps, queue)
    assert found.p50_s == pytest.approx(np.quantile(late, 0.5), rel=0.06, abs=0.003)
    assert found.p95_s == pytest.approx(np.quantile(late, 0.95), rel=0.06, abs=0.004)
    assert found.dropped == pytest.approx(lost / came, abs=0.02)


def slow_simulation(cameras: int, fps: float, limit: int) -> tuple[list[float], int, int]:
    late: list[float] = []
    came = lost = 0
    for seed in range(4):
        rng = random.Random(seed)
        due = [rng.random() / fps for _ in range(cameras)]
        steps = [1 / rate for rate in rates_of(cameras, fps)]
        waiting: list[tuple[float, int]] = []
        busy_until, batch, turn = 0.0, [], 0
        for step in range(30_000):
            now = step / 1000
            for camera in range(cameras):
                while due[camera] <= now:
                    own = [frame for frame in waiting if frame[1] == camera]
                    if len(own) == limit:
                        waiting.remove(own[0])
                        lost += 1
                    waiting.append((due[camera], camera))
                    came += 1
                    due[camera] += steps[camera]
            if now >= busy_until:
                late += [busy_until - when for when, _ in batch]
                batch = []
                while waiting and len(batch) < 8:
                    has = [sum(own == camera for _, own in batch) for camera in range(cameras)]
                    ready = {camera for _, camera in waiting}
                    camera = min(ready, key=lambda one: (has[one], (one - turn) % cameras))
                    frame = next(frame for frame in waiting if frame[1] == camera)
                    waiting.remove(frame)
                    batch.append(frame)
                if batch:
                    turn = (turn + len({own for _, own in batch})) % cameras
                    busy_until = now + LINEAR[len(batch)]
    return late, came, lost


def test_rates_differ_and_have_their_mean():
    assert rates_of(1, 10) == [10]
    assert rates_of(3, 10) == [9.8, 10, 10.2] and np.mean(rates_of(16, 25)) == pytest.approx(25)


def test_the_most_that_fit():
    """As many as one would find by trying all; none where a single frame takes too long, and never beyond the most."""
    slow = service(LINEAR)
    ask = {"fps": 10.0, "p95_s": 0.15, "most": 8, "queue": 8, "most_load": 0.85}
    by_trying = max(n for n in range(1, 12) if forecast(slow, n, 10.0, 8, 8).fits(0.15, 0.85))
    assert most_that_fit(slow, **ask, most_cameras=64) == by_trying and 4 <= by_trying <= 6
    assert most_that_fit(slow, **ask, most_cameras=3) == 3
    assert most_that_fit(slow, **ask | {"p95_s": 0.029}, most_cameras=64) == 0
    assert most_that_fit(slow, **ask | {"fps": 100.0}, most_cameras=64) == 0, "a single camera is too fast"
