"""What the evaluation of tracks reads: results of either form, brought to one list of tracks a video.

In:     a Dataset; results.json of one or all videos, or the folder of a run with NAME/tracks.jsonl for each video
Out:    the tracks of a video, on request
State:  none; of a folder one video is in memory at a time
Limits: those of youtube_vis_results.py and jsonl.py

Of a tracks.jsonl a track's category is that of its first record, its score the mean over them, as in results.json.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

from operators.datasets.truth import unique_names
from operators.errors import DatasetError
from operators.youtube_vis_data import Dataset, Video
from operators.youtube_vis_results import Result, parse_results, read_results

TracksOf = Callable[[Video], list[Result]]


def open_results(path: Path | str, dataset: Dataset) -> TracksOf:
    """A function that gives the tracks of a video, [] where it has none.

    Raises DatasetError for results that cannot be read, or are of videos that the dataset does not have; a folder
    must have the tracks.jsonl of every video. What is inside these is read, and refused, on request.
    """
    path = Path(path)
    if path.is_dir():
        return _open_folder(path, dataset)
    try:
        return group_results(read_results(path), dataset)
    except DatasetError as error:
        message = str(error)
        raise DatasetError(message if message.startswith(str(path)) else f"{path}: {message}") from None


def group_results(results: list[dict], dataset: Dataset) -> TracksOf:
    """The same for a list of results. Raises DatasetError naming the result."""
    found: dict[int, list[Result]] = defaultdict(list)
    for result in parse_results(results):
        if result.video_id not in dataset.video_of:
            raise DatasetError(f"{result.where}: {dataset.path} has no video {result.video_id}. Another split's?")
        found[result.video_id].append(result)
    return lambda video: found.get(video.id, [])


def _open_folder(folder: Path, dataset: Dataset) -> TracksOf:
    names = unique_names([video.name for video in dataset.videos])        # as a run over the dataset names its streams
    paths = {video.id: folder / name / "tracks.jsonl" for video, name in zip(dataset.videos, names, strict=True)}
    missing = [video_id for video_id, path in paths.items() if not path.is_file()]
    if missing:
        raise DatasetError(f"{paths[missing[0]]}: there is no such file; {len(missing)} of {len(paths)} videos have no "
                           f"tracks. Expected what `maskstream run` over {dataset.path} saves.")  # fmt: skip
    return lambda video: _read_tracks(paths[video.id], video, dataset)


def _read_tracks(path: Path, video: Video, dataset: Dataset) -> list[Result]:
    from operators.formats import Categories, VideoTracks  # loads torch, which results.json does without
    from operators.jsonl import read_jsonl
    from operators.records import FrameFault

    names, ids = [c.name for c in dataset.categories], [c.id for c in dataset.categories]
    categories, tracks = Categories(tuple(names), tuple(ids)), VideoTracks()
    for record in read_jsonl(path, categories):
        if record.info.index >= video.length:
            raise DatasetError(f"{path}: has frame {record.info.index}, but video {video.id} of {dataset.path} has "
                               f"{video.length} frames. Are they of another video?")  # fmt: skip
        if not isinstance(record, FrameFault):
            tracks.add(record)
    return parse_results(tracks.results(video.id, categories, video.length))
