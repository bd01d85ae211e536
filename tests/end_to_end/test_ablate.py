"""A whole ablation as a user makes it: two networks, two seeds, real training on generated clips; cut, then resumed.

The command runs in processes of its own, because it begins and ends Ray clusters; what is refused comes before that.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from operators.shapes import CATEGORIES
from operators.weights import read_weights

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT_S = 400
CLIPS = {"width": 125, "height": 75, "num_frames": 4, "min_objects": 3, "max_objects": 3, "min_classes": 2,
         "num_twins": 0, "full_occlusions": 0, "re_entries": 0}  # fmt: skip
STILLS = {
    "num_classes": len(CATEGORIES), "input": {"short_side": 64, "long_side": 96},
    "backbone": {"blocks": [1, 1, 1, 1], "stem_channels": 8, "mid_channels": 4, "norm": "batch", "frozen_stages": 0},
    "channels": 16, "fcos": {"tower_convs": 1, "groups": 4, "size_bounds": [16, 32, 64, 128]}, "mask_channels": 8,
}  # fmt: skip
PAIRS = {**STILLS, "embedding_dim": 8, "gradient_gate": 1.0}


def written(folder: Path) -> Path:
    """The files of a small ablation; nothing of its data is there yet."""
    def save(name: str, content: dict) -> str:
        (folder / name).write_text(json.dumps(content))                # which is YAML too, and has no aliases
        return str(folder / name)

    def training(network: str, steps: int) -> dict:
        data = {"annotations": str(folder / "clips" / "instances.json"), "image_root": str(folder / "clips/JPEGImages")}
        return {"network": network, "data": data, "steps": steps, "samples_per_step": 2, "log_every": 1,
                "checkpoint_every": 1, "optimizer": {"warmup_steps": 0}, "workers": {"cpus_per_worker": 1}}  # fmt: skip

    stills = training(save("condinst.yaml", {"network": "condinst", "model": STILLS}), steps=2)
    pairs = training(save("crossvis.yaml", {"network": "crossvis", "model": PAIRS}), steps=3)
    rows = [{"variant": "plain", "paper": 33.5}, {"variant": "crossed", "paper": 34.8, "paper_std": 0.25}]
    return Path(save("ablation.yaml", {
        "pretraining": save("stills.yaml", stills), "training": save("pairs.yaml", pairs), "seeds": 2,
        "datasets": [{"folder": str(folder / "clips"), "clips": 3, "seed": 1, "settings": CLIPS}],
        "held_out": {"folder": str(folder / "held-out"), "clips": 2, "seed": 2, "settings": CLIPS},
        "variants": {
            "plain": {"label": "no crossover", "set": ["network.model.crossover=false"]},
            "crossed": {"label": "CrossVIS"},
            "matched": {"label": "the same weights", "weights_of": "crossed", "set": ["network.association=masktrack"]},
            "diverging": {"label": "a step too far", "set": ["training.optimizer.learning_rate=1e30"]},
        },
        "tables": {"parts": {"title": "Parts", "rows": rows},
                   "use": {"title": "U", "seeds": 1, "rows": [{"variant": "matched"}]},
                   "failing": {"title": "F", "rows": [{"variant": "diverging", "paper": 0.0}]}},
    }))  # fmt: skip


def ablate(config: Path, out: Path, *more: str) -> subprocess.Popen:
    environment = {name: value for name, value in os.environ.items() if name not in ("RAY_ADDRESS", "PYTHONPATH")}
    environment |= {"OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    command = [sys.executable, "-m", "pipelines.cli", "ablate", "--config", str(config), "--out", str(out), *more]
    return subprocess.Popen(command, cwd=ROOT, env=environment, text=True, start_new_session=True,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT)  # fmt: skip


def ended(process: subprocess.Popen) -> tuple[int, str]:
    """Exit code and what was printed. Ended, with all it started, after TIMEOUT_S."""
    try:
        printed = process.communicate(timeout=TIMEOUT_S)[0]
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise AssertionError(f"not done after {TIMEOUT_S} s:\n{process.communicate()[0]}") from None
    return process.returncode, printed


def wait_for(path: Path, process: subprocess.Popen) -> None:
    end = time.monotonic() + TIMEOUT_S
    while not path.exists():
        if process.poll() is not None or time.monotonic() > end:
            os.killpg(process.pid, signal.SIGKILL)
            raise AssertionError(f"{path} did not come:\n{process.communicate()[0]}")
        time.sleep(0.05)


@dataclass
class Story:
    folder: Path
    out: Path
    cut: tuple[int, str]
    kept: dict[Path, int]
    """Scores that were there when it was cut, and when each was written."""
    resumed: tuple[int, str]


@pytest.fixture(scope="module")
def story(tmp_path_factory) -> Story:
    """Ctrl-C once the first run has its scores, then the same command again."""
    folder = tmp_path_factory.mktemp("ablation")
    config, out = written(folder), folder / "out"
    process = ablate(config, out, "--jobs", "1")
    wait_for(out / "plain-0" / "scores.json", process)
    process.send_signal(signal.SIGINT)
    cut = ended(process)
    kept = {path: path.stat().st_mtime_ns for path in out.glob("*/scores.json")}
    return Story(folder, out, cut, kept, ended(ablate(config, out, "--jobs", "2")))


@pytest.mark.slow
def test_a_cut_ablation_ends_at_once_with_what_it_has(story):
    code, printed = story.cut
    assert code == 130 and "Traceback" not in printed
    assert 1 <= len(story.kept) < 4
    assert (story.folder / "clips" / "instances.json").exists(), "made on demand"


@pytest.mark.slow
def test_what_was_scored_is_not_made_again(story):
    assert {path: path.stat().st_mtime_ns for path in story.kept} == story.kept


@pytest.mark.slow
def test_a_run_that_fails_is_told_and_the_others_are_done(story):
    code, printed = story.resumed
    assert code == 1, printed
    assert "failed: diverging, seed 0: " in printed and "not finite" in printed
    scores = json.loads((story.out / "results.json").read_text())
    assert sorted((one["variant"], one["seed"]) for one in scores) == [
        ("crossed", 0), ("crossed", 1), ("matched", 0), ("plain", 0), ("plain", 1)]  # fmt: skip
    for one in scores:
        rule = "masktrack" if one["variant"] == "matched" else "cosine_iou"
        assert 0 <= one["AP"] <= 1 and one["visible"] > 0 and one["association"] == rule
        assert json.loads((story.out / f"{one['variant']}-{one['seed']}" / "scores.json").read_text()) == one


@pytest.mark.slow
def test_the_table_and_the_picture(story):
    lines = (story.out / "table.md").read_text().splitlines()
    found = [line.strip("|").split("|") for line in lines if line.startswith(("| no", "| Cr"))]
    rows = [[cell.strip() for cell in line] for line in found]
    assert [(row[0], row[2], row[7]) for row in rows] == [
        ("no crossover", "2", "33.5"), ("CrossVIS", "2", "34.8 ± 0.25")]  # fmt: skip
    assert not any("a step too far" in line for line in lines), "no run of it was scored"
    assert (story.out / "ablation.png").stat().st_size > 1000


@pytest.mark.slow
def test_every_run_is_its_own(story):
    """Other seeds and other losses give other weights; all begin with those of the stills."""
    begun = read_weights(story.out / "pretraining" / "weights.safetensors")
    assert begun.network == "condinst"
    names = [path.parent.name for path in story.out.glob("*/scores.json") if path.parent.name != "matched-0"]
    weights = [read_weights(story.out / name / "weights.safetensors") for name in names]
    heads = {tuple(one.state["controller.bias"].tolist()) for one in weights}
    assert len(heads) == len(names) == 4
    for name in names:
        training = yaml.safe_load((story.out / name / "training.yaml").read_text())
        assert training["start_from"] == str(story.out / "pretraining" / "weights.safetensors")
        assert training["seed"] == int(name[-1])


@pytest.mark.slow
def test_weights_are_shared_where_use_alone_differs(story):
    assert not (story.out / "matched-0" / "weights.safetensors").exists()
    network = yaml.safe_load((story.out / "matched-0" / "network.yaml").read_text())
    assert network["weights"] == str(story.out / "crossed-0" / "weights.safetensors")


@pytest.mark.slow
def test_other_settings_need_another_folder(maskstream, story):
    words = ("ablate", "--config", story.folder / "ablation.yaml", "--out", story.out, "--set")
    before = (story.out / "plain-0" / "training.yaml").read_bytes()
    done = maskstream(*words, "training.steps=9")
    assert done.returncode == 2
    assert "scored with other settings. Go on with the same, or use another --out." in done.stderr
    assert (story.out / "plain-0" / "training.yaml").read_bytes() == before, "the file still says what the run was"
    done = maskstream(*words, "pretraining.steps=9")
    assert done.returncode == 2 and "pretraining: made with other settings." in done.stderr


@pytest.mark.parametrize("more, message", [
    pytest.param(["--set", "seed=1"], "seed: no such setting. Did you mean seeds?", id="unknown setting"),
    pytest.param(["--only", "plane"], "--only plane: no variant or table is called that. Did you mean plain?",
                 id="unknown variant"),
    pytest.param(["--seeds", "0"], "--seeds 0", id="no seed"),
    pytest.param(["--set", "training.workers.num_workers=2"], "a run of an ablation is one process", id="two workers"),
    pytest.param(["--set", "network.model.chanels=2"],
                 "out/plain-0/network.yaml, model.chanels: no such setting. Did you mean channels?",
                 id="unknown setting of the network"),
])  # fmt: skip
def test_what_is_wrong_is_told_before_anything_is_made(maskstream, tmp_path, more, message):
    done = maskstream("ablate", "--config", written(tmp_path), "--out", tmp_path / "out", *more)
    assert done.returncode == 2 and message in done.stderr, done.stderr
    assert not (tmp_path / "clips").exists() and not (tmp_path / "out").exists()
