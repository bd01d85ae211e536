"""IAI as a whole: sizes, order of C5', identity head, what depends on history and what does not, its fused form."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from models import NETWORKS
from models.association_block import AssociationConfig, Memory, write
from models.condinst import DenseOutputs
from models.fused import fuse
from models.iai import IAI, IAIConfig
from models.resnet import ResNetConfig
from pipelines.networks import read_network
from tests.models import oracles
from tests.models.small import images
from tests.models.small_iai import SMALL, small_iai

R101 = ResNetConfig(blocks=(3, 4, 23, 3), stride_in="3x3", norm="frozen_statistics")
NO_BLOCK = replace(SMALL.association, use_local=False, use_global=False)
FIELDS = ("class_logits", "distances", "centerness", "filters", "mask_features", "identity_logits")
DTYPES = [torch.float32, torch.bfloat16]
SIZE = 64


def count(*modules: nn.Module) -> int:
    return sum(p.numel() for module in modules for p in module.parameters())


def labels(seed: int = 0, num_slots: int = 5) -> Tensor:
    coarse = torch.randint(0, num_slots + 1, (4, 4), generator=torch.Generator().manual_seed(seed))
    return coarse.repeat_interleave(16, 0).repeat_interleave(16, 1)


def video(frames: int, seed: int = 0) -> list[Tensor]:
    return list(images(frames, SIZE, seed).split(1))


@torch.no_grad()
def stream(network: IAI, frames: list[Tensor], seed: int = 0) -> list[DenseOutputs]:
    """A stream on its own, painted at random, every frame a new object."""
    memory, said = None, []
    for t, frame in enumerate(frames):
        pyramid, read = network.associate(network.features(frame), [memory])
        said.append(network.heads(pyramid))
        memory = write(memory, network.association.entry(read, 0, labels(seed + t), t), True, 3)
    return said


def differ(a: DenseOutputs, b: DenseOutputs) -> float:
    """Largest difference of any field, by its largest value."""
    pairs = [(getattr(a, name), getattr(b, name)) for name in FIELDS]
    return max(((x - y).abs().max() / y.abs().max()).item() for x, y in pairs)


# ------------------------------------------------------------------------------------------ sizes


@pytest.mark.parametrize("config, total, added", [
    pytest.param(IAIConfig(), 45_433_337, 11_363_286, id="R-50, YouTube-VIS 2019"),
    pytest.param(IAIConfig(num_slots=25), 46_838_782, 12_768_731, id="R-50, YouTube-VIS 2021"),
    pytest.param(IAIConfig(num_slots=25, num_classes=25), 46_804_207, 12_768_731, id="R-50, OVIS"),
    pytest.param(IAIConfig(backbone=R101), 64_425_465, 11_363_286, id="R-101"),
])  # fmt: skip
def test_parameter_totals_of_the_specification(config, total, added):
    with torch.device("meta"):
        network = IAI(config)
    assert count(network) == total
    assert count(network.association, network.identity_head) == added
    assert count(network.backbone.stem, network.backbone.res2) == 225_344
    frozen = (network.backbone.stem, network.backbone.res2)
    assert not any(p.requires_grad for part in frozen for p in part.parameters())


@torch.no_grad()
def test_shapes_of_the_specification():
    network = small_iai().eval()
    maps = network.features(images(1, SIZE)[..., :32].repeat(1, 1, 6, 20))                      # 384 x 640
    assert [tuple(m.shape[1:]) for m in maps] == [(32, 48, 80), (64, 24, 40), (128, 12, 20)]
    pyramid, read = network.associate(maps, [None])
    assert read.mapped.shape == (1, 2 * 8 + 6, 12, 20)
    assert [tuple(p.shape[1:]) for p in pyramid] == [(8, 48, 80), (8, 24, 40), (8, 12, 20), (8, 6, 10), (8, 3, 5)]
    dense = network.heads(pyramid)
    places = 48 * 80 + 24 * 40 + 12 * 20 + 6 * 10 + 3 * 5
    assert dense.identity_logits.shape == (1, places, 5) and dense.class_logits.shape == (1, places, 3)
    assert dense.distances.shape == (1, places, 4) and dense.filters.shape == (1, places, 169)
    assert dense.mask_features.shape == (1, 8, 48, 80)
    assert network.mask_logits(dense, 0, torch.tensor([5, 77])).shape == (2, 96, 160)


@pytest.mark.parametrize("changes, absent, lateral", [
    pytest.param({}, (), 22, id="all"),
    pytest.param({"use_id": False}, ("association.bank.", "identity_head."), 22, id="association alone"),
    pytest.param({"association": NO_BLOCK}, ("association.",), 128, id="identities alone"),
    pytest.param({"association": NO_BLOCK, "use_id": False}, ("association.", "identity_head."), 128, id="neither"),
    pytest.param({"association": replace(SMALL.association, use_cls_projector=False)},
                 ("association.backbone_projector.",), 16, id="without the classification projector"),
])  # fmt: skip
def test_ablations_leave_parts_out(changes, absent, lateral):
    whole, network = small_iai().state_dict(), small_iai(**changes)
    assert network.state_dict().keys() == {n for n in whole if not absent or not n.startswith(absent)}
    assert network.fpn.lateral[2].weight.shape[1] == lateral
    said = stream(network.eval(), video(3))[-1]
    assert (said.identity_logits is None) == (not network.config.use_id)


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_depth_of_the_identity_head(depth):
    convs = [m for m in small_iai(id_tower_depth=depth).identity_head.modules() if isinstance(m, nn.Conv2d)]
    assert len(convs) == depth + 1 and all(c.kernel_size == (3, 3) for c in convs)
    assert [c.bias is None for c in convs] == [True] * depth + [False]


def test_beginning():
    """2.7: the heads' normal weights, the prior of class and identity, PyTorch's own in the mask branch."""
    torch.manual_seed(0)
    network = IAI(replace(SMALL, channels=64, fcos=replace(SMALL.fcos, groups=8)))
    prior = -torch.tensor(99.0).log()
    for layer in (network.identity_head.logits, network.fcos.class_logits):
        assert torch.allclose(layer.bias, prior) and 0.008 < layer.weight.std() < 0.012
    for layer in (network.identity_head.tower[0], network.fcos.class_tower[0], network.controller):
        assert 0.008 < layer.weight.std() < 0.012
    refine = network.mask_branch.refine[0][0].weight
    assert 0.98 / 24 < refine.abs().max() <= 1 / 24 + 1e-6, "1 / sqrt(64 * 9)"
    towers = (network.fcos.class_tower, network.fcos.box_tower, network.identity_head.tower)
    assert all(tower[0].bias is None for tower in towers)


def test_table_of_networks():
    assert NETWORKS["iai_condinst"] == (IAI, IAIConfig)
    assert IAI(SMALL, num_identities=12).config is SMALL


# ------------------------------------------------------------------------------------------ what is computed


@torch.no_grad()
def test_identity_head_by_loops():
    """2.6: one 3x3 without bias, GroupNorm and ReLU of its own straight from each level, then a 3x3 with bias."""
    network = small_iai().eval()
    pyramid, _ = network.associate(network.features(images(2, SIZE)), [None, None])
    conv, norm, logits = network.identity_head.tower[0], network.identity_head.tower[1], network.identity_head.logits
    expected = []
    for level in pyramid:
        x = oracles.group_norm(oracles.conv(level, conv.weight), 2, norm.weight, norm.bias).clamp(min=0)
        expected.append(oracles.conv(x, logits.weight, logits.bias).flatten(2).transpose(1, 2))
    found = network.heads(pyramid).identity_logits
    assert (found.double() - torch.cat(expected, 1)).abs().max() < 1e-5


@torch.no_grad()
def test_the_pyramid_stands_on_c3_c4_and_the_mapped_c5():
    network = small_iai().eval()
    maps = network.features(images(1, SIZE))
    pyramid, read = network.associate(maps, [None])
    for found, expected in zip(pyramid, network.fpn(maps[0], maps[1], read.mapped), strict=True):
        assert torch.equal(found, expected)


def test_without_the_columns_of_a_nothing_depends_on_history():
    """X stands first, then A, then K (acceptance check 6)."""
    network = small_iai().eval()
    last = video(4)[-1]
    fresh, after = stream(network, [last])[0], stream(network, video(4))[-1]
    assert differ(after, fresh) > 0.01
    with torch.no_grad():
        network.fpn.lateral[2].weight[:, 8:16] = 0
    fresh, after = stream(network, [last])[0], stream(network, video(4))[-1]
    assert differ(after, fresh) == 0


@torch.no_grad()
@pytest.mark.parametrize("order", [(1, 0, 2), (2, 0, 1), (0, 2, 1)])
def test_the_order_of_c5_matters(order):
    network = small_iai().eval()
    maps = network.features(images(1, SIZE))
    pyramid, read = network.associate(maps, [None])
    parts = read.mapped.split([8, 8, 6], dim=1)
    turned = network.fpn(*maps[:-1], torch.cat([parts[i] for i in order], dim=1))
    assert differ(network.heads(turned), network.heads(pyramid)) > 0.01


def test_later_frames_change_nothing():
    network, frames = small_iai().eval(), video(4)
    whole, cut = stream(network, frames), stream(network, frames[:2] + video(2, seed=9))
    for t in range(2):
        assert differ(cut[t], whole[t]) == 0
    assert differ(cut[2], whole[2]) > 0.01


@torch.no_grad()
def test_streams_in_one_batch_are_what_they_are_alone():
    network = small_iai().eval()
    one, other = video(4), video(4, seed=7)
    expected = stream(network, one), stream(network, other, seed=40)
    memories: list[Memory | None] = [None, None]
    for t in range(4):
        rows = [(0, one[t], t)] + ([(1, other[t - 2], 40 + t - 2)] if t >= 2 else [])         # the second joins late
        kept = [memories[i] for i, _, _ in rows]
        pyramid, read = network.associate(network.features(torch.cat([f for _, f, _ in rows])), kept)
        dense = network.heads(pyramid)
        for row, (i, _, seed) in enumerate(rows):
            alone = expected[i][t - 2 * i]
            for name in FIELDS:
                found, wanted = getattr(dense, name)[row], getattr(alone, name)[0]
                assert (found - wanted).abs().max() <= 1e-5 * wanted.abs().max(), (t, i, name)
            entry = network.association.entry(read, row, labels(seed), t)
            memories[i] = write(memories[i], entry, True, 3)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_fused_form(dtype):
    if dtype == torch.bfloat16 and not torch.cpu._is_avx512_bf16_supported():
        pytest.skip("this processor has no instructions for bfloat16")
    network = small_iai().eval()
    expected, found = stream(network, video(3))[-1], stream(fuse(network, dtype), video(3))[-1]
    for name in FIELDS:
        value = getattr(found, name).float()
        bound = 1e-4 if dtype == torch.float32 else 0.15
        assert (value - getattr(expected, name)).abs().max() <= bound * getattr(expected, name).abs().max(), name
    assert found.identity_logits.dtype == torch.float32


# ------------------------------------------------------------------------------------------ settings


@pytest.mark.parametrize("file, config", [
    ("iai_condinst_r50.yaml", IAIConfig()),
    ("iai_condinst_r101.yaml", IAIConfig(backbone=R101)),
])
def test_the_released_settings_are_the_defaults(file, config):
    spec = read_network(Path("configs/networks") / file)
    assert spec.name == "iai_condinst" and spec.association == "identities"
    assert spec.config == config
    assert (spec.config.num_slots, spec.config.interval, spec.config.input.channel_order) == (20, 3, "rgb")
    released = (0.05, 0.1, 1000, 10) if "r101" in file else (0.1, 0.1, 200, 10)
    detect = spec.detect
    assert (detect.min_class, detect.min_identity, detect.max_per_level, detect.max_per_frame) == released


def test_the_tiny_form_keeps_the_width_of_the_pyramids_top():
    config = read_network("configs/networks/iai_tiny.yaml").config
    with torch.device("meta"):
        network = IAI(config)
    assert network.association.out_channels == network.backbone.channels[-1] == 512
    assert count(network) < 5e6


@pytest.mark.parametrize("settings, message", [
    (dict(num_slots=1), "num_slots 1, interval 3"),
    (dict(interval=0), "interval 0"),
    (dict(id_tower_depth=0), "id_tower_depth is 0, expected 1 to 4"),
    (dict(id_loss="bce"), "id_loss is 'bce'"),
    (dict(max_mask_positives=0), "max_mask_positives is 0, expected at least 1, or null"),
    (dict(giou_added=-1.0), "giou_added is -1.0"),
])  # fmt: skip
def test_settings_that_cannot_be(settings, message):
    with pytest.raises(ValueError, match=message):
        IAIConfig(**settings)


def test_default_association_is_the_released_one():
    assert IAIConfig().association == AssociationConfig()
