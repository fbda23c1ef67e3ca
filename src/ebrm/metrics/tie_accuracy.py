"""Accuracy on pairs that people may call a tie: a reward calls a tie where its difference is at most a threshold.

With a label of 1 (first response better), -1 (second better) or 0 (a tie), and d the first reward minus the second, a
pair is right if it is a tie and |d| <= threshold, or if it is none, |d| > threshold and d has the label's sign. The
threshold that makes most pairs right calibrates rewards, whose unit is arbitrary, before they are compared: Deutsch,
Foster and Freitag, "Ties Matter" (arXiv 2305.14324), used for reward models in VideoReward (arXiv 2501.13918).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ebrm.errors import ConfigError, DataError
from ebrm.metrics.bootstrap import (
    Bootstrap,
    Estimate,
    cluster_labels,
    clustered_mean,
    finite_array,
)

Floats = NDArray[np.float64]


def tie_threshold(difference: ArrayLike, label: ArrayLike) -> float:
    """The lowest threshold under which most pairs are right.

    Only 0 and the |d| themselves are tried: between them nothing changes. It is the exact optimum, as a scan over all
    of them finds it; the incremental scan in the public code of VideoReward is off by one at its ends.

    Find it on other pairs than those it is used on: on its own pairs the accuracy is too high, as any maximum is.

    Args:
        difference: reward of the first response minus that of the second [p].
        label: 1, 0 or -1 [p].

    Returns:
        The threshold, 0 or more, in the rewards' unit: a positive factor of the rewards is one of the threshold.

    Raises:
        DataError: if there are no pairs, a difference is not finite, or a label is not 1, 0 or -1.
        ValueError: if the arrays differ in length.
    """
    difference, label = _pairs(difference, label)
    size = np.abs(difference)
    tried, place = np.unique(np.append(size, 0.0), return_inverse=True)
    place = place[:-1]
    tied = np.bincount(place, weights=label == 0, minlength=len(tried))
    concordant = np.bincount(place, weights=np.sign(difference) * label > 0, minlength=len(tried))
    right = np.cumsum(tied) + concordant.sum() - np.cumsum(concordant)
    return float(tried[np.argmax(right)])  # the first of equals


def accuracy_with_ties(
    difference: ArrayLike,
    label: ArrayLike,
    threshold: float,
    cluster: ArrayLike | None = None,
    *,
    bootstrap: Bootstrap = Bootstrap(),
) -> Estimate:
    """Share of pairs, ties among them, that are right under a threshold.

    The interval takes the threshold as given: how it was found is not in it. An offset of all
    rewards of a prompt changes nothing: only differences count.

    Args:
        difference: reward of the first response minus that of the second [p].
        label: 1, 0 or -1 [p].
        threshold: the largest |difference| that is a tie, 0 or more, as `tie_threshold` finds it; 0: equal rewards.
        cluster: one label a pair [p], usually prompt ids, the unit resampled; None: each pair its own.
        bootstrap: of the intervals.

    Raises:
        DataError: see `tie_threshold`.
        ConfigError: if the threshold is negative or NaN.
        ValueError: if the arrays differ in length.
    """
    difference, label = _pairs(difference, label)
    if not threshold >= 0:
        raise ConfigError(f"threshold is {threshold}, expected 0 or more: the largest difference that is a tie")
    said = np.where(np.abs(difference) <= threshold, 0.0, np.sign(difference))
    return clustered_mean(said == label, cluster_labels(cluster, len(label)), bootstrap=bootstrap)


def accuracy_without_ties(
    difference: ArrayLike,
    label: ArrayLike,
    cluster: ArrayLike | None = None,
    *,
    bootstrap: Bootstrap = Bootstrap(),
) -> Estimate:
    """Share of the pairs with a label of 1 or -1 whose difference has that sign; equal rewards are wrong.

    Args:
        difference: reward of the first response minus that of the second [p].
        label: 1, 0 or -1 [p]; pairs of label 0 are left out.
        cluster: one label a pair [p]; None: each pair its own.
        bootstrap: of the intervals.

    Returns:
        The share with its interval; all NaN where every label is 0.

    Raises:
        DataError: see `tie_threshold`.
        ValueError: if the arrays differ in length.
    """
    difference, label = _pairs(difference, label)
    clusters, decided = cluster_labels(cluster, len(label)), label != 0
    if not decided.any():
        return Estimate(float("nan"), float("nan"), float("nan"))
    right = np.sign(difference[decided]) == label[decided]
    return clustered_mean(right, clusters[decided], bootstrap=bootstrap)


def _pairs(difference: ArrayLike, label: ArrayLike) -> tuple[Floats, Floats]:
    difference = finite_array(difference, "the difference of the rewards")
    label = finite_array(label, "the label", len(difference))
    bad = np.flatnonzero(~np.isin(label, (-1.0, 0.0, 1.0)))
    if len(bad):
        raise DataError(
            f"{len(bad)} of {len(label)} labels are none of 1 (first better), 0 (tie) and -1 (second better), the "
            f"first ({label[bad[0]]}) in row {bad[0]}."
        )
    return difference, label
