"""Everything that a user of Maskstream can cause, as typed errors.

MaskstreamError
├── ConfigError        a setting, a file of settings or a command line; before any work        exit code 2
├── GraphError         stages that do not fit together, or want more than there is             exit code 2
├── CheckpointError    weights that are damaged, or of another network                         exit code 2
├── DatasetError       an annotation file or its images                                        exit code 2
├── SourceError        a video, camera or folder that cannot be read, or stops half-way        exit code 1
└── StageError         a stage failed on a frame: says which stage, stream and frame           exit code 1

Every message is a full sentence: where, what came, what was expected, what to do.
`assert` is for what only our own bug can break.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class MaskstreamError(Exception):
    """The root: catching it catches every error below, and nothing that is our own bug."""

    exit_code = 1


class ConfigError(MaskstreamError):
    """A setting is unknown, missing, of the wrong type or out of range. Says file, key and what was expected."""

    exit_code = 2


class GraphError(MaskstreamError):
    """Stages do not fit together, or their placement wants more than the cluster has."""

    exit_code = 2


class CheckpointError(MaskstreamError):
    """Weights cannot be read, or are those of another network."""

    exit_code = 2


class DatasetError(MaskstreamError):
    """An annotation file, or the images it names, cannot be used. Says file, video and annotation."""

    exit_code = 2


class SourceError(MaskstreamError):
    """A video, camera or folder of images cannot be read. Says its name, and why."""


class StageError(MaskstreamError):
    """A stage failed. Says which stage, which stream and which frame."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """' Did you mean X?' where a known name is near, else the list of all that are known."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1)
    return f" Did you mean {near[0]}?" if near else f" Known: {', '.join(known)}."
