"""Which streams there are, which replica has each, and where each would go on: what outlives the replicas.

In:     from the ingress: streams to register and to remove; from each owner (a replica of the first group), twice a
        second, what became of its streams, with snapshots, by value: an object of a dead owner would be lost with it
Out:    to each owner what to open and what to let go; to the ingress who has which stream, and the last word on each
State:  an entry a stream with its last snapshot; when each owner was last heard; which cameras the settings name
Limits: `max_streams` of one owner; an owner that is not heard for AWAY_S loses its streams, one whose actor is dead at
        once. The registry's own death loses nothing: owners tell the next one what they have

A stream has one owner at a time: the one with the fewest, and it stays there. Serve's hash of session ids alone would
not do: three replicas had 1, 5 and 6 of twelve sessions, and a replica that joins takes streams from where they run.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

from pipelines.serving.streams import (
    Account,
    Opening,
    PlanFull,
    Status,
    StreamSpec,
    StreamTaken,
    Told,
    UnknownStream,
    blank_status,
)

AWAY_S = 10.0
"""An owner so long unheard is taken for hung: Serve's own health check will end it."""
ASK_AFTER_S = 1.2
"""Unheard so long, it is looked up whether its process lives."""
SETTLED_S = 3.0
"""So old, a registry has heard of every stream: owners speak twice a second."""

Clock = Callable[[], float]


@dataclass
class Entry:
    """What is known of one stream."""

    spec: StreamSpec
    owner: str | None = None
    releasing: bool = False
    account: Account = Account()
    states: dict[str, bytes] = field(default_factory=dict)
    status: Status = field(default_factory=dict)
    heard_at: float = 0.0
    """Unix time of the last word on it."""
    tail: tuple[tuple[int, bytes], ...] = ()


@dataclass
class Owner:
    """A replica of the first group."""

    heard_at: float
    actor: str
    """Name of its actor."""
    most: int
    """Streams that it may have."""
    leaving: bool = False
    """It shuts down."""


@dataclass(frozen=True)
class Orders:
    """What an owner is to do."""

    openings: tuple[Opening, ...] = ()
    release: tuple[str, ...] = ()
    """Hand over: let come out what is under way, and give the state."""
    drop: tuple[str, ...] = ()
    """Not, or no more, this owner's: close without a word."""
    registry: float = 0.0
    """When the registry was made: another one than before knows no snapshot."""


@dataclass(frozen=True)
class Overview:
    """What the ingress asks for."""

    statuses: tuple[Status, ...]
    owners: dict[str, str]
    """Stream -> its owner. One that has none is not in it."""
    replicas: int
    """Owners that are there."""
    room: int
    """Streams that could be added."""
    under_way: int = 0
    """Streams whose owner may still give results: once the server ends, so many have not handed over yet."""
    closing: bool = False
    """The server ends."""
    settled: bool = True
    """What is not here is nowhere. A registry that was just made anew has not heard of all streams yet."""


class Registry:
    """Plain Python; `pipelines/serving/actors.py` makes an actor of it. Calls come one after the other."""

    def __init__(self, is_dead: Callable[[str], bool] = lambda actor: False, clock: Clock = time.time) -> None:
        self._is_dead, self._clock = is_dead, clock
        self._entries: dict[str, Entry] = {}
        self._owners: dict[str, Owner] = {}
        self._removed: dict[str, float] = {}
        """Streams that were removed -> when the last of their name had been made: an owner that still has it, or one
        before it, is to drop it."""
        self._closing_at: dict[str, str] = {}
        """Streams that were removed -> the owner that has not said yet that it closed them. Another of the id begins
        there: elsewhere it would begin before that one is over, and later groups know a stream by its id alone."""
        self._declared: dict[str, StreamSpec] = {}
        self._closing = False
        self._made_at = clock()

    # ------------------------------------------------------------------------------------------------ from the ingress

    def register(self, spec: StreamSpec) -> Status:
        """A new stream. Raises StreamTaken where it exists; PlanFull where no owner has room for it."""
        if self._closing:
            raise PlanFull("The server is being shut down and takes no more streams.")
        self._look_around()
        before = self._entries.get(spec.id)
        if before is not None:
            raise StreamTaken(f"There is a stream '{spec.id}' already. Remove it first, or take another id.")
        if not self._owners:
            raise PlanFull("No replica is ready to take a stream yet. Try again in a few seconds.")
        if self._room() <= 0:
            most = sum(owner.most for owner in self._owners.values())
            raise PlanFull(f"The plan is full: {len(self._entries)} of {most} streams. Remove one, or add replicas.")
        status = blank_status(spec, "connecting", "no replica has opened it yet")
        entry = self._entries[spec.id] = Entry(spec, status=status, heard_at=self._clock())
        self._removed.pop(spec.id, None)
        self._assign()
        return entry.status

    def declare(self, specs: Sequence[StreamSpec], known: float = 0.0) -> float:
        """The cameras of the settings: those that were not named before, or otherwise, are registered, those that are
        not named any more removed. What is named as before is left alone: a camera that somebody removed stays away.

        Gives the time at which this registry was made; `known`, the one that was given before: nothing is done.
        Raises PlanFull where not all could be registered: declare them again.
        """
        if known == self._made_at or (known and not self._settled()):
            return known
        named = {spec.id: spec for spec in specs}
        for name in [name for name, entry in self._entries.items() if entry.spec.declared and name not in named]:
            self.remove(name)
        self._declared = {name: spec for name, spec in self._declared.items() if name in named}
        for name, spec in named.items():
            if name in self._declared and self._declared[name].asks_as(spec):
                continue
            entry = self._entries.get(name)
            if entry is not None and entry.spec.asks_as(spec):
                entry.spec = replace(entry.spec, declared=True)
            else:
                self._replace(spec)
            self._declared[name] = spec
        return self._made_at

    def _replace(self, spec: StreamSpec) -> None:
        """The stream of this id, if there is one, ends; this one begins. Raises PlanFull; then nothing has changed."""
        before = self._entries.pop(spec.id, None)
        if before is not None and before.owner is not None:
            self._closing_at[spec.id] = before.owner
        try:
            self.register(spec)
        except PlanFull:
            if before is not None:
                self._entries[spec.id] = before
            raise

    def remove(self, stream: str) -> Status:
        """Forget a stream; its owner drops it with its next word. Raises UnknownStream."""
        entry = self._entries.pop(stream, None)
        if entry is None:
            raise UnknownStream(f"There is no stream '{stream}'.")
        self._removed[stream] = entry.spec.created_at
        if entry.owner is not None:
            self._closing_at[stream] = entry.owner
        while len(self._removed) > 1000:
            self._removed.pop(next(iter(self._removed)))
        return entry.status

    def overview(self) -> Overview:
        """All streams in the order in which they were registered."""
        self._look_around()
        self._assign()
        owners = {name: entry.owner for name, entry in self._entries.items() if entry.owner}
        statuses = tuple(entry.status for entry in self._entries.values())
        under_way = sum(entry.owner is not None and not _is_over(entry.status) for entry in self._entries.values())
        return Overview(statuses, owners, len(self._owners), max(self._room(), 0), under_way, self._closing,
                        settled=self._settled())

    def close(self) -> None:
        """The server ends: every owner lets its streams go, and nobody takes them."""
        self._closing = True
        for entry in self._entries.values():
            entry.releasing = entry.owner is not None

    # ------------------------------------------------------------------------------------------------ from the owners

    def sync(self, name: str, actor: str, most: int, told: Iterable[Told], leaving: bool = False) -> Orders:
        """The word of an owner. `leaving`: it shuts down, and what it tells is released."""
        now = self._clock()
        self._owners[name] = Owner(now, actor, most, leaving)
        drop, has, there = [], set(), set()
        for each in told:
            there.add(each.spec.id)
            if not self._heard(name, each, now):
                drop.append(each.spec.id)
            elif not each.released:
                has.add(each.spec.id)
        for stream in [stream for stream, owner in self._closing_at.items() if owner == name and stream not in there]:
            del self._closing_at[stream]
        if leaving and not has:
            del self._owners[name]
        self._look_around()
        self._assign()
        mine = {stream: entry for stream, entry in self._entries.items() if entry.owner == name}
        for stream in mine.keys() - has:
            if mine[stream].releasing:          # it was never opened: there is nothing to wait for
                mine[stream].owner, mine[stream].releasing = None, False
        openings = [self._opening(entry) for stream, entry in mine.items() if stream not in has and entry.owner]
        release = [stream for stream, entry in mine.items() if stream in has and entry.releasing]
        return Orders(tuple(openings), tuple(release), tuple(drop), self._made_at)

    def _heard(self, name: str, told: Told, now: float) -> bool:
        """Take in what is told of a stream; False where it is not this owner's."""
        spec = told.spec
        entry = self._entries.get(spec.id)
        if entry is None:
            if told.released or self._removed.get(spec.id, -math.inf) >= spec.created_at:
                return False
            entry = self._entries[spec.id] = Entry(spec, owner=name)     # this registry is younger than the stream
        if entry.spec.created_at != spec.created_at or entry.owner != name:
            return False
        entry.account, entry.status, entry.heard_at = told.account, told.status, now
        if told.states is not None:
            entry.states = told.states
        if told.released:
            entry.owner, entry.releasing, entry.tail = None, False, told.tail
        return True

    # ---------------------------------------------------------------------------------------------------- who has what

    def _look_around(self) -> None:
        """Take the streams from owners that are gone."""
        now = self._clock()
        for name, owner in list(self._owners.items()):
            silent = now - owner.heard_at
            if silent > AWAY_S or (silent > ASK_AFTER_S and self._is_dead(owner.actor)):
                del self._owners[name]
        self._closing_at = {stream: owner for stream, owner in self._closing_at.items() if owner in self._owners}
        for entry in self._entries.values():
            if entry.owner is not None and entry.owner not in self._owners:
                entry.owner, entry.releasing = None, False
                entry.account = _lost_since(entry, now)
                entry.status = _waiting(entry)

    def _assign(self) -> None:
        load = {name: 0 for name, owner in self._owners.items() if not owner.leaving and not self._closing}
        for entry in self._entries.values():
            if entry.owner in load:
                load[entry.owner] += 1
        for entry in self._entries.values():
            if entry.owner is None and load and entry.status.get("state") not in ("ended", "failed"):
                closing_at = self._closing_at.get(entry.spec.id)
                entry.owner = closing_at if closing_at in load else min(load, key=load.__getitem__)
                load[entry.owner] += 1

    def _settled(self) -> bool:
        return self._clock() - self._made_at > SETTLED_S

    def _room(self) -> int:
        return sum(owner.most for owner in self._owners.values() if not owner.leaving) - len(self._entries)

    def _opening(self, entry: Entry) -> Opening:
        return Opening(entry.spec, entry.account, entry.states, entry.tail)


def _is_over(status: Status) -> bool:
    """Whether no more comes of it: it ended, and all that it took has come out or is given up."""
    return status["state"] in ("ended", "failed") and not status["frames"]["in_flight"]


def _waiting(entry: Entry) -> Status:
    """Of a stream whose owner is gone, until the next one speaks of it."""
    if entry.status.get("state") in ("ended", "failed"):
        return entry.status
    account, reason = entry.account, "the process that worked on it died; another one takes it over"
    held = account.frames_in - account.out - sum(account.dropped.values())
    frames = {"in": account.frames_in, "out": account.out, "in_flight": held, "dropped": account.dropped}
    return {**entry.status, "state": "reconnecting", "reason": reason, "retry_in_s": None, "frames": frames,
            "fps_in": 0.0, "fps_out": 0.0, "tracks": 0, "stalled_s": 0.0}  # fmt: skip


def _lost_since(entry: Entry, now: float) -> Account:
    """The account of a stream whose owner died: indices go on behind all that it may have given since its last word.

    What the source gave meanwhile is reckoned from its rate, and counts as dropped. A pushed stream, or one without a
    rate, still leaves room of one frame.
    """
    account, fps = entry.account, entry.status.get("fps_in") or 0.0
    gap = math.ceil(max(now - entry.heard_at, 0.0) * fps) + 1
    if not entry.heard_at or not account.next_index:
        gap = 0
    dropped = dict(account.dropped)
    dropped["restarted"] = dropped.get("restarted", 0) + gap
    index = account.next_index + gap
    return replace(account, frames_in=account.frames_in + gap, dropped=dropped, next_index=index, given=index)
