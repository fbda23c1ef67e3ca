"""Scores that are weighted means of term means, of several scorers at once, and their paired resamples.

A benchmark's items give values to terms (a subset, a domain's hard half); a score is Σ_t weight_t · mean of term t. A
term without values is left out, and the score's other weights are scaled to the same sum; a score none of whose terms
has values is NaN. The same rule holds in every resample: a small term may be missing from some of them.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import csr_array

from ebrm.errors import DataError
from ebrm.metrics.bootstrap import Bootstrap, cluster_draws

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


def score_values(term: ArrayLike, value: ArrayLike, weights: ArrayLike) -> Floats:
    """Compute the scores of several scorers.

    Args:
        term: which term each row belongs to [k], 0 .. T - 1.
        value: the rows' values, one column a scorer [k, S].
        weights: weight of each term in each score [Q, T], not negative.

    Returns:
        Scores [Q, S]; NaN where none of a score's terms has rows. They do not depend on the order of rows.

    Raises:
        DataError: if a value is not finite.
        ValueError: if the arrays do not fit together or a weight is negative.
    """
    term, value, weights = _checked(term, value, weights)
    sums, count = _sums(term, value, weights.shape[1])
    return _weighted_means(weights, sums[:, :, None], count[:, None])[:, :, 0]


def bootstrap_scores(
    term: ArrayLike,
    value: ArrayLike,
    cluster: ArrayLike,
    weights: ArrayLike,
    *,
    bootstrap: Bootstrap = Bootstrap(),
) -> Floats:
    """Resample the scores: clusters are drawn with replacement, the same ones for every scorer and every score.

    All columns of a draw come from the same clusters, so the difference of two scorers, taken draw by draw, is a
    *paired* difference (Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 8).

    Args:
        term: see `score_values`.
        value: see `score_values`.
        cluster: one label a row [k] of any sortable type, usually prompt ids; rows of one are drawn together.
        weights: see `score_values`.
        bootstrap: of the intervals.

    Returns:
        Scores [B, Q, S]. NaN in draws that hold none of a score's terms, and in all draws where there are fewer than
        two clusters: one cluster says nothing about how clusters differ. They do not depend on the order of rows.

    Raises:
        DataError: if a value is not finite.
        ValueError: if the arrays do not fit together or a weight is negative.
    """
    term, value, weights = _checked(term, value, weights)
    (terms, scorers), (rows, scores) = (weights.shape[1], value.shape[1]), (len(term), len(weights))
    labels, place = np.unique(np.asarray(cluster), return_inverse=True)
    if place.shape != (rows,):
        raise ValueError(f"{rows} values and {len(place)} cluster labels")
    clusters = len(labels)
    draws = np.full((bootstrap.resamples, scores, scorers), np.nan)
    if clusters < 2:
        return draws

    # Sums by (term, cluster) first: from then on the rows no longer matter.
    cells, cell = np.unique(term * clusters + place, return_inverse=True)
    sums, count = _sums(cell, value, len(cells))
    columns = (cells % clusters).astype(np.int32)
    starts = np.searchsorted(cells, np.arange(terms + 1) * clusters).astype(np.int32)
    tables = [csr_array((one, columns, starts), shape=(terms, clusters)) for one in (count, *sums.T)]

    largest = max(terms * scorers, scores * scorers)
    for which, times in cluster_draws(clusters, largest, bootstrap=bootstrap):
        drawn_count, *drawn_sums = (table @ times for table in tables)
        draws[which] = _weighted_means(weights, np.stack(drawn_sums, axis=1), drawn_count).transpose(2, 0, 1)
    return draws


def term_shares(term: ArrayLike, weights: ArrayLike) -> Floats:
    """What one row of each term adds to each score per unit of its value.

    Args:
        term: which term each row belongs to [k].
        weights: weight of each term in each score [Q, T].

    Returns:
        Shares [Q, T], zero for terms without rows, NaN for scores none of whose terms has rows: a score is the sum
        over rows of share times value.
    """
    term, _, weights = _checked(term, np.zeros((np.size(term), 0)), weights)
    count = np.bincount(term, minlength=weights.shape[1]).astype(np.float64)
    return weights * _scale(weights, count[:, None]) / np.maximum(count, 1) * (count > 0)


def _checked(term: ArrayLike, value: ArrayLike, weights: ArrayLike) -> tuple[Integers, Floats, Floats]:
    """The three arrays in their types, or what is wrong with them."""
    term, weights = np.asarray(term), np.asarray(weights, dtype=np.float64)
    value = np.asarray(value, dtype=np.float64)
    if term.ndim != 1 or value.ndim != 2 or weights.ndim != 2 or len(value) != len(term):
        shapes = f"term {term.shape}, value {value.shape} and weights {weights.shape}"
        raise ValueError(f"{shapes}: expected [k], [k, S] and [Q, T]")
    if len(term) and not 0 <= term.min() <= term.max() < weights.shape[1]:
        raise ValueError(f"terms {term.min()} to {term.max()}, but the weights are of {weights.shape[1]} terms")
    if not (np.isfinite(weights).all() and (weights >= 0).all()):
        raise ValueError("a weight is negative or not a finite number")
    bad = np.flatnonzero(~np.isfinite(value).all(axis=1))
    if len(bad):
        raise DataError(
            f"{len(bad)} of {len(value)} rows hold a value that is not a finite number, the first is row {bad[0]}. A "
            "score that leaves them out would be one of other items; leave them out for all scorers, and count them."
        )
    return term.astype(np.int64), value, weights


def _sums(cell: Integers, value: Floats, cells: int) -> tuple[Floats, Floats]:
    """Sums [cells, S] and numbers [cells] of the rows of each cell, to the last bit the same in any order of rows."""
    sums = np.empty((cells, value.shape[1]))
    for number, column in enumerate(value.T):
        order = np.lexsort((column, cell))
        sums[:, number] = np.bincount(cell[order], column[order], minlength=cells)
    return sums, np.bincount(cell, minlength=cells).astype(np.float64)


def _scale(weights: Floats, count: Floats) -> Floats:
    """What makes up for the weights of terms without rows [Q, b], from counts [T, b]; NaN where none is left."""
    table = csr_array(weights)
    total, left = table @ np.ones(weights.shape[1]), table @ (count > 0).astype(np.float64)
    return np.divide(total[:, None], left, out=np.full(left.shape, np.nan), where=left > 0)


def _weighted_means(weights: Floats, sums: Floats, count: Floats) -> Floats:
    """Scores [Q, S, b] from sums [T, S, b] and counts [T, b]."""
    means = sums / np.maximum(count, 1)[:, None, :]
    terms, scorers, size = means.shape
    weighted = csr_array(weights) @ means.reshape(terms, scorers * size)
    return weighted.reshape(len(weights), scorers, size) * _scale(weights, count)[:, None, :]
