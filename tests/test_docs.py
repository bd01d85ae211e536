"""The documents' Python is run as it stands, on a network with fewer channels."""

from __future__ import annotations

import re
import runpy
from dataclasses import MISSING, fields
from pathlib import Path
from typing import get_args

import pytest
import torch
import yaml

from models.crossvis import CrossVIS
from operators.weights import save_weights
from pipelines.config import CHECKOUT
from pipelines.graph import parse_graph
from pipelines.networks import as_plain, read_network, trainable_network
from pipelines.placement import Batching, Placement, Recovery, Strategy
from pipelines.stages import STAGES

SHIPPED = "configs/networks/crossvis_r50.yaml"


@pytest.fixture
def thin(tmp_path: Path) -> tuple[Path, Path]:
    """The shipped R-50 with fewer channels: its file, and weights with proxies."""
    settings = yaml.safe_load((CHECKOUT / SHIPPED).read_text())
    settings["model"] |= {"channels": 32, "mask_channels": 16, "embedding_dim": 32}
    settings["model"]["backbone"] |= {"stem_channels": 8, "mid_channels": 8}
    network, weights = tmp_path / "thin.yaml", tmp_path / "thin.safetensors"
    network.write_text(yaml.safe_dump(settings))
    config = read_network(network).config
    names = tuple(f"class {k}" for k in range(config.num_classes))
    torch.manual_seed(0)
    save_weights(weights, CrossVIS(config, 30).state_dict(), "crossvis", as_plain(config), names)
    return network, weights


def test_comparing(thin, tmp_path):
    text = (CHECKOUT / "docs/comparing.md").read_text()
    code = "\n".join(re.findall(r"```python\n(.*?)```", text, re.S))
    for shipped, path in zip((SHIPPED, "weights/crossvis_r50.safetensors"), thin, strict=True):
        assert shipped in code
        code = code.replace(shipped, str(path))
    script = tmp_path / "comparing.py"
    script.write_text(code)
    said = runpy.run_path(str(script))
    assert said["logits_p3"].shape == (1, 40, 48, 80) and said["sides_p3"].shape == (1, 3840, 4)
    dense = said["dense"]
    assert torch.equal(said["logits_p3"][0, :, 2, 5], dense.class_logits[0, 2 * 80 + 5])
    assert said["losses"].keys() == {"class", "box", "centerness", "mask", "crossover", "identity"}
    mean = sum(slot["class"] for slot in said["by_slot"]) / 2
    assert said["losses"]["class"].item() == pytest.approx(mean.item(), rel=1e-4)


def test_a_trainable_network_has_the_proxies_of_its_file(thin):
    network, weights = thin
    spec = read_network(network, (f"weights={weights}",))
    trained = trainable_network(spec)
    assert trained.training and trained.proxies.proxies.weight.shape == (30, 32)
    torch.manual_seed(0)
    assert torch.equal(trained.proxies.proxies.weight, CrossVIS(spec.config, 30).proxies.proxies.weight)


def test_every_key_of_a_graph_file_is_explained():
    text = (CHECKOUT / "docs/graph.md").read_text()
    (example,) = re.findall(r"```yaml\n(.*?)```", text, re.S)
    mapping = yaml.safe_load(example)
    graph = parse_graph(mapping, STAGES, "docs/graph.md")
    for settings, section in ((Placement, "placement"), (Batching, "batching"), (Recovery, "recovery")):
        rows = re.search(rf"## {section}:.*?\n\|---.*?\n(.*?)\n\n", text, re.S)[1].splitlines()
        told = {re.match(r"\| `(\w+)` \|", row)[1]: row.split("|")[-2].strip() for row in rows}
        assert list(told) == [field.name for field in fields(settings)]
        for field in fields(settings):
            if field.default is not MISSING:
                assert told[field.name] == str(field.default), field.name
        used = {key for group in mapping[section] for key in group} if section == "placement" else set(mapping[section])
        assert used == set(told), "the example uses every key"
    assert mapping["strategy"] == graph.strategy
    assert all(f"`{strategy}`" in text for strategy in get_args(Strategy))
