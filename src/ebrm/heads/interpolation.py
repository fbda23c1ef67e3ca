"""f(e, ·) of any row, as a function of the reward, from its values at a few rewards.

The reward enters f(e, r) through one branch and one matrix, whatever the embedding, so that for a given network all
functions f(e, ·) lie close to one space of few dimensions: 15 to 30 for errors of 1e-5, where quadrature, the mode and
the ascent want f at 129 rewards and more. What goes into the second joint layer is smoother still: about 14 dimensions,
so that the first and largest joint matrix is applied at as many rewards. The space and the rewards that tell its
members apart are found from the weights alone (empirical interpolation: Barrault et al., C. R. Math. 339, 2004; the
choice of nodes by pivoted QR: Drmač and Gugercin, SIAM J. Sci. Comput. 38, 2016). Every row is checked against the
space; one that does not lie in it is evaluated reward by reward.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import scipy.linalg
import torch
from torch import Tensor

from ebrm.heads.grid import grid_nodes
from ebrm.heads.network import EnergyNetwork

#: Pre-activations that the space is found from, drawn from a fixed seed, and how far each unit is driven into
#: saturation: between these multiples of a standard normal, so that flat, bent and steep functions are all among them.
_SAMPLES = 64
_SPREAD = (0.25, 4.0)
#: Units of the second joint layer looked at for each of them.
_UNITS = 16
#: Chebyshev points that stand for a function; the first number that resolves the samples is taken.
_POINTS = (65, 129, 257, 513)
#: Largest error of the space on the samples, in units of f (a share of the density) and of what goes into a tanh, where
#: a node costs more; and the most dimensions tried.
_ERROR = 3e-6
_HIDDEN_ERROR = 1e-5
_DIMENSIONS = 64
#: Nodes beyond the dimensions of the space, and the largest misfit at the nodes of a row that is taken to lie in it.
_CHECKS = 2
MISFIT = 3e-4


@dataclass(frozen=True, eq=False)
class Interpolation:
    """From functions' values at k nodes to their values at any rewards on one support; float64, on the CPU.

    Attributes:
        nodes: rewards [k], ascending, internal units.
        basis: Chebyshev coefficients [k, p] of k functions, each one at its node and zero at the others.
        misfit: orthonormal columns [k, c]: what values at the nodes of a function in the space cannot have.
        support: lowest and highest reward.
        hidden: the same for what goes into the second joint layer; None where there is none, or no smaller space.
    """

    nodes: Tensor
    basis: Tensor
    misfit: Tensor
    support: tuple[float, float]
    hidden: Interpolation | None = None
    _matrices: dict[tuple[int, torch.device], Tensor] = field(default_factory=dict)

    @cached_property
    def hidden_to_nodes(self) -> Tensor:  # [k', k]
        """The matrix that takes hidden values at their nodes to these nodes."""
        assert self.hidden is not None
        return self.hidden.at(self.nodes)

    def at(self, rewards: Tensor) -> Tensor:  # [g] -> [k, g]
        """The matrix that takes values at the nodes [n, k] to values at `rewards` [n, g]."""
        return self.basis @ _chebyshev(rewards.double(), self.support, self.basis.shape[1]).T

    def on_grid(self, count: int, device: torch.device) -> Tensor:  # [k, g]
        """:meth:`at` for `count` equally spaced rewards over the support, kept."""
        if (count, device) not in self._matrices:
            self._matrices[count, device] = self.at(grid_nodes(*self.support, count)).to(device)
        return self._matrices[count, device]


def find_interpolation(network: EnergyNetwork, support: tuple[float, float]) -> Interpolation | None:
    """The interpolation of a network's f(e, ·) on a support; None if the functions have no such small space."""
    # A copy in float64 of all but the largest matrix, which is not needed here. On the CPU, so that a model has the
    # same nodes on every device.
    exact = copy.deepcopy(network, {id(network.from_embedding): network.from_embedding})
    for child in exact.children():
        if child is not network.from_embedding:
            child.to("cpu", torch.float64)
    width = network.from_embedding.out_features
    generator = torch.Generator().manual_seed(0)
    spread = torch.linspace(*_SPREAD, _SAMPLES, dtype=torch.float64).unsqueeze(1)
    embedded = spread * torch.randn(_SAMPLES, width, generator=generator, dtype=torch.float64)
    rows = embedded.split(1)
    found = _find(lambda points: torch.cat([exact.on_nodes(row, points) for row in rows]), support, _ERROR)
    if found is None or not len(exact.joint_layers):
        return found

    def some_units(row: Tensor, points: Tensor) -> Tensor:
        units = exact.hidden_on_nodes(row, points)[0].T
        return units[:: max(1, len(units) // _UNITS)]

    hidden = _find(lambda points: torch.cat([some_units(row, points) for row in rows]), support, _HIDDEN_ERROR)
    return found if hidden is None or len(hidden.nodes) >= len(found.nodes) else replace(found, hidden=hidden)


def _find(functions: Callable[[Tensor], Tensor], support: tuple[float, float], error: float) -> Interpolation | None:
    """The interpolation of sampled functions, given as their values at points [p] -> [m, p]."""
    sampled = _sample(functions, support, 0.1 * error)
    if sampled is None:
        return None
    points, values = sampled
    # A constant belongs to the space (a bias), with the weight of the samples.
    rows = np.vstack([np.full((1, len(points)), max(np.abs(values).max(), 1e-12)), values])
    directions = np.linalg.svd(rows, full_matrices=False)[2]  # [≤ p, p], orthonormal
    for dimensions in range(1, min(_DIMENSIONS, len(directions) - _CHECKS) + 1):
        k = dimensions + _CHECKS
        # Cheap to check first: what no member of the space can have is a lower bound of the error.
        left = values - (values @ directions[:dimensions].T) @ directions[:dimensions]
        if np.abs(left).max() > error:
            continue
        pivots = scipy.linalg.qr(directions[:k], mode="r", pivoting=True)[1]
        chosen = np.sort(pivots[:k])
        at_nodes = directions[:k][:, chosen]  # [k functions, k nodes]
        cardinal = np.linalg.solve(at_nodes, directions[:k])  # [k, p]
        if np.abs(values[:, chosen] @ cardinal - values).max() > error:
            continue
        reachable = np.linalg.qr(directions[:dimensions][:, chosen].T, mode="complete")[0]
        coefficients = torch.from_numpy(cardinal) @ _to_coefficients(len(points))
        misfit = torch.from_numpy(reachable[:, dimensions:].copy())
        return Interpolation(points[torch.from_numpy(chosen)], coefficients, misfit, support)
    return None


@torch.no_grad()
def _sample(
    functions: Callable[[Tensor], Tensor], support: tuple[float, float], tail: float
) -> tuple[Tensor, np.ndarray] | None:
    """(Chebyshev points [p], functions at them [m, p]), float64; None if no number of points resolves them."""
    low, high = support
    for count in _POINTS:
        place = torch.cos(math.pi * torch.arange(count, dtype=torch.float64) / (count - 1)).flip(0)
        points = 0.5 * (low + high) + 0.5 * (high - low) * place
        values = functions(points)
        if not bool(values.isfinite().all()):
            return None
        if (values @ _to_coefficients(count))[:, -4:].abs().max() <= tail:
            return points, values.numpy()
    return None


def _to_coefficients(count: int) -> Tensor:
    """[p, p]: from values at p ascending Chebyshev points (rows) to coefficients of Chebyshev polynomials."""
    k = torch.arange(count, dtype=torch.float64)
    at = torch.cos(math.pi * torch.outer(k, k.flip(0)) / (count - 1))  # T_k at the points, ascending
    ends = torch.ones(count, dtype=torch.float64)
    ends[0] = ends[-1] = 2.0
    return (2.0 / (count - 1)) * (at / ends.unsqueeze(1) / ends).T


def _chebyshev(rewards: Tensor, support: tuple[float, float], count: int) -> Tensor:  # [g] -> [g, p]
    """Chebyshev polynomials of degrees 0 … p - 1 on the support at `rewards`."""
    low, high = support
    place = ((rewards - 0.5 * (low + high)) / (0.5 * (high - low))).clamp(-1, 1)
    return torch.cos(torch.arange(count, dtype=torch.float64) * torch.arccos(place).unsqueeze(1))
