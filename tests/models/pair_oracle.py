"""The losses of a batch of pairs by loops (specification 3.3 to 3.6), from what the heads said of each frame.

The heads themselves are checked part by part elsewhere; here they are run as they are, slot by slot, in training mode.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from models.condinst import DenseOutputs
from models.crossvis import CrossVIS
from models.targets import FrameTargets, PairBatch
from tests.models import oracles

Place = tuple[int, int]
"""(image, location)."""


@dataclass
class Slot:
    dense: DenseOutputs
    targets: list[FrameTargets]
    bounds: tuple[int, ...]
    size: tuple[int, int]

    def __post_init__(self) -> None:
        self.places = oracles.locations(*self.size)
        self.found: dict[Place, tuple[int, tuple[float, ...]]] = {}
        for b, frame in enumerate(self.targets):
            for p, answer in oracles.positives(frame.boxes.numpy(), frame.masks.numpy(), self.bounds).items():
                self.found[b, p] = answer

    def at(self, name: str, place: Place) -> np.ndarray:
        return getattr(self.dense, name)[place].double().numpy()

    def mask(self, image: int, instance: int) -> np.ndarray:
        """1.7: the full mask sampled at rows and columns 2, 6, 10, ..."""
        full = self.targets[image].masks[instance].numpy()
        rows, columns = range(2, full.shape[0], 4), range(2, full.shape[1], 4)
        return np.array([[float(full[y, x]) for x in columns] for y in rows])


def run(network: CrossVIS, batch: PairBatch) -> tuple[Slot, Slot]:
    """Both slots through a copy of the network: the running averages of the original stay."""
    network = copy.deepcopy(network).train()
    bounds = network.config.fcos.size_bounds
    with torch.no_grad():
        dense = [network.heads(network.features(images)) for images in batch.images]
    sizes = [tuple(images.shape[-2:]) for images in batch.images]
    return tuple(Slot(d, t, bounds, s) for d, t, s in zip(dense, batch.targets, sizes, strict=True))


def paint(source: Slot, place: Place, canvas: Slot, location: int) -> np.ndarray:
    """Filters found at `place` of `source` on the mask features of `canvas`, as if found there at `location`."""
    level, _, x, y = canvas.places[location]
    divisor = (*canvas.bounds, 2 * canvas.bounds[-1])[level]
    features = canvas.dense.mask_features[place[0]].double().numpy()
    return oracles.mask_logits(features, source.at("filters", place), (x, y), divisor)


def mask_dices(slot: Slot) -> list[float]:
    """The static mask loss of every positive of a slot."""
    return [oracles.dice(paint(slot, (b, p), slot, p), slot.mask(b, g)) for (b, p), (g, _) in slot.found.items()]


def frame_losses(slot: Slot, average: Callable[[float], float] = lambda x: x) -> dict[str, float]:
    """3.3: the four losses of one slot."""
    logits = slot.dense.class_logits.double().numpy()
    one_hot = np.zeros_like(logits)
    for (b, p), (g, _) in slot.found.items():
        one_hot[b, p, int(slot.targets[b].labels[g])] = 1
    sides = np.array([sides for _, sides in slot.found.values()]).reshape(-1, 4)
    truth = np.array([oracles.centerness(s) for s in sides])
    n, s = max(average(len(sides)), 1), max(average(truth.sum()), 1e-6)
    distances = np.array([slot.at("distances", place) for place in slot.found]).reshape(-1, 4)
    centerness = np.array([slot.at("centerness", place) for place in slot.found])
    dices = mask_dices(slot)
    return {
        "class": oracles.focal(logits, one_hot) / n,
        "box": oracles.box_loss(distances, sides, truth) / s,
        "centerness": oracles.cross_entropy(centerness, truth) / n,
        "mask": sum(dices) / max(len(dices), 1),
    }


def crossover_choices(source: Slot, other: Slot, counterparts: list[torch.Tensor]) -> Iterator[list[float]]:
    """3.4: for every positive of `source` that takes part, the loss by each positive of its counterpart."""
    for (b, p), (g, _) in source.found.items():
        partner = int(counterparts[b][g])
        theirs = [q for (image, q), (instance, _) in other.found.items() if (image, instance) == (b, partner)]
        if theirs:
            yield [oracles.dice(paint(source, (b, p), other, q), other.mask(b, partner)) for q in theirs]


def crossover(slots: tuple[Slot, Slot], batch: PairBatch) -> float:
    """3.4 where no positive has a choice: half the sum of the means of the two directions."""
    total = 0.0
    for s in (0, 1):
        choices = list(crossover_choices(slots[s], slots[1 - s], batch.counterparts[s]))
        assert all(len(c) == 1 for c in choices), "the draw is not determined"
        total += sum(c[0] for c in choices) / max(len(choices), 1)
    return total / 2


def identity(network: CrossVIS, slots: tuple[Slot, Slot]) -> float:
    """3.5: focal loss over all identities, summed, over the number of positives of both slots."""
    proxies = network.proxies.proxies
    weight, bias = proxies.weight.detach().double().numpy(), proxies.bias.detach().double().numpy()
    total, count = 0.0, 0
    for slot in slots:
        for (b, p), (g, _) in slot.found.items():
            logits = oracles.identity_logits(slot.at("embeddings", (b, p)), weight, bias)
            one_hot = np.zeros(len(weight))
            one_hot[int(slot.targets[b].identities[g])] = 1
            total, count = total + oracles.focal(logits, one_hot), count + 1
    return total / max(count, 1)
