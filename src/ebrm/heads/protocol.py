"""What an EnergyRewardModel asks of what it holds: rewards with their uncertainty, given an embedding."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from ebrm.heads.energy import Refinement, RewardDensity
from ebrm.heads.fusion import Fusion
from ebrm.heads.grid import Posterior
from ebrm.heads.head_config import HeadConfig
from ebrm.heads.old_config import InferenceConfig, NetworkConfig
from ebrm.heads.registry import load_head
from ebrm.heads.rows import EmbeddingSource
from ebrm.heads.standardize import Standardizer


class RewardPosterior(Protocol):
    """A distribution over the reward of each row: the energy model's density, or a head of :mod:`ebrm.energy.heads`.

    An `nn.Module` whose state says all there is to say. Rewards given and taken are in the base RM's units; those of
    `support` and `internal_posterior` in the standardizer's.
    """

    standardizer: Standardizer
    support: Tensor  # [2]

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        ...

    @property
    def trust(self) -> Fusion:
        """How far the distribution and the base reward are trusted."""
        ...

    def refine(
        self,
        embedding: Tensor | EmbeddingSource,  # [n, d]
        base_reward: Tensor,  # [n]
        settings: InferenceConfig,
        generator: torch.Generator | None = None,
    ) -> Refinement:
        """Rewards with their uncertainty, for any number of rows including none."""
        ...

    def internal_posterior(self, embedding: Tensor | EmbeddingSource, reward: Tensor, nodes: int) -> Posterior:
        """The distribution at `nodes` nodes over the support; nodes do not depend on the rows."""
        ...

    def density(self, embedding: Tensor, reward: Tensor, nodes: int = 257) -> tuple[Tensor, Tensor]:
        """(rewards [g], density [n, g]) in base units and per base unit."""
        ...

    def prefer(
        self, embedding: tuple[Tensor, Tensor], reward: tuple[Tensor, Tensor], nodes: int = 257
    ) -> Tensor:  # [n]
        """P(r_a > r_b) of rows (a, b)."""
        ...

    def p_best(self, embedding: Tensor, base_reward: Tensor, nodes: int = 257) -> Tensor:  # [n, d], [n] -> [n]
        """P(r_i is the largest of the rows' rewards), summing to one."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """All parameters and buffers, by name."""
        ...

    def eval(self) -> Any:
        """Leave training."""
        ...

    def to(self, device: torch.device | str) -> Any:
        """Move to a device."""
        ...


def load_posterior(settings: NetworkConfig | HeadConfig, tensors: dict[str, Tensor]) -> RewardPosterior:
    """The energy model's density, or the head, whose settings and state these are.

    Raises:
        KeyError, RuntimeError: tensors that are not those of what the settings say.
    """
    if isinstance(settings, HeadConfig):
        return load_head(settings, tensors)
    density = RewardDensity(len(tensors["standardizer.embedding_center"]), settings)
    density.load_state_dict(tensors)
    return density
