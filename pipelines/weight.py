"""What a record weighs when it travels, and how to make it carry no more than itself.

In:     any record of `operators/records.py`
Out:    its bytes; or the same record on the host, every tensor with a storage of its own size
"""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor


@cache
def _names(kind: type) -> tuple[str, ...]:
    return tuple(field.name for field in fields(kind))


def num_bytes(value: Any) -> int:
    """Bytes of the arrays, tensors and texts within; what is left counts nothing. A view counts what it shows."""
    if isinstance(value, (Tensor, np.ndarray)):
        return value.nbytes
    if isinstance(value, (str, bytes)):
        return len(value)
    if isinstance(value, (tuple, list)):
        return sum(map(num_bytes, value))
    if isinstance(value, dict):
        return sum(map(num_bytes, value.values()))
    if is_dataclass(value):
        return sum(num_bytes(getattr(value, name)) for name in _names(type(value)))
    return 0


def compact(value: Any, keep_device: bool = False) -> Any:
    """The same record with tensors on the host (or where they are) that own exactly their bytes.

    A view travels with its whole storage: one image of a batch of eight would weigh as much as all eight.
    """
    if isinstance(value, Tensor):
        value = value.detach() if keep_device else value.detach().cpu()
        whole = value.untyped_storage().nbytes() == value.numel() * value.element_size()
        return value if whole else value.clone(memory_format=torch.contiguous_format)
    if isinstance(value, tuple):
        return tuple(compact(item, keep_device) for item in value)
    if is_dataclass(value):
        return replace(value, **{name: compact(getattr(value, name), keep_device) for name in _names(type(value))})
    return value
