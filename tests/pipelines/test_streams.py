"""Chunks: how they are split and joined, and which frames are sent alone."""

from __future__ import annotations

import pytest

from pipelines.streams import CLOSING, Attempt, Chunk, Data, Part, Stream, join, portion
from tests.pipelines.small_stages import source


def _chunk(*frames: int, **fields) -> Chunk:
    stream = Stream(source("a"), {})
    stream.attempt = Attempt(stream, 0, 0, {}, 3)
    return Chunk(stream.attempt, stream.attempt.tail, -1, Data("there"), start=10, frames=frames, **fields)


def _told(chunk: Chunk | None) -> tuple | None:
    if chunk is None:
        return None
    return chunk.start, chunk.frames, chunk.border, chunk.closing


@pytest.mark.parametrize(
    ("frames", "fields", "suspects", "most", "taken", "rest", "alone"),
    [
        pytest.param((), {"closing": True}, (), 4, (10, (), None, True), None, False, id="only-a-close"),
        pytest.param((3, 4), {}, (), 4, (10, (3, 4), None, False), None, False, id="whole"),
        pytest.param((3, 4), {"border": 5}, (), 4, (10, (3, 4), 5, False), None, False, id="whole-with-a-border"),
        pytest.param(
            (3, 4, 6), {"closing": True}, (), 2, (10, (3, 4), None, False), (12, (6,), None, True), False, id="too-long"
        ),
        pytest.param((3, 4), {}, (5, 9), 4, (10, (3, 4), None, False), None, False, id="others-are-suspected"),
        pytest.param((3,), {}, (3, 3), 4, (10, (3,), None, False), None, True, id="one-suspect"),
        pytest.param((3, 4), {}, (3, 4), 4, (10, (3,), None, False), (11, (4,), None, False), True, id="two-suspects"),
        pytest.param(
            (3, 4, 5), {}, (4, 4), 9, (10, (3,), None, False), (11, (4, 5), None, False), False, id="harmless-first"
        ),
        pytest.param(
            (3,), {"border": 4}, (0, 3), 9, (10, (3,), None, False), (11, (), 4, False), True, id="its-border-apart"
        ),
        pytest.param(
            (3,), {"border": 4}, (4, 4), 9, (10, (3,), None, False), (11, (), 4, False), False, id="a-deadly-border"
        ),
        pytest.param((), {"closing": True}, (2, CLOSING), 9, (10, (), None, True), None, True, id="a-deadly-close"),
    ],
)
def test_what_a_call_takes_of_a_chunk(frames, fields, suspects, most, taken, rest, alone):
    chunk = _chunk(*frames, **fields)
    if suspects:
        chunk.attempt.stream.suspect(1, *suspects)
        chunk.attempt.stream.suspect(2, 0, CLOSING)  # another group
    first, second, is_alone = portion(chunk, 1, most)
    assert (_told(first), _told(second), is_alone) == (taken, rest, alone)
    assert first.begin == chunk.begin and (second or first).end == chunk.end
    if second is not None:
        assert first.end == second.begin not in (chunk.begin, chunk.end)


def test_parts_join_what_follows():
    chunk = _chunk(1, 2, 3, border=4)
    first, rest = chunk.split(1)
    parts: dict[Attempt, Part] = {}
    join(parts, first)
    join(parts, rest)
    (part,) = parts.values()
    assert (part.begin, part.end, part.border, part.marks) == (chunk.begin, chunk.end, 4, (1, 2, 3, 4))


def test_suspects_add_up_where_they_meet():
    stream = Stream(source("a"), {})
    stream.suspect(0, 3, 7)
    stream.suspect(0, 6, 9)
    assert [stream.suspected(0, mark) for mark in (2, 3, 9, 10)] == [False, True, True, False]
    stream.suspect(0, 20, 21)  # the others were left behind
    assert [stream.suspected(0, mark) for mark in (3, 20)] == [False, True]
    assert not stream.suspected(1, 20)


@pytest.mark.parametrize(
    ("kills", "expected"),
    [
        pytest.param([(0, 5)], 1, id="once"),
        pytest.param([(0, 5), (0, 5)], 2, id="twice"),
        pytest.param([(0, 5), (0, 4)], 2, id="without-progress"),
        pytest.param([(0, 5), (0, 6)], 1, id="with-progress"),
        pytest.param([(0, 5), (1, 5)], 1, id="elsewhere"),
        pytest.param([(0, 5), "survived", (0, 5)], 1, id="innocent"),
    ],
)
def test_kills_count_while_nothing_gets_further(kills, expected):
    stream = Stream(source("a"), {})
    for kill in kills:
        count = stream.survived(0, 5) if kill == "survived" else stream.killed(*kill)
    assert count == expected
