"""Tracks of clips as frames: boxes in pixels and delays by hand, a stream against its clips in a plain loop, changes of
size, what is refused."""

from __future__ import annotations

import functools
from dataclasses import replace

import pytest
import torch

from models.cico_masks import paint
from operators.clip_tracking import ClipTrackConfig, advance
from operators.errors import StageError
from operators.masks import EncodeMasks, decode_masks
from operators.records import Features, FrameDetections
from operators.track_tubes import TrackTubes
from tests.models.small_cico import SMALL
from tests.operators.small_clips import CPU, HEIGHT, PADDED, WIDTH, clip_of, network, seen_by, stages, tubes
from tests.pipelines.contract import plain

LEFT, RIGHT = [0.1, 0.1, 0.4, 0.6], [0.6, 0.3, 0.9, 0.9]
ONE, OTHER = [1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]


def opened(*streams: str, **settings) -> TrackTubes:
    stage = TrackTubes(ClipTrackConfig(**settings), SMALL.masks, CPU)
    for stream in streams or ("s",):
        stage.open(stream)
    return stage


def ids(records: list[FrameDetections]) -> list[tuple[int, list[int]]]:
    return [(one.info.index, one.detections.track_ids.tolist()) for one in records]


# ------------------------------------------------------------------------------------------ what a frame gets


def test_boxes_in_pixels_of_the_frame_by_hand():
    """Input 64 x 96, of which the frame, 120 x 180, fills 60 x 90: a share of the input is 128 rows, 192 columns."""
    (one,) = opened()([clip_of(tubes([[0.25, 0.5, 0.5, 0.75], [-0.1, 0.2, 0.99, 0.98]]), (0, 1, 2), new=1)])
    expected = torch.tensor([[48.0, 64.0, 96.0, 96.0], [0.0, 25.6, 180.0, 120.0]])
    torch.testing.assert_close(one.detections.boxes, expected)
    assert (one.size, one.padded, one.detections.mask_frame) == ((60, 90), PADDED, "plain")


def test_masks_are_those_of_the_frame():
    """The tube moves from left to right; the mask of each frame lies where its box does."""
    found = tubes([LEFT])
    boxes, masks = found.boxes.clone(), found.masks.clone()
    moved = tubes([RIGHT])
    boxes[:, 1], masks[:, 1] = moved.boxes[:, 0], moved.masks[:, 0]
    given = opened()([clip_of(replace(found, boxes=boxes, masks=masks), (0, 1, 2), new=2)])
    for record, (x1, y1, x2, y2) in zip(given, (LEFT, RIGHT), strict=True):
        (tracks,) = EncodeMasks()([record])
        y, x = decode_masks(tracks.masks, HEIGHT, WIDTH)[..., 0].nonzero()
        assert (x.min(), x.max() + 1) == pytest.approx((192 * x1, 192 * x2), abs=16), "a cell is 8 pixels wide"
        assert (y.min(), y.max() + 1) == pytest.approx((128 * y1, 128 * y2), abs=16)
        assert tracks.clip == record.clip and tracks.track_ids.tolist() == [0]


def test_probabilities_survive_the_way_to_logits():
    found = tubes([LEFT])
    masks = torch.linspace(0, 1, found.masks.numel()).reshape(found.masks.shape)
    (one,) = opened()([clip_of(replace(found, masks=masks), (0, 1, 2), new=1)])
    torch.testing.assert_close(one.detections.mask_logits.sigmoid(), masks[:, 0], rtol=1e-5, atol=1e-7)


def test_what_a_clip_shows_all_its_frames_have():
    """A track that is to be seen in the first frame alone stands in the second with an empty mask."""
    found = tubes([LEFT])
    masks = found.masks.clone()
    masks[:, 1:] = 0
    given = opened()([clip_of(replace(found, masks=masks), (0, 1, 2), new=2)])
    assert ids(given) == [(0, [0]), (1, [0])]
    assert [int(decode_masks(one.masks, HEIGHT, WIDTH).any()) for one in EncodeMasks()(given)] == [1, 0]


@pytest.mark.parametrize("overlap, count, delays", [
    pytest.param(0, 8, [2, 1, 0, 2, 1, 0, 1, 0], id="none shared"),
    pytest.param(1, 7, [2, 1, 2, 1, 2, 1, 0], id="one shared"),
    pytest.param(1, 8, [2, 1, 2, 1, 2, 1, 1, 0], id="one shared, two at the end"),
    pytest.param(2, 6, [2, 2, 2, 2, 1, 0], id="two shared"),
])  # fmt: skip
def test_every_frame_says_its_delay(overlap, count, delays):
    windows, find, track = stages(network(), overlap)
    for stage in (windows, track):
        stage.open("s")
    clips = windows(seen_by(find.network, count)) + windows.close("s")
    given = track(find(clips))
    assert [one.info.index for one in given] == list(range(count)), "each frame once, in order"
    assert [one.clip.delay for one in given] == delays
    assert [one.clip.number for one in given if one.clip.delay == 2] == [0] * delays.count(2)


# ------------------------------------------------------------------------------------------ tracks


@pytest.mark.parametrize("overlap, form", [
    pytest.param(0, {}, id="none shared"), pytest.param(1, {}, id="one shared"), pytest.param(2, {}, id="two shared"),
    pytest.param(0, {"clip_length": 1, "box_tower": "2d", "track_tower": "2d", "cmh": "2d"}, id="clips of one frame"),
])  # fmt: skip
def test_a_stream_against_its_clips_in_a_loop(overlap, form):
    """Memory handed from clip to clip, the whole stream known before."""
    small = network(seed=5, **form)
    windows, find, track = stages(small, overlap)
    windows.open("s")
    clips = find(windows(seen_by(small, 11)) + windows.close("s"))
    track.open("s")
    given = [frame for clip in clips for frame in track([clip])]
    memory, expected = None, []
    for clip in clips:
        on = functools.partial(paint, clip.prototypes)
        memory, tracks = advance(
            memory, clip.tubes, [info.index for info in clip.infos],
            lambda p, b, levels, w, on=on: on(p, b, levels, small.config.masks, w), ClipTrackConfig(),
        )  # fmt: skip
        expected += [(clip.infos[r], tracks, r) for r in range(clip.new)]
    assert [one.info for one in given] == [info for info, _, _ in expected]
    for one, (_, tracks, r) in zip(given, expected, strict=True):
        assert torch.equal(one.detections.track_ids, tracks.track_ids)
        assert torch.equal(one.detections.scores, tracks.tubes.scores)
        torch.testing.assert_close(one.detections.mask_logits.sigmoid(), tracks.tubes.masks[:, r])
    seen = {int(i) for one in given for i in one.detections.track_ids}
    assert len(seen) > 1 and len(seen) < sum(len(clip.tubes) for clip in clips), "some are new, some are found again"


@pytest.mark.parametrize("together, overlap", [(1, 1), (4, 0), (4, 1), (4, 2), (100, 1)])
def test_how_frames_came_and_with_whom_changes_nothing(together, overlap):
    """Two streams through all three stages, singly, in bursts and at once, one stream beginning later: what each gives
    when it is alone."""
    small = network(seed=5)
    seen = {stream: seen_by(small, 7, stream, seed) for seed, stream in enumerate("ab")}

    def through(batches: list[list[Features]], streams: str) -> list[FrameDetections]:
        windows, find, track = stages(small, overlap)
        for stream in streams:
            windows.open(stream), track.open(stream)
        given = [one for batch in batches for one in track(find(windows(batch)))]
        return given + [one for stream in streams for one in track(find(windows.close(stream)))]

    mixed = [one for pair in zip([None] * 2 + seen["a"], seen["b"] + [None] * 2, strict=True) for one in pair if one]
    found = through([mixed[at : at + together] for at in range(0, len(mixed), together)], "ab")
    for stream, frames in seen.items():
        own = [one for one in found if one.info.stream == stream]
        assert [one.info.index for one in own] == list(range(7))
        assert plain(own) == plain(through([[one] for one in frames], stream))
    assert sum(len(one.detections) for one in found) > 7


def test_clips_of_two_streams_share_a_call():
    clips = {stream: [clip_of(tubes([LEFT, RIGHT], embeddings=[ONE, OTHER]), (0, 1, 2), 2, stream=stream),
                      clip_of(tubes([RIGHT], embeddings=[OTHER]), (2, 3, 4), 2, stream=stream)]
             for stream in "ab"}  # fmt: skip
    alone = {stream: opened(stream)(clips[stream]) for stream in "ab"}
    together = opened("a", "b")([clips["a"][0], clips["b"][0], clips["b"][1], clips["a"][1]])
    for stream in "ab":
        assert plain([one for one in together if one.info.stream == stream]) == plain(alone[stream])
    assert ids(alone["a"]) == [(0, [0, 1]), (1, [0, 1]), (2, [0, 1]), (3, [0, 1])], "the lost one coasts, by its age"


def test_a_change_of_size_ends_all_tracks_and_numbers_go_on():
    stage = opened()
    first = stage([clip_of(tubes([LEFT]), (0, 1, 2), 2)])
    wide = replace(clip_of(tubes([LEFT]), (4, 5, 6), 2), size=(30, 90))
    then = stage([wide, replace(clip_of(tubes([LEFT]), (6, 7, 8), 2), size=(30, 90))])
    assert ids(first) == [(0, [0]), (1, [0])]
    assert ids(then) == [(4, [1]), (5, [1]), (6, [1]), (7, [1])]


@pytest.mark.parametrize("max_unseen, again", [
    pytest.param(None, 0, id="as released nothing is forgotten"), pytest.param(3, 0, id="unseen no longer than that"),
    pytest.param(2, 1, id="a new id after longer"),
])  # fmt: skip
def test_what_comes_back(max_unseen, again):
    """Seen in clip 0, in three clips not, then once more; each shares a frame with the next."""
    stage, nothing = opened(max_unseen=max_unseen), tubes([])
    given = [stage([clip_of(tubes([LEFT]), (0, 1, 2), 2)])]
    given += [stage([clip_of(nothing, (2 * c, 2 * c + 1, 2 * c + 2), 2)]) for c in (1, 2, 3)]
    given.append(stage([clip_of(tubes([LEFT]), (8, 9, 10), 2)]))
    assert [ids(one) for one in given] == [
        [(0, [0]), (1, [0])], [(2, []), (3, [])], [(4, []), (5, [])], [(6, []), (7, [])], [(8, [again]), (9, [again])],
    ]  # fmt: skip


# ------------------------------------------------------------------------------------------ state


def test_a_snapshot_has_masks_as_bits():
    """Of a track 3 x 16 x 24 bits of mask, and 4 + 4 + 4 x 3 + 4 float32, 4 int64 and some."""
    sizes = []
    for count in (1, 201):
        stage = opened()
        stage([clip_of(tubes([LEFT] * count), (0, 1, 2), 2)])
        sizes.append(len(stage.snapshot("s")))
    a_track = (sizes[1] - sizes[0]) / 200
    assert 3 * 16 * 24 / 8 < a_track < 3 * 16 * 24 / 8 + 180


@pytest.mark.parametrize("bad, message", [
    pytest.param(clip_of(tubes([LEFT]), (4, 5, 6), 2, stream="b"), "stream 'b', frame 4: the stream is not open",
                 id="a stream that is not open"),
    pytest.param(clip_of(tubes([LEFT]), (1, 2, 3), 2), "frame 1: came after frame 1", id="a frame twice"),
    pytest.param(clip_of(tubes([LEFT], embeddings=[[1.0, 0.0]]), (4, 5, 6), 2),
                 r"tubes of \(3, 2, 4\), memory of \(3, 4, 4\) .*another network", id="another network"),
    pytest.param(clip_of(tubes([LEFT], frames=2), (4, 5), 1), r"tubes of \(2, 4, 4\), memory of \(3, 4, 4\)",
                 id="clips of another length"),
])  # fmt: skip
def test_a_refused_call_changes_nothing(bad, message):
    stage = opened()
    stage([clip_of(tubes([LEFT]), (0, 1, 2), 2)])
    state, good = stage.snapshot("s"), clip_of(tubes([RIGHT], embeddings=[OTHER]), (2, 3, 4), 2)
    for batch in ([bad], [good, bad]):
        with pytest.raises(StageError, match=message if batch == [bad] or "twice" not in message else "came after"):
            stage(batch if bad.info.index != 1 else [bad])
        assert stage.snapshot("s") == state
    assert ids(stage([good]))[0] == (2, [0, 1])
