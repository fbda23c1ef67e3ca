"""Product of experts: tempered density p(r | e)^t times a Gaussian N(r0; r, s²) around the base reward r0 (ours).

t and s are fitted on held-out labels by likelihood. t = 0 leaves the base reward, s = ∞ leaves the density.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from ebrm.heads.objective import noisy_preference_nll
from ebrm.pairs import PreferencePairs

#: Powers of the density that are tried.
POWERS = (0.0, 0.125, 0.25, 0.5, 1.0)
#: Errors of the base reward that are tried, in standard deviations of the training rewards. None is infinite: held-out
#: pairs are like the training pairs, and on others the base reward is the only other evidence (docs/evidence.md).
BASE_NOISE = (0.25, 0.35, 0.5, 0.7, 1.0, 1.4, 2.0)


@dataclass(frozen=True)
class Fusion:
    """Power t of the density and error s of the base reward (in standard deviations of the training rewards)."""

    power: float = 1.0
    base_noise: float = math.inf

    def to_dict(self) -> dict[str, float | None]:
        """Plain JSON values; a base_noise of None is infinite: the base reward has no weight."""
        return {"power": self.power, "base_noise": None if math.isinf(self.base_noise) else self.base_noise}


#: Where no pairs are held out to choose by.
UNMEASURED = Fusion(1.0, BASE_NOISE[-1])


def weigh(log_density: Tensor, nodes: Tensor, reward: Tensor, power: float, noise: float) -> Tensor:
    """Log p(r | e)^t N(r0; r, s²) up to a constant a row, for nodes [g] and rows [n, g] with base rewards [n]."""
    weakened = power * log_density
    if math.isinf(noise):
        return weakened
    # -(r0 - r)² / 2 without r0² / 2, which is constant a row: a base reward far outside the nodes keeps its digits.
    return weakened + nodes * (reward.unsqueeze(1) - 0.5 * nodes) / noise**2


@dataclass(frozen=True)
class HeldOut:
    """Pairs as places among n rows, with their log-masses [n, g] at nodes [g] and base rewards [n], internal units."""

    log_mass: Tensor
    nodes: Tensor
    reward: Tensor
    pairs: PreferencePairs


def label_losses(mass: Tensor, pairs: PreferencePairs, flips: float) -> Tensor:  # [n, g] -> [p]
    """:func:`noisy_preference_nll` of pairs of rows with these log-masses."""
    return noisy_preference_nll(mass[pairs.chosen], mass[pairs.rejected], flips, pairs.label)


def choose_fusion(held_out: Iterable[HeldOut], *, flips: float, scale: float = 1.0) -> Fusion:
    """Weights with the likeliest held-out labels, `flips` of them wrong; rewards have deviation `scale`."""
    tried = [Fusion(power, noise) for power in POWERS for noise in BASE_NOISE]
    losses, pairs = [0.0] * len(tried), 0
    for part in held_out:
        pairs += len(part.pairs)
        cell = part.log_mass.new_zeros(len(part.nodes))
        cell[0] = cell[-1] = -math.log(2)  # the outer cells are half as wide
        density = part.log_mass - cell
        for k, fusion in enumerate(tried):
            weighed = weigh(density, part.nodes, part.reward, fusion.power, fusion.base_noise * scale) + cell
            mass = torch.log_softmax(weighed, 1)
            losses[k] += float((part.pairs.weight * label_losses(mass, part.pairs, flips).double()).sum())
    return tried[losses.index(min(losses))] if pairs else UNMEASURED
