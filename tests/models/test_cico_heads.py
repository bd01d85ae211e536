"""Clip-level heads and prototypes: shapes, the order of channels, 2D against 3D, each against its plain form."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.cico_heads import ClipConv, ClipHeads, HeadWidths, Tower, fold, unfold
from models.cico_prototypes import ClipPrototypes
from tests.models.oracles import upsample_axis
from tests.models.small import shake

WIDTHS = HeadWidths(frames=3, classes=4, embedding=5, parameters=7)
SIZES = [(4, 6), (2, 3), (1, 2)]


def heads(box: str = "3d", track: str = "3d", classes: str = "2d", widths: HeadWidths = WIDTHS) -> ClipHeads:
    made = ClipHeads(6, widths, 2, box, track, classes, prior=True)
    shake(made, 1)
    return made


def levels(clips: int = 2, frames: int = 3) -> tuple[Tensor, ...]:
    return tuple(torch.randn(clips * frames, 6, *size) for size in SIZES)


# ------------------------------------------------------------------------------------------ towers


def plain_conv3d(x: Tensor, conv: nn.Conv3d) -> Tensor:
    """(T, C, h, w): a sum of 2D convolutions over the frames that there are."""
    weight = conv.weight.double()
    out = []
    for t in range(len(x)):
        total = conv.bias.double()[:, None, None].expand(-1, *x.shape[-2:])
        for step in range(3):
            if 0 <= t + step - 1 < len(x):
                total = total + F.conv2d(x[None, t + step - 1].double(), weight[:, :, step], padding=1)[0]
        out.append(total)
    return torch.stack(out)


@torch.no_grad()
def test_a_3d_tower_is_its_plain_form():
    tower = Tower(4, 2, "3d", 3)
    shake(tower, 0)
    x = torch.randn(6, 4, 3, 5)
    for clip, found in zip(x.split(3), tower(x).split(3), strict=True):
        expected = clip
        for conv in tower.convs:
            expected = plain_conv3d(expected, conv).clamp(min=0)
        assert torch.allclose(found.double(), expected, atol=1e-5)


def test_folding_keeps_frames_of_a_clip_together():
    x = torch.arange(6.0)[:, None, None, None].expand(6, 2, 1, 1)
    assert fold(x, 3)[1, 0, :, 0, 0].tolist() == [3, 4, 5]
    assert torch.equal(unfold(fold(x, 3)), x)


def flattened_to_2d(module: nn.Module, flat: nn.Module) -> None:
    """The weights of `module` into `flat`: of 3D kernels the centre in time; their other taps become 0."""
    state = {}
    for name, value in module.state_dict().items():
        state[name] = value
        if value.dim() == 5:
            middle = value[:, :, 1].clone()
            value.zero_()
            value[:, :, 1] = middle
            state[name] = middle
    flat.load_state_dict(state)


@torch.no_grad()
def test_with_kernels_that_look_at_one_frame_3d_is_2d():
    """Acceptance check 3."""
    three, two = heads("3d", "3d", "3d"), heads("2d", "2d", "2d")
    flattened_to_2d(three, two)
    x = levels()
    for name, value in vars(three(x)).items():
        assert torch.allclose(value, getattr(two(x), name), atol=1e-5), name


@pytest.mark.parametrize("tower, dims", [("box_tower", 0), ("track_tower", 1), ("class_tower", 2)])
def test_each_tower_has_its_own_dimensions(tower, dims):
    flags = ["2d"] * 3
    flags[dims] = "3d"
    made = heads(*flags)
    assert [getattr(made, name).convs[0].weight.dim() for name in ("box_tower", "track_tower", "class_tower")] == [
        5 if name == tower else 4 for name in ("box_tower", "track_tower", "class_tower")
    ]


# ------------------------------------------------------------------------------------------ outputs


@pytest.mark.parametrize("frames", [1, 3])
@torch.no_grad()
def test_shapes(frames):
    made = heads(widths=HeadWidths(frames=frames, classes=4, embedding=5, parameters=7))
    maps = made(levels(2, frames))
    count = 3 * sum(h * w for h, w in SIZES)
    assert maps.deltas.shape == (2, frames, count, frames, 4)
    assert maps.centerness.shape == (2, frames, count)
    assert maps.class_logits.shape == (2, frames, count, 4)
    assert maps.embeddings.shape == (2, frames, count, 5)
    assert maps.parameters.shape == (2, frames, count, 7)


@torch.no_grad()
def test_order_of_places_and_channels():
    """Level, row, column, ratio; of a ratio's box channels first the frame, then x, y, w, h."""
    made = heads()
    x = levels()
    maps = made(x)
    level, y, column, a = 1, 1, 2, 2
    place = 3 * 24 + (y * 3 + column) * 3 + a
    clip, slot = 1, 2
    at = clip * 3 + slot
    box, classes = made.box_tower(x[level])[at : at + 1], made.class_tower(x[level])[at : at + 1]
    track = made.track_tower(x[level])[at : at + 1]

    def said(conv: nn.Conv2d, features: Tensor, width: int) -> Tensor:
        return conv(features)[0, a * width : (a + 1) * width, y, column]

    for t in range(3):
        for c in range(4):
            expected = made.boxes(box)[0, a * 12 + t * 4 + c, y, column]
            assert maps.deltas[clip, slot, place, t, c].item() == pytest.approx(expected.item(), abs=1e-5)
    assert torch.allclose(maps.class_logits[clip, slot, place], said(made.class_logits, classes, 4), atol=1e-5)
    assert torch.allclose(maps.centerness[clip, slot, place], said(made.centerness, box, 1)[0], atol=1e-5)
    assert torch.allclose(maps.parameters[clip, slot, place], said(made.mask_parameters, box, 7).tanh(), atol=1e-5)
    embedding = said(made.embeddings, track, 5)
    assert torch.allclose(maps.embeddings[clip, slot, place], embedding / embedding.norm(), atol=1e-5)


@torch.no_grad()
def test_classes_see_one_frame_and_boxes_their_neighbours():
    made = ClipHeads(6, WIDTHS, 1, "3d", "3d", "2d", prior=True)
    shake(made, 1)
    x = levels(1)
    changed = tuple(level.clone() for level in x)
    for level in changed:
        level[2] += 1
    before, after = made(x), made(changed)
    for name, slots in (("class_logits", [2]), ("deltas", [1, 2]), ("embeddings", [1, 2]), ("parameters", [1, 2])):
        moved = (getattr(before, name) != getattr(after, name))[0].flatten(1).any(1)
        assert moved.nonzero().flatten().tolist() == slots, name


def test_how_they_begin():
    made = ClipHeads(6, WIDTHS, 2, "3d", "3d", "2d", prior=True)
    assert made.class_logits.bias.unique().tolist() == pytest.approx([-4.595], abs=1e-3)
    assert not ClipHeads(6, WIDTHS, 2, "3d", "3d", "2d", prior=False).class_logits.bias.any()
    limit = (6 / (6 * 27 + 6 * 27)) ** 0.5
    assert 0.8 * limit < made.box_tower.convs[0].weight.abs().max() <= limit
    assert not made.boxes.bias.any() and not made.track_tower.convs[1].bias.any()


def test_without_tracking():
    made = heads(widths=HeadWidths(frames=1, classes=4, embedding=0, parameters=7))
    maps = made(levels(1, 1))
    assert maps.embeddings.shape == (1, 1, 3 * 32, 0)
    assert not any("track" in name or "embedding" in name for name in made.state_dict())


# ------------------------------------------------------------------------------------------ prototypes


def mask_head(dims: str = "3d", enlarge: str = "interpolate", frames: int = 3) -> ClipPrototypes:
    made = ClipPrototypes(4, 3, 2, frames, dims, enlarge)
    shake(made, 2)
    return made.eval()


def pyramid(frames: int = 6) -> tuple[Tensor, ...]:
    return tuple(torch.randn(frames, 4, *size) for size in ((4, 8), (2, 4), (1, 2)))


def plain_norm(x: Tensor, norm: nn.Module) -> Tensor:
    """Channels first but for the batch: (n, C, h, w)."""
    shape = (-1, 1, 1)
    mean, var, weight, bias = (v.double().reshape(shape) for v in (
        norm.running_mean, norm.running_var, norm.weight, norm.bias))
    return (x - mean) / (var + 1e-5).sqrt() * weight + bias


def plain_block(x: Tensor, block: nn.Sequential) -> Tensor:
    conv = block[0]
    if isinstance(conv, nn.Conv3d):
        y = plain_conv3d(x, conv)
    else:
        y = F.conv2d(x.double(), conv.weight.double(), conv.bias.double(), padding=1)
    return plain_norm(y, block[1]).clamp(min=0)


def plain_aligned(x: Tensor, factor: int) -> Tensor:
    for _ in range(2):
        x = torch.tensor([upsample_axis(row, factor) for row in x.reshape(-1, x.shape[-1]).tolist()],
                         dtype=torch.float64).reshape(*x.shape[:-1], -1).transpose(-1, -2)
    return x


def plain_corners(x: Tensor) -> Tensor:
    """x2, corners on corners: sample j of 2n lies at j (n - 1) / (2n - 1)."""
    for _ in range(2):
        n = x.shape[-1]
        at = torch.arange(2 * n, dtype=torch.float64) * (n - 1) / (2 * n - 1)
        low = at.floor().long()
        part = at - low
        x = (x[..., low] * (1 - part) + x[..., (low + 1).clamp(max=n - 1)] * part).transpose(-1, -2)
    return x


@pytest.mark.parametrize("dims", ["2d", "3d"])
@torch.no_grad()
def test_prototypes_are_their_plain_form(dims):
    made, maps = mask_head(dims), pyramid()
    x = sum(plain_aligned(plain_block(level, refine), factor) if factor > 1 else plain_block(level, refine)
            for level, refine, factor in zip(maps, made.refine, (1, 2, 4), strict=True))
    assert torch.allclose(made.merge(*maps).double(), x, atol=1e-5)
    found = made(made.merge(*maps))
    assert found.shape == (2, 8, 16, 3, 2)
    for clip, expected in zip(found, x.split(3), strict=True):
        for block in made.tower:
            expected = plain_block(expected, block)
        expected = plain_block(plain_corners(expected), made.last)
        weight, bias = made.output.weight.double()[:, :, 0, 0], made.output.bias.double()
        expected = (torch.einsum("kc,tchw->hwtk", weight, expected) + bias).clamp(min=0)
        assert torch.allclose(clip.double(), expected, atol=1e-5)
    assert (found == 0).any() and (found > 0).any()


@torch.no_grad()
def test_enlarging_by_deconvolution():
    made = mask_head(enlarge="deconv")
    x = torch.randn(3, 4, 2, 4)
    tower = unfold(made.tower(fold(x, 3)))
    weight, bias = made.deconv.weight, made.deconv.bias
    wide = torch.zeros(3, 3, 4, 8)
    for y in range(4):
        for column in range(8):
            cell = tower[:, :, y // 2, column // 2]
            wide[:, :, y, column] = (cell @ weight[:, :, y % 2, column % 2] + bias).clamp(min=0)
    expected = made.output(made.last(wide)).clamp(min=0)
    assert torch.allclose(made(x), fold(expected, 3).permute(0, 3, 4, 2, 1), atol=1e-5)


@torch.no_grad()
def test_a_3d_mask_head_that_looks_at_one_frame_is_the_2d_one():
    three, two = mask_head("3d"), mask_head("2d")
    flattened_to_2d(three, two)
    merged = torch.randn(6, 4, 4, 8)
    assert torch.allclose(three(merged), two(merged), atol=1e-5)


@pytest.mark.parametrize("frames", [1, 2, 3])
def test_the_gradient_in_bfloat16_reads_nothing_that_nobody_wrote(frames):
    """Of two frames torch's own does, on a CPU: other numbers each time, and now and then NaN."""
    torch.manual_seed(0)
    conv, x = ClipConv(48, 48, 3, padding=1), torch.randn(4, 48, frames, 6, 10)
    exact = _gradient(conv, x)
    for _ in range(10):
        [torch.full((1 << 19,), float("nan")) for _ in range(8)]    # left in the memory that comes next
        with torch.autocast("cpu", torch.bfloat16):
            found = _gradient(conv, x)
        assert (found - exact).abs().max() < 0.02 * exact.abs().max()


def _gradient(conv: ClipConv, x: torch.Tensor) -> torch.Tensor:
    conv.weight.grad = None
    conv(x).float().square().sum().backward()
    return conv.weight.grad.clone()
