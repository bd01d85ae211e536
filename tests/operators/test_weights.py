"""Weights on disk: there and back, and every file that is not what it should be."""

from __future__ import annotations

import json
import os

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from operators import weights as weights_module
from operators.errors import CheckpointError
from operators.weights import FORMAT, load_into, read_weights, save_weights, start_from

CONFIG = {"num_classes": 2, "input": {"mean": [1.5, 2.0, 3.0]}}
STATE = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.count": torch.tensor(7)}


class Small(nn.Module):
    """a.weight (2, 3), a.bias (2,), b.weight (1, 2), and a counter."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(3, 2)
        self.b = nn.Linear(2, 1, bias=False)
        self.register_buffer("count", torch.tensor(3))


# ---------------------------------------------------------------------------------------------------------------- files


def test_round_trip(tmp_path):
    path = tmp_path / "new" / "folder" / "w.safetensors"
    save_weights(path, STATE, "crossvis", CONFIG, ("cat", "köter"), seed="4", command="maskstream train x.yaml")
    read = read_weights(path)
    assert read.network == "crossvis" and read.config == CONFIG and read.classes == ("cat", "köter")
    assert read.state.keys() == STATE.keys()
    assert all(torch.equal(read.state[name], value) for name, value in STATE.items())
    assert all(read.state[name].dtype == value.dtype for name, value in STATE.items())
    assert read.metadata["seed"] == "4" and read.metadata["command"] == "maskstream train x.yaml"
    assert [p.name for p in path.parent.iterdir()] == ["w.safetensors"], "nothing else is left behind"


def test_views_and_tensors_with_gradients_are_saved(tmp_path):
    network = Small()
    state = {**network.state_dict(keep_vars=True), "turned": torch.arange(6.0).reshape(2, 3).T}
    save_weights(tmp_path / "w", state, "n", {}, ())
    read = read_weights(tmp_path / "w").state
    assert all(torch.equal(read[name], value) for name, value in state.items())


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "w.safetensors"
    save_weights(path, STATE, "n", {}, ())

    def full(tensors, partial, metadata=None):
        partial.write_bytes(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(weights_module, "save_file", full)
    with pytest.raises(OSError, match="No space"):
        save_weights(path, {"a.weight": torch.zeros(1)}, "n", {}, ())
    assert read_weights(path).state.keys() == STATE.keys()
    monkeypatch.undo()
    save_weights(path, {"other": torch.zeros(1)}, "n", {}, ())
    assert read_weights(path).state.keys() == {"other"}
    assert os.listdir(tmp_path) == ["w.safetensors"]


def whole_file(tmp_path) -> bytes:
    path = tmp_path / "whole"
    save_weights(path, STATE, "n", {}, ())
    return path.read_bytes()


@pytest.mark.parametrize("spoil", [
    pytest.param(lambda whole: b"", id="empty"),
    pytest.param(lambda whole: b"these are not weights, but text in a file of that name", id="text"),
    pytest.param(lambda whole: whole[:-5], id="cut in the tensors"),
    pytest.param(lambda whole: whole[:40], id="cut in the header"),
    pytest.param(lambda whole: whole + b"more", id="longer than it says"),
    pytest.param(lambda whole: b"\xff" * 8 + whole[8:], id="a header of 2^64 bytes"),
    pytest.param(lambda whole: whole.replace(b"F32", b"F99"), id="an unknown type"),
    pytest.param(lambda whole: b"PK\x03\x04" + whole, id="a zip file"),
])
def test_damaged_files(tmp_path, spoil):
    path = tmp_path / "w.safetensors"
    path.write_bytes(spoil(whole_file(tmp_path)))
    with pytest.raises(CheckpointError, match="w.safetensors: not a readable safetensors file"):
        read_weights(path)


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(CheckpointError, match="absent.safetensors: no such file of weights"):
        read_weights(tmp_path / "absent.safetensors")
    with pytest.raises(CheckpointError, match=f"{tmp_path}: is a folder, but a file of weights is expected. It has no"):
        read_weights(tmp_path)
    (tmp_path / "weights.safetensors").touch()
    with pytest.raises(CheckpointError, match=f"is expected. Did you mean {tmp_path}/weights.safetensors?"):
        read_weights(tmp_path)


@pytest.mark.parametrize("metadata", [
    pytest.param(None, id="no metadata"),
    pytest.param({"format": "pt"}, id="somebody else's"),
    pytest.param({"maskstream": "2", "network": "n", "config": "{}", "classes": "[]"}, id="of a later format"),
])
def test_foreign_safetensors(tmp_path, metadata):
    save_file(STATE, tmp_path / "w", metadata=metadata)
    with pytest.raises(CheckpointError, match="without Maskstream's metadata"):
        read_weights(tmp_path / "w")


@pytest.mark.parametrize("change", [
    pytest.param({"config": "{not json"}, id="config is no JSON"),
    pytest.param({"classes": "["}, id="classes are no JSON"),
    pytest.param({"classes": "5"}, id="classes are a number"),
    pytest.param({"classes": None}, id="no classes"),
    pytest.param({"config": None}, id="no config"),
    pytest.param({"network": None}, id="no network"),
])
def test_damaged_metadata(tmp_path, change):
    metadata = {"maskstream": FORMAT, "network": "n", "config": "{}", "classes": "[]", **change}
    save_file(STATE, tmp_path / "w", metadata={name: value for name, value in metadata.items() if value is not None})
    with pytest.raises(CheckpointError, match="metadata is damaged"):
        read_weights(tmp_path / "w")


def test_a_file_beyond_the_limit_is_refused_before_it_is_read(tmp_path, monkeypatch):
    save_weights(tmp_path / "w", STATE, "n", {}, ())
    monkeypatch.setattr(weights_module, "MAX_BYTES", 100)
    with pytest.raises(CheckpointError, match="more than 100 are refused"):
        read_weights(tmp_path / "w")


def test_metadata_is_text_that_any_reader_understands(tmp_path):
    save_weights(tmp_path / "w", STATE, "n", CONFIG, ("a", "b"), steps="12")
    raw = (tmp_path / "w").read_bytes()
    header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    metadata = header["__metadata__"]
    assert json.loads(metadata["config"]) == CONFIG and json.loads(metadata["classes"]) == ["a", "b"]
    assert metadata["steps"] == "12"


# ------------------------------------------------------------------------------------------------------- into a network


def test_load_into_copies_everything():
    network, other = Small(), Small()
    with torch.no_grad():
        for value in other.state_dict().values():
            value.add_(1)
    load_into(network, other.state_dict(), "w")
    for name, value in network.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


@pytest.mark.parametrize("change, message", [
    pytest.param({"b.weight": None}, "b.weight is missing", id="missing"),
    pytest.param({"count": None}, "count is missing", id="a counter missing"),
    pytest.param({"c.weight": torch.zeros(1)}, "c.weight is unknown", id="unknown"),
    pytest.param({"a.bias": torch.zeros(3)}, r"a.bias is \(3,\), expected \(2,\)", id="another shape"),
    pytest.param({"a.weight": torch.zeros(3, 2)}, r"a.weight is \(3, 2\), expected \(2, 3\)", id="turned"),
])
def test_weights_of_another_network(change, message):
    network = Small()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    state = {name: value for name, value in {**Small().state_dict(), **change}.items() if value is not None}
    with pytest.raises(CheckpointError, match=f"^tiny.safetensors: the weights of another network: {message}.$"):
        load_into(network, state, "tiny.safetensors")
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items()), "nothing was loaded"


def test_many_faults_are_counted_and_three_are_named():
    with pytest.raises(CheckpointError, match="is missing; [^;]* is missing; [^;]* is missing; and 2 more"):
        load_into(Small(), {"x": torch.zeros(1)}, "w")


def test_proxies_may_be_in_the_file_and_not_in_the_network():
    network, given = Small(), Small().state_dict()
    load_into(network, {**given, "proxies.proxies.weight": torch.zeros(9, 2)}, "w")
    assert network.state_dict().keys() == given.keys()
    assert all(torch.equal(value, given[name]) for name, value in network.state_dict().items())


def test_proxies_that_the_network_has_must_fit():
    network = Small()
    network.proxies = nn.Linear(2, 4)
    state = {**network.state_dict(), "proxies.weight": torch.zeros(9, 2)}
    with pytest.raises(CheckpointError, match=r"proxies.weight is \(9, 2\), expected \(4, 2\)"):
        load_into(network, state, "w")
    with pytest.raises(CheckpointError, match="proxies.weight is missing"):
        load_into(network, Small().state_dict(), "w")


def parts() -> nn.ModuleDict:
    """One part that training must find, one that it may lack, one that may have another shape."""
    backbone, embedding, logits = (nn.Linear(2, outputs, bias=False) for outputs in (2, 3, 4))
    fcos = nn.ModuleDict({"class_logits": logits})
    return nn.ModuleDict({"backbone": backbone, "embedding": embedding, "fcos": fcos})


@pytest.mark.parametrize("change, fresh", [
    pytest.param({}, [], id="all is there"),
    pytest.param({"embedding.weight": None}, ["embedding.weight"], id="what stills do not teach"),
    pytest.param({"fcos.class_logits.weight": torch.zeros(9, 2)}, ["fcos.class_logits.weight"], id="other classes"),
    pytest.param({"extra.weight": torch.zeros(1)}, [], id="more than the network has"),
])
def test_training_starts_from_all_that_fits(change, fresh):
    network, before = parts(), parts().state_dict()
    given = {n: torch.full_like(t, 5.0) for n, t in before.items()}
    state = {n: t for n, t in {**given, **change}.items() if t is not None}
    assert start_from(network, state, "w") == fresh
    assert [n for n, t in network.state_dict().items() if not (t == 5.0).all()] == fresh


@pytest.mark.parametrize("change, message", [
    pytest.param({"backbone.weight": None}, "backbone.weight is missing", id="a part it cannot learn from nothing"),
    pytest.param({"fcos.class_logits.weight": None}, "fcos.class_logits.weight is missing", id="no classes at all"),
    pytest.param({"embedding.weight": torch.zeros(9, 2)}, r"embedding.weight is \(9, 2\), expected \(3, 2\)",
                 id="another shape where none may be"),
])
def test_training_does_not_start_from_another_network(change, message):
    state = {n: t for n, t in {**parts().state_dict(), **change}.items() if t is not None}
    with pytest.raises(CheckpointError, match=f"^w: cannot begin this network's training: {message}.$"):
        start_from(parts(), state, "w")
