"""The stages that a graph may name: what each takes and gives, whether it remembers, and how it is built.

A new stage is a class in `operators/` and an entry here. A network that remembers (IAI: `identify`; TLTM) gets an entry
of its own with `stateful=True`, and stands where `heads` stands; nothing else changes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from operators.association import Associate
from operators.decode import Decode, DecodeConfig
from operators.detectors import DETECTORS
from operators.errors import ConfigError
from operators.identify import Identify
from operators.identity_memory import IdentifyConfig
from operators.masks import EncodeMasks
from operators.matching import AssociateConfig, Association, Rule
from operators.neighbours import Neighbours, NeighboursConfig
from operators.network import Backbone, BatchConfig, Heads, Network
from operators.preprocess import Preprocess
from operators.records import Features, Frame, FrameDetections, FrameTracks, Image, Pull
from pipelines.graph import Graph, RunContext, StageKind
from pipelines.networks import NetworkSpec, load_network


@dataclass(frozen=True, kw_only=True)
class PreprocessConfig:
    """Size, colour order and normalisation are the network's (`model.input` in its file)."""

    threads: int = 1
    """DALI's threads. More: faster where frames are large, less left for the network."""

    def __post_init__(self) -> None:
        if not 1 <= self.threads <= 64:
            raise ValueError(f"threads is {self.threads}, expected 1 to 64.")


@dataclass(frozen=True, kw_only=True)
class NoSettings:
    """A stage without a choice."""


def choose_device(device: str) -> torch.device:
    """'auto' is the GPU where this process sees one. Raises: ConfigError for 'cuda' without a GPU."""
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: torch sees no GPU here. Use --device auto or cpu, or install torch for CUDA.")
    return torch.device("cuda" if device != "cpu" and torch.cuda.is_available() else "cpu")


def _decode(settings: DecodeConfig, context: RunContext) -> Decode:
    return Decode(settings)


def _preprocess(settings: PreprocessConfig, context: RunContext) -> Preprocess:
    return Preprocess(_spec(context).config.input, str(choose_device(context.device)), settings.threads)


def _backbone(settings: BatchConfig, context: RunContext) -> Backbone:
    network, device = _network(context)
    return Backbone(network, settings, device)


def _neighbours(settings: NeighboursConfig, context: RunContext) -> Neighbours:
    spec = _spec(context)
    if getattr(spec.config, "calibration", None) is None:
        raise ConfigError(
            f"{spec.where}: the graph has a 'neighbours' stage, but this network has no calibration to use what it "
            f"gives. Take the stage out of the graph, or name a network with model.calibration set, and its weights."
        )
    return Neighbours(settings)


def _heads(settings: BatchConfig, context: RunContext) -> Heads:
    spec = _spec(context)
    detector = DETECTORS[spec.name]
    if detector.remembers:
        raise ConfigError(
            f"{spec.where}: '{spec.name}' remembers past frames before its heads, so the graph needs the stage "
            f"'identify' instead of 'heads' and 'associate'. Take --graph configs/graphs/offline_iai.yaml."
        )
    if detector.clips:
        raise ConfigError(
            f"{spec.where}: '{spec.name}' speaks of clips, and no stage of a graph gives it windows of frames. It can "
            f"be trained and its weights imported; to run one, name another network."
        )
    network, device = _network(context)
    return Heads(network, settings, detector.of(spec.detect), device)


def _identify(settings: IdentifyConfig, context: RunContext) -> Identify:
    spec = _spec(context)
    detector = DETECTORS[spec.name]
    if not detector.remembers:
        raise ConfigError(
            f"{spec.where}: the graph has an 'identify' stage, but '{spec.name}' remembers nothing. Take a graph with "
            f"'heads' and 'associate', as configs/graphs/offline.yaml, or name a network such as iai_condinst."
        )
    network, device = _network(context)
    return Identify(network, settings, detector.of(spec.detect), device, spec.detect.min_visible)


def _associate(settings: AssociateConfig, context: RunContext) -> Associate:
    return Associate(settings, _rule_of(context.network))


def _encode_masks(settings: NoSettings, context: RunContext) -> EncodeMasks:
    return EncodeMasks()


def association_of(graph: Graph, network: NetworkSpec | None) -> Association | None:
    """The rule by which a graph gives track ids with this network; None for a graph that has no such stage."""
    settings = [stage.settings for stage in graph.stages]
    rules = [one.rule_for(_rule_of(network)) for one in settings if isinstance(one, AssociateConfig)]
    if rules:
        return rules[-1]
    return "identities" if any(isinstance(one, IdentifyConfig) for one in settings) else None


def _rule_of(network: NetworkSpec | None) -> Rule:
    if network is None:
        return "cosine_iou"
    if network.association == "identities":
        raise ConfigError(
            f"{network.where}: its tracks are the identities that the network itself says (association: identities), "
            f"so the graph must not have an 'associate' stage. Take --graph configs/graphs/offline_iai.yaml."
        )
    if network.association == "edges":
        raise ConfigError(
            f"{network.where}: its tracks follow the scores of its own object graph (association: edges), which the "
            f"stage 'associate' does not compute. It can be trained and its weights imported; to run one, name another."
        )
    return network.association


def _spec(context: RunContext) -> NetworkSpec:
    if context.network is None:
        raise ConfigError("the graph has network stages, but no network is named. Name one with --network.")
    return context.network


def _network(context: RunContext) -> tuple[Network, torch.device]:
    """The weights on their device, loaded once for all stages of a process."""
    device = choose_device(context.device)
    return load_network(_spec(context), device), device


STAGES = {
    "decode": StageKind("operator", Pull, Frame, DecodeConfig, _decode, stateful=True, mixes=True),
    "preprocess": StageKind("operator", Frame, Image, PreprocessConfig, _preprocess, on_device=True),
    "backbone": StageKind("network", Image, Features, BatchConfig, _backbone, on_device=True),
    "neighbours": StageKind("operator", Features, Features, NeighboursConfig, _neighbours, stateful=True),
    "heads": StageKind("network", Features, FrameDetections, BatchConfig, _heads, on_device=True),
    "identify": StageKind("network", Features, FrameDetections, IdentifyConfig, _identify, stateful=True,
                          on_device=True, mixes=True),
    "associate": StageKind("operator", FrameDetections, FrameDetections, AssociateConfig, _associate, stateful=True),
    "encode_masks": StageKind("operator", FrameDetections, FrameTracks, NoSettings, _encode_masks, on_device=True),
}
"""Written out by hand: the lookup of a graph, the error for a wrong name, and the tests all read it."""
