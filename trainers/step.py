"""Steps 3 and 4 of training: one update, read from top to bottom.

In:     a batch of pairs or clips, or several, the network, its optimiser, the step's number
Out:    the parts of the loss, as numbers
State:  network, optimiser and `Average` (exponential moving average of the weights) change in place
Source: CrossVIS specification 3.7: SGD with linear warm-up and step decays, no weight decay on norms; IAI specification
        3.4: AdamW, weight decay on everything, parts with rates of their own. AdamW with a cosine is there for training
        small networks from scratch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from models.norms import FrozenBatchNorm2d
from models.targets import ClipBatch, PairBatch, StillBatch

Batch = StillBatch | PairBatch | ClipBatch

NORMS = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm, FrozenBatchNorm2d)


@dataclass(frozen=True, kw_only=True)
class PartConfig:
    """A part of the network with rates of its own."""

    contains: str
    """Parameters whose dotted name contains this. `backbone` catches `association.backbone_projector.weight` too."""
    learning_rate: float = 1.0
    """Multiplies that of the rest. Below 1 protects pre-trained weights."""
    weight_decay: float = 1.0
    """Multiplies that of the rest."""

    def __post_init__(self) -> None:
        if not self.contains:
            raise ValueError("contains is empty, expected a piece of the parameters' names")
        if self.learning_rate <= 0 or self.weight_decay < 0:
            raise ValueError(f"'{self.contains}': learning_rate must be positive, weight_decay not negative")


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """The defaults are CrossVIS as released, for 16 pairs a step."""

    name: Literal["sgd", "adamw"] = "sgd"
    learning_rate: float = 0.005
    """After warm-up. Higher: faster, until it diverges; scales with the batch."""
    weight_decay: float = 1e-4
    """On weights; on the rest as the next two say."""
    decay_norms: bool = False
    """Also on the affine parameters of norms."""
    decay_biases: bool = True
    """Also on biases, those of norms aside."""
    parts: tuple[PartConfig, ...] = ()
    """Parts with rates of their own. Of several that a name contains, the first counts."""
    momentum: float = 0.9
    """Of SGD."""
    warmup_steps: int = 1000
    warmup_factor: float = 0.001
    """The learning rate begins at this share of the full one and rises linearly."""
    decay: Literal["steps", "cosine"] = "steps"
    decay_at: tuple[float, ...] = (15000 / 23000, 21000 / 23000)
    """With `steps`: shares of the run after which the rate falls to a tenth."""
    clip_norm: float | None = None
    """Gradients are shortened to this length; null leaves them. Lower: calmer, slower."""
    average_decay: float | None = None
    """Exponential moving average of the weights, which is what is saved for use; null saves the last ones. 0.999
    averages over some thousand steps."""

    def __post_init__(self) -> None:
        if self.learning_rate <= 0 or self.weight_decay < 0 or self.warmup_steps < 0:
            raise ValueError("learning_rate must be positive, weight_decay and warmup_steps not negative")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum is {self.momentum}, expected 0 or more, below 1")
        if not 0 <= self.warmup_factor <= 1:
            raise ValueError(f"warmup_factor is {self.warmup_factor}, expected 0 to 1")
        if not all(0 <= share <= 1 for share in self.decay_at):
            raise ValueError(f"decay_at is {list(self.decay_at)}, expected shares of the run, 0 to 1: 0.65, not steps")
        if self.clip_norm is not None and self.clip_norm <= 0:
            raise ValueError(f"clip_norm is {self.clip_norm}, expected more than 0, or null")
        if self.average_decay is not None and not 0 < self.average_decay < 1:
            raise ValueError(f"average_decay is {self.average_decay}, expected a number between 0 and 1, or null")


def make_optimizer(network: nn.Module, cfg: OptimizerConfig) -> torch.optim.Optimizer:
    """All trainable parameters, in groups of equal rates; `rate_factor` of a group multiplies the learning rate.

    Raises ValueError for a part of the settings that no trainable parameter belongs to.
    """
    norms = {id(p) for m in network.modules() if isinstance(m, NORMS) for p in m.parameters(recurse=False)}
    members: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            bias = name.rpartition(".")[2] == "bias"
            decays = cfg.decay_norms if id(parameter) in norms else cfg.decay_biases or not bias
            members.setdefault((_part_of(name, cfg), not decays), []).append(parameter)
    for number, part in enumerate(cfg.parts):
        if not any(where == number for where, _ in members):
            raise ValueError(f"optimizer.parts: no trainable parameter's name contains '{part.contains}'")
    parts = [*cfg.parts, PartConfig(contains="the rest")]
    groups = [
        {"params": members[where, free], "lr": cfg.learning_rate * parts[where].learning_rate,
         "weight_decay": 0.0 if free else cfg.weight_decay * parts[where].weight_decay,
         "rate_factor": parts[where].learning_rate}
        for where, free in sorted(members)      # one order, whatever the network's: a checkpoint relies on it
    ]  # fmt: skip
    if cfg.name == "sgd":
        return torch.optim.SGD(groups, lr=cfg.learning_rate, momentum=cfg.momentum)
    return torch.optim.AdamW(groups, lr=cfg.learning_rate)


def _part_of(name: str, cfg: OptimizerConfig) -> int:
    """Number of the part that a parameter belongs to; that after the last for the rest."""
    return next((number for number, part in enumerate(cfg.parts) if part.contains in name), len(cfg.parts))


def learning_rate(step: float, total: int, cfg: OptimizerConfig) -> float:
    """Of the 0-based `step` out of `total`; between two steps where a batch is not of the size they are told for."""
    rate = cfg.learning_rate
    if cfg.decay == "cosine":
        rate *= 0.5 * (1 + math.cos(math.pi * step / total))
    else:
        rate *= 0.1 ** sum(step >= share * total for share in cfg.decay_at)
    if step < cfg.warmup_steps:
        done = step / cfg.warmup_steps
        rate *= cfg.warmup_factor * (1 - done) + done
    return rate


class Average:
    """Exponential moving average of a network's tensors; counters and the like are copied. Early steps count as a
    plain mean, so that the start is forgotten."""

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        self.state = {name: value.detach().clone() for name, value in network.state_dict().items()}

    @torch.no_grad()
    def update(self, network: nn.Module, step: int) -> None:
        decay = min(self.decay, (step + 1) / (step + 10))
        for name, value in network.state_dict().items():
            if value.is_floating_point():
                self.state[name].lerp_(value, 1 - decay)
            else:
                self.state[name].copy_(value)


def update(
    losses_of: Callable[[Batch], dict[str, Tensor]], network: nn.Module, optimizer: torch.optim.Optimizer,
    batches: Sequence[Batch], rate: float, clip_norm: float | None, *, scaler: torch.amp.GradScaler | None = None,
    average: Callable[[Tensor], Tensor] = lambda x: x,
) -> dict[str, float]:  # fmt: skip
    """Forward, losses, backward, update, by the mean gradient of the batches. Returns the means of the parts of the
    loss, their `total`, and the length of the gradient before it is shortened, `gradient_norm`.

    `average` takes the mean over all workers; their gradients are averaged with the last batch (DDP). With a `scaler`
    (float16) a step whose gradients overflow is left out, and its gradient_norm is inf.
    Raises FloatingPointError before the update, in all workers at once, when the total of any of them or the gradient
    is not finite: weights stay as they were.
    """
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("rate_factor", 1.0)      # checkpoints of older runs have no factors
    optimizer.zero_grad(set_to_none=True)
    sums: dict[str, Tensor] = {}
    for number, batch in enumerate(batches, 1):
        with nullcontext() if number == len(batches) else _held_back(losses_of):
            parts = losses_of(batch)
            total = torch.stack(list(parts.values())).sum()
            _backward(total if len(batches) == 1 else total / len(batches), scaler)
        for name, value in {**parts, "total": total}.items():
            value = value.detach() / len(batches)
            sums[name] = sums[name] + value if name in sums else value
    losses = {name: value.item() for name, value in sums.items()}
    if not math.isfinite(average(sums["total"]).item()):
        raise FloatingPointError(f"the loss is not finite: {losses}")
    if scaler is not None:
        scaler.unscale_(optimizer)
    norm = _gradient_norm(network)
    if scaler is None and not torch.isfinite(norm):
        raise FloatingPointError(f"the gradient is not finite, though the loss is: {losses}")
    if clip_norm is not None:
        nn.utils.clip_grads_with_norm_(network.parameters(), clip_norm, norm)
    if scaler is None:
        optimizer.step()
    else:
        scaler.step(optimizer)
        scaler.update()
    return {**losses, "gradient_norm": norm.item()}


def _backward(total: Tensor, scaler: torch.amp.GradScaler | None) -> None:
    (total if scaler is None else scaler.scale(total)).backward()


def _held_back(losses_of: Callable) -> AbstractContextManager:
    """Gradients stay with the worker until the last batch: one exchange a step, not one a batch."""
    no_sync = getattr(losses_of, "no_sync", None)
    return nullcontext() if no_sync is None else no_sync()


def _gradient_norm(network: nn.Module) -> Tensor:
    return nn.utils.get_total_norm([p.grad for p in network.parameters() if p.grad is not None])


class Shared:
    """What several batches of a step must agree on, as workers do: the numbers that losses are divided by.

    A network asks for the mean of a number over all workers. Of several batches, that is a mean over these too, and it
    is needed with the first of them. So the numbers of all are counted beforehand, in a pass without gradients, which
    changes nothing in the network; one that asks for none is not asked again.
    """

    def __init__(self, average: Callable[[Tensor], Tensor]) -> None:
        self._average, self._asks = average, True

    @torch.no_grad()
    def count(self, network: nn.Module, batches: Sequence[Batch]) -> list[Tensor]:
        """The means, in the order in which the network asks."""
        if not self._asks:
            return []
        asked: list[list[Tensor]] = []
        network.eval()                                          # running statistics stand still
        for batch in batches:
            asked.append([])
            network(batch, lambda value: asked[-1].append(value.detach().float()) or value)
        network.train()
        self._asks = any(asked)
        assert len({len(one) for one in asked}) == 1, "batches of a step must be alike: one network, one kind"
        return [self._average(torch.stack(values).mean()) for values in zip(*asked, strict=True)]
