"""What the variants of an ablation make of the hard cases: objects that come back, look-alikes that meet.

In:     the held-out dataset, the runs that are scored (their folders hold their results)
Out:    cases.md, how often ids are kept; re-entry.png, look-alikes.png, one case each: truth and variants, row by row
State:  none
Limits: pictures are of each variant's first seed. The case that is shown is the one whose objects are largest, by the
        truth alone: not what any variant makes of it
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from textwrap import fill

import matplotlib
import numpy as np

from operators.draw import draw_tracks
from operators.formats import Categories
from operators.hard_cases import Case, Kind, Outcome, find_cases, ids_of, judge, track_at
from operators.records import FrameTracks
from operators.replacing import replacing
from operators.youtube_vis_data import Dataset, read_dataset
from operators.youtube_vis_results import Result, parse_results, read_results
from pipelines.evaluation import RESULTS_FILE
from trainers.ablation_config import AblationConfig, GeneratedData, Run
from trainers.pictures import found_tracks, frame_image, true_tracks

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

COLUMNS = 6
"""Frames of a picture."""
LETTERS = 28
"""Of a line of a row's label: what fits along the height of a frame."""
AROUND = 2
"""Frames shown before the last good one and after the first."""


@dataclass(frozen=True)
class Found:
    """The results of one run."""

    run: Run
    label: str
    raw: list[dict]
    results: list[Result]


def write_cases(config: AblationConfig, held_out: GeneratedData, runs: Sequence[Run], out: Path) -> list[Path]:
    """Table and pictures of the runs that have results; gives the files written, none where there is no such run.

    Raises DatasetError for results or images that cannot be read.
    """
    found = [_found(config, run) for run in runs if (run.folder / "evaluation" / RESULTS_FILE).exists()]
    if not found:
        return []
    dataset = read_dataset(held_out.annotations, image_root=held_out.image_root)
    cases = find_cases(dataset)
    table = out / "cases.md"
    table.write_text(markdown(dataset, cases, found), encoding="utf-8")
    written = [table]
    first = {one.run.variant: one for one in reversed(found)}           # of each variant that of its lowest seed
    shown = [first[name] for name in dict.fromkeys(one.run.variant for one in found)]
    for kind in dict.fromkeys(case.kind for case in cases):
        case = max((one for one in cases if one.kind == kind), key=lambda one: one.size)
        written.append(out / f"{kind}.png")
        draw_case(dataset, case, shown, written[-1])
    return written


def _found(config: AblationConfig, run: Run) -> Found:
    raw = read_results(run.folder / "evaluation" / RESULTS_FILE)
    return Found(run, config.variants[run.variant].label, raw, parse_results(raw))


def markdown(dataset: Dataset, cases: Sequence[Case], found: Sequence[Found]) -> str:
    """A table for each kind of case: of all cases, how many came out how, mean over seeds."""
    parts = []
    for kind in dict.fromkeys(case.kind for case in cases):
        of_kind = [case for case in cases if case.kind == kind]
        header = f"| variant | n | {' | '.join(WORDS[kind].values())} |"
        text = [f"**{TITLES[kind]}: {len(of_kind)} cases**", "", header, "|---" * (2 + len(WORDS[kind])) + "|"]
        for variant in dict.fromkeys(one.run.variant for one in found):
            seeds = [one for one in found if one.run.variant == variant]
            outcomes = Counter(judge(dataset, case, one.results) for one in seeds for case in of_kind)
            numbers = " | ".join(f"{outcomes[outcome] / len(seeds):.1f}" for outcome in WORDS[kind])
            text.append(f"| {seeds[0].label} | {len(seeds)} | {numbers} |")
        parts.append("\n".join(text))
    return "\n\n".join([INTRODUCTION, *parts]) + "\n"


TITLES: dict[Kind, str] = {"re-entry": "Objects that leave the frame and come back",
                           "look-alikes": "Two objects of one class that meet"}  # fmt: skip
WORDS: dict[Kind, dict[Outcome, str]] = {
    "re-entry": {"kept": "same id", "changed": "new id", "unseen": "unseen"},
    "look-alikes": {"kept": "both ids kept", "swapped": "swapped", "changed": "one or both new", "unseen": "unseen"},
}
INTRODUCTION = (
    "Cases are found in the truth of the held-out clips (operators/hard_cases.py); numbers are means over n seeds. "
    "'unseen': no track with a mask IoU of at least 0.5 shortly before, or shortly after."
)


def draw_case(dataset: Dataset, case: Case, found: Sequence[Found], path: Path) -> None:
    """Truth and each run in a row of their own, the objects of the case alone; a colour is an id."""
    frames = _frames(case)
    ratio = case.video.height / case.video.width
    figure, axes = plt.subplots(1 + len(found), COLUMNS, squeeze=False, constrained_layout=True,
                                figsize=(2.6 * COLUMNS, (2.6 * ratio + 0.25) * (1 + len(found))))
    rows = [("truth", list(_truth(dataset, case, frames)))]
    for one in found:
        told = WORDS[case.kind][judge(dataset, case, one.results)]
        rows.append((f"{fill(one.label, LETTERS)}\n({told})", list(_shown(dataset, case, one, frames))))
    for row, (label, images) in zip(axes, rows, strict=True):
        for axis, image, frame in zip(row, images, frames, strict=True):
            axis.imshow(image)
            axis.set_xticks([])
            axis.set_yticks([])
            axis.set_title(f"frame {frame}", fontsize=8)
        row[0].set_ylabel(label, fontsize=8)
    figure.suptitle(f"{TITLES[case.kind]}: {case.video.name}", fontsize=10)
    with replacing(path) as part:
        figure.savefig(part, dpi=110, format=path.suffix[1:])
    plt.close(figure)


def _frames(case: Case) -> list[int]:
    """COLUMNS frames, evenly spaced from a little before the case to a little after; a short video repeats some."""
    ends = max(case.before - AROUND, 0), min(case.after + AROUND, case.video.length - 1)
    return np.linspace(*ends, COLUMNS).round().astype(int).tolist()


def _truth(dataset: Dataset, case: Case, frames: Sequence[int]) -> Iterator[np.ndarray]:
    names = {n: k for k, one in enumerate(case.objects) for n, a in enumerate(dataset.annotations_of[case.video.id])
             if a.id == one.id}  # fmt: skip
    for frame in frames:
        yield _drawn(dataset, case, frame, true_tracks(dataset, case.video, frame), names, scores=False)


def _shown(dataset: Dataset, case: Case, one: Found, frames: Sequence[int]) -> Iterator[np.ndarray]:
    """Of a run, the tracks of the case's objects: those before it, which keep their colours, and all that follow."""
    own = {r.index: r.track() for r in one.results if r.video_id == case.video.id}
    kind = {r.index: r.category_id for r in one.results if r.video_id == case.video.id}
    names: dict[int, int] = {}
    for track in ids_of(dataset, case, one.results)[0]:
        if track is not None:
            names.setdefault(track, len(names))
    for frame in frames:
        seen = set(names)
        for truth in case.objects:
            if truth.areas[frame]:
                tracks = {id: track for id, track in own.items() if kind[id] == truth.category_id}
                seen.add(track_at(dataset, truth, tracks, frame))
        for track in sorted(seen - {None}):
            names.setdefault(track, len(names))
        results = [result if id in seen else {**result, "segmentations": []} for id, result in enumerate(one.raw)]
        yield _drawn(dataset, case, frame, found_tracks(dataset, case.video, frame, results), names)


def _drawn(
    dataset: Dataset, case: Case, frame: int, tracks: FrameTracks, names: dict[int, int], *, scores: bool = True
) -> np.ndarray:
    """The frame with the tracks that have a name, by it."""
    kept = [i for i, id in enumerate(tracks.track_ids.tolist()) if id in names]
    chosen = replace(
        tracks, track_ids=np.array([names[int(tracks.track_ids[i])] for i in kept], np.int64),
        labels=tracks.labels[kept], scores=tracks.scores[kept], boxes=tracks.boxes[kept],
        masks=tuple(tracks.masks[i] for i in kept),
    )  # fmt: skip
    categories = Categories(tuple(c.name for c in dataset.categories), tuple(c.id for c in dataset.categories))
    return draw_tracks(frame_image(dataset, case.video, frame), chosen, categories, show_scores=scores)
