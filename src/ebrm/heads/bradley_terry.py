"""Heads fitted on pairs by Bradley and Terry's likelihood: linear, and two layers with SiLU."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, silu

from ebrm.heads.base import RewardHead
from ebrm.heads.data import HeadData
from ebrm.heads.head_config import HeadConfig
from ebrm.heads.losses import pair_loss
from ebrm.heads.minimize import best_penalty, early_stopping


def held_out_loss(scores: Tensor, data: HeadData) -> float:
    """Mean Bradley-Terry loss of the held-out pairs, `scores` [n] being those of the data's rows."""
    chosen, rejected = scores[data.validation.chosen], scores[data.validation.rejected]
    return float(pair_loss(chosen, rejected).double().mean())


class LinearHead(RewardHead):
    """u(e) = w·x, x the standardized embedding, fitted by full-batch L-BFGS in float64.

    Minimizes the mean of :func:`ebrm.heads.losses.pair_loss` over the training pairs (with their labels, weights
    and margins, and the settings' smoothing and centering) plus l2/2 |w|². No bias: only differences count. The penalty
    is the one of a grid under which held-out pairs are likeliest; without one, separable pairs would let w grow for
    ever.
    """

    weight: Tensor  # [d]

    def __init__(self, embedding_size: int, settings: HeadConfig, groups: int = 1) -> None:
        super().__init__(embedding_size, settings, groups)
        self.register_buffer("weight", torch.zeros(embedding_size))

    def scores(self, x: Tensor) -> Tensor:  # [n, d] -> [n]
        """Reward of standardized embeddings, head units."""
        return x @ self.weight

    def learn(self, data: HeadData, generator: torch.Generator) -> None:
        """Fit the weights; draws nothing."""
        self.learn_linear(data)

    def learn_linear(self, data: HeadData) -> tuple[Tensor, float]:
        """Fit the weights; gives them in float64 [d], and the penalty."""
        x = data.embedding.double()

        def loss(w: Tensor) -> Tensor:
            u = x @ w
            return self.pairs_loss(u[data.train.chosen], u[data.train.rejected], data).mean()

        held_out = (lambda w: held_out_loss(x @ w, data)) if len(data.validation) else None
        weight, l2 = best_penalty(loss, held_out, torch.zeros(x.shape[1]).to(x), self.settings.l2)
        self.weight.copy_(weight)
        return weight, l2

    def pairs_loss(self, chosen: Tensor, rejected: Tensor, data: HeadData) -> Tensor:  # [p], [p] -> [p]
        """Losses of all training pairs."""
        return pair_loss(
            chosen, rejected, label=data.label, weight=data.weight, margin=data.margin,
            smoothing=self.settings.smoothing, centering=self.settings.centering,
        )  # fmt: skip


class TwoLayers(nn.Module):
    """v·SiLU(W x + b): two layers, with no bias at the end, which no pair could tell.

    Initial weights are PyTorch's for such layers, drawn from `generator`.
    """

    def __init__(self, inputs: int, hidden: int, outputs: int = 1, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.first = nn.utils.skip_init(nn.Linear, inputs, hidden)
        self.last = nn.Parameter(torch.empty(outputs, hidden))
        with torch.no_grad():
            for tensor, size in ((self.first.weight, inputs), (self.first.bias, inputs), (self.last, hidden)):
                tensor.uniform_(-1 / math.sqrt(size), 1 / math.sqrt(size), generator=generator)

    def forward(self, x: Tensor) -> Tensor:  # [n, d] -> [n, outputs]
        """Outputs of rows."""
        return linear(silu(self.first(x)), self.last)


class SiluHead(RewardHead):
    """u(e) = v·SiLU(W x + b): the two-layer head of BaseReward (arXiv 2509.16127), without a bias at the end.

    Fitted by AdamW on batches of pairs with Bradley and Terry's loss; the pass with the lowest held-out loss is kept.
    The paper's head has a last bias, which cancels in every pair; its hidden width is not known, and it trains the
    whole model, at a learning rate of 3e-6.
    """

    def __init__(self, embedding_size: int, settings: HeadConfig, groups: int = 1) -> None:
        super().__init__(embedding_size, settings, groups)
        draws = torch.Generator().manual_seed(settings.seed)
        self.network = TwoLayers(embedding_size, settings.hidden, 1, draws)

    def scores(self, x: Tensor) -> Tensor:  # [n, d] -> [n]
        """Reward of standardized embeddings, head units."""
        return self.network(x).squeeze(1)

    def learn(self, data: HeadData, generator: torch.Generator) -> None:
        """Fit the network; shuffles with `generator`."""
        s, x, train = self.settings, data.embedding, data.train

        def loss(batch: Tensor) -> Tensor:
            u = self.scores(x[torch.cat([train.chosen[batch], train.rejected[batch]])])
            return pair_loss(
                u[: len(batch)], u[len(batch) :], label=data.label[batch], weight=data.weight[batch],
                margin=data.margin[batch], smoothing=s.smoothing, centering=s.centering,
            ).mean()  # fmt: skip

        early_stopping(
            self.network, lambda g: shuffled(len(train), s.batch_pairs, g), loss,
            (lambda: held_out_loss(self.scores(x), data)) if len(data.validation) else None,
            learning_rate=s.learning_rate, weight_decay=s.weight_decay, epochs=s.epochs, patience=s.patience,
            generator=generator,
        )  # fmt: skip


def shuffled(count: int, at_once: int, generator: torch.Generator) -> Iterable[Tensor]:
    """Places 0 … count - 1 in random order, `at_once` at a time."""
    return torch.randperm(count, generator=generator).split(at_once)
