"""`maskstream demo`: the first thing to see. Two commands of ours, printed as they run, on a clip made on the spot.

In:     a folder
Out:    the clip, its results and overlay.mp4 in that folder; with `animation` the overlay as a WebP or GIF too
"""

from __future__ import annotations

import shlex
import sys
from contextlib import closing
from pathlib import Path

SEED = 11
"""Never trained on: the shipped weights saw seed 1, and are measured on seed 2."""
SIZE = (768, 480)
NUM_FRAMES = 60
ANIMATION_FRAMES, ANIMATION_WIDTH = 48, 384


def main(out: Path, animation: Path | None = None) -> int:
    """Generate, track, and say where the video is; returns the exit code of the first command that failed."""
    clip = out / "clip_00000.mp4"
    settings = [f"width={SIZE[0]}", f"height={SIZE[1]}", f"num_frames={NUM_FRAMES}"]
    overrides = [word for setting in settings for word in ("--set", setting)]
    commands = [
        ["shapes", "--out", str(out), "--seed", str(SEED), "--clips", "1", "--video", "h264", *overrides],
        ["run", str(clip), "--out", str(out), "--fresh"],
    ]
    for command in commands:
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
