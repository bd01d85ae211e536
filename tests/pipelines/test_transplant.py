"""CenterMask2's rows of COCO's classes in networks of YouTube-VIS 2019: which, what the rest is, and what is refused.

Source of what is expected: TLTM specification 6 for the rows, 2.4 and 2.7 for how the others begin.
"""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from models import NETWORKS
from models.importers import RELEASES
from operators.class_names import CLASS_NAMES
from operators.errors import CheckpointError, ConfigError
from operators.weights import read_weights, start_from
from pipelines.cli import main
from pipelines.networks import read_checkpoint, read_network
from pipelines.transplant import class_rows
from pipelines.weights import import_release, save_import
from tests.models import releases
from tests.models.releases import filled
from tests.models.test_importers_tltm import centermask
from tests.operators.datasets.test_class_maps import BY_ROW

COCO = replace(releases.SMALL, blocks=(1, 1, 1, 1), classes=80)
LAYERS = {"fcos.class_logits": "proposal_generator.fcos_head.cls_logits",
          "mask_head.logits": "roi_heads.mask_head.predictor"}                                            # fmt: skip
MODEL = {
    "num_classes": 40, "channels": COCO.channels, "fcos": {"groups": 2},
    "backbone": {"blocks": list(COCO.blocks), "stem_channels": COCO.stem, "mid_channels": COCO.mid},
}  # fmt: skip
RELATIONS = {"object_dim": 16, "graph_hidden": 8}
FRESH_ROWS = [k for k in range(40) if k not in BY_ROW.values()]


def settings(folder: Path, network: str = "centermask", **changes) -> str:
    path = folder / f"{network}.yaml"
    path.write_text(yaml.safe_dump({"network": network, "model": {**MODEL, **changes}}))
    return str(path)


def coco_file(folder: Path, sizes=COCO, **changes: torch.Tensor) -> Path:
    """As CenterMask2 saves it, with the mask IoU head."""
    path = folder / "centermask2.pth"
    torch.save({"model": filled(centermask(sizes, scored=True)) | changes, "iteration": 1}, path)
    return path


def brought(folder: Path, network: str, name: str = "weights"):
    done = import_release(coco_file(folder), "centermask2", network, transplant_classes=True)
    save_import(done, folder / f"{name}.safetensors")
    return done, read_weights(folder / f"{name}.safetensors")


@pytest.mark.parametrize("kind, more", [("centermask", {}), ("tltm", RELATIONS)])
def test_nineteen_rows_are_the_files_and_the_others_are_fresh(tmp_path, kind, more):
    done, read = brought(tmp_path, settings(tmp_path, kind, **more))
    file = torch.load(done.source, weights_only=True)["model"]
    for ours, theirs in LAYERS.items():
        for one in ("weight", "bias"):
            mine, given = read.state[f"{ours}.{one}"], file[f"{theirs}.{one}"]
            assert len(mine) == 40 and all(torch.equal(mine[k], given[row]) for row, k in BY_ROW.items())
    classes, masks = (read.state[f"{ours}.weight"][FRESH_ROWS] for ours in LAYERS)
    assert classes.std().item() == pytest.approx(0.01, rel=0.1) and masks.std().item() == pytest.approx(1e-3, rel=0.2)
    assert read.state["fcos.class_logits.bias"][FRESH_ROWS].tolist() == pytest.approx([-math.log(99)] * 21)
    assert not read.state["mask_head.logits.bias"][FRESH_ROWS].any()
    tower = "roi_heads.mask_head.mask_fcn3.bias"
    assert torch.equal(read.state["mask_head.convs.2.bias"], file[tower]), "the rest as without the option"


def test_fresh_rows_are_the_same_for_everybody_and_as_without_the_option(tmp_path):
    network = settings(tmp_path)
    _, first = brought(tmp_path, network)
    torch.manual_seed(9)
    _, second = brought(tmp_path, network, "again")
    assert all(torch.equal(value, second.state[name]) for name, value in first.state.items())
    plain = import_release(tmp_path / "centermask2.pth", "centermask2", network)
    of_classes = {name for name in first.state if name.startswith(tuple(LAYERS))}
    assert plain.rows is None and not plain.report.partial and of_classes <= plain.report.fresh.keys(), "never unasked"
    for name, value in plain.state.items():
        rows = FRESH_ROWS if name in of_classes else slice(None)
        assert torch.equal(first.state[name][rows] if value.dim() else first.state[name],
                           value[rows] if value.dim() else value), name                                   # fmt: skip


def test_the_file_knows_its_classes_and_begins_training_alone(tmp_path):
    done, read = brought(tmp_path, settings(tmp_path))
    names = CLASS_NAMES["youtube-vis-2019"]
    assert read.classes == names and sorted(json.loads(read.metadata["fresh"])) == sorted(done.report.partial)
    copied = json.loads(read.metadata["transplanted"])
    assert copied == [names[k] for k in sorted(BY_ROW.values())] and tuple(copied) == done.rows.copied
    spec = replace(read_network(settings(tmp_path)), weights=tmp_path / "weights.safetensors")
    with pytest.raises(CheckpointError, match="for training alone: fcos.class_logits.weight"):
        read_checkpoint(spec)
    for kind, more in (("centermask", {}), ("tltm", RELATIONS)):
        config = read_network(settings(tmp_path, kind, **more)).config
        begun = NETWORKS[kind][0](config)
        left = start_from(begun, read.state, "weights")
        assert not any(name.startswith(tuple(LAYERS)) for name in left), "the rows are taken"
        assert all(name.startswith(("fuser.", "encoder.", "graph.")) for name in left)
        assert bool(left) == (kind == "tltm")
        assert torch.equal(begun.fcos.class_logits.weight, read.state["fcos.class_logits.weight"])


def test_the_command_names_every_class_once(tmp_path, capsys):
    out = tmp_path / "w.safetensors"
    words = [str(coco_file(tmp_path)), "--release", "centermask2", "--network", settings(tmp_path), "--out", str(out)]
    assert main(["weights", "import", *words, "--transplant-classes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    (copied,) = (line for line in lines if line.startswith("rows of 19 classes copied: "))
    (fresh,) = (line for line in lines if line.startswith("rows of 21 classes as initialised: "))
    assert copied.endswith("boat 33 <- boat 8, tennis_racket 39 <- tennis racket 38") and "sedan 5 <- car 2," in copied
    told = [part.split(" ")[0] for line in (copied, fresh) for part in line.split(": ")[1].split(", ")]
    assert sorted(told) == sorted(CLASS_NAMES["youtube-vis-2019"]) and "mouse 35" in fresh
    assert "used in part, the other rows as initialised:" in lines
    assert any("19 of 40 rows from the 80 of roi_heads.mask_head.predictor.weight" in line for line in lines)
    assert "for training alone: 4 tensors that inference reads are yet to be trained" in lines
    assert main(["weights", "show", str(out)]) == 0 and 'transplanted  ["person", ' in capsys.readouterr().out
    assert main(["weights", "import", *words]) == 0
    assert "rows of" not in capsys.readouterr().out and read_weights(out).classes == ()


def test_help_names_every_release(capsys):
    assert main(["weights", "import", "--help"]) == 0
    told = capsys.readouterr().out
    begins = {line.split()[0] for line in told.splitlines() if line.startswith("  ") and line.split()}
    assert RELEASES.keys() <= begins and "--transplant-classes" in told


@pytest.mark.parametrize("classes", [40, 79, 81])
def test_files_of_other_classes_than_coco(tmp_path, classes):
    source = coco_file(tmp_path, replace(COCO, classes=classes))
    with pytest.raises(CheckpointError, match=rf"centermask2.pth, --transplant-classes: .*cls_logits.weight is "
                                              rf"\({classes}, .*expected \(80, .*leave the option out"):  # fmt: skip
        import_release(source, "centermask2", settings(tmp_path), transplant_classes=True)


def test_masks_of_other_classes_than_the_scores(tmp_path):
    """As a head for one class alone has: the option takes both or none."""
    source = coco_file(tmp_path, **{"roi_heads.mask_head.predictor.bias": torch.zeros(1)})
    with pytest.raises(CheckpointError, match=r"predictor.bias is \(1,\), expected \(80,\)"):
        import_release(source, "centermask2", settings(tmp_path), transplant_classes=True)


@pytest.mark.parametrize("release, network, message", [
    pytest.param("tltm", {}, "of --release tltm cannot be copied one by one, those of centermask2 can", id="release"),
    pytest.param("centermask2", {"num_classes": 25}, "centermask.yaml has model.num_classes: 25", id="OVIS"),
])
def test_what_the_option_is_not_for(tmp_path, release, network, message):
    with pytest.raises(ConfigError, match=message):
        class_rows(release, read_network(settings(tmp_path, **network)))


def test_names_of_other_classes_are_refused(tmp_path):
    done = import_release(coco_file(tmp_path), "centermask2", settings(tmp_path), transplant_classes=True)
    with pytest.raises(ConfigError, match="youtube-vis-2021: with --transplant-classes .* Leave --classes out"):
        save_import(done, tmp_path / "w.safetensors", "youtube-vis-2021")
    assert save_import(done, tmp_path / "w.safetensors", "youtube-vis-2019") == CLASS_NAMES["youtube-vis-2019"]
