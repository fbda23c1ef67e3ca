"""Leverage: an epistemic standard deviation that grows with the distance from the training rows."""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor, nn

from ebrm.errors import ModelError
from ebrm.utils.validation import check_finite, check_range, check_setting


class Leverage(nn.Module):
    """Standard deviation √(φᵀ (λI + ΦᵀWΦ)⁻¹ φ) of a linear reward w·φ under its Laplace posterior.

    Φ [n, d] are the training rows' standardized embeddings or the differences of training pairs, W their curvatures
    (Bradley-Terry: P (1 - P) times the pair's weight), λ the precision of the prior of w; MacKay (1992), and the
    leverage of a row in ridge regression. It does not depend on labels but through W: it says how little the training
    rows have to say of a row, not whether its reward is wrong. Proportional to the distance from 0, and 1/√λ a unit of
    length in directions that no training row has.

    Held as the `rank` directions of largest curvature; those left out count as unseen, so the result is never too
    small. 256 directions of 2,000 numbers are 2 MiB.

    Attributes:
        directions: orthonormal rows, float32 [k, d].
        curvature: eigenvalues of ΦᵀWΦ along them, float64 [k].
        ridge: λ, float64 [].
    """

    directions: Tensor
    curvature: Tensor
    ridge: Tensor

    def __init__(self, size: int, rank: int) -> None:
        super().__init__()
        self.register_buffer("directions", torch.zeros(rank, size))
        self.register_buffer("curvature", torch.zeros(rank, dtype=torch.float64))
        self.register_buffer("ridge", torch.ones((), dtype=torch.float64))

    @classmethod
    def fit(cls, features: Tensor, weight: Tensor | None = None, ridge: float = 1.0, rank: int = 256) -> Self:
        """From training rows or pair differences.

        Args:
            features: Φ, standardized [n, d]; n = 0 is allowed.
            weight: diagonal of W, at least 0 [n]; None: 1.
            ridge: λ, above 0.
            rank: most directions to keep, 1 or more; there are min(n, d).

        Raises:
            DataError: a number that is not finite, or a weight below 0.
            ConfigError: `ridge` or `rank` out of range.
        """
        check_setting("ridge", ridge, above=0)
        check_setting("rank", rank, at_least=1)
        phi = check_finite(features, "features [n, d]")
        if weight is not None:
            phi = phi * check_range(weight, 0, torch.inf, "weight [n]", n=len(phi)).to(phi.device).sqrt()[:, None]
        n, d = phi.shape
        keep = min(rank, n, d)
        if n < d:  # of the smaller Gram matrix: ΦΦᵀ = U S Uᵀ, directions Φᵀ U / √S
            values, vectors = torch.linalg.eigh(phi @ phi.T)
            values, vectors = values.flip(0)[:keep].clamp_min(0), vectors.flip(1)[:, :keep]
            directions = (phi.T @ vectors / values.sqrt().clamp_min(torch.finfo(torch.float64).tiny)).T
        else:
            values, vectors = torch.linalg.eigh(phi.T @ phi)
            values, directions = values.flip(0)[:keep].clamp_min(0), vectors.flip(1)[:, :keep].T
        # Below this, what is left is rounding and its directions are arbitrary.
        real = values > 1e-10 * values.amax().clamp_min(1e-300) if keep else values > 0
        made = cls(d, int(real.sum()))
        made.directions.copy_(directions[real])
        made.curvature.copy_(values[real])
        made.ridge.fill_(ridge)
        return made

    @classmethod
    def of_state(cls, tensors: dict[str, Tensor]) -> Self:
        """Build it back from its `state_dict()`; ModelError where a tensor is missing or of another shape."""
        try:
            rank, size = tensors["directions"].shape
            made = cls(size, rank)
            made.load_state_dict(tensors)
        except (KeyError, ValueError, RuntimeError) as error:
            raise ModelError(f"A leverage cannot be put together: {error}. Fit the model again.") from error
        return made

    @torch.no_grad()
    def forward(self, features: Tensor) -> Tensor:
        """Standard deviation of each row [n] from standardized embeddings [n, d], float32; of pairs from differences.

        A row's result does not depend on the other rows.
        """
        size = self.directions.shape[1]
        if features.dim() != 2 or features.shape[1] != size:
            raise ModelError(f"Embeddings [n, {size}] were expected, and {list(features.shape)} were given.")
        phi, directions = features.double(), self.directions.double()
        along = phi @ directions.T
        rest = phi - along @ directions
        variance = rest.square().sum(1) / self.ridge + (along.square() / (self.curvature + self.ridge)).sum(1)
        return variance.sqrt().float()
