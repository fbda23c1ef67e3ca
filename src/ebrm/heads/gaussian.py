"""Several Gaussian heads: each gives a reward and how sure it is; the surest of them is heard."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.special import log_ndtr

from ebrm.aggregate import most_confident_head
from ebrm.heads.base import RewardHead
from ebrm.heads.data import HeadData
from ebrm.heads.head_config import HeadConfig
from ebrm.heads.minimize import best_penalty


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


class GaussianHeads(RewardHead):
    """k heads N(m_h(e), s_h(e)²), m_h = w_h·x and log s_h = v_h·x: BRME's Gaussian ensemble on frozen embeddings.

    Reward and deviation of a row are those of its surest head, h* = argmin_h s_h, the nominal reward of Yan et al.,
    "Reward-Robust RLHF in LLMs" (arXiv 2409.15360); `all_heads` gives every head's, for the worst case
    (:func:`ebrm.aggregate.nominal.nominal_worst_case`).

    How it is fitted is ours. The paper regresses on the rewards of a Bradley-Terry head; where a head can represent
    those exactly, as a linear one can on the same embeddings, the squared error of m + s ε falls with s all the way to
    0, and the deviation says nothing. Here every head is fitted on pairs, by Thurstone's likelihood
    (:func:`gaussian_pair_loss`), on its own bootstrap sample of them. Pairs leave the common scale of m and s free: it
    is set by log s being 0 for the average training row, which also puts all heads in the same units. Margins are not
    used.
    """

    noise = "normal"

    weight: Tensor  # [k, 2, d]: of means and of log-deviations

    def __init__(self, embedding_size: int, settings: HeadConfig, groups: int = 1) -> None:
        super().__init__(embedding_size, settings, groups)
        self.register_buffer("weight", torch.zeros(settings.heads, 2, embedding_size))

    def all_heads(self, x: Tensor) -> tuple[Tensor, Tensor]:  # [n, d] -> [k, n], [k, n]
        """(mean, standard deviation) of every head, head units, float64."""
        mean, log_std = _outputs(x.double(), self.weight.double())
        return mean, log_std.exp()

    def scores(self, x: Tensor) -> Tensor:  # [n, d] -> [n]
        """Reward that the surest head gives."""
        mean, std = self.all_heads(x)
        return most_confident_head(mean, std) if len(x) else mean[0]

    def spread(self, x: Tensor) -> Tensor:  # [n, d] -> [n]
        """Standard deviation of the surest head."""
        return self.all_heads(x)[1].amin(0)

    def learn(self, data: HeadData, generator: torch.Generator) -> None:
        """Fit all heads by L-BFGS, each on pairs drawn with `generator`, with replacement."""
        x, p, k = data.embedding.double(), len(data.train), self.settings.heads
        drawn = torch.randint(p, (k, p), generator=generator)
        times = torch.zeros(k, p, dtype=torch.float64).scatter_add_(1, drawn, torch.ones(k, p, dtype=torch.float64))
        label = (1 - self.settings.smoothing) * data.label + self.settings.smoothing * (1 - data.label)

        def losses(weights: Tensor, pairs: tuple[Tensor, Tensor], label: Tensor | float) -> Tensor:  # -> [k, p]
            mean, log_std = _outputs(x, weights.view(k, 2, -1))
            std = log_std.clamp(-5, 5).exp()
            return gaussian_pair_loss(
                (mean[:, pairs[0]], mean[:, pairs[1]]), (std[:, pairs[0]], std[:, pairs[1]]), label
            )

        train = (data.train.chosen, data.train.rejected)
        held = (data.validation.chosen, data.validation.rejected)
        weights, _ = best_penalty(
            lambda w: (times * data.weight * losses(w, train, label)).mean(1).sum(),
            (lambda w: float(losses(w, held, 1.0).mean())) if len(data.validation) else None,
            torch.zeros(k * 2 * x.shape[1]), self.settings.l2,
        )  # fmt: skip
        self.weight.copy_(weights.view_as(self.weight))


def _outputs(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:  # [n, d], [k, 2, d] -> [k, n], [k, n]
    means, log_stds = torch.einsum("nd,kod->okn", x, weight).unbind(0)
    return means, log_stds
