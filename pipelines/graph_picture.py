"""A graph as a picture: one column, stages from top to bottom, groups as boxes, an arrow for what a frame carries.

In:     a GraphView
Out:    shapes for picture.py, and how large the picture is
State:  none
Limits: none of its own; a picture grows with the number of stages

The thicker an arrow, the more a frame carries there; an orange one goes from process to process.
"""

from __future__ import annotations

import math

from PIL import Image

from pipelines.graph import StageSpec
from pipelines.graph_show import GraphView, between, group_words, stage_words, totals, weight
from pipelines.picture import Line, Rect, Shape, Text, image, shortened, svg, text_width, wrapped
from pipelines.placement import Placement

WIDTH = 800
MARGIN = 32
PILL_X, PILL_WIDTH, PILL_HEIGHT = 56, 168, 32
AXIS = PILL_X + PILL_WIDTH / 2
"""x of the arrows."""
BESIDE = PILL_X + PILL_WIDTH + 16
"""x of what is written beside stages and arrows."""
ROOM, BROAD = WIDTH - MARGIN - 16 - BESIDE, WIDTH - MARGIN - 16 - (AXIS + 20)
"""How wide that may be; and what is written at the head of a group."""
ARROW, FOOT, STACK = 46, 14, 5
"""Heights of an arrow and below a group's last stage; how far the sheet of the next replica shows behind a group."""

INK, GREY, PALE, EDGE = "#1f2328", "#59636e", "#f6f8fa", "#8c959f"
WITHIN, ACROSS = "#57606a", "#bc4c00"
COLORS = {"network": "#6f42c1", "operator": "#0a66c2"}


def as_svg(view: GraphView) -> str:
    """The text of an SVG file."""
    shapes, height = layout(view)
    return svg(shapes, WIDTH, height, view.title)


def as_image(view: GraphView) -> Image.Image:
    """The same picture for a PNG. Raises ConfigError for one that is too large."""
    shapes, height = layout(view)
    return image(shapes, WIDTH, height)


def layout(view: GraphView) -> tuple[list[Shape], float]:
    """All shapes, and the height of the picture."""
    room = WIDTH - 2 * MARGIN
    shapes: list[Shape] = [Text(MARGIN, 38, shortened(view.title, 17, room, bold=True), 17, INK, bold=True)]
    y = 56.0
    shapes += _chip(y, "source")
    heads = [wrapped(group_words(view.graph, group), 12, BROAD, bold=True) for group in view.graph.placement]
    below = [_head_height(lines) for lines in heads[1:]] + [0.0]
    y = _arrow(shapes, y + 24, 0, "Pull", "a path, and how many frames", WITHIN, grow=_head_height(heads[0]))
    for group, lines, next_head in zip(view.graph.placement, heads, below, strict=True):
        y = _group(view, group, lines, y, next_head, shapes)
    shapes += _chip(y, "sinks")
    y += 24 + 30
    for note in (*totals(view), *view.notes):
        for line in wrapped(note, 12, room):
            shapes.append(Text(MARGIN, y, line, 12, GREY))
            y += 18
    return shapes, y + 6


def _head_height(lines: list[str]) -> float:
    return 18 + 16 * len(lines)


def _group(
    view: GraphView, group: Placement, head: list[str], y: float, next_head: float, shapes: list[Shape]
) -> float:
    """A box whose first stage stands at `y`, under its head, and the arrow that leaves it; gives where that ends."""
    stages = view.graph.group(group)
    top = y - _head_height(head)
    height = y - top + len(stages) * PILL_HEIGHT + (len(stages) - 1) * ARROW + FOOT
    behind = min(group.replicas - 1, 2)
    box: list[Shape] = [
        Rect(MARGIN + i * STACK, top + i * STACK, WIDTH - 2 * MARGIN, height, PALE, EDGE, 10)
        for i in range(behind, -1, -1)
    ]
    # The boxes go below the arrow that ends in them, which is drawn already.
    shapes[:0] = box
    shapes += [Text(AXIS + 20, top + 22 + 16 * i, line, 12, INK, bold=True) for i, line in enumerate(head)]
    for stage in stages:
        shapes += _pill(stage, y)
        is_last = stage is stages[-1]
        y += PILL_HEIGHT
        if not is_last:
            y = _leaving(view, stage, y, shapes, WITHIN)
    is_end = group is view.graph.placement[-1]
    way = "to the driver" if is_end else f"by {between(group)}"
    foot = FOOT + behind * STACK
    return _leaving(view, stages[-1], y, shapes, ACROSS, way, foot + next_head, skip=foot)


def _leaving(
    view: GraphView, stage: StageSpec, y: float, shapes: list[Shape], color: str, way: str = "", grow: float = 0,
    skip: float = 0,
) -> float:
    edge = view.edge(stage.name)
    if edge is None:
        return _arrow(shapes, y, 0, stage.kind.gives.__name__, way, color, grow, skip)
    head = f"{edge.record}  {weight(edge)}" + (f"  {way}" if way else "")
    parts = ",  ".join(f"{part.name} {part.shape}".strip() for part in edge.parts[:2])
    return _arrow(shapes, y, edge.bytes, head, parts, color, grow, skip)


def _arrow(
    shapes: list[Shape], y: float, num_bytes: float, head: str, below: str, color: str, grow: float = 0, skip: float = 0
) -> float:
    """Down from `y`, with two lines beside it, `skip` below its begin; gives where it ends."""
    end = y + ARROW + grow
    shapes.append(Line(AXIS, y + 1, AXIS, end - 1, color, thickness(num_bytes), head=True))
    middle = y + skip + ARROW / 2
    shapes.append(Text(BESIDE, middle - 3, shortened(head, 12, ROOM, bold=True), 12, color, bold=True))
    shapes.append(Text(BESIDE, middle + 13, shortened(below, 11, ROOM), 11, GREY))
    return end


def thickness(num_bytes: float) -> float:
    """Pixels of an arrow: 1.5 up to a kilobyte, and 2.5 more for each tenfold."""
    return 1.5 + 2.5 * max(0.0, math.log10(max(num_bytes, 1.0) / 1000))


def _pill(stage: StageSpec, y: float) -> list[Shape]:
    name = shortened(stage.name, 13, PILL_WIDTH - 16, bold=True)
    words = shortened(stage_words(stage), 12, ROOM)
    return [
        Rect(PILL_X, y, PILL_WIDTH, PILL_HEIGHT, COLORS[stage.kind.word]),
        Text(AXIS, y + 21, name, 13, "#ffffff", bold=True, anchor="middle"),
        Text(BESIDE, y + 20, words, 12, INK),
    ]


def _chip(y: float, name: str) -> list[Shape]:
    width = text_width(name, 12) + 28
    box = Rect(AXIS - width / 2, y, width, 24, "#ffffff", EDGE, 12)
    return [box, Text(AXIS, y + 16, name, 12, INK, anchor="middle")]
