"""The exact posterior p(r | e) on a grid: r is one number, so every integral is a quadrature.

The density is taken as zero outside the support, by the trapezoid rule inside. All in log space until normalised.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Posterior:
    """p(r | e) of n rows, known at g equally spaced nodes.

    Attributes:
        nodes: rewards [g], float64, internal units.
        log_density: log p at the nodes [n, g], float64, normalised by the trapezoid rule.
        log_z: log ∫ exp f dr [n], float64.
    """

    nodes: Tensor
    log_density: Tensor
    log_z: Tensor

    @property
    def density(self) -> Tensor:
        """P at the nodes [n, g]."""
        return self.log_density.exp()

    def log_cells(self) -> Tensor:
        """Log-probability of the cell around each node [n, g] (the outer ones are half as wide), summing to one."""
        return self.log_density + self._weights.log()

    @property
    def _cells(self) -> Tensor:
        """Probability of each cell between neighbouring nodes [n, g-1]; a row sums to one."""
        p = self.density
        return 0.5 * (p[:, 1:] + p[:, :-1]) * (self.nodes[1] - self.nodes[0])

    def mean(self) -> Tensor:
        """E[r | e], [n]."""
        return (self.density * self._weights * self.nodes).sum(1)

    def std(self) -> Tensor:
        """Standard deviation of r given e, [n]."""
        offset = self.nodes - self.mean().unsqueeze(1)
        return (self.density * self._weights * offset**2).sum(1).clamp_min(0).sqrt()

    @property
    def _weights(self) -> Tensor:
        weights = torch.full_like(self.nodes, float(self.nodes[1] - self.nodes[0]))
        weights[0] /= 2
        weights[-1] /= 2
        return weights

    def mode(self) -> Tensor:
        """The highest point [n]: the best node, then the vertex of the parabola through it and its neighbours."""
        best = self.log_density.argmax(1).clamp(1, len(self.nodes) - 2)
        left, centre, right = (self.log_density.gather(1, (best + k).unsqueeze(1)).squeeze(1) for k in (-1, 0, 1))
        bend = left - 2 * centre + right
        shift = torch.where(bend < 0, 0.5 * (left - right) / bend, torch.sign(right - left))
        return self.nodes[best] + shift.clamp(-1, 1) * (self.nodes[1] - self.nodes[0])

    def quantile(self, probability: float) -> Tensor:
        """The reward below which a share `probability` of the density lies [n] (density linear inside a cell)."""
        cells = self._cells
        below = torch.cumsum(cells, 1)
        total = below[:, -1:]
        target = torch.full_like(total, probability) * total
        k = torch.searchsorted(below, target).clamp_max(cells.shape[1] - 1)
        before = torch.where(k > 0, below.gather(1, (k - 1).clamp_min(0)), torch.zeros_like(total))
        p = self.density
        left, right = p.gather(1, k), p.gather(1, k + 1)
        step = self.nodes[1] - self.nodes[0]
        # Mass inside the cell up to fraction t is step·(left·t + (right - left)·t²/2); solved in the form without
        # cancellation, t = 2m / (left + sqrt(left² + 2 m (right - left))), m = mass / step.
        mass = ((target - before) / step).clamp_min(0)
        root = (left * left + 2 * mass * (right - left)).clamp_min(0).sqrt()
        t = torch.where(mass > 0, 2 * mass / (left + root).clamp_min(1e-300), torch.zeros_like(mass)).clamp(0, 1)
        return (self.nodes[k] + t * step).squeeze(1)

    def log_density_at(self, reward: Tensor) -> Tensor:
        """Log p at `reward` [n], linear in log p between nodes; -inf outside the support."""
        step = self.nodes[1] - self.nodes[0]
        position = (reward.double() - self.nodes[0]) / step
        k = position.floor().clamp(0, len(self.nodes) - 2).long().unsqueeze(1)
        t = position - k.squeeze(1)
        value = torch.lerp(
            self.log_density.gather(1, k).squeeze(1),
            self.log_density.gather(1, k + 1).squeeze(1),
            t.clamp(0, 1),
        )
        outside = (t < -1e-9) | (t > 1 + 1e-9)
        return value.masked_fill(outside, -torch.inf)

    def prefer(self, other: Posterior) -> Tensor:
        """P(r > r') for independent r ~ this row and r' ~ the same row of `other`, on the same nodes, [n].

        Mass inside one cell is split evenly, so P(a > b) + P(b > a) = 1 exactly and P(a > a) = 1/2.
        """
        if not torch.equal(self.nodes, other.nodes):
            raise ValueError("two posteriors can only be compared on the same nodes")
        mine, theirs = self._cells, other._cells
        lower = torch.cumsum(theirs, 1) - theirs
        total = mine.sum(1) * theirs.sum(1)
        return (mine * (lower + 0.5 * theirs)).sum(1) / total


def grid_nodes(low: float, high: float, count: int) -> Tensor:
    """`count` equally spaced nodes from `low` to `high`, both included, float64."""
    return torch.linspace(low, high, count, dtype=torch.float64)


def posterior(nodes: Tensor, energy: Tensor) -> Posterior:
    """Normalise f at equally spaced `nodes` [g], given as `energy` [n, g], into a :class:`Posterior`."""
    f = energy.double()
    log_weight = torch.full((len(nodes),), math.log(float(nodes[1] - nodes[0])), dtype=torch.float64, device=f.device)
    log_weight[0] -= math.log(2)
    log_weight[-1] -= math.log(2)
    top = f.amax(1, keepdim=True)
    f = f - top  # first, or energies that are all huge would lose the cells' widths
    log_z = torch.logsumexp(f + log_weight, 1)
    return Posterior(nodes.to(f.device), f - log_z.unsqueeze(1), log_z + top.squeeze(1))
