"""Pairs for the tests of curation: separable ones with known wrong labels, and a head that is fitted to pairs."""

from __future__ import annotations

import torch

from ebrm.pairs import PreferencePairs


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def a_pair_each(count):
    """Pairs of the rows 2i and 2i + 1."""
    return PreferencePairs.of(2 * torch.arange(count), 2 * torch.arange(count) + 1)


def separable(count, wrong, seed=0, width=5):
    """Embeddings [2p, d], pairs that one direction orders with a gap, and which of their labels are wrong [p]."""
    random = generator(seed)
    embedding = torch.randn(2 * count, width, generator=random, dtype=torch.float64)
    embedding[1::2, 0] = embedding[::2, 0] - 0.5 - torch.rand(count, generator=random, dtype=torch.float64)
    flipped = torch.zeros(count, dtype=torch.bool)
    flipped[torch.randperm(count, generator=random)[: round(wrong * count)]] = True
    pairs, _ = a_pair_each(count).after("inject noise", flip=flipped)
    return embedding, pairs, flipped


def fit_linear(embedding, pairs):
    """Bradley–Terry regression with a small ridge, by Newton's method, on the pairs' weights and labels."""
    gap = (embedding[pairs.chosen] - embedding[pairs.rejected]).double()
    coefficient = torch.zeros(gap.shape[1], dtype=torch.float64)
    for _ in range(8):
        p = torch.sigmoid(gap @ coefficient)
        gradient = gap.T @ (pairs.weight * (p - pairs.label)) + 0.1 * coefficient
        curvature = gap.T @ (gap * (pairs.weight * p * (1 - p))[:, None]) + 0.1 * torch.eye(len(coefficient))
        coefficient = coefficient - torch.linalg.solve(curvature, gradient)
    return lambda rows: rows.double() @ coefficient
