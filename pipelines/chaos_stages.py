"""Stages that misbehave as a scenario says: the user's own, each wrapped where the scenario names it.

In:     a Graph and a Scenario
Out:    the same Graph with other `build`s: frames corrupted, the same ones however often they are done again; stages
        that stop now and then; a frame that raises or that kills its process
State:  that of the stages within, untouched
Limits: none of its own

A wrapper has the methods of what it wraps: a stage that remembers is still one, and its snapshots are its own.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from operators.errors import ConfigError, StageError
from operators.records import Frame, FrameFault, FrameInfo, StreamEnd
from pipelines.chaos_scenario import PICTURES, Corruption, Delay, Scenario, falls
from pipelines.graph import Graph, RunContext, StageSpec
from pipelines.stage import Stage


def damaged(graph: Graph, scenario: Scenario, calm: bool) -> Graph:
    """The graph as it is run: with the scenario's corruption, and unless `calm` with its delays and deaths.

    Raises ConfigError where frames are to be corrupted that the first stage does not give.
    """
    if any(one.how in ("noise", "black") for one in scenario.corrupt) and graph.stages[0].kind.gives is not Frame:
        gives = graph.stages[0].kind.gives.__name__
        raise ConfigError(f"corrupt: noise and black need frames, '{graph.stages[0].name}' gives {gives}. Use fault.")
    last = graph.stages[-1].name
    stages = []
    for number, spec in enumerate(graph.stages):
        damage = tuple(
            one for one in scenario.corrupt
            if (number == 0 if _at_the_source(one, calm) else spec.name == (one.stage or last))
        )
        delays = () if calm else tuple(one for one in scenario.delays if one.stage == spec.name)
        stages.append(_wrapped(spec, _Habits(scenario.seed, number == 0, damage, delays)))
    return replace(graph, stages=tuple(stages))


def _at_the_source(one: Corruption, calm: bool) -> bool:
    """A frame that kills shall cost its stream what a source costs that breaks off before it: in calm it does that."""
    return one.how in PICTURES or (calm and one.how == "death")


def _wrapped(spec: StageSpec, habits: _Habits) -> StageSpec:
    if not habits.damage and not habits.delays:
        return spec
    return replace(spec, kind=replace(spec.kind, build=_Build(spec.kind.build, spec.kind.stateful, habits)))


@dataclass(frozen=True)
class _Habits:
    """How one stage misbehaves."""

    seed: int
    first: bool
    """It is the graph's first stage, which is asked for frames and has none before it is called."""
    damage: tuple[Corruption, ...]
    delays: tuple[Delay, ...]

    def stop(self, infos: Sequence[FrameInfo]) -> None:
        """Take the time that the frames of a batch cost more."""
        for delay in self.delays:
            what = f"{self.seed} delay {delay.stage}"
            slow = sum(falls(what, info.stream, info.index, delay.every) for info in infos)
            time.sleep(slow * delay.seconds)

    def strike(self, infos: Sequence[FrameInfo]) -> None:
        """Fail or die where a frame is meant for it."""
        for info in infos:
            for one in self.damage:
                if one.how in ("error", "death") and one.hits(self.seed, info.stream, info.index):
                    if one.how == "death":
                        os.kill(os.getpid(), signal.SIGKILL)
                    raise StageError(f"{info}: chaos makes this frame fail.")

    def breaks_off(self, record: Any) -> bool:
        """Whether the source is to end before this frame."""
        if not isinstance(record, Frame):
            return False
        info, deaths = record.info, (one for one in self.damage if one.how == "death")
        return any(one.hits(self.seed, info.stream, info.index) for one in deaths)

    def shown(self, record: Any) -> Any:
        """What the first stage gives, or what became of it."""
        if not isinstance(record, Frame):
            return record
        for one in self.damage:
            if one.how in PICTURES and one.hits(self.seed, record.info.stream, record.info.index):
                return _picture(record, one.how, self.seed)
        return record


def _picture(frame: Frame, how: str, seed: int) -> Frame | FrameFault:
    if how == "fault":
        return FrameFault(frame.info, "corrupted by chaos")
    if how == "black":
        return replace(frame, image=np.zeros_like(frame.image))
    chance = np.random.default_rng([seed, frame.info.index])
    return replace(frame, image=chance.integers(0, 256, frame.image.shape, dtype=np.uint8))


@dataclass(frozen=True)
class _Build:
    """Builds the stage within, and what stands around it. Travels to the actors, as any `StageKind.build` does."""

    within: Callable[[Any, RunContext], Stage]
    stateful: bool
    habits: _Habits

    def __call__(self, settings: Any, context: RunContext) -> Stage:
        stage = self.within(settings, context)
        return _StreamStage(stage, self.habits) if self.stateful else _Stage(stage, self.habits)


class _Stage:
    """Around a stage without memory."""

    def __init__(self, within: Any, habits: _Habits) -> None:
        self.within, self._habits = within, habits
        self._broken: set[str] = set()

    def __call__(self, batch: list[Any]) -> list[Any]:
        if not self._habits.first:
            infos = [record.info for record in batch]
            self._habits.strike(infos)
            self._habits.stop(infos)
            return self.within(batch)
        given = [one for record in self.within(batch) for one in self._first(self._habits.shown(record))]
        self._habits.stop([record.info for record in given if isinstance(record, Frame)])
        return given


    def _first(self, record: Any) -> list[Any]:
        """The record, the end of its stream in its place, or nothing after that."""
        stream = record.stream if isinstance(record, StreamEnd) else record.info.stream
        if stream in self._broken:
            return []
        if self._habits.breaks_off(record):
            self._broken.add(stream)
            error = f"{record.info}: in the run under blows this frame kills."
            return [StreamEnd(stream, num_frames=record.info.index, error=error, fatal=True)]
        return [record]


class _StreamStage(_Stage):
    """Around one that remembers."""

    def open(self, stream: str) -> None:
        self._broken.discard(stream)
        self.within.open(stream)

    def snapshot(self, stream: str) -> bytes:
        return self.within.snapshot(stream)

    def restore(self, stream: str, state: bytes) -> None:
        self.within.restore(stream, state)

    def close(self, stream: str) -> list[Any]:
        return self.within.close(stream)
