"""The command `maskstream`: what the user types, to a command of pipelines/commands/, to an exit code."""

from __future__ import annotations

import argparse
import atexit
import gc
import importlib
import os
import sys
import traceback
from collections.abc import Sequence

from operators.errors import MaskstreamError

DESCRIPTION = """Online video instance segmentation: every object gets a mask, and keeps its id.

  maskstream demo                  a generated clip, tracked by the shipped network, in a minute
  maskstream run street.mp4        a video to masks with ids; results in runs/run/street/
  maskstream run --help            outputs, settings, executors
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns its exit code."""
    # Torch's threads wait for each other some hundred times a frame. Spinning as they do by default, they take from a
    # busy machine the very time that they wait for: 1000 ms a frame in place of 22, measured with one other process on
    # two cores. Asleep they lose nothing that shows. It counts only before torch is loaded; actors inherit it.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # At its end Python looks through all that is left, for cycles: 1 s, with all that torch and DALI made.
    atexit.register(gc.freeze)
    try:
        return _run(argv)
    except (KeyboardInterrupt, Exception) as error:
        if not _interrupted(error):
            raise
        # Where Ctrl-C came within a text that Python was executing, as it makes dataclasses, Python would end itself by
        # the signal in place of the exit code. It forgets that with the next such text.
        exec("")
        print("stopped.", file=sys.stderr)
        return 130


def _run(argv: Sequence[str] | None) -> int:
    try:
        args = _parser().parse_args(argv)
    except SystemExit as stop:  # argparse's own way out, of --help too
        return stop.code if isinstance(stop.code, int) else 2
    try:
        importlib.import_module("numpy")    # before torch, which would import it in a place where Ctrl-C is forgotten
        return args.command(args)
    except MaskstreamError as error:
        if args.debug:
            traceback.print_exc()
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code


def _interrupted(error: BaseException | None) -> bool:
    """Whether Ctrl-C is behind it: while a library is loaded it comes out as an ImportError."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None


def _parser() -> argparse.ArgumentParser:
    from pipelines.commands import COMMANDS  # here, where Ctrl-C has its answer already
    from pipelines.commands.shared import EXIT_CODES

    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("maskstream", description=DESCRIPTION, epilog=EXIT_CODES, formatter_class=raw)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--debug", action="store_true", help="show the traceback of an error")
    for name, module in COMMANDS.items():
        description, epilog = getattr(module, "DESCRIPTION", module.HELP), getattr(module, "EPILOG", "")
        command = commands.add_parser(name, help=module.HELP, description=description, epilog=epilog + EXIT_CODES,
                                      parents=[common], formatter_class=raw)  # fmt: skip
        command.set_defaults(command=getattr(module, "execute", None))
        module.arguments(command)
    return parser


if __name__ == "__main__":
    sys.exit(main())
