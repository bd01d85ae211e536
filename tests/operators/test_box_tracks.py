"""SORT without its Kalman filter: tracks told frame by frame, the best total of overlap, and a loop beside it.

Source of what is expected: TLTM specification 5.
"""

from __future__ import annotations

import itertools
import random

import pytest
import torch

from operators.box_tracks import BoxTracks, BoxTracksConfig, advance, match

A, NEAR, FAR = (0, 0, 10, 10), (4, 0, 14, 10), (50, 50, 60, 60)
"""A and NEAR: IoU 60 / 140."""


def run(*frames: list[tuple], **settings) -> list[list[int]]:
    tracks, out = BoxTracks(), []
    for boxes in frames:
        tracks, ids = advance(tracks, torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
                              BoxTracksConfig(**settings))                                                # fmt: skip
        out.append(ids.tolist())
    return out


@pytest.mark.parametrize("frames, settings, ids", [
    pytest.param([[]], {}, [[]], id="an empty frame"),
    pytest.param([[A, FAR]], {}, [[0, 1]], id="the first frame: all are shown"),
    pytest.param([[A], [NEAR], [A]], {}, [[0], [0], [0]], id="a track follows its last box"),
    pytest.param([[A], [A, FAR], [A, FAR]], {}, [[0], [0, -1], [0, 1]], id="a later one waits for a second look"),
    pytest.param([[A], [A, FAR]], {"min_hits": 0}, [[0], [0, 1]], id="unless none is asked for"),
    pytest.param([[A], [A, FAR], [A, FAR], [FAR]], {"min_hits": 2}, [[0], [0, 1], [0, -1], [1]],
                 id="in the first min_hits frames all are shown"),
    pytest.param([[A], [], [A], [A]], {}, [[0], [], [0], [0]], id="unseen for a frame, then found: one hit again"),
    pytest.param([[A], [A], [], [A], [A]], {"min_hits": 2}, [[0], [0], [], [-1], [0]], id="a gap breaks the row"),
    pytest.param([[A], [], [], [A]], {"max_unseen": 2, "min_hits": 0}, [[0], [], [], [0]], id="two frames survived"),
    pytest.param([[A], [], [], [A]], {"max_unseen": 1, "min_hits": 0}, [[0], [], [], [1]], id="not two: a new id"),
    pytest.param([[A], [], [A]], {"max_unseen": 0, "min_hits": 0}, [[0], [], [1]], id="not one"),
    pytest.param([[A], [NEAR]], {"min_iou": 0.5, "min_hits": 0}, [[0], [1]], id="too little overlap"),
    pytest.param([[A], [A, NEAR], [NEAR]], {"min_hits": 0}, [[0], [0, 1], [1]], id="a loser begins a track"),
])  # fmt: skip
def test_lives_of_tracks(frames, settings, ids):
    assert run(*frames, **settings) == ids


@pytest.mark.parametrize("overlap, pairs", [
    pytest.param(torch.zeros(0, 3), [], id="nothing found"),
    pytest.param(torch.zeros(2, 0), [], id="nothing known"),
    pytest.param(torch.tensor([[0.9, 0.8], [0.8, 0.1]]), [(0, 1), (1, 0)], id="best total, not best pair"),
    pytest.param(torch.tensor([[0.9, 0.0], [0.0, 0.2]]), [(0, 0)], id="a weak pair is dropped"),
    pytest.param(torch.tensor([[0.5, 0.29], [0.29, 0.0]]), [], id="only after the best total is found: both are weak"),
    pytest.param(torch.tensor([[0.5, 0.25]]) * 0.75, [(0, 0)], id="above the threshold"),
])
def test_match(overlap, pairs):
    rows, columns = match(overlap, 0.3)
    assert list(zip(rows.tolist(), columns.tolist(), strict=True)) == pairs


def test_the_smallest_overlap_is_enough():
    rows, columns = match(torch.tensor([[0.25, 0.0]]), 0.25)
    assert (rows.tolist(), columns.tolist()) == ([0], [0])


def test_memory_stays_bounded():
    """A stream of detections none of which is ever found again."""
    tracks = BoxTracks()
    for i in range(50):
        tracks, _ = advance(tracks, torch.tensor([[100.0 * i, 0, 100.0 * i + 5, 5]]), BoxTracksConfig(max_unseen=3))
    assert len(tracks) == 4 and tracks.next_id == 50 and tracks.frames == 50


def iou(a, b) -> float:
    w, h = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    inside = max(w, 0) * max(h, 0)
    return inside / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inside)


def by_loops(frames: list[list[tuple]], min_iou: float, max_unseen: int, min_hits: int) -> list[list[int]]:
    """Object by object, the best total of all assignments."""
    tracks, next_id, out = [], 0, []
    for number, boxes in enumerate(frames, start=1):
        for track in tracks:
            if track["unseen"] > 0:
                track["hits"] = 0
            track["unseen"] += 1
        table = [[iou(box, t["box"]) for t in tracks] for box in boxes]
        few, many = sorted((len(boxes), len(tracks)))
        best, chosen = -1.0, ()
        for order in itertools.permutations(range(many), few):
            pairs = [(k, o) if len(boxes) <= len(tracks) else (o, k) for k, o in enumerate(order)]
            total = sum(table[n][m] for n, m in pairs)
            if total > best:
                best, chosen = total, pairs
        ids = [-1] * len(boxes)
        owner = {n: tracks[m] for n, m in chosen if table[n][m] >= min_iou}
        for n, box in enumerate(boxes):
            if n in owner:
                owner[n].update(box=box, unseen=0, hits=owner[n]["hits"] + 1)
            else:
                owner[n] = {"id": next_id, "box": box, "unseen": 0, "hits": 0}
                next_id += 1
                tracks.append(owner[n])
            if owner[n]["hits"] >= min_hits or number <= min_hits:
                ids[n] = owner[n]["id"]
        tracks = [t for t in tracks if t["unseen"] <= max_unseen]
        out.append(ids)
    return out


@pytest.mark.parametrize("settings", [
    {"min_iou": 0.3, "max_unseen": 1, "min_hits": 3}, {"min_iou": 0.3, "max_unseen": 1, "min_hits": 1},
    {"min_iou": 0.1, "max_unseen": 0, "min_hits": 0},
])  # fmt: skip
def test_streams_at_random_against_the_loop(settings):
    rng = random.Random(str(settings))
    for _ in range(8):
        frames = []
        for _ in range(8):
            corners = [(rng.randrange(40), rng.randrange(40)) for _ in range(rng.randrange(4))]
            frames.append([(float(x), float(y), x + rng.uniform(10, 30), y + rng.uniform(10, 30)) for x, y in corners])
        assert run(*frames, **settings) == by_loops(frames, **settings)


@pytest.mark.parametrize("settings", [{"min_iou": 0}, {"min_iou": 1.1}, {"max_unseen": -1}, {"min_hits": -1}])
def test_settings_that_are_refused(settings):
    with pytest.raises(ValueError, match="|".join(settings)):
        BoxTracksConfig(**settings)
