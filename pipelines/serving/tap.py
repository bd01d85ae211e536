"""The first stage of a live graph, with an ear on it: pictures do not travel through the graph, and are drawn over.

In:     what the stage within takes and gives
Out:    the same; the frame of a result, and when it was captured
State:  the frames of each stream that were given lately, references alone
Limits: `most` frames of a stream
"""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from typing import Any

from operators.live.stage import Receive
from operators.records import Frame
from pipelines.graph import RunContext, StageSpec


class Tap:
    """The first stage, and what it gave lately: pictures do not travel through the graph."""

    def __init__(self) -> None:
        self.stage: Receive | None = None
        self.kept: set[str] = set()
        """Streams that the other stages begin anew while their source goes on: its frames keep their numbers."""
        self._frames: dict[str, deque[tuple[Frame, float | None]]] = {}
        self._behind: dict[str, int] = {}
        self._most = 64

    def on(self, spec: StageSpec, most: int) -> StageSpec:
        """The stage's description, such that the one built of it is this tap. `most` frames a stream are kept."""
        self._most, build = most, spec.kind.build

        def tapped(settings: Any, context: RunContext) -> Tap:
            self.stage = build(settings, context)
            return self

        return replace(spec, kind=replace(spec.kind, build=tapped))

    def __call__(self, batch: list[Any]) -> list[Any]:
        records = self.stage(batch)
        for record in records:
            if isinstance(record, Frame):
                kept = self._frames.setdefault(record.info.stream, deque(maxlen=self._most))
                kept.append((record, self.stage.captured_at(record.info.stream, record.info.index)))
                self._behind[record.info.stream] = record.info.index + 1
        return records

    def behind(self, stream: str) -> int:
        """Index behind the last frame that was given; 0 before the first one."""
        return self._behind.get(stream, 0)

    def taken(self, stream: str, index: int) -> tuple[Frame | None, float | None]:
        """The frame of a result and when it was captured; those before it are let go."""
        kept = self._frames.get(stream, ())
        while kept and kept[0][0].info.index < index:
            kept.popleft()
        return kept[0] if kept and kept[0][0].info.index == index else (None, None)

    def open(self, stream: str) -> None:
        if stream not in self.kept:
            self.stage.open(stream)
        self.kept.discard(stream)

    def snapshot(self, stream: str) -> bytes:
        return self.stage.snapshot(stream)

    def restore(self, stream: str, state: bytes) -> None:
        if stream not in self.kept:
            self.stage.restore(stream, state)
        self.kept.discard(stream)

    def close(self, stream: str) -> list[Any]:
        if stream in self.kept:
            return []
        self._frames.pop(stream, None)
        self._behind.pop(stream, None)
        return self.stage.close(stream)
