"""A dataset by name: a file of configs/datasets, or the YouTube-VIS JSON itself.

In:     YAML with `annotations`, `image_root`, and perhaps `made_by`, the command that makes it; or a .json, or a DAVIS
        folder
Out:    `DatasetFile`, whose files are there
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from operators.errors import DatasetError
from pipelines.config import build, resolve
from pipelines.file_kinds import load_settings


@dataclass(frozen=True, kw_only=True)
class DatasetFile:
    """Where a dataset lies."""

    annotations: str
    """A YouTube-VIS JSON, or a folder of DAVIS (operators/davis_data.py says of which layouts); relative paths are
    those of the folder that the command is run in."""
    image_root: str | None = None
    """The folder that its file names are relative to; null: `JPEGImages` beside the JSON, else the JSON's folder; of
    DAVIS, the folder of SEQUENCE/00000.jpg, null: where DAVIS has it, or `JPEGImages` beside the label maps."""
    made_by: str = ""
    """The command that makes the dataset, for the error when it is absent."""

    @property
    def davis(self) -> bool:
        """Its truth is label maps, and classes are not asked for."""
        return Path(self.annotations).is_dir()

    @property
    def images(self) -> Path:
        if self.image_root is not None:
            return Path(self.image_root)
        beside = Path(self.annotations).parent
        return beside / "JPEGImages" if (beside / "JPEGImages").is_dir() else beside


def read_dataset_file(path: str | Path, image_root: str | None = None) -> DatasetFile:
    """Raises ConfigError for a damaged YAML, DatasetError where annotations or images are not there."""
    where = resolve(path)
    if where.suffix == ".json" or where.is_dir():
        file = DatasetFile(annotations=str(where), image_root=image_root)
    else:
        file = build(DatasetFile, load_settings(where, "dataset"), str(where))
        if image_root is not None:
            file = DatasetFile(annotations=file.annotations, image_root=image_root, made_by=file.made_by)
    hint = f" Make it by: {file.made_by}" if file.made_by else ""
    if file.davis:
        return file
    if not Path(file.annotations).is_file():
        raise DatasetError(f"{where}: {file.annotations} does not exist.{hint}")
    if not file.images.is_dir():
        raise DatasetError(f"{where}: the folder of images {file.images} does not exist.{hint} --image-root names it.")
    return file
