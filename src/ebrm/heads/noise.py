"""The noise that NCE+ contrasts with: equal-weight mixtures of Gaussians around a reward."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class MixtureNoise:
    """p_N(y | r) = (1/K) Σ_k N(y; r, σ_k²), with widths `sigmas` in internal reward units.

    Gustafsson et al., "How to Train Your Energy-Based Model for Regression" (BMVC 2020), eq. 8.
    """

    sigmas: tuple[float, ...]

    def log_prob(self, y: Tensor, center: Tensor) -> Tensor:
        """Log p_N(y | center), broadcast over both shapes."""
        offset = (y - center).unsqueeze(-1)
        sigma = torch.tensor(self.sigmas, dtype=offset.dtype, device=offset.device)
        terms = -0.5 * (offset / sigma) ** 2 - sigma.log()
        return torch.logsumexp(terms, -1) - 0.5 * math.log(2 * math.pi) - math.log(len(self.sigmas))

    def offsets(self, shape: tuple[int, ...], generator: torch.Generator, beta: float = 1.0) -> Tensor:
        """Draws of y - center with every width multiplied by `beta`, float32, on the generator's device."""
        device = generator.device
        sigma = torch.tensor(self.sigmas, device=device)
        component = torch.randint(len(self.sigmas), shape, generator=generator, device=device)
        return beta * sigma[component] * torch.randn(shape, generator=generator, device=device)
