"""What can be known to be wrong before anything is trained.

In:     a run's settings, those of its network, the file they come from
Out:    nothing; or one error that names file, key, what came and what was expected
State:  none; reads, writes nothing
"""

from __future__ import annotations

import os
from collections import defaultdict
from itertools import zip_longest
from pathlib import Path
from typing import get_args, get_type_hints

import torch

from models import NETWORKS
from models.targets import ClipBatch, PairBatch, StillBatch
from operators.errors import CheckpointError, ConfigError, DatasetError
from operators.weights import read_weights, start_from
from operators.youtube_vis_data import Dataset
from pipelines.networks import NetworkSpec
from pipelines.transplant import TRANSPLANTED
from trainers.config import TrainConfig
from trainers.evaluating import check_evaluation, how_to_come_by
from trainers.feeding import read_index
from trainers.frames import FrameIndex
from trainers.step import make_optimizer
from trainers.videos import check_videos

BATCHES = {"pairs": PairBatch, "clips": ClipBatch, "stills": StillBatch}
"""What the samples of each kind come as."""


def check_network(config: TrainConfig, network: NetworkSpec, where: str) -> None:
    """Raises ConfigError where the network does not learn from such samples, or from such masks, or from clips of
    another length, or has not the parts that are named."""
    made = NETWORKS[network.name][0]
    hint = get_type_hints(made.forward)["batch"]
    taken = get_args(hint) or (hint,)
    if BATCHES[config.data.kind] not in taken:
        kinds = " or ".join(f"'{kind}'" for kind, batch in BATCHES.items() if batch in taken)
        raise ConfigError(f"{where}, data.kind: '{config.data.kind}', but the network '{network.name}' learns from "
                          f"{kinds}.")
    length = getattr(network.config, "clip_length", config.data.frames)
    if length != config.data.frames:
        key = "data.clip_frames" if config.data.kind == "clips" else "data.kind"
        raise ConfigError(f"{where}, {key}: samples of {config.data.frames} frames, but {network.where} has "
                          f"model.clip_length: {length}. Set both to the same.")
    if config.data.masks == "bilinear" and not getattr(made, "soft_masks", False):
        raise ConfigError(f"{where}, data.masks: 'bilinear' makes masks soft, but the network '{network.name}' learns "
                          "from masks of whole pixels. Leave it out, or set masks: nearest.")
    if config.optimizer.parts:
        try:
            with torch.device("meta"):
                make_optimizer(made(network.config), config.optimizer)
        except ValueError as error:
            raise ConfigError(f"{where}, {error}") from error


def check_start(config: TrainConfig, network: NetworkSpec) -> None:
    """Raises CheckpointError where `start_from` cannot begin this network."""
    if config.start_from is not None:
        state = read_weights(Path(config.start_from)).state
        start_from(NETWORKS[network.name][0](network.config), state, config.start_from)


def check_dataset(config: TrainConfig, network: NetworkSpec, where: str) -> None:
    """Raises DatasetError for annotations that cannot be used and images that are not there, ConfigError for a network
    of another number of classes."""
    data = config.data
    for key, path in data.paths.items():
        if not Path(path).exists():
            hint = how_to_come_by(data.made_by, f"data.{key}")
            raise DatasetError(f"{where}, data.{key}: {path} does not exist. {hint}")
    for number, stills in enumerate(data.stills):
        for key, path in (("annotations", stills.annotations), ("image_root", stills.image_root)):
            if not Path(path).exists():
                hint = f" Make it by: {stills.made_by}" if stills.made_by else ""
                raise DatasetError(f"{where}, data.stills[{number}].{key}: {path} does not exist.{hint}")
    index = read_index(data)
    dataset = index.dataset
    if len(dataset.categories) != network.config.num_classes:
        raise ConfigError(
            f"{network.where}, model.num_classes: {network.config.num_classes}, but {data.annotations} has "
            f"{len(dataset.categories)} categories."
        )
    check_class_rows(config, dataset)
    if data.videos is None:
        check_images(index, every_frame=data.clip_sampling == "consecutive")
    else:
        check_videos(index, Path(data.videos))
    if config.evaluation is not None:
        check_evaluation(config.evaluation, dataset, where)


def check_class_rows(config: TrainConfig, dataset: Dataset) -> None:
    """Raises CheckpointError where `start_from` has rows that an import copied class by class (pipelines/transplant.py)
    and the dataset has other classes, or has them in another order: the rows would be those of other classes."""
    if config.start_from is None:
        return
    begun, names = read_weights(Path(config.start_from)), tuple(category.name for category in dataset.categories)
    if TRANSPLANTED not in begun.metadata or begun.classes == names:
        return
    k = next(k for k, (theirs, ours) in enumerate(zip_longest(begun.classes, names)) if theirs != ours)
    raise CheckpointError(
        f"{config.start_from}: its rows of classes were copied for {_named(begun.classes, k)}, but {dataset.path} has "
        f"{_named(names, k)} as class {k + 1}. Import it again without --transplant-classes: they begin anew then."
    )


def _named(names: tuple[str, ...], k: int) -> str:
    return f"'{names[k]}'" if k < len(names) else "none"


def check_images(index: FrameIndex, every_frame: bool = False) -> None:
    """Raises DatasetError where frames that samples are drawn from are not there; with `every_frame` those without
    objects are too. Lists every folder once: to ask for each file by itself takes minutes on a network's storage."""
    what = "frames" if every_frame else "annotated frames"
    wanted: dict[Path, list[str]] = defaultdict(list)
    for frames in index.videos:
        video = frames[0].video
        for number in range(video.length) if every_frame else [one.frame for one in frames]:
            path = index.dataset.frame_path(video, number)
            wanted[path.parent].append(path.name)
    missing: list[Path] = []
    for folder, names in wanted.items():
        try:
            there = set(os.listdir(folder))
        except (FileNotFoundError, NotADirectoryError):
            there = set()
        missing += [folder / name for name in names if name not in there]
    if missing:
        total = sum(map(len, wanted.values()))
        raise DatasetError(
            f"{index.dataset.path}: {len(missing)} of {total} {what} are not there, the first is "
            f"{missing[0]}. `maskstream dataset check` names all that is wrong with a dataset."
        )
