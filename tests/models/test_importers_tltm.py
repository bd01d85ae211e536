"""CenterMask2's and TLTM's checkpoints: every key of the specification's section 6 finds its place, or its reason.

The keys are written out from there, not derived from the importers.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from models.centermask import CenterMask, CenterMaskConfig
from models.fcos import FCOSConfig
from models.importers import RELEASES, fit, guess
from models.resnet import ResNetConfig
from models.tltm import TLTM, TLTMConfig
from tests.models import releases
from tests.models.releases import SMALL, Key, Sizes, affine, by_our_names, filled

DIM, HIDDEN = 16, 6


def centermask(s: Sizes = SMALL, scored: bool = False) -> list[Key]:
    """Section 6's first half; `scored`: with the mask IoU head of CenterMask2's COCO files."""
    c, head, mask = s.channels, "proposal_generator.fcos_head", "roi_heads.mask_head"
    keys = [*releases.resnet(s, "backbone.bottom_up."),
            *releases.pyramid(s, [4 * s.mid * 2**i for i in (1, 2, 3)])]                                  # fmt: skip
    for p in (6, 7):
        keys += affine(f"backbone.top_block.p{p}", f"fpn.p{p}", c, c, 3, 3)
    for theirs, ours in (("cls_tower", "class_tower"), ("bbox_tower", "box_tower")):
        for i in (0, 3, 6, 9):
            keys += affine(f"{head}.{theirs}.{i}", f"fcos.{ours}.{i}", c, c, 3, 3)
            keys += affine(f"{head}.{theirs}.{i + 1}", f"fcos.{ours}.{i + 1}", c)
    keys += affine(f"{head}.cls_logits", "fcos.class_logits", s.classes, c, 3, 3)
    keys += affine(f"{head}.bbox_pred", "fcos.distances", 4, c, 3, 3)
    keys += affine(f"{head}.ctrness", "fcos.centerness", 1, c, 3, 3)
    keys += [(f"{head}.scales.{i}.scale", f"fcos.scales[{i}]", (1,)) for i in range(5)]
    for i in (1, 2, 3, 4):
        keys += affine(f"{mask}.mask_fcn{i}", f"mask_head.convs.{i - 1}", c, c, 3, 3)
    keys.append((f"{mask}.spatialAtt.conv.weight", "mask_head.attention.conv.weight", (1, 2, 3, 3)))
    keys += affine(f"{mask}.deconv", "mask_head.upsample", c, c, 2, 2)
    keys += affine(f"{mask}.predictor", "mask_head.logits", s.classes, c, 1, 1)
    if scored:
        iou = "roi_heads.maskiou_head"
        for name, shape in (("maskiou_fcn1", (c, c + 1, 3, 3)), ("maskiou_fcn4", (c, c, 3, 3)),
                            ("maskiou_fc1", (9, 49 * c)), ("maskiou_fc2", (9, 9)), ("maskiou", (s.classes, 9))):
            keys += affine(f"{iou}.{name}", None, *shape)
    return keys


def tltm(s: Sizes = SMALL, dim: int = DIM, hidden: int = HIDDEN) -> list[Key]:
    """All of section 6."""
    c, keys = s.channels, centermask(s)
    for i in range(5):
        for j, width in ((1, 2 * c), (2, c)):
            keys += affine(f"proposal_generator.fcos_head.resfuser_{i}.cn{j}", f"fuser.levels.{i}.conv{j}", c, width,
                           3, 3)                                                                          # fmt: skip
    for j, (inputs, outputs) in enumerate(((c, dim), (dim, dim // 4), (dim // 4, dim // 16)), start=1):
        keys += affine(f"obj_encoder.cn{j}", f"encoder.conv{j}", outputs, inputs, 3, 3)
    keys += affine("obj_encoder.fc", "encoder.fc", dim, 49 * dim // 16)
    for net, inputs, outputs in (("edge_mlp", 2 * dim, hidden), ("node_mlp", dim + hidden, dim)):
        for i, shape in ((0, (hidden, inputs)), (2, (hidden, hidden)), (3, (hidden,)), (5, (outputs, hidden))):
            keys += affine(f"obj2obj_gnn.{net}.{i}", f"graph.{net}.{i}", *shape)
    keys += affine("obj2obj_gnn.edge_predictor.0", "graph.scorer.0", hidden, 2 * dim)
    keys += affine("obj2obj_gnn.edge_predictor.2", "graph.scorer.2", 1, hidden)
    return keys


def network(kind: str, classes: int = SMALL.classes) -> nn.Module:
    settings = dict(
        num_classes=classes, channels=SMALL.channels,
        backbone=ResNetConfig(stem_channels=SMALL.stem, mid_channels=SMALL.mid),
        fcos=FCOSConfig(groups=2, center_sampling="box"),
    )  # fmt: skip
    if kind == "centermask":
        return CenterMask(CenterMaskConfig(**settings))
    return TLTM(TLTMConfig(**settings, object_dim=DIM, graph_hidden=HIDDEN))


def brought(keys: list[Key], release: str, target: nn.Module):
    state = filled(keys)
    return state, *fit(RELEASES[release].rename(state), target.state_dict(), RELEASES[release].allowed)


@pytest.mark.parametrize("release, kind, keys", [
    pytest.param("tltm", "tltm", tltm(), id="TLTM"),
    pytest.param("centermask2", "centermask", centermask(), id="CenterMask2"),
    pytest.param("centermask2", "centermask", centermask(scored=True), id="with a mask IoU head"),
])
def test_every_tensor_finds_its_place(release, kind, keys):
    state, ours, report = brought(keys, release, network(kind))
    expected = by_our_names(keys, state)
    assert report.complete and not report.fresh and ours.keys() == expected.keys()
    assert all(torch.equal(ours[name], value) for name, value in expected.items())
    assert set(report.unused) == {theirs for theirs, mine, _ in keys if mine is None}
    assert all("mask IoU head" in why for why in report.unused.values())


def test_coco_weights_begin_tltm():
    keys = centermask(replace(SMALL, classes=SMALL.classes + 5), scored=True)
    state, ours, report = brought(keys, "centermask2", network("tltm"))
    of_classes = {f"{layer}.{part}" for layer in ("fcos.class_logits", "mask_head.logits")
                  for part in ("weight", "bias")}                                                         # fmt: skip
    own = {name for name in ours if name.startswith(("fuser.", "encoder.", "graph."))}
    assert report.complete and set(report.fresh) == of_classes | own
    assert torch.equal(ours["mask_head.convs.2.bias"], state["roi_heads.mask_head.mask_fcn3.bias"])


def test_a_tltm_file_gives_its_detector():
    _, _, report = brought(tltm(), "tltm", network("centermask"))
    assert report.complete and not report.fresh
    left = {theirs for theirs, mine, _ in tltm() if mine and mine.startswith(("fuser", "encoder", "graph"))}
    assert set(report.unused) == left


def test_names_of_several_gpus():
    state = {f"module.{name}": value for name, value in filled(tltm()).items()}
    assert RELEASES["tltm"].rename(state).known == len(tltm())


@pytest.mark.parametrize("gone, missing", [
    pytest.param("obj2obj_gnn.edge_mlp.3.bias", "graph.edge_mlp.3.bias", id="a norm of the graph"),
    pytest.param("proposal_generator.fcos_head.resfuser_4.cn2.weight", "fuser.levels.4.conv2.weight", id="P7's fuser"),
    pytest.param("proposal_generator.fcos_head.scales.2.scale", "fcos.scales", id="a level's scale"),
    pytest.param("roi_heads.mask_head.spatialAtt.conv.weight", "mask_head.attention.conv.weight", id="attention"),
])
def test_a_file_that_lacks_something(gone, missing):
    state = filled(tltm())
    del state[gone]
    _, report = fit(RELEASES["tltm"].rename(state), network("tltm").state_dict(), RELEASES["tltm"].allowed)
    assert report.missing == (missing,)


@pytest.mark.parametrize("name, value, fault", [
    pytest.param("obj_encoder.fc.weight", torch.zeros(2, 2), "(2, 2) in the file", id="another shape"),
    pytest.param("obj_encoder.fc.bias", torch.full((DIM,), torch.nan), "not finite", id="NaN"),
])
def test_a_file_that_does_not_fit(name, value, fault):
    state = filled(tltm()) | {name: value}
    _, report = fit(RELEASES["tltm"].rename(state), network("tltm").state_dict(), RELEASES["tltm"].allowed)
    assert [fault in why for why in report.faulty.values()] == [True]


def test_an_unknown_tensor_is_told():
    state = filled(tltm()) | {"roi_heads.box_head.fc1.weight": torch.zeros(1)}
    assert set(RELEASES["tltm"].rename(state).unused) == {"roi_heads.box_head.fc1.weight"}


@pytest.mark.parametrize("keys, name", [
    pytest.param(tltm(), "tltm", id="TLTM"), pytest.param(centermask(), "centermask2", id="CenterMask2"),
    pytest.param(centermask(scored=True), "centermask2", id="with a mask IoU head"),
    pytest.param(releases.crossvis(SMALL), "crossvis", id="CrossVIS"),
    pytest.param(releases.crossvis(SMALL, embedding=False), "adelaidet-condinst", id="CondInst"),
])  # fmt: skip
def test_names_tell_the_release(keys, name):
    assert guess(filled(keys)) == name


@pytest.mark.parametrize("blocks", [releases.R50, releases.R101], ids=["50", "101"])
def test_at_full_size_every_tensor_of_the_file_fits(blocks):
    with torch.device("meta"):
        own = TLTM(TLTMConfig(backbone=ResNetConfig(blocks=blocks))).state_dict()
    keys = tltm(replace(Sizes(), blocks=blocks), dim=512, hidden=128)
    shapes = {mine: shape for _, mine, shape in keys if not mine.endswith("]")}
    assert {name for name, shape in shapes.items() if own[name].shape != torch.Size(shape)} == set()
    assert own.keys() - shapes.keys() == {"fcos.scales"}
