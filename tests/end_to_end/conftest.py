"""Real videos, made once a session, and the command as a user runs it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from operators.shapes import PRESETS, write_videos

ROOT = Path(__file__).resolve().parents[2]
Command = Callable[..., subprocess.CompletedProcess]


@pytest.fixture(scope="session")
def maskstream() -> Command:
    """Runs `maskstream` in a process of its own: maskstream("run", "a.mp4", timeout=60)."""

    def call(*arguments: object, timeout: float = 120, cwd: Path = ROOT) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", "pipelines.cli", *map(str, arguments)]
        environment = {"PYTHONPATH": str(ROOT)}
        return subprocess.run(
            command, cwd=cwd, timeout=timeout, capture_output=True, text=True, env={**_environment(), **environment}
        )

    return call


def _environment() -> dict[str, str]:
    import os

    return {**os.environ, "COLUMNS": "200"}


@pytest.fixture(scope="session")
def two_videos(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """An H.264 video with B-frames, 26 frames, and a VP9 one of another size, 31 frames."""
    root = tmp_path_factory.mktemp("videos")
    wide = replace(PRESETS["medium"], width=256, height=160, num_frames=26)
    tall = replace(PRESETS["medium"], width=144, height=224, num_frames=31)
    (first,) = write_videos(root, wide, seed=21, num_clips=1)
    (second,) = write_videos(root, tall, seed=22, num_clips=1, first=1, codec="vp9")
    return first, second
