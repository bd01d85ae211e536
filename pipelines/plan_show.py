"""A Plan as text: the answer first, then what it rests on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pipelines.plan import CLOSE, HEADROOM, Plan, errors_of

STEADY = 0.05
"""A machine whose speed changed by no more is not spoken of."""


def text_of(plan: Plan) -> str:
    """Plain text of at most 100 columns."""
    asked, service = plan.config, plan.service
    camera = f"camera{'s' * (plan.fits * plan.copies != 1)} of {asked.width}x{asked.height} and {asked.fps:g} frames/s"
    within = f"p95 under {1000 * asked.p95_s:g} ms"
    lines = [f"{plan.fits * plan.copies} {camera} fit{'s' * (plan.fits * plan.copies == 1)}, {within}."]
    if plan.copies > 1:
        lines.append(f"{plan.fits} in each of {plan.copies} processes; what follows is of one.")
    lines += [f"Limited by {plan.limited_by}.", *plan.hints, *plan.left_out, ""]
    lines += table(("cameras", "frames/s", "load", "p50 ms", "p95 ms", "dropped", "batch", ""), (
        (str(one.cameras), f"{one.fps_out:.1f}", f"{one.load:.0%}", _ms(one.p50_s), _ms(one.p95_s),
         f"{one.dropped:.1%}", f"{one.batch:.1f}", "fits" if one.fits(asked.p95_s, 1 - HEADROOM) else "")
        for one in plan.forecasts
    ))  # fmt: skip
    lines += ["", f"Measured here ({plan.machine}), beside {service.beside} such cameras:"]
    sizes = [size for size in sorted(service.seconds) if size in (1, 2, 4, 8, 16, plan.batch)]
    lines.append("  a batch of " + ", ".join(f"{size}: {_ms(service.usual_s(size))} ms" for size in sizes)
                 + f"; at most {service.capacity(plan.batch):.1f} frames/s")  # fmt: skip
    shares = sorted(service.stages_s.items(), key=lambda item: -item[1])
    lines.append("  a frame in " + ", ".join(f"{stage} {_ms(seconds)} ms" for stage, seconds in shares)
                 + f"; decoding it {_ms(service.decode_s)} ms of a CPU")  # fmt: skip
    return "\n".join(lines + (_verified(plan) if plan.measured else [])) + "\n"


def _verified(plan: Plan) -> list[str]:
    """Forecast beside what was measured."""
    said, found, errors = plan.tried or plan.chosen, plan.measured, errors_of(plan)
    rows = [
        ("frames/s", f"{said.fps_out:.1f}", f"{found.fps_out:.1f}", f"{errors['fps_out']:+.0%}"),
        ("p50 ms", _ms(said.p50_s), _ms(found.p50_s), f"{errors['p50']:+.0%}"),
        ("p95 ms", _ms(said.p95_s), _ms(found.p95_s), f"{errors['p95']:+.0%}"),
        ("dropped", f"{said.dropped:.1%}", f"{found.dropped:.1%}", ""),
    ]
    verdict = "within" if all(abs(error) <= CLOSE for error in errors.values()) else "NOT within"
    cameras = f"{found.cameras} simulated camera{'s' * (found.cameras > 1)}"
    return ["", f"Tried with {cameras} for {found.seconds:.0f} s: the forecast is {verdict} {CLOSE:.0%}.",
            *table(("", "forecast", "measured", "off by"), rows), *_drift(plan)]  # fmt: skip


def _drift(plan: Plan) -> list[str]:
    """Where the machine was not as fast as when it was measured: how fast, and what the model would have said."""
    slowness = plan.measured.slowness(plan.service)
    if abs(slowness - 1) <= STEADY:
        return []
    lines = [f"The same batches took {slowness:.2f} times as long as when they were measured: the machine's other work "
             f"changed."]  # fmt: skip
    if plan.at_its_speed is None:
        return lines
    errors = errors_of(plan, plan.at_its_speed)
    return [*lines, f"A forecast that knew it: p50 {_ms(plan.at_its_speed.p50_s)} ms ({errors['p50']:+.0%}), "
                    f"p95 {_ms(plan.at_its_speed.p95_s)} ms ({errors['p95']:+.0%})."]  # fmt: skip


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Columns as wide as they need, numbers at the right."""
    lines = [tuple(head), *map(tuple, rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    return ["  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]


def _ms(seconds: float) -> str:
    value = 1000 * seconds
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}"
