"""`maskstream evaluate davis` and `maskstream evaluate mot` as a user runs them."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from operators.davis import METRICS
from operators.shapes import PRESETS, write_youtube_vis


def save(path, labels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(labels, np.uint8), **options).save(path)


@pytest.fixture
def davis(tmp_path):
    """A DAVIS folder of one sequence, and results that swap the numbers and miss a corner."""
    truth = np.zeros((2, 40, 60), np.uint8)
    truth[:, 5:20, 5:20], truth[:, 25:35, 30:50], truth[:, 0, :] = 1, 2, 255
    found = np.choose(np.where(truth == 255, 0, truth), [0, 2, 1])
    found[1, 25:30, 30:40] = 0
    for frame in range(2):
        save(tmp_path / f"gt/Annotations_unsupervised/480p/one/{frame:05d}.png", truth[frame])
        save(tmp_path / f"results/one/{frame:05d}.png", found[frame])
    (tmp_path / "gt/ImageSets/2017").mkdir(parents=True)
    (tmp_path / "gt/ImageSets/2017/val.txt").write_text("one\n")
    return tmp_path


def test_davis(maskstream, davis):
    done = maskstream("evaluate", "davis", davis / "gt", davis / "results", "--json", davis / "out.json", afresh=True)
    assert done.returncode == 0, done.stderr
    written = json.loads((davis / "out.json").read_text())
    assert [key for key in written if key in METRICS] == list(METRICS)
    one = written["per_sequence"]["one"]
    assert [(row["object"], row["proposal"]) for row in one["objects"]] == [(1, 2), (2, 1)]
    assert one["J-Mean"] == written["J-Mean"] == pytest.approx((1 + (1 + 150 / 200) / 2) / 2)
    assert "object 2, proposal 1" in done.stdout and "all 2 objects of 1 sequences" in done.stdout


def test_davis_says_what_is_missing(maskstream, davis):
    (davis / "results/one/00001.png").unlink()
    done = maskstream("evaluate", "davis", davis / "gt", davis / "results", "--json", davis / "out.json")
    assert done.returncode == 2 and "has no result for frame 00001.png" in done.stderr
    assert not (davis / "out.json").exists()
    save(davis / "results/one/00001.png", np.zeros((40, 60, 3)))
    done = maskstream("evaluate", "davis", davis / "gt", davis / "results")
    assert done.returncode == 2 and "00001.png: is a colour image (RGB)" in done.stderr


def test_davis_of_real_results(maskstream, media):
    """OSVOS, published: one object a sequence."""
    annotated = media / "annotated"
    results = annotated / "results_png" / "osvos"
    done = maskstream("evaluate", "davis", annotated / "Annotations", results)
    assert done.returncode == 2 and "has no folder for 5 sequences (bear, " in done.stderr


def test_davis_of_a_subset(maskstream, media, tmp_path):
    annotated = media / "annotated"
    for name in ("dog", "libby"):
        shutil.copytree(annotated / "Annotations" / name, tmp_path / "gt" / name)
    done = maskstream("evaluate", "davis", tmp_path / "gt", annotated / "results_png" / "rvos", "--official-faults")
    assert done.returncode == 0, done.stderr
    assert "all 2 objects of 2 sequences" in done.stdout


def test_mot(maskstream, tmp_path):
    """The ground truth as its own result is perfect; so it is to our own tables."""
    clips = tmp_path / "shapes"
    truth = write_youtube_vis(clips, PRESETS["easy"], seed=3, num_clips=2)
    raw = json.loads(truth.read_text())
    results = [{"video_id": a["video_id"], "category_id": a["category_id"], "score": 0.5,
                "segmentations": a["segmentations"]} for a in raw["annotations"]]  # fmt: skip
    (tmp_path / "results.json").write_text(json.dumps(results))
    done = maskstream("evaluate", "mot", truth, tmp_path / "results.json", "--json", tmp_path / "out.json")
    assert done.returncode == 0, done.stderr
    written = json.loads((tmp_path / "out.json").read_text())
    for scores in (written, written["class_averaged"], *written["per_category"].values()):
        assert scores["HOTA"] == scores["IDF1"] == scores["MOTA"] == 1 and scores["IDSW"] == 0
    assert "class-agnostic" in done.stdout
    done = maskstream("evaluate", "mot", truth, tmp_path / "results.json", "--min-score", "0.6")
    assert done.returncode == 0 and "0.0000" in done.stdout


def test_mot_without_results(maskstream, tmp_path):
    done = maskstream("evaluate", "mot", tmp_path / "none.json", tmp_path / "r.json")
    assert done.returncode == 2 and "none.json: there is no such file" in done.stderr


@pytest.mark.parametrize("benchmark", ["davis", "mot"])
def test_help_teaches(maskstream, benchmark):
    done = maskstream("evaluate", benchmark, "--help")
    assert done.returncode == 0 and "--json" in done.stdout and "RESULTS is" in done.stdout
