"""What is done, on the disk: what counts as done, what a folder refuses, and what damage costs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from operators.errors import ConfigError, StageError
from operators.sources import Source, find_sources, version_of
from pipelines.manifest import Entry, Manifest, places

MARK = {"graph": "g", "network": "n"}
VIDEO = Source("v", "video", "/videos/v.mp4", version="10 99")
ENTRY = Entry(video="v", source="/videos/v.mp4", version="10 99", number=1, save=("jsonl",), state="done", frames=3,
              tracks=1, weak=0, faults=0, skipped=0, note="", outputs=("tracks.jsonl: 3 lines",))  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """With the outputs of v."""
    (tmp_path / "v").mkdir()
    (tmp_path / "v" / "tracks.jsonl").touch()
    return tmp_path


def written(folder: Path, *entries: Entry, mark: dict = MARK) -> Path:
    with Manifest(folder, mark) as manifest:
        for entry in entries:
            manifest.add(entry)
    return folder / "manifest.json"


def entry_of(name: str, number: int = 1) -> Entry:
    return replace(ENTRY, video=name, source=f"/videos/{name}.mp4", number=number)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_the_file_is_json_at_any_moment_and_a_line_a_video(folder, count):
    with Manifest(folder, MARK) as manifest:
        for i in range(count):
            manifest.add(entry_of(f"v{i}"))
            assert len(json.loads((folder / "manifest.json").read_text())["videos"]) == i + 1
    saved = json.loads((folder / "manifest.json").read_text())
    assert saved["mark"] == MARK and [entry["video"] for entry in saved["videos"]] == [f"v{i}" for i in range(count)]
    assert len((folder / "manifest.json").read_text().splitlines()) == count + 2


def test_lines_are_in_the_order_of_the_sources_in_whatever_order_they_came(folder, tmp_path):
    first = written(folder, entry_of("c", 3), entry_of("a", 1), entry_of("b", 2)).read_bytes()
    with Manifest(folder, MARK) as manifest:
        manifest.drop(["b"])
        manifest.add(entry_of("b", 2))
    assert (folder / "manifest.json").read_bytes() == first
    assert [line[:12] for line in first.decode().splitlines()[1:4]] == [f'{{"video": "{name}' for name in "abc"]


@pytest.mark.parametrize("source, number, save, entry, files, done", [
    pytest.param(VIDEO, 1, ["jsonl"], ENTRY, ["tracks.jsonl"], True, id="unchanged"),
    pytest.param(VIDEO, 1, [], ENTRY, [], True, id="nothing asked for"),
    pytest.param(VIDEO, 1, ["jsonl"], None, ["tracks.jsonl"], False, id="no line, though its files are there"),
    pytest.param(VIDEO, 1, ["jsonl", "masks"], ENTRY, ["tracks.jsonl"], False, id="one more output"),
    pytest.param(VIDEO, 1, ["jsonl"], replace(ENTRY, save=("jsonl", "masks")), ["tracks.jsonl"], True, id="one less"),
    pytest.param(VIDEO, 1, ["jsonl"], ENTRY, [], False, id="its file was removed"),
    pytest.param(replace(VIDEO, version="11 99"), 1, ["jsonl"], ENTRY, ["tracks.jsonl"], False, id="written again"),
    pytest.param(replace(VIDEO, path="/w/v.mp4"), 1, ["jsonl"], ENTRY, ["tracks.jsonl"], False, id="another place"),
    pytest.param(VIDEO, 2, ["jsonl"], ENTRY, ["tracks.jsonl"], False, id="another id in the results"),
    pytest.param(VIDEO, 1, ["jsonl"], replace(ENTRY, state="damaged"), ["tracks.jsonl"], True, id="damaged"),
    pytest.param(VIDEO, 1, ["video"], replace(ENTRY, save=("video",), frames=0), [], True, id="no frames, no overlay"),
])
def test_what_counts_as_done(tmp_path, source, number, save, entry, files, done):
    (tmp_path / "v").mkdir()
    for file in files:
        (tmp_path / "v" / file).touch()
    written(tmp_path, *filter(None, [entry]))
    with Manifest(tmp_path, MARK) as manifest:
        assert manifest.done(source, source.path, number, save) == (entry if done else None)


def test_an_image_that_changes_makes_another_video_of_a_folder(tmp_path):
    folder = tmp_path / "frames"
    folder.mkdir()
    for i in range(3):
        (folder / f"{i}.jpg").write_bytes(b"one")
    ((source,), _) = find_sources([str(folder)])
    before = version_of(source)
    assert version_of(source) == before and len(before) == 16
    (folder / "1.jpg").write_bytes(b"other")
    assert version_of(source) != before
    (folder / "1.jpg").unlink()
    assert version_of(source) != before


def test_a_folder_of_videos_that_grows_keeps_names_and_numbers(folder):
    old = [Source("v", "video", "/b/v.mp4"), Source("v-2", "video", "/c/v.mp4"), Source("w", "video", "/c/w.mp4")]
    written(folder, replace(ENTRY, source="/b/v.mp4"), replace(ENTRY, video="v-2", source="/c/v.mp4", number=2))
    grown = [Source("v", "video", "/a/v.mp4"), Source("v-2", "video", "/b/v.mp4"), Source("v-3", "video", "/c/v.mp4"),
             Source("w", "video", "/c/w.mp4")]  # fmt: skip
    with Manifest(folder, MARK) as manifest:
        assert manifest.settled([]) == []
        assert [(number, one.name) for number, one in manifest.settled(old)] == [(1, "v"), (2, "v-2"), (3, "w")]
        settled = manifest.settled(grown)
    assert [(number, one.name, one.path) for number, one in settled] == [
        (5, "v-3", "/a/v.mp4"), (1, "v", "/b/v.mp4"), (2, "v-2", "/c/v.mp4"), (4, "w", "/c/w.mp4"),
    ]  # fmt: skip


def test_a_file_that_is_named_twice_lies_in_two_places():
    assert places([]) == []
    twice = [VIDEO, VIDEO, Source("f", "images", "/f", ("0.jpg", "1.jpg"))]
    assert places(twice) == ["/videos/v.mp4", "/videos/v.mp4 (2)", "/f/0.jpg"]


@pytest.mark.parametrize("mark, says", [
    pytest.param({"graph": "g", "network": "other"}, "another network, or other settings of it", id="network"),
    pytest.param({"graph": "h", "network": "m"}, "another graph, .*; another network", id="both"),
    pytest.param({**MARK, "dataset": "d"}, "another dataset", id="one part more"),
])
def test_another_mark_is_refused_and_fresh_begins_anew(folder, mark, says):
    before = written(folder, ENTRY).read_bytes()
    with pytest.raises(ConfigError, match=f"holds results of {says}.* add --fresh"):
        Manifest(folder, mark)
    assert (folder / "manifest.json").read_bytes() == before
    with Manifest(folder, mark, fresh=True) as manifest:
        assert manifest.done(VIDEO, VIDEO.path, 1, ["jsonl"]) is None and manifest.before == {"v": ENTRY}
        assert not manifest.same_mark
    saved = json.loads((folder / "manifest.json").read_text())
    assert (saved["mark"], saved["videos"]) == (mark, [])


def test_a_mark_of_which_nothing_is_done_stands_in_nobodys_way(folder):
    written(folder)
    Manifest(folder, {"network": "other"}).close()


def test_two_runs_do_not_write_into_one_folder(folder):
    with Manifest(folder, MARK):
        with pytest.raises(ConfigError, match="another run is writing there"):
            Manifest(folder, MARK)
    Manifest(folder, MARK).close()


def test_a_killed_run_leaves_no_lock(folder):
    code = "import os, sys; from pathlib import Path; from pipelines.manifest import Manifest; " \
           "Manifest(Path(sys.argv[1]), {'graph': 'g', 'network': 'n'}); os.kill(os.getpid(), 9)"  # fmt: skip
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", code, str(folder)], cwd=root, timeout=300, capture_output=True)
    assert done.returncode == -9, done.stderr
    Manifest(folder, MARK).close()


@pytest.mark.parametrize("keep, known", [(1, ""), (2, "a"), (3, "a"), (40, "a"), (-5, "a"), (-3, "ab"), (-1, "ab")])
def test_a_line_that_a_full_disk_cut_is_run_again(folder, keep, known):
    """Written over the end of the file, of which a part may show behind the cut."""
    path = written(folder, entry_of("a", 1))
    whole = path.read_bytes()
    line = b",\n" + json.dumps({**json.loads(whole)["videos"][0], "video": "b"}).encode() + b"\n]}\n"
    begin = len(whole) - len(b"\n]}\n")
    path.write_bytes(whole[:begin] + line[:keep] + whole[begin + len(line[:keep]) :])
    with Manifest(folder, MARK) as manifest:
        assert "".join(manifest.before) == known
        manifest.add(entry_of("c", 3))
    assert [entry["video"] for entry in json.loads(path.read_text())["videos"]][-1] == "c"


@pytest.mark.parametrize("damage, says", [
    pytest.param(lambda text: "", "first line is damaged", id="empty"),
    pytest.param(lambda text: "[" * 100_000, "first line is damaged", id="too deep"),
    pytest.param(lambda text: text.replace('"maskstream": 1', '"maskstream": 2'), "version 2", id="of the future"),
    pytest.param(lambda text: text.replace('"frames": 3', '"frames": "3"'), "expected a whole number", id="a text"),
    pytest.param(lambda text: text.replace('"video": "v"', '"video": "../v"'), "no name of a folder", id="leads out"),
    pytest.param(lambda text: text.replace('"state": "done"', '"state": "cut"'), "state is .cut.", id="a state"),
    pytest.param(lambda text: text.replace('"frames": 3, ', ""), "line 2: .*frames is None", id="a field"),
    pytest.param(lambda text: text.replace('"note"', '"more": 1, "note"'), "of another version", id="a field more"),
    pytest.param(lambda text: text.replace('["jsonl"]', '["jsonl", 1]'), "a list of texts", id="a list"),
    pytest.param(lambda text: text.replace('{"video"', '[{"video"').replace('3 lines"]}', '3 lines"]}]'),
                 "it is no entry", id="no entry"),
    pytest.param(lambda text: text.replace('"frames": 3', '"frames": ' + "9" * 9999), "line 2: damaged", id="digits"),

])
def test_a_damaged_manifest_is_refused_and_fresh_begins_anew(folder, damage, says):
    path = written(folder, ENTRY)
    path.write_text(damage(path.read_text()))
    with pytest.raises(ConfigError, match=says) as refused:
        Manifest(folder, MARK)
    assert "--fresh" in str(refused.value) and str(path) in str(refused.value)
    with Manifest(folder, MARK, fresh=True) as manifest:
        assert manifest.before == {}


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    for taken in ("file/out", "file"):
        with pytest.raises(ConfigError, match=f"--out .*{taken}: cannot be made: a file stands in its way"):
            Manifest(tmp_path / taken, MARK)


@pytest.mark.skipif(os.name != "posix", reason="limits of files are POSIX's")
def test_a_disk_that_is_full_is_named_and_costs_that_video_alone(folder):
    import resource

    path = written(folder, entry_of("a", 1))
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Manifest(folder, MARK) as manifest:
        resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 20, unlimited[1]))
        try:
            with pytest.raises(StageError, match="'b' is done, but .*manifest.json cannot say so: only"):
                manifest.add(entry_of("b", 2))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
        manifest.add(entry_of("c", 3))
    assert [entry["video"] for entry in json.loads(path.read_text())["videos"]] == ["a", "c"]
