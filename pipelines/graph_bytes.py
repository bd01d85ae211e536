"""What a frame carries from stage to stage, measured: a few frames of a generated clip go through the real stages.

In:     a Graph, a RunContext; the clip's size and number of frames
Out:    an Edge for every stage: bytes of a frame when it left, and of which arrays they are
State:  none; weights that had to be made up, and the clip, lie in a temporary folder while it runs
Limits: MAX_FRAMES frames, all of which are in memory at once
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models import NETWORKS
from operators.detectors import DETECTORS
from operators.errors import ConfigError, StageError
from operators.identity_memory import IdentifyConfig
from operators.matching import AssociateConfig
from operators.neighbours import NeighboursConfig
from operators.records import Features, FrameInfo, Pull
from operators.relate import RelateConfig
from operators.shapes import ShapesConfig, generate_clip
from operators.sources import Source
from operators.video_writer import write_video
from operators.weights import save_weights
from operators.windows import WindowsConfig
from pipelines.graph import Graph, RunContext
from pipelines.group import StageGroup
from pipelines.networks import NetworkSpec, as_plain
from pipelines.weight import num_bytes

MAX_FRAMES = 64
FRAMES = 4
SEED = 7
RANDOM_INSTANCES = 10
"""Instances a frame of a network with random weights, at most: it finds something everywhere, and of no use."""


@dataclass(frozen=True)
class Part:
    """A field of a record, all arrays below it together."""

    name: str
    shape: str
    """'3×384×640 float32'; of several '256×48×80, 256×24×40 float32'."""
    bytes: int


@dataclass(frozen=True)
class Edge:
    """What a stage gave for one frame."""

    stage: str
    record: str
    """The type's name."""
    frames: int
    bytes: float
    """Of a frame, in the mean."""
    most: int
    """Of the frame that carried most."""
    parts: tuple[Part, ...]
    """Of that frame, the largest first."""


def measure(
    graph: Graph, context: RunContext, source: Source, progress: Callable[[int, int], None] | None = None
) -> tuple[Edge, ...]:
    """An edge for every stage, in order. `progress` is told (stages done, stages).

    Raises: ConfigError or CheckpointError where a stage cannot be built; StageError if one fails or gives no frame.
    """
    edges: list[Edge] = []
    records: list[Any] = []
    for number, spec in enumerate(graph.stages):
        if progress:
            progress(number, len(graph.stages))
        group = StageGroup((spec,), context)
        records = _pulled(group, source) if number == 0 else _given(group, records, source, closing=True)
        if not records:
            raise StageError(f"{spec.name}, stream '{source.name}': gave no frame of the clip that was to be weighed. "
                             f"Of a live graph add --no-bytes.")  # fmt: skip
        edges.append(_edge(spec.name, records))
    return tuple(edges)


def network_for(graph: Graph) -> tuple[str, tuple[str, ...]]:
    """A file of configs/networks, and changes to it, that run in this graph: the smallest that its stages allow."""
    has = {type(stage.settings) for stage in graph.stages}
    if IdentifyConfig in has:
        by_overlap = ("association=cosine_iou", "model.use_id=false", "weights=null")
        return "configs/networks/iai_tiny.yaml", by_overlap if AssociateConfig in has else ()
    if NeighboursConfig in has:
        return "configs/networks/crossvis_r50_calibrated.yaml", ()
    if RelateConfig in has:
        fused = any(stage.kind.takes is stage.kind.gives is Features for stage in graph.stages)
        return "configs/networks/tltm_tiny.yaml", () if fused else ("model.fuser=none",)
    if WindowsConfig in has:
        return "configs/networks/mini_cico.yaml", ()
    return "configs/networks/tiny.yaml", ()


def frames_for(graph: Graph) -> int:
    """Enough for a frame that has all its neighbours, where a stage adds them."""
    spans = [s.settings.past + s.settings.future + 1 for s in graph.stages if isinstance(s.settings, NeighboursConfig)]
    return min(MAX_FRAMES, max([FRAMES, *spans]))


@contextmanager
def generated_clip(width: int, height: int, frames: int) -> Iterator[Source]:
    """An H.264 file of moving shapes, while the context lasts. Raises ConfigError for a size or number out of range."""
    if not 1 <= frames <= MAX_FRAMES:
        raise ConfigError(f"--frames {frames}: expected 1 to {MAX_FRAMES}.")
    config = ShapesConfig(width=width, height=height, num_frames=frames, full_occlusions=0, re_entries=0)
    with tempfile.TemporaryDirectory(prefix="maskstream-") as folder:
        path = write_video(Path(folder) / "clip.mp4", generate_clip(config, SEED, 0).frames, config.fps)
        yield Source("clip", "video", str(path))


@contextmanager
def some_weights(spec: NetworkSpec) -> Iterator[NetworkSpec]:
    """The same network where it has weights; else with random ones, while the context lasts, and no floor of scores."""
    if spec.weights is not None:
        yield spec
        return
    with torch.random.fork_rng(), tempfile.TemporaryDirectory(prefix="maskstream-") as folder:
        torch.manual_seed(SEED)
        path = Path(folder) / "random.safetensors"
        save_weights(path, NETWORKS[spec.name][0](spec.config).state_dict(), spec.name, as_plain(spec.config), ())
        floors: dict[str, Any] = {field.name: 0.0 for field in fields(spec.detect) if field.name.startswith("min_")}
        limit = "most" if DETECTORS[spec.name].clips else "max_per_frame"
        floors[limit] = min(RANDOM_INSTANCES, getattr(spec.detect, limit))
        yield replace(spec, weights=path, detect=replace(spec.detect, **floors))


def _pulled(group: StageGroup, source: Source) -> list[Any]:
    """All of the source: a stage that reads ahead may give fewer frames than it is asked for."""
    records: list[Any] = []
    while given := _given(group, [Pull(source, MAX_FRAMES)], source):  # after the end it gives nothing
        records += given
    return records + _given(group, [], source, closing=True)


def _given(group: StageGroup, records: list[Any], source: Source, closing: bool = False) -> list[Any]:
    given, report = group.process(records, streams=(source.name,), closing=(source.name,) * closing)
    for failure in report.failures:
        raise StageError(failure.reason)
    return given


def _edge(stage: str, records: list[Any]) -> Edge:
    sizes = [num_bytes(record) for record in records]
    largest = records[int(np.argmax(sizes))]
    parts = [part for part in _parts(largest) if part.bytes]
    parts.sort(key=lambda part: -part.bytes)
    return Edge(stage, type(largest).__name__, len(records), sum(sizes) / len(sizes), max(sizes), tuple(parts))


def _parts(record: Any, prefix: str = "") -> Iterator[Part]:
    """The fields of a record, those of a record within it too; FrameInfo, which is small, left out."""
    for field in fields(record):
        value = getattr(record, field.name)
        if isinstance(value, FrameInfo):
            continue
        if is_dataclass(value):
            yield from _parts(value, f"{prefix}{field.name}.")
        else:
            yield Part(f"{prefix}{field.name}", _shape(value), num_bytes(value))


def _shape(value: Any) -> str:
    """Shapes of what is in a field; equal ones are counted, the type of numbers is told once."""
    leaves = list(_leaves(value))
    shapes: dict[str, int] = {}
    for leaf in leaves:
        text = "×".join(map(str, leaf.shape)) or "1"
        shapes[text] = shapes.get(text, 0) + 1
    told = ", ".join(f"{count} of {text}" if count > 1 else text for text, count in shapes.items())
    kinds = ", ".join(dict.fromkeys(str(leaf.dtype).removeprefix("torch.") for leaf in leaves))
    if leaves:
        return f"{told} {kinds}"
    return f"{len(value)} run lengths" if isinstance(value, tuple) and value and isinstance(value[0], dict) else ""


def _leaves(value: Any) -> Iterator[Tensor | np.ndarray]:
    if isinstance(value, (Tensor, np.ndarray)):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _leaves(item)
    elif is_dataclass(value):
        for field in fields(value):
            yield from _leaves(getattr(value, field.name))
