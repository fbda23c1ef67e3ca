"""A head that ranks anew but is held near the base reward."""

from __future__ import annotations

import torch
from torch import Tensor

from ebrm.errors import ConfigError
from ebrm.heads.base import RewardHead
from ebrm.heads.bradley_terry import held_out_loss
from ebrm.heads.data import HeadData
from ebrm.heads.head_config import HeadConfig
from ebrm.heads.losses import pair_loss
from ebrm.heads.minimize import best_penalty
from ebrm.utils.validation import check_finite, check_same_shape


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


class AnchoredHead(RewardHead):
    """u(e) = w·x + b in the base RM's own units: pairs' loss plus `anchor` · mean (u - r0)² plus l2/2 |w|².

    ReMoDetect's anchor (arXiv 2405.17382) on frozen embeddings: over all training rows in place of a replay buffer,
    as a mean in place of the sum over a batch of one, and without its penalty on squared rewards, which would pull
    rewards with an offset away from the anchor. Three ranks are three pairs, with the paper's λ as the pairs'
    weights. With `anchor` 0 it is the linear Bradley-Terry head; with a large one the base reward, as far as it is
    linear in the embedding.

    Rewards are the head's own, not brought to the base rewards' mean and deviation: the anchor does that. The pairs'
    likelihood is in the same units, as it was for a base RM fitted by Bradley and Terry's; for base rewards on
    another scale (0 to 1, say) it is not.
    """

    weight: Tensor  # [d]
    bias: Tensor

    def __init__(self, embedding_size: int, settings: HeadConfig, groups: int = 1) -> None:
        super().__init__(embedding_size, settings, groups)
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

        def loss(w: Tensor) -> Tensor:
            u = x @ w
            pairs = pair_loss(
                u[data.train.chosen], u[data.train.rejected], label=data.label, weight=data.weight,
                margin=data.margin, smoothing=self.settings.smoothing,
            )  # fmt: skip
            return pairs.mean() + self.settings.anchor * (u[rows] - base).square().mean()

        held_out = (lambda w: held_out_loss(x @ w, data)) if len(data.validation) else None
        weight, _ = best_penalty(loss, held_out, torch.zeros(x.shape[1]).to(x), self.settings.l2)
        self.weight.copy_(weight)
