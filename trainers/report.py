"""The report of a run, however it ended: report.html, one file that opens anywhere.

In:     the run's folder: metrics.jsonl, last_steps.jsonl, evaluations.jsonl, evaluation/, notices.txt; its `Job`; what
        ended it early, if anything did
Out:    report.html with the pictures inside it; losses.png and scores.png beside it
State:  none; written anew each time
Limits: pictures are those of the last evaluation; NOTICES_SHOWN lines of notices.txt
"""

from __future__ import annotations

import base64
import html
import json
import platform
import shlex
import signal
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path

import matplotlib
import torch
import yaml

from operators.cpus import usable_cpus
from operators.errors import MaskstreamError
from operators.replacing import replacing
from pipelines.evaluation import SCORES_FILE
from pipelines.networks import as_plain
from trainers import checkpoint as checkpoints
from trainers.curves import plot_losses, read_curves
from trainers.evaluating import FOLDER, read_evaluations
from trainers.job import Job, TrainingError
from trainers.writing import NOTICES_FILE

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

REPORT_FILE = "report.html"
METRICS = ("AP", "AP50", "AP75", "AR1", "AR10")
NOTICES_SHOWN = 50
REASON_SHOWN = 4000
"""Characters of what ended a run: errors of libraries may quote whole files."""
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1100px; margin: 2em auto; padding: 0 1em; color: #222; }
table { border-collapse: collapse; margin: 1em 0; } td, th { padding: .2em .9em .2em 0; text-align: right; }
td:first-child, th:first-child { text-align: left; } th { border-bottom: 1px solid #999; } .best { font-weight: bold; }
img { max-width: 100%; } pre { background: #f4f4f4; padding: 1em; overflow-x: auto; } figure { margin: 1em 0; }
.ended { border-left: 4px solid #c0392b; background: #fdf1ef; padding: .6em 1em; overflow-wrap: anywhere; }
"""


@contextmanager
def reported(job: Job) -> Iterator[None]:
    """A run that has its report at its end, whatever that is. What ends it early goes on to the caller as it came: the
    report says it too, and where no report can be written, that is told and no more."""
    try:
        yield
    except BaseException as failure:                # Ctrl-C too
        try:
            told = f"The report of the run so far: {write_report(job, failure)}"
        except Exception as trouble:                # a full disk, above all: it must not stand for the reason
            told = f"No report could be written: {type(trouble).__name__}: {trouble}"
        with suppress(OSError):                     # the terminal may be what has gone
            print(told, file=sys.stderr, flush=True)
        raise
    write_report(job)


def write_report(job: Job, failure: BaseException | None = None) -> Path | None:
    """Of what the run has come to, with the `failure` that ended it early at its top.

    None, and no file, for a run without a failure and without a line of metrics. Raises OSError.
    """
    rows, scores = read_curves(job.out), read_evaluations(job.out)
    if not rows and failure is None:
        return None
    steps = job.config.steps_of(job.config.workers.num_workers)
    done = f"{rows[-1]['step']:.0f}" if rows else "none"
    parts = [f"<h1>{_text(job.network.name)}: {done} of {steps} steps</h1>", *_failed(job, failure)]
    if rows:
        plot_losses(rows, job.out / "losses.png")
        parts += [f"<p>{_text(_in_short(rows, scores))}</p>", "<h2>Losses</h2>",
                  _picture(job.out / "losses.png", "losses")]  # fmt: skip
    if scores:
        plot_scores(scores, job.out / "scores.png")
        parts += ["<h2>Scores</h2>", _picture(job.out / "scores.png", "scores by step"), _score_table(scores)]
        parts += _last_evaluation(job.out / FOLDER)
    parts += [*_notices(job.out / NOTICES_FILE), "<h2>Settings</h2>", f"<p>{_text(job.command)}</p>",
              f"<pre>{_text(_settings(job))}</pre>", f"<p>{_text(_machine())}</p>"]  # fmt: skip
    page = (f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{_text(job.out.name)}</title>'
            f"<style>{STYLE}</style><body>{''.join(parts)}</body></html>\n")
    with replacing(job.out / REPORT_FILE) as part:
        part.write_text(page, encoding="utf-8")
    return job.out / REPORT_FILE


def plot_scores(scores: Sequence[dict[str, float]], path: Path) -> None:
    """AP, AP50 and AP75 over the steps, the best AP marked."""
    figure, axis = plt.subplots(figsize=(8, 3.6), constrained_layout=True)
    steps = [row["step"] for row in scores]
    for name, color in (("AP", "#08519c"), ("AP50", "#6baed6"), ("AP75", "#2171b5")):
        values = [100 * row[name] for row in scores]
        axis.plot(steps, values, marker="o", markersize=4, color=color, label=name, linewidth=2 if name == "AP" else 1)
    best = max(scores, key=lambda row: row["AP"])
    axis.annotate(f"{100 * best['AP']:.1f}", (best["step"], 100 * best["AP"]), textcoords="offset points",
                  xytext=(0, 7), ha="center", fontsize=9)
    axis.set_ylim(bottom=0)
    axis.set_xlabel("step")
    axis.grid(alpha=0.3)
    axis.legend(frameon=False)
    with replacing(path) as part:
        figure.savefig(part, dpi=110, format="png")
    plt.close(figure)


def _failed(job: Job, failure: BaseException | None) -> list[str]:
    """When the run ended early and why, and what can be gone on from; [] where it did not."""
    if failure is None:
        return []
    paragraphs = [f"<b>This run ended early</b>, at {time.strftime('%Y-%m-%d %H:%M:%S')}.",
                  _text(reason(failure)[:REASON_SHOWN])]
    step = checkpoints.last_step(job.out / checkpoints.FOLDER)
    if not step:
        paragraphs.append("There is no checkpoint yet.")
    elif isinstance(failure, TrainingError):        # which says itself what can be done
        paragraphs.append(f"The last checkpoint is that of step {step}.")
    else:
        again = f"{job.command} --out {shlex.quote(str(job.out))} --resume"
        paragraphs.append(f"The last checkpoint is that of step {step}. Go on from it by: <code>{_text(again)}</code>")
    return ["<div class=ended>", *(f"<p>{paragraph}</p>" for paragraph in paragraphs), "</div>"]


def reason(failure: BaseException) -> str:
    """What ended a run, in a sentence for its user."""
    if isinstance(failure, KeyboardInterrupt):
        return "It was stopped by Ctrl-C."
    if isinstance(failure, SystemExit):
        return "It was stopped by SIGTERM." if failure.code == 128 + signal.SIGTERM else f"It left with {failure.code}."
    return str(failure) if isinstance(failure, MaskstreamError) else f"{type(failure).__name__}: {failure}"


def _notices(path: Path) -> list[str]:
    """The last things that happened to the run beside training; [] where nothing did."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
    return ["<h2>Notices</h2>", f"<pre>{_text(chr(10).join(lines[-NOTICES_SHOWN:]))}</pre>"] if lines else []


def _in_short(rows: Sequence[dict[str, float]], scores: Sequence[dict[str, float]]) -> str:
    """The first thing to know."""
    wait = sum(row["data_wait_s"] for row in rows) / max(sum(row["step_s"] for row in rows), 1e-9)
    speed = sum(row.get("samples_per_s", 0.0) for row in rows) / len(rows)
    said = f"Loss {rows[-1]['total']:.3f}; worker 0 learnt from {speed:.1f} samples/s and waited for data {wait:.1%} " \
           f"of the time."
    if scores:
        best = max(scores, key=lambda row: row["AP"])
        said += f" Best AP {100 * best['AP']:.1f} at step {best['step']:.0f}; last {100 * scores[-1]['AP']:.1f}."
    return said


def _score_table(scores: Sequence[dict[str, float]]) -> str:
    best = max(scores, key=lambda row: row["AP"])
    head = ["step", *METRICS, "ID switches"]
    body = [([f"{row['step']:.0f}", *(f"{100 * row[name]:.1f}" for name in METRICS), f"{row['id_switches']:.0f}"],
             row is best) for row in scores]
    return _table(head, body)


def _last_evaluation(folder: Path) -> list[str]:
    """Classes, curves and pictures of the latest evaluation; [] where its folder is gone."""
    if not (folder / SCORES_FILE).exists():
        return []
    said = json.loads((folder / SCORES_FILE).read_text(encoding="utf-8"))
    rows = [([name, *(f"{100 * row[metric]:.1f}" if row[metric] >= 0 else "-" for metric in METRICS)], False)
            for name, row in said["per_category"].items()]
    parts = ["<h2>Classes, last evaluation</h2>", _table(["class", *METRICS], rows)]
    parts += [_picture(path, path.stem.replace("_", " ")) for path in sorted(folder.glob("precision_recall.png"))]
    pictures = sorted((folder / "pictures").glob("*.png"), key=lambda path: int(path.stem))
    if pictures:
        parts.append("<h2>Truth (left) and prediction (right)</h2>")
    parts += [_picture(path, path.with_suffix(".txt").read_text(encoding="utf-8")) for path in pictures]
    return parts


def _table(head: Iterable[str], rows: Iterable[tuple[Iterable[str], bool]]) -> str:
    """Rows with whether they stand out."""
    cells = "".join(f"<th>{_text(name)}</th>" for name in head)
    lines = [f'<tr{" class=best" if best else ""}>' + "".join(f"<td>{_text(cell)}</td>" for cell in row) + "</tr>"
             for row, best in rows]
    return f"<table><tr>{cells}</tr>{''.join(lines)}</table>"


def _picture(path: Path, caption: str) -> str:
    data = base64.b64encode(path.read_bytes()).decode("ascii")
    return (f'<figure><img alt="{_text(caption)}" src="data:image/png;base64,{data}">'
            f"<figcaption>{_text(caption)}</figcaption></figure>")


def _settings(job: Job) -> str:
    settings = {"training": as_plain(job.config), "network": {job.network.name: as_plain(job.network.config)}}
    return yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)


def _machine() -> str:
    names = {"torch": "torch", "DALI": "nvidia-dali-cuda130", "Ray": "ray", "numpy": "numpy"}
    versions = ", ".join(f"{name} {version(package)}" for name, package in names.items())
    gpu = f", {torch.cuda.device_count()} x {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ", no GPU"
    return (f"Written on {platform.machine()}, {usable_cpus()} CPUs{gpu}; Python {platform.python_version()}, "
            f"{versions}.")


def _text(text: str) -> str:
    return html.escape(text, quote=True)
