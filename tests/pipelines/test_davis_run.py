"""DAVIS as a task: a network over sequences to proposals and J&F, in one command, and what it refuses."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from models.tltm import TLTM
from operators.davis import main_evaluate
from operators.davis_data import find_truth
from operators.errors import ConfigError, DatasetError
from operators.masks import decode_masks
from operators.proposals import ProposalsConfig
from operators.shapes import PRESETS, write_youtube_vis
from operators.sinks import SinkConfig
from operators.weights import save_weights
from pipelines.cli import main
from pipelines.evaluation import EvaluationPlan, run_davis, score_davis
from pipelines.networks import as_plain, read_network
from tests.models.small import shake
from tests.operators.small_objects import finding
from tests.pipelines.small_relations import with_weights

pytestmark = pytest.mark.usefixtures("one_thread")

TINY = "configs/networks/tiny.yaml"
ONE = EvaluationPlan(num_cpus=1, device="cpu")


@pytest.fixture(scope="module")
def davis(tmp_path_factory) -> Path:
    """Two generated clips as DAVIS has its sequences; a third, which its list does not name, has no frame."""
    clips, root = tmp_path_factory.mktemp("clips"), tmp_path_factory.mktemp("davis")
    write_youtube_vis(clips, replace(PRESETS["easy"], num_frames=4), seed=9, num_clips=2)
    told = json.loads((clips / "instances.json").read_text())
    images, maps = root / "JPEGImages" / "480p", root / "Annotations_unsupervised" / "480p"
    images.parent.mkdir()
    (clips / "JPEGImages").rename(images)
    for video in told["videos"]:
        name = Path(video["file_names"][0]).parent.name
        (maps / name).mkdir(parents=True)
        tracks = [one["segmentations"] for one in told["annotations"] if one["video_id"] == video["id"]]
        for t, file in enumerate(video["file_names"]):
            masks = decode_masks([_compressed(track[t]) for track in tracks], video["height"], video["width"])
            labels = (masks * np.arange(1, len(tracks) + 1)).max(2).astype(np.uint8)
            Image.fromarray(labels).save(maps / name / f"{Path(file).stem}.png")
    (maps / "unlisted").mkdir()
    (root / "ImageSets" / "2017").mkdir(parents=True)
    (root / "ImageSets" / "2017" / "val.txt").write_text("".join(f"{one.name}\n" for one in sorted(images.iterdir())))
    return root


def _compressed(rle):
    from pycocotools import mask as coco

    if rle is None or isinstance(rle["counts"], str):
        return rle
    return coco.frPyObjects(rle, *rle["size"])


def scored(spec, root: Path, out: Path, **sinks):
    return score_davis(run_davis(spec, root, None, out, replace(ONE, sinks=SinkConfig(**sinks))))


def test_the_shipped_network_finds_the_objects_of_generated_sequences(davis, tmp_path):
    scores = scored(read_network(TINY), davis, tmp_path)
    assert scores.overall["J&F-Mean"] > 0.5 and list(scores.per_sequence) == ["clip_00000", "clip_00001"]
    kept = json.loads((tmp_path / "scores.json").read_text())
    assert kept.pop("association") == "cosine_iou" and kept == scores.as_json()
    assert main_evaluate(davis, tmp_path).overall == scores.overall, "as `maskstream evaluate davis`"
    maps = sorted((tmp_path / "clip_00000" / "davis").iterdir())
    assert [path.name for path in maps] == [f"{t:05d}.png" for t in range(4)]


def test_tltm_gives_at_most_twenty_proposals_and_its_classes_do_not_count(davis, tmp_path):
    """A network that finds too much: the best twenty stay, and every frame has its map."""
    spec = with_weights(tmp_path, detect={"min_class": 0.3, "max_iou": 0.9, "max_per_frame": 30})
    scores = scored(spec, davis, tmp_path / "best")
    first = scored(spec, davis, tmp_path / "first", davis=ProposalsConfig(choice="first", on_top="worst"))
    maps = {kind: [np.asarray(Image.open(path)) for path in sorted((tmp_path / kind).glob("*/davis/*.png"))]
            for kind in ("best", "first")}                                                                # fmt: skip
    assert [len(those) for those in maps.values()] == [8, 8]
    assert max(int(one.max()) for one in maps["best"]) == 20 >= max(int(one.max()) for one in maps["first"])
    assert any((a != b).any() for a, b in zip(*maps.values(), strict=True))
    assert all(math.isfinite(one.overall["J&F-Mean"]) for one in (scores, first))


def test_the_command_goes_on_where_it_was_cut(davis, tmp_path, capsys):
    command = ["evaluate", "run", TINY, str(davis), "--out", str(tmp_path), "--set", "sinks.davis.min_score=0.3"]
    assert main([*command, "--device", "cpu"]) == 0
    shown = capsys.readouterr().out
    assert "all" in shown and "objects of 2 sequences" in shown and "association: cosine_iou; " in shown
    assert shown.rstrip().endswith("scores.json")
    (tmp_path / "scores.json").unlink()
    assert main([*command, "--device", "cpu"]) == 0
    again = capsys.readouterr().out
    assert again.split("association")[0] == shown.split("association")[0] and "frames/s" not in again
    assert main([*command[:-1], "sinks.davis.min_score=0.4", "--device", "cpu"]) == ConfigError("").exit_code


def test_the_shipped_files_are_one_command(davis, tmp_path, monkeypatch, capsys):
    """As README has it, but for the network's size: the folder where the dataset's file says, under its own name."""
    monkeypatch.chdir(tmp_path)
    command = ["evaluate", "run", "configs/networks/tltm_r101_davis.yaml", "configs/datasets/davis_2019.yaml"]
    assert main(command) == DatasetError("").exit_code
    assert "data/DAVIS does not exist. Make it by: unpacking DAVIS-2017-Unsupervised" in capsys.readouterr().err
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "DAVIS").symlink_to(davis)
    small = ["model.num_classes=3", "model.input.short_side=64", "model.input.long_side=96", "model.channels=8",
             "model.backbone.blocks=[1, 1, 1, 1]", "model.backbone.stem_channels=6", "model.backbone.mid_channels=4",
             "model.fcos.tower_convs=1", "model.fcos.groups=2", "model.object_dim=16", "model.graph_hidden=8"]
    spec = read_network(command[2], small)
    network = TLTM(spec.config)
    shake(network, 0)
    state = finding(network).state_dict()
    save_weights(tmp_path / "small.safetensors", state, "tltm", as_plain(spec.config), ("a", "b", "c"))
    chosen = [f"--set=network.{one}" for one in (*small, "weights=small.safetensors")]
    assert main([*command, *chosen, "--device", "cpu"]) == 0
    shown = capsys.readouterr().out
    assert "objects of 2 sequences" in shown and "association: edges; " in shown
    maps = [np.asarray(Image.open(path)) for path in sorted(Path("runs/evaluation").glob("*/davis/*.png"))]
    assert len(maps) == 8 and 0 < max(int(one.max()) for one in maps) <= 20
    assert json.loads(Path("runs/evaluation/scores.json").read_text())["association"] == "edges"


@pytest.mark.parametrize("change, message", [
    pytest.param(lambda root: root / "absent", "is no folder; expected the ground truth", id="no folder"),
    pytest.param(lambda root: root / "JPEGImages" / "480p", "has no folder of images .*--image-root", id="no images"),
])
def test_folders_that_are_no_davis(davis, tmp_path, change, message):
    with pytest.raises(DatasetError, match=message):
        run_davis(read_network(TINY), change(davis), None, tmp_path / "out", ONE)
    assert not (tmp_path / "out").exists()


def test_label_maps_alone_have_their_images_beside_them_or_where_it_is_said(davis, tmp_path):
    alone = tmp_path / "Annotations"
    alone.mkdir()
    (alone / "clip_00000").symlink_to(davis / "Annotations_unsupervised" / "480p" / "clip_00000")
    with pytest.raises(DatasetError, match="has no folder of images for sequence clip_00000"):
        find_truth(alone)
    there = davis / "JPEGImages" / "480p"
    assert find_truth(alone, there).names == ("clip_00000",) and find_truth(alone, there).images == there
    (tmp_path / "JPEGImages").symlink_to(there)
    assert find_truth(alone).images == tmp_path / "JPEGImages"
    assert find_truth(davis).images == there and len(find_truth(davis).names) == 2


def test_annotated_sequences_of_davis_end_to_end(media, tmp_path):
    """Frames and masks as published, void pixels among them: two short sequences, by names of a list of our own."""
    root, names = tmp_path / "DAVIS", ("bear", "tennis")
    for kind, of in (("JPEGImages", "JPEGImages"), ("Annotations_unsupervised", "Annotations")):
        (root / kind / "480p").mkdir(parents=True)
        for name in names:
            (root / kind / "480p" / name).symlink_to(media / "annotated" / of / name)
    (root / "ImageSets" / "2017").mkdir(parents=True)
    (root / "ImageSets" / "2017" / "short.txt").write_text("\n".join(names))
    spec = with_weights(tmp_path)
    scores = score_davis(run_davis(spec, root, None, tmp_path / "out", ONE, subset="short"))
    assert list(scores.per_sequence) == list(names) and len(scores.per_sequence["tennis"].objects) == 2
    for name in names:
        truth = sorted(path.name for path in (root / "Annotations_unsupervised" / "480p" / name).glob("*.png"))
        found = sorted((tmp_path / "out" / name / "davis").iterdir())
        assert [path.name for path in found] == truth
        assert {Image.open(path).mode for path in found} == {"P"}
    assert 0 <= scores.overall["J&F-Mean"] <= 1 and scores.overall == main_evaluate(
        root, tmp_path / "out", subset="short").overall
