"""Step 1, of addresses: what s3://bucket/day/**/*.mp4 names, on any file system that fsspec knows.

In:     an address or a pattern of addresses: s3://, gs://, https://, and whatever else fsspec has a driver for
Out:    Found: each file or folder that it names, with its size and a version that changes when it is written again
State:  none; fsspec keeps connections and listings of its own
Limits: at most MAX_FOUND matches; nothing is read but listings. Credentials are those that fsspec's drivers find by
        themselves (environment, profile, role); none are ever stored or logged here
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

from operators.errors import SourceError

MAX_FOUND = 1_000_000
NOT_OURS = ("rtsp", "rtmp", "udp", "tcp", "srt")
"""Addresses of live streams, which are no files."""
_CHANGES = ("etag", "mtime", "lastmodified", "last_modified", "updated", "created", "md5hash")
"""What file systems call their word for "written again", in small letters."""


@dataclass(frozen=True)
class Found:
    """One file or folder at an address."""

    address: str
    is_folder: bool
    num_bytes: int | None
    """None where the file system does not say."""
    version: str
    """Differs once the file is written again; empty where the file system does not say."""


def is_address(text: str) -> bool:
    """Whether it is `something://...`; a path on this machine, even one with a colon, is not."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", text) is not None


def local_path(address: str) -> str | None:
    """The path that a file:// address stands for; None for every other address."""
    scheme, _, rest = address.partition("://")
    if scheme.lower() not in ("file", "local"):
        return None
    return unquote(rest.removeprefix("localhost"))


def find(address: str) -> list[Found]:
    """The file or folder at an address, or all that match a pattern, in no order; a pattern may match nothing.

    `*` stands for any name but `/`, `**` for folders of any depth, `?` and `[...]` for one letter; in a web address `?`
    begins a query. Raises SourceError for a live stream, an unknown kind of address, a driver that is not installed,
    and an address that cannot be read.
    """
    files, path = open_filesystem(address)
    pattern = is_pattern(address)
    try:
        listed = files.glob(path, detail=True) if pattern else {path: files.info(path)}
    except Exception as error:  # every driver has errors of its own kind; each becomes one sentence here
        raise unreadable(address, error) from error
    if len(listed) > MAX_FOUND:
        raise SourceError(f"'{address}' matches {len(listed)} files, more than the {MAX_FOUND} allowed.")
    return [_found(files, name, info) for name, info in listed.items()]


def listing(address: str) -> list[Found]:
    """What lies in the folder at an address. Raises SourceError."""
    files, path = open_filesystem(address)
    try:
        entries = files.ls(path, detail=True)
    except Exception as error:
        raise unreadable(address, error) from error
    if len(entries) > MAX_FOUND:
        raise SourceError(f"'{address}' holds {len(entries)} files, more than the {MAX_FOUND} allowed.")
    return [_found(files, info["name"], info) for info in entries]


def is_pattern(address: str) -> bool:
    """Whether an address or path has wildcards."""
    web = re.match(r"https?://", address, re.IGNORECASE) is not None
    return re.search(r"[*\[]" if web else r"[*?\[]", address) is not None


def open_filesystem(address: str) -> tuple[Any, str]:
    """fsspec's file system for an address, and the path in it. Raises SourceError."""
    import fsspec  # here, because most runs read local files alone

    scheme = address.partition("://")[0].lower()
    if scheme in NOT_OURS:
        raise SourceError(f"'{address}' is an address of a live stream; expected files: a path, a pattern, or an "
                          f"address such as s3://bucket/day/*.mp4.")
    try:
        return fsspec.core.url_to_fs(address)
    except ImportError as error:
        raise SourceError(f"'{address}' is an address whose driver is not installed: {error}.") from error
    except Exception as error:
        raise unreadable(address, error) from error


def unreadable(address: str, error: Exception) -> SourceError:
    """A driver's error as a sentence that names the address."""
    if isinstance(error, FileNotFoundError):
        return SourceError(f"'{address}' does not exist.")
    said = " ".join(str(error).split()) or "no reason was given"
    return SourceError(f"'{address}' is an address that cannot be read: {type(error).__name__}: {said}.")


def _found(files: Any, name: str, info: dict[str, Any]) -> Found:
    size = info.get("size")
    changed = [f"{key}={info[key]}" for key in sorted(info) if key.lower() in _CHANGES and info[key] is not None]
    return Found(
        address=files.unstrip_protocol(name),
        is_folder=info.get("type") == "directory",
        num_bytes=size if isinstance(size, int) else None,
        version=" ".join([*([str(size)] if size is not None else []), *changed]),
    )
