"""A TLTM and a CenterMask small enough for loops to check, with lively weights, and a batch of pairs for them."""

from __future__ import annotations

from dataclasses import fields, replace

from models.centermask import CenterMask, CenterMaskConfig
from models.fcos import FCOSConfig
from models.resnet import ResNetConfig
from models.targets import PairBatch
from models.tltm import TLTM, TLTMConfig
from tests.models.small import frame, pairs, shake

SMALL_TLTM = TLTMConfig(
    num_classes=3,
    backbone=ResNetConfig(blocks=(1, 1, 1, 1), stem_channels=6, mid_channels=4, frozen_stages=0),
    channels=8,
    fcos=FCOSConfig(tower_convs=1, groups=2, size_bounds=(16, 32, 64, 128), center_sampling="box"),
    mask_convs=1,
    object_dim=16,
    graph_hidden=8,
)
"""Its norms are frozen: passes cannot tell each other apart."""
SMALL_CENTERMASK = CenterMaskConfig(**{
    f.name: getattr(SMALL_TLTM, f.name) for f in fields(CenterMaskConfig) if f.name != "regions"
})  # fmt: skip


def small_tltm(**changes) -> TLTM:
    """Training mode. `changes` replace fields of SMALL_TLTM."""
    network = TLTM(replace(SMALL_TLTM, **changes))
    shake(network, 0)
    return network


def small_centermask(**changes) -> CenterMask:
    network = CenterMask(replace(SMALL_CENTERMASK, **changes))
    shake(network, 0)
    return network


def three_pairs() -> PairBatch:
    """One instance stays and one is new; the second pair lacks objects in its later frame; in the third one of two is
    left."""
    later = [frame([(3, 3, 40, 33), (20, 18, 62, 61)], seed=6), frame([]), frame([(8, 9, 30, 44)], seed=7)]
    earlier = [frame([(13, 3, 50, 33)], seed=8), frame([(8, 9, 30, 44)], seed=9), frame([(4, 4, 20, 60),
               (10, 9, 33, 44)], seed=10)]                                                                # fmt: skip
    return pairs((later, earlier), ([[-1, 0], [], [1]], [[1], [-1], [-1, 0]]))
