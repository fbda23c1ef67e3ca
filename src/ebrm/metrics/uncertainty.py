"""Does a reward know when it is wrong?

A pair is an *error* if the reward does not rank its chosen response strictly first. A useful uncertainty is larger for
errors: then leaving out the most uncertain pairs lowers the error rate of the rest.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtr

from ebrm.errors import DataError
from ebrm.metrics.auroc import GroupDraws, detection_auroc, zero_or_one
from ebrm.metrics.bootstrap import (
    Bootstrap,
    Estimate,
    clustered_mean,
    finite_array,
)
from ebrm.metrics.reliability import equal_mass_bins

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

_ENDS = ("lower", "upper")


@dataclass(frozen=True)
class RiskCoverage:
    """Error rate of the most certain pairs, as more and more of them are kept.

    Attributes:
        coverage: k / n for k = 1 .. n, the share of pairs kept, the most certain first [n].
        risk: error rate among the k kept pairs [n]; pairs of equal uncertainty count by their mean.
        area: area under the curve (AURC, Geifman and El-Yaniv 2017), the mean of `risk`, with its interval over
            prompts; lower is better.
        random: the area of an uncertainty that knows nothing, the overall error rate.
        best: the area of one that puts every error last; no uncertainty can be better.
        gain: `random` minus `area`, what is gained by abstaining on average over all coverages, with its interval over
            prompts (area and error rate from the same resamples).
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


def pair_std(chosen: ArrayLike, rejected: ArrayLike) -> Floats:
    """Standard deviation of a pair's reward difference, its two rewards taken as independent [p]."""
    chosen = finite_array(chosen, "the std of the chosen responses")
    rejected = finite_array(rejected, "the std of the rejected responses", len(chosen))
    return np.hypot(chosen, rejected)


def error_auroc(
    uncertainty: ArrayLike,
    error: ArrayLike,
    prompt_id: ArrayLike | None = None,
    *,
    bootstrap: Bootstrap = Bootstrap(),
) -> Estimate | None:
    """Probability that a random error is more uncertain than a random correct pair (ties one half).

    Args:
        uncertainty: larger is less certain [p]: a pair's std, or 1 - confidence.
        error: whether the pair is ranked wrongly [p].
        prompt_id: one label a pair [p], the unit resampled for the interval; None: each pair its own.
        bootstrap: of the intervals.

    Returns:
        The area under the ROC curve: 0.5 says nothing, 1 tells all errors, below 0.5 misleads. None if all pairs or no
        pairs are errors.

    Raises:
        DataError: if there are no pairs or an uncertainty is not finite.
        ValueError: if the arrays differ in length.
    """
    uncertainty, wrong, prompts = _pairs(uncertainty, error, prompt_id)
    return detection_auroc(uncertainty, wrong, prompts, bootstrap=bootstrap)


def risk_coverage(
    uncertainty: ArrayLike,
    error: ArrayLike,
    prompt_id: ArrayLike | None = None,
    *,
    bootstrap: Bootstrap = Bootstrap(),
) -> RiskCoverage:
    """Compute the risk-coverage curve (El-Yaniv and Wiener, 2010) and its area.

    Args:
        uncertainty: larger is less certain [p].
        error: whether the pair is ranked wrongly [p].
        prompt_id: one label a pair [p], the unit resampled for the intervals; None: each pair its own.
        bootstrap: of the intervals.

    Raises:
        DataError: if there are no pairs or an uncertainty is not finite.
        ValueError: if the arrays differ in length.
    """
    uncertainty, wrong, prompts = _pairs(uncertainty, error, prompt_id)
    _, group, size = np.unique(uncertainty, return_inverse=True, return_counts=True)
    # Within a group of equal uncertainty the order is arbitrary: every pair gets the group's mean error.
    rate = np.bincount(group, weights=wrong) / size
    kept = np.arange(1, len(wrong) + 1)
    risk = np.cumsum(np.repeat(rate, size)) / kept
    errors = wrong.sum()
    best = np.maximum(0, kept - (len(wrong) - errors)) / kept
    area, random = float(risk.mean()), float(errors / len(wrong))
    groups = GroupDraws.of(uncertainty, wrong, prompts, bootstrap)
    return RiskCoverage(
        coverage=kept / len(wrong),
        risk=risk,
        area=groups.estimate(area, _area),
        random=random,
        best=float(best.mean()),
        gain=groups.estimate(random - area, _gain),
    )


def interval_coverage(
    interval: ArrayLike,
    value: ArrayLike,
    cluster: ArrayLike,
    noise: float = 0.0,
    *,
    bootstrap: Bootstrap = Bootstrap(),
) -> Estimate:
    """Share of held-out rewards that lie inside their intervals, to be compared with what the intervals claim.

    A density fitted to rewards with Gaussian label noise claims to cover *noisy* rewards. For that, give the noise:
    each reward then counts by the probability that it is inside after noise is added, which is what adding random
    noise would give on average.

    Args:
        interval: ends (low, high) of each response's interval [m, 2]; an end belongs to it.
        value: the held-out reward of each response [m].
        cluster: one label a response [m], usually prompt ids, the unit resampled.
        noise: standard deviation of the noise, in the rewards' unit; 0 (default): the rewards as they are.
        bootstrap: of the intervals.

    Raises:
        DataError: if there are no rewards, a number is not finite, or an interval ends before it begins.
        ValueError: if the arrays do not fit together or the noise is negative.
    """
    value = finite_array(value, "the held-out reward")
    interval, cluster = np.asarray(interval, dtype=np.float64), np.asarray(cluster)
    if interval.shape != (len(value), 2) or cluster.shape != value.shape:
        raise ValueError(
            f"intervals {interval.shape} and cluster labels {cluster.shape}: expected {(len(value), 2)} and "
            f"{value.shape}, one of each for every reward"
        )
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
    return clustered_mean(inside, cluster, bootstrap=bootstrap)


def error_by_uncertainty(
    uncertainty: ArrayLike,
    error: ArrayLike,
    prompt_id: ArrayLike | None = None,
    bins: int = 10,
    *,
    bootstrap: Bootstrap = Bootstrap(1000),
) -> tuple[ErrorBin, ...]:
    """Error rate in bins of about equal numbers of pairs, by rising uncertainty.

    Args:
        uncertainty: larger is less certain [p].
        error: whether the pair is ranked wrongly [p].
        prompt_id: one label a pair [p], the unit resampled for the intervals; None: each pair its own.
        bins: how many bins (fewer where uncertainties repeat).
        bootstrap: of the intervals.
    """
    uncertainty, wrong, prompts = _pairs(uncertainty, error, prompt_id)
    index = equal_mass_bins(uncertainty, bins)
    result = []
    for number in range(index.max() + 1):
        rows = index == number
        rate = clustered_mean(wrong[rows], prompts[rows], bootstrap=bootstrap)
        result.append(ErrorBin(float(uncertainty[rows].mean()), rate, int(rows.sum())))
    return tuple(result)


def _area(wrong: Floats, right: Floats) -> Floats:
    """Areas under the risk-coverage curve [B] of groups [g, B].

    In a group of n pairs, e of them errors, after N pairs and E errors, the risk at N + k is (E + k e / n) / (N + k)
    = e / n + (E - N e / n) / (N + k): its sum over k needs the harmonic numbers only.
    """
    size = wrong + right
    rate = np.divide(wrong, size, out=np.zeros_like(size), where=size > 0)
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


def _pairs(uncertainty: ArrayLike, error: ArrayLike, prompt_id: ArrayLike | None) -> tuple[Floats, Floats, Integers]:
    """Uncertainties, errors as 0 and 1, and the prompts by number."""
    uncertainty = finite_array(uncertainty, "the uncertainty")
    wrong = zero_or_one(error, "the errors", len(uncertainty))
    prompts = np.arange(len(wrong)) if prompt_id is None else np.asarray(prompt_id)
    if len(prompts) != len(wrong):
        raise ValueError(f"{len(wrong)} pairs and {len(prompts)} prompt ids")
    return uncertainty, wrong, np.unique(prompts, return_inverse=True)[1]
