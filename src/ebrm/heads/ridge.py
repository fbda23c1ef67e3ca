"""Ridge-penalized Bradley-Terry in few dimensions: Newton's method, leave-one-prompt-out, and averages over penalties.

All in float64. A difference of embeddings enters only through its products with the others, so n pairs of embeddings of
d numbers are fitted in min(n, d) dimensions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

#: Penalties Λ that are averaged over: loss + Λ/2 |c|², a sum over the pairs, differences about as long as 1.
PENALTIES = tuple(10.0 ** (step / 2) for step in range(8, -3, -1))
#: Share of the weight that no correction at all (Λ = ∞) has before the pairs are seen.
PRIOR_NONE = 0.7
#: Most dimensions; more pairs of longer embeddings are projected on their leading directions.
MOST_DIMENSIONS = 2048
_ITERATIONS = 50
_TOLERANCE = 1e-9
#: Penalties this many nats behind the best are not followed further down: their weight is below 1e-8.
_HOPELESS = 20.0


@dataclass(frozen=True, eq=False)
class Comparisons:
    """Pairs as differences of embeddings, in few dimensions.

    Attributes:
        reduced: F [n, r], F Fᵀ = D Dᵀ for the differences D [n, d].
        back: [d, r]: weights on the embedding of weights on F.
        label: P(the first is better) [n].
        weight: weights [n], mean 1.
        margin: m in log σ(z - m) [n].
        blocks: places of pairs of one prompt: [m, k] for each number k of pairs a prompt has.
    """

    reduced: Tensor
    back: Tensor
    label: Tensor
    weight: Tensor
    margin: Tensor
    blocks: tuple[Tensor, ...]

    def loss(self, z: Tensor) -> Tensor:  # [n] -> [n]
        """Weighted -μ log σ(z - m) - (1 - μ) log σ(-z - m)."""
        right, wrong = logsigmoid(z - self.margin), logsigmoid(-z - self.margin)
        return -self.weight * (self.label * right + (1 - self.label) * wrong)

    def slopes(self, z: Tensor) -> tuple[Tensor, Tensor]:  # [n] -> [n], [n]
        """(minus the loss's derivative, its second derivative) by z."""
        right, wrong = torch.sigmoid(self.margin - z), torch.sigmoid(self.margin + z)
        slope = self.weight * (self.label * right - (1 - self.label) * wrong)
        bend = self.weight * (self.label * right * (1 - right) + (1 - self.label) * wrong * (1 - wrong))
        return slope, bend

    @cached_property
    def size(self) -> int:
        """r: dimensions."""
        return self.reduced.shape[1]


def comparisons(
    difference: Tensor,  # [n, d]
    prompts: Sequence[str | int],
    *,
    label: Tensor | None = None,
    weight: Tensor | None = None,
    margin: Tensor | None = None,
    generator: torch.Generator,
) -> Comparisons:
    """Differences chosen - rejected [n, d], their prompts [n], labels, weights (any scale) and margins [n].

    `generator`: of the projection on MOST_DIMENSIONS leading directions (randomized range finder, Halko et al. 2011),
    where there are more of both pairs and numbers.
    """
    d = difference.double()
    n, width = d.shape
    if min(n, width) > MOST_DIMENSIONS:
        draws = torch.randn(width, MOST_DIMENSIONS, generator=generator, dtype=d.dtype).to(d.device)
        back = torch.linalg.qr(d.T @ (d @ draws)).Q
        reduced = d @ back
    elif n < width:
        values, vectors = torch.linalg.eigh(d @ d.T)
        keep = values > values.amax().clamp_min(1e-300) * 1e-12
        root = values[keep].sqrt()
        reduced, back = vectors[:, keep] * root, d.T @ (vectors[:, keep] / root)
    else:
        reduced, back = d, torch.eye(width, dtype=d.dtype, device=d.device)
    one = torch.ones(n, dtype=d.dtype, device=d.device)
    w = one if weight is None else weight.to(one) * (n / weight.to(one).sum())
    places: dict[str | int, list[int]] = {}
    for place, prompt in enumerate(prompts):
        places.setdefault(prompt, []).append(place)
    by_size: dict[int, list[list[int]]] = {}
    for block in places.values():
        by_size.setdefault(len(block), []).append(block)
    blocks = tuple(torch.tensor(same, device=d.device) for _, same in sorted(by_size.items()))
    return Comparisons(
        reduced, back, one if label is None else label.to(one), w,
        torch.zeros_like(one) if margin is None else margin.to(one), blocks,
    )  # fmt: skip


def solve(pairs: Comparisons, penalty: float, start: Tensor) -> Tensor:  # [r] -> [r]
    """Where Σ loss(F c) + Λ/2 |c|² is lowest, by Newton's method with halved steps from `start`."""
    f, c = pairs.reduced, start
    z = f @ c
    value = pairs.loss(z).sum() + 0.5 * penalty * c @ c
    for _ in range(_ITERATIONS):
        slope, bend = pairs.slopes(z)
        gradient = f.T @ slope - penalty * c
        step = torch.linalg.solve(_hessian(f, bend, penalty), gradient)
        share = 1.0
        while True:
            new = c + share * step
            moved = f @ new
            lower = pairs.loss(moved).sum() + 0.5 * penalty * new @ new
            if lower <= value or share < 1e-6:
                break
            share /= 2
        c, z, fell, value = new, moved, value - lower, lower
        if fell <= _TOLERANCE * (1 + abs(float(value))):
            break
    return c


def _hessian(f: Tensor, bend: Tensor, penalty: float) -> Tensor:
    second = f.T @ (bend[:, None] * f)
    second.diagonal().add_(penalty)
    return second


def left_out(pairs: Comparisons, weights: Tensor, penalty: float) -> Tensor:  # [r] -> [n]
    """The z = F c of each pair without its prompt's pairs, to first order (Beirami et al. 2017).

    With H the Hessian, g and W the slopes of a prompt's pairs and A = F H⁻¹ Fᵀ: z - (I - A W)⁻¹ A g.
    """
    f = pairs.reduced
    z = f @ weights
    slope, bend = pairs.slopes(z)
    across = torch.linalg.solve(_hessian(f, bend, penalty), f.T)  # [r, n]
    found = z.clone()
    for block in pairs.blocks:  # [m, k]
        within = f[block] @ across.T[block].transpose(1, 2)  # [m, k, k]
        system = torch.eye(block.shape[1]).to(f) - within * bend[block].unsqueeze(1)
        moved = torch.linalg.solve(system, (within @ slope[block].unsqueeze(2)))
        found[block] = z[block] - moved.squeeze(2)
    return found


@dataclass(frozen=True, eq=False)
class Candidate:
    """A fit at one penalty.

    Attributes:
        penalty: Λ.
        weights: c [r].
        moved: z of each pair with its prompt left out [n].
        losses: of the pairs [n], likewise.
    """

    penalty: float
    weights: Tensor
    moved: Tensor
    losses: Tensor


def candidates(pairs: Comparisons) -> list[Candidate]:
    """Fits at every penalty, from none (Λ = ∞) down; hopeless small ones are left out."""
    weights = torch.zeros(pairs.size, dtype=pairs.reduced.dtype, device=pairs.reduced.device)
    still = torch.zeros_like(pairs.label)
    found = [Candidate(math.inf, weights, still, pairs.loss(still))]
    best = float(found[0].losses.sum())
    for penalty in PENALTIES:
        weights = solve(pairs, penalty, weights)
        moved = left_out(pairs, weights, penalty)
        found.append(Candidate(penalty, weights, moved, pairs.loss(moved)))
        total = float(found[-1].losses.sum())
        if total > best + _HOPELESS:
            break
        best = min(best, total)
    return found


def shares(found: Sequence[Candidate]) -> Tensor:  # [candidates]
    """Weights of candidates by their evidence, exp(-Σ loss left out) (pseudo-Bayesian averaging; Yao et al. 2018).

    No correction (Λ = ∞) has the prior PRIOR_NONE, the penalties share the rest.
    """
    finite = max(1, sum(math.isfinite(one.penalty) for one in found))
    prior = [math.log((1 - PRIOR_NONE) / finite if math.isfinite(c.penalty) else PRIOR_NONE) for c in found]
    evidence = torch.stack([-c.losses.sum() for c in found]) + torch.tensor(prior).to(found[0].losses)
    return torch.softmax(evidence, 0)


def average(found: Sequence[Candidate]) -> tuple[Tensor, float]:
    """(weights [r], share of no correction): the candidates averaged by :func:`shares`."""
    share = shares(found)
    none = sum(one for one, c in zip(share.tolist(), found, strict=True) if not math.isfinite(c.penalty))
    return torch.stack([c.weights for c in found]).T @ share, none


def left_out_average(found: Sequence[Candidate]) -> Tensor:  # [n]
    """Z of each pair with its prompt left out, averaged by :func:`shares`."""
    return torch.stack([c.moved for c in found]).T @ shares(found)


def clear_gain(found: Sequence[Candidate], blocks: Sequence[Tensor] = ()) -> bool:
    """Whether the best penalty beats none by more than one standard error of the mean loss over the prompts.

    `blocks` are the places of pairs of one prompt (`Comparisons.blocks`), which err together; (): one pair each.
    The variance of the mean m of n pairs of C prompts is C / (C - 1) Σ_c (S_c - n_c m)² / n², S_c the sum of n_c gains.
    """
    none = next(c for c in found if not math.isfinite(c.penalty))
    best = min(found, key=lambda c: float(c.losses.sum()))
    gain = none.losses - best.losses
    apart = gain - gain.mean()
    sums = torch.cat([apart[block].sum(1) for block in blocks]) if blocks else apart
    error = math.sqrt(len(sums) / max(len(sums) - 1, 1) * float((sums**2).sum())) / len(gain)
    return len(sums) > 1 and float(gain.mean()) > error
