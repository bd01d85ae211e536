"""Pairs that go forward in time: who follows whom, what repeats, stills that move; the same however work is split.

Source of what is expected: TLTM specification 1.2, 1.4.
"""

from __future__ import annotations

from collections import Counter
from itertools import islice

import numpy as np
import pytest
import torch

from operators.errors import DatasetError
from tests.trainers.small_frames import HALF, LANDSCAPE, hand_made
from tests.trainers.test_pairs import dataset
from trainers.augment import Augment, Changes
from trainers.data import PairLoader
from trainers.forward_pairs import ForwardPairSampler
from trainers.frames import FrameIndex, has_mask
from trainers.pairs import PairDraw
from trainers.pixels import Parts
from trainers.pseudo import PseudoConfig


def sampler(index: FrameIndex, **changes) -> ForwardPairSampler:
    settings = {"max_interval": 3, "pseudo": None, "augment": Augment(flip=0.5), "seed": 0, **changes}
    return ForwardPairSampler(index, **settings)


def told(draw: PairDraw) -> tuple[int, int, int]:
    """Video, earlier frame, later frame: the network detects in the first of a draw."""
    later, earlier = draw.frames
    assert later.video is earlier.video
    return later.video.id, earlier.frame, later.frame


def pairs_of(index: FrameIndex, **changes) -> dict[tuple[int, int], set[int]]:
    """(video, earlier frame) -> all later frames that many epochs showed with it."""
    found: dict[tuple[int, int], set[int]] = {}
    for draw in islice(sampler(index, **changes).draws(0), 400):
        video, earlier, later = told(draw)
        found.setdefault((video, earlier), set()).add(later)
    return found


@pytest.mark.parametrize("track, interval, expected", [
    pytest.param("##", 3, {0: {1}}, id="the last frame has none after it"),
    pytest.param("######", 3, {0: {1, 2, 3}, 1: {2, 3, 4}, 2: {3, 4, 5}, 3: {4, 5}, 4: {5}}, id="the next three"),
    pytest.param("####", 1, {0: {1}, 1: {2}, 2: {3}}, id="plain: the next one"),
    pytest.param("##.#", 1, {0: {1}}, id="plain: pairs with an empty frame are skipped"),
    pytest.param("#..##", 3, {0: {3}, 3: {4}}, id="frames without objects are no candidates, but count as frames"),
    pytest.param("#...#", 3, {}, id="too far"),
    pytest.param("#...#", None, {0: {4}}, id="any later one"),
])  # fmt: skip
def test_which_frames_follow(tmp_path, track, interval, expected):
    index = FrameIndex(dataset(tmp_path, {3: track}))
    if not expected:
        with pytest.raises(DatasetError, match="no pair to train on. Raise data.max_interval"):
            sampler(index, max_interval=interval)
        return
    assert pairs_of(index, max_interval=interval) == {(1, frame): later for frame, later in expected.items()}


def test_the_later_frame_is_drawn_evenly(tmp_path):
    index = FrameIndex(dataset(tmp_path, {3: "####"}))
    found = Counter(told(draw)[1:] for draw in islice(sampler(index).draws(0), 1800))            # 600 of each earlier
    assert all(abs(found[0, later] - 200) < 45 for later in (1, 2, 3)) and found[2, 3] == 600


def test_an_object_is_there_where_its_mask_is(tmp_path):
    data = dataset(tmp_path, {3: "##", 4: ".#"})
    boxed, = data.annotations_of[1][:1]
    assert has_mask(boxed, 0) and not has_mask(data.annotations_of[1][1], 0)
    object.__setattr__(boxed, "segmentations", (None, boxed.segmentations[1]))
    assert not has_mask(boxed, 0) and has_mask(boxed, 1), "a box alone is not enough"


def test_an_epoch_shows_videos_eight_times_and_stills_once(tmp_path):
    """Two frames that another follows, eight times each, and two stills: 18 samples."""
    data = dataset(tmp_path, {3: "###"}, {5: "#"}, {7: "#"})
    index = FrameIndex(data, has_mask, repeats={1: 8}, stills=frozenset({2, 3}))
    drawn = list(islice(sampler(index, max_interval=1, pseudo=PseudoConfig()).draws(0), 36))
    for epoch in (drawn[:18], drawn[18:]):
        found = Counter(told(draw) for draw in epoch)
        assert found == {(1, 0, 1): 8, (1, 1, 2): 8, (2, 0, 0): 1, (3, 0, 0): 1}
    for draw in drawn:
        later, earlier = draw.changes or (Changes(), Changes())
        moved = draw.frames[0].video.id != 1
        assert (later.motion is not None) == moved and earlier.motion is None, "the later frame is the one that moved"
        assert draw.flips[0] == draw.flips[1]
    assert len({draw.flip for draw in drawn}) == 2


def test_without_stills_pseudo_moves_every_frame(tmp_path):
    index = FrameIndex(dataset(tmp_path, {3: "##"}, {5: "#"}))
    drawn = list(islice(sampler(index, pseudo=PseudoConfig()).draws(0), 3))
    assert Counter(map(told, drawn)) == {(1, 0, 0): 1, (1, 1, 1): 1, (2, 0, 0): 1}


def test_stills_need_motion(tmp_path):
    index = FrameIndex(dataset(tmp_path, {3: "##"}, {5: "#"}), stills=frozenset({2}))
    with pytest.raises(ValueError, match="stills move by pseudo"):
        sampler(index)


def test_split_and_begun_anew_the_samples_are_the_same(tmp_path):
    data = dataset(tmp_path, {3: "#####"}, {5: "#"})
    index = FrameIndex(data, has_mask, repeats={1: 2}, stills=frozenset({2}))
    settings = {"pseudo": PseudoConfig(), "group": 2}
    whole = list(islice(sampler(index, **settings).draws(0), 24))
    workers = [sampler(index, rank=rank, world_size=3, **settings).draws(0) for rank in range(3)]
    assert [next(workers[i % 3]) for i in range(24)] == whole
    assert list(islice(sampler(index, **settings).draws(10), 14)) == whole[10:]


def test_a_moved_still_as_the_network_gets_it(tmp_path):
    """64 x 48, halved. The pair by hand: slot 0 has the boxes moved, with counterparts in the still; sizes are told
    before padding to 32."""
    index = hand_made(tmp_path, (LANDSCAPE, {8: [(2, 10, 20, 20)], 5: [(24, 10, 20, 20)]}))
    still = PseudoConfig(rotate=0, translate=0.05, blur=0, photometric=None)
    draw = next(sampler(index, pseudo=still, augment=Augment(flip=0)).draws(0))
    loader = PairLoader(iter([draw]), index, HALF, batch=1, device=torch.device("cpu"), parts=Parts(motion=True))
    try:
        batch = next(loader)
    finally:
        loader.close()
    dx, dy = draw.changes[0].motion[2] / 2, draw.changes[0].motion[5] / 2
    assert 0 < abs(dx) <= 1.6 and 0 < abs(dy) <= 1.2, "at most 5 % of 64 and of 48, halved"
    later, earlier = (slot[0] for slot in batch.targets)
    expected = np.array([[1.0, 5, 11, 15], [12, 5, 22, 15]])
    np.testing.assert_allclose(earlier.boxes, expected)
    np.testing.assert_allclose(later.boxes, np.clip(expected + [dx, dy, dx, dy], 0, [32, 24, 32, 24]), atol=1e-5)
    assert [c.tolist() for slot in batch.counterparts for c in slot] == [[0, 1], [0, 1]]
    assert batch.sizes == ([(24, 32)], [(24, 32)]) and batch.images[0].shape[2:] == (32, 32)
