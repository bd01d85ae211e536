"""`maskstream weights`: files of releases in, weights of ours out, or one error and no file."""

from __future__ import annotations

import hashlib
import io
import json
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import yaml
from rich.console import Console
from safetensors.torch import save_file

from models.crossvis import CrossVIS
from operators.class_names import CLASS_NAMES
from operators.errors import CheckpointError, ConfigError
from operators.weights import read_weights, save_weights, start_from
from pipelines.cli import main
from pipelines.networks import load_network, read_checkpoint, read_network
from pipelines.weights import import_release, part_sizes, save_import
from pipelines.weights_show import grouped, print_import, print_saved, print_weights
from tests.models import releases
from tests.models.releases import by_our_names, filled

SMALL = replace(releases.SMALL, blocks=(1, 2, 1, 1))
"""Fewer blocks than R-50: 20 convolutions with their norms for 53, and so 165 tensors less."""
CPU = torch.device("cpu")
WIDTHS = [4, 4, 6, 8, 10, 12]
TRUNK = {"blocks": list(SMALL.blocks), "stem_channels": SMALL.stem, "mid_channels": SMALL.mid}
PARTS = {"num_classes": SMALL.classes, "channels": SMALL.channels, "mask_channels": SMALL.mask}
CROSSVIS = {**PARTS, "backbone": TRUNK, "fcos": {"groups": 2}, "embedding_dim": SMALL.dim}
RGB = {"channel_order": "rgb", "mean": [123.675, 116.28, 103.53], "std": [58.395, 57.12, 57.375]}
TORCH_STYLE = {**CROSSVIS, "backbone": {**TRUNK, "stride_in": "3x3"}, "input": RGB}
LITE = {**CROSSVIS, "backbone": {"name": "dla34", "widths": WIDTHS}, "fcos": {"groups": 2, "size_bounds": [64, 128]}}
MASKTRACK = {"num_classes": SMALL.classes, "channels": SMALL.channels, "hidden": 10,
             "backbone": {**TRUNK, "stride_in": "3x3", "norm": "frozen_statistics"}}                  # fmt: skip


def settings(folder: Path, model: dict, network: str = "crossvis", **more) -> Path:
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump({"network": network, "model": model, **more}))
    return path


def torch_file(folder: Path, keys, container: str | None = "model") -> Path:
    path = folder / "released.pth"
    state = filled(keys)
    torch.save({container: state, "iteration": 1} if container else state, path)
    return path


def names_file(folder: Path, count: int = SMALL.classes) -> str:
    path = folder / "names.txt"
    path.write_text("".join(f"class {i}\n" for i in range(count)) + "\n", encoding="utf-8")
    return str(path)


def brought(folder: Path, source: Path, release: str, network: Path, **more) -> Path:
    """Imported and saved; where the weights are."""
    out = folder / "out" / "weights.safetensors"
    save_import(import_release(source, release, str(network), more.pop("adapt_input", False)), out, **more)
    return out


# ---------------------------------------------------------------------------------------------------- what is written


@pytest.mark.parametrize("suffix, container", [
    pytest.param(".pth", "model", id="pth, under model"),
    pytest.param(".pt", None, id="pt, bare"),
    pytest.param(".bin", "state_dict", id="bin, under state_dict"),
])
@pytest.mark.parametrize("values", ["tensors", "arrays"])
def test_crossvis_file_to_file(tmp_path, suffix, container, values):
    keys = releases.crossvis(SMALL)
    state = filled(keys)
    content = {name: value.numpy() for name, value in state.items()} if values == "arrays" else state
    source = tmp_path / f"released{suffix}"
    torch.save({container: content, "iteration": 1} if container else content, source)
    out = brought(tmp_path, source, "crossvis", settings(tmp_path, CROSSVIS), classes=names_file(tmp_path))
    read = read_weights(out)
    expected = {name: v for name, v in by_our_names(keys, state).items() if not name.startswith("proxies.")}
    assert read.state.keys() == expected.keys() and len(expected) == 389 - 165
    assert all(torch.equal(read.state[name], value) for name, value in expected.items())
    assert read.network == "crossvis" and read.classes == ("class 0", "class 1", "class 2")
    assert read.metadata["release"] == "crossvis" and read.metadata["source"] == source.name
    assert read.metadata["source_sha256"] == hashlib.sha256(source.read_bytes()).hexdigest()
    assert "fresh" not in read.metadata


def test_what_was_imported_runs_as_the_network_of_its_settings(tmp_path):
    keys = releases.crossvis(SMALL)
    source, network = torch_file(tmp_path, keys), settings(tmp_path, CROSSVIS)
    out = brought(tmp_path, source, "crossvis", network, classes=names_file(tmp_path))
    loaded = load_network(read_network(settings(tmp_path, CROSSVIS, weights=str(out))), CPU)
    scales = torch.cat([filled(keys)[f"proposal_generator.fcos_head.scales.{i}.scale"] for i in range(5)])
    assert torch.equal(loaded.fcos.scales, scales) and loaded.proxies is None


def test_proxies_are_kept_where_asked_for(tmp_path):
    keys = releases.crossvis(SMALL)
    source, network = torch_file(tmp_path, keys), settings(tmp_path, CROSSVIS)
    out = brought(tmp_path, source, "crossvis", network, classes=names_file(tmp_path), keep_proxies=True)
    state = read_weights(out).state
    assert len(state) == 391 - 165 and torch.equal(state["proxies.proxies.weight"], filled(keys)["cls.weight"])
    assert load_network(read_network(settings(tmp_path, CROSSVIS, weights=str(out))), CPU).proxies is None


def test_proxies_of_other_identities_than_the_release_are_read(tmp_path):
    keys = releases.crossvis(replace(SMALL, identities=31))
    done = import_release(torch_file(tmp_path, keys), "crossvis", str(settings(tmp_path, CROSSVIS)))
    assert done.report.complete and not done.report.fresh and len(done.state["proxies.proxies.bias"]) == 31


@pytest.mark.parametrize("release, keys, model, network", [
    pytest.param("masktrack-rcnn", releases.masktrack(SMALL, 10), MASKTRACK, "masktrack_rcnn", id="MaskTrack R-CNN"),
    pytest.param("adelaidet-condinst", releases.crossvis(SMALL, embedding=False),
                 {**PARTS, "backbone": TRUNK, "fcos": {"groups": 2}}, "condinst", id="CondInst"),
])
def test_other_whole_networks_are_ready_to_run(tmp_path, release, keys, model, network):
    source, file = torch_file(tmp_path, keys, "state_dict"), settings(tmp_path, model, network)
    out = brought(tmp_path, source, release, file, classes=names_file(tmp_path))
    spec = read_network(settings(tmp_path, model, network, weights=str(out)))
    loaded, expected = load_network(spec, CPU).state_dict(), by_our_names(keys, filled(keys))
    assert all(torch.equal(loaded[name], value) for name, value in expected.items())


# --------------------------------------------------------------------------------------------- weights with fresh parts


def test_condinst_into_crossvis_starts_training_and_does_not_run(tmp_path):
    keys = releases.crossvis(replace(SMALL, classes=80), embedding=False)
    source, network = torch_file(tmp_path, keys), settings(tmp_path, CROSSVIS)
    out = brought(tmp_path, source, "adelaidet-condinst", network)
    read = read_weights(out)
    assert read.classes == (), "class scores are fresh: training names its own"
    fresh = json.loads(read.metadata["fresh"])
    assert len(fresh) == 25 and all(name.startswith(("embedding.", "fcos.class_logits.")) for name in fresh)
    spec = read_network(settings(tmp_path, CROSSVIS, weights=str(out)))
    with pytest.raises(CheckpointError, match="for training alone: fcos.class_logits.weight, .* and 22 more"):
        read_checkpoint(spec)
    with pytest.raises(CheckpointError, match="for training alone"):
        load_network(spec, CPU)
    begun = CrossVIS(spec.config, num_identities=9)
    start_from(begun, read.state, str(out))
    assert torch.equal(begun.controller.weight, filled(keys)["controller.weight"])


@pytest.mark.parametrize("release, keys, model", [
    pytest.param("detectron2-imagenet", list(releases.resnet(SMALL)), CROSSVIS, id="detectron2"),
    pytest.param("torchvision", releases.torchvision(SMALL), TORCH_STYLE, id="torchvision"),
    pytest.param("dla34-imagenet", releases.dla34(widths=WIDTHS), {**LITE, "input": RGB}, id="DLA-34"),
])
def test_backbones_alone(tmp_path, release, keys, model):
    out = brought(tmp_path, torch_file(tmp_path, keys, None), release, settings(tmp_path, model))
    read = read_weights(out)
    expected = by_our_names(keys, filled(keys))
    of_backbone = {name: value for name, value in read.state.items() if name.startswith("backbone.")}
    assert of_backbone and all(torch.equal(value, expected[name]) for name, value in of_backbone.items())
    fresh = set(json.loads(read.metadata["fresh"]))
    assert fresh == read.state.keys() - of_backbone.keys()
    again = brought(tmp_path, tmp_path / "released.pth", release, settings(tmp_path, model))
    assert all(torch.equal(value, read.state[name]) for name, value in read_weights(again).state.items()), \
        "fresh parts are the same for everybody"                                                   # fmt: skip


def test_detectron2s_pickle(tmp_path):
    keys = releases.caffe(SMALL)
    state = {name: value.numpy() for name, value in filled(keys).items()}
    source = tmp_path / "R-50.pkl"
    source.write_bytes(pickle.dumps({"model": state, "__author__": "Caffe2", "matching_heuristics": True}, protocol=2))
    read = read_weights(brought(tmp_path, source, "detectron2-imagenet", settings(tmp_path, CROSSVIS)))
    assert read.state["backbone.res3.0.shortcut.conv.weight"].tolist() == state["res3_0_branch1_w"].tolist()
    assert not read.state["backbone.res3.0.shortcut.norm.running_mean"].any()


def test_an_import_draws_from_nobodys_random_numbers(tmp_path):
    source, network = torch_file(tmp_path, list(releases.resnet(SMALL)), None), settings(tmp_path, CROSSVIS)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    import_release(source, "detectron2-imagenet", str(network))
    assert torch.equal(torch.rand(3), expected)


# ---------------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize("release, keys, model, message", [
    pytest.param("crosvis", [], CROSSVIS, "--release crosvis: no such release. Did you mean crossvis?", id="a slip"),
    pytest.param("crossvis", releases.crossvis(SMALL),
                 {**CROSSVIS, "fcos": {"groups": 2, "size_bounds": [8, 16, 32, 64]}},
                 "model.fcos.divisors has to be [64, 128, 256, 512, 1024], it is [8, 16, 32, 64, 128]",
                 id="other sizes of interest"),
    pytest.param("crossvis", releases.crossvis(SMALL), {**CROSSVIS, "coordinates": "last"},
                 "model.coordinates has to be first, it is last", id="coordinates last"),
    pytest.param("crossvis", releases.crossvis(SMALL), {**CROSSVIS, "backbone": {**TRUNK, "stride_in": "3x3"}},
                 "model.backbone.stride_in has to be 1x1, it is 3x3", id="stride in the 3x3"),
    pytest.param("crossvis", releases.crossvis(SMALL), {**CROSSVIS, "input": RGB},
                 "Set model.input to {channel_order: bgr, mean: [103.53, 116.28, 123.675], std: [1.0, 1.0, 1.0]}",
                 id="RGB"),
    pytest.param("torchvision", releases.torchvision(SMALL), {**CROSSVIS, "input": RGB},
                 "model.backbone.stride_in has to be 3x3, it is 1x1", id="torchvision, stride in the 1x1"),
    pytest.param("torchvision", releases.torchvision(SMALL), {**TORCH_STYLE, "input": {}},
                 "Set model.input to {channel_order: rgb, mean: [123.675, 116.28, 103.53], std: [58.395, 57.12, ",
                 id="torchvision, BGR"),
    pytest.param("detectron2-imagenet", list(releases.resnet(SMALL)), LITE,
                 "model.backbone.name has to be resnet, it is dla34", id="a ResNet into a DLA"),
    pytest.param("crossvis", releases.crossvis(SMALL, embedding=False), CROSSVIS,
                 "embedding.tower.0.weight is missing; embedding.tower.0.bias is missing; embedding.tower.1.weight is "
                 "missing; and 19 more. Its names are those of --release adelaidet-condinst.", id="CondInst's file"),
    pytest.param("crossvis", releases.caffe(SMALL), CROSSVIS,
                 "its names are those of --release detectron2-imagenet, not of crossvis", id="an ImageNet file"),
    pytest.param("crossvis", [("a", None, (2,))], CROSSVIS, "backbone.stem.conv.weight is missing", id="a stranger"),
    pytest.param("crossvis", releases.crossvis(replace(SMALL, blocks=(1, 1, 1, 1))), CROSSVIS,
                 "backbone.res3.1.conv1.conv.weight is missing", id="a shallower trunk"),
    pytest.param("crossvis", releases.crossvis(replace(SMALL, blocks=(1, 2, 3, 1))), CROSSVIS,
                 "backbone.res4.1.conv1.conv.weight: the network has no such part: its backbone is another",
                 id="a deeper trunk, as R-101 into R-50"),
    pytest.param("crossvis", releases.crossvis(replace(SMALL, channels=10)), CROSSVIS,
                 "fpn.lateral.0.weight: (10, 32, 1, 1) in the file, (8, 32, 1, 1) here", id="a wider pyramid"),
    pytest.param("crossvis", releases.crossvis(replace(SMALL, identities=2)), CROSSVIS,
                 "proxies of 2 identities, expected 3", id="two identities"),
    pytest.param("crossvis", [("backbone.bifpn.w", None, (2,))], CROSSVIS, "a BiFPN, which no network", id="BiFPN"),
])  # fmt: skip
def test_one_error_and_no_file(tmp_path, capsys, release, keys, model, message):
    source = torch_file(tmp_path, keys or [("x", None, (1,))])
    out = tmp_path / "out" / "weights.safetensors"
    call = ["weights", "import", "--release", release, source, "--network", settings(tmp_path, model), "--out", out]
    assert main([str(word) for word in [*call, "--classes", names_file(tmp_path)]]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: ") and message in line
    assert not out.parent.exists()


def test_torchvisions_weights_handed_on_by_detectron2(tmp_path):
    state = {name: value.numpy() for name, value in filled(list(releases.resnet(SMALL))).items()}
    source = tmp_path / "R-50.pkl"
    source.write_bytes(pickle.dumps({"model": state, "__author__": "torchvision", "matching_heuristics": True}))
    with pytest.raises(CheckpointError, match="Use --release torchvision"):
        import_release(source, "detectron2-imagenet", str(settings(tmp_path, CROSSVIS)))
    done = import_release(source, "torchvision", str(settings(tmp_path, TORCH_STYLE)))
    assert done.report.complete and len(done.report.used) == 20 * 5


@pytest.mark.parametrize("name", ["weights.pth", "", "released.safetensors"], ids=["suffix", "a folder", "the source"])
def test_where_weights_cannot_go(tmp_path, name):
    state = filled(releases.crossvis(SMALL))
    save_file(state, tmp_path / "released.safetensors")
    before = (tmp_path / "released.safetensors").read_bytes()
    done = import_release(tmp_path / "released.safetensors", "crossvis", str(settings(tmp_path, CROSSVIS)))
    with pytest.raises(ConfigError, match="expected another file than the source, whose name ends in .safetensors"):
        save_import(done, tmp_path / name, names_file(tmp_path))
    assert (tmp_path / "released.safetensors").read_bytes() == before


# ------------------------------------------------------------------------------------------------------------- pixels


@pytest.mark.parametrize("release, keys, model, first, module", [
    pytest.param("dla34-imagenet", releases.dla34(widths=WIDTHS), LITE, "base_layer.0.weight", "base_layer",
                 id="DLA-34 into CrossVIS-Lite"),
    pytest.param("torchvision", releases.torchvision(SMALL), {**TORCH_STYLE, "input": {}}, "conv1.weight", "stem",
                 id="torchvision into BGR"),
])
def test_adapted_backbones_see_what_the_release_saw(tmp_path, release, keys, model, first, module):
    source = torch_file(tmp_path, keys, None)
    out = brought(tmp_path, source, release, settings(tmp_path, model), adapt_input=True)
    state = read_weights(out).state
    (name,) = (n for n in ("backbone.stem.conv.weight", "backbone.base_layer.0.weight") if n in state)
    rgb = torch.rand(1, 3, 9, 9, dtype=torch.float64) * 255
    mean, std = (torch.tensor(RGB[key], dtype=torch.float64)[:, None, None] for key in ("mean", "std"))
    expected = F.conv2d((rgb - mean) / std, filled(keys)[first].double(), padding=3)
    ours = F.conv2d((rgb - mean).flip(1), state[name].double(), padding=3)                   # BGR, mean off, no scaling
    assert torch.allclose(ours, expected, rtol=1e-5, atol=1e-5)


# ----------------------------------------------------------------------------------------------------- names of classes


@pytest.mark.parametrize("count, release, asked, names", [
    pytest.param(40, "crossvis", None, CLASS_NAMES["youtube-vis-2019"], id="CrossVIS of 40 classes: 2019"),
    pytest.param(25, "crossvis", None, CLASS_NAMES["ovis"], id="of 25: OVIS"),
    pytest.param(80, "adelaidet-condinst", None, CLASS_NAMES["coco"], id="CondInst of 80: COCO"),
    pytest.param(40, "crossvis", "youtube-vis-2021", CLASS_NAMES["youtube-vis-2021"], id="asked for"),
    pytest.param(3, "crossvis", "file", ("class 0", "class 1", "class 2"), id="a file"),
])
def test_class_names(tmp_path, count, release, asked, names):
    sizes = replace(SMALL, classes=count)
    keys = releases.crossvis(sizes, embedding=release == "crossvis")
    model = {**PARTS, "backbone": TRUNK, "fcos": {"groups": 2}, "num_classes": count}
    network = ("crossvis", {**model, "embedding_dim": SMALL.dim}) if release == "crossvis" else ("condinst", model)
    done = import_release(torch_file(tmp_path, keys), release, str(settings(tmp_path, network[1], network[0])))
    asked = names_file(tmp_path) if asked == "file" else asked
    assert save_import(done, tmp_path / "w.safetensors", asked) == names
    assert read_weights(tmp_path / "w.safetensors").classes == names


def binary(folder: Path) -> str:
    (folder / "names.bin").write_bytes(b"\xff\xfe\x00")
    return str(folder / "names.bin")


@pytest.mark.parametrize("asked, message", [
    pytest.param(lambda folder: None, "name the 3 classes: one of youtube-vis-2019, ", id="none known"),
    pytest.param(lambda folder: "coco", "--classes coco: 80 names, .*small.yaml has num_classes 3", id="too many"),
    pytest.param(lambda folder: names_file(folder, 2), "2 names, .* has num_classes 3", id="too few"),
    pytest.param(lambda folder: "cocoo", "neither a file nor a dataset. Did you mean coco?", id="a slip"),
    pytest.param(binary, "not a text file in UTF-8", id="no text"),
])
def test_class_names_that_do_not_fit(tmp_path, asked, message):
    done = import_release(torch_file(tmp_path, releases.crossvis(SMALL)), "crossvis", str(settings(tmp_path, CROSSVIS)))
    with pytest.raises(ConfigError, match=message):
        save_import(done, tmp_path / "w.safetensors", asked(tmp_path))
    assert not (tmp_path / "w.safetensors").exists()


def test_the_lists_of_names():
    assert {name: len(set(names)) for name, names in CLASS_NAMES.items()} == {
        "youtube-vis-2019": 40, "youtube-vis-2021": 40, "ovis": 25, "coco": 80}                    # fmt: skip
    assert list(CLASS_NAMES["youtube-vis-2021"]) == sorted(CLASS_NAMES["youtube-vis-2021"])
    assert CLASS_NAMES["youtube-vis-2019"][25] == "owl" and CLASS_NAMES["ovis"][24] == "Vehicle"
    assert CLASS_NAMES["coco"][0] == "person" and CLASS_NAMES["coco"][79] == "toothbrush"


# ------------------------------------------------------------------------------------------------------- what is shown


@pytest.mark.parametrize("names, groups", [
    pytest.param([], [], id="none"),
    pytest.param(["a"], [("a", 1)], id="one"),
    pytest.param(["a.weight", "a.bias"], [("a.{weight,bias}", 2)], id="texts"),
    pytest.param([f"res4.{i}.conv1.weight" for i in range(6)], [("res4.{0..5}.conv1.weight", 6)], id="numbers"),
    pytest.param(["t.0", "t.1", "t.3", "t.4", "t.6"], [("t.{0,1,3,4,6}", 5)], id="gaps"),
    pytest.param(["t.9", "t.10", "t.11"], [("t.{9..11}", 3)], id="beyond nine"),
    pytest.param([f"res{s}.{i}.w" for s in (2, 5) for i in range(3)], [("res{2,5}.{0..2}.w", 6)], id="two places"),
    pytest.param(["a.0.w", "a.1.w", "b.0.w"], [("a.{0,1}.w", 2), ("b.0.w", 1)], id="no product: two groups"),
    pytest.param(["a", "a.b"], [("a", 1), ("a.b", 1)], id="a name that begins another"),
    pytest.param(["x.00", "x.0"], [("x.{00,0}", 2)], id="zeros in front"),
])
def test_groups_of_names(names, groups):
    assert [(pattern, count) for pattern, count, _ in grouped(dict.fromkeys(names, ""))] == groups


def test_groups_have_one_label_and_lose_no_name():
    keys = releases.crossvis(SMALL)
    labels = {name: str(shape) for name, _, shape in keys}
    groups = grouped(labels)
    assert sum(count for _, count, _ in groups) == 397 - 165 and len(groups) < 150
    assert ("proposal_generator.fcos_head.scales.{0..4}.scale", 5, "(1,)") in groups


def told(print_it, *arguments, **more) -> str:
    stream = io.StringIO()
    print_it(*arguments, **more, console=Console(file=stream, width=200, highlight=False))
    return stream.getvalue()


def test_the_account_of_an_import(tmp_path):
    source = torch_file(tmp_path, releases.crossvis(replace(SMALL, classes=80), embedding=False))
    done = import_release(source, "adelaidet-condinst", str(settings(tmp_path, CROSSVIS)))
    text = told(print_import, done)
    assert ["27", "fresh,", "as", "initialised"] in [line.split() for line in text.splitlines()]
    assert "16  embedding.tower.{0,1,3,4,6,7,9,10}.{weight,bias}  not part of this release" in text
    assert "1  fcos.class_logits.bias  (80,) in the file, (3,) here" in text
    assert "mask_head._iter  a counter that only the release's own training reads" in text
    assert "2  fpn.p{6,7}." not in text and "4  fpn.p{6,7}.{weight,bias}" in text
    every = told(print_import, done, verbose=True)
    assert "controller.bias  <- controller.bias" in every
    assert "fpn.lateral.0.weight  <- backbone.fpn_lateral3.weight" in every
    assert "for training alone: 25 tensors" in told(print_saved, done, tmp_path / "w.safetensors", ())


def test_the_account_of_proxies(tmp_path):
    source = torch_file(tmp_path, releases.crossvis(SMALL))
    done = import_release(source, "crossvis", str(settings(tmp_path, CROSSVIS)))
    assert "without the proxies" in told(print_saved, done, tmp_path / "w.safetensors", ("a",) * 3)
    assert "the proxies" not in told(print_saved, done, tmp_path / "w.safetensors", ("a",) * 3, kept_proxies=True)


def test_ours_shown(tmp_path):
    state = {"a.weight": torch.zeros(2, 3), "a.bias": torch.zeros(2), "b.scale": torch.zeros(5)}
    path = tmp_path / "w.safetensors"
    save_weights(path, state, "crossvis", {"channels": 8}, ("cat", "dog"), seed="4 \x1b[2J", fresh='["b.scale"]')
    text = told(print_weights, path)
    assert "network  crossvis" in text and "  channels: 8" in text and "classes  cat, dog" in text
    assert "for training alone" in text and "a.weight" not in text
    assert "seed  4 \\x1b[2J" in text and "\x1b" not in text
    assert ["a", "2", "8"] in [line.split() for line in text.splitlines()]
    assert "a.weight  [2, 3] float32" in told(print_weights, path, keys=True)
    assert part_sizes(state) == {"a": (2, 8), "b": (1, 5)}


def test_a_release_shown(tmp_path):
    text = told(print_weights, torch_file(tmp_path, releases.crossvis(SMALL)))
    assert "232 tensors under 'model'" in text and "beside them iteration: 1" in text
    assert "names of  --release crossvis (" in text
    assert "5  proposal_generator.fcos_head.scales.{0..4}.scale  [1] float32" in text
    save_file({"[bold]x": torch.ones(2)}, tmp_path / "w.safetensors")
    text = told(print_weights, tmp_path / "w.safetensors")
    assert "1 tensors at the top" in text and "names of  none of " in text and "[bold]x  [2] float32" in text


@pytest.mark.parametrize("name", ["absent.pth", "absent.safetensors", "damaged.safetensors", "damaged.pth"])
def test_files_that_cannot_be_shown(tmp_path, capsys, name):
    for damaged in ("damaged.safetensors", "damaged.pth"):
        (tmp_path / damaged).write_bytes(b"no weights at all")
    assert main(["weights", "show", str(tmp_path / name)]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith(f"error: {tmp_path / name}: ")
