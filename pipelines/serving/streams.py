"""What is known of a live stream outside of the process that runs it: what was asked for, and where it stands.

In:     what `POST /streams`, the command line or a deployment's file say
Out:    StreamSpec, which travels to the replica that opens the stream; Account, with which a new owner goes on
Limits: ids of at most 64 letters, digits, '.', '_' and '-'; queues of at most 4096 frames
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from operators.errors import ConfigError, MaskstreamError, did_you_mean
from operators.live.addresses import public_url

Policy = Literal["drop_oldest", "drop_newest", "block"]
Kind = Literal["pull", "push", "video"]
State = Literal["connecting", "live", "reconnecting", "ended", "failed"]
Status = dict[str, Any]
"""What clients see of a stream, plain values alone; docs of `GET /streams`."""

MAX_QUEUE = 4096
MAX_ID = 64


class UnknownStream(MaskstreamError):
    """No stream has this id."""


class StreamTaken(MaskstreamError):
    """A stream has this id already."""


class PlanFull(MaskstreamError):
    """There is no room for another stream."""


@dataclass(frozen=True, kw_only=True)
class StreamSpec:
    """A stream as it was asked for. Small and picklable."""

    id: str
    url: str | None = None
    """What the server pulls; None: the client pushes."""
    policy: Policy = "drop_oldest"
    """What gives way when frames come faster than they are worked on: the one that waits longest, the one that comes,
    or (block) the source, which waits."""
    queue: int = 8
    """Frames that may wait. More: fewer are dropped in a burst, later results under load."""
    declared: bool = False
    """It stands in the settings: a new version of them that does not name it ends it."""
    created_at: float = field(default_factory=time.time)
    """Unix time; tells two streams that had the same id one after the other apart."""

    def __post_init__(self) -> None:
        if not re.fullmatch(rf"[A-Za-z0-9][A-Za-z0-9._-]{{0,{MAX_ID - 1}}}", self.id):
            raise ConfigError(f"the stream id {self.id[:80]!r} cannot be used; expected 1 to {MAX_ID} letters, digits, "
                              f"'.', '_' and '-', a letter or digit first.")  # fmt: skip
        if self.policy not in get_args(Policy):
            hint = did_you_mean(str(self.policy), get_args(Policy))
            raise ConfigError(f"stream '{self.id}': there is no policy {self.policy!r}.{hint}")
        if not 1 <= self.queue <= MAX_QUEUE:
            raise ConfigError(f"stream '{self.id}': queue is {self.queue}, expected 1 to {MAX_QUEUE} frames.")

    @property
    def kind(self) -> Kind:
        return "push" if self.url is None else "pull"

    def asks_as(self, other: StreamSpec) -> bool:
        """Whether both ask for the same, whenever they were made."""
        return (self.id, self.url, self.policy, self.queue) == (other.id, other.url, other.policy, other.queue)


@dataclass(frozen=True)
class Account:
    """What became of a stream's frames before its present owner: frames in = out + dropped + what stages hold back."""

    frames_in: int = 0
    out: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    reconnects: int = 0
    next_index: int = 0
    """Of the first frame to come: indices rise over all owners."""
    given: int = 0
    """Results of earlier frames than this were given out, or count as dropped. Less than `next_index` where the owner
    before handed over frames that its stages held back."""


@dataclass(frozen=True)
class Opening:
    """Open this stream, where an owner before left it."""

    spec: StreamSpec
    account: Account = Account()
    states: dict[str, bytes] = field(default_factory=dict)
    """Of each group that remembers, by its name; none: from nothing."""
    tail: tuple[tuple[int, bytes], ...] = ()
    """The newest results that the owner before gave, where it handed the stream over."""


@dataclass(frozen=True)
class Told:
    """What an owner tells of one of its streams, twice a second."""

    spec: StreamSpec
    status: Status
    account: Account
    """As if the owner died now: what is under way counts as dropped."""
    states: dict[str, bytes] | None = None
    """A snapshot, if there is a new one."""
    released: bool = False
    """The owner let go of it, as it was told to, or because it shuts down."""
    tail: tuple[tuple[int, bytes], ...] = ()
    """Of a released one: (index, line) of its newest results, for clients that have not asked for them yet."""


@dataclass(frozen=True)
class Picture:
    """A frame drawn over."""

    index: int
    jpeg: bytes


@dataclass(frozen=True)
class Want:
    """What somebody wants to know of a stream."""

    made_at: float
    """Its `created_at`: another stream that has, or had, its id is not meant."""
    after: int
    """Results of later frames than this."""
    picture_after: int | None = None
    """A picture of a later frame than this; None: no picture."""


@dataclass(frozen=True)
class Given:
    """What there is."""

    lines: list[tuple[int, bytes]]
    picture: Picture | None = None
    last_index: int = -1
    """Of the newest result."""
    ended: bool = False
    """Nothing will come after the lines."""


def blank_status(spec: StreamSpec, state: str, reason: str) -> Status:
    """The Status of a stream of which no frame is known. No credentials stand in it."""
    return {
        "id": spec.id, "kind": spec.kind, "url": None if spec.url is None else public_url(spec.url), "state": state,
        "reason": reason, "retry_in_s": None, "width": None, "height": None, "fps_in": 0.0, "fps_out": 0.0,
        "latency_ms": {"p50": None, "p95": None}, "frames": {"in": 0, "out": 0, "in_flight": 0, "dropped": {}},
        "tracks": 0, "min_score": None, "reconnects": 0, "started_at": spec.created_at, "last_result_at": None,
        "stalled_s": 0.0,
    }  # fmt: skip
