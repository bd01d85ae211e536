"""The fused form against the plain one, within the bounds stated here; and that it computes no more than is asked."""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch
from torch import Tensor, nn

from models.calibration import CalibrationConfig
from models.condinst import CondInst, CondInstConfig
from models.crossvis import CrossVIS, CrossVISConfig
from models.dla import DLAConfig
from models.fcos import FCOSConfig
from models.fpn import FPN
from models.fused import InferenceConfig, best_dtype, fuse, has_bf16_instructions, inference_form
from models.resnet import ResNet
from tests.models.small import SMALL, images, shake, small_network

EXACT = 1e-4
"""float32: every output within this share of its largest value. Measured on R-50: 1.1e-5."""
PROBABILITY = 0.02
"""bfloat16: class probabilities, anywhere. Measured on R-50: 0.009."""
BOX_PX, BOX_MEAN_PX = 4.0, 0.2
"""bfloat16: sides of boxes, in pixels of a 192x320 input, at worst and on average. Measured: 1.7 and 0.054."""
MASK = 0.1
"""bfloat16: root mean square of mask logits' error, over their spread. Measured: 0.060."""
COSINE = 0.999
"""bfloat16: between the two forms' embeddings of a location, at worst. Measured: 0.9997."""

needs_bf16 = pytest.mark.skipif(not has_bf16_instructions(), reason="this processor has no bfloat16 instructions")
DLA_BACKBONE = DLAConfig(widths=(4, 4, 6, 8, 8, 10), norm="batch")


def condinst() -> CondInst:
    config = CondInstConfig(**{f.name: getattr(SMALL, f.name) for f in fields(CondInstConfig)})
    network = CondInst(config)
    shake(network, 0)
    return network


NETWORKS = {
    "CrossVIS": small_network,
    "coordinates last": lambda: small_network(coordinates="last"),
    "three levels on DLA": lambda: small_network(
        backbone=DLA_BACKBONE, fcos=FCOSConfig(tower_convs=2, groups=2, size_bounds=(32, 64))),
    "with calibration": lambda: small_network(calibration=CalibrationConfig(reach=1, step=1)),
    "CondInst": condinst,
}  # fmt: skip


def outputs(network: nn.Module, pictures: Tensor, image: int = 1) -> dict[str, Tensor]:
    """All that the heads say of one image, read as a detector reads it, and masks of every seventh location."""
    with torch.inference_mode():
        dense = network.heads(network.features(pictures))
        everywhere = torch.arange(dense.class_logits.shape[1], device=pictures.device)
        said = {name: getattr(dense, name)[image, everywhere]
                for name in ("distances", "centerness", "filters", "embeddings")}
        masks = network.mask_logits(dense, image, everywhere[::7])
        return {**said, "class_logits": dense.class_logits[image], "mask_features": dense.mask_features[image],
                "mask_logits": masks, "strides": dense.at.strides}  # fmt: skip


@pytest.mark.parametrize("name", NETWORKS)
def test_float32_agrees_with_the_plain_form(name):
    network = NETWORKS[name]().eval()
    expected, found = (outputs(n, images(2)) for n in (network, fuse(network, torch.float32)))
    for field, value in expected.items():
        assert found[field].dtype == torch.float32 and found[field].shape == value.shape, field
        if value.numel():
            assert (found[field] - value).abs().max() <= EXACT * value.abs().max(), field
            assert value.std() > 0.01, f"{field} says the same everywhere, so nothing was compared"


def assert_within_bounds(expected: dict[str, Tensor], found: dict[str, Tensor]) -> None:
    assert (found["class_logits"].sigmoid() - expected["class_logits"].sigmoid()).abs().max() <= PROBABILITY
    apart = (found["distances"] - expected["distances"]).abs() * expected["strides"][:, None]
    assert apart.max() <= BOX_PX and apart.mean() <= BOX_MEAN_PX
    wrong = found["mask_logits"] - expected["mask_logits"]
    assert wrong.square().mean().sqrt() <= MASK * expected["mask_logits"].std()
    if expected["embeddings"].shape[1]:
        assert torch.cosine_similarity(found["embeddings"], expected["embeddings"]).min() >= COSINE
    assert all(value.dtype == torch.float32 for value in found.values()), "what is predicted is float32"


@needs_bf16
@pytest.mark.slow
def test_bounds_at_full_width():
    """R-50, 192x320, lively weights: both dtypes of a CPU."""
    network = CrossVIS(CrossVISConfig())
    shake(network, 0)
    network.eval()
    pictures = nn.functional.interpolate(images(1, 20), size=(192, 320), mode="bicubic")
    expected = outputs(network, pictures, image=0)
    assert expected["class_logits"].std() > 0.3 and expected["mask_logits"].std() > 0.1
    exact = outputs(fuse(network, torch.float32), pictures, image=0)
    for field, value in expected.items():
        assert (exact[field] - value).abs().max() <= EXACT * value.abs().max(), field
    assert_within_bounds(expected, outputs(fuse(network, torch.bfloat16), pictures, image=0))


@needs_bf16
@pytest.mark.parametrize("name", NETWORKS)
def test_half_as_many_bits_is_near(name):
    """Root mean squares: with eight channels a layer's rounding does not average out as it does with 256."""
    network = NETWORKS[name]().eval()
    expected, found = (outputs(n, images(2)) for n in (network, fuse(network, torch.bfloat16)))
    for field in ("class_logits", "distances", "filters", "embeddings", "mask_features"):
        if expected[field].numel():
            wrong = (found[field] - expected[field]).square().mean().sqrt()
            assert 0 < wrong <= 0.1 * expected[field].square().mean().sqrt(), field


# ------------------------------------------------------------------------------------------ on demand


@pytest.fixture
def fused() -> nn.Module:
    return fuse(small_network(), torch.float32)


def calls_of(*modules: nn.Module) -> list[list[tuple[int, ...]]]:
    """For each module, the shapes it is called on from now on."""
    seen: list[list[tuple[int, ...]]] = [[] for _ in modules]
    for module, shapes in zip(modules, seen, strict=True):
        module.register_forward_pre_hook(lambda _, inputs, shapes=shapes: shapes.append(tuple(inputs[0].shape)))
    return seen


def test_no_tower_runs_that_nothing_asks_for(fused):
    fcos = fused.network.fcos
    classes, boxes, identities = calls_of(fcos.class_tower, fcos.box_tower, fused.network.embedding.tower)
    with torch.inference_mode():
        dense = fused.heads(fused.features(images(3)))            # 8x8 cells on P3, 4x4 on P4, 2x2 on P5, 1x1, 1x1
        nothing = torch.zeros(0, dtype=torch.int64)
        assert dense.centerness[0, nothing].shape == (0,) and dense.filters[0, nothing].shape == (0, 169)
        assert dense.distances[0, nothing].shape == (0, 4) and dense.embeddings[0, nothing].shape == (0, 6)
        assert len(classes) == 5 and not boxes and not identities
        dense.centerness[1, torch.tensor([64, 79])]               # the first and the last of P4
        dense.distances[0, torch.tensor([70])]
        dense.filters[2, torch.tensor([65])]
        assert boxes == [(3, 8, 4, 4)] and not identities, "once for the whole batch, whatever is asked of it"
        dense.embeddings[1, torch.tensor([63, 80, 85])]           # the last of P3, the first of P5, P7
        assert sorted(identities) == [(3, 8, 1, 1), (3, 8, 2, 2), (3, 8, 8, 8)] and len(boxes) == 1


def test_locations_may_come_in_any_order_and_twice(fused):
    with torch.inference_mode():
        dense = fused.heads(fused.features(images(2)))
        order = torch.tensor([85, 0, 64, 7, 84, 0, 63, 79])
        everywhere = torch.arange(86)
        for field in ("distances", "centerness", "filters", "embeddings"):
            value = getattr(dense, field)
            assert torch.allclose(value[1, order], value[1, everywhere][order], atol=1e-5), field


@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=needs_bf16)])
def test_a_frame_gives_the_same_bits_in_any_company(dtype):
    network, pictures = fuse(small_network(), dtype), images(6)
    alone = outputs(network, torch.cat([torch.zeros(1, 3, 64, 64), pictures[:1], torch.zeros(1, 3, 64, 64)]))
    crowd = outputs(network, torch.stack([pictures[4], pictures[0], pictures[2]]))
    assert all(torch.equal(crowd[field], value) for field, value in alone.items())


# ------------------------------------------------------------------------------------------ what fuse takes and leaves


def test_the_network_stays_as_it_is():
    network = small_network()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    fused = fuse(network)
    assert network.training and network.proxies is not None
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert fused.proxies is None and not fused.training and fused.config == network.config
    assert not any(p.requires_grad for p in fused.parameters())


class Unknown(nn.Module):
    """Heads that the fused form knows nothing of."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = ResNet(SMALL.backbone)
        self.fpn = FPN(self.backbone.channels, 8)
        self.head = nn.Sequential(nn.Conv2d(8, 2, 1), nn.BatchNorm2d(2))

    def features(self, pictures: Tensor) -> tuple[Tensor, ...]:
        return self.fpn(*self.backbone(pictures))

    def heads(self, levels: tuple[Tensor, ...]) -> Tensor:
        return self.second(self.head(levels[0]))

    def second(self, x: Tensor) -> Tensor:
        return x + 1


def test_of_an_unknown_network_backbone_and_pyramid_alone_are_fused():
    network = Unknown().eval()
    shake(network, 0)
    fused = fuse(network)
    assert isinstance(fused.head[0], nn.Conv2d) and fused.second(torch.zeros(1)) == 1
    with torch.inference_mode():
        levels, expected = fused.features(images(2)), network.features(images(2))
        assert all(level.dtype == torch.float32 for level in levels)
        tolerance = 0.05 if fused.form.dtype == torch.bfloat16 else EXACT
        assert torch.allclose(fused.heads(levels), network.heads(expected), atol=tolerance * expected[0].abs().max())


def test_what_it_lacks_is_an_attribute_error(fused):
    with pytest.raises(AttributeError, match="nowhere"):
        fused.nowhere  # noqa: B018


@pytest.mark.parametrize("dtype, compiled, message", [
    pytest.param(torch.float16, False, "no instructions for torch.float16; set dtype: auto, or float32", id="float16"),
    pytest.param(None, True, "compile is for GPUs", id="compiled"),
    pytest.param(torch.bfloat16, False, "no instructions for torch.bfloat16", id="bfloat16 without instructions",
                 marks=pytest.mark.skipif(has_bf16_instructions(), reason="this processor has them")),
])
def test_what_a_cpu_cannot(dtype, compiled, message):
    with pytest.raises(ValueError, match=message):
        fuse(small_network(), dtype, compiled)


def test_auto_takes_bfloat16_where_there_are_instructions():
    wanted = torch.bfloat16 if has_bf16_instructions() else torch.float32
    assert best_dtype(torch.device("cpu")) == wanted
    fused = inference_form(small_network(), InferenceConfig(form="fused"))
    assert fused.form.dtype == wanted and fused.describe().startswith(f"fused, {str(wanted)[6:]}")
    assert inference_form(small_network(), InferenceConfig(form="fused", dtype="float32")).form.dtype == torch.float32


def test_plain_is_the_network_itself():
    network = small_network()
    assert inference_form(network, InferenceConfig()) is network and not network.training


@pytest.mark.parametrize("settings", [{"dtype": "float32"}, {"compile": True}])
def test_settings_of_the_fused_form_need_it(settings):
    with pytest.raises(ValueError, match="are of the fused form"):
        InferenceConfig(**settings)


# ------------------------------------------------------------------------------------------ on a GPU


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("compiled", [False, True])
def test_a_gpu_agrees_with_itself(dtype, compiled):
    network, pictures = small_network().eval().cuda(), images(2).cuda()
    fused = fuse(network, dtype, compiled)
    expected, found, again = outputs(network, pictures), outputs(fused, pictures), outputs(fused, pictures)
    tolerance = 0.01 if dtype == torch.float32 else 0.1            # convolutions in float32 round to TF32
    for field, value in expected.items():
        wrong = (found[field].float() - value).square().mean().sqrt()
        assert wrong <= tolerance * value.square().mean().sqrt(), field
        assert torch.allclose(again[field], found[field], rtol=1e-3, atol=1e-3), f"{field}: written over by a later run"
