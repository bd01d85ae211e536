"""The command line: what is wrong with it is told in one line, with exit code 2, before any work."""

from __future__ import annotations

import pytest

from pipelines.cli import main

RUN = ["run", "a.mp4"]
NETWORK, GRAPH = "configs/networks/tiny.yaml", "configs/graphs/offline.yaml"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        pytest.param([], "the following arguments are required: COMMAND", id="nothing"),
        pytest.param(["rum"], "invalid choice: 'rum'", id="no-command"),
        pytest.param(["run"], "the following arguments are required: SOURCE", id="no-source"),
        pytest.param([*RUN, "--executor", "rai"], "invalid choice: 'rai'", id="no-executor"),
        pytest.param(["evaluate"], "the following arguments are required: BENCHMARK", id="no-benchmark"),
        pytest.param(["shapes", "--out", "x", "--clips", "many"], "invalid int value: 'many'", id="no-number"),
    ],
)
def test_usage(argv, message, capsys):
    assert main(argv) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        pytest.param(
            [*RUN, "--set", "associate.min_mach=1"],
            "configs/graphs/offline.yaml, associate.min_mach: no such setting. Did you mean min_match?",
            id="setting-of-a-stage",
        ),
        pytest.param(
            [*RUN, "--set", "asociate.min_match=1"],
            "configs/graphs/offline.yaml: 'asociate.min_match=1': no stage 'asociate'. Did you mean associate?",
            id="stage",
        ),
        pytest.param([*RUN, "--set", "network.detect.min_scor=1"], "detect.min_scor: no such setting.", id="network"),
        pytest.param([*RUN, "--set", "sinks.alpha=3"], "--set, sinks: alpha is 3.0, expected 0 to 1.", id="sinks"),
        pytest.param([*RUN, "--set", "backbone.batch"], "is not of the form key.sub=value.", id="no-value"),
        pytest.param([*RUN, "--set", "detect.min_score=1"], "Did you mean network.detect.min_score", id="no-prefix"),
        pytest.param([*RUN, "--graph", "no.yaml"], "no.yaml: no such file.", id="graph"),
        pytest.param([*RUN, "--graph", NETWORK], "the file of a network or of its training", id="net"),
        pytest.param([*RUN, "--graph", "configs/training/tiny.yaml"], "but a graph is expected", id="training"),
        pytest.param([*RUN, "--network", GRAPH], "the file of a graph, but a network is", id="no-net"),
        pytest.param([*RUN, "--network", "configs/training/tiny.yaml"], "the file of a training run", id="run"),
        pytest.param(["chaos", "configs/graphs/live.yaml", "a.mp4"], "'receive' receives frames of", id="live"),
        pytest.param([*RUN, "--network", "crossvis_r50"], "mean configs/networks/crossvis_r50.yaml?", id="name"),
        pytest.param([*RUN, "--network", "configs/networks/crossvis_r50.yaml"], "network.weights=FILE", id="bare"),
        pytest.param([*RUN, "--network", "no.yaml"], "no.yaml: no such file.", id="no-network"),
        pytest.param([*RUN, "--address", "auto"], "Add --executor ray.", id="address-without-ray"),
        pytest.param([*RUN, "--replicas", "2"], "Add --executor ray.", id="replicas-without-ray"),
        pytest.param([*RUN, "--executor", "ray", "--replicas", "0"], "--replicas 0: replicas is 0", id="no-replica"),
        pytest.param([*RUN, "--metrics"], "Add --executor ray.", id="metrics-without-ray"),
        pytest.param([*RUN, "--save", "jsnl"], "no output is called 'jsnl'. Did you mean jsonl?", id="output"),
        pytest.param([*RUN, "--save", ","], "names no output. Known: davis, jsonl, masks, video", id="no-output"),
        pytest.param(["shapes", "--out", "x", "--preset", "hrd"], "no such preset. Did you mean hard?", id="preset"),
        pytest.param(["shapes", "--out", "x", "--set", "fsp=3"], "--set, fsp: no such setting. Did you", id="shapes"),
        pytest.param(["train", "no.yaml"], "no.yaml: no such file.", id="training"),
        pytest.param(["evaluate", "youtube-vis", "no.json", "no.json"], "no.json: ", id="ground-truth"),
    ],
)
def test_settings(argv, message, capsys):
    assert main(argv) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: ") and message in line


def test_debug_shows_where_an_error_comes_from(capsys):
    assert main([*RUN, "--graph", "no.yaml", "--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--help"], ["run", "shapes", "train", "evaluate", "demo", "exit codes:", "130"]),
        (["run", "--help"], ["tracks.jsonl", "results.json", "overlay.mp4", "masks/", "--set network", "examples:"]),
        (["run", "--help"], ["'day/**/*.mp4'", "s3://", "manifest.json", "failed.json", "unfinished/", "--fresh"]),
        (["evaluate", "run", "--help"], ["manifest.json", "sinks.max_per_video=50", "--fresh", "offline_iai.yaml"]),
        (["evaluate", "youtube-vis", "--help"], ["GT", "RESULTS", "--json"]),
    ],
    ids=["all", "run", "run again", "evaluate a network", "evaluate"],
)
def test_help_teaches(argv, words, capsys):
    assert main(argv) == 0
    text = capsys.readouterr().out
    assert all(word in text for word in words)
