"""`maskstream demo`: the first thing to see. Two commands of ours, printed as they run, on a clip made on the spot.

In:     a folder
Out:    the clip, its results and overlay.mp4 in that folder; with `animation` the overlay as a WebP or GIF too
"""

from __future__ import annotations

import shlex
import sys
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

ANIMATION_FRAMES, ANIMATION_WIDTH = 48, 384


@dataclass(frozen=True)
class Demo:
    """A shipped network and a clip of the kind that it was trained for, of a seed that it never saw."""

    network: str
    seed: int
    clip: tuple[str, ...]
    """Settings of `maskstream shapes`."""

    @property
    def commands(self) -> tuple[list[str], list[str]]:
        """Make the clip, track it; both still without `--out`."""
        settings = [word for setting in self.clip for word in ("--set", setting)]
        shapes = ["shapes", "--seed", str(self.seed), "--clips", "1", "--video", "h264", *settings]
        return shapes, ["run", "--network", self.network, "--fresh"]


DEMOS = {
    "crossvis": Demo("configs/networks/tiny.yaml", 11, ("width=768", "height=480", "num_frames=60")),
    "iai": Demo("configs/networks/iai_tiny.yaml", 12, (
        "width=512", "height=320", "num_frames=60", "min_objects=2", "max_objects=3", "min_classes=1", "num_twins=0",
        "full_occlusions=0", "re_entries=1", "min_size=0.4", "max_size=0.65")),
}  # fmt: skip
"""The first is shown where none is named. Seeds 1 and 21 were trained on, seed 2 measures."""


def main(out: Path, system: str, animation: Path | None = None) -> int:
    """Generate, track, and say where the video is; returns the exit code of the first command that failed."""
    clip = out / "clip_00000.mp4"
    shapes, run = DEMOS[system].commands
    for command in ([*shapes, "--out", str(out)], [*run, str(clip), "--out", str(out)]):
        if code := _run(command):
            return code
    overlay = out / clip.stem / "overlay.mp4"
    if animation is not None:
        _animate(overlay, animation)
        print(f"Moving picture:    {animation}")
    print(f"Open the overlay:  {overlay.absolute()}")
    return 0


def _run(command: list[str]) -> int:
    from pipelines.cli import main as maskstream

    print(f"$ maskstream {shlex.join(command)}", flush=True)
    code = maskstream(command)
    sys.stdout.flush()
    return code


def _animate(video: Path, path: Path) -> None:
    """The first frames of a video, small enough for a page."""
    import numpy as np
    from PIL import Image

    from operators.decode import open_reader
    from operators.draw import write_animation
    from operators.records import Frame
    from operators.sources import Source

    with closing(open_reader(Source(video.stem, "video", str(video)))) as reader:
        frames = [record for record in reader.read(ANIMATION_FRAMES) if isinstance(record, Frame)]
        height = round(ANIMATION_WIDTH * frames[0].info.height / frames[0].info.width)
        small = [np.asarray(Image.fromarray(f.image).resize((ANIMATION_WIDTH, height))) for f in frames]
        path.parent.mkdir(parents=True, exist_ok=True)
        write_animation(path, small, reader.info.fps)
