"""Frames and clips for the tests of stages that see clips, and a small CiCo for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from models.cico import CiCo
from models.cico_masks import Window, paint
from models.cico_tubes import TubeConfig, Tubes
from operators.clip_tracking import ClipTrackConfig
from operators.detectors import DETECTORS
from operators.find_tubes import ClipBatchConfig, FindTubes
from operators.records import ClipFeatures, ClipTubes, Features, FrameInfo
from operators.track_tubes import TrackTubes
from operators.windows import Windows, WindowsConfig
from tests.models.small_cico import SMALL, small_cico

CPU = torch.device("cpu")
SIZE, PADDED = (60, 90), (64, 96)
HEIGHT, WIDTH = 120, 180
DETECT = TubeConfig(most=12)


def info_of(index: int, stream: str = "s") -> FrameInfo:
    return FrameInfo(stream, index, index / 8, HEIGHT, WIDTH)


def frame(index: int, stream: str = "s", size: tuple[int, int] = SIZE) -> Features:
    """Two levels that are full of the frame's index."""
    levels = torch.full((2, 4, 5), float(index)), torch.full((2, 2, 3), float(index))
    return Features(info_of(index, stream), levels, size, PADDED)


def told(clips: Sequence[ClipFeatures]) -> list[tuple[list[int], int, int]]:
    """(frames, how many are real, how many leave), read off the maps themselves."""
    for clip in clips:
        for one in clip.frames:
            assert all(bool((level == one.info.index).all()) for level in one.levels)
    return [([one.info.index for one in clip.frames], clip.real, clip.new) for clip in clips]


# ------------------------------------------------------------------------------------------ a network, and what it sees


def network(seed: int = 6, **changes) -> CiCo:
    return small_cico(seed, **changes).eval()


def seen_by(network: CiCo, count: int, stream: str = "s", seed: int = 0) -> list[Features]:
    """A picture that drifts, under noise: some objects stay, some come and go."""
    generator = torch.Generator().manual_seed(seed)
    still = torch.randn(1, 3, *PADDED, generator=generator)
    images = torch.cat([still.roll(t, dims=3) for t in range(count)])
    images = images + 0.2 * torch.randn(images.shape, generator=generator)
    with torch.inference_mode():
        levels = network.features(images)
    return [replace(frame(t, stream), levels=tuple(level[t] for level in levels)) for t in range(count)]


def stages(network: CiCo, overlap: int | None = None, batch: int = 2, **tracking) -> tuple:
    config = network.config
    return (
        Windows(config.clip_length, WindowsConfig(overlap=overlap)),
        FindTubes(network, ClipBatchConfig(batch=batch), DETECTORS["cico"].of(DETECT), CPU),
        TrackTubes(ClipTrackConfig(**tracking), config.masks, CPU),
    )


# ------------------------------------------------------------------------------------------ tubes made by hand


def tubes(boxes: Sequence[Sequence[float]], frames: int = 3, **named) -> Tubes:
    """Still tubes, boxes in 0..1; embeddings and labels as named, else alike, scores falling from 0.9. Masks fill their
    boxes."""
    n, (h, w), k = len(boxes), (side // 4 for side in PADDED), SMALL.masks.prototypes
    placed = torch.tensor(boxes, dtype=torch.float32).reshape(n, 1, 4).repeat(1, frames, 1)
    parameters = torch.full((n, k), 1.0)
    levels = torch.zeros(n, dtype=torch.int64)
    masks = paint(torch.ones(h, w, frames, k), parameters, placed[:, 0], levels, SMALL.masks, Window(1.0, least=0.0))
    embeddings = torch.tensor(named["embeddings"]) if "embeddings" in named else torch.eye(4)[:1].repeat(n, 1)
    return Tubes(
        placed, masks, torch.tensor(named.get("labels", [0] * n), dtype=torch.int64), 0.9 - 0.1 * torch.arange(n),
        embeddings, parameters, levels,
    )  # fmt: skip


def clip_of(found: Tubes, indices: Sequence[int], new: int, real: int | None = None, stream: str = "s") -> ClipTubes:
    h, w = (side // 4 for side in PADDED)
    prototypes = torch.ones(h, w, len(indices), found.parameters.shape[1])
    infos = tuple(info_of(index, stream) for index in indices)
    return ClipTubes(infos, len(indices) if real is None else real, new, found, prototypes, SIZE, PADDED)
