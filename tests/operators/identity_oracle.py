"""IAI specification 4, steps 2 to 11, and 9.3 item 4, written a second time: loops over float64.

Slow and plain on purpose, and read from the specification alone. Raises Ambiguous where float32 may decide otherwise.
"""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple

import numpy as np

from tests.models.oracles import sigmoid, upsample_axis

CLEAR = 1e-5


class Ambiguous(Exception):
    """Two values that arithmetic in another order or precision may swap."""


class Said(NamedTuple):
    """Dense outputs of one frame: P locations."""

    classes: np.ndarray         # (P, K) logits
    identities: np.ndarray      # (P, N) logits
    quality: np.ndarray         # (P,) logits
    boxes: np.ndarray           # (P, 4) in pixels of the network input
    masks: np.ndarray           # (P, Hp/4, Wp/4) logits
    levels: np.ndarray          # (P,)


class Given(NamedTuple):
    """What a frame gives."""

    boxes: list
    classes: list
    ids: list                   # -1: in the sink
    pictures: list              # (H0, W0) bool
    onehot: np.ndarray          # (N + 1, Hp, Wp) bool: Y
    is_new: bool


def above(value: float, threshold: float) -> bool:
    if abs(value - threshold) < CLEAR:
        raise Ambiguous(f"{value} at threshold {threshold}")
    return value > threshold


def falling(rows: list, key) -> list:
    """Best first; no two may be as good as equal."""
    rows = sorted(rows, key=lambda row: -key(row))
    for one, other in itertools.pairwise(rows):
        if abs(key(one) - key(other)) < 2e-6 * key(one):
            raise Ambiguous("two ranks are equal")
    return rows


class Naive:
    """One stream. `cfg` has pre, tau_c, tau_d, iou, most; sizes are (h, w) of the resized and (H0, W0) of the frame."""

    def __init__(self, mode: str, num_outputs: int, cfg: dict, stale_s: float = 10.0) -> None:
        self.mode, self.n, self.cfg, self.stale_s = mode, num_outputs, cfg, stale_s
        self.t, self.dropped, self.next_id = 0, 0, 0
        self.owner: dict[int, int] = {}             # slot -> external id
        self.seen: dict[int, float] = {}
        self.recycled: list[tuple[int, int]] = []   # (frame, slot)

    def frame(self, said: Said, resized: tuple, original: tuple, time_s: float) -> Given:
        self.t += 1
        rows = self.nms(self.ranked(said, resized, original))
        kept, free, masks = [], None, {}
        for row in rows:                                                                     # step 8
            fine = fine_mask(said.masks[row["p"]])
            mask = threshold(fine)
            free = np.ones_like(mask) if free is None else free
            visible = mask & free
            free = free & ~visible
            if not mask.any() or visible.sum() / mask.sum() < 0.1:
                continue
            masks[row["p"]] = visible
            kept.append(row | {"picture": threshold(resize(fine[: resized[0], : resized[1]], original))})
        taken, pictures = np.zeros(original, bool), []
        given = self.slots([row["d"] for row in kept], time_s)
        for row, slot in zip(kept, given, strict=True):
            if slot is None:
                continue
            pictures.append(row["picture"] & ~taken)
            taken |= row["picture"]
        onehot = np.zeros((self.n + 1, *(4 * side for side in said.masks.shape[1:])), bool)   # step 11
        onehot[self.n] = True
        for row, slot in zip(kept, given, strict=True):
            if slot is not None:
                onehot[slot] = masks[row["p"]]
                onehot[self.n][masks[row["p"]]] = False
        real = [(row, slot) for row, slot in zip(kept, given, strict=True) if slot is not None]
        ids = [self.owner.get(slot, -1) for _, slot in real]
        return Given([r["box"] for r, _ in real], [r["c"] for r, _ in real], ids, pictures, onehot, self.is_new)

    def ranked(self, said: Said, resized: tuple, original: tuple) -> list[dict]:
        """Steps 2 to 5."""
        rows = []
        for p in range(len(said.levels)):
            c = [sigmoid(z) for z in said.classes[p]]
            d = [sigmoid(z) for z in said.identities[p]]
            r = sigmoid(said.quality[p])
            box = [min(max(float(x), 0.0), limit) * full / limit for x, limit, full in zip(
                said.boxes[p], (resized[1], resized[0]) * 2, (original[1], original[0]) * 2, strict=True)]
            if self.mode == "paper":
                rank = 0.5 * (max(c) + max(d)) * r
            else:
                rank = ((max(c) + 0.5 * max(d)) if self.t == 1 else (0.5 * max(c) + max(d))) * r
            rows.append({"p": p, "c": [x * r for x in c], "top": max(c), "d": d, "rank": rank, "box": box,
                         "strength": max(c) * r})
        chosen = []
        for level in sorted(set(said.levels.tolist())):
            here = falling([row for row in rows if said.levels[row["p"]] == level], lambda row: row["strength"])
            chosen += here[: self.cfg["pre"]]
        return [row for row in chosen
                if above(row["top"], self.cfg["tau_c"]) and above(max(row["d"]), self.cfg["tau_d"])]

    def nms(self, rows: list[dict]) -> list[dict]:
        """Step 6."""
        kept: list[dict] = []
        for row in falling(rows, lambda row: row["rank"]):
            if not any(above(iou(row["box"], other["box"]), self.cfg["iou"]) for other in kept):
                kept.append(row)
        return kept[: self.cfg["most"]]

    def slots(self, d: list[list[float]], time_s: float) -> list[int | None]:
        """Steps 9 and 10, overflow, and 9.3 item 4: the slot of each, None where it is dropped."""
        columns = self.columns(d) if self.owner else [self.n - 1] * len(d)
        live = set(self.owner)
        known = [column if column in live else None for column in columns]
        for slot in known:
            if slot is not None:
                self.seen[slot] = time_s
        capacity = self.n - 2 if self.mode == "reference" else self.n - 1
        given: list[int | None] = []
        self.is_new = False
        for slot in known:
            if slot is None:
                free = [k for k in range(capacity) if k not in self.owner]
                stale = sorted((self.seen[k], k) for k in self.owner if time_s - self.seen[k] >= self.stale_s)
                if free:
                    slot = free[0]
                elif self.mode == "reference":
                    slot = self.n - 2
                elif self.mode == "stream" and stale:
                    slot = stale[0][1]
                    self.recycled.append((self.t, slot))
                else:
                    self.dropped += 1
                self.is_new |= slot is not None
                if slot is not None and slot < capacity:
                    self.owner[slot], self.seen[slot] = self.next_id, time_s
                    self.next_id += 1
            given.append(slot)
        return given

    def columns(self, d: list[list[float]]) -> list[int]:
        """Step 9, by trying all."""
        rows = [[*one, 0.0, *([one[-1]] * (len(d) - 1))] for one in d]
        totals = sorted(((sum(row[j] for row, j in zip(rows, js, strict=True)), js)
                         for js in itertools.permutations(range(self.n + len(d)), len(d))), reverse=True)
        best = totals[0]
        for total, js in totals[1:]:
            if best[0] - total > CLEAR:
                break
            if [j if j in self.owner else None for j in js] != [j if j in self.owner else None for j in best[1]]:
                raise Ambiguous("two assignments are as good")
        return list(best[1])


def iou(a: list[float], b: list[float]) -> float:
    common = max(min(a[2], b[2]) - max(a[0], b[0]), 0) * max(min(a[3], b[3]) - max(a[1], b[1]), 0)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - common
    return common / union if union > 0 else 0.0


def fine_mask(logits: np.ndarray) -> np.ndarray:
    """Step 7: sigmoid, then x4 aligned: probability at padded size."""
    probability = [[sigmoid(float(z)) for z in row] for row in logits]
    down = np.array([upsample_axis(column, 4) for column in zip(*probability, strict=True)]).T
    return np.array([upsample_axis(row, 4) for row in down.tolist()])


def resize(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Bilinear, half-pixel centres."""
    rows = np.array([[lerp(column, (y + 0.5) * len(column) / size[0] - 0.5) for column in image.T]
                     for y in range(size[0])])
    return np.array([[lerp(row, (x + 0.5) * len(row) / size[1] - 0.5) for x in range(size[1])] for row in rows])


def lerp(values: np.ndarray, at: float) -> float:
    at = min(max(at, 0.0), len(values) - 1.0)
    low = math.floor(at)
    return values[low] * (1 - at + low) + values[min(low + 1, len(values) - 1)] * (at - low)


def threshold(probability: np.ndarray) -> np.ndarray:
    if (np.abs(probability - 0.5) < 1e-6).any():
        raise Ambiguous("a pixel at 0.5")
    return probability > 0.5
