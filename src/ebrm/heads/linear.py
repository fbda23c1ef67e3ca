"""Linear heads, fitted by full-batch L-BFGS: Bradley-Terry, with a Bayesian last layer, Gaussian, anchored."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.special import log_ndtr

from ebrm.aggregate import most_confident_head
from ebrm.errors import ConfigError
from ebrm.heads.base import ClosedFormHead
from ebrm.heads.config import AnchoredConfig, BayesianConfig, GaussianConfig, HeadConfig, LinearConfig
from ebrm.heads.data import HeadData
from ebrm.heads.losses import held_out_loss, pair_loss, pairs_loss, weighted_mean
from ebrm.heads.minimize import best_penalty
from ebrm.pairs import PreferencePairs
from ebrm.utils.validation import check_finite, check_same_shape


class LinearScores(ClosedFormHead):
    """u(e) = w·x, x the standardized embedding; subclasses fit w."""

    weight: Tensor  # [d]

    def __init__(
        self, embedding_size: int, config: HeadConfig, groups: int = 1, generator: torch.Generator | None = None
    ) -> None:
        super().__init__(embedding_size, config, groups, generator)
        self.register_buffer("weight", torch.zeros(embedding_size))

    def scores(self, x: Tensor) -> Tensor:  # [n, d] -> [n]
        """Reward of standardized embeddings, head units."""
        return x @ self.weight


class LinearHead(LinearScores):
    """u(e) = w·x, x the standardized embedding, fitted by full-batch L-BFGS in float64.

    Minimizes the weighted mean of :func:`ebrm.heads.pair_loss` over the training pairs plus ridge/2 |w|². No bias: only
    differences count. The penalty is the one of a grid with the lowest held-out loss; without one, separable pairs
    would let w grow for ever.
    """

    config: LinearConfig

    def learn(self, data: HeadData, generator: torch.Generator) -> None:
        """Fit the weights; draws nothing."""
        self.learn_linear(data)

    def learn_linear(self, data: HeadData) -> tuple[Tensor, float]:
        """Fit the weights; gives them in float64 [d], and the penalty."""
        x, s = data.embedding.double(), self.config
        loss = pairs_loss(data, lambda w: x @ w, s.label_smoothing, s.centering)
        weight, ridge = best_penalty(loss, held_out_loss(data, lambda w: x @ w), torch.zeros(x.shape[1]).to(x), s.ridge)
        self.weight.copy_(weight)
        return weight, ridge


class BayesianHead(LinearHead):
    """u(e) = w·x with w ~ N(ŵ, H⁻¹): Laplace's approximation around the linear Bradley-Terry head, in closed form.

    ŵ is the linear head's weight. H is the second derivative of p times what it minimizes (p: sum of the pairs'
    weights), there: Σ_i w_i [μ_i σ'(z_i - m_i) + (1 - μ_i) σ'(-z_i - m_i)] Δ_i Δ_iᵀ + p ridge I, plus the centering
    penalty's, with Δ = x_c - x_r and σ'(z) = σ(z) σ(-z).

    A reward's deviation is √(xᵀ H⁻¹ x), seen from the average training embedding (x = 0): it grows with the distance in
    directions in which few pairs differ, and shrinks with 1/√p. It is the uncertainty of the weights, not the noise of
    one comparison.

    The pessimistic reward is w·x - c √(xᵀ H⁻¹ x) (`pessimism` c, :func:`ebrm.aggregate.pessimistic`). Two rewards share
    w, so their errors are correlated: `prefer` accounts for it and averages Bradley and Terry's probability over w with
    MacKay's approximation (1992), E σ(d) = σ(d / √(1 + π v / 8)), v = Δᵀ H⁻¹ Δ. `p_best` takes rewards as independent.
    The Bayesian last layer common for reward models; not from one paper.

    Costs d² numbers; fitting takes p d² + d³ operations.
    """

    noise = "normal"

    config: BayesianConfig
    root: Tensor  # [d, d], H⁻¹ = rootᵀ root

    def __init__(
        self, embedding_size: int, config: HeadConfig, groups: int = 1, generator: torch.Generator | None = None
    ) -> None:
        super().__init__(embedding_size, config, groups, generator)
        self.register_buffer("root", torch.eye(embedding_size))

    def spread(self, x: Tensor) -> Tensor:  # [n, d] -> [n]
        """√(xᵀ H⁻¹ x), head units."""
        return (x.double() @ self.root.double().T).square().sum(1).sqrt()

    def learn(self, data: HeadData, generator: torch.Generator) -> None:
        """Fit the weights and their covariance; draws nothing."""
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
        self,
        embedding: tuple[Tensor, Tensor],  # [n, d] each
        base_reward: tuple[Tensor, Tensor],  # [n] each
        nodes: int | None = None,
    ) -> Tensor:  # [n]
        """P(a is preferred to b), [n] float32: Bradley and Terry's, averaged over the weights."""
        a, b = (self.standardizer.embed(side.to(self.device)).double() for side in embedding)
        difference = (a - b) @ self.weight.double()
        variance = self.spread(a - b).square()
        return torch.sigmoid(difference / (1 + math.pi / 8 * variance).sqrt()).float().cpu()


def _slope(z: Tensor) -> Tensor:
    """σ'(z)."""
    return torch.sigmoid(z) * torch.sigmoid(-z)


def gaussian_pair_loss(
    mean: tuple[Tensor, Tensor],  # [..., p] each
    std: tuple[Tensor, Tensor],  # [..., p] each
    label: Tensor | float = 1.0,
) -> Tensor:  # [..., p]
    """-log P(r_c > r_r) of Gaussian rewards: -μ log Φ(z) - (1 - μ) log Φ(-z), z = (m_c - m_r) / √(s_c² + s_r²).

    Thurstone's comparison with a deviation of its own for each response. It does not change with a constant added to
    both means, nor with a positive factor on all means and deviations together.

    Args:
        mean, std: of the chosen and of the rejected; deviations above 0.
        label: μ = P(the chosen is better).
    """
    z = (mean[0] - mean[1]) / (std[0].square() + std[1].square()).sqrt()
    return -(label * log_ndtr(z) + (1 - label) * log_ndtr(-z))


class GaussianHead(ClosedFormHead):
    """Ensemble of k Gaussian heads N(m_h(e), s_h(e)²), m_h = w_h·x, log s_h = v_h·x; the smallest s_h is used (BRME).

    The head with the smallest standard deviation gives the nominal reward of Yan et al., "Reward-Robust RLHF in LLMs"
    (arXiv 2409.15360); `all_heads` gives every head's, for the worst case (:func:`ebrm.aggregate.nominal_worst_case`).

    The fit is ours. The paper regresses on the rewards of a Bradley-Terry head; where a head can represent those
    exactly, as a linear one can on the same embeddings, the squared error of m + s ε falls with s all the way to 0, and
    the deviation means nothing. Here every head is fitted on pairs, by Thurstone's likelihood
    (:func:`gaussian_pair_loss`), on its own bootstrap sample of them. Pairs leave the common scale of m and s free: it
    is set by log s being 0 for the average training row, which also puts all heads in the same units. Margins are not
    used.
    """

    noise = "normal"
    takes = ("label", "weight")

    config: GaussianConfig
    weight: Tensor  # [k, 2, d]: of means and of log-deviations

    def __init__(
        self, embedding_size: int, config: HeadConfig, groups: int = 1, generator: torch.Generator | None = None
    ) -> None:
        super().__init__(embedding_size, config, groups, generator)
        self.register_buffer("weight", torch.zeros(self.config.heads, 2, embedding_size))

    def all_heads(self, x: Tensor) -> tuple[Tensor, Tensor]:  # [n, d] -> [k, n], [k, n]
        """(mean, standard deviation) of every head, head units, float64."""
        mean, log_std = _outputs(x.double(), self.weight.double())
        return mean, log_std.exp()

    def scores(self, x: Tensor) -> Tensor:  # [n, d] -> [n]
        """Reward of the head with the smallest standard deviation."""
        mean, std = self.all_heads(x)
        return most_confident_head(mean, std) if len(x) else mean[0]

    def spread(self, x: Tensor) -> Tensor:  # [n, d] -> [n]
        """Smallest standard deviation."""
        return self.all_heads(x)[1].amin(0)

    def learn(self, data: HeadData, generator: torch.Generator) -> None:
        """Fit all heads by L-BFGS, each on pairs drawn with `generator`, with replacement."""
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

    over (p, q) = (high, middle), (high, low), (middle, low). In the paper the ranks are texts of a language model,
    human texts rephrased by one, and human texts.

    Args:
        high, middle, low: rewards of n triples.
        new, old: new and old rewards of m replayed responses; m = 0 is no anchor.
        weights: λ of (high, middle), (high, low), (middle, low); those of the published script.
        size: weight of the squared rewards.
        anchor: weight of the squared distance from the old rewards.

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


class AnchoredHead(ClosedFormHead):
    """u(e) = w·x + b in the base RM's own units: pairs' loss plus `anchor` · mean (u - r0)² plus ridge/2 |w|².

    ReMoDetect's anchor (arXiv 2405.17382) on frozen embeddings: over all training rows in place of a replay buffer,
    as a mean in place of the sum over a batch of one, and without its penalty on squared rewards, which would pull
    rewards with an offset away from the anchor. Three ranks are three pairs, with the paper's λ as the pairs'
    weights. With `anchor` 0 it is the linear Bradley-Terry head; with a large one the base reward, as far as it is
    linear in the embedding.

    Rewards are the head's own, not brought to the base rewards' mean and deviation: the anchor does that. The pairs'
    likelihood is in the same units, as it was for a base RM fitted by Bradley and Terry's; for base rewards on
    another scale (0 to 1, say) it is not.
    """

    config: AnchoredConfig
    weight: Tensor  # [d]
    bias: Tensor

    def __init__(
        self, embedding_size: int, config: HeadConfig, groups: int = 1, generator: torch.Generator | None = None
    ) -> None:
        super().__init__(embedding_size, config, groups, generator)
        self.register_buffer("weight", torch.zeros(embedding_size))
        self.register_buffer("bias", torch.zeros((), dtype=torch.float64))

    def scores(self, x: Tensor) -> Tensor:  # [n, d] -> [n]
        """Reward of standardized embeddings, base units, float64."""
        return x.double() @ self.weight.double() + self.bias

    def fit_units(self, data: HeadData) -> None:
        """Base units as they are."""
        self.gain.copy_(1 / self.standardizer.reward_std)
        self.offset.copy_(-self.standardizer.reward_mean / self.standardizer.reward_std)

    def learn(self, data: HeadData, generator: torch.Generator) -> None:
        """Fit weights and bias; draws nothing."""
        x, rows = data.embedding.double(), data.training_rows
        std, mean = float(self.standardizer.reward_std), float(self.standardizer.reward_mean)
        # From the mean reward on, so that the bias is the mean of what is left: differences do not know it.
        base = data.reward[rows] * std
        self.bias.fill_(mean)

        pairs = pairs_loss(data, lambda w: x @ w, self.config.label_smoothing)
        weight, _ = best_penalty(
            lambda w: pairs(w) + self.config.anchor * ((x @ w)[rows] - base).square().mean(),
            held_out_loss(data, lambda w: x @ w), torch.zeros(x.shape[1]).to(x), self.config.ridge,
        )  # fmt: skip
        self.weight.copy_(weight)
