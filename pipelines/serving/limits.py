"""What one client may ask of the server at most: rates, connections at once, streams.

In:     the name of a token (one name for all clients where none is needed), and what it does
Out:    whether it may
State:  of each name a bucket for requests and one for messages, connections now open, streams it registered
Limits: as many names as there are tokens. Counts are those of one ingress process: two replicas allow twice as much.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass
class Bucket:
    """So many a second in the long run, `burst` at once."""

    rate: float
    burst: float
    clock: Callable[[], float] = time.monotonic
    _left: float = field(init=False)
    _since: float = field(init=False)

    def __post_init__(self) -> None:
        self._left, self._since = self.burst, self.clock()

    def take(self, amount: float = 1.0) -> bool:
        """Whether there is room for one more; then it is taken."""
        now = self.clock()
        self._left = min(self.burst, self._left + max(now - self._since, 0.0) * self.rate)
        self._since = now
        if self._left < amount:
            return False
        self._left -= amount
        return True


@dataclass
class Usage:
    """What the clients with one token do now."""

    requests: Bucket
    messages: Bucket
    open: int = 0
    """Requests and WebSockets that have not ended."""
    streams: set[str] = field(default_factory=set)
    """Ids that were registered with it, and not removed since."""
    registering: int = 0
    """Registrations under way: two at once must not both take the last place."""


class Usages:
    """The Usage of every token."""

    def __init__(self, requests_per_s: float, messages_per_s: float) -> None:
        self._rates = requests_per_s, messages_per_s
        self._usages: dict[str, Usage] = {}

    def of(self, name: str) -> Usage:
        if name not in self._usages:
            requests, messages = self._rates    # two seconds' worth at once: a page loads a dozen files, a camera lags
            self._usages[name] = Usage(Bucket(requests, 2 * requests), Bucket(messages, 2 * messages))
        return self._usages[name]

    def removed(self, stream: str) -> None:
        """A stream is gone, whoever had registered it."""
        for usage in self._usages.values():
            usage.streams.discard(stream)
