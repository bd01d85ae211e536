"""What the CrossVIS specification says, written a second time: loops over float64 numbers, to hold models/ against.

Slow and plain on purpose, and read from the specification alone; the section stands beside each function. Nothing here
calls models/. Arrays are numpy, images are indexed [row, column].
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

STRIDES = (8, 16, 32, 64, 128)


def sigmoid(z: float) -> float:
    return 1 / (1 + math.exp(-z))


# ------------------------------------------------------------------------------------------ layers


def conv(x: Tensor, weight: Tensor, bias: Tensor | None = None, stride: int = 1) -> Tensor:
    """A convolution in float64 that keeps the size at stride 1."""
    weight = weight.detach().double()
    bias = None if bias is None else bias.detach().double()
    return F.conv2d(x.double(), weight, bias, stride, padding=weight.shape[-1] // 2)


def batch_norm(x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor) -> Tensor:
    """2.2: x * w / sqrt(v + 1e-5) + b - m * w / sqrt(v + 1e-5), channel by channel."""
    out = torch.empty_like(x, dtype=torch.float64)
    for c in range(x.shape[1]):
        scale = weight[c].item() / math.sqrt(var[c].item() + 1e-5)
        out[:, c] = x[:, c].double() * scale + bias[c].item() - mean[c].item() * scale
    return out


def group_norm(x: Tensor, groups: int, weight: Tensor, bias: Tensor) -> Tensor:
    """2.4: mean and variance of each image's group of channels, eps 1e-5."""
    x, out = x.double(), torch.empty_like(x, dtype=torch.float64)
    width = x.shape[1] // groups
    for b in range(len(x)):
        for g in range(groups):
            part = x[b, g * width : (g + 1) * width]
            whitened = (part - part.mean()) / math.sqrt(part.var(unbiased=False).item() + 1e-5)
            for c in range(width):
                out[b, g * width + c] = whitened[c] * weight[g * width + c].item() + bias[g * width + c].item()
    return out


def upsample_axis(values: Sequence[float], factor: int) -> list[float]:
    """2.7: out[j] = lerp(in, clamp((j - floor(f / 2)) / f, 0, n - 1))."""
    n, out = len(values), []
    for j in range(factor * n):
        p = min(max((j - factor // 2) / factor, 0), n - 1)
        low = math.floor(p)
        high = min(low + 1, n - 1)
        out.append(values[low] + (p - low) * (values[high] - values[low]))
    return out


def upsample(image: np.ndarray, factor: int) -> np.ndarray:
    """2.7 along columns, then along rows.  (h, w) -> (f h, f w)"""
    wide = np.array([upsample_axis(list(row), factor) for row in image])
    return np.array([upsample_axis(list(column), factor) for column in wide.T]).T


def mask_logits(features: np.ndarray, theta: np.ndarray, point: Sequence[float], divisor: float) -> np.ndarray:
    """2.5 and 2.8, one instance, pixel by pixel.  features (8, h, w), theta (169,) -> (2h, 2w)"""
    _, h, w = features.shape
    out = np.empty((h, w))
    for i in range(h):
        for j in range(w):
            x = [(point[0] - (8 * j + 4)) / divisor, (point[1] - (8 * i + 4)) / divisor]
            x += [features[c, i, j] for c in range(8)]
            first = [theta[152 + o] + sum(theta[10 * o + k] * x[k] for k in range(10)) for o in range(8)]
            first = [max(v, 0) for v in first]
            second = [theta[160 + o] + sum(theta[80 + 8 * o + k] * first[k] for k in range(8)) for o in range(8)]
            second = [max(v, 0) for v in second]
            out[i, j] = theta[168] + sum(theta[144 + k] * second[k] for k in range(8))
    return upsample(out, 2)


# ------------------------------------------------------------------------------------------ targets


def level_sizes(height: int, width: int) -> list[tuple[int, int]]:
    """2.1 and 2.3: the maps of an input whose sides are multiples of 32; strides 64 and 128 round up."""
    return [(math.ceil(height / s), math.ceil(width / s)) for s in STRIDES]


def locations(height: int, width: int) -> list[tuple[int, int, float, float]]:
    """2.1: (level, stride, x, y) of every cell, level first, row by row."""
    places = []
    for level, (rows, columns) in enumerate(level_sizes(height, width)):
        s = STRIDES[level]
        places += [(level, s, s * j + s / 2, s * i + s / 2) for i in range(rows) for j in range(columns)]
    return places


def centroid(mask: np.ndarray) -> tuple[float, float]:
    """3.2: mean pixel index (x, y)."""
    pixels = [(x, y) for y in range(mask.shape[0]) for x in range(mask.shape[1]) if mask[y, x]]
    return sum(x for x, _ in pixels) / len(pixels), sum(y for _, y in pixels) / len(pixels)


def size_range(level: int, bounds: Sequence[float]) -> tuple[float, float]:
    """2.1: the sizes max(l, t, r, b) of a level, both ends inclusive."""
    return (-1, *bounds)[level], (*bounds, math.inf)[level]


def positives(
    boxes: np.ndarray, masks: np.ndarray, bounds: Sequence[float]
) -> dict[int, tuple[int, tuple[float, float, float, float]]]:
    """3.2, one image: location -> (instance, (l, t, r, b) in strides). Two candidates of equal area must not come."""
    centers = [centroid(mask) for mask in masks]
    found = {}
    for p, (level, stride, x, y) in enumerate(locations(*masks.shape[1:]) if len(masks) else []):
        candidates = []
        for g, (x1, y1, x2, y2) in enumerate(boxes.tolist()):
            cx, cy = centers[g]
            left, right = max(cx - 1.5 * stride, x1), min(cx + 1.5 * stride, x2)
            top, bottom = max(cy - 1.5 * stride, y1), min(cy + 1.5 * stride, y2)
            sides = (x - x1, y - y1, x2 - x, y2 - y)
            low, high = size_range(level, bounds)
            if left < x < right and top < y < bottom and low <= max(sides) <= high:
                candidates.append(((x2 - x1) * (y2 - y1), g, tuple(side / stride for side in sides)))
        if candidates:
            candidates.sort()
            assert len(candidates) == 1 or candidates[0][0] < candidates[1][0], "a tie of areas is not specified"
            found[p] = candidates[0][1:]
    return found


def centerness(sides: Sequence[float]) -> float:
    left, top, right, bottom = sides
    return math.sqrt(min(left, right) / max(left, right) * min(top, bottom) / max(top, bottom))


# ------------------------------------------------------------------------------------------ losses


def focal(logits: np.ndarray, targets: np.ndarray) -> float:
    """3.3: sum of -alpha_t (1 - p_t)^2 ln p_t, alpha 0.25 for positives and 0.75 for the rest."""
    total = 0.0
    for z, t in zip(logits.ravel().tolist(), targets.ravel().tolist(), strict=True):
        p_t = sigmoid(z) if t else sigmoid(-z)
        total -= (0.25 if t else 0.75) * (1 - p_t) ** 2 * math.log(p_t)
    return total


def giou(pred: Sequence[float], target: Sequence[float]) -> float:
    """3.3: GIoU of two boxes around one point, given as (l, t, r, b); the IoU with +1 above and below."""
    area = (pred[0] + pred[2]) * (pred[1] + pred[3])
    area_target = (target[0] + target[2]) * (target[1] + target[3])
    small = [min(a, b) for a, b in zip(pred, target, strict=True)]
    large = [max(a, b) for a, b in zip(pred, target, strict=True)]
    intersection = (small[0] + small[2]) * (small[1] + small[3])
    union = area + area_target - intersection
    hull = (large[0] + large[2]) * (large[1] + large[3])
    return (intersection + 1) / (union + 1) - (hull - union) / hull


def box_loss(pred: np.ndarray, target: np.ndarray, weights: np.ndarray) -> float:
    """3.3: sum of c* (1 - GIoU), not yet divided by S."""
    rows = zip(pred.tolist(), target.tolist(), weights.tolist(), strict=True)
    return sum(c * (1 - giou(p, t)) for p, t, c in rows)


def cross_entropy(logits: np.ndarray, targets: np.ndarray) -> float:
    """3.3: sum of binary cross-entropies."""
    pairs = zip(logits.tolist(), targets.tolist(), strict=True)
    return -sum(t * math.log(sigmoid(z)) + (1 - t) * math.log(sigmoid(-z)) for z, t in pairs)


def dice(logits: np.ndarray, mask: np.ndarray) -> float:
    """3.3: 1 - 2 sum(m m*) / (sum m^2 + sum m*^2 + 1e-5)."""
    overlap = predicted = true = 0.0
    for z, t in zip(logits.ravel().tolist(), mask.ravel().tolist(), strict=True):
        m = sigmoid(z)
        overlap, predicted, true = overlap + m * t, predicted + m * m, true + t * t
    return 1 - 2 * overlap / (predicted + true + 1e-5)


def identity_logits(e: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """2.9: kappa * e / |e| . W^T + b for one embedding (D,), kappa = sqrt(2) ln(M - 1)."""
    kappa = math.sqrt(2) * math.log(len(weight) - 1)
    norm = math.sqrt(sum(v * v for v in e.tolist()))
    return np.array([kappa * sum(a * b for a, b in zip(e, w, strict=True)) / norm + c
                     for w, c in zip(weight, bias, strict=True)])
