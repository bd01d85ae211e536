"""A network's fused form: the same results within stated bounds, for inference alone, several times faster.

In:     images (B, 3, Hp, Wp) float32; between `features` and `heads`, maps of the form's dtype, channels last
Out:    `features`, `heads` and all else as the network's own; what is predicted is float32
State:  none that changes a result
Limits: norms use their running statistics; there are no gradients
Bounds: against the plain form, R-50 with random weights, 192x320, checked by tests/models/test_fused.py:
            float32    every output within 1e-4 of its largest value
            bfloat16   class probabilities within 0.02, sides of boxes within 4 pixels and 0.2 on average, mask logits
                       within a tenth of their spread (root mean square), embeddings at a cosine above 0.999

What makes it fast: norms folded into convolutions, channels-last maps, half as many bits where the processor computes
with them (models/fused_layers.py), and, on a CPU, nothing computed that no detection asks for. Class logits are always
computed; the towers of box and identity on a level only when a location there passes as a candidate or a detection, and
filters and embeddings for the detections alone. The result is the same, since a location's class score bounds its
product with centre-ness. A GPU computes all of it: its shapes stay the same, as graphs need, and it waits for no one.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from models.condinst import CondInst, DenseOutputs
from models.fpn import channels_last
from models.fused_layers import Form, can_prepack, lower
from models.iai import IAI
from models.on_demand import heads_on_demand

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class InferenceConfig:
    """In which form a network runs. The default is exact."""

    form: Literal["plain", "fused"] = "plain"
    """`plain` computes as in training, in float32. `fused` is several times faster and agrees within the bounds of
    tests/models/test_fused.py: to 1e-4 in float32, to about a hundredth in half as many bits."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Of the fused form. `auto`: bfloat16 where the device has instructions for it; else float16 on a GPU, float32 on a
    CPU. float16 is finer than bfloat16 and overflows beyond 65504."""
    compile: bool = False
    """Of the fused form, on a GPU: fewer launches through CUDA graphs, for minutes of compiling per size of frame."""

    def __post_init__(self) -> None:
        if self.form == "plain" and (self.dtype != "auto" or self.compile):
            raise ValueError("dtype and compile are of the fused form; set form: fused, or leave them out")


def inference_form(network: nn.Module, config: InferenceConfig) -> nn.Module:
    """The network in evaluation mode, in the form asked for. Raises ValueError: its device cannot (see `fuse`)."""
    if config.form == "plain":
        return network.eval()
    dtype = None if config.dtype == "auto" else getattr(torch, config.dtype)
    fused = fuse(network, dtype, config.compile)
    if dtype is None and fused.form.dtype == torch.float32:
        log.warning("This processor has no bfloat16 instructions; the fused form computes in float32.")
    return fused


def has_bf16_instructions() -> bool:
    """Whether this CPU multiplies bfloat16 (AVX512-BF16 or AMX); without, it is slower than float32."""
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, check)() for check in checks if hasattr(torch.cpu, check))


def best_dtype(device: torch.device) -> torch.dtype:
    """The fastest on `device` of those that are exact enough."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    return torch.bfloat16 if has_bf16_instructions() else torch.float32


def fuse(network: nn.Module, dtype: torch.dtype | None = None, compiled: bool = False) -> Fused:
    """A fused copy of a network on the network's device, for inference; the network itself stays as it is.

    `dtype` None takes `best_dtype`. `compiled` hands it to torch.compile, which replays one CUDA graph where hundreds
    of kernels were launched; the first call of each input size then takes minutes.
    Raises ValueError: the device does not compute in `dtype`; `compiled` on a CPU, where it was slower (0.45 s a frame
    after 36 s of compiling); a norm that cannot be folded.
    """
    device = next(network.parameters()).device
    dtype = best_dtype(device) if dtype is None else dtype
    if device.type == "cpu":
        if dtype == torch.float16 or (dtype == torch.bfloat16 and not has_bf16_instructions()):
            raise ValueError(f"this processor has no instructions for {dtype}; set dtype: auto, or float32")
        if compiled:
            raise ValueError("compile is for GPUs; on a CPU the fused form is faster without. Set compile: false")
    network = copy.deepcopy(network).eval().requires_grad_(False)
    form = Form(dtype, prepacked=device.type == "cpu" and can_prepack(dtype) and can_prepack(torch.float32))
    if not isinstance(network, CondInst):
        return Fused(network, form, compiled, trunk_only=True).eval()
    if hasattr(network, "proxies"):
        network.proxies = None
    whole = getattr(network, "calibration", None) is not None or isinstance(network, IAI)
    on_demand = device.type == "cpu" and not whole
    return (FusedOnDemand(network, form) if on_demand else Fused(network, form, compiled)).eval()


class Fused(nn.Module):
    """Any network of models/, its parts replaced by fused ones. What is not `features` or `heads` is its own."""

    def __init__(self, network: nn.Module, form: Form, compiled: bool = False, trunk_only: bool = False) -> None:
        """`trunk_only` fuses backbone and pyramid, and gives the heads float32: for two stages, whose regions are few
        and of another number in every frame."""
        super().__init__()
        self.form, self.trunk_only = form, trunk_only
        if trunk_only:
            network.backbone, network.fpn = lower(network.backbone, form), lower(network.fpn, form)
        self.network = network if trunk_only else lower(network, form)
        self.compiled = compiled
        self._features = self._graph(network.features) if compiled else network.features
        self._heads = self._graph(network.heads) if compiled and not trunk_only else network.heads

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("network"), name)

    def describe(self) -> str:
        """What it is, for a log: `fused, bfloat16, weights laid out once`."""
        words = ["fused", str(self.form.dtype).removeprefix("torch.")]
        words += ["weights laid out once"] * self.form.prepacked + ["compiled"] * self.compiled
        return ", ".join(words)

    def features(self, images: Tensor) -> tuple[Tensor, ...]:
        levels = self._features(images.to(self.form.dtype, memory_format=torch.channels_last))
        return tuple(level.float() for level in levels) if self.trunk_only else levels

    def heads(self, levels: tuple[Tensor, ...], *references: Any) -> Any:
        if self.trunk_only:         # where a network remembers, the fused pyramid comes after `features`
            levels = tuple(level.float() for level in levels)
        return self._heads(channels_last(levels), *references)

    def _graph(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Compiled for one input size at a time; a CUDA graph writes its next results over the last, so they are
        copied out."""
        replay = torch.compile(function, mode="reduce-overhead", dynamic=False)
        return lambda *inputs: _copied(replay(*inputs))


class FusedOnDemand(Fused):
    """CondInst or CrossVIS on a CPU: heads that compute what is asked for (models/on_demand.py)."""

    def heads(self, levels: tuple[Tensor, ...]) -> DenseOutputs:
        return heads_on_demand(self.network, channels_last(levels))


def _copied(outputs: Any) -> Any:
    """Every tensor of tuples and dataclasses, copied."""
    if isinstance(outputs, Tensor):
        return outputs.clone()
    if isinstance(outputs, tuple):
        return tuple(_copied(value) for value in outputs)
    if is_dataclass(outputs):
        return replace(outputs, **{f.name: _copied(getattr(outputs, f.name)) for f in fields(outputs)})
    return outputs
