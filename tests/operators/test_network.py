"""The network's two stages: geometry on outputs written by hand, then a small random network in every company."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
import torch
from torch import Tensor

from models.condinst import DenseOutputs
from models.crossvis import CrossVIS, CrossVISConfig
from models.fcos import FCOSConfig, Locations
from models.resnet import ResNetConfig
from operators.detect import DetectConfig
from operators.detectors import DETECTORS
from operators.network import Backbone, BatchConfig, Heads
from operators.records import Features, FrameDetections, FrameInfo, Image

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
SMALL = CrossVISConfig(
    num_classes=3,
    backbone=ResNetConfig(blocks=(1, 1, 1, 1), stem_channels=8, mid_channels=4, norm="batch", frozen_stages=0),
    channels=16, fcos=FCOSConfig(tower_convs=1, groups=4, size_bounds=(32, 64, 128, 256)), mask_channels=8,
    embedding_dim=8,
)  # fmt: skip
BATCH = 4

# -------------------------------------------------------------------------------------------------------------- by hand


class Told:
    """Says of every image what it was told to, and remembers how many images each call held."""

    def __init__(self, dense: DenseOutputs) -> None:
        self.dense, self.calls = dense, []

    def features(self, images: Tensor) -> tuple[Tensor, ...]:
        self.calls.append(images)
        return tuple(images[:, :1, ::stride, ::stride] for stride in (8, 16, 32))

    def heads(self, levels: tuple[Tensor, ...]) -> DenseOutputs:
        self.calls.append(levels[0])
        return self.dense

    def mask_logits(self, dense: DenseOutputs, image: int, locations: Tensor) -> Tensor:
        return (100 * image + locations).float()[:, None, None].expand(-1, 8, 12)


def told(*found: tuple[int, list[float]], images: int = 1) -> Told:
    """(location, distances in strides) of what is found in the first image, in falling score; 32 x 48 padded input."""
    at = Locations.of([(4, 6), (2, 3), (1, 2), (1, 1), (1, 1)], CPU)
    p = len(at.points)
    logits, distances = torch.full((images, p, 2), -100.0), torch.zeros(images, p, 4)
    for rank, (location, sides) in enumerate(found):
        logits[0, location, rank % 2] = 5.0 - rank
        distances[0, location] = torch.tensor(sides)
    embeddings = torch.arange(images * p, dtype=torch.float32).reshape(images, p, 1).expand(-1, -1, 3)
    return Told(DenseOutputs(
        logits, distances, torch.full((images, p), 100.0), torch.zeros(images, p, 169), embeddings,
        torch.zeros(images, 8, 4, 6), at))


def features(height: int = 80, width: int = 240, index: int = 0) -> Features:
    """A frame of 240 x 80 resized to 24 x 16 (so x counts 10 and y 5), in a padded input of 48 x 32."""
    levels = tuple(torch.zeros(1, 32 // stride, 48 // stride) for stride in (8, 16))
    return Features(FrameInfo("s", index, 0.0, height, width), levels, (16, 24), (32, 48))


def run_heads(network: Told, *frames: Features, batch: int = 1, least: int | None = None) -> list[FrameDetections]:
    detect = DETECTORS["crossvis"].of(DetectConfig(max_iou=1.0))
    return Heads(network, BatchConfig(batch=batch, least=least), detect, CPU)(list(frames))


def test_boxes_become_pixels_of_the_original_frame():
    # location 8: P3, row 1, column 2: the point (20, 12). One stride is 8.
    (record,) = run_heads(told((8, [0.5, 0.25, 0.25, 0.125])), features())
    assert record.detections.boxes.tolist() == [[(20 - 4) * 10, (12 - 2) * 5, (20 + 2) * 10, (12 + 1) * 5]]
    assert (record.size, record.padded, record.info) == ((16, 24), (32, 48), features().info)


def test_boxes_are_clipped_and_those_without_a_side_dropped():
    network = told(
        (8, [9, 9, 9, 9]),                      # 0: over every edge
        (4, [0.125, 0.125, 0.125, 0.125]),      # 1: column 4, x = 36: beyond the frame's 24, in the padding
        (7, [0, 1, 0, 1]),                      # 2: no width
        (6, [1, 0, 1, 0]),                      # 3: no height
        (0, [0.25, 0.25, 0.25, 0.25]),          # 4: inside
        (2, [1, 0.25, 0, 0.25]),                # 5: column 2, x = 20: reaches left, not right of its point
    )
    (record,) = run_heads(network, features())
    found = record.detections
    assert found.boxes.tolist() == [[0, 0, 240, 80], [20, 10, 60, 30], [120, 10, 200, 30]]
    assert found.labels.tolist() == [0, 0, 1], "classes alternate: those of places 0, 4 and 5"
    assert found.embeddings[:, 0].tolist() == [8, 0, 2], "each carries the embedding of its location"
    assert found.mask_logits[:, 0, 0].tolist() == [8, 0, 2], "and its mask"
    assert found.scores.tolist() == sorted(found.scores.tolist(), reverse=True)
    assert found.track_ids is None


def test_a_frame_without_detections():
    (record,) = run_heads(told(), features())
    found = record.detections
    assert len(found) == 0 and found.boxes.shape == (0, 4) and found.embeddings.shape == (0, 3)
    assert found.mask_logits.shape == (0, 8, 12)


def test_each_image_of_a_call_has_its_own_outputs():
    network = told((8, [0.5] * 4), images=3)
    network.dense.class_logits[2, 1, 1], network.dense.distances[2, 1] = 2.0, torch.tensor([0.25] * 4)
    records = run_heads(network, features(index=0), features(index=1), features(index=2), batch=3)
    assert [r.detections.mask_logits[:, 0, 0].tolist() for r in records] == [[8], [], [201]]
    assert [r.info.index for r in records] == [0, 1, 2]


def image(size: tuple[int, int], index: int = 0, seed: int = 0) -> Image:
    h, w = size
    padded = (-(-h // 32) * 32, -(-w // 32) * 32)
    pixels = torch.zeros(3, *padded)
    pixels[:, :h, :w] = torch.randn(3, h, w, generator=torch.Generator().manual_seed(seed)) * 50
    return Image(FrameInfo("ab"[index % 2], index, index / 10, 3 * h, 2 * w), pixels, size)


@pytest.mark.parametrize("count, calls", [
    pytest.param(0, 0, id="no frame, no call"), pytest.param(1, 1, id="one"), pytest.param(3, 1, id="filled exactly"),
    pytest.param(4, 2, id="one over"),
])
def test_the_network_always_sees_full_batches_filled_with_zeros(count, calls):
    network = told(images=3)
    given = [image((30, 40), i, seed=i) for i in range(count)]
    out = Backbone(network, BatchConfig(batch=3), CPU)(given)
    assert [f.info for f in out] == [g.info for g in given]
    assert [tuple(call.shape) for call in network.calls] == [(3, 3, 32, 64)] * calls
    seen = torch.cat([call for call in network.calls]) if calls else torch.zeros(0)
    assert all(torch.equal(row, g.pixels) for row, g in zip(seen, given, strict=False))
    assert not seen[count:].any()
    assert len(run_heads(network, *out, batch=3)) == count
    assert [len(call) for call in network.calls] == [3] * (2 * calls)


@pytest.mark.parametrize("least, count, calls", [
    pytest.param(2, 0, [], id="no frame, no call"), pytest.param(2, 1, [2], id="one is filled up to two"),
    pytest.param(2, 2, [2], id="two"), pytest.param(2, 3, [3], id="a full one"),
    pytest.param(2, 4, [3, 2], id="what is left is filled up too"), pytest.param(1, 4, [3, 1], id="nothing is filled"),
    pytest.param(9, 1, [3], id="never more than a batch"), pytest.param(None, 1, [3], id="always full"),
])  # fmt: skip
def test_calls_are_filled_up_to_least(least, count, calls):
    network, config = told(images=3), BatchConfig(batch=3, least=least)
    given = [image((30, 40), i, seed=i) for i in range(count)]
    out = Backbone(network, config, CPU)(given)
    assert [len(call) for call in network.calls] == calls
    seen = [row for call in network.calls for row in call]
    kept = [row for row in seen if row.any()]
    assert all(torch.equal(row, g.pixels) for row, g in zip(kept, given, strict=True))
    assert len(run_heads(network, *out, batch=3, least=least)) == count
    assert [len(call) for call in network.calls] == 2 * calls
    assert config.rows(1, torch.device("cuda")) == 3, "a GPU always sees full batches"


def test_frames_of_two_padded_sizes_do_not_share_a_call():
    network = told(images=2)
    sizes = [(30, 40), (30, 20), (31, 50), (20, 30), (30, 20)]
    out = Backbone(network, BatchConfig(batch=2), CPU)([image(size, i) for i, size in enumerate(sizes)])
    assert [tuple(call.shape[2:]) for call in network.calls] == [(32, 64), (32, 32), (32, 32)]
    assert [(f.info.index, f.size, f.padded) for f in out] == [
        (0, (30, 40), (32, 64)), (1, (30, 20), (32, 32)), (2, (31, 50), (32, 64)), (3, (20, 30), (32, 32)),
        (4, (30, 20), (32, 32))]  # fmt: skip


@pytest.mark.parametrize("batch", [0, -1, 1025])
def test_batch_out_of_range(batch):
    with pytest.raises(ValueError, match=f"batch is {batch}, expected 1..1024"):
        BatchConfig(batch=batch)
    with pytest.raises(ValueError, match=f"least is {batch}, expected 1..1024, or null"):
        BatchConfig(batch=4, least=batch)


# ------------------------------------------------------------------------------------------------------ a small network

FRAMES = [image(size, i, seed=10 + i) for i, size in enumerate([(60, 90), (48, 33), (60, 90), (64, 96), (40, 64)])]
"""Three share the padded size 64 x 96, two the size 64 x 64."""


@pytest.fixture(scope="module")
def network() -> CrossVIS:
    """Random weights, made lively enough that every frame has detections of several sizes and classes."""
    torch.manual_seed(3)
    network = CrossVIS(SMALL)
    with torch.no_grad():
        for name, value in network.named_parameters():
            if name.startswith(("fcos", "controller", "embedding")) and value.dim() == 4:
                value.mul_(100 if "class_logits" in name else 20)
        network.fcos.class_logits.bias.fill_(-1.5)
        network.fcos.distances.bias.fill_(2.0)
    return network.eval()


def through(network: CrossVIS, frames: list[Image], batch: int = BATCH, least: int | None = None
            ) -> list[FrameDetections]:  # fmt: skip
    config = BatchConfig(batch=batch, least=least)
    detect = DETECTORS["crossvis"].of(DetectConfig(max_per_frame=12))
    return Heads(network, config, detect, CPU)(Backbone(network, config, CPU)(frames))


@pytest.fixture(scope="module")
def alone(network) -> list[FrameDetections]:
    """What each frame gives when it comes by itself."""
    return [through(network, [frame])[0] for frame in FRAMES]


def assert_equal(found: FrameDetections, expected: FrameDetections) -> None:
    assert (found.info, found.size, found.padded) == (expected.info, expected.size, expected.padded)
    for field in fields(found.detections):
        a, b = getattr(found.detections, field.name), getattr(expected.detections, field.name)
        same = torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
        assert same, f"{found.info}: {field.name}"


def test_the_small_network_finds_something_worth_comparing(alone):
    assert len(torch.cat([record.detections.labels for record in alone]).unique()) >= 2
    for record, frame in zip(alone, FRAMES, strict=True):
        found = record.detections
        assert len(found) >= 5 and found.mask_logits.std() > 0
        assert found.embeddings.shape == (len(found), 8)
        assert found.mask_logits.shape == (len(found), record.padded[0] // 4, record.padded[1] // 4)
        assert (found.boxes >= 0).all() and (found.boxes[:, 0::2] <= frame.info.width).all()
        assert (found.boxes[:, 1::2] <= frame.info.height).all()
        assert (found.boxes[:, 2:] > found.boxes[:, :2]).all()


@pytest.mark.parametrize("places", [
    pytest.param([0], id="one"), pytest.param([0, 1], id="two of two sizes"), pytest.param([2, 0], id="another order"),
    pytest.param([0, 2, 3], id="three of one size"), pytest.param([4, 3, 2, 1], id="four, mixed"),
    pytest.param([0, 1, 2, 3, 4], id="all five"), pytest.param([3, 3, 3, 3, 0], id="more of a size than fit a call"),
])
@pytest.mark.parametrize("least", [None, 2])
def test_a_frame_gives_the_same_bits_in_any_company(network, alone, places, least):
    """Also in calls that are filled up to two frames alone."""
    records = through(network, [FRAMES[i] for i in places], least=least)
    for i, record in zip(places, records, strict=True):
        assert_equal(record, alone[i])


def test_a_batch_of_four_gives_what_batches_of_one_give(network, alone):
    """Kernels may sum in another order at another batch size: equal but for rounding."""
    for record, expected in zip(through(network, FRAMES, batch=1), alone, strict=True):
        assert record.detections.labels.tolist() == expected.detections.labels.tolist()
        for name in ("boxes", "scores", "embeddings", "mask_logits"):
            a, b = getattr(record.detections, name), getattr(expected.detections, name)
            torch.testing.assert_close(a, b, rtol=1e-2, atol=1e-2)


def test_an_empty_batch(network):
    assert through(network, []) == []


def test_results_need_no_gradient_and_are_float32(alone):
    for record in alone:
        for name in ("boxes", "scores", "embeddings", "mask_logits"):
            value = getattr(record.detections, name)
            assert value.dtype == torch.float32 and not value.requires_grad, name


def test_a_frame_shown_at_another_size_only_scales_its_boxes(network, alone):
    """The original size enters nowhere else."""
    info = FRAMES[0].info
    twice = replace(FRAMES[0], info=replace(info, height=2 * info.height, width=2 * info.width))
    (record,) = through(network, [twice])
    torch.testing.assert_close(record.detections.boxes, 2 * alone[0].detections.boxes)
    assert torch.equal(record.detections.mask_logits, alone[0].detections.mask_logits)
