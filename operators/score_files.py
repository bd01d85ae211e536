"""The JSON that an evaluation leaves behind.

In:     scores as plain numbers, dicts and lists; the path that `--json` names
Out:    the file, whole or not at all; NaN, which JSON has no word for, is written as null
State:  none
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from operators.errors import ConfigError
from operators.replacing import replacing


def check_writable(path: Path | str | None) -> None:
    """Raise ConfigError, before any work, where `path` is no name of a file in a folder that exists. None is fine."""
    if path is not None and (not Path(path).resolve().parent.is_dir() or Path(path).is_dir()):
        raise ConfigError(f"{path}: cannot be written; expected the name of a file in a folder that exists.")


def write_scores(path: Path | str, scores: Any) -> None:
    """Write `scores`; what was there is replaced only when all went well. Raises ConfigError naming the file."""
    text = json.dumps(_without_nan(scores), indent=2, allow_nan=False) + "\n"
    try:
        with replacing(path) as part:
            part.write_text(text, encoding="ascii")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written ({error.strerror}).") from error


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_without_nan(entry) for entry in value]
    return None if isinstance(value, float) and math.isnan(value) else value
