"""The curves of a run, as worker 0 writes them down.

In:     every `Step`
Out:    `metrics.jsonl`: a line every `log_every` steps, means over the steps since the last; TensorBoard events; of a
        run that ends between two lines `last_steps.jsonl`: a line for each step after the last
State:  the steps since the last line
"""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

import torch

from operators.replacing import replacing
from trainers.job import LAST_STEPS_FILE, METRICS_FILE
from trainers.watch import Step, Watcher
from trainers.writing import Events, Lines


class Log(Watcher):
    """Means over the steps since the last line, to `metrics.jsonl` and to TensorBoard events."""

    def __init__(self, out: Path, every: int, steps: int, device: torch.device | None = None) -> None:
        self._every, self._steps, self._device = every, steps, device or torch.device("cpu")
        path = out / METRICS_FILE
        torn = path.exists() and path.stat().st_size > 0 and not path.read_bytes().endswith(b"\n")
        self._lines = Lines(path)
        if torn:                            # a run that was cut while it wrote: its half line must not swallow the next
            self._lines.append(b"\n")
        self._events = Events(out / "tensorboard")
        self._rows: list[dict[str, float]] = []
        self._last, self._number = out / LAST_STEPS_FILE, 0
        self._last.unlink(missing_ok=True)

    def after_step(self, step: Step) -> None:
        times = {"learning_rate": step.learning_rate, "data_wait_s": step.data_wait_s, "step_s": step.step_s}
        memory = round(gpu_memory(self._device) / 1e9, 3)
        self._rows.append({**step.losses, **times, "gpu_memory_gb": memory, "samples": step.samples})
        self._number = step.number
        if step.number % self._every == 0 or step.number == self._steps:
            self._write(step.number)

    def _write(self, number: int) -> None:
        means = {key: sum(row[key] for row in self._rows) / len(self._rows) for key in self._rows[0]}
        if not self._lines.append(_line(number, means)):
            return                          # a full disk: the next line's means take these steps in
        for key, value in means.items():
            if key != "samples":
                self._events.add_scalar(key, value, number)
        self._events.flush()
        self._rows.clear()

    def close(self) -> None:
        self._events.close()
        if self._rows:
            first = self._number - len(self._rows) + 1
            with suppress(OSError), replacing(self._last) as part:      # a run goes on, and ends, without them
                part.write_bytes(b"".join(_line(first + i, row) for i, row in enumerate(self._rows)))


def _line(number: int, row: dict[str, float]) -> bytes:
    line = {"step": number, **{key: round(value, 6) for key, value in row.items()}}
    line["samples_per_s"] = round(row["samples"] / max(row["step_s"], 1e-9), 3)
    return (json.dumps(line) + "\n").encode()


def gpu_memory(device: torch.device) -> int:
    """Bytes, the most that torch has held at a time; 0 without a GPU."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
