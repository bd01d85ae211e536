"""What a graph's drawing tells, in text, SVG and PNG; and that the bytes on its edges are those that travel."""

from __future__ import annotations

import pickle
import re
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from rich.cells import cell_len

from operators.errors import ConfigError, StageError
from operators.records import Pull
from operators.sources import Source
from pipelines.cli import main
from pipelines.config import CHECKOUT
from pipelines.graph import Graph, RunContext, load_graph
from pipelines.graph_bytes import (
    Edge,
    Part,
    frames_for,
    generated_clip,
    measure,
    network_for,
    some_weights,
)
from pipelines.graph_picture import AXIS, COLORS, as_image, as_svg, layout, thickness
from pipelines.graph_show import GraphView, amount, demand, group_words, stage_words, text_of, weight
from pipelines.group import StageGroup
from pipelines.networks import read_network
from pipelines.picture import SCALE, Line, Rect, Text, image, shortened, svg, text_width, wrapped
from pipelines.stages import STAGES
from pipelines.weight import compact
from tests.pipelines import small_stages

OFFLINE = "configs/graphs/offline.yaml"
FOUR = [
    {"stages": ["unpack"], "replicas": 3, "num_cpus": 0.5, "resources": {"camera_rack": 1}},
    {"stages": ["paint"], "num_gpus": 0.5, "transport": "nccl"},
    {"stages": ["window"], "num_cpus": 2},
    {"stages": ["total"]},
]


def edge(stage: str, num_bytes: float, most: int | None = None) -> Edge:
    parts = (Part("image", "2×2×3 uint8", int(num_bytes)),)
    return Edge(stage, "Frame", 4, num_bytes, int(num_bytes) if most is None else most, parts)


def view(graph: Graph | None = None, *notes: str) -> GraphView:
    graph = graph or small_stages.graph(placement=FOUR)
    return GraphView("test.yaml", graph, tuple(edge(spec.name, 12.0) for spec in graph.stages), notes)


# -------------------------------------------------------------------------------------------------------------- bytes


def test_bytes_of_small_stages():
    """A frame is 2 x 2 x 3 bytes; a track has its id (8), class (8), score (4) and box (16); each names its stream."""
    edges = measure(small_stages.graph(), RunContext(), small_stages.source("abc", "ok", "fault", "ok", "ok"))
    assert [(e.stage, e.record, e.frames, e.bytes, e.most) for e in edges] == [
        ("unpack", "Frame", 3, 15.0, 15), ("paint", "Frame", 3, 15.0, 15), ("window", "Frame", 3, 15.0, 15),
        ("total", "FrameTracks", 3, 39.0, 39),
    ]  # fmt: skip
    assert edges[0].parts == (Part("image", "2×2×3 uint8", 12),)
    assert edges[3].parts[0] == Part("boxes", "1×4 float32", 16)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        pytest.param([], "unpack, stream 's': gave no frame", id="empty"),
        pytest.param(["fault"], "unpack, stream 's': gave no frame", id="no frame that decodes"),
        pytest.param(["ok", "poison"], "paint, stream 's', frame 1: ValueError: this frame is poisoned", id="failing"),
    ],
)
def test_a_stage_that_gives_nothing_is_named(words, said):
    with pytest.raises(StageError, match=re.escape(said)):
        measure(small_stages.graph(), RunContext(), small_stages.source("s", *words))


def test_bytes_are_those_that_travel():
    """Held against what pickling the record takes, as it would leave the stage's process; and shapes by hand."""
    graph = load_graph(OFFLINE, STAGES, ["decode.prefetch=0"])     # a pull then gives all that it asks for
    spec = read_network("configs/networks/tiny.yaml")
    context = RunContext(spec, "cpu")
    with generated_clip(320, 192, 3) as clip:
        edges = measure(graph, context, clip)
        records, found = None, {}
        for number, stage in enumerate(graph.stages):
            group = StageGroup((stage,), context)
            given, _ = group.process([Pull(clip, 9)] if number == 0 else records, streams=("clip",))
            records = given
            found[stage.name] = [len(pickle.dumps(compact(record), 5)) for record in given]
    for e in edges:
        assert 0 <= max(found[e.stage]) - e.most < 2500, e.stage   # names of classes and fields
        assert e.frames == 3 and sum(part.bytes for part in e.parts) == pytest.approx(e.most, abs=20)
    shapes = {e.stage: e.parts[0].shape for e in edges}
    assert shapes["decode"] == "192×320×3 uint8"
    assert shapes["preprocess"] == "3×160×256 float32"      # 192x320 is reduced to 154x256, and padded
    assert shapes["backbone"] == "64×20×32, 64×10×16, 64×5×8, 64×3×4, 64×2×2 float32"
    assert edges[2].most == 4 * 64 * (640 + 160 + 40 + 12 + 4) + len("clip")


def test_random_weights_find_something_and_are_the_same_each_time():
    spec = replace(read_network("configs/networks/iai_tiny.yaml"), weights=None)
    graph = load_graph("configs/graphs/offline_iai.yaml", STAGES)
    before, found = torch.random.get_rng_state(), []
    for _ in range(2):
        with some_weights(spec) as made, generated_clip(128, 80, 2) as clip:
            found.append(measure(graph, RunContext(made, "cpu"), clip))
    assert found[0] == found[1] and torch.equal(torch.random.get_rng_state(), before)
    (masks,) = [part for part in found[0][3].parts if part.name == "detections.mask_logits"]
    assert 1 <= int(masks.shape.split("×")[0]) <= 10
    assert not made.weights.exists() and not (CHECKOUT / clip.path).exists()


def test_a_network_with_weights_keeps_them():
    spec = read_network("configs/networks/tiny.yaml")
    with some_weights(spec) as same:
        assert same is spec


@pytest.mark.parametrize("path", sorted((CHECKOUT / "configs/graphs").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_graph_has_a_network(path):
    graph = load_graph(path, STAGES)
    network, changes = network_for(graph)
    with some_weights(read_network(network, changes)) as spec:
        context = RunContext(spec, "cpu")
        for stage in graph.stages:
            stage.kind.build(stage.settings, context)
    assert frames_for(graph) == (11 if "neighbours" in [stage.name for stage in graph.stages] else 4)


# -------------------------------------------------------------------------------------------------------------- words


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [(0, "0 B"), (999, "999 B"), (999.6, "1.0 kB"), (1000, "1.0 kB"), (9949, "9.9 kB"), (9951, "10 kB"),
     (999_499, "999 kB"), (999_500, "1.0 MB"), (14_131_200, "14 MB"), (2e15, "2000 TB")],
)  # fmt: skip
def test_amount(num_bytes, text):
    assert amount(num_bytes) == text


@pytest.mark.parametrize(("mean", "most", "text"), [(100, 110, "100 B"), (100, 111, "100 B, up to 111 B")])
def test_weight(mean, most, text):
    assert weight(edge("s", mean, most)) == text


def test_words():
    graph = small_stages.graph(placement=FOUR, window={"overlap": 2})
    assert [group_words(graph, group) for group in graph.placement] == [
        "3 replicas, each 0.5 CPU, 0 GPUs, 1 camera_rack; a stream keeps to its replica",
        "1 replica, CPUs auto, 0.5 GPU",
        "1 replica, 2 CPUs, 0 GPUs",
        "1 replica, CPUs auto, 0 GPUs",
    ]
    assert demand(graph) == (
        "6 processes (strategy pack), 3.5 CPUs, a share of the CPUs for 2, 0.5 GPU, 3 camera_rack"
    )
    assert stage_words(graph.stages[2]) == "operator, keyed by stream, overlap 2"


# --------------------------------------------------------------------------------------------------------------- text


def test_text():
    graph = small_stages.graph(placement=[{"stages": ["unpack", "paint"], "num_cpus": 1, "num_gpus": 0},
                                          {"stages": ["window", "total"], "num_cpus": 1, "replicas": 2}])  # fmt: skip
    text = text_of(GraphView("test.yaml", graph, view(graph).edges, ("And so on.",)), 60)
    assert text == """\
test.yaml

      │  a path, and how many frames
╭─────┴────────────────────────────────────────────────────╮
│  1 replica, 1 CPU, 0 GPUs                                │
│    ■ unpack   operator, keyed by stream                  │
│     │  Frame  12 B  image 2×2×3 uint8                    │
│    ■ paint    network                                    │
╰─────┬────────────────────────────────────────────────────╯
      ║  Frame  12 B by object store  image 2×2×3 uint8
      ║
╭─────┴────────────────────────────────────────────────────╮
│  2 replicas, each 1 CPU, 0 GPUs; a stream keeps to its   │
│  replica                                                 │
│    ■ window   operator, keyed by stream                  │
│     │  Frame  12 B  image 2×2×3 uint8                    │
│    ■ total    operator, keyed by stream                  │
╰─────┬────────────────────────────────────────────────────╯
      ║  Frame  12 B to the driver, for the sinks
      ║    image 2×2×3 uint8
      ▼

A frame carries 48 B from stage to stage, 24 B of it from
process to process.
Demand: 3 processes (strategy pack), 3 CPUs, 0 GPUs.
And so on.
"""


HOSTILE = {
    "plain": "paint",
    "wide": "映像を塗る段階映像を塗る段階映像を塗る段階",
    "long": "a very long name of a stage " * 20,
    "terminal": "p\x1b[2Jaint\n\u202e",
    "markup": "<b a='1'>&\"]]></b>",
    "half a pair": "p\ud800q",
    "empty": "",
}


def named(name: str) -> GraphView:
    """The view with a name that a user may choose freely in every place."""
    graph = small_stages.graph(placement=FOUR)
    stages = tuple(replace(spec, name=name) if spec.name == "paint" else spec for spec in graph.stages)
    placement = tuple(
        replace(group, stages=(name,), resources={name or "x": 1.0}) if group.stages == ("paint",) else group
        for group in graph.placement
    )
    graph = replace(graph, stages=stages, placement=placement)
    return GraphView(name, graph, view(graph).edges, (name,))


@pytest.mark.parametrize("width", [1, 40, 61, 80, 200])
@pytest.mark.parametrize("name", HOSTILE.values(), ids=HOSTILE.keys())
def test_text_keeps_to_its_width_whatever_the_names(name, width):
    text = text_of(named(name), width)
    lines = text.splitlines()
    assert max(map(cell_len, lines)) <= max(40, width)
    assert all(character.isprintable() for line in lines for character in line)
    boxes = [line for line in lines if line[:1] in "│╭╰" and line]
    assert {cell_len(line) for line in boxes} == {max(40, width)}   # every frame closes on the right
    assert text.count("╭") == 4 and text.count("■") == 4


# ----------------------------------------------------------------------------------------------------------- pictures


@pytest.mark.parametrize("name", HOSTILE.values(), ids=HOSTILE.keys())
def test_svg_is_well_formed_whatever_the_names(name):
    root = ElementTree.fromstring(as_svg(named(name)).encode("utf-8"))
    space = "{http://www.w3.org/2000/svg}"
    assert root.tag == space + "svg" and {child.tag.removeprefix(space) for child in root} <= {
        "title", "rect", "text", "line", "polygon"
    }  # fmt: skip
    if name == HOSTILE["markup"]:
        assert root.find(space + "title").text == name
        assert name in [text.text for text in root.iter(space + "text")]


def test_a_picture_tells_what_the_text_tells():
    shapes, height = layout(view(None, "A note."))
    texts = [shape.text for shape in shapes if isinstance(shape, Text)]
    pills = [shape for shape in shapes if isinstance(shape, Rect) and shape.fill in COLORS.values()]
    assert [t for t in texts if t in ("unpack", "paint", "window", "total")] == ["unpack", "paint", "window", "total"]
    assert [pill.fill == COLORS["network"] for pill in pills] == [False, True, False, False]
    told = ["Frame  12 B  by object store", "Frame  12 B  by nccl", "Frame  12 B  to the driver", "A note."]
    assert all(line in texts for line in told)
    arrows = [shape for shape in shapes if isinstance(shape, Line)]
    assert len(arrows) == 5 and all(arrow.x1 == arrow.x2 == AXIS and arrow.y1 < arrow.y2 for arrow in arrows)
    sheets = [shape for shape in shapes if isinstance(shape, Rect) and shape.radius == 10]
    assert len(sheets) == 3 + 1 + 1 + 1     # a sheet a replica, up to three
    for text in (shape for shape in shapes if isinstance(shape, Text) and shape.anchor == "start"):
        assert 0 <= text.x and text.x + text_width(text.text, text.size, text.bold) <= 800 and 0 < text.y < height


@pytest.mark.parametrize(
    ("num_bytes", "pixels"),
    [(0, 1.5), (1000, 1.5), (10_000, 4.0), (1_000_000, 9.0)],
    ids=["none", "1kB", "10kB", "1MB"],
)
def test_thickness(num_bytes, pixels):
    assert thickness(num_bytes) == pytest.approx(pixels)


def test_png_has_the_colours_of_its_shapes():
    shapes, height = layout(view())
    picture = np.asarray(as_image(view()))
    assert picture.shape == (round(height * SCALE), 800 * SCALE, 3)
    for pill in (shape for shape in shapes if isinstance(shape, Rect) and shape.fill in COLORS.values()):
        x, y = round((pill.x + 4) * SCALE), round((pill.y + pill.height / 2) * SCALE)
        assert tuple(picture[y, x]) == tuple(bytes.fromhex(pill.fill[1:]))
    assert tuple(picture[2, 2]) == (255, 255, 255)


def test_a_picture_that_is_too_large_is_refused():
    with pytest.raises(ConfigError, match="too many for a PNG. Take --format svg"):
        image([], 10_000, 10_000)
    assert ElementTree.fromstring(svg([], 10_000, 10_000, "")).get("width") == "10000"


@pytest.mark.parametrize(
    ("text", "width", "lines"),
    [
        pytest.param("", 100, [""], id="empty"),
        pytest.param("one two", 1000, ["one two"], id="room"),
        pytest.param("one two", 30, ["one", "two"], id="a word a line"),
        pytest.param("a wwwwwwwwwwww b", 40, ["a", "ww…", "b"], id="a word too long"),
    ],
)
def test_wrapped(text, width, lines):
    assert wrapped(text, 12, width) == lines
    assert all(text_width(line, 12) <= width for line in lines)


def test_shortened_keeps_what_fits():
    assert shortened("stage", 12, 1000) == "stage" and shortened("stage", 12, 5) == "…"


# -------------------------------------------------------------------------------------------------------- the command


@pytest.mark.parametrize("suffix", ["txt", "svg", "png"])
def test_command_writes_what_the_name_says(suffix, tmp_path, capsys):
    out = tmp_path / "new" / f"graph.{suffix}"
    assert main(["graph", "show", OFFLINE, "--no-bytes", "--out", str(out)]) == 0
    assert capsys.readouterr().out.strip() == str(out)
    if suffix == "png":
        assert Image.open(out).size[0] == 800 * SCALE
    else:
        text = out.read_text(encoding="utf-8")
        assert "encode_masks" in text and text.startswith("<svg") == (suffix == "svg")


def test_command_measures_and_says_on_what(capsys):
    argv = ["graph", "show", OFFLINE, "--size", "320x192", "--frames", "2", "--set", "backbone.batch=3"]
    assert main([*argv, "--device", "cpu"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "Frame 184 kB image 192×320×3 uint8" in text and "network, batch 3" in text
    assert "2 frames of 320x192 of a generated clip, in the mean, run with its own weights." in text


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        pytest.param(["--format", "png"], "--format png: a picture needs a file. Add --out graph.png.", id="no-file"),
        pytest.param(["--format", "svg", "--out", "x.png"], "ends in .png, but the format is svg", id="two-formats"),
        pytest.param(["--size", "many"], "--size many: expected WIDTHxHEIGHT", id="size"),
        pytest.param(["--size", "9x9"], "shapes, width: 9 came, expected 64 to 4096", id="small"),
        pytest.param(["--frames", "0"], "--frames 0: expected 1 to 64", id="frames"),
        pytest.param(["--network", "no.yaml"], "no.yaml: no such file", id="network"),
        pytest.param(["--set", "bakbone.batch=3"], "Did you mean backbone?", id="stage"),
        pytest.param(["--no-bytes", "--out", "/dev/null/x.svg"], "cannot be written: ", id="no-place"),
    ],
)
def test_command_refuses(argv, message, capsys):
    assert main(["graph", "show", OFFLINE, *argv]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: ") and message in line


def test_command_tells_whether_it_fits(cluster, tmp_path, capsys):
    """The cluster of the tests has one node with four CPUs."""
    argv = ["graph", "show", OFFLINE, "--no-bytes", "--address", "auto"]
    assert main(argv) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "1 replica, 4 CPUs, 0 GPUs" in out and "The cluster has 1 node, 4 CPUs and 0 GPUs: this fits." in out
    wide = tmp_path / "wide.yaml"
    settings = yaml.safe_load((CHECKOUT / OFFLINE).read_text())
    settings["placement"] = [{"stages": list(settings["stages"]), "num_cpus": 5}]
    wide.write_text(yaml.safe_dump(settings, sort_keys=False))
    assert main([*argv[:2], str(wide), *argv[3:]]) == 2
    said = capsys.readouterr()
    assert "this does NOT fit." in said.out and "placement wants 5 CPUs" in said.err


def test_source_of_the_clip_is_a_video(tmp_path):
    with generated_clip(128, 80, 2) as clip:
        assert isinstance(clip, Source) and clip.kind == "video"
