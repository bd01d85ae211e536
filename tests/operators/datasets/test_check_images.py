"""Images that are not there, not whole or not images; sizes are upright; nothing is waited for."""

from __future__ import annotations

import io
import os
import random
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from operators.datasets.check_images import WINDOW, Seen, in_threads, name_fault, see_image, see_images

FORMATS = ["JPEG", "PNG", "WEBP", "BMP"]


def encoded(form: str, size: tuple[int, int] = (60, 40), mode: str = "RGB", orientation: int = 1) -> bytes:
    """A noisy image of (width, height)."""
    pixels = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), np.uint8)
    exif = Image.Exif()
    exif[0x112] = orientation
    data = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(data, form, **({} if form == "BMP" else {"exif": exif}))
    return data.getvalue()


def png_header(width: int, height: int) -> bytes:
    chunk = b"IHDR" + width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, 2, 0, 0, 0])
    check = zlib.crc32(chunk).to_bytes(4, "big")
    return b"\x89PNG\r\n\x1a\n" + (13).to_bytes(4, "big") + chunk + check + encoded("PNG")[33:]


def seen(path: Path, data: bytes, decode: bool = False) -> Seen:
    path.write_bytes(data)
    return see_image(path, decode)


@pytest.mark.parametrize("decode", [False, True])
@pytest.mark.parametrize("form", FORMATS)
def test_whole(form, decode, tmp_path):
    assert seen(tmp_path / "a.jpg", encoded(form), decode) == Seen((40, 60))


@pytest.mark.parametrize(("orientation", "size"), [(1, (40, 60)), (3, (40, 60)), (6, (60, 40)), (8, (60, 40))])
def test_upright(orientation, size, tmp_path):
    assert seen(tmp_path / "a.jpg", encoded("JPEG", orientation=orientation)).size == size


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_modes_of_jpeg(mode, tmp_path):
    assert seen(tmp_path / "a.jpg", encoded("JPEG", mode=mode), decode=True) == Seen((40, 60))


@pytest.mark.parametrize("keep", [0.5, 0.9])
@pytest.mark.parametrize("form", FORMATS)
def test_cut(form, keep, tmp_path):
    data = encoded(form, (300, 200))
    found = seen(tmp_path / "a.jpg", data[: int(len(data) * keep)])
    # a WebP of less than it says is no WebP to Pillow
    assert found.wrong[0] in ("image-damaged", "image-unreadable")


def test_end_marks_may_stand_before_a_few_bytes(tmp_path):
    for form in FORMATS:
        assert seen(tmp_path / "a.jpg", encoded(form) + bytes(100)).wrong is None


@pytest.mark.parametrize(("data", "words"), [
    pytest.param(b"", "0 bytes", id="empty"),
    pytest.param(b"<html>", "it begins with b'<html>'", id="text"),
    pytest.param(encoded("JPEG")[:100], "", id="a part of a header"),
    pytest.param(png_header(10**5, 10**5), "more than", id="10^10 pixels"),
    pytest.param(png_header(12_000, 6_000), "12000 x 6000 pixels", id="a little more than the limit"),
])  # fmt: skip
def test_unreadable(data, words, tmp_path):
    kind, found, _ = seen(tmp_path / "a.jpg", data).wrong
    assert kind == "image-unreadable" and words in found


def test_missing_and_no_file(tmp_path):
    assert see_image(tmp_path / "a.jpg", False).wrong[0] == "image-missing"
    (tmp_path / "file").touch()
    assert see_image(tmp_path / "file/a.jpg", False).wrong[0] == "image-missing"
    assert see_image(tmp_path, False).wrong[0] == "image-unreadable"
    assert see_image(tmp_path / ("x" * 300), False).wrong[0] == "image-unreadable"
    os.mkfifo(tmp_path / "pipe.jpg")
    assert see_image(tmp_path / "pipe.jpg", True).wrong[0] == "image-unreadable"


def test_random_damage_is_told_and_never_raised(tmp_path):
    rng = random.Random(0)
    files = []
    for number in range(400):
        data = bytearray(encoded(FORMATS[number % 4], orientation=6))
        for _ in range(rng.randint(1, 5)):
            data[rng.randrange(min(len(data), rng.choice([60, 200, 5000])))] = rng.randrange(256)
        path = tmp_path / f"{number}.jpg"
        path.write_bytes(data[: rng.choice([len(data), rng.randrange(len(data))])])
        files.append(path)
    found = list(in_threads(lambda path: see_image(path, True), files))
    assert len(found) == 400 and 50 < sum(image.wrong is None for image in found) < 350


def test_order_and_names_that_are_none(tmp_path):
    names = [f"{number}.png" for number in range(WINDOW + 5)]
    for number, name in enumerate(names):
        (tmp_path / name).write_bytes(encoded("PNG", (1 + number % 7, 3)))
    names[3], names[4] = None, "../a.png"
    found = list(see_images(tmp_path, names, False))
    assert found[3] is None and found[4] is None
    assert [image.size[1] for image in found if image] == [1 + n % 7 for n in range(WINDOW + 5) if n not in (3, 4)]
    assert list(see_images(tmp_path, [], False)) == []


@pytest.mark.parametrize(("name", "kind"), [
    pytest.param("", "bad-file-name", id="empty"),
    pytest.param(None, "bad-file-name", id="null"),
    pytest.param("a\0b", "bad-file-name", id="zero byte"),
    pytest.param("a/\ud800", "bad-file-name", id="half a surrogate"),
    pytest.param(".", "file-name-leaves-root", id="the folder itself"),
    pytest.param("a/..", "file-name-leaves-root", id="parent"),
    pytest.param("/a", "file-name-leaves-root", id="absolute"),
    pytest.param("C:/a", "file-name-leaves-root", id="drive"),
    pytest.param("a\\b", "file-name-leaves-root", id="backslash"),
    pytest.param("a/b.jpg", None, id="good"),
    pytest.param("ä/日本 1.jpg", None, id="any letters"),
    pytest.param("..a/b..jpg", None, id="points"),
])  # fmt: skip
def test_names(name, kind):
    assert name_fault(name) == kind
