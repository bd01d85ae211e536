"""Three slots for longer clips: which frames each looks at, last convolutions in their plain form, the boxes that
anchors are held against, and a network that has them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from models.cico_anchors import TubeAnchors
from models.cico_heads import ClipHeads, HeadWidths, SlotConv
from models.cico_slots import Slots
from models.cico_targets import ClipTargets, MatchConfig, match, slot_boxes
from models.sampling import IGNORED
from tests.models.small import shake
from tests.models.small_cico import SMALL, clip_batch, clip_images, drawn, small_cico

FRAMES = {
    4: [[0, 1], [1, 2], [2, 3]],
    5: [[0, 1, 2], [1, 2, 3], [2, 3, 4]],
    6: [[0, 1], [2, 3], [4, 5]],
    7: [[0, 1, 2], [2, 3, 4], [4, 5, 6]],
}
"""T -> frames of each slot, by hand (CiCo specification 2.5)."""


@pytest.mark.parametrize("length, frames", FRAMES.items())
def test_slots_by_hand(length, frames):
    slots = Slots.of(length, "three")
    assert slots.count == 3 and slots.centers == [sum(own) / len(own) for own in frames]
    starts = [slot * slots.stride for slot in range(3)]
    assert [list(range(start, start + slots.kernel)) for start in starts] == frames


@pytest.mark.parametrize("length", [1, 3, 7])
def test_a_slot_a_frame(length):
    slots = Slots.of(length, "frames")
    assert (slots.count, slots.kernel, slots.centers) == (length, 1, list(range(length)))


@pytest.mark.parametrize("length", [1, 3, 8])
def test_other_clips_have_no_three_slots(length):
    with pytest.raises(ValueError, match=f"for clips of 4 to 7 frames, clip_length is {length}"):
        small_cico(clip_length=length, slots="three")


@pytest.mark.parametrize("length, frames", FRAMES.items())
@torch.no_grad()
def test_a_last_convolution_is_a_sum_over_the_frames_of_its_slot(length, frames):
    conv = SlotConv(4, 6, Slots.of(length, "three"))
    shake(conv, 0)
    x = torch.randn(2 * length, 4, 3, 5)
    found = conv(x).double().unflatten(0, (2, 3))
    for clip in range(2):
        for slot, own in enumerate(frames):
            expected = conv.bias.double()[:, None, None].expand(-1, 3, 5)
            for step, t in enumerate(own):
                weight = conv.weight.double()[:, :, step]
                expected = expected + F.conv2d(x[None, clip * length + t].double(), weight, padding=1)[0]
            assert torch.allclose(found[clip, slot], expected, atol=1e-5)


@torch.no_grad()
def test_shapes_and_the_order_of_slots():
    """Frame 6 is seen by the last slot alone, through towers that look at single frames."""
    slots = Slots.of(7, "three")
    widths = HeadWidths(frames=7, classes=4, embedding=5, parameters=6, slots=slots)
    heads = ClipHeads(6, widths, 1, "2d", "2d", "2d", prior=True)
    shake(heads, 1)
    levels = torch.randn(7, 6, 4, 6), torch.randn(7, 6, 2, 3)
    changed = tuple(level.clone() for level in levels)
    for level in changed:
        level[6] += 1
    before, after = heads(levels), heads(changed)
    assert before.deltas.shape == (1, 3, 90, 7, 4) and before.class_logits.shape == (1, 3, 90, 4)
    for name in ("deltas", "centerness", "class_logits", "embeddings", "parameters"):
        moved = (getattr(before, name) != getattr(after, name))[0].flatten(1).any(1)
        assert moved.tolist() == [False, False, True], name
    bare = HeadWidths(frames=7, classes=4, embedding=0, parameters=6, slots=slots)
    assert ClipHeads(6, bare, 1, "2d", "2d", "2d", prior=True)(levels).embeddings.shape == (1, 3, 90, 0)


def test_anchors_are_held_against_the_box_around_a_slots_frames():
    """Moving by a tenth each frame; a hundredth of the frame is 0.1 x 0.1."""
    boxes = torch.tensor([[[0.1 * t, 0.2, 0.1 * t + 0.2, 0.4] for t in range(7)],
                          [[0.5, 0.5, 0.59, 0.59 if t == 3 else 0.7] for t in range(7)]])  # fmt: skip
    found, small = slot_boxes(boxes, Slots.of(7, "three"))
    expected = [[[0.0, 0.2, 0.4, 0.4], [0.5, 0.5, 0.59, 0.7]], [[0.2, 0.2, 0.6, 0.4], [0.5, 0.5, 0.59, 0.7]],
                [[0.4, 0.2, 0.8, 0.4], [0.5, 0.5, 0.59, 0.7]]]  # fmt: skip
    torch.testing.assert_close(found, torch.tensor(expected))
    assert small.tolist() == [[False, False], [False, True], [False, False]]


@pytest.mark.parametrize("gain", ["small", "all"])
def test_owners_of_three_slots(gain):
    """An object that jumps half-way: anchors of each slot answer for it where it is in that slot. `gain` all is of
    single frames alone."""
    anchors = TubeAnchors.of([(8, 8), (4, 4)], torch.device("cpu"))
    left, right = [0.05, 0.3, 0.42, 0.68], [0.55, 0.3, 0.92, 0.68]
    clip = ClipTargets(torch.tensor([[left] * 3 + [right] * 3]), torch.tensor([1]), torch.zeros(1, 6, 8, 8))
    owner = match(clip, anchors, MatchConfig(gain=gain), Slots.of(6, "three"))
    assert owner.shape == (3, 240)
    centers = [anchors.boxes[row == 0, 0] for row in owner]
    assert len(centers[0]) and (centers[0] < 0.5).all() and len(centers[2]) and (centers[2] > 0.5).all()
    assert torch.equal(owner, match(clip, anchors, MatchConfig(), Slots.of(6, "three")))
    none = ClipTargets(torch.zeros(0, 6, 4), torch.zeros(0, dtype=torch.int64), torch.zeros(0, 6, 8, 8))
    assert match(none, anchors, MatchConfig(), Slots.of(6, "three")).unique().tolist() == [IGNORED]


def test_a_network_with_three_slots_says_and_learns():
    network = small_cico(clip_length=5, slots="three")
    tubes = network.heads(network.features(clip_images(2, 5))).tubes
    assert tubes.deltas.shape[:2] == (2, 3) and tubes.deltas.shape[3] == 5
    frames = [drawn([(8 + 2 * t, 8, 40 + 2 * t, 40), (50, 10, 90, 60)]) for t in range(5)]
    losses = network(clip_batch([frames, frames[::-1]]))
    sum(losses.values()).backward()
    assert losses["mask"] > 0 and set(losses) == {"class", "box", "diou", "centerness", "mask", "tracking"}
    for name in ("boxes", "class_logits", "embeddings", "mask_parameters", "centerness"):
        weight = getattr(network.clip_heads, name).weight
        assert weight.dim() == 5 and weight.grad.abs().sum((0, 1, 3, 4)).min() > 0, f"{name}: each frame of a slot"
    assert SMALL.slots == "frames"
