"""What loads frames ahead: the order of batches, the thread and its end, images that cannot be read, the device.

What stands in the batches is in test_data.py.
"""

from __future__ import annotations

import itertools
import json
import threading

import pytest
import torch
from PIL import Image

from operators.errors import DatasetError
from operators.youtube_vis_data import read_dataset
from tests.trainers.small_frames import CPU, HALF, INPUT, LANDSCAPE, draw, generated, hand_made, load
from trainers.data import PairLoader
from trainers.frames import FrameIndex
from trainers.pairs import PairSampler
from trainers.pixels import Parts, frame_pipe

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def shapes(tmp_path_factory) -> FrameIndex:
    return generated(tmp_path_factory.mktemp("shapes"))


def test_batches_given_out_are_not_overwritten_by_later_ones(shapes):
    draws = PairSampler(shapes, max_interval=None, flip=0.5, seed=1).draws(0)
    loader = PairLoader(draws, shapes, INPUT, batch=2, device=CPU)
    try:
        first = next(loader)
        kept = [image.clone() for image in first.images], [t.masks.clone() for slot in first.targets for t in slot]
        for _ in range(6):
            next(loader)
    finally:
        loader.close()
    assert all(torch.equal(a, b) for a, b in zip(first.images, kept[0], strict=True))
    assert all(torch.equal(t.masks, b) for t, b in zip(itertools.chain(*first.targets), kept[1], strict=True))


def test_batches_come_in_the_order_of_the_draws(shapes):
    sampler = PairSampler(shapes, max_interval=2, flip=0.5, seed=4)
    loader = PairLoader(sampler.draws(3), shapes, INPUT, batch=2, device=CPU)
    expected = list(itertools.islice(sampler.draws(3), 6))
    try:
        for begin in (0, 2, 4):
            batch, alone = next(loader), load(shapes, *expected[begin : begin + 2])
            assert all(torch.equal(a, b) for a, b in zip(batch.images, alone.images, strict=True)), begin
    finally:
        loader.close()


def loader_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "frame-loader"]


@pytest.mark.parametrize("taken", [0, 1, 3])
def test_closing_stops_the_thread(shapes, taken):
    draws = PairSampler(shapes, max_interval=2, flip=0.5, seed=4).draws(0)
    loader = PairLoader(draws, shapes, INPUT, batch=1, device=CPU)
    assert len(loader_threads()) == 1
    for _ in range(taken):
        next(loader)
    loader.close()
    assert loader_threads() == []
    loader.close()


@pytest.mark.parametrize("spoil, message", [
    pytest.param(lambda path: path.unlink(), "1/1.jpg: cannot be read: No such file", id="missing"),
    pytest.param(lambda path: path.write_bytes(b""), "1/1.jpg: 0 bytes", id="empty"),
    pytest.param(lambda path: path.write_text("no picture at all"), "cannot be decoded: .*1/1.jpg", id="text"),
    pytest.param(lambda path: path.write_bytes(path.read_bytes()[:60]), "cannot be decoded: .*1/1.jpg", id="cut"),
])
@pytest.mark.parametrize("before", [0, 1, 3])
def test_an_image_that_cannot_be_read_is_an_error_where_the_batch_is_taken(tmp_path, spoil, message, before):
    """However far ahead it is found: a file that is missing before DALI has the batch, one that is cut after."""
    index = hand_made(tmp_path, (LANDSCAPE, {1: [(10, 10, 20, 20)] * 2}))
    spoil(tmp_path / "1" / "1.jpg")
    good, bad = draw(index, 0, 0, 0), draw(index, 0, 0, 1)
    loader = PairLoader(iter([good] * before + [bad, good]), index, HALF, batch=1, device=CPU)
    try:
        for _ in range(before):
            assert len(next(loader)) == 1 and loader.names[0].files == ("1/0.jpg", "1/0.jpg")
        for _ in range(2):
            with pytest.raises(DatasetError, match=message):
                next(loader)
    finally:
        loader.close()
    assert loader_threads() == []


def test_damaged_masks_are_an_error_that_names_the_annotation(tmp_path):
    index = hand_made(tmp_path, (LANDSCAPE, {7: [(10, 10, 20, 20)]}))
    content = json.loads((tmp_path / "instances.json").read_text())
    content["annotations"][0]["segmentations"][0]["counts"] = [5, 7]     # ends before the frame does
    (tmp_path / "instances.json").write_text(json.dumps(content))
    index = FrameIndex(read_dataset(tmp_path / "instances.json", image_root=tmp_path))
    with pytest.raises(DatasetError, match="annotation 7"):
        load(index, draw(index, 0, 0, 0), config=HALF)


def test_targets_and_counterparts_lie_on_the_loaders_device(shapes):
    """What the losses index with each other must lie together. "meta" stands in for a GPU; images come from DALI, which
    puts them on the GPU by itself."""
    batch = load(shapes, draw(shapes, 0, 0, 1), device=torch.device("meta"))
    for slot in (0, 1):
        targets = batch.targets[slot][0]
        lie_on = {name: getattr(targets, name).device.type for name in ("boxes", "labels", "identities", "masks")}
        assert lie_on | {"counterparts": batch.counterparts[slot][0].device.type} == dict.fromkeys(
            [*lie_on, "counterparts"], "meta")


def test_the_same_definition_makes_the_graph_of_a_gpu():
    """Serialising checks the names of operators and arguments; building, and a device_id, would need the driver."""
    here, there = (
        frame_pipe(INPUT, Parts(), device, batch_size=2, num_threads=1, device_id=None).serialize()
        for device in ("cpu", "gpu"))
    assert b"\x03gpu" not in here and here.count(b"decoders__Image") == 1    # a text of length 3
    assert b"\x03gpu" in there and there.count(b"mixed") == here.count(b"mixed") + 1, "the decoder"


@pytest.mark.gpu
def test_a_gpu_gives_nearly_the_same_pixels_and_the_same_masks(shapes):
    one = draw(shapes, 0, 1, 3, flip=True)
    here, there = load(shapes, one), load(shapes, one, device=torch.device("cuda", 0))
    for slot in (0, 1):
        assert there.images[slot].device.type == there.counterparts[slot][0].device.type == "cuda"
        difference = (there.images[slot].cpu() - here.images[slot]).abs()
        assert difference.mean() < 1 and difference.quantile(0.999) <= 8, "two decoders, and rounding"
        assert torch.equal(there.targets[slot][0].masks.cpu(), here.targets[slot][0].masks)
        assert torch.equal(there.targets[slot][0].boxes.cpu(), here.targets[slot][0].boxes)


def test_an_image_of_another_size_than_its_annotations_is_refused(tmp_path):
    index = hand_made(tmp_path, (LANDSCAPE, {2: [(10, 10, 20, 20)], 4: [(10, 10, 20, 20)]}))
    name = index.videos[0][0].file_name
    Image.new("RGB", (40, 30)).save(index.dataset.image_root / name)
    with pytest.raises(DatasetError, match=f"{name}: 40x30 pixels, but the annotations say"):
        load(index, draw(index, 0, 0, 0), config=HALF)
