"""From a run's settings to its samples: the dataset's frames, and the loader of one worker's share.

In:     `TrainConfig`, the network's input, where among the run's samples to begin
Out:    `FrameIndex`, `FrameLoader`
State:  none; the loader's is its position
"""

from __future__ import annotations

from pathlib import Path

import torch

from models.inputs import InputConfig
from operators.datasets.coco import read_stills
from operators.youtube_vis_data import read_dataset
from trainers.augment import Augment
from trainers.clips import ClipSampler
from trainers.config import DataConfig, TrainConfig
from trainers.data import ClipLoader, PairLoader, StillLoader
from trainers.forward_pairs import ForwardPairSampler
from trainers.frame_loader import FrameLoader
from trainers.frames import EpochSampler, FrameIndex, has_area, has_box, has_mask
from trainers.mixture import mix
from trainers.pairs import PairSampler
from trainers.pixels import Parts
from trainers.pseudo import PseudoSampler
from trainers.query_clips import QueryClipSampler
from trainers.stills import StillSampler
from trainers.videos import EncodedVideos

LOADERS = {"pairs": PairLoader, "clips": ClipLoader, "stills": StillLoader}


def read_index(data: DataConfig) -> FrameIndex:
    """The dataset's frames, by the rule of the kind of samples drawn from them. Raises DatasetError."""
    read = read_stills if data.format == "coco" else read_dataset
    mixture = mix(read(data.annotations, image_root=data.image_root), data.repeat, data.stills)
    usable = has_area if data.kind == "clips" else has_mask if data.direction == "forward" else has_box
    return FrameIndex(mixture.dataset, usable, repeats=mixture.repeats, stills=mixture.stills)


def open_loader(
    cfg: TrainConfig, index: FrameIndex, input: InputConfig, *, first: int, batch: int, rank: int, world: int,
    device: torch.device,
) -> FrameLoader:  # fmt: skip
    """Batches of `batch` samples for worker `rank` of `world`: every `world`-th of the run's samples, of those from
    number `first` on, which all workers together have yet to see."""
    data = cfg.data
    # The samplers count a worker's own samples: number first + rank is the ahead-th of worker `turn`.
    ahead, turn = divmod(first + rank, world)
    sampler = make_sampler(data, index, seed=cfg.seed, rank=turn, world_size=world, step=batch * world)
    fed = {"batch": batch, "device": device, "threads": data.threads, "boxes": data.boxes, "masks": data.masks,
           "parts": parts_of(data)}  # fmt: skip
    if data.videos is not None:
        fed["source"] = EncodedVideos(Path(data.videos), numbers=data.video_numbers, decoder=data.video_decoder)
    if data.kind == "clips":
        fed["frames"] = data.clip_frames
    return LOADERS[data.kind](sampler.draws(ahead), index, input, **fed)


def make_sampler(
    data: DataConfig, index: FrameIndex, *, seed: int, rank: int, world_size: int, step: int
) -> EpochSampler:
    """What draws the samples of one worker; `step` is the number of those that all workers take at once."""
    share = {"seed": seed, "rank": rank, "world_size": world_size, "group": step if data.group_shapes else None}
    # Pairs and stills are mirrored as one; so are pseudo-videos, which show one thing moving.
    sync = data.flip_sync or data.kind != "clips" or data.pseudo is not None
    augment = Augment(flip=data.flip, flip_sync=sync, scale=data.scale, photometric=data.photometric,
                      jitter=data.jitter)  # fmt: skip
    if data.kind == "stills":
        return StillSampler(index, augment=augment, **share)
    if data.direction == "forward":
        return ForwardPairSampler(index, max_interval=data.max_interval, pseudo=data.pseudo, augment=augment, **share)
    if data.pseudo is not None:
        return PseudoSampler(index, frames=data.frames, pseudo=data.pseudo, augment=augment, **share)
    if data.kind == "pairs":
        return PairSampler(index, max_interval=data.max_interval, flip=data.flip, augment=augment, **share)
    if data.clip_sampling != "gaps":
        return QueryClipSampler(index, frames=data.clip_frames, how=data.clip_sampling, augment=augment, **share)
    return ClipSampler(index, frames=data.clip_frames, flip=data.flip, flip_sync=data.flip_sync, scale=data.scale,
                       augment=augment, **share)  # fmt: skip


def parts_of(data: DataConfig) -> Parts:
    """What the graph has to be able to do for samples of these settings."""
    moves = data.pseudo is not None
    colours = data.photometric is not None or (moves and data.pseudo.photometric is not None)
    return Parts(colour=colours, motion=moves, window=data.jitter is not None,
                 upside_down=data.flip_axis == "vertical")  # fmt: skip
