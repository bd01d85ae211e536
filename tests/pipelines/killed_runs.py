"""A run killed outright before each of its operations on files, and made again. A program, because it forks.

    python -m tests.pipelines.killed_runs DIR nothing | other [STEP]

`nothing` begins in an empty folder, with sources that all are good: run again, there may be nothing left but what comes
last. `other` begins in one that holds another run's results, and has a source that fails each time. For every kill
(before each STEPth operation) it prints a line of JSON: how many operations came before it, which files differ after
the second run from those of a run that was never killed.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from dataclasses import replace
from pathlib import Path

from operators.formats import Categories
from pipelines.graph import RunContext
from pipelines.manifest import Manifest
from pipelines.outputs import Outputs
from pipelines.run import run
from tests.pipelines.small_stages import graph, source

CHANGES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "open"}
SOURCES = (source("a", length=3), source("poisoned", "ok", "poison"), source("b", "ok", "fault", "ok"), source("empty"))
MARK = {"network": "this one"}


def one_run(directory: Path, mark: dict[str, str], fresh: bool, good: bool, length: int = 3) -> None:
    """What `maskstream run` does, with small stages. Sources have ids, so that there is one results.json of all."""
    others = [one for one in SOURCES[1:] if not good or one.name != "poisoned"]
    sources = [replace(one, video_id=i) for i, one in enumerate((source("a", length=length), *others), start=7)]
    outputs = Outputs(directory, ("jsonl", "ytvis"), Categories.numbered(["thing"]))
    with Manifest(directory, mark, fresh) as manifest:
        run(sources, [], graph(batching={"frames": 4, "streams": 2}), RunContext(device="cpu"), outputs,
            manifest=manifest)  # fmt: skip


def in_fork(directory: Path, kill_at: int | None, fresh: bool, good: bool) -> bool:
    """Run in a process of its own; whether it came to its end. `kill_at`: the operation that it does not live to do."""
    child = os.fork()
    if child == 0:
        if kill_at is not None:
            _kill_before(kill_at, directory)
        one_run(directory, MARK, fresh, good)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or status == 0, "a run that nobody killed failed"
    return not os.WIFSIGNALED(status)


def _kill_before(number: int, directory: Path) -> None:
    count = 0

    def hook(event: str, arguments: tuple) -> None:
        nonlocal count
        if event in CHANGES and str(arguments[0]).startswith(str(directory)):
            if count == number:
                os.kill(os.getpid(), signal.SIGKILL)
            count += 1

    sys.addaudithook(hook)


def files_of(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def begin(directory: Path, start: str) -> None:
    shutil.rmtree(directory, ignore_errors=True)
    if start == "other":
        child = os.fork()
        if child == 0:
            one_run(directory, {"network": "another one"}, False, False, length=9)
            os._exit(0)
        os.waitpid(child, 0)
        (directory / "a" / "notes.txt").write_text("mine")


def main(root: Path, start: str, step: int = 1) -> None:
    fresh, good = start == "other", start == "nothing"
    begin(root / "whole", start)
    assert in_fork(root / "whole", None, fresh, good)
    whole = files_of(root / "whole")
    print(json.dumps(sorted(whole)))
    ended, kill_at = False, 0
    while not ended:
        begin(root / "killed", start)
        ended = in_fork(root / "killed", kill_at, fresh, good)
        # whoever sees that the manifest is of the new settings goes on without --fresh
        manifest = root / "killed" / "manifest.json"
        begun = manifest.exists() and json.loads(manifest.read_text())["mark"] == MARK
        assert in_fork(root / "killed", None, fresh and not begun, good)
        again = files_of(root / "killed")
        different = sorted(name for name in whole.keys() | again.keys() if whole.get(name) != again.get(name))
        print(json.dumps({"killed_before": kill_at, "different": different}), flush=True)
        kill_at += step


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:3], *map(int, sys.argv[3:]))
