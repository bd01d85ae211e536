"""Files that `dataset convert` and `split` write: JSON an entry a line, folders and images; whole, or not at all.

In:     records as they come, paths of images
Out:    a JSON file; a folder; images linked or copied
State:  none but the count of images that were not there
Limits: an entry of a JSON is in memory at a time
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Literal

from operators.datasets.truth import Notes
from operators.errors import ConfigError, DatasetError
from operators.json_files import compact_json
from operators.replacing import replacing

ImageMode = Literal["none", "link", "copy"]
MISSING_IMAGES = "images that are not there and could not be taken along"


class ImagePlacer:
    """Takes images along: not at all, as symbolic links, or as copies. One that is missing is counted in the notes."""

    def __init__(self, mode: ImageMode, notes: Notes) -> None:
        self.mode = mode
        self._notes = notes

    def place(self, image: Path | None, target: Path, where: str) -> None:
        """Put `image` at `target`, unless something is there: pseudo-videos name one image several times."""
        if self.mode == "none" or target.exists() or target.is_symlink():
            return
        if image is None or not image.is_file():
            self._notes.count(MISSING_IMAGES, f"{where}, {image or target.name}")
            return
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            if self.mode == "link":
                target.symlink_to(image.resolve())
            else:
                shutil.copyfile(image, target)
        except OSError as error:
            raise DatasetError(f"{where}: {image} cannot be put at {target} ({error.strerror}).") from error


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder to fill, which becomes `path` at the end; after an error nothing of it is left.

    Raises ConfigError where `path` is there already, unless it is an empty folder.
    """
    path = Path(path)
    if path.is_symlink() or (path.exists() and (not path.is_dir() or any(path.iterdir()))):
        raise ConfigError(f"{path}: is there already; give the name of a new folder, or remove this one.")
    part = path.with_name(f".{path.name}.part")
    try:
        shutil.rmtree(part, ignore_errors=True)          # of a run that was killed
        part.mkdir(parents=True)
        yield part
        os.replace(part, path)
    except OSError as error:            # with the file it is about, which may be one that is read
        raise ConfigError(f"{path}: cannot be made ({error.strerror or error}: {error.filename or path}).") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def check_output(source: Path, out: Path) -> None:
    """Raise ConfigError where writing `out` would replace the input, or put the output into the midst of it."""
    source, out = Path(source), Path(out)
    if out.resolve() == source.resolve() or (out.exists() and source.exists() and os.path.samefile(source, out)):
        raise ConfigError(f"{out}: is the input; give the output another name.")
    if source.is_dir() and out.suffix != ".json" and out.resolve().is_relative_to(source.resolve()):
        raise ConfigError(f"{out}: lies inside the input {source}; put the output elsewhere.")


@contextmanager
def new_json(path: Path) -> Iterator[IO[str]]:
    """An open text file that takes the place of `path` at the end; after an error `path` is as it was.

    Raises ConfigError where it cannot be written.
    """
    path = Path(path)
    if path.is_dir():
        raise ConfigError(f"{path}: is a folder; expected the name of a JSON file to write.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as part, part.open("w", encoding="ascii") as file:
            yield file
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written ({error.strerror or error}).") from error


def write_json(file: IO[str], members: Mapping[str, Any]) -> None:
    """Write an object to an open text file; a member that is an iterator becomes a list with an entry a line.

    Members are written in their order, so that one may depend on what another has consumed.
    """
    for number, (key, value) in enumerate(members.items()):
        file.write(("{" if number == 0 else ",\n") + compact_json(key) + ": ")
        if isinstance(value, Iterator):
            _write_entries(file, value)
        else:
            file.write(compact_json(value))
    file.write("}\n" if members else "{}\n")


def _write_entries(file: IO[str], entries: Iterable[Any]) -> None:
    count = 0
    file.write("[")
    for entry in entries:
        file.write(("," if count else "") + "\n" + compact_json(entry))
        count += 1
    file.write("\n]" if count else "]")
