from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from operators.decode import BACKENDS, Decode, DecodeConfig
from operators.errors import ConfigError, StageError
from operators.records import Frame, FrameFault, Pull, StreamEnd
from operators.sources import Source
from operators.states import pack
from pipelines.stage import StreamStage
from tests.operators.small_videos import X264, cut, number_of, write_sound, write_video

COUNT = 14


def make(kind: str, folder: Path, name: str = "clip") -> Source:
    """A source of 14 records: frames in every kind, a fault at 3 in a folder of images."""
    if kind == "images":
        for i in range(COUNT):
            Image.fromarray(np.full((6, 8, 3), 10 * i, np.uint8)).save(folder / f"{name}{i:02}.png")
        (folder / f"{name}03.png").write_bytes(b"")
        return Source(name, "images", str(folder), tuple(f"{name}{i:02}.png" for i in range(COUNT)))
    if kind == "vp9":
        path = write_video(folder / f"{name}.webm", "libvpx-vp9", COUNT, options={"lag-in-frames": "8"})
    else:
        path = write_video(folder / f"{name}.mp4", count=COUNT, options={**X264, "bf": "3", "b_strategy": "0"})
    return Source(name, "video", str(path))


def same(ours: list, theirs: list) -> bool:
    return len(ours) == len(theirs) and all(
        a.info == b.info and np.array_equal(a.image, b.image) if isinstance(a, Frame) else a == b
        for a, b in zip(ours, theirs, strict=True)
    )


def run(source: Source, counts: list[int], backend: str = "auto") -> list:
    stage = Decode(DecodeConfig(backend=backend))
    stage.open(source.name)
    return [record for count in counts for record in stage([Pull(source, count)])]


CASES = [("h264", "auto"), ("vp9", "auto"), ("images", "auto"), ("h264", "decord"), ("vp9", "dali")]


def test_is_a_stream_stage_and_an_empty_batch_gives_nothing():
    stage = Decode(DecodeConfig())
    assert isinstance(stage, StreamStage)
    assert stage([]) == []


@pytest.mark.parametrize("kind, backend", CASES)
@pytest.mark.parametrize("counts", [[100], [5] * 4, [1] * 16, [0, 14, 1, 1]], ids=str)
def test_however_it_is_asked_the_records_are_the_same(tmp_path, kind, backend, counts):
    source = make(kind, tmp_path)
    records = run(source, counts, backend)
    assert same(records, run(source, [15], backend))
    assert [record.info.index for record in records[:-1]] == list(range(COUNT))
    assert isinstance(records[-1], StreamEnd) and records[-1].num_frames == COUNT and not records[-1].fatal
    assert [record.info.index for record in records[:-1] if isinstance(record, FrameFault)] == [3] * (kind == "images")


@pytest.mark.parametrize("kind, backend", CASES)
@pytest.mark.parametrize("given", [0, 1, 7, 14])
def test_a_restored_stage_gives_what_the_first_would_have_given(tmp_path, kind, backend, given):
    source = make(kind, tmp_path)
    first, second = Decode(DecodeConfig(backend=backend)), Decode(DecodeConfig(backend=backend))
    first.open(source.name)
    first([Pull(source, given)])
    second.restore(source.name, first.snapshot(source.name))
    assert second.snapshot(source.name) == first.snapshot(source.name)
    assert same(second([Pull(source, 3)]), first([Pull(source, 3)]))
    assert second.snapshot(source.name) == first.snapshot(source.name)
    assert same(second([Pull(source, 100)]), first([Pull(source, 100)]))


def test_a_snapshot_after_the_end_gives_nothing_more(tmp_path):
    source = make("h264", tmp_path)
    stage = Decode(DecodeConfig())
    stage.open("clip")
    stage([Pull(source, 100)])
    other = Decode(DecodeConfig())
    other.restore("clip", stage.snapshot("clip"))
    assert stage([Pull(source, 5)]) == other([Pull(source, 5)]) == []


def test_streams_in_one_batch_do_not_mix(tmp_path):
    one, two = make("h264", tmp_path, "one"), make("images", tmp_path, "two")
    stage = Decode(DecodeConfig())
    stage.open("one")
    stage.open("two")
    records = []
    for _ in range(8):
        records += stage([Pull(one, 2), Pull(two, 3), Pull(one, 1)])
    for source in (one, two):
        ours = [r for r in records if (r.stream if isinstance(r, StreamEnd) else r.info.stream) == source.name]
        assert same(ours, run(source, [100]))


def test_a_source_opens_with_its_first_frame_not_before(tmp_path):
    stage = Decode(DecodeConfig())
    stage.open("clip")
    assert stage([Pull(Source("clip", "video", str(tmp_path / "clip.mp4")), 0)]) == []
    assert number_of(stage([Pull(make("h264", tmp_path), 1)])[0].image) == 0


BAD = {
    "missing": (lambda folder: folder / "none.mp4", "does not exist"),
    "a folder": (lambda folder: folder, "is not a file"),
    "empty": (lambda folder: written(folder, b""), "is empty"),
    "text": (lambda folder: written(folder, b"just a few words\n" * 9), "this is text"),
    "noise": (lambda folder: written(folder, bytes(range(256)) * 40), "no video that FFmpeg can read"),
    "sound alone": (lambda folder: write_sound(folder / "sound.mp4"), "no video stream, only audio"),
    "without its index": (lambda folder: cut(write_video(folder / "w.mp4"), 0.5, "bad.mp4"), "index (moov) is missing"),
    "a header alone": (lambda folder: cut(write_video(folder / "w.mkv"), 500, "bad.mkv"), "breaks off"),
}


def written(folder: Path, data: bytes) -> Path:
    path = folder / "bad.mp4"
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("case", BAD)
def test_a_source_that_does_not_open_ends_its_stream_and_the_others_go_on(tmp_path, case):
    make_bad, says = BAD[case]
    path = make_bad(tmp_path)
    bad, good = Source("bad", "video", str(path)), make("h264", tmp_path, "good")
    stage = Decode(DecodeConfig())
    stage.open("bad")
    stage.open("good")
    end, *frames = stage([Pull(bad, 4), Pull(good, 4)])
    assert (end.stream, end.num_frames, end.fatal) == ("bad", 0, True)
    assert says in end.error and str(path) in end.error
    assert [number_of(frame.image) for frame in frames] == [0, 1, 2, 3]
    assert stage([Pull(bad, 4)]) == []


def test_a_backend_that_refuses_ends_the_stream(tmp_path):
    end, *rest = run(make("h264", tmp_path), [4, 4], "dali")
    assert end.fatal and "codec is h264" in end.error and "backend pyav" in end.error and rest == []


def test_the_real_bad_files(media):
    stage = Decode(DecodeConfig())
    says = {"no_index.mp4": "moov", "header_only.mkv": "breaks off", "empty.mp4": "empty", "text.mp4": "this is text",
            "sound_only.mp4": "only audio"}
    for name, words in says.items():
        stage.open(name)
        (end,) = stage([Pull(Source(name, "video", str(media / "broken" / name)), 8)])
        assert end.fatal and end.num_frames == 0 and words in end.error


def test_opening_closing_and_wrong_calls(tmp_path):
    source = make("h264", tmp_path)
    stage = Decode(DecodeConfig())
    with pytest.raises(StageError, match="'clip': is not open"):
        stage([Pull(source, 1)])
    with pytest.raises(StageError, match="is not open"):
        stage.snapshot("clip")
    stage.open("clip")
    with pytest.raises(StageError, match="is open already"):
        stage.open("clip")
    stage([Pull(source, 5)])
    with pytest.raises(StageError, match="name of its own"):
        stage([Pull(make("images", tmp_path), 1)])
    assert stage.close("clip") == [] and stage.close("clip") == [] and stage.close("never opened") == []
    stage.open("clip")
    assert number_of(stage([Pull(source, 1)])[0].image) == 0


@pytest.mark.parametrize("state", [
    b"", b"[]", b"\x80\x04.", pack({}), pack([]), pack({"given": 3}), pack({"given": None, "ended": False}),
    pack({"given": -1, "ended": False}), pack({"given": 3.0, "ended": False}), pack({"given": 3, "ended": 1}),
], ids=lambda state: f"{len(state)} bytes")  # fmt: skip
def test_restore_refuses_what_no_snapshot_gave(state):
    with pytest.raises(StageError, match="decode, stream 'clip': the snapshot is damaged"):
        Decode(DecodeConfig()).restore("clip", state)


def test_records_travel_between_processes(tmp_path):
    records = run(make("h264", tmp_path), [100])
    assert same(pickle.loads(pickle.dumps(records)), records)
    assert len(pickle.dumps(records[:1])) < 64 * 96 * 3 + 2000       # the frame alone, not the decoder's buffer


@pytest.mark.parametrize(
    "settings, says",
    [
        pytest.param({"backend": "decrod"}, "Did you mean decord", id="misspelt backend"),
        pytest.param({"threads": 0}, "threads is 0", id="no thread"),
        pytest.param({"threads": 1000}, "threads is 1000", id="too many threads"),
    ],
)
def test_settings_are_checked(settings, says):
    with pytest.raises(ConfigError, match=says):
        DecodeConfig(**settings)


NAMES = ("auto", "pyav", "decord", "dali", "nvdec")


def test_every_backend_is_a_setting():
    assert [DecodeConfig(backend=name).backend for name in ("auto", *BACKENDS)] == list(NAMES)


def test_threads_do_not_change_the_frames(tmp_path):
    source = make("h264", tmp_path)
    stage = Decode(DecodeConfig(threads=3))
    stage.open("clip")
    assert same(stage([Pull(source, 100)]), run(source, [100]))
