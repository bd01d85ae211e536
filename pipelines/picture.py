"""Pictures of boxes, lines and text, drawn twice from one description: as SVG and as PNG.

In:     shapes in their order, later ones above earlier ones; x to the right, y down, in pixels
Out:    the text of an SVG file; a PIL image at SCALE pixels for each of ours
State:  fonts that were loaded
Limits: PNGs of MAX_PIXELS

Letters are DejaVu Sans, which matplotlib brings along: SVG viewers may have another one, so texts keep some air.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal
from xml.sax.saxutils import escape

import matplotlib
from PIL import Image, ImageDraw, ImageFont

from operators.errors import ConfigError

SCALE = 2
"""Pixels of a PNG for each of ours: sharp on screens of twice the usual density."""
SMOOTH = 2
"""PIL draws without antialiasing: it draws larger by this, and is then reduced."""
MAX_PIXELS = 100_000_000


@dataclass(frozen=True)
class Rect:
    x: float
    y: float
    width: float
    height: float
    fill: str = "#ffffff"
    stroke: str | None = None
    radius: float = 6.0


@dataclass(frozen=True)
class Line:
    """From one point to another; with `head` an arrow, whose tip is the second point."""

    x1: float
    y1: float
    x2: float
    y2: float
    color: str
    width: float = 1.5
    head: bool = False


@dataclass(frozen=True)
class Text:
    """One line of text; `y` is its baseline."""

    x: float
    y: float
    text: str
    size: float = 12.0
    color: str = "#1f2328"
    bold: bool = False
    anchor: Literal["start", "middle", "end"] = "start"


Shape = Rect | Line | Text


def printable(text: str) -> str:
    """Nothing that moves a cursor, or that XML cannot hold: such characters by their escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def text_width(text: str, size: float, bold: bool = False) -> float:
    """In pixels, of DejaVu Sans."""
    return _font(100, bold).getlength(text) * size / 100


def shortened(text: str, size: float, width: float, bold: bool = False) -> str:
    """As much of the text, printable, as fits into `width`, with a sign that something is left out."""
    text = printable(text)
    if text_width(text, size, bold) <= width:
        return text
    while text and text_width(text + "…", size, bold) > width:
        text = text[:-1]
    return text.rstrip() + "…"


def wrapped(text: str, size: float, width: float, bold: bool = False) -> list[str]:
    """Lines no wider than `width`, broken between words, one line at least; a word that is too long is shortened."""
    lines = [""]
    for word in printable(text).split():
        longer = f"{lines[-1]} {word}".lstrip()
        if text_width(longer, size, bold) <= width or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    return [shortened(line, size, width, bold) for line in lines]


def svg(shapes: Sequence[Shape], width: float, height: float, title: str) -> str:
    """An SVG file; whatever names are drawn, it is well-formed."""
    size = f'width="{width:g}" height="{height:g}" viewBox="0 0 {width:g} {height:g}"'
    font = 'font-family="DejaVu Sans, Verdana, sans-serif"'
    lines = [f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" {font}>']
    lines.append(f"<title>{escape(printable(title))}</title>")
    lines.append(f'<rect width="{width:g}" height="{height:g}" fill="#ffffff"/>')
    lines += [_element(shape) for shape in shapes]
    return "\n".join([*lines, "</svg>\n"])


def _element(shape: Shape) -> str:
    if isinstance(shape, Rect):
        place = f'x="{shape.x:g}" y="{shape.y:g}" width="{shape.width:g}" height="{shape.height:g}"'
        return f'<rect {place} rx="{shape.radius:g}" fill="{shape.fill}" stroke="{shape.stroke or "none"}"/>'
    if isinstance(shape, Text):
        weight = ' font-weight="bold"' if shape.bold else ""
        place = f'x="{shape.x:g}" y="{shape.y:g}" font-size="{shape.size:g}" text-anchor="{shape.anchor}"'
        return f'<text {place} fill="{shape.color}"{weight}>{escape(printable(shape.text))}</text>'
    (x2, y2), head = _shaft(shape)
    ends = f'x1="{shape.x1:g}" y1="{shape.y1:g}" x2="{x2:.6g}" y2="{y2:.6g}"'
    line = f'<line {ends} stroke="{shape.color}" stroke-width="{shape.width:.3g}"/>'
    points = " ".join(f"{x:.6g},{y:.6g}" for x, y in head)
    return line + (f'<polygon points="{points}" fill="{shape.color}"/>' if head else "")


def image(shapes: Sequence[Shape], width: float, height: float) -> Image.Image:
    """The picture, (height x SCALE, width x SCALE) RGB. Raises ConfigError above MAX_PIXELS."""
    if width * height * SCALE**2 > MAX_PIXELS:
        raise ConfigError(f"the picture has {width:g} x {height:g} pixels, too many for a PNG. Take --format svg.")
    factor = SCALE * SMOOTH
    canvas = Image.new("RGB", (math.ceil(width * factor), math.ceil(height * factor)), "#ffffff")
    draw = ImageDraw.Draw(canvas)
    for shape in shapes:
        _paint(draw, shape, factor)
    return canvas.resize((math.ceil(width * SCALE), math.ceil(height * SCALE)), Image.Resampling.BOX)


def _paint(draw: ImageDraw.ImageDraw, shape: Shape, factor: int) -> None:
    if isinstance(shape, Rect):
        box = [value * factor for value in (shape.x, shape.y, shape.x + shape.width, shape.y + shape.height)]
        draw.rounded_rectangle(box, shape.radius * factor, shape.fill, shape.stroke, width=factor)
    elif isinstance(shape, Text):
        anchor = {"start": "ls", "middle": "ms", "end": "rs"}[shape.anchor]
        font = _font(round(shape.size * factor), shape.bold)
        draw.text((shape.x * factor, shape.y * factor), printable(shape.text), shape.color, font, anchor)
    else:
        (x2, y2), head = _shaft(shape)
        ends = [value * factor for value in (shape.x1, shape.y1, x2, y2)]
        draw.line(ends, shape.color, width=max(1, round(shape.width * factor)))
        if head:
            draw.polygon([(x * factor, y * factor) for x, y in head], shape.color)


def _shaft(line: Line) -> tuple[tuple[float, float], list[tuple[float, float]]]:
    """Where the line itself ends, and the corners of its head; without a head []."""
    length = math.hypot(line.x2 - line.x1, line.y2 - line.y1)
    if not line.head or length == 0:
        return (line.x2, line.y2), []
    dx, dy = (line.x2 - line.x1) / length, (line.y2 - line.y1) / length
    long, half = 7 + line.width, 3.5 + line.width / 2
    x, y = line.x2 - dx * long, line.y2 - dy * long
    return (x + dx, y + dy), [(line.x2, line.y2), (x - dy * half, y + dx * half), (x + dy * half, y - dx * half)]


@lru_cache(maxsize=16)
def _font(size: int, bold: bool) -> ImageFont.FreeTypeFont:
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    # The other engine is not in every build of PIL, and refuses some texts.
    return ImageFont.truetype(folder / name, size, layout_engine=ImageFont.Layout.BASIC)
