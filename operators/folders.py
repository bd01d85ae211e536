"""Step 1, of what stands for several files: the videos and folders of images in a folder, or that match a pattern.

In:     a folder or a pattern, of paths on this machine or of addresses (addresses.py)
Out:    Match, what each stream will be made of, in natural order: frame2 before frame10
State:  none
Limits: at most MAX_IMAGES images in a folder, MAX_FOUND matches of a pattern; no file is opened, names alone decide
"""

from __future__ import annotations

import glob
import hashlib
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Literal, NamedTuple

from operators import addresses
from operators.addresses import MAX_FOUND, Found, is_address
from operators.errors import SourceError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
VIDEO_SUFFIXES = (
    ".3gp", ".asf", ".avi", ".flv", ".gif", ".m2ts", ".m4v", ".mjpeg", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts",
    ".mxf", ".ogv", ".ts", ".vob", ".webm", ".wmv", ".y4m",
)  # fmt: skip
"""What folders and patterns take for a video. A file that is named needs none, nor does a pattern that ends in one."""
MAX_IMAGES = 10_000_000


class Match(NamedTuple):
    """What one stream will be made of."""

    name: str
    kind: Literal["video", "images"]
    path: str
    files: tuple[str, ...] = ()
    version: str = ""


def natural_key(name: str) -> tuple[list[tuple[int, str]], str]:
    """Sorts numbers in names by value: frame2 before frame10; by plain text where values are equal (1 and 01)."""
    parts = re.split(r"([0-9]+)", name)
    return [(int(part), "") if i % 2 else (-1, part) for i, part in enumerate(parts)], name


def is_inside(name: str) -> bool:
    """Is it a relative path that stays in its folder, on every system?"""
    path = PurePosixPath(name)
    odd = path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name
    return bool(path.parts) and not odd and ":" not in path.parts[0]


def matching(pattern: str) -> list[Match]:
    """The videos and the folders of images that match a pattern; all else is passed over.

    Raises SourceError where nothing is left, and for an address that cannot be read.
    """
    found = addresses.find(pattern) if is_address(pattern) else _found_here(pattern)
    matches: list[Match] = []
    for one in sorted(found, key=lambda one: natural_key(one.address)):
        if one.is_folder:
            matches += _images(pattern, one.address, _listing(one.address))
        elif _is_video(one.address, pattern):
            matches.append(_video(one))
    if matches:
        return matches
    if found:
        raise SourceError(f"'{pattern}' matches {len(found)} files and folders, but no video and no folder of images. "
                          f"To take files of another suffix for videos, end the pattern in it, as in '*.dat'.")
    seen = "" if is_address(pattern) else f", seen from {os.getcwd()}"
    raise SourceError(f"'{pattern}' matches nothing. Is the path right{seen}?")


def in_folder(argument: str, folder: str) -> list[Match]:
    """The images of a folder as one stream; where there are none, each of its videos. `argument` is for messages.

    Subfolders are left alone. Raises SourceError where there is neither, and OSError where it cannot be listed.
    """
    inside = _listing(folder)
    images = _images(argument, folder, inside)
    if images:
        return images
    videos = sorted((one for one in inside if not one.is_folder and _is_video(one.address)), key=_order)
    if videos:
        return [_video(one) for one in videos]
    folders = [PurePosixPath(one.address).name for one in inside if one.is_folder]
    hint = f" It has folders, such as '{min(folders)}': name the one with the images, or a pattern." if folders else ""
    suffixes = ", ".join(IMAGE_SUFFIXES)
    raise SourceError(f"'{argument}' is a folder without images ({suffixes}) and without videos.{hint}")


def at_address(address: str) -> list[Match]:
    """What an address that is no pattern names: a video, or what is in a folder. Raises SourceError."""
    (one,) = addresses.find(address)
    if one.is_folder:
        return in_folder(address, one.address)
    if _path_of(one).suffix.lower() == ".json":
        raise SourceError(f"'{address}': a YouTube-VIS JSON must lie on this machine. Copy it, and name the folder of "
                          f"its images with --image-root.")  # fmt: skip
    return [_video(one)]


def stamp(path: Path) -> str:
    """Size and time of a file's last change; empty for one that is not there."""
    try:
        stat = path.stat()
    except OSError:
        return ""
    return f"{stat.st_size} {stat.st_mtime_ns}"


def digest(lines: Iterable[str]) -> str:
    """Sixteen letters that differ where the lines do."""
    return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogateescape")).hexdigest()[:16]


def _order(one: Found) -> tuple[list[tuple[int, str]], str]:
    return natural_key(one.address)


def _path_of(one: Found) -> PurePosixPath:
    """Without the query of a web address, of which it is not known what it means."""
    return PurePosixPath(one.address.partition("?")[0] if is_address(one.address) else one.address)


def _video(one: Found) -> Match:
    return Match(_path_of(one).stem, "video", one.address, version=one.version)


def _is_video(name: str, pattern: str = "") -> bool:
    """By its suffix, or because the pattern asks for this very suffix."""
    suffix = PurePosixPath(name).suffix.lower()
    asked = bool(suffix) and pattern.lower().endswith(suffix)
    return suffix in VIDEO_SUFFIXES or (asked and suffix not in IMAGE_SUFFIXES)


def _is_image(name: str) -> bool:
    return name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith(".")   # "._0.jpg": what macOS leaves behind


def _images(argument: str, folder: str, inside: Sequence[Found]) -> list[Match]:
    """The images among a folder's files as one stream, or nothing."""
    versions = {PurePosixPath(one.address).name: one.version for one in inside if not one.is_folder}
    files = tuple(sorted(filter(_is_image, versions), key=natural_key))
    if len(files) > MAX_IMAGES:
        raise SourceError(f"'{argument}' has more than the {MAX_IMAGES} images allowed.")
    if not files:
        return []
    # of files here the versions are asked for only when they are needed: that is a call for each
    version = digest(f"{file} {versions[file]}" for file in files) if is_address(folder) else ""
    folder = folder.rstrip("/") or "/"
    return [Match(PurePosixPath(folder).name, "images", folder, files, version)]


def _listing(folder: str) -> list[Found]:
    if is_address(folder):
        return addresses.listing(folder)
    with os.scandir(folder) as entries:
        found = []
        for entry in entries:
            video = _is_video(entry.name)
            if entry.is_dir() or entry.is_file():   # no pipes, devices or links that lead nowhere
                version = stamp(Path(entry.path)) if video else ""
                found.append(Found(entry.path, entry.is_dir(), None, version))
        return found


def _found_here(pattern: str) -> list[Found]:
    """All files and folders on this machine that match, by their absolute paths."""
    found = []
    for number, name in enumerate(glob.iglob(pattern, recursive=True)):
        if number == MAX_FOUND:
            raise SourceError(f"'{pattern}' matches more than the {MAX_FOUND} files allowed.")
        path = Path(os.path.abspath(name))
        if path.is_dir() or path.is_file():
            found.append(Found(str(path), path.is_dir(), None, stamp(path)))
    return found
