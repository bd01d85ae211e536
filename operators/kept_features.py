"""Feature maps that a stage keeps of a stream: without the batch that they came in, and as plain values for a snapshot.

In:     Features
Out:    the same with storage of its own; plain values for operators/states.py, and back, maps on the host
State:  none
Limits: references to other frames are not kept
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor

from operators.records import Features, FrameInfo


def owned(tensor: Tensor) -> Tensor:
    """A tensor with no storage but its own: one row of a batch would keep the whole batch in memory."""
    whole = tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
    return tensor if whole else tensor.clone()


def kept(frame: Features) -> Features:
    """The frame alone, without references."""
    return replace(frame, levels=tuple(owned(level) for level in frame.levels), references=())


def as_plain(frame: Features) -> dict[str, Any]:
    """Numbers, tuples and maps on the host, which operators/states.py packs; `from_plain` reads them."""
    info = frame.info
    return {
        "info": (info.index, info.time_s, info.height, info.width),
        "size": frame.size,
        "padded": frame.padded,
        "levels": [level.cpu() for level in frame.levels],
    }


def from_plain(stream: str, plain: dict[str, Any]) -> Features:
    """What `as_plain` was given. Raises what operators/states.py takes for a damaged snapshot."""
    info = FrameInfo(stream, *plain["info"])
    return Features(info, tuple(plain["levels"]), tuple(plain["size"]), tuple(plain["padded"]))
