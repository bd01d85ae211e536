"""Which clips are seen: usable objects and frames, the walk through a video, sizes, mirroring, epochs, restarts.

Source of what is expected: IAI specification 1; 10, check 7.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import islice, pairwise, product
from pathlib import Path

import numpy as np
import pytest

from operators.youtube_vis_data import Dataset
from tests.trainers.test_pairs import dataset
from trainers.augment import ScaleConfig
from trainers.clips import ClipSampler, clip_identities
from trainers.frames import Draw, FrameAnnotations, FrameIndex, has_area, has_box


def sampler(index: FrameIndex, **changes) -> ClipSampler:
    return ClipSampler(index, **{"frames": 5, "flip": 0.5, "flip_sync": False, "scale": None, "seed": 0, **changes})


def clips(index: FrameIndex, count: int, **changes) -> list[Draw]:
    return list(islice(sampler(index, **changes).draws(0), count))


def times(draw: Draw) -> tuple[int, ...]:
    """Numbers of the stored frames."""
    return tuple(frame.frame for frame in draw.frames)


def told(draws) -> list[tuple]:
    """Everything a draw decides."""
    return [(d.frames[0].video.id, times(d), d.flips, d.scales) for d in draws]


# -------------------------------------------------------------------------------------------------- what can be learnt


def changed(data: Dataset, **columns) -> Dataset:
    """The first annotation with other boxes or areas."""
    return replace(data, annotations=(replace(data.annotations[0], **columns), *data.annotations[1:]))


@pytest.mark.parametrize("columns, both, clips_alone", [
    pytest.param({"bboxes": (None, [1, 1, 9, 9])}, {1}, {1}, id="no box"),
    pytest.param({"areas": (None, 20)}, {0, 1}, {1}, id="no area"),
    pytest.param({"areas": (0, 20)}, {0, 1}, {1}, id="area 0"),
    pytest.param({"areas": (0.5, 20)}, {0, 1}, {0, 1}, id="area of half a pixel"),
    pytest.param({"bboxes": ([1, 1, 0.99, 9], [1, 1, 1, 9])}, {0, 1}, {1}, id="narrower than a pixel"),
    pytest.param({"bboxes": ([1, 1, 9, 0], [1, 1, 9, 1.0])}, {0, 1}, {1}, id="without height"),
])  # fmt: skip
def test_clips_ask_more_of_an_object_than_pairs_do(tmp_path, columns, both, clips_alone):
    data = changed(dataset(tmp_path, {1: "##"}), **columns)
    for rule, expected in ((has_box, both), (has_area, clips_alone)):
        index = FrameIndex(data, rule)
        assert {frame.frame for frames in index.videos for frame in frames} == expected, rule


def test_an_object_that_cannot_be_learnt_from_leaves_its_frame_to_the_others(tmp_path):
    data = changed(dataset(tmp_path, {1: "###", 2: "##."}), areas=(5, 0, 0))
    frames = FrameIndex(data, has_area).videos[0]
    assert [(f.frame, [a.id for a in f.annotations]) for f in frames] == [(0, [1, 2]), (1, [2])]


def test_crowds_are_left_out(tmp_path):
    index = FrameIndex(dataset(tmp_path, {1: "####", 2: ".#.#"}, crowd=(1,)), has_area)
    assert [(f.frame, [a.id for a in f.annotations]) for f in index.videos[0]] == [(1, [2]), (3, [2])]


# ---------------------------------------------------------------------------------------------------------- identities


@pytest.mark.parametrize("seen, expected", [
    pytest.param(["."], {}, id="nobody"),
    pytest.param([{7}, {7, 9}, {9}, {7}, {4, 9}], {4: 0, 7: 1, 9: 2}, id="the specification's clip"),
    pytest.param([{30}, {30}, {5}, {5}, {30}], {5: 0, 30: 1}, id="by id, not by appearance"),
])
def test_identities_of_a_clip_go_by_annotation_id(tmp_path, seen, expected):
    ids = sorted(set().union(*(s for s in seen if s != ".")))
    data = dataset(tmp_path, {id: "#" * len(seen) for id in ids})
    of = {a.id: a for a in data.annotations}
    frames = [FrameAnnotations(data.videos[0], t, tuple(of[id] for id in s if id != ".")) for t, s in enumerate(seen)]
    assert clip_identities(frames) == expected


# ------------------------------------------------------------------------------------------------------------ the walk


def walks(length: int, frames: int, gap: int) -> set[tuple[int, ...]]:
    """Every clip that may be drawn, by trying all: rising places among `length`, at most `gap` apart."""
    length = max(length, frames)
    rising = (w for w in product(range(length), repeat=frames) if all(0 < b - a <= gap for a, b in pairwise(w)))
    return set(rising)


@pytest.mark.parametrize("track, expected", [
    pytest.param("#", {(0, 0, 0, 0, 0)}, id="a single usable frame"),
    pytest.param("..#.#", {(2, 4, 2, 4, 2)}, id="two: round and round from the first"),
    pytest.param("####", {(0, 1, 2, 3, 0)}, id="four"),
    pytest.param("#####", {(0, 1, 2, 3, 4)}, id="five: there is but one way"),
    pytest.param("#.##.#..#", {(0, 2, 3, 5, 8)}, id="five with holes: places count among the usable"),
    pytest.param("######", {(0, 1, 2, 3, 4), (1, 2, 3, 4, 5), (0, 2, 3, 4, 5), (0, 1, 3, 4, 5), (0, 1, 2, 4, 5),
                            (0, 1, 2, 3, 5)}, id="six"),
    pytest.param("########", walks(8, 5, 3), id="eight: all that exist"),
])  # fmt: skip
def test_every_clip_that_may_be_occurs_and_no_other(tmp_path, track, expected):
    index = FrameIndex(dataset(tmp_path, {1: track}), has_area)
    assert {times(draw) for draw in clips(index, 120 * len(expected))} == expected


def test_gaps_are_of_at_most_three_usable_frames_and_always_forward(tmp_path):
    index = FrameIndex(dataset(tmp_path, {1: "#" * 40}), has_area)
    gaps = Counter(int(gap) for draw in clips(index, 600) for gap in np.diff(times(draw)))
    assert set(gaps) == {1, 2, 3}
    # with room enough each is drawn as often: 2400 gaps, 5 standard deviations
    assert all(abs(count / 2400 - 1 / 3) < 0.06 for count in gaps.values()), gaps


def test_the_first_frame_is_drawn_evenly_among_those_that_leave_room(tmp_path):
    index = FrameIndex(dataset(tmp_path, {1: "#" * 9}), has_area)
    firsts = Counter(times(draw)[0] for draw in clips(index, 2000))
    assert set(firsts) == set(range(5))
    assert all(abs(count / 2000 - 0.2) < 5 * (0.16 / 2000) ** 0.5 for count in firsts.values()), firsts


@pytest.mark.parametrize("frames", [1, 2, 3, 7])
def test_clips_of_another_length(tmp_path, frames):
    index = FrameIndex(dataset(tmp_path, {1: "#" * 7}), has_area)
    assert {times(draw) for draw in clips(index, 900, frames=frames)} == walks(7, frames, 3)


def test_a_clip_has_a_frame(tmp_path):
    with pytest.raises(ValueError, match="clips of 0 frames"):
        sampler(FrameIndex(dataset(tmp_path, {1: "#"}), has_area), frames=0)


# ------------------------------------------------------------------------------------------------- mirroring and sizes


def test_each_frame_is_mirrored_for_itself(tmp_path):
    index = FrameIndex(dataset(tmp_path, {1: "#" * 6}), has_area)
    flips = np.array([draw.flips for draw in clips(index, 1000)])
    assert flips.shape == (1000, 5) and flips.dtype == bool
    assert np.abs(flips.mean(0) - 0.5).max() < 0.08
    assert np.abs(np.corrcoef(flips.T) - np.eye(5)).max() < 0.17, "of 1000 draws, 5 standard deviations"


@pytest.mark.parametrize("flip, low, high", [pytest.param(0.0, 0, 0, id="never"), pytest.param(1.0, 1, 1, id="always"),
                                              pytest.param(0.25, 0.18, 0.32, id="one in four")])
def test_a_clip_is_mirrored_as_one_where_asked(tmp_path, flip, low, high):
    index = FrameIndex(dataset(tmp_path, {1: "#" * 6}), has_area)
    flips = [draw.flips for draw in clips(index, 1000, flip=flip, flip_sync=True)]
    assert all(len(set(one)) == 1 and len(one) == 5 and type(one[0]) is bool for one in flips)
    assert low <= sum(one[0] for one in flips) / 1000 <= high


def test_without_scales_the_network_says_the_size(tmp_path):
    index = FrameIndex(dataset(tmp_path, {1: "###"}), has_area)
    assert all(draw.scales is None for draw in clips(index, 5))


@pytest.mark.parametrize("each", ["clip", "frame"])
def test_released_scales_reach_from_end_to_end(tmp_path, each):
    index = FrameIndex(dataset(tmp_path, {1: "#" * 6}), has_area)
    drawn = np.array([draw.scales for draw in clips(index, 4000, scale=ScaleConfig(each=each))])     # (4000, 5, 2)
    assert drawn.shape == (4000, 5, 2)
    assert drawn.min((0, 1)).tolist() == [360, 649] and drawn.max((0, 1)).tolist() == [480, 960]
    first = drawn[:, 0]
    assert len(np.unique(first[:, 0])) == 121, "every short side occurs"
    for side, (low, high) in enumerate(((360, 480), (649, 960))):
        # evenly: each quarter of the range as often, 5 standard deviations
        share, _ = np.histogram(first[:, side], bins=np.linspace(low, high + 1, 5))
        assert np.abs(share / 4000 - 0.25).max() < 0.035
    assert abs(np.corrcoef(first.T)[0, 1]) < 0.08, "the sides are drawn independently"
    alike = (drawn == drawn[:, :1]).all((1, 2))
    assert alike.all() if each == "clip" else not alike.any()


def test_a_range_of_one_size(tmp_path):
    index = FrameIndex(dataset(tmp_path, {1: "###"}), has_area)
    scale = ScaleConfig(short_side=(90, 90), long_side=(160, 160))
    assert {draw.scales for draw in clips(index, 5, scale=scale)} == {((90, 160),) * 5}


@pytest.mark.parametrize("settings", [{"short_side": (480, 360)}, {"long_side": (0, 10)}], ids=str)
def test_ranges_that_are_none(settings):
    with pytest.raises(ValueError, match="expected the smallest and the largest"):
        ScaleConfig(**settings)


# ---------------------------------------------------------------------------------------------------- epochs and shards

THREE = ({1: "#" * 12}, {2: "#"}, {3: "..."}, {4: "#.####"})
"""Three videos with something to learn, of very different length."""


def three(tmp_path: Path) -> FrameIndex:
    return FrameIndex(dataset(tmp_path, *THREE), has_area)


def test_an_epoch_has_five_clips_of_every_video_whatever_its_length(tmp_path):
    epochs = [[d.frames[0].video.id for d in islice(sampler(three(tmp_path)).draws(e * 15), 15)] for e in range(4)]
    assert all(Counter(epoch) == {1: 5, 2: 5, 4: 5} for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4


def test_a_clip_never_leaves_its_video(tmp_path):
    assert all(len({f.video.id for f in draw.frames}) == 1 for draw in clips(three(tmp_path), 60))


MULTI = {"scale": ScaleConfig(each="frame")}


@pytest.mark.parametrize("world", [1, 2, 4, 15])
def test_shards_together_give_the_sequence_of_one_worker(tmp_path, world):
    index = three(tmp_path)
    workers = [sampler(index, rank=rank, world_size=world, **MULTI).draws(0) for rank in range(world)]
    together = [next(workers[i % world]) for i in range(60)]
    assert told(together) == told(clips(index, 60, **MULTI))


@pytest.mark.parametrize("world, rank", [(1, 0), (4, 3)])
def test_a_restart_at_any_position_goes_on_with_the_same_clips(tmp_path, world, rank):
    shard = {"rank": rank, "world_size": world, **MULTI}
    whole = told(clips(three(tmp_path), 40, **shard))
    for position in (0, 1, 14, 15, 16, 39):
        rest = sampler(three(tmp_path), **shard).draws(position)
        assert told(islice(rest, 40 - position)) == whole[position:], position


def test_the_seed_alone_decides(tmp_path):
    first, again, other = (told(clips(three(tmp_path), 30, seed=seed)) for seed in (7, 7, 8))
    assert first == again != other
