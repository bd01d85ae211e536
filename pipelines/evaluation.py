"""A network over a dataset whose truth is known: run it through the graph, keep the results, and score them.

In:     a network with weights, a YouTube-VIS JSON with annotations or a DAVIS folder, a graph, an executor
Out:    in `out`: <video>/results.json, results.json of all, then scores.json; `Evaluation`. Of DAVIS
        <sequence>/davis/<frame>.png, then scores.json; `DavisScores`
State:  the folder: run again, videos that are done are not run anew. `manifest.json` there says which they are, and of
        which network, settings and dataset; another one of these is refused (manifest.py)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from operators import davis
from operators.davis import DavisScores, Progress
from operators.davis_data import find_sequences, find_truth
from operators.errors import DatasetError, StageError
from operators.formats import Categories
from operators.id_switches import SwitchCount, count_switches
from operators.matching import Association
from operators.score_files import write_scores
from operators.sinks import SinkConfig
from operators.sources import Source, find_sources
from operators.youtube_vis import Scores, evaluate
from operators.youtube_vis_data import Dataset, read_dataset
from operators.youtube_vis_results import read_results
from pipelines.drive import Watch
from pipelines.graph import Graph, RunContext, load_graph
from pipelines.manifest import Manifest, digest_of
from pipelines.mark import mark_of
from pipelines.networks import NetworkSpec, default_graph, read_checkpoint
from pipelines.outputs import Outputs
from pipelines.run import Observer, replicated, run
from pipelines.stages import STAGES, association_of
from pipelines.stream_outputs import SourceSummary

GRAPH = "configs/graphs/offline.yaml"
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


@dataclass(frozen=True)
class DavisRun:
    """Results of DAVIS sequences, to be scored."""

    truth: Path
    out: Path
    subset: str
    association: str
    """The rule that gave the tracks."""
    frames_per_s: float
    """Of the videos that were run now; 0 where all were done before."""


@dataclass(frozen=True, kw_only=True)
class EvaluationPlan:
    """How to run it."""

    graph: str | None = None
    """A file of configs/graphs; None takes the network's own."""
    settings: tuple[str, ...] = ()
    """Overrides of the graph, as `associate.min_match=0.5`."""
    executor: Literal["local", "ray"] = "local"
    address: str | None = None
    """Of the Ray cluster; null starts one here."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    replicas: int | None = None
    """On Ray: so many times the processes of the graph; None as the graph says."""
    num_cpus: int | None = None
    """Torch's threads in each group of stages; by default what the graph says."""
    sinks: SinkConfig = SinkConfig()
    """How many tracks a video's results may have, and which class is that of a whole track."""
    fresh: bool = False
    """Run all videos anew, also those that are done."""
    trace: bool = False
    metrics: bool = False
    """As in RunContext."""


def evaluate_network(
    spec: NetworkSpec, annotations: Path, image_root: Path, out: Path, plan: EvaluationPlan | None = None,
    observer: Observer | None = None, watches: Sequence[Watch] = (),
) -> Evaluation:
    """Run `spec` over the videos of the dataset that are not yet done in `out`, then score all of them.

    Raises CheckpointError for weights that do not fit, DatasetError for a dataset that cannot be used, ConfigError for
    a folder of another evaluation, StageError where a video could not be run to its end; videos done stay done.
    """
    dataset = read_dataset(annotations, image_root=image_root)
    sources, errors = find_sources([str(annotations)], image_root=str(image_root))
    if errors:
        raise DatasetError(str(errors[0])) from errors[0]
    work = _Work(spec, annotations, sources, "ytvis", _videos_of(dataset))
    with _ran(work, out, plan or EvaluationPlan(), observer, watches) as (rule, rate):
        results = read_results(out / RESULTS_FILE)
        found = Evaluation(evaluate(dataset, results), count_switches(dataset, results).total, str(rule), rate)
        write_scores(out / SCORES_FILE, {
            **found.detail.as_json(), "association": found.association, "id_switches": found.switches.switches,
            "matched": found.switches.matched, "visible": found.switches.visible,
        })  # fmt: skip
    return found


def run_davis(
    spec: NetworkSpec, truth: Path, image_root: Path | None, out: Path, plan: EvaluationPlan | None = None,
    observer: Observer | None = None, watches: Sequence[Watch] = (), *, subset: str = "val",
) -> DavisRun:
    """Run `spec` over the sequences of a DAVIS folder (operators/davis_data.py says what that is) that are not yet done
    in `out`. Raises as `evaluate_network`."""
    told = find_truth(truth, image_root, subset)
    sources, errors = find_sources([str(told.images / name) for name in told.names])
    if errors:
        raise DatasetError(str(errors[0])) from errors[0]
    renamed = [name for name, source in zip(told.names, sources, strict=True) if source.name != name]
    if renamed:
        raise DatasetError(f"{told.images}: results of the sequence '{renamed[0]}' cannot be in a folder of that name. "
                           f"Rename it, of letters, digits, '.', '-' and '_'.")  # fmt: skip
    work = _Work(spec, truth, sources, "davis", digest_of([[one.name, one.files] for one in sources]))
    with _ran(work, out, plan or EvaluationPlan(), observer, watches) as (rule, rate):
        return DavisRun(truth, out, subset, str(rule), rate)


def score_davis(ran: DavisRun, progress: Progress | None = None) -> DavisScores:
    """J and F of what a run left, whatever the classes; in scores.json too. `progress` is called with frames scored and
    frames in all. Raises DatasetError."""
    scores = davis.evaluate(find_sequences(ran.truth, ran.out, ran.subset), progress=progress)
    write_scores(ran.out / SCORES_FILE, {**scores.as_json(), "association": ran.association})
    return scores


@dataclass(frozen=True)
class _Work:
    """What is to be run."""

    spec: NetworkSpec
    truth: Path
    sources: list[Source]
    kind: str
    """Of operators.sinks.SINKS: what is scored."""
    videos: str
    """A digest of the dataset: results of two are not mixed."""


@contextmanager
def _ran(
    work: _Work, out: Path, plan: EvaluationPlan, observer: Observer | None, watches: Sequence[Watch]
) -> Iterator[tuple[Association | None, float]]:
    """All videos run, the folder still locked: the rule that gave the tracks, and frames a second, 0 where all were
    done before."""
    spec, sources = work.spec, work.sources
    graph = load_graph(plan.graph or default_graph(spec), STAGES, list(plan.settings))
    graph = replicated(_on(graph, plan.num_cpus), plan.replicas)
    rule = association_of(graph, spec)
    outputs = Outputs(out, (work.kind,), Categories.numbered(read_checkpoint(spec).classes), plan.sinks, rule)
    context = RunContext(spec, plan.device, trace=plan.trace, metrics=plan.metrics)
    with Manifest(out, mark_of(spec, graph, plan.sinks) | {"dataset": work.videos}, plan.fresh) as manifest:
        summary = run(sources, [], graph, context, outputs, plan.executor, plan.address, observer, manifest, watches)
        if summary.signal is not None:
            raise KeyboardInterrupt
        _refuse([row for row in summary.sources if row.state != "done"], len(sources), spec, work.truth)
        yield rule, summary.frames / summary.wall_s if summary.frames else 0.0


def _videos_of(dataset: Dataset) -> str:
    """Which videos these are: results of two datasets are not mixed. Their truth may change, and be scored anew."""
    return digest_of([[video.id, video.file_names] for video in dataset.videos])


def _refuse(bad: Sequence[SourceSummary], num_videos: int, spec: NetworkSpec, annotations: Path) -> None:
    if bad:
        raise StageError(f"{spec.where}: {len(bad)} of {num_videos} videos of {annotations} could not be run to their "
                         f"end, the first is {bad[0].name}: {bad[0].note}")  # fmt: skip


def _on(graph: Graph, num_cpus: int | None) -> Graph:
    """The graph on so many CPUs."""
    if num_cpus is None:
        return graph
    return replace(graph, placement=tuple(replace(group, num_cpus=num_cpus) for group in graph.placement))
