"""Windows: which frames a clip holds and which leave with it, by hand and by the specification's formula; when they
leave; what waits."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from operators.errors import StageError
from operators.windows import Windows, WindowsConfig
from tests.operators.small_clips import frame, told


def opened(length: int, overlap: int | None, *streams: str) -> Windows:
    stage = Windows(length, WindowsConfig(overlap=overlap))
    for stream in streams or ("s",):
        stage.open(stream)
    return stage


def run(length: int, overlap: int | None, indices: list[int], together: int = 1) -> list[tuple[list[int], int, int]]:
    stage, records = opened(length, overlap), [frame(index) for index in indices]
    given = [clip for at in range(0, len(records), together) for clip in stage(records[at : at + together])]
    return told(given + stage.close("s"))


# ------------------------------------------------------------------------------------------ which frames


@pytest.mark.parametrize("length, overlap, count, expected", [
    pytest.param(3, 1, 0, [], id="no frame"),
    pytest.param(3, 0, 1, [([0, 0, 0], 1, 1)], id="one frame, none shared"),
    pytest.param(3, 0, 2, [([0, 1, 0], 2, 2)], id="two, none shared"),
    pytest.param(3, 0, 3, [([0, 1, 2], 3, 3)], id="a whole clip: nothing waits"),
    pytest.param(3, 0, 5, [([0, 1, 2], 3, 3), ([3, 4, 3], 2, 2)], id="a whole clip and two"),
    pytest.param(3, 1, 1, [([0, 0, 0], 1, 1)], id="one frame"),
    pytest.param(3, 1, 2, [([0, 1, 0], 2, 2)], id="two frames"),
    pytest.param(3, 1, 3, [([0, 1, 2], 3, 2), ([2, 2, 2], 1, 1)], id="three: the last leaves alone"),
    pytest.param(3, 1, 4, [([0, 1, 2], 3, 2), ([2, 3, 2], 2, 2)], id="four"),
    pytest.param(3, 1, 5, [([0, 1, 2], 3, 2), ([2, 3, 4], 3, 2), ([4, 4, 4], 1, 1)], id="five"),
    pytest.param(3, 2, 1, [([0, 0, 0], 1, 1)], id="one frame, two shared"),
    pytest.param(3, 2, 2, [([0, 1, 0], 2, 1), ([1, 1, 1], 1, 1)], id="two, two shared: two clips at the end"),
    pytest.param(3, 2, 4, [([0, 1, 2], 3, 1), ([1, 2, 3], 3, 1), ([2, 3, 2], 2, 1), ([3, 3, 3], 1, 1)],
                 id="four, two shared"),
    pytest.param(1, 0, 2, [([0], 1, 1), ([1], 1, 1)], id="clips of one frame"),
    pytest.param(1, None, 2, [([0], 1, 1), ([1], 1, 1)], id="which by themselves share none"),
    pytest.param(2, None, 3, [([0, 1], 2, 1), ([1, 2], 2, 1), ([2, 2], 1, 1)], id="two by themselves share one"),
    pytest.param(4, 2, 5, [([0, 1, 2, 3], 4, 2), ([2, 3, 4, 2], 3, 2), ([4, 4, 4, 4], 1, 1)],
                 id="more real frames than leave"),
    pytest.param(5, 1, 7, [([0, 1, 2, 3, 4], 5, 4), ([4, 5, 6, 4, 5], 3, 3)], id="filled up twice round"),
])  # fmt: skip
def test_clips_by_hand(length, overlap, count, expected):
    assert run(length, overlap, list(range(count))) == expected


@pytest.mark.parametrize("together", [1, 2, 5, 100])
def test_clips_by_the_specifications_formula(together):
    """Clip c holds c * n to min(c * n + T, L) - 1, c = 0 .. ceil(L / n) - 1, however many frames came at once."""
    for length in (1, 2, 3, 4, 7):
        for overlap in range(length):
            for count in range(20):
                new, expected = length - overlap, []
                for c in range(math.ceil(count / new)):
                    real = list(range(c * new, min(c * new + length, count)))
                    filled = (real * length)[:length]
                    expected.append((filled, len(real), min(new, len(real))))
                found = run(length, overlap, list(range(count)), together)
                assert found == expected, (length, overlap, count)
                assert [i for frames, _, leave in found for i in frames[:leave]] == list(range(count))


def test_nineteen_frames_make_ten_clips():
    clips = run(3, 1, list(range(19)))
    assert len(clips) == 10 and clips[-1] == ([18, 18, 18], 1, 1)


def test_frames_that_could_not_be_decoded_are_in_no_clip():
    assert run(3, 1, [0, 1, 3, 4, 9]) == [([0, 1, 3], 3, 2), ([3, 4, 9], 3, 2), ([9, 9, 9], 1, 1)]


@pytest.mark.parametrize("change", [
    pytest.param({"size": (30, 90)}, id="of the resized frame"), pytest.param({"padded": (64, 128)}, id="of the input"),
    pytest.param({"info": replace(frame(2).info, height=121)}, id="of the original"),
])
def test_a_change_of_size_ends_what_waits(change):
    """Frames 0 and 1 are of one size, those from 2 on of another."""
    changed = [replace(frame(index), **change) for index in (2, 3, 4)]
    if "info" in change:
        changed = [replace(one, info=replace(one.info, index=i)) for i, one in enumerate(changed, 2)]
    for one, index in zip(changed, (2, 3, 4), strict=True):
        assert one.info.index == index
    stage = opened(3, 1)
    given = stage([frame(0), frame(1), *[replace(one, levels=frame(one.info.index).levels) for one in changed]])
    expected = [([0, 1, 0], 2, 2), ([2, 3, 4], 3, 2), ([4, 4, 4], 1, 1)]
    assert told(given + stage.close("s")) == expected


# ------------------------------------------------------------------------------------------ when


@pytest.mark.parametrize("overlap, late", [
    pytest.param(0, [2, 1, 0], id="none shared"), pytest.param(1, [2, 1], id="one shared"),
    pytest.param(2, [2], id="two shared"),
])  # fmt: skip
def test_how_late_frames_leave(overlap, late):
    """Frame c * n + r after frame c * n + T - 1."""
    stage, left = opened(3, overlap), {}
    for now in range(14):
        for clip in stage([frame(now)]):
            left |= {one.info.index: now - one.info.index for one in clip.frames[: clip.new]}
    assert [left[index] for index in range(len(left))] == (late * 14)[: len(left)]
    assert len(left) >= 14 - 2


def test_what_waits_is_less_than_a_clip():
    """Of a stream of any length: its snapshot holds two frames at most, here of 52 float32 each."""
    stage, sizes = opened(3, 1), []
    for index in range(400):
        stage([frame(index)])
        sizes.append(len(stage.snapshot("s")))
    assert max(sizes) <= 5500 and max(sizes[200:]) <= max(sizes[:200]) + 64


def test_a_frame_that_waits_does_not_keep_its_batch():
    batch = frame(0).levels[0].expand(500, 2, 4, 5).clone()
    stage = opened(3, 1)
    stage([replace(frame(0), levels=(batch[7],))])
    stage([replace(frame(1), levels=(batch[8],))])
    (clip,) = stage([replace(frame(2), levels=(batch[9],))])
    assert [one.levels[0].untyped_storage().nbytes() for one in clip.frames] == [160] * 3


def test_streams_do_not_see_each_other():
    stage = opened(3, 1, "a", "b")
    given = []
    for index in range(5):
        given += stage([frame(index, "a"), frame(index, "b")] if index < 4 else [frame(index, "a")])
    own = {stream: [clip for clip in given if clip.info.stream == stream] for stream in "ab"}
    assert told(own["a"] + stage.close("a")) == run(3, 1, list(range(5)))
    assert told(own["b"] + stage.close("b")) == run(3, 1, list(range(4)))
    assert all({one.info.stream for one in clip.frames} == {clip.info.stream} for clip in given)


# ------------------------------------------------------------------------------------------ what is refused


@pytest.mark.parametrize("bad, message", [
    pytest.param([frame(4, "b")], "stream 'b', frame 4: the stream is not open", id="a stream that is not open"),
    pytest.param([frame(1)], "came after frame 1", id="a frame twice"),
    pytest.param([frame(5), frame(4)], "came after frame 5", id="out of order within a batch"),
])
def test_a_batch_that_is_refused_leaves_nothing(bad, message):
    stage = opened(3, 1)
    stage([frame(0), frame(1)])
    state = stage.snapshot("s")
    with pytest.raises(StageError, match=message):
        stage([frame(2), *bad] if bad[0].info.index != 1 else bad)
    assert stage.snapshot("s") == state
    assert told(stage([frame(2)])) == [([0, 1, 2], 3, 2)]


def test_a_snapshot_of_longer_clips_is_refused():
    long, short = opened(5, 1), Windows(3, WindowsConfig())
    long([frame(index) for index in range(4)])
    with pytest.raises(StageError, match="4 frames wait, and 3 make a clip"):
        short.restore("s", long.snapshot("s"))


@pytest.mark.parametrize("length, overlap", [(1, 1), (3, 3), (3, 7)])
def test_an_overlap_must_leave_a_new_frame(length, overlap):
    with pytest.raises(ValueError, match=f"overlap is {overlap}, expected less than .* {length}"):
        Windows(length, WindowsConfig(overlap=overlap))


@pytest.mark.parametrize("length, overlap", [(1, 0), (2, 1), (3, 1), (7, 1)])
def test_clips_share_a_frame_unless_told_otherwise(length, overlap):
    assert WindowsConfig().of(length) == overlap


def test_an_overlap_below_zero():
    with pytest.raises(ValueError, match="overlap is -1"):
        WindowsConfig(overlap=-1)
