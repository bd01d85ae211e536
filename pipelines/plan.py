"""How many cameras fit: measure what a batch costs here, play the queue through on paper, and perhaps try it.

In:     a Graph, a RunContext; size and rate of the cameras, and how late their results may be
Out:    Plan: the measurement, a forecast for each number of cameras around the answer, the stage that limits, and with
        `verify` what so many simulated cameras really gave
State:  none
Limits: about `seconds` of measuring, two thirds of it beside as many cameras as the first third promised, and with
        `verify` twice that again; starting up and warming comes on top
Source: the model is in plan_queue.py, what is measured in plan_live.py and plan_try.py

The answer keeps HEADROOM of the graph free: a queue near its capacity grows by minutes of bad luck, and the machine's
other work comes and goes. Of a graph with replicas one process is measured, on its share of the CPUs, and counted as
often. Where a graph has several groups, they are measured as one, and the plan says so (plan_groups.py).
"""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from operators.cpus import usable_cpus
from operators.errors import ConfigError
from pipelines.graph import Graph, RunContext
from pipelines.graph_bytes import generated_clip, some_weights
from pipelines.placement import Placement
from pipelines.plan_groups import Share, left_out, on_share, share_of
from pipelines.plan_live import Lab, lab, measure
from pipelines.plan_queue import Forecast, Service, forecast, joined_services, most_that_fit
from pipelines.plan_try import LiveReading, joined, run_cameras
from pipelines.serving.deployed import live

HEADROOM = 0.25
"""Share of the graph's capacity that is kept free."""
CLIP_FRAMES = 48
"""Of the clip that every camera plays in a circle."""
TURNS = 6
"""Of trying and measuring, with `verify`: the shorter they are, the more alike is the machine to both."""
WARM_S = 1.0
"""Of each try at most, before it counts."""
CLOSE = 0.15
"""A forecast this near to what was measured is called right."""
PADDED = 1.3
"""One frame and `batch` frames that differ by less: the one is filled up with zeros. `batch` frames and one more that
differ by more: that one went through the network by itself."""

Progress = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class PlanConfig:
    """What is asked."""

    width: int = 640
    height: int = 360
    fps: float = 10.0
    """Frames a second of each camera."""
    p95_s: float = 0.5
    """From capture to result, of 95 frames in 100."""
    seconds: float = 30.0
    """Of measuring. More: surer, above all on a machine with other work."""
    max_cameras: int = 256
    queue: int = 8
    """Frames of a camera that may wait."""
    verify: bool = False
    """Try the forecast number of cameras."""

    def __post_init__(self) -> None:
        limits = {"width": (64, 8192), "height": (64, 8192), "fps": (0.1, 1000), "p95_s": (0.001, 600),
                  "seconds": (0.1, 3600), "max_cameras": (1, 4096), "queue": (1, 4096)}  # fmt: skip
        for name, (least, most) in limits.items():
            if not least <= getattr(self, name) <= most:
                raise ConfigError(f"{name} is {getattr(self, name):g}, expected {least:g} to {most:g}.")


@dataclass(frozen=True)
class Plan:
    """What was found."""

    config: PlanConfig
    machine: str
    batch: int
    """Most frames of a batch (batching.frames)."""
    service: Service
    fits: int
    """Cameras of one process with this graph."""
    copies: int
    """Such processes: the graph's replicas, or those that the cluster has room for."""
    forecasts: tuple[Forecast, ...]
    """For numbers of cameras around `fits`, ascending."""
    limited_by: str
    """What stands in the way of one more camera: the stage that takes most of a frame's time, or decoding."""
    hints: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    """What the placement says and the forecast does not know."""
    measured: LiveReading | None = None
    tried: Forecast | None = None
    """What was expected of as many cameras as `measured` had,"""
    at_its_speed: Forecast | None = None
    """and what would have been, had one known how fast the machine was meanwhile: what then is off, the model is."""

    @property
    def chosen(self) -> Forecast:
        """Of as many cameras as fit; of one where none does."""
        return next(one for one in self.forecasts if one.cameras == max(self.fits, 1))


def plan(graph: Graph, context: RunContext, config: PlanConfig, tell: Progress = lambda said: None,
         cpus: int | None = None) -> Plan:  # fmt: skip
    """Measure here, and forecast. `graph`: its amounts are known. `tell` is told what is being done, a line each;
    `cpus`: those of the one process to be measured, which counts once; without it the placement's replicas count.

    Raises: ConfigError, CheckpointError for a graph or network that cannot be built; StageError if a stage fails.
    """
    with some_weights(context.network) as spec, generated_clip(config.width, config.height, CLIP_FRAMES) as clip:
        tell("loading the network")
        share = Share(1, float(cpus)) if cpus else share_of(graph)
        with on_share(share), lab(fused(graph, share.cpus), replace(context, network=spec), clip) as bench:
            service = measured_service(bench, config, tell)
            found = planned(service, bench.graph, config)
            found = tried_plan(found, bench, tell) if config.verify else found
        hints = (*found.hints, *form_hint(context), *busy_hint(os.getloadavg()[0], usable_cpus()))
        return replace(found, machine=machine(), copies=share.copies, hints=hints,
                       left_out=left_out(graph))  # fmt: skip


def tried_plan(found: Plan, bench: Lab, tell: Progress) -> Plan:
    """Cameras and measurements turn about, so that a machine with other work is the same to both."""
    config, cameras = found.config, max(found.fits, 1)
    readings, services = [], [found.service]
    for turn in range(TURNS):
        tell(f"trying {cameras} camera{'s' * (cameras > 1)}, turn {turn + 1} of {TURNS}")
        seconds = config.seconds / TURNS
        readings.append(run_cameras(bench, cameras, config.fps, seconds, min(WARM_S, seconds), config.queue))
        tell(f"measuring again, turn {turn + 1} of {TURNS}")
        services.append(measure(bench, seconds, found.service.beside, config.fps))
    service, measured = joined_services(services), joined(readings)
    tried, at_its_speed = (forecast(each, cameras, config.fps, found.batch, config.queue)
                           for each in (service, service.slower(measured.slowness(service))))  # fmt: skip
    return replace(planned(service, bench.graph, config), measured=measured, tried=tried, at_its_speed=at_its_speed)


def fused(graph: Graph, cpus: float) -> Graph:
    """The live graph with all stages in one process."""
    graph = live(graph)
    whole = Placement(stages=tuple(stage.name for stage in graph.stages), num_cpus=float(cpus), num_gpus=0.0)
    return replace(graph, placement=(whole,))


def measured_service(bench: Lab, config: PlanConfig, tell: Progress = lambda said: None) -> Service:
    """What a batch costs beside about as many cameras as will fit: what decoding takes from it is measured too."""
    tell("measuring batches of every size")
    service = measure(bench, config.seconds / 3)
    for _ in range(2):
        beside = _fitting(service, bench.graph, config)
        if beside == service.beside:
            break
        tell(f"measuring again, beside {beside} camera{'s' * (beside > 1)}")
        service = measure(bench, config.seconds / 3, beside, config.fps)
    return service


def planned(service: Service, graph: Graph, config: PlanConfig, copies: int = 1) -> Plan:
    """The forecast of a measurement; pure arithmetic."""
    most, fits = graph.batching.frames, _fitting(service, graph, config)
    around = sorted({1, max(fits // 2, 1), max(fits, 1), fits + 1, max(2 * fits, 2)})
    forecasts = tuple(forecast(service, cameras, config.fps, most, config.queue) for cameras in around)
    next_one = next(one for one in forecasts if one.cameras == fits + 1)
    return Plan(config, machine(), most, service, fits, copies, forecasts, _limit(service, most, next_one, config),
                tuple(_hints(service, graph, config)))  # fmt: skip


def machine() -> str:
    """'x86_64, 2 CPUs'"""
    return f"{platform.machine()}, {usable_cpus()} CPU{'s' * (usable_cpus() > 1)}"


def _fitting(service: Service, graph: Graph, config: PlanConfig) -> int:
    return most_that_fit(service, config.fps, config.p95_s, graph.batching.frames, config.queue, 1 - HEADROOM,
                         config.max_cameras)  # fmt: skip


def _limit(service: Service, most: int, next_one: Forecast, config: PlanConfig) -> str:
    """Why one more does not fit."""
    if next_one.cameras > config.max_cameras:
        return f"nothing yet: {config.max_cameras} cameras is the most that was asked for"
    total = sum(service.stages_s.values())
    stage, seconds = max(service.stages_s.items(), key=lambda item: item[1])
    slow = f"{stage}, {1000 * seconds:.1f} ms of the {1000 * total:.1f} ms that a frame takes"
    if next_one.load > 1 - HEADROOM:
        graph_s = service.busy_cpus / service.capacity(most)
        if service.decode_s > graph_s:
            ours, theirs = 1000 * graph_s, 1000 * service.decode_s
            return f"decoding: {theirs:.1f} ms of a CPU for a frame, {ours:.1f} ms in the graph"
        return slow
    return f"latency: p95 would be {1000 * next_one.p95_s:.0f} ms; most of it is {slow}"


def _hints(service: Service, graph: Graph, config: PlanConfig) -> list[str]:
    """What might let more cameras in."""
    batches = {stage.name: stage.settings.batch for stage in graph.stages
               if getattr(stage.settings, "batch", 1) > 1}  # fmt: skip
    widest, hints = max(batches.values(), default=1), []
    padded = [stage.name for stage in graph.stages
              if batches.get(stage.name, 1) > 2 and getattr(stage.settings, "least", 0) is None]  # fmt: skip
    if padded and service.usual_s(widest) < PADDED * service.usual_s(1):
        changes = " ".join(f"--set {name}.least=2" for name in padded)
        hints.append(f"A single frame takes as long as {widest}: the network fills each batch up to {widest}. On a CPU "
                     f"try {changes}.")  # fmt: skip
    if 1 < widest < graph.batching.frames and service.usual_s(widest + 1) > PADDED * service.usual_s(widest):
        times = service.usual_s(widest + 1) / service.usual_s(widest)
        hints.append(f"{widest + 1} frames take {times:.1f} times as long as {widest}, which is what the network takes "
                     f"at once. Try --set batching.frames={widest}.")  # fmt: skip
    return hints


def form_hint(context: RunContext) -> tuple[str, ...]:
    """Where the network runs in its exact form, which is the slower one."""
    if context.network.inference.form != "plain":
        return ()
    return ("The network runs in its exact form. More cameras fit where results may differ by rounding: try --set "
            "network.inference.form=fused.",)  # fmt: skip


def busy_hint(load: float, cpus: float) -> tuple[str, ...]:
    """Where others want this machine too: what was measured alone keeps its CPUs busy, no more."""
    if load <= 2 * cpus:
        return ()
    return (f"Other work is on this machine (a load of {load:.0f} on {cpus:g} CPUs): the forecast holds as long as it "
            f"stays like that.",)  # fmt: skip


def as_json(plan: Plan) -> Mapping[str, Any]:
    """The plan as plain values: times in milliseconds, as in the statuses of streams."""
    service = plan.service
    return {
        "machine": plan.machine,
        "asked": asdict(plan.config),
        "fits": plan.fits * plan.copies,
        "fits_per_process": plan.fits,
        "processes": plan.copies,
        "limited_by": plan.limited_by,
        "hints": list(plan.hints),
        "left_out": list(plan.left_out),
        "service": {
            "batch_ms": {str(size): round(1000 * service.usual_s(size), 2) for size in sorted(service.seconds)},
            "stages_ms": {stage: round(1000 * seconds, 3) for stage, seconds in service.stages_s.items()},
            "decode_ms": round(1000 * service.decode_s, 3),
            "capacity_fps": round(service.capacity(plan.batch), 2),
            "busy_cpus": round(service.busy_cpus, 2),
            "measured_beside": service.beside,
        },
        "forecast": [_told(one) for one in plan.forecasts],
        "measured": None if plan.measured is None else {
            **_told(plan.measured), "errors": errors_of(plan), "slowness": round(plan.measured.slowness(service), 3),
            "errors_at_its_speed": errors_of(plan, plan.at_its_speed),
        },
    }  # fmt: skip


def _told(one: Forecast | LiveReading) -> dict[str, Any]:
    told = {"cameras": one.cameras, "fps_out": round(one.fps_out, 2), "dropped": round(one.dropped, 4),
            "p50_ms": _ms(one.p50_s), "p95_ms": _ms(one.p95_s)}  # fmt: skip
    return told | ({"load": round(one.load, 3)} if isinstance(one, Forecast) else {"seconds": round(one.seconds, 1)})


def _ms(seconds: float) -> float | None:
    """None where no frame came through: JSON has no infinity."""
    return round(1000 * seconds, 1) if math.isfinite(seconds) else None


def errors_of(plan: Plan, said: Forecast | None = None) -> dict[str, float]:
    """Forecast over what was measured, less one: +0.10 is a forecast that was a tenth too high; 9 stands for whatever
    is beyond, and for a try without a result. `said`: which forecast, if not the plan's own."""
    said, found = said or plan.tried or plan.chosen, plan.measured
    return {
        "fps_out": _error(said.fps_out, found.fps_out),
        "p50": _error(said.p50_s, found.p50_s),
        "p95": _error(said.p95_s, found.p95_s),
    }


def _error(said: float, found: float) -> float:
    sound = math.isfinite(said) and math.isfinite(found) and found > 0
    return round(min(said / found - 1, 9.0), 3) if sound else 9.0
