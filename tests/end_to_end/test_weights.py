"""Released weights as a user brings them in: the command, the file, and a video that runs with it."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path

import pytest
import torch
import yaml

from operators.weights import read_weights
from tests.models import releases
from tests.models.releases import R50, Sizes, by_our_names, filled

SIZES = Sizes(blocks=R50, stem=8, mid=4, channels=32, mask=8, dim=16, classes=40, identities=50)
MODEL = {
    "num_classes": 40, "input": {"short_side": 96, "long_side": 160}, "channels": 32, "mask_channels": 8,
    "embedding_dim": 16, "backbone": {"blocks": list(R50), "stem_channels": 8, "mid_channels": 4},
}  # fmt: skip


def network_file(folder: Path, **more) -> Path:
    path = folder / "thin.yaml"
    path.write_text(yaml.safe_dump({"network": "crossvis", "model": MODEL, **more}))
    return path


@pytest.fixture
def released(tmp_path) -> Path:
    """A CrossVIS R-50 file, thin, its numbers small enough for every score to be one."""
    state = {name: 0.05 * value if value.is_floating_point() else value
             for name, value in filled(releases.crossvis(SIZES)).items()}                          # fmt: skip
    state |= {name: value.abs() + 0.5 for name, value in state.items() if name.endswith("running_var")}
    torch.save({"model": state, "iteration": 23000}, tmp_path / "CrossVIS_R_50.pth")
    return tmp_path / "CrossVIS_R_50.pth"


@pytest.mark.slow
def test_import_show_run(maskstream, two_videos, released, tmp_path):
    out = tmp_path / "weights" / "crossvis.safetensors"
    words = ("--network", network_file(tmp_path), "--out", out)
    done = maskstream("weights", "import", "--release", "crossvis", released, *words, afresh=True)
    assert done.returncode == 0, done.stderr
    assert "391      used" in done.stdout and "classes: person, giant_panda, lizard, .. (40 in all)" in done.stdout
    read, keys = read_weights(out), releases.crossvis(SIZES)
    expected = by_our_names(keys, torch.load(released, weights_only=True)["model"])
    assert len(read.state) == 389 and all(torch.equal(value, expected[name]) for name, value in read.state.items())

    done = maskstream("weights", "show", out)
    assert done.returncode == 0 and "source  CrossVIS_R_50.pth" in done.stdout and "network  crossvis" in done.stdout
    done = maskstream("weights", "show", released)
    assert done.returncode == 0 and "397 tensors under 'model'" in done.stdout

    network = network_file(tmp_path, weights=str(out))
    done = maskstream("run", two_videos[0], "--network", network, "--out", tmp_path / "run", "--save", "jsonl")
    assert done.returncode == 0, done.stderr
    lines = (tmp_path / "run" / two_videos[0].stem / "tracks.jsonl").read_text().splitlines()
    assert [json.loads(line)["frame"] for line in lines] == list(range(26))


def test_weights_for_training_alone_do_not_run(maskstream, two_videos, tmp_path):
    source, out = tmp_path / "condinst.pth", tmp_path / "start.safetensors"
    torch.save(filled(releases.crossvis(SIZES, embedding=False)), source)
    words = ("--network", network_file(tmp_path), "--out", out)
    done = maskstream("weights", "import", "--release", "adelaidet-condinst", source, *words, "--classes", "ovis")
    assert done.returncode == 2 and "--classes ovis: 25 names" in done.stderr and not out.exists()
    done = maskstream("weights", "import", "--release", "adelaidet-condinst", source, *words, "--classes",
                      "youtube-vis-2021")                                                          # fmt: skip
    assert done.returncode == 0 and "for training alone: 23 tensors" in done.stdout, done.stderr
    network = network_file(tmp_path, weights=str(out))
    done = maskstream("run", two_videos[0], "--network", network, "--out", tmp_path / "run")
    assert done.returncode == 2 and "weights for training alone: embedding.tower.0.weight" in done.stderr
    assert not (tmp_path / "run").exists()


class Calls:
    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.mark.parametrize("action", ["import", "show"])
def test_a_pickle_that_wants_to_run_something(maskstream, tmp_path, action):
    source, mark, out = tmp_path / "R-50.pkl", tmp_path / "mark", tmp_path / "w.safetensors"
    source.write_bytes(pickle.dumps({"model": {"conv1_w": Calls(f"touch {mark}")}}))
    words = ("--release", "detectron2-imagenet", "--network", network_file(tmp_path), "--out", out)
    done = maskstream("weights", action, source, *(words if action == "import" else ()))
    assert done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1
    assert "refused, nothing of it was run: it wants to call posix.system" in done.stderr
    assert not mark.exists() and not out.exists()
