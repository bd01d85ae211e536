"""What the IAI specification says, written a second time: loops over float64 numbers, to hold models/ against.

Read from the specification alone; the section stands beside each function. Nothing here calls models/; parameters come
as a dictionary by the names they have there. Tokens are indexed row by row.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from torch import Tensor, nn

Arrays = Mapping[str, np.ndarray]


def parameters(module: nn.Module) -> dict[str, np.ndarray]:
    return {name: value.detach().double().numpy() for name, value in module.named_parameters()}


def array(x: Tensor) -> np.ndarray:
    return x.detach().double().numpy()


# ------------------------------------------------------------------------------------------ 2.4 bank


def bank(labels: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """labels (H, W); pixels beyond the image, and those labelled -1, add nothing.  -> (n, D)"""
    height, width = labels.shape
    out = []
    for i in range(height // 32):
        for j in range(width // 32):
            e = bias.copy()
            for a in range(33):
                for b in range(33):
                    y, x = 32 * i - 16 + a, 32 * j - 16 + b
                    if 0 <= y < height and 0 <= x < width and labels[y, x] >= 0:
                        e += weight[:, labels[y, x], a, b]
            out.append(e)
    return np.array(out)


# ------------------------------------------------------------------------------------------ 2.3 block


def positions(h: int, w: int, dim: int) -> np.ndarray:
    """(n, dim): dim / 2 channels for y, then as many for x."""
    half, out = dim // 2, np.zeros((h * w, dim))
    for y in range(h):
        for x in range(w):
            for place, (at, count) in enumerate(((y, h), (x, w))):
                scaled = 2 * math.pi * at / (count - 1 + 1e-6)
                for i in range(half):
                    angle = scaled / 10000 ** (2 * math.floor(i / 2) / half)
                    out[y * w + x, place * half + i] = math.sin(angle) if i % 2 == 0 else math.cos(angle)
    return out


def linear(p: Arrays, name: str, x: np.ndarray) -> np.ndarray:
    return x @ p[f"{name}.weight"].T + p[f"{name}.bias"]


def layer_norm(p: Arrays, name: str, x: np.ndarray) -> np.ndarray:
    out = []
    for row in x:
        mean = sum(row) / len(row)
        variance = sum((v - mean) ** 2 for v in row) / len(row)
        out.append((row - mean) / math.sqrt(variance + 1e-5) * p[f"{name}.weight"] + p[f"{name}.bias"])
    return np.array(out)


def softmax(logits: Sequence[float]) -> list[float]:
    top = max(logits)
    parts = [math.exp(z - top) for z in logits]
    return [part / sum(parts) for part in parts]


def attention(q: np.ndarray, k: np.ndarray, v: np.ndarray, heads: int) -> np.ndarray:
    """Plain, head after head of adjoining channels, scale 1 / sqrt(d)."""
    d, out = q.shape[1] // heads, np.zeros_like(q)
    for a in range(heads):
        part = slice(a * d, (a + 1) * d)
        for p in range(len(q)):
            weights = softmax([float(q[p, part] @ key[part]) / math.sqrt(d) for key in k])
            out[p, part] = sum(weight * value[part] for weight, value in zip(weights, v, strict=True))
    return out


def local(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, size: tuple[int, int], heads: int, radius: int, p: Arrays, name: str
) -> np.ndarray:
    """Window around each token, by loops over its offsets; index (dy + r) * (2r + 1) + dx + r. Projected."""
    (h, w), d, out = size, q.shape[1] // heads, np.zeros_like(q)
    keys, bias, values = (p[f"{name}relative_{part}"] for part in ("keys", "bias", "values"))
    for a in range(heads):
        part = slice(a * d, (a + 1) * d)
        for y in range(h):
            for x in range(w):
                query, logits, added = q[y * w + x, part], [], []
                for dy in range(-radius, radius + 1):
                    for dx in range(-radius, radius + 1):
                        if 0 <= y + dy < h and 0 <= x + dx < w:
                            o, there = (dy + radius) * (2 * radius + 1) + dx + radius, (y + dy) * w + x + dx
                            relative = float(keys[a, o] @ query + bias[a, o])
                            logits.append(float(query @ k[there, part]) / math.sqrt(d) + relative)
                            added.append(v[there, part] + values[a, o])
                out[y * w + x, part] = sum(s * z for s, z in zip(softmax(logits), added, strict=True))
    return linear(p, f"{name}projection", out)


def feed_forward(x: np.ndarray, size: tuple[int, int], groups: int, p: Arrays, name: str) -> np.ndarray:
    """linear, GroupNorm, GELU (erf), gate, depthwise 5x5, linear."""
    h, w = size
    u = linear(p, f"{name}.expand", x).T.reshape(-1, h, w)
    width = len(u) // groups
    for g in range(groups):
        part = u[g * width : (g + 1) * width]
        u[g * width : (g + 1) * width] = (part - part.mean()) / math.sqrt(part.var() + 1e-5)
    u = u * p[f"{name}.norm.weight"][:, None, None] + p[f"{name}.norm.bias"][:, None, None]
    u = np.vectorize(lambda z: 0.5 * z * (1 + math.erf(z / math.sqrt(2))))(u)
    alpha, gamma, beta = (p[f"{name}.gate.{part}"].ravel() for part in ("alpha", "gamma", "beta"))
    e = [alpha[c] * math.sqrt((u[c] ** 2).sum() + 1e-5) for c in range(len(u))]
    root = math.sqrt(sum(v * v for v in e) / len(e) + 1e-5)
    u = np.array([u[c] * (1 + math.tanh(gamma[c] * e[c] / root + beta[c])) for c in range(len(u))])
    mixed, kernel = np.zeros_like(u), p[f"{name}.mix.weight"]
    for y in range(h):
        for z in range(w):
            for a in range(5):
                for b in range(5):
                    if 0 <= y + a - 2 < h and 0 <= z + b - 2 < w:
                        mixed[:, y, z] += kernel[:, 0, a, b] * u[:, y + a - 2, z + b - 2]
    return linear(p, f"{name}.contract", mixed.reshape(len(u), -1).T)


def offer(x: np.ndarray, size: tuple[int, int], heads: int, p: Arrays) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Step 1, and u and q of step 2."""
    z, own = layer_norm(p, "norm_self", x), "self_attention"
    placed = z + positions(*size, x.shape[1])
    q, k, v = (linear(p, f"{own}.{name}", of) for name, of in (("query", placed), ("key", placed), ("value", z)))
    x = x + linear(p, f"{own}.projection", attention(q, k, v, heads))
    u = layer_norm(p, "norm_memory", x)
    return x, u, linear(p, "query", u)


def value(u: np.ndarray, e: np.ndarray | float, p: Arrays) -> np.ndarray:
    return linear(p, "value", u + e)


def block(
    x: np.ndarray, q: np.ndarray, size: tuple[int, int], stored: Sequence[tuple[np.ndarray, np.ndarray]],
    previous: tuple[np.ndarray, np.ndarray], p: Arrays, heads: int, radius: int, groups: int,
) -> np.ndarray:  # fmt: skip
    """Steps 2 to 4 with (keys, values) of all stored frames, and of the previous frame."""
    keys, values = (np.concatenate([entry[i] for entry in stored]) for i in (0, 1))
    x = x + linear(p, "global_projection", attention(q, keys, values, heads))
    x = x + local(q, *previous, size, heads, radius, p, "local.")
    x = x + feed_forward(layer_norm(p, "norm_feed_forward", x), size, groups, p, "feed_forward")
    return layer_norm(p, "norm_out", x)


# ------------------------------------------------------------------------------------------ 1 and 2.5, clips and memory


def stored_frames(count: int, new_at: Sequence[int], interval: int) -> list[int]:
    """Frames in global memory after `count` frames, numbered from 1."""
    stored, m = [1], 0
    for t in range(2, count + 1):
        if t - m >= interval or t in new_at:
            stored.insert(0, t)
            m = t
    return stored


def labels(masks: np.ndarray, identities: Sequence[int], num_slots: int) -> np.ndarray:
    """Y: per pixel the identity of the covering instance with the smallest mask, else N."""
    _, height, width = masks.shape
    areas = [int(mask.sum()) for mask in masks]
    out = np.full((height, width), num_slots)
    for y in range(height):
        for x in range(width):
            covering = [(areas[g], g) for g in range(len(masks)) if masks[g, y, x]]
            if covering:
                out[y, x] = identities[min(covering)[1]]
    return out


def giou(pred: Sequence[float], target: Sequence[float]) -> float:
    """3.3, of two boxes around one point as (l, t, r, b)."""
    area = [(box[0] + box[2]) * (box[1] + box[3]) for box in (pred, target)]
    small, large = ([f(a, b) for a, b in zip(pred, target, strict=True)] for f in (min, max))
    overlap = (small[0] + small[2]) * (small[1] + small[3])
    union = max(area[0] + area[1] - overlap, 1e-6)
    hull = max((large[0] + large[2]) * (large[1] + large[3]), 1e-6)
    return overlap / union - (hull - union) / hull
