"""torchvision's ImageNet ResNets -> the backbone.

Also in detectron2's spelling (stem.conv1, res2.0.conv1), in which detectron2 hands the same weights on. They want RGB
divided by a standard deviation, and the stride in the 3x3: not what CrossVIS's R-50 is built for.
Source: CrossVIS specification 6.3, rule 7, for the names; 5.2 for the style.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from models.importers.renaming import Renamed, from_torchvision_spelling, rename, resnet_rules


def from_torchvision(state: Mapping[str, Tensor]) -> Renamed:
    """torchvision's ResNet at the top of the file -> `backbone.*`."""
    ignored = ((r"(stem\.)?fc\..*", "the ImageNet classifier"),)
    return rename(state, resnet_rules(""), ignored, respell=from_torchvision_spelling)
