"""What the graph does to pixels: against loops in numpy, image and masks together, on frames held in memory.

Source of what is expected: TLTM specification 1.4 (motion by bilinear and nearest, 0 outside, then blur), CrossVIS 1.6,
CiCo 1.2, 1.6.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from PIL import Image

from models.cico_targets import clip_targets
from models.inputs import InputConfig
from operators.preprocess import Preprocess
from operators.records import Frame, FrameInfo
from operators.youtube_vis_data import Annotation, Category, Dataset, Video
from pipelines.config import resolve
from pipelines.networks import read_network
from trainers.augment import Blur, Changes, Window, blur_kernel, colour, motion_about
from trainers.data import ClipLoader, StillLoader
from trainers.frames import Draw, FrameAnnotations, FrameIndex
from trainers.pixels import Parts, frame_pipe
from trainers.prepared import boxes_of

H, W = 48, 64
PLAIN = InputConfig(short_side=H, long_side=W, channel_order="rgb", mean=(0, 0, 0), divisor=16)
ALL = Parts(colour=True, motion=True, window=True)


class Frames:
    """A source of frames held in memory."""

    stored = "frame"

    def __init__(self, images: Sequence[np.ndarray]) -> None:
        self.images = images

    def read(self, frames: Sequence[FrameAnnotations]) -> dict[str, list[np.ndarray]]:
        return {"frame": [self.images[frame.frame] for frame in frames]}

    def close(self) -> None:
        pass


def runs(mask: np.ndarray) -> dict:
    flat = mask.T.reshape(-1).astype(int)
    changes = np.flatnonzero(np.diff(np.concatenate([[0], flat]))).tolist()
    return {"size": list(mask.shape), "counts": np.diff([0, *changes, flat.size]).tolist()}


def index_of(masks: Sequence[np.ndarray], frames: int = 1) -> FrameIndex:
    """A video whose frames all show the same instances, their boxes tight."""
    height, width = masks[0].shape
    found = []
    for id, mask in enumerate(masks, start=1):
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        x, y = int(columns[0]), int(rows[0])
        box = [x, y, int(columns[-1]) + 1 - x, int(rows[-1]) + 1 - y]
        found.append(Annotation(id, 1, 1, False, (runs(mask),) * frames, (box,) * frames, (int(mask.sum()),) * frames))
    video = Video(1, width, height, frames, tuple(f"v/{t}.jpg" for t in range(frames)))
    return FrameIndex(Dataset("memory", None, (video,), (Category(1, "thing"),), tuple(found), True))


def load(
    images: Sequence[np.ndarray], masks: Sequence[np.ndarray], changes: Sequence[Changes], *, config=PLAIN, parts=ALL,
    flip: bool = False, boxes: str = "annotated", resized: str = "nearest",
):  # fmt: skip
    """One clip of these frames: its images (T, 3, Hp, Wp), its targets a frame."""
    index = index_of(masks, len(images))
    draw = Draw(tuple(index.videos[0]), (flip,) * len(images), changes=tuple(changes))
    loader = ClipLoader(iter([draw]), index, config, batch=1, frames=len(images), device=torch.device("cpu"),
                        source=Frames(images), parts=parts, boxes=boxes, masks=resized)  # fmt: skip
    try:
        batch = next(loader)
    finally:
        loader.close()
    return torch.cat(batch.images), [slot[0] for slot in batch.targets]


def picture(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (H, W, 3), np.uint8)


def disc(x: float, y: float, radius: float) -> np.ndarray:
    rows, columns = np.mgrid[:H, :W] + 0.5
    return (columns - x) ** 2 + (rows - y) ** 2 < radius**2


def shown(image: torch.Tensor) -> np.ndarray:
    return image.permute(1, 2, 0).numpy()


# ------------------------------------------------------------------------------------------------------- one by one


def test_frames_that_are_not_changed_are_as_they_came():
    """In a graph that can do everything, beside a frame that everything is done to."""
    motion, window = motion_about((9, 9), 9, 1, (3, 3)), Window(1.4, 0.3, 0.3)
    everything = Changes(colour(brightness=9), motion, Blur(9, 9, 0.5), window)
    one, mask = picture(), disc(30, 20, 9)
    images, targets = load([one, one], [mask], [Changes(), everything])
    np.testing.assert_array_equal(shown(images[0]), one)
    np.testing.assert_array_equal(targets[0].masks[0].numpy(), mask)
    assert np.abs(shown(images[1]) - one).mean() > 10
    alone, _ = load([one], [mask], [Changes()], parts=Parts())
    assert torch.equal(alone[0], images[0]), "what the graph can do besides makes no difference"


@pytest.mark.parametrize("change", [
    pytest.param({"brightness": 20.0}, id="brightness"), pytest.param({"contrast": -0.3}, id="contrast"),
    pytest.param({"saturation": 0.5}, id="saturation"), pytest.param({"hue": 14.0}, id="hue"),
    pytest.param({"brightness": -7.3, "contrast": 0.2, "saturation": -0.4, "hue": -40.0}, id="all"),
])  # fmt: skip
@pytest.mark.parametrize("order", ["rgb", "bgr"])
def test_colours_are_those_of_the_matrix(change, order):
    """Of RGB, whatever the network takes: the release turned hues of BGR."""
    one = picture()
    config = InputConfig(short_side=H, long_side=W, channel_order=order, mean=(0, 0, 0), divisor=16)
    images, _ = load([one], [disc(30, 20, 9)], [Changes(colour=colour(**change))], config=config)
    expected = (np.concatenate([one, np.ones((H, W, 1))], axis=2) @ np.reshape(colour(**change), (3, 4)).T).clip(0, 255)
    found = shown(images[0])[..., :: 1 if order == "rgb" else -1]
    assert np.abs(found - expected).max() <= 0.501, "but for rounding"


def warped(image: np.ndarray, motion: tuple[float, ...], nearest: bool) -> np.ndarray:
    """Pixel by pixel: where each centre comes from; 0 outside."""
    matrix = np.reshape(motion, (2, 3))
    back, shift = np.linalg.inv(matrix[:, :2]), matrix[:, 2]
    out = np.zeros(image.shape)
    for y, x in product(range(H), range(W)):
        u, v = back @ (np.array([x + 0.5, y + 0.5]) - shift)
        if nearest:
            column, row = int(np.floor(u)), int(np.floor(v))
            out[y, x] = image[row, column] if 0 <= row < H and 0 <= column < W else 0
            continue
        u, v = u - 0.5, v - 0.5
        for column, share_x in ((int(np.floor(u)), 1 - u % 1), (int(np.floor(u)) + 1, u % 1)):
            for row, share_y in ((int(np.floor(v)), 1 - v % 1), (int(np.floor(v)) + 1, v % 1)):
                if 0 <= row < H and 0 <= column < W:
                    out[y, x] += share_x * share_y * image[row, column]
    return out


@pytest.mark.parametrize("motion", [
    pytest.param(motion_about((32, 24), 0, 1, (5, -3)), id="whole pixels"),
    pytest.param(motion_about((32, 24), 0, 1, (4.3, 2.6)), id="parts of pixels"),
    pytest.param(motion_about((32, 24), 17, 1, (0, 0)), id="turned"),
    pytest.param(motion_about((32, 24), -20, 1.1, (12.2, -9.1)), id="turned, scaled, shifted"),
])
def test_motion_is_bilinear_for_the_image_and_nearest_for_masks(motion):
    one, masks = picture(), [disc(30, 20, 9), disc(40, 30, 12)]
    images, targets = load([one], masks, [Changes(motion=motion)])
    assert np.abs(shown(images[0]) - warped(one, motion, nearest=False)).max() <= 1, "rounding of places and of values"
    for found, mask in zip(targets[0].masks.numpy(), masks, strict=True):
        expected = warped(mask, motion, nearest=True).astype(bool)
        assert (found != expected).mean() < 0.002, "but for ties"
        assert expected.sum() > 100


@pytest.mark.parametrize("blur", [Blur(7, 0, 0.0), Blur(9, 60, 0.8), Blur(9, 90, -1.0)], ids=str)
def test_blur_is_the_sum_of_shifted_images(blur):
    """The kernel lies on the image as it is written, not turned round; edges are mirrored."""
    one, kernel = picture(), blur_kernel(blur)
    middle = blur.size // 2
    around = np.pad(one.astype(float), ((middle, middle), (middle, middle), (0, 0)), mode="reflect")
    expected = sum(kernel[j, i] * around[j : j + H, i : i + W] for j, i in np.ndindex(kernel.shape))
    images, targets = load([one], [disc(30, 20, 9)], [Changes(blur=blur)])
    assert np.abs(shown(images[0]) - expected).max() <= 0.51
    np.testing.assert_array_equal(targets[0].masks[0].numpy(), disc(30, 20, 9))


def test_order_is_colour_then_motion_then_blur():
    """Brightness does not reach what motion leaves empty; blur reaches over its edge."""
    black = np.zeros((H, W, 3), np.uint8)
    changes = Changes(colour(brightness=100), motion_about((0, 0), 0, 1, (20, 0)), Blur(9, 0, 0.0))
    image = shown(load([black], [disc(30, 20, 9)], [changes])[0][0])[:, :, 0]
    assert (image[:, :15] == 0).all() and (image[:, 25:] == 100).all()
    assert 40 <= image[5, 19] <= 60 and (np.diff(image[5, 14:26]) >= 0).all()


# ------------------------------------------------------------------------------------------------------------ windows


def test_a_shrunk_frame_lies_at_the_top_left():
    images, (targets,) = load([np.full((H, W, 3), 200, np.uint8)], [disc(32, 24, 16)],
                              [Changes(window=Window(0.5, 0.7, 0.7))])  # fmt: skip
    assert images.shape[-2:] == (H, W), "as large as it was, but for 24 x 32 of it padding"
    assert (images[0, :, :24, :32] == 200).all() and not images[0, :, 24:].any() and not images[0, :, :, 32:].any()
    assert targets.boxes[0].tolist() == [8, 4, 24, 20]
    assert boxes_of(targets.masks)[0].tolist() == [8, 4, 24, 20]


@pytest.mark.parametrize("flip", [False, True])
def test_an_enlarged_frame_is_cut_to_its_size(flip):
    """Twice the size, from (left, top) = (16, 12): a box of 16..48 x 8..40 becomes 16..64 x 4..48, clipped."""
    one = np.repeat(np.repeat(picture()[: H // 2, : W // 2], 2, axis=0), 2, axis=1)
    mask = np.zeros((H, W), bool)
    mask[8:40, 16:48] = True
    images, (targets,) = load([one], [mask], [Changes(window=Window(2.0, 16 / 65 + 1e-6, 12 / 49 + 1e-6))], flip=flip)
    assert images.shape[-2:] == (H, W)
    expected = np.array([[16, 4, 64, 48]])
    if flip:
        expected = np.array([[W - 64, 4, W - 16, 48]])
    assert targets.boxes.tolist() == expected.tolist() == boxes_of(targets.masks).tolist()
    large = np.asarray(Image.fromarray(one).resize((2 * W, 2 * H), Image.Resampling.BILINEAR), float)
    found = shown(images[0])[:, ::-1] if flip else shown(images[0])
    assert np.abs(found - large[12 : 12 + H, 16 : 16 + W]).max() <= 1.5


def test_a_turned_frame_has_its_rows_in_the_other_order():
    """It is padded at the bottom all the same: 44 rows of 48."""
    one, mask = picture()[:44], np.zeros((44, W), bool)
    mask[4:14, 20:50] = True
    images, (targets,) = load([one], [mask], [Changes()], flip=True, parts=Parts(upside_down=True),
                              config=replace(PLAIN, short_side=44))  # fmt: skip
    np.testing.assert_array_equal(shown(images[0])[:44], one[::-1])
    assert not images[0, :, 44:].any()
    assert targets.boxes.tolist() == [[20, 30, 50, 40]] == boxes_of(targets.masks).tolist()


def test_frames_are_fitted_into_a_box():
    """Upright, 64 x 48 of a box of 32 x 64: 32 x 24, padded to all of the box (CiCo specification 1.2)."""
    upright = np.full((64, 48, 3), 90, np.uint8)
    mask = np.zeros((64, 48), bool)
    mask[16:48, 8:40] = True
    images, (targets,) = load([upright], [mask], [Changes()], parts=Parts(),
                              config=replace(PLAIN, short_side=32, long_side=64, fit="box"))  # fmt: skip
    assert images.shape[-2:] == (32, 64) and (images[0, :, :, :24] == 90).all() and not images[0, :, :, 24:].any()
    assert targets.boxes.tolist() == [[4, 8, 20, 24]]


def test_boxes_may_end_at_their_last_pixel():
    """x + w - 1, then resized to half and mirrored (CiCo specification 1.1)."""
    mask = np.zeros((H, W), bool)
    mask[8:40, 16:48] = True
    _, (targets,) = load([picture()], [mask], [Changes()], parts=Parts(), boxes="inclusive", flip=True,
                         config=replace(PLAIN, short_side=24, long_side=32))  # fmt: skip
    assert targets.boxes.tolist() == [[8.5, 4, 24, 19.5]]


# ---------------------------------------------------------------------------------------------------------- together


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("antialias", [False, True])
def test_image_and_masks_stay_together_under_everything(flip, antialias):
    """Red, green and blue discs on black: what is of a disc's colour is its mask, whatever is done. Resized by a factor
    that is no whole number."""
    masks = [disc(20, 20, 11), disc(44, 18, 9), disc(36, 36, 10)]
    masks[2] &= ~masks[0] & ~masks[1]
    one = np.zeros((H, W, 3), np.uint8)
    for channel, mask in enumerate(masks):
        one[mask, channel] = 255
    config = InputConfig(short_side=67, long_side=200, channel_order="rgb", mean=(0, 0, 0), antialias=antialias)
    changes = [Changes(), Changes(motion=motion_about((W / 2, H / 2), 14, 1, (4, -3))),
               Changes(motion=motion_about((W / 2, H / 2), -9, 1.2, (-6, 2)), window=Window(1.3, 0.4, 0.6)),
               Changes(window=Window(0.6, 0, 0))]  # fmt: skip
    images, targets = load([one] * 4, masks, changes, config=config, flip=flip)
    for t, (image, frame) in enumerate(zip(images, targets, strict=True)):
        for channel, mask in enumerate(frame.masks):
            lit = image[channel] > 127
            overlap = (lit & mask).sum() / (lit | mask).sum()
            assert overlap > 0.93 and mask.sum() > 100, (t, channel, float(overlap))


def test_boxes_are_the_moved_hull_or_those_of_the_masks():
    mask = disc(30, 20, 10)
    changes = [Changes(motion=motion_about((30, 20), 45, 1, (6, 0)))]
    hull, tight = (load([picture()], [mask], changes, boxes=boxes)[1][0].boxes[0].tolist()
                   for boxes in ("annotated", "masks"))  # fmt: skip
    reach = 10 * 2**0.5
    assert hull == pytest.approx([36 - reach, 20 - reach, 36 + reach, 20 + reach], abs=1e-3)
    assert tight == pytest.approx([26, 10, 46, 30], abs=1), "a disc turned is a disc"


def test_boxes_of_masks():
    masks = torch.zeros(3, 6, 8, dtype=torch.bool)
    masks[1, 2:5, 3:4], masks[2] = True, True
    assert boxes_of(masks).tolist() == [[0, 0, 0, 0], [3, 2, 4, 5], [0, 0, 8, 6]]
    assert boxes_of(masks[:0]).shape == (0, 4)


def test_moved_masks_are_exclusive_where_asked():
    large, small = disc(30, 24, 16), disc(36, 24, 8)
    for exclusive in (False, True):
        changes = [Changes(motion=motion_about((30, 24), 0, 1, (2, 0)), exclusive=exclusive)]
        first, second = load([picture()], [large, small], changes)[1][0].masks
        assert bool((first & second).any()) is not exclusive and second.sum() == small.sum()


# ---------------------------------------------------------------------------------------------------- as CiCo has it


CICO = [path for path in sorted(resolve("configs/networks").iterdir()) if path.name.startswith(("cico_", "fifo_"))]


@pytest.mark.parametrize("path", CICO, ids=lambda path: path.stem)
def test_all_networks_of_cico_see_plain_bilinear_frames_in_one_box(path):
    cfg = read_network(path).config.input
    assert (cfg.short_side, cfg.long_side, cfg.fit, cfg.divisor, cfg.antialias) == (384, 640, "box", 32, False)


def plain_bilinear(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """In float64, of the four stored pixels round each place; no filter.  (H, W) -> (h, w)"""
    rows, columns = (np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
                     for old, new in zip(image.shape, size, strict=True))  # fmt: skip
    (top, down), (left, across) = ((np.floor(at).astype(int), at % 1) for at in (rows, columns))
    below, right = (np.minimum(first + 1, old - 1) for first, old in zip((top, left), image.shape, strict=True))
    image, down = image.astype(float), down[:, None]
    return ((1 - down) * ((1 - across) * image[np.ix_(top, left)] + across * image[np.ix_(top, right)])
            + down * ((1 - across) * image[np.ix_(below, left)] + across * image[np.ix_(below, right)]))  # fmt: skip


@pytest.mark.parametrize("stored, size", [
    pytest.param((720, 1280), (360, 640), id="720p"), pytest.param((480, 854), (359, 640), id="480p: no whole factor"),
    pytest.param((854, 480), (384, 215), id="upright"), pytest.param((90, 160), (360, 640), id="enlarged"),
])  # fmt: skip
def test_frames_and_masks_of_cico_are_plain_bilinear_in_training_and_frames_in_use(stored, size):
    """At full size, 384 x 640 with padding. Speckles, which a filter would blur and nearest would pick from."""
    cfg = read_network("configs/networks/cico_yolact_r50.yaml").config.input
    rng = np.random.default_rng(0)
    one, masks = rng.integers(0, 256, (*stored, 3), np.uint8), list(rng.random((2, *stored)) < 0.5)
    images, (targets,) = load([one], masks, [Changes()], config=cfg, parts=Parts(), resized="bilinear")
    (used,) = Preprocess(cfg)([Frame(FrameInfo("s", 0, 0.0, *stored), one)])
    h, w = size
    assert torch.equal(images[0], used.pixels) and used.size == size and images.shape[-2:] == (384, 640)
    rgb = images[0].permute(1, 2, 0)[:h, :w] * torch.tensor(cfg.std) + torch.tensor(cfg.mean)
    for channel in range(3):
        assert np.abs(rgb[..., channel].numpy() - plain_bilinear(one[..., channel], size)).max() <= 0.51
    for mask, found in zip(masks, targets.masks, strict=True):
        expected = plain_bilinear(mask, size)
        np.testing.assert_allclose(found[:h, :w].numpy().astype(float), expected, atol=0.004)
        assert not found[h:].any() and not found[:, w:].any()
    wanted = np.zeros((2, 384, 640))
    wanted[:, :h, :w] = [plain_bilinear(mask, size) for mask in masks]
    cells = (wanted[:, 1::4, 1::4] + wanted[:, 1::4, 2::4] + wanted[:, 2::4, 1::4] + wanted[:, 2::4, 2::4]) / 4
    clear = np.abs(cells - 0.5) >= (0 if stored == (720, 1280) else 0.004)
    assert clear.mean() > 0.9
    np.testing.assert_array_equal(clip_targets([targets]).masks[:, 0].numpy()[clear], (cells > 0.5)[clear])


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("upside_down", [False, True])
def test_soft_masks_go_where_the_image_goes(flip, upside_down):
    """Each disc has a channel of the image, 255 where its mask is: they stay one, shrunk, enlarged, cut and turned."""
    masks = [disc(20, 20, 11), disc(44, 18, 9), disc(36, 36, 10)]
    one = np.stack(masks, axis=2).astype(np.uint8) * 255
    config = replace(PLAIN, short_side=35, long_side=100, antialias=False)
    changes = [Changes(), Changes(window=Window(1.4, 0.4, 0.6)), Changes(window=Window(0.6, 0, 0))]
    images, targets = load([one] * 3, masks, changes, config=config, flip=flip, resized="bilinear",
                           parts=Parts(window=True, upside_down=upside_down))  # fmt: skip
    for image, frame in zip(images, targets, strict=True):
        assert (image / 255 - frame.masks.float()).abs().max() < 0.5 / 128 + 0.5 / 255 + 1e-4
        shares = frame.masks[(frame.masks > 0) & (frame.masks < 1)]
        assert len(shares) > 30 and shares.unique().numel() > 9, "soft"


def test_many_soft_masks_and_none_at_all():
    """More than a colour image has channels; an object without a mask in one of the frames."""
    masks = [disc(3 * i, 20, 9) for i in range(19)]
    _, (targets,) = load([picture()], masks, [Changes()], parts=Parts(), resized="bilinear")
    np.testing.assert_array_equal(targets.masks.numpy(), masks)
    index = index_of(masks[:1])
    draw = Draw((FrameAnnotations(index.dataset.videos[0], 0, ()),), (False,))
    loader = ClipLoader(iter([draw]), index, PLAIN, batch=1, frames=1, device=torch.device("cpu"),
                        source=Frames([picture()]), masks="bilinear")  # fmt: skip
    ((_, (empty,)),) = next(loader).slots
    loader.close()
    assert empty.masks.shape == (0, H, W) and empty.masks.dtype == torch.float16


def test_a_still_loses_an_object_only_where_no_share_of_it_is_left():
    """At a third of the height rows 1, 4, .. 31 are seen; column 31 lies half way between two places."""
    (lost, kept) = np.zeros((2, H, W), bool)
    lost[30, 30] = kept[31, 31] = True
    index = index_of([lost, kept])
    draw = Draw((index.videos[0][0],), (False,))
    loader = StillLoader(iter([draw]), index, replace(PLAIN, short_side=H // 3, antialias=False), batch=1,
                         device=torch.device("cpu"), source=Frames([picture()]), masks="bilinear")  # fmt: skip
    targets = next(loader).targets[0]
    loader.close()
    assert targets.identities.tolist() == [1] and targets.masks.sum() == 0.5


def test_polygons_are_maps_of_the_stored_size_before_they_are_soft():
    """Where masks are by nearest they are drawn at the resized size, whose pixels know no shares."""
    outline = [[11.0, 9, 47, 9, 47, 33, 11, 33]]
    drawn = np.zeros((H, W), bool)
    drawn[9:33, 11:47] = True
    dataset = index_of([drawn]).dataset
    dataset = replace(dataset, annotations=(replace(dataset.annotations[0], segmentations=(outline,)),))
    index = FrameIndex(dataset)
    draws = iter([Draw((index.videos[0][0],), (False,))])
    loader = ClipLoader(draws, index, replace(PLAIN, short_side=H // 2), batch=1, frames=1, device=torch.device("cpu"),
                        source=Frames([picture()]), masks="bilinear")  # fmt: skip
    ((_, (targets,)),) = next(loader).slots
    loader.close()
    np.testing.assert_array_equal(targets.masks[0, :24, :32].numpy(), plain_bilinear(drawn, (24, 32)))
    assert set(targets.masks.unique().tolist()) == {0, 0.25, 0.5, 1}


def test_masks_that_move_are_not_soft():
    with pytest.raises(ValueError, match="masks of frames that move"):
        load([picture()], [disc(30, 20, 9)], [Changes()], parts=ALL, resized="bilinear")


# -------------------------------------------------------------------------------------------------------------- graphs


@pytest.mark.parametrize("stored", ["jpeg", "frame", "video"])
@pytest.mark.parametrize("parts", [{}, {"colour": True}, {"motion": True}, {"window": True},
                                   {"colour": True, "motion": True, "window": True}], ids=str)  # fmt: skip
def test_the_graph_of_a_gpu_can_be_made(stored, parts):
    """Serialising checks the names of operators and arguments; building would need the driver."""
    settings = {"batch_size": 2, "num_threads": 1, "device_id": None}
    here, there = (
        frame_pipe(PLAIN, Parts(stored, **parts), device, **settings).serialize() for device in ("cpu", "gpu"))
    assert b"\x03gpu" not in here and b"\x03gpu" in there
    assert there.count(b"mixed") == (stored != "frame") + here.count(b"mixed"), "the decoder"
