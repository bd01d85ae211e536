"""Step 1: what a stream is made of, before anything is decoded.

In:     what a user names: video files, folders of images or of videos, YouTube-VIS JSON files, patterns of files and
        folders (dir/**/*.mp4), and addresses of all but the JSON (s3://bucket/day/*.mp4, addresses.py)
Out:    one Source per stream, with a name of its own, and one error per argument that is no use
State:  none
Limits: JSON files of at most MAX_JSON_BYTES; at most MAX_IMAGES images in one argument, MAX_FOUND files in a pattern.
        No video is opened: of a thousand, the broken ones show when their turn comes
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from operators.addresses import is_address, is_pattern, local_path
from operators.errors import DatasetError, MaskstreamError, SourceError
from operators.folders import IMAGE_SUFFIXES, MAX_IMAGES, at_address, digest, in_folder, is_inside, matching, stamp
from operators.probe import VideoInfo, probe_images, probe_video
from operators.youtube_vis_data import Video, read_dataset

RESERVED_NAMES = ("results.json", "manifest.json", "failed.json", "scores.json", "unfinished")
"""What a run writes beside the folders of its sources; no source is called so."""
MAX_JSON_BYTES = 4 << 30

MAX_NAME_BYTES = 120
"""Of a stream's name, which becomes a folder: file systems take 255 bytes, and outputs add suffixes to it."""


@dataclass(frozen=True)
class Source:
    """One stream to be: a video file, or images in order. Small and picklable: it travels to the actor that decodes."""

    name: str
    """The stream's name and its folder under the output directory; unique within a run."""
    kind: Literal["video", "images"]
    path: str
    """The video file, or the folder that `files` are relative to; absolute, or an address."""
    files: tuple[str, ...] = ()
    """Of images: their paths in order, relative to `path`."""
    fps: float = 6.0
    """Of images: `time_s` of image i is i / fps. Six is what YouTube-VIS stores."""
    video_id: int | None = None
    """The video's id in a YouTube-VIS JSON, for results.json; None for other sources."""
    version: str = field(default="", compare=False)
    """Of a video, as it was when it was found: size and time of its last change, so that a run made again sees whether
    it is another one. Empty where that is not known; images have theirs in `version_of`."""

    @property
    def place(self) -> str:
        """Where it lies: what two runs that name the same video agree in, whatever it is called in them."""
        return f"{self.path}/{self.files[0]}" if self.files else self.path


class UnusableSource(SourceError):
    """An argument that is no source. `source` is the argument as it was given."""

    def __init__(self, source: str, message: str) -> None:
        super().__init__(message)
        self.source = source

    def __reduce__(self) -> tuple[type, tuple[str, str]]:
        return type(self), (self.source, str(self))


class UnusableDataset(UnusableSource, DatasetError):
    """A YouTube-VIS argument that cannot be used: a SourceError and a DatasetError at once."""

    exit_code = DatasetError.exit_code


def find_sources(
    arguments: Sequence[str], *, image_root: str | None = None
) -> tuple[list[Source], list[UnusableSource]]:
    """The streams that the arguments name, in their order, and an error for each argument that is no use.

    A folder gives its images in natural order (frame2 before frame10), without those of its subfolders; one without
    images gives its videos. A pattern gives, in natural order, the videos and the folders of images that match, and
    passes over all else. A JSON gives a stream per video; its images are looked for in `image_root`, else beside it,
    else in `JPEGImages` beside it. Videos whose images are missing make one error for the JSON, its other videos are
    given all the same.
    Names are stems of files, or names of folders, made safe for file systems; the second of one name is `name-2`.
    Nothing is decoded and no video is opened: `probe` does that. No argument gives ([], []).
    """
    sources: list[Source] = []
    errors: list[UnusableSource] = []
    taken = set(RESERVED_NAMES)
    for argument in arguments:
        try:
            found, problem = _find(argument, image_root)
        except MaskstreamError as error:
            found, problem = [], error
        sources += [replace(source, name=free_name(source.name, taken)) for source in found]
        if problem is not None:
            kind = UnusableDataset if isinstance(problem, DatasetError) else UnusableSource
            errors.append(kind(argument, str(problem)))
    return sources, errors


def probe(source: Source) -> VideoInfo:
    """Open a source for a moment and say what it promises; of a video this decodes the first frame.

    Raises SourceError, naming the file and the likely reason, for a video that is missing, empty, text, cut before its
    index, without a video stream, in an unknown codec, too large, or without a frame that decodes. Damaged images do
    not raise: they become faults when they are read.
    """
    assert not is_address(source.path), "copy it first (copies.py)"
    if source.kind == "images":
        return probe_images(source.path, source.files, source.fps)
    return probe_video(source.path)


def safe_name(name: str) -> str:
    """A name that is one folder on every file system: letters, digits, `.`, `-` and `_`; never empty, `.` or `..`."""
    name = "".join(char if char.isalnum() or char in "._-" else "_" for char in name)
    name = name.encode("utf-8")[:MAX_NAME_BYTES].decode("utf-8", errors="ignore")
    return name.strip(".") or "source"


def free_name(wanted: str, taken: set[str]) -> str:
    """A safe name that nobody has, capitals apart: some file systems do not tell them from small letters. It is taken
    from then on."""
    base = name = safe_name(wanted)
    number = 1
    while name.casefold() in taken:
        number += 1
        name = f"{base}-{number}"
    taken.add(name.casefold())
    return name


def version_of(source: Source) -> str:
    """What changes when the source is written again: of images on this machine this asks for each file."""
    if source.kind == "video" or is_address(source.path):
        return source.version
    return digest(f"{file} {stamp(Path(source.path, file))}" for file in source.files)


def _find(argument: str, image_root: str | None) -> tuple[list[Source], MaskstreamError | None]:
    if not argument or "\0" in argument:
        raise SourceError(f"{argument!r} is no path; expected a video file, a folder of images or a YouTube-VIS JSON.")
    if is_address(argument):
        here = local_path(argument)
        if here is not None:
            return _find(here, image_root)
        matches = matching(argument) if is_pattern(argument) else at_address(argument)
        return [_source(*match) for match in matches], None
    path = Path(os.path.abspath(argument))      # the actor that decodes may run in another folder
    try:
        if path.is_dir():
            return [_source(*match) for match in in_folder(argument, str(path))], None
        if not path.exists() and is_pattern(argument):
            return [_source(*match) for match in matching(argument)], None
        return _file(argument, path, image_root)
    except OSError as error:
        raise SourceError(f"'{argument}' cannot be read: {error.strerror}.") from error


def _source(name: str, kind: Literal["video", "images"], path: str, files: tuple[str, ...], version: str) -> Source:
    return Source(name, kind, path, files, version=version)


def _file(argument: str, path: Path, image_root: str | None) -> tuple[list[Source], MaskstreamError | None]:
    if not path.exists():
        raise SourceError(f"'{argument}' does not exist. Is the path right, seen from {os.getcwd()}?")
    if not path.is_file():
        raise SourceError(f"'{argument}' is neither a file nor a folder, but a device, pipe or socket.")
    num_bytes = path.stat().st_size
    if path.suffix.lower() == ".json":
        return _dataset(argument, path, num_bytes, image_root)
    if num_bytes == 0:
        raise SourceError(f"'{argument}' is empty (0 bytes); expected a video.")
    if path.suffix.lower() in IMAGE_SUFFIXES:
        raise SourceError(f"'{argument}' is a single image; expected a video, or the folder of images that it lies in.")
    return [Source(path.stem, "video", str(path), version=stamp(path))], None


def _dataset(
    argument: str, path: Path, num_bytes: int, image_root: str | None
) -> tuple[list[Source], DatasetError | None]:
    """The videos of a YouTube-VIS JSON whose images are there, and what is wrong with the others."""
    if num_bytes > MAX_JSON_BYTES:
        raise DatasetError(f"'{argument}' has {num_bytes} bytes, more than the {MAX_JSON_BYTES} allowed.")
    videos = read_dataset(path).videos
    if not videos:
        raise DatasetError(f"'{argument}' lists no videos.")
    if sum(len(video.file_names) for video in videos) > MAX_IMAGES:
        raise DatasetError(f"'{argument}' names more than the {MAX_IMAGES} images allowed.")
    for video in videos:
        _check_inside(argument, video)
    root = _image_root(argument, path, videos, image_root)
    listings: dict[Path, set[str]] = {}
    gaps = {video.id: gap for video in videos if (gap := _first_missing(root, video, listings)) is not None}
    sources = [
        Source(video.name, "images", str(root), video.file_names, video_id=video.id)
        for video in videos
        if video.id not in gaps
    ]
    if not gaps:
        return sources, None
    first, gap = next(iter(gaps.items()))
    return sources, DatasetError(f"'{argument}': {len(gaps)} of {len(videos)} videos lack images in {root}, the first "
                                 f"is video {first}: {gap} is missing. Name the folder of images with --image-root.")


def _check_inside(argument: str, video: Video) -> None:
    for name in video.file_names:
        if not is_inside(name):
            raise DatasetError(f"'{argument}': video {video.id} names the image '{name}', which leaves the folder of "
                               f"images; expected a path inside it.")


def _image_root(argument: str, path: Path, videos: Sequence[Video], image_root: str | None) -> Path:
    """The folder that holds the first frame of some video: a few missing images must not hide the right one."""
    roots = [path.parent, path.parent / "JPEGImages"]
    if image_root is not None:
        roots = [Path(os.path.abspath(image_root))]
        if not roots[0].is_dir():
            raise DatasetError(f"--image-root '{image_root}' is no folder; expected the images of '{argument}'.")
    for root in roots:
        if any((root / video.file_names[0]).is_file() for video in videos):
            return root
    tried = " nor in ".join(str(root) for root in roots)
    raise DatasetError(f"'{argument}': no video's first image ('{videos[0].file_names[0]}', ...) lies in {tried}. "
                       f"Name the folder of images with --image-root.")


def _first_missing(root: Path, video: Video, listings: dict[Path, set[str]]) -> str | None:
    """The first of the video's images that is not there. Folders are listed once: asking file by file takes minutes."""
    for name in video.file_names:
        path = root / name
        if path.parent not in listings:
            try:
                listings[path.parent] = set(os.listdir(path.parent))
            except OSError:
                listings[path.parent] = set()
        if path.name not in listings[path.parent]:
            return name
    return None
