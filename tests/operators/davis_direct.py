"""J and F written down as the rules read, pair by pair and pixel by pixel: the oracle of operators/davis.py.

In:     label maps of a sequence, (T, H, W) whole numbers each, ground truth and results
Out:    rows (object, proposal, mean, recall, decay of J, the same of F) in the order of the proposals
Source: evaluation specification, "DAVIS 2019 unsupervised J and F". Shares no code with the evaluator.

`dilate` is brute force here; the benchmark puts OpenCV's in its place, which is what the official program calls.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
from scipy.optimize import linear_sum_assignment

Dilate = Callable[[np.ndarray, int], np.ndarray]


def brute_dilate(mask: np.ndarray, radius: int) -> np.ndarray:
    """Every pixel no further than `radius` from one that is set."""
    out = np.zeros_like(mask)
    height, width = mask.shape
    for y, x in np.argwhere(mask):
        for down in range(-radius, radius + 1):
            for right in range(-radius, radius + 1):
                inside = 0 <= y + down < height and 0 <= x + right < width
                if inside and down * down + right * right <= radius * radius:
                    out[y + down, x + right] = True
    return out


def boundary_map(mask: np.ndarray) -> np.ndarray:
    """A pixel differs from its right, lower or lower right neighbour; on the last row and column two of them miss."""
    height, width = mask.shape
    out = np.zeros_like(mask)
    for y, x in itertools.product(range(height), range(width)):
        for down, right in ((0, 1), (1, 0), (1, 1)):
            if y + down < height and x + right < width and mask[y, x] != mask[y + down, x + right]:
                out[y, x] = True
    return out


def fast_boundary_map(mask: np.ndarray) -> np.ndarray:
    """The same by whole arrays, for maps of 480 x 854."""
    out = np.zeros_like(mask)
    out[:, :-1] |= mask[:, :-1] != mask[:, 1:]
    out[:-1] |= mask[:-1] != mask[1:]
    out[:-1, :-1] |= mask[:-1, :-1] != mask[1:, 1:]
    return out


def jaccard(a: np.ndarray, b: np.ndarray) -> float:
    either = int((a | b).sum())
    return int((a & b).sum()) / either if either else 1.0


def boundary_f(truth: np.ndarray, found: np.ndarray, dilate: Dilate, edges: Callable = boundary_map) -> float:
    """F of one pair of masks (H, W) bool."""
    height, width = truth.shape
    radius = math.ceil(0.008 * math.sqrt(height * height + width * width))
    of_truth, of_found = edges(truth), edges(found)
    num_truth, num_found = int(of_truth.sum()), int(of_found.sum())
    near_found, near_truth = dilate(of_found, radius), dilate(of_truth, radius)
    if num_truth == 0 or num_found == 0:
        return 1.0 if num_truth == num_found else 0.0
    recall = int((of_truth & near_found).sum()) / num_truth
    precision = int((of_found & near_truth).sum()) / num_found
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def pair_scores(
    truth: np.ndarray, found: np.ndarray, dilate: Dilate = brute_dilate, edges: Callable = boundary_map
) -> tuple[np.ndarray, np.ndarray]:
    """J and F of all pairs in all frames, (P, G, T)."""
    first = np.where(truth[0] == 255, 0, truth[0])
    num_objects, num_proposals = int(first.max()), int(found.max())
    assert num_proposals <= 20
    shape = (max(num_proposals, num_objects), num_objects, len(truth))
    j, f = np.zeros(shape), np.zeros(shape)
    for p, g, t in itertools.product(*map(range, shape)):
        solid = truth[t] != 255
        an_object, a_proposal = (truth[t] == g + 1) & solid, (found[t] == p + 1) & solid
        j[p, g, t] = jaccard(an_object, a_proposal)
        f[p, g, t] = boundary_f(an_object, a_proposal, dilate, edges)
    return j, f


def quarter_limits(num_frames: int, eight_bits: bool) -> list[int]:
    """First and last frame of the quarters, from 0; a half is rounded up."""
    limits = []
    for place in np.linspace(1, num_frames, 5).tolist():
        below = math.floor(place)
        frame = below + (1 if place - below >= 0.5 else 0) - 1
        limits.append(int(np.array([frame]).astype(np.uint8)[0]) if eight_bits else frame)
    return limits


def row(values: np.ndarray, eight_bits: bool) -> tuple[float, float, float]:
    """Mean, recall, decay of (T,) values; a quarter without frames has no mean."""
    limits = quarter_limits(len(values), eight_bits)
    quarters = [values[limits[k] : limits[k + 1] + 1].tolist() for k in range(4)]
    means = [math.fsum(quarter) / len(quarter) if quarter else math.nan for quarter in quarters]
    recall = sum(1 for value in values.tolist() if value > 0.5) / len(values)
    return math.fsum(values.tolist()) / len(values), recall, means[0] - means[3]


def direct(
    truth: np.ndarray, found: np.ndarray, *, eight_bits: bool = False, dilate: Dilate = brute_dilate,
    edges: Callable = boundary_map,
) -> list[tuple]:  # fmt: skip
    """(object, proposal, J mean, recall, decay, F mean, recall, decay), by rising proposal."""
    j, f = pair_scores(truth, found, dilate, edges)
    best = (j.mean(axis=2) + f.mean(axis=2)) / 2
    proposals, objects = linear_sum_assignment(best, maximize=True)
    return [(int(g) + 1, int(p) + 1, *row(j[p, g], eight_bits), *row(f[p, g], eight_bits))
            for p, g in zip(proposals, objects, strict=True)]  # fmt: skip
