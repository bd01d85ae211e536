"""A network over a dataset whose truth is known: run it through the graph in this process, and score what comes out.

In:     a network with weights, a YouTube-VIS JSON with annotations, a graph
Out:    `Evaluation`: AP and AR of the YouTube-VIS protocol, ID switches; results.json of every video in `out`
State:  none
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from operators.errors import DatasetError, StageError
from operators.formats import Categories
from operators.id_switches import SwitchCount, count_switches
from operators.sources import find_sources
from operators.youtube_vis import evaluate
from operators.youtube_vis_data import read_dataset
from operators.youtube_vis_results import read_results
from pipelines.graph import Graph, RunContext, load_graph
from pipelines.networks import NetworkSpec, read_checkpoint
from pipelines.outputs import Outputs
from pipelines.run import run
from pipelines.stages import STAGES, association_of

GRAPH = "configs/graphs/offline.yaml"


@dataclass(frozen=True)
class Evaluation:
    """How good a network is on a dataset."""

    scores: dict[str, float]
    """AP, AP50, AP75, AR1, AR10 and so on, 0..1; -1 where nothing can be said."""
    switches: SwitchCount
    association: str
    """The rule that gave the tracks."""
    frames_per_s: float


def evaluate_network(
    spec: NetworkSpec, annotations: Path, image_root: Path, out: Path, *,
    device: Literal["auto", "cpu", "cuda"] = "auto", num_cpus: int | None = None, graph: str = GRAPH,
) -> Evaluation:
    """Run `spec` over all videos of the dataset with its own rule of association, in this process, and score it.

    `num_cpus` are torch's threads; by default all that this process may use. Raises CheckpointError for weights that do
    not fit, DatasetError for a dataset that cannot be used, StageError where a video could not be run to its end.
    """
    dataset = read_dataset(annotations, image_root=image_root)
    plan = _on(load_graph(graph, STAGES), num_cpus)
    rule = association_of(plan, spec)
    categories = Categories.numbered(read_checkpoint(spec).classes)
    sources, errors = find_sources([str(annotations)], image_root=str(image_root))
    if errors:
        raise DatasetError(str(errors[0])) from errors[0]
    summary = run(sources, errors, plan, RunContext(spec, device), Outputs(out, ("ytvis",), categories,
                                                                           association=rule))
    if summary.signal is not None:
        raise KeyboardInterrupt
    if bad := [row for row in summary.sources if row.state != "done"]:
        raise StageError(f"{spec.where}: {len(bad)} of {len(summary.sources)} videos of {annotations} could not be run "
                         f"to their end, the first is {bad[0].name}: {bad[0].note}")
    results = read_results(out / "results.json")
    switches = count_switches(dataset, results).total
    rate = summary.frames / summary.wall_s
    return Evaluation(evaluate(dataset, results).overall, switches, str(rule), rate)


def _on(graph: Graph, num_cpus: int | None) -> Graph:
    """The graph on so many CPUs."""
    if num_cpus is None:
        return graph
    return replace(graph, placement=tuple(replace(group, num_cpus=num_cpus) for group in graph.placement))
