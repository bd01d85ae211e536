"""FCOS's three losses, which every network with its head shares: class, box and centre-ness.

In:     what was said of all P locations of a batch, and which of them answer for what (models/targets.py)
Out:    three numbers by name
State:  none
Source: Tian et al., FCOS, ICCV 2019; CrossVIS specification 3.3, TLTM specification 3.4. Positives and the sum of
        their centre-ness are means over all workers.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from models.fcos_decode import Dense
from models.losses import centerness_loss, giou_loss, sigmoid_focal_loss
from models.targets import Assignment

Average = Callable[[Tensor], Tensor]
"""The mean of a number over all workers."""


def fcos_losses(dense: Dense, found: Assignment, average: Average, giou_added: float = 1.0) -> dict[str, Tensor]:
    """Class: focal, of all locations, over the positives; box: GIoU, weighted by centre-ness; centre-ness itself.

    Without positives the last two are 0, and the first is divided by 1.
    """
    image, location = found.image, found.location
    one_hot = torch.zeros_like(dense.class_logits, dtype=torch.float32)
    one_hot[image, location, found.labels[image, location]] = 1
    centerness = found.centerness
    positives = average(torch.tensor(float(len(image)), device=image.device)).clamp(min=1)
    total_centerness = average(centerness.sum()).clamp(min=1e-6)
    boxes = dense.distances[image, location], found.distances
    return {
        "class": sigmoid_focal_loss(dense.class_logits, one_hot) / positives,
        "box": giou_loss(*boxes, centerness, giou_added) / total_centerness,
        "centerness": centerness_loss(dense.centerness[image, location], centerness) / positives,
    }
