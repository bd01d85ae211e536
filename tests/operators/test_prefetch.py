"""Decoding ahead: the same records, never more of them than allowed, and a slow stream is waited for alone."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator

import pytest

from operators import decode
from operators.decode import Decode, DecodeConfig
from operators.errors import SourceError
from operators.prefetch import Prefetched
from operators.probe import VideoInfo
from operators.records import FrameFault, FrameInfo, Pull, StreamEnd
from operators.sources import Source
from operators.states import pack
from tests.operators.test_decode import CASES, COUNT, make, run, same

WAIT_S = 20.0
"""A test that waits this long has failed; none does when all is well."""


class Gated:
    """A reader of `length` faults, which need no pixels: each is read once a test lets it through.

    A source's path says how it behaves: "slow" waits for its gate before each record, "break 3" raises SourceError
    for record 3, "crash 3" a RuntimeError, "closed" does not open.
    """

    length = 9
    gates: dict[str, threading.Semaphore] = {}
    read_so_far: dict[str, int] = {}
    begun = threading.Semaphore(0)
    closed: list[str] = []

    def __init__(self, source: Source, threads: int = 1) -> None:
        if source.path == "closed":
            raise SourceError("it does not open")
        self.info = VideoInfo(0, 0, 1.0, None, "none", "none")
        self._source, self._next = source, 0
        self.read_so_far[source.name] = 0
        self.begun.release()

    def read(self, count: int) -> list[FrameFault | StreamEnd]:
        found: list[FrameFault | StreamEnd] = []
        while len(found) < count and self._next <= self.length:
            if self._source.path == "slow":
                assert self.gates[self._source.name].acquire(timeout=WAIT_S)
            word, _, at = self._source.path.partition(" ")
            if at and int(at) == self._next:
                raise {"break": SourceError, "crash": RuntimeError}[word]("no more of this")
            info = FrameInfo(self._source.name, self._next, 0.0, 0, 0)
            end = StreamEnd(self._source.name, self._next)
            found.append(FrameFault(info, "seen") if self._next < self.length else end)
            self._next += 1
            self.read_so_far[self._source.name] += 1
        return found

    def skip(self, count: int) -> int:
        passed = max(0, min(count, self.length - self._next))
        self._next += passed
        return passed

    def close(self) -> None:
        self.closed.append(self._source.name)
        self._next = self.length + 1


@pytest.fixture
def gated(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Gated]]:
    """The backend "gated", and no decoding thread left behind."""
    monkeypatch.setitem(decode.BACKENDS, "gated", Gated)
    for name, value in (("gates", {}), ("read_so_far", {}), ("closed", []), ("begun", threading.Semaphore(0))):
        monkeypatch.setattr(Gated, name, value)
    yield Gated
    for thread in decoding():
        thread.join(WAIT_S)
        assert not thread.is_alive(), f"'{thread.name}' outlives its stream"


def decoding() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("decode ")]


def stage_of(*streams: str, prefetch: int = 2) -> Decode:
    stage = Decode(DecodeConfig(backend="gated", prefetch=prefetch))
    for stream in streams:
        stage.open(stream)
    return stage


def numbers(records: list) -> dict[str, list]:
    """Of each stream the indices that came, and "end"."""
    story: dict[str, list] = {}
    for record in records:
        if isinstance(record, StreamEnd):
            story.setdefault(record.stream, []).append("end")
        else:
            story.setdefault(record.info.stream, []).append(record.info.index)
    return story


def drained(stage: Decode, pulls: list[Pull]) -> list:
    """All records of the pulls' streams. Every call must give something until they have ended: nobody may spin."""
    records, open_streams = [], {pull.stream for pull in pulls}
    while open_streams:
        given = stage([pull for pull in pulls if pull.stream in open_streams])
        assert given, "a call came back with nothing, though streams were open"
        open_streams -= {record.stream for record in given if isinstance(record, StreamEnd)}
        records += given
    assert stage(pulls) == []
    return records


@pytest.mark.parametrize("kind, backend", CASES)
@pytest.mark.parametrize("prefetch, count", [(1, 3), (4, 1), (40, 40)])
def test_the_records_are_those_of_decoding_when_asked(tmp_path, kind, backend, prefetch, count):
    source = make(kind, tmp_path)
    stage = Decode(DecodeConfig(backend=backend, prefetch=prefetch))
    stage.open("clip")
    assert same(drained(stage, [Pull(source, count)]), run(source, [COUNT + 1], backend))
    assert stage.close("clip") == []


@pytest.mark.parametrize("prefetch", [0, 3])
@pytest.mark.parametrize("given", [0, 1, 5, COUNT])
def test_a_snapshot_counts_what_was_given_not_what_was_decoded(tmp_path, prefetch, given):
    source = make("h264", tmp_path)
    stage = Decode(DecodeConfig(prefetch=prefetch))
    stage.open("clip")
    before: list = []
    while len(before) < given:
        before += stage([Pull(source, given - len(before))])
    other = Decode(DecodeConfig(prefetch=3 - prefetch))
    other.restore("clip", stage.snapshot("clip"))
    assert other.snapshot("clip") == stage.snapshot("clip")
    assert same(before + drained(other, [Pull(source, 4)]), run(source, [COUNT + 1]))
    stage.close("clip")


def test_a_slow_stream_holds_up_no_other(gated):
    gated.gates["slow"] = threading.Semaphore(0)
    slow, fast = Source("slow", "video", "slow"), Source("fast", "video", "")
    stage = stage_of("slow", "fast")
    seen: list = []
    while numbers(seen).get("fast", [])[-1:] != ["end"]:
        seen += stage([Pull(slow, 2), Pull(fast, 2)])
    assert numbers(seen) == {"fast": [*range(9), "end"]}
    gated.gates["slow"].release(1)
    assert numbers(stage([Pull(slow, 2), Pull("fast", 2)])) == {"slow": [0]}, "one is there, two were asked for"
    gated.gates["slow"].release(100)
    assert numbers(drained(stage, [Pull(slow, 2)])) == {"slow": [*range(1, 9), "end"]}


def test_a_call_waits_for_the_first_record_of_any_stream(gated):
    names = ["a", "b", "c"]
    gated.gates |= {name: threading.Semaphore(0) for name in names}
    stage, given = stage_of(*names), []
    pulls = [Pull(Source(name, "video", "slow"), 3) for name in names]
    caller = threading.Thread(target=lambda: given.extend(stage(pulls)), daemon=True)
    caller.start()
    assert all(gated.begun.acquire(timeout=WAIT_S) for _ in names), "all three are to be waited for at once"
    assert caller.is_alive() and given == []
    gated.gates["b"].release()
    caller.join(WAIT_S)
    assert numbers(given) == {"b": [0]}
    for name in names:
        gated.gates[name].release(100)
        stage.close(name)


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_never_more_than_so_many_are_decoded_ahead(gated, depth):
    stage = stage_of("a", prefetch=depth)
    source, taken = Source("a", "video", ""), 0
    while taken <= Gated.length:
        given = stage([Pull(source, 1)])
        taken += len(given)
        ahead = stage._streams["a"].records
        with stage._news:                                   # the thread fills up what there is room for, and then waits
            full = min(depth, Gated.length + 1 - taken)
            assert stage._news.wait_for(lambda: ahead is None or len(ahead._records) == full, WAIT_S)  # noqa: B023
        assert gated.read_so_far["a"] == min(taken + depth, Gated.length + 1)


@pytest.mark.parametrize("prefetch", [0, 2])
@pytest.mark.parametrize(
    "path, came",
    [pytest.param("closed", 0, id="does not open"), pytest.param("break 0", 0, id="first"), ("break 3", 3)],
)
def test_a_source_that_breaks_off_ends_its_stream_alone(gated, prefetch, path, came):
    stage = stage_of("bad", "good", prefetch=prefetch)
    pulls = [Pull(Source("bad", "video", path), 1), Pull(Source("good", "video", ""), 1)]
    records = drained(stage, pulls)
    assert numbers(records) == {"bad": [*range(came), "end"], "good": [*range(9), "end"]}
    (end,) = [record for record in records if isinstance(record, StreamEnd) and record.stream == "bad"]
    assert (end.num_frames, end.fatal) == (came, True) and ("not open" in end.error or "no more" in end.error)


@pytest.mark.parametrize("prefetch", [0, 2])
def test_a_call_that_raises_gives_nothing_away(gated, prefetch):
    stage = stage_of("a", "bad", "b", prefetch=prefetch)
    a, bad, b = (Source(name, "video", "crash 2" if name == "bad" else "") for name in ("a", "bad", "b"))
    seen: list = []
    failed = 0
    while failed < 3:
        before = [stage.snapshot(name) for name in ("a", "bad", "b")]
        try:
            seen += stage([Pull(a, 1), Pull(bad, 1), Pull(b, 1)])
        except RuntimeError as error:
            failed += 1
            assert str(error) == "no more of this"
            assert [stage.snapshot(name) for name in ("a", "bad", "b")] == before
    stage.close("bad")
    ended = {record.stream for record in seen if isinstance(record, StreamEnd)}     # while the thread of "bad" was late
    seen += drained(stage, [Pull(name, 2) for name in ("a", "b") if name not in ended])
    assert numbers(seen) == {"a": [*range(9), "end"], "b": [*range(9), "end"], "bad": [0, 1]}


def test_pulls_are_checked_before_anything_is_taken(gated):
    stage = stage_of("a", prefetch=2)
    a = Source("a", "video", "")
    for wrong, says in ((Pull("b", 1), "is not open"), (Pull(Source("a", "video", "crash 1"), 1), "name of its own")):
        with pytest.raises(decode.StageError, match=says):
            stage([Pull(a, 1), wrong])
    stage.open("b")
    with pytest.raises(decode.StageError, match="'b': its first pull names no source. Give the source with the first"):
        stage([Pull(a, 1), Pull("b", 1)])
    assert numbers(drained(stage, [Pull("a", 2)])) == {"a": [*range(9), "end"]}
    stage.restore("c", pack({"given": 7, "ended": False}))
    with pytest.raises(decode.StageError, match="first pull names no source"):
        stage([Pull("c", 1)])
    assert numbers(stage([Pull(Source("c", "video", ""), 1)])) == {"c": [7]}
    stage.close("c")


@pytest.mark.parametrize("given", [9, 10, 10**15])
def test_a_snapshot_of_more_frames_than_there_are_meets_the_end(gated, given):
    stage = stage_of(prefetch=2)
    stage.restore("a", pack({"given": given, "ended": False}))
    assert numbers(drained(stage, [Pull(Source("a", "video", ""), 5)])) == {"a": ["end"]}


def test_a_thread_ends_with_its_stream(gated):
    gated.gates["slow"] = threading.Semaphore(2)
    stage = stage_of("slow", "a", "b", prefetch=1)
    stage([Pull(Source("slow", "video", "slow"), 1)])
    stage([Pull(Source("a", "video", ""), 1)])
    drained(stage, [Pull(Source("b", "video", ""), 3)])
    assert sorted(thread.name for thread in decoding()) == ["decode a", "decode slow"], "b's gave its end"
    assert stage.close("a") == stage.close("a") == []
    assert [thread.name for thread in decoding()] == ["decode slow"]
    gated.gates["slow"].release(100)
    assert stage.close("slow") == [] and decoding() == []
    assert sorted(gated.closed) == ["a", "b", "slow"]


def test_a_run_that_is_given_up_leaves_no_thread(gated):
    stage = stage_of("a", "b")
    stage([Pull(Source("a", "video", ""), 1), Pull(Source("b", "video", ""), 1)])
    threads = decoding()
    assert len(threads) == 2
    del stage
    gc.collect()
    for thread in threads:
        thread.join(WAIT_S)
    assert decoding() == [] and sorted(gated.closed) == ["a", "b"]


def test_closing_does_not_wait_for_a_long_way_to_a_snapshot(gated, monkeypatch):
    """A restored stream decodes all before its snapshot; whoever closes it meanwhile waits for a few frames of it."""
    let_go, passed = threading.Semaphore(0), []

    def skip(self: Gated, count: int) -> int:
        passed.append(count)
        assert let_go.acquire(timeout=WAIT_S)
        return count

    monkeypatch.setattr(Gated, "skip", skip)
    source = Source("a", "video", "")
    ahead = Prefetched("a", lambda: Gated(source), 1000, 4, threading.Condition())
    ahead.stop()
    let_go.release()
    ahead.close()
    assert sum(passed) <= 16 and gated.closed == ["a"]
