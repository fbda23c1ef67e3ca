"""How well a score tells two kinds of rows apart: the area under the ROC curve, with its interval over clusters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import csr_array
from sklearn.metrics import roc_auc_score

from ebrm.errors import DataError
from ebrm.metrics.bootstrap import (
    Bootstrap,
    Estimate,
    cluster_draws,
    cluster_labels,
    finite_array,
)
from ebrm.metrics.reliability import equal_mass_bins

Floats = NDArray[np.float64]

# Resamples see at most so many different scores: the error that this makes in an interval is far below its own.
_LEVELS = 128


def detection_auroc(
    score: ArrayLike,
    positive: ArrayLike,
    cluster: ArrayLike | None = None,
    *,
    bootstrap: Bootstrap = Bootstrap(),
) -> Estimate | None:
    """Probability that a random positive row has a higher score than a random other one (ties one half).

    With a reward as the score it says what a reward detects, whatever it was made for: text of a language model
    against text of people, as in ReMoDetect (arXiv 2405.17382), or responses that game a metric against honest ones.
    Rows are compared across prompts, so offsets of single prompts do matter; a rising map of all scores does not.

    Args:
        score: higher is more likely positive [m].
        positive: whether the row is of the kind to be detected [m], bool or 0 and 1.
        cluster: one label a row [m], usually prompt ids, the unit resampled; None: each row its own.
        bootstrap: of the intervals.

    Returns:
        The area: 0.5 says nothing, 1 separates the two, below 0.5 the positive ones are lower. None if all rows or no
        rows are positive.

    Raises:
        DataError: if there are no rows, a score is not finite, or a row is neither positive nor not.
        ValueError: if the arrays differ in length.
    """
    score = finite_array(score, "the score")
    positive = zero_or_one(positive, "whether rows are positive", len(score))
    if positive.all() or not positive.any():
        return None
    value = float(roc_auc_score(positive, score))
    draws = GroupDraws.of(score, positive, cluster_labels(cluster, len(score)), bootstrap)
    return draws.estimate(value, _area)


def zero_or_one(value: ArrayLike, name: str, length: int) -> Floats:
    """Take `value` [length] as 0.0 and 1.0.

    Raises:
        DataError: if one is anything else (with the count and the first row).
        ValueError: if the shape is not [length].
    """
    array = finite_array(np.asarray(value, dtype=np.float64), name, length)
    bad = np.flatnonzero((array != 0) & (array != 1))
    if len(bad):
        raise DataError(
            f"{name}: {len(bad)} of {length} are neither 0 nor 1, the first ({array[bad[0]]}) in row {bad[0]}."
        )
    return array


@dataclass(frozen=True)
class GroupDraws:
    """Positive and other rows in groups of rising score, of all rows [g, 1] and in each resample [g, B]."""

    positive: Floats
    other: Floats
    drawn_positive: Floats
    drawn_other: Floats
    bootstrap: Bootstrap

    @classmethod
    def of(cls, score: Floats, positive: Floats, cluster: ArrayLike, bootstrap: Bootstrap) -> GroupDraws:
        """Group the rows, by equal score or into as many groups as are told apart, and resample clusters."""
        group = np.unique(score, return_inverse=True)[1]
        if group.max() >= _LEVELS:
            group = equal_mass_bins(score, _LEVELS)
        place = np.unique(np.asarray(cluster), return_inverse=True)[1]
        shape = (int(group.max()) + 1, int(place.max()) + 1)
        tables = [csr_array((count, (group, place)), shape=shape) for count in (positive, 1 - positive)]
        all_positive, all_other = (table.sum(axis=1)[:, None] for table in tables)
        drawn = [np.full((shape[0], bootstrap.resamples), np.nan) for _ in tables]
        if shape[1] > 1:  # one cluster says nothing about how clusters differ
            for which, times in cluster_draws(shape[1], shape[0], bootstrap=bootstrap):
                for totals, table in zip(drawn, tables, strict=True):
                    totals[:, which] = table @ times
        return cls(all_positive, all_other, drawn[0], drawn[1], bootstrap)

    def estimate(self, value: float, statistic: Callable[[Floats, Floats], Floats]) -> Estimate:
        """`value` with the interval of the statistic's resamples, moved by what grouping changes in the statistic."""
        moved = value - statistic(self.positive, self.other)
        return self.bootstrap.estimate(value, statistic(self.drawn_positive, self.drawn_other) + moved)


def _area(positive: Floats, other: Floats) -> Floats:
    """Areas under the ROC curve [B] of groups [g, B]; NaN where all or no rows are positive."""
    below = np.cumsum(other, axis=0) - other / 2
    pairs = positive.sum(axis=0) * other.sum(axis=0)
    return np.divide((positive * below).sum(axis=0), pairs, out=np.full(len(pairs), np.nan), where=pairs > 0)
