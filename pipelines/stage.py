"""What every step of the graph promises.

A stage maps a list of records to a list of records (`operators/records.py`). It is built once, where it will run, and
knows nothing of its neighbours, of queues or of Ray. A batch may hold frames of several streams; the frames of one
stream come in order. What comes out need not be as long as what went in: a stage may hold frames back.

A stage that remembers is a `StreamStage`. All frames of one stream reach the same instance. Its calls come so:

    open(stream) ─► batches ... ─► close(stream)
                      └─ snapshot(stream) at any time between two batches
    restore(stream, state) stands in for open(stream), in another instance, or in the same one after close(stream)

Each stage that remembers says under "Limits" in its file what bounds its state in a stream without end; where a paper
forgets nothing, that is a setting, and the paper's way the default. tests/pipelines/contract.py checks all of this for
every stage of the graph, and test_contract.py fails for one that has no entry there.

This room is enough for all four systems: CrossVIS remembers in `associate`, IAI (identity memory) in `identify`, which
stands for its heads, TLTM before them in `previous` (the last pyramid) and behind them in `relate`, all on the device;
CiCo holds a window of frames back and gives the last one out on `close`.
"""

from __future__ import annotations

from typing import Protocol, TypeVar, runtime_checkable

In = TypeVar("In", contravariant=True)
Out = TypeVar("Out", covariant=True)


class Stage(Protocol[In, Out]):
    """One step: a batch in, a batch out. An empty batch gives an empty batch."""

    def __call__(self, batch: list[In]) -> list[Out]: ...


@runtime_checkable
class StreamStage(Protocol[In, Out]):
    """A step that remembers, in memory that is bounded for an endless stream."""

    def __call__(self, batch: list[In]) -> list[Out]: ...

    def open(self, stream: str) -> None:
        """A stream begins: nothing is remembered of it. Opening an open stream is an error."""

    def snapshot(self, stream: str) -> bytes:
        """The state as it stands after the last batch returned. Never pickled code: plain arrays and numbers."""

    def restore(self, stream: str, state: bytes) -> None:
        """Take up where `snapshot` was taken: the next batch gives what it would have given there. Restoring an open
        stream is an error, and so are bytes that no snapshot gave: StageError, and the stream stays as it was."""

    def close(self, stream: str) -> list[Out]:
        """Give out what was held back, in order, then forget the stream. Closing a closed stream gives []."""
