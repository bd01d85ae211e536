"""Tracks of clips: whole sequences against the specification's rules in loops over single tracks, and single rules."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from models.cico_masks import MaskForm, Window, paint
from models.cico_tubes import Tubes
from operators.clip_tracking import LOST, NEW, ClipMemory, ClipTrackConfig, advance, claims

CONFIG = ClipTrackConfig()
H, W, K, D = 8, 12, 4, 4
FORM = MaskForm(prototypes=K)
CORNERS = torch.eye(D)


# ------------------------------------------------------------------------------------------ clips of made-up objects


def painter(prototypes: Tensor):
    def on_these(parameters: Tensor, unions: Tensor, levels: Tensor, window: Window) -> Tensor:
        return paint(prototypes, parameters, unions, levels, FORM, window)

    return on_these


def tubes(boxes: list[list[list[float]]], prototypes: Tensor, **named) -> Tubes:
    """Boxes (n, T, 4); other fields as named, else one of each, and masks painted within 1.1 of the union."""
    n, frames = len(boxes), prototypes.shape[2]
    placed = torch.tensor(boxes, dtype=torch.float32).reshape(n, frames, 4)
    parameters = named.get("parameters", torch.ones(n, K))
    found = Tubes(
        boxes=placed,
        masks=torch.zeros(n, frames, H, W),
        labels=torch.tensor(named.get("labels", [0] * n), dtype=torch.int64),
        scores=torch.tensor(named.get("scores", [0.8] * n), dtype=torch.float32),
        embeddings=named.get("embeddings", CORNERS[torch.arange(n) % D]),
        parameters=parameters,
        levels=torch.zeros(n, dtype=torch.int64),
    )
    return replace(found, masks=painter(prototypes)(parameters, found.unions, found.levels, Window(1.1)))


def bright(frames: int = 3) -> Tensor:
    """Prototypes on which every mask fills its window."""
    return torch.ones(H, W, frames, K)


LEFT, RIGHT = [0.1, 0.1, 0.4, 0.6], [0.6, 0.3, 0.9, 0.9]


def still(*boxes: list[float], frames: int = 3, **named) -> Tubes:
    return tubes([[box] * frames for box in boxes], bright(frames), **named)


NOTHING = still()


def run(clips: list[tuple[Tubes, tuple[int, ...]]], cfg: ClipTrackConfig = CONFIG) -> list[dict[int, float]]:
    """What each clip shows: id -> score."""
    memory, shown = None, []
    for found, frames in clips:
        memory, tracks = advance(memory, found, frames, painter(bright(len(frames))), cfg)
        shown.append(dict(zip(tracks.track_ids.tolist(), tracks.tubes.scores.tolist(), strict=True)))
    return shown


def frames_of(clip: int, new: int = 2, length: int = 3) -> tuple[int, ...]:
    return tuple(range(clip * new, clip * new + length))


# ------------------------------------------------------------------------------------------ the plain form


def plain_iou(a: list[float], b: list[float]) -> float:
    across = max(min(a[2], b[2]) - max(a[0], b[0]), 0)
    down = max(min(a[3], b[3]) - max(a[1], b[1]), 0)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - across * down
    return across * down / union if union else 0


def plain_mask_iou(a: Tensor, b: Tensor) -> float:
    a, b = a > 0.5, b > 0.5
    return int((a & b).sum()) / max(int((a | b).sum()), 1)


class PlainTracker:
    """4.4: a list of tracks, each a dict of plain values."""

    def __init__(self) -> None:
        self.tracks: list[dict] = []
        self.frames: tuple[int, ...] = ()
        self.begun = False

    def __call__(self, found: Tubes, frames: tuple[int, ...], on_these) -> list[tuple[int, float, Tensor, list]]:
        n, count = len(found), len(frames)
        if not n:
            for track in self.tracks:
                track["age"] += 1
            return []
        new = [{"boxes": found.boxes[j].tolist(), "union": found.unions[j].tolist(), "masks": found.masks[j],
                "label": int(found.labels[j]), "score": float(found.scores[j]), "e": found.embeddings[j].tolist(),
                "theta": found.parameters[j], "age": 0} for j in range(n)]
        if not self.tracks:
            self.tracks, self.frames = [{**one, "id": j} for j, one in enumerate(new)], frames
            return [self._given(t) for t in self.tracks]
        pairs = [(p, q) for p in range(count) for q in range(count) if self.frames[p] == frames[q]]
        kappa = 2 if pairs else 1
        carried = []
        for t in self.tracks:
            mask = on_these(t["theta"][None], torch.tensor([t["union"]]), torch.tensor([0]), Window(1.2, 0.0))[0]
            carried.append({**t, "masks": mask, "score": t["score"] * 0.9**count, "age": t["age"] + 1,
                            "union": t["boxes"][-1], "boxes": [t["boxes"][-1]] * count})
        best = []
        for one in new:
            scores = [self._score(t, c, one, pairs, kappa) for t, c in zip(self.tracks, carried, strict=True)]
            best.append(max((s, -i) for i, s in enumerate(scores)))
        taken: set[int] = set()
        for j in sorted(range(n), key=lambda j: -(best[j][0] + 0.1 * new[j]["score"])):
            if best[j][0] > self._limit(new[j], kappa) and -best[j][1] not in taken:
                taken.add(-best[j][1])
                carried[-best[j][1]] = {**new[j], "id": self.tracks[-best[j][1]]["id"]}
        for j in range(n):
            if best[j][0] <= self._limit(new[j], kappa):
                carried.append({**new[j], "id": len(carried)})
        self.tracks, self.frames = carried, frames
        return [self._given(t) for t in self.tracks if t["age"] <= max(3, 15 // count) and t["score"] > 0.1
                and max((t["masks"] > 0.5).sum((1, 2)).tolist()) > 3]

    @staticmethod
    def _given(t: dict) -> tuple[int, float, Tensor, list]:
        return t["id"], t["score"], t["masks"], t["boxes"]

    @staticmethod
    def _limit(one: dict, kappa: int) -> float:
        sides = [sum(b[i + 2] - b[i] for b in one["boxes"]) / len(one["boxes"]) for i in (0, 1)]
        return 0.8 + kappa * (0.15 if sides[0] * sides[1] < 0.1 else 0.3)

    @staticmethod
    def _score(t: dict, carried: dict, one: dict, pairs: list[tuple[int, int]], kappa: int) -> float:
        places = pairs or [(f, f) for f in range(len(one["boxes"]))]
        theirs = t["masks"] if pairs else carried["masks"]
        fine = [(p, q) for p, q in places if (theirs[p] > 0.5).sum() > 2 and (one["masks"][q] > 0.5).sum() > 2]
        masks = sum(plain_mask_iou(theirs[p], one["masks"][q]) for p, q in fine) / max(len(fine), 1)
        if pairs:
            boxes = sum(plain_iou(t["boxes"][p], one["boxes"][q]) for p, q in fine) / max(len(fine), 1)
        else:
            boxes = plain_iou(t["boxes"][-1], one["boxes"][0])
        cosine = sum(a * b for a, b in zip(t["e"], one["e"], strict=True)) / math.sqrt(
            sum(a * a for a in t["e"]) * sum(b * b for b in one["e"]))
        return (cosine + 1) / 2 + kappa * (masks + boxes) / 2 + 0.3 * (t["label"] == one["label"])


def story(seed: int, overlap: int, frames: int, clips: int) -> list[tuple[Tubes, tuple[int, ...], Tensor]]:
    """Objects that move, vanish, come back and are found twice; empty clips; a last clip that is filled up."""
    draw = random.Random(seed)
    generator = torch.Generator().manual_seed(seed)
    objects = [{"box": [x, y, x + draw.uniform(0.1, 0.4), y + draw.uniform(0.15, 0.5)], "label": draw.randrange(2),
                "e": torch.randn(D, generator=generator), "theta": torch.randn(K, generator=generator),
                "v": [draw.uniform(-0.02, 0.02) for _ in range(2)]}
               for x, y in ((draw.uniform(0, 0.6), draw.uniform(0, 0.6)) for _ in range(5))]  # fmt: skip
    out, new = [], frames - overlap
    for clip in range(clips):
        times = [clip * new + t for t in range(frames)] if clip < clips - 1 else [clip * new] * frames
        prototypes = torch.randn(H, W, frames, K, generator=generator).clamp(min=0)
        seen, rows = [o for o in objects if draw.random() < 0.7] if clip % 5 != 3 else [], []
        for o in seen + ([draw.choice(seen)] if seen and draw.random() < 0.5 else []):
            boxes = [[b + o["v"][i % 2] * t + draw.gauss(0, 0.01) for i, b in enumerate(o["box"])] for t in times]
            e = torch.nn.functional.normalize(o["e"] + 0.2 * torch.randn(D, generator=generator), dim=0)
            label = o["label"] if draw.random() < 0.9 else 3
            rows.append((draw.uniform(0.1, 1), boxes, e, label, o["theta"] + 0.1 * torch.randn(K, generator=generator)))
        rows.sort(key=lambda row: -row[0])
        scores, boxes, es, labels, thetas = zip(*rows, strict=True) if rows else ([], [], [], [], [])
        found = tubes(
            list(boxes), prototypes, scores=list(scores), labels=list(labels),
            embeddings=torch.stack(es) if es else torch.zeros(0, D),
            parameters=torch.stack(thetas) if thetas else torch.zeros(0, K),
        )  # fmt: skip
        out.append((found, tuple(times), prototypes))
    return out


@pytest.mark.parametrize("overlap, frames", [(0, 3), (1, 3), (2, 3), (0, 1), (1, 5)])
def test_whole_sequences_are_those_of_the_plain_form(overlap, frames):
    kinds = {"carried on": 0, "new": 0, "discarded": 0}
    for seed in range(3):
        memory, plain = None, PlainTracker()
        for found, times, prototypes in story(seed, overlap, frames, 8):
            expected, before = plain(found, times, painter(prototypes)), 0 if memory is None else len(memory)
            memory, shown = advance(memory, found, times, painter(prototypes), CONFIG)
            assert shown.track_ids.tolist() == [one[0] for one in expected]
            assert shown.tubes.scores.tolist() == pytest.approx([one[1] for one in expected], rel=1e-5)
            for i, (_, _, masks, boxes) in enumerate(expected):
                assert torch.allclose(shown.tubes.masks[i], masks, atol=1e-6)
                assert shown.tubes.boxes[i].flatten().tolist() == pytest.approx(sum(boxes, []), abs=1e-6)
            kinds["carried on"] += int((shown.ages > 0).sum())
            kinds["new"] += len(memory) - before
            kinds["discarded"] += len(found) - int((memory.ages == 0).sum()) if len(found) else 0
        assert len(memory) == len(plain.tracks) and memory.ages.tolist() == [t["age"] for t in plain.tracks]
    assert all(kinds.values()), kinds


# ------------------------------------------------------------------------------------------ a track's life


def test_no_clip_has_tubes():
    memory, shown = advance(None, NOTHING, (0, 1, 2), painter(bright()), CONFIG)
    assert len(memory) == len(shown) == 0 and memory.frames == ()
    assert run([(NOTHING, frames_of(0)), (still(LEFT), frames_of(1))])[1] == pytest.approx({0: 0.8})


@pytest.mark.parametrize("new", [1, 2, 3], ids=["two shared", "one shared", "none shared"])
def test_a_clip_that_repeats_itself_keeps_its_ids(new):
    """Acceptance check 7."""
    clips = [(still(LEFT, RIGHT), frames_of(c, new)) for c in range(4)]
    assert run(clips) == [pytest.approx({0: 0.8, 1: 0.8})] * 4


def test_a_missed_object_coasts_for_five_clips():
    """Acceptance check 7: the other object is found all the while."""
    clips = [(still(LEFT, RIGHT), frames_of(0)), *((still(LEFT), frames_of(c)) for c in range(1, 8))]
    scores = [shown.get(1) for shown in run(clips)]
    assert scores == [pytest.approx(s, abs=1e-3) if s else None
                      for s in (0.8, 0.583, 0.425, 0.310, 0.226, 0.165, None, None)]  # fmt: skip


def test_it_coasts_no_further_than_its_score():
    clips = [(still(LEFT, RIGHT, scores=[0.8, 0.15]), frames_of(0)), *((still(LEFT), frames_of(c)) for c in (1, 2))]
    assert [1 in shown for shown in run(clips)] == [True, True, False]


def test_what_comes_back_has_its_id():
    """At the end of ten clips without it, by its embedding and place."""
    clips = [(still(LEFT, RIGHT), frames_of(0)), *((still(LEFT), frames_of(c)) for c in range(1, 11)),
             (still(LEFT, RIGHT), frames_of(11))]  # fmt: skip
    assert run(clips)[-1] == pytest.approx({0: 0.8, 1: 0.8})


def test_two_tubes_on_one_track_one_is_dropped():
    """Acceptance check 7: the later one gets neither a second choice nor a new id."""
    near = [0.12, 0.1, 0.42, 0.6]
    twice = still(LEFT, near, RIGHT, scores=[0.9, 0.7, 0.6], embeddings=CORNERS[[0, 0, 1]])
    memory, _ = advance(None, still(LEFT, RIGHT), (0, 1, 2), painter(bright()), CONFIG)
    memory, shown = advance(memory, twice, (2, 3, 4), painter(bright()), CONFIG)
    assert shown.track_ids.tolist() == [0, 1] and len(memory) == 2
    assert shown.tubes.scores.tolist() == pytest.approx([0.9, 0.6])


def test_a_clip_without_tubes_shows_nothing_and_the_next_one_shares_no_frames():
    clips = [(still(LEFT), frames_of(0)), (NOTHING, frames_of(1)), (still(LEFT), frames_of(2))]
    assert run(clips) == [pytest.approx({0: 0.8}), {}, pytest.approx({0: 0.8})]
    memory, _ = advance(None, still(LEFT), frames_of(0), painter(bright()), CONFIG)
    memory, _ = advance(memory, NOTHING, frames_of(1), painter(bright()), CONFIG)
    assert memory.frames == (0, 1, 2) and memory.ages.tolist() == [1] and memory.scores.tolist() == pytest.approx([0.8])


@pytest.mark.parametrize("kappa, width, limit", [
    (2, 0.5, 1.4), (2, 0.3, 1.1), (1, 0.5, 1.1), (1, 0.3, 0.95),
], ids=["shared", "shared, small", "apart", "apart, small"])  # fmt: skip
def test_threshold_of_a_new_object(kappa, width, limit):
    """Acceptance check 7."""
    found = still([0.1, 0.1, 0.1 + width, 0.4])
    assert claims(torch.tensor([[limit - 0.01]]), found, kappa, CONFIG).tolist() == [NEW]
    assert claims(torch.tensor([[limit + 0.01]]), found, kappa, CONFIG).tolist() == [0]


def test_of_several_the_best_match_takes_the_track_and_its_own_score_counts_a_little():
    found = still(LEFT, LEFT, LEFT, scores=[0.9, 0.8, 0.3])
    score = torch.tensor([[1.40, 1.42, 1.20], [0.10, 1.41, 0.90]])
    assert claims(score, found, 1, CONFIG).tolist() == [LOST, 0, LOST], "1.42 + 0.08 against 1.40 + 0.09"
    assert claims(score, replace(found, scores=torch.tensor([0.9, 0.6, 0.3])), 1, CONFIG).tolist() == [0, LOST, LOST]
    score[0, 1] = 1.405
    assert claims(score, found, 1, CONFIG).tolist() == [0, 1, LOST], "each looks at its own best alone"


# ------------------------------------------------------------------------------------------ bounds and settings


def test_forgotten_tracks_and_their_ids():
    cfg = replace(CONFIG, max_unseen=2)
    clips = [(still(LEFT, RIGHT), frames_of(0)), *((still(LEFT), frames_of(c)) for c in range(1, 5)),
             (still(LEFT, RIGHT), frames_of(5))]  # fmt: skip
    assert run(clips, cfg)[-1] == pytest.approx({0: 0.8, 2: 0.8})
    memory = None
    for clip in range(30):
        turned = CORNERS[[clip % D]]
        found = still([0.02 * clip, 0.1, 0.02 * clip + 0.05, 0.2], embeddings=turned, labels=[clip])
        memory, _ = advance(memory, found, frames_of(clip), painter(bright()), cfg)
        assert len(memory) <= 4


def test_all_forgotten_ids_go_on():
    cfg = replace(CONFIG, max_unseen=1)
    clips = [(still(LEFT), frames_of(0)), *((NOTHING, frames_of(c)) for c in (1, 2, 3)), (still(LEFT), frames_of(4))]
    assert run(clips, cfg)[-1] == pytest.approx({1: 0.8})


def test_the_papers_memory_is_the_previous_clip():
    cfg = replace(CONFIG, coast=0, max_unseen=0)
    clips = [(still(LEFT, RIGHT), frames_of(0)), (still(LEFT), frames_of(1)), (still(LEFT, RIGHT), frames_of(2)),
             (still(LEFT, RIGHT), frames_of(3))]  # fmt: skip
    assert [sorted(shown) for shown in run(clips, cfg)] == [[0, 1], [0], [0, 2], [0, 2]]


def test_the_first_clip_shows_even_what_is_weak():
    assert run([(still(LEFT, scores=[0.05]), frames_of(0)), (still(LEFT, scores=[0.05]), frames_of(1))]) == [
        pytest.approx({0: 0.05}), {}]  # fmt: skip


def test_memory_is_left_as_it_was():
    memory, _ = advance(None, still(LEFT, RIGHT), (0, 1, 2), painter(bright()), CONFIG)
    before = {name: value.clone() for name, value in memory.tensors().items()}
    advance(memory, still(RIGHT), (2, 3, 4), painter(bright()), CONFIG)
    assert all(torch.equal(value, before[name]) for name, value in memory.tensors().items())
    assert memory.masks.dtype == torch.bool and isinstance(memory, ClipMemory)


@pytest.mark.parametrize("change, message", [
    ({"decay": 0.0}, "decay is 0.0"), ({"enlarge": 0.0}, "enlarge 0.0"), ({"coast": -1}, "coast is -1"),
    ({"max_unseen": -2}, "max_unseen is -2"),
])  # fmt: skip
def test_settings_that_are_wrong(change, message):
    with pytest.raises(ValueError, match=message):
        ClipTrackConfig(**change)


@pytest.mark.parametrize("frames, clips", [(1, 15), (2, 7), (3, 5), (5, 3), (7, 3)])
def test_how_long_tracks_coast(frames, clips):
    assert CONFIG.longest(frames) == clips and ClipTrackConfig(coast=2).longest(frames) == 2
