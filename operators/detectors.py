"""Which detector reads the heads of which network, with its settings: the `detect` of a network's file."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

from operators.detect import DetectConfig, detect
from operators.detect_regions import RegionDetectConfig, detect_regions
from operators.network import Detect


@dataclass(frozen=True)
class DetectorKind:
    """A detector's settings, and the function that has them as its last argument."""

    settings: type
    function: Any

    def of(self, settings: Any) -> Detect:
        return functools.partial(self.function, cfg=settings)


DETECTORS = {
    "condinst": DetectorKind(DetectConfig, detect),
    "crossvis": DetectorKind(DetectConfig, detect),
    "masktrack_rcnn": DetectorKind(RegionDetectConfig, detect_regions),
}
"""name in models.NETWORKS -> its detector."""
