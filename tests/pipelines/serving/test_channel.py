"""The newest results of a stream: lines after a frame, what they add to the offline record, the picture."""

from __future__ import annotations

import io
import json
import time

import numpy as np
from PIL import Image

from operators.formats import Categories
from operators.jsonl import track_line
from operators.records import Frame, FrameInfo, FrameTracks
from pipelines.serving.channel import MAX_LINES, Channel

CATEGORIES = Categories.numbered(["circle"])


def channel(max_width: int = 1280) -> Channel:
    return Channel(CATEGORIES, min_score=0.5, max_width=max_width)


def tracks(index: int, height: int = 8, width: int = 12, scores: tuple[float, ...] = ()) -> FrameTracks:
    count = len(scores)
    boxes = np.tile(np.float32([1, 1, 3, 3]), (count, 1))
    masks = ({"size": [height, width], "counts": "P3"},) * count       # no pixel: 96 of background
    info = FrameInfo("door", index, index / 10, height, width)
    labels, numbers = np.zeros(count, np.int64), np.arange(count)
    return FrameTracks(info, numbers, labels, np.float32(scores), boxes, masks)


def frame(of: FrameTracks) -> Frame:
    return Frame(of.info, np.full((of.info.height, of.info.width, 3), 128, np.uint8))


def test_nothing() -> None:
    empty = channel()
    assert empty.lines(-1) == [] and empty.picture() is None and empty.rates() == (0.0, None, None)
    assert (empty.last_index, empty.last_at, empty.shown) == (-1, None, 0)


def test_a_line_is_the_offline_one_and_three_more_fields() -> None:
    one, result = channel(), tracks(3)
    captured_at = time.time() - 0.25
    one.give(result, captured_at, {"queue_full_oldest": 2}, None)
    ((index, line),) = one.lines(2)
    record = json.loads(line)
    assert index == 3 and one.lines(3) == []
    assert 250 <= record.pop("latency_ms") < 5000
    assert record.pop("captured_at") == round(captured_at, 6)
    assert record.pop("dropped") == {"queue_full_oldest": 2}
    assert record == json.loads(track_line(result, CATEGORIES))


def test_old_lines_go() -> None:
    one = channel()
    for index in range(MAX_LINES + 10):
        one.give(tracks(index), None, {}, None)
    assert [index for index, _ in one.lines(-1)] == list(range(10, MAX_LINES + 10))


def test_the_picture_is_the_newest_frame_and_shrunk() -> None:
    one, result = channel(max_width=6), tracks(4)
    one.give(result, None, {}, frame(result))
    picture = one.picture()
    assert picture.index == 4 and Image.open(io.BytesIO(picture.jpeg)).size == (6, 4)
    assert one.picture(after=4) is None and not one.has_picture(4)
    one.give(tracks(5), None, {}, None)         # a result whose frame is gone
    assert one.picture() is picture


def test_shown_tracks_are_those_of_a_good_score() -> None:
    one = channel()
    one.give(tracks(0, scores=(0.4, 0.5, 0.9)), None, {}, None)
    assert one.shown == 2


def test_rates_are_of_the_last_seconds() -> None:
    one, began = channel(), time.time()
    for index in range(20):
        one.give(tracks(index), time.time() - 0.1, {}, None)
    fps, p50, p95 = one.rates()
    took = time.time() - began
    assert 19.99 / max(took, 1) <= fps <= 20.0, "over one second at least: twenty at once are no two thousand a second"
    assert 100 <= p50 <= p95 <= 1000 * took + 101
