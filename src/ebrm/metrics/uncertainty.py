"""Uncertainty: does a score tell errors (or any other rows) apart, and do intervals hold the share they state?

A pair is an *error* if the reward does not rank its chosen response strictly first. A useful uncertainty is larger for
errors: then leaving out the most uncertain pairs lowers the error rate of the rest.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.sparse import csr_array
from scipy.special import ndtr
from sklearn.metrics import roc_auc_score

from ebrm.errors import DataError
from ebrm.metrics.bootstrap import (
    Bootstrap,
    Estimate,
    Floats,
    Integers,
    as_floats,
    cluster_draws,
    cluster_labels,
    clustered_mean,
    finite_array,
    ratio,
    zero_or_one,
)
from ebrm.metrics.reliability import equal_mass_bins

# Resamples see at most so many different scores: the error that this makes in an interval is far below its own.
_LEVELS = 128
_ENDS = ("lower", "upper")


@dataclass(frozen=True)
class RiskCoverage:
    """Error rate of the most certain pairs, as more and more of them are kept.

    Attributes:
        coverage: k / n for k = 1 .. n, the share of pairs kept, the most certain first [n].
        risk: error rate among the k kept pairs [n]; pairs of equal uncertainty count by their mean.
        area: area under the curve (AURC, Geifman and El-Yaniv 2017), the mean of `risk`; lower is better.
        random: the area of an uncertainty that knows nothing, the overall error rate.
        best: the area of one that puts every error last; no uncertainty can be better.
        gain: `random` minus `area` (of the same resamples), what abstaining gains on average over all coverages.
    """

    coverage: Floats
    risk: Floats
    area: Estimate
    random: float
    best: float
    gain: Estimate


@dataclass(frozen=True)
class ErrorBin:
    """Pairs of about the same uncertainty: their mean uncertainty, error rate (interval over prompts) and number."""

    uncertainty: float
    error: Estimate
    pairs: int


def detection_auroc(
    score: ArrayLike, positive: ArrayLike, cluster: ArrayLike | None = None, *, bootstrap: Bootstrap = Bootstrap()
) -> Estimate | None:
    """Area under the ROC curve: probability that a random positive row has a higher score than another (ties one half).

    With a reward as the score it measures what a reward detects, whatever it was made for: text of a language model
    against text of people, as in ReMoDetect (arXiv 2405.17382), or responses that game a metric against honest ones.
    Rows are compared across prompts: offsets of single prompts matter, a rising map of all scores does not.

    Args:
        score: higher is more likely positive [m].
        positive: whether the row is of the kind to be detected [m], bool or 0 and 1.
        bootstrap: its resamples tell scores apart in 128 groups of about equal size.

    Returns:
        The area: 0.5 is chance, 1 separates the two. None if all rows or no rows are positive.
    """
    score = finite_array(score, "the score")
    positive = zero_or_one(positive, "whether rows are positive", len(score))
    if positive.all() or not positive.any():
        return None
    value = float(roc_auc_score(positive, score))
    return _group_draws(score, positive, cluster_labels(cluster, len(score)), bootstrap)(value, _roc_area)


def pair_std(chosen: ArrayLike, rejected: ArrayLike) -> Floats:
    """Standard deviation of a pair's reward difference, its two rewards taken as independent [p]."""
    chosen = finite_array(chosen, "the std of the chosen responses")
    rejected = finite_array(rejected, "the std of the rejected responses", len(chosen))
    return np.hypot(chosen, rejected)


def error_auroc(
    uncertainty: ArrayLike, error: ArrayLike, cluster: ArrayLike | None = None, *, bootstrap: Bootstrap = Bootstrap()
) -> Estimate | None:
    """`detection_auroc` of errors: probability that a random error is more uncertain than a random correct pair.

    `uncertainty` [p] is larger where less certain: a pair's std, or 1 - confidence; `error` [p] a pair ranked wrongly.
    """
    uncertainty, wrong, prompts = _pairs(uncertainty, error, cluster)
    return detection_auroc(uncertainty, wrong, prompts, bootstrap=bootstrap)


def risk_coverage(
    uncertainty: ArrayLike, error: ArrayLike, cluster: ArrayLike | None = None, *, bootstrap: Bootstrap = Bootstrap()
) -> RiskCoverage:
    """Risk-coverage curve (El-Yaniv and Wiener, 2010) and its area, from uncertainty [p] and error [p] of pairs."""
    uncertainty, wrong, prompts = _pairs(uncertainty, error, cluster)
    _, group, size = np.unique(uncertainty, return_inverse=True, return_counts=True)
    # Within a group of equal uncertainty the order is arbitrary: every pair gets the group's mean error.
    rate = np.bincount(group, weights=wrong) / size
    kept = np.arange(1, len(wrong) + 1)
    risk = np.cumsum(np.repeat(rate, size)) / kept
    errors = wrong.sum()
    best = np.maximum(0, kept - (len(wrong) - errors)) / kept
    area, random = float(risk.mean()), float(errors / len(wrong))
    estimate = _group_draws(uncertainty, wrong, prompts, bootstrap)
    return RiskCoverage(
        coverage=kept / len(wrong),
        risk=risk,
        area=estimate(area, _area),
        random=random,
        best=float(best.mean()),
        gain=estimate(random - area, _gain),
    )


def interval_coverage(
    interval: ArrayLike,
    value: ArrayLike,
    cluster: ArrayLike | None = None,
    noise: float = 0.0,
    *,
    bootstrap: Bootstrap = Bootstrap(),
) -> Estimate:
    """Share of held-out rewards inside their intervals, to be compared with the stated coverage.

    A density fitted to rewards with Gaussian label noise states intervals of *noisy* rewards. With `noise`, its
    standard deviation in the rewards' unit, each reward counts by the probability that it is inside after noise is
    added (ours). An `interval` (low, high) [m, 2] holds both its ends; `value` is the held-out reward [m].
    """
    value = finite_array(value, "the held-out reward")
    interval, labels = as_floats(interval, "intervals"), cluster_labels(cluster, len(value))
    if interval.shape != (len(value), 2):
        raise ValueError(f"intervals of shape {interval.shape}, expected {(len(value), 2)}, one for every reward")
    if not noise >= 0:
        raise ValueError(f"noise is {noise}, expected a standard deviation of 0 or more")
    low, high = (finite_array(interval[:, side], f"the {end} end of the intervals") for side, end in enumerate(_ENDS))
    backwards = np.flatnonzero(low > high)
    if len(backwards):
        raise DataError(
            f"{len(backwards)} of {len(value)} intervals end before they begin, the first in row {backwards[0]}: "
            f"{low[backwards[0]]} to {high[backwards[0]]}. An interval is (low, high)."
        )
    if noise == 0:
        inside = ((low <= value) & (value <= high)).astype(np.float64)
    else:
        inside = ndtr((high - value) / noise) - ndtr((low - value) / noise)
    return clustered_mean(inside, labels, bootstrap=bootstrap)


def error_by_uncertainty(
    uncertainty: ArrayLike,
    error: ArrayLike,
    cluster: ArrayLike | None = None,
    bins: int = 10,
    *,
    bootstrap: Bootstrap = Bootstrap(1000),
) -> tuple[ErrorBin, ...]:
    """Error rate in at most `bins` bins of about equal numbers of pairs, by rising uncertainty [p]."""
    uncertainty, wrong, prompts = _pairs(uncertainty, error, cluster)
    index = equal_mass_bins(uncertainty, bins)
    result = []
    for number in range(index.max() + 1):
        rows = index == number
        rate = clustered_mean(wrong[rows], prompts[rows], bootstrap=bootstrap)
        result.append(ErrorBin(float(uncertainty[rows].mean()), rate, int(rows.sum())))
    return tuple(result)


def _group_draws(
    score: Floats, positive: Floats, cluster: ArrayLike, bootstrap: Bootstrap
) -> Callable[[float, Callable[[Floats, Floats], Floats]], Estimate]:
    """Intervals of statistics of positive and other rows [g, B] in groups of rising score, by resampled clusters.

    Rows are grouped by equal score, or into as many groups as are told apart; an interval is moved by what grouping
    changes in its statistic.
    """
    group = np.unique(score, return_inverse=True)[1]
    if group.max() >= _LEVELS:
        group = equal_mass_bins(score, _LEVELS)
    place = np.unique(np.asarray(cluster), return_inverse=True)[1]
    shape = (int(group.max()) + 1, int(place.max()) + 1)
    tables = [csr_array((count, (group, place)), shape=shape) for count in (positive, 1 - positive)]
    everyone = [table.sum(axis=1)[:, None] for table in tables]
    drawn = [np.full((shape[0], bootstrap.resamples), np.nan) for _ in tables]
    if shape[1] > 1:  # one cluster says nothing about how clusters differ
        for which, times in cluster_draws(shape[1], shape[0], bootstrap=bootstrap):
            for totals, table in zip(drawn, tables, strict=True):
                totals[:, which] = table @ times

    def estimate(value: float, statistic: Callable[[Floats, Floats], Floats]) -> Estimate:
        return bootstrap.estimate(value, statistic(*drawn) + (value - statistic(*everyone)))

    return estimate


def _roc_area(positive: Floats, other: Floats) -> Floats:
    """Areas under the ROC curve [B] of groups [g, B]; NaN where all or no rows are positive."""
    below = np.cumsum(other, axis=0) - other / 2
    pairs = positive.sum(axis=0) * other.sum(axis=0)
    return ratio((positive * below).sum(axis=0), pairs)


def _area(wrong: Floats, right: Floats) -> Floats:
    """Areas under the risk-coverage curve [B] of groups [g, B].

    In a group of n pairs, e of them errors, after N pairs and E errors, the risk at N + k is (E + k e / n) / (N + k)
    = e / n + (E - N e / n) / (N + k): its sum over k needs the harmonic numbers only.
    """
    size = wrong + right
    rate = np.divide(wrong, size, out=np.zeros_like(size), where=size > 0)  # an empty group adds nothing
    kept, errors = np.cumsum(size, axis=0), np.cumsum(wrong, axis=0)
    if not np.isfinite(kept).all():
        return np.full(size.shape[1], np.nan)
    harmonic = np.concatenate([[0.0], np.cumsum(1 / np.arange(1, kept[-1].max() + 1))])
    before = kept - size
    steps = harmonic[kept.astype(np.int64)] - harmonic[before.astype(np.int64)]
    return (wrong + (errors - wrong - before * rate) * steps).sum(axis=0) / kept[-1]


def _gain(wrong: Floats, right: Floats) -> Floats:
    """Error rate minus area [B]."""
    return wrong.sum(axis=0) / (wrong + right).sum(axis=0) - _area(wrong, right)


def _pairs(uncertainty: ArrayLike, error: ArrayLike, cluster: ArrayLike | None) -> tuple[Floats, Floats, Integers]:
    """Uncertainties, errors as 0 and 1, and the clusters by number."""
    uncertainty = finite_array(uncertainty, "the uncertainty")
    wrong = zero_or_one(error, "the errors", len(uncertainty))
    return uncertainty, wrong, np.unique(cluster_labels(cluster, len(wrong)), return_inverse=True)[1]
