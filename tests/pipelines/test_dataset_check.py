"""`maskstream dataset check`: what it prints, writes and returns."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from operators.youtube_vis_data import read_dataset
from pipelines.cli import main
from pipelines.commands.dataset import ACTIONS
from tests.operators.datasets.damaged_datasets import ann, both, damaged, put, write_sound

CHECK = ["dataset", "check"]


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> Path:
    return write_sound(tmp_path_factory.mktemp("sound"))


@pytest.fixture
def broken(sound, tmp_path) -> Path:
    """Seven errors of two kinds and a warning."""
    boxes = both(ann(0, "bboxes", [None] * 4), ann(5, "bboxes", [None, None, [66, 25, 24, 24], [64, 26, 24, 23]]))
    return damaged(sound, tmp_path, both(boxes, ann(2, "category_id", 99), ann(9, "id", 42)))


def test_sound(sound, capsys):
    assert main([*CHECK, str(sound)]) == 0
    out = capsys.readouterr().out
    assert "youtube-vis: 2 videos of 8 frames, 10 annotations; images in" in out and "no faults" in out


def test_a_warning_is_no_error(sound, tmp_path, capsys):
    assert main([*CHECK, str(damaged(sound, tmp_path, ann(9, "id", 42)))]) == 0
    assert "0 errors, 1 warnings" in capsys.readouterr().out


def test_faults_are_grouped_and_counted(broken, capsys):
    assert main([*CHECK, str(broken), "--show", "2"]) == 1
    out = capsys.readouterr().out
    lines = out.splitlines()
    heading = lines.index("error  mask-without-box: masks where there is no box")
    assert lines[heading + 1] == ("  video 1 (clip_00000), annotation 1, frame 0: no box, a mask of 207 pixels; "
                                  f"expected [52, 17, 18, 21] [{broken}]")  # fmt: skip
    assert lines[heading + 3] == "  and 4 more; see --all"
    assert lines.index("error  unknown-category: annotations of categories that the file does not list") < heading
    assert "7 errors, 1 warnings" in out and "category_id is 99" in out


def test_all(broken, capsys):
    assert main([*CHECK, str(broken), "--show", "0", "--all"]) == 1
    out = capsys.readouterr().out
    assert out.count("no box, a mask of") == 6 and "more" not in out


def test_json(broken, tmp_path):
    assert main([*CHECK, str(broken), "--json", str(tmp_path / "new/report.json")]) == 1
    report = json.loads((tmp_path / "new/report.json").read_text())
    assert (report["layout"], report["errors"], report["warnings"], report["repairs"]) == ("youtube-vis", 7, 1, None)
    assert report["counts"] == {"unknown-category": 1, "mask-without-box": 6, "annotation-ids": 1}
    assert len(report["faults"]) == 8
    assert report["faults"][1] == {
        "kind": "mask-without-box", "severity": "error", "found": "no box, a mask of 207 pixels",
        "expected": "[52, 17, 18, 21]", "file": str(broken), "video_id": 1, "video": "clip_00000", "annotation_id": 1,
        "frame": 0,
    }  # fmt: skip


def test_json_of_a_sound_file(sound, tmp_path):
    assert main([*CHECK, str(sound), "--json", str(tmp_path / "report.json")]) == 0
    assert json.loads((tmp_path / "report.json").read_text())["faults"] == []


def test_fix(broken, tmp_path, capsys):
    fixed, report = tmp_path / "fixed.json", tmp_path / "report.json"
    before = broken.read_bytes()
    assert main([*CHECK, str(broken), "--fix", str(fixed), "--json", str(report)]) == 1
    out = capsys.readouterr().out
    assert "annotations[2], video 1, annotation 3: dropped, the file lists no category 99" in out
    assert "checked again: no errors, warnings: annotation-ids (1)" in out
    assert broken.read_bytes() == before and len(read_dataset(fixed).annotations) == 9
    told, *_ = json.loads(report.read_text())["repairs"]
    assert told == {"did": "boxes computed from the masks", "video_id": 1, "annotation_id": 1, "frames": [0, 1, 2, 3]}
    assert main([*CHECK, str(fixed)]) == 0


def test_names_from_the_file_are_not_markup(sound, tmp_path, capsys):
    path = damaged(sound, tmp_path, put("videos", 0, "file_names", ["[red]:smile:\x1b[2J/../0.jpg"] * 4))
    assert main([*CHECK, str(path)]) == 1
    out = capsys.readouterr().out
    assert "[red]:smile:\\x1b[2J" in out and "\x1b" not in out


@pytest.mark.parametrize(("argv", "message"), [
    pytest.param(["no.json"], "no.json: does not exist; expected an annotation JSON or a DAVIS folder.", id="no file"),
    pytest.param(["cut.json"], "cut.json: is not valid JSON", id="cut"),
    pytest.param(["a.json", "--fix", "a.json"], "a.json: is the input", id="onto the input"),
    pytest.param(["a.json", "--json", "./x/../a.json"], "a.json: is the input", id="report onto the input"),
    pytest.param(["a.json", "--fix", "b.json", "--json", "b.json"], "b.json: is named for --json and for --fix",
                 id="both into one"),
    pytest.param(["a.json", "--json", "x"], "x: is a folder", id="onto a folder"),
    pytest.param(["a.json", "--images", "y"], "y: is no folder", id="no images"),
    pytest.param(["a.json", "--layout", "davis"], "layout davis means a DAVIS folder", id="layout"),
    pytest.param(["a.json", "--box-tolerance", "nan"], "box px nan: expected a number from 0 up", id="tolerance"),
])  # fmt: skip
def test_what_cannot_be_done(argv, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.json").write_text('{"videos": [], "categories": []}')
    (tmp_path / "cut.json").write_text('{"videos": [')
    (tmp_path / "x").mkdir()
    assert main([*CHECK, *argv]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: ") and message in line
    assert (tmp_path / "a.json").read_text() == '{"videos": [], "categories": []}'
    assert not (tmp_path / "b.json").exists()


def test_davis_folders_are_checked_not_fixed(media, tmp_path, capsys):
    assert main([*CHECK, str(media / "annotated")]) == 1
    assert "sequence-empty" in capsys.readouterr().out
    assert main([*CHECK, str(media / "annotated"), "--fix", str(tmp_path / "a.json")]) == 2
    assert "maskstream dataset convert" in capsys.readouterr().err


@pytest.mark.parametrize("action", ACTIONS)
def test_help(action, capsys):
    assert main(["dataset", action, "--help"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"usage: maskstream dataset {action}") and out.count("exit codes:") == 1


def test_an_action_is_needed(capsys):
    assert main(["dataset"]) == 2
    assert "the following arguments are required: ACTION" in capsys.readouterr().err
