"""Frames to network input: sizes by hand, pixels against a triangle filter in float64 (CrossVIS specification 1.6)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from models.inputs import InputConfig
from operators.preprocess import Preprocess, pad_to, resize_to
from operators.records import Frame, FrameInfo

SMALL = InputConfig(short_side=30, long_side=50, mean=(0.0, 0.0, 0.0))
"""No mean: pixels come out as the grey levels they are."""


def frame(height: int, width: int, seed: int = 0, index: int = 0) -> Frame:
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Frame(FrameInfo("s", index, 0.0, height, width), image)


# ---------------------------------------------------------------------------------------------------------------- sizes


@pytest.mark.parametrize("height, width, short, long, expected", [
    pytest.param(720, 1280, 360, 640, (360, 640), id="1280x720, the table's own"),
    pytest.param(1280, 720, 360, 640, (640, 360), id="portrait"),
    pytest.param(360, 640, 360, 640, (360, 640), id="already there"),
    pytest.param(600, 600, 360, 640, (360, 360), id="square"),
    pytest.param(1080, 1920, 360, 640, (360, 640), id="1080p"),
    pytest.param(480, 640, 360, 640, (360, 480), id="4:3"),
    pytest.param(500, 2000, 360, 640, (160, 640), id="wide: the long side limits"),
    pytest.param(2000, 500, 360, 640, (640, 160), id="tall: the long side limits"),
    pytest.param(90, 160, 360, 640, (360, 640), id="small frames are enlarged"),
    pytest.param(1, 1, 360, 640, (360, 360), id="one pixel"),
    pytest.param(1, 2, 360, 640, (320, 640), id="one row of two"),
    pytest.param(2, 10000, 360, 640, (1, 640), id="a thread: no side becomes 0"),
    # short 8 of 16: k = 1/2 exactly, and 25 * 1/2 = 12.5
    pytest.param(16, 25, 8, 100, (8, 13), id="halves round up"),
    pytest.param(16, 27, 8, 100, (8, 14), id="halves round up, not to even"),
    # long 10 of 40: k = 1/4, and 26 * 1/4 = 6.5
    pytest.param(26, 40, 100, 10, (7, 10), id="halves of the short side too"),
    pytest.param(320, 512, 160, 256, (160, 256), id="the generated dataset, for the tiny network"),
])
def test_resize_to(height, width, short, long, expected):
    assert resize_to(height, width, short, long) == expected


@pytest.mark.parametrize("height, width, expected", [
    pytest.param(720, 1280, (360, 640), id="16:9"), pytest.param(1280, 720, (384, 216), id="portrait: the rows limit"),
    pytest.param(384, 640, (384, 640), id="the box itself"), pytest.param(480, 640, (384, 512), id="4:3"),
    pytest.param(300, 500, (384, 640), id="of the box's shape, enlarged"),
    pytest.param(299, 500, (382, 640), id="a little wider: 382.72 is cut"),
    pytest.param(301, 500, (384, 637), id="a little taller: 637.87 is cut"),
    pytest.param(1, 5000, (1, 640), id="a thread: no side becomes 0"),
    pytest.param(5000, 1, (384, 1), id="an upright thread"), pytest.param(1, 1, (384, 384), id="one pixel"),
])  # fmt: skip
def test_fitted_into_a_box(height, width, expected):
    """CiCo specification 1.2, for 384 x 640."""
    assert resize_to(height, width, 384, 640, "box") == expected


@pytest.mark.parametrize("height, width, size", [(60, 100, (30, 50)), (100, 60, (30, 18)), (30, 60, (25, 50))])
def test_a_box_is_padded_to_its_whole(height, width, size):
    """Whatever the frame's shape, up to the next multiple of the divisor."""
    (image,) = Preprocess(replace(SMALL, fit="box"))([frame(height, width)])
    assert image.size == size and tuple(image.pixels.shape) == (3, 32, 64)
    rest = image.pixels.clone()
    rest[:, : size[0], : size[1]] = 0
    assert not rest.any() and image.pixels.any()


def test_the_long_side_never_exceeds_its_limit():
    for height in range(1, 400, 7):
        for width in range(1, 700, 13):
            h, w = resize_to(height, width, 36, 64)
            assert 1 <= min(h, w) <= 36 and max(h, w) <= 64, (height, width)
            assert min(h, w) == 36 or max(h, w) == 64, (height, width)


@pytest.mark.parametrize("size, divisor, padded", [
    pytest.param((360, 640), 32, (384, 640), id="rows only"),
    pytest.param((384, 640), 32, (384, 640), id="neither"),
    pytest.param((1, 1), 32, (32, 32), id="one pixel"),
    pytest.param((33, 65), 32, (64, 96), id="one above"),
    pytest.param((7, 9), 1, (7, 9), id="divisor 1"),
])
def test_pad_to(size, divisor, padded):
    assert pad_to(*size, divisor) == padded


# --------------------------------------------------------------------------------------------------------------- pixels


def triangle(length: int, wanted: int, replicate: bool) -> np.ndarray:
    """(wanted, length) weights: a triangle about the mapped centre, widened by the scale when shrinking.

    Beyond the edge: the outermost pixel again (`replicate`), or nothing, the rest scaled up to 1.
    """
    scale = length / wanted
    reach = max(scale, 1.0)
    weights = np.zeros((wanted, length))
    for j in range(wanted):
        center = (j + 0.5) * scale - 0.5
        for i in range(int(np.floor(center - reach)), int(np.ceil(center + reach)) + 1):
            share = max(0.0, 1 - abs(i - center) / reach)
            if replicate or 0 <= i < length:
                weights[j, min(max(i, 0), length - 1)] += share
    return weights / weights.sum(1, keepdims=True)


def resized(image: np.ndarray, size: tuple[int, int], replicate: bool) -> np.ndarray:
    rows, columns = triangle(image.shape[0], size[0], replicate), triangle(image.shape[1], size[1], replicate)
    return np.einsum("jh,hwc,kw->jkc", rows, image.astype(np.float64), columns)


@pytest.mark.parametrize("height, width", [
    pytest.param(100, 160, id="shrunk"), pytest.param(64, 41, id="portrait, shrunk by odd shares"),
    pytest.param(20, 30, id="enlarged"), pytest.param(30, 50, id="kept"),
    pytest.param(90, 400, id="the long side limits"),
])
def test_pixels_against_the_triangle_filter(height, width):
    """Within the rounding to 8 bits, half a grey level, everywhere.

    At the frame's edge DALI repeats the outermost pixel where the released code (which resizes by PIL) leaves the
    filter cut off and scales it up. Both rules are compared: the first for all pixels, the other for all but the
    outermost, the only ones whose filter leaves the frame.
    """
    given = frame(height, width)
    (image,) = Preprocess(SMALL)([given])
    h, w = resize_to(height, width, 30, 50)
    assert image.size == (h, w) and image.pixels.dtype == torch.float32
    assert tuple(image.pixels.shape) == (3, *pad_to(h, w, 32))
    pixels = image.pixels[:, :h, :w].permute(1, 2, 0).numpy()
    assert np.array_equal(pixels, np.rint(pixels)), "rounded to whole grey levels before the mean is subtracted"
    bgr = given.image[..., ::-1]
    assert np.abs(pixels - resized(bgr, (h, w), replicate=True)).max() <= 0.51
    inner = (slice(1, h - 1), slice(1, w - 1))
    assert np.abs(pixels - resized(bgr, (h, w), replicate=False))[inner].max() <= 0.51


def test_a_plain_subsampling_would_be_told_apart():
    """Stripes one pixel wide become even grey when the filter is widened; without antialiasing they would alias."""
    image = np.zeros((120, 120, 3), np.uint8)
    image[:, ::2] = 255
    (out,) = Preprocess(SMALL)([Frame(FrameInfo("s", 0, 0.0, 120, 120), image)])
    inner = out.pixels[:, 2:28, 2:28]
    assert inner.min() >= 120 and inner.max() <= 135


@pytest.mark.parametrize("height, width", [(90, 135), (60, 90), (45, 90)])
def test_plain_bilinear_looks_at_four_pixels(height, width):
    """Without antialiasing: half-pixel centres, the two nearest pixels of each axis, whatever the scale."""
    cfg = replace(SMALL, antialias=False)
    given = frame(height, width)
    (out,) = Preprocess(cfg)([given])
    h, w = out.size
    image = given.image[..., ::-1].astype(float)
    for i, j in [(0, 0), (h // 2, w // 3), (h - 1, w - 1), (3, w - 2)]:
        y, x = (max((i + 0.5) * height / h - 0.5, 0), max((j + 0.5) * width / w - 0.5, 0))
        rows = [(min(int(y), height - 1), 1 - y % 1), (min(int(y) + 1, height - 1), y % 1)]
        columns = [(min(int(x), width - 1), 1 - x % 1), (min(int(x) + 1, width - 1), x % 1)]
        expected = sum(a * b * image[r, c] for r, a in rows for c, b in columns)
        assert np.abs(out.pixels[:, i, j].numpy() - expected).max() <= 0.51, (i, j)


@pytest.mark.parametrize("order, channels", [pytest.param("bgr", (30, 20, 10), id="bgr"),
                                              pytest.param("rgb", (10, 20, 30), id="rgb")])
def test_channel_order_mean_std_and_padding(order, channels):
    """RGB (10, 20, 30) in; mean and std count in the network's order; zeros stand behind, not minus the mean."""
    cfg = InputConfig(short_side=30, long_side=50, channel_order=order, mean=(1.0, 2.0, 4.0), std=(1.0, 2.0, 4.0))
    image = np.empty((30, 45, 3), np.uint8)
    image[:] = (10, 20, 30)
    (out,) = Preprocess(cfg)([Frame(FrameInfo("s", 0, 0.0, 30, 45), image)])
    expected = [(value - mean) / std for value, mean, std in zip(channels, cfg.mean, cfg.std, strict=True)]
    assert tuple(out.pixels.shape) == (3, 32, 64)
    for channel, value in zip(out.pixels, expected, strict=True):
        torch.testing.assert_close(channel[:30, :45], torch.full((30, 45), value))
        assert not channel[30:].any() and not channel[:, 45:].any()


def test_the_released_mean():
    (out,) = Preprocess(InputConfig(short_side=32, long_side=32))([
        Frame(FrameInfo("s", 0, 0.0, 32, 32), np.zeros((32, 32, 3), np.uint8))])
    torch.testing.assert_close(out.pixels[:, 0, 0], torch.tensor([-103.530, -116.280, -123.675]))


# -------------------------------------------------------------------------------------------------------------- batches


def test_an_empty_batch():
    assert Preprocess(SMALL)([]) == []


def test_a_batch_of_mixed_sizes_keeps_its_order_and_gives_what_each_gives_alone():
    sizes = [(60, 90), (40, 40), (60, 90), (90, 60), (40, 40), (60, 90)]
    frames = [frame(*size, seed=i, index=i) for i, size in enumerate(sizes)]
    stage = Preprocess(SMALL)
    together = stage(frames)
    assert [image.info for image in together] == [f.info for f in frames]
    for given, image in zip(frames, together, strict=True):
        (alone,) = stage([given])
        assert image.size == alone.size and torch.equal(image.pixels, alone.pixels), given.info


def test_what_was_given_out_stays_as_it_was():
    stage = Preprocess(SMALL)
    (first,) = stage([frame(60, 90, seed=1)])
    kept = first.pixels.clone()
    for seed in range(2, 8):
        stage([frame(60, 90, seed=seed)])
    assert torch.equal(first.pixels, kept)


def test_images_that_are_views_are_read_as_they_look():
    """A mirrored image has negative strides; a cut-out is not contiguous."""
    whole = np.random.default_rng(3).integers(0, 256, (80, 120, 3), dtype=np.uint8)
    view = whole[10:70, 100:10:-1]
    stage, info = Preprocess(SMALL), FrameInfo("s", 0, 0.0, 60, 90)
    assert torch.equal(stage([Frame(info, view)])[0].pixels, stage([Frame(info, view.copy())])[0].pixels)


def test_a_frame_beyond_the_limit_is_refused():
    huge = np.broadcast_to(np.zeros((1, 1, 3), np.uint8), (8193, 8193, 3))       # no memory is taken
    with pytest.raises(ValueError, match="stream 's', frame 4: 8193x8193 has more than"):
        Preprocess(SMALL)([Frame(FrameInfo("s", 4, 0.0, 8193, 8193), huge)])
