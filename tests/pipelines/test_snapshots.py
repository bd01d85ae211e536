"""Snapshots outlive actors: what was put comes back, damaged ones are passed over and told, nothing piles up."""

from __future__ import annotations

import json
import re
import uuid
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from operators.errors import ConfigError, StageError
from pipelines import snapshots
from pipelines.snapshots import SnapshotError, SnapshotStore, open_store

STATE = {"decode": b"", "backbone+associate": bytes(range(256)) * 3, "größer\n": b"\n{}\n"}


class Place:
    """A kind of store at a fresh place, opened as often as wanted: each time as another driver would."""

    def __init__(self, where: str) -> None:
        self.where, self.told = where, []

    def store(self, mark: str | None = "job") -> SnapshotStore:
        return open_store(self.where, mark, self.told.append)

    def files(self) -> list[str]:
        """All files that lie there, as paths below the place."""
        system, root = fsspec.core.url_to_fs(self.where)
        system.invalidate_cache()
        return sorted(path[len(root) + 1 :] for path in system.find(root)) if system.exists(root) else []

    def write(self, name: str, data: bytes) -> None:
        system, root = fsspec.core.url_to_fs(self.where)
        system.pipe_file(f"{root}/{name}", data)

    def read(self, name: str) -> bytes:
        system, root = fsspec.core.url_to_fs(self.where)
        return system.cat_file(f"{root}/{name}")


@pytest.fixture(params=["directory", "file://", "memory://", "s3://"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    """Places whose files can be looked at."""
    name = uuid.uuid4().hex
    where = {"directory": f"{tmp_path}/deep/er", "file://": f"file://{tmp_path}/x", "memory://": f"memory://{name}/x"}
    if request.param == "s3://":
        where["s3://"] = f"{request.getfixturevalue('s3')}/{name}"
    yield Place(where[request.param])
    if request.param == "memory://":
        fsspec.filesystem("memory").rm(f"/{name}", recursive=True) if fsspec.filesystem("memory").exists(name) else None


@pytest.fixture(params=["object_store", "directory", "memory://"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> SnapshotStore:
    if request.param == "object_store":
        request.getfixturevalue("cluster")
        request.getfixturevalue("in_time")
        return open_store("object_store")
    return open_store(str(tmp_path) if request.param == "directory" else f"memory://{uuid.uuid4().hex}")


def test_what_was_put_comes_back(store):
    assert store.latest("a") is None
    store.put("a", 0, {})
    assert store.latest("a") == (0, {})
    store.put("a", 64, STATE)
    store.put("b", 7, {"x": b"of b"})
    assert store.latest("a") == (64, STATE) and store.latest("b") == (7, {"x": b"of b"})
    assert list(store.latest("a")[1]) == list(STATE), "groups keep their order"
    store.put("a", 64, {"x": b"again"})
    assert store.latest("a") == (64, {"x": b"again"}), "a frame that is put again after a replay replaces its snapshot"
    store.forget("a")
    store.forget("never put")
    assert store.latest("a") is None and store.latest("b") == (7, {"x": b"of b"})
    store.put("a", 3, {"x": b"anew"})
    assert store.latest("a") == (3, {"x": b"anew"}), "a stream that begins anew has nothing of its later frames"
    store.close()
    store.close()
    assert store.latest("a") is None and store.latest("b") is None


def test_names_are_kept_apart_and_inside_the_place(place):
    names = ["a", "A", "a b", "a_b", "../../a", "/a", "..", "", "ä" * 200, "ä" * 199, "x" * 300, "\x00\n", "\ud800"]
    store = place.store()
    for number, name in enumerate(names):
        store.put(name, 1, {"x": bytes([number])})
    assert [store.latest(name)[1]["x"][0] for name in names] == list(range(len(names)))
    files = place.files()
    assert len(files) == len(names)
    assert all(re.fullmatch(r"job/[^/]{1,200}/000000000001\.snapshot", file) for file in files)
    assert len({file.casefold() for file in files}) == len(names), "some file systems do not tell capitals apart"


def test_the_last_two_are_kept_and_no_part_is_left(place):
    store = place.store()
    for frame in (64, 128, 192, 256):
        store.put("a", frame, STATE)
    assert [file.rsplit("/")[-1] for file in place.files()] == ["000000000192.snapshot", "000000000256.snapshot"]
    store.put("a", 192, {"x": b"replayed"})
    assert store.latest("a") == (256, STATE)
    store.forget("a")
    assert place.files() == []
    store.put("b", 1, STATE)
    store.close()
    assert place.files() == [] and place.told == []


def test_a_driver_that_starts_again_finds_them_by_its_mark_alone(place):
    first = place.store()
    first.put("a", 64, STATE)
    first.put("a", 128, {"x": b"later"})
    again = place.store()
    assert again.latest("a") == (128, {"x": b"later"})
    again.put("a", 192, STATE)
    assert len(place.files()) == 2, "those of the killed driver count among the last two"
    for mark in ("another", None):
        other = place.store(mark)
        assert other.latest("a") is None
        other.put("a", 5, {})
        other.close()
    assert again.latest("a") == (192, STATE)
    again.forget("a")
    assert place.store().latest("a") is None


def _head(**changes) -> bytes:
    head = {"snapshot": 1, "stream": "a", "frame": 128, "groups": [["x", 2]], "crc32": zlib.crc32(b"ok")}
    return json.dumps(head | changes).encode() + b"\nok"


DAMAGE: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty": (lambda data: b"", r"no head \(0 bytes\)"),
    "cut in its head": (lambda data: data[:20], "no head"),
    "cut": (lambda data: data[:-1], "772 bytes are announced, 771 are there"),
    "a byte too many": (lambda data: data + b"\0", "772 bytes are announced, 773 are there"),
    "a byte changed": (lambda data: data[:-9] + bytes([data[-9] ^ 1]) + data[-8:], "checksum"),
    "no line end for a megabyte": (lambda data: b"{" * 2**20, "no head"),
    "nested": (lambda data: b"[" * 60_000 + b"\n", "head cannot be read"),
    "a list": (lambda data: b"[]\n", "head cannot be read"),
    "a number of 60,000 digits": (lambda data: b"9" * 60_000 + b"\n", "head cannot be read"),
    "another format": (lambda data: _head(snapshot=2), "of format 2"),
    "another stream": (lambda data: _head(stream="b"), "stream 'b'"),
    "another frame": (lambda data: _head(frame=64), "frame 64"),
    "lengths below zero": (lambda data: _head(groups=[["x", 4], ["y", -2]]), "head cannot be read"),
    "a length of nan": (lambda data: _head(groups=[["x", float("nan")]]), "head cannot be read"),
    "a name that is none": (lambda data: _head(groups=[[[], 2]]), "head cannot be read"),
    "groups that are none": (lambda data: _head(groups=5), "head cannot be read"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_a_damaged_one_is_told_and_the_one_before_it_taken(tmp_path, case):
    place = Place(str(tmp_path))
    store = place.store()
    store.put("a", 64, {"x": b"before"})
    store.put("a", 128, STATE)
    damage, says = DAMAGE[case]
    newest = place.files()[-1]
    place.write(newest, damage(place.read(newest)))
    assert place.store().latest("a") == (64, {"x": b"before"})
    (told,) = place.told
    assert newest in told and "stream 'a'" in told and re.search(says, told)
    store.put("a", 128, STATE)
    assert store.latest("a") == (128, STATE), "the replay reaches the frame again, and makes it good"


def test_all_damaged_or_gone_is_as_none(place):
    store = place.store()
    store.put("a", 1, STATE)
    store.put("a", 2, STATE)
    first, second = place.files()
    place.write(first, b"torn")
    system, root = fsspec.core.url_to_fs(place.where)
    system.rm(f"{root}/{second}")
    assert store.latest("a") is None
    assert "is gone" in place.told[0] and "is damaged" in place.told[1]


def test_what_else_lies_there_is_let_alone(place):
    store = place.store()
    store.put("a", 64, STATE)
    folder = place.files()[0].rsplit("/", 1)[0]
    for name in (".000000000128.snapshot.part", "128.snapshot", "000000000128.snapshot.bak", "notes.txt"):
        place.write(f"{folder}/{name}", b"not ours")
    place.write("not of a job.txt", b"not ours")
    assert place.store().latest("a") == (64, STATE) and place.told == []
    store.close()
    assert place.files() == ["not of a job.txt"]


def test_too_large_is_refused_and_the_last_one_stays(tmp_path, monkeypatch):
    monkeypatch.setattr(snapshots, "MAX_BYTES", 1000)
    place = Place(str(tmp_path))
    store = place.store()
    store.put("a", 64, {"x": bytes(1000)})
    with pytest.raises(SnapshotError, match=r"'a', after 128 frames: its state has 1001 bytes, 901 of them in 'big'"):
        store.put("a", 128, {"x": bytes(100), "big": bytes(901)})
    assert store.latest("a") == (64, {"x": bytes(1000)})
    place.write(place.files()[0], bytes(1001 + snapshots.MAX_HEAD_BYTES))
    assert store.latest("a") is None and "a snapshot at most 1000" in place.told[0]


def test_frames_are_counted_from_zero(store):
    for frame in (-1, 10**12):
        with pytest.raises(SnapshotError, match=f"after {frame} frames"):
            store.put("a", frame, {})


def test_a_place_that_fails_says_so_and_breaks_nothing(tmp_path):
    place = Place(str(tmp_path / "x"))
    store = place.store()
    store.put("a", 64, STATE)
    other = tmp_path / "x" / "job" / Path(place.files()[0]).parent.name
    kept = other.rename(tmp_path / "kept")
    other.write_text("a file where the folder was")
    with pytest.raises(SnapshotError, match="'a': its snapshot after 128 frames could not be stored: "):
        store.put("a", 128, STATE)
    with pytest.raises(SnapshotError, match="cannot be read"):
        store.latest("a")
    other.unlink()
    kept.rename(other)
    assert store.latest("a") == (64, STATE)
    assert issubclass(SnapshotError, StageError), "who knows only of stages that fail catches it too"


@pytest.mark.parametrize(
    ("where", "mark", "says"),
    [
        pytest.param("", None, "'' is no place", id="empty"),
        pytest.param("a\0b", None, "is no place", id="a zero byte"),
        pytest.param("zzz://bucket/x", None, "'zzz://bucket/x' cannot be used: Protocol not known", id="unknown kind"),
        pytest.param("memory://", None, "names no folder", id="no folder"),
        pytest.param("{tmp}/file", None, "cannot be made or written to", id="a file is there"),
        pytest.param("{tmp}", "../up", "mark '../up'", id="a mark that leaves the place"),
        pytest.param("{tmp}", "..", "mark '..'", id="a mark of dots"),
        pytest.param("{tmp}", "", "mark ''", id="an empty mark"),
    ],
)
def test_places_that_cannot_be_used(tmp_path, where, mark, says):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=re.escape(says)):
        open_store(where.format(tmp=tmp_path), mark)


def test_a_bucket_that_is_misspelt_is_told_before_any_work_and_not_made(s3):
    with pytest.raises(ConfigError, match="'s3://bukket/x' cannot be written to: FileNotFoundError"):
        open_store("s3://bukket/x", "job")
    files = fsspec.filesystem("s3")
    files.invalidate_cache()
    assert files.ls("") == ["bucket"]


class _Folders(MemoryFileSystem):
    """Files can be written into folders that are there alone, as over SFTP."""

    protocol, store, pseudo_dirs = "folders", {}, ["", "/home"]

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return super()._strip_protocol(path.removeprefix("folders://"))

    def pipe_file(self, path, value, mode="overwrite", **more):
        if not self.isdir(self._parent(path)):
            raise FileNotFoundError(path)
        super().pipe_file(path, value, mode, **more)


def test_folders_are_made_where_a_file_system_has_them():
    fsspec.register_implementation("folders", _Folders, clobber=True)
    with pytest.raises(ConfigError, match="cannot be written to: FileNotFoundError"):
        open_store("folders:///nowhere/states", "job")
    store = open_store("folders:///home/mine/states", "job")
    store.put("a", 64, STATE)
    assert store.latest("a") == (64, STATE) and not _Folders().exists("/nowhere")
    store.close()
    assert _Folders().find("/home") == []


class _Gone:
    """An actor that ends before it gives what it was asked for: the reference is there, the object never will be."""

    def give(self) -> None: ...


def test_an_object_that_is_lost_is_told_and_the_one_before_it_taken(cluster, in_time):
    import ray

    told: list[str] = []
    store = open_store("object_store", tell=told.append)
    for frame in (64, 128):
        store.put("a", frame, {"x": bytes(200_000)})
    assert store.latest("a") == (128, {"x": bytes(200_000)}) and told == []
    gone = ray.remote(_Gone).options(num_cpus=0.1).remote()
    ray.kill(gone)
    store._kept["a"][128] = gone.give.remote()
    assert store.latest("a") == (64, {"x": bytes(200_000)})
    assert len(told) == 1 and "stream 'a': the snapshot after 128 frames is lost" in told[0]
