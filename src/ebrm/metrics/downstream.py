"""Does a benchmark of reward models foretell what selecting or training with them gives?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import rankdata

from ebrm.metrics.bootstrap import Bootstrap, Estimate, finite_array

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class DownstreamCorrelation:
    """How a benchmark's scores go with outcomes over reward models.

    Attributes:
        pearson: linear correlation.
        spearman: correlation of the ranks, equal values sharing their mean rank.
        models: number of reward models.
    """

    pearson: Estimate
    spearman: Estimate
    models: int


def downstream_correlation(
    score: ArrayLike,
    outcome: ArrayLike,
    *,
    bootstrap: Bootstrap = Bootstrap(),
) -> DownstreamCorrelation:
    """Pearson's and Spearman's correlation of benchmark scores and downstream outcomes, one of each a reward model.

    The check of validity that RewardBench 2 (arXiv 2506.01937; Pearson 0.87 with best-of-16) and Personalized
    RewardBench (arXiv 2604.07343) report. The intervals resample *reward models*, the only thing that is drawn here:
    that each score is itself measured on few prompts is not in them. With fewer than some ten models they are too
    narrow; with fewer than three there are none. A rising linear map of either side changes nothing, any rising map
    leaves Spearman's as it is.

    Args:
        score: benchmark scores of the reward models [k].
        outcome: what each gave, in any unit, for instance the mean gold reward of its best-of-n [k].
        bootstrap: of the intervals.

    Returns:
        Both correlations in [-1, 1]; NaN where all scores or all outcomes are equal.

    Raises:
        DataError: if there are no models or a number is not finite.
        ValueError: if the arrays differ in length.
    """
    score = finite_array(score, "the benchmark score")
    outcome = finite_array(outcome, "the outcome", len(score))
    order = np.lexsort((outcome, score))
    score, outcome = score[order], outcome[order]
    drawn = np.empty((0, len(score)), dtype=np.int64)
    if len(score) > 2:
        drawn = bootstrap.generator().integers(0, len(score), size=(bootstrap.resamples, len(score)))

    def estimate(first: Floats, second: Floats, draws: Floats) -> Estimate:
        return bootstrap.estimate(float(_correlation(first[None], second[None])[0]), draws)

    pearson = _correlation(score[drawn], outcome[drawn])
    spearman = _correlation(_ranks(score[drawn]), _ranks(outcome[drawn]))
    return DownstreamCorrelation(
        pearson=estimate(score, outcome, pearson),
        spearman=estimate(_ranks(score[None])[0], _ranks(outcome[None])[0], spearman),
        models=len(score),
    )


def _ranks(values: Floats) -> Floats:
    """Mean ranks within each row [b, k]."""
    return np.asarray(rankdata(values, axis=1), dtype=np.float64) if values.size else values


def _correlation(first: Floats, second: Floats) -> Floats:
    """Pearson correlation of each row [b] of [b, k]; NaN where a side is constant."""
    (one, varies), (two, also) = _standard(first), _standard(second)
    return np.where(varies & also, (one * two).sum(axis=1), np.nan).clip(-1, 1)


def _standard(values: Floats) -> tuple[Floats, NDArray[np.bool_]]:
    """Rows of mean 0 and norm 1, and whether they vary at all; free of overflow."""
    low, high = values.min(axis=1, keepdims=True), values.max(axis=1, keepdims=True)
    scale = np.maximum(np.abs(low), np.abs(high))
    values = values / np.where(scale > 0, scale, 1)
    off = values - values.mean(axis=1, keepdims=True)
    norm = np.linalg.norm(off, axis=1, keepdims=True)
    return off / np.where(norm > 0, norm, 1), ((low < high) & (norm > 0))[:, 0]
