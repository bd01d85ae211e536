"""Reading a map between its cells, number by number: what oracles of regions share."""

from __future__ import annotations

import numpy as np


def bilinear(feature: np.ndarray, y: float, x: float) -> np.ndarray:
    """(C, H, W) at (y, x), legacy rules: 0 beyond a cell from the map, else held at its rim.  -> (C,)"""
    h, w = feature.shape[1:]
    if y < -1 or y > h or x < -1 or x > w:
        return np.zeros(len(feature))
    y, x = min(max(y, 0.0), h - 1.0), min(max(x, 0.0), w - 1.0)
    top, left = int(y), int(x)
    bottom, right = min(top + 1, h - 1), min(left + 1, w - 1)
    dy, dx = y - top, x - left
    above = (1 - dx) * feature[:, top, left] + dx * feature[:, top, right]
    below = (1 - dx) * feature[:, bottom, left] + dx * feature[:, bottom, right]
    return (1 - dy) * above + dy * below
