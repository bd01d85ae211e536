"""`maskstream dataset split`: a YouTube-VIS or OVIS JSON into parts by video, the same way every time.

In:     one JSON
Out:    OUT_DIR/PART.json for each part, all or none: its videos and their annotations, everything else as it was
State:  none
Limits: the file is in memory as a whole; parts are written an entry a line
Source: a video's place follows from a hash of the seed and the names of its images alone (its id where there are none).
        So neither the order of the file nor other videos matter: a video that is added moves none, and two entries of
        the same images never end up in different parts. The price: shares hold on average, not exactly.
"""

from __future__ import annotations

import filecmp
import hashlib
import json
import math
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from operators.datasets.files import write_json
from operators.datasets.truth import Progress
from operators.errors import ConfigError, DatasetError
from operators.json_files import read_json
from operators.sources import safe_name

MINI = "mini"


@dataclass(frozen=True)
class Part:
    """One part that was written."""

    name: str
    path: Path
    videos: int
    frames: int
    annotations: int
    per_category: dict[str, int] = field(repr=False)
    """Annotations of each category, 0 for those without any, in the order of the ids."""


@dataclass(frozen=True)
class Split:
    """What `split` wrote. `notes` are sentences: parts or categories that came out short, videos in no part."""

    parts: tuple[Part, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Video:
    key: str
    """What its place follows from."""
    id: int
    num_frames: int
    categories: frozenset[int]


def parse_parts(text: str) -> dict[str, float]:
    """'train=0.8,val=0.2' -> shares in their order. Raises ConfigError for names twice or unfit for files, shares that
    are no numbers above 0, or more than 1 together."""
    parts: dict[str, float] = {}
    for entry in text.split(","):
        name, equals, share = (word.strip() for word in entry.partition("="))
        try:
            value = float(share)
        except ValueError:
            value = math.nan
        if not equals or not name or safe_name(name) != name or not 0 < value <= 1:
            raise ConfigError(f"--parts {text}: {entry!r} is none; expected NAME=SHARE, as in train=0.8,val=0.2.")
        if name.casefold() in (known.casefold() for known in [*parts, MINI]):
            raise ConfigError(f"--parts {text}: the name '{name}' is taken; expected names that differ, and not "
                              f"'{MINI}', which --mini writes.")  # fmt: skip
        parts[name] = value
    if sum(parts.values()) > 1 + 1e-9:
        raise ConfigError(f"--parts {text}: the shares are {sum(parts.values()):g} together; expected at most 1.")
    return parts


def assign(keys: Sequence[str], parts: Mapping[str, float], seed: int = 0) -> list[str | None]:
    """The part of each key; None for what is left where the shares are less than 1 together."""
    found: list[str | None] = []
    for key in keys:
        place, bound = hashed(key, seed), 0.0
        part = None
        for name, share in parts.items():
            bound += share
            if part is None and (place < bound or bound > 1 - 1e-9):     # 0.7 + 0.2 + 0.1 is not quite 1
                part = name
        found.append(part)
    return found


def hashed(key: str, seed: int, purpose: str = "part") -> float:
    """A number in [0, 1) that follows from the arguments alone, on every machine."""
    digest = hashlib.sha256(f"{purpose}\0{seed}\0{key}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


def stratify(
    videos: Sequence[_Video], found: Sequence[str | None], names: Sequence[str], seed: int
) -> list[str | None]:
    """Move single videos until each part has each category, where there are videos enough.

    Categories with the fewest videos come first. A part that lacks one takes, from a part that keeps all of its
    categories without it, the video whose hash is smallest; where no part can spare one, it goes without.
    """
    found = list(found)
    holders = Counter(c for video in videos for c in video.categories)
    have = {name: Counter(c for v, p in zip(videos, found, strict=True) if p == name for c in v.categories)
            for name in names}                                                                     # fmt: skip
    by_hash = sorted(range(len(videos)), key=lambda i: (hashed(videos[i].key, seed, "stratify"), videos[i].id))
    for category in sorted(holders, key=lambda c: (holders[c], c)):
        for name in names:
            if have[name][category]:
                continue
            spare = next((i for i in by_hash if found[i] not in (None, name) and category in videos[i].categories
                          and all(have[found[i]][c] > 1 for c in videos[i].categories)), None)     # fmt: skip
            if spare is not None:
                have[found[spare]].subtract(videos[spare].categories)
                have[name].update(videos[spare].categories)
                found[spare] = name
    return found


def split(
    path: Path | str, out_dir: Path | str, parts: Mapping[str, float], *, seed: int = 0, mini: int = 0,
    stratified: bool = False, progress: Progress | None = None,
) -> Split:  # fmt: skip
    """Write a JSON for each part, and `mini.json` with the `mini` videos of the first part whose hash is smallest.

    stratified   see `stratify`; a video that is added may then move others

    Categories are all kept, ids and everything else are as in the file. A file that is there already stays where it is
    the same, else it is a ConfigError, as is the input. Raises DatasetError for a file whose videos or annotations
    cannot be told apart. A file without videos gives parts without any.
    """
    path, out_dir = Path(path), Path(out_dir)
    raw = read_json(path, "a YouTube-VIS annotation file")
    videos = _videos(raw, path)
    if mini < 0:
        raise ConfigError(f"--mini {mini}: expected a number of videos from 0 up.")
    found = assign([video.key for video in videos], parts, seed)
    if stratified:
        found = stratify(videos, found, list(parts), seed)
    members = {name: {v.id for v, part in zip(videos, found, strict=True) if part == name} for name in parts}
    if mini:
        first = [video for video in videos if video.id in members[next(iter(parts))]]
        first.sort(key=lambda video: (hashed(video.key, seed, MINI), video.id))
        members[MINI] = {video.id for video in first[:mini]}
    _write(raw, path, out_dir, members, progress)
    frames = {video.id: video.num_frames for video in videos}
    written = tuple(_count(raw, name, out_dir / f"{name}.json", ids, frames) for name, ids in members.items())
    return Split(written, tuple(_notes(videos, found, written, mini)))


def _videos(raw: object, path: Path) -> list[_Video]:
    """What a split needs to know of a file, checked: all else goes through untouched, right or wrong."""
    if not isinstance(raw, dict) or not isinstance(raw.get("videos"), list):
        raise DatasetError(f"{path}: has no list of videos; expected a YouTube-VIS or OVIS JSON.")
    entries = raw.get("annotations") or []
    if not isinstance(entries, list) or not isinstance(raw.get("categories"), list):
        raise DatasetError(f"{path}: annotations and categories are not both lists; expected a YouTube-VIS JSON.")
    categories: dict[int, set[int]] = {}
    for index, entry in enumerate(raw["videos"]):
        if _id(entry, "id", f"{path}: videos[{index}]") in categories:
            raise DatasetError(f"{path}: video id {entry['id']} occurs more than once; ids must be unique.")
        categories[entry["id"]] = set()
    for index, entry in enumerate(entries):
        video_id = _id(entry, "video_id", f"{path}: annotations[{index}]")
        if video_id not in categories:
            raise DatasetError(f"{path}: annotations[{index}] is of video {video_id}, which the file does not list.")
        categories[video_id].add(_id(entry, "category_id", f"{path}: annotations[{index}]"))
    for index, entry in enumerate(raw["categories"]):
        _id(entry, "id", f"{path}: categories[{index}]")
    return [_video(entry, frozenset(categories[entry["id"]])) for entry in raw["videos"]]


def _video(entry: dict, categories: frozenset[int]) -> _Video:
    names = entry.get("file_names")
    named = isinstance(names, list) and names
    length = len(names) if named else entry.get("length")
    return _Video(json.dumps(names) if named else f"id {entry['id']}", entry["id"],
                  length if type(length) is int else 0, categories)                                # fmt: skip


def _id(entry: object, key: str, where: str) -> int:
    if not isinstance(entry, dict) or type(entry.get(key)) is not int:
        got = repr(entry.get(key))[:60] if isinstance(entry, dict) else type(entry).__name__
        raise DatasetError(f"{where}: {key} is {got}; expected a whole number.")
    return entry[key]


def _write(
    raw: dict, path: Path, out_dir: Path, members: Mapping[str, set[int]], progress: Progress | None
) -> None:
    """All parts under other names first, then all in their places."""
    targets = {name: out_dir / f"{name}.json" for name in members}
    for target in targets.values():
        if target.exists() and os.path.samefile(target, path):
            raise ConfigError(f"{target}: is the input; choose another folder, or other names of parts.")
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
        with ExitStack() as undo:
            for done, (name, target) in enumerate(targets.items(), start=1):
                part = target.with_name(f".{target.name}.part")
                undo.callback(part.unlink, missing_ok=True)
                with part.open("w", encoding="ascii") as file:
                    write_json(file, {key: _kept(key, value, members[name]) for key, value in raw.items()})
                if target.exists() and not filecmp.cmp(part, target, shallow=False):
                    raise ConfigError(f"{target}: is there already, and not the same; remove it or choose another "
                                      f"folder.")  # fmt: skip
                if progress:
                    progress(done, len(targets))
            for target in targets.values():
                os.replace(target.with_name(f".{target.name}.part"), target)
    except OSError as error:
        raise ConfigError(f"{out_dir}: cannot be written ({error.strerror or error}).") from error


def _kept(key: str, value: object, ids: set[int]) -> object:
    """What of a member of the file belongs to a part."""
    if key == "videos":
        return (entry for entry in value if entry["id"] in ids)
    if key == "annotations" and isinstance(value, list):
        return _annotations(value, ids)
    return value


def _annotations(entries: list[dict], ids: set[int]) -> Iterator[dict]:
    return (entry for entry in entries if entry["video_id"] in ids)


def _count(raw: dict, name: str, path: Path, ids: set[int], frames: Mapping[int, int]) -> Part:
    counts = Counter(entry["category_id"] for entry in _annotations(raw.get("annotations") or [], ids))
    per_category: dict[str, int] = {}
    for category in sorted(raw["categories"], key=lambda entry: entry["id"]):
        label = str(category.get("name", category["id"]))
        label = label if label not in per_category else f"{label} ({category['id']})"
        per_category[label] = counts[category["id"]]
    return Part(name, path, len(ids), sum(frames[i] for i in ids), sum(counts.values()), per_category)


def _notes(videos: list[_Video], found: list[str | None], written: tuple[Part, ...], mini: int) -> Iterator[str]:
    if left := found.count(None):
        yield f"{left} of {len(videos)} videos are in no part, as the shares are less than 1 together."
    for part in written:
        if not part.videos and videos:
            yield f"'{part.name}' has no video: shares hold on average. Another --seed, or --stratify, may give it one."
    parts = written[: len(written) - bool(mini)]
    if mini and written[-1].videos < mini:
        yield f"'{MINI}' has {written[-1].videos} videos, all of '{written[0].name}'; --mini asked for {mini}."
    holders = Counter(name for part in parts for name, number in part.per_category.items() if number)
    short = [name for name, number in holders.items() if number < len(parts)]
    if short:
        shown = ", ".join(sorted(short)[:8]) + (", .." if len(short) > 8 else "")
        yield f"{len(short)} categories are not in every part: {shown}."
