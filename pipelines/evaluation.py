"""A network over a dataset whose truth is known: run it through the graph, keep the results, and score them.

In:     a network with weights, a YouTube-VIS JSON with annotations, a graph, an executor
Out:    in `out`: <video>/results.json, results.json of all, then scores.json; `Evaluation`
State:  the folder: run again, videos that are done are not run anew. `finished.json` there says which they are, and of
        which network, settings and dataset; another one of these is refused
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from operators.errors import ConfigError, DatasetError, StageError
from operators.formats import Categories, merge_results
from operators.id_switches import SwitchCount, count_switches
from operators.records import StreamEnd
from operators.replacing import replacing
from operators.score_files import write_scores
from operators.sources import find_sources
from operators.youtube_vis import Scores, evaluate
from operators.youtube_vis_data import read_dataset
from operators.youtube_vis_results import read_results
from pipelines.drive import Result
from pipelines.graph import Graph, RunContext, load_graph
from pipelines.networks import NetworkSpec, as_plain, read_checkpoint
from pipelines.outputs import Outputs, SourceSummary
from pipelines.run import Meter, Observer, run
from pipelines.stages import STAGES, association_of

GRAPH = "configs/graphs/offline.yaml"
FINISHED_FILE = "finished.json"
RESULTS_FILE = "results.json"
SCORES_FILE = "scores.json"


@dataclass(frozen=True)
class Evaluation:
    """How good a network is on a dataset."""

    detail: Scores
    """All numbers; `scores` has the twelve over all categories."""
    switches: SwitchCount
    association: str
    """The rule that gave the tracks."""
    frames_per_s: float
    """Of the videos that were run now; 0 where all were done before."""

    @property
    def scores(self) -> dict[str, float]:
        """AP, AP50, AP75, AR1, AR10 and so on, 0..1; -1 where nothing can be said."""
        return self.detail.overall


@dataclass(frozen=True, kw_only=True)
class EvaluationPlan:
    """How to run it."""

    graph: str = GRAPH
    settings: tuple[str, ...] = ()
    """Overrides of the graph, as `associate.min_match=0.5`."""
    executor: Literal["local", "ray"] = "local"
    address: str | None = None
    """Of the Ray cluster; null starts one here."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    num_cpus: int | None = None
    """Torch's threads in each group of stages; by default what the graph says."""


def evaluate_network(
    spec: NetworkSpec, annotations: Path, image_root: Path, out: Path, plan: EvaluationPlan | None = None,
    observer: Observer | None = None,
) -> Evaluation:
    """Run `spec` over the videos of the dataset that are not yet done in `out`, then score all of them.

    Raises CheckpointError for weights that do not fit, DatasetError for a dataset that cannot be used, ConfigError for
    a folder of another evaluation, StageError where a video could not be run to its end; videos done stay done.
    """
    plan = plan or EvaluationPlan()
    dataset = read_dataset(annotations, image_root=image_root)
    graph = _on(load_graph(plan.graph, STAGES, list(plan.settings)), plan.num_cpus)
    rule = association_of(graph, spec)
    categories = Categories.numbered(read_checkpoint(spec).classes)
    sources, errors = find_sources([str(annotations)], image_root=str(image_root))
    if errors:
        raise DatasetError(str(errors[0])) from errors[0]
    finished = Finished.open(out, _mark(spec, graph, annotations), observer or Observer())
    remaining = [source for source in sources if source.name not in finished.names]
    outputs = Outputs(out, ("ytvis",), categories, association=rule)
    summary = run(remaining, [], graph, RunContext(spec, plan.device), outputs, plan.executor, plan.address, finished)
    if summary.signal is not None:
        raise KeyboardInterrupt
    _refuse([row for row in summary.sources if row.state != "done"], len(sources), spec, annotations)
    merge_results([out / source.name / RESULTS_FILE for source in sources], out / RESULTS_FILE)
    results = read_results(out / RESULTS_FILE)
    found = Evaluation(evaluate(dataset, results), count_switches(dataset, results).total, str(rule),
                       summary.frames / summary.wall_s if summary.frames else 0.0)  # fmt: skip
    write_scores(out / SCORES_FILE, {
        **found.detail.as_json(), "association": found.association, "id_switches": found.switches.switches,
        "matched": found.switches.matched, "visible": found.switches.visible,
    })  # fmt: skip
    return found


@dataclass
class Finished(Observer):
    """The videos that are done, on the disk as soon as they are; whatever is watched is passed on."""

    path: Path
    mark: str
    watched: Observer
    names: list[str] = field(default_factory=list)

    @staticmethod
    def open(out: Path, mark: str, watched: Observer) -> Finished:
        """Raises ConfigError for a folder with videos of another network, settings or dataset."""
        path = out / FINISHED_FILE
        if not path.exists():
            return Finished(path, mark, watched)
        try:
            saved = json.loads(path.read_text(encoding="utf-8"))
            same, names = saved["mark"] == mark, [str(name) for name in saved["videos"]]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{path}: damaged: {error}. Remove it to run all videos anew.") from error
        if not same:
            raise ConfigError(f"{out}: holds results of another network, settings or dataset. Name another --out.")
        return Finished(path, mark, watched, names)

    def began(self, expected: int | None) -> None:
        self.watched.began(expected)

    def failed(self, source: SourceSummary) -> None:
        self.watched.failed(source)

    def saw(self, result: Result, meter: Meter) -> None:
        if isinstance(result, StreamEnd) and not result.error:
            self.names.append(result.stream)        # its files are closed by now
            with replacing(self.path) as part:
                part.write_text(json.dumps({"mark": self.mark, "videos": self.names}), encoding="utf-8")
        self.watched.saw(result, meter)


def _mark(spec: NetworkSpec, graph: Graph, annotations: Path) -> str:
    """Of everything that results depend on; how stages are spread over processes and batches is not among them."""
    stages = [[stage.name, type(stage.settings).__name__, as_plain(stage.settings)] for stage in graph.stages]
    settings: list[Any] = [spec.name, as_plain(spec.config), as_plain(spec.detect), spec.association,
                           as_plain(spec.inference), stages]  # fmt: skip
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    for path in (spec.weights, annotations):
        with open(path, "rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()[:16]


def _refuse(bad: Sequence[SourceSummary], num_videos: int, spec: NetworkSpec, annotations: Path) -> None:
    if bad:
        raise StageError(f"{spec.where}: {len(bad)} of {num_videos} videos of {annotations} could not be run to their "
                         f"end, the first is {bad[0].name}: {bad[0].note}")  # fmt: skip


def _on(graph: Graph, num_cpus: int | None) -> Graph:
    """The graph on so many CPUs."""
    if num_cpus is None:
        return graph
    return replace(graph, placement=tuple(replace(group, num_cpus=num_cpus) for group in graph.placement))
