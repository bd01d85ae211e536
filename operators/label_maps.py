"""Step 8: label maps as files in the colours of DAVIS.

In:     label maps (H, W) uint8; what a frame's record is called in messages
Out:    palette PNGs, each whole or not at all
State:  none
Limits: of a folder only files of the names that are written here are ever removed
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image

from operators.errors import StageError
from operators.formats import davis_palette
from operators.replacing import replacing
from operators.sources import Source

_PALETTE = davis_palette().tobytes()
_NUMBERED = re.compile(r"\d{5,}\.png|\.\d{5,}\.png\.part")
_ANY = re.compile(r".*\.png|\..*\.png\.part")


def save_label_map(path: Path, labels: np.ndarray, where: Any) -> None:
    """Raises StageError, which says `where`, a FrameInfo, for a file that cannot be written."""
    picture = Image.fromarray(labels)
    picture.putpalette(_PALETTE)
    with writing(path, where), replacing(path) as part:
        picture.save(part, format="PNG")


def remove_maps(folder: Path, named: bool = False) -> None:
    """Remove the numbered maps of a folder; `named`: maps of any name. Raises OSError."""
    for path in folder.iterdir():
        if (_ANY if named else _NUMBERED).fullmatch(path.name):
            path.unlink()


def frame_names(source: Source) -> Sequence[str]:
    """What the frames of a folder of images are called, without suffix; () for a video, and where two have one name.

    A DAVIS ground truth has the names of its images.
    """
    names = [PurePosixPath(file).stem for file in source.files]
    return names if len(set(names)) == len(names) else ()


@contextmanager
def writing(path: Path, where: Any = None) -> Iterator[None]:
    """A failing disk as an error that names file and frame."""
    try:
        yield
    except OSError as error:
        at = "" if where is None else f"{where}: "
        raise StageError(f"{at}{path} cannot be written: {error.strerror or error}.") from error
