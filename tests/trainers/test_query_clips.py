"""Which clips are seen around a query: frames in a row and the release's, ends of videos, epochs, empty windows.

Source of what is expected: CiCo specification 1.4, 1.5.
"""

from __future__ import annotations

from collections import Counter
from itertools import combinations, islice
from pathlib import Path

import numpy as np
import pytest

from tests.trainers.test_pairs import dataset
from trainers.augment import Augment, Changes, JitterConfig, Look, Window
from trainers.frames import Draw, FrameIndex, has_area
from trainers.query_clips import QueryClipSampler, around, in_a_row, shows_an_object

PLAIN = Augment(flip=0.5)


def index_of(folder: Path, *tracks: str) -> FrameIndex:
    """A video for each track of one object."""
    return FrameIndex(dataset(folder, *({number: track} for number, track in enumerate(tracks, start=1))), has_area)


def sampler(index: FrameIndex, **changes) -> QueryClipSampler:
    settings = {"frames": 3, "how": "consecutive", "augment": PLAIN, "seed": 0, **changes}
    return QueryClipSampler(index, **settings)


def clips(index: FrameIndex, count: int, **changes) -> list[Draw]:
    return list(islice(sampler(index, **changes).draws(0), count))


def times(draw: Draw) -> tuple[int, ...]:
    return tuple(frame.frame for frame in draw.frames)


# ------------------------------------------------------------------------------------------------------ frames in a row


@pytest.mark.parametrize("count, query, expected", [
    pytest.param(1, 4, (4,), id="one frame: the query"),
    pytest.param(3, 4, (3, 4, 5), id="one on either side"),
    pytest.param(3, 0, (0, 1, 2), id="first frame: shifted inward"),
    pytest.param(3, 6, (4, 5, 6), id="last frame: shifted inward"),
    pytest.param(5, 1, (0, 1, 2, 3, 4), id="shifted by one"),
    pytest.param(2, 4, (3, 4), id="two: t - 1, t"),
    pytest.param(4, 4, (2, 3, 4, 5), id="even: one more before"),
    pytest.param(4, 6, (3, 4, 5, 6), id="even, at the end"),
    pytest.param(7, 3, (0, 1, 2, 3, 4, 5, 6), id="the whole video"),
    pytest.param(9, 3, (0, 1, 2, 3, 4, 5, 6, 6, 6), id="longer than the video: its last frame again"),
])  # fmt: skip
def test_frames_in_a_row(tmp_path, count, query, expected):
    usable = index_of(tmp_path, "#######").videos[0]
    assert tuple(frame.frame for frame in in_a_row(usable[query], usable, count)) == expected


def test_frames_without_objects_are_members_but_no_queries(tmp_path):
    index = index_of(tmp_path, "..#..##")
    seen = {times(draw): [len(frame.annotations) for frame in draw.frames] for draw in clips(index, 3)}
    assert seen == {(1, 2, 3): [0, 1, 0], (4, 5, 6): [0, 1, 1]}, "5 and 6 have the same clip: it is shifted inward"


# --------------------------------------------------------------------------------------------------------- the release


@pytest.mark.parametrize("count, track, query, near", [
    pytest.param(1, "#######", 3, set(), id="one frame"),
    pytest.param(2, "#######", 3, {2}, id="two: the frame before, always"),
    pytest.param(3, "#######", 3, {1, 2, 4}, id="three: two of -2, -1, 1, never 2"),
    pytest.param(3, "#######", 6, {4, 5}, id="at the end: the two before"),
    pytest.param(3, "##.#.##", 3, {1}, id="only annotated frames: one, twice"),
    pytest.param(4, "#######", 3, {1, 2, 4}, id="four: all of -2, -1, 1"),
    pytest.param(5, "#######", 3, {0, 1, 2, 4, 5}, id="five: four of -3 to 2"),
    pytest.param(3, "...#...", 3, {3}, id="alone: the query again"),
])  # fmt: skip
def test_frames_around_the_query(tmp_path, count, track, query, near):
    """Every choice of distinct frames comes, about as often as any other; in order of time."""
    usable = index_of(tmp_path, track).videos[0]
    frame = next(one for one in usable if one.frame == query)
    rng = np.random.default_rng(0)
    found = Counter(tuple(f.frame for f in around(frame, usable, count, rng)) for _ in range(300))
    wanted = min(count - 1, len(near))
    repeated = [(*chosen, *sorted(near)[: count - 1 - wanted]) for chosen in combinations(sorted(near), wanted)]
    assert set(found) == {tuple(sorted((*chosen, query))) for chosen in repeated}
    assert min(found.values()) > 0.6 * 300 / len(found)


# -------------------------------------------------------------------------------------------------------- as a sequence


@pytest.mark.parametrize("how, expected", [
    pytest.param("consecutive", {1: [(0, 1), (0, 1), (1, 2), (2, 3)], 2: [(0, 1), (1, 2), (2, 3)]}, id="in a row"),
    pytest.param("around", {1: [(0, 0), (0, 1), (1, 2), (2, 3)], 2: [(0, 0), (2, 2), (2, 3)]}, id="around"),
])  # fmt: skip
def test_an_epoch_asks_for_every_annotated_frame_once(tmp_path, how, expected):
    """Clips of two, whose later frame is the query but where a row is shifted inward; two epochs."""
    index = index_of(tmp_path, "####", "#.##", ".....")
    draws = clips(index, 2 * len(index), frames=2, how=how)
    for epoch in (draws[:7], draws[7:]):
        assert {v: sorted(times(d) for d in epoch if d.frames[0].video.id == v) for v in (1, 2)} == expected


def test_samples_depend_on_seed_and_position_alone(tmp_path):
    index = index_of(tmp_path, "#####", "###")
    changes = {"how": "around", "augment": Augment(flip=0.5, jitter=JitterConfig())}

    def told(draws) -> list[tuple]:
        return [(d.frames[0].video.id, times(d), d.flips, d.changes) for d in draws]

    whole = told(clips(index, 20, **changes))
    assert told(islice(sampler(index, **changes).draws(13), 7)) == whole[13:]
    shares = [told(islice(sampler(index, rank=r, world_size=2, **changes).draws(0), 10)) for r in (0, 1)]
    assert [one for pair in zip(*shares, strict=True) for one in pair] == whole
    assert told(clips(index, 20, seed=1, **changes)) != whole


def test_all_frames_of_a_clip_look_alike(tmp_path):
    index = index_of(tmp_path, "######")
    draws = clips(index, 40, augment=Augment(flip=0.5, jitter=JitterConfig()))
    assert all(len(set(draw.flips)) == 1 for draw in draws) and {draw.flips[0] for draw in draws} == {False, True}
    assert all(draw.changes is None or len(set(draw.changes)) == 1 for draw in draws)
    assert {draw.changes is None for draw in draws} == {False, True}


# ------------------------------------------------------------------------------------------------------ nothing is left


@pytest.mark.parametrize("window, shown", [
    pytest.param(None, True, id="no window"),
    pytest.param(Window(0.5, 0.0, 0.0), True, id="shrunk: all is kept"),
    pytest.param(Window(4.0, 0.0, 0.0), True, id="enlarged: the quarter of a quarter it lies in"),
    pytest.param(Window(4.0, 0.99, 0.0), False, id="enlarged: to the right of it"),
    pytest.param(Window(4.0, 0.0, 0.99), False, id="enlarged: below it"),
])  # fmt: skip
def test_whether_an_object_is_left(tmp_path, window, shown):
    """Of 64 x 48, the box of 1..11 x 0..20 in the first frame."""
    usable = index_of(tmp_path, "##").videos[0]
    look = Look((False,) * 2, None, None if window is None else (Changes(window=window),) * 2)
    assert shows_an_object(tuple(usable), look) is shown


def test_a_clip_that_nothing_is_left_of_is_drawn_anew(tmp_path):
    index = index_of(tmp_path, "####", "####")
    draws = clips(index, 60, augment=Augment(flip=0.5, jitter=JitterConfig(probability=1.0, factor=(4.0, 4.0))))
    looks = [shows_an_object(d.frames, Look(d.flips, d.scales, d.changes)) for d in draws]
    assert all(looks) and len({d.changes for d in draws}) == 60


@pytest.mark.parametrize("frames", [0, -1])
def test_clips_of_no_frame_are_refused(tmp_path, frames):
    with pytest.raises(ValueError, match=f"clips of {frames} frames, expected 1 or more"):
        sampler(index_of(tmp_path, "#"), frames=frames)
