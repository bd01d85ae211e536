"""Real videos, made once a session, and the command as a user runs it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from operators.shapes import PRESETS, write_videos
from tests.end_to_end.forked import run_forked

ROOT = Path(__file__).resolve().parents[2]
Command = Callable[..., subprocess.CompletedProcess]


@pytest.fixture(scope="session")
def maskstream() -> Command:
    """Runs `maskstream` in a process of its own: maskstream("run", "a.mp4", timeout=60).

    A process that is to be as the user's from its first import on is begun `afresh`: one of each command, and all that
    begin a cluster.
    """

    def call(
        *arguments: object, timeout: float = 300, cwd: Path = ROOT, afresh: bool = False
    ) -> subprocess.CompletedProcess:
        words, environment = list(map(str, arguments)), {**os.environ, "COLUMNS": "200", "PYTHONPATH": str(ROOT)}
        if not afresh:
            return run_forked(words, cwd, environment, timeout)
        command = [sys.executable, "-m", "pipelines.cli", *words]
        return subprocess.run(command, cwd=cwd, timeout=timeout, capture_output=True, text=True, env=environment)

    return call


@pytest.fixture(scope="session")
def two_videos(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """An H.264 video with B-frames, 26 frames, and a VP9 one of another size, 31 frames."""
    root = tmp_path_factory.mktemp("videos")
    wide = replace(PRESETS["medium"], width=256, height=160, num_frames=26)
    tall = replace(PRESETS["medium"], width=144, height=224, num_frames=31)
    (first,) = write_videos(root, wide, seed=21, num_clips=1)
    (second,) = write_videos(root, tall, seed=22, num_clips=1, first=1, codec="vp9")
    return first, second
