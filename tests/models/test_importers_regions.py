"""MMDetection's Mask R-CNN, where training of both two-stage networks begins: names, and where background stands."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from models.association_block import AssociationConfig
from models.iai_maskrcnn import IAIMaskRCNN, IAIMaskRCNNConfig
from models.importers import RELEASES, fit, guess
from models.masktrack_rcnn import MaskTrackConfig, MaskTrackRCNN
from models.resnet import ResNetConfig
from tests.models import releases
from tests.models.releases import SMALL, Key, Sizes, filled

NAME = "mmdetection-mask-rcnn"
HEADS = ("bbox_head.", "mask_head.")
BLOCK = AssociationConfig(dim=8, self_heads=2, memory_heads=2, hidden=12, groups=3, radius=1,
                          class_channels=32 * SMALL.mid - 16)                                             # fmt: skip


def mask_rcnn(s: Sizes = SMALL, version: int = 3, hidden: int = 10) -> list[Key]:
    """By the names of MaskTrack R-CNN without its own head; from version 2 on with `roi_head.` and no background among
    boxes and masks."""
    keys = [key for key in releases.masktrack(s, hidden) if not key[0].startswith("track_head.")]
    if version == 1:
        return keys
    rows = {"bbox_head.fc_reg": 4 * s.classes, "mask_head.conv_logits": s.classes}
    out = []
    for theirs, ours, shape in keys:
        count = rows.get(theirs.rpartition(".")[0])
        out.append((f"roi_head.{theirs}" if theirs.startswith(HEADS) else theirs, ours,
                    shape if count is None else (count, *shape[1:])))                                     # fmt: skip
    return out


def network(kind: str, classes: int) -> nn.Module:
    backbone = ResNetConfig(stem_channels=SMALL.stem, mid_channels=SMALL.mid, stride_in="3x3", norm="frozen_statistics")
    settings = dict(num_classes=classes, backbone=backbone, channels=SMALL.channels, hidden=10)
    if kind == "masktrack":
        return MaskTrackRCNN(MaskTrackConfig(**settings))
    return IAIMaskRCNN(IAIMaskRCNNConfig(**settings, num_slots=5, association=BLOCK))


def brought(keys: list[Key], target: nn.Module):
    state = filled(keys)
    return state, *fit(RELEASES[NAME].rename(state), target.state_dict(), RELEASES[NAME].allowed)


OF_CLASSES = {f"{layer}.{part}" for layer in ("box_head.class_logits", "box_head.deltas", "mask_head.logits")
              for part in ("weight", "bias")}                                                             # fmt: skip


@pytest.mark.parametrize("version", [1, 3])
@pytest.mark.parametrize("kind, own", [("masktrack", ("track_head.",)), ("iai", ("association.", "identity_head."))])
def test_all_but_classes_and_what_is_added_comes_from_the_file(kind, own, version):
    keys, target = mask_rcnn(version=version), network(kind, SMALL.classes + 3)
    state, ours, report = brought(keys, target)
    assert report.complete and set(report.fresh) == OF_CLASSES | {n for n in ours if n.startswith(own)}
    for theirs, mine, _ in keys:
        assert mine in OF_CLASSES or torch.equal(ours[mine], state[theirs]), theirs
    assert all("of another shape" in why for why in report.unused.values())


def test_the_background_moves_from_the_last_class_to_the_first():
    state, ours, report = brought(mask_rcnn(), network("iai", SMALL.classes))
    assert report.complete and not OF_CLASSES & set(report.fresh)
    theirs = state["roi_head.bbox_head.fc_cls.weight"]
    assert torch.equal(ours["box_head.class_logits.weight"][0], theirs[-1])
    assert torch.equal(ours["box_head.class_logits.weight"][1:], theirs[:-1])
    assert torch.equal(ours["box_head.class_logits.bias"], state["roi_head.bbox_head.fc_cls.bias"].roll(1))
    assert torch.equal(ours["box_head.deltas.weight"], state["roi_head.bbox_head.fc_reg.weight"])
    assert torch.equal(ours["mask_head.logits.weight"], state["roi_head.mask_head.conv_logits.weight"])


def test_in_the_first_version_it_is_the_first_already():
    state, ours, report = brought(mask_rcnn(version=1), network("masktrack", SMALL.classes))
    assert report.complete and not OF_CLASSES & set(report.fresh)
    assert torch.equal(ours["box_head.class_logits.weight"], state["bbox_head.fc_cls.weight"])


@pytest.mark.parametrize("break_it", [
    pytest.param(lambda state: state.pop("roi_head.bbox_head.fc_reg.bias"), id="no boxes"),
    pytest.param(lambda state: state.update({"roi_head.bbox_head.fc_cls.weight": torch.tensor(1.0)}), id="a number"),
    pytest.param(lambda state: state.pop("rpn_head.rpn_conv.weight"), id="no proposals"),
])
def test_a_file_that_lacks_something_is_told_not_crashed_on(break_it):
    state = filled(mask_rcnn())
    break_it(state)
    _, report = fit(RELEASES[NAME].rename(state), network("iai", SMALL.classes).state_dict(), RELEASES[NAME].allowed)
    assert not report.complete or OF_CLASSES & set(report.fresh)


def test_another_number_of_anchors_does_not_fit():
    state = filled(mask_rcnn())
    state["rpn_head.rpn_cls.weight"] = torch.zeros(5, SMALL.channels, 1, 1)
    _, report = fit(RELEASES[NAME].rename(state), network("iai", 3).state_dict(), RELEASES[NAME].allowed)
    assert set(report.faulty) == {"rpn.logits.weight"}


@pytest.mark.parametrize("keys, name", [
    pytest.param(mask_rcnn(), NAME, id="Mask R-CNN"),
    pytest.param(mask_rcnn(version=1), NAME, id="Mask R-CNN of MMDetection 1"),
    pytest.param(releases.masktrack(SMALL, hidden=10), "masktrack-rcnn", id="MaskTrack R-CNN"),
])
def test_names_tell_the_release(keys, name):
    assert guess(filled(keys)) == name


def test_at_full_size_every_tensor_of_the_file_fits():
    with torch.device("meta"):
        own = IAIMaskRCNN(IAIMaskRCNNConfig(num_classes=80)).state_dict()
    keys = mask_rcnn(replace(Sizes(), classes=80), hidden=1024)
    assert {name for _, name, shape in keys if own[name].shape != torch.Size(shape)} == set()
    assert own["fpn.lateral.3.weight"].shape == (256, 2048, 1, 1), "C5' is as wide as C5"
