"""Files and folders that are there whole or not at all."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from operators.errors import ConfigError


@contextmanager
def replacing(path: Path | str) -> Iterator[Path]:
    """A path to write to, which takes the place of `path` at the end; after an error `path` is as it was."""
    path = Path(path)
    part = path.with_name(f".{path.name}.part")
    try:
        yield part
        os.replace(part, path)
    except BaseException:  # Ctrl-C too: nothing half-written stays behind
        part.unlink(missing_ok=True)
        raise


def adopt(folder: Path, place: Path) -> None:
    """Move a folder to `place`: at one stroke where nothing is there; else file by file, each whole, into what is.

    Files of the same names are replaced, all others stay. Raises OSError.
    """
    if not place.exists():
        place.parent.mkdir(parents=True, exist_ok=True)
        os.rename(folder, place)
        return
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            adopt(path, place / path.name)
        else:
            os.replace(path, place / path.name)
    folder.rmdir()


@contextmanager
def writing(path: Path | str, option: str) -> Iterator[None]:
    """What the system has against writing to `path`, as a ConfigError with the `option` that named it, as '--json'."""
    try:
        yield
    except OSError as error:
        raise ConfigError(f"{option} {path}: cannot be written: {error.strerror or error}.") from error


def check_file(path: Path | str, option: str) -> None:
    """Raise ConfigError, before any work, where no file can be written to `path`. Nothing is made, nor left.

    What is there may be replaced, unless it is no ordinary file: a pipe or /dev/null must not become one.
    """
    path = _named(path, option)
    with writing(path, option):
        if path.is_dir():
            raise ConfigError(f"{option} {path}: is a folder; expected the name of a file to write.")
        if path.exists() and not path.is_file():
            raise ConfigError(f"{option} {path}: is no ordinary file, which could be replaced; name another.")
        path.with_name(f".{path.name}.part").exists()           # a name that is too long
        _try(path.parent)


def check_folder(path: Path | str, option: str) -> None:
    """Raise ConfigError, before any work, where no folder can be made at `path`, or none can be written to there.
    Nothing is made, nor left."""
    path = _named(path, option)
    with writing(path, option):
        if path.exists() and not path.is_dir():
            raise ConfigError(f"{option} {path}: is a file; expected a folder, which is made where it is not there.")
        _try(path)


def _named(path: Path | str, option: str) -> Path:
    """Raises ConfigError for no name at all, as a variable of the shell that is not set gives it."""
    if not str(path).strip():
        raise ConfigError(f"{option} '{path}': names nothing; expected a path.")
    return Path(path)


def _try(folder: Path) -> None:
    """Raises OSError where nothing can be made in `folder`, or in the nearest above it that is there. It is tried: what
    permissions say does not hold for every user, nor on every file system."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, f"{folder} is no folder")
    with tempfile.TemporaryFile(dir=folder):
        pass
