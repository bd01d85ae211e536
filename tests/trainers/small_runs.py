"""A run so small that a step takes a tenth of a second: what tests of whole runs share."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from operators.shapes import CATEGORIES, ShapesConfig, write_youtube_vis

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT_S = 900
CLIPS = ShapesConfig(
    width=96, height=64, num_frames=5, min_objects=2, max_objects=3, min_classes=2, num_twins=0, full_occlusions=0,
    re_entries=0,
)  # fmt: skip
NETWORK = {"network": "crossvis", "model": {
    "num_classes": len(CATEGORIES), "input": {"short_side": 64, "long_side": 96},
    "backbone": {"blocks": [1, 1, 1, 1], "stem_channels": 8, "mid_channels": 4, "norm": "batch", "frozen_stages": 0},
    "channels": 16, "fcos": {"tower_convs": 1, "groups": 4, "size_bounds": [16, 32, 64, 128]}, "mask_channels": 8,
    "embedding_dim": 8, "gradient_gate": 1.0}}  # fmt: skip
PARTS = ("class", "box", "centerness", "mask", "crossover", "identity", "total", "learning_rate", "gradient_norm")
"""Of a line of metrics.jsonl, what does not depend on the clock."""


def write_run(folder: Path, **settings: Any) -> Path:
    """train.yaml, net.yaml and a generated dataset in `folder`; gives the training file. Every step has its line."""
    write_youtube_vis(folder / "data", CLIPS, seed=5, num_clips=3)
    (folder / "net.yaml").write_text(yaml.safe_dump(NETWORK))
    content = {
        "network": str(folder / "net.yaml"), "samples_per_step": 4, "seed": 7, "log_every": 1, "checkpoint_every": 2,
        "data": {"annotations": str(folder / "data" / "instances.json"),
                 "image_root": str(folder / "data" / "JPEGImages"), "max_interval": 3},
        "optimizer": {"learning_rate": 0.01, "warmup_steps": 5, "decay_at": [0.7], "average_decay": 0.9},
        "workers": {"num_workers": 1, "cpus_per_worker": 1}, **settings}  # fmt: skip
    path = folder / "train.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def in_own_process(*arguments: str) -> str:
    """Python from the checkout; gives what was printed. Ended, with all it started, after TIMEOUT_S."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {"RAY_worker_niceness": "0", "PYTHONPATH": str(ROOT), "COLUMNS": "200"}   # 0: else a busy machine
    process = subprocess.Popen(                                                         # never lets workers run
        [sys.executable, *arguments], cwd=ROOT, env=environment, text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT)  # fmt: skip
    try:
        return process.communicate(timeout=TIMEOUT_S)[0]
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise AssertionError(f"not done after {TIMEOUT_S} s:\n{process.communicate()[0]}") from None
