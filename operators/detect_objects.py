"""Step 6, CenterMask and TLTM: from what FCOS says of every location to the instances of a frame, each with its mask.

In:     CenterMaskOutputs of a batch, one image at a time
Out:    Detections in pixels of the network input, best score first, boxes not clipped; each mask fills its box
State:  none
Source: TLTM specification 2.5 to 2.9, 4.2. A region's features are read once, for the mask and for the object's vector.
"""

from __future__ import annotations

from models.centermask import CenterMask, CenterMaskOutputs
from models.fcos_decode import FCOSDecodeConfig, decode
from models.outputs import Detections


def detect_objects(
    network: CenterMask, dense: CenterMaskOutputs, image: int, size: tuple[int, int], cfg: FCOSDecodeConfig
) -> Detections:
    """The instances of one image of the batch, its `size` (h, w) before padding. Nothing above the threshold: N = 0.

    `mask_logits` (N, 28, 28) are those of the instance's own class; `embeddings` (N, D) the object's vector for the
    graph, D = 0 for a network without one.
    """
    found = decode(dense, image, cfg)
    regions = network.region_features(dense, image, found.boxes, size)
    return Detections(
        boxes=found.boxes,
        scores=found.scores,
        labels=found.labels,
        embeddings=network.objects(regions).float(),
        mask_logits=network.mask_logits(regions, found.labels).float(),
        mask_frame="box",
    )
