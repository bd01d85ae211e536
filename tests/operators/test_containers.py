from __future__ import annotations

import pytest

from operators.containers import looks_like_text, read_outline
from tests.operators.small_videos import cut, write_video


def box(kind: bytes, payload: bytes = b"", size: int | None = None) -> bytes:
    return (8 + len(payload) if size is None else size).to_bytes(4, "big") + kind + payload


FTYP = box(b"ftyp", b"isom")
EBML = bytes.fromhex("1a45dfa3 83 010203")
SEGMENT = bytes.fromhex("18538067")


@pytest.mark.parametrize(
    "data, kind, num_missing, has_index",
    [
        pytest.param(b"", "other", 0, True, id="no bytes"),
        pytest.param(b"\x00\x01\x02", "other", 0, True, id="three bytes"),
        pytest.param(b"#EXTM3U\nhttp://x/y.ts\n", "text", 0, True, id="playlist"),
        pytest.param(FTYP, "mp4", 0, False, id="MP4, first box alone"),
        pytest.param(FTYP + box(b"moov", b"....") + box(b"mdat", b"1234"), "mp4", 0, True, id="MP4, whole"),
        pytest.param(FTYP + box(b"moov") + box(b"mdat", b"1234", size=20), "mp4", 8, True, id="MP4, data cut"),
        pytest.param(FTYP + box(b"mdat", b"1234", size=20), "mp4", 8, False, id="MP4, data cut, no index"),
        pytest.param(FTYP + box(b"mdat", b"1234", size=0), "mp4", 0, False, id="MP4, box to the end"),
        pytest.param(FTYP + box(b"mdat", (24).to_bytes(8, "big") + b"12345678", size=1) + box(b"moov"), "mp4", 0, True,
                     id="MP4, 64-bit size"),
        pytest.param(FTYP + box(b"moov") + b"\xff" * 40, "mp4", 0, True, id="MP4, junk at the end"),
        pytest.param(FTYP + box(b"moov", size=3) + b"12345678", "mp4", 0, True, id="MP4, impossible size"),
        pytest.param(EBML + SEGMENT + b"\x84" + b"1234", "matroska", 0, True, id="Matroska, whole"),
        pytest.param(EBML + SEGMENT + b"\x84" + b"1", "matroska", 3, True, id="Matroska, cut"),
        pytest.param(EBML + SEGMENT + b"\x40\x84" + b"1", "matroska", 131, True, id="Matroska, size of two bytes"),
        pytest.param(EBML + SEGMENT + b"\xff" + b"1", "matroska", 0, True, id="Matroska, size unknown"),
        pytest.param(EBML, "matroska", 0, True, id="Matroska, no segment"),
        pytest.param(b"RIFF" + (4).to_bytes(4, "little") + b"AVI ", "riff", 0, True, id="AVI, whole"),
        pytest.param(b"RIFF" + (90).to_bytes(4, "little") + b"AVI ", "riff", 86, True, id="AVI, cut"),
    ],
)
def test_read_outline(tmp_path, data, kind, num_missing, has_index):
    path = tmp_path / "file"
    path.write_bytes(data)
    outline = read_outline(path)
    assert (outline.kind, outline.num_bytes) == (kind, len(data))
    assert (outline.num_missing, outline.has_index) == (num_missing, has_index)


@pytest.mark.parametrize(
    "head, text",
    [
        pytest.param(b"", False, id="nothing"),
        pytest.param(b"a line\r\n\tand another\n", True, id="ASCII"),
        pytest.param("\ufeffgrüße".encode(), True, id="UTF-8 with its mark"),
        pytest.param("häuser".encode()[:2], True, id="cut in a character"),
        pytest.param("text".encode("utf-16"), True, id="UTF-16"),
        pytest.param(b"text\x00text", False, id="a zero byte"),
        pytest.param(b"text\x80text", False, id="no UTF-8"),
        pytest.param(b"YUV4MPEG2 W2 H2\nFRAME\n!!!!!!", False, id="raw video whose pixels look like letters"),
    ],
)
def test_looks_like_text(head, text):
    assert looks_like_text(head) is text


@pytest.mark.parametrize("name, codec", [("a.mp4", "libx264"), ("a.mkv", "libx264"), ("a.avi", "mpeg4")])
def test_real_files_are_whole_and_their_copies_lack_what_was_cut(tmp_path, name, codec):
    path = write_video(tmp_path / name, codec)
    assert read_outline(path).num_missing == 0
    size = path.stat().st_size
    if name == "a.mp4":
        assert not read_outline(cut(path, 0.5, "cut")).has_index
    else:
        assert read_outline(cut(path, size - 100, "cut")).num_missing == 100
