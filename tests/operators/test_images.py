from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from operators.images import ImageReader, decode_image
from operators.records import Frame, FrameFault, StreamEnd
from operators.sources import Source, find_sources, probe

RED_LEFT = np.zeros((24, 40, 3), np.uint8)
RED_LEFT[:, :20] = (200, 30, 30)
RED_LEFT[:8] //= 2                       # darker at the top, so that every turn can be told


def save(path: Path, image: np.ndarray = RED_LEFT, mode: str = "RGB", **settings) -> Path:
    Image.fromarray(image).convert(mode).save(path, **settings)
    return path


def huge_png() -> bytes:
    """A PNG of a few bytes whose header claims 100,000 x 100,000 pixels."""
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    pixels = zlib.compress(b"\0" * 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def folder(path: Path, fps: float = 6.0) -> Source:
    files = tuple(sorted(p.name for p in path.iterdir()))
    return Source("frames", "images", str(path), files, fps=fps)


@pytest.mark.parametrize(
    "suffix, mode, settings",
    [
        pytest.param(".png", "RGB", {}, id="PNG"),
        pytest.param(".png", "RGBA", {}, id="PNG with transparency"),
        pytest.param(".bmp", "RGB", {}, id="BMP"),
        pytest.param(".webp", "RGB", {"lossless": True}, id="WebP"),
        pytest.param(".jpg", "RGB", {"quality": 100, "subsampling": 0}, id="JPEG"),
        pytest.param(".jpg", "RGB", {"quality": 100, "progressive": True, "subsampling": 0}, id="progressive JPEG"),
    ],
)
def test_decodes_to_rgb(tmp_path, suffix, mode, settings):
    image = decode_image(save(tmp_path / f"a{suffix}", mode=mode, **settings).read_bytes())
    assert image.shape == RED_LEFT.shape and image.dtype == np.uint8
    assert np.abs(image.astype(int) - RED_LEFT).mean() < 3


def test_grey_and_cmyk_become_rgb(tmp_path):
    grey = decode_image(save(tmp_path / "grey.jpg", mode="L", quality=100).read_bytes())
    assert grey.shape == (24, 40, 3) and np.ptp(grey, axis=2).max() == 0
    cmyk = decode_image(save(tmp_path / "cmyk.jpg", mode="CMYK", quality=100).read_bytes())
    assert np.abs(cmyk.astype(int) - RED_LEFT).mean() < 6


def test_16_bits_become_8(tmp_path):
    Image.fromarray(np.full((8, 8), 0x8000, np.uint16)).save(tmp_path / "a.png")
    assert np.abs(decode_image((tmp_path / "a.png").read_bytes()).astype(int) - 128).max() <= 1


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = save(tmp_path / "a.jpg", exif=exif, quality=100, subsampling=0).read_bytes()
    turned = {
        1: lambda a: a, 2: np.fliplr, 3: lambda a: np.rot90(a, 2), 4: np.flipud,
        5: lambda a: a.transpose(1, 0, 2), 6: lambda a: np.rot90(a, -1), 7: lambda a: np.rot90(a, 2).transpose(1, 0, 2),
        8: np.rot90,
    }[orientation](RED_LEFT)
    image = decode_image(data)
    assert image.shape == turned.shape and np.abs(image.astype(int) - turned).mean() < 3


def test_bad_images_are_faults_and_the_others_come(tmp_path):
    whole = save(tmp_path / "0.jpg").read_bytes()
    (tmp_path / "1.jpg").write_bytes(whole[:-20])
    (tmp_path / "2.jpg").write_bytes(b"")
    (tmp_path / "3.jpg").write_bytes(b"these are words, not pixels")
    save(tmp_path / "4.jpg", RED_LEFT[:16, :30])
    (tmp_path / "5.png").write_bytes(huge_png())
    (tmp_path / "6.jpg").write_bytes(save(tmp_path / "6.png").read_bytes())
    (tmp_path / "6.png").unlink()
    source = folder(tmp_path, fps=4.0)
    records = ImageReader(source).read(100)
    kinds = [Frame, FrameFault, FrameFault, FrameFault, Frame, FrameFault, Frame, StreamEnd]
    assert [type(record) for record in records] == kinds
    assert [record.info.index for record in records[:-1]] == list(range(7))
    assert [record.info.time_s for record in records[:-1]] == [i / 4 for i in range(7)]
    sizes = [(record.info.height, record.info.width) for record in records[:-1]]
    assert sizes == [(24, 40)] * 4 + [(16, 30), (16, 30), (24, 40)]
    reasons = [record.reason for record in records if isinstance(record, FrameFault)]
    for reason, words in zip(
        reasons, ("'1.jpg' is damaged", "'2.jpg' is empty", "'3.jpg' is none of JPEG", "'5.png' claims"), strict=True
    ):
        assert words in reason
    end = records[-1]
    assert (end.num_frames, end.fatal) == (7, False) and "4 of 7 images" in end.error


def test_a_fault_before_any_readable_header_has_no_size(tmp_path):
    (tmp_path / "0.jpg").write_bytes(b"")
    fault, end = ImageReader(folder(tmp_path)).read(5)
    assert (fault.info.height, fault.info.width) == (0, 0)
    assert end.fatal and "1 of 1 images" in end.error


def test_an_image_that_went_away_is_a_fault(tmp_path):
    save(tmp_path / "0.png")
    reader = ImageReader(Source("frames", "images", str(tmp_path), ("0.png", "1.png")))
    frame, fault, end = reader.read(5)
    assert isinstance(frame, Frame) and "No such file" in fault.reason and not end.fatal


def test_read_skip_and_close(tmp_path):
    for i in range(5):
        save(tmp_path / f"{i}.png", np.full((4, 6, 3), 40 * i, np.uint8))
    source = folder(tmp_path)
    reader = ImageReader(source)
    assert reader.read(0) == []
    assert [record.image[0, 0, 0] for record in reader.read(2)] == [0, 40]
    reader.skip(2)
    last, end = reader.read(9)
    assert last.info.index == 4 and last.image[0, 0, 0] == 160
    assert end == StreamEnd("frames", 5) and reader.read(9) == []
    other = ImageReader(source)
    other.close()
    other.close()
    assert other.read(3) == []


def test_exactly_as_many_as_there_are_then_the_end(tmp_path):
    save(tmp_path / "0.png")
    reader = ImageReader(folder(tmp_path))
    assert [type(record) for record in reader.read(1)] == [Frame]
    assert reader.read(1) == [StreamEnd("frames", 1)]


def test_the_real_folder_with_bad_frames(media):
    (source,), errors = find_sources([str(media / "broken/frames")])
    records = ImageReader(source).read(100)
    faults = [record.info.index for record in records if isinstance(record, FrameFault)]
    assert errors == [] and faults == [1, 8]
    shapes = [record.image.shape for record in records if isinstance(record, Frame)]
    assert shapes == [(480, 854, 3), (240, 427, 3), *[(480, 854, 3)] * 2, (854, 480, 3), *[(480, 854, 3)] * 2]
    assert (records[1].info.height, records[1].info.width) == (480, 854)


def test_probe_passes_over_images_without_a_header(tmp_path):
    (tmp_path / "0.jpg").write_bytes(b"")
    save(tmp_path / "1.png")
    info = probe(folder(tmp_path, fps=8.0))
    assert (info.width, info.height, info.fps, info.num_frames) == (40, 24, 8.0, 2)
