"""A linear Bradley-Terry head with a distribution over its weights: less sure where pairs have said little."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ebrm.heads.bradley_terry import LinearHead
from ebrm.heads.data import HeadData
from ebrm.heads.head_config import HeadConfig


class BayesianHead(LinearHead):
    """u(e) = w·x with w ~ N(ŵ, H⁻¹): Laplace's approximation around the linear Bradley-Terry head, in closed form.

    ŵ is the linear head's weight. H is the second derivative of p times what it minimizes (p pairs), there:
    Σ_i w_i [μ_i σ'(z_i - m_i) + (1 - μ_i) σ'(-z_i - m_i)] Δ_i Δ_iᵀ + p l2 I, plus the centering penalty's, with
    Δ = x_c - x_r and σ'(z) = σ(z) σ(-z).

    A reward's deviation is √(xᵀ H⁻¹ x), seen from the average training embedding (x = 0): it grows with the distance in
    directions in which few pairs differ, and shrinks with 1/√p. It is what the head does not know, not the noise of one
    comparison.

    The pessimistic reward is w·x - c √(xᵀ H⁻¹ x) (`pessimism` c, :func:`ebrm.aggregate.ensembles.pessimistic`). Two
    rewards share w, so their errors are correlated: `prefer` knows that, and averages Bradley and Terry's probability
    over w with MacKay's approximation (1992), E σ(d) = σ(d / √(1 + π v / 8)), v = Δᵀ H⁻¹ Δ. `p_best` takes rewards as
    independent. Not from one paper: the Bayesian last layer of reward models, as it is common.

    Costs d² numbers; fitting takes p d² + d³ operations.
    """

    noise = "normal"

    root: Tensor  # [d, d], H⁻¹ = rootᵀ root

    def __init__(self, embedding_size: int, settings: HeadConfig, groups: int = 1) -> None:
        super().__init__(embedding_size, settings, groups)
        self.register_buffer("root", torch.eye(embedding_size))

    def spread(self, x: Tensor) -> Tensor:  # [n, d] -> [n]
        """√(xᵀ H⁻¹ x), head units."""
        return (x.double() @ self.root.double().T).square().sum(1).sqrt()

    def learn(self, data: HeadData, generator: torch.Generator) -> None:
        """Fit the weights and their covariance; draws nothing."""
        weight, l2 = self.learn_linear(data)
        x, settings = data.embedding.double(), self.settings
        chosen, rejected = x[data.train.chosen], x[data.train.rejected]
        difference = chosen - rejected
        z = difference @ weight
        label = (1 - settings.smoothing) * data.label + settings.smoothing * (1 - data.label)
        curvature = data.weight * (label * _slope(z - data.margin) + (1 - label) * _slope(-z - data.margin))
        second = difference.T @ (curvature[:, None] * difference)
        if settings.centering:
            second += 2 * settings.centering * (chosen + rejected).T @ (chosen + rejected)
        second.diagonal().add_(len(z) * l2)
        factor = torch.linalg.cholesky(second)  # H = L Lᵀ, so H⁻¹ = L⁻ᵀ L⁻¹
        identity = torch.eye(len(second), dtype=second.dtype, device=second.device)
        self.root.copy_(torch.linalg.solve_triangular(factor, identity, upper=False))

    @torch.no_grad()
    def prefer(
        self,
        embedding: tuple[Tensor, Tensor],  # [n, d] each
        reward: tuple[Tensor, Tensor],  # [n] each
        nodes: int = 257,
    ) -> Tensor:  # [n]
        """P(a is preferred to b), [n] float32: Bradley and Terry's, averaged over the weights."""
        a, b = (self.standardizer.embed(side.to(self.device)).double() for side in embedding)
        difference = (a - b) @ self.weight.double()
        variance = self.spread(a - b).square()
        return torch.sigmoid(difference / (1 + math.pi / 8 * variance).sqrt()).float().cpu()


def _slope(z: Tensor) -> Tensor:
    """σ'(z)."""
    return torch.sigmoid(z) * torch.sigmoid(-z)
