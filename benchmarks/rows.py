"""Made-up rows to measure on: embeddings with structure, and base rewards that are linear in them but for noise."""

from __future__ import annotations

import torch
from torch import Tensor

from ebrm.heads import EnergyConfig, FittedHead, JointConfig, fit_head
from ebrm.pairs import PreferencePairs

#: Directions that most of an embedding's variance lies in.
_DIRECTIONS = 32


def made_rows(n: int, d: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Embeddings [n, d] and base rewards [n], float32.

    An embedding is white noise plus 32 directions of falling weight, each number with a scale and a center of its own;
    the reward is a linear map of it plus noise of 0.3 of its standard deviation.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    directions = normal(_DIRECTIONS, d) / torch.arange(1, _DIRECTIONS + 1).sqrt().unsqueeze(1)
    scale, center = normal(d).exp(), normal(d)
    weight = normal(d) / d**0.5
    factors, noise = normal(n, _DIRECTIONS), normal(n)
    embedding = normal(n, d)  # in place from here on: at 2^17 rows it is gigabytes
    embedding.addmm_(factors, directions)
    signal = embedding @ weight
    embedding.mul_(scale).add_(center)
    return embedding, 5.0 * (signal / signal.std() + 0.3 * noise) + 2.0


def fit_briefly(embedding: Tensor, reward: Tensor, config: EnergyConfig) -> FittedHead:
    """Fit on pairs of neighboring rows, the one with the higher reward chosen in four pairs of five.

    A tenth of the pairs is held out where the objective chooses the weight of the base reward by them.
    """
    generator = torch.Generator().manual_seed(0)
    first = torch.arange(0, len(reward) - 1, 2)
    wins = (reward[first] > reward[first + 1]) == (torch.rand(len(first), generator=generator) < 0.8)
    pairs = torch.stack([torch.where(wins, first, first + 1), torch.where(wins, first + 1, first)])
    held_out = len(first) // 10 if isinstance(config.objective, JointConfig) else 0
    train, validation = PreferencePairs.of(*pairs[:, held_out:]), PreferencePairs.of(*pairs[:, :held_out])
    return fit_head(config, embedding, reward, train, validation)
