"""Made pairs that heads can be fitted on: embeddings, a true reward, and a base reward that is off."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ebrm.heads import HeadConfig, Refinement, RewardHead, fit_head
from ebrm.pairs import PreferencePairs


@dataclass(frozen=True)
class World:
    embedding: Tensor  # [n, d]
    reward: Tensor  # [n], base
    truth: Tensor  # [n]
    train: PreferencePairs
    validation: PreferencePairs
    test: PreferencePairs

    def fit(self, config: HeadConfig, validation: PreferencePairs | None = None, seed: int = 0, **columns: Any) -> Any:
        """The head fitted on the training pairs with these columns."""
        train = PreferencePairs.of(self.train.chosen, self.train.rejected, **columns)
        held = self.validation if validation is None else validation
        return fit_head(config, self.embedding, self.reward, train, held, seed=seed).head

    def refined(self, head: RewardHead, **inference: Any) -> Refinement:
        return head.with_inference(**inference).refine(self.embedding, self.reward)

    @property
    def rows(self) -> Tensor:
        """Rows of the training pairs, each once."""
        return torch.unique(torch.cat([self.train.chosen, self.train.rejected]))

    def accuracy(self, reward: Tensor) -> float:
        return float((reward[self.test.chosen] > reward[self.test.rejected]).float().mean())


def world(
    truth: Callable[[Tensor], Tensor],
    pairs: int = 600,
    size: int = 6,
    seed: int = 0,
    flips: float = 0.0,
    offset: float = 40.0,
    scale: float = 3.0,
) -> World:
    """Pairs of independent normal embeddings, labeled by Bradley and Terry under `truth`; `flips` labels wrong."""
    generator = torch.Generator().manual_seed(seed)
    embedding = torch.randn(2 * pairs, size, generator=generator)
    reward = truth(embedding)
    a, b = torch.arange(0, 2 * pairs, 2), torch.arange(1, 2 * pairs, 2)
    first = torch.rand(pairs, generator=generator) < torch.sigmoid(reward[a] - reward[b])
    wrong = torch.rand(pairs, generator=generator) < flips
    third = 2 * pairs // 3
    first[:third] ^= wrong[:third]
    first[third:] = reward[a[third:]] > reward[b[third:]]  # what is measured on has no noise
    chosen, rejected = torch.where(first, a, b), torch.where(first, b, a)
    base = offset + scale * (reward + torch.randn(2 * pairs, generator=generator))
    parts = (slice(0, third), slice(third, third + pairs // 6), slice(third + pairs // 6, pairs))
    train, validation, test = (PreferencePairs.of(chosen[part], rejected[part]) for part in parts)
    return World(embedding, base, reward, train, validation, test)


def linear_truth(x: Tensor) -> Tensor:
    return x @ torch.linspace(2.0, -1.0, x.shape[1])


def xor_truth(x: Tensor) -> Tensor:
    """No linear function of x agrees with it in more than half of all pairs."""
    return 3 * torch.sign(x[:, 0] * x[:, 1])


NONE = PreferencePairs.of([], [])
