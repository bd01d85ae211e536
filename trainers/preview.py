"""What the network is going to see: samples of a run as a picture, before any training.

In:     a file of configs/training, overrides
Out:    one PNG: a row a sample, a column a frame, at the size that the network gets; masks, boxes and names drawn, each
        instance in the colour of its identity, so that one object keeps its colour along a row; padding hatched
State:  none; the samples are the first ones of the run
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from pycocotools import mask as coco

from models.inputs import InputConfig
from models.targets import FrameTargets
from operators.draw import contact_sheet, draw_tracks
from operators.errors import ConfigError
from operators.formats import Categories
from operators.records import FrameInfo, FrameTracks
from operators.replacing import check_file, replacing, writing
from trainers.feeding import open_loader, read_index
from trainers.prepared import SampleName
from trainers.train import make_job

SAMPLES = 4
MAX_FRAMES = 8
"""Of a sample; more would be too small to see."""
MIN_SIDE = 320
"""Pixels of a frame's shorter side in the picture: frames of small networks are enlarged, so that labels leave them
visible."""
GAP = 6


def preview(config_path: str | Path, overrides: Sequence[str], out: Path, samples: int = SAMPLES) -> list[SampleName]:
    """Write the first `samples` samples of a run to `out`; gives their names. Nothing is trained, no folder is made.

    Raises ConfigError, DatasetError, CheckpointError as training would; ConfigError for what is no PNG, or
    cannot be written.
    """
    if out.suffix.lower() != ".png":
        raise ConfigError(f"--preview {out}: expected the name of a picture to write, ending in .png.")
    check_file(out, "--preview")
    job = make_job(config_path, [*overrides, "start_from=null"], out.parent)   # weights are not what is looked at
    index, shown = read_index(job.config.data), job.network.config.input
    loader = open_loader(job.config, index, shown, first=0, batch=samples, rank=0, world=1, device=torch.device("cpu"))
    try:
        batch = next(loader)
        names = tuple(category.name for category in index.dataset.categories)
        rows = [draw_frame(images[b], targets[b], shown, names)
                for b in range(len(batch)) for images, targets in batch.slots[:MAX_FRAMES]]  # fmt: skip
        sheet = contact_sheet(rows, columns=min(len(batch.slots), MAX_FRAMES), gap=GAP)
        with writing(out, "--preview"):
            out.parent.mkdir(parents=True, exist_ok=True)
            with replacing(out) as part:
                Image.fromarray(sheet).save(part, format="PNG")
        return list(loader.names)
    finally:
        loader.close()


def draw_frame(
    image: torch.Tensor, targets: FrameTargets, cfg: InputConfig, names: tuple[str, ...]
) -> np.ndarray:
    """A frame (3, Hp, Wp) as it was before it was normalised, with what is true of it: (k Hp, k Wp, 3) uint8 RGB, the
    whole number k 1 unless the frame is small."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (cfg.mean, cfg.std))
    pixels = (image * std + mean).round().clamp(0, 255).to(torch.uint8)
    shown = pixels.flip(0) if cfg.channel_order == "bgr" else pixels
    canvas = np.ascontiguousarray(shown.permute(1, 2, 0).numpy())                                # (Hp, Wp, 3)
    h, w = (_end(image.ne(0).any(0).any(axis)) for axis in (1, 0))
    hatched = _hatched(*canvas.shape[:2])
    canvas[h:], canvas[:, w:] = hatched[h:], hatched[:, w:]
    times = -(-MIN_SIDE // min(canvas.shape[:2])) if min(canvas.shape[:2]) < MIN_SIDE else 1
    return draw_tracks(_enlarged(canvas, times), _tracks(targets, times), Categories.numbered(names),
                       show_scores=False)  # fmt: skip


def _enlarged(pixels: np.ndarray, times: int) -> np.ndarray:
    """Each pixel of (H, W, ...) as a square of `times` x `times`."""
    return pixels.repeat(times, axis=0).repeat(times, axis=1)


def _end(line: torch.Tensor) -> int:
    """Just behind the last true place of (n,); 0 where there is none."""
    found = line.nonzero()
    return int(found[-1]) + 1 if len(found) else 0


def _hatched(height: int, width: int) -> np.ndarray:
    """Grey stripes (H, W, 3): unlike anything that a frame may hold."""
    rows, columns = np.mgrid[:height, :width]
    stripes = np.where((rows + columns) // 6 % 2, 96, 64).astype(np.uint8)
    return np.repeat(stripes[..., None], 3, axis=2)


def _tracks(targets: FrameTargets, times: int) -> FrameTracks:
    """Ground truth, enlarged, as results are drawn."""
    masks = [_enlarged((mask > 0.5).numpy().astype(np.uint8), times) for mask in targets.masks]
    runs = [coco.encode(np.asfortranarray(mask)) for mask in masks]
    height, width = (times * side for side in targets.masks.shape[1:])
    return FrameTracks(
        FrameInfo("preview", 0, 0.0, height, width),
        track_ids=targets.identities.numpy(),
        labels=targets.labels.numpy(),
        scores=np.ones(len(targets), np.float32),
        boxes=times * targets.boxes.numpy(),
        masks=tuple({"size": run["size"], "counts": run["counts"].decode("ascii")} for run in runs),
    )
