"""One live stream as its owner holds it: its source, what it counts, and how far its way through the graph is.

In:     an Opening; what the engine tells of its batches
Out:    its Status, and the Account and snapshot with which another owner could go on
State:  the source's thread and queue, the channel of its results, counters
Limits: those of its queue and channel
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from typing import Any, Literal, Protocol

from operators.live.queue import LiveQueue
from operators.live.states import SourceState
from pipelines.serving.channel import Channel
from pipelines.serving.streams import Account, Opening, Status, StreamSpec, Told, blank_status

Phase = Literal["new", "live", "leaving", "closing", "over"]
"""new: to begin in every group; live; leaving: for another owner; closing: for ever; over."""

MAX_FAILURES = 5
"""Times in a row that a stage may fail on a stream, without GOOD_FRAMES in between, before it is given up."""
GOOD_FRAMES = 100
MAX_TAIL = 128
"""Results that go with a stream to its next owner."""


class LiveSource(Protocol):
    """A camera, or what a client pushes."""

    def start(self) -> None: ...

    def stop(self) -> None: ...

    def state(self) -> SourceState: ...


class Owned:
    """Change it with the engine's lock held."""

    def __init__(self, opening: Opening, channel: Channel, news: threading.Condition, groups: tuple[str, ...]) -> None:
        """`groups`: names of those that remember; each begins from its snapshot, or from nothing."""
        self.spec: StreamSpec = opening.spec
        self.base: Account = opening.account
        self.channel = channel
        self.queue = LiveQueue(self.spec.queue, self.spec.policy, news)
        self.source: LiveSource | None = None
        self.phase: Phase = "new"
        self._groups = groups
        self.begin: dict[str, bytes | None] = {name: opening.states.get(name) for name in groups}
        """Groups that are to begin the stream anew with its next batch, and from what."""
        self.states = dict(opening.states)
        """The last snapshot that is whole."""
        self.untold_states: dict[str, bytes] | None = None
        self.under_way = 0
        """Batches behind the first group, or in it."""
        self.out = 0
        self.lost: Counter[str] = Counter()
        """Frames taken that gave no result, by reason: failed (a stage did), restarted (a later group died)."""
        self.floor = opening.account.given
        """Earlier frames than this were given out, or count as lost: a stage that is restored may hold some of them."""
        self.to_settle: str | None = None
        """What is missing is to be counted as lost, for this reason, as soon as nothing is under way."""
        self.next_index = opening.account.given
        """Behind the last result."""
        self.since_snapshot = 0
        self.failures = 0
        self.good_frames = 0
        self.not_before = 0.0
        """Monotonic time before which it does not begin again."""
        self.verdict: tuple[Literal["ended", "failed"], str] | None = None
        self.announced = False
        """The engine ordered the last step of its phase."""
        self.started = False
        """Its source was started."""
        self._idle_at = time.time()
        """When nothing was under way, the last time that somebody looked."""
        self.released = False
        """Another owner may have it."""
        self.over_at = 0.0
        """Monotonic time at which it was over."""

    @property
    def id(self) -> str:
        return self.spec.id

    @property
    def elsewhere(self) -> bool:
        """Another owner is to go on with it: whatever comes for it is for that one."""
        return self.phase == "leaving" or self.released

    def settle(self) -> None:
        """With nothing under way: what was taken and did not come out is lost, if there is a reason for it."""
        if self.to_settle is not None and not self.under_way:
            self.lose(self.queue.counts().taken, self.floor, self.to_settle)
            self.to_settle = None

    def lose(self, taken: int, behind: int, reason: str) -> None:
        """Of the first `taken` frames, all earlier than `behind`, those that have not come out never will: also not
        from a stage that is restored, and had held some of them back."""
        base = self.base
        held_before = base.frames_in - base.out - sum(base.dropped.values())
        self.lost[reason] += max(held_before + taken - self.out - sum(self.lost.values()), 0)
        self.floor = max(self.floor, behind)

    def stumbled(self, reason: str) -> None:
        """A stage failed on it: it begins again from its last snapshot after a while, or is given up. From nothing
        where a snapshot gave no result: it may hold the very frame that the stage fails on."""
        no_good = self.failures > 0 and not self.good_frames
        self.failures = self.failures + 1 if self.good_frames < GOOD_FRAMES else 1
        self.good_frames = 0
        if self.failures >= MAX_FAILURES:
            self.finish("failed", reason)
            return
        self.phase, self.not_before = "new", time.monotonic() + 0.2 * 2 ** self.failures
        self.begin = {name: None if no_good else self.states.get(name) for name in self._groups}

    def finish(self, state: Literal["ended", "failed"], reason: str) -> None:
        """It is over, for this reason."""
        self.verdict = self.verdict or (state, reason)
        self.phase, self.announced = "closing", False

    # --------------------------------------------------------------------------------------------------- how it stands

    def account(self) -> Account:
        """What another owner would begin with, were this one to die now: what is under way counts as lost."""
        base, out = self.base, self.base.out + self.out     # read once, and first: see `status`
        counts = self.queue.counts()
        dropped = self._dropped(counts.dropped)
        missing = base.frames_in + counts.frames_in - out - sum(dropped.values())
        if missing > 0 and not self.released:
            dropped["restarted"] = dropped.get("restarted", 0) + missing
        # behind every frame that came: more of them may have left the graph by the time this is needed
        index = max(self.next_index, base.next_index + counts.frames_in)
        frames_in = base.frames_in + counts.frames_in
        return Account(frames_in, out, dropped, self._reconnects(), index, max(self.next_index, self.floor))

    def dropped(self) -> dict[str, int]:
        return self._dropped(self.queue.counts().dropped)

    def _dropped(self, queue: dict[str, int]) -> dict[str, int]:
        total = Counter(self.base.dropped) + Counter(queue) + Counter(self.lost)   # a copy: the engine adds to it
        return {reason: count for reason, count in total.items() if count}

    def _reconnects(self) -> int:
        return self.base.reconnects + (self.source.state().reconnects if self.source else 0)

    def status(self) -> Status:
        """What clients see; frames in = out + dropped + in flight in it, always."""
        state = self.source.state() if self.source is not None else SourceState("connecting")
        out = self.base.out + self.out      # before the queue is asked: what comes out meanwhile may have come in later
        counts = self.queue.counts()
        dropped, frames_in = self._dropped(counts.dropped), self.base.frames_in + counts.frames_in
        in_flight, now = frames_in - out - sum(dropped.values()), time.time()
        self._idle_at = self._idle_at if in_flight else now
        fps_out, p50, p95 = self.channel.rates()
        word, reason = self._word(state)
        status: dict[str, Any] = blank_status(self.spec, word, reason)
        status |= {
            "retry_in_s": None if state.retry_in_s is None else round(state.retry_in_s, 1),
            "width": state.width or None,
            "height": state.height or None,
            "fps_in": round(state.fps, 2),
            "fps_out": fps_out,
            "latency_ms": {"p50": p50, "p95": p95},
            "frames": {"in": frames_in, "out": out, "in_flight": in_flight, "dropped": dropped},
            "tracks": self.channel.shown,
            "min_score": self.channel.min_score,
            "reconnects": self._reconnects(),
            "last_result_at": self.channel.last_at,
            "stalled_s": round(now - max(self._idle_at, self.channel.last_at or 0.0), 1) if in_flight else 0.0,
        }  # fmt: skip
        return status

    def _word(self, state: SourceState) -> tuple[str, str]:
        if self.verdict is not None:
            return self.verdict
        if state.state in ("ended", "stopped"):     # what waits is still worked on
            return "live", state.reason
        return state.state, state.reason

    def told(self) -> Told:
        """The owner's word to the registry."""
        states, self.untold_states = self.untold_states, None
        tail = tuple(self.channel.lines(-1)[-MAX_TAIL:]) if self.released else ()
        return Told(self.spec, self.status(), self.account(), states, self.released, tail)
