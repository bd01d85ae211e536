"""Step 6, objects: the features of a region as one vector, a node of the object graph.

In:     features of R regions (R, C, 14, 14)
Out:    (R, D); no region: (0, D)
State:  none
Source: TLTM specification 2.9: three convolutions and one linear layer, as released; the paper has two.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from models.area_regions import SIZE


class ObjectEncoder(nn.Module):
    """Convolutions to D, D/4 and D/16 channels, halved in size after the first; then one linear layer, bare."""

    def __init__(self, channels: int, dim: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, dim, 3, padding=1)
        self.conv2 = nn.Conv2d(dim, dim // 4, 3, padding=1)
        self.conv3 = nn.Conv2d(dim // 4, dim // 16, 3, padding=1)
        self.fc = nn.Linear(dim // 16 * (SIZE // 2) ** 2, dim)

    def forward(self, regions: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv1(regions)), 2)                                          # (R, D, 7, 7)
        x = F.relu(self.conv2(x))                                                                 # (R, D/4, 7, 7)
        x = F.relu(self.conv3(x))                                                                 # (R, D/16, 7, 7)
        return self.fc(x.flatten(1))
