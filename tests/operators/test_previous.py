"""The stage that keeps the frame before: which pyramid a frame refers to, what is held, and calls that fail.

Source of what is expected: TLTM specification 2.3, 4.1, 4.2, pitfalls 2 and 17.
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from operators.errors import StageError
from operators.previous import Previous
from operators.records import Features, FrameInfo

CPU = torch.device("cpu")


def frame(index: int, stream: str = "s", size: tuple[int, int] = (24, 40), height: int = 48) -> Features:
    """A pyramid of two levels that are full of the frame's index."""
    levels = torch.full((2, 4, 5), float(index)), torch.full((2, 2, 3), float(index))
    return Features(FrameInfo(stream, index, index / 10, height, 80), levels, size, (32, 64))


def opened(*streams: str) -> Previous:
    stage = Previous(CPU)
    for stream in streams or ("s",):
        stage.open(stream)
    return stage


def story(records: Sequence[Features]) -> list[tuple[int, int]]:
    """(frame, frame it refers to), read off the pyramids themselves, all levels."""
    told = []
    for record in records:
        (reference,) = record.references
        assert [level.shape for level in reference] == [level.shape for level in record.levels]
        assert all(bool((level == record.info.index).all()) for level in record.levels)
        (before,) = {float(v) for level in reference for v in level.unique()}
        told.append((record.info.index, int(before)))
    return told


@pytest.mark.parametrize("frames, expected", [
    pytest.param([], [], id="no frame"),
    pytest.param([frame(0)], [(0, 0)], id="the first refers to itself"),
    pytest.param([frame(0), frame(1), frame(2)], [(0, 0), (1, 0), (2, 1)], id="each to the one before, raw"),
    pytest.param([frame(2), frame(5), frame(6)], [(2, 2), (5, 2), (6, 5)], id="damaged frames are stepped over"),
    pytest.param([frame(0), frame(1, size=(24, 38)), frame(2, size=(24, 38))], [(0, 0), (1, 1), (2, 1)],
                 id="another resized size: itself"),
    pytest.param([frame(0), frame(1, height=49), frame(2)], [(0, 0), (1, 1), (2, 2)], id="another source size: itself"),
    pytest.param([frame(0), frame(0, "t"), frame(1), frame(1, "t")], [(0, 0), (0, 0), (1, 0), (1, 0)],
                 id="two streams"),
])  # fmt: skip
@pytest.mark.parametrize("per_call", [1, 3])
def test_what_a_frame_refers_to(frames, expected, per_call):
    stage = opened("s", "t")
    given = [one for at in range(0, len(frames), per_call) for one in stage(frames[at : at + per_call])]
    assert story(given) == expected


def test_streams_do_not_lend_each_other_their_frames():
    stage = opened("s", "t")
    stage([frame(7, "t")])
    assert story(stage([frame(0), frame(1)])) == [(0, 0), (1, 0)]
    assert story(stage([frame(8, "t")])) == [(8, 7)]


def test_one_pyramid_is_kept_without_its_batch():
    batch = torch.zeros(4, 2, 4, 5)
    stage = opened()
    stage([Features(FrameInfo("s", t, 0.0, 48, 80), (batch[t],), (24, 40), (32, 64)) for t in range(4)])
    (reference,) = stage([Features(FrameInfo("s", 4, 0.0, 48, 80), (batch[0],), (24, 40), (32, 64))])[0].references
    assert reference[0].untyped_storage().nbytes() == 2 * 4 * 5 * 4
    sizes = set()
    for t in range(5, 60):
        stage([frame(t)])
        sizes.add(len(stage.snapshot("s")))
    assert len(sizes) == 1, "the state is of one size, however long the stream is"


def test_a_call_that_fails_changes_nothing():
    stage = opened("s", "t")
    stage([frame(3), frame(3, "t")])
    before = stage.snapshot("s"), stage.snapshot("t")
    for bad, message in ((frame(0, "u"), "stream 'u'.*not open"), (frame(4, "t"), "came after frame 4")):
        with pytest.raises(StageError, match=message):
            stage([frame(4), frame(4, "t"), bad])
    assert (stage.snapshot("s"), stage.snapshot("t")) == before
    assert story(stage([frame(4)])) == [(4, 3)]


def test_restored_elsewhere_on_the_stages_device():
    stage, other = opened(), Previous(CPU)
    stage([frame(0), frame(1)])
    other.restore("s", stage.snapshot("s"))
    assert story(other([frame(2)])) == [(2, 1)] and other.close("s") == []
