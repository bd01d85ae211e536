"""From settings to samples: every kind of data, split over workers and begun anew, is the same samples to the bit."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from models.inputs import InputConfig
from models.targets import ClipBatch, PairBatch, StillBatch
from operators.datasets.coco import write_coco
from operators.datasets.truth import open_youtube_vis
from operators.errors import ConfigError
from operators.shapes import ShapesConfig, write_videos, write_youtube_vis
from pipelines.config import build, load_yaml, resolve
from pipelines.networks import read_network
from trainers.config import DataConfig, TrainConfig
from trainers.feeding import open_loader, read_index
from trainers.frame_loader import FrameLoader
from trainers.step import learning_rate

CPU = torch.device("cpu")
CLIPS = ShapesConfig(
    width=96, height=64, num_frames=4, min_objects=4, max_objects=5, min_classes=3, num_twins=0, full_occlusions=0,
    re_entries=0,
)  # fmt: skip
INPUT = InputConfig(short_side=32, long_side=64)
SIZES = {"short_sides": [24, 32, 40], "long_side": [64, 64]}

KINDS: dict[str, tuple[dict[str, Any], type, int]] = {
    "pairs": ({"max_interval": 2}, PairBatch, 2),
    "pairs of several sizes and colours": ({"scale": SIZES, "photometric": {"contrast": 0.2}}, PairBatch, 2),
    "clips": ({"kind": "clips", "clip_frames": 3, "scale": {**SIZES, "each": "frame"}}, ClipBatch, 3),
    "clips, shrunk and enlarged": ({"kind": "clips", "clip_frames": 2, "jitter": {"probability": 0.9}}, ClipBatch, 2),
    "clips around a query": ({"kind": "clips", "clip_frames": 3, "clip_sampling": "around", "jitter": {},
                              "flip_axis": "vertical", "boxes": "inclusive", "masks": "bilinear", "flip_sync": True},
                             ClipBatch, 3),
    "stills": ({"kind": "stills", "scale": SIZES, "jitter": {}}, StillBatch, 1),
    "stills of COCO": ({"format": "coco", "kind": "stills", "group_shapes": True}, StillBatch, 1),
    "pseudo-pairs of COCO": ({"format": "coco", "pseudo": {}, "scale": SIZES}, PairBatch, 2),
    "pseudo-clips": ({"kind": "clips", "clip_frames": 3, "pseudo": {}, "boxes": "masks"}, ClipBatch, 3),
    "pairs of encoded videos": ({"encoded": True}, PairBatch, 2),
}


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """The same clips as images of YouTube-VIS, as images of COCO, and encoded."""
    root = tmp_path_factory.mktemp("data")
    path = write_youtube_vis(root, CLIPS, seed=3, num_clips=2)
    write_coco(open_youtube_vis(path, root / "JPEGImages"), root / "coco.json")
    write_videos(root / "videos", CLIPS, seed=3, num_clips=2)
    return root


def settings(root: Path, changes: dict[str, Any]) -> TrainConfig:
    changes = dict(changes)
    encoded = changes.pop("encoded", False)
    frames = {"videos": str(root / "videos")} if encoded else {"image_root": str(root / "JPEGImages")}
    name = "coco.json" if changes.get("format") == "coco" else "instances.json"
    data = {"annotations": str(root / name), **frames, **changes}
    return build(TrainConfig, {"network": "none", "data": data, "seed": 5}, "test")


def open_(cfg: TrainConfig, first: int = 0, batch: int = 2, rank: int = 0, world: int = 1) -> FrameLoader:
    return open_loader(cfg, read_index(cfg.data), INPUT, first=first, batch=batch, rank=rank, world=world, device=CPU)


def take(loader: FrameLoader, batches: int) -> list[tuple]:
    """Sample by sample: name, and per frame the pixels that are not padding, masks, boxes, labels, identities."""
    found = []
    try:
        for _ in range(batches):
            batch = next(loader)
            assert len(loader.names) == len(batch)
            for b, name in enumerate(loader.names):
                found.append((name, *(_frame(images[b], targets[b]) for images, targets in batch.slots)))
    finally:
        loader.close()
    return found


def _frame(image: torch.Tensor, targets) -> tuple:
    h, w = (int(image.ne(0).any(0).any(axis).nonzero()[-1]) + 1 for axis in (1, 0))
    assert not targets.masks[:, h:].any() and not targets.masks[:, :, w:].any(), "no mask where there is no frame"
    return (image[:, :h, :w].numpy().tobytes(), targets.masks[:, :h, :w].numpy().tobytes(), targets.boxes.tolist(),
            targets.labels.tolist(), targets.identities.tolist())  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_one_worker_two_workers_and_a_restart_see_the_same_samples(root, kind):
    changes, made, frames = KINDS[kind]
    cfg = settings(root, changes)
    loader = open_(cfg)
    batch = next(loader)
    loader.close()
    assert isinstance(batch, made) and len(batch.slots) == frames == cfg.data.frames
    whole = take(open_(cfg), 3)
    assert len({sample[1][0] for sample in whole}) > 3, "they are not all one"
    halves = [take(open_(cfg, batch=1, rank=rank, world=2), 3) for rank in (0, 1)]
    assert list(itertools.chain(*zip(*halves, strict=True))) == whole
    assert take(open_(cfg, first=3, batch=1), 2) == whole[3:5]


@pytest.mark.parametrize("kind", [kind for kind in KINDS if "encoded" not in KINDS[kind][0]])
def test_batches_do_not_change_their_samples(root, kind):
    cfg = settings(root, {**KINDS[kind][0], "group_shapes": False})
    assert take(open_(cfg, batch=4), 1) == take(open_(cfg, batch=1), 4)


def test_names_are_those_of_the_batch_last_taken(root):
    cfg = settings(root, {"max_interval": 1})
    loader = open_(cfg)
    assert loader.names == ()
    next(loader)
    first = loader.names
    next(loader)
    loader.close()
    assert len(first) == 2 and first != loader.names
    for name in first:
        key, reference = name.frames
        assert abs(key - reference) == 1 and name.video in ("1 (clip_00000)", "2 (clip_00001)")
        folder = name.video[-11:-1]
        assert name.files == (f"{folder}/{key:05d}.jpg", f"{folder}/{reference:05d}.jpg")


@pytest.mark.parametrize("changes, message", [
    pytest.param({"image_root": None}, "either image_root", id="no frames"),
    pytest.param({"videos": "there"}, "either image_root", id="frames twice"),
    pytest.param({"format": "coco"}, "COCO has no videos to draw pairs from", id="pairs of COCO"),
    pytest.param({"format": "coco", "image_root": None, "videos": "there", "kind": "stills"}, "COCO has images",
                 id="videos of COCO"),
    pytest.param({"scale": {"each": "frame"}}, "scale.each: frame, are of clips", id="two sizes of a pair"),
    pytest.param({"kind": "stills", "pseudo": {}}, "pseudo makes pairs", id="a still does not move"),
    pytest.param({"kind": "clips", "clip_frames": 1, "pseudo": {}}, "pseudo makes pairs", id="nor does a clip of one"),
    pytest.param({"pseudo": {"rotte": 3}}, "data.pseudo.rotte: no such setting. Did you mean rotate?", id="misspelt"),
    pytest.param({"clip_sampling": "around"}, "clip_sampling: around is of clips of videos", id="a pair has no query"),
    pytest.param({"kind": "clips", "pseudo": {}, "clip_sampling": "consecutive"}, "is of clips of videos",
                 id="a still has no neighbours"),
    pytest.param({"pseudo": {}, "masks": "bilinear"}, "masks: bilinear is of frames that do not move", id="soft"),
    pytest.param({"jitter": {"factor": [2, 1]}}, "data.jitter: factor is", id="a range the wrong way round"),
])  # fmt: skip
def test_settings_that_contradict_each_other(root, changes, message):
    with pytest.raises(ConfigError) as caught:
        settings(root, {"image_root": str(root), **changes})
    assert message in str(caught.value)


def test_the_shipped_settings_for_coco():
    """16 images a step, 90,000 steps, tenths after 60,000 and 80,000, the six short sides (specification 3.8)."""
    path = resolve("configs/training/condinst_r50_coco.yaml")
    cfg = build(TrainConfig, load_yaml(path), str(path))
    assert (cfg.data.kind, cfg.data.format, cfg.steps, cfg.samples_per_step) == ("stills", "coco", 90000, 16)
    assert cfg.data.scale.short_sides == (640, 672, 704, 736, 768, 800) and cfg.data.scale.long_side == (1333, 1333)
    steps = (999, 1000, 59999, 60000, 79999, 80000)
    rates = [learning_rate(step, cfg.steps, cfg.optimizer) for step in steps]
    assert rates == pytest.approx([0.01 * (1 - 0.001 * 0.999), 0.01, 0.01, 0.001, 0.001, 0.0001])
    network = read_network(cfg.network)
    assert network.name == "condinst" and network.config.num_classes == 80 and network.config.gradient_gate == 1.0
    assert network.config.max_mask_positives == 500
    assert np.ceil(1333 / 32) * 32 == 1344 and replace(cfg, workers=cfg.workers).batch(8) == 2


def test_paths_are_those_that_are_named():
    data = DataConfig(annotations="a.json", videos="v")
    assert data.paths == {"annotations": "a.json", "videos": "v"} and data.frames == 2
