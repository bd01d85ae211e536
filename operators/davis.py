"""J and F of DAVIS 2019, unsupervised task, as the official toolkit computes them.

In:     Sequences      pairs of label maps, ground truth and results (davis_data.py)
Out:    DavisScores    seven numbers over all objects, the same for every sequence, and for every object
State:  none; one frame is in memory at a time
Limits: at most MAX_PROPOSALS proposals, 254 objects
Source: evaluation specification, "DAVIS 2019 unsupervised J and F"; numbers in square brackets below are its rules.
        Halves in rule 7 are rounded up, which the official program makes sure of by adding 1e-10. Followed to the
        letter but for two plain faults, which `official_faults=True` brings back: an object's row bears the number of
        its place among the proposals, not its own [6], and beyond 256 frames the decay looks at wrong quarters, mostly
        empty ones, and is then no number [9].

J and F of all pairs of a frame come from one pass: J from a joint histogram of the two maps, F from boundaries that are
found once a map (davis_boundary.py). A direct program makes masks and dilates them for every pair.

Letters: T frames · G objects · P proposals · H W frame size
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.optimize import linear_sum_assignment

from operators.davis_boundary import MAX_LABELS, boundary_counts
from operators.davis_data import Sequence, find_sequences, read_label_map
from operators.errors import DatasetError
from operators.score_files import check_writable, write_scores

METRICS = ("J&F-Mean", "J-Mean", "J-Recall", "J-Decay", "F-Mean", "F-Recall", "F-Decay")
MAX_PROPOSALS = 20
SLOTS = MAX_PROPOSALS + 1
"""Places for proposals: 1 to 20, and last the empty one. No result has a value for it."""
VOID = 255
RECALL_ABOVE = 0.5

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class ObjectScores:
    """One object, and the proposal that it got."""

    name: str
    """SEQUENCE_1 and on: by object, or with the official fault by place in the table."""
    object: int
    """Its value in the ground truth."""
    proposal: int | None
    """Its value in the results; None for an empty one that was filled in where objects outnumber proposals."""
    metrics: dict[str, float]

    def as_json(self) -> dict:
        return {"name": self.name, "object": self.object, "proposal": self.proposal, **self.metrics}


@dataclass(frozen=True)
class SequenceScores:
    """One sequence; without objects all METRICS are NaN."""

    objects: tuple[ObjectScores, ...]
    num_frames: int

    @property
    def metrics(self) -> dict[str, float]:
        return mean_scores(self.objects)

    def as_json(self) -> dict:
        return {**self.metrics, "objects": [one.as_json() for one in self.objects]}


@dataclass(frozen=True)
class DavisScores:
    """What an evaluation gives. Means and recalls are 0..1, decays -1..1; NaN where there is nothing to evaluate."""

    per_sequence: dict[str, SequenceScores]

    @property
    def overall(self) -> dict[str, float]:
        """The METRICS: means over the objects of all sequences, not over sequences [8]."""
        return mean_scores([one for sequence in self.per_sequence.values() for one in sequence.objects])

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader should know of the input, in sentences."""
        empty = [name for name, sequence in self.per_sequence.items() if not sequence.objects]
        if not empty:
            return ()
        names = ", ".join(empty[:5]) + (", ..." if len(empty) > 5 else "")
        return (f"No object in the first frame, so nothing is evaluated in {len(empty)} of {len(self.per_sequence)} "
                f"sequences: {names}.",)  # fmt: skip

    def as_json(self) -> dict:
        """The METRICS, `per_sequence` with METRICS and `objects` of each, and `notes`."""
        rows = {name: sequence.as_json() for name, sequence in self.per_sequence.items()}
        return {**self.overall, "per_sequence": rows, "notes": list(self.notes)}


def evaluate(
    sequences: Iterable[Sequence], *, official_faults: bool = False, progress: Progress | None = None
) -> DavisScores:
    """Evaluate sequences one by one; no sequences give NaN. `progress` is called with frames done and frames in all.

    Raises DatasetError naming the file for a label map that is damaged, of another size than its pair, or beyond
    MAX_PROPOSALS.
    """
    sequences = list(sequences)
    done, total = itertools.count(1), sum(len(sequence) for sequence in sequences)
    per_sequence = {}
    for sequence in sequences:
        scores = sequence_scores(sequence, lambda: progress(next(done), total) if progress else None)
        per_sequence[sequence.name] = SequenceScores(
            assigned_scores(sequence.name, *scores, official_faults=official_faults), len(sequence)
        )
    return DavisScores(per_sequence)


def sequence_scores(sequence: Sequence, after_frame: Callable[[], object]) -> tuple[np.ndarray, np.ndarray, int]:
    """J and F of all pairs in all frames, (SLOTS, G, T) float64, and the number of proposals.

    G is the highest value of the first frame [1], the number of proposals that of the results in all frames [2]; what
    is between and does not occur is an empty object or proposal. All frames are read and checked, even where G is 0.
    """
    first = read_label_map(sequence.truth[0])
    num_objects = int(np.where(first == VOID, 0, first).max())
    j = np.zeros((SLOTS, num_objects, len(sequence)))
    f = np.zeros_like(j)
    num_proposals = 0
    for frame, (truth_path, found_path) in enumerate(zip(sequence.truth, sequence.found, strict=True)):
        truth, found = read_label_map(truth_path), read_label_map(found_path)
        _check_pair(truth, found, truth_path, found_path, first.shape)
        num_proposals = max(num_proposals, int(found.max()))
        j_frame, f_frame = frame_scores(truth, found, num_objects)
        j[:, :, frame], f[:, :, frame] = j_frame.T, f_frame.T
        after_frame()
    return j, f, num_proposals


def frame_scores(truth: np.ndarray, found: np.ndarray, num_objects: int) -> tuple[np.ndarray, np.ndarray]:
    """J and F of one frame, (num_objects, SLOTS) each, of two label maps (H, W) uint8 of equal size.

    The last slot is the empty proposal.
    """
    void = truth == VOID
    if void.any():                                                                  # in neither mask [3]
        truth, found = np.where(void, 0, truth), np.where(void, 0, found)
    f = np.empty((num_objects, SLOTS))
    for start in range(0, num_objects, MAX_LABELS):
        count = min(MAX_LABELS, num_objects - start)
        f[start : start + count] = boundary_counts(truth, found, start + 1, count, SLOTS).f_measure()
    return region_scores(truth, found, num_objects), f


def region_scores(truth: np.ndarray, found: np.ndarray, num_objects: int) -> np.ndarray:
    """J, the pixels in both over the pixels in either, of all pairs; 1 where both are empty [4].  -> (G, SLOTS)"""
    pairs = truth.astype(np.intp) * (SLOTS + 1) + found                              # (H, W)
    counts = np.bincount(pairs.ravel(), minlength=256 * (SLOTS + 1)).reshape(256, SLOTS + 1)
    common = counts[1 : num_objects + 1, 1:]                                         # (G, SLOTS)
    objects = counts.sum(axis=1)[1 : num_objects + 1, None]                          # (G, 1)
    either = objects + counts.sum(axis=0)[1:] - common
    return np.divide(common, either, out=np.ones(common.shape), where=either > 0)


def assigned_scores(
    name: str, j: np.ndarray, f: np.ndarray, num_proposals: int, *, official_faults: bool = False
) -> tuple[ObjectScores, ...]:
    """The best assignment of proposals to objects over the sequence [5], and what each object has by it.

    `j` and `f` are (SLOTS, G, T); where objects outnumber the proposals, the empty one can be taken by all that are
    left [2]. No objects give (). Rows are in the order of the objects, with the official fault of the proposals [6].
    """
    num_objects = j.shape[1]
    slots = [*range(num_proposals), *[SLOTS - 1] * (num_objects - num_proposals)]    # P >= G of them
    total = (j.mean(axis=2) + f.mean(axis=2)) / 2                                    # (SLOTS, G)
    pairs = np.transpose(linear_sum_assignment(-total[slots])).tolist()              # by rising proposal
    if not official_faults:
        pairs.sort(key=lambda pair: pair[1])
    rows = []
    for place, (proposal, one) in enumerate(pairs, start=1):
        j_row, f_row = (statistics(v[slots[proposal], one], official_faults=official_faults) for v in (j, f))
        metrics = dict(zip(METRICS, [(j_row[0] + f_row[0]) / 2, *j_row, *f_row], strict=True))
        number = proposal + 1 if proposal < num_proposals else None
        rows.append(ObjectScores(f"{name}_{place}", one + 1, number, metrics))
    return tuple(rows)


def statistics(values: np.ndarray, *, official_faults: bool = False) -> tuple[float, float, float]:
    """Mean, recall and decay of one object's (T,) values, T >= 1 [7]; the decay may be NaN with the official faults."""
    limits = [(k * (len(values) - 1) + 2) // 4 for k in range(5)]                    # quarters, halves rounded up
    if official_faults:
        limits = [limit % 256 for limit in limits]                                   # kept in 8 bits [9]
    first, last = (values[limits[k] : limits[k + 1] + 1] for k in (0, 3))
    decay = first.mean() - last.mean() if len(first) and len(last) else math.nan
    return float(values.mean()), float((values > RECALL_ABOVE).mean()), float(decay)


def mean_scores(objects: Iterable[ObjectScores]) -> dict[str, float]:
    """The METRICS as means over objects; NaN without any. J&F is the mean of the two means."""
    objects = list(objects)
    means = {metric: float(np.mean([one.metrics[metric] for one in objects])) if objects else math.nan
             for metric in METRICS}  # fmt: skip
    return means | {"J&F-Mean": (means["J-Mean"] + means["F-Mean"]) / 2}


def main_evaluate(
    truth: Path | str,
    results: Path | str,
    json_out: Path | str | None = None,
    *,
    subset: str = "val",
    official_faults: bool = False,
    progress: Progress | None = None,
) -> DavisScores:
    """`maskstream evaluate davis`: find the sequences, evaluate, write `json_out` if asked to (NaN as null).

    Raises DatasetError for folders and files that cannot be used, and ConfigError before any work where `json_out`
    cannot be written.
    """
    check_writable(json_out)
    scores = evaluate(find_sequences(truth, results, subset), official_faults=official_faults, progress=progress)
    if json_out is not None:
        write_scores(json_out, scores.as_json())
    return scores


def format_table(scores: DavisScores) -> str:
    """The scores as lines of text: each sequence, below it its objects and their proposals, then all; '-' is NaN."""
    rows: list[tuple[str, dict[str, float]]] = []
    for name, sequence in scores.per_sequence.items():
        rows.append((f"{name}, {sequence.num_frames} frames", sequence.metrics))
        rows += [(f"  object {one.object}, {_proposal(one.proposal)}", one.metrics) for one in sequence.objects]
    num_objects = sum(len(sequence.objects) for sequence in scores.per_sequence.values())
    rows.append((f"all {num_objects} objects of {len(scores.per_sequence)} sequences", scores.overall))
    width = max(len(name) for name, _ in rows)
    lines = ["sequence".ljust(width) + "".join(metric.rjust(10) for metric in METRICS)]
    lines.append("-" * len(lines[0]))
    for name, row in rows:
        cells = ("-" if math.isnan(row[metric]) else f"{row[metric]:.4f}" for metric in METRICS)
        lines.append(name.ljust(width) + "".join(cell.rjust(10) for cell in cells))
    return "\n".join([*lines, *scores.notes])


def _proposal(number: int | None) -> str:
    return "no proposal" if number is None else f"proposal {number}"


def _check_pair(truth: np.ndarray, found: np.ndarray, truth_path: Path, found_path: Path, shape: tuple[int, int]
                ) -> None:  # fmt: skip
    for labels, path in ((truth, truth_path), (found, found_path)):
        if labels.shape != shape:
            height, width = labels.shape
            raise DatasetError(f"{path}: has {width} x {height} pixels, the first frame of {truth_path.parent} has "
                               f"{shape[1]} x {shape[0]}; label maps must be of one size.")  # fmt: skip
    highest = int(found.max())
    if highest > MAX_PROPOSALS:
        what = "255, void in the ground truth alone" if highest == VOID else str(highest)
        raise DatasetError(f"{found_path}: holds the value {what}; the protocol takes at most {MAX_PROPOSALS} "
                           f"proposals, numbered from 1. Keep the best and number them anew.")  # fmt: skip
