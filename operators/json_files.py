"""JSON of datasets and results: read with bounds, refused where its meaning is open, and written a line at a time.

In:     a file, and in words what it should be; or plain values
Out:    what the file holds; one line of ASCII
State:  none
Limits: files of at most MAX_FILE_BYTES; no key twice in an object, and no NaN or infinity unless asked for
"""

from __future__ import annotations

import gc
import json
import math
import os
import reprlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from operators.errors import DatasetError

MAX_FILE_BYTES = 1 << 30
"""Of a JSON file. Read, it takes about five times its bytes of memory; YouTube-VIS and OVIS stay well below this."""


def compact_json(value: Any) -> str:
    """One line of JSON, in ASCII, so that a file name that is not UTF-8 survives. Raises ValueError for NaN."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False)


def is_finite(number: int | float) -> bool:
    """Whether a number of a file can be computed with: none of NaN, infinity, and whole numbers beyond every float."""
    try:
        return math.isfinite(number)
    except OverflowError:
        return False


def read_json(path: Path, expected: str, *, constants: bool = False) -> Any:
    """A JSON file in which no key occurs twice in an object, and no NaN or infinity unless `constants` lets them pass.

    `expected` says what it should be. Raises DatasetError naming the file; for one of over MAX_FILE_BYTES before it is
    read.
    """
    try:
        with path.open("rb") as file:
            large = os.fstat(file.fileno()).st_size > MAX_FILE_BYTES        # 0 for a pipe: it shows when it is read
            content = b"" if large else file.read(MAX_FILE_BYTES + 1)
        if large or len(content) > MAX_FILE_BYTES:
            raise DatasetError(f"{path}: is over the limit of {MAX_FILE_BYTES >> 20} MiB; expected {expected}. "
                               "Write masks as compressed RLE, null where there is none, and of results the 100 best "
                               "of each video and category alone: more do not count.")  # fmt: skip
        with _no_garbage_collection():
            return json.loads(content, parse_constant=None if constants else _refuse_constant,
                              object_pairs_hook=_object)  # fmt: skip
    except FileNotFoundError:
        raise DatasetError(f"{path}: there is no such file; expected {expected}.") from None
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read ({error.strerror}); expected {expected}.") from error
    except _NoJsonOfOurs as error:
        raise DatasetError(f"{path}: {error}; expected {expected}.") from None
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"{path}: is not valid JSON ({error}); expected {expected}. Was it cut short?") from error


class _NoJsonOfOurs(Exception):
    """What the parser takes and we do not."""


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """JSON has no cycles: looking for them as its objects come into being takes half of the time that reading takes."""
    before = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if before:
            gc.enable()


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise _NoJsonOfOurs(f"an object has the key {reprlib.repr(twice)} more than once, {reprlib.repr(found)}")
    return found


def _refuse_constant(name: str) -> None:
    raise _NoJsonOfOurs(f"holds {name}, which is no number in JSON")
