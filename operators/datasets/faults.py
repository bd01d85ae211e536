"""What is wrong with a dataset, one record a fault; and what was done about it.

In:     whatever a file holds: text of any length, ids that are none
Out:    Fault and Repair, small and printable; Report, which counts faults and keeps the first of each kind
State:  Report alone: counts, and at most `keep` faults of each kind
Limits: a shown value has some 100 characters, so a fault stays under 2 kB whatever the file holds
"""

from __future__ import annotations

import reprlib
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

Severity = Literal["error", "warning"]


class Kind(NamedTuple):
    """A kind of fault: `severity` says whether the dataset can be used with it, `title` what it is, in a heading."""

    severity: Severity
    title: str


KINDS = {
    # the file
    "structure": Kind("error", "entries that are missing or of the wrong type"),
    "no-videos": Kind("warning", "no videos at all"),
    "non-finite": Kind("error", "numbers that are not finite"),
    # videos
    "bad-video-id": Kind("error", "videos without a whole number as id"),
    "duplicate-video-id": Kind("error", "video ids that occur more than once"),
    "bad-video-size": Kind("error", "videos without a usable width and height"),
    "video-without-frames": Kind("error", "videos without frames"),
    "video-length": Kind("error", "videos whose length is not the number of their file names"),
    "bad-file-name": Kind("error", "file names that are none"),
    "file-name-leaves-root": Kind("error", "file names that are absolute or leave the folder of images"),
    "frame-used-twice": Kind("warning", "images that are named more than once"),
    # categories
    "bad-category": Kind("error", "categories without a whole number as id, or without a name"),
    "duplicate-category-id": Kind("error", "category ids that occur more than once"),
    "duplicate-category-name": Kind("warning", "category names that occur more than once"),
    "category-gaps": Kind("warning", "category ids that are not 1..K"),
    # annotations
    "bad-annotation-id": Kind("error", "annotations without a whole number as id"),
    "duplicate-annotation-id": Kind("error", "annotation ids that occur more than once"),
    "annotation-ids": Kind("warning", "annotation ids that are not 1..M: identities are then numbered by rank"),
    "unknown-video": Kind("error", "annotations of videos that the file does not list"),
    "unknown-category": Kind("error", "annotations of categories that the file does not list"),
    "odd-iscrowd": Kind("error", "iscrowd other than 0 and 1"),
    "size-copy": Kind("error", "annotations whose own width, height or length are not their video's"),
    "wrong-length": Kind("error", "lists that do not have an entry for each frame"),
    "empty-track": Kind("error", "tracks without a pixel in any frame"),
    # masks, boxes and areas of a frame
    "not-a-mask": Kind("error", "masks that are neither RLE nor polygons nor null"),
    "rle-size": Kind("error", "RLE of another size than the video"),
    "rle-counts": Kind("error", "RLE whose counts do not fill their size"),
    "bad-polygon": Kind("error", "polygons that are damaged or far outside"),
    "bad-box": Kind("error", "boxes that are not [x, y, width, height]"),
    "box-off-mask": Kind("error", "boxes off their masks"),
    "box-without-mask": Kind("error", "boxes where there is no mask"),
    "mask-without-box": Kind("error", "masks where there is no box"),
    "bad-area": Kind("error", "areas that are not a number of pixels"),
    "area-disagrees": Kind("error", "areas that are not those of the masks"),
    "bad-occlusion": Kind("error", "occlusion labels that OVIS does not have"),
    # images
    "image-missing": Kind("error", "images that are not there"),
    "image-unreadable": Kind("error", "images that cannot be read"),
    "image-damaged": Kind("error", "images that are cut short, or damaged inside"),
    "image-size": Kind("error", "images of another size than the dataset states"),
    # DAVIS
    "sequence-missing": Kind("error", "sequences of a list that have no folder"),
    "sequence-empty": Kind("error", "sequences without label maps"),
    "label-map-missing": Kind("error", "frames without a label map"),
    "label-map-unreadable": Kind("error", "label maps that cannot be read"),
    "label-map-size": Kind("error", "label maps of another size than the rest of their sequence"),
    "label-map-mode": Kind("error", "label maps with colours in place of a palette"),
    "label-map-grey": Kind("warning", "label maps in grey: without a palette, values are taken as objects"),
    "only-void": Kind("error", "masks of 0 and 255, the form of DAVIS 2016: 255 means void, so nothing is left"),
    "void-pixels": Kind("warning", "void pixels (255), which the evaluation leaves out"),
    "first-frame-empty": Kind("warning", "sequences without an object in the first frame, which count for nothing"),
    "object-appears-later": Kind("warning", "objects above the highest of the first frame, which are left out"),
    "object-never-seen": Kind("warning", "objects that no frame shows, which count as always empty"),
}
"""Every kind of fault, in the order of a report."""


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong, and where. What does not apply is None."""

    kind: str
    found: str
    expected: str
    file: str
    """The annotation file, or the image or label map at fault."""
    video_id: int | str | None = None
    """As in the file; text that shows it where it is no whole number."""
    video: str | None = None
    """The video's or sequence's name."""
    annotation_id: int | str | None = None
    """Of DAVIS the object's value in the label maps."""
    frame: int | None = None
    """0-based index in the video."""
    place: str | None = None
    """Where in the JSON, such as videos[3], for what has no id or one that is not its own."""

    @property
    def severity(self) -> Severity:
        return KINDS[self.kind].severity

    @property
    def where(self) -> str:
        return place_text(self.place, self.video_id, self.video, self.annotation_id, self.frame)

    def __str__(self) -> str:
        """'video 3 (clip_2), annotation 7, frame 5: found ...; expected ... [file]'"""
        return f"{self.where + ': ' if self.where else ''}{self.found}; expected {self.expected} [{self.file}]"

    def as_json(self) -> dict[str, Any]:
        fields = {name: value for name, value in vars(self).items() if value is not None}
        return {"kind": self.kind, "severity": self.severity, **fields}


@dataclass(frozen=True)
class Place:
    """Where one is in a dataset: makes the faults found there."""

    file: str
    video_id: int | str | None = None
    video: str | None = None
    annotation_id: int | str | None = None
    place: str | None = None

    def fault(self, kind: str, found: str, expected: str, frame: int | None = None, file: str | None = None) -> Fault:
        return Fault(kind, found, expected, file or self.file, self.video_id, self.video, self.annotation_id, frame,
                     self.place)  # fmt: skip


@dataclass(frozen=True)
class Repair:
    """One thing that was changed, and where."""

    did: str
    video_id: int | str | None = None
    annotation_id: int | str | None = None
    frames: tuple[int, ...] = ()
    """Those it was done in, as the file that was repaired counts them."""
    place: str | None = None

    def __str__(self) -> str:
        where = place_text(self.place, self.video_id, None, self.annotation_id, None)
        if len(self.frames) == 1:
            where += f", frame {self.frames[0]}"
        elif self.frames:
            more = f" and {len(self.frames) - 8} more" if len(self.frames) > 8 else ""
            where += f", frames {', '.join(map(str, self.frames[:8]))}{more}"
        return f"{where}: {self.did}" if where else self.did

    def as_json(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if value is not None and value != ()}


@dataclass
class Report:
    """Counts every fault, and keeps the first `keep` of each kind."""

    keep: int
    counts: Counter[str] = field(default_factory=Counter)
    first: dict[str, list[Fault]] = field(default_factory=dict)

    def add(self, fault: Fault) -> None:
        self.counts[fault.kind] += 1
        kept = self.first.setdefault(fault.kind, [])
        if len(kept) < self.keep:
            kept.append(fault)

    def total(self, severity: Severity) -> int:
        return sum(count for kind, count in self.counts.items() if KINDS[kind].severity == severity)

    @property
    def kinds(self) -> list[str]:
        """Those that occurred, errors first, in the order of KINDS."""
        return sorted(self.counts, key=lambda kind: (KINDS[kind].severity, list(KINDS).index(kind)))


def place_text(place: str | None, video_id: Any, video: str | None, annotation_id: Any, frame: int | None) -> str:
    """'videos[3], video 3 (clip_2), annotation 7, frame 5', of what is known; '' where nothing is."""
    name = f" ({video})" if video is not None and video_id is not None else ""
    parts = [place] if place is not None else []
    if video_id is not None or video is not None:
        parts.append(f"video {video if video_id is None else video_id}{name}")
    parts += [] if annotation_id is None else [f"annotation {annotation_id}"]
    return ", ".join(parts + ([] if frame is None else [f"frame {frame}"]))


def shown(value: Any) -> str:
    """Any value of a JSON file in some 100 characters, without control characters."""
    return _SHORT.repr(value)


def shown_id(value: Any) -> int | str | None:
    """An id for a record: itself where it is a whole number of a sane size, else how it reads; None for none."""
    return value if value is None or (type(value) is int and abs(value) < 1 << 63) else shown(value)


def printable(text: str, limit: int = 200) -> str:
    """Text of a file, such as a name, for a terminal: at most `limit` characters, odd ones escaped."""
    text = text if len(text) <= limit else f"{text[: limit - 3]}..."
    return text if text.isprintable() else repr(text)[1:-1]


_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxlist, _SHORT.maxdict, _SHORT.maxstring, _SHORT.maxlong = 2, 4, 3, 40, 30
