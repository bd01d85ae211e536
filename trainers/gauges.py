"""What training looks like from Ray's dashboard and from Prometheus.

In:     every `Step` of worker 0
Out:    gauges maskstream_train_* on Ray's metrics port, tagged with the name of the run's folder: see GAUGES
State:  none
Limits: only in a process of a Ray cluster; one series of each gauge for a run, one of the loss for each of its parts
"""

from __future__ import annotations

from ray.util.metrics import Counter, Gauge

from trainers.log import gpu_memory
from trainers.watch import Step, Watcher, Worker

GAUGES = {
    "maskstream_train_step": "Steps done.",
    "maskstream_train_loss": "A part of the loss, or their total: tag `part`.",
    "maskstream_train_learning_rate": "Of the step.",
    "maskstream_train_samples_per_second": "Pairs, clips or stills that worker 0 learns from in a second.",
    "maskstream_train_data_wait_share": "Share of the step's time spent waiting for data, 0..1.",
    "maskstream_train_gpu_memory_bytes": "The most that torch has held on worker 0's GPU; 0 without one.",
}
SAMPLES = "maskstream_train_samples"


class Gauges(Watcher):
    """Sets the gauges after every step: two microseconds each."""

    def __init__(self, worker: Worker) -> None:
        tags = {"run": worker.job.out.name}
        self._device = worker.device
        self._gauges = {name: Gauge(name, description=text, tag_keys=("run", "part"))
                        for name, text in GAUGES.items()}
        self._samples = Counter(SAMPLES, description="Samples that all workers have learnt from.", tag_keys=("run",))
        self._samples.set_default_tags(tags)
        for gauge in self._gauges.values():
            gauge.set_default_tags({**tags, "part": ""})
        self._world = worker.world

    def after_step(self, step: Step) -> None:
        self._set("step", step.number)
        for part, value in step.losses.items():
            self._set("loss", value, part=part)
        self._set("learning_rate", step.learning_rate)
        self._set("samples_per_second", step.samples / max(step.step_s, 1e-9))
        self._set("data_wait_share", step.data_wait_s / max(step.step_s, 1e-9))
        self._set("gpu_memory_bytes", gpu_memory(self._device))
        self._samples.inc(step.samples * self._world)

    def _set(self, name: str, value: float, **tags: str) -> None:
        self._gauges[f"maskstream_train_{name}"].set(value, tags or None)
