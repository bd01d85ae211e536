"""Step 1 of training, before all samplers: stills beside videos, one dataset of both.

In:     the videos' dataset, and settings of images of COCO, of Open Images or of YouTube-VIS
Out:    `Mixture`: one dataset with the videos' categories, which of its videos are stills, how often each is shown
State:  none
Limits: all annotations are in memory together
Source: TLTM specification 1.2, 1.3, 3.1: sources in one, each repeated by a factor of its own

Sets are labelled in part: what another set's classes are, is background in this one (specification 9, 12).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from operators.datasets.class_maps import map_classes
from operators.datasets.coco import read_stills
from operators.youtube_vis_data import Annotation, Category, Dataset, Video, read_dataset
from trainers.config import StillsConfig


@dataclass(frozen=True)
class Mixture:
    """Videos and stills."""

    dataset: Dataset
    """Videos keep their ids and those of their annotations; stills count on from there, each a video of one frame
    whose file is named by its whole path."""
    stills: frozenset[int]
    """Ids of videos that are stills."""
    repeats: dict[int, int]
    """Video id -> times that an epoch shows each of its frames."""


def mix(videos: Dataset, repeat: int, stills: tuple[StillsConfig, ...]) -> Mixture:
    """Join them; without stills the dataset stays what it is. Raises DatasetError for files that cannot be used, and
    for stills none of whose classes the videos have."""
    repeats = {video.id: repeat for video in videos.videos}
    if not stills:
        return Mixture(videos, frozenset(), repeats)
    video_ids = itertools.count(1 + max((video.id for video in videos.videos), default=0))
    ids = itertools.count(1 + max((annotation.id for annotation in videos.annotations), default=0))
    all_videos, all_annotations = list(videos.videos), list(videos.annotations)
    for source in stills:
        for video, objects in _stills_of(source, videos.categories, video_ids, ids):
            repeats[video.id] = source.repeat
            all_videos.append(video)
            all_annotations += objects
    dataset = replace(videos, videos=tuple(all_videos), annotations=tuple(all_annotations))
    return Mixture(dataset, frozenset(repeats) - {video.id for video in videos.videos}, repeats)


def _stills_of(
    source: StillsConfig, categories: tuple[Category, ...], video_ids: Iterator[int], ids: Iterator[int]
) -> Iterator[tuple[Video, list[Annotation]]]:
    """Each frame with an object of ours as a video by itself, and these objects; what is empty teaches nothing here."""
    root = Path(source.image_root).absolute()
    given = (read_stills if source.format == "coco" else read_dataset)(source.annotations, image_root=root)
    classes = map_classes(given.categories, categories, source.classes, source.annotations)
    for video in given.videos:
        ours = [a for a in given.annotations_of[video.id] if a.category_id in classes]
        for t in range(video.length):
            seen = [a for a in ours if a.bboxes[t] is not None]
            if not seen:
                continue
            still = Video(next(video_ids), video.width, video.height, 1, (str(root / video.file_names[t]),))
            yield still, [
                Annotation(next(ids), still.id, classes[a.category_id], a.iscrowd, a.segmentations[t : t + 1],
                           a.bboxes[t : t + 1], a.areas[t : t + 1]) for a in seen
            ]  # fmt: skip
