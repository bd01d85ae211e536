"""Which watchers a run has, in the order in which they look.

In:     `Worker`
Out:    its watchers
State:  none
"""

from __future__ import annotations

import ray

from trainers.evaluating import evaluator_of
from trainers.gauges import Gauges
from trainers.log import Log
from trainers.watch import Watcher, Worker


def watchers_of(worker: Worker) -> list[Watcher]:
    """Of one worker; log and gauges are worker 0's alone."""
    cfg = worker.job.config
    watchers = evaluator_of(worker)         # in all workers: they must agree on when a checkpoint is due
    if worker.rank == 0:
        watchers.append(Log(worker.job.out, cfg.log_every, worker.steps, worker.device))
        if ray.is_initialized():            # else there is no one to ask for them: `maskstream ablate` trains alone
            watchers.append(Gauges(worker))
    return watchers
