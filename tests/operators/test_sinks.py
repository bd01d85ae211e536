"""Sinks: what lies on the disk after a whole run, a cut run, faults, and a run before this one."""

from __future__ import annotations

import json
import resource
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco

from operators.decode import open_reader
from operators.draw import draw_tracks, track_color
from operators.errors import ConfigError, SourceError, StageError
from operators.formats import Categories, davis_palette
from operators.jsonl import read_jsonl
from operators.picture_sinks import FrameStream
from operators.proposals import ProposalsConfig
from operators.records import Frame, FrameFault, FrameInfo, FrameTracks, StreamEnd
from operators.sinks import SINKS, SinkConfig, open_sinks
from operators.sources import Source

CATEGORIES = Categories.numbered(["dog", "cat"])
HEIGHT, WIDTH = 48, 64


def info_of(index: int, time_s: float | None = None, size: tuple[int, int] = (HEIGHT, WIDTH)) -> FrameInfo:
    return FrameInfo("clip", index, index / 10 if time_s is None else time_s, *size)


def tracks_of(index: int, *found: tuple[int, float], time_s: float | None = None) -> FrameTracks:
    """A frame with tracks (id, score), each a square of 16 x 16 pixels."""
    masks, boxes = [], []
    for track_id, _ in found:
        x, drawn = 20 * (track_id % 3), np.zeros((HEIGHT, WIDTH), np.uint8, order="F")
        drawn[24:40, x : x + 16] = 1
        encoded = coco.encode(drawn)
        masks.append({"size": encoded["size"], "counts": encoded["counts"].decode("ascii")})
        boxes.append([x, 24, x + 16, 40])
    return FrameTracks(
        info=info_of(index, time_s),
        track_ids=np.array([track_id for track_id, _ in found], np.int64),
        labels=np.zeros(len(found), np.int64),
        scores=np.array([score for _, score in found], np.float32),
        boxes=np.array(boxes, np.float32).reshape(-1, 4),
        masks=tuple(masks),
    )


def frame_of(index: int, time_s: float | None = None, size: tuple[int, int] = (HEIGHT, WIDTH)) -> Frame:
    """Grey that says which frame it is."""
    return Frame(info_of(index, time_s, size), np.full((*size, 3), 40 + 20 * index, np.uint8))


def fault_of(index: int, size: tuple[int, int] = (0, 0)) -> FrameFault:
    return FrameFault(info_of(index, size=size), "no bytes")


def frames_of(events: Iterable[Frame | FrameFault | StreamEnd]) -> FrameStream:
    yield from events


def run(directory: Path, kinds: Iterable[str], results: Iterable, frames: Iterable, *, end=None, **more) -> list[str]:
    """Feed results to sinks and close them; gives their summaries."""
    source = more.pop("source", Source("clip", "video", "clip.mp4"))
    sinks = open_sinks(directory, list(kinds), source, CATEGORIES, frames=lambda _: frames_of(frames), **more)
    for record in results:
        for sink in sinks:
            sink.write(record) if isinstance(record, FrameTracks) else sink.fault(record)
    for _ in range(2):  # closing twice is harmless
        for sink in sinks:
            sink.close(end)
    return [sink.summary() for sink in sinks]


def shown(path: Path) -> list[tuple[float, np.ndarray]]:
    """Time and picture of every frame of a video."""
    with av.open(str(path)) as container:
        return [(float(f.pts * f.time_base), f.to_ndarray(format="rgb24")) for f in container.decode(video=0)]


def greys(path: Path) -> list[int]:
    """Which frames a video shows, by the grey of their upper right corner."""
    return [round((picture[:8, -8:].mean() - 40) / 20) for _, picture in shown(path)]


RESULTS = [tracks_of(0, (0, 0.9)), tracks_of(1), tracks_of(2, (0, 0.5), (1, 0.2)), tracks_of(3, (300, 0.9))]
FRAMES = [frame_of(i) for i in range(4)]
NOTHING = np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.float32), np.zeros((0, 4), np.float32), ()
END = StreamEnd("clip", 4)


def test_a_whole_run(tmp_path):
    summaries = run(tmp_path, SINKS, RESULTS, [*FRAMES, END], end=END)
    folder = tmp_path / "clip"
    assert sorted(p.name for p in folder.iterdir()) == sorted(kind.file for kind in SINKS.values())
    assert [len(record) for record in read_jsonl(folder / "tracks.jsonl", CATEGORIES)] == [1, 0, 2, 1]
    results = json.loads((folder / "results.json").read_text())
    assert [(r["video_id"], r["category_id"], round(r["score"], 4)) for r in results] == [
        (1, 1, 0.7), (1, 1, 0.2), (1, 1, 0.9),
    ]  # fmt: skip
    assert [[mask is not None for mask in r["segmentations"]] for r in results] == [
        [True, False, True, False], [False, False, True, False], [False, False, False, True],
    ]  # fmt: skip
    assert greys(folder / "overlay.mp4") == [0, 1, 2, 3]
    assert sorted(p.name for p in (folder / "masks").iterdir()) == [f"0000{i}.png" for i in range(4)]
    assert summaries == [
        "4 lines", "3 tracks over 4 frames", "4 frames",
        "4 label maps, 1 track left out: a map holds the ids 0 to 253", "4 label maps, 3 proposals",
    ]  # fmt: skip


def test_a_stream_without_frames(tmp_path):
    end = StreamEnd("clip", 0, error="it is empty", fatal=True)
    run(tmp_path, SINKS, [], [end], end=end)
    folder = tmp_path / "clip"
    assert (folder / "tracks.jsonl").read_bytes() == b""
    assert json.loads((folder / "results.json").read_text()) == []
    assert sorted(p.name for p in folder.iterdir()) == ["davis", "masks", "results.json", "tracks.jsonl"]
    assert not list((folder / "masks").iterdir()) and not list((folder / "davis").iterdir())


def test_a_cut_run_leaves_valid_files_of_what_was_done(tmp_path):
    run(tmp_path, SINKS, RESULTS[:3], [*FRAMES, END], end=None)
    folder = tmp_path / "clip"
    assert [record.info.index for record in read_jsonl(folder / "tracks.jsonl", CATEGORIES)] == [0, 1, 2]
    results = json.loads((folder / "results.json").read_text())
    assert [len(r["segmentations"]) for r in results] == [3, 3]
    assert greys(folder / "overlay.mp4") == [0, 1, 2]
    assert len(list((folder / "masks").iterdir())) == len(list((folder / "davis").iterdir())) == 3


@pytest.mark.parametrize("source, names", [
    pytest.param(Source("clip", "video", "clip.mp4"), ["00000", "00001", "00002", "00003"], id="a video: numbers"),
    pytest.param(Source("clip", "images", "/", ("b/00004.jpg", "b/00008.jpg", "b/x.1.png", "b/y.jpg")),
                 ["00004", "00008", "x.1", "y"], id="a folder: names of its images"),
    pytest.param(Source("clip", "images", "/", ("a/0.jpg", "b/0.jpg", "b/1.jpg", "b/2.jpg")),
                 ["00000", "00001", "00002", "00003"], id="two images of one name: numbers"),
])  # fmt: skip
def test_proposals_are_called_as_their_images(tmp_path, source, names):
    """Frame 1 could not be decoded: its map is empty. Values are ranks of the tracks, of which 300 is the second."""
    results = [RESULTS[0], fault_of(1), *RESULTS[2:]]
    [summary] = run(tmp_path, ["davis"], results, [], end=END, source=source,
                    config=SinkConfig(davis=ProposalsConfig(max_proposals=2)))                            # fmt: skip
    pictures = [Image.open(tmp_path / "clip" / "davis" / f"{name}.png") for name in names]
    assert [sorted(set(np.asarray(one).ravel().tolist())) for one in pictures] == [[0, 1], [0], [0, 1], [0, 2]]
    assert all(one.mode == "P" and one.getpalette()[3:9] == [128, 0, 0, 0, 128, 0] for one in pictures)
    assert summary == "4 label maps, 2 proposals, 1 of 3 tracks left out"
    assert sorted(path.stem for path in (tmp_path / "clip" / "davis").iterdir()) == sorted(names)


def test_lines_are_on_the_disk_before_the_end(tmp_path):
    sinks = open_sinks(
        tmp_path, ["jsonl", "masks"], Source("clip", "video", "clip.mp4"), CATEGORIES, frames=lambda _: frames_of([])
    )
    for sink in sinks:
        sink.write(RESULTS[0])
    assert len(list(read_jsonl(tmp_path / "clip" / "tracks.jsonl"))) == 1
    assert (tmp_path / "clip" / "masks" / "00000.png").is_file()
    for sink in sinks:
        sink.close(None)


def test_faults_count_as_frames(tmp_path):
    results = [fault_of(0), RESULTS[1], fault_of(2), RESULTS[3], fault_of(4)]
    frames = [fault_of(0), FRAMES[1], fault_of(2), FRAMES[3], fault_of(4)]
    end = StreamEnd("clip", 5)
    summaries = run(tmp_path, SINKS, results, frames, end=end)
    folder = tmp_path / "clip"
    records = list(read_jsonl(folder / "tracks.jsonl", CATEGORIES))
    assert [isinstance(record, FrameFault) for record in records] == [True, False, True, False, True]
    assert records[0].reason == "no bytes"
    assert [len(r["segmentations"]) for r in json.loads((folder / "results.json").read_text())] == [5]
    assert greys(folder / "overlay.mp4") == [1, 3]
    pictures = sorted((folder / "masks").iterdir())
    assert [p.name for p in pictures] == [f"0000{i}.png" for i in range(5)]
    assert {Image.open(p).size for p in pictures} == {(WIDTH, HEIGHT)}
    assert summaries[2] == "2 frames"


def test_a_folder_of_faults_alone_has_no_label_maps(tmp_path):
    summary = run(tmp_path, ["masks"], [fault_of(0), fault_of(1)], [], end=StreamEnd("clip", 2))[0]
    assert summary == "0 label maps, none for 2 faulty frames: the size is not known"


def test_a_fault_that_knows_its_size_has_a_map_at_once(tmp_path):
    run(tmp_path, ["masks"], [fault_of(0, (10, 20))], [], end=None)
    assert Image.open(tmp_path / "clip" / "masks" / "00000.png").size == (20, 10)


def test_a_frame_that_decodes_but_has_no_result_is_shown_as_it_is(tmp_path):
    results = [RESULTS[0], fault_of(1), RESULTS[2]]
    run(tmp_path, ["video"], results, [*FRAMES, END], end=END)
    pictures = shown(tmp_path / "clip" / "overlay.mp4")
    assert greys(tmp_path / "clip" / "overlay.mp4") == [0, 1, 2, 3]
    assert [np.ptp(picture.astype(int)) > 30 for _, picture in pictures] == [True, False, True, False]


def test_the_overlay_is_what_draw_tracks_draws(tmp_path):
    run(tmp_path, ["video"], RESULTS[:1], FRAMES[:1], end=None, config=SinkConfig(alpha=1.0))
    [(_, picture)] = shown(tmp_path / "clip" / "overlay.mp4")
    expected = draw_tracks(FRAMES[0].image, RESULTS[0], CATEGORIES, alpha=1.0)
    assert np.abs(picture[26:38, 2:14] - np.array(track_color(0))).max() < 12  # lossy, half the colour resolution
    assert np.abs(picture.astype(int) - expected).mean() < 6


def test_weak_tracks_are_in_the_files_and_not_in_the_pictures(tmp_path):
    weak = [tracks_of(0, (0, 0.29))]
    run(tmp_path, SINKS, weak, FRAMES[:1], end=StreamEnd("clip", 1))
    folder = tmp_path / "clip"
    assert [len(record) for record in read_jsonl(folder / "tracks.jsonl", CATEGORIES)] == [1]
    assert len(json.loads((folder / "results.json").read_text())) == 1
    assert np.ptp(shown(folder / "overlay.mp4")[0][1].astype(int)) < 10
    assert np.asarray(Image.open(folder / "masks" / "00000.png")).max() == 0
    run(tmp_path, ["masks"], weak, [], config=SinkConfig(min_score=0.25))
    assert np.asarray(Image.open(folder / "masks" / "00000.png")).max() == 1


def test_label_maps_are_palette_pictures(tmp_path):
    run(tmp_path, ["masks"], [tracks_of(0, (1, 0.9), (2, 0.8))], [])
    with Image.open(tmp_path / "clip" / "masks" / "00000.png") as picture:
        assert (picture.mode, picture.format, picture.size) == ("P", "PNG", (WIDTH, HEIGHT))
        assert np.array_equal(np.array(picture.getpalette()).reshape(-1, 3), davis_palette())
        values = np.asarray(picture)
    assert np.unique(values).tolist() == [0, 2, 3]
    assert (values[24:40, 20:36] == 2).all() and (values[24:40, 40:56] == 3).all()


def test_uneven_times_and_a_late_start_are_kept(tmp_path):
    times = [5.0, 5.1, 5.5, 5.6]
    results = [tracks_of(i, time_s=t) for i, t in enumerate(times)]
    run(tmp_path, ["video"], results, [frame_of(i, t) for i, t in enumerate(times)], end=END)
    played = [time for time, _ in shown(tmp_path / "clip" / "overlay.mp4")]
    assert np.diff(played) == pytest.approx([0.1, 0.4, 0.1], abs=1e-3)


def test_frames_of_another_size_are_fitted_into_the_first(tmp_path):
    frames = [frame_of(0, size=(48, 64)), frame_of(1, size=(48, 32))]
    run(tmp_path, ["video"], [fault_of(0), fault_of(1)], frames, end=StreamEnd("clip", 2))
    _, second = shown(tmp_path / "clip" / "overlay.mp4")
    assert second[1].shape == (48, 64, 3)
    assert second[1][:, :12].max() < 10 and second[1][:, 20:44].min() > 50


def test_frames_that_cannot_be_read_again_are_counted(tmp_path):
    end = StreamEnd("clip", 2, error="cut", fatal=True)
    assert run(tmp_path, ["video"], RESULTS, [*FRAMES[:2], end], end=END) == [
        "2 frames, 2 could not be read a second time"
    ]


def test_outputs_of_an_earlier_run_are_replaced_and_nothing_else(tmp_path):
    run(tmp_path, SINKS, RESULTS, [*FRAMES, END], end=END)
    folder = tmp_path / "clip"
    (folder / "masks" / "notes.txt").write_text("mine")
    (folder / "masks" / "sketch.png").write_text("mine too: no map is called so")
    (folder / "davis" / "frame_7.png").write_text("of an earlier run, whose images had other names")
    (folder / "notes.txt").write_text("mine")
    run(tmp_path, SINKS, RESULTS[:1], FRAMES[:1], end=StreamEnd("clip", 1))
    assert len(list(read_jsonl(folder / "tracks.jsonl"))) == 1
    assert greys(folder / "overlay.mp4") == [0]
    assert sorted(p.name for p in (folder / "masks").iterdir()) == ["00000.png", "notes.txt", "sketch.png"]
    assert [p.name for p in (folder / "davis").iterdir()] == ["00000.png"]
    assert (folder / "notes.txt").read_text() == "mine"


def test_a_killed_run_does_not_leave_the_results_of_the_one_before(tmp_path):
    run(tmp_path, SINKS, RESULTS, [*FRAMES, END], end=END)
    sinks = open_sinks(
        tmp_path, ["ytvis", "video"], Source("clip", "video", "c"), CATEGORIES, frames=lambda _: frames_of([])
    )
    assert sorted(p.name for p in (tmp_path / "clip").iterdir()) == ["davis", "masks", "tracks.jsonl"]
    for sink in sinks:
        sink.close(None)


@pytest.mark.parametrize(
    "source, number, expected",
    [
        pytest.param(Source("a", "images", ".", video_id=17), 3, 17, id="of the dataset"),
        pytest.param(Source("a", "images", ".", video_id=0), 3, 0, id="zero is an id"),
        pytest.param(Source("a", "video", "a.mp4"), 3, 3, id="running number"),
    ],
)
def test_video_id(tmp_path, source, number, expected):
    run(tmp_path, ["ytvis"], RESULTS[:1], [], end=END, source=source, number=number)
    [entry] = json.loads((tmp_path / "a" / "results.json").read_text())
    assert (entry["video_id"], len(entry["segmentations"])) == (expected, 4)


def test_frames_are_opened_for_the_video_alone_and_closed_with_it(tmp_path):
    events = []

    def frames(source: Source) -> FrameStream:
        events.append(f"open {source.name}")
        try:
            yield from FRAMES
        finally:
            events.append("close")

    source = Source("clip", "video", "clip.mp4")
    for sink in open_sinks(tmp_path, ["jsonl", "ytvis", "masks"], source, CATEGORIES, frames=frames):
        sink.close(None)
    assert events == []
    [sink] = open_sinks(tmp_path, ["video"], source, CATEGORIES, frames=frames)
    sink.write(RESULTS[0])
    sink.close(None)
    assert events == ["open clip", "close"]


def test_a_source_that_does_not_open_is_closed_in_peace(tmp_path):
    def frames(source: Source) -> FrameStream:
        raise SourceError("clip.mp4 cannot be opened.")
        yield

    [sink] = open_sinks(tmp_path, ["video"], Source("clip", "video", "clip.mp4"), CATEGORIES, frames=frames)
    sink.close(StreamEnd("clip", 0, error="clip.mp4 cannot be opened.", fatal=True))
    assert sink.summary() == "0 frames"


def test_real_files_read_a_second_time(tmp_path, media):
    folder = media / "broken" / "frames"
    source = Source("clip", "images", str(folder), files=tuple(sorted(p.name for p in folder.iterdir())))

    def frames(source: Source) -> FrameStream:
        with closing(open_reader(source)) as reader:
            while records := reader.read(1):
                yield from records

    *records, end = frames(source)
    results = [r if isinstance(r, FrameFault) else FrameTracks(r.info, *NOTHING) for r in records]
    summaries = run(tmp_path, SINKS, results, frames(source), end=end)
    faults = sum(isinstance(record, FrameFault) for record in records)
    assert 0 < faults < len(records) == len(source.files)
    assert summaries == [
        f"{len(records)} lines", f"0 tracks over {len(records)} frames",
        f"{len(records) - faults} frames", f"{len(records)} label maps", f"{len(records)} label maps, 0 proposals",
    ]  # fmt: skip
    assert len(shown(tmp_path / "clip" / "overlay.mp4")) == len(records) - faults


@pytest.mark.parametrize(
    "kinds, says",
    [
        (["jsonl", "vidoe"], r"--save jsonl,vidoe: no output is called 'vidoe'\. Did you mean video\?"),
        (["zzz"], r"Known: davis, jsonl, masks, video, ytvis\."),
    ],
)
def test_unknown_kinds_are_refused_before_anything_is_made(tmp_path, kinds, says):
    with pytest.raises(ConfigError, match=says):
        run(tmp_path / "out", kinds, [], [])
    assert not (tmp_path / "out").exists()


def test_no_kinds_no_sinks(tmp_path):
    assert run(tmp_path, [], RESULTS, []) == []
    assert len(run(tmp_path, ["jsonl", "jsonl"], RESULTS, [])) == 1


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "clip").write_text("a file")
    with pytest.raises(ConfigError, match="outputs cannot be written there"):
        run(tmp_path, SINKS, [], [])


def test_a_name_that_leads_outside_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="outside of"):
        run(tmp_path / "out", ["jsonl"], [], [], source=Source("../up", "video", "x"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("settings", [{"min_score": -0.1}, {"alpha": 1.5}])
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(ValueError, match="expected 0 to 1"):
        SinkConfig(**settings)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full, the disk that is always full")
def test_a_full_disk_is_named(tmp_path):
    (tmp_path / "clip").mkdir()
    (tmp_path / "clip" / "tracks.jsonl").symlink_to("/dev/full")
    with pytest.raises(StageError, match=r"stream 'clip', frame 0: .*tracks\.jsonl cannot be written: No space"):
        run(tmp_path, ["jsonl"], RESULTS, [])


def test_a_disk_that_fills_within_a_line_leaves_the_whole_lines_before(tmp_path):
    [sink] = open_sinks(tmp_path, ["jsonl"], Source("clip", "video", "c"), CATEGORIES, frames=lambda _: frames_of([]))
    sink.write(RESULTS[0])
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (sink.path.stat().st_size + 20, unlimited[1]))
    try:
        with pytest.raises(StageError, match="only 20 of"):
            sink.write(RESULTS[1])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    sink.write(RESULTS[2])
    assert [record.info.index for record in read_jsonl(sink.path)] == [0, 2]


def test_a_folder_that_vanishes_is_named(tmp_path):
    [sink] = open_sinks(tmp_path, ["masks"], Source("clip", "video", "c"), CATEGORIES, frames=lambda _: frames_of([]))
    sink.path.rmdir()
    with pytest.raises(StageError, match="frame 0: .*00000.png cannot be written: No such file"):
        sink.write(RESULTS[0])
