"""Linear heads, fitted by full-batch L-BFGS: Bradley-Terry, with a Bayesian last layer, Gaussian, anchored."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.special import log_ndtr

from ebrm.aggregate import most_confident_head
from ebrm.errors import ConfigError
from ebrm.heads.base import ClosedFormHead
from ebrm.heads.config import AnchoredConfig, BayesianConfig, GaussianConfig, LinearConfig
from ebrm.heads.data import HeadData
from ebrm.heads.losses import held_out_loss, pair_loss, pairs_loss, weighted_mean
from ebrm.heads.minimize import best_penalty
from ebrm.pairs import PreferencePairs
from ebrm.utils.validation import check_finite, check_same_shape


class LinearScores(ClosedFormHead):
    """u(e) = w·x, x the standardized embedding; subclasses fit w."""

    weight: Tensor  # [d]

    def _build(self, size: int, groups: int, generator: torch.Generator | None) -> None:
        self.register_buffer("weight", torch.zeros(size))

    def scores(self, x: Tensor) -> Tensor:  # [n, d] -> [n]
        return x @ self.weight

    def _fit(
        self, data: HeadData, loss: Callable[[Tensor], Tensor], ridge: float | None
    ) -> tuple[Tensor, float]:  # [d], []
        """Fit the weights by a loss of them and a penalty; both in float64."""
        x = data.embedding.double()
        weight, ridge = best_penalty(loss, held_out_loss(data, lambda w: x @ w), torch.zeros(x.shape[1]).to(x), ridge)
        self.weight.copy_(weight)
        return weight, ridge


class LinearHead(LinearScores):
    """u(e) = w·x: mean :func:`ebrm.heads.pair_loss` plus ridge/2 |w|², by full-batch L-BFGS in float64."""

    config: LinearConfig

    def learn(self, data: HeadData, generator: torch.Generator) -> None:
        self.learn_linear(data)

    def learn_linear(self, data: HeadData) -> tuple[Tensor, float]:
        """Fit the weights; gives them in float64 [d], and the penalty."""
        x, s = data.embedding.double(), self.config
        return self._fit(data, pairs_loss(data, lambda w: x @ w, s.label_smoothing, s.centering), s.ridge)


class BayesianHead(LinearHead):
    """u(e) = w·x with w ~ N(ŵ, H⁻¹): Laplace's approximation around the linear Bradley-Terry head ŵ.

    H = Σ_i w_i [μ_i σ'(z_i - m_i) + (1 - μ_i) σ'(-z_i - m_i)] Δ_i Δ_iᵀ + p ridge I (+ centering), Δ = x_c - x_r. A
    reward's deviation is √(xᵀ H⁻¹ x), seen from the average training embedding: the uncertainty of the weights, not the
    noise of a comparison. `prefer` knows that two rewards share w: MacKay's (1992) E σ(d) = σ(d / √(1 + π v / 8)), v =
    Δᵀ H⁻¹ Δ.
    """

    noise = "normal"

    config: BayesianConfig
    root: Tensor  # [d, d], H⁻¹ = rootᵀ root

    def _build(self, size: int, groups: int, generator: torch.Generator | None) -> None:
        super()._build(size, groups, generator)
        self.register_buffer("root", torch.eye(size))

    def spread(self, x: Tensor) -> Tensor:  # [n, d] -> [n]
        return (x.double() @ self.root.double().T).square().sum(1).sqrt()

    def learn(self, data: HeadData, generator: torch.Generator) -> None:
        weight, ridge = self.learn_linear(data)
        x, s, train = data.embedding.double(), self.config, data.train
        chosen, rejected = x[train.chosen], x[train.rejected]
        difference = chosen - rejected
        z = difference @ weight
        label = (1 - s.label_smoothing) * train.label + s.label_smoothing * (1 - train.label)
        curvature = train.weight * (label * _slope(z - train.margin) + (1 - label) * _slope(-z - train.margin))
        second = difference.T @ (curvature[:, None] * difference)
        if s.centering:
            second += 2 * s.centering * (chosen + rejected).T @ (chosen + rejected)
        second.diagonal().add_(len(z) * ridge)
        second *= data.evidence / len(z)
        factor = torch.linalg.cholesky(second)  # H = L Lᵀ, so H⁻¹ = L⁻ᵀ L⁻¹
        identity = torch.eye(len(second), dtype=second.dtype, device=second.device)
        self.root.copy_(torch.linalg.solve_triangular(factor, identity, upper=False))

    @torch.no_grad()
    def prefer(
        self, embedding: tuple[Tensor, Tensor], base_reward: tuple[Tensor, Tensor], nodes: int | None = None
    ) -> Tensor:  # [n, d] each, [n] each -> [n]
        """P(a is preferred to b), [n] float32: Bradley and Terry's, averaged over the weights."""
        a, b = (self.standardizer.embed(side.to(self.device)).double() for side in embedding)
        difference = (a - b) @ self.weight.double()
        variance = self.spread(a - b).square()
        return torch.sigmoid(difference / (1 + math.pi / 8 * variance).sqrt()).float().cpu()


def _slope(z: Tensor) -> Tensor:
    """σ'(z)."""
    return torch.sigmoid(z) * torch.sigmoid(-z)


def gaussian_pair_loss(
    mean: tuple[Tensor, Tensor], std: tuple[Tensor, Tensor], label: Tensor | float = 1.0
) -> Tensor:  # [..., p] each, [..., p] each -> [..., p]
    """-log P(r_c > r_r) of Gaussian rewards: -μ log Φ(z) - (1 - μ) log Φ(-z), z = (m_c - m_r) / √(s_c² + s_r²).

    Args:
        mean, std: of the chosen and of the rejected; deviations above 0.
        label: μ = P(the chosen is better).
    """
    z = (mean[0] - mean[1]) / (std[0].square() + std[1].square()).sqrt()
    return -(label * log_ndtr(z) + (1 - label) * log_ndtr(-z))


class GaussianHead(ClosedFormHead):
    """Ensemble of k Gaussian heads N(m_h(e), s_h(e)²), m_h = w_h·x, log s_h = v_h·x; the smallest s_h is used (BRME).

    Nominal reward of Yan et al. (arXiv 2409.15360); `all_heads` are for :func:`ebrm.aggregate.nominal_worst_case`. The
    fit is ours: Thurstone's likelihood (:func:`gaussian_pair_loss`), each head on its own bootstrap sample of the
    pairs, since the paper's regression on another head's rewards lets s fall to 0 on the same embeddings. Margins are
    not used.
    """

    noise = "normal"
    takes = ("label", "weight")

    config: GaussianConfig
    weight: Tensor  # [k, 2, d]: of means and of log-deviations

    def _build(self, size: int, groups: int, generator: torch.Generator | None) -> None:
        self.register_buffer("weight", torch.zeros(self.config.heads, 2, size))

    def all_heads(self, x: Tensor) -> tuple[Tensor, Tensor]:  # [n, d] -> [k, n], [k, n]
        """(mean, standard deviation) of every head, head units, float64."""
        mean, log_std = _outputs(x.double(), self.weight.double())
        return mean, log_std.exp()

    def scores(self, x: Tensor) -> Tensor:  # [n, d] -> [n]
        mean, std = self.all_heads(x)
        return most_confident_head(mean, std) if len(x) else mean[0]

    def spread(self, x: Tensor) -> Tensor:  # [n, d] -> [n]
        return self.all_heads(x)[1].amin(0)

    def learn(self, data: HeadData, generator: torch.Generator) -> None:
        x, p, k, s = data.embedding.double(), len(data.train), self.config.heads, self.config
        drawn = torch.randint(p, (k, p), generator=generator)
        times = torch.zeros(k, p, dtype=torch.float64).scatter_add_(1, drawn, torch.ones(k, p, dtype=torch.float64))
        weight = times.to(x.device) * data.train.weight
        label = (1 - s.label_smoothing) * data.train.label + s.label_smoothing * (1 - data.train.label)

        def losses(weights: Tensor, pairs: PreferencePairs, label: Tensor) -> Tensor:  # -> [k, p]
            mean, log_std = _outputs(x, weights.view(k, 2, -1))
            std = log_std.clamp(-5, 5).exp()
            sides = (pairs.chosen, pairs.rejected)
            return gaussian_pair_loss(
                (mean[:, sides[0]], mean[:, sides[1]]), (std[:, sides[0]], std[:, sides[1]]), label
            )

        held = data.validation
        weights, _ = best_penalty(
            lambda w: (weight * losses(w, data.train, label)).mean(1).sum(),
            (lambda w: weighted_mean(losses(w, held, held.label), held.weight)) if len(held) else None,
            torch.zeros(k * 2 * x.shape[1]).to(x), s.ridge,
        )  # fmt: skip
        self.weight.copy_(weights.view_as(self.weight))


def _outputs(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:  # [n, d], [k, 2, d] -> [k, n], [k, n]
    means, log_stds = torch.einsum("nd,kod->okn", x, weight).unbind(0)
    return means, log_stds


def anchored_ranking_loss(
    high: Tensor,  # [n]
    middle: Tensor,  # [n]
    low: Tensor,  # [n]
    new: Tensor,  # [m]
    old: Tensor,  # [m]
    weights: tuple[float, float, float] = (0.35, 1.0, 0.35),
    size: float = 0.01,
    anchor: float = 0.01,
) -> Tensor:  # []
    """ReMoDetect's loss (arXiv 2405.17382): three ranks, and a new reward that stays near the old one.

        ⅓ Σ_(p,q) λ_pq mean[-log σ(r_p - r_q) + size/2 (r_p² + r_q²)] + anchor Σ (r_new - r_old)²

    Args:
        high, middle, low: rewards of n triples.
        new, old: new and old rewards of m replayed responses; m = 0 is no anchor.
        weights: λ of (high, middle), (high, low), (middle, low); those of the published script.
        size, anchor: weights of the squared rewards and of the squared distance from the old rewards.

    Raises:
        ConfigError: a weight below 0. DataError: a reward that is not finite.
    """
    if min(*weights, size, anchor) < 0:
        raise ConfigError(f"Weights {weights}, size {size} and anchor {anchor} must all be 0 or more.")
    check_same_shape(high=high, middle=middle, low=low)
    check_same_shape(new=new, old=old)
    total = anchor * (check_finite(new, "new reward") - check_finite(old, "old reward")).square().sum()
    if len(high):
        for weight, (p, q) in zip(weights, ((high, middle), (high, low), (middle, low)), strict=True):
            squares = 0.5 * size * (p.double().square() + q.double().square())
            total = total + weight * (pair_loss(p, q).double() + squares).mean() / 3
    return total.to(high.dtype)


class AnchoredHead(LinearScores):
    """u(e) = w·x + b in the base RM's own units: pairs' loss plus `anchor` · mean (u - r0)² plus ridge/2 |w|².

    ReMoDetect's anchor (arXiv 2405.17382) on frozen embeddings, as a mean over all training rows and without its
    penalty on squared rewards. The pairs' likelihood is in base units: right for a base RM fitted by Bradley and
    Terry's.
    """

    config: AnchoredConfig
    bias: Tensor

    def _build(self, size: int, groups: int, generator: torch.Generator | None) -> None:
        super()._build(size, groups, generator)
        self.register_buffer("bias", torch.zeros((), dtype=torch.float64))

    def scores(self, x: Tensor) -> Tensor:  # [n, d] -> [n]
        return x.double() @ self.weight.double() + self.bias

    def fit_units(self, data: HeadData) -> None:
        self.gain.copy_(1 / self.standardizer.reward_std)
        self.offset.copy_(-self.standardizer.reward_mean / self.standardizer.reward_std)

    def learn(self, data: HeadData, generator: torch.Generator) -> None:
        x, rows = data.embedding.double(), data.training_rows
        std, mean = float(self.standardizer.reward_std), float(self.standardizer.reward_mean)
        # From the mean reward on, so that the bias is the mean of what is left: differences do not know it.
        base = data.reward[rows] * std
        self.bias.fill_(mean)

        pairs = pairs_loss(data, lambda w: x @ w, self.config.label_smoothing)
        anchor = self.config.anchor
        self._fit(data, lambda w: pairs(w) + anchor * ((x @ w)[rows] - base).square().mean(), self.config.ridge)
