"""An annotation file of a dataset as it stands: parsed, found its images, and nothing refused that can be looked at.

In:     the path of a JSON of YouTube-VIS 2019, 2021 or OVIS
Out:    JsonDataset: the parsed file, and its videos as far as they can be made out
State:  none
Limits: files of at most MAX_JSON_BYTES; what they hold takes some 3 to 20 times that in memory
Source: CrossVIS specification 1.2
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from operators.datasets.check_images import Size, name_fault
from operators.datasets.check_tracks import is_frame_list
from operators.datasets.faults import Place, printable, shown, shown_id
from operators.errors import DatasetError
from operators.youtube_vis_rle import MAX_PIXELS

MAX_JSON_BYTES = 2 << 30
TABLES = ("videos", "categories", "annotations")

Layout = Literal["youtube-vis", "ovis", "davis"]


@dataclass(frozen=True)
class VideoEntry:
    """A video as far as it can be made out: its id, frames and (height, width); None for what cannot."""

    index: int
    """Its place in `videos`."""
    raw: dict = field(repr=False)
    id: int | None
    names: list | None = field(repr=False)
    """What it lists as file names, whatever they are."""
    size: Size | None

    @property
    def length(self) -> int | None:
        """Frames that entries of an annotation must match; None where none are listed."""
        return len(self.names) if self.names else None

    @property
    def name(self) -> str | None:
        first = self.names[0] if self.names else None
        return (printable(PurePosixPath(first).parent.name) or None) if isinstance(first, str) else None


@dataclass(frozen=True)
class JsonDataset:
    """An annotation file as it was parsed, unchecked but for `videos` being a list; and where its images are."""

    path: Path
    raw: dict = field(repr=False)
    layout: Layout
    images: Path | None
    """None: there are none to be looked at."""

    @cached_property
    def videos(self) -> list[VideoEntry]:
        """Those entries that are objects."""
        return [_video_entry(i, raw) for i, raw in enumerate(self.raw["videos"]) if isinstance(raw, dict)]

    @cached_property
    def videos_of(self) -> dict[int, list[VideoEntry]]:
        """Id -> its videos: one, unless the id occurs more than once."""
        found: dict[int, list[VideoEntry]] = {}
        for video in self.videos:
            if video.id is not None:
                found.setdefault(video.id, []).append(video)
        return found

    @property
    def annotations(self) -> list:
        annotations = self.raw.get("annotations")
        return annotations if isinstance(annotations, list) else []

    @cached_property
    def indices_of(self) -> dict[int, list[int]]:
        """Annotation id -> its places in the file: one, unless the id occurs more than once."""
        found: dict[int, list[int]] = {}
        for index, raw in enumerate(self.annotations):
            if isinstance(raw, dict) and type(raw.get("id")) is int:
                found.setdefault(raw["id"], []).append(index)
        return found

    @cached_property
    def category_ids(self) -> set[int] | None:
        """None where the file has no list of categories."""
        categories = self.raw.get("categories")
        known = {entry["id"] for entry in objects(categories) if type(entry.get("id")) is int}
        return known if isinstance(categories, list) else None

    @property
    def num_images(self) -> int:
        return sum(len(video.names or ()) for video in self.videos)

    @property
    def summary(self) -> str:
        """What was found, in a sentence."""
        what = f"{len(self.raw['videos'])} videos of {self.num_images} frames"
        known = self.raw.get("annotations") is not None
        tracks = f"{len(self.annotations)} annotations" if known else "no annotations, as in validation and test sets"
        images = f"images in {self.images}" if self.images else "images not looked at (none found; --images)"
        return f"{self.layout}: {what}, {tracks}; {images}"


def place_of(dataset: JsonDataset, video: VideoEntry) -> Place:
    """Where a video is; its place in the file too, if its id does not tell."""
    alone = video.id is not None and len(dataset.videos_of[video.id]) == 1
    place = None if alone else f"videos[{video.index}]"
    return Place(str(dataset.path), shown_id(video.raw.get("id")), video.name, place=place)


def videos_for(dataset: JsonDataset, raw: dict) -> list[VideoEntry]:
    """The videos that an annotation may be of, those that its masks fit first; [] where no video has its id.

    More than one only where videos share their id.
    """
    video_id = raw.get("video_id")
    found = dataset.videos_of.get(video_id, []) if type(video_id) is int else []
    if len(found) < 2:
        return found
    sizes = mask_sizes(raw)
    return sorted(found, key=lambda v: (not is_frame_list(raw, "segmentations", v.length), not sizes <= {v.size}))


def mask_sizes(raw: dict) -> set[Size]:
    """The sizes of an annotation's RLE, those that are sizes."""
    entries = raw.get("segmentations")
    sizes = [entry.get("size") for entry in objects(entries)]
    return {(size[0], size[1]) for size in sizes if isinstance(size, list) and len(size) == 2 and is_size(*size)}


def is_size(height: Any, width: Any) -> bool:
    """Whether these are whole numbers from 1 up, of MAX_PIXELS at most together."""
    return type(height) is int and type(width) is int and min(height, width) >= 1 and height * width <= MAX_PIXELS


def _read(path: Path) -> dict:
    expected = "an annotation JSON with videos, categories and annotations"
    try:
        num_bytes = path.stat().st_size
        if not path.is_file() or num_bytes > MAX_JSON_BYTES:
            found = f"has {num_bytes} bytes, the limit is {MAX_JSON_BYTES}" if path.is_file() else "is no file"
            raise DatasetError(f"{path}: {found}; expected {expected}.")
        raw = json.loads(path.read_bytes())     # NaN is taken here, and told where it stands
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read ({error.strerror}); expected {expected}.") from error
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"{path}: is not valid JSON ({error}); expected {expected}. Was it cut short?") from error
    if not isinstance(raw, dict) or not isinstance(raw.get("videos"), list):
        kind = "an object without a list of videos" if isinstance(raw, dict) else shown(raw)
        hint = " Results are scored, not checked: maskstream evaluate." if isinstance(raw, list) else ""
        raise DatasetError(f"{path}: holds {kind}; expected {expected}.{hint}")
    return raw


def open_json(path: Path, layout: Layout | None, images: Path | None) -> JsonDataset:
    """Parse an annotation file and find its images. Raises DatasetError for one that cannot be read at all."""
    raw = _read(path)
    dataset = JsonDataset(path, raw, layout or _layout(raw), images)
    return dataset if images is not None else replace(dataset, images=_find_images(dataset))


def _layout(raw: dict) -> Layout:
    return "ovis" if any("occlusion" in entry for entry in objects(raw.get("annotations"))) else "youtube-vis"


def _find_images(dataset: JsonDataset) -> Path | None:
    for root in (dataset.path.parent, dataset.path.parent / "JPEGImages"):
        for video in dataset.videos:
            name = video.names[0] if video.names else None      # os.path: a name too long is no error there
            if name_fault(name) is None and os.path.isfile(root / name):
                return root
    return None


def _video_entry(index: int, raw: dict) -> VideoEntry:
    names, size = raw.get("file_names"), (raw.get("height"), raw.get("width"))
    return VideoEntry(index, raw, raw["id"] if type(raw.get("id")) is int else None,
                      names if isinstance(names, list) else None, size if is_size(*size) else None)  # fmt: skip


def objects(values: Any) -> list[dict]:
    """The entries that are objects; [] for what is no list."""
    return [value for value in values if isinstance(value, dict)] if isinstance(values, list) else []
