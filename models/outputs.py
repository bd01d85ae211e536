"""What every network gives, and the letters of all shapes.

B batch · T frames of a clip · N detections of a frame · M tracks in memory · G ground-truth instances
K classes · C channels · D embedding · P locations of all levels · H, W frame · h, w resized frame · Hp, Wp padded input
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Detections:
    """N instances of one frame, best score first. Indexing indexes every field; printing shows shapes, not pixels."""

    boxes: Tensor
    """(N, 4) float32 xyxy, in pixels of the original frame."""
    scores: Tensor
    """(N,) float32, 0..1."""
    labels: Tensor
    """(N,) int64, 0-based class."""
    embeddings: Tensor
    """(N, D) float32, not normalised; D = 0 for a network without an embedding."""
    mask_logits: Tensor
    """(N, Hp / 4, Wp / 4) float32: low resolution, in the padded input's frame."""
    track_ids: Tensor | None = None
    """(N,) int64 once associated, else None."""

    def __post_init__(self) -> None:
        n = len(self.boxes)
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None and len(value) != n:
                raise ValueError(f"Detections.{field.name} has {len(value)} rows, boxes have {n}")

    def __len__(self) -> int:
        return len(self.boxes)

    def __getitem__(self, index: Tensor | slice) -> Detections:
        picked = {f.name: getattr(self, f.name) for f in fields(self)}
        return Detections(**{name: None if v is None else v[index] for name, v in picked.items()})

    def to(self, device: torch.device | str) -> Detections:
        moved = {f.name: getattr(self, f.name) for f in fields(self)}
        return Detections(**{name: None if v is None else v.to(device) for name, v in moved.items()})

    def with_track_ids(self, track_ids: Tensor) -> Detections:
        return replace(self, track_ids=track_ids)

    def __repr__(self) -> str:
        shapes = {f.name: getattr(self, f.name) for f in fields(self)}
        shown = (f"{k}={None if v is None else tuple(v.shape)}" for k, v in shapes.items())
        return f"Detections({', '.join(shown)})"
