"""The stages that a graph may name: what each takes and gives, whether it remembers, and how it is built.

A new stage is a class in `operators/` and an entry here. A network that remembers (IAI: `identify`; TLTM: `previous`
and `relate`; CiCo: `windows`, `tubes` and `track_tubes`) gets entries of its own with `stateful=True`, which stand
where `heads` stands; nothing else changes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from operators.association import Associate
from operators.clip_tracking import ClipTrackConfig
from operators.decode import Decode, DecodeConfig
from operators.detectors import DETECTORS
from operators.errors import ConfigError
from operators.find_tubes import ClipBatchConfig, FindTubes
from operators.identify import Identify
from operators.identity_memory import IdentifyConfig
from operators.live.stage import LiveConfig, Receive
from operators.masks import EncodeMasks
from operators.matching import AssociateConfig, Association, Rule
from operators.neighbours import Neighbours, NeighboursConfig
from operators.network import Backbone, BatchConfig, Heads, Network
from operators.preprocess import Preprocess
from operators.previous import Previous
from operators.records import (
    ClipFeatures,
    ClipTubes,
    Features,
    Frame,
    FrameDetections,
    FrameTracks,
    Image,
    Pull,
)
from operators.relate import ByBoxes, ByEdges, Relate, RelateConfig, RelateRule
from operators.track_tubes import TrackTubes
from operators.windows import Windows, WindowsConfig
from pipelines.graph import Graph, RunContext, StageKind
from pipelines.networks import RELATED, NetworkSpec, default_graph, load_network

TLTM_GRAPH, BASELINE_GRAPH = "configs/graphs/offline_tltm.yaml", "configs/graphs/offline_centermask.yaml"


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


def _receive(settings: LiveConfig, context: RunContext) -> Receive:
    return Receive(settings)


def _preprocess(settings: PreprocessConfig, context: RunContext) -> Preprocess:
    return Preprocess(_spec(context).config.input, str(choose_device(context.device)), settings.threads)


def _has_network(settings: BatchConfig, context: RunContext) -> None:
    _spec(context)


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
    spec = _for_heads(settings, context)
    network, device = _network(context)
    return Heads(network, settings, DETECTORS[spec.name].of(spec.detect), device)


def _for_heads(settings: BatchConfig, context: RunContext) -> NetworkSpec:
    spec = _spec(context)
    detector = DETECTORS[spec.name]
    if detector.remembers:
        raise ConfigError(
            f"{spec.where}: '{spec.name}' remembers past frames before its heads, so the graph needs the stage "
            f"'identify' instead of 'heads' and 'associate'. Take --graph configs/graphs/offline_iai.yaml."
        )
    if detector.clips:
        raise ConfigError(
            f"{spec.where}: '{spec.name}' speaks of clips, so the graph needs the stages 'windows', 'tubes' and "
            f"'track_tubes' instead of 'heads' and 'associate'. Take --graph {default_graph(spec)}."
        )
    if spec.fuses:
        raise ConfigError(
            f"{spec.where}: '{spec.name}' fuses each frame with the one before, so the graph needs the stages "
            f"'previous' and 'relate' instead of 'heads' and 'associate'. Take --graph {TLTM_GRAPH}."
        )
    return spec


def _previous(settings: NoSettings, context: RunContext) -> Previous:
    _for_previous(settings, context)
    return Previous(choose_device(context.device))


def _for_previous(settings: NoSettings, context: RunContext) -> None:
    spec = _spec(context)
    if not spec.fuses:
        raise ConfigError(
            f"{spec.where}: the graph has a 'previous' stage, but this network fuses no frame with the one before. "
            f"Take --graph {BASELINE_GRAPH}, or a network such as tltm with model.fuser set, and its weights."
        )


def _relate(settings: RelateConfig, context: RunContext) -> Relate:
    spec, name = _for_relate(settings, context)
    network, device = _network(context)
    if name == "boxes":
        rule = ByBoxes(settings.boxes)
    else:
        edges = settings.edges_of(spec.edges)
        if not getattr(spec.config, "relations", False):    # all edges count the same then (specification 4.3)
            edges = replace(edges, edge_weight=0.0)
        rule = ByEdges(network.edges, edges, device)
    return Relate(network, settings, DETECTORS[spec.name].of(spec.detect), rule, device, spec.fuses)


def _for_relate(settings: RelateConfig, context: RunContext) -> tuple[NetworkSpec, RelateRule]:
    return _spec(context), _relate_rule(settings, _spec(context))


def _identify(settings: IdentifyConfig, context: RunContext) -> Identify:
    spec = _for_identify(settings, context)
    network, device = _network(context)
    return Identify(network, settings, DETECTORS[spec.name].of(spec.detect), device, spec.detect.min_visible)


def _for_identify(settings: IdentifyConfig, context: RunContext) -> NetworkSpec:
    spec = _spec(context)
    if not DETECTORS[spec.name].remembers:
        raise ConfigError(
            f"{spec.where}: the graph has an 'identify' stage, but '{spec.name}' remembers nothing. Take a graph with "
            f"'heads' and 'associate', as configs/graphs/offline.yaml, or name a network such as iai_condinst."
        )
    return spec


def _windows(settings: WindowsConfig, context: RunContext) -> Windows:
    spec = _sees_clips(_spec(context), "windows")
    try:
        return Windows(spec.config.clip_length, settings)
    except ValueError as error:
        raise ConfigError(f"{spec.where}, with this graph: windows: {error}.") from error


def _tubes(settings: ClipBatchConfig, context: RunContext) -> FindTubes:
    spec = _for_tubes(settings, context)
    network, device = _network(context)
    return FindTubes(network, settings, DETECTORS[spec.name].of(spec.detect), device)


def _for_tubes(settings: ClipBatchConfig, context: RunContext) -> NetworkSpec:
    return _sees_clips(_spec(context), "tubes")


def _track_tubes(settings: ClipTrackConfig, context: RunContext) -> TrackTubes:
    return TrackTubes(settings, _for_track_tubes(settings, context).config.masks, choose_device(context.device))


def _for_track_tubes(settings: ClipTrackConfig, context: RunContext) -> NetworkSpec:
    return _sees_clips(_spec(context), "track_tubes")


def _sees_clips(spec: NetworkSpec, stage: str) -> NetworkSpec:
    """The network, for a stage that is there for networks that see clips. Raises ConfigError for another."""
    if not DETECTORS[spec.name].clips:
        raise ConfigError(
            f"{spec.where}: the graph has a '{stage}' stage, but '{spec.name}' sees single frames. Take --graph "
            f"{default_graph(spec)}, or name a network such as cico."
        )
    return spec


def _associate(settings: AssociateConfig, context: RunContext) -> Associate:
    return Associate(settings, _rule_of(context.network))


def _encode_masks(settings: NoSettings, context: RunContext) -> EncodeMasks:
    return EncodeMasks()


def association_of(graph: Graph, network: NetworkSpec | None) -> Association | None:
    """The rule by which a graph gives track ids with this network; None for a graph that has no such stage.

    Raises ConfigError where the network has tracks of another kind, or fuses frames and the graph keeps none.
    """
    settings = [stage.settings for stage in graph.stages]
    for one in settings:
        if isinstance(one, ClipTrackConfig):
            if network is not None:
                _sees_clips(network, "track_tubes")
            return "clips"
        if isinstance(one, RelateConfig) and network is not None:
            _check_reference(graph, network)
            return _relate_rule(one, network)
    rules = [one.rule_for(_rule_of(network)) for one in settings if isinstance(one, AssociateConfig)]
    if rules:
        return rules[-1]
    return "identities" if any(isinstance(one, IdentifyConfig) for one in settings) else None


def _rule_of(network: NetworkSpec | None) -> Rule:
    if network is None:
        return "cosine_iou"
    if DETECTORS[network.name].clips:
        raise ConfigError(
            f"{network.where}: '{network.name}' speaks of clips, whose tracks the stage 'associate' does not give. "
            f"Take --graph {default_graph(network)}."
        )
    if network.association == "identities":
        raise ConfigError(
            f"{network.where}: its tracks are the identities that the network itself says (association: identities), "
            f"so the graph must not have an 'associate' stage. Take --graph configs/graphs/offline_iai.yaml."
        )
    if network.association in RELATED:
        raise ConfigError(
            f"{network.where}: its tracks live in pixels of the network input (association: {network.association}), so "
            f"the graph needs the stage 'relate' instead of 'heads' and 'associate'. Take --graph "
            f"{default_graph(network)}."
        )
    return network.association


def _relate_rule(settings: RelateConfig, network: NetworkSpec) -> RelateRule:
    if not DETECTORS[network.name].relates:
        raise ConfigError(
            f"{network.where}: the graph has a 'relate' stage, which follows the objects of tltm and centermask, not "
            f"those of '{network.name}'. Take --graph {default_graph(network)}."
        )
    rule = network.association if settings.rule == "network" else settings.rule
    if rule not in RELATED:
        raise ConfigError(
            f"{network.where}: the stage 'relate' leaves its rule to the network, whose file says association: {rule}; "
            f"expected edges or boxes. Change it there, or set relate.rule."
        )
    return rule


def _check_reference(graph: Graph, network: NetworkSpec) -> None:
    if network.fuses and not any(stage.kind.build is _previous for stage in graph.stages):
        raise ConfigError(
            f"{network.where}: '{network.name}' fuses each frame with the one before, but the graph has no 'previous' "
            f"stage to keep it. Take --graph {TLTM_GRAPH}."
        )


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
    "receive": StageKind("operator", Pull, Frame, LiveConfig, _receive, stateful=True, mixes=True),
    "preprocess": StageKind("operator", Frame, Image, PreprocessConfig, _preprocess, on_device=True),
    "backbone": StageKind("network", Image, Features, BatchConfig, _backbone, _has_network, on_device=True),
    "neighbours": StageKind("operator", Features, Features, NeighboursConfig, _neighbours, _neighbours,
                            stateful=True),
    "previous": StageKind("operator", Features, Features, NoSettings, _previous, _for_previous, stateful=True,
                          on_device=True, mixes=True),
    "heads": StageKind("network", Features, FrameDetections, BatchConfig, _heads, _for_heads, on_device=True),
    "windows": StageKind("operator", Features, ClipFeatures, WindowsConfig, _windows, _windows, stateful=True,
                         mixes=True),
    "tubes": StageKind("network", ClipFeatures, ClipTubes, ClipBatchConfig, _tubes, _for_tubes, on_device=True),
    "track_tubes": StageKind("operator", ClipTubes, FrameDetections, ClipTrackConfig, _track_tubes, _for_track_tubes,
                             stateful=True, on_device=True, mixes=True),
    "identify": StageKind("network", Features, FrameDetections, IdentifyConfig, _identify, _for_identify, stateful=True,
                          on_device=True, mixes=True),
    "relate": StageKind("network", Features, FrameDetections, RelateConfig, _relate, _for_relate, stateful=True,
                        on_device=True, mixes=True),
    "associate": StageKind("operator", FrameDetections, FrameDetections, AssociateConfig, _associate, _associate,
                           stateful=True),
    "encode_masks": StageKind("operator", FrameDetections, FrameTracks, NoSettings, _encode_masks, on_device=True),
}
"""Written out by hand: the lookup of a graph, the error for a wrong name, and the tests all read it."""
