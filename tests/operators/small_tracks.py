"""Frames of a few detections for the tests of association, and both of its rules told by loops.

Source of the loops: CrossVIS specification 4.2 and 4.3, sentence by sentence, in Python's own float64.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch

from models.outputs import Detections
from operators.records import FrameDetections, FrameInfo

BOX = (0, 0, 10, 10)
FAR = (100, 100, 110, 110)
CAT, DOG = 0, 1
EAST, NORTH, WEST = (1, 0), (0, 1), (-1, 0)


class Found(NamedTuple):
    box: tuple[float, ...]
    label: int
    embedding: Sequence[float]
    score: float = 0.5


def at_cosine(cosine: float) -> tuple[float, float]:
    """An embedding with this cosine to EAST."""
    return (cosine, math.sqrt(1 - cosine**2))


def detections(*found: tuple, dim: int = 2) -> Detections:
    """The mask tells the place in the frame, so that the survivors can be named."""
    n, found = len(found), [Found(*one) for one in found]
    return Detections(
        boxes=torch.tensor([f.box for f in found], dtype=torch.float32).reshape(n, 4),
        scores=torch.tensor([f.score for f in found]),
        labels=torch.tensor([f.label for f in found], dtype=torch.int64),
        embeddings=torch.tensor([list(f.embedding) for f in found], dtype=torch.float32).reshape(n, dim),
        mask_logits=torch.arange(n).float()[:, None, None].expand(n, 2, 2),
    )


def frame(index: int, *found: tuple, stream: str = "s", dim: int = 2) -> FrameDetections:
    info = FrameInfo(stream, index, index / 10, 200, 200)
    return FrameDetections(info, detections(*found, dim=dim), (64, 64), (64, 64))


def ids(record: FrameDetections) -> list[int]:
    return record.detections.track_ids.tolist()


def places(record: FrameDetections) -> list[int]:
    """Which detections of the frame survived."""
    return record.detections.mask_logits[:, 0, 0].int().tolist()


# ------------------------------------------------------------------------------------------------------ the two oracles


class Ambiguous(Exception):
    """Two values that arithmetic in another order or precision may swap."""


class Identity:
    def __init__(self, first: Found, seen: int) -> None:
        self.label, self.last, self.seen = first.label, first, seen


def naive(
    frames: list[list[Found]], rule: str, *, max_unseen: int | None = None, weights: tuple = (1, 2, 10)
) -> list[list[tuple[int, int]]]:
    """(place in the frame, identity) of what is written out, frame by frame."""
    known: dict[int, Identity] = {}
    next_id, written = 0, []
    for t, found in enumerate(frames):
        if max_unseen is not None:
            known = {k: one for k, one in known.items() if t - one.seen - 1 <= max_unseen}
        new, best_of = [], {}
        for d, one in enumerate(found):
            value, k, key = _best_a(one, known) if rule == "cosine_iou" else _best_b(one, known, weights)
            if k is None:
                new.append(d)
                continue
            best = best_of.get(k, (-math.inf if rule == "cosine_iou" else -100.0, None, None))
            if _larger(value, best[0], key, best[2]):
                best_of[k] = (value, d, key)
        out = [(d, k) for k, (_, d, _) in best_of.items()]
        for d, k in out:
            known[k].last, known[k].seen = found[d], t
        for d in new:
            known[next_id] = Identity(found[d], t)
            out.append((d, next_id))
            next_id += 1
        written.append(sorted(out))
    return written


def _best_a(one: Found, known: dict[int, Identity]) -> tuple:
    """Mode A: largest match, its identity (None: a new one), and what it was made of."""
    best, best_k, best_key = -math.inf, None, None
    for k, other in known.items():
        m, key = -1.0, "another class"
        if one.label == other.label:
            overlap = iou(one.box, other.last.box, 1e-5)
            m, key = cosine(one.embedding, other.last.embedding) + overlap, (tuple(other.last.embedding), overlap)
        if _larger(m, best, key, best_key):
            best, best_k, best_key = m, k, key
    if best_k is not None and abs(best - 0.4) < 1e-5:
        raise Ambiguous
    return (best, best_k, (tuple(one.embedding), best_key)) if best >= 0.4 else (best, None, None)


def _best_b(one: Found, known: dict[int, Identity], weights: tuple) -> tuple:
    """Mode B: the same."""
    by_score, by_iou, by_class = weights
    dots = {k: sum(a * b for a, b in zip(one.embedding, other.last.embedding, strict=True))
            for k, other in known.items()}
    top = max([0.0, *dots.values()])
    total = top + math.log(math.fsum(math.exp(x - top) for x in (0.0, *dots.values())))     # ln of the softmax's sum
    score = by_score * math.log(one.score)
    best_key = (0.0, 0.0, True)
    best, best_k = (0.0 - total) + score + 0.0 + by_class, None
    for k, other in known.items():
        key = (dots[k], iou(one.box, other.last.box, 0.0), one.label == other.label)
        v = (key[0] - total) + score + by_iou * key[1] + by_class * key[2]
        if _larger(v, best, key, best_key):
            best, best_k, best_key = v, k, key
    return best, best_k, (one.score, best_key, tuple(dots.values()))


def _larger(a: float, b: float, of_a: object, of_b: object) -> bool:
    """a > b. Equal values of equal making are a tie, which the earlier wins; of another making, nobody can tell."""
    if of_a != of_b and abs(a - b) < 1e-5:
        raise Ambiguous
    return of_a != of_b and a > b


def cosine(a: Sequence[float], b: Sequence[float]) -> float:
    length = math.hypot(*a) * math.hypot(*b)
    return sum(x * y for x, y in zip(a, b, strict=True)) / length if length else 0.0


def iou(a: Sequence[float], b: Sequence[float], eps: float) -> float:
    common = max(min(a[2], b[2]) - max(a[0], b[0]), 0) * max(min(a[3], b[3]) - max(a[1], b[1]), 0)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - common + eps
    return common / union if union > 0 else 0.0
