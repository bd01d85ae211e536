"""What several commands say and do alike."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager

EXIT_CODES = """
exit codes:
  0    all was done
  1    a source failed, or was damaged and gave what could be decoded; all others were done
  2    the command line, a file of settings, weights or a dataset cannot be used
  130  stopped by Ctrl-C (143 by SIGTERM); what was written until then is valid
"""


def add_set(parser: argparse.ArgumentParser, example: str) -> None:
    """`--set KEY=VALUE`, as often as wanted, into `overrides`."""
    text = f"change one setting, as in {example}; may be given again"
    parser.add_argument("--set", dest="overrides", metavar="KEY=VALUE", action="append", default=[], help=text)


def add_debug(parser: argparse.ArgumentParser) -> None:
    """Of a command within a command: its parent has the line of help."""
    parser.add_argument("--debug", action="store_true", help=argparse.SUPPRESS)


@contextmanager
def counting(what: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar for functions that tell (done, total)."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
