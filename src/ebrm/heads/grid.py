"""The exact posterior p(r | e) on a grid: r is one number, so every integral is a quadrature.

The density is taken as zero outside the support, by the trapezoid rule inside. All in log space until normalized.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from numpy.polynomial import legendre
from torch import Tensor

#: Lowest log-density on a grid, so that differences of two are numbers.
LOWEST = -600.0
#: Newton steps from the best node to the top, and the matrix from values at -2 … 2 to a quartic's coefficients.
_NEWTON = 4
_QUARTIC = torch.linalg.inv(torch.arange(-2.0, 3.0, dtype=torch.float64).unsqueeze(1) ** torch.arange(5)).T
#: Most Gauss-Legendre points inside a cell, exact for twice as many competing rows.
_POINTS = 32


@dataclass(frozen=True)
class Posterior:
    """p(r | e) of n rows, known at g equally spaced nodes.

    Attributes:
        nodes: rewards [g], float64, internal units.
        log_density: log p at the nodes [n, g], float64, normalized by the trapezoid rule.
        log_z: log ∫ exp f dr [n], float64.
    """

    nodes: Tensor
    log_density: Tensor
    log_z: Tensor

    @cached_property
    def density(self) -> Tensor:
        """P at the nodes [n, g]."""
        return self.log_density.exp()

    def log_cells(self) -> Tensor:
        """Log-probability of the cell around each node [n, g] (the outer ones are half as wide), summing to one."""
        return self.log_density + self._weights.log()

    @cached_property
    def _cells(self) -> Tensor:
        """Probability of each cell between neighboring nodes [n, g-1]; a row sums to one."""
        p = self.density
        return 0.5 * (p[:, 1:] + p[:, :-1]) * (self.nodes[1] - self.nodes[0])

    def mean(self) -> Tensor:
        """E[r | e], [n]."""
        return self.density @ (self._weights * self.nodes)

    def std(self) -> Tensor:
        """Standard deviation of r given e, [n]."""
        center = self.nodes.mean()  # what is subtracted below is then of the size of the support
        square = self.density @ (self._weights * (self.nodes - center) ** 2)
        return (square - (self.mean() - center) ** 2).clamp_min(0).sqrt()

    @cached_property
    def _below(self) -> Tensor:
        """Probability up to the end of each cell [n, g-1]."""
        return torch.cumsum(self._cells, 1)

    @cached_property
    def _weights(self) -> Tensor:
        weights = torch.full_like(self.nodes, float(self.nodes[1] - self.nodes[0]))
        weights[0] /= 2
        weights[-1] /= 2
        return weights

    def mode(self) -> Tensor:
        """The highest point [n]: the best node, then the top of the quartic through it and two nodes on either side."""
        last = len(self.nodes) - 1
        best = self.log_density.argmax(1)
        middle = best.clamp(2, last - 2)
        around = middle.unsqueeze(1) + torch.arange(-2, 3, device=best.device)
        f = self.log_density.gather(1, around) @ _QUARTIC.to(self.log_density)  # [n, 5], coefficients of 1, t, …, t⁴
        t = (best - middle).to(f)  # off the middle only where the best node is one of the last two on either side
        for _ in range(_NEWTON):
            slope = f[:, 1] + t * (2 * f[:, 2] + t * (3 * f[:, 3] + t * 4 * f[:, 4]))
            bend = 2 * f[:, 2] + t * (6 * f[:, 3] + t * 12 * f[:, 4])
            # Where the quartic is not bent downwards, there is no top to go to: uphill by half a cell.
            step = torch.where(bend < 0, -slope / bend, 0.5 * torch.sign(slope))
            t = (t + step.clamp(-0.5, 0.5)).clamp(-2, 2)
        t = torch.minimum(torch.maximum(t, (best - middle) - 1.0), (best - middle) + 1.0)
        return self.nodes[middle] + t * (self.nodes[1] - self.nodes[0])

    def quantile(self, probability: float) -> Tensor:
        """The reward below which a share `probability` of the density lies [n] (density linear inside a cell)."""
        cells, below = self._cells, self._below
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
            self.log_density.gather(1, k).squeeze(1), self.log_density.gather(1, k + 1).squeeze(1), t.clamp(0, 1)
        )
        outside = (t < -1e-9) | (t > 1 + 1e-9)
        return value.masked_fill(outside, -torch.inf)

    def prefer(self, other: Posterior) -> Tensor:
        """P(r > r') for independent r ~ this row and r' ~ that of `other` [n]; mass inside a cell is split evenly."""
        if not torch.equal(self.nodes, other.nodes):
            raise ValueError("two posteriors can only be compared on the same nodes")
        mine, theirs = self._cells, other._cells
        lower = torch.cumsum(theirs, 1) - theirs
        total = mine.sum(1) * theirs.sum(1)
        return (mine * (lower + 0.5 * theirs)).sum(1) / total

    def moved(self, by: Tensor) -> Posterior:  # [n]
        """The same distributions `by` further up, on the same nodes; the outer nodes have all that lies beyond."""
        rows = (by != 0).nonzero().squeeze(1)
        if not len(rows):
            return self
        count = len(self.nodes)
        place = (by[rows] / (self.nodes[1] - self.nodes[0])).clamp(-2.0 * count, 2.0 * count)
        whole = place.floor()
        part = (place - whole).unsqueeze(1)
        mass = self.log_cells()[rows].exp()
        to = torch.arange(count, device=by.device) + whole.long().unsqueeze(1)
        found = torch.zeros_like(mass).scatter_add_(1, to.clamp(0, count - 1), mass * (1 - part))
        found.scatter_add_(1, (to + 1).clamp(0, count - 1), mass * part)
        log_density = self.log_density.clone()
        log_density[rows] = (found / self._weights).log().clamp_min(LOWEST)
        return Posterior(self.nodes, log_density, self.log_z)

    def p_best(self) -> Tensor:
        """P(r_i is the largest of all rows' independent rewards) [n], summing to one; as :meth:`prefer` for n = 2.

        In a cell a row's distribution function is linear, the product a polynomial: Gauss-Legendre is exact to 64 rows.
        """
        log_p = self.log_density
        log_cells = torch.logaddexp(log_p[:, 1:], log_p[:, :-1])  # up to a constant, which goes with the sum below
        log_cells = log_cells - torch.logsumexp(log_cells, 1, keepdim=True)
        below = torch.logcumsumexp(log_cells, 1)
        below = torch.cat([torch.full_like(below[:, :1], -torch.inf), below[:, :-1]], 1)
        best = torch.zeros_like(self.log_z)
        points, weights = (part.tolist() for part in legendre.leggauss(min(_POINTS, len(best) // 2 + 1)))
        for point, weight in zip(points, weights, strict=True):
            log_up_to = torch.logaddexp(below, log_cells + math.log((1 + point) / 2))  # here, of each row [n, g-1]
            best += weight * (log_cells + log_up_to.sum(0) - log_up_to).exp().sum(1)
        return best / best.sum()


def grid_nodes(low: float, high: float, count: int) -> Tensor:
    """`count` equally spaced nodes from `low` to `high`, both included, float64."""
    return torch.linspace(low, high, count, dtype=torch.float64)


def posterior(nodes: Tensor, energy: Tensor) -> Posterior:
    """Normalize f at equally spaced `nodes` [g], given as `energy` [n, g], into a :class:`Posterior`."""
    f = energy.double()
    log_weight = torch.full((len(nodes),), math.log(float(nodes[1] - nodes[0])), dtype=torch.float64, device=f.device)
    log_weight[0] -= math.log(2)
    log_weight[-1] -= math.log(2)
    top = f.amax(1, keepdim=True)
    f = f - top  # first, or energies that are all huge would lose the cells' widths
    log_z = torch.logsumexp(f + log_weight, 1)
    return Posterior(nodes.to(f), f - log_z.unsqueeze(1), log_z + top.squeeze(1))


@dataclass(frozen=True)
class Curves:
    """Functions of the reward from `values` [n, g] at `nodes` [g]: cubic Hermite, slopes from five neighbors."""

    nodes: Tensor
    values: Tensor

    @cached_property
    def _slopes(self) -> Tensor:
        """∂/∂r at the nodes, times their distance [n, g]."""
        v = self.values
        slopes = torch.empty_like(v)
        slopes[:, 2:-2] = (v[:, :-4] - v[:, 4:] + 8 * (v[:, 3:-1] - v[:, 1:-3])) / 12
        first, second = v.new_tensor([-25, 48, -36, 16, -3]) / 12, v.new_tensor([-3, -10, 18, -6, 1]) / 12
        slopes[:, 0], slopes[:, 1] = v[:, :5] @ first, v[:, :5] @ second
        slopes[:, -1], slopes[:, -2] = -v[:, -5:].flip(1) @ first, -v[:, -5:].flip(1) @ second
        return slopes

    def at(self, rows: Tensor, reward: Tensor) -> tuple[Tensor, Tensor]:  # [k], [k] -> [k], [k]
        """Value and slope of the functions of `rows` at one `reward` each, clamped to the nodes' range."""
        step = self.nodes[1] - self.nodes[0]
        place = ((reward - self.nodes[0]) / step).clamp(0, len(self.nodes) - 1)
        cell = place.floor().clamp_max(len(self.nodes) - 2).long()
        t = place - cell
        left, right = rows * len(self.nodes) + cell, rows * len(self.nodes) + cell + 1
        values, slopes = self.values.view(-1), self._slopes.view(-1)
        a, b, ma, mb = values[left], values[right], slopes[left], slopes[right]
        rise = b - a
        c2, c3 = 3 * rise - 2 * ma - mb, ma + mb - 2 * rise
        return a + t * (ma + t * (c2 + t * c3)), (ma + t * (2 * c2 + 3 * t * c3)) / step
