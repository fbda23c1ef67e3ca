"""Does a reward like long responses? Correlation within prompts, and accuracy where length says nothing."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ebrm.errors import DataError
from ebrm.metrics.bootstrap import (
    Bootstrap,
    Estimate,
    cluster_sums,
    clustered_mean,
    finite_array,
    resample_sums,
)
from ebrm.metrics.within import centered, check_nested

Floats = NDArray[np.float64]

# 1.13 times 100 is below 113 in floating point: such a pair must not be lost to rounding.
_ROUNDING = 1e-9


def length_correlation(
    reward: ArrayLike,
    length: ArrayLike,
    item: ArrayLike,
    cluster: ArrayLike | None = None,
    *,
    bootstrap: Bootstrap = Bootstrap(),
) -> Estimate:
    """Pearson correlation of reward and length within prompts: both are centered on their item's mean first.

    Long and short *prompts* do not matter, only that of the responses to one prompt the longer ones get higher
    rewards. It is not a flaw by itself: where longer responses are better, a good reward correlates with length.

    Args:
        reward: rewards of all responses [m].
        length: their lengths in any unit (characters, tokens) [m].
        item: label of each response's item [m].
        cluster: label of what is resampled [m]; None: the items.
        bootstrap: of the intervals.

    Returns:
        The correlation in [-1, 1], with its interval over clusters; NaN where within all items the rewards, or the
        lengths, are equal.

    Raises:
        DataError: if there are no rows or a number is not finite.
        ValueError: if the arrays differ in length, or an item is in several clusters.
    """
    reward = finite_array(reward, "the reward of the responses")
    length = finite_array(length, "the length of the responses", len(reward))
    item = np.asarray(item)
    cluster = item if cluster is None else np.asarray(cluster)
    if item.shape != reward.shape:
        raise ValueError(f"{len(reward)} rewards and {len(item)} item labels")
    check_nested(item, cluster)
    first, second = centered(reward, item), centered(length, item)
    # To unit size, so that no product of large rewards overflows.
    first, second = first / max(np.abs(first).max(), 1e-300), second / max(np.abs(second).max(), 1e-300)
    sums = cluster_sums([first * second, first**2, second**2], cluster)
    draws = resample_sums(sums, bootstrap=bootstrap)
    return bootstrap.estimate(float(_correlation(sums.sum(axis=0))), _correlation(draws))


def length_matched(
    correct: ArrayLike,
    length_a: ArrayLike,
    length_b: ArrayLike,
    cluster: ArrayLike,
    ratio: float = 1.1,
    *,
    bootstrap: Bootstrap = Bootstrap(),
) -> tuple[Estimate, int]:
    """Accuracy on the pairs whose two responses are of about the same length, so that length cannot be the reason.

    Args:
        correct: 1 where the pair is ranked rightly, 0 where wrongly, or what a tie is worth [p].
        length_a: lengths of the one side [p], not negative.
        length_b: lengths of the other side [p].
        cluster: one label a pair [p], usually prompt ids; pairs of one are resampled together.
        ratio: a pair is matched if its longer side is at most `ratio` times as long as the shorter.
        bootstrap: of the intervals.

    Returns:
        (accuracy with its interval, number of matched pairs). All NaN where no pair is matched.

    Raises:
        DataError: if there are no pairs, or a number is not finite or a length negative.
        ValueError: if the arrays differ in length or `ratio` is below 1.
    """
    if not ratio >= 1:
        raise ValueError(f"ratio is {ratio}, expected 1 or more: the longer side over the shorter")
    correct = finite_array(correct, "whether pairs are ranked rightly")
    first = finite_array(length_a, "the length of the first responses", len(correct))
    second = finite_array(length_b, "the length of the second responses", len(correct))
    cluster = np.asarray(cluster)
    if cluster.shape != correct.shape:
        raise ValueError(f"{len(correct)} pairs and {len(cluster)} cluster labels")
    negative = np.flatnonzero(np.minimum(first, second) < 0)
    if len(negative):
        raise DataError(
            f"{len(negative)} of {len(correct)} pairs have a negative length, the first in row {negative[0]}."
        )
    matched = np.maximum(first, second) <= ratio * (1 + _ROUNDING) * np.minimum(first, second)
    if not matched.any():
        return Estimate(float("nan"), float("nan"), float("nan")), 0
    return clustered_mean(correct[matched], cluster[matched], bootstrap=bootstrap), int(matched.sum())


def _correlation(sums: Floats) -> Floats:
    """Correlations from [..., (Σ x y, Σ x², Σ y²)]; NaN where a side does not vary."""
    product, first, second = np.moveaxis(sums, -1, 0)
    size = np.sqrt(first) * np.sqrt(second)
    return np.divide(product, size, out=np.full(np.shape(size), np.nan), where=size > 0).clip(-1, 1)
