"""A graph to look at: its stages in order, groups as boxes with what they ask for, and what a frame carries.

In:     a Graph, and what `measure` of graph_bytes.py found
Out:    lines in box-drawing characters as wide as the terminal; the words that pictures use too (graph_picture.py)
State:  none
Limits: texts that are too long for the width are shortened, those of groups and notes are wrapped

    ╭─────┬──────────────────────────────────────────────────────────────────────╮
    │  decode            operator, keyed by stream                               │
    │     │  Frame  2.8 MB    image 720×1280×3 uint8                             │
    │  preprocess        operator                                                │
    ╰─────┬──────────────────────────────────────────────────────────────────────╯
          ║  Image  492 kB    pixels 3×160×256 float32                           object store
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from dataclasses import MISSING, dataclass, fields

from rich.cells import cell_len, set_cell_size

from pipelines.graph import Graph, StageSpec
from pipelines.graph_bytes import Edge
from pipelines.picture import printable
from pipelines.placement import Amount, Placement

MIN_WIDTH = 40
UNITS = ("B", "kB", "MB", "GB", "TB")


@dataclass(frozen=True)
class GraphView:
    """What is told of a graph, in whatever form."""

    title: str
    graph: Graph
    edges: tuple[Edge, ...] = ()
    """One for each stage, or none: then nothing is told of bytes."""
    notes: tuple[str, ...] = ()
    """Sentences below the drawing."""

    def edge(self, stage: str) -> Edge | None:
        return next((edge for edge in self.edges if edge.stage == stage), None)

    def crosses(self, stage: str) -> bool:
        """Whether what the stage gives leaves its process."""
        return any(group.stages[-1] == stage for group in self.graph.placement)


# ------------------------------------------------------------------------------------------------------------- words


def amount(num_bytes: float) -> str:
    """'0 B', '999 B', '2.8 MB': three digits at most before the unit."""
    power = 0
    while num_bytes >= 999.5 and power < len(UNITS) - 1:
        num_bytes, power = num_bytes / 1000, power + 1
    return f"{num_bytes:.1f} {UNITS[power]}" if power and num_bytes < 9.95 else f"{num_bytes:.0f} {UNITS[power]}"


def weight(edge: Edge) -> str:
    """Of a frame; and of the heaviest, where frames differ by more than a tenth."""
    differ = edge.most > 1.1 * edge.bytes
    return amount(edge.bytes) + (f", up to {amount(edge.most)}" if differ else "")


def stage_words(stage: StageSpec) -> str:
    """'network, batch 4': its kind, and the settings that are not the defaults."""
    words = [stage.kind.word]
    words += ["keyed by stream"] if stage.keyed_by else []
    for field in fields(stage.settings):
        default = field.default if field.default_factory is MISSING else field.default_factory()
        value = getattr(stage.settings, field.name)
        if value != default:
            words.append(f"{field.name} {value}")
    return printable(", ".join(words))


def group_words(graph: Graph, group: Placement) -> str:
    """'2 replicas, each 2 CPUs, 0.5 GPU, 1 camera_rack; a stream keeps to its replica'."""
    wants = [_count(group.num_cpus, "CPU"), _count(_num_gpus(graph, group), "GPU")]
    wants += [f"{number:g} {name}" for name, number in group.resources.items()]
    several = group.replicas > 1
    text = f"{group.replicas} replicas, each " if several else "1 replica, "
    kept = "; a stream keeps to its replica" if several and graph.keyed(group) else ""
    return printable(text + ", ".join(wants) + kept)


def between(group: Placement) -> str:
    """How what leaves the group travels."""
    return group.transport.replace("_", " ")


def totals(view: GraphView) -> list[str]:
    """What a frame carries in all, and what the placement asks for in all."""
    said = []
    if view.edges:
        moved = sum(edge.bytes for edge in view.edges if view.crosses(edge.stage))
        whole = amount(sum(edge.bytes for edge in view.edges))
        said.append(f"A frame carries {whole} from stage to stage, {amount(moved)} of it from process to process.")
    return [*said, f"Demand: {demand(view.graph)}."]


def demand(graph: Graph) -> str:
    """'3 processes (strategy pack), 4 CPUs, 1 GPU, 2 camera_rack'; 'auto' is told for how many processes."""
    processes = sum(group.replicas for group in graph.placement)
    words = [f"{processes} process{'es' * (processes > 1)} (strategy {graph.strategy})"]
    for unit in ("CPU", "GPU"):
        own = {group: _num_gpus(graph, group) if unit == "GPU" else group.num_cpus for group in graph.placement}
        pairs = [(group.replicas, number) for group, number in own.items()]
        stated = sum(replicas * number for replicas, number in pairs if number != "auto")
        shared = sum(replicas for replicas, number in pairs if number == "auto")
        words += [_count(stated, unit)] if stated or not shared else []
        words += [f"a share of the {unit}s for {shared}"] if shared else []
    names = dict.fromkeys(name for group in graph.placement for name in group.resources)
    words += [f"{sum(g.replicas * g.resources.get(name, 0) for g in graph.placement):g} {name}" for name in names]
    return printable(", ".join(words))


def _num_gpus(graph: Graph, group: Placement) -> Amount:
    """None where 'auto' would give none: to a group that has no use for one."""
    uses = any(stage.kind.on_device for stage in graph.group(group))
    return group.num_gpus if uses or group.num_gpus != "auto" else 0.0


def _count(number: Amount, unit: str) -> str:
    """'1 CPU', '0.5 GPU', '2 CPUs', 'CPUs auto'."""
    if number == "auto":
        return f"{unit}s auto"
    return f"{number:g} {unit}{'s' * (number > 1 or number == 0)}"


# -------------------------------------------------------------------------------------------------------------- text

INDENT = 6
"""Columns left of the line that all stages hang on."""


def text_of(view: GraphView, width: int) -> str:
    """The drawing, no line wider than `width` columns (MIN_WIDTH at least), as a terminal counts columns."""
    width = max(MIN_WIDTH, width)
    lines = [*_wrapped(printable(view.title), width), "", *_edge_line("│", "a path, and how many frames", "", width)]
    for group in view.graph.placement:
        lines += _box(view, group, width)
        lines += _leaving(view, group, width)
    lines += ["", *(line for note in (*totals(view), *view.notes) for line in _wrapped(printable(note), width))]
    return "\n".join(line.rstrip() for line in lines) + "\n"


def _box(view: GraphView, group: Placement, width: int) -> Iterator[str]:
    """A group: what it asks for, its stages, and what goes from one to the next within it."""
    stages = view.graph.group(group)
    names = max(cell_len(printable(stage.name)) for stage in view.graph.stages)
    yield "╭" + "─" * (INDENT - 1) + "┴" + "─" * (width - INDENT - 2) + "╮"
    for line in _wrapped(group_words(view.graph, group), width - 6):
        yield _framed("  " + line, width)
    for stage in stages:
        name = set_cell_size(printable(stage.name), min(names, width // 3))
        yield _framed(f"    ■ {name}   {stage_words(stage)}", width)
        if stage is not stages[-1]:
            for line in _edge_line("│", *_told(view, stage), width - 3):
                yield _framed(line[1:], width)
    yield "╰" + "─" * (INDENT - 1) + "┬" + "─" * (width - INDENT - 2) + "╯"


def _leaving(view: GraphView, group: Placement, width: int) -> Iterator[str]:
    """What goes to the next group, or to the sinks."""
    last = view.graph.group(group)[-1]
    record, parts = _told(view, last)
    is_end = group is view.graph.placement[-1]
    way = "to the driver, for the sinks" if is_end else f"by {between(group)}"
    yield from _edge_line("║", f"{record} {way}", parts, width)
    yield " " * INDENT + ("▼" if is_end else "║")


def _told(view: GraphView, stage: StageSpec) -> tuple[str, str]:
    """What the stage gives, and of what that is made."""
    edge = view.edge(stage.name)
    if edge is None:
        return stage.kind.gives.__name__, ""
    return f"{edge.record}  {weight(edge)}", ", ".join(f"{part.name} {part.shape}".strip() for part in edge.parts[:2])


def _edge_line(line: str, record: str, parts: str, width: int) -> Iterator[str]:
    """On one line where there is room; else the shapes come below, shortened."""
    text = f"{' ' * INDENT}{line}  {record}"
    if not parts:
        yield _fit(text, width)
    elif cell_len(text) + 2 + cell_len(parts) <= width:
        yield f"{text}  {parts}"
    else:
        yield _fit(text, width)
        yield _fit(f"{' ' * INDENT}{line}    {parts}", width)


def _framed(text: str, width: int) -> str:
    return "│" + set_cell_size(_fit(text, width - 3), width - 2) + "│"


def _fit(text: str, width: int) -> str:
    return text if cell_len(text) <= width else set_cell_size(text, width - 1).rstrip() + "…"


def _wrapped(text: str, width: int) -> list[str]:
    """Lines no wider than `width`; what has wide characters is broken early, so that it fits."""
    wide = cell_len(text) > len(text)
    lines = textwrap.wrap(text, width // 2 if wide else width) or [""]
    return [_fit(line, width) for line in lines]
