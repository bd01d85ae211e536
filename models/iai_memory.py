"""What IAI remembers of one stream: attention keys and values of past frames, with the identities painted in them.

In:     entries, one per finished frame
Out:    `Memory`, the state before the next frame; `write` is the schedule, a pure function of the state before it
State:  none here: whoever runs the stream holds its `Memory` (operators/identify.py; in training,
        models/remembering.py)
Limits: an entry of a 360x640 frame takes 480 KiB in float32, its label map 240 KiB; `write` only ever adds entries, so
        endless streams drop some of `stored` (specification 9.3)
Source: IAI specification 2.5, 9.3 item 5; the frames stored without new objects are 1, 3, 6, 9, 12, ..
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from models.identity_bank import IdentityBank


@dataclass(frozen=True)
class Entry:
    """One frame of one stream, as memory. n = h * w tokens, row by row."""

    keys: Tensor
    """(n, D). Identities never enter them."""
    values: Tensor
    """(n, D), identities embedded."""
    labels: Tensor | None
    """(Hp, Wp) int8: per pixel a slot 0..N-2, N for the background, -1 for nothing. None where nobody will edit it."""
    frame: int
    """Number of the frame in its stream: any origin, rising."""


@dataclass(frozen=True)
class Memory:
    """All that one stream's next frame may look at."""

    stored: tuple[Entry, ...]
    """Global memory, newest first; at least one."""
    local: Entry
    """The previous frame."""
    last_write: int
    """Frame of the last write to global memory; the first frame's does not count."""
    frames_seen: int


def write(memory: Memory | None, entry: Entry, new_object: bool, interval: int) -> Memory:
    """The memory after a frame, whose finished result stands in `entry`; None before the first.

    The frame enters global memory when the last write is `interval` frames ago, or it brought a `new_object`; local
    memory is always the last frame. Raises ValueError when frames do not rise, or change their size.
    """
    if memory is None:
        return Memory((entry,), entry, entry.frame - 1, 1)
    before = memory.local
    if entry.frame <= before.frame:
        raise ValueError(f"IAI memory: frame {entry.frame} came after frame {before.frame}; frames must rise")
    if entry.keys.shape != before.keys.shape:
        raise ValueError(
            f"IAI memory: frame {entry.frame} has keys {tuple(entry.keys.shape)}, those before "
            f"{tuple(before.keys.shape)}; a change of frame size begins a new memory"
        )
    seen = memory.frames_seen + 1
    if new_object or entry.frame - memory.last_write >= interval:
        return Memory((entry, *memory.stored), entry, entry.frame, seen)
    return replace(memory, local=entry, frames_seen=seen)


def erase(entry: Entry, slot: int, bank: IdentityBank, value_weight: Tensor) -> Entry:
    """The entry as if the pixels of `slot` had been background: so its next owner inherits nothing.

    `value_weight` (D, D) is that of the map from u + E to values. Bank and map are linear, so this is exact, to float
    rounding. Raises ValueError for an entry without labels: drop that one.
    """
    if entry.labels is None:
        raise ValueError(f"IAI memory: frame {entry.frame} kept no label map, so slot {slot} cannot be erased from it")
    painted = entry.labels == slot
    if not painted.any():
        return entry
    excess = bank.difference(painted, slot, bank.num_slots)                                   # (n, D)
    values = entry.values.to(excess.dtype) - F.linear(excess, value_weight)
    labels = torch.where(painted, torch.full_like(entry.labels, bank.num_slots), entry.labels)
    return replace(entry, values=values.to(entry.values.dtype), labels=labels)
