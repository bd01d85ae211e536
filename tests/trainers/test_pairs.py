"""Which pairs are seen: usable frames, identities, the reach of T, shards and restarts, on datasets drawn as strings.

Source of what is expected: CrossVIS specification 1.3 to 1.5.
"""

from __future__ import annotations

import json
from collections import Counter
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from operators.errors import DatasetError
from operators.youtube_vis_data import Dataset, read_dataset
from trainers.frames import FrameIndex
from trainers.pairs import PairSampler


def dataset(folder: Path, *videos: dict[int, str], crowd: tuple[int, ...] = ()) -> Dataset:
    """One dictionary a video: annotation id -> a letter a frame, '#' where the object is, '.' where it is not.

    Box of annotation a in frame t: [a, t, 10, 20]. Videos have the ids 1, 2, ...
    """
    content = {"videos": [], "categories": [{"id": 4, "name": "cat"}, {"id": 9, "name": "dog"}], "annotations": []}
    for number, tracks in enumerate(videos, start=1):
        length = max((len(track) for track in tracks.values()), default=3)
        content["videos"].append({
            "id": number, "width": 64, "height": 48, "length": length,
            "file_names": [f"v{number}/{t:05d}.jpg" for t in range(length)]})
        for id, track in tracks.items():
            seen = [c == "#" for c in track]
            content["annotations"].append({
                "id": id, "video_id": number, "category_id": 4 + 5 * (id % 2), "iscrowd": int(id in crowd),
                "segmentations": [{"size": [48, 64], "counts": [10, 20, 48 * 64 - 30]} if s else None for s in seen],
                "bboxes": [[id, t, 10, 20] if s else None for t, s in enumerate(seen)],
                "areas": [20 if s else None for s in seen]})
    path = folder / "instances.json"
    path.write_text(json.dumps(content))
    return read_dataset(path)


def sampler(index: FrameIndex, **changes) -> PairSampler:
    return PairSampler(index, **{"max_interval": 20, "flip": 0.5, "seed": 0, **changes})


def keys(draws) -> list[tuple[int, int]]:
    """(video id, key frame) of each draw."""
    return [(d.frames[0].video.id, d.frames[0].frame) for d in draws]


def told(draws) -> list[tuple]:
    """Everything a draw decides."""
    return [(d.frames[0].video.id, d.frames[0].frame, d.frames[1].frame, d.flip) for d in draws]


# -------------------------------------------------------------------------------------------------------- usable frames


@pytest.mark.parametrize("videos, crowd, usable", [
    pytest.param([{1: "###"}], (), {(1, 0): [1], (1, 1): [1], (1, 2): [1]}, id="all"),
    pytest.param([{1: "#.#"}], (), {(1, 0): [1], (1, 2): [1]}, id="a frame without a box is left out"),
    pytest.param([{1: "##.", 2: ".#."}], (), {(1, 0): [1], (1, 1): [1, 2]}, id="only those present belong to a frame"),
    pytest.param([{1: "###", 2: "##."}], (1,), {(1, 0): [2], (1, 1): [2]}, id="crowds are left out, and make no frame"),
    pytest.param([{}, {5: "#"}], (), {(2, 0): [5]}, id="a video without annotations"),
    pytest.param([{1: "...", 2: ".#."}, {3: "#."}], (), {(1, 1): [2], (2, 0): [3]}, id="a track seen nowhere"),
])
def test_usable_frames(tmp_path, videos, crowd, usable):
    index = FrameIndex(dataset(tmp_path, *videos, crowd=crowd))
    found = {(f.video.id, f.frame): [a.id for a in f.annotations] for frames in index.videos for f in frames}
    assert found == usable
    assert len(index) == len(usable)


@pytest.mark.parametrize("videos, crowd", [
    pytest.param([{}], (), id="no annotation"), pytest.param([{1: "..."}], (), id="seen nowhere"),
    pytest.param([{1: "##"}, {2: "#"}], (1, 2), id="crowds alone"),
])
def test_a_dataset_without_a_usable_frame_is_refused(tmp_path, videos, crowd):
    with pytest.raises(DatasetError, match="no frame with an annotation"):
        FrameIndex(dataset(tmp_path, *videos, crowd=crowd))


def test_a_file_without_annotations_is_refused(tmp_path):
    path = tmp_path / "val.json"
    path.write_text(json.dumps({
        "videos": [{"id": 1, "width": 4, "height": 4, "length": 1, "file_names": ["a/0.jpg"]}],
        "categories": [{"id": 1, "name": "cat"}], "annotations": None}))
    with pytest.raises(DatasetError, match="no frame with an annotation"):
        FrameIndex(read_dataset(path))


def test_boxes_are_the_annotated_ones_as_corners(tmp_path):
    index = FrameIndex(dataset(tmp_path, {3: "##", 7: ".#"}))
    first, second = index.videos[0]
    assert first.boxes().tolist() == [[3, 0, 13, 20]]
    assert second.boxes().tolist() == [[3, 1, 13, 21], [7, 1, 17, 21]] and second.boxes().dtype == np.float32
    assert second.file_name == "v1/00001.jpg"


def test_identities_are_ranks_of_all_annotation_ids(tmp_path):
    """Also of crowds and of tracks that no usable frame shows: the label space is the file's, not the sampler's."""
    index = FrameIndex(dataset(tmp_path, {70: "##", 5: ".."}, {33: "#", 6: "#"}, crowd=(6,)))
    assert index.identity == {5: 0, 6: 1, 33: 2, 70: 3}


# -------------------------------------------------------------------------------------------------------- the reference


def references(index: FrameIndex, interval: int | None, epochs: int = 60) -> dict[int, Counter]:
    """Of a dataset of one video: key frame -> how often each frame was its reference."""
    found: dict[int, Counter] = {}
    for draw in islice(sampler(index, max_interval=interval).draws(0), epochs * len(index)):
        assert draw.frames[0].video is draw.frames[1].video
        found.setdefault(draw.frames[0].frame, Counter())[draw.frames[1].frame] += 1
    return found


@pytest.mark.parametrize("track, interval, reach", [
    pytest.param("#####", 1, {0: {1}, 1: {0, 2}, 2: {1, 3}, 3: {2, 4}, 4: {3}}, id="T = 1"),
    pytest.param("#####", 2, {0: {1, 2}, 1: {0, 2, 3}, 2: {0, 1, 3, 4}, 3: {1, 2, 4}, 4: {2, 3}}, id="T = 2"),
    pytest.param("#####", None, {t: {0, 1, 2, 3, 4} - {t} for t in range(5)}, id="no T: any other"),
    pytest.param("#####", 20, {t: {0, 1, 2, 3, 4} - {t} for t in range(5)}, id="T beyond the video"),
    pytest.param("#..#.#", 2, {0: {0}, 3: {5}, 5: {3}}, id="T counts stored frames; none near enough: with itself"),
    pytest.param("#..#.#", 3, {0: {3}, 3: {0, 5}, 5: {3}}, id="both ends of T count"),
    pytest.param("#..#.#", None, {0: {3, 5}, 3: {0, 5}, 5: {0, 3}}, id="no T: any other usable frame"),
    pytest.param("..#..", 20, {2: {2}}, id="a single usable frame: with itself"),
    pytest.param("..#..", None, {2: {2}}, id="a single usable frame, no T"),
    pytest.param("###", 0, {0: {0}, 1: {1}, 2: {2}}, id="T = 0: always with itself"),
])
def test_the_reference_lies_within_reach_and_every_one_occurs(tmp_path, track, interval, reach):
    found = references(FrameIndex(dataset(tmp_path, {1: track})), interval)
    assert {t: set(counts) for t, counts in found.items()} == reach


def test_the_reference_is_drawn_uniformly(tmp_path):
    found = references(FrameIndex(dataset(tmp_path, {1: "#######"})), 2, epochs=2000)
    for t, near in {0: (1, 2), 3: (1, 2, 4, 5), 6: (4, 5)}.items():
        for other in near:                                              # 5 standard deviations of 2000 draws
            share, expected = found[t][other] / 2000, 1 / len(near)
            assert abs(share - expected) < 5 * (expected * (1 - expected) / 2000) ** 0.5, (t, other)


def test_the_reference_never_leaves_the_video(tmp_path):
    index = FrameIndex(dataset(tmp_path, {1: "##"}, {2: "###"}, {3: "#"}))
    for draw in islice(sampler(index, max_interval=None).draws(0), 200):
        assert draw.frames[0].video is draw.frames[1].video


@pytest.mark.parametrize("flip, low, high", [pytest.param(0.0, 0, 0, id="never"), pytest.param(1.0, 1, 1, id="always"),
                                              pytest.param(0.25, 0.19, 0.31, id="one in four")])
def test_mirroring_has_its_probability(tmp_path, flip, low, high):
    index = FrameIndex(dataset(tmp_path, {1: "#####"}))
    flips = [draw.flip for draw in islice(sampler(index, flip=flip).draws(0), 1500)]
    assert all(type(one) is bool for one in flips)
    assert low <= sum(flips) / len(flips) <= high


# ---------------------------------------------------------------------------------------------------- epochs and shards

THREE = ({1: "#####"}, {2: "#.#"}, {3: "####"})
"""11 usable frames: a number that no count of workers divides."""


def test_an_epoch_shows_every_usable_frame_once_and_the_next_in_another_order(tmp_path):
    index = FrameIndex(dataset(tmp_path, *THREE))
    everything = {(f.video.id, f.frame) for frames in index.videos for f in frames}
    epochs = [keys(islice(sampler(index).draws(epoch * 11), 11)) for epoch in range(4)]
    assert all(len(epoch) == 11 and set(epoch) == everything for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4
    assert keys(islice(sampler(index).draws(0), 44)) == sum(epochs, [])


@pytest.mark.parametrize("world", [1, 2, 3, 4, 11, 16])
def test_shards_together_cover_every_epoch_without_overlap(tmp_path, world):
    """Turn by turn the workers give exactly the sequence of one worker, over four epochs and their borders."""
    index = FrameIndex(dataset(tmp_path, *THREE))
    one = told(islice(sampler(index).draws(0), 44))
    workers = [sampler(index, rank=rank, world_size=world).draws(0) for rank in range(world)]
    together = [told([next(workers[i % world])])[0] for i in range(44)]
    assert [t[:2] for t in together] == [t[:2] for t in one]
    assert together == one, "references and mirroring follow the sample, not the worker"


@pytest.mark.parametrize("world, rank", [(1, 0), (2, 1), (3, 0), (16, 5)])
def test_a_restart_at_any_position_goes_on_with_the_same_samples(tmp_path, world, rank):
    index = FrameIndex(dataset(tmp_path, *THREE))
    whole = told(islice(sampler(index, rank=rank, world_size=world).draws(0), 40))
    for position in (0, 1, 5, 10, 11, 12, 21, 22, 39):
        rest = sampler(index, rank=rank, world_size=world).draws(position)
        assert told(islice(rest, 40 - position)) == whole[position:], position


def test_the_seed_alone_decides(tmp_path):
    index = FrameIndex(dataset(tmp_path, *THREE))
    first, again, other = (told(islice(sampler(index, seed=seed).draws(0), 33)) for seed in (7, 7, 8))
    assert first == again != other


def test_long_videos_weigh_more(tmp_path):
    """An epoch goes over frames, not videos."""
    index = FrameIndex(dataset(tmp_path, *THREE))
    assert Counter(video for video, _ in keys(islice(sampler(index).draws(0), 11 * 3))) == {1: 15, 2: 6, 3: 12}
