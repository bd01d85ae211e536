"""Which detector reads the heads of which network, with its settings: the `detect` of a network's file."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

from models.cico_tubes import TubeConfig, find_tubes
from models.fcos_decode import FCOSDecodeConfig
from operators.detect import DetectConfig, detect
from operators.detect_objects import detect_objects
from operators.detect_regions import RegionDetectConfig, detect_regions
from operators.identities import IdentityDetectConfig, find_identities
from operators.identity_regions import RegionIdentityConfig, find_region_identities


@dataclass(frozen=True)
class DetectorKind:
    """A detector's settings, and the function that has them as its last argument."""

    settings: type
    function: Any
    remembers: bool = False
    """Its network has a memory, so it is read by the stage `identify` (its `Find`), not by `heads` (its `Detect`)."""
    clips: bool = False
    """Its heads speak of clips, so they want windows of frames, which the stage `heads` does not give."""
    relates: bool = False
    """The stage `relate` can follow its objects, in pixels of the network input."""

    def of(self, settings: Any) -> Any:
        return functools.partial(self.function, cfg=settings)


DETECTORS = {
    "centermask": DetectorKind(FCOSDecodeConfig, detect_objects, relates=True),
    "cico": DetectorKind(TubeConfig, find_tubes, clips=True),
    "condinst": DetectorKind(DetectConfig, detect),
    "crossvis": DetectorKind(DetectConfig, detect),
    "iai_condinst": DetectorKind(IdentityDetectConfig, find_identities, remembers=True),
    "iai_maskrcnn": DetectorKind(RegionIdentityConfig, find_region_identities, remembers=True),
    "masktrack_rcnn": DetectorKind(RegionDetectConfig, detect_regions),
    "tltm": DetectorKind(FCOSDecodeConfig, detect_objects, relates=True),
}
"""name in models.NETWORKS -> its detector."""
