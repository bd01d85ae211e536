"""Calibration: correlation and deformable convolution by loops, the module from its parts, and CrossVIS with it."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models.calibration import CalibrationConfig, FeatureCalibration, correlation, deformable_conv
from models.condinst import DenseOutputs
from models.crossvis import CrossVIS, CrossVISConfig
from models.targets import PairBatch
from tests.models import oracles
from tests.models import pair_oracle as oracle
from tests.models.small import ONE_ON_P3, ONE_ON_P4, frame, images, moved, pairs, small_network

COARSE = CalibrationConfig(reach=3, step=2)
"""Displacements -3, -1, 1, 3: sixteen."""
AVERAGED = ("class_logits", "distances", "centerness", "filters", "mask_features")

# ------------------------------------------------------------------------------------------ by loops, from 5.4


def looped_correlation(current: Tensor, reference: Tensor, reach: int, step: int) -> Tensor:
    """5.4, 1: every displacement of every cell."""
    b, c, h, w = current.shape
    places = range(-reach, reach + 1, step)
    out = torch.zeros(b, len(places) ** 2, h, w, dtype=torch.float64)
    for row, dy in enumerate(places):
        for column, dx in enumerate(places):
            for i in range(h):
                for j in range(w):
                    if 0 <= i + dy < h and 0 <= j + dx < w:
                        product = current[:, :, i, j].double() * reference[:, :, i + dy, j + dx].double()
                        out[:, len(places) * row + column, i, j] = product.sum(1) / c
    return out


def cell(x: Tensor, i: int, j: int) -> Tensor:
    """A cell's channels, zero outside of the map.  (C, H, W) -> (C,)"""
    inside = 0 <= i < x.shape[1] and 0 <= j < x.shape[2]
    return x[:, i, j].double() if inside else torch.zeros(len(x), dtype=torch.float64)


def looped_sample(x: Tensor, y: float, x_: float) -> Tensor:
    """Bilinear between the four cells around (y, x_); 0 beyond (-1, H) or (-1, W)."""
    if not (-1 < y < x.shape[1] and -1 < x_ < x.shape[2]):
        return torch.zeros(len(x), dtype=torch.float64)
    i, j = math.floor(y), math.floor(x_)
    above = (1 - (x_ - j)) * cell(x, i, j) + (x_ - j) * cell(x, i, j + 1)
    below = (1 - (x_ - j)) * cell(x, i + 1, j) + (x_ - j) * cell(x, i + 1, j + 1)
    return (1 - (y - i)) * above + (y - i) * below


def looped_deformable(x: Tensor, offsets: Tensor, weight: Tensor) -> Tensor:
    """Tap by tap: channel 2t is dy of tap t, 2t + 1 its dx; taps row by row."""
    b, _, h, w = x.shape
    k = weight.shape[-1]
    out = torch.zeros(b, len(weight), h, w, dtype=torch.float64)
    for image in range(b):
        for i in range(h):
            for j in range(w):
                for tap in range(k * k):
                    row, column = divmod(tap, k)
                    dy, dx = offsets[image, 2 * tap : 2 * tap + 2, i, j].tolist()
                    value = looped_sample(x[image], i + row - k // 2 + dy, j + column - k // 2 + dx)
                    out[image, :, i, j] += weight[:, :, row, column].double() @ value
    return out


# ------------------------------------------------------------------------------------------ correlation


@pytest.mark.parametrize("size, reach, step", [
    pytest.param((1, 1), 15, 2, id="one cell, grid without it"),
    pytest.param((1, 1), 2, 2, id="one cell, and the displacement 0"),
    pytest.param((3, 5), 15, 2, id="P7: smaller than the grid"),
    pytest.param((6, 10), 15, 2, id="P6"),
    pytest.param((5, 8), 3, 2, id="odd height"), pytest.param((8, 7), 3, 2, id="odd width"),
    pytest.param((5, 4), 2, 1, id="every displacement"), pytest.param((5, 7), 3, 3, id="step 3"),
    pytest.param((4, 5), 3, 6, id="a step that is the whole width of the grid"),
])  # fmt: skip
def test_correlation_is_the_loops(size, reach, step):
    current, reference = torch.randn(2, 3, *size), torch.randn(2, 3, *size)
    found, expected = correlation(current, reference, reach, step), looped_correlation(current, reference, reach, step)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)


def test_channels_of_the_published_grid():
    """Seen at (9, 12) now and at (14, 9) then: dy = 5 is row 10, dx = -3 column 6, so channel 16 * 10 + 6."""
    current, reference = torch.zeros(1, 256, 20, 20), torch.zeros(1, 256, 20, 20)
    current[0, 7, 9, 12], reference[0, 7, 14, 9] = 2.0, 3.0
    found = correlation(current, reference)
    assert found.shape == (1, 256, 20, 20)
    assert found.nonzero().tolist() == [[0, 166, 9, 12]]
    assert found[0, 166, 9, 12].item() == 6 / 256


@pytest.mark.parametrize("shift, seen", [
    pytest.param((0, 0), False, id="what stands still is not"), pytest.param((2, 4), False, id="nor are even ones"),
    pytest.param((1, 3), True, id="odd ones are"), pytest.param((15, -15), True, id="to the reach"),
    pytest.param((17, 1), False, id="and no further"),
])  # fmt: skip
def test_displacements_that_are_in_the_published_grid(shift, seen):
    current, reference = torch.zeros(1, 4, 40, 40), torch.zeros(1, 4, 40, 40)
    current[..., 20, 20], reference[..., 20 + shift[0], 20 + shift[1]] = 1.0, 1.0
    assert bool(correlation(current, reference).any()) == seen


def test_correlation_of_two_sizes_is_refused():
    with pytest.raises(ValueError, match=r"maps of \(1, 4, 5, 6\) and \(1, 4, 6, 5\)"):
        correlation(torch.zeros(1, 4, 5, 6), torch.zeros(1, 4, 6, 5))


def test_gradient_of_the_correlation():
    maps = [torch.randn(2, 2, 3, 5, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    assert torch.autograd.gradcheck(lambda x, r: correlation(x, r, 3, 2), maps)


# ------------------------------------------------------------------------------------------ deformable convolution


@pytest.mark.parametrize("size, spread", [
    pytest.param((1, 1), 1.0, id="one cell"), pytest.param((3, 1), 1.0, id="one column"),
    pytest.param((1, 4), 1.0, id="one row"), pytest.param((5, 6), 1.0, id="a cell or so away"),
    pytest.param((4, 3), 5.0, id="most of them outside"),
])  # fmt: skip
def test_deformable_convolution_is_the_loops(size, spread):
    x, offsets, weight = torch.randn(2, 3, *size), torch.randn(2, 18, *size) * spread, torch.randn(4, 3, 3, 3)
    found = deformable_conv(x, offsets, weight)
    torch.testing.assert_close(found.double(), looped_deformable(x, offsets, weight), rtol=1e-4, atol=1e-4)


def test_without_offsets_it_is_a_convolution():
    x, weight = torch.randn(2, 3, 6, 7), torch.randn(4, 3, 3, 3)
    expected = F.conv2d(x, weight, padding=1)
    torch.testing.assert_close(deformable_conv(x, torch.zeros(2, 18, 6, 7), weight), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("tap, offset, expected", [
    pytest.param((1, 1), (0, 0), 5.0, id="the cell itself"),
    pytest.param((1, 1), (1, 0), 8.0, id="dy comes first: one down"),
    pytest.param((1, 1), (0, 1), 6.0, id="dx second: one right"),
    pytest.param((0, 2), (0, 0), 3.0, id="the tap above at the right"),
    pytest.param((0, 2), (2, -2), 7.0, id="sent down at the left"),
    pytest.param((1, 1), (0.5, 0.25), 6.75, id="between four cells"),
    pytest.param((1, 1), (1.5, 0), 4.0, id="half over the edge: the missing neighbour counts 0"),
    pytest.param((1, 1), (-1.75, 0), 0.5, id="three quarters over the upper edge"),
    pytest.param((1, 1), (2, 0), 0.0, id="beyond the edge"), pytest.param((1, 1), (0, -2), 0.0, id="beyond the left"),
    pytest.param((1, 1), (1e30, -1e30), 0.0, id="far beyond"),
])  # fmt: skip
def test_where_the_middle_of_nine_cells_looks(tap, offset, expected):
    """Cells 1 to 9; one tap alone has a weight."""
    x, weight, offsets = torch.arange(1.0, 10).view(1, 1, 3, 3), torch.zeros(1, 1, 3, 3), torch.zeros(1, 18, 3, 3)
    weight[0, 0][tap] = 1
    number = 3 * tap[0] + tap[1]
    offsets[0, 2 * number : 2 * number + 2, 1, 1] = torch.tensor(offset)
    assert deformable_conv(x, offsets, weight)[0, 0, 1, 1].item() == pytest.approx(expected, abs=1e-5)


def test_offsets_of_another_kernel_are_refused():
    with pytest.raises(ValueError, match=r"offsets are \(1, 9, 3, 3\), expected \(1, 18, 3, 3\)"):
        deformable_conv(torch.zeros(1, 2, 3, 3), torch.zeros(1, 9, 3, 3), torch.zeros(2, 2, 3, 3))


def test_gradient_of_the_deformable_convolution():
    """By maps, offsets and weights; offsets stay off whole cells, where bilinear sampling has a kink."""
    x = torch.randn(1, 2, 3, 4, dtype=torch.float64, requires_grad=True)
    offsets = (torch.randint(-2, 3, (1, 18, 3, 4)) + 0.2 + 0.6 * torch.rand(1, 18, 3, 4)).double().requires_grad_()
    weight = torch.randn(2, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(deformable_conv, (x, offsets, weight))


# ------------------------------------------------------------------------------------------ the module


def test_names_and_size_are_the_published_ones():
    with torch.device("meta"):
        module = FeatureCalibration(256, CalibrationConfig())
    convs = [f"offset_convs.{i}.conv.{part}" for i in range(3) for part in ("weight", "bias")]
    assert list(module.state_dict()) == [*convs, "conv_offset.weight", "conv_offset.bias", "dconv_featureflow.weight"]
    assert sum(p.numel() for p in module.parameters()) == 2_401_554


def test_offsets_do_not_start_at_zero():
    module = FeatureCalibration(16, COARSE)
    assert all(parameter.abs().max() > 1e-3 for parameter in module.parameters())


@pytest.mark.parametrize("reach, step", [(0, 1), (15, 0), (15, 4), (-1, 1), (40, 1)])
def test_grids_that_are_none(reach, step):
    with pytest.raises(ValueError, match=f"reach {reach} and step {step}|6561 displacements"):
        CalibrationConfig(reach=reach, step=step)


@pytest.mark.parametrize("config, count", [(CalibrationConfig(), 256), (COARSE, 16), (CalibrationConfig(step=1), 961)])
def test_number_of_displacements(config, count):
    assert config.displacements == count


def small_module() -> FeatureCalibration:
    module = FeatureCalibration(4, COARSE)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(0, 0.3)
    return module


@torch.no_grad()
def test_the_module_is_its_steps():
    """5.4: correlation, LeakyReLU 0.1, three convolutions with ReLU, offsets; the reference is sampled and added."""
    module, (x, r) = small_module(), torch.randn(2, 2, 4, 5, 6)
    similar = looped_correlation(x, r, 3, 2)
    y = torch.where(similar >= 0, similar, 0.1 * similar)
    for block in module.offset_convs:
        y = oracles.conv(y, block.conv.weight, block.conv.bias).clamp(min=0)
    offsets = oracles.conv(y, module.conv_offset.weight, module.conv_offset.bias)
    expected = x.double() + looped_deformable(r, offsets, module.dconv_featureflow.weight)
    (found,) = module((x,), (r,))
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_levels_share_their_weights_and_do_not_meet():
    module, (x, r, other) = small_module(), torch.randn(3, 1, 4, 6, 6)
    first, second, third = module((x, other, x), (r, x, r))
    assert torch.equal(first, third) and not torch.equal(first, second)
    assert torch.equal(first, module((x,), (r,))[0])


# ------------------------------------------------------------------------------------------ CrossVIS with it


def calibrated(**changes) -> CrossVIS:
    return small_network(calibration=COARSE, **changes)


def without_calibration(network: CrossVIS) -> CrossVIS:
    """The same weights, with no calibration."""
    plain = CrossVIS(replace(network.config, calibration=None), 12)
    kept = {name: value for name, value in network.state_dict().items() if not name.startswith("calibration.")}
    plain.load_state_dict(kept)
    return plain.train(network.training)


def assert_same(found: DenseOutputs, expected: DenseOutputs, names: tuple[str, ...], atol: float = 1e-5) -> None:
    for name in names:
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=1e-4, atol=atol, msg=name)


@pytest.mark.parametrize("config, count", [
    pytest.param(CrossVISConfig(calibration=CalibrationConfig()), 36_447_651 + 2_401_554, id="forty classes"),
    pytest.param(CrossVISConfig(calibration=CalibrationConfig(), num_classes=25),
                 36_447_651 + 2_401_554 - 15 * (9 * 256 + 1), id="OVIS: 25"),
])  # fmt: skip
def test_counts_with_calibration(config, count):
    with torch.device("meta"):
        assert sum(p.numel() for p in CrossVIS(config).parameters()) == count


def test_released_names_stay_without_calibration():
    assert not any(name.startswith("calibration") for name in small_network().state_dict())


@torch.no_grad()
def test_what_is_said_is_the_mean_over_references():
    """Each reference by itself through calibration and the parts of the heads; embeddings are those of plain maps."""
    network = calibrated().eval()
    levels, *references = (network.features(images(2, seed=s)) for s in range(4))
    plain = without_calibration(network)
    each = [plain.heads(network.calibration(levels, reference)) for reference in references]
    found = network.heads(levels, tuple(references))
    for name in AVERAGED:
        mean = sum(getattr(dense, name).double() for dense in each) / 3
        torch.testing.assert_close(getattr(found, name).double(), mean, rtol=1e-4, atol=1e-5, msg=name)
        assert not torch.allclose(getattr(each[0], name), getattr(found, name), atol=1e-3), name
    assert_same(found, plain.heads(levels), ("embeddings",))


@torch.no_grad()
def test_without_references_a_frame_is_its_own():
    network = calibrated().eval()
    levels = network.features(images(2))
    expected = without_calibration(network).heads(network.calibration(levels, levels))
    assert_same(network.heads(levels), expected, AVERAGED)
    assert_same(network.heads(levels), network.heads(levels, (levels, levels)), (*AVERAGED, "embeddings"))


@torch.no_grad()
def test_images_with_fewer_references_look_at_their_own_alone():
    network = calibrated().eval()
    levels, *references = (network.features(images(3, seed=s)) for s in range(4))
    together = network.heads(levels, tuple(references), torch.tensor([1, 3, 2]))
    for b, count in enumerate((1, 3, 2)):
        alone = network.heads(levels, tuple(references[:count]))
        for name in AVERAGED:
            assert torch.equal(getattr(together, name)[b], getattr(alone, name)[b]), (name, b)


def test_references_without_calibration_are_refused():
    network = small_network().eval()
    levels = network.features(images(1))
    with pytest.raises(ValueError, match="without calibration was given 1 references"):
        network.heads(levels, (levels,))


@torch.no_grad()
@pytest.mark.parametrize("part, moves", [
    pytest.param("calibration.dconv_featureflow", set(AVERAGED), id="calibration: all but the embeddings"),
    pytest.param("calibration.conv_offset", set(AVERAGED), id="its offsets too"),
    pytest.param("embedding.tower.0", {"embeddings"}, id="identity tower"),
])
def test_what_hangs_on_what(part, moves):
    network = calibrated().eval()
    levels, reference = (network.features(images(1, seed=s)) for s in (0, 1))
    before = network.heads(levels, (reference,))
    weight = network.get_submodule(part).weight
    weight.add_(torch.randn_like(weight))
    after = network.heads(levels, (reference,))
    names = (*AVERAGED, "embeddings")
    assert {name for name in names if not torch.equal(getattr(before, name), getattr(after, name))} == moves


# ------------------------------------------------------------------------------------------ training


def two_pairs() -> PairBatch:
    """Every instance has one positive, so that the crossover draws nothing; the second pair's key frame is empty."""
    key = [frame([ONE_ON_P3, moved(ONE_ON_P4, 16, 16)], [3, 7], seed=1), frame([])]
    reference = [frame([moved(ONE_ON_P4, 16, 0), moved(ONE_ON_P3, 0, 40)], [3, 7], seed=2), frame([ONE_ON_P3], [11])]
    return pairs((key, reference), ([[0, 1], []], [[0, 1], [-1]]))


def test_each_slot_is_the_reference_of_the_other():
    """Every loss by loops, out of what the heads say of each slot beside the other."""
    network, batch = calibrated(), two_pairs()
    twin = copy.deepcopy(network)
    with torch.no_grad():
        maps = [twin.features(pictures) for pictures in batch.images]
        dense = [twin.heads(maps[0], (maps[1],)), twin.heads(maps[1], (maps[0],))]
    bounds = network.config.fcos.size_bounds
    slots = tuple(oracle.Slot(d, t, bounds, (64, 64)) for d, t in zip(dense, batch.targets, strict=True))
    each = [oracle.frame_losses(slot) for slot in slots]
    expected = {name: (each[0][name] + each[1][name]) / 2 for name in each[0]}
    expected |= {"crossover": oracle.crossover(slots, batch), "identity": oracle.identity(network, slots)}
    found = {name: value.item() for name, value in network(batch).items()}
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_a_step_reaches_every_part_of_the_calibration():
    network = calibrated()
    before = {name: value.clone() for name, value in network.calibration.named_parameters()}
    sum(network(two_pairs()).values()).backward()
    for name, parameter in network.calibration.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all() and parameter.grad.any(), name
    torch.optim.SGD(network.parameters(), lr=0.01).step()
    assert all(not torch.equal(before[name], value) for name, value in network.calibration.named_parameters())
    assert all(value.isfinite() for value in network(two_pairs()).values())


def test_references_are_behind_the_gradient_gate_and_calibration_is_not():
    closed = calibrated(gradient_gate=0.0)
    sum(closed(two_pairs()).values()).backward()
    for part in (closed.backbone, closed.fpn):
        assert all(parameter.grad is None or not parameter.grad.any() for parameter in part.parameters())
    assert all(parameter.grad.any() for parameter in closed.calibration.parameters())


def test_weights_of_zero_leave_crossvis_as_it_is():
    network = calibrated()
    torch.nn.init.zeros_(network.calibration.dconv_featureflow.weight)
    plain = without_calibration(network)
    found, expected = ({n: v.item() for n, v in net(two_pairs()).items()} for net in (network, plain))
    assert found == pytest.approx(expected, rel=1e-5)
