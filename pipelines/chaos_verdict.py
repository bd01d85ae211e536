"""Whether a graph stood what was done to it: the run under blows held against the calm one.

In:     Trial
Out:    Verdict: checks that passed or failed, each with its figures
State:  none
Limits: none
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pipelines.chaos import Hit, Run, Trial
from pipelines.chaos_record import Account, Difference, StreamRecord, account, differences

MANY = 5
"""So many of a kind are named in a sentence."""


@dataclass(frozen=True)
class Check:
    name: str
    passed: bool
    said: str
    """The figures, in words."""


@dataclass(frozen=True)
class Verdict:
    checks: tuple[Check, ...]
    calm: Account
    wild: Account
    recoveries: tuple[float, ...]
    """After each blow, in their order, the longest that a stream was silent, in seconds."""

    @property
    def passed(self) -> bool:
        return all(check.passed for check in self.checks)


def judge(trial: Trial) -> Verdict:
    """All checks, in the order in which one would ask: a later one that fails often follows from an earlier."""
    calm, wild = account(trial.calm.record, trial.given), account(trial.wild.record, trial.given)
    recoveries = tuple(_recoveries(trial.wild))
    checks = (
        _attack(trial),
        _end(trial.wild),
        Check("frames", calm.balanced and wild.balanced, f"calm: {calm}; under blows: {wild}"),
        _order(trial),
        _streams(trial),
        _same(trial, "ids", "ids", "track ids and classes"),
        _same(trial, "results", "whole", "masks, boxes and scores"),
        _recovery(trial, recoveries),
        _leftovers(trial),
        _memory(trial),
    )
    return Verdict(checks, calm, wild, recoveries)


def _attack(trial: Trial) -> Check:
    """A graph that was never hit has proved nothing."""
    landed = {hit.number for hit in trial.wild.hits if hit.landed}
    missed = [blow.kind for number, blow in enumerate(trial.scenario.blows) if number not in landed]
    counts = {kind: sum(hit.landed and hit.kind == kind for hit in trial.wild.hits) for kind in _kinds(trial)}
    said = ", ".join(f"{count} x {kind}" for kind, count in counts.items()) or "none asked for"
    if missed:
        said += f"; never: {', '.join(missed)}. Take longer videos, or a smaller 'every' or 'first'"
    return Check("blows", not missed, said)


def _kinds(trial: Trial) -> list[str]:
    return list(dict.fromkeys(blow.kind for blow in trial.scenario.blows))


def _end(run: Run) -> Check:
    said = f"the run under blows came to its end in {run.wall_s:.1f} s" if run.error is None else run.error
    return Check("end", run.error is None, said)


def _order(trial: Trial) -> Check:
    wrong = [
        f"'{name}' ({label})"
        for label, run in (("calm", trial.calm), ("under blows", trial.wild))
        for name, stream in run.record.streams.items() if not stream.in_order
    ]
    return Check("order", not wrong, _named(wrong) if wrong else "every frame came once, in its place")


def _streams(trial: Trial) -> Check:
    """Every stream ends as in calm. Of frames that kill, the words may differ."""
    any_words = any(one.how == "death" for one in trial.scenario.corrupt)
    wrong = []
    for name in trial.given:
        one, other = (_ending(run, name, any_words) for run in (trial.calm, trial.wild))
        if one != other or one is None:
            wrong.append(f"'{name}' ends {_told(other)}, in calm {_told(one)}")
    ends = [run.end for run in trial.calm.record.streams.values() if run.end is not None]
    said = f"{len(ends)} streams, {sum(end.fatal for end in ends)} of them failed, as in calm"
    return Check("streams", not wrong, _named(wrong) if wrong else said)


def _ending(run: Run, name: str, any_words: bool) -> tuple | None:
    end = run.record.streams.get(name, StreamRecord()).end
    if end is None:
        return None
    error = "for a reason" if any_words and end.fatal else end.error
    return end.num_frames, end.num_skipped, end.fatal, error


def _told(end: tuple | None) -> str:
    if end is None:
        return "never"
    frames, _, fatal, error = end
    return f"after {frames} frames" + (f", failed: {error}" if fatal else f", {error}" if error else "")


def _same(trial: Trial, name: str, what: str, words: str) -> Check:
    found = differences(trial.calm.record, trial.wild.record, what)
    if not found:
        return Check(name, True, f"{words} are equal to the last bit in all {trial.calm.record.frames} frames")
    frames = sum(difference.frames for difference in found)
    return Check(name, False, f"{words} differ in {frames} frames: {_named(map(_where, found))}")


def _where(difference: Difference) -> str:
    return f"'{difference.stream}', {difference.frames} frames from {difference.first} on"


def _recoveries(run: Run) -> list[float]:
    """After each blow, until the next: the longest silence of a stream."""
    ends = [*(hit.at_s for hit in run.hits[1:]), run.wall_s][: len(run.hits)]
    return [
        max((stream.silence(hit.at_s, end) for stream in run.record.streams.values()), default=0.0)
        for hit, end in zip(run.hits, ends, strict=True)
    ]


def _recovery(trial: Trial, recoveries: Sequence[float]) -> Check:
    limit = trial.scenario.limits.recovery_s
    calm = max((stream.longest_silence for stream in trial.calm.record.streams.values()), default=0.0)
    if not recoveries:
        return Check("recovery", True, f"no blow fell; in calm a stream was silent for {calm:.2f} s at most")
    worst = max(range(len(recoveries)), key=lambda i: recoveries[i])
    middle = sorted(recoveries)[len(recoveries) // 2]
    said = (
        f"streams were silent for {middle:.2f} s (median) and {recoveries[worst]:.2f} s (longest, after "
        f"{_blow(trial.wild.hits[worst])}) after a blow, in calm for {calm:.2f} s at most; allowed are {limit:g} s"
    )
    return Check("recovery", recoveries[worst] <= limit, said)


def _blow(hit: Hit) -> str:
    return f"{hit.kind} at frame {hit.frame}"


def _leftovers(trial: Trial) -> Check:
    passed = trial.calm.leftovers.none and trial.wild.leftovers.none
    if passed:
        return Check("leftovers", True, "no actor, process, placement group or object is left of either run")
    return Check("leftovers", False, f"calm: {trial.calm.leftovers}; under blows: {trial.wild.leftovers}")


def _memory(trial: Trial) -> Check:
    grown = trial.wild.leftovers.memory_mb - trial.calm.leftovers.memory_mb
    limit = trial.scenario.limits.memory_mb
    said = f"the driver holds {grown:+.0f} MB after the run under blows, against after the calm one; allowed are +"
    return Check("memory", grown <= limit, f"{said}{limit:g} MB")


def _named(said: Iterable[str]) -> str:
    said = list(said)
    more = f"; and {len(said) - MANY} more" if len(said) > MANY else ""
    return "; ".join(said[:MANY]) + more
