"""The commands of `maskstream`, a file each.

A command is a module with HELP (its line in `maskstream --help`), `arguments(parser)`, and `execute(args) -> exit code`
or sub-commands that set `command` themselves; DESCRIPTION and EPILOG where its own help says more. Heavy imports
(torch, DALI, Ray) stand inside the functions, so that help answers at once.
"""

from pipelines.commands import ablate, chaos, dataset, demo, evaluate, graph, plan, run, serve, shapes, train, weights

COMMANDS = {
    "run": run,
    "serve": serve,
    "plan": plan,
    "graph": graph,
    "chaos": chaos,
    "shapes": shapes,
    "dataset": dataset,
    "train": train,
    "ablate": ablate,
    "weights": weights,
    "evaluate": evaluate,
    "demo": demo,
}
"""Written out by hand, in the order of the help."""
