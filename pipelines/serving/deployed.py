"""Settings -> what replicas are made with: the graph with all amounts known, and the sources of streams.

In:     ServeConfig; CPUs and GPUs to be shared out
Out:    Deployed; for each stream what fills its queue
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from operators.decode import DecodeConfig
from operators.live.camera import Camera
from operators.live.pushed import Pushed
from operators.live.queue import LiveQueue
from operators.live.stage import LiveConfig
from pipelines.graph import Graph, RunContext, load_graph
from pipelines.networks import default_graph, read_network
from pipelines.run import replicated
from pipelines.serving.config import ServeConfig
from pipelines.serving.owned import LiveSource
from pipelines.serving.streams import StreamSpec
from pipelines.stages import STAGES

LIVE_GRAPHS = {
    "configs/graphs/offline.yaml": "configs/graphs/live.yaml",
    "configs/graphs/offline_cico.yaml": "configs/graphs/live_cico.yaml",
    "configs/graphs/offline_tltm.yaml": "configs/graphs/live_tltm.yaml",
}
"""In place of what a network runs files on."""


@dataclass(frozen=True)
class Deployed:
    """A graph whose amounts are known, and what its stages share. Travels to every replica."""

    graph: Graph
    context: RunContext


def deployed(config: ServeConfig, num_cpus: float, num_gpus: float) -> Deployed:
    """Network and graph, checked; of amounts that are 'auto' a share of what there is.

    Raises: ConfigError, GraphError.
    """
    network, changes = [], []
    for change in config.set:
        prefix, dot, rest = change.strip().partition(".")
        (network.append(rest) if dot and prefix == "network" else changes.append(change))
    spec = read_network(config.network, tuple(network))
    if spec.weights is not None:
        spec = replace(spec, weights=spec.weights.absolute())
    file = config.graph or default_graph(spec)
    graph = live(load_graph(LIVE_GRAPHS.get(file, file), STAGES, changes))
    context = RunContext(spec, config.device)
    graph.check(context)
    return Deployed(replicated(graph, config.replicas).placed(num_cpus, num_gpus), context)


class FromClient(Pushed):
    """A pushed source as the engine holds all sources."""

    def start(self) -> None:
        """The client begins, not the server."""


def live(graph: Graph) -> Graph:
    """The same graph with `receive` in the place of `decode`, under the same name: it stands in the placement."""
    first, *others = graph.stages
    if isinstance(first.settings, DecodeConfig):
        first = replace(first, kind=STAGES["receive"], settings=LiveConfig())
    return replace(graph, stages=(first, *others))


def source_of(config: ServeConfig, spec: StreamSpec, queue: LiveQueue) -> LiveSource:
    """What fills a stream's queue. Raises ConfigError, NotAllowed."""
    if spec.url is None:
        return FromClient(spec.id, config.push, queue)
    allow = config.own_allow if config.cameras.get(spec.id) == spec.url else config.allow
    return Camera(spec.id, spec.url, config.camera, allow, queue)
