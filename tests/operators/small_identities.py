"""Networks and frames for the tests of IAI's stage: one whose heads say what a script has, and a real one, small."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from models.association_block import AssociationConfig, HybridAssociation, Memory, Read
from models.condinst import DenseOutputs
from models.fcos import FCOSConfig, Locations
from models.iai import IAI, IAIConfig
from models.iai_maskrcnn import IAIMaskRCNN, IAIMaskRCNNConfig
from models.remembering import MemoryConfig
from models.resnet import ResNetConfig
from models.rpn import RPNConfig
from operators.detectors import DETECTORS
from operators.identify import Identify
from operators.identities import CandidateConfig, IdentityDetectConfig
from operators.identity_memory import IdentifyConfig
from operators.records import Features, FrameInfo
from tests.models.small import shake
from tests.operators.identity_oracle import Said

CPU = torch.device("cpu")
PADDED = (64, 64)
SIZES = [(8, 8), (4, 4), (2, 2), (1, 1), (1, 1)]
SMALL_ASSOCIATION = AssociationConfig(dim=16, self_heads=2, memory_heads=2, hidden=16, groups=2, class_channels=8)


def level_numbers() -> np.ndarray:
    return Locations.of(SIZES, CPU).levels.numpy()


class Scripted:
    """A network whose heads say what the script has for a frame, whatever it sees: C5 holds the frame's number. Its
    association is real, so that memory holds true entries; `painted` is what was painted, frame by frame."""

    config = MemoryConfig()

    def __init__(self, script: Sequence[Said], num_outputs: int, config: AssociationConfig = SMALL_ASSOCIATION) -> None:
        torch.manual_seed(0)
        self.script, self.painted = script, []
        self.association = HybridAssociation(config, 8, num_outputs).eval()
        self._entry, self.association.entry = self.association.entry, self._recorded

    def _recorded(self, read: Read, row: int, labels: Tensor, frame: int):
        self.painted.append(labels.clone())
        return self._entry(read, row, labels, frame)

    def associate(self, levels: tuple[Tensor, ...], memories: Sequence[Memory | None]) -> tuple[tuple, Read]:
        return (levels[0][:, 0, 0, 0].int().tolist(),), self.association.read(levels[-1], memories)

    def heads(self, pyramid: tuple) -> DenseOutputs:
        said = [self.script[number] for number in pyramid[0]]
        at, none = Locations.of(SIZES, CPU), torch.zeros(len(said), 0, 0)
        boxes = stacked([one.boxes for one in said])
        sides = torch.cat([at.points - boxes[..., :2], boxes[..., 2:] - at.points], dim=2) / at.strides[:, None]
        self.masks = stacked([one.masks for one in said])
        return DenseOutputs(
            stacked([one.classes for one in said]), sides, stacked([one.quality for one in said]), none, none, none,
            at, stacked([one.identities for one in said]),
        )  # fmt: skip

    def mask_logits(self, dense: DenseOutputs, image: int, locations: Tensor) -> Tensor:
        return self.masks[image, locations]


def stacked(arrays: list[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.stack(arrays).astype(np.float32))


def random_said(rng: np.random.Generator, num_classes: int, num_outputs: int, quiet: bool = False) -> Said:
    """A frame of random outputs; round masks around their boxes. `quiet`: nothing is found."""
    levels = level_numbers()
    count = len(levels)
    centers = rng.uniform(0, 64, (count, 2))
    half = rng.uniform(4, 24, (count, 2))
    grid = np.arange(16) * 4 + 2
    y, x = (grid[None, :, None] - centers[:, 1, None, None]), (grid[None, None, :] - centers[:, 0, None, None])
    masks = 4 - 4 * ((y / half[:, 1, None, None]) ** 2 + (x / half[:, 0, None, None]) ** 2)
    return Said(
        classes=rng.normal(-9 if quiet else -2, 1.5, (count, num_classes)),
        identities=rng.normal(-1, 1.5, (count, num_outputs)),
        quality=rng.normal(0, 1, count),
        boxes=np.concatenate([centers - half, centers + half], axis=1),
        masks=np.maximum(masks, -8) + rng.normal(0, 0.5, masks.shape),
        levels=levels,
    )


def frame(number: int, stream: str = "s", time_s: float | None = None, size=(44, 60), original=(33, 80),
          script: int | None = None) -> Features:
    """A frame whose first map holds its number in the script; C5 is random, of its own."""
    maps = torch.full((4, 8, 8), float(number if script is None else script))
    c5 = torch.randn(8, 2, 2, generator=torch.Generator().manual_seed(number))
    info = FrameInfo(stream, number, number / 6 if time_s is None else time_s, *original)
    return Features(info, (maps, maps[:, ::2, ::2], c5), size, PADDED)


def stage(network, detect: CandidateConfig | None = None, **settings) -> Identify:
    detect = detect or IdentityDetectConfig()
    (kind,) = [kind for kind in DETECTORS.values() if kind.settings is type(detect)]
    return Identify(network, IdentifyConfig(**settings), kind.of(detect), CPU, detect.min_visible)


def small_iai(num_slots: int = 6, seed: int = 0, **changes) -> IAI:
    """A whole network, lively weights, in evaluation mode."""
    config = IAIConfig(
        num_classes=3, num_slots=num_slots, channels=8, mask_channels=8, association=SMALL_ASSOCIATION,
        backbone=ResNetConfig(blocks=(1, 1, 1, 1), stem_channels=6, mid_channels=4, norm="batch", frozen_stages=0),
        fcos=FCOSConfig(tower_convs=1, groups=2, size_bounds=(16, 32, 64, 128), tower_bias=False), **changes,
    )  # fmt: skip
    network = IAI(config)
    shake(network, seed)
    return network.eval()


def small_iai_maskrcnn(num_slots: int = 6, seed: int = 0, **changes) -> IAIMaskRCNN:
    """The two-stage form, likewise; anchors fit a 64 x 64 frame. Its heads doubt, and rarely see mere background."""
    config = IAIMaskRCNNConfig(
        num_classes=3, num_slots=num_slots, channels=16, hidden=32, mask_convs=1, association=SMALL_ASSOCIATION,
        rpn=RPNConfig(anchor_scale=3.0, max_per_level=60, max_proposals=60),
        backbone=ResNetConfig(blocks=(1, 1, 1, 1), stem_channels=6, mid_channels=4, norm="batch", frozen_stages=0),
        **changes,
    )  # fmt: skip
    network = IAIMaskRCNN(config)
    shake(network, seed)
    with torch.no_grad():
        network.box_head.class_logits.weight.mul_(0.5)
        network.box_head.class_logits.bias[0] -= 3
        if network.identity_head is not None:
            network.identity_head.logits.weight.mul_(0.5)
            network.identity_head.logits.bias[-1] -= 3
    return network.eval()


def clip(network, seed: int, stream: str = "s", frames: int = 9) -> list:
    """A still picture under changing noise: what is seen changes from frame to frame, but not all of it."""
    generator = torch.Generator().manual_seed(seed)
    still = torch.randn(1, 3, 64, 64, generator=generator)
    images = still + 0.5 * torch.randn(frames, 3, 64, 64, generator=generator)
    with torch.inference_mode():
        levels = network.features(images)
    return [replace(frame(t, stream), levels=tuple(level[t] for level in levels)) for t in range(frames)]


def run(identify, records: list, per_call: int = 1) -> list:
    """Detections, frame by frame, of streams that are opened here."""
    for stream in {record.info.stream for record in records}:
        identify.open(stream)
    out = []
    for begin in range(0, len(records), per_call):
        out += identify(records[begin : begin + per_call])
    return out
