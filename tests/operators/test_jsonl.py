"""Lines of tracks.jsonl: worked by hand, read back as they were written, and damaged ones named with their line."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from operators.errors import DatasetError
from operators.formats import VideoTracks
from operators.jsonl import fault_line, read_jsonl, track_line
from operators.records import ClipPlace, FrameFault, FrameInfo, FrameTracks
from tests.operators.small_results import CATEGORIES, EMPTY, FULL, LEFT, rle, tracks_of


def test_a_frame_without_instances_is_a_line():
    assert track_line(tracks_of(2), CATEGORIES) == (
        '{"stream":"a","frame":2,"time_s":0.25,"width":3,"height":2,"instances":[]}\n'
    )


def test_a_line_worked_by_hand():
    # column-major runs of the mask below: 2 background, 3 object, 1 background -> "2", "3", "1" as characters 48 + n
    mask = rle(".##", ".#.")
    tracks = FrameTracks(
        info=FrameInfo("gate", 7, 1 / 3, 2, 3),
        track_ids=np.array([12]),
        labels=np.array([1]),
        scores=np.array([0.87654321], np.float32),
        boxes=np.array([[1, 0.004, 2.996, 2]], np.float32),
        masks=(mask,),
    )
    assert track_line(tracks, CATEGORIES) == (
        '{"stream":"gate","frame":7,"time_s":0.333333,"width":3,"height":2,"instances":[{"track_id":12,'
        '"category":"cat","category_id":9,"score":0.8765,"box":[1.0,0.0,3.0,2.0],'
        '"segmentation":{"size":[2,3],"counts":"231"}}]}\n'
    )


def test_a_frame_of_a_clip_says_how_late_it_is():
    frame = replace(tracks_of(3), clip=ClipPlace(number=1, delay=2))
    line = json.loads(track_line(frame, CATEGORIES))
    assert (line["delay_frames"], line["clip_frame"]) == (2, 1)
    assert not {"delay_frames", "clip_frame"} & set(json.loads(track_line(tracks_of(3), CATEGORIES)))


def test_what_a_clip_said_counts_once_after_reading_too(tmp_path):
    """Results of tracks that are read back are those of the run; the frame without instances and the last clip, filled
    up, have their places too."""
    path, places = tmp_path / "tracks.jsonl", [ClipPlace(0, 2), ClipPlace(1, 1), ClipPlace(0, 2), ClipPlace(0, 0)]
    found = [[(5, 1, 0.8, FULL)], [(5, 1, 0.8, LEFT)], [(5, 0, 0.2, FULL)], []]
    written = [replace(tracks_of(i, *found[i]), clip=places[i]) for i in range(4)]
    path.write_text("".join(track_line(one, CATEGORIES) for one in written), encoding="ascii")
    records = list(read_jsonl(path, CATEGORIES))
    assert [record.clip for record in records] == places
    results = []
    for frames in (written, records):
        video = VideoTracks()
        for one in frames:
            video.add(one)
        (entry,) = video.results(1, CATEGORIES, category="majority")
        results.append((round(entry.pop("score"), 4), entry))
    assert results[0] == results[1] and results[0][0] == 0.5


def test_a_line_may_say_its_delay_alone(tmp_path):
    path = tmp_path / "tracks.jsonl"
    line = track_line(replace(tracks_of(0), clip=ClipPlace(1, 2)), CATEGORIES)
    path.write_text(line.replace(',"clip_frame":1', "") + track_line(tracks_of(1), CATEGORIES), encoding="ascii")
    assert [record.clip for record in read_jsonl(path, CATEGORIES)] == [ClipPlace(0, 2), None]


def test_a_fault_is_a_line_that_says_why():
    line = fault_line(FrameFault(FrameInfo("a", 5, 0.625, 2, 3), 'no "bytes"'))
    assert json.loads(line) == {
        "stream": "a", "frame": 5, "time_s": 0.625, "width": 3, "height": 2, "instances": [], "error": 'no "bytes"',
    }  # fmt: skip
    assert line.count("\n") == 1


def test_a_name_that_is_not_utf8_survives(tmp_path):
    path = tmp_path / "tracks.jsonl"
    tracks = tracks_of(0)
    named = FrameTracks(FrameInfo("bad\udcff\nname", 0, 0.0, 2, 3), *list(vars(tracks).values())[1:])
    path.write_text(track_line(named, CATEGORIES), encoding="ascii")
    assert [record.info for record in read_jsonl(path)] == [named.info]


def test_what_is_written_is_read_back(tmp_path):
    path = tmp_path / "tracks.jsonl"
    first = tracks_of(0, (3, 1, 0.5, FULL), (0, 0, 0.25, EMPTY))
    fault = FrameFault(FrameInfo("a", 1, 0.125, 0, 0), "no bytes")
    last = tracks_of(2)
    path.write_text(track_line(first, CATEGORIES) + fault_line(fault) + track_line(last, CATEGORIES), encoding="ascii")
    records = list(read_jsonl(path, CATEGORIES))
    assert records[1] == fault
    for record, written in ((records[0], first), (records[2], last)):
        assert (record.info, record.masks) == (written.info, written.masks)
        for field in ("track_ids", "labels", "scores", "boxes"):
            got, expected = getattr(record, field), getattr(written, field)
            assert got.dtype == expected.dtype and got.shape == expected.shape and np.array_equal(got, expected)


def test_without_categories_a_label_is_the_id_less_one(tmp_path):
    path = tmp_path / "tracks.jsonl"
    path.write_text(track_line(tracks_of(0, (0, 1, 0.5, FULL)), CATEGORIES), encoding="ascii")
    assert [record.labels.tolist() for record in read_jsonl(path)] == [[8]]


def test_without_categories_ids_count_from_one(tmp_path):
    path = tmp_path / "tracks.jsonl"
    path.write_text(GOOD.replace('"category_id":4', '"category_id":0'), encoding="ascii")
    with pytest.raises(DatasetError, match="category id is below 1"):
        list(read_jsonl(path))


def test_an_empty_file_has_no_records(tmp_path):
    (tmp_path / "tracks.jsonl").touch()
    assert list(read_jsonl(tmp_path / "tracks.jsonl")) == []


GOOD = track_line(tracks_of(0, (0, 0, 0.5, FULL)), CATEGORIES)
TWO = track_line(tracks_of(0, (0, 0, 0.5, LEFT), (1, 0, 0.5, EMPTY)), CATEGORIES)
LATE = track_line(replace(tracks_of(0, (0, 0, 0.5, FULL)), clip=ClipPlace(1, 2)), CATEGORIES)


@pytest.mark.parametrize(
    "damaged, says",
    [
        pytest.param(GOOD[:-1], "has no end", id="cut before the newline"),
        pytest.param(GOOD[:40] + "\n", "Expected a line of tracks.jsonl", id="cut within"),
        pytest.param("[]\n", "Expected a line of tracks.jsonl", id="a list"),
        pytest.param('"stream"\n', "Expected a line of tracks.jsonl", id="a text"),
        pytest.param("[" * 100_000 + "\n", "Expected a line of tracks.jsonl", id="nested too deep"),
        pytest.param(GOOD.replace('"frame":0,', ""), "no 'frame'", id="a key is missing"),
        pytest.param(GOOD.replace('"frame":0', '"frame":-1'), "frame -1", id="a negative frame"),
        pytest.param(GOOD.replace('"time_s":0.0', '"time_s":NaN'), "nan s", id="a time that is no number"),
        pytest.param(GOOD.replace('"width":3', '"width":99999'), "99999 x 2", id="a huge frame"),
        pytest.param(GOOD.replace('"width":3', '"width":4'), "2 x 4", id="a mask of another size"),
        pytest.param(GOOD.replace("[0.0,0.0,", "[0.0,"), "Expected a line", id="a box of three numbers"),
        pytest.param(GOOD.replace('"score":0.5', '"score":NaN'), "no number", id="a score that is none"),
        pytest.param(GOOD.replace('"category_id":4', '"category_id":5'), "no 5", id="a category of another network"),
        pytest.param(TWO.replace('"track_id":1', '"track_id":0'), "stands here twice", id="a track twice"),
        pytest.param(LATE.replace('"delay_frames":2', '"delay_frames":-1'), "delay_frames is -1", id="ahead of itself"),
        pytest.param(LATE.replace('"delay_frames":2', '"delay_frames":2.0'), "delay_frames is 2.0", id="half frames"),
        pytest.param(LATE.replace('"delay_frames":2', '"delay_frames":true'), "delay_frames is True", id="a truth"),
        pytest.param(LATE.replace('"delay_frames":2', '"delay_frames":[]'), "delay_frames is []", id="a list"),
        pytest.param(LATE.replace('"clip_frame":1', f'"clip_frame":{10**30}'), "clip_frame is 1000", id="no clip"),
        pytest.param(GOOD.replace('"counts":"', '"counts":"1'), "RLE", id="a run too many"),
        pytest.param(GOOD.replace(FULL["counts"], "P"), "RLE", id="counts end within a number"),
    ],
)
def test_damage_is_named_with_its_line(tmp_path, damaged, says):
    path = tmp_path / "tracks.jsonl"
    path.write_text(GOOD + damaged, encoding="ascii")
    with pytest.raises(DatasetError, match=r"tracks\.jsonl, line 2[:,] ") as caught:
        list(read_jsonl(path, CATEGORIES))
    assert says in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DatasetError, match=r"none\.jsonl: cannot be read: No such file"):
        list(read_jsonl(tmp_path / "none.jsonl"))


@settings(max_examples=100, deadline=None)
@given(where=st.integers(0, len(GOOD) - 2), byte=st.integers(0, 255))
def test_any_one_wrong_byte_is_read_or_named(tmp_path_factory, where, byte):
    path = tmp_path_factory.getbasetemp() / "one_byte.jsonl"
    path.write_bytes(GOOD[:where].encode() + bytes([byte]) + GOOD[where + 1 :].encode())
    try:
        for record in read_jsonl(path, CATEGORIES):
            assert isinstance(record, (FrameTracks, FrameFault))
    except DatasetError as error:
        assert "line " in str(error)
