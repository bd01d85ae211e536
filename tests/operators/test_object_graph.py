"""Association by edge scores: worked by hand, against loops and the rule's short form, and tracks told frame by frame.

Source of what is expected: TLTM specification 4.3 to 4.5 and acceptance test 5.
"""

from __future__ import annotations

import math
import random

import pytest
import torch
from torch import Tensor

from models.outputs import Detections
from operators.matching import TrackMemory
from operators.object_graph import PRESETS, ObjectGraphConfig, advance, edge_values, inclusive_iou

D = 2


def found(boxes: list[tuple[float, ...]], labels: list[int] | None = None, scores: list[float] | None = None):
    n = len(boxes)
    return Detections(
        boxes=torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        scores=torch.tensor(scores or [0.9 - 0.1 * i for i in range(n)]),
        labels=torch.tensor(labels or [0] * n, dtype=torch.int64),
        embeddings=torch.arange(float(D * n)).reshape(n, D),
        mask_logits=torch.zeros(n, 1, 1),
        mask_frame="box",
    )


def says(*rows: list[float]):
    """Edge probabilities, a row for each detection."""
    return lambda known, current: torch.tensor(rows, dtype=torch.float64).reshape(len(current), len(known)).logit()


def even(known: Tensor, current: Tensor) -> Tensor:
    return torch.zeros(len(current), len(known))


def run(*frames, cfg: ObjectGraphConfig | None = None) -> list[list[int]]:
    """Track ids of each frame; a frame is what is found and, where it matters, the edges."""
    memory, out = TrackMemory.empty(D), []
    for i, frame in enumerate(frames):
        detections, relate = frame if isinstance(frame, tuple) else (frame, even)
        memory, tracks = advance(memory, detections, i, relate, cfg or ObjectGraphConfig())
        out.append(tracks.track_ids.tolist())
    return out


A, B, FAR = (0.0, 0.0, 9.0, 9.0), (4.0, 0.0, 13.0, 9.0), (50.0, 50.0, 59.0, 59.0)
"""10 x 10 pixels each, the last counted in; A and B share 6 columns: IoU 60 / 140."""


@pytest.mark.parametrize("a, b, iou", [
    pytest.param(A, A, 1.0, id="the same"), pytest.param(A, B, 60 / 140, id="six columns of ten"),
    pytest.param(A, (9, 9, 20, 20), 1 / (100 + 144 - 1), id="one pixel"), pytest.param(A, FAR, 0.0, id="apart"),
    pytest.param((3, 3, 3, 3), (3, 3, 3, 3), 1.0, id="a point is a pixel"),
])  # fmt: skip
def test_overlap_counts_the_last_pixel(a, b, iou):
    assert inclusive_iou(torch.tensor([a]).double(), torch.tensor([b]).double()).item() == pytest.approx(iou)


def test_values_by_hand():
    """R50: 0.5 of the log-softmax of [0, s], 1.5 ln q, 2.5 IoU behind the gate, 10 for the class and for new."""
    memory, _ = advance(TrackMemory.empty(D), found([A, FAR], [3, 4]), 0, even, ObjectGraphConfig())
    values = edge_values(found([B], [3], [0.5]), memory, torch.tensor([[0.8, 0.3]]).logit(), ObjectGraphConfig())
    norm, q = math.log(1 + math.exp(0.8) + math.exp(0.3)), 1.5 * math.log(0.5)
    expected = [0.5 * (0 - norm) + q + 10, 0.5 * (0.8 - norm) + q + 2.5 * 60 / 140 + 10,
                0.5 * (0.3 - norm) + q - 25000]                                                           # fmt: skip
    assert values.tolist() == [pytest.approx(expected)]


@pytest.mark.parametrize("frames, ids", [
    pytest.param([], [], id="no frame"),
    pytest.param([found([])], [[]], id="nothing before any track"),
    pytest.param([found([A, FAR])], [[0, 1]], id="all of the first frame, best first"),
    pytest.param([found([A]), found([]), found([A])], [[0], [], [0]], id="an empty frame leaves memory as it is"),
    pytest.param([found([A]), found([B])], [[0], [0]], id="moved, overlapping enough"),
    pytest.param([found([A]), found([FAR])], [[0], [1]], id="too far: new"),
    pytest.param([found([A], [1]), found([A], [2])], [[0], [1]], id="another class: new"),
    pytest.param([found([A]), found([A, B])], [[0], [0]], id="two on one track: the worse is lost, not new"),
    pytest.param([found([A]), found([B, A], scores=[0.9, 0.89])], [[0], [0]], id="the better placed one"),
    pytest.param([found([A], [1]), found([A], [2]), found([A, A], [1, 2])], [[0], [1], [0, 1]],
                 id="flickering classes keep a track each"),
    pytest.param([found([A]), found([FAR]), found([A])], [[0], [1], [0]], id="back where it was"),
    pytest.param([found([A, FAR]), found([(47, 50, 56, 59), A])], [[0, 1], [1, 0]], id="order is no matter"),
])
def test_lives_of_tracks(frames, ids):
    assert run(*frames) == ids


def test_edges_decide_between_tracks_that_overlap_alike():
    """Between two tracks, A and B, at IoU 80 / 120 of each."""
    between = found([(2, 0, 11, 9)])
    start = found([A, B])
    assert run(start, (between, says([0.1, 0.9]))) == [[0, 1], [1]]
    assert run(start, (between, says([0.9, 0.1]))) == [[0, 1], [0]]
    assert run(start, (between, says([0.1, 0.9])), cfg=PRESETS["score_a0_zero"]) == [[0, 1], [0]], "the first of equals"


def test_a_full_swing_of_the_edge_is_half_an_overlap_at_r101():
    """One pixel nearer to A: IoU 90 / 110 and 70 / 130, 0.28 apart; at R50's weights 0.2 is a full swing."""
    nearer = (found([(1, 0, 10, 9)]), says([0.0001, 0.9999]))
    assert run(found([A, B]), nearer, cfg=PRESETS["r101"])[1] == [1]
    assert run(found([A, B]), nearer, cfg=PRESETS["r50"])[1] == [0]


def test_the_class_of_a_track_is_that_of_its_birth_and_its_box_the_latest():
    memory, _ = advance(TrackMemory.empty(D), found([A], [1]), 0, even, ObjectGraphConfig())
    memory, _ = advance(memory, found([B, FAR], [1, 5]), 1, even, ObjectGraphConfig())
    assert memory.labels.tolist() == [1, 5] and memory.boxes.tolist() == [list(B), list(FAR)]
    assert memory.embeddings.tolist() == [[0, 1], [2, 3]] and memory.next_id == 2


def test_ids_are_never_given_twice():
    cfg = ObjectGraphConfig(max_unseen=1)
    frames = [found([A]), found([FAR]), found([FAR]), found([A]), found([A, FAR])]
    assert run(*frames, cfg=cfg) == [[0], [1], [1], [2], [2, 1]], "A is forgotten after two frames without it"
    assert run(*frames) == [[0], [1], [1], [0], [0, 1]]


@pytest.mark.parametrize("most, ids", [
    pytest.param(None, [0, 1, 2, 0, 1, 2], id="all are kept"),
    pytest.param(3, [0, 1, 2, 0, 1, 2], id="as many as there are"),
    pytest.param(2, [0, 1, 2, 3, 4, 5], id="the one unseen longest goes, and comes back as another"),
    pytest.param(1, [0, 1, 2, 3, 4, 5], id="the last alone"),
])
def test_a_number_of_tracks(most, ids):
    places = [A, FAR, (80.0, 0.0, 89.0, 9.0)]
    frames = [found([places[t % 3]]) for t in range(6)]
    assert [one for (one,) in run(*frames, cfg=ObjectGraphConfig(max_tracks=most))] == ids


def test_of_tracks_seen_alike_the_oldest_go():
    cfg = ObjectGraphConfig(max_tracks=2)
    memory, tracks = advance(TrackMemory.empty(D), found([A, FAR, (80.0, 0.0, 89.0, 9.0)]), 0, even, cfg)
    assert tracks.track_ids.tolist() == [0, 1, 2] and memory.track_ids.tolist() == [1, 2] and memory.next_id == 3
    memory, _ = advance(memory, found([FAR, (20.0, 70.0, 29.0, 79.0)]), 1, even, cfg)
    assert memory.track_ids.tolist() == [1, 3], "track 2 was not seen in the last frame"


def test_logits_without_a_gate_find_what_left_the_view():
    """A logit below 0 says new, one above 0 an old track, wherever it is."""
    cfg = ObjectGraphConfig(edge_term="logit", min_iou=None)
    away = found([FAR])
    assert run(found([A]), (away, says([0.9])), cfg=cfg) == [[0], [0]]
    assert run(found([A]), (away, says([0.1])), cfg=cfg) == [[0], [1]]


@pytest.mark.parametrize("settings, message", [
    ({"edge_weight": -1.0}, "edge_weight is -1"), ({"class_weight": math.inf}, "class_weight"),
    ({"edge_term": "sigmoid"}, "edge_term is 'sigmoid'"), ({"min_iou": 0.0}, "min_iou is 0"),
    ({"min_iou": None}, "edge_term: logit"), ({"max_unseen": -1}, "max_unseen"),
    ({"max_tracks": 0}, "max_tracks is 0"),
])  # fmt: skip
def test_settings_that_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        ObjectGraphConfig(**settings)


# ------------------------------------------------------------------------------------------ against loops


def overlap(a: list[float], b: list[float]) -> float:
    w, h = min(a[2], b[2]) - max(a[0], b[0]) + 1, min(a[3], b[3]) - max(a[1], b[1]) + 1
    inside = max(w, 0) * max(h, 0)
    area = [(x[2] - x[0] + 1) * (x[3] - x[1] + 1) for x in (a, b)]
    return inside / (area[0] + area[1] - inside)


def by_loops(tracks: list[dict], frame: Detections, s: Tensor, cfg: ObjectGraphConfig, short: bool) -> list[int]:
    """4.4 with 4.3's full sum, or with 4.5's short form. `tracks` is changed; -1 for what is discarded."""
    best, choice = [], []
    for k in range(len(frame)):
        box, q, label = frame.boxes[k].double().tolist(), math.log(float(frame.scores[k])), int(frame.labels[k])
        ious = [overlap(box, t["box"]) for t in tracks]
        norm = math.log(1 + sum(math.exp(v) for v in s[k].tolist()))
        row = [cfg.edge_weight * -norm + cfg.score_weight * q + cfg.class_weight]
        for j, t in enumerate(tracks):
            u = ious[j] if ious[j] >= 0.3 else -10000.0
            same = float(t["label"] == label)
            row.append(cfg.edge_weight * (float(s[k, j]) - norm) + cfg.score_weight * q + cfg.iou_weight * u
                       + cfg.class_weight * same)                                                         # fmt: skip
        column = row.index(max(row))
        if short:
            fits = [j for j, t in enumerate(tracks) if t["label"] == label and ious[j] >= 0.3]
            worth = [cfg.edge_weight * float(s[k, j]) + cfg.iou_weight * ious[j] for j in fits]
            column = 1 + fits[worth.index(max(worth))] if fits else 0
        choice.append(column)
        best.append(row[column])
    ids, holder, top = [-1] * len(frame), {}, {}
    for k, column in enumerate(choice):
        record = {"box": frame.boxes[k].double().tolist(), "label": int(frame.labels[k])}
        if column == 0:
            ids[k] = len(tracks)
            tracks.append(record)
        elif best[k] > top.get(column, -100.0):
            if column in holder:
                ids[holder[column]] = -1
            ids[k], holder[column], top[column] = column - 1, k, best[k]
            tracks[column - 1]["box"] = record["box"]
    return ids


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("short", [False, True], ids=["full sum", "short form"])
def test_streams_at_random_against_the_loops(name, short):
    cfg, rng = PRESETS[name], random.Random(f"{name} {short}")
    several = 0
    for _ in range(12):
        memory, tracks = TrackMemory.empty(D), []
        for frame_number in range(6):
            n = rng.randrange(0, 7)
            boxes = [(x, y, x + rng.uniform(10, 30), y + rng.uniform(10, 30))
                     for x, y in ((rng.uniform(0, 30), rng.uniform(0, 30)) for _ in range(n))]            # fmt: skip
            frame = found(boxes, [rng.randrange(2) for _ in range(n)],
                          sorted((rng.uniform(0.05, 1) for _ in range(n)), reverse=True))                 # fmt: skip
            before = len(tracks)
            s = torch.tensor([[rng.random() for _ in range(before)] for _ in range(n)]).reshape(n, before).double()
            memory, out = advance(memory, frame, frame_number, lambda a, b, s=s: s.logit(), cfg)
            expected = by_loops(tracks, frame, s, cfg, short)
            assert out.track_ids.tolist() == [i for i in expected if i >= 0]
            assert torch.equal(out.boxes, frame.boxes[torch.tensor([i >= 0 for i in expected], dtype=torch.bool)])
            several += expected.count(-1)
            assert memory.track_ids.tolist() == list(range(len(tracks)))
            last = torch.tensor([t["box"] for t in tracks]).reshape(-1, 4)
            assert torch.allclose(memory.boxes, last.float())
    assert several > 2, "detections must compete"
