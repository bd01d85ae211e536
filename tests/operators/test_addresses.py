"""What an address names: on fsspec's own file system in memory, which keeps the rules of all others."""

from __future__ import annotations

import errno
from importlib.util import find_spec
from pathlib import Path

import fsspec
import pytest

from operators.addresses import find, is_address, is_pattern, listing, local_path
from operators.copies import copied
from operators.errors import SourceError
from operators.sources import Source


@pytest.fixture
def bucket():
    """memory://bucket with a few files, empty again afterwards."""
    files = fsspec.filesystem("memory")
    for name in ("top.mp4", "day/a.mp4", "day/b.txt", "day/deep/er/c.mp4"):
        files.pipe(f"/bucket/{name}", name.encode())
    yield files
    files.rm("/bucket", recursive=True)


@pytest.mark.parametrize("text, expected", [
    ("", False), ("a.mp4", False), ("/a/b.mp4", False), ("http:x.mp4", False), ("C:/a.mp4", False), ("://x", False),
    ("s3://bucket/a", True), ("https://host/a.mp4", True), ("memory://a", True), ("file:///a", True),
])  # fmt: skip
def test_is_address(text, expected):
    assert is_address(text) == expected


@pytest.mark.parametrize("text, expected", [
    ("", False), ("a.mp4", False), ("s3://b/*.mp4", True), ("a?.mp4", True), ("s3://b/a?.mp4", True), ("a[0-9]", True),
    ("https://host/a.mp4?token=1", False), ("HTTPS://host/a?x", False), ("https://host/*.mp4", True),
])  # fmt: skip
def test_is_pattern(text, expected):
    assert is_pattern(text) == expected


@pytest.mark.parametrize("address, path", [
    ("s3://a/b", None), ("file:///a/b.mp4", "/a/b.mp4"), ("file://localhost/a/b.mp4", "/a/b.mp4"),
    ("file:///a/with%20space.mp4", "/a/with space.mp4"),
])  # fmt: skip
def test_an_address_of_this_machine_is_a_path(address, path):
    assert local_path(address) == path


@pytest.mark.parametrize("address, names", [
    pytest.param("memory://bucket/none/*.mp4", [], id="nothing"),
    pytest.param("memory://bucket/day/*.mp4", ["day/a.mp4"], id="one folder"),
    pytest.param("memory://bucket/**/*.mp4", ["day/a.mp4", "day/deep/er/c.mp4", "top.mp4"], id="folders of any depth"),
    pytest.param("memory://bucket/day/?.mp4", ["day/a.mp4"], id="one letter"),
    pytest.param("memory://bucket/top.mp4", ["top.mp4"], id="no pattern"),
])
def test_find(bucket, address, names):
    found = find(address)
    assert sorted(one.address for one in found) == [f"memory:///bucket/{name}" for name in names]
    assert [one.num_bytes for one in sorted(found, key=lambda one: one.address)] == [len(name) for name in names]
    assert not any(one.is_folder for one in found)


def test_a_listing_tells_folders_from_files(bucket):
    inside = {one.address.rsplit("/", 1)[1]: one.is_folder for one in listing("memory://bucket/day")}
    assert inside == {"a.mp4": False, "b.txt": False, "deep": True}
    assert find("memory://bucket/day")[0].is_folder


def test_a_file_that_is_written_again_has_another_version(bucket):
    (before,) = find("memory://bucket/day/*.mp4")
    bucket.pipe("/bucket/day/a.mp4", b"another")
    (after,) = find("memory://bucket/day/*.mp4")
    assert before.version and after.version and before.version != after.version


@pytest.mark.parametrize("address, says", [
    pytest.param("memory://bucket/none.mp4", "'memory://bucket/none.mp4' does not exist", id="missing"),
    pytest.param("rtsp://camera/1", "is an address of a live stream", id="camera"),
    pytest.param("zork://a/b", "cannot be read: ValueError: Protocol not known: zork", id="unknown kind"),
])
def test_what_cannot_be_read_is_named(bucket, address, says):
    with pytest.raises(SourceError, match=says):
        find(address)


def test_a_bucket_of_a_real_object_store(s3):
    files = fsspec.filesystem("s3")
    for name in ("top.mp4", "day/a.mp4", "day/b.txt", "day/deep/er/c.mp4"):
        files.pipe(f"bucket/videos/{name}", name.encode())
    found = {one.address.removeprefix(f"{s3}/videos/"): one for one in find(f"{s3}/videos/**/*.mp4")}
    assert {name: one.num_bytes for name, one in found.items()} == {
        name: len(name) for name in ("top.mp4", "day/a.mp4", "day/deep/er/c.mp4")
    }
    inside = {one.address.removeprefix(f"{s3}/videos/day/"): one.is_folder for one in listing(f"{s3}/videos/day")}
    assert inside == {"a.mp4": False, "b.txt": False, "deep": True}
    files.pipe("bucket/videos/day/a.mp4", b"another")
    (again,) = find(f"{s3}/videos/day/a.mp4")
    assert again.version and again.version != found["day/a.mp4"].version
    with copied(Source("a", "video", f"{s3}/videos/day/a.mp4")) as local:
        assert Path(local.path).read_bytes() == b"another"
    with pytest.raises(SourceError, match=f"'{s3}/videos/none.mp4' does not exist"):
        find(f"{s3}/videos/none.mp4")


@pytest.mark.skipif(find_spec("gcsfs") is not None, reason="the driver of gs:// is installed here")
def test_a_driver_that_is_not_installed_is_named():
    with pytest.raises(SourceError, match="driver is not installed: .*gcsfs"):
        find("gs://bucket/*.mp4")


class _Broken(fsspec.AbstractFileSystem):
    """A file system whose connection breaks, as only its driver can."""

    protocol = "broken"

    def _break(self, *arguments, **more):
        raise OSError(errno.ECONNRESET, "the line went dead")

    info = ls = glob = _open = _break


def test_a_broken_connection_is_one_sentence():
    fsspec.register_implementation("broken", _Broken, clobber=True)
    for call in (find, listing):
        with pytest.raises(SourceError, match="'broken://a/b' is an address that cannot be read: .*the line went dead"):
            call("broken://a/b")
