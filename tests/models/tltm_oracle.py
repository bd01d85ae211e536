"""What the TLTM specification says, written a second time: loops over float64 numbers, to hold models/ against.

Slow and plain on purpose, and read from the specification alone; the section stands beside each function. Nothing here
calls models/.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from tests.models.naive_maps import bilinear


def sigmoid(z: float) -> float:
    return 1 / (1 + math.exp(-z)) if z >= 0 else math.exp(z) / (1 + math.exp(z))


def level(box: Sequence[float], area: float) -> int:
    """2.6: clamp(ceil(5 - log2(A_image / A_box)), 3, 5)."""
    own = (box[2] - box[0]) * (box[3] - box[1])
    return 3 if own == 0 else min(max(math.ceil(5 - math.log2(area / own)), 3), 5)


def roi_align(feature: np.ndarray, box: Sequence[float], size: int, scale: float) -> np.ndarray:
    """2.6: half-pixel aligned, adaptive sampling.  (C, H, W) -> (C, size, size)"""
    x1, y1, x2, y2 = (edge * scale - 0.5 for edge in box)
    w, h = x2 - x1, y2 - y1
    across, down = math.ceil(w / size), math.ceil(h / size)
    out = np.zeros((len(feature), size, size))
    for i in range(size):
        for j in range(size):
            for v in range(down):
                for u in range(across):
                    y, x = y1 + (i + (v + 0.5) / down) * h / size, x1 + (j + (u + 0.5) / across) * w / size
                    out[:, i, j] += bilinear(feature, y, x)
    return out / max(across * down, 1)


def mask_target(mask: np.ndarray, box: Sequence[float], side: int = 28) -> np.ndarray:
    """3.4: aligned RoIAlign of the bitmask by the box, then >= 0.5.  (H, W) -> (side, side)"""
    return (roi_align(mask[None].astype(float), box, side, 1.0)[0] >= 0.5).astype(float)


def spatial_attention(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """2.7: x * sigmoid(conv3x3 of [mean over channels, max over channels]).  (C, h, w), (1, 2, 3, 3)"""
    _, h, w = x.shape
    seen = np.zeros((2, h + 2, w + 2))
    seen[0, 1:-1, 1:-1], seen[1, 1:-1, 1:-1] = x.mean(0), x.max(0)
    out = np.empty_like(x)
    for i in range(h):
        for j in range(w):
            z = sum(weight[0, c, a, b] * seen[c, i + a, j + b] for c in (0, 1) for a in range(3) for b in range(3))
            out[:, i, j] = x[:, i, j] * sigmoid(z)
    return out


def cross_entropy(logits: np.ndarray, targets: np.ndarray) -> float:
    """Mean binary cross-entropy."""
    values = [-math.log(sigmoid(z) if t else sigmoid(-z))
              for z, t in zip(logits.ravel().tolist(), targets.ravel().tolist(), strict=True)]
    return sum(values) / len(values)


# ------------------------------------------------------------------------------------------ 2.10, the graph


def linear(layer, x: np.ndarray) -> np.ndarray:
    return layer.weight.detach().double().numpy() @ x + layer.bias.detach().double().numpy()


def layer_norm(layer, x: np.ndarray) -> np.ndarray:
    centred = x - x.mean()
    whitened = centred / math.sqrt((centred**2).mean() + 1e-5)
    return whitened * layer.weight.detach().double().numpy() + layer.bias.detach().double().numpy()


def mlp(net, x: np.ndarray) -> np.ndarray:
    """Lin, ReLU, Lin, LayerNorm, ReLU, Lin."""
    x = np.maximum(linear(net[0], x), 0)
    x = np.maximum(layer_norm(net[3], linear(net[2], x)), 0)
    return linear(net[5], x)


def graph(net, known: np.ndarray, current: np.ndarray, rounds: int = 1) -> np.ndarray:
    """Logits (N, M): every edge by itself, reference first; the references alone are updated."""
    nodes = [z.copy() for z in known]
    for _ in range(rounds):
        after = []
        for z in nodes:
            message = np.zeros(net.edge_mlp[5].out_features)
            for other in current:
                message += mlp(net.edge_mlp, np.concatenate([z, other]))
            after.append(z + mlp(net.node_mlp, np.concatenate([z, message])))
        nodes = after
    out = np.zeros((len(nodes), len(current)))
    for i, z in enumerate(nodes):
        for j, other in enumerate(current):
            hidden = np.maximum(linear(net.scorer[0], np.concatenate([z, other])), 0)
            out[i, j] = linear(net.scorer[2], hidden)[0]
    return out
