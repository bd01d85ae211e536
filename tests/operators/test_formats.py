"""Result files: entries worked by hand, aggregation told frame by frame, label maps."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from operators.errors import DatasetError
from operators.formats import Categories, VideoTracks, davis_palette, label_map, merge_results, write_results
from operators.records import ClipPlace, FrameInfo, FrameTracks
from operators.replacing import replacing
from tests.operators.small_results import CATEGORIES, EMPTY, FULL, LEFT, tracks_of


def test_categories_are_numbered_from_one():
    assert Categories.numbered(["dog", "cat"]) == Categories(("dog", "cat"), (1, 2))
    assert len(Categories.numbered([])) == 0


@pytest.mark.parametrize("ids", [(1,), (1, 1)], ids=["one id too few", "an id twice"])
def test_categories_refuse(ids):
    with pytest.raises(ValueError, match="one id a name"):
        Categories(("dog", "cat"), ids)


def test_clips_count_once_in_a_videos_tracks():
    """Two clips, of two frames and of one: (0.8 + 0.2) / 2, and a class that each clip has one vote for."""
    video = VideoTracks()
    for index, (number, label, score) in enumerate([(0, 1, 0.8), (1, 1, 0.8), (0, 0, 0.2)]):
        video.add(replace(tracks_of(index, (5, label, score, FULL)), clip=ClipPlace(number, 0)))
    (entry,) = video.results(1, CATEGORIES, category="majority")
    assert entry["score"] == pytest.approx(0.5) and entry["category_id"] == 4, "4 is the lower of two ids"
    assert entry["segmentations"] == [FULL] * 3


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
