"""The contract that every stage with memory keeps: stop half-way, restore elsewhere, compare the rest; wrong calls;
damaged snapshots."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import pytest
from torch import Tensor

from operators.errors import StageError
from pipelines.stage import StreamStage


def check_stream_stage(make: Callable[[], StreamStage], batches: Sequence[list[Any]], stream: str) -> None:
    """`batches` are all of one stream; `make` builds a fresh stage. Raises AssertionError for a broken promise.

    Held: an empty batch gives nothing; a snapshot at any point, restored in another instance, gives the same rest, bit
    for bit, with what `close` gives, and is that snapshot again when it is taken there; taking a snapshot changes
    nothing; a second `close` is harmless; a stream that is opened anew finds nothing of its old self.
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
        assert second.snapshot(stream) == first.snapshot(stream) == state, f"after {cut} batches, of a restored stage"
        for stage, name in ((first, "taken"), (second, "restored")):
            rest = [plain(stage(batch)) for batch in batches[cut:]] + [plain(stage.close(stream))]
            assert given + rest == expected, f"after {cut} batches a snapshot was {name}, and the rest differs"


def check_misuse(make: Callable[[], StreamStage], batches: Sequence[list[Any]], stream: str) -> None:
    """Wrong calls and damaged snapshots are a StageError that names the stream, and change nothing."""
    first, state = next(batch for batch in batches if batch), None
    stage = make()
    for call in (lambda: stage(first), lambda: stage.snapshot(stream)):
        _refused(call, stream)
    assert stage.close(stream) == [], "closing a stream that was never open must give []"
    stage.open(stream)
    for batch in batches:
        stage(batch)
        state = stage.snapshot(stream)
        for call in (lambda: stage.open(stream), lambda: stage.restore(stream, state)):  # noqa: B023
            _refused(call, stream)
        assert stage.snapshot(stream) == state, "a refused call must change nothing"
    stage.close(stream)
    for call in (lambda: stage(first), lambda: stage.snapshot(stream)):
        _refused(call, stream)
    for bad in (*_cut(state), *_changed(state)):
        _refused(lambda: stage.restore(stream, bad), stream)  # noqa: B023
    stage.open(stream)                                      # none of the refused left it open
    stage.close(stream)


def _refused(call: Callable[[], Any], stream: str) -> None:
    with pytest.raises(StageError) as raised:
        call()
    assert f"'{stream}'" in str(raised.value), f"the stream is not named: {raised.value}"


def _cut(state: bytes) -> list[bytes]:
    return [b"", b"\0", b"null", b"{}", b"[]\n", b"[" * 50_000, state[: len(state) // 2], state[:-1], state[1:]]


def _changed(state: bytes, times: int = 150) -> list[bytes]:
    """The state with one byte changed, mostly near its ends, where names, shapes and directories stand."""
    rng, changed = random.Random(0), []
    for _ in range(times):
        at = rng.choice((rng.randrange(len(state)), rng.randrange(min(400, len(state))), -rng.randint(1, len(state))))
        one = bytearray(state)
        one[at] ^= 1 << rng.randrange(8)
        changed.append(bytes(one))
    return changed


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
