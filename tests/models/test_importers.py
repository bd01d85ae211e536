"""Released checkpoints by the specification's own key lists: every tensor lands where it belongs, or an error says why.

The lists, written out from section 6, stand in tests/models/releases.py.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from models.condinst import CondInst, CondInstConfig
from models.crossvis import CrossVIS, CrossVISConfig
from models.dla import DLA, DLAConfig
from models.fcos import FCOSConfig
from models.importers import MSRA, RELEASES, TORCHVISION, Allowance, Report, fit, guess
from models.importers.crossvis import from_crossvis
from models.importers.pixels import adapt_first_convolution
from models.importers.renaming import Renamed, rename
from models.importers.report import COUNTER
from models.inputs import InputConfig
from models.masktrack_rcnn import MaskTrackConfig, MaskTrackRCNN
from models.resnet import ResNetConfig
from tests.models import releases
from tests.models.releases import R50, R101, SMALL, Sizes, by_our_names, filled

RESNET = ResNetConfig(blocks=R50, stem_channels=SMALL.stem, mid_channels=SMALL.mid)
SMALL_CONFIG = CrossVISConfig(
    num_classes=SMALL.classes, backbone=RESNET, channels=SMALL.channels, fcos=FCOSConfig(groups=2),
    mask_channels=SMALL.mask, embedding_dim=SMALL.dim,
)  # fmt: skip


def small_crossvis(**changes) -> CrossVIS:
    return CrossVIS(replace(SMALL_CONFIG, **changes), SMALL.identities)


def small_condinst(**changes) -> CondInst:
    settings = dict(num_classes=SMALL.classes, backbone=RESNET, channels=SMALL.channels, mask_channels=SMALL.mask)
    return CondInst(CondInstConfig(**{**settings, "fcos": FCOSConfig(groups=2), **changes}))


def imported(release: str, state, network: nn.Module) -> tuple[dict, Report]:
    return fit(RELEASES[release].rename(state), network.state_dict(), RELEASES[release].allowed)


def assert_same(state, expected) -> None:
    assert state.keys() == expected.keys()
    assert [name for name, value in expected.items() if not torch.equal(state[name], value)] == []


# ------------------------------------------------------------------------------------------------ CrossVIS and CondInst


@pytest.mark.parametrize("keys, count", [
    pytest.param(releases.crossvis(), 397, id="CrossVIS R-50"),
    pytest.param(releases.crossvis(Sizes(blocks=R101)), 652, id="CrossVIS R-101"),
    pytest.param(releases.crossvis(Sizes(classes=80), embedding=False), 372, id="CondInst R-50"),
    pytest.param(releases.crossvis(Sizes(classes=80, blocks=R101), embedding=False), 627, id="CondInst R-101"),
])
def test_the_lists_have_as_many_entries_as_the_specification_says(keys, count):
    assert len({name for name, _, _ in keys}) == len(keys) == count


@pytest.mark.parametrize("config, identities, keys", [
    pytest.param(CrossVISConfig(), 3774, releases.crossvis(), id="CrossVIS R-50"),
    pytest.param(CrossVISConfig(backbone=ResNetConfig(blocks=R101)), 3774, releases.crossvis(Sizes(blocks=R101)),
                 id="CrossVIS R-101"),
    pytest.param(CondInstConfig(), None, releases.crossvis(Sizes(classes=80), embedding=False), id="CondInst R-50"),
])
def test_at_full_size_every_tensor_has_its_place_and_shape(config, identities, keys):
    with torch.device("meta"):
        network = (CrossVIS if isinstance(config, CrossVISConfig) else CondInst)(config, identities)
    state = {name: torch.zeros(()).expand(shape) for name, _, shape in keys}               # shapes without memory
    renamed = from_crossvis(state)
    own = network.state_dict()
    assert {n: t.shape for n, t in renamed.state.items()} == {n: t.shape for n, t in own.items()}
    assert renamed.unused.keys() == {"mask_head.sizes_of_interest", "mask_head._iter"}
    assert len(own) == len(keys) - 6                      # five scales are one vector here, and two entries are unused


def test_crossvis_there_and_in_every_tensor():
    keys = releases.crossvis(SMALL)
    state = filled(keys)
    ours, report = imported("crossvis", state, small_crossvis())
    assert_same(ours, by_our_names(keys, state))
    assert report.complete and not report.fresh and not report.filled
    assert len(report.used) == 391 and len(report.unused) == 2
    scales = tuple(f"proposal_generator.fcos_head.scales.{i}.scale" for i in range(5))
    assert report.used["fcos.scales"] == scales
    assert report.used["embedding.norm.running_var"] == ("proposal_generator.fcos_head.reid_pred_bn.running_var",)


def test_our_own_weights_under_released_names_come_back():
    network = small_crossvis()
    own = network.state_dict()
    theirs = {t: own["fcos.scales"][int(m[-2])].reshape(1) if m[-1] == "]" else own[m]
              for t, m, _ in releases.crossvis(SMALL) if m}                                       # fmt: skip
    assert len(theirs) == 395
    ours, report = imported("crossvis", theirs, small_crossvis())
    assert_same(ours, own)
    assert report.complete and not report.unused, "_iter and sizes_of_interest may be missing"


@pytest.mark.parametrize("without", [(), ("mask_head._iter",)], ids=["today's file", "of before 2021"])
def test_condinst(without):
    keys = releases.crossvis(SMALL, embedding=False)
    state = {name: value for name, value in filled(keys).items() if name not in without}
    ours, report = imported("adelaidet-condinst", state, small_condinst())
    assert_same(ours, by_our_names(keys, state))
    assert report.complete and not report.fresh and len(report.unused) == 2 - len(without)


TOWER = [f"embedding.tower.{i + k}.{t}" for i in (0, 3, 6, 9) for k in (0, 1) for t in ("weight", "bias")]
ID_NORM = [f"embedding.norm.{t}" for t in (*releases.BN4, COUNTER)]
TWENTY_SEVEN = {
    *TOWER, *ID_NORM, "embedding.project.weight", "embedding.project.bias",
    "proxies.proxies.weight", "proxies.proxies.bias", "fcos.class_logits.weight", "fcos.class_logits.bias",
}  # fmt: skip


@pytest.mark.parametrize("classes, fresh", [
    pytest.param(80, TWENTY_SEVEN, id="80 classes there, 3 here"),
    pytest.param(3, TWENTY_SEVEN - {"fcos.class_logits.weight", "fcos.class_logits.bias"}, id="as many classes"),
])
def test_condinst_into_crossvis_leaves_exactly_these_fresh(classes, fresh):
    assert len(TWENTY_SEVEN) == 27
    keys = releases.crossvis(replace(SMALL, classes=classes), embedding=False)
    state, network = filled(keys), small_crossvis()
    ours, report = imported("adelaidet-condinst", state, network)
    assert report.complete and set(report.fresh) == fresh
    expected = {name: value for name, value in by_our_names(keys, state).items() if name not in fresh}
    assert_same(ours, network.state_dict() | expected)
    unused = {f"proposal_generator.fcos_head.cls_logits.{t}" for t in ("weight", "bias")} if classes == 80 else set()
    assert set(report.unused) == {"mask_head._iter", "mask_head.sizes_of_interest"} | unused


def test_crossvis_into_condinst_leaves_the_embedding_behind():
    state = filled(releases.crossvis(SMALL))
    _, report = imported("crossvis", state, small_condinst())
    behind = {name for name in state if "reid" in name or name.startswith("cls.")}
    assert report.complete and len(behind) == 25
    assert set(report.unused) == behind | {"mask_head._iter", "mask_head.sizes_of_interest"}


def test_other_classes_and_identities_than_the_release():
    state, network = filled(releases.crossvis(SMALL)), CrossVIS(replace(SMALL_CONFIG, num_classes=5), 9)
    ours, report = imported("crossvis", state, network)
    assert report.complete
    assert set(report.fresh) == {f"{part}.{t}" for part in ("fcos.class_logits", "proxies.proxies")
                                 for t in ("weight", "bias")}                                      # fmt: skip
    assert ours["fcos.class_logits.weight"].shape[0] == 5 and ours["proxies.proxies.weight"].shape[0] == 9


def older(name: str) -> str:
    """6.3, rule 7, the other way round, for a trunk like torchvision's: stem names, blocks, shortcuts, pyramid."""
    if "fpn_lateral" in name:
        level = int(name.split("fpn_lateral")[1][0])
        return name.replace(f"fpn_lateral{level}", f"fpn_inner{level - 1}")
    if "fpn_output" in name:
        level = int(name.split("fpn_output")[1][0])
        return name.replace(f"fpn_output{level}", f"fpn_layer{level - 1}")
    name = name.replace("proposal_generator", "rpn").replace("bottom_up", "body")
    for stage in (2, 3, 4, 5):
        name = name.replace(f"res{stage}.", f"layer{stage - 1}.")
    for k in (1, 2, 3):
        name = name.replace(f"conv{k}.norm", f"bn{k}")
    return name.replace("shortcut.norm", "downsample.1").replace("shortcut", "downsample.0")


@pytest.mark.parametrize("prefix", ["", "module."])
def test_names_of_older_files(prefix):
    keys = releases.crossvis(SMALL)
    state = filled(keys)
    renamed = {prefix + older(name): value for name, value in state.items()}
    assert prefix + "backbone.body.layer3.0.downsample.1.running_var" in renamed
    assert prefix + "rpn.fcos_head.cls_tower.0.weight" in renamed and prefix + "backbone.fpn_inner4.bias" in renamed
    ours, report = imported("crossvis", renamed, small_crossvis())
    assert report.complete
    assert_same(ours, by_our_names(keys, state))


def test_the_file_tells_its_divisors():
    state = filled(releases.crossvis(SMALL))
    assert from_crossvis(state).told == {"fcos.divisors": (64, 128, 256, 512, 1024)}
    assert SMALL_CONFIG.fcos.divisors == (64, 128, 256, 512, 1024)
    del state["mask_head.sizes_of_interest"]
    assert from_crossvis(state).told == {}


def test_an_auxiliary_semantic_head_is_left_out():
    state = filled(releases.crossvis(SMALL))
    state |= {"mask_branch.seg_head.0.0.weight": torch.zeros(2), "mask_branch.logits.weight": torch.zeros(2)}
    _, report = imported("crossvis", state, small_crossvis())
    assert report.complete and "auxiliary" in report.unused["mask_branch.logits.weight"]


def test_crossvis_lite():
    widths = (4, 4, 6, 8, 10, 12)
    keys = [*releases.dla34("backbone.bottom_up.", widths), *releases.pyramid(SMALL, widths[3:]),
            *releases.heads(SMALL, 3, embedding=True)]                                             # fmt: skip
    state = filled(keys)
    lite = {"backbone": DLAConfig(widths=widths), "fcos": FCOSConfig(groups=2, size_bounds=(64, 128))}
    ours, report = imported("crossvis", state, small_crossvis(**lite))
    assert report.complete and not report.fresh
    assert_same(ours, by_our_names(keys, state))


# ------------------------------------------------------------------------------------------------------ what is refused


def without(name: str):
    return lambda state: {key: value for key, value in state.items() if key != name}


def with_(name: str, value: torch.Tensor):
    return lambda state: {**state, name: value}


HEAD = "proposal_generator.fcos_head"


@pytest.mark.parametrize("change, missing, faulty", [
    pytest.param(lambda state: {}, 391 - 2 - 8, {}, id="empty file: all but proxies and counters"),
    pytest.param(without("backbone.bottom_up.res4.5.conv2.weight"), 1, {}, id="a convolution missing"),
    pytest.param(without("backbone.bottom_up.stem.conv1.norm.running_mean"), 1, {}, id="a statistic missing"),
    pytest.param(without(f"{HEAD}.reid_pred.bias"), 1, {}, id="part of the embedding missing"),
    pytest.param(without(f"{HEAD}.scales.2.scale"), 1, {}, id="one of five scales missing"),
    pytest.param(without(f"{HEAD}.scales.4.scale"), 0,
                 {"fcos.scales": "(4,) in the file, (5,) here"}, id="the last of five scales missing"),
    pytest.param(with_(f"{HEAD}.scales.1.scale", torch.ones(2)), 1, {}, id="a scale of two numbers"),
    pytest.param(with_("controller.weight", torch.zeros(168, 8, 3, 3)), 0,
                 {"controller.weight": "(168, 8, 3, 3) in the file, (169, 8, 3, 3) here"}, id="another shape"),
    pytest.param(with_(f"{HEAD}.reid_pred_bn.bias", torch.zeros(9)), 0,
                 {"embedding.norm.bias": "(9,) in the file, (5,) here"}, id="another embedding"),
    pytest.param(with_(f"{HEAD}.ctrness.bias", torch.tensor([float("nan")])), 0,
                 {"fcos.centerness.bias": "has values that are not finite"}, id="not a number"),
    pytest.param(with_("controller.bias", torch.zeros(169, dtype=torch.int64)), 0,
                 {"controller.bias": "int64 in the file, float32 here"}, id="whole numbers"),
])  # fmt: skip
def test_files_that_do_not_fill_the_network(change, missing, faulty):
    _, report = imported("crossvis", change(filled(releases.crossvis(SMALL))), small_crossvis())
    assert not report.complete
    assert len(report.missing) == missing and report.faulty == faulty


def test_the_missing_one_is_named():
    state = without("backbone.bottom_up.res4.5.conv2.weight")(filled(releases.crossvis(SMALL)))
    assert imported("crossvis", state, small_crossvis())[1].missing == ("backbone.res4.5.conv2.conv.weight",)


def test_condinst_as_crossvis_lacks_the_embedding():
    _, report = imported("crossvis", filled(releases.crossvis(SMALL, embedding=False)), small_crossvis())
    assert set(report.missing) == {*TOWER, *ID_NORM[:4], "embedding.project.weight", "embedding.project.bias"}


def test_unknown_names_are_told():
    state = with_("backbone.bottom_up.res6.0.conv1.weight", torch.zeros(1))(filled(releases.crossvis(SMALL)))
    _, report = imported("crossvis", state, small_crossvis())
    assert report.complete and "no part of this release" in report.unused["backbone.bottom_up.res6.0.conv1.weight"]


def test_two_names_for_one_tensor():
    state = with_("backbone.bottom_up.layer1.0.conv1.weight", torch.zeros(1))(filled(releases.crossvis(SMALL)))
    with pytest.raises(ValueError, match="backbone.bottom_up.layer1.0.conv1.weight both mean backbone.res2.0.conv1"):
        from_crossvis(state)


def test_bifpn_variants_do_not_map():
    with pytest.raises(ValueError, match="BiFPN, which no network here has"):
        from_crossvis({"backbone.repeated_bifpn.0.x.weight": torch.zeros(1)})


# -------------------------------------------------------------------------------------------------- ImageNet backbones


def backbone_of(state) -> dict:
    return {name: value for name, value in state.items() if name.startswith("backbone.")}


@pytest.mark.parametrize("spelling", ["Caffe2", "detectron2"])
def test_detectron2_imagenet(spelling):
    keys = releases.caffe(SMALL)
    if spelling == "detectron2":
        keys = [key for key in releases.resnet(SMALL) if "running" not in key[0]]
    state, network = filled(keys), small_crossvis()
    ours, report = imported("detectron2-imagenet", state, network)
    assert report.complete and len(report.used) == 53 * 3 and len(report.filled) == 53 * 2
    expected = by_our_names(keys, state)
    for name in report.filled:
        expected[name] = torch.full_like(ours[name], 0 if name.endswith("mean") else 1 - 1e-5)
    assert_same(ours, network.state_dict() | expected)
    assert len(expected) == 53 * 5 == len(backbone_of(ours))
    assert set(report.fresh) == ours.keys() - expected.keys()
    assert set(report.unused) == {name for name in state if name.startswith("fc1000")}


def test_caffe_names_of_the_specification():
    state = filled(releases.caffe(SMALL))
    ours, _ = imported("detectron2-imagenet", state, small_crossvis())
    for theirs, mine in {
        "conv1_w": "backbone.stem.conv.weight",
        "res_conv1_bn_s": "backbone.stem.norm.weight",
        "res_conv1_bn_b": "backbone.stem.norm.bias",
        "res2_0_branch2a_w": "backbone.res2.0.conv1.conv.weight",
        "res4_5_branch2c_bn_b": "backbone.res4.5.conv3.norm.bias",
        "res5_0_branch1_bn_s": "backbone.res5.0.shortcut.norm.weight",
    }.items():
        assert torch.equal(ours[mine], state[theirs])


def test_caffe_norms_then_do_what_caffe_does():
    """y = s x + b: the filled-in statistics change nothing."""
    state, network = filled(releases.caffe(SMALL)), small_crossvis()
    network.load_state_dict(imported("detectron2-imagenet", state, network)[0])
    x = torch.randn(2, SMALL.stem, 3, 3)
    expected = x * state["res_conv1_bn_s"][:, None, None] + state["res_conv1_bn_b"][:, None, None]
    assert torch.allclose(network.backbone.stem.norm(x), expected, rtol=1e-5, atol=1e-6)


def test_statistics_in_the_file_are_used_and_then_none_may_be_missing():
    keys = list(releases.resnet(SMALL))
    state = filled(keys)
    ours, report = imported("detectron2-imagenet", state, small_crossvis())
    assert report.complete and not report.filled
    assert_same(backbone_of(ours), by_our_names(keys, state))
    del state["res3.1.conv2.norm.running_var"]
    assert imported("detectron2-imagenet", state, small_crossvis())[1].missing == (
        "backbone.res3.1.conv2.norm.running_var",)


@pytest.mark.parametrize("norm, counters", [("frozen", False), ("batch", True), ("frozen_statistics", True)])
def test_torchvision(norm, counters):
    keys = releases.torchvision(SMALL)
    state, network = filled(keys), small_crossvis(backbone=replace(RESNET, norm=norm, stride_in="3x3"))
    ours, report = imported("torchvision", state, network)
    expected = {n: v for n, v in by_our_names(keys, state).items() if counters or not n.endswith(COUNTER)}
    assert report.complete
    assert_same(backbone_of(ours), expected)
    assert {"fc.weight", "fc.bias"} <= report.unused.keys()
    assert ("bn1.num_batches_tracked" in report.unused) is not counters


def test_files_from_before_counters():
    keys = [key for key in releases.torchvision(SMALL) if not key[0].endswith(COUNTER)]
    state, network = filled(keys), small_crossvis(backbone=replace(RESNET, norm="batch", stride_in="3x3"))
    ours, report = imported("torchvision", state, network)
    assert report.complete and len(report.filled) == 53
    assert all(name.endswith(COUNTER) and ours[name] == 0 for name in report.filled)


WIDTHS = (4, 4, 6, 8, 10, 12)


@pytest.mark.parametrize("leave_out, fresh", [
    pytest.param("nothing", 0, id="as public files are"),
    pytest.param("level3.project", 6, id="without a projection that nothing reads"),
])
def test_dla34_imagenet(leave_out, fresh):
    keys = [key for key in releases.dla34(widths=WIDTHS) if not key[0].startswith(leave_out)]
    state = filled(keys) | {"fc.weight": torch.zeros(10, 12, 1, 1), "fc.bias": torch.zeros(10)}
    lite = small_crossvis(backbone=DLAConfig(widths=WIDTHS), fcos=FCOSConfig(groups=2, size_bounds=(64, 128)))
    ours, report = imported("dla34-imagenet", state, lite)
    assert report.complete and set(report.unused) == {"fc.weight", "fc.bias"}
    stale = [name for name in report.fresh if name.startswith("backbone.")]
    assert len(stale) == fresh
    assert_same({n: v for n, v in backbone_of(ours).items() if n not in stale}, by_our_names(keys, state))


def test_dla34_has_the_specifications_size():
    keys = releases.dla34()
    counted = sum(torch.Size(shape).numel() for name, _, shape in keys if "running" not in name and COUNTER not in name)
    assert counted == 15_270_832
    with torch.device("meta"):
        own = {f"backbone.{name}": value.shape for name, value in DLA(DLAConfig()).state_dict().items()}
    assert own == {mine: torch.Size(shape) for _, mine, shape in keys}


# ------------------------------------------------------------------------------------------------------ MaskTrack R-CNN


def small_masktrack(**changes) -> MaskTrackRCNN:
    backbone = replace(MaskTrackConfig().backbone, stem_channels=SMALL.stem, mid_channels=SMALL.mid)
    settings = dict(num_classes=SMALL.classes, backbone=backbone, channels=SMALL.channels, hidden=10)
    return MaskTrackRCNN(MaskTrackConfig(**{**settings, **changes}))


def test_masktrack_rcnn():
    keys = releases.masktrack(SMALL, hidden=10)
    state, network = filled(keys), small_masktrack()
    ours, report = imported("masktrack-rcnn", state, network)
    assert report.complete and not report.fresh and not report.unused and not report.filled
    assert_same(ours, by_our_names(keys, state))
    own = network.state_dict()
    back = {theirs: own[mine] for theirs, mine, _ in keys}
    assert_same(imported("masktrack-rcnn", back, small_masktrack())[0], own)


def test_masktrack_rcnn_at_full_size():
    with torch.device("meta"):
        own = MaskTrackRCNN(MaskTrackConfig()).state_dict()
    keys = releases.masktrack()
    assert {mine: torch.Size(shape) for _, mine, shape in keys} == {name: value.shape for name, value in own.items()}
    counted = sum(torch.Size(shape).numel() for name, _, shape in keys if "running" not in name and COUNTER not in name)
    assert counted == 58_081_093                                                           # specification 5.2


def test_hidden_layers_read_regions_channel_first():
    """6.4: fc weights over 256 x 7 x 7, flattened channel first, give what the release computes."""
    keys = releases.masktrack(SMALL, hidden=10)
    state, network = filled(keys), small_masktrack()
    network.load_state_dict(imported("masktrack-rcnn", state, network)[0])
    regions = torch.randn(2, SMALL.channels, 7, 7)
    weight = state["track_head.fcs.0.weight"].reshape(10, SMALL.channels, 7, 7)
    hidden = torch.einsum("nchw,ochw->no", regions, weight) + state["track_head.fcs.0.bias"]
    expected = F.relu(hidden) @ state["track_head.fcs.1.weight"].T + state["track_head.fcs.1.bias"]
    assert torch.allclose(network.track_head(regions), expected, rtol=1e-4, atol=1e-4)


# ------------------------------------------------------------------------------------------------------------ the parts


@pytest.mark.parametrize("keys, release", [
    pytest.param([], None, id="empty"),
    pytest.param([(name, None, (1,)) for name in ("a.weight", "conv1.weight", "b")], None, id="something else"),
    pytest.param(releases.crossvis(SMALL), "crossvis", id="CrossVIS"),
    pytest.param(releases.crossvis(SMALL, embedding=False), "adelaidet-condinst", id="CondInst"),
    pytest.param(releases.caffe(SMALL), "detectron2-imagenet", id="Caffe2"),
    pytest.param(list(releases.resnet(SMALL)), "detectron2-imagenet", id="detectron2"),
    pytest.param(releases.torchvision(SMALL), "torchvision", id="torchvision"),
    pytest.param(releases.dla34(widths=WIDTHS), "dla34-imagenet", id="DLA-34"),
    pytest.param(releases.masktrack(SMALL, hidden=4), "masktrack-rcnn", id="MaskTrack R-CNN"),
])
def test_guess(keys, release):
    assert guess(filled(keys)) == release


def test_every_name_is_accounted_for_once_and_nothing_is_changed():
    state, network = filled(releases.crossvis(SMALL)), CrossVIS(replace(SMALL_CONFIG, num_classes=5), 9)
    state = with_("extra", torch.zeros(1))(without("controller.bias")(state))
    before = {name: value.clone() for name, value in state.items()}
    ours, report = imported("crossvis", state, network)
    mine = [*report.used, *report.filled, *report.fresh, *report.missing, *report.faulty]
    assert sorted(mine) == sorted(network.state_dict())
    theirs = [*report.unused, *(name for names in report.used.values() for name in names)]
    assert sorted(theirs) == sorted(state)
    for value in ours.values():
        value.fill_(7)
    assert_same(state, before)                                      # copied, not shared


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64, torch.bfloat16])
def test_tensors_come_in_the_networks_type(dtype):
    own, theirs = {"a": torch.zeros(3)}, {"a": torch.tensor([0.5, 1.0, -2.0], dtype=dtype)}
    state, report = fit(Renamed(theirs, {"a": ("x",)}, {}), own, Allowance())
    assert report.used == {"a": ("x",)} and state["a"].dtype == torch.float32
    assert state["a"].tolist() == [0.5, 1.0, -2.0]


def test_rules_match_whole_names_and_the_first_counts():
    rules = ((r"a\.(\d)", r"x.\1"), (r"a\..*", "y"))
    renamed = rename(dict.fromkeys(["a.1", "a.12", "b.a.1"], torch.zeros(1)), rules, ((r"b\..*", "of b"),))
    assert renamed.sources == {"x.1": ("a.1",), "y": ("a.12",)} and renamed.unused == {"b.a.1": "of b"}


@pytest.mark.parametrize("ours", [
    pytest.param(MSRA, id="to BGR without scaling"),
    pytest.param(InputConfig(channel_order="rgb", mean=TORCHVISION.mean, std=(1, 2, 3)), id="another scale"),
    pytest.param(InputConfig(channel_order="bgr", mean=MSRA.mean, std=(57.375, 57.12, 58.395)), id="turned alone"),
    pytest.param(TORCHVISION, id="the same"),
])
def test_an_adapted_first_convolution_gives_the_same_from_other_pixels(ours):
    weight, rgb = torch.randn(4, 3, 7, 7, dtype=torch.float64), torch.rand(1, 3, 20, 22, dtype=torch.float64) * 255

    def seen(pixels: InputConfig) -> torch.Tensor:
        image = rgb if pixels.channel_order == "rgb" else rgb.flip(1)
        mean, std = (torch.tensor(v, dtype=torch.float64)[:, None, None] for v in (pixels.mean, pixels.std))
        return F.pad((image - mean) / std, (0, 10, 0, 12))                                # as batches are padded

    expected = F.conv2d(seen(TORCHVISION), weight, stride=2, padding=3)
    adapted = adapt_first_convolution(weight, TORCHVISION, ours)
    assert torch.allclose(F.conv2d(seen(ours), adapted, stride=2, padding=3), expected, rtol=1e-9, atol=1e-9)


def test_a_convolution_cannot_be_adapted_to_another_mean():
    with pytest.raises(ValueError, match="the means differ"):
        adapt_first_convolution(torch.zeros(1, 3, 1, 1), TORCHVISION, InputConfig(mean=(0.0, 0.0, 0.0)))
