"""`maskstream dataset`: check, repair, convert, split, count and look at annotated data.

Each action is a module beside this one, made like a command: HELP, `arguments(parser)`, `execute(args) -> exit code`,
DESCRIPTION where its own help says more, EPILOG in place of the usual exit codes. `--debug` is added here.
"""

from __future__ import annotations

import argparse

from pipelines.commands import dataset_check, dataset_convert, dataset_show, dataset_split, dataset_stats
from pipelines.commands.shared import EXIT_CODES, add_debug

ACTIONS = {
    "check": dataset_check,
    "convert": dataset_convert,
    "split": dataset_split,
    "stats": dataset_stats,
    "show": dataset_show,
}
"""Written out by hand, in the order of the help."""

HELP = "check, convert, split, count and show annotated datasets"
DESCRIPTION = """What a dataset needs before it is trained on or scored against.

  maskstream dataset check train.json --images JPEGImages        every fault, with file, video, annotation and frame
  maskstream dataset check train.json --fix fixed.json           repair what can be repaired, into a new file
  maskstream dataset split train.json splits --parts train=0.9,val=0.1
  maskstream dataset stats train.json
  maskstream dataset ACTION --help                               what each of them takes
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    raw = argparse.RawDescriptionHelpFormatter
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    for name, module in ACTIONS.items():
        description = getattr(module, "DESCRIPTION", module.HELP)
        epilog = getattr(module, "EPILOG", EXIT_CODES)
        action = actions.add_parser(name, help=module.HELP, description=description, epilog=epilog, formatter_class=raw)
        add_debug(action)
        action.set_defaults(command=module.execute)
        module.arguments(action)
