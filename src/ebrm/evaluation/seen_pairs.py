"""Memorized pairs: is the reward model far better on these pairs than its own embeddings could be on unseen ones?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ebrm.heads import EmbeddingSource
from ebrm.metrics import Bootstrap, PairedAccuracy, paired_accuracy
from ebrm.pairs import PreferencePairs
from ebrm.report import percent_estimate

Floats = NDArray[np.float64]

#: With fewer prompts nothing is said.
FEW_PROMPTS = 20
#: Ridge penalties, relative to the mean squared length of a pair's difference.
PENALTIES = (10.0, 3.0, 1.0, 0.3, 0.1, 0.03, 0.01, 1e-3, 1e-4)


@dataclass(frozen=True)
class Memorization:
    """Accuracy of the base reward on pairs against that of a linear head that was not fitted on them.

    Attributes:
        accuracy: `base` is the cross-fitted head's, `refined` the reward model's, both on the same pairs, with
            intervals over prompts.
        margin: from which on the difference is suspicious.
    """

    accuracy: PairedAccuracy
    margin: float

    @property
    def suspected(self) -> bool:
        """Whether the reward model is ahead by more than the margin, beyond the interval."""
        return self.accuracy.difference.low > self.margin

    def __str__(self) -> str:
        """One sentence, a question where the pairs are suspected to be known to the reward model."""
        rm, head = (percent_estimate(side, "%") for side in (self.accuracy.refined, self.accuracy.base))
        said = (
            f"On {self.accuracy.pairs:,} of the pairs the reward model is right in {rm}, a linear head on its own "
            f"embeddings, fitted to other prompts, in {head}"
        )
        return f"{said}: was it trained on them?" if self.suspected else f"{said}."

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        found = self.accuracy
        sides = {"reward_model": found.refined, "cross_fitted_head": found.base, "difference": found.difference}
        counts = {"pairs": found.pairs, "suspected": self.suspected, "margin": self.margin}
        return counts | {name: one.to_dict() for name, one in sides.items()}


def memorization(
    embedding: Tensor | EmbeddingSource,  # [n, d]
    reward: Tensor,  # [n]
    pairs: PreferencePairs,
    *,
    margin: float = 0.05,
    folds: int = 5,
    most: int = 1500,
    seed: int = 0,
    bootstrap: Bootstrap = Bootstrap(),
) -> Memorization | None:
    """Check whether a reward model seems to have been trained on pairs (ours).

    Its accuracy on them is compared with that of a ridge regression of their labels on the differences of its own
    embeddings, cross-fitted: the head that judges a pair has seen no pair of its prompt. A reward model that learned
    these very labels by heart is far ahead. So is a strong one where the pairs are too few to fit a head as good: the
    comparison raises a question, it does not answer it.

    Args:
        embedding: embeddings of n responses, in memory or on disk.
        reward: the reward model's own rewards of them.
        pairs: pairs over these; those of label 0.5 are left out.
        margin: by how much the reward model may be ahead, a share, before it is suspected.
        folds: parts that the prompts are divided into.
        most: pairs looked at, at most; whole prompts are drawn.
        seed: of the draw and the folds.
        bootstrap: of the intervals.

    Returns:
        None with fewer than 20 prompts, which tell nothing.
    """
    prompts, place = np.unique(pairs.prompt_id, return_inverse=True)
    order = np.random.default_rng(seed).permutation(len(prompts))[place]
    label = pairs.label.cpu().numpy()
    taken = np.flatnonzero(label != 0.5)
    taken = taken[np.argsort(order[taken], kind="stable")]
    if len(taken) > most:  # not the prompt that is cut
        taken = taken[order[taken] < order[taken[most]]]
    group = np.unique(order[taken], return_inverse=True)[1]
    if len(np.unique(group)) < max(FEW_PROMPTS, folds):
        return None
    some, sign = pairs.select(taken).to("cpu"), np.where(label[taken] > 0.5, 1.0, -1.0)
    rows, where = torch.unique(torch.cat([some.chosen, some.rejected]), return_inverse=True)
    chosen, rejected = where.split(len(some))
    known = embedding[rows].detach().cpu().double()
    spread = known.std(0, correction=0)
    known = known / torch.where(spread > 0, spread, torch.ones_like(spread))
    x = (known[chosen] - known[rejected]).numpy() * sign[:, None]
    base = sign * (reward[some.chosen] - reward[some.rejected]).detach().cpu().double().numpy()
    score, zero = _cross_fitted(x, group % folds), np.zeros(len(base))
    found = paired_accuracy(score, zero, base, zero, some.prompt_id, bootstrap=bootstrap)
    return Memorization(found, margin)


def _cross_fitted(x: Floats, fold: NDArray[np.int64]) -> Floats:
    """Scores [p] of ridge regressions of 1 on the differences x [p, d], each fold by the others' weights.

    The penalty for a fold is the one whose scores of the other folds have the smallest squared error.
    """
    wide = x.shape[1] > len(x)  # then by the products of pairs, else by those of columns: the same scores
    gram, folds = x @ x.T if wide else x, np.unique(fold)
    scale = max(float((x * x).sum()) / len(x), 1e-300)
    scores = np.empty((len(PENALTIES), len(x)))
    for held in folds:
        inside, outside = np.flatnonzero(fold == held), np.flatnonzero(fold != held)
        fitted = gram[np.ix_(outside, outside)] if wide else gram[outside].T @ gram[outside]
        values, vectors = np.linalg.eigh(fitted)
        target = vectors.sum(axis=0) if wide else x[outside].sum(axis=0) @ vectors
        reach = (gram[np.ix_(inside, outside)] if wide else x[inside]) @ vectors
        for number, penalty in enumerate(PENALTIES):
            scores[number, inside] = reach @ (target / (values.clip(0) + penalty * scale * len(outside)))
    error = (1 - scores) ** 2
    best = {held: int(error[:, fold != held].mean(axis=1).argmin()) for held in folds}
    return scores[[best[held] for held in fold], np.arange(len(x))]
