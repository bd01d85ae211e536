"""`maskstream dataset convert`: annotated videos from one format to another, and what the other cannot hold.

In:     a JSON or a folder of one of FORMATS, or the CSV of Open Images
Out:    a JSON or a folder of one of FORMATS, there as a whole or not at all; Converted, which says what was lost
State:  none
Limits: those of the formats (davis.py, mots.py, coco.py, open_images.py); videos go through one by one
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple, get_args

from operators.datasets.class_maps import TO_YOUTUBE_VIS
from operators.datasets.coco import open_coco, write_coco
from operators.datasets.davis import open_davis, write_davis
from operators.datasets.files import MISSING_IMAGES, ImageMode, check_output
from operators.datasets.mots import IdRule, open_mots, write_mots
from operators.datasets.open_images import open_open_images
from operators.datasets.truth import Progress, Truth, VideoTruth, open_youtube_vis
from operators.datasets.youtube_vis import write_youtube_vis
from operators.errors import ConfigError, did_you_mean

Format = Literal["youtube-vis", "ovis", "davis", "mots", "coco"]
Source = Format | Literal["open-images"]


class FormatKind(NamedTuple):
    """One format of datasets, as `--from` and `--to` name it."""

    file: str
    """Whether it is a JSON or a folder."""
    help: str


FORMATS: dict[str, FormatKind] = {
    "youtube-vis": FormatKind("a JSON", "YouTube-VIS 2019 and 2021: tracks with a mask or null a frame"),
    "ovis": FormatKind("a JSON", "the same with occlusion labels, which are kept"),
    "davis": FormatKind("a folder", "DAVIS 2017 / 2019: a palette PNG a frame, its values the objects"),
    "mots": FormatKind("a folder", "MOTS: a text file a video, a line a mask"),
    "coco": FormatKind("a JSON", "COCO instances: each still a video of one frame, or of --frames"),
}


@dataclass(frozen=True, kw_only=True)
class ConvertOptions:
    """What is taken along, and what some formats want to be told; `convert` refuses what another format is told."""

    images: ImageMode = "none"
    """Take the images along as symbolic links, as copies, or not at all."""
    image_root: Path | None = None
    """Where the images of the input are; None looks beside it."""
    subset: str | None = None
    """Of DAVIS: the sequences of ImageSets/*/NAME.txt alone."""
    frames: int = 1
    """Of COCO: how many frames a still becomes."""
    mapped: bool = False
    """Of Open Images: only classes that stand for one of YouTube-VIS 2019 (class_maps.py), under their own names."""
    class_names: dict[int, str] | None = None
    """Of MOTS: what its classes are called."""
    renumber: bool = False
    """To DAVIS: frames 00000 and on, whatever the images are called."""
    mots_ids: IdRule = "annotation"
    """To MOTS: the annotation's id, or class * 1000 + number."""


ONLY: dict[str, tuple[Literal["from", "to"], Source]] = {
    "subset": ("from", "davis"), "frames": ("from", "coco"), "mapped": ("from", "open-images"),
    "class_names": ("from", "mots"), "renumber": ("to", "davis"), "mots_ids": ("to", "mots"),
}  # fmt: skip
"""Options that one format alone looks at."""


@dataclass(frozen=True)
class Converted:
    """What came over. `notes` are sentences: what the other format cannot hold, and what had to be made up."""

    videos: int
    frames: int
    tracks: int
    masks: int
    notes: tuple[str, ...]
    missing_images: int
    """Images that were to be taken along and are not there."""


def open_truth(path: Path | str, source: Source, options: ConvertOptions | None = None) -> Truth:
    """Open a dataset of a known format. Raises DatasetError, naming the file, where it is none; ConfigError for an
    unknown format."""
    options, path = options or ConvertOptions(), Path(path)
    if source in ("youtube-vis", "ovis"):
        return open_youtube_vis(path, options.image_root)
    if source == "davis":
        return open_davis(path, options.image_root, options.subset)
    if source == "mots":
        return open_mots(path, options.image_root, options.class_names)
    if source == "coco":
        return open_coco(path, options.image_root, options.frames)
    if source == "open-images":
        only = TO_YOUTUBE_VIS["open-images"] if options.mapped else None
        return open_open_images(path, options.image_root, only)
    raise ConfigError(f"no format is called '{source}'.{did_you_mean(source, [*FORMATS, 'open-images'])}")


def guess_format(path: Path | str) -> Format:
    """By its kind alone: a folder with text files is MOTS, another folder DAVIS, anything else YouTube-VIS."""
    path = Path(path)
    if not path.is_dir():
        return "mots" if path.suffix == ".txt" else "youtube-vis"
    return "mots" if any((path / "instances_txt").glob("*.txt")) or any(path.glob("*.txt")) else "davis"


def convert(
    source_path: Path | str, out: Path | str, source: Source, target: Format,
    options: ConvertOptions | None = None, progress: Progress | None = None,
) -> Converted:  # fmt: skip
    """Convert a whole dataset; `progress` is called with videos done and videos in all.

    A JSON replaces one of its name, a folder must be new; the input is never touched. A dataset without videos gives
    one without videos. Raises DatasetError for input that cannot be used, ConfigError for an output that cannot, and
    for an option of another format.
    """
    options, out = options or ConvertOptions(), Path(out)
    if target not in get_args(Format):
        raise ConfigError(f"no format is called '{target}'.{did_you_mean(target, FORMATS)}")
    _check_options(options, {"from": source, "to": target})
    check_output(Path(source_path), out)
    totals = _Totals()
    truth = open_truth(source_path, source, options)
    if source in FORMATS and FORMATS[source].file == FORMATS[target].file == "a JSON":
        truth.notes.say("Of the input's info, licenses and supercategories nothing is taken over.")
    truth = replace(truth, read=lambda wanted, read=truth.read: totals.counting(read(wanted)))
    if target in ("youtube-vis", "ovis"):
        write_youtube_vis(truth, out, options.images, occlusion=target == "ovis", progress=progress)
        if target == "ovis" and totals.tracks and not totals.labels:
            truth.notes.say("The input has no occlusion labels, and they cannot be known: the output has none.")
    elif target == "davis":
        write_davis(truth, out, options.images, renumber=options.renumber, progress=progress)
    elif target == "mots":
        write_mots(truth, out, options.images, ids=options.mots_ids, progress=progress)
    else:
        write_coco(truth, out, options.images, progress=progress)
    return Converted(totals.videos, totals.frames, totals.tracks, totals.masks, tuple(truth.notes.lines()),
                     truth.notes.number(MISSING_IMAGES))                                           # fmt: skip


def _check_options(options: ConvertOptions, formats: dict[str, str]) -> None:
    plain = ConvertOptions()
    for name, (side, wanted) in ONLY.items():
        if getattr(options, name) != getattr(plain, name) and formats[side] != wanted:
            option = {"class_names": "classes"}.get(name, name).replace("_", "-")
            raise ConfigError(f"--{option}: is for --{side} {wanted} alone; this is --{side} {formats[side]}.")


class _Totals:
    """Counts videos on their way."""

    def __init__(self) -> None:
        self.videos = self.frames = self.tracks = self.masks = self.labels = 0

    def counting(self, videos: Iterator[VideoTruth]) -> Iterator[VideoTruth]:
        for video in videos:
            self.videos += 1
            self.frames += video.length
            self.tracks += len(video.tracks)
            self.masks += sum(mask is not None for track in video.tracks for mask in track.masks)
            self.labels += sum(track.occlusion is not None for track in video.tracks)
            yield video
