"""Which frames go into a call together: pulls in the first group, chunks that are ready in all later ones.

In:     a Place: the streams whose state is there, or its lane of chunks
Out:    the parts of its next call, one a stream, or none; and whether it is a single frame that may kill the actor
Limits: at most `batching.frames` frames a call, `in_flight` chunks of a stream at the edge behind it
"""

from __future__ import annotations

from pipelines.graph import Graph
from pipelines.placement import Batching
from pipelines.streams import CLOSING, Attempt, Chunk, Part, Place, join, new_key, portion


class Pulls:
    """Calls of the first group: what each stream may give next, and the closing of those that ended."""

    def __init__(self, graph: Graph) -> None:
        self._batching, self._recovery = graph.batching, graph.recovery

    def of(self, place: Place) -> tuple[list[Part], bool]:
        """Pulls of the streams that have room, dealt out evenly, and the closing of those that ended."""
        ended = [stream.attempt for stream in place.streams if self._to_close(stream.attempt)]
        wanting = [stream.attempt for stream in place.streams if self._wants(stream.attempt)]
        for attempt in (*ended, *wanting):
            if attempt.stream.suspected(0, CLOSING if attempt.ended else attempt.asked):
                if place.calls:
                    return [], False  # alone, and before all others: they would keep it waiting for ever
                return [self._closing(attempt) if attempt.ended else self._pull(attempt, 1)], True
        others = [each for each in place.streams if not (each.attempt.ended or each.attempt.idle)]
        if others and all(attempt.idle for attempt in wanting):
            wanting = []  # they would keep the call until one of them gives something; with the others they do not
        parts = [self._closing(attempt) for attempt in ended]
        left = self._batching.frames
        share = -(-left // max(sum(not stream.attempt.ended for stream in place.streams), 1))
        for attempt in wanting:
            if left > 0:
                parts.append(self._pull(attempt, self._allowed(attempt, min(share, left))))
                left -= parts[-1].count
        place.streams.rotate(-1)
        return parts, False

    def _to_close(self, attempt: Attempt) -> bool:
        return attempt.ended and not attempt.closing and not attempt.pulls

    def _wants(self, attempt: Attempt) -> bool:
        """Whether it may be pulled, and there is room for what comes."""
        if attempt.ended or attempt.held[1] >= self._batching.in_flight:
            return False
        if attempt.pulls and attempt.stream.suspects.get(0):
            return False  # where it stands must be known exactly
        limit = attempt.stream.limit
        return limit is None or attempt.asked < limit

    def _allowed(self, attempt: Attempt, count: int) -> int:
        """So many frames, but none that is set aside, or that is to be sent alone."""
        stops = [attempt.stream.limit, attempt.stream.suspects.get(0, (None,))[0]]
        return min([count, *(stop - attempt.asked for stop in stops if stop is not None and stop > attempt.asked)])

    def _pull(self, attempt: Attempt, count: int) -> Part:
        attempt.pulls += 1
        attempt.asked += count
        part = Part(attempt, attempt.tail, new_key(), count)
        attempt.tail = part.end
        if attempt.border is None and attempt.asked >= attempt.due + self._recovery.snapshot_every:
            part.border = attempt.border = attempt.asked
        return part

    def _closing(self, attempt: Attempt) -> Part:
        attempt.closing = True
        part = Part(attempt, attempt.tail, new_key(), closing=True)
        attempt.tail = part.end
        return part

class Takes:
    """Calls of all later groups: chunks out of a lane, joined per stream."""

    def __init__(self, batching: Batching) -> None:
        self._batching = batching

    def of(self, place: Place, now: float, more: bool) -> tuple[list[Part], bool]:
        """Nothing until it is full, or the first has waited long enough, or no `more` can come."""
        if not place.lane or not self._is_due(place, now, more):
            return [], False
        parts: dict[Attempt, Part] = {}
        passed: list[Chunk] = []
        shut: set[Attempt] = set()
        left, alone = self._batching.frames, False
        while place.lane and left > 0 and not alone:
            chunk = place.lane.popleft()
            attempt = chunk.attempt
            if attempt in shut or not (attempt in parts or self._has_room(chunk, place.group + 1)):
                shut.add(attempt)
                passed.append(chunk)
                continue
            taken, rest, alone = portion(chunk, place.group, left)
            if alone and (parts or place.calls):  # it comes first when all others are done
                passed.append(chunk)
                alone = False
                break
            join(parts, taken)
            left -= len(taken.frames)
            if rest is None:
                attempt.held[place.group] -= 1
            else:
                passed.append(rest)
            if rest is not None or taken.border is not None:
                shut.add(attempt)  # what comes after it belongs to another call
        place.lane.extendleft(reversed(passed))
        return list(parts.values()), alone

    def _has_room(self, chunk: Chunk, edge: int) -> bool:
        """Whether what it gives may wait there. It may always where later ones wait for it already."""
        attempt = chunk.attempt
        is_missed = attempt.early[edge] and attempt.next[edge] == chunk.begin
        return bool(is_missed) or attempt.held[edge] < self._batching.in_flight

    def _is_due(self, place: Place, now: float, more: bool) -> bool:
        lane, batching = place.lane, self._batching
        if not more or now >= lane[0].since + batching.max_wait_s or len(lane) >= batching.frames:
            return True
        return sum(len(chunk.frames) for chunk in lane) >= batching.frames
