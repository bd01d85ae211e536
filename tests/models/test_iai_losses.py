"""Training of IAI: identities of clips, painted memory, losses of a clip against loops, gradients through memory."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from models.association_block import Memory, write
from models.clip_targets import coded, codes, memory_labels, without_surplus
from models.fcos import Locations
from models.iai import IAI
from models.losses import giou_loss
from models.targets import ClipBatch, FrameTargets, assign, mask_centroids
from tests.models import iai_oracle as oracle
from tests.models import oracles, pair_oracle
from tests.models.small import NONE, ONE_ON_P3, ONE_ON_P4, frame, images, moved
from tests.models.small_iai import SMALL, small_iai

NEW, N = 4, 5
TWO = (13, 13, 35, 27)
"""Two P3 points: (20, 20) and (28, 20)."""


def clip_of(*frames: Sequence[Sequence[int]]) -> list[Tensor]:
    """Annotation ids of a clip's frames -> identities by ascending id."""
    ids = sorted({i for present in frames for i in present})
    return [torch.tensor([ids.index(i) for i in present], dtype=torch.int64) for present in frames]


def clips(slots: Sequence[list[FrameTargets]], seed: int = 0, sizes=None) -> ClipBatch:
    count, size = len(slots[0]), slots[0][0].masks.shape[-1]
    looks = tuple(images(count, size, seed + t) for t in range(len(slots)))
    return ClipBatch(looks, tuple(slots), sizes)


def five_frames() -> ClipBatch:
    """Two clips. In clip 0 instance 1 comes late and 0 goes and returns; clip 1 is empty at first, then crowded."""
    b = [ONE_ON_P3, ONE_ON_P4, TWO]
    return clips([
        [frame([b[0]], [0], seed=1), frame([], seed=2)],
        [frame([moved(b[0], 24, 8), b[1]], [0, 1], seed=3), frame([b[2]], [2], seed=4)],
        [frame([b[1]], [1], seed=5), frame([b[1], moved(b[0], 32, 32)], [0, 2], seed=6)],
        [frame([NONE, b[1]], [0, 1], seed=7), frame([b[2], b[0]], [3, 1], seed=8)],
        [frame([b[0], TWO], [0, 2], seed=9), frame([b[1], b[0]], [0, 1], seed=10)],
    ])  # fmt: skip


# ------------------------------------------------------------------------------------------ identities


@pytest.mark.parametrize("frames, expected", [
    pytest.param([[7], [7, 9], [9], [7], [4, 9]], [[NEW], [1, NEW], [2], [1], [NEW, 2]], id="the specification's"),
    pytest.param([[], [], [3]], [[], [], [NEW]], id="empty frames first"),
    pytest.param([[5, 2, 9], [9, 5, 2]], [[NEW] * 3, [2, 1, 0]], id="annotations out of order"),
    pytest.param([[1]], [[NEW]], id="one frame"),
])  # fmt: skip
def test_codes(frames, expected):
    assert [c.tolist() for c in codes(clip_of(*frames), N)] == expected


def test_identities_of_the_specifications_clip():
    assert [i.tolist() for i in clip_of([7], [7, 9], [9], [7], [4, 9])] == [[1], [1, 2], [2], [1], [0, 2]]


def test_codes_of_a_batch_keep_all_else():
    batch = five_frames()
    found = coded(batch.targets, N)
    assert [one.identities.tolist() for one in (slot[0] for slot in found)] == [[NEW], [0, NEW], [1], [0, 1], [0, NEW]]
    assert [one.identities.tolist() for one in (slot[1] for slot in found)] == [
        [], [NEW], [NEW, 2], [NEW, NEW], [0, 1]]  # fmt: skip
    for slot, before in zip(found, batch.targets, strict=True):
        for one, was in zip(slot, before, strict=True):
            assert one.boxes is was.boxes and one.masks is was.masks and one.labels is was.labels


def test_more_instances_than_identities_are_skipped():
    everyone = frame([moved(ONE_ON_P3, 8 * i, 0) for i in range(6)], [5, 0, 4, 3, 1, 2])
    (found,), = without_surplus([[everyone]], N)
    assert found.identities.tolist() == [0, 3, 1, 2]
    assert torch.equal(found.boxes, everyone.boxes[[1, 3, 4, 5]]) and len(found.masks) == len(found.labels) == 4
    batch = clips([[everyone], [everyone]])
    kept = clips([[found], [found]])
    network = small_iai()
    with torch.no_grad():
        assert copy.deepcopy(network)(batch) == copy.deepcopy(network)(kept)


# ------------------------------------------------------------------------------------------ memory's labels


def test_labels_by_loops():
    """Overlapping instances: the smallest mask lies on top, whatever the order."""
    one = frame([(5, 5, 50, 50), (20, 20, 60, 60), (22, 8, 40, 30), (0, 0, 63, 12)], [3, 0, 2, 1], seed=3)
    empty = frame([])
    found = memory_labels([one, empty], N)
    assert np.array_equal(found[0].numpy(), oracle.labels(one.masks.numpy(), one.identities.tolist(), N))
    assert found.dtype == torch.int64 and (found[1] == N).all()


def test_masks_of_one_size_keep_their_order():
    masks = torch.zeros(2, 32, 32, dtype=torch.bool)
    masks[0, :8, :8], masks[1, 4:12, :8] = True, True
    one = FrameTargets(torch.zeros(2, 4), torch.zeros(2, dtype=torch.int64), torch.tensor([2, 0]), masks)
    for _ in range(3):
        assert memory_labels([one], N)[0, 5, 5] == 0


def test_padding_is_background_unless_the_releases_fault_is_asked_for():
    one = frame([(5, 5, 20, 20)], [2])
    assert (memory_labels([one], N)[0, 32:] == N).all()
    found = memory_labels([one, one], N, [(32, 64), (64, 32)])
    assert (found[0, 32:] == 0).all() and (found[1, :, 32:] == 0).all()
    assert torch.equal(found[0, :32], memory_labels([one], N)[0, :32])


def test_the_fault_needs_the_sizes():
    slots = [[frame([ONE_ON_P3], [0])], [frame([ONE_ON_P4], [0])]]
    network = small_iai(fix_pad=False)
    with pytest.raises(ValueError, match="fix_pad is off, which needs the sizes"):
        network(clips(slots))
    with torch.no_grad():
        fixed = small_iai()(clips(slots))
        faulty = small_iai(fix_pad=False)(clips(slots, sizes=([(32, 64)], [(64, 64)])))
        whole = small_iai(fix_pad=False)(clips(slots, sizes=([(64, 64)], [(64, 64)])))
    assert whole == fixed and faulty != fixed


# ------------------------------------------------------------------------------------------ losses


def frame_losses(slot: pair_oracle.Slot, average=lambda x: x) -> dict[str, float]:
    """3.3, one frame of B clips; `targets` have codes for identities."""
    logits = slot.dense.identity_logits.double().numpy()
    truth = np.zeros_like(logits)
    for (b, p), (g, _) in slot.found.items():
        truth[b, p, int(slot.targets[b].identities[g])] = 1
    weights = {place: oracles.centerness(sides) for place, (_, sides) in slot.found.items()}
    total = 0.0
    for place, (_, sides) in slot.found.items():
        stride = slot.places[place[1]][1]
        pixels = [[v * stride for v in box] for box in (slot.at("distances", place).tolist(), sides)]
        total += weights[place] * (1 - oracle.giou(*pixels))
    positives = max(average(len(slot.found)), 1)
    return {
        **pair_oracle.frame_losses(slot, average),
        "box": total / max(average(sum(weights.values())), 1e-6),
        "identity": oracles.focal(logits, truth) / positives,
    }


def run(network: IAI, batch: ClipBatch, interval: int = 3) -> list[pair_oracle.Slot]:
    """3.1 frame by frame, on a copy: backbone on all images at once, memory written with what is true."""
    network = copy.deepcopy(network).train()
    with torch.no_grad():
        maps = network.features(torch.cat(batch.images))
        memories: list[Memory | None] = [None] * len(batch)
        slots = []
        for t, targets in enumerate(coded(batch.targets, N)):
            rows = slice(t * len(batch), (t + 1) * len(batch))
            pyramid, read = network.associate(tuple(m[rows] for m in maps), memories)
            slots.append(pair_oracle.Slot(network.heads(pyramid), targets, SMALL.fcos.size_bounds, (64, 64)))
            for b, one in enumerate(batch.targets[t]):
                painted = oracle.labels(one.masks.numpy(), one.identities.tolist(), N)
                entry = network.association.entry(read, b, torch.from_numpy(painted), t + 1)
                memories[b] = write(memories[b], entry, False, interval)
    assert [e.frame for e in memories[0].stored] == [3, 1]
    return slots


def test_losses_of_a_clip_by_loops():
    network, batch = small_iai(), five_frames()
    slots = run(network, batch)
    per_frame = [frame_losses(slot) for slot in slots]
    expected = {name: sum(losses[name] for losses in per_frame) / 5 for name in per_frame[0]}
    with torch.no_grad():
        found = network(batch)
    assert found.keys() == expected.keys() == {"class", "identity", "box", "centerness", "mask"}
    for name, value in expected.items():
        assert found[name].item() == pytest.approx(value, rel=1e-4), name
    assert sum(len(slot.found) for slot in slots) > 8


def test_positives_are_counted_over_all_workers_frame_by_frame():
    network, batch, asked = small_iai(), five_frames(), []

    def average(x: Tensor) -> Tensor:
        asked.append(x.item())
        return 2 * x + 1

    expected = [frame_losses(slot, lambda x: 2 * x + 1) for slot in run(network, batch)]
    with torch.no_grad():
        found = network(batch, average)
    for name, value in found.items():
        assert value.item() == pytest.approx(sum(losses[name] for losses in expected) / 5, rel=1e-4), name
    assert len(asked) == 5 * 3


def test_cross_entropy_of_the_same_outputs():
    network, batch = small_iai(id_loss="ce"), five_frames()
    total = 0.0
    for slot in run(network, batch):
        truth = np.zeros(slot.dense.identity_logits.shape)
        for (b, p), (g, _) in slot.found.items():
            truth[b, p, int(slot.targets[b].identities[g])] = 1
        logits = slot.dense.identity_logits.double().numpy()
        total += oracles.cross_entropy(logits.ravel(), truth.ravel()) / max(len(slot.found), 1)
    with torch.no_grad():
        assert network(batch)["identity"].item() == pytest.approx(total / 5, rel=1e-4)


def test_without_identities_there_is_no_identity_loss():
    with torch.no_grad():
        found = small_iai(use_id=False)(five_frames())
    assert found.keys() == {"class", "box", "centerness", "mask"}


def test_clips_without_any_instance():
    network = small_iai()
    losses = network(clips([[frame([])], [frame([])]]))
    assert losses["box"] == losses["mask"] == losses["centerness"] == 0 and losses["identity"] > 0
    sum(losses.values()).backward()
    assert network.fcos.distances.weight.grad.abs().sum() == 0


@pytest.mark.parametrize("frames", [1, 2, 7])
def test_clips_of_any_length(frames):
    slots = [[frame([moved(ONE_ON_P3, 3 * t, 0)], [0], seed=t)] for t in range(frames)]
    losses = small_iai()(clips(slots))
    assert all(value.isfinite() for value in losses.values())


def test_every_positive_trains_a_mask_unless_bounded():
    batch = five_frames()
    whole, capped = (
        [len(slot.kept) for slot in small_iai(max_mask_positives=most).slots(batch)] for most in (None, 1)
    )
    assert max(whole) > 1 and capped == [min(1, n) for n in whole]


# ------------------------------------------------------------------------------------------ gradients


def test_every_parameter_gets_a_gradient():
    network = small_iai()
    sum(network(five_frames()).values()).backward()
    assert [n for n, p in network.named_parameters() if p.grad is None or not p.grad.abs().max() > 0] == []


def test_the_last_frame_teaches_those_it_reads():
    """Nothing in memory is detached. Frame 5 reads 4 (local), 3 and 1 (global); what entries hold does not depend on
    what their own frames read, so frame 2 is out of reach."""
    network, batch = small_iai().eval(), five_frames()
    looks = tuple(image.requires_grad_() for image in batch.images)
    last = network.slots(ClipBatch(looks, batch.targets))[-1]
    last.dense.identity_logits.square().sum().backward()
    reached = [image.grad is not None and image.grad.abs().max().item() > 0 for image in looks]
    assert reached == [True, False, True, True, True]


def test_gradient_of_the_whole_clip_is_that_of_small_steps():
    network, batch = small_iai().double(), five_frames()
    batch = ClipBatch(tuple(image.double() for image in batch.images), batch.targets)
    names = ("association.bank.conv.weight", "association.block.local.relative_keys",
             "association.block.value.weight", "association.encoder_projector.weight")                    # fmt: skip

    def total() -> Tensor:
        return sum(network(batch).values())

    weights = [network.get_parameter(name) for name in names]
    gradients = torch.autograd.grad(total(), weights)
    for name, weight, gradient in zip(names, weights, gradients, strict=True):
        direction = gradient / gradient.norm()
        with torch.no_grad():
            weight += 1e-5 * direction
            above = total()
            weight -= 2e-5 * direction
            slope = (above - total()) / 2e-5
            weight += 1e-5 * direction
        assert slope.item() == pytest.approx(gradient.norm().item(), rel=1e-3), name


# ------------------------------------------------------------------------------------------ shared parts, bent


def test_giou_without_the_added_cell():
    pred, target = torch.rand(20, 4) * 5, torch.rand(20, 4) * 5 + 0.1
    weights = torch.rand(20)
    expected = sum(w * (1 - oracle.giou(p, t)) for w, p, t in
                   zip(weights.tolist(), pred.tolist(), target.tolist(), strict=True))                    # fmt: skip
    assert giou_loss(pred, target, weights, added=0).item() == pytest.approx(expected, rel=1e-5)
    nothing = giou_loss(torch.zeros(1, 4), torch.zeros(1, 4), torch.ones(1), added=0, epsilon=1e-6)
    assert nothing.isfinite()


def test_an_empty_mask_lies_at_the_origin():
    """3.2: moments as they are. A box at the origin then has positives there; one elsewhere has none."""
    empty = FrameTargets(
        torch.tensor([[0.0, 0.0, 14.0, 14.0], [30.0, 30.0, 44.0, 44.0]]), torch.tensor([0, 1]), torch.tensor([0, 1]),
        torch.zeros(2, 64, 64, dtype=torch.bool),
    )  # fmt: skip
    at = Locations.of(oracles.level_sizes(64, 64), torch.device("cpu"))
    ranges = SMALL.fcos.ranges
    moments, centres = (assign([empty], at, ranges, center) for center in ("moments", "mask"))
    assert set(moments.instance.tolist()) == {0} and set(centres.instance.tolist()) == {0, 1}
    assert mask_centroids(empty.masks, empty.boxes).tolist() == [[7, 7], [37, 37]]


def test_towers_without_bias_are_a_setting():
    with_bias = small_iai(fcos=replace(SMALL.fcos, tower_bias=True))
    extra = with_bias.state_dict().keys() - small_iai().state_dict().keys()
    assert extra == {f"{t}.0.bias" for t in ("fcos.class_tower", "fcos.box_tower", "identity_head.tower")}
