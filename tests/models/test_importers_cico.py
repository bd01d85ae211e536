"""Checkpoints of CiCo, Yolact and Swin by the specification's own key list (its section 6), and 2D grown to 3D."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from models.cico import CiCo, CiCoConfig
from models.cico_masks import MaskForm
from models.importers import RELEASES, Report, fit, guess
from models.resnet import ResNetConfig
from models.swin import Swin, SwinConfig
from tests.models import releases
from tests.models.releases import Key, Sizes, affine, counter, filled, norm
from tests.models.small_cico import SMALL as CONFIG
from tests.models.small_cico import clip_images

SMALL = Sizes(blocks=(1, 1, 1, 1), stem=6, mid=2, channels=6, mask=5, dim=4, classes=3)
FULL = Sizes()
STILL = replace(CONFIG, clip_length=1, tracking=False, box_tower="2d", track_tower="2d", cls_tower="2d", cmh="2d")


# ------------------------------------------------------------------------------------------ the keys of section 6.1


def trunk(s: Sizes, layers: str) -> list[Key]:
    """backbone.conv1, backbone.bn1, backbone.layers.{0-3}.{i}..; fpn, deepest first."""
    keys = []
    for theirs, ours, shape in releases.torchvision(s, "backbone.", classifier=False):
        keys.append((re.sub(r"layer([1-4])\.", lambda f: f"{layers}.{int(f[1]) - 1}.", theirs), ours, shape))
    return keys


def pyramid(c: int, widths: tuple[int, ...]) -> list[Key]:
    keys: list[Key] = []
    for i, width in enumerate(reversed(widths)):
        keys += affine(f"fpn.lat_layers.{i}", f"fpn.lateral.{2 - i}", c, width, 1, 1)
        keys += affine(f"fpn.pred_layers.{i}", f"fpn.output.{2 - i}", c, c, 3, 3)
    for i, ours in enumerate(("p6", "p7")):
        keys += affine(f"fpn.downsample_layers.{i}", f"fpn.{ours}", c, c, 3, 3)
    return keys


def resnet_widths(s: Sizes) -> tuple[int, ...]:
    return tuple(4 * s.mid * 2**i for i in (1, 2, 3))


def yolact(s: Sizes = SMALL, prototypes: int = 4) -> list[Key]:
    """Original Yolact; `s.mask` is its width again."""
    c, keys = s.channels, trunk(s, "layers") + pyramid(s.channels, resnet_widths(s))
    for theirs, ours in ((0, "tower.0.0"), (2, "tower.1.0"), (4, "tower.2.0"), (8, "last.0")):
        inputs = c if theirs == 0 else s.mask
        keys += affine(f"proto_net.{theirs}", f"prototypes.{ours}", s.mask, inputs, 3, 3)
    keys += affine("proto_net.10", "prototypes.output", prototypes, s.mask, 1, 1)
    keys += affine("prediction_layers.0.upfeature.0", None, c, c, 3, 3)
    for name, width in (("bbox", 12), ("conf", 243), ("mask", 3 * prototypes)):
        keys += affine(f"prediction_layers.0.{name}_layer", None, width, c, 3, 3)
    return keys + list(affine("semantic_seg_conv", None, 80, c, 1, 1))


def cico(
    s: Sizes = SMALL, form: MaskForm = CONFIG.masks, frames: int = 3, convs: int = 2, still: bool = False,
    classes: int = 0, widths: tuple[int, ...] = (), prefix: str = "ProtoNet.", heads: str = "prediction_layers.",
) -> list[Key]:  # fmt: skip
    """The authors' files: pyramid, heads and mask head. `still`: the COCO form."""
    c, deep = s.channels, (3, 3) if still else (3, 3, 3)
    keys = pyramid(c, widths or resnet_widths(s))
    layers = {"bbox": ("boxes", 4 * frames), "centerness": ("centerness", 1),
              "conf": ("class_logits", classes or s.classes), "mask": ("mask_parameters", form.num_parameters)}
    towers = {"bbox": ("box_tower", deep), "conf": ("class_tower", (3, 3))}
    if not still:
        layers["track"], towers["track"] = ("embeddings", s.dim), ("track_tower", deep)
    for theirs, (ours, width) in layers.items():
        keys += affine(f"{heads}{theirs}_layer", f"clip_heads.{ours}", 3 * width, c, 3, 3)
    for theirs, (ours, kernel) in towers.items():
        for i in range(convs):
            keys += affine(f"{heads}{theirs}_extra.{2 * i}", f"clip_heads.{ours}.convs.{i}", c, c, *kernel)

    def normed(theirs: str, at: tuple[str, str], ours: str, *shape: int) -> None:
        keys.extend(affine(f"{prefix}{theirs}.{at[0]}", f"prototypes.{ours}.0", *shape))
        keys.extend(norm(f"{prefix}{theirs}.{at[1]}", f"prototypes.{ours}.1", shape[0]))
        keys.append(counter(f"{prefix}{theirs}.{at[1]}", f"prototypes.{ours}.1"))

    for i in range(3):
        normed(f"mask_refine.{i}", ("0", "1"), f"refine.{i}", c, c, 3, 3)
        normed("proto_net", (str(3 * i), str(3 * i + 1)), f"tower.{i}", s.mask, c if i == 0 else s.mask, *deep)
    normed("proto_conv", ("0", "1"), "last", s.mask, s.mask, 3, 3)
    return keys + list(affine(f"{prefix}proto_conv.3", "prototypes.output", form.prototypes, s.mask, 1, 1))


def swin(config: SwinConfig, prefix: str = "", norms: bool = False) -> list[Key]:
    """The original release; `norms`: of the stages read by a pyramid."""
    e, w, ratio = config.embed_dim, config.window, config.mlp_ratio
    keys = [*affine(f"{prefix}patch_embed.proj", "backbone.embed", e, 3, 4, 4),
            *affine(f"{prefix}patch_embed.norm", "backbone.embed_norm", e)]
    for i, (depth, heads) in enumerate(zip(config.depths, config.heads, strict=True)):
        c = e * 2**i
        for j in range(depth):
            at, ours = f"{prefix}layers.{i}.blocks.{j}", f"backbone.stages.{i}.{j}"
            keys += [*affine(f"{at}.norm1", f"{ours}.norm1", c), *affine(f"{at}.norm2", f"{ours}.norm2", c),
                     *affine(f"{at}.attn.qkv", f"{ours}.attention.qkv", 3 * c, c),
                     *affine(f"{at}.attn.proj", f"{ours}.attention.proj", c, c),
                     *affine(f"{at}.mlp.fc1", f"{ours}.expand", ratio * c, c),
                     *affine(f"{at}.mlp.fc2", f"{ours}.contract", c, ratio * c),
                     (f"{at}.attn.relative_position_bias_table", f"{ours}.attention.relative_bias",
                      ((2 * w - 1) ** 2, heads)),
                     (f"{at}.attn.relative_position_index", None, (w * w, w * w))]  # fmt: skip
            if j % 2:
                keys.append((f"{at}.attn_mask", None, (4, w * w, w * w)))
        if i < 3:
            keys += affine(f"{prefix}layers.{i}.downsample.norm", f"backbone.merges.{i}.norm", 4 * c)
            keys.append((f"{prefix}layers.{i}.downsample.reduction.weight", f"backbone.merges.{i}.reduction.weight",
                         (2 * c, 4 * c)))
        if norms and i:
            keys += affine(f"{prefix}norm{i}", f"backbone.norms.{i}", c)
    if not norms:
        keys += [*affine("norm", None, 8 * e), *affine("head", None, 10, 8 * e)]
    return keys


def torchvision_swin(config: SwinConfig) -> list[Key]:
    names = {r"^patch_embed\.proj": "features.0.0", r"^patch_embed\.norm": "features.0.2",
             r"^layers\.(\d)\.blocks": lambda f: f"features.{2 * int(f[1]) + 1}",
             r"^layers\.(\d)\.downsample": lambda f: f"features.{2 * int(f[1]) + 2}",
             r"mlp\.fc1": "mlp.0", r"mlp\.fc2": "mlp.3"}  # fmt: skip
    keys = []
    for theirs, ours, shape in swin(config):
        for pattern, spelling in names.items():
            theirs = re.sub(pattern, spelling, theirs)
        if "attn_mask" not in theirs:
            keys.append((theirs, ours, shape))
    return keys


def imported(release: str, state: dict[str, Tensor], network: torch.nn.Module) -> tuple[dict[str, Tensor], Report]:
    """As `maskstream weights import` does."""
    chosen, own = RELEASES[release], network.state_dict()
    return fit(chosen.adapt(chosen.rename(state), own), own, chosen.allowed)


# ------------------------------------------------------------------------------------------ CiCo


R50 = ResNetConfig(stride_in="3x3", norm="batch", frozen_stages=0)
GAUSS = MaskForm(kind="condinst", prototypes=8, rel_coord="gauss1")


@pytest.mark.parametrize("config, sizes, form", [
    pytest.param(CiCoConfig(backbone=R50), FULL, MaskForm(), id="yolact r50"),
    pytest.param(CiCoConfig(backbone=replace(R50, blocks=(3, 4, 23, 3)), masks=GAUSS),
                 replace(FULL, blocks=releases.R101), GAUSS, id="condinst r101"),
])  # fmt: skip
def test_at_full_size_every_tensor_has_its_place_and_shape(config, sizes, form):
    with torch.device("meta"):
        own = CiCo(config).state_dict()
    sizes = replace(sizes, mask=256, dim=64)
    keys = trunk(sizes, "layer") + cico(sizes, form, convs=4)
    shapes = {name: shape for name, _, shape in keys}
    assert shapes["prediction_layers.bbox_layer.weight"] == (36, 256, 3, 3)
    assert shapes["prediction_layers.mask_layer.bias"] == ((96,) if form.kind == "yolact" else (483,))
    with torch.device("meta"):
        renamed = RELEASES["cico"].rename({name: torch.zeros(shape) for name, shape in shapes.items()})
    assert {n: t.shape for n, t in renamed.state.items()} == {n: t.shape for n, t in own.items()}
    assert not renamed.unused


@pytest.mark.parametrize("options, prefix", [
    ({}, ""), ({}, "module."), ({"heads": "prediction_layers.0."}, ""), ({"prefix": ""}, ""),
], ids=["as saved", "module.", "prediction_layers.0.", "without ProtoNet."])  # fmt: skip
def test_there_and_in_every_tensor(options, prefix):
    keys = [(prefix + theirs, ours, shape) for theirs, ours, shape in trunk(SMALL, "layer") + cico(**options)]
    state, network = filled(keys), CiCo(CONFIG)
    ours, report = imported("cico", state, network)
    assert report.complete and not report.fresh and not report.filled and not report.unused
    assert set(ours) == set(network.state_dict())
    assert [mine for theirs, mine, _ in keys if not torch.equal(ours[mine], state[theirs])] == []
    network.load_state_dict(ours)


def test_a_swin_in_the_trunk():
    backbone = SwinConfig(embed_dim=4, depths=(1, 2, 1, 1), heads=(1, 1, 2, 2))
    keys = swin(backbone, "backbone.", norms=True) + cico(widths=(8, 16, 32))
    ours, report = imported("cico", filled(keys), CiCo(replace(CONFIG, backbone=backbone)))
    assert report.complete and set(report.fresh) == {"backbone.norms.0.weight", "backbone.norms.0.bias"}
    assert all("attn_mask" in name or "relative_position_index" in name for name in report.unused)


def test_an_axis_of_time_of_length_1_goes():
    state = filled(trunk(SMALL, "layer") + cico())
    deep = {n: x[:, :, None] if re.search(r"_layer\.weight|proto_conv\.\d\.weight", n) and x.dim() == 4 else x
            for n, x in state.items()}
    assert sum(x.dim() == 5 for x in deep.values()) > sum(x.dim() == 5 for x in state.values())
    flat, whole = (imported("cico", s, CiCo(CONFIG))[0] for s in (deep, state))
    assert all(torch.equal(flat[name], whole[name]) for name in whole)


@pytest.mark.parametrize("form, told", [
    (MaskForm(prototypes=4), {"masks.kind": "yolact", "masks.prototypes": 4}),
    (GAUSS, {"masks.kind": "condinst", "masks.prototypes": 8, "masks.rel_coord": "gauss1"}),
    (replace(GAUSS, rel_coord="offset2"),
     {"masks.kind": "condinst", "masks.prototypes": 8, "masks.rel_coord": "offset2"}),
], ids=["yolact", "161", "169"])  # fmt: skip
def test_the_file_tells_its_masks(form, told):
    assert RELEASES["cico"].rename(filled(cico(form=form))).told == told


def test_the_number_of_mask_parameters_must_be_the_networks():
    keys = trunk(SMALL, "layer") + cico(form=replace(GAUSS, prototypes=3))
    network = CiCo(replace(CONFIG, masks=MaskForm(kind="condinst", prototypes=3)))
    _, report = imported("cico", filled(keys), network)
    assert set(report.faulty) == {"clip_heads.mask_parameters.weight", "clip_heads.mask_parameters.bias"}
    assert "(363,) in the file, (387,) here" in report.faulty["clip_heads.mask_parameters.bias"]


def test_other_classes_start_fresh():
    _, report = imported("cico", filled(trunk(SMALL, "layer") + cico(classes=4)), CiCo(CONFIG))
    assert report.complete and set(report.fresh) == {"clip_heads.class_logits.weight", "clip_heads.class_logits.bias"}


def test_red_and_blue_are_swapped_in_the_release():
    theirs, ours = RELEASES["cico"].pixels, CiCoConfig().input
    assert theirs.channel_order == ours.channel_order == "rgb"
    assert theirs.mean == ours.mean[::-1] and theirs.std == ours.std[::-1] != ours.std


# ------------------------------------------------------------------------------------------ stills grow to clips


def test_a_coco_start():
    keys = trunk(SMALL, "layer") + cico(frames=1, still=True, classes=80)
    state, network = filled(keys), CiCo(CONFIG)
    ours, report = imported("cico-coco", state, network)
    assert report.complete
    fresh = ("clip_heads.class_logits.", "clip_heads.track_tower.", "clip_heads.embeddings.")
    assert set(report.fresh) == {name for name in network.state_dict() if name.startswith(fresh)}
    assert report.unused == dict.fromkeys(
        (f"prediction_layers.conf_layer.{t}" for t in ("weight", "bias")), "of other classes, or of no tracks")
    tower, mask = state["prediction_layers.bbox_extra.2.weight"], state["ProtoNet.proto_net.3.weight"]
    for t in range(3):
        assert torch.allclose(ours["clip_heads.box_tower.convs.1.weight"][:, :, t], tower / 3)
        assert torch.allclose(ours["prototypes.tower.1.0.weight"][:, :, t], mask * (0.125, 0.75, 0.125)[t])
    boxes, new = state["prediction_layers.bbox_layer.weight"], ours["clip_heads.boxes.weight"]
    for a in range(3):
        for t in range(3):
            for c in range(4):
                assert torch.equal(new[a * 12 + t * 4 + c], boxes[a * 4 + c])
    assert torch.equal(ours["clip_heads.boxes.bias"][12:16], state["prediction_layers.bbox_layer.bias"][4:8])
    network.load_state_dict(ours)


@torch.no_grad()
def test_a_clip_of_one_still_looks_in_its_middle_as_the_still():
    """Where all frames are equal, kernels whose taps sum to 1 see what the 2D ones saw; far enough from the ends."""
    frames = 9
    keys = trunk(SMALL, "layer") + cico(frames=1, still=True)
    state = {n: x * 0.1 if x.dim() > 1 else x.abs() + 0.5 if "running_var" in n else x for n, x in filled(keys).items()}
    still, clip = CiCo(STILL).eval(), CiCo(replace(CONFIG, clip_length=frames)).eval()
    for network, release in ((still, "cico-coco"), (clip, "cico-coco")):
        network.load_state_dict(imported(release, state, network)[0])
    image = clip_images(1, 1)
    alone = still.heads(still.features(image))
    many = clip.heads(clip.features(image.expand(frames, -1, -1, -1)))
    middle = frames // 2
    for name in ("centerness", "parameters"):
        a, b = getattr(alone.tubes, name)[:, 0], getattr(many.tubes, name)[:, middle]
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-4 * float(a.abs().max())), name
    for t in range(frames):
        a, b = alone.tubes.deltas[:, 0, :, 0], many.tubes.deltas[:, middle, :, t]
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-4 * float(a.abs().max()))
    a, b = alone.prototypes[..., 0, :], many.prototypes[..., middle, :]
    assert a.any() and torch.allclose(a, b, rtol=1e-4, atol=1e-4 * float(a.max()))


# ------------------------------------------------------------------------------------------ Yolact


def test_what_yolact_gives():
    keys = yolact()
    state, network = filled(keys), CiCo(CONFIG)
    ours, report = imported("yolact", state, network)
    assert report.complete
    for theirs, mine, _ in keys:
        if mine and not mine.startswith("prototypes.tower") and not mine.endswith("num_batches_tracked"):
            assert torch.equal(ours[mine], state[theirs]), mine
    assert torch.allclose(ours["prototypes.tower.0.0.weight"][:, :, 1], state["proto_net.0.weight"] * 0.75)
    assert set(report.unused) == {theirs for theirs, mine, _ in keys if mine is None}
    assert "square anchors" in report.unused["prediction_layers.0.bbox_layer.weight"]
    fresh = {name.split(".")[0] + "." + name.split(".")[1] for name in report.fresh}
    assert fresh == {f"clip_heads.{n}" for n in ("box_tower", "class_tower", "track_tower", "boxes", "centerness",
                     "class_logits", "mask_parameters", "embeddings")} | {
        "prototypes.refine", "prototypes.tower", "prototypes.last"}  # fmt: skip
    norms = [name for name in report.fresh if name.startswith(("prototypes.tower", "prototypes.last"))]
    assert all(".1." in name for name in norms)
    assert torch.equal(ours["prototypes.last.1.weight"], torch.ones(5)), "as identities"


def test_old_files_hold_the_backbone_twice():
    keys = yolact()
    copies = [(name.replace("backbone.layers.", "backbone.layer."), None, shape) for name, _, shape in keys
              if name.startswith("backbone.layers.")]  # fmt: skip
    state = filled(copies + keys)
    ours, report = imported("yolact", state, CiCo(CONFIG))
    assert report.complete
    assert all(report.unused[name] == "a second copy of backbone.layers" for name, _, _ in copies)
    assert torch.equal(ours["backbone.res3.0.conv1.conv.weight"], state["backbone.layers.1.0.conv1.weight"])


def test_another_number_of_prototypes_starts_fresh():
    _, report = imported("yolact", filled(yolact(prototypes=32)), CiCo(CONFIG))
    assert report.complete and "prototypes.output.weight" in report.fresh


# ------------------------------------------------------------------------------------------ Swin


SWIN = SwinConfig(embed_dim=4, depths=(1, 2, 1, 1), heads=(1, 1, 2, 2))


@pytest.mark.parametrize("keys", [swin(SWIN), torchvision_swin(SWIN)], ids=["original", "torchvision"])
def test_swin_of_imagenet(keys):
    network = CiCo(replace(CONFIG, backbone=SWIN))
    state = filled(keys)
    ours, report = imported("swin-imagenet", state, network)
    assert report.complete and set(report.unused) == {theirs for theirs, mine, _ in keys if mine is None}
    assert [mine for theirs, mine, _ in keys if mine and not torch.equal(ours[mine], state[theirs])] == []
    left = {name for name in network.state_dict() if name.startswith("backbone.") and name in report.fresh}
    assert left == {f"backbone.norms.{i}.{t}" for i in range(4) for t in ("weight", "bias")}


def test_swin_tiny_has_all_its_places():
    with torch.device("meta"):
        own = {f"backbone.{n}": x.shape for n, x in Swin(SwinConfig()).state_dict().items()}
        renamed = RELEASES["swin-imagenet"].rename({n: torch.zeros(shape) for n, _, shape in swin(SwinConfig())})
    found = {n: x.shape for n, x in renamed.state.items()}
    assert found == {n: shape for n, shape in own.items() if "norms." not in n}


# ------------------------------------------------------------------------------------------ which is which


@pytest.mark.parametrize("keys, name", [
    (yolact(), "yolact"), (trunk(SMALL, "layer") + cico(), "cico"),
    (trunk(SMALL, "layer") + cico(frames=1, still=True, classes=80), "cico-coco"),
    (swin(SWIN), "swin-imagenet"), (torchvision_swin(SWIN), "swin-imagenet"),
    (releases.torchvision(SMALL), "torchvision"), (releases.crossvis(releases.SMALL), "crossvis"),
], ids=["yolact", "cico", "cico-coco", "swin", "torchvision's swin", "torchvision", "crossvis"])  # fmt: skip
def test_names_tell_the_release(keys, name):
    assert guess(filled(keys)) == name
