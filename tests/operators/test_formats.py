"""Result files: lines and entries worked by hand, aggregation told frame by frame, damage named."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco

from operators.errors import DatasetError
from operators.formats import (
    Categories,
    VideoTracks,
    davis_palette,
    fault_line,
    label_map,
    merge_results,
    read_jsonl,
    replacing,
    track_line,
    write_results,
)
from operators.records import ClipPlace, FrameFault, FrameInfo, FrameTracks

CATEGORIES = Categories(("dog", "cat"), (4, 9))


def rle(*rows: str) -> dict:
    """A mask drawn by hand, '#' where it is, as a record holds it."""
    drawn = np.array([[c == "#" for c in row] for row in rows], np.uint8)
    encoded = coco.encode(np.asfortranarray(drawn))
    return {"size": encoded["size"], "counts": encoded["counts"].decode("ascii")}


def tracks_of(index: int, *found: tuple, height: int = 2, width: int = 3) -> FrameTracks:
    """A frame out of (track id, label, score, mask) tuples."""
    ids, labels, scores, masks = zip(*found, strict=True) if found else ((), (), (), ())
    return FrameTracks(
        info=FrameInfo("a", index, index / 8, height, width),
        track_ids=np.array(ids, np.int64),
        labels=np.array(labels, np.int64),
        scores=np.array(scores, np.float32),
        boxes=np.array([[0, 0, 1, 1]] * len(found), np.float32).reshape(-1, 4),
        masks=tuple(masks),
    )


FULL, EMPTY, LEFT = rle("###", "###"), rle("...", "..."), rle("#..", "#..")


def test_categories_are_numbered_from_one():
    assert Categories.numbered(["dog", "cat"]) == Categories(("dog", "cat"), (1, 2))
    assert len(Categories.numbered([])) == 0


@pytest.mark.parametrize("ids", [(1,), (1, 1)], ids=["one id too few", "an id twice"])
def test_categories_refuse(ids):
    with pytest.raises(ValueError, match="one id a name"):
        Categories(("dog", "cat"), ids)


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


def test_clips_count_once_in_a_videos_tracks():
    """Two clips, of two frames and of one: (0.8 + 0.2) / 2, and a class that each clip has one vote for."""
    video = VideoTracks()
    for index, (number, label, score) in enumerate([(0, 1, 0.8), (1, 1, 0.8), (0, 0, 0.2)]):
        video.add(replace(tracks_of(index, (5, label, score, FULL)), clip=ClipPlace(number, 0)))
    (entry,) = video.results(1, CATEGORIES, category="majority")
    assert entry["score"] == pytest.approx(0.5) and entry["category_id"] == 4, "4 is the lower of two ids"
    assert entry["segmentations"] == [FULL] * 3


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


def test_an_empty_file_has_no_records(tmp_path):
    (tmp_path / "tracks.jsonl").touch()
    assert list(read_jsonl(tmp_path / "tracks.jsonl")) == []


GOOD = track_line(tracks_of(0, (0, 0, 0.5, FULL)), CATEGORIES)
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


def test_no_track_gives_no_entry():
    video = VideoTracks()
    video.add(tracks_of(0))
    assert (video.results(1, CATEGORIES), video.num_frames, len(video)) == ([], 1, 0)


def test_a_video_aggregated_by_hand():
    video = VideoTracks()
    video.add(tracks_of(0, (5, 1, 0.75, FULL)))
    video.skip(FrameInfo("a", 1, 0.125, 0, 0))  # could not be decoded
    video.add(tracks_of(2, (2, 0, 0.5, LEFT), (5, 0, 0.25, EMPTY)))
    video.add(tracks_of(3, (5, 0, 0.5, LEFT)))
    assert video.results(7, CATEGORIES, num_frames=5) == [
        # 0.75, 0.25 and 0.5 over its three records, not over the five frames; the class is that of frame 0
        {"video_id": 7, "category_id": 9, "score": 0.5, "segmentations": [FULL, None, EMPTY, LEFT, None]},
        {"video_id": 7, "category_id": 4, "score": 0.5, "segmentations": [None, None, LEFT, None, None]},
    ]
    assert [entry["category_id"] for entry in video.results(7, CATEGORIES, category="majority")] == [4, 4]
    assert [len(entry["segmentations"]) for entry in video.results(7, CATEGORIES)] == [4, 4]


def test_of_equal_votes_the_lowest_id_wins():
    video = VideoTracks()
    for index, label in enumerate((1, 0, 0, 1)):
        video.add(tracks_of(index, (0, label, 0.5, FULL)))
    swapped = Categories(("cat", "dog"), (9, 4))
    assert video.results(1, CATEGORIES, category="majority")[0]["category_id"] == 4
    assert video.results(1, swapped, category="majority")[0]["category_id"] == 4


def test_results_of_several_videos_are_joined(tmp_path):
    entry = {"video_id": 1, "category_id": 4, "score": 0.5, "segmentations": [FULL, None]}
    write_results(tmp_path / "a.json", [entry, entry | {"score": 0.25}])
    write_results(tmp_path / "b.json", [])
    write_results(tmp_path / "c.json", [entry | {"video_id": 2}])
    paths = [tmp_path / name for name in ("a.json", "b.json", "c.json")]
    assert merge_results(paths, tmp_path / "all.json") == 3
    merged = json.loads((tmp_path / "all.json").read_text())
    assert merged == [entry, entry | {"score": 0.25}, entry | {"video_id": 2}]
    assert json.loads((tmp_path / "b.json").read_text()) == []
    assert merge_results([], tmp_path / "all.json") == 0
    assert json.loads((tmp_path / "all.json").read_text()) == []


@pytest.mark.parametrize(
    "content, says",
    [("", "JSON"), ("{}", "expected a list of results"), ('[{"score": 1}]', "video_id")],
    ids=["empty", "no list", "keys missing"],
)
def test_joining_refuses_other_files_and_keeps_the_old(tmp_path, content, says):
    (tmp_path / "a.json").write_text(content)
    (tmp_path / "all.json").write_text("old")
    with pytest.raises(DatasetError, match=rf"a\.json.*{says}"):
        merge_results([tmp_path / "a.json"], tmp_path / "all.json")
    assert (tmp_path / "all.json").read_text() == "old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.json", "all.json"]


def test_an_interrupted_write_leaves_the_old_file_alone(tmp_path):
    path = tmp_path / "x.json"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), replacing(path) as part:
        part.write_text("half")
        raise KeyboardInterrupt
    assert (path.read_text(), [p.name for p in tmp_path.iterdir()]) == ("old", ["x.json"])


def test_the_palette_of_davis():
    palette = davis_palette()
    assert (palette.shape, palette.dtype) == ((256, 3), np.uint8)
    first = [(0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0), (0, 0, 128), (128, 0, 128), (0, 128, 128)]
    assert [tuple(color) for color in palette[:7].tolist()] == first
    assert palette[8].tolist() == [64, 0, 0]
    assert palette[255].tolist() == [224, 224, 192]
    assert len({tuple(color) for color in palette.tolist()}) == 256


@pytest.mark.parametrize(
    "found, expected, left_out",
    [
        pytest.param([], [[0, 0, 0], [0, 0, 0]], [], id="no tracks"),
        pytest.param([(0, 0, 0.9, EMPTY)], [[0, 0, 0], [0, 0, 0]], [], id="a mask without pixels"),
        pytest.param([(6, 0, 0.9, LEFT)], [[7, 0, 0], [7, 0, 0]], [], id="value is the track id plus one"),
        pytest.param([(0, 0, 0.9, LEFT), (1, 0, 0.8, FULL)], [[1, 2, 2], [1, 2, 2]], [], id="the best is on top"),
        pytest.param([(1, 0, 0.8, FULL), (0, 0, 0.9, LEFT)], [[1, 2, 2], [1, 2, 2]], [], id="whatever the order"),
        pytest.param([(0, 0, 0.8, LEFT), (1, 0, 0.8, FULL)], [[1, 2, 2], [1, 2, 2]], [], id="of equals the first"),
        pytest.param([(0, 0, 0.4, FULL), (1, 0, 0.5, LEFT)], [[2, 0, 0], [2, 0, 0]], [], id="weak ones are left out"),
        pytest.param([(253, 0, 0.9, LEFT)], [[254, 0, 0], [254, 0, 0]], [], id="the last id that fits"),
        pytest.param([(254, 0, 0.9, LEFT), (999, 0, 0.1, LEFT)], [[0, 0, 0], [0, 0, 0]], [254], id="255 is void"),
    ],
)
def test_label_map(found, expected, left_out):
    labels, dropped = label_map(tracks_of(0, *found), min_score=0.5)
    assert labels.dtype == np.uint8
    assert (labels.tolist(), dropped) == (expected, left_out)


# ------------------------------------------------------------------------------------- pairs of track and class, ranked


def vectors_of(index: int, *found: tuple, unshown: list[float] | None = None) -> FrameTracks:
    """A frame out of (track id, class vector, mask) tuples, and the class vector of an instance that is not shown."""
    record = tracks_of(index, *[(id_, int(np.argmax(vector)), max(vector), mask) for id_, vector, mask in found])
    vectors = np.array([vector for _, vector, _ in found], np.float32).reshape(-1, 2)
    return replace(record, class_scores=vectors, unshown_scores=unshown and np.array(unshown, np.float32))


def ranked(video: VideoTracks, **limits) -> list[tuple]:
    entries = video.results(7, CATEGORIES, 10, "ranked", **limits)
    return [(one["category_id"], round(one["score"], 6), one["segmentations"]) for one in entries]


def test_an_object_in_three_of_ten_frames_scores_three_tenths():
    """IAI specification, acceptance check 12; null before it came, an empty mask where it is gone."""
    video = VideoTracks()
    for index in range(10):
        video.add(vectors_of(index, *[(4, [0.5, 0.01], FULL)] * (index in (2, 3, 7))))
    masks = [None, None, FULL, FULL, EMPTY, EMPTY, EMPTY, FULL, EMPTY, EMPTY]
    assert ranked(video) == [(4, 0.15, masks)]


def test_of_all_pairs_of_track_and_class_the_best_stay():
    video = VideoTracks()
    for index in range(10):
        video.add(vectors_of(index, (0, [0.75, 0.25], FULL), (1, [0.125, 0.5], LEFT)))
    full, left = [FULL] * 10, [LEFT] * 10
    assert ranked(video) == [(4, 0.75, full), (9, 0.5, left), (9, 0.25, full), (4, 0.125, left)]
    assert ranked(video, most=3) == [(4, 0.75, full), (9, 0.5, left), (9, 0.25, full)]
    assert ranked(video, above=0.25) == [(4, 0.75, full), (9, 0.5, left)], "the limit itself is out"


def test_what_is_not_shown_takes_places():
    video = VideoTracks()
    for index in range(10):
        video.add(vectors_of(index, (0, [0.5, 0.0], FULL), unshown=[0.0, 0.75] if index < 8 else None))
    assert ranked(video) == [(9, 0.6, [None] * 10), (4, 0.5, [FULL] * 10)]
    assert ranked(video, most=1) == [(9, 0.6, [None] * 10)] and len(video) == 1


@pytest.mark.parametrize("frames", [0, 3], ids=["no frame", "frames without tracks"])
def test_nothing_ranked(frames):
    video = VideoTracks()
    for index in range(frames):
        video.add(vectors_of(index))
    assert ranked(video) == []


def test_tracks_without_class_vectors_cannot_be_ranked():
    video = VideoTracks()
    video.add(tracks_of(0, (0, 1, 0.5, FULL)))
    with pytest.raises(ValueError, match="without class vectors"):
        ranked(video)
