"""Files and folders that are there whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


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
