"""What Prometheus sees of a training run, scraped from a real cluster."""

from __future__ import annotations

import re
import time
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import torch

from pipelines.metrics import addresses
from trainers.gauges import GAUGES, SAMPLES, Gauges
from trainers.watch import Step


def scraped(run: str) -> dict[tuple[str, str], float]:
    """(series without its prefix, part) -> value, of one run: others may have trained on the same cluster before."""
    found = {}
    for address in addresses():
        for line in urllib.request.urlopen(address, timeout=60).read().decode().splitlines():
            match = re.fullmatch(r"ray_maskstream_train_(\w+)\{(.*)\} (\S+)", line)
            if match:
                tags = dict(re.findall(r'(\w+)="([^"]*)"', match[2]))
                if tags["run"] == run:
                    found[match[1], tags.get("part", "")] = float(match[3])
    return found


def test_every_gauge_is_on_the_port_with_the_last_step(cluster, in_time):
    job = SimpleNamespace(out=Path("runs/night 7"))
    gauges = Gauges(SimpleNamespace(job=job, world=3, device=torch.device("cpu")))
    for number, mask in ((41, 0.75), (42, 0.5)):
        losses = {"mask": mask, "total": mask + 1}
        gauges.after_step(Step(number, losses, 0.01, 0.5, 2.0, 8, batch=None))
    expected = {
        ("step", ""): 42, ("loss", "mask"): 0.5, ("loss", "total"): 1.5, ("learning_rate", ""): 0.01,
        ("samples_per_second", ""): 4, ("data_wait_share", ""): 0.25, ("gpu_memory_bytes", ""): 0,
        ("samples_total", ""): 2 * 8 * 3,
    }  # fmt: skip
    assert {"maskstream_train_" + name for name, _ in expected} == {*GAUGES, SAMPLES + "_total"}
    end = time.monotonic() + 200
    # Ray brings values by its own clock: those of the first step may come alone, before those of the second.
    while (found := scraped(job.out.name)) != expected and time.monotonic() < end:
        time.sleep(0.2)
    assert found == expected
