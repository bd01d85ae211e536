"""A YouTube-VIS results file: what the evaluation server takes, checked.

In:     a JSON list of tracks: {"video_id", "category_id", "score", "segmentations": [compressed RLE or null, ...]}
Out:    Result per track, in the order of the file; masks stay as they are until asked for
State:  none
Limits: as in youtube_vis_rle.py; a mask may have another size than its video, and a track another length: the official
        evaluator takes both (evaluation specification, YouTube-VIS 3). Other keys of a track are not looked at.
"""

from __future__ import annotations

import reprlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from operators.errors import DatasetError
from operators.json_files import is_finite, read_json
from operators.youtube_vis_rle import MaskTrack, check_compressed, counts_text

_FORM = '{"video_id", "category_id", "score", "segmentations"}'


@dataclass(frozen=True)
class Result:
    """One track that a system found."""

    index: int
    """Its place in the results; in a message, and as the track's identity."""
    video_id: int
    category_id: int
    score: float
    segmentations: list[dict | None] = field(repr=False)
    """An entry a frame; anything false (null, {}, []) is no mask."""

    def track(self) -> MaskTrack:
        """The masks, checked. Raises DatasetError naming result and frame where one is damaged."""
        masks = [{**entry, "counts": counts_text(entry["counts"])} if entry else None for entry in self.segmentations]
        present = [frame for frame, mask in enumerate(masks) if mask]
        check_compressed([masks[frame] for frame in present], lambda i: f"{self.where}, frame {present[i]}")
        return MaskTrack.of(masks)

    @property
    def where(self) -> str:
        return f"result {self.index} (video {self.video_id}, category {self.category_id})"


def read_results(path: Path | str) -> list[dict]:
    """Read and check a results file; [] where it holds no track. Raises DatasetError naming file, result and frame."""
    path = Path(path)
    raw = read_json(path, "a list of YouTube-VIS results", constants=True)     # a score of NaN is told with its result
    refuse_annotations(raw, path)
    try:
        parse_results(raw)
    except DatasetError as error:
        raise DatasetError(f"{path}: {error}") from None
    return raw


def refuse_annotations(raw: Any, path: Path | str) -> None:
    """Raise DatasetError where what was read from `path` is an annotation file: the two are easily mixed up."""
    if isinstance(raw, dict) and "videos" in raw:
        raise DatasetError(f"{path}: is an annotation file; expected a list of results, each {_FORM}.")


def parse_results(raw: Any) -> list[Result]:
    """Checked records of a list of results, in its order. Raises DatasetError naming result and frame."""
    if not isinstance(raw, list):
        raise DatasetError(f"the results are a {type(raw).__name__}; expected a list of results, each {_FORM}.")
    return [_result(entry, index) for index, entry in enumerate(raw)]


def _result(raw: Any, index: int) -> Result:
    where = f"result {index}"
    if not isinstance(raw, dict):
        raise DatasetError(f"{where}: is {reprlib.repr(raw)}; expected an object {_FORM}.")
    for key in ("video_id", "category_id"):
        if not isinstance(raw.get(key), int) or isinstance(raw[key], bool):
            raise DatasetError(f"{where}: {key} is {_shown(raw, key)}; expected a whole number.")
    score = raw.get("score")
    if not isinstance(score, (int, float)) or isinstance(score, bool) or not is_finite(score):
        raise DatasetError(f"{where}: score is {_shown(raw, 'score')}; expected a finite number.")
    segmentations = raw.get("segmentations")
    if not isinstance(segmentations, list):
        raise DatasetError(f"{where}: segmentations is {_shown(raw, 'segmentations')}; expected a list of masks.")
    if not _all_compressed(segmentations):
        frame = next(frame for frame, entry in enumerate(segmentations) if entry and not _is_compressed(entry))
        raise DatasetError(f"{where}, frame {frame}: {reprlib.repr(segmentations[frame])} is no compressed RLE; "
                           'expected {"size": [height, width], "counts": text} or null. '
                           "pycocotools.mask makes one: encode(mask), or frPyObjects(rle, height, width).")  # fmt: skip
    return Result(index, raw["video_id"], raw["category_id"], float(score), segmentations)


def _all_compressed(segmentations: list) -> bool:
    """`_is_compressed` of all that are not false, at a third of the time."""
    try:
        present = [(entry["size"], entry["counts"]) for entry in segmentations if entry]
    except (KeyError, TypeError, IndexError):
        return False
    return {type(counts) for _, counts in present} <= {str, bytes}


def _is_compressed(entry: Any) -> bool:
    return isinstance(entry, dict) and "size" in entry and isinstance(entry.get("counts"), (str, bytes))


def _shown(raw: dict, key: str) -> str:
    return reprlib.repr(raw[key]) if key in raw else "missing"
