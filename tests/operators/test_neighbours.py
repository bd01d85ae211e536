"""Neighbours: which frames lend their features, when a frame is given out, and the heads that use what was lent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
import yaml

from models.calibration import CalibrationConfig
from models.crossvis import CrossVIS, CrossVISConfig
from models.fcos import FCOSConfig
from models.resnet import ResNetConfig
from operators.detect import DetectConfig
from operators.detectors import DETECTORS
from operators.errors import ConfigError, StageError
from operators.neighbours import Neighbours, NeighboursConfig
from operators.network import BatchConfig, Heads
from operators.records import Features, FrameDetections, FrameInfo, FrameTracks, StreamEnd
from operators.sources import find_sources
from operators.weights import save_weights
from pipelines.config import CHECKOUT
from pipelines.graph import RunContext, load_graph
from pipelines.local import run_local
from pipelines.networks import as_plain, read_network
from pipelines.stages import STAGES
from tests.pipelines.contract import check_stream_stage

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")


def features(index: int, stream: str = "s", size: tuple[int, int] = (24, 40)) -> Features:
    """A pyramid of two levels that are full of the frame's index."""
    levels = torch.full((2, 4, 5), float(index)), torch.full((2, 2, 3), float(index))
    return Features(FrameInfo(stream, index, index / 10, 48, 80), levels, size, (32, 64))


def opened(*streams: str, **settings: int) -> Neighbours:
    stage = Neighbours(NeighboursConfig(**settings))
    for stream in streams or ("s",):
        stage.open(stream)
    return stage


def story(records: Sequence[Features]) -> list[tuple[int, list[int]]]:
    """(frame, frames it refers to), read off the pyramids themselves."""
    told = []
    for record in records:
        assert all(bool((level == record.info.index).all()) for level in record.levels)
        assert all(len({float(v) for level in ref for v in level.unique()}) == 1 for ref in record.references)
        told.append((record.info.index, [int(reference[0][0, 0, 0]) for reference in record.references]))
    return told


# ------------------------------------------------------------------------------------------ which, and when


@pytest.mark.parametrize("past, future, given, expected", [
    pytest.param(5, 5, [], [], id="no frame"),
    pytest.param(5, 5, [0], [(0, [])], id="one frame: no neighbour"),
    pytest.param(0, 0, [0, 1], [(0, []), (1, [])], id="none wanted"),
    pytest.param(2, 0, [0, 1, 2, 3], [(0, []), (1, [0]), (2, [0, 1]), (3, [1, 2])], id="causal"),
    pytest.param(0, 2, [0, 1, 2, 3], [(0, [1, 2]), (1, [2, 3]), (2, [3]), (3, [])], id="only what comes after"),
    pytest.param(1, 1, [0, 1, 2, 3], [(0, [1]), (1, [0, 2]), (2, [1, 3]), (3, [2])], id="one on each side"),
    pytest.param(1, 3, [0, 1, 2], [(0, [1, 2]), (1, [0, 2]), (2, [1])], id="shorter than the future"),
    pytest.param(2, 1, [0, 1, 4, 5, 7], [(0, [1]), (1, [0]), (4, [5]), (5, [4]), (7, [5])],
                 id="distance counts frames that are missing"),
    pytest.param(5, 5, list(range(13)),
                 [(t, [u for u in range(13) if 0 < abs(t - u) <= 5]) for t in range(13)], id="as published"),
])  # fmt: skip
@pytest.mark.parametrize("together", [1, 3, 100])
def test_frames_and_their_neighbours(past, future, given, expected, together):
    stage = opened(past=past, future=future)
    records = [features(index) for index in given]
    out = [one for begin in range(0, len(records), together) for one in stage(records[begin : begin + together])]
    assert story(out + stage.close("s")) == expected


@pytest.mark.parametrize("past, future, late", [
    pytest.param(5, 0, 0, id="causal: at once"), pytest.param(2, 1, 1, id="one late"),
    pytest.param(5, 5, 5, id="as published: five late"),
])  # fmt: skip
def test_a_frame_is_given_as_soon_as_its_neighbours_have_come(past, future, late):
    stage = opened(past=past, future=future)
    for index in range(12):
        assert [one.info.index for one in stage([features(index)])] == ([index - late] if index >= late else [])
    assert [one.info.index for one in stage.close("s")] == list(range(12 - late, 12))


def test_a_gap_lets_waiting_frames_go():
    """Frame 9 shows that 3 and 4 have no neighbour any more that could come."""
    stage = opened(past=2, future=2)
    assert stage([features(3), features(4)]) == []
    assert story(stage([features(9)])) == [(3, [4]), (4, [3])]


def test_frames_of_another_size_lend_nothing():
    """The stream changes its size at frame 2, and back at frame 4."""
    stage = opened(past=3, future=1)
    wide = {"size": (20, 40)}
    records = [features(0), features(1), features(2, **wide), features(3, **wide), features(4)]
    expected = [(0, [1]), (1, [0]), (2, [3]), (3, [2]), (4, [1])]
    assert story(stage(records) + stage.close("s")) == expected
    padded = [features(0), replace(features(1), padded=(64, 64))]
    stage.open("s")
    assert story(stage(padded) + stage.close("s")) == [(0, []), (1, [])]


def test_what_else_a_record_carries_stays():
    stage = opened(past=1, future=0)
    (record,) = stage([features(7)])
    assert (record.info, record.size, record.padded) == (features(7).info, (24, 40), (32, 64))


def test_streams_do_not_see_each_other():
    stage = opened("a", "b", past=1, future=1)
    mixed = [features(0, "a"), features(0, "b"), features(1, "b"), features(1, "a"), features(2, "b")]
    told = [(one.info.stream, *line) for one in stage(mixed) for line in story([one])]
    assert told == [("b", 0, [1]), ("a", 0, [1]), ("b", 1, [0, 2])]
    assert story(stage.close("a")) == [(1, [0])]
    assert story(stage([features(3, "b")])) == [(2, [1, 3])], "closing one stream leaves the other as it was"


# ------------------------------------------------------------------------------------------ the stage's contract


@pytest.mark.parametrize("past, future", [(5, 5), (2, 1), (3, 0), (0, 2), (0, 0)])
def test_keeps_the_contract_of_a_stage_with_memory(past, future):
    records = [features(index) for index in (0, 1, 2, 5, 6, 7, 8, 9, 10, 14, 15)]
    batches = [records[:1], records[1:4], [], records[4:9], records[9:]]
    check_stream_stage(lambda: Neighbours(NeighboursConfig(past=past, future=future)), batches, "s")


@pytest.mark.parametrize("past, future, pyramids", [(5, 5, 10), (5, 0, 5), (0, 3, 3), (0, 0, 0)])
def test_memory_is_bounded_and_no_batch_hangs_on_a_row(past, future, pyramids):
    """Each level is a row of a batch of a hundred. A pyramid is 3,200 bytes; a frame's other entries a few hundred."""
    stage = opened(past=past, future=future)
    levels = torch.zeros(100, 2, 16, 16), torch.zeros(100, 2, 12, 12)
    for index in range(100):
        stage([replace(features(index), levels=tuple(level[index] for level in levels))])
    assert pyramids * 3_200 <= len(stage.snapshot("s")) <= pyramids * 3_200 + 1_500 * pyramids + 3_000
    if pyramids:
        kept = stage._windows["s"].frames
        assert len(kept) == pyramids
        assert all(level.untyped_storage().nbytes() == 4 * level.numel() for one in kept for level in one.levels)


def test_close_is_harmless_twice_and_forgets():
    stage = opened(past=2, future=2)
    stage([features(0)])
    assert story(stage.close("s")) == [(0, [])]
    assert stage.close("s") == [] == stage.close("never opened")
    stage.open("s")
    assert story(stage([features(0), features(1), features(2)])) == [(0, [1, 2])]


@pytest.mark.parametrize("index", [pytest.param(5, id="the same frame again"), pytest.param(4, id="an earlier frame")])
def test_frames_out_of_order_are_an_error(index):
    stage = opened()
    stage([features(5)])
    other = Neighbours(NeighboursConfig())
    other.restore("s", stage.snapshot("s"))
    for one in (stage, other):
        with pytest.raises(StageError, match=f"neighbours, stream 's', frame {index}: came after frame 5"):
            one([features(index)])


def test_open_twice_and_not_opened_are_errors():
    stage = opened()
    with pytest.raises(StageError, match="'s' is open already"):
        stage.open("s")
    with pytest.raises(StageError, match="stream 'other', frame 0: the stream is not open"):
        stage([features(0, "other")])
    with pytest.raises(StageError, match="'other' is not open"):
        stage.snapshot("other")


def saved(state: object, path: Path) -> bytes:
    torch.save(state, path)
    return path.read_bytes()


@pytest.mark.parametrize("state", [
    pytest.param(None, id="no file of torch"), pytest.param({}, id="empty"), pytest.param([1], id="a list"),
    pytest.param({"last": 3, "waiting": 1, "frames": []}, id="more wait than there are"),
    pytest.param({"last": 3, "waiting": 0, "frames": [{"info": (1, 2)}]}, id="half a frame"),
])  # fmt: skip
def test_a_damaged_snapshot(state, tmp_path):
    given = b"nothing of ours" if state is None else saved(state, tmp_path / "state.pt")
    stage = Neighbours(NeighboursConfig())
    with pytest.raises(StageError, match="neighbours, stream 's': the snapshot is damaged"):
        stage.restore("s", given)
    stage.open("s")


@pytest.mark.parametrize("settings", [{"past": -1}, {"future": -1}, {"past": 65}, {"future": 65}])
def test_settings_out_of_range(settings):
    with pytest.raises(ValueError, match="expected 0 to 64 each"):
        NeighboursConfig(**settings)


# ------------------------------------------------------------------------------------------ through the heads

SMALL = CrossVISConfig(
    num_classes=3,
    backbone=ResNetConfig(blocks=(1, 1, 1, 1), stem_channels=8, mid_channels=4, norm="batch", frozen_stages=0),
    channels=16, fcos=FCOSConfig(tower_convs=1, groups=4, size_bounds=(32, 64, 128, 256)), mask_channels=8,
    embedding_dim=8, calibration=CalibrationConfig(reach=3, step=2),
)  # fmt: skip
SIZES = [(64, 96), (64, 96), (64, 64), (64, 96), (64, 96), (64, 64)]
REFERENCES = [3, 0, 2, 1, 2, 0]
"""How many references each of six frames of two sizes has."""


@pytest.fixture(scope="module")
def network() -> CrossVIS:
    """Random weights, made lively enough that every frame has detections, and references make a difference."""
    torch.manual_seed(3)
    network = CrossVIS(SMALL)
    with torch.no_grad():
        for name, value in network.named_parameters():
            if name.startswith(("fcos", "controller", "embedding")) and value.dim() == 4:
                value.mul_(100 if "class_logits" in name else 20)
        network.calibration.dconv_featureflow.weight.mul_(5)
        network.fcos.class_logits.bias.fill_(-1.5)
        network.fcos.distances.bias.fill_(2.0)
    return network.eval()


@pytest.fixture(scope="module")
def frames() -> list[Features]:
    generator = torch.Generator().manual_seed(5)

    def pyramid(h: int, w: int) -> tuple[torch.Tensor, ...]:
        strides = (8, 16, 32, 64, 128)
        return tuple(torch.randn(16, -(-h // s), -(-w // s), generator=generator) for s in strides)

    out = []
    for i, (size, count) in enumerate(zip(SIZES, REFERENCES, strict=True)):
        references = tuple(pyramid(*size) for _ in range(count))
        out.append(Features(FrameInfo("s", i, i / 10, *size), pyramid(*size), size, size, references))
    return out


def through(network: CrossVIS, given: list[Features], batch: int = 4) -> list[FrameDetections]:
    detect = DETECTORS["crossvis"].of(DetectConfig(max_per_frame=12))
    return Heads(network, BatchConfig(batch=batch), detect, CPU)(given)


def assert_equal(found: FrameDetections, expected: FrameDetections) -> None:
    assert found.info == expected.info
    for field in fields(found.detections):
        a, b = getattr(found.detections, field.name), getattr(expected.detections, field.name)
        same = torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
        assert same, f"{found.info}: {field.name}"


@pytest.mark.parametrize("places", [
    pytest.param([0, 1], id="three references and none"), pytest.param([3, 0, 4], id="one, three and two"),
    pytest.param([2, 5], id="two and none, of another size"), pytest.param([5, 4, 3, 2, 1, 0], id="all, two sizes"),
    pytest.param([0, 0, 0, 0, 4], id="more than fit a call"),
])  # fmt: skip
def test_a_frame_gives_the_same_bits_in_any_company(network, frames, places):
    for i, record in zip(places, through(network, [frames[i] for i in places]), strict=True):
        assert_equal(record, through(network, [frames[i]])[0])
        assert len(record.detections) >= 5


def test_the_stage_gives_what_the_network_says_of_a_frame_and_its_references(network, frames):
    (record,) = through(network, frames[:1], batch=1)
    detect = DETECTORS["crossvis"].of(DetectConfig(max_per_frame=12))
    as_batch = [tuple(level[None] for level in pyramid) for pyramid in (frames[0].levels, *frames[0].references)]
    with torch.no_grad():
        expected = detect(network, network.heads(as_batch[0], tuple(as_batch[1:])), 0, SIZES[0])
    assert torch.equal(record.detections.scores, expected.scores)
    assert torch.equal(record.detections.mask_logits, expected.mask_logits)
    (bare,) = through(network, [replace(frames[0], references=())], batch=1)
    assert not torch.equal(record.detections.scores, bare.detections.scores), "references make a difference"


def test_a_frame_without_references_is_its_own(network, frames):
    (bare,) = through(network, [frames[1]])
    (own,) = through(network, [replace(frames[1], references=(frames[1].levels,))])
    assert_equal(bare, own)


# ------------------------------------------------------------------------------------------ in the graph

GRAPH = CHECKOUT / "configs" / "graphs" / "offline_calibrated.yaml"
LENGTHS = {"long": 9, "short": 3}


def written_network(folder: Path, network: CrossVIS, **changes) -> Path:
    """A file of the small network with its weights."""
    model = as_plain(replace(SMALL, **changes)) | {"input": {"short_side": 64, "long_side": 96}}
    path = folder / "small.yaml"
    content = {"network": "crossvis", "weights": str(folder / "small.safetensors"), "model": model}
    path.write_text(yaml.safe_dump(content))
    spec = read_network(path)
    save_weights(spec.weights, network.state_dict(), "crossvis", as_plain(spec.config), ("a", "b", "c"))
    return path


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> list:
    """Two folders of noisy pictures of one size."""
    root, random = tmp_path_factory.mktemp("videos"), np.random.default_rng(7)
    for name, length in LENGTHS.items():
        (root / name).mkdir()
        for index in range(length):
            pixels = random.integers(0, 255, (8, 12, 3), np.uint8).repeat(8, 0).repeat(8, 1)
            PIL.Image.fromarray(pixels).save(root / name / f"{index:05d}.png")
    sources, errors = find_sources([str(root / name) for name in LENGTHS])
    assert not errors
    return sources


def offline(path: Path, videos: list, *overrides: str) -> dict[str, list[tuple]]:
    """Per stream what came out, in order, as values that compare."""
    graph = load_graph(GRAPH, STAGES, ("heads.batch=2", "backbone.batch=2", *overrides))
    told: dict[str, list[tuple]] = {}
    for result in run_local(graph, videos, RunContext(read_network(path), device="cpu")):
        if isinstance(result, StreamEnd):
            told.setdefault(result.stream, []).append(("end", result.num_frames, result.error))
        else:
            assert isinstance(result, FrameTracks)
            line = (result.info.index, result.track_ids.tolist(), result.scores.tolist(), str(result.masks))
            told.setdefault(result.info.stream, []).append(line)
    return told


@pytest.mark.slow
def test_look_ahead_gives_each_frame_once_in_order(network, videos, tmp_path):
    path = written_network(tmp_path, network)
    both = offline(path, videos)
    for name, length in LENGTHS.items():
        assert [line[0] for line in both[name]] == [*range(length), "end"]
        assert both[name][-1] == ("end", length, None)
        assert all(len(line[1]) >= 2 for line in both[name][:-1]), "the network finds something worth comparing"
    assert offline(path, videos, "batching.frames=3") == both, "however frames are batched"


@pytest.mark.slow
def test_the_causal_form_sees_the_same_past(network, videos, tmp_path):
    """With every detection a track of its own, none is lost to another: scores are those of the heads."""
    path, alone = written_network(tmp_path, network), "associate.min_match=3"
    both, causal = (offline(path, videos[:1], alone, f"neighbours.future={future}")["long"] for future in (5, 0))
    assert [line[0] for line in causal] == [*range(9), "end"]
    assert causal[8][2] == both[8][2], "the last frame has the same past, and no future"
    assert causal[0][2] != both[0][2], "the first frame has a future, which changes what is seen"


def test_neighbours_without_calibration_are_told_before_any_work(network, videos, tmp_path):
    path = tmp_path / "plain.yaml"
    path.write_text(yaml.safe_dump({"network": "crossvis", "model": {"num_classes": 3}}))
    for step in (STAGES["neighbours"].build, STAGES["neighbours"].check):
        with pytest.raises(ConfigError, match="plain.yaml: .*'neighbours' stage, but this network has no calibration"):
            step(NeighboursConfig(), RunContext(read_network(path)))


def test_the_shipped_network_and_graph_belong_together():
    spec = read_network(CHECKOUT / "configs" / "networks" / "crossvis_r50_calibrated.yaml")
    assert spec.config.calibration == CalibrationConfig() and spec.config.num_classes == 25
    assert spec.config == replace(CrossVISConfig(), num_classes=25, calibration=CalibrationConfig())
    graph = load_graph(GRAPH, STAGES)
    (stage,) = [stage for stage in graph.stages if stage.name == "neighbours"]
    assert stage.settings == NeighboursConfig(past=5, future=5)
    assert isinstance(stage.kind.build(stage.settings, RunContext(spec)), Neighbours)
