"""DAVIS proposals of a video: which tracks, under which numbers, and who is on top.

Source of what is expected: TLTM specification 4.7.
"""

from __future__ import annotations

import numpy as np
import pytest
from pycocotools import mask as coco

from operators.proposals import Proposals, ProposalsConfig
from operators.records import FrameFault, FrameInfo, FrameTracks

HEIGHT, WIDTH = 2, 6


def info(index: int, size: tuple[int, int] = (HEIGHT, WIDTH)) -> FrameInfo:
    return FrameInfo("s", index, index / 10, *size)


def frame(index: int, *tracks: tuple[int, float, tuple[int, int]]) -> FrameTracks:
    """Of (id, score, columns from and to)."""
    masks = []
    for _, _, (begin, end) in tracks:
        mask = np.zeros((HEIGHT, WIDTH), np.uint8, order="F")
        mask[:, begin:end] = 1
        encoded = coco.encode(mask)
        masks.append({"size": encoded["size"], "counts": encoded["counts"].decode("ascii")})
    n = len(tracks)
    return FrameTracks(
        info(index), np.array([track[0] for track in tracks], np.int64).reshape(n), np.arange(n) % 3,
        np.array([track[1] for track in tracks], np.float32).reshape(n), np.zeros((n, 4), np.float32), tuple(masks),
    )  # fmt: skip


def fold(*frames, **settings) -> Proposals:
    proposals = Proposals(ProposalsConfig(**settings))
    for one in frames:
        proposals.add(one)
    return proposals


def drawn(proposals: Proposals) -> list[str]:
    """The first row of each frame's map; all rows are alike."""
    maps = [labels for _, labels in proposals.maps()]
    assert all((labels == labels[0]).all() and labels.dtype == np.uint8 for labels in maps)
    return ["".join(map(str, labels[0])) for labels in maps]


TWO = [frame(0, (3, 0.5, (0, 2)), (7, 0.9, (3, 5))), frame(1, (3, 0.6, (1, 3)))]


@pytest.mark.parametrize("frames, settings, numbers", [
    pytest.param([], {}, {}, id="no frame"),
    pytest.param([frame(0)], {}, {}, id="nothing found"),
    pytest.param(TWO, {}, {3: 1, 7: 2}, id="long and weak before short and sure: 1.1 and 0.9"),
    pytest.param(TWO, {"max_proposals": 1}, {3: 1}, id="the best alone"),
    pytest.param(TWO, {"choice": "first"}, {3: 4, 7: 8}, id="as released: ids and one"),
    pytest.param(TWO, {"choice": "first", "max_proposals": 7}, {3: 4}, id="as released: low ids alone"),
    pytest.param([frame(t, (t, 0.5 + 0.01 * t, (0, 1))) for t in range(30)], {"choice": "first"},
                 {t: t + 1 for t in range(20)}, id="as released: the first twenty, though the last are best"),
    pytest.param(TWO, {"min_score": 0.7}, {7: 1}, id="weak ones are no proposals"),
    pytest.param([frame(0, (5, 0.5, (0, 1)), (2, 0.5, (2, 3)))], {}, {2: 1, 5: 2}, id="of equal sums the earlier"),
    pytest.param([frame(t, (t, 0.9 - 0.01 * t, (0, 1))) for t in range(30)], {}, {t: t + 1 for t in range(20)},
                 id="of thirty the best twenty"),
])  # fmt: skip
def test_which_tracks_under_which_numbers(frames, settings, numbers):
    proposals = fold(*frames, **settings)
    assert proposals.numbers() == numbers
    assert max((int(labels.max()) for _, labels in proposals.maps()), default=0) <= 20


@pytest.mark.parametrize("frames, settings, rows", [
    pytest.param([], {}, [], id="no frame"),
    pytest.param([frame(0), frame(1)], {}, ["000000", "000000"], id="empty frames have maps too"),
    pytest.param(TWO, {}, ["110220", "011000"], id="everyone in his place"),
    pytest.param(TWO, {"max_proposals": 1}, ["110000", "011000"], id="others leave background"),
    pytest.param([frame(0, (0, 0.9, (0, 4)), (1, 0.5, (2, 6)))], {}, ["111122"], id="the surer on top"),
    pytest.param([frame(0, (0, 0.9, (0, 4)), (1, 0.5, (2, 6)))], {"on_top": "worst"}, ["112222"], id="as released"),
    pytest.param([frame(0, (0, 0.9, (0, 4)), (1, 0.5, (2, 6)))], {"min_score": 0.6}, ["111100"], id="weak left out"),
    pytest.param([FrameFault(info(0, (0, 0)), "torn"), frame(1, (0, 0.9, (0, 2)))], {}, ["000000", "110000"],
                 id="a fault before any size is known"),
    pytest.param([FrameFault(info(0, (0, 0)), "torn")], {}, [], id="no size at all: no map"),
])  # fmt: skip
def test_maps(frames, settings, rows):
    assert drawn(fold(*frames, **settings)) == rows


def test_a_faulty_frame_has_its_own_size():
    maps = dict((one.index, labels.shape) for one, labels in fold(
        frame(0), FrameFault(info(1, (4, 5)), "torn"), FrameFault(info(2, (0, 0)), "torn"), frame(3)).maps())
    assert maps == {0: (2, 6), 1: (4, 5), 2: (4, 5), 3: (2, 6)}


@pytest.mark.parametrize("settings, message", [
    ({"max_proposals": 0}, "expected 1 to 20"), ({"max_proposals": 21}, "DAVIS takes no more"),
    ({"min_score": 1.5}, "min_score is 1.5"),
])
def test_settings_that_cannot_be(settings, message):
    with pytest.raises(ValueError, match=message):
        ProposalsConfig(**settings)
