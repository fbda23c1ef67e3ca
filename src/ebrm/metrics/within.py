"""Comparisons within prompts: length correlation, spread of good responses, STARC distance and drift.

A reward has no level of its own for a prompt: an offset of a prompt's rewards changes no order. So all of these center
rewards within prompts first.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ebrm.errors import ConfigError, DataError
from ebrm.metrics.bootstrap import (
    NOTHING,
    Bootstrap,
    Estimate,
    Floats,
    Integers,
    as_array,
    as_floats,
    cluster_labels,
    cluster_sums,
    clustered_mean,
    finite_array,
    ratio,
    resample_sums,
    zero_or_one,
)

# 1.13 times 100 is below 113 in floating point: such a pair must not be lost to rounding.
_ROUNDING = 1e-9
# Rewards are divided by their largest, at least this, so that squares neither overflow nor vanish.
_SMALLEST = 1e-300


@dataclass(frozen=True)
class PositiveSpread:
    """Spread of the rewards of good responses, within their prompts.

    Attributes:
        variance: pooled variance of the rewards of a prompt's good responses, in the reward's unit squared.
        gap: mean reward of a prompt's good minus that of its bad responses, over prompts that have both (NaN: none).
        relative: square root of `variance` over `gap`, without a unit; below 0 if bad responses get more, NaN if the
            gap is exactly 0 or no prompt has both kinds.
        positives: good responses counted, those of prompts with two or more.
        prompts: how many such prompts.
    """

    variance: Estimate
    gap: Estimate
    relative: Estimate
    positives: int
    prompts: int


@dataclass(frozen=True)
class Drift:
    """Drift of a reward on one batch of responses; None where the column was not given.

    Attributes:
        spread: mean over prompts of the standard deviation (divisor: responses of the prompt) of their rewards.
        saturated: share of prompts whose standard deviation is `flat` or less: they give no direction.
        ceiling: share of responses at or above the ceiling.
        length: correlation of reward and length within prompts; NaN: one does not vary.
        distance: STARC distance from the held-out scorer.
        prompts: prompts with two or more responses, over which spread and saturation are counted.
    """

    spread: Estimate
    saturated: Estimate
    ceiling: Estimate | None
    length: Estimate | None
    distance: Estimate | None
    prompts: int


def centered(value: ArrayLike, group: ArrayLike, weight: ArrayLike | None = None) -> Floats:
    """Subtract from each value [m] the mean of its group [m], weighted by `weight` [m] (not negative; None: alike).

    Exactly 0 where all values of a group are equal, and in groups without weight. To the last bit the result does not
    depend on the order of rows.
    """
    value = as_floats(value, "value")
    place = np.unique(as_array(group), return_inverse=True)[1]
    weight = np.ones(len(value)) if weight is None else as_floats(weight, "weight")
    order = np.lexsort((weight, value, place))
    sorted_place, sorted_value, sorted_weight = place[order], value[order], weight[order]
    total = np.bincount(sorted_place, sorted_weight)
    mean = np.bincount(sorted_place, sorted_weight * sorted_value) / np.where(total > 0, total, 1)
    # Rounding of the mean must not turn equal values into small differences, which a correlation would blow up.
    starts = np.flatnonzero(np.diff(sorted_place, prepend=-1))
    equal = np.minimum.reduceat(sorted_value, starts) == np.maximum.reduceat(sorted_value, starts)
    return np.where((equal | (total == 0))[place], 0.0, value - mean[place])


def check_nested(group: ArrayLike, cluster: ArrayLike) -> None:
    """Raise a ValueError unless each group lies in one cluster: only then can groups be resampled after centering."""
    first, second = (np.unique(as_array(labels), return_inverse=True)[1] for labels in (group, cluster))
    if first.shape != second.shape:
        raise ValueError(f"{len(first)} rows and {len(second)} cluster labels")
    if len(np.unique(first * np.int64(second.max(initial=0) + 1) + second)) != first.max(initial=-1) + 1:
        raise ValueError("a prompt's rows are in several clusters, but they have to be resampled together")


def length_correlation(
    reward: ArrayLike,
    length: ArrayLike,
    item: ArrayLike,
    cluster: ArrayLike | None = None,
    *,
    bootstrap: Bootstrap = Bootstrap(),
) -> Estimate:
    """Pearson correlation of reward and length within prompts: both are centered on their item's mean first.

    No flaw by itself: where longer responses are better, a good reward correlates with length. `length` [m] is in any
    unit; NaN where within all items the rewards, or the lengths, are equal.
    """
    reward = finite_array(reward, "the reward of the responses")
    length = finite_array(length, "the length of the responses", len(reward))
    items, clusters = _nested(item, cluster, len(reward), "item")
    centers = (centered(reward, items), centered(length, items))
    first, second = (one / max(np.abs(one).max(), _SMALLEST) for one in centers)
    sums = cluster_sums([first * second, first**2, second**2], clusters)
    draws = resample_sums(sums, bootstrap=bootstrap)
    return bootstrap.estimate(float(_correlation(sums.sum(axis=0))), _correlation(draws))


def length_matched(
    correct: ArrayLike,
    length_a: ArrayLike,
    length_b: ArrayLike,
    cluster: ArrayLike | None = None,
    ratio: float = 1.1,
    *,
    bootstrap: Bootstrap = Bootstrap(),
) -> tuple[Estimate, int]:
    """Accuracy on the pairs whose longer side is at most `ratio` times as long as the other; and their number.

    `correct` [p] is 1 where the pair is ranked rightly, 0 where wrongly, or the worth of a tie; lengths [p] are not
    negative. All NaN where no pair is matched.
    """
    if not ratio >= 1:
        raise ValueError(f"ratio is {ratio}, expected 1 or more: the longer side over the shorter")
    correct = finite_array(correct, "whether pairs are ranked rightly")
    first = finite_array(length_a, "the length of the first responses", len(correct))
    second = finite_array(length_b, "the length of the second responses", len(correct))
    labels = cluster_labels(cluster, len(correct))
    negative = np.flatnonzero(np.minimum(first, second) < 0)
    if len(negative):
        raise DataError(
            f"{len(negative)} of {len(correct)} pairs have a negative length, the first in row {negative[0]}."
        )
    matched = np.maximum(first, second) <= ratio * (1 + _ROUNDING) * np.minimum(first, second)
    if not matched.any():
        return NOTHING, 0
    return clustered_mean(correct[matched], labels[matched], bootstrap=bootstrap), int(matched.sum())


def positive_spread(
    reward: ArrayLike,
    positive: ArrayLike,
    prompt: ArrayLike,
    ddof: int = 1,
    cluster: ArrayLike | None = None,
    *,
    bootstrap: Bootstrap = Bootstrap(),
) -> PositiveSpread:
    """Positive-set reward variance: that of the rewards of a prompt's good responses, pooled over prompts.

    variance = Σ_x Σ_good (r - mean_x)² / Σ_x (n_x - ddof), over the prompts x with n_x >= 2 good responses. In
    SoliReward (arXiv 2512.22170) two losses give the same pair accuracy, and the one that keeps good responses together
    is far better to optimize. The paper speaks of the variance of the positive set (give one label to all rows for
    that); pooling it within prompts, the gap and the ratio are ours. An offset of a prompt's rewards changes nothing.
    `positive` [m] is bool or 0 and 1, `ddof` 1 (unbiased) or 0.
    """
    if ddof not in (0, 1):
        raise ConfigError(f"ddof is {ddof}, expected 0 or 1")
    reward = finite_array(reward, "the reward of the responses")
    good = zero_or_one(positive, "whether responses are good", len(reward)) == 1
    prompts, clusters = _nested(prompt, cluster, len(reward), "prompt")
    place = np.unique(prompts, return_inverse=True)[1]
    rows, goods = np.bincount(place), np.bincount(place, weights=good)
    counted = good & (goods >= 2)[place]
    if not counted.any():
        raise DataError(
            f"None of {len(rows)} prompts has two good responses, so there is no spread among them. If rewards of "
            "different prompts can be compared, give all responses one prompt label."
        )
    level_free = centered(reward, place)
    size = max(float(np.abs(level_free).max()), _SMALLEST)
    spread = np.zeros(len(reward))
    spread[counted] = centered(reward[counted], place[counted]) / size
    # Summed over a prompt that has both kinds: mean good minus mean bad, and 1.
    both = ((goods > 0) & (goods < rows))[place]
    alike = np.where(good, goods[place], (rows - goods)[place])
    columns = [
        spread**2,
        np.where(counted, 1 - ddof / np.maximum(goods[place], 1), 0.0),
        np.where(both, np.where(good, 1, -1) * level_free / size / alike, 0.0),
        both / rows[place],
    ]
    sums = cluster_sums(columns, clusters)
    draws = resample_sums(sums, bootstrap=bootstrap)
    found = zip(_statistics(sums.sum(axis=0)[None]), _statistics(draws), (size * size, size, 1.0), strict=True)
    variance, gap, relative = (bootstrap.estimate(float(value[0]) * unit, drawn * unit) for value, drawn, unit in found)
    return PositiveSpread(variance, gap, relative, int(counted.sum()), int((goods >= 2).sum()))


def starc_distance(
    first: ArrayLike, second: ArrayLike, prompt: ArrayLike, weight: ArrayLike | None = None, norm: float = 2
) -> float:
    """STARC distance of two rewards of the same responses, in [0, 2] (Skalse et al., arXiv 2309.15257).

    Both rewards are canonicalized and brought to unit norm; the distance is the norm of the difference. Here an episode
    is one step, the prompt the state and the response the action. The value-adjusted canonicalization is then c(r)(x,
    y) = r(x, y) - Σ_y' π(y' | x) r(x, y'), and the distance sqrt(2 (1 - ρ)), ρ the correlation within prompts: 0 for
    rewards that differ by a positive factor and an offset of each prompt, sqrt(2) for unrelated ones, 2 for opposite
    ones. A reward that is constant within every prompt is at distance 1 from all but another such reward, there 0.
    `weight` [m] is that of each response in its prompt's mean and in the norm, π(y | x) times the prompt's weight.

    That is with `norm` 2. With 1, Σ w |c|, or infinity, max |c| over responses of a weight above 0, all of this holds
    but for the correlation: the distance of unrelated rewards is another, and infinity looks at one response alone.
    """
    if norm not in (1, 2, np.inf):
        raise ConfigError(f"norm is {norm}, expected 1, 2 or infinity")
    if norm == 2:
        one, two = _standard(first, second, prompt, weight)
        return float(np.linalg.norm(np.sort(np.abs(one - two))))  # sorted: the same in any order of rows
    one, two, weights = _canonical(first, second, prompt, weight)
    if norm == 1:
        one, two = weights * one, weights * two
    else:
        one, two = np.where(weights > 0, one, 0), np.where(weights > 0, two, 0)
    sides = [side / size if (size := _norm(side, norm)) else side for side in (one, two)]
    return _norm(sides[0] - sides[1], norm)


def starc_estimate(
    first: ArrayLike,
    second: ArrayLike,
    prompt: ArrayLike,
    weight: ArrayLike | None = None,
    cluster: ArrayLike | None = None,
    *,
    bootstrap: Bootstrap = Bootstrap(),
) -> Estimate:
    """`starc_distance` with its interval over `cluster` [m]; None: the prompts."""
    value = starc_distance(first, second, prompt, weight)
    one, two = _standard(first, second, prompt, weight)
    _, clusters = _nested(prompt, cluster, len(one), "prompt")
    sums = cluster_sums([one**2, two**2, (two - one) ** 2, one * (two - one)], clusters)
    draws = resample_sums(sums, bootstrap=bootstrap)
    return bootstrap.estimate(value, _distance(draws))


def reward_drift(
    reward: ArrayLike,
    prompt: ArrayLike,
    length: ArrayLike | None = None,
    held_out: ArrayLike | None = None,
    ceiling: float | None = None,
    flat: float = 0.0,
    *,
    bootstrap: Bootstrap = Bootstrap(),
) -> Drift:
    """Drift of a reward on a batch of responses, several a prompt: saturation, ceiling, length, disagreement (ours).

    Signs that a reward no longer tells the responses it is used on apart; compare batches of the same prompts. With
    std_x = sqrt(mean_x (r - mean_x)²) over the prompts x with two or more responses, `spread` is the mean of std_x and
    `saturated` the share of std_x <= flat. For the question when to revise a reward, which Meta Policy Optimization
    (arXiv 2504.20157) answers by the clock. Prompts are resampled.

    Args:
        reward: rewards of all responses of the batch [m].
        prompt: label of each response's prompt [m].
        length: lengths of the responses in any unit [m].
        held_out: rewards of the same by a scorer that is not optimized [m].
        ceiling: the reward from which on a response is at the top.
        flat: the largest standard deviation that is none, 0 or more, in the reward's unit.
    """
    if not flat >= 0:
        raise ConfigError(f"flat is {flat}, expected 0 or more: the largest standard deviation that is none")
    if ceiling is not None and np.isnan(ceiling):
        raise ConfigError("ceiling is NaN, expected the reward from which on a response is at the top, or None")
    reward = finite_array(reward, "the reward of the responses")
    place = np.unique(cluster_labels(prompt, len(reward), "prompt"), return_inverse=True)[1]
    several = np.bincount(place) >= 2
    if not several.any():
        raise DataError(
            f"None of {len(several)} prompts has two responses, so there are no differences between "
            "responses. Check that the prompt labels of one prompt are equal."
        )
    std = _std(reward, place)[several]
    labels = np.arange(len(std))
    return Drift(
        spread=clustered_mean(std, labels, bootstrap=bootstrap),
        saturated=clustered_mean(std <= flat, labels, bootstrap=bootstrap),
        ceiling=None if ceiling is None else clustered_mean(reward >= ceiling, place, bootstrap=bootstrap),
        length=None if length is None else length_correlation(reward, length, place, bootstrap=bootstrap),
        distance=None if held_out is None else starc_estimate(reward, held_out, place, bootstrap=bootstrap),
        prompts=int(several.sum()),
    )


def _nested(
    group: ArrayLike, cluster: ArrayLike | None, rows: int, name: str
) -> tuple[NDArray[np.generic], NDArray[np.generic]]:
    """Labels of groups and of the clusters they lie in (None: the groups)."""
    groups = cluster_labels(group, rows, name)
    clusters = groups if cluster is None else cluster_labels(cluster, rows)
    check_nested(groups, clusters)
    return groups, clusters


def _correlation(sums: Floats) -> Floats:
    """Correlations from [..., (Σ x y, Σ x², Σ y²)]; NaN where a side does not vary."""
    product, first, second = np.moveaxis(sums, -1, 0)
    size = np.sqrt(first) * np.sqrt(second)
    return ratio(product, size).clip(-1, 1)


def _statistics(sums: Floats) -> tuple[Floats, Floats, Floats]:
    """Variance, gap and their ratio [b] from sums [b, 4]; NaN where there is nothing to divide by."""
    squares, freedom, gaps, prompts = sums.T
    variance, gap = ratio(squares, freedom), ratio(gaps, prompts)
    return variance, gap, ratio(np.sqrt(variance), gap)


def _standard(
    first: ArrayLike, second: ArrayLike, prompt: ArrayLike, weight: ArrayLike | None
) -> tuple[Floats, Floats]:
    """Both rewards centered within prompts, times the root of the weight, of norm 1 or all zero."""
    first, second, weights = _canonical(first, second, prompt, weight)
    one, two = (np.sqrt(weights) * _unit(reward) for reward in (first, second))
    return _unit(one), _unit(two)


def _canonical(
    first: ArrayLike, second: ArrayLike, prompt: ArrayLike, weight: ArrayLike | None
) -> tuple[Floats, Floats, Floats]:
    """Both rewards centered within prompts, and the weights."""
    first = finite_array(first, "the first reward")
    second = finite_array(second, "the second reward", len(first))
    prompt = cluster_labels(prompt, len(first), "prompt")
    weights = np.ones(len(first)) if weight is None else finite_array(weight, "the weight", len(first))
    if (weights < 0).any() or not (weights > 0).any():
        raise DataError("The weights of the responses must not be negative, nor all zero.")
    return centered(first, prompt, weights), centered(second, prompt, weights), weights


def _norm(value: Floats, norm: float) -> float:
    """Σ |v| (1) or max |v|; sorted, so that the order of rows does not matter to the last bit."""
    return float(np.sort(np.abs(value)).sum() if norm == 1 else np.abs(value).max(initial=0.0))


def _unit(value: Floats) -> Floats:
    """The vector at norm 1, or as it is if it is zero; scaled first, so that squares neither overflow nor vanish."""
    largest = np.abs(value).max()
    if largest == 0:
        return value
    scaled = value / largest
    return scaled / np.linalg.norm(np.sort(np.abs(scaled)))


def _distance(sums: Floats) -> Floats:
    """Distances [b] from [b, (Σ x², Σ y², Σ (y - x)², Σ x (y - x))] of drawn rows.

    |y/|y| - x/|x||² is written by y - x, which is exactly zero for equal rewards, and not as 2 (1 - ρ), which is not.
    """
    xx, yy, dd, xd = sums.T
    a, b = (np.divide(1, np.sqrt(square), out=np.zeros(len(sums)), where=square > 0) for square in (yy, xx))
    square = a**2 * dd + 2 * a * (a - b) * xd + (a - b) ** 2 * xx
    return np.sqrt(square.clip(0, 4))


def _std(reward: Floats, place: Integers) -> Floats:
    """Standard deviation of each prompt: exactly 0 for equal rewards, the same in any order, without overflow."""
    off = centered(reward, place)
    largest = np.zeros(int(place.max()) + 1)
    np.maximum.at(largest, place, np.abs(off))
    size = np.where(largest > 0, largest, 1.0)
    squares = (off / size[place]) ** 2
    order = np.lexsort((squares, place))
    return size * np.sqrt(np.bincount(place[order], weights=squares[order]) / np.bincount(place))
