"""Files of configs/networks: names, settings and weights that fit, and one error for those that do not."""

from __future__ import annotations

import pickle
from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest
import torch
import yaml

from models import NETWORKS
from models.crossvis import CrossVIS, CrossVISConfig
from models.fcos import FCOSConfig
from models.fused import InferenceConfig
from operators.errors import CheckpointError, ConfigError
from operators.weights import save_weights
from pipelines.config import CHECKOUT
from pipelines.graph import NETWORK_SETTINGS
from pipelines.networks import as_plain, load_network, read_checkpoint, read_network

MODEL = {
    "num_classes": 3, "input": {"short_side": 64, "long_side": 96},
    "backbone": {"blocks": [1, 1, 1, 1], "stem_channels": 8, "mid_channels": 4, "norm": "batch", "frozen_stages": 0},
    "channels": 16, "fcos": {"tower_convs": 1, "groups": 4}, "mask_channels": 8, "embedding_dim": 8,
}  # fmt: skip
CPU = torch.device("cpu")


def written(folder: Path, content: dict | None = None, **changes) -> Path:
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(content or {"network": "crossvis", "model": MODEL, **changes}))
    return path


def weights_of(spec, path: Path, **changes) -> Path:
    """Random weights of the network that `spec` tells, saved as training would."""
    torch.manual_seed(0)
    network = CrossVIS(spec.config)
    values = {"state": network.state_dict(), "network": "crossvis", "config": as_plain(spec.config), **changes}
    save_weights(path, values["state"], values["network"], values["config"], ("a", "b", "c"))
    return path


# ------------------------------------------------------------------------------------------------------------- the file


def test_settings_reach_the_network(tmp_path):
    spec = read_network(written(tmp_path, detect={"min_score": 0.2}))
    assert spec.name == "crossvis" and spec.weights is None
    assert spec.config.fcos == FCOSConfig(tower_convs=1, groups=4)
    assert spec.config.backbone.blocks == (1, 1, 1, 1) and spec.config.input.short_side == 64
    assert spec.detect.min_score == 0.2 and spec.detect.max_per_frame == 100
    assert spec.config.gradient_gate == CrossVISConfig().gradient_gate, "what the file leaves out keeps its default"


def test_overrides(tmp_path):
    spec = read_network(written(tmp_path), ("detect.max_iou=0.5", "model.input.short_side=80", "model.num_classes=9"))
    assert (spec.detect.max_iou, spec.config.input.short_side, spec.config.num_classes) == (0.5, 80, 9)
    assert spec.config.input.long_side == 96


def test_a_spec_travels_and_names_the_same_network(tmp_path):
    spec = read_network(written(tmp_path))
    assert pickle.loads(pickle.dumps(spec)) == spec and hash(spec) == hash(read_network(written(tmp_path)))


def model(**settings) -> dict:
    return {"network": "crossvis", "model": settings}


@pytest.mark.parametrize("content, message", [
    pytest.param({"model": MODEL}, "network: missing", id="no network named"),
    pytest.param({"network": "crosvis"}, "network: no network 'crosvis'. Did you mean crossvis?", id="a slip"),
    pytest.param({"network": "yolo"}, "no network 'yolo'. Known: centermask, ", id="an unknown name: the known"),
    pytest.param({"network": "crossvis", "weight": "x"}, "weight: no such setting. Did you mean weights?", id="key"),
    pytest.param(model(chanels=3), "model.chanels: no such setting. Did you mean channels?", id="unknown setting"),
    pytest.param(model(fcos={"group": 3}), "model.fcos.group: no such setting. Did you mean groups?", id="of a part"),
    pytest.param(model(channels="wide"), "model.channels: expected a whole number, got 'wide'", id="of another type"),
    pytest.param(model(backbone={"blocks": [1, 2]}), "model.backbone.blocks: expected a list of 4 values", id="few"),
    pytest.param(model(fcos={"size_bounds": [4, 3, 2, 1]}), "model.fcos: FCOS: size_bounds", id="refused by its class"),
])  # fmt: skip
def test_a_file_that_is_wrong(tmp_path, content, message):
    with pytest.raises(ConfigError) as error:
        read_network(written(tmp_path, content))
    assert message in str(error.value) and "small.yaml" in str(error.value)


@pytest.mark.parametrize("override, message", [
    pytest.param("detect.min_score=2", "detect: min_score 2", id="out of range"),
    pytest.param("detect.min_scor=0", "detect.min_scor: no such setting. Did you mean min_score?", id="of nothing"),
    pytest.param("model.channels", "'model.channels' is not of the form key.sub=value", id="without a value"),
])
def test_an_override_that_is_wrong(tmp_path, override, message):
    with pytest.raises(ConfigError) as error:
        read_network(written(tmp_path), (override,))
    assert message in str(error.value) and "small.yaml" in str(error.value)


def test_set_knows_every_setting_of_a_network_that_came_without_its_prefix(tmp_path):
    with pytest.raises(ConfigError) as unknown:
        read_network(written(tmp_path), ("nothing=1",))
    known = set(str(unknown.value).split("Known: ")[1].rstrip(".").split(", "))
    assert set(NETWORK_SETTINGS) == known - {"network"}


def test_a_file_that_is_not_there(tmp_path):
    written(tmp_path)
    with pytest.raises(ConfigError, match="smal.yaml: no such file. Did you mean small.yaml?"):
        read_network(tmp_path / "smal.yaml")


@pytest.mark.parametrize("path", sorted((CHECKOUT / "configs" / "networks").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_network_is_read_and_built(path):
    spec = read_network(path)
    with torch.device("meta"):                                          # shapes alone: no memory, no time
        network = NETWORKS[spec.name][0](spec.config)
    assert sum(p.numel() for p in network.parameters()) > 0
    if path.stem == "tiny":
        assert sum(p.numel() for p in network.parameters()) < 3_000_000


# ---------------------------------------------------------------------------------------------------------- its weights


def test_weights_are_loaded_and_the_network_is_ready_to_use(tmp_path):
    path = tmp_path / "w.safetensors"
    weights_of(read_network(written(tmp_path)), path)
    spec = read_network(written(tmp_path, weights=str(path)))
    network = load_network(spec, CPU)
    torch.manual_seed(0)
    expected = CrossVIS(spec.config).state_dict()
    assert network.state_dict().keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in network.state_dict().items())
    assert not any(module.training for module in network.modules())
    again = load_network(read_network(written(tmp_path, weights=str(path))), CPU)
    assert again is network, "one for each process and device"
    assert read_checkpoint(spec).classes == ("a", "b", "c")


def test_the_form_asked_for(tmp_path):
    path = weights_of(read_network(written(tmp_path)), tmp_path / "w.safetensors")
    spec = read_network(written(tmp_path, weights=str(path)), ("inference.form=fused", "inference.dtype=float32"))
    assert spec.inference == InferenceConfig(form="fused", dtype="float32")
    fused, plain = load_network(spec, CPU), load_network(read_network(written(tmp_path, weights=str(path))), CPU)
    assert fused.describe().startswith("fused, float32") and isinstance(plain, CrossVIS)
    images = torch.randn(1, 3, 64, 96)
    with torch.inference_mode():
        for a, b in zip(fused.features(images), plain.features(images), strict=True):
            assert (a - b).abs().max() <= 1e-4 * b.abs().max()


@pytest.mark.parametrize("inference, message", [
    pytest.param({"form": "fused", "dtype": "float16"}, "no instructions for torch.float16", id="float16 on a CPU"),
    pytest.param({"form": "fused", "compile": True}, "compile is for GPUs", id="compile on a CPU"),
])
def test_a_form_that_the_device_does_not_know(tmp_path, inference, message):
    path = weights_of(read_network(written(tmp_path)), tmp_path / "w.safetensors")
    with pytest.raises(ConfigError, match=f"small.yaml, inference: .*{message}"):
        load_network(read_network(written(tmp_path, weights=str(path), inference=inference)), CPU)


def test_proxies_in_the_file_do_no_harm(tmp_path):
    spec = read_network(written(tmp_path))
    state = CrossVIS(spec.config, num_identities=5).state_dict()
    path = weights_of(spec, tmp_path / "with_proxies.safetensors", state=state)
    network = load_network(read_network(written(tmp_path, weights=str(path))), CPU)
    assert network.proxies is None


def test_no_weights_named(tmp_path):
    with pytest.raises(CheckpointError, match="small.yaml: names no weights.*`maskstream train`"):
        read_checkpoint(read_network(written(tmp_path)))


def test_weights_that_are_not_there(tmp_path):
    spec = read_network(written(tmp_path, weights=str(tmp_path / "absent.safetensors")))
    with pytest.raises(CheckpointError, match="absent.safetensors: no such file of weights"):
        load_network(spec, CPU)


@pytest.mark.parametrize("overrides, message", [
    pytest.param(["num_classes=4"], "model.num_classes is 3 there, 4 here", id="classes"),
    pytest.param(["channels=32"], "model.channels is 16 there, 32 here", id="channels"),
    pytest.param(["fcos.size_bounds=[1,2,3,4]"], "model.fcos.size_bounds is [64, 128, 256, 512] there, [1, 2, 3, 4]",
                 id="size bounds, which no tensor's shape shows"),
    pytest.param(["input.channel_order=rgb"], "model.input.channel_order is bgr there, rgb here",
                 id="channel order, which no tensor's shape shows"),
    pytest.param(["input.short_side=80", "backbone.norm=frozen"], "model.backbone.norm is batch there, frozen here; "
                 "model.input.short_side is 64 there, 80 here", id="two settings"),
])  # fmt: skip
def test_weights_of_other_settings(tmp_path, overrides, message):
    path = weights_of(read_network(written(tmp_path)), tmp_path / "w.safetensors")
    spec = read_network(written(tmp_path, weights=str(path)), tuple(f"model.{one}" for one in overrides))
    with pytest.raises(CheckpointError) as error:
        load_network(spec, CPU)
    assert message in str(error.value) and "w.safetensors" in str(error.value) and "small.yaml" in str(error.value)


def test_settings_that_only_training_looks_at_may_differ(tmp_path):
    path = weights_of(read_network(written(tmp_path)), tmp_path / "w.safetensors")
    changes = ("model.gradient_gate=0.5", "model.backbone.frozen_stages=2")
    spec = read_network(written(tmp_path, weights=str(path)), changes)
    assert read_checkpoint(spec).network == "crossvis"


def test_weights_from_before_a_setting_have_its_default(tmp_path):
    spec = read_network(written(tmp_path))
    config = as_plain(spec.config)
    del config["coordinates"], config["backbone"]["name"]
    path = str(weights_of(spec, tmp_path / "w.safetensors", config=config))
    assert read_checkpoint(read_network(written(tmp_path, weights=path))).network == "crossvis"
    with pytest.raises(CheckpointError, match="model.coordinates is first there, last here"):
        read_checkpoint(read_network(written(tmp_path, weights=path), ("model.coordinates=last",)))


def test_weights_of_another_kind_of_network(tmp_path):
    path = weights_of(read_network(written(tmp_path)), tmp_path / "w.safetensors", network="cico")
    with pytest.raises(CheckpointError, match="weights of 'cico', but .*small.yaml is 'crossvis'"):
        load_network(read_network(written(tmp_path, weights=str(path))), CPU)


@pytest.mark.parametrize("config, message", [
    pytest.param({}, "weights of another network than", id="empty: the defaults"),
    pytest.param([], "expected a group of settings", id="a list"),
    pytest.param(7, "expected a group of settings", id="a number"),
    pytest.param({"wings": 2}, "settings that this version does not know: .*wings: no such setting", id="from later"),
])
def test_weights_whose_settings_are_something_else(tmp_path, config, message):
    path = weights_of(read_network(written(tmp_path)), tmp_path / "w.safetensors", config=config)
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(read_network(written(tmp_path, weights=str(path))))


def test_tensors_that_do_not_fit_though_the_settings_do(tmp_path):
    spec = read_network(written(tmp_path))
    state = CrossVIS(spec.config).state_dict()
    state["fcos.scales"] = torch.ones(3)
    del state["controller.bias"]
    path = weights_of(spec, tmp_path / "torn.safetensors", state=state)
    with pytest.raises(CheckpointError, match=r"torn.safetensors: .*controller.bias is missing; fcos.scales is \(3,\)"):
        load_network(read_network(written(tmp_path, weights=str(path))), CPU)


def test_as_plain_is_what_json_gives_back():
    plain = as_plain(CrossVISConfig())
    assert plain["backbone"]["blocks"] == [3, 4, 6, 3] and plain["input"]["channel_order"] == "bgr"
    assert plain.keys() == {f.name for f in fields(CrossVISConfig)}
    assert not any(is_dataclass(value) for value in plain.values())
