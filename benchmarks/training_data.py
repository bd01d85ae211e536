"""How fast training data comes: pairs a second of our pipeline beside those of a plain PyTorch DataLoader.

    python -m benchmarks.training_data [--size 1280x720] [--pairs 64] [--rounds 5] [--cores 1]

Generates a dataset in the form of YouTube-VIS, then loads the same pairs in turns: by `PairLoader`, one DALI thread a
core, and by a `DataLoader` that does the same work with PIL and pycocotools, as it is usually written, once in the
process itself and once with a worker process a core. First the two are compared: the same masks and boxes, pixels but
for the rounding of two decoders. Medians over the rounds, after one that does not count; the ratio is that to the
faster of the plain ones. Processor time is told beside wall time: neighbours on a shared machine spoil only the latter.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from itertools import cycle, islice
from pathlib import Path

import numpy as np
import PIL
import torch
from PIL import Image
from pycocotools import mask as coco
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from models.inputs import InputConfig
from operators.errors import ConfigError
from operators.replacing import check_folder
from operators.shapes import ShapesConfig, write_youtube_vis
from operators.youtube_vis_data import read_dataset
from trainers.frames import FrameAnnotations, FrameIndex
from trainers.pairs import PairDraw, PairSampler

INPUT = InputConfig()
"""CrossVIS as released: 360 x 640, BGR, padded to multiples of 32."""
BATCH = 4
CLIPS, FRAMES = 3, 12
Target = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]
"""Masks, boxes, labels, identities."""


class PlainPairs(TorchDataset):
    """The same pairs, the plain way. Nothing of it knows DALI, which a worker process would start for nothing."""

    def __init__(self, index: FrameIndex, draws: Sequence[PairDraw], size: tuple[int, int]) -> None:
        self.index, self.draws, self.size = index, draws, size

    def __len__(self) -> int:
        return len(self.draws)

    def __getitem__(self, i: int) -> list[tuple[torch.Tensor, Target]]:
        draw = self.draws[i]
        return [self.frame(frame, draw.flip) for frame in draw.frames]

    def frame(self, frame: FrameAnnotations, flip: bool) -> tuple[torch.Tensor, Target]:
        """(3, h, w) float32, and masks (G, h, w) bool with their boxes, labels and identities."""
        video, dataset = frame.video, self.index.dataset
        h, w = self.size
        image = Image.open(dataset.frame_path(video, frame.frame)).convert("RGB")
        image = _turned(image.resize((w, h), Image.Resampling.BILINEAR), flip)
        pixels = torch.from_numpy(np.asarray(image)[:, :, ::-1].astype(np.float32)) - torch.tensor(INPUT.mean)
        masks = [coco.decode(dataset.mask(a, frame.frame)) for a in frame.annotations]
        masks = [_turned(Image.fromarray(m).resize((w, h), Image.Resampling.NEAREST), flip) for m in masks]
        boxes = frame.boxes() * np.array([w / video.width, h / video.height] * 2, np.float32)
        if flip:
            boxes[:, [0, 2]] = w - boxes[:, [2, 0]]
        target = (torch.from_numpy(np.stack([np.asarray(m) for m in masks])).bool(), torch.from_numpy(boxes),
                  torch.tensor([dataset.labels[a.category_id] for a in frame.annotations]),
                  torch.tensor([self.index.identity[a.id] for a in frame.annotations]))  # fmt: skip
        return pixels.permute(2, 0, 1), target


def _turned(image: Image.Image, flip: bool) -> Image.Image:
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip else image


def collate(batch: list[list[tuple[torch.Tensor, Target]]]) -> tuple[torch.Tensor, list[list[Target]]]:
    """Images (2, B, 3, Hp, Wp), zeros where there is no frame, and the targets of both slots, masks padded alike."""
    frames = [frame for pair in batch for frame in pair]
    size = tuple(-(-max(f[0].shape[axis] for f in frames) // INPUT.divisor) * INPUT.divisor for axis in (1, 2))
    images, slots = torch.zeros(2, len(batch), 3, *size), [[], []]
    for b, pair in enumerate(batch):
        for t, (pixels, (masks, *rest)) in enumerate(pair):
            h, w = pixels.shape[1:]
            images[t, b, :, :h, :w] = pixels
            padded = torch.zeros(len(masks), *size, dtype=torch.bool)
            padded[:, :h, :w] = masks
            slots[t].append((padded, *rest))
    return images, slots


def check_equal(index: FrameIndex, draws: Sequence[PairDraw]) -> float:
    """The mean difference of pixels, of 255; AssertionError where masks, boxes or labels differ."""
    from trainers.data import PairLoader

    loader = PairLoader(iter(draws), index, INPUT, batch=BATCH, device=torch.device("cpu"))
    try:
        ours = next(loader)
    finally:
        loader.close()
    images, slots = collate([PlainPairs(index, draws, size_of(index))[i] for i in range(BATCH)])
    for t, b in np.ndindex(2, BATCH):
        masks, boxes, labels, identities = slots[t][b]
        targets = ours.targets[t][b]
        assert torch.equal(targets.masks, masks) and torch.allclose(targets.boxes, boxes.clamp(min=0), atol=1e-3)
        assert torch.equal(targets.labels, labels) and torch.equal(targets.identities, identities)
    return float((torch.stack(ours.images) - images).abs().mean())


def processor_s(workers: Sequence[int] = ()) -> float:
    """Of this process and of `workers`, by their ids."""
    own = resource.getrusage(resource.RUSAGE_SELF)
    fields = (Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in workers)
    return own.ru_utime + own.ru_stime + sum(int(f[11]) + int(f[12]) for f in fields) / os.sysconf("SC_CLK_TCK")


def take(batches: Iterator, count: int, workers: Sequence[int] = ()) -> tuple[float, float]:
    """Pairs a second and processor milliseconds a pair of `count` batches; two before them, in which pipelines fill, do
    not count."""
    for _ in range(2):
        next(batches)
    began, spent = time.perf_counter(), processor_s(workers)
    for _ in range(count):
        next(batches)
    seconds, spent = time.perf_counter() - began, processor_s(workers) - spent
    return count * BATCH / seconds, spent / (count * BATCH) * 1e3


def time_ours(index: FrameIndex, draws: Sequence[PairDraw], cores: int) -> tuple[float, float]:
    from trainers.data import PairLoader

    loader = PairLoader(cycle(draws), index, INPUT, batch=BATCH, device=torch.device("cpu"), threads=cores)
    try:
        return take(loader, len(draws) // BATCH)
    finally:
        loader.close()


def time_plain(index: FrameIndex, draws: Sequence[PairDraw], workers: int) -> tuple[float, float]:
    """In `workers` processes beside this one; 0: in this one. They are spawned: forked beside threads they may hang."""
    ahead = 4 * max(workers, 1) * BATCH                         # so that there is work to the end, as in training
    pairs = PlainPairs(index, [*draws, *draws[:ahead]], size_of(index))
    batches = iter(DataLoader(pairs, BATCH, num_workers=workers, collate_fn=collate, worker_init_fn=one_thread,
                              multiprocessing_context="spawn" if workers else None))  # fmt: skip
    found = take(batches, len(draws) // BATCH, [worker.pid for worker in getattr(batches, "_workers", ())])
    for _ in batches:                                           # to its end: workers that are cut off complain
        continue
    return found


def size_of(index: FrameIndex) -> tuple[int, int]:
    """(h, w) that all frames, of one size, are resized to."""
    from operators.preprocess import resize_to

    video = index.dataset.videos[0]
    return resize_to(video.height, video.width, INPUT.short_side, INPUT.long_side)


def one_thread(_: int) -> None:
    torch.set_num_threads(1)


def table(rows: dict[str, list[tuple[float, float]]], args: argparse.Namespace, difference: float) -> str:
    middle = {name: tuple(statistics.median(column) for column in zip(*found, strict=True))
              for name, found in rows.items()}  # fmt: skip
    (ours, spent), *others = middle.values()
    lines = [
        f"{args.pairs} pairs of {args.size} JPEGs to 640x360 on {args.cores} of {os.cpu_count()} cores, medians of "
        f"{args.rounds} rounds; {datetime.date.today()}; {platform.machine()}, torch {torch.__version__}, PIL "
        f"{PIL.__version__}. Pixels differ by {difference:.2f} of 255 on average, masks and boxes by nothing.",
        "",
        "| | pairs / s | processor ms / pair |",
        "|---|---|---|",
        *(f"| {name} | {rate:.1f} | {cost:.1f} |" for name, (rate, cost) in middle.items()),
        "",
        f"DALI gives {ours / max(rate for rate, _ in others):.2f} times the pairs of the faster plain loader, for "
        f"{min(cost for _, cost in others) / spent:.2f} times less processor time than the thriftier one.",
    ]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="1280x720", help="of the stored frames; YouTube-VIS: mostly 1280x720")
    parser.add_argument("--pairs", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cores", type=int, default=1, help="both sides are kept to as many")
    parser.add_argument("--out", type=Path, default=Path("runs/training_data"))
    args = parser.parse_args()
    try:
        check_folder(args.out, "--out")
    except ConfigError as error:
        parser.error(str(error))
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.cores])
    torch.set_num_threads(1)
    width, height = map(int, args.size.split("x"))
    config = ShapesConfig(width=width, height=height, num_frames=FRAMES, min_objects=3, max_objects=6, min_classes=3,
                          num_twins=0, full_occlusions=0, re_entries=0)  # fmt: skip
    root = args.out / args.size
    annotations = write_youtube_vis(root, config, seed=1, num_clips=CLIPS)
    index = FrameIndex(read_dataset(annotations, image_root=root / "JPEGImages"))
    sampler = PairSampler(index, max_interval=20, flip=0.5, seed=0)
    draws = list(islice(sampler.draws(0), max(args.pairs // BATCH, 4) * BATCH))
    difference = check_equal(index, draws)
    ways = {
        f"DALI, {args.cores} thread(s)": lambda: time_ours(index, draws, args.cores),
        "DataLoader, in the process": lambda: time_plain(index, draws, 0),
        f"DataLoader, {args.cores} worker(s)": lambda: time_plain(index, draws, args.cores),
    }
    rows: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for number in range(args.rounds + 1):
        for name, run in ways.items():
            found = run()
            if number:
                rows[name].append(found)
            print(f"round {number}: {name}: {found[0]:.1f} pairs/s", file=sys.stderr)
    print(table(rows, args, difference))
    return 0


if __name__ == "__main__":
    sys.exit(main())
