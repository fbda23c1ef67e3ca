"""How far apart a reward puts responses that are all good: what an optimizer then chases says nothing about quality."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ebrm.errors import ConfigError, DataError
from ebrm.metrics.auroc import zero_or_one
from ebrm.metrics.bootstrap import (
    Bootstrap,
    Estimate,
    cluster_labels,
    cluster_sums,
    finite_array,
    resample_sums,
)
from ebrm.metrics.within import centered, check_nested

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class PositiveSpread:
    """Spread of the rewards of good responses, within their prompts.

    Attributes:
        variance: pooled variance of the rewards of a prompt's good responses, in the reward's unit squared.
        gap: mean reward of a prompt's good minus that of its bad responses, the mean over prompts that have both; in
            the reward's unit. NaN if none has.
        relative: square root of `variance` over `gap`: without a unit, so that rewards can be compared; below 0 if bad
            responses get more, NaN if the gap is exactly 0 or no prompt has both kinds.
        positives: good responses counted, those of prompts with two or more.
        prompts: how many such prompts.
    """

    variance: Estimate
    gap: Estimate
    relative: Estimate
    positives: int
    prompts: int


def positive_spread(
    reward: ArrayLike,
    positive: ArrayLike,
    prompt: ArrayLike,
    ddof: int = 1,
    cluster: ArrayLike | None = None,
    *,
    bootstrap: Bootstrap = Bootstrap(),
) -> PositiveSpread:
    """Variance of the rewards of a prompt's good responses, pooled over prompts, also against the gap to bad ones.

    variance = Σ_x Σ_good (r - mean_x)² / Σ_x (n_x - ddof), over the prompts x with n_x >= 2 good responses. In
    SoliReward (arXiv 2512.22170) two losses give reward models of the same pair accuracy, and the one that keeps good
    responses together is far better to optimize: accuracy does not see this spread. That paper speaks of the variance
    of the positive set; pooling it within prompts, and the gap and the ratio, are ours. For rewards that mean the same
    for all prompts, give one label to all rows: then it is the variance of the whole positive set.

    An offset of a prompt's rewards changes nothing; a factor c of all is one of c² (variance), c (gap), 1 (relative).

    Args:
        reward: rewards of all responses [m].
        positive: whether each response is good [m], bool or 0 and 1.
        prompt: label of each response's prompt [m].
        ddof: what is subtracted from n_x in the divisor: 1 (unbiased) or 0.
        cluster: label of what is resampled [m]; None: the prompts.
        bootstrap: of the intervals.

    Returns:
        The spread; `variance` is 0 where every prompt's good responses have equal rewards.

    Raises:
        DataError: if there are no rows, no prompt has two good responses, a reward is not finite or a row is neither
            good nor not.
        ConfigError: if `ddof` is not 0 or 1.
        ValueError: if the arrays differ in length or a prompt is in several clusters.
    """
    if ddof not in (0, 1):
        raise ConfigError(f"ddof is {ddof}, expected 0 or 1")
    reward = finite_array(reward, "the reward of the responses")
    good = zero_or_one(positive, "whether responses are good", len(reward)) == 1
    prompt = cluster_labels(prompt, len(reward))
    cluster = prompt if cluster is None else cluster_labels(cluster, len(reward))
    check_nested(prompt, cluster)
    place = np.unique(prompt, return_inverse=True)[1]
    rows, goods = np.bincount(place), np.bincount(place, weights=good)
    counted = good & (goods >= 2)[place]
    if not counted.any():
        raise DataError(
            f"None of {len(rows)} prompts has two good responses, so there is no spread among them. If rewards of "
            "different prompts can be compared, give all responses one prompt label."
        )
    level_free = centered(reward, prompt)
    size = max(float(np.abs(level_free).max()), 1e-300)  # so that squares neither overflow nor vanish
    spread = np.zeros(len(reward))
    spread[counted] = centered(reward[counted], prompt[counted]) / size
    # Summed over a prompt that has both kinds: mean good minus mean bad, and 1.
    both = ((goods > 0) & (goods < rows))[place]
    alike = np.where(good, goods[place], (rows - goods)[place])
    columns = [
        spread**2,
        np.where(counted, 1 - ddof / np.maximum(goods[place], 1), 0.0),
        np.where(both, np.where(good, 1, -1) * level_free / size / alike, 0.0),
        both / rows[place],
    ]
    sums = cluster_sums(columns, cluster)
    draws = resample_sums(sums, bootstrap=bootstrap)

    def estimate(value: Floats, drawn: Floats, unit: float) -> Estimate:
        return bootstrap.estimate(float(value[0]) * unit, drawn * unit)

    units = (size * size, size, 1.0)
    found = zip(_statistics(sums.sum(axis=0)[None]), _statistics(draws), units, strict=True)
    variance, gap, relative = (estimate(*one) for one in found)
    return PositiveSpread(variance, gap, relative, int(counted.sum()), int((goods >= 2).sum()))


def _statistics(sums: Floats) -> tuple[Floats, Floats, Floats]:
    """Variance, gap and their ratio [b] from sums [b, 4]; NaN where there is nothing to divide by."""
    squares, freedom, gaps, prompts = sums.T
    variance, gap = _ratio(squares, freedom), _ratio(gaps, prompts)
    return variance, gap, _ratio(np.sqrt(variance), gap)


def _ratio(top: Floats, bottom: Floats) -> Floats:
    return np.divide(top, bottom, out=np.full(len(top), np.nan), where=bottom != 0)
