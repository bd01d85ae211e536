"""Step 6 of IAI with two stages: from proposals to the instances of a frame, each with its place in the picture.

In:     RegionOutputs of a batch, one image at a time
Out:    `Candidates` as every detector of operators/identify.py gives them; each mask fills its box
State:  none
Limits: all masks of a frame at the size of the padded input at once, as in operators/identities.py
Source: IAI specification 5, which is reconstruction: at most 1000 proposals; probabilities are softmaxes without the
        background; no centre-ness; a proposal's box and mask are those of its best class; all else is section 4. The
        mask is read anew from the better box, as in MaskTrack R-CNN.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from models.iai_maskrcnn import IAIMaskRCNN
from models.mask_rcnn import RegionOutputs
from operators.identities import CandidateConfig, Candidates, distinct, ranked, to_original
from operators.records import Features


@dataclass(frozen=True, kw_only=True)
class RegionIdentityConfig(CandidateConfig):
    """The defaults are our reconstruction for YouTube-VIS. Proposals are those of the network's `model.rpn`."""

    min_class: float = 0.05
    """Smallest probability of the best class. Lower: more weak detections, which take identities from objects to
    come."""


def find_region_identities(
    network: IAIMaskRCNN, out: RegionOutputs, image: int, frame: Features, weights: tuple[float, float],
    cfg: RegionIdentityConfig,
) -> Candidates:  # fmt: skip
    """The instances of one image of the batch. Nothing above the thresholds: N = 0.

    `weights` are the shares of best class and best identity in the rank; `frame` says which sizes it has. A network
    without an identity head (I = 0) ranks by class alone. Of equal ranks the likelier proposal's comes first.
    """
    said = network.identified(out, image, network.proposals(out, image, frame.size), frame.size)
    identities = said.identities.amax(1) if said.identities.shape[1] else None
    passing, scores = ranked(said.classes.amax(1), identities, weights, cfg)
    at = passing.nonzero().squeeze(1)
    at = at[distinct(to_original(said.boxes[at], frame), scores[at], cfg)]                       # (N,)
    boxes, classes = said.boxes[at], said.classes[at]
    logits = network.mask_logits(out, image, boxes, classes.argmax(1)).float()                   # (N, 28, 28)
    return Candidates(
        scores=scores[at],
        boxes=to_original(boxes, frame),
        classes=classes,
        identities=said.identities[at],
        mask_logits=logits,
        masks=paste(logits, boxes, frame.padded),
        mask_frame="box",
    )


def paste(mask_logits: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """(N, m, n) logits that fill boxes (N, 4), in pixels of `size` (H, W) -> (N, H, W) bool. No instance: (0, H, W).

    A pixel is the mask's if its centre lies in the box, low <= centre < high, and the probability there, bilinear
    between the centres of the mask's cells, is above 0.5: what operators/masks.py does on the host, for all at once and
    on the masks' device.
    """
    probability = mask_logits.float().sigmoid()
    rows = _looks(boxes[:, 1], boxes[:, 3], probability.shape[1], size[0])                       # (N, H, m)
    columns = _looks(boxes[:, 0], boxes[:, 2], probability.shape[2], size[1])                    # (N, W, n)
    return rows @ probability @ columns.transpose(1, 2) > 0.5


def _looks(low: Tensor, high: Tensor, cells: int, pixels: int) -> Tensor:
    """How each of `pixels` looks at `cells` that fill low .. high (N,): weights that sum to 1 where its centre lies
    there, and to 0 elsewhere.  (N, pixels, cells)"""
    centers = torch.arange(pixels, device=low.device) + 0.5
    low, high = low[:, None], high[:, None]
    inside = (centers >= low) & (centers < high)                                                 # (N, pixels)
    side = torch.where(high > low, high - low, 1.0)
    places = ((centers - low) / side * cells - 0.5).clamp(0, cells - 1)
    weights = (1 - (places[:, :, None] - torch.arange(cells, device=low.device)).abs()).clamp(min=0)
    return weights * inside[:, :, None]
