"""Released checkpoints -> the networks here: a pure function from state dict to state dict for each release.

In:     tensors by the names that a release gave them
Out:    tensors by ours (`Renamed`), then, held against a network, its state and a `Report`: used, unused, missing
State:  none
Source: section 6 of the specifications of CrossVIS, IAI, TLTM and CiCo
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from models.importers.centermask import from_centermask
from models.importers.cico import FRESH_AFTER_STILLS, from_cico, from_cico_stills, inflated
from models.importers.crossvis import from_crossvis
from models.importers.detectron2 import from_detectron2
from models.importers.dla import from_dla
from models.importers.iai import from_iai, from_mmdetection
from models.importers.masktrack import from_mask_rcnn, from_masktrack
from models.importers.renaming import Renamed
from models.importers.report import Allowance, Report, fit
from models.importers.swin import from_swin
from models.importers.tltm import from_tltm
from models.importers.torchvision import from_torchvision
from models.importers.transplant import transplanted
from models.importers.yolact import from_yolact
from models.inputs import InputConfig

__all__ = [
    "IAI_PIXELS", "MSRA", "RELEASES", "TORCHVISION", "Allowance", "Release", "Renamed", "Report", "fit", "guess",
    "transplanted",
]  # fmt: skip

MSRA = InputConfig(channel_order="bgr", mean=(103.530, 116.280, 123.675), std=(1.0, 1.0, 1.0))
"""Pixels as Caffe's ResNets want them: the mean off, no scaling."""
TORCHVISION = InputConfig(channel_order="rgb", mean=(123.675, 116.28, 103.53), std=(58.395, 57.12, 57.375))
"""Pixels as torchvision's networks want them, and others trained beside them."""
IAI_PIXELS = InputConfig(channel_order="rgb", mean=(123.68, 116.779, 103.939), std=(58.393, 57.12, 57.375))
"""Pixels as IAI wants them: green is 0.5 brighter than torchvision's."""
YOLACT_PIXELS = InputConfig(channel_order="rgb", mean=(123.68, 116.78, 103.94), std=(58.40, 57.12, 57.38))
CICO_PIXELS = InputConfig(channel_order="rgb", mean=(103.53, 116.28, 123.675), std=(57.375, 57.12, 58.395))
"""Red and blue have each other's mean and deviation: a slip of the release, which its weights have learnt."""
_ADDED = ("proxies.", "calibration.")
"""Never in a release: the specification's calibration is unpublished, and proxies serve the release's own training."""
_OF_CLASSES = ("fcos.class_logits.", "proxies.")
_OF_SLOTS = ("identity_head.logits.", "association.bank.conv.weight")
_OF_IAI = ("association.", "identity_head.")
_TOP, _TOP_OF_REGIONS = "fpn.lateral.2.weight", "fpn.lateral.3.weight"
"""Without IAI's classification projector the pyramid's top reads fewer channels."""
_OF_REGION_CLASSES = ("box_head.class_logits.", "box_head.deltas.", "mask_head.logits.")
_OF_RELATIONS = ("fuser.", "encoder.", "graph.")
_OF_MASK_CLASSES = ("fcos.class_logits.", "mask_head.logits.")
_OF_CLIPS = (
    "clip_heads.", "prototypes.refine.", "prototypes.deconv.", "prototypes.tower.0.1.", "prototypes.tower.1.1.",
    "prototypes.tower.2.1.", "prototypes.last.1.",
)  # fmt: skip
"""What Yolact has not: CiCo's heads, and the norms of its mask head."""
_FIRST_STAGE = "backbone.norms.0."
"""Of Swin: the norm of a map that the pyramid does not read."""


@dataclass(frozen=True, kw_only=True)
class Release:
    """Where weights come from, and what they take for granted."""

    rename: Callable[[Mapping[str, Tensor]], Renamed]
    what: str
    """In words, for messages."""
    allowed: Allowance
    pixels: InputConfig
    """Order, mean and scale of the pixels it was trained on; the sizes in it do not count."""
    expects: Mapping[str, object] = field(default_factory=dict)
    """What else it was trained with and no shape shows: place in the network's settings -> value. A place that the
    network's settings do not have does not count."""
    sign: str | None = None
    """How the names of ours begin that tell it from a release whose names are some of its own."""
    adapt: Callable[[Renamed, Mapping[str, Tensor]], Renamed] = lambda renamed, own: renamed
    """Brings the tensors to the shapes of a network's own, where they can begin larger ones."""
    class_rows: tuple[str, ...] = ()
    """How the names of ours begin that have a row for each class, where single rows can begin another network's."""


RELEASES = {
    "adelaidet-condinst": Release(
        rename=from_crossvis,
        what="CondInst of AdelaiDet, trained on COCO",
        allowed=Allowance(absent=(*_ADDED, "embedding."), resizable=_OF_CLASSES),
        pixels=MSRA,
        expects={"backbone.stride_in": "1x1", "coordinates": "first"},
    ),
    "crossvis": Release(
        rename=from_crossvis,
        what="CrossVIS, trained on YouTube-VIS 2019",
        sign="embedding.",
        allowed=Allowance(absent=_ADDED, resizable=_OF_CLASSES),
        pixels=MSRA,
        expects={"backbone.stride_in": "1x1", "coordinates": "first"},
    ),
    "detectron2-imagenet": Release(
        rename=from_detectron2,
        what="an ImageNet ResNet of detectron2 (MSRA)",
        allowed=Allowance(needed=("backbone.",)),
        pixels=MSRA,
        expects={"backbone.name": "resnet", "backbone.stride_in": "1x1"},
    ),
    "torchvision": Release(
        rename=from_torchvision,
        what="an ImageNet ResNet of torchvision",
        allowed=Allowance(needed=("backbone.",)),
        pixels=TORCHVISION,
        expects={"backbone.name": "resnet", "backbone.stride_in": "3x3"},
    ),
    "dla34-imagenet": Release(
        rename=from_dla,
        what="an ImageNet DLA-34",
        allowed=Allowance(needed=("backbone.",)),
        pixels=TORCHVISION,
        expects={"backbone.name": "dla34"},
    ),
    "mmdetection-mask-rcnn": Release(       # before the next, whose names it shares but for the tracking head
        rename=from_mask_rcnn,
        what="Mask R-CNN of MMDetection, trained on COCO",
        allowed=Allowance(
            absent=(*_OF_IAI, "track_head.", "calibration."), resizable=(*_OF_REGION_CLASSES, _TOP_OF_REGIONS)
        ),
        pixels=TORCHVISION,
        expects={"backbone.stride_in": "3x3"},
    ),
    "masktrack-rcnn": Release(
        rename=from_masktrack,
        what="MaskTrack R-CNN, trained on YouTube-VIS 2019",
        allowed=Allowance(absent=("calibration.",)),
        pixels=TORCHVISION,
        expects={"backbone.stride_in": "3x3"},
    ),
    "iai-coco": Release(
        rename=from_iai,
        what="CondInst of IAI's code family, trained on COCO",
        allowed=Allowance(absent=_OF_IAI, resizable=(*_OF_CLASSES, _TOP)),
        pixels=IAI_PIXELS,
        expects={"backbone.stride_in": "3x3", "fcos.tower_bias": False, "coordinates": "first"},
    ),
    "iai": Release(
        rename=from_iai,
        what="IAI + CondInst, trained on YouTube-VIS or OVIS",
        allowed=Allowance(resizable=(*_OF_CLASSES, *_OF_SLOTS)),
        pixels=IAI_PIXELS,
        expects={"backbone.stride_in": "3x3", "fcos.tower_bias": False, "coordinates": "first"},
        sign="association.",
    ),
    "mmdetection-condinst": Release(
        rename=from_mmdetection,
        what="CondInst of MMDetection 3, trained on COCO",
        allowed=Allowance(absent=_OF_IAI, resizable=(*_OF_CLASSES, _TOP)),
        pixels=TORCHVISION,
        expects={"backbone.stride_in": "3x3", "fcos.tower_bias": True, "coordinates": "first"},
    ),
    "centermask2": Release(                 # before the next, whose names are these and more
        rename=from_centermask,
        what="CenterMask2 on a ResNet, trained on COCO",
        allowed=Allowance(absent=_OF_RELATIONS, resizable=_OF_MASK_CLASSES),
        pixels=MSRA,
        expects={"backbone.name": "resnet", "backbone.stride_in": "1x1", "fcos.tower_bias": True},
        class_rows=_OF_MASK_CLASSES,
    ),
    "tltm": Release(
        rename=from_tltm,
        what="TLTM, trained on YouTube-VIS 2019",
        allowed=Allowance(resizable=_OF_MASK_CLASSES),
        pixels=MSRA,
        expects={"backbone.name": "resnet", "backbone.stride_in": "1x1", "fcos.tower_bias": True},
    ),
    "yolact": Release(
        rename=from_yolact,
        what="Yolact, trained on COCO",
        allowed=Allowance(absent=_OF_CLIPS, resizable=("prototypes.output.",)),
        pixels=YOLACT_PIXELS,
        expects={"backbone.name": "resnet", "backbone.stride_in": "3x3"},
        adapt=inflated,
    ),
    "cico-coco": Release(                   # before the next, whose names are these and more
        rename=from_cico_stills,
        what="CiCo's form for stills, trained on COCO",
        allowed=Allowance(absent=FRESH_AFTER_STILLS, unread=(_FIRST_STAGE,)),
        pixels=CICO_PIXELS,
        expects={"backbone.stride_in": "3x3"},
        adapt=inflated,
    ),
    "cico": Release(
        rename=from_cico,
        what="CiCo, trained on YouTube-VIS or OVIS",
        allowed=Allowance(resizable=("clip_heads.class_logits.",), unread=(_FIRST_STAGE,)),
        pixels=CICO_PIXELS,
        expects={"backbone.stride_in": "3x3"},
        sign="clip_heads.embeddings.",
    ),
    "swin-imagenet": Release(
        rename=from_swin,
        what="an ImageNet Swin transformer, of its authors or of torchvision",
        allowed=Allowance(needed=("backbone.",), absent=("backbone.norms.",)),
        pixels=TORCHVISION,
        expects={"backbone.name": "swin"},
    ),
}
"""name -> release. Used by the command, by the error for a wrong name, and by the tests."""


def guess(state: Mapping[str, Tensor]) -> str | None:
    """The release whose names these are: the one that knows most of them, and at least half. None where none does."""
    best, most = None, len(state) / 2
    for name, release in RELEASES.items():
        try:
            renamed = release.rename(state)
        except ValueError:
            continue
        sign = release.sign
        known = renamed.known + (sign is not None and any(ours.startswith(sign) for ours in renamed.state))
        if known > most:
            best, most = name, known
    return best
