"""What every network gives, and the letters of all shapes.

B batch · T frames of a clip · N detections of a frame · M tracks in memory · G ground-truth instances
K classes · C channels · D embedding · P locations of all levels · H, W frame · h, w resized frame · Hp, Wp padded input
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Literal

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
    """(N, Hm, Wm) float32: low resolution, in the frame that `mask_frame` says."""
    track_ids: Tensor | None = None
    """(N,) int64 once associated, else None."""
    mask_frame: Literal["image", "plain", "box"] = "image"
    """`image`: one cell is 4 x 4 pixels of the padded input. `plain`: too, and what the frame fills of it is enlarged
    in one plain step (CiCo). `box`: the mask fills its instance's box, whatever its size (two-stage networks)."""
    class_scores: Tensor | None = None
    """(N, K) float32: the whole class vector, for networks whose tracks are ranked by it (IAI)."""
    exclusive: bool = False
    """Whether a pixel that two masks claim belongs to the earlier instance alone."""

    def __post_init__(self) -> None:
        n = len(self.boxes)
        for name, value in self._tensors().items():
            if len(value) != n:
                raise ValueError(f"Detections.{name} has {len(value)} rows, boxes have {n}")

    def _tensors(self) -> dict[str, Tensor]:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, Tensor)}

    def __len__(self) -> int:
        return len(self.boxes)

    def __getitem__(self, index: Tensor | slice) -> Detections:
        return replace(self, **{name: value[index] for name, value in self._tensors().items()})

    def to(self, device: torch.device | str) -> Detections:
        return replace(self, **{name: value.to(device) for name, value in self._tensors().items()})

    def with_track_ids(self, track_ids: Tensor) -> Detections:
        return replace(self, track_ids=track_ids)

    def __repr__(self) -> str:
        shapes = {f.name: getattr(self, f.name) for f in fields(self)}
        shown = (f"{k}={tuple(v.shape) if isinstance(v, Tensor) else v}" for k, v in shapes.items())
        return f"Detections({', '.join(shown)})"
