"""`maskstream evaluate youtube-vis` from the command line to what is printed."""

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from operators.youtube_vis import METRICS, Scores
from pipelines.cli import main
from pipelines.youtube_vis_show import print_scores

FULL = {"size": [1, 2], "counts": "02"}
VIDEO = {"id": 1, "width": 2, "height": 1, "length": 1, "file_names": ["a/0.jpg"]}
TRACK = {"id": 1, "video_id": 1, "category_id": 1, "iscrowd": 0, "segmentations": [FULL], "bboxes": [[0, 0, 2, 1]],
         "areas": [2], "occlusion": ["severe_occlusion"]}  # fmt: skip
TRUTH = {"videos": [VIDEO], "categories": [{"id": 1, "name": "star"}, {"id": 2, "name": "moon"}],
         "annotations": [TRACK]}  # fmt: skip
RESULT = {"video_id": 1, "category_id": 1, "score": 0.5, "segmentations": [FULL]}


def printed(scores: Scores, width: int | None = None) -> list[str]:
    """Lines as a terminal of so many columns shows them, or a file."""
    file = io.StringIO()
    console = Console(file=file, width=width or 80, force_terminal=width is not None, color_system=None,
                      highlight=False)  # fmt: skip
    print_scores(scores, console)
    return file.getvalue().splitlines()


def scores_of(names: list[str], **more) -> Scores:
    row = dict.fromkeys(METRICS, 0.25) | {"APl": -1.0}
    return Scores(row, dict.fromkeys(names, row) | {"empty": dict.fromkeys(METRICS, -1.0)}, **more)


def test_a_file_gets_every_number():
    lines = printed(scores_of(["star", "a_category_with_a_very_long_name_indeed"]))
    cells = {line.rsplit(maxsplit=12)[0].strip(): line.split()[-12:] for line in lines if line.count("0.250") == 11}
    expected = ["0.250"] * 5 + ["-"] + ["0.250"] * 6
    assert cells == dict.fromkeys(["star", "a_category_with_a_very_long…", "all categories"], expected)
    assert "1 of 3 categories have no objects and are in no mean." in lines
    assert next(line for line in lines if "AP50" in line).split() == ["category", *METRICS]


@pytest.mark.parametrize("width, metrics", [(130, 12), (100, 12), (99, 9), (79, 9), (78, 6), (20, 6)])
def test_a_narrow_terminal_gets_fewer(width, metrics):
    lines = printed(scores_of(["star"]), width)
    header = next(line for line in lines if "category" in line and "AP50" in line)
    assert len(header.split()) == 1 + metrics or width == 20
    assert any("Not shown for want of width: ARs" in line for line in lines) == (metrics < 12) or width == 20
    if width > 20:
        assert max(map(len, lines)) <= width


def test_levels_of_occlusion_and_notes():
    row = {"AP": 0.5, "AP50": 0.5, "AP75": 0.5, "AR1": -1.0, "AR10": 0.5, "AR100": 0.5, "objects": 12}
    lines = printed(scores_of(["[red]star\x1b[0m"], occlusion={"light": row}, notes=("3 results are of [b].",)))
    assert any(line.split() == ["light", "0.500", "0.500", "0.500", "-", "0.500", "0.500", "12"] for line in lines)
    assert any("[red]star?[0m" in line for line in lines) and "note: 3 results are of [b]." in lines


@pytest.fixture
def run(tmp_path, capsys):
    """Write both files, run the command, give its exit code and what it printed."""

    def command(truth=TRUTH, results=(RESULT,), *options: str):
        for name, content in (("gt.json", truth), ("results.json", results)):
            text = content if isinstance(content, str) else json.dumps(content)
            (tmp_path / name).write_bytes(text.encode("utf-8", "surrogatepass"))
        code = main(["evaluate", "youtube-vis", str(tmp_path / "gt.json"), str(tmp_path / "results.json"), *options])
        return code, *capsys.readouterr()

    return command


def test_the_command(run, tmp_path):
    code, out, _ = run(TRUTH, [RESULT, {**RESULT, "category_id": 7}], "--json", str(tmp_path / "scores.json"),
                       "--plots", str(tmp_path / "plots"), "--workers", "1")  # fmt: skip
    assert code == 0
    assert all(word in out for word in ("star", "all categories", "heavy", "note: 1 results are of categories not"))
    written = json.loads((tmp_path / "scores.json").read_text())
    assert list(written) == [*METRICS, "per_category", "occlusion", "notes"]
    assert list(written["per_category"]["star"]) == list(METRICS)
    assert written["per_category"]["moon"] == dict.fromkeys(METRICS, -1.0)
    assert written["AP"] == pytest.approx(1, abs=1e-12) and written["occlusion"]["heavy"]["objects"] == 1
    assert len(list((tmp_path / "plots").glob("*.png"))) == 3


@pytest.mark.parametrize("results, official, code", [([], (), 0), ([], ("--official-faults",), 2)])
def test_no_result_at_all(run, results, official, code):
    assert run(TRUTH, results, *official)[0] == code


@pytest.mark.parametrize("options, message", [
    (("--json", "no/folder/scores.json"), "no/folder/scores.json: cannot be written"),
    (("--workers", "0"), "workers is 0; expected at least 1."),
])
def test_options_that_cannot_be(run, options, message):
    code, _, err = run(TRUTH, [RESULT], *options)
    assert code == 2 and message in err


def with_result(**changes) -> dict:
    return {"results": [{**RESULT, **changes}]}


def with_track(**changes) -> dict:
    return {"truth": {**TRUTH, "annotations": [{**TRACK, **changes}]}}


NESTED = [[]]
for _ in range(400):
    NESTED = [NESTED]

HOSTILE = [
    pytest.param(with_result(segmentations=[{"size": [1, 2], "counts": "0oooooo1"}]), id="counts that overflow"),
    pytest.param(with_result(segmentations=[{"size": [1, 2], "counts": "03"}]), id="counts that do not fit"),
    pytest.param(with_result(segmentations=[{"size": [1, 2], "counts": "3O"}]), id="counts below 0"),
    pytest.param(with_result(segmentations=[{"size": [1, 2], "counts": "é\ud800"}]), id="counts that are not ASCII"),
    pytest.param(with_result(segmentations=[{"size": [10**9, 10**9], "counts": "02"}]), id="size of 10^9"),
    pytest.param(with_result(segmentations=[{"size": NESTED, "counts": "02"}]), id="size nested"),
    pytest.param(with_result(segmentations=[{"size": [1, 2], "counts": [0, 2]}]), id="uncompressed result"),
    pytest.param(with_result(score=float("nan")), id="score not a number"),
    pytest.param(with_result(score=float("inf")), id="score infinite"),
    pytest.param(with_result(video_id="1"), id="video id as text"),
    pytest.param(with_result(category_id=True), id="category id as truth value"),
    pytest.param(with_result(video_id=2), id="video that is not there"),
    pytest.param({"results": json.dumps([RESULT])[:-9]}, id="results cut short"),
    pytest.param({"results": "[" * 200_000}, id="results nested without end"),
    pytest.param({"results": '[{"score": ' + "9" * 5000 + "}]"}, id="a number of 5000 digits"),
    pytest.param({"results": '[{"score": 1, "score": 2}]'}, id="key twice"),
    pytest.param({"results": ""}, id="no bytes"),
    pytest.param({"results": "\0" * 1000}, id="zero bytes"),
    pytest.param({"truth": json.dumps(TRUTH)[:-30]}, id="ground truth cut short"),
    pytest.param({"truth": {**TRUTH, "annotations": None}}, id="no annotations"),
    pytest.param({"truth": {**TRUTH, "videos": [{**VIDEO, "width": 10**9, "height": 10**9}]}}, id="video of 10^18"),
    pytest.param({"truth": {**TRUTH, "videos": [{**VIDEO, "id": "1"}]}}, id="video id of truth as text"),
    pytest.param(with_track(id=None), id="annotation without id"),
    pytest.param(with_track(areas=[float("nan")]), id="area not a number"),
    pytest.param(with_track(segmentations=[{"size": [1, 2], "counts": [2**62, 2**62, 2**63 + 2]}]), id="sum wraps"),
    pytest.param(with_track(segmentations=[{"size": [1, 2], "counts": [-1, 3]}]), id="runs below 0"),
    pytest.param(with_track(segmentations=[{"size": [1, 2], "counts": NESTED}]), id="runs nested"),
    pytest.param(with_track(segmentations=[NESTED]), id="polygon nested"),
    pytest.param(with_track(segmentations=[[[0, 0, 1e300, 0, 1e300, 1e300]]]), id="polygon without end"),
    pytest.param(with_track(occlusion=["who knows"]), id="unknown label"),
]


@pytest.mark.parametrize("files", HOSTILE)
def test_hostile_files_give_one_clear_error(run, files):
    code, out, err = run(**files)
    (line,) = err.strip().splitlines()
    assert (code, out) == (2, "")
    assert line.startswith("error: ") and len(line) < 700 and (".json" in line)
