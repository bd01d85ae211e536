"""Runs a graph twice on simulated nodes, in calm and under blows, and keeps what it takes to compare the two.

In:     a Graph, sources, a Scenario (chaos_scenario.py)
Out:    Trial: the record of both runs, the blows that fell, what was left over; chaos_verdict.py judges it
State:  a thread that waits for its moment and hurts the cluster; all else is the executor's own
Limits: results are not written anywhere. Memory: some 60 bytes a frame and run

    count frames by decoding alone ─► calm run ─► leftovers ─► run under blows ─► leftovers ─► verdict
                                        └ same corruption ┘        └ SIGKILL, lost nodes, delays
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field

from operators.errors import MaskstreamError
from operators.records import Pull, StreamEnd
from operators.sources import Source
from pipelines.actors import run_actors
from pipelines.chaos_cluster import LOOK_S, Leftovers, SimulatedCluster, Worker
from pipelines.chaos_record import Record
from pipelines.chaos_scenario import Blow, Due, Kind, Scenario, blows
from pipelines.chaos_stages import damaged
from pipelines.graph import Graph, RunContext
from pipelines.interrupts import Interrupts
from pipelines.status import Status

Tell = Callable[[str, int], None]
"""(what is done now, how many frames of it are done)."""
PULLED = 64
"""Frames asked for at a time when they are counted."""
HOLD_S = 10.0
"""Longest time that results wait for a blow to fall."""
VICTIM_TIMEOUT_S = 60.0
"""How long a blow waits for a replica that is alive, when all of them are being made anew."""


@dataclass(frozen=True)
class Hit:
    """A blow that fell."""

    kind: Kind
    number: int
    """Of its entry in the scenario."""
    target: str
    frame: int
    """Frames given out before."""
    at_s: float
    """Since the run began."""
    landed: bool
    """Whether what it was for was there."""


@dataclass
class Run:
    """One run of all sources."""

    record: Record = field(default_factory=Record)
    wall_s: float = 0.0
    status: Status | None = None
    """The executor's last word."""
    leftovers: Leftovers = Leftovers()
    hits: list[Hit] = field(default_factory=list)
    error: str | None = None
    """With which it broke off."""

    @property
    def restarts(self) -> int:
        return 0 if self.status is None else sum(group.restarts for group in self.status.groups)


@dataclass(frozen=True)
class Trial:
    """Both runs, and what they are judged by."""

    scenario: Scenario
    given: dict[str, int]
    """Stream -> frames that its source has."""
    calm: Run
    wild: Run


def trial(
    graph: Graph,
    sources: Sequence[Source],
    context: RunContext,
    scenario: Scenario,
    simulated: SimulatedCluster,
    tell: Tell = lambda what, done: None,
    interrupts: Interrupts | None = None,
) -> Trial:
    """Both runs on a cluster that is there. The calm one must come to its end, the other may break.

    Raises: what the calm run raises; KeyboardInterrupt, with everything ended that was begun.
    """
    interrupts = interrupts or Interrupts()
    given: dict[str, int] = {}
    for given in interrupts.each(count_frames(graph, sources, context)):
        tell("counting frames", sum(given.values()))
    calm, wild = Run(), Run()
    _run(damaged(graph, scenario, calm=True), sources, context, calm, interrupts, lambda done: tell("calm run", done))
    calm.leftovers = simulated.leftovers(scenario.limits.settle_s)
    saboteur = Saboteur(scenario, blows(scenario, sum(given.values())), simulated, wild)
    try:
        with saboteur:
            _run(damaged(graph, scenario, calm=False), sources, context, wild, interrupts,
                 lambda done: (tell("under blows", done), saboteur.saw(done)))  # fmt: skip
    except MaskstreamError as error:
        wild.error = f"{type(error).__name__}: {error}"
    wild.leftovers = simulated.leftovers(scenario.limits.settle_s)
    return Trial(scenario, given, calm, wild)


def _run(
    graph: Graph, sources: Sequence[Source], context: RunContext, run: Run, interrupts: Interrupts,
    seen: Callable[[int], object],
) -> None:  # fmt: skip
    run.record = Record()
    results = run_actors(graph, iter(sources), context, on_status=lambda status: setattr(run, "status", status))
    with closing(results):
        try:
            for result in interrupts.each(results):
                run.record.add(result)
                seen(run.record.frames)
        finally:
            run.wall_s = run.record.now_s


def count_frames(graph: Graph, sources: Sequence[Source], context: RunContext) -> Iterator[dict[str, int]]:
    """Frames that each source has, faulty ones among them, as far as they are counted; the last word is the whole.

    The graph's first stage alone, in this process, says so. A source that fails has those that it gave until then.
    """
    first = graph.stages[0]
    stage, counts = first.kind.build(first.settings, context), {}
    for source in sources:
        counts[source.name] = 0
        stage.open(source.name)
        ended = False
        while not ended:
            given = stage([Pull(source, PULLED)])
            ended = any(isinstance(record, StreamEnd) for record in given)
            counts[source.name] += sum(not isinstance(record, StreamEnd) for record in given)
            yield counts
        stage.close(source.name)


class Saboteur:
    """Hurts the cluster when so many frames are given out, in a thread of its own, because a node takes seconds.

    Whoever takes the results waits while a blow falls: it falls in the midst of the work, however busy the machine is.
    """

    def __init__(self, scenario: Scenario, plan: Sequence[Due], simulated: SimulatedCluster, run: Run) -> None:
        self._scenario, self._plan, self._simulated, self._run = scenario, plan, simulated, run
        self._chance = random.Random(f"{scenario.seed} victims")
        self._changed, self._stopped, self._error = threading.Condition(), threading.Event(), None
        self._frames = 0
        self._next: int | None = None
        """The frame that the thread waits for; None while it is at work."""
        self._falling = False
        self._thread = threading.Thread(target=self._work, name="saboteur")

    def saw(self, frames: int) -> None:
        """So many frames are given out. Returns when the blow that is due has fallen, if the thread is ready for it."""
        with self._changed:
            self._frames = frames
            if self._next is not None and frames >= self._next:
                self._next, self._falling = None, True
                self._changed.notify_all()
                self._changed.wait_for(lambda: not self._falling or self._stopped.is_set(), HOLD_S)

    def __enter__(self) -> Saboteur:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        """Raises what the thread ran into: then less was tried than the report would say."""
        with self._changed:
            self._stopped.set()
            self._changed.notify_all()
        self._thread.join()
        if self._error is not None and error[0] is None:
            raise self._error

    def _work(self) -> None:
        try:
            for due in self._plan:
                self._await(due.frame)
                if self._stopped.is_set():
                    return
                self._strike(due.number, self._scenario.blows[due.number])
        except Exception as error:
            self._error = error
        finally:
            self._fallen()

    def _await(self, frame: int) -> None:
        with self._changed:
            if self._frames < frame:
                self._next = frame
                self._changed.wait_for(lambda: self._falling or self._stopped.is_set())

    def _fallen(self) -> None:
        """Results may go on."""
        with self._changed:
            self._falling = False
            self._changed.notify_all()

    def _strike(self, number: int, blow: Blow) -> None:
        workers = self._victims(blow)
        if blow.kind == "node":
            self._strike_node(number, blow, workers)
            return
        if not workers:
            self._hit(blow, number, "no replica was alive", False)
            return
        worker = self._chance.choice(workers)
        kill = self._simulated.kill_process if blow.kind == "process" else self._simulated.kill_actor
        self._hit(blow, number, str(worker), kill(worker))

    def _strike_node(self, number: int, blow: Blow, workers: Sequence[Worker]) -> None:
        """One that has something to lose, if there is one; then another is started."""
        nodes = sorted({worker.node for worker in workers}) or list(self._simulated.nodes)
        node = self._chance.choice(nodes)
        lost = [f"{' '.join(worker.stages)}" for worker in workers if worker.node == node]
        self._simulated.kill_node(node)
        self._hit(blow, number, f"node {node[:8]} with {', '.join(lost) or 'nothing'}", bool(lost))
        self._stopped.wait(blow.back_after_s)
        self._simulated.add_node()

    def _victims(self, blow: Blow) -> list[Worker]:
        """Replicas that can be hit; waits for one that is being made anew."""
        until = time.monotonic() + VICTIM_TIMEOUT_S
        while not (workers := self._simulated.workers(blow.stages)):
            self._fallen()                                  # it is who takes the results that makes replicas anew
            if time.monotonic() > until or self._stopped.wait(LOOK_S):
                break
        return workers

    def _hit(self, blow: Blow, number: int, target: str, landed: bool) -> None:
        self._run.hits.append(Hit(blow.kind, number, target, self._frames, self._run.record.now_s, landed))
        self._fallen()


def frames_hit(scenario: Scenario, given: dict[str, int]) -> dict[str, int]:
    """Kind of corruption -> frames that it is for, if all are reached."""
    return {
        one.how: sum(one.hits(scenario.seed, name, i) for name, frames in given.items() for i in range(frames))
        for one in scenario.corrupt
    }
