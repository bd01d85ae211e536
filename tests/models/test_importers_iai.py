"""Checkpoints of IAI by the specification's own key list (its section 6), COCO starts, and MMDetection's CondInst."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from models.association_block import AssociationConfig
from models.fcos import FCOSConfig
from models.iai import IAI, IAIConfig
from models.importers import RELEASES, Report, fit, guess
from models.importers.iai import from_iai
from models.resnet import ResNetConfig
from tests.models import releases
from tests.models.releases import Key, Sizes, affine, counter, filled, norm, torchvision

SLOTS, DIM, HIDDEN, OFFSETS = 5, 8, 12, 9
SMALL = Sizes(stem=6, mid=4, channels=8, mask=6, classes=3)
BLOCK = AssociationConfig(dim=DIM, self_heads=2, hidden=HIDDEN, groups=3, radius=1, class_channels=112)
CONFIG = IAIConfig(
    num_classes=3, num_slots=SLOTS, channels=8, mask_channels=6, association=BLOCK,
    backbone=ResNetConfig(stem_channels=6, mid_channels=4, stride_in="3x3", norm="frozen_statistics"),
    fcos=FCOSConfig(groups=2, tower_bias=False, center_sampling="moments"),
)  # fmt: skip


def block(dim: int, hidden: int, offsets: int, heads: int = 2) -> list[Key]:
    """The lines of the table that begin with lstt.LSTT; None for ours where the layout is another."""
    layer, ours, keys = "lstt.LSTT.layers.0", "association.block", []
    parts = {"linear_Q": "query", "linear_K": "key", "linear_V": "value", "projection": "projection"}
    for theirs, mine in parts.items():
        keys += affine(f"{layer}.self_attn.{theirs}", f"{ours}.self_attention.{mine}", dim, dim)
    keys += affine(f"{layer}.linear_Q", f"{ours}.query", dim, dim)
    keys += affine(f"{layer}.linear_V", f"{ours}.value", dim, dim)
    keys += affine(f"{layer}.long_term_attn.projection", f"{ours}.global_projection", dim, dim)
    keys += [(f"{layer}.short_term_attn.relative_emb.weight", None, (heads * offsets, dim // heads, 1, 1)),
             (f"{layer}.short_term_attn.relative_emb.bias", None, (heads * offsets,)),
             (f"{layer}.short_term_attn.V_bias", None, (1, heads, dim // heads, offsets, 1))]
    keys += affine(f"{layer}.short_term_attn.fc", f"{ours}.local.projection", dim, dim)
    for theirs, mine in (("norm1", "norm_memory"), ("norm2", "norm_self"), ("norm3", "norm_feed_forward")):
        keys += affine(f"{layer}.{theirs}", f"{ours}.{mine}", dim)
    keys += affine(f"{layer}.linear1", f"{ours}.feed_forward.expand", hidden, dim)
    keys += affine(f"{layer}.linear2", f"{ours}.feed_forward.contract", dim, hidden)
    keys += affine(f"{layer}.activation.gn", f"{ours}.feed_forward.norm", hidden)
    keys += [(f"{layer}.activation.GCT.{n}", f"{ours}.feed_forward.gate.{n}", (1, hidden, 1, 1))
             for n in ("alpha", "gamma", "beta")]
    keys.append((f"{layer}.activation.conv.weight", f"{ours}.feed_forward.mix.weight", (hidden, 1, 5, 5)))
    return [*keys, *affine("lstt.LSTT.decoder_norms.0", f"{ours}.norm_out", dim)]


def condinst(s: Sizes, names: tuple[str, str, str] = ("conv_cls", "conv_reg", "conv_centerness")) -> list[Key]:
    c, keys = s.channels, torchvision(s, "backbone.", classifier=False)
    for i, width in enumerate(4 * s.mid * 2**k for k in (1, 2, 3)):
        keys += affine(f"neck.lateral_convs.{i}.conv", f"fpn.lateral.{i}", c, width, 1, 1)
    for i, ours in enumerate(("fpn.output.0", "fpn.output.1", "fpn.output.2", "fpn.p6", "fpn.p7")):
        keys += affine(f"neck.fpn_convs.{i}.conv", ours, c, c, 3, 3)
    for theirs, ours in (("cls_convs", "fcos.class_tower"), ("reg_convs", "fcos.box_tower")):
        for i in range(4):
            keys.append((f"bbox_head.{theirs}.{i}.conv.weight", f"{ours}.{3 * i}.weight", (c, c, 3, 3)))
            keys += affine(f"bbox_head.{theirs}.{i}.gn", f"{ours}.{3 * i + 1}", c)
    for theirs, ours, width in zip(names, ("class_logits", "distances", "centerness"), (s.classes, 4, 1), strict=True):
        keys += affine(f"bbox_head.{theirs}", f"fcos.{ours}", width, c, 3, 3)
    keys += affine("bbox_head.controller", "controller", 169, c, 3, 3)
    return keys + [(f"bbox_head.scales.{i}.scale", f"fcos.scales[{i}]", ()) for i in range(5)]


def masks(s: Sizes) -> list[Key]:
    keys: list[Key] = []
    for theirs, ours, count, width in (("mask_refine", "refine", 3, s.channels), ("mask_head", "tower", 4, s.mask)):
        for i in range(count):
            name, mine = f"bbox_head.{theirs}.{i}", f"mask_branch.{ours}.{i}"
            keys.append((f"{name}.0.weight", f"{mine}.0.weight", (s.mask, width, 3, 3)))
            keys += [*norm(f"{name}.1", f"{mine}.1", s.mask), counter(f"{name}.1", f"{mine}.1")]
    return keys + list(affine("bbox_head.mask_head.4", "mask_branch.output", 8, s.mask, 1, 1))


def iai(
    s: Sizes = SMALL, slots: int = SLOTS, dim: int = DIM, hidden: int = HIDDEN, offsets: int = OFFSETS
) -> list[Key]:  # fmt: skip
    """The whole table."""
    c, top = s.channels, 32 * s.mid
    keys = condinst(s) + masks(s) + block(dim, hidden, offsets)
    keys += affine("encoder_projector", "association.encoder_projector", dim, top, 1, 1)
    keys += affine("backbone_projector", "association.backbone_projector", top - 2 * dim, top, 1, 1)
    keys += affine("lstt.patch_wise_id_bank", "association.bank.conv", dim, slots + 1, 33, 33)
    keys.append(("bbox_head.id_convs.0.conv.weight", "identity_head.tower.0.weight", (c, c, 3, 3)))
    keys += affine("bbox_head.id_convs.0.gn", "identity_head.tower.1", c)
    return keys + list(affine("bbox_head.conv_id", "identity_head.logits", slots, c, 3, 3))


def mmdetection(s: Sizes = SMALL) -> list[Key]:
    keys, features = condinst(s), "mask_head.mask_feature_head"
    for theirs, ours in (("cls_convs", "fcos.class_tower"), ("reg_convs", "fcos.box_tower")):
        keys += [(f"bbox_head.{theirs}.{i}.conv.bias", f"{ours}.{3 * i}.bias", (s.channels,)) for i in range(4)]
    parts = (("convs_all_levels", "refine", 3, s.channels), ("conv_branch", "tower", 4, s.mask))
    for theirs, ours, count, width in parts:
        for i in range(count):
            name = f"{features}.{theirs}.{i}" + (f".conv{i}" if theirs == "convs_all_levels" else "")
            mine = f"mask_branch.{ours}.{i}"
            keys.append((f"{name}.conv.weight", f"{mine}.0.weight", (s.mask, width, 3, 3)))
            keys += [*norm(f"{name}.bn", f"{mine}.1", s.mask), counter(f"{name}.bn", f"{mine}.1")]
    return keys + list(affine(f"{features}.conv_pred", "mask_branch.output", 8, s.mask, 1, 1))


def by_our_names(keys: list[Key], state: dict[str, Tensor]) -> dict[str, Tensor]:
    ours = {mine: state[theirs] for theirs, mine, _ in keys if mine and not mine.endswith("]")}
    return ours | {"fcos.scales": torch.stack([state[f"bbox_head.scales.{i}.scale"] for i in range(5)])}


def imported(release: str, state: dict[str, Tensor], network: IAI) -> tuple[dict[str, Tensor], Report]:
    return fit(RELEASES[release].rename(state), network.state_dict(), RELEASES[release].allowed)


def small(**changes) -> IAI:
    return IAI(replace(CONFIG, **changes))


# ------------------------------------------------------------------------------------------ the whole network


@pytest.mark.parametrize("config, sizes, slots", [
    pytest.param(IAIConfig(), Sizes(), 20, id="R-50, YouTube-VIS 2019"),
    pytest.param(IAIConfig(num_slots=25, num_classes=25), Sizes(classes=25), 25, id="R-50, OVIS"),
    pytest.param(IAIConfig(backbone=ResNetConfig(blocks=releases.R101, stride_in="3x3", norm="frozen_statistics")),
                 Sizes(blocks=releases.R101), 20, id="R-101"),
])  # fmt: skip
def test_at_full_size_every_tensor_has_its_place_and_shape(config, sizes, slots):
    with torch.device("meta"):
        own = IAI(config).state_dict()
    keys = iai(sizes, slots, 256, 1024, 225)
    assert len({name for name, _, _ in keys}) == len(keys)
    with torch.device("meta"):
        state = {name: torch.zeros(shape) for name, _, shape in keys}
    renamed = from_iai(state)
    assert {n: t.shape for n, t in renamed.state.items()} == {n: t.shape for n, t in own.items()}
    assert not renamed.unused and len(own) == len(keys) - 4                          # five scales are one vector here


def test_there_and_in_every_tensor():
    keys = iai()
    state, network = filled(keys), small()
    ours, report = imported("iai", state, network)
    assert report.complete and not report.fresh and not report.filled and not report.unused
    expected = by_our_names(keys, state)
    relative = {"association.block.local." + n for n in ("relative_keys", "relative_bias", "relative_values")}
    assert ours.keys() == expected.keys() | relative
    assert [name for name, value in expected.items() if not torch.equal(ours[name], value)] == []
    network.load_state_dict(ours)


def test_relative_terms_head_by_head_and_offset_by_offset():
    """2.3: `V_bias` (1, head, channel, offset, 1); the convolution's outputs are head-major, 2 x 225."""
    state = filled(iai())
    ours, _ = imported("iai", state, small())
    prefix = "lstt.LSTT.layers.0.short_term_attn"
    keys, bias, values = (ours[f"association.block.local.relative_{n}"] for n in ("keys", "bias", "values"))
    for a in range(2):
        for o in range(OFFSETS):
            assert torch.equal(keys[a, o], state[f"{prefix}.relative_emb.weight"][a * OFFSETS + o, :, 0, 0])
            assert bias[a, o] == state[f"{prefix}.relative_emb.bias"][a * OFFSETS + o]
            assert torch.equal(values[a, o], state[f"{prefix}.V_bias"][0, a, :, o, 0])
    assert all(tensor.is_contiguous() for tensor in ours.values())


def test_the_two_norms_are_not_those_of_aot():
    state = filled(iai())
    ours, _ = imported("iai", state, small())
    assert torch.equal(ours["association.block.norm_memory.weight"], state["lstt.LSTT.layers.0.norm1.weight"])
    assert torch.equal(ours["association.block.norm_self.weight"], state["lstt.LSTT.layers.0.norm2.weight"])


def test_other_classes_and_slots_start_fresh_but_for_the_banks_bias():
    """3.4: from YouTube-VIS 2019 to N = 25, 25 classes."""
    keys = iai()
    state, network = filled(keys), small(num_classes=4, num_slots=7)
    ours, report = imported("iai", state, network)
    assert report.complete
    assert set(report.fresh) == {
        *(f"{part}.{t}" for part in ("fcos.class_logits", "identity_head.logits") for t in ("weight", "bias")),
        "association.bank.conv.weight",
    }  # fmt: skip
    assert torch.equal(ours["association.bank.conv.bias"], state["lstt.patch_wise_id_bank.bias"])


def test_networks_without_a_part_leave_it_behind():
    state = filled(iai())
    _, report = imported("iai", state, small(association=replace(BLOCK, use_local=False), use_id=False))
    assert report.complete
    assert {name for name in report.unused} == {
        name for name in state if "short_term" in name or "id_bank" in name or "id_convs" in name or "conv_id" in name}


@pytest.mark.parametrize("missing", [
    "lstt.patch_wise_id_bank.bias", "lstt.LSTT.layers.0.short_term_attn.V_bias", "bbox_head.id_convs.0.gn.weight",
    "backbone_projector.weight", "bbox_head.scales.2.scale",
])  # fmt: skip
def test_a_missing_tensor_is_an_error(missing):
    state = filled(iai())
    del state[missing]
    _, report = imported("iai", state, small())
    assert not report.complete


@pytest.mark.parametrize("name, shape", [
    ("lstt.LSTT.layers.0.short_term_attn.V_bias", (1, 2, 4, 25, 1)),
    ("lstt.LSTT.layers.0.short_term_attn.V_bias", (2, 4, 9)),
    ("lstt.LSTT.layers.0.short_term_attn.relative_emb.weight", (18, 3, 1, 1)),
    ("lstt.LSTT.layers.0.short_term_attn.relative_emb.bias", (17,)),
])  # fmt: skip
def test_relative_terms_of_another_shape_do_not_fit(name, shape):
    state = filled(iai())
    state[name] = torch.zeros(shape)
    _, report = imported("iai", state, small())
    assert not report.complete and all("relative" in name for name in report.faulty)


# ------------------------------------------------------------------------------------------ starts


@pytest.mark.parametrize("names", [
    ("conv_cls", "conv_reg", "conv_centerness"), ("fcos_cls", "fcos_reg", "fcos_centerness"),
])
def test_coco_start(names):
    keys = condinst(replace(SMALL, classes=80), names) + masks(SMALL)
    state, network = filled(keys), small()
    ours, report = imported("iai-coco", state, network)
    assert report.complete
    added = {n for n in network.state_dict() if n.startswith(("association.", "identity_head."))}
    assert set(report.fresh) == added | {"fcos.class_logits.weight", "fcos.class_logits.bias"}
    assert torch.equal(ours["fcos.distances.weight"], state[f"bbox_head.{names[1]}.weight"])


def test_coco_start_without_the_classification_projector():
    state = filled(condinst(SMALL) + masks(SMALL))
    _, report = imported("iai-coco", state, small(association=replace(BLOCK, use_cls_projector=False)))
    assert report.complete and "fpn.lateral.2.weight" in report.fresh


def test_mmdetections_condinst_keeps_its_towers_bias():
    keys = mmdetection()
    state, network = filled(keys), small(fcos=replace(CONFIG.fcos, tower_bias=True))
    ours, report = imported("mmdetection-condinst", state, network)
    assert report.complete and not report.unused
    assert set(report.fresh) == {n for n in network.state_dict() if n.startswith(("association.", "identity_head."))}
    for name, value in by_our_names(keys, state).items():
        assert torch.equal(ours[name], value), name
    assert RELEASES["mmdetection-condinst"].expects["fcos.tower_bias"] is True
    assert RELEASES["iai"].expects["fcos.tower_bias"] is False


@pytest.mark.parametrize("keys, name", [
    (iai(), "iai"),
    (condinst(SMALL) + masks(SMALL), "iai-coco"),
    (mmdetection(), "mmdetection-condinst"),
    (releases.crossvis(releases.SMALL), "crossvis"),
    (releases.crossvis(releases.SMALL, embedding=False), "adelaidet-condinst"),
    (releases.masktrack(SMALL, 10), "masktrack-rcnn"),
])  # fmt: skip
def test_names_tell_the_release(keys, name):
    assert guess(filled(keys)) == name


def test_pixels_of_the_release_are_the_networks():
    theirs, ours = RELEASES["iai"].pixels, IAIConfig().input
    assert (theirs.channel_order, theirs.mean, theirs.std) == (ours.channel_order, ours.mean, ours.std)
