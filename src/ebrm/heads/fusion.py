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
    """Some held-out pairs and the densities of the responses in them, internal units.

    Attributes:
        log_mass: log-probabilities of the nodes' cells under p(r | e) [n, g].
        nodes: rewards [g].
        reward: base rewards of the same rows [n].
        chosen, rejected: the pairs as rows of these [p].
        label, weight: of the pairs [p], float64.
    """

    log_mass: Tensor
    nodes: Tensor
    reward: Tensor
    chosen: Tensor
    rejected: Tensor
    label: Tensor
    weight: Tensor


def choose_fusion(held_out: Iterable[HeldOut], *, flips: float, scale: float = 1.0) -> Fusion:
    """The weights under which held-out labels are likeliest; :data:`UNMEASURED` where no pairs are held out.

    Args:
        held_out: the pairs, in any number of parts; only one is in memory at a time. They should be pairs that the base
            RM was not trained on: those it has learned by heart make it look better than it is.
        flips: share of wrong labels that is assumed.
        scale: standard deviation of the training rewards in internal units.
    """
    tried = [Fusion(power, noise) for power in POWERS for noise in BASE_NOISE]
    losses, pairs = [0.0] * len(tried), 0
    for part in held_out:
        pairs += len(part.chosen)
        cell = part.log_mass.new_zeros(len(part.nodes))
        cell[0] = cell[-1] = -math.log(2)  # the outer cells are half as wide
        density = part.log_mass - cell
        for k, fusion in enumerate(tried):
            weighed = weigh(density, part.nodes, part.reward, fusion.power, fusion.base_noise * scale) + cell
            mass = torch.log_softmax(weighed, 1)
            loss = noisy_preference_nll(mass[part.chosen], mass[part.rejected], flips, part.label)
            losses[k] += float((part.weight * loss.double()).sum())
    return tried[losses.index(min(losses))] if pairs else UNMEASURED
