"""The command line: what is wrong with it is told in one line, with exit code 2, before any work."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from operators.errors import ConfigError
from operators.sources import Source
from pipelines.cli import main
from pipelines.commands.run import refuse_inputs

ROOT = Path(__file__).resolve().parents[2]
RUN = ["run", "a.mp4"]
NETWORK, GRAPH = "configs/networks/tiny.yaml", "configs/graphs/offline.yaml"
TRAINING, WEIGHTS = "configs/training/tiny.yaml", "models/weights/tiny.safetensors"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        pytest.param([], "the following arguments are required: COMMAND", id="nothing"),
        pytest.param(["rum"], "invalid choice: 'rum'", id="no-command"),
        pytest.param(["run"], "the following arguments are required: SOURCE", id="no-source"),
        pytest.param([*RUN, "--executor", "rai"], "invalid choice: 'rai'", id="no-executor"),
        pytest.param(["evaluate"], "the following arguments are required: BENCHMARK", id="no-benchmark"),
        pytest.param(["shapes", "--out", "x", "--clips", "many"], "invalid int value: 'many'", id="no-number"),
        pytest.param(["train", "x.yaml", "--preview", "x.png", "--resume"], "not allowed with argument", id="both"),
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
        pytest.param([*RUN, "--graph", NETWORK], "this is the file of a network, but a graph is", id="net"),
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
        pytest.param(["ablate", "--seeds", "99999999"], "--seeds 99999999: expected 1 to 1000.", id="seeds"),
        pytest.param(["evaluate", "mot", "t.json", "r.json", "--min-score", "nan"], "--min-score nan: exp", id="nan"),
        pytest.param(["dataset", "show", "t.json", "--out", "x.mp4", "--fps", "nan"], "--fps nan: expected", id="fps"),
        pytest.param(["graph", "show", GRAPH, "--out", GRAPH], "offline.yaml: is the input; give", id="graph-itself"),
        pytest.param(["evaluate", "youtube-vis", "no.json", "no.json"], "no.json: ", id="ground-truth"),
    ],
)
def test_settings(argv, message, capsys):
    assert main(argv) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: ") and message in line


@pytest.mark.parametrize(
    ("argv", "came", "command"),
    [
        pytest.param(["train", NETWORK], "a network", "Did you mean configs/training/tiny.yaml?", id="network"),
        pytest.param(["train", "tiny"], "no such file", "Did you mean configs/training/tiny.yaml?", id="name to train"),
        pytest.param(["train", GRAPH], "a graph", f"`maskstream graph show {GRAPH}`", id="graph to train"),
        pytest.param(["train", WEIGHTS], "a file of weights", f"`maskstream weights show {WEIGHTS}`", id="weights"),
        pytest.param(["train", "configs"], "is a folder, but a training run is expected", "as configs/", id="folder"),
        pytest.param([*RUN, "--network", TRAINING], "a training run", f"mean its network, {NETWORK}?", id="run"),
        pytest.param(["run", TRAINING], "a training run, but a SOURCE", f"`maskstream train {TRAINING}`", id="source"),
        pytest.param(["run", WEIGHTS], "a file of weights, but a SOURCE", "`maskstream weights show", id="weights run"),
        pytest.param(["chaos", GRAPH, NETWORK], "a network, but a SOURCE", "maskstream run SOURCE", id="chaos source"),
        pytest.param(["chaos", GRAPH, "a.mp4", "--scenario", TRAINING], "a training run, but a scenario",
                     "as configs/chaos/kills.yaml", id="scenario"),
        pytest.param(["ablate", "--config", TRAINING], "a training run, but an ablation", "maskstream train", id="abl"),
        pytest.param(["ablate", "configs/ablations/iai.yaml"], "without folder and ending", "--config conf", id="n"),
        pytest.param(["ablate", "iai", "--config", "x.yaml"], "two ablations are named", "give one", id="two"),
        pytest.param(["evaluate", "run", NETWORK, TRAINING], "a training run, but a dataset", "train", id="dataset"),
        pytest.param(["weights", "show", "configs"], "is a folder, but a file of weights", "It has", id="no weights"),
        pytest.param(["weights", "show", NETWORK], "a network, but a file of weights is", "run SOURCE", id="a network"),
        pytest.param(["weights", "import", GRAPH, "--release", "cico", "--network", NETWORK, "--out", "w.safetensors"],
                     "a graph, but a file of weights is expected", "graph show", id="import of a graph"),
    ],
)  # fmt: skip
def test_another_kind_of_file_is_told_with_the_command_that_takes_it(argv, came, command, capsys):
    assert main(argv) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: ") and came in line and command in line


TRUTH = ["truth.json", "results.json"]


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        pytest.param([*RUN, "--out", "FILE/in"], "--out", id="run"),
        pytest.param([*RUN, "--out", ""], "--out", id="run into what no name says"),
        pytest.param([*RUN, "--trace", "FILE/in"], "--trace", id="trace"),
        pytest.param(["evaluate", "run", NETWORK, "configs/datasets/shapes_held_out.yaml", "--out", "FILE"], "--out",
                     id="evaluate run"),
        pytest.param(["evaluate", "youtube-vis", *TRUTH, "--json", "FILE/in"], "--json", id="youtube-vis"),
        pytest.param(["evaluate", "youtube-vis", *TRUTH, "--plots", "FILE"], "--plots", id="plots"),
        pytest.param(["evaluate", "mot", *TRUTH, "--json", "/dev/null"], "--json", id="mot"),
        pytest.param(["evaluate", "davis", *TRUTH, "--json", "FOLDER"], "--json", id="davis"),
        pytest.param(["train", "configs/training/tiny.yaml", "--out", "FILE/in"], "--out", id="train"),
        pytest.param(["train", "configs/training/tiny.yaml", "--out", ""], "--out", id="train into no name"),
        pytest.param(["train", "configs/training/tiny.yaml", "--preview", "FILE/in.png"], "--preview", id="preview"),
        pytest.param(["ablate", "--out", "FILE"], "--out", id="ablate"),
        pytest.param(["weights", "import", WEIGHTS, "--release", "cico", "--network", NETWORK, "--out",
                      "FILE/in.safetensors"], "--out", id="weights"),
        pytest.param(["demo", "--out", "FILE"], "--out", id="demo"),
        pytest.param(["demo", "--out", "FOLDER", "--animation", "FILE/in.gif"], "--animation", id="animation"),
        pytest.param(["demo", "--out", "FOLDER", "--animation", "FOLDER/in.mp4"], "--animation", id="no animation"),
        pytest.param(["shapes", "--out", "FILE/in"], "--out", id="shapes"),
        pytest.param(["shapes", "--out", "FILE", "--video", "vp9"], "--out", id="videos"),
        pytest.param(["plan", "--json", "FILE/in"], "--json", id="plan"),
        pytest.param(["graph", "show", GRAPH, "--no-bytes", "--out", "FILE/in"], "--out", id="graph"),
        pytest.param(["chaos", GRAPH, "a.mp4", "--out", "FILE/in"], "--out", id="chaos"),
        pytest.param(["dataset", "check", "t.json", "--fix", "FILE/in"], "--fix", id="fix"),
        pytest.param(["dataset", "stats", "t.json", "--json", "FILE/in"], "--json", id="stats"),
        pytest.param(["dataset", "stats", "t.json", "--plots", "FILE"], "--plots", id="stats' plots"),
        pytest.param(["dataset", "split", "t.json", "FILE/in"], "OUT_DIR", id="split"),
        pytest.param(["dataset", "show", "t.json", "--out", "FILE/in.png"], "--out", id="show"),
        pytest.param(["dataset", "convert", "t.json", "FILE/in", "--from", "ovis", "--to", "davis"], "OUT", id="dir"),
        pytest.param(["dataset", "convert", "t.json", "FILE/in", "--from", "ovis", "--to", "coco"], "OUT", id="json"),
    ],
)  # fmt: skip
def test_what_cannot_be_written_is_told_before_anything_is_read(argv, named, tmp_path, capsys):
    """Inputs are not there either: the first word is of the output, so nothing was done for it."""
    (tmp_path / "file").write_text("somebody's")
    (tmp_path / "folder").mkdir()
    places = {"FILE": tmp_path / "file", "FOLDER": tmp_path / "folder"}
    words = [word.replace("FILE", str(places["FILE"])).replace("FOLDER", str(places["FOLDER"])) for word in argv]
    assert main(words) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith(f"error: {named} ")
    assert (tmp_path / "file").read_text() == "somebody's" and not list((tmp_path / "folder").iterdir())


@pytest.mark.parametrize(
    "argv",
    [
        pytest.param([GRAPH, "--network", "configs/networks/iai_tiny.yaml"], id="network of another graph"),
        pytest.param(["configs/graphs/offline_iai.yaml"], id="graph of another network"),
        pytest.param([GRAPH, "--network", "configs/networks/crossvis_r50.yaml"], id="no weights"),
        pytest.param([GRAPH, "--set", "network.weights=/no.safetensors"], id="weights that are not there"),
        pytest.param([GRAPH, "--set", "network.weights=models/weights/iai_tiny.safetensors"], id="other weights"),
    ],
)
def test_chaos_starts_no_node_for_what_cannot_run(argv, tmp_path, capsys):
    """Nodes are started when the folder of the report is there."""
    graph, *options = argv
    assert main(["chaos", graph, "a.mp4", "--out", str(tmp_path / "out"), *options]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: ") and ("graph" in line or "weights" in line)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("source", "out", "message"),
    [
        pytest.param("a.mp4", ".", None, id="results beside the video"),
        pytest.param("a/a.mp4", ".", None, id="in a folder that is called as the video"),
        pytest.param("masks/", "out", None, id="images that are called as an output"),
        pytest.param("frames/", "frames", None, id="a folder within"),
        pytest.param("s3://bucket/a.mp4", ".", None, id="an address"),
        pytest.param("frames/", ".", "would come into HERE/frames, among what is read", id="the folder of the images"),
        pytest.param("overlay/overlay.mp4", ".", "would come into HERE/overlay", id="over the video"),
        pytest.param("b/overlay.mp4", ".", "HERE/b/overlay.mp4 is an output of an earlier run", id="an overlay"),
        pytest.param("b/masks/", ".", "HERE/b/masks is an output of an earlier run", id="its masks"),
        pytest.param("unfinished/b/overlay.mp4", ".", "is an output of an earlier run", id="what was cut"),
        pytest.param("trace.json", "out", "--trace trace.json: is a source", id="a trace"),
    ],
)  # fmt: skip
def test_outputs_do_not_come_among_the_inputs(source, out, message, tmp_path, monkeypatch):
    """In a folder that a run has written to. A name with / at its end is a folder of images."""
    (tmp_path / "manifest.json").touch()
    monkeypatch.chdir(tmp_path)
    path = source if source.startswith("s3:") else str(tmp_path / source)
    images = ("0.jpg",) if source.endswith("/") else ()
    given = Source(Path(source).stem, "images" if images else "video", path, images)
    if message is None:
        return refuse_inputs([given], Path(out), None)
    with pytest.raises(ConfigError) as caught:
        refuse_inputs([given], Path(out), "trace.json")
    assert message.replace("HERE", str(tmp_path)) in str(caught.value)


INTERRUPTED = """
from pipelines import commands
from pipelines.cli import main

def execute(args):
    {}

commands.COMMANDS["demo"].execute = execute
raise SystemExit(main(["demo"]))
"""


@pytest.mark.parametrize("body", [
    pytest.param("raise KeyboardInterrupt", id="anywhere"),
    pytest.param("exec('raise KeyboardInterrupt')", id="while a dataclass is made"),
    pytest.param("raise ImportError('initialization failed') from KeyboardInterrupt()", id="while a library is loaded"),
])  # fmt: skip
def test_ctrl_c_is_one_line_and_exit_code_130(body):
    program = [sys.executable, "-c", INTERRUPTED.format(body)]
    done = subprocess.run(program, cwd=ROOT, timeout=300, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (130, "stopped.\n")


@pytest.mark.parametrize("argv", [
    pytest.param([*RUN, "--graph", "no.yaml", "--debug"], id="of a command"),
    pytest.param(["weights", "--debug", "show", "no.pth"], id="before the action of a command"),
    pytest.param(["weights", "show", "no.pth", "--debug"], id="after it"),
])  # fmt: skip
def test_debug_shows_where_an_error_comes_from(argv, capsys):
    assert main(argv) == 2
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--help"], ["run", "shapes", "train", "evaluate", "demo", "exit codes:", "130"]),
        (["run", "--help"], ["tracks.jsonl", "results.json", "overlay.mp4", "masks/", "--set network", "examples:"]),
        (["run", "--help"], ["'day/**/*.mp4'", "s3://", "manifest.json", "failed.json", "unfinished/", "--fresh"]),
        (["evaluate", "run", "--help"], ["manifest.json", "sinks.max_per_video=50", "--fresh", "offline_iai.yaml"]),
        (["evaluate", "youtube-vis", "--help"], ["GT", "RESULTS", "--json", "examples:", "exit codes:"]),
        *((words.split(), ["examples:", "exit codes:", "130", f"maskstream {words.removesuffix(' --help')} "])
          for words in ("evaluate mot --help", "evaluate davis --help", "train --help", "ablate --help",
                        "shapes --help", "graph trace --help", "weights show --help", "demo --help")),
    ],
    ids=["all", "run", "run again", "evaluate a network", "evaluate", "mot", "davis", "train", "ablate", "shapes",
         "trace", "weights", "demo"],
)
def test_help_teaches(argv, words, capsys):
    assert main(argv) == 0
    text = capsys.readouterr().out
    assert all(word in text for word in words)
