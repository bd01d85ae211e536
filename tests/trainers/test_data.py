"""Pairs and clips through DALI: against inference's preprocessing, loops over masks, and hand-made frames with every

oddity.

Source of what is expected: CrossVIS specification 1.3 (5), 1.5 to 1.7; IAI specification 1.
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Sequence

import numpy as np
import nvidia.dali.experimental.dynamic as ndd
import pytest
import torch
from nvidia.dali import types
from PIL import Image

from models.inputs import InputConfig
from models.targets import ClipBatch
from operators.preprocess import pad_to, resize_to, to_network_input
from operators.shapes import generate_clip
from tests.trainers.small_frames import (
    CLIPS,
    CPU,
    HALF,
    INPUT,
    LANDSCAPE,
    PORTRAIT,
    SIZE,
    Box,
    draw,
    generated,
    hand_made,
    load,
)
from trainers.augment import ScaleConfig
from trainers.clips import ClipSampler
from trainers.data import ClipLoader
from trainers.frames import Draw, FrameAnnotations, FrameIndex, has_area

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def shapes(tmp_path_factory) -> FrameIndex:
    return generated(tmp_path_factory.mktemp("shapes"))


def decoded(index: FrameIndex, frame: FrameAnnotations) -> np.ndarray:
    """The image as inference would decode it: (H, W, 3) uint8 RGB."""
    data = np.fromfile(index.dataset.frame_path(frame.video, frame.frame), np.uint8)
    return np.asarray(ndd.decoders.image(ndd.as_tensor(data), output_type=types.RGB))


# --------------------------------------------------------------------------------------------------------------- images


def test_images_equal_those_of_inference_to_the_bit(shapes):
    draws = [draw(shapes, 0, 1, 4), draw(shapes, 1, 3, 0)]
    batch = load(shapes, *draws)
    assert len(batch) == 2
    for slot in (0, 1):
        assert batch.images[slot].shape == (2, 3, *pad_to(*SIZE, 32)) and batch.images[slot].dtype == torch.float32
        for b, one in enumerate(draws):
            expected = to_network_input([decoded(shapes, one.frames[slot])], SIZE, INPUT, "cpu")[0]
            assert torch.equal(batch.images[slot][b], expected), (slot, b)


@pytest.mark.parametrize("order", ["bgr", "rgb"])
def test_channel_order_mean_and_std_are_those_of_inference(shapes, order):
    config = InputConfig(short_side=50, long_side=90, channel_order=order, mean=(1, 2, 3), std=(4, 5, 6), divisor=8)
    one = draw(shapes, 0, 0, 1)
    expected = to_network_input([decoded(shapes, one.frames[0])], SIZE, config, "cpu")[0]
    assert torch.equal(load(shapes, one, config=config).images[0][0], expected)


# -------------------------------------------------------------------------------------------------------------- targets


def nearest(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Pixel by pixel: source index floor((j + 0.5) * scale)."""
    (height, width), (h, w) = mask.shape, size
    out = np.zeros(size, bool)
    for y in range(h):
        for x in range(w):
            out[y, x] = mask[int((y + 0.5) * height / h), int((x + 0.5) * width / w)]
    return out


def test_masks_boxes_and_labels_are_those_of_the_clip(shapes):
    """The truth comes from the generator, not from the file."""
    one = draw(shapes, 1, 0, 3)
    batch = load(shapes, one)
    clip = generate_clip(CLIPS, 3, 1)
    offset = len(shapes.dataset.annotations_of[1])                      # ids go on from those of the first video
    for slot, frame in enumerate(one.frames):
        targets = batch.targets[slot][0]
        present = [k for k in range(len(clip.objects)) if clip.box(k, frame.frame) is not None]
        assert len(targets) == len(present) >= 3
        assert targets.labels.tolist() == [clip.objects[k].category_id - 1 for k in present]
        assert targets.identities.tolist() == [offset + k for k in present]
        assert targets.masks.shape == (len(present), *pad_to(*SIZE, 32)) and targets.masks.dtype == torch.bool
        for mask, box, k in zip(targets.masks.numpy(), targets.boxes.tolist(), present, strict=True):
            np.testing.assert_array_equal(mask[: SIZE[0], : SIZE[1]], nearest(clip.masks(k)[frame.frame], SIZE))
            assert not mask[SIZE[0] :].any() and not mask[:, SIZE[1] :].any(), "nothing in the padding"
            x1, y1, x2, y2 = clip.box(k, frame.frame)
            assert box == pytest.approx([x1 * 83 / 125, y1 * 50 / 75, x2 * 83 / 125, y2 * 50 / 75], abs=1e-4)


def test_mirroring_mirrors_both_frames_with_masks_and_boxes(shapes):
    plain, mirrored = (load(shapes, draw(shapes, 0, 1, 3, flip)) for flip in (False, True))
    h, w = SIZE
    for slot in (0, 1):
        image, turned = plain.images[slot][0], mirrored.images[slot][0]
        assert torch.equal(turned[:, :h, :w], image[:, :h, :w].flip(2)), "the frame alone, not its padding"
        assert not turned[:, h:].any() and not turned[:, :, w:].any()
        a, b = plain.targets[slot][0], mirrored.targets[slot][0]
        assert torch.equal(b.masks[:, :h, :w], a.masks[:, :h, :w].flip(2)) and not b.masks[:, :, w:].any()
        expected = torch.stack([w - a.boxes[:, 2], a.boxes[:, 1], w - a.boxes[:, 0], a.boxes[:, 3]], dim=1)
        torch.testing.assert_close(b.boxes, expected)
        assert torch.equal(a.labels, b.labels) and torch.equal(a.identities, b.identities)
        assert torch.equal(plain.counterparts[slot][0], mirrored.counterparts[slot][0])


def test_one_pair_of_a_batch_may_be_mirrored_and_the_other_not(shapes):
    both = load(shapes, draw(shapes, 0, 0, 1, True), draw(shapes, 1, 2, 3, False))
    for b, alone in enumerate((load(shapes, draw(shapes, 0, 0, 1, True)), load(shapes, draw(shapes, 1, 2, 3, False)))):
        for slot in (0, 1):
            assert torch.equal(both.images[slot][b], alone.images[slot][0])
            assert torch.equal(both.targets[slot][b].masks, alone.targets[slot][0].masks)


# -------------------------------------------------------------------------------------------------------------- by hand

def test_boxes_are_scaled_and_clipped_to_the_frame(tmp_path):
    index = hand_made(tmp_path, (LANDSCAPE, {1: [(-6, 8, 20, 60)], 2: [(50, 2, 40, 10)], 3: [(10, 12, 20, 6)]}))
    plain, mirrored = (load(index, draw(index, 0, 0, 0, flip), config=HALF).targets[0][0] for flip in (False, True))
    assert plain.boxes.tolist() == [[0, 4, 7, 24], [25, 1, 32, 6], [5, 6, 15, 9]]
    assert mirrored.boxes.tolist() == [[25, 4, 32, 24], [0, 1, 7, 6], [17, 6, 27, 9]]


def test_labels_follow_category_ids_and_identities_annotation_ids(tmp_path):
    """Categories stand in the file as 9, 4; annotations as 50, 7, 21."""
    box = [(10, 10, 20, 20)]
    index = hand_made(tmp_path, (LANDSCAPE, {50: box, 7: box}), (LANDSCAPE, {21: box}))
    batch = load(index, draw(index, 0, 0, 0), draw(index, 1, 0, 0), config=HALF)
    assert [t.labels.tolist() for t in batch.targets[0]] == [[1, 0], [0]]
    assert [t.identities.tolist() for t in batch.targets[0]] == [[2, 0], [1]]


def test_counterparts_go_by_annotation_id(tmp_path):
    box = (10, 10, 20, 20)
    index = hand_made(tmp_path, (LANDSCAPE, {
        8: [box, None, box], 3: [box, box, None], 5: [None, box, None], 1: [box, box, None]}))
    batch = load(index, draw(index, 0, 0, 1), draw(index, 0, 1, 2), draw(index, 0, 2, 2), config=HALF)
    # frame 0 holds 8 3 1, frame 1 holds 3 5 1, frame 2 holds 8
    assert [c.tolist() for c in batch.counterparts[0]] == [[-1, 0, 2], [-1, -1, -1], [0]]
    assert [c.tolist() for c in batch.counterparts[1]] == [[1, -1, 2], [-1], [0]]
    assert all(c.dtype == torch.int64 for slot in batch.counterparts for c in slot)


def test_instances_that_resizing_leaves_nothing_of_are_dropped(tmp_path):
    """Of two pixels nearest takes the second, floor(2 j + 1): the object in the first is gone. So is one without width.
    """
    seen, lost, flat = (10, 10, 20, 20), (30, 30, 1, 1), (40, 10, 0, 8)
    index = hand_made(tmp_path, (LANDSCAPE, {2: [lost, seen], 4: [seen, seen], 6: [flat, seen], 8: [seen, lost]}))
    batch = load(index, draw(index, 0, 0, 1), config=HALF)
    assert [[t.identities.tolist() for t in slot] for slot in batch.targets] == [[[1, 3]], [[0, 1, 2]]]
    assert [c.tolist() for slot in batch.counterparts for c in slot] == [[1, -1], [-1, 0, -1]]
    assert all(len(t.boxes) == len(t.labels) == len(t.masks) == len(t) for slot in batch.targets for t in slot)
    assert batch.targets[0][0].masks.flatten(1).any(1).all()


def test_a_frame_may_lose_all_its_instances(tmp_path):
    index = hand_made(tmp_path, (LANDSCAPE, {2: [(30, 30, 1, 1), (10, 10, 20, 20)]}))
    batch = load(index, draw(index, 0, 0, 1), config=HALF)
    first, second = (slot[0] for slot in batch.targets)
    assert len(first) == 0 and first.boxes.shape == (0, 4) and first.masks.shape == (0, 32, 32)
    assert [c.tolist() for slot in batch.counterparts for c in slot] == [[], [-1]] and len(second) == 1


def test_frames_of_two_shapes_are_padded_to_a_common_size(tmp_path):
    box = [(10, 10, 20, 20)] * 2
    index = hand_made(tmp_path, (LANDSCAPE, {1: box}), (PORTRAIT, {2: box}), ((30, 300), {3: box}))
    config = InputConfig(short_side=48, long_side=64, mean=(0, 0, 0))
    both = load(index, draw(index, 0, 0, 1), draw(index, 1, 0, 1), config=config)
    assert both.images[0].shape == (2, 3, 64, 64)
    for b, (h, w) in enumerate((LANDSCAPE, PORTRAIT)):
        assert both.images[0][b, :, :h, :w].ne(0).any(0).all() and not both.images[0][b, :, h:].any()
        assert not both.images[0][b, :, :, w:].any()
        assert both.targets[0][b].boxes.tolist() == [[10, 10, 30, 30]]
        assert both.targets[0][b].masks.shape == (1, 64, 64) and both.targets[0][b].masks.sum() == 400
    wide = load(index, draw(index, 2, 0, 1), config=config)
    assert wide.images[0].shape == (1, 3, 32, 64), "30 x 300 becomes 6 x 64"
    assert resize_to(30, 300, 48, 64) == (6, 64)


def test_orientation_in_a_photo_is_honoured(tmp_path):
    """Stored lying down, shown upright: masks and boxes refer to what is shown."""
    index = hand_made(tmp_path, (PORTRAIT, {1: [(10, 10, 20, 20)]}))
    path = tmp_path / "1" / "0.jpg"
    upright = np.zeros((64, 48, 3), np.uint8)
    upright[:16], upright[16:] = (250, 0, 0), (0, 0, 250)               # red above blue, in blocks of 16
    exif = Image.Exif()
    exif[0x0112] = 6                                                    # turn clockwise to show
    stored = io.BytesIO()
    Image.fromarray(np.rot90(upright)).save(stored, "JPEG", quality=95, exif=exif)
    path.write_bytes(stored.getvalue())
    config = InputConfig(short_side=48, long_side=64, channel_order="rgb", mean=(0, 0, 0))
    pixels = load(index, draw(index, 0, 0, 0), config=config).images[0][0, :, :64, :48].permute(1, 2, 0)
    difference = (pixels - torch.from_numpy(upright).float()).abs().mean()
    assert difference < 3, "anything else than upright differs by over 20"


# --------------------------------------------------------------------------------------------------------------- clips


def load_clips(
    index: FrameIndex, *draws: Draw, config: InputConfig = INPUT, device: torch.device = CPU
) -> ClipBatch:
    """One batch of exactly these draws, as a worker gets it."""
    loader = ClipLoader(itertools.cycle(draws), index, config, batch=len(draws), frames=len(draws[0].frames),
                        device=device)  # fmt: skip
    try:
        return next(loader)
    finally:
        loader.close()


def clip(
    index: FrameIndex, video: int, places: Sequence[int], flips: Sequence[bool] | None = None,
    scales: Sequence[tuple[int, int]] | None = None,
) -> Draw:  # fmt: skip
    """Places among the usable frames of a video."""
    frames = tuple(index.videos[video][place] for place in places)
    return Draw(frames, tuple(flips or [False] * len(places)), None if scales is None else tuple(scales))


def test_each_frame_of_a_clip_is_what_it_is_as_half_of_a_pair(shapes):
    """One definition serves both: frames, mirroring and masks are the same to the bit."""
    flips = [(False, True, True, False, True), (True, False, False, False, True)]
    places = [(0, 1, 2, 3, 4), (4, 1, 3, 0, 0)]
    batch = load_clips(shapes, *(clip(shapes, v, places[v], flips[v]) for v in (0, 1)))
    assert len(batch) == 2 and len(batch.images) == len(batch.targets) == len(batch.slots) == 5
    for t, v in itertools.product(range(5), (0, 1)):
        alone = load(shapes, draw(shapes, v, places[v][t], places[v][t], flips[v][t]))
        assert torch.equal(batch.images[t][v], alone.images[0][0]), (t, v)
        ours, theirs = batch.targets[t][v], alone.targets[0][0]
        assert torch.equal(ours.masks, theirs.masks) and torch.equal(ours.boxes, theirs.boxes)
        assert torch.equal(ours.labels, theirs.labels)


BOX = (10, 10, 20, 20)


def test_identities_count_from_0_in_each_clip_by_annotation_id(tmp_path):
    """The specification's clip (10, check 7), beside another whose tracks come in the file in another order."""
    def seen(*frames: int) -> list[Box | None]:
        return [BOX if t in frames else None for t in range(5)]

    index = hand_made(tmp_path, (LANDSCAPE, {7: seen(0, 1, 3), 9: seen(1, 2, 4), 4: seen(4)}),
                      (LANDSCAPE, {30: seen(0, 1, 2, 3, 4), 21: seen(0, 3)}))  # fmt: skip
    batch = load_clips(index, clip(index, 0, range(5)), clip(index, 1, range(5)), config=HALF)
    of_first, of_second = ([slot[b].identities.tolist() for slot in batch.targets] for b in (0, 1))
    assert of_first == [[1], [1, 2], [2], [1], [2, 0]]
    assert of_second == [[1, 0], [1], [1], [1, 0], [1]]
    part = load_clips(index, clip(index, 0, (1, 2)), config=HALF)
    assert [slot[0].identities.tolist() for slot in part.targets] == [[0, 1], [1]], "4 is not in this clip"


def test_an_instance_that_resizing_leaves_nothing_of_stays_in_a_clip(tmp_path):
    """In a pair it is dropped; in a clip the next frame knows it."""
    lost = (30, 30, 1, 1)
    index = hand_made(tmp_path, (LANDSCAPE, {2: [lost, BOX], 4: [BOX, BOX]}))
    first, second = (slot[0] for slot in load_clips(index, clip(index, 0, (0, 1)), config=HALF).targets)
    assert first.identities.tolist() == second.identities.tolist() == [0, 1]
    assert not first.masks[0].any() and first.masks[1].any() and first.boxes[0].tolist() == [15, 15, 15.5, 15.5]


def test_every_frame_of_a_batch_of_clips_has_one_size_and_tells_its_own(tmp_path):
    """Two shapes and a size drawn for each frame: one tensor size for all, what lies beyond a frame is zero."""
    index = hand_made(tmp_path, (LANDSCAPE, {1: [BOX] * 3}), (PORTRAIT, {2: [BOX] * 3}))
    config = InputConfig(short_side=48, long_side=64, mean=(0, 0, 0))
    sizes = [[(48, 64), (24, 32), (96, 128)], [(64, 48), (32, 24), (32, 24)]]
    scales = [[(48, 64), (24, 640), (960, 128)], [(48, 64), (24, 640), (360, 32)]]
    flips = [False, True, False]
    batch = load_clips(index, *(clip(index, v, range(3), flips, scales[v]) for v in (0, 1)), config=config)
    assert [tuple(image.shape) for image in batch.images] == [(2, 3, 96, 128)] * 3
    padded = [[(64, 64), (64, 64)], [(32, 32), (32, 32)], [(96, 128), (32, 32)]]
    assert [[tuple(size) for size in slot] for slot in batch.sizes] == padded
    for t, v in itertools.product(range(3), (0, 1)):
        (h, w), image, targets = sizes[v][t], batch.images[t][v], batch.targets[t][v]
        assert image[:, :h, :w].ne(0).any(0).all() and not image[:, h:].any() and not image[:, :, w:].any()
        assert targets.masks.shape == (1, 96, 128) and not targets.masks[:, h:].any()
        scale = h / (LANDSCAPE, PORTRAIT)[v][0]
        left = w - 30 * scale if flips[t] else 10 * scale
        assert targets.boxes[0].tolist() == pytest.approx([left, 10 * scale, left + 20 * scale, 30 * scale])
        rows, columns = (targets.masks[0].any(1 - axis).nonzero().squeeze(1) for axis in (0, 1))
        assert (rows[0], rows[-1] + 1) == (10 * scale, 30 * scale) and len(columns) == 20 * scale
        assert columns[0] == left


def test_boxes_of_clips_are_clipped_and_scaled_per_axis(tmp_path):
    """64 x 47 becomes 33 x 24: the axes have scales of their own."""
    index = hand_made(tmp_path, ((47, 64), {1: [(-6, 8, 20, 60)]}))
    batch = load_clips(index, clip(index, 0, (0,)), config=InputConfig(short_side=24, long_side=90))
    assert resize_to(47, 64, 24, 90) == (24, 33)
    assert batch.targets[0][0].boxes[0].tolist() == pytest.approx([0, 8 * 24 / 47, 14 * 33 / 64, 24])


def test_batches_of_clips_come_in_the_order_of_the_draws(shapes):
    sampler = ClipSampler(shapes, frames=3, flip=0.5, flip_sync=False, seed=4,
                          scale=ScaleConfig(short_side=(40, 60), long_side=(70, 100), each="frame"))  # fmt: skip
    loader = ClipLoader(sampler.draws(3), shapes, INPUT, batch=2, frames=3, device=CPU)
    expected = list(itertools.islice(sampler.draws(3), 6))
    try:
        for begin in (0, 2, 4):
            batch, alone = next(loader), load_clips(shapes, *expected[begin : begin + 2])
            assert all(torch.equal(a, b) for a, b in zip(batch.images, alone.images, strict=True)), begin
            assert batch.sizes == alone.sizes
    finally:
        loader.close()


def test_a_clip_of_a_short_video_repeats_its_frames(tmp_path):
    index = hand_made(tmp_path, (LANDSCAPE, {1: [BOX] * 2}))
    sampler = ClipSampler(FrameIndex(index.dataset, has_area), frames=5, flip=0.0, flip_sync=False, scale=None, seed=0)
    batch = load_clips(index, next(sampler.draws(0)), config=HALF)
    assert [torch.equal(batch.images[0], batch.images[t]) for t in range(5)] == [True, False, True, False, True]


def test_targets_of_clips_lie_on_the_loaders_device(shapes):
    batch = load_clips(shapes, clip(shapes, 0, (0, 1)), device=torch.device("meta"))
    for slot in batch.targets:
        assert {getattr(slot[0], n).device.type for n in ("boxes", "labels", "identities", "masks")} == {"meta"}


@pytest.mark.gpu
def test_a_gpu_gives_clips_with_nearly_the_same_pixels_and_the_same_masks(shapes):
    one = clip(shapes, 0, (0, 2, 3), (True, False, True), [(40, 90), (50, 90), (60, 100)])
    here, there = load_clips(shapes, one), load_clips(shapes, one, device=torch.device("cuda", 0))
    assert here.sizes == there.sizes
    for t in range(3):
        difference = (there.images[t].cpu() - here.images[t]).abs()
        assert difference.mean() < 1 and difference.quantile(0.999) <= 8, "two decoders, and rounding"
        assert torch.equal(there.targets[t][0].masks.cpu(), here.targets[t][0].masks)
        assert torch.equal(there.targets[t][0].identities.cpu(), here.targets[t][0].identities)
