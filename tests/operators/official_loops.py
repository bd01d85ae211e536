"""AP and AR of YouTube-VIS in plain loops, as the official program goes about it: the oracle of our vectorised code.

Written from the rules of the evaluation specification (numbers in square brackets) and sharing no code with operators/:
one video, category, area class, threshold, detection and object at a time, masks merged in pairs by pycocotools. It is
the measure of speed too (benchmarks/evaluation.py), so it does what the official program does and no more than once.

`truth` and `results` are what json.load gives. They are left as they are.
"""

from __future__ import annotations

from collections import defaultdict

import numpy as np
from pycocotools import mask as coco_mask

AREA_CLASSES = ((0, 1e10), (0, 128**2), (128**2, 256**2), (256**2, 1e10))
LEVELS = ((0, 0.25), (0.25, 0.5), (0.5, 1))
LEVEL_SCORES = {"no_occlusion": 0, "slight_occlusion": 0.25, "severe_occlusion": 0.75}
LIMITS = (1, 10, 100)
THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0, 1, 101)


def evaluate(truth: dict, results: list[dict], *, faults: bool = False, occlusion: bool = False) -> dict:
    """{"AP": ..., the twelve numbers, "per_category": {id: the twelve}}; with `occlusion` also the split by level.

    `faults` brings in what the specification calls plain faults: [13], the id 0 and ids that occur twice.
    """
    return Loops(truth, results, faults, occlusion).summary()


class Loops:
    def __init__(self, truth: dict, results: list[dict], faults: bool, occlusion: bool):
        self.faults, self.with_levels = faults, occlusion
        self.videos = {video["id"]: video for video in truth["videos"]}
        self.video_ids = sorted(self.videos)
        self.category_ids = sorted({category["id"] for category in truth["categories"]})
        self.classes = [("area", *bounds) for bounds in AREA_CLASSES]
        self.classes += [("level", *bounds) for bounds in LEVELS] if occlusion else []
        self.objects, self.found = defaultdict(list), defaultdict(list)
        for entry in self._annotations(truth["annotations"]):
            self.objects[entry["video_id"], entry["category_id"]].append(entry)
        for entry in results:
            self.found[entry["video_id"], entry["category_id"]].append(self._detection(entry))
        self.ious = {(v, c): self._ious(v, c) for v in self.video_ids for c in self.category_ids}
        self.rows = [
            [[self._video(v, c, kind) for v in self.video_ids] for kind in self.classes] for c in self.category_ids
        ]
        self._accumulate()

    # ------------------------------------------------------------------------------------------------------- loading

    def _annotations(self, entries: list[dict]) -> list[dict]:
        last = {entry["id"]: entry for entry in entries}
        ordered = [entry for v in self.video_ids for entry in entries if entry["video_id"] == v]
        if self.faults:                                                                                  # [13]
            ordered = [last[entry["id"]] for entry in ordered if entry["category_id"] in self.category_ids]
        return [self._object(entry) for entry in ordered]

    def _object(self, entry: dict) -> dict:
        video = self.videos[entry["video_id"]]
        masks = [self._mask(mask, video) if mask else None for mask in entry["segmentations"]]          # [2]
        return {
            **entry, "masks": masks, "mean": mean_area(entry["areas"]), "crowd": bool(entry.get("iscrowd")),
            "level": level(entry.get("occlusion")) if self.with_levels else None,
        }  # fmt: skip

    @staticmethod
    def _mask(mask: dict | list, video: dict) -> dict:
        height, width = video["height"], video["width"]
        if isinstance(mask, list):
            return coco_mask.merge(coco_mask.frPyObjects(mask, height, width))
        return coco_mask.frPyObjects(mask, height, width) if isinstance(mask["counts"], list) else mask

    @staticmethod
    def _detection(entry: dict) -> dict:
        areas, boxes = [], []
        for mask in entry["segmentations"]:
            areas.append(coco_mask.area(mask) if mask else None)
            boxes.append(coco_mask.toBbox(mask) if mask else None)
        masks = [mask or None for mask in entry["segmentations"]]
        return {**entry, "masks": masks, "boxes": boxes, "mean": mean_area(areas)}

    # ------------------------------------------------------------------------------------------------------ matching

    def _ious(self, video: int, category: int) -> np.ndarray | list:
        objects, found = self.objects[video, category], self._best(video, category)
        if not objects and not found:
            return []
        ious = np.zeros((len(found), len(objects)))
        for d, one in enumerate(found):
            for g, other in enumerate(objects):
                ious[d, g] = track_iou(one["masks"], other["masks"])
        return ious

    def _best(self, video: int, category: int) -> list[dict]:
        found = self.found[video, category]
        order = np.argsort([-track["score"] for track in found], kind="stable")                          # [5]
        return [found[i] for i in order[: LIMITS[-1]]]

    def _video(self, video: int, category: int, kind: tuple) -> dict | None:
        """One video, category and class: of each threshold and detection the object's id or None, and what counts."""
        objects, found = self.objects[video, category], self._best(video, category)
        if not objects and not found:
            return None
        name, low, high = kind
        key = "mean" if name == "area" else "level"
        outside = [entry[key] is None or not low <= entry[key] <= high for entry in objects]             # [4]
        out = [bool(entry["crowd"] or outside[g]) for g, entry in enumerate(objects)]                    # [7]
        order = np.argsort(out, kind="stable")
        ious = self.ious[video, category]
        taken = np.zeros((len(THRESHOLDS), len(objects)), dtype=bool)
        matched = np.zeros((len(THRESHOLDS), len(found)), dtype=bool)
        ignored = np.zeros((len(THRESHOLDS), len(found)), dtype=bool)
        for t, threshold in enumerate(THRESHOLDS if objects else ()):
            for d in range(len(found)):
                best, partner = min(threshold, 1 - 1e-10), -1                                            # [6]
                for g in order:
                    if taken[t, g] and not objects[g]["crowd"]:
                        continue
                    if partner > -1 and not out[partner] and out[g]:
                        break
                    if ious[d, g] < best:
                        continue
                    best, partner = ious[d, g], g
                if partner == -1:
                    continue
                ignored[t, d] = out[partner]
                matched[t, d] = not (self.faults and objects[partner]["id"] == 0)                        # [13]
                taken[t, partner] = True
        outside = np.array([name == "area" and not low <= track["mean"] <= high for track in found], dtype=bool)
        return {
            "scores": np.array([float(track["score"]) for track in found]), "matched": matched,
            "ignored": ignored | (~matched & outside), "objects": out.count(False),                      # [8]
        }  # fmt: skip

    # -------------------------------------------------------------------------------------------------- accumulating

    def _accumulate(self) -> None:
        shape = len(self.category_ids), len(self.classes), len(LIMITS)
        self.precision = -np.ones((len(THRESHOLDS), len(RECALLS), *shape))
        self.recall = -np.ones((len(THRESHOLDS), *shape))
        for c in range(shape[0]):
            for a in range(shape[1]):
                for m in range(shape[2]):
                    self._curves(c, a, m)

    def _curves(self, c: int, a: int, m: int) -> None:
        rows = [row for row in self.rows[c][a] if row is not None]
        total = sum(row["objects"] for row in rows)
        if not rows or total == 0:                                                                      # [10]
            return
        limit = LIMITS[m]
        scores = np.concatenate([row["scores"][:limit] for row in rows])
        order = np.argsort(-scores, kind="stable")                                                      # [5]
        matched = np.concatenate([row["matched"][:, :limit] for row in rows], axis=1)[:, order]
        ignored = np.concatenate([row["ignored"][:, :limit] for row in rows], axis=1)[:, order]
        right = np.cumsum(matched & ~ignored, axis=1).astype(float)
        wrong = np.cumsum(~matched & ~ignored, axis=1).astype(float)
        for t, (tp, fp) in enumerate(zip(right, wrong, strict=True)):                                   # [9]
            recall = tp / total
            precision = (tp / (fp + tp + np.spacing(1))).tolist()
            self.recall[t, c, a, m] = recall[-1] if len(recall) else 0
            for i in range(len(precision) - 1, 0, -1):
                if precision[i] > precision[i - 1]:
                    precision[i - 1] = precision[i]
            read = [0.0] * len(RECALLS)
            for r, at in enumerate(np.searchsorted(recall, RECALLS, side="left")):
                if at < len(precision):
                    read[r] = precision[at]
            self.precision[t, :, c, a, m] = read

    def _mean(self, values: np.ndarray) -> float:
        values = values[values > -1]
        return float(np.mean(values)) if values.size else -1.0

    def _twelve(self, c: slice) -> dict[str, float]:
        precision, recall = self.precision[:, :, c], self.recall[:, c]
        areas = list(zip("sml", range(1, 4), strict=True))
        return {
            "AP": self._mean(precision[..., 0, 2]),
            "AP50": self._mean(precision[0, ..., 0, 2]),
            "AP75": self._mean(precision[5, ..., 0, 2]),
            **{f"AP{name}": self._mean(precision[..., a, 2]) for name, a in areas},
            **{f"AR{limit}": self._mean(recall[..., 0, m]) for m, limit in enumerate(LIMITS)},
            **{f"AR{name}": self._mean(recall[..., a, 2]) for name, a in areas},
        }

    def summary(self) -> dict:
        scores = self._twelve(slice(None))
        scores["per_category"] = {c: self._twelve(slice(i, i + 1)) for i, c in enumerate(self.category_ids)}
        if self.with_levels:
            scores["occlusion"] = {
                name: {
                    "AP": self._mean(self.precision[..., a, 2]),
                    "AP50": self._mean(self.precision[0, ..., a, 2]),
                    "AP75": self._mean(self.precision[5, ..., a, 2]),
                    **{f"AR{limit}": self._mean(self.recall[..., a, m]) for m, limit in enumerate(LIMITS)},
                    "objects": sum(row["objects"] for rows in self.rows for row in rows[a] if row is not None),
                }
                for a, name in enumerate(("light", "medium", "heavy"), start=len(AREA_CLASSES))
            }
        return scores


def mean_area(areas: list) -> float:
    areas = [area for area in areas if area]
    return float(np.array(areas).mean()) if areas else 0.0


def level(labels: list | None) -> float | None:
    """The mean of the highest half of the frames that have a label, None without any."""
    scores = sorted((LEVEL_SCORES[label] for label in labels or [] if label is not None), reverse=True)
    half = -(-len(scores) // 2)
    return sum(scores[:half]) / half if half else None


def track_iou(one: list, other: list) -> float:
    """[1, 2, 3]: pixels in common over pixels in either, frame by frame up to the shorter end."""
    common = either = 0
    for a, b in zip(one, other, strict=False):
        if a is not None and b is not None:
            if list(a["size"]) == list(b["size"]):
                common += int(coco_mask.area(coco_mask.merge([a, b], intersect=True)))
                either += int(coco_mask.area(coco_mask.merge([a, b], intersect=False)))
        elif a is not None or b is not None:
            either += int(coco_mask.area(b if a is None else a))
    return common / either if either > 0 else 0.0
