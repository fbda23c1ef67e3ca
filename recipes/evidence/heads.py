"""Heads on frozen embeddings: what energy refinement has to be at least as good as."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from ebrm.pairs import PreferencePairs


def standardized(embedding: Tensor, rows: Tensor) -> Tensor:
    """Every column to mean 0 and standard deviation 1 over `rows`."""
    some = embedding[rows]
    return (embedding - some.mean(0)) / some.std(0).clamp_min(1e-6)


def bradley_terry_head(embedding: Tensor, pairs: PreferencePairs, ridge: float) -> Tensor:  # [n, d] -> [d]
    """Linear head by Bradley-Terry on standardized embeddings: mean loss + ridge/2 · |w|², to convergence."""
    difference = (embedding[pairs.chosen] - embedding[pairs.rejected]).double()
    w = torch.zeros(embedding.shape[1], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([w], max_iter=200, tolerance_grad=1e-6, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = -F.logsigmoid(difference @ w).mean() + 0.5 * ridge * w.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return w.detach().float()


def silu_head(
    embedding: Tensor, pairs: PreferencePairs, seed: int, width: int = 128, epochs: int = 3, dropout: float = 0.5
) -> Tensor:  # [n, d] -> [n]
    """Rewards of a two-layer SiLU head by Bradley-Terry, trained in the batches and passes of the energy model."""
    generator = torch.Generator().manual_seed(seed)
    first, last = (
        torch.nn.utils.skip_init(torch.nn.Linear, a, b) for a, b in ((embedding.shape[1], width), (width, 1))
    )
    for layer in (first, last):
        bound = layer.in_features**-0.5
        for weight in layer.parameters():
            weight.data.uniform_(-bound, bound, generator=generator)
    optimizer = torch.optim.AdamW([*first.parameters(), *last.parameters()], lr=1e-3, weight_decay=1e-2)
    for _ in range(epochs):
        for batch in torch.randperm(len(pairs), generator=generator).split(64):
            keep = (torch.rand(len(batch), width, generator=generator) > dropout) / (1 - dropout)  # one mask a pair
            both = torch.cat([pairs.chosen[batch], pairs.rejected[batch]])
            chosen, rejected = last(F.silu(first(embedding[both])) * torch.cat([keep, keep])).squeeze(1).chunk(2)
            optimizer.zero_grad()
            (-F.logsigmoid(chosen - rejected).mean()).backward()
            optimizer.step()
    with torch.no_grad():
        return torch.cat([last(F.silu(first(part))).squeeze(1) for part in embedding.split(8192)])
