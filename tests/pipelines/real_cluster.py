"""What tests ask of a real cluster: whose workers there are, to kill one, and whether anything is left behind."""

from __future__ import annotations

import gc
import os
import random
import signal
import time
from collections.abc import Iterator

from operators.records import StreamEnd


def workers(word: str = "") -> list[int]:
    """Processes of the actors of this process's run, those whose stages have the word in their names."""
    from ray._private.state import actors

    alive = [each for each in actors().values() if each["State"] == "ALIVE" and each["Name"].startswith("maskstream")]
    return [each["Pid"] for each in alive if word in each["Name"]]


def kill(word: str, chance: random.Random) -> int:
    """One worker of a group, outright. Says how many there were."""
    pids = workers(word)
    if pids:
        os.kill(chance.choice(pids), signal.SIGKILL)
    return len(pids)


def killed_at(results: Iterator, at: dict[int, str], chance: random.Random) -> list:
    """All results; a worker of the named group is killed when so many have come."""
    given = []
    for result in results:
        given.append(result)
        if len(given) in at:
            assert kill(at[len(given)], chance)
    return given


def stream_of(result) -> str:
    return result.stream if isinstance(result, StreamEnd) else result.info.stream


def objects() -> tuple[int, float]:
    """References that this process holds, and how much of the object store is taken."""
    import ray
    from ray._private.worker import global_worker

    gc.collect()
    store = ray.cluster_resources()["object_store_memory"] - ray.available_resources()["object_store_memory"]
    return len(global_worker.core_worker.get_all_reference_counts()), store


def assert_nothing_is_left(before: tuple[int, float]) -> None:
    import ray
    from ray.util import placement_group_table

    def left() -> tuple[list[str], set[str], tuple[int, float]]:
        """Actors, states of placement groups, and what there is more than before, in references and in bytes."""
        actors = [name for name in ray.util.list_named_actors() if name.startswith("maskstream")]
        states = {each["state"] for each in placement_group_table().values() if each["name"].startswith("maskstream")}
        now = objects()     # what an earlier test had let go of may have gone since
        return actors, states, (max(0, now[0] - before[0]), max(0.0, now[1] - before[1]))

    end = time.monotonic() + 60
    while (found := left()) != ([], {"REMOVED"}, (0, 0.0)):  # Ray ends and frees what is let go of when it comes to it
        assert time.monotonic() < end, found
        time.sleep(0.1)
