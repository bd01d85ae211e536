"""Stills of COCO: reading, polygons at the resized size, groups of one shape, batches.

Source of what is expected: CrossVIS specification 1.6 and 3.8; pycocotools' rasteriser.
"""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco

from models.inputs import InputConfig
from models.targets import StillBatch
from operators.datasets.coco import read_stills
from operators.errors import DatasetError
from trainers.augment import Augment, ScaleConfig
from trainers.data import StillLoader
from trainers.frames import FrameIndex
from trainers.stills import StillSampler

SHAPES = [(64, 48), (48, 64), (64, 48), (64, 48), (48, 64), (64, 40), (64, 48)]
"""(width, height): five lie, two stand."""
TRIANGLE = [10.5, 8.0, 50.0, 12.5, 30.0, 40.0]


def write(root: Path, **changes) -> Path:
    """Image 1 has a triangle, a crowd and an instance of RLE; the others a triangle each; image 8 has nothing."""
    annotations = [{"id": n, "image_id": n, "category_id": 90 if n % 2 else 3, "iscrowd": 0, "area": 500.0,
                    "bbox": [10.5, 8, 39.5, 32], "segmentation": [TRIANGLE]} for n in range(1, len(SHAPES) + 1)]
    runs = {"size": [48, 64], "counts": [48 * 5, 48 * 4, 48 * 55]}
    annotations += [
        {"id": 70, "image_id": 1, "category_id": 3, "iscrowd": 1, "area": 9, "bbox": [0, 0, 9, 9],
         "segmentation": runs},
        {"id": 71, "image_id": 1, "category_id": 3, "iscrowd": 0, "area": 192, "bbox": [5, 0, 4, 48],
         "segmentation": runs}]  # fmt: skip
    images = [{"id": n, "file_name": f"{n:012d}.jpg", "width": w, "height": h}
              for n, (w, h) in enumerate([*SHAPES, (64, 48)], start=1)]  # fmt: skip
    for n, image in enumerate(images):
        Image.new("RGB", (image["width"], image["height"]), (20 * n, 90, 160)).save(root / image["file_name"])
    content = {"images": images, "annotations": annotations,
               "categories": [{"id": 90, "name": "toothbrush"}, {"id": 3, "name": "car"}], **changes}  # fmt: skip
    path = root / "instances.json"
    path.write_text(json.dumps(content))
    return path


@pytest.fixture
def index(tmp_path) -> FrameIndex:
    return FrameIndex(read_stills(write(tmp_path), tmp_path))


def load(index: FrameIndex, count: int, config: InputConfig, **augment) -> StillBatch:
    draws = StillSampler(index, augment=Augment(**{"flip": 0.0, **augment}), seed=0).draws(0)
    wanted = sorted(islice(draws, len(index)), key=lambda d: d.frames[0].video.id)[:count]
    loader = StillLoader(iter(wanted), index, config, batch=count, device=torch.device("cpu"))
    try:
        return next(loader)
    finally:
        loader.close()


# -------------------------------------------------------------------------------------------------------------- reading


def test_each_image_is_a_video_of_one_frame(index):
    dataset = index.dataset
    assert [video.length for video in dataset.videos] == [1] * 8 and dataset.labels == {3: 0, 90: 1}
    assert [(f.video.id, [a.id for a in f.annotations]) for frames in index.videos for f in frames] == [
        (1, [1, 71]), *((n, [n]) for n in range(2, 8))], "no crowd, and no image without an instance"
    assert dataset.frame_path(dataset.videos[0], 0).name == "000000000001.jpg"


@pytest.mark.parametrize("changes, message", [
    pytest.param({"images": None}, "images is None; expected a list", id="no images"),
    pytest.param({"annotations": [{"id": 1, "image_id": 99, "category_id": 3}]}, "which no image has", id="whose?"),
    pytest.param({"annotations": [{"id": 1, "image_id": 1, "category_id": 3, "bbox": [0, 0, -1, 1]}]},
                 "annotation 1: bbox is", id="a box inside out"),
    pytest.param({"annotations": [{"id": 1, "image_id": 1, "category_id": 3, "bbox": [0, 0, 1, 1], "area": "much"}]},
                 "area is 'much'", id="no area"),
    pytest.param({"annotations": [{"id": 1, "image_id": 1, "category_id": 3, "segmentation": 7}]},
                 "segmentation is 7; expected polygons or RLE", id="no mask"),
    pytest.param({"videos": [], "images": None}, "Is it a YouTube-VIS file", id="another format"),
])  # fmt: skip
def test_files_that_are_refused(tmp_path, changes, message):
    with pytest.raises(DatasetError, match=message):
        read_stills(write(tmp_path, **changes), tmp_path)


def test_a_wrong_folder_of_images_is_named(tmp_path):
    path = write(tmp_path)
    with pytest.raises(DatasetError, match="000000000001.jpg is not in .*elsewhere"):
        read_stills(path, tmp_path / "elsewhere")


# --------------------------------------------------------------------------------------------------------------- loaded


def test_polygons_are_rasterised_at_the_resized_size(index):
    """1.5 times as large: not the enlarged pixels of the stored frame. Beside them a mask of runs is resized."""
    batch = load(index, 1, InputConfig(short_side=72, long_side=200))
    assert isinstance(batch, StillBatch) and len(batch) == 1 and batch.images.shape == (1, 3, 96, 96)
    (targets,) = batch.targets
    runs = coco.merge(coco.frPyObjects([(np.array(TRIANGLE) * 1.5).tolist()], 72, 96))
    np.testing.assert_array_equal(targets.masks[0, :72].numpy(), coco.decode(runs).astype(bool))
    columns = targets.masks[1].any(0).nonzero().squeeze(1).tolist()
    assert columns == list(range(7, 13)) and targets.masks[1].sum() == 6 * 72, "floor((x + 0.5) / 1.5) is 5 to 8"
    np.testing.assert_allclose(targets.boxes, [[15.75, 12, 75, 60], [7.5, 0, 13.5, 72]])
    assert targets.labels.tolist() == [1, 0]


def test_stills_of_many_sizes_share_a_padded_one(index):
    batch = load(index, 7, InputConfig(short_side=48, long_side=200, mean=(0, 0, 0), channel_order="rgb"))
    assert batch.images.shape == (7, 3, 64, 96), "64 x 40 becomes 77 x 48"
    for b, (w, h) in enumerate([*SHAPES[:5], (77, 48), SHAPES[6]]):
        seen = batch.images[b].ne(0).any(0)
        assert seen[:h, :w].all() and not seen[h:].any() and not seen[:, w:].any()
    assert [len(t) for t in batch.targets] == [2, 1, 1, 1, 1, 1, 1]


def test_polygons_are_mirrored_with_the_image(index):
    config = InputConfig(short_side=48, long_side=200)
    plain, mirrored = (load(index, 1, config, flip=flip).targets[0] for flip in (0.0, 1.0))
    assert torch.equal(mirrored.masks[:, :48, :64], plain.masks[:, :48, :64].flip(2))


def test_polygons_of_nonsense_are_an_error_that_names_the_annotation(tmp_path):
    path = write(tmp_path)
    content = json.loads(path.read_text())
    content["annotations"][0]["segmentation"] = [["a", 2, 3, 4, 5, 6]]
    path.write_text(json.dumps(content))
    with pytest.raises(DatasetError, match="video 1, annotation 1, frame 0"):
        load(FrameIndex(read_stills(path, tmp_path)), 1, InputConfig(short_side=48, long_side=200))


# --------------------------------------------------------------------------------------------------------------- orders


def order(index: FrameIndex, count: int, **changes) -> list[int]:
    scale = ScaleConfig(short_sides=(20, 30), long_side=(90, 90))
    sampler = StillSampler(index, augment=Augment(flip=0.5, scale=scale), **{"seed": 3, **changes})
    return [draw.frames[0].video.id for draw in islice(sampler.draws(0), count)]


def test_an_epoch_shows_every_image_with_an_instance_once(index):
    epochs = np.reshape(order(index, 28), (4, 7))
    assert all(sorted(epoch) == list(range(1, 8)) for epoch in epochs.tolist()) and len(set(map(tuple, epochs))) > 1


@pytest.mark.parametrize("group", [2, 3])
def test_steps_are_of_one_shape_but_at_the_ends_of_epochs(index, group):
    """Five lie and two stand. Of an epoch at most the rest of each shape, and the step that two epochs share, mix."""
    seen = order(index, 7 * 12 * group, group=group)
    assert all(sorted(seen[i : i + 7]) == list(range(1, 8)) for i in range(0, len(seen), 7)), "each epoch is whole"
    lies = np.reshape([SHAPES[id - 1][0] > SHAPES[id - 1][1] for id in seen], (-1, group))
    mixed = lies.any(1) & ~lies.all(1)
    plain = np.reshape([SHAPES[id - 1][0] > SHAPES[id - 1][1] for id in order(index, len(seen))], (-1, group))
    assert mixed.sum() <= 2 * len(seen) / 7 and mixed.sum() < (plain.any(1) & ~plain.all(1)).sum()


def test_an_order_in_groups_by_hand():
    """Places of a: 0 2 3 6, of b: 1 4 5. Pairs: a a is whole at 2, b b at 4, a a at 6; the last b is left over."""
    from trainers.frames import _grouped

    found = _grouped(np.array([10, 20, 11, 12, 21, 22, 13]), np.array([0, 1, 0, 0, 1, 1, 0]), 2)
    assert found.tolist() == [10, 11, 20, 21, 12, 13, 22]
    assert _grouped(np.zeros(0, int), np.zeros(0, int), 4).tolist() == []


@pytest.mark.parametrize("group", [None, 2])
@pytest.mark.parametrize("world", [2, 4])
def test_shards_and_restarts_give_the_sequence_of_one_worker(index, world, group):
    def worker(rank: int, position: int = 0, size: int = world):
        augment = Augment(flip=0.5, scale=ScaleConfig(short_sides=(20, 30)))
        return StillSampler(index, augment=augment, seed=3, rank=rank, world_size=size, group=group).draws(position)

    whole = list(islice(worker(0, size=1), 24))
    shards = [worker(rank) for rank in range(world)]
    assert [next(shards[i % world]) for i in range(24)] == whole
    assert [next(worker(1, position)) for position in range(5)] == whole[1 : 1 + 5 * world : world]
