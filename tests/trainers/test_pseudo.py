"""Pseudo-videos of stills: what moves, what stays, what leaves; the same for every split of the work.

Source of what is expected: TLTM specification 1.4.
"""

from __future__ import annotations

from collections import Counter
from itertools import islice

import numpy as np
import pytest
import torch

from tests.trainers.small_frames import HALF, LANDSCAPE, hand_made
from tests.trainers.test_pairs import dataset
from trainers.augment import Augment, Changes, ScaleConfig, motion_about, move_boxes
from trainers.data import PairLoader
from trainers.frames import Draw, FrameIndex
from trainers.pixels import Parts
from trainers.pseudo import Motion, PseudoConfig, PseudoSampler

STILL = PseudoConfig(translate=0, rotate=0, blur=0, photometric=None)


def sampler(index: FrameIndex, pseudo: PseudoConfig | None = None, **changes) -> PseudoSampler:
    settings = {"frames": 2, "augment": Augment(flip=0.5), "seed": 0, **changes}
    return PseudoSampler(index, pseudo=pseudo or PseudoConfig(), **settings)


@pytest.fixture
def index(tmp_path) -> FrameIndex:
    """Three usable frames of 64 x 48, in each the box of annotation a in frame t: [a, t, 10, 20]."""
    return FrameIndex(dataset(tmp_path, {3: "##", 25: "##"}, {40: "#"}))


def draws(index: FrameIndex, count: int, pseudo: PseudoConfig | None = None, **changes) -> list[Draw]:
    return list(islice(sampler(index, pseudo, **changes).draws(0), count))


def test_the_first_frame_is_the_still_and_only_what_follows_is_moved(index):
    for draw in draws(index, 60):
        first, second = draw.changes
        assert first == Changes() and second.motion is not None and second.colour is not None and second.exclusive
        assert draw.frames[0].video is draw.frames[1].video and draw.frames[0].frame == draw.frames[1].frame
        assert draw.flips[0] == draw.flips[1]


def test_an_epoch_moves_every_usable_frame_once(index):
    seen = Counter((d.frames[0].video.id, d.frames[0].frame) for d in draws(index, 6))
    assert seen == {(1, 0): 2, (1, 1): 2, (2, 0): 2}


def test_motion_is_drawn_from_the_ranges_of_the_release(index):
    """20 % of each side, 20 degrees, no scaling; every second one blurred, by 7 or 9, in all directions."""
    found = [draw.changes[1] for draw in draws(index, 1500)]
    moved = np.array([np.reshape(change.motion, (2, 3)) for change in found])                     # (n, 2, 3)
    np.testing.assert_allclose(np.linalg.det(moved[:, :, :2]), 1, atol=1e-9)
    degrees = np.degrees(np.arctan2(moved[:, 1, 0], moved[:, 0, 0]))
    assert -20 <= degrees.min() < -19 and 19 < degrees.max() <= 20 and abs(degrees.mean()) < 1.5
    shift = moved @ [32, 24, 1] - [32, 24]                                          # of the centre of 64 x 48
    for axis, side in ((0, 64), (1, 48)):
        assert 0.19 * side < abs(shift[:, axis]).max() <= 0.2 * side + 1e-9 and abs(shift[:, axis].mean()) < 1
    blurs = [change.blur for change in found if change.blur is not None]
    assert abs(len(blurs) / 1500 - 0.5) < 0.065
    assert {blur.size for blur in blurs} == {7, 9} and abs(sum(b.size == 7 for b in blurs) / len(blurs) - 0.5) < 0.1
    assert max(b.angle for b in blurs) > 350 and min(b.direction for b in blurs) < -0.98


def test_an_instance_whose_box_leaves_the_frame_is_not_in_it():
    """Shifted left by 40 % of 64 pixels a box of 3..13 is gone, one of 25..35 reaches to 9.4."""
    motion = Motion((-0.4, 0.0), 0.0, 1.0, None, None)
    moved = move_boxes(np.array([[3, 0, 13, 20], [25, 0, 35, 20]], np.float32), motion.at(1.0, 64, 48), 64, 48)
    np.testing.assert_allclose(moved, [[0, 0, 0, 20], [0, 0, 9.4, 20]], atol=1e-5)


def test_frames_that_lose_all_do_not_move(index):
    """Shifts of up to a whole width and height: now one leaves, now both; then the pair is the still twice."""
    found = Counter()
    for draw in draws(index, 400, PseudoConfig(translate=1.0, rotate=0)):
        still, after = draw.frames
        kept = [a.id for a in after.annotations]
        if draw.changes[1] == Changes():
            assert after == still
            found["stands still"] += 1
        else:
            boxes = move_boxes(still.boxes(), draw.changes[1].motion, 64, 48)
            inside = (boxes[:, 2:] > boxes[:, :2]).all(1)
            assert kept == [a.id for a, is_in in zip(still.annotations, inside, strict=True) if is_in] and kept
            found[len(kept) - len(still.annotations)] += 1
    assert min(found["stands still"], found[0], found[-1]) > 20, found


def test_a_longer_pseudo_video_moves_on_in_even_steps(index):
    for draw in draws(index, 20, PseudoConfig(translate=0.05), frames=5):
        angles = [0.0 if c.motion is None else np.degrees(np.arctan2(c.motion[3], c.motion[0])) for c in draw.changes]
        np.testing.assert_allclose(np.diff(angles), angles[4] / 4, atol=1e-6)
        assert len({change.blur for change in draw.changes[1:]}) == 1 and draw.changes[0].motion is None


def test_motion_after_a_share_of_it():
    motion = Motion((0.1, -0.2), 20.0, 4.0, None, None)
    assert motion.at(1.0, 64, 48) == pytest.approx(motion_about((32, 24), 20, 4, (6.4, -9.6)))
    assert motion.at(0.5, 64, 48) == pytest.approx(motion_about((32, 24), 10, 2, (3.2, -4.8)))


# ---------------------------------------------------------------------------------------------------- shards, restarts

MANY = {"frames": 3, "augment": Augment(flip=0.5, scale=ScaleConfig(short_sides=(20, 30)))}


@pytest.mark.parametrize("world", [1, 2, 5])
def test_shards_together_give_the_sequence_of_one_worker(index, world):
    workers = [sampler(index, rank=rank, world_size=world, **MANY).draws(0) for rank in range(world)]
    assert [next(workers[i % world]) for i in range(20)] == draws(index, 20, **MANY)


def test_a_restart_at_any_position_goes_on_with_the_same_samples(index):
    whole = draws(index, 12, **MANY)
    for position in (0, 1, 2, 3, 11):
        assert list(islice(sampler(index, **MANY).draws(position), 12 - position)) == whole[position:]


# -------------------------------------------------------------------------------------------------------------- loaded


def test_a_pair_of_a_still_as_the_network_gets_it(tmp_path):
    """Two boxes of 20 x 20, all shifted right by 0.2 widths: 12.8 pixels, and halved."""
    index = hand_made(tmp_path, (LANDSCAPE, {8: [(2, 10, 20, 20)], 5: [(40, 10, 20, 20)]}))
    still = index.videos[0][0]
    motion = Motion((0.2, 0.0), 0.0, 1.0, None, None).at(1.0, 64, 48)
    draw = Draw((still, still), (False, False), changes=(Changes(), Changes(motion=motion)))
    loader = PairLoader(iter([draw]), index, HALF, batch=1, device=torch.device("cpu"), parts=Parts(motion=True))
    try:
        batch = next(loader)
    finally:
        loader.close()
    first, second = (slot[0] for slot in batch.targets)
    torch.testing.assert_close(first.boxes, torch.tensor([[1.0, 5, 11, 15], [20, 5, 30, 15]]))
    torch.testing.assert_close(second.boxes, torch.tensor([[7.4, 5, 17.4, 15], [26.4, 5, 32, 15]]))
    assert first.identities.tolist() == second.identities.tolist() == [1, 0]
    assert [c.tolist() for slot in batch.counterparts for c in slot] == [[0, 1], [0, 1]]
    left = [int(mask.any(0).nonzero()[0]) for mask in second.masks]
    assert left == [7, 26] and second.masks[0].sum() == 100
    assert loader.names[0].frames == (0, 0) and loader.names[0].files == ("1/0.jpg", "1/0.jpg")


def test_what_moved_keeps_an_instance_that_is_hidden_but_whose_box_is_not(tmp_path):
    """The second covers the first: as released it stays with an empty mask; in a frame that stands it keeps its own."""
    index = hand_made(tmp_path, (LANDSCAPE, {1: [(10, 10, 10, 10)], 2: [(6, 6, 20, 20)]}))
    draw = next(sampler(index, PseudoConfig(translate=0.01, rotate=0, photometric=None)).draws(0))
    loader = PairLoader(iter([draw]), index, HALF, batch=1, device=torch.device("cpu"), parts=Parts(motion=True))
    try:
        first, second = (slot[0] for slot in next(loader).targets)
    finally:
        loader.close()
    assert len(first) == len(second) == 2 and first.masks[0].any() and not second.masks[0].any()


def test_settings_that_move_nothing_leave_the_still(index):
    for draw in draws(index, 5, STILL):
        assert draw.changes[1].motion == pytest.approx((1, 0, 0, 0, 1, 0)) and draw.changes[1].blur is None


@pytest.mark.parametrize("settings", [{"translate": 1.5}, {"rotate": -1.0}, {"blur": 2.0}, {"scale": (2.0, 1.0)},
                                      {"blur_sizes": ()}, {"blur_sizes": (8,)}], ids=str)  # fmt: skip
def test_settings_out_of_range(settings):
    with pytest.raises(ValueError, match="expected"):
        PseudoConfig(**settings)


def test_a_pseudo_video_has_two_frames(index):
    with pytest.raises(ValueError, match="of 1 frames"):
        sampler(index, frames=1)
