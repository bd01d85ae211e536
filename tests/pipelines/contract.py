"""The contract that every stage with memory keeps, as one check: stop half-way, restore elsewhere, compare the rest."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
from torch import Tensor

from pipelines.stage import StreamStage


def check_stream_stage(make: Callable[[], StreamStage], batches: Sequence[list[Any]], stream: str) -> None:
    """`batches` are all of one stream; `make` builds a fresh stage. Raises AssertionError for a broken promise.

    Held: an empty batch gives nothing; a snapshot at any point, restored in another instance, gives the same rest, bit
    for bit, with what `close` gives; taking a snapshot changes nothing; a second `close` is harmless; a stream that is
    opened anew finds nothing of its old self.
    """
    calm = make()
    calm.open(stream)
    assert calm([]) == [], "an empty batch must give an empty batch"
    expected = [plain(calm(batch)) for batch in batches] + [plain(calm.close(stream))]
    assert calm.close(stream) == [], "closing a closed stream must give []"
    assert any(expected), "batches that give nothing check nothing"
    calm.open(stream)
    again = [plain(calm(batch)) for batch in batches] + [plain(calm.close(stream))]
    assert again == expected, "a stream that is closed and opened anew must find nothing of its old self"
    for cut in range(len(batches) + 1):
        first, second = make(), make()
        first.open(stream)
        given = [plain(first(batch)) for batch in batches[:cut]]
        state = first.snapshot(stream)
        assert isinstance(state, bytes)
        second.restore(stream, state)
        for stage, name in ((first, "taken"), (second, "restored")):
            rest = [plain(stage(batch)) for batch in batches[cut:]] + [plain(stage.close(stream))]
            assert given + rest == expected, f"after {cut} batches a snapshot was {name}, and the rest differs"


def plain(value: Any) -> Any:
    """Records as values that compare exactly, bit for bit."""
    if isinstance(value, Tensor):
        value = value.detach().cpu().numpy()
    if isinstance(value, np.ndarray):
        return (str(value.dtype), value.shape, value.tobytes())
    if is_dataclass(value):
        return (type(value).__name__, *((f.name, plain(getattr(value, f.name))) for f in fields(value)))
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value
