"""Scores of benchmarks with paired resamples, and whether a difference of two scorers is more than chance.

A score is Σ_t weight_t · mean of term t, where items give values to terms (a subset, a domain's hard half). A term
without values is left out, and the score's other weights are scaled to the same sum; a score none of whose terms has
values is NaN. The same rule holds in every resample: a small term may be missing from some of them.

Arrays: `term` [k], which of T terms each row belongs to; `value` [k, S], one column a scorer; `cluster` [k]; `weights`
[Q, T] of each term in each score, not negative.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy.sparse import csr_array
from scipy.stats import binomtest

from ebrm.errors import DataError
from ebrm.metrics.bootstrap import Bootstrap, Floats, Integers, as_array, as_floats, cluster_draws

PERMUTATIONS = 9999

# So few clusters are tested by all their 2^c sign patterns.
_EXACT = 12
# Sums closer than this share of the largest possible one are equal but for rounding.
_ROUNDING = 1e-10
# Below this many different clusters per cluster, drawing a binomial a kind is cheaper than a sign a cluster.
_FEW_KINDS = 0.1
_CHUNK_CELLS = 1_000_000


def score_values(term: ArrayLike, value: ArrayLike, weights: ArrayLike) -> Floats:
    """Scores [Q, S] of several scorers; NaN where none of a score's terms has rows."""
    term, value, weights = _checked(term, value, weights)
    sums, count = _sums(term, value, weights.shape[1])
    return _weighted_means(weights, sums[:, :, None], count[:, None])[:, :, 0]


def bootstrap_scores(
    term: ArrayLike, value: ArrayLike, cluster: ArrayLike, weights: ArrayLike, *, bootstrap: Bootstrap = Bootstrap()
) -> Floats:
    """Resampled scores [B, Q, S] of `score_values`, the same clusters for every scorer and every score.

    The difference of two scorers, taken draw by draw, is therefore *paired* (Efron and Tibshirani, "An Introduction to
    the Bootstrap", 1993, chapter 8). NaN in draws that hold none of a score's terms, and with fewer than two clusters.
    """
    term, value, weights = _checked(term, value, weights)
    (terms, scorers), (rows, scores) = (weights.shape[1], value.shape[1]), (len(term), len(weights))
    labels, place = np.unique(as_array(cluster), return_inverse=True)
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
    """Weight of one row of each term in each score [Q, T]: a score is the sum over rows of share times value.

    0 for terms without rows, NaN for scores none of whose terms has rows.
    """
    term, _, weights = _checked(term, np.zeros((np.size(term), 0)), weights)
    count = np.bincount(term, minlength=weights.shape[1]).astype(np.float64)
    return weights * _scale(weights, count[:, None]) / np.maximum(count, 1) * (count > 0)


def cluster_differences(term: ArrayLike, cluster: ArrayLike, difference: ArrayLike, weights: ArrayLike) -> Floats:
    """Part that each cluster adds to the difference of two scorers' scores [c, Q], by sorted label.

    `difference` [k] is the one scorer's value minus the other's; NaN for scores none of whose terms has rows.
    """
    difference, term = as_floats(difference, "the difference"), as_array(term)
    labels, place = np.unique(as_array(cluster), return_inverse=True)
    if not difference.shape == term.shape == place.shape:
        shapes = f"term {term.shape}, cluster {place.shape} and difference {difference.shape}"
        raise ValueError(f"{shapes}: expected [k] of each")
    shares = term_shares(term, weights)
    order = np.lexsort((difference, term, place))  # the same sums, to the last bit, in any order of the rows
    term, place, difference = term[order], place[order], difference[order]
    columns = [np.bincount(place, share[term] * difference, minlength=len(labels)) for share in shares]
    return np.stack(columns, axis=1) if columns else np.empty((len(labels), 0))


def permutation_test(difference: ArrayLike, permutations: int = PERMUTATIONS, seed: int = 0) -> Floats:
    """Paired permutation test: two-sided p-value of the hypothesis that the two scorers are exchangeable.

    The statistic is |Σ_c difference|; the signs of whole clusters are flipped, so that rows of one prompt stay
    together (Good, "Permutation, Parametric and Bootstrap Tests of Hypotheses", 2005, chapter 3). With at most 12
    clusters that are not zero the test is exact, by all sign patterns; otherwise p = (1 + b) / (1 + B), with b of B
    random patterns at least as extreme (Phipson and Smyth, 2010). Sums equal but for rounding count as equal.

    `difference` [c, q] is the part of each cluster, one column a score (`cluster_differences`); the B patterns are the
    same for all columns. p-values [q] are 1 where no cluster differs, NaN where a column holds NaN.
    """
    difference = as_floats(difference, "difference")
    if difference.ndim != 2:
        raise ValueError(f"difference has shape {difference.shape}, expected [clusters, scores]")
    p = np.full(difference.shape[1], np.nan)
    known = np.isfinite(difference).all(axis=0)
    differ = (difference != 0).sum(axis=0)
    for column in np.flatnonzero(known & (differ <= _EXACT)):
        p[column] = _exact_p(difference[difference[:, column] != 0, column])
    many = np.flatnonzero(known & (differ > _EXACT))
    if len(many):
        p[many] = _random_p(difference[:, many], permutations, np.random.default_rng(seed))
    return p


def holm(p: ArrayLike) -> Floats:
    """Holm's step-down correction of one family of p-values (Scandinavian J. Statistics 6, 1979).

    Rejecting where the corrected value is at most α keeps the chance of *any* false rejection in the family at most α,
    however the tests depend on each other. Of any shape; NaN: no test, stays NaN and does not count.
    """
    p = as_floats(p, "p")
    corrected = np.full(p.shape, np.nan)
    tested = ~np.isnan(p)
    values = p[tested]
    order = np.argsort(values, kind="stable")
    steps = values[order] * np.arange(len(values), 0, -1)
    back = np.empty_like(values)
    back[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    corrected[tested] = back
    return corrected


def sign_test(fixed: int, broken: int) -> float:
    """Two-sided p-value of the exact sign test (exact McNemar) on pairs that a change fixed and broke; 1.0 without any.

    It takes the changed pairs as independent, and is too sure of itself where prompts have many pairs; the bootstrap
    interval of the difference is not.
    """
    return float(binomtest(fixed, fixed + broken, 0.5).pvalue) if fixed + broken else 1.0


def _exact_p(difference: Floats) -> float:
    """Share of all sign patterns that are at least as extreme; a pattern and its mirror image are, so half suffice."""
    difference = np.sort(difference)
    if not len(difference):
        return 1.0
    patterns = np.arange(2 ** (len(difference) - 1))[:, None] >> np.arange(len(difference)) & 1
    sums = np.abs((1 - 2 * patterns) @ difference)
    return float((sums >= abs(difference.sum()) - _ROUNDING * np.abs(difference).sum()).mean())


def _random_p(difference: Floats, permutations: int, generator: np.random.Generator) -> Floats:
    """(1 + b) / (1 + B) of each column."""
    # A cluster and its mirror image are the same experiment: count how often each kind occurs, whatever its sign.
    difference = difference[(difference != 0).any(axis=1)]
    first = difference[np.arange(len(difference)), (difference != 0).argmax(axis=1)]
    upright = difference * np.sign(first)[:, None] + 0.0  # no negative zeros
    kinds, kind, count = np.unique(upright, axis=0, return_inverse=True, return_counts=True)
    observed = np.abs(np.bincount(kind.ravel(), np.sign(first)) @ kinds)
    least = observed - _ROUNDING * (count @ np.abs(kinds))
    few = len(kinds) <= _FEW_KINDS * len(difference)
    if not few:
        kinds, count = np.repeat(kinds, count, axis=0), np.ones(len(difference), np.int64)
    all_up = (count @ kinds)[:, None]
    table = csr_array(kinds.T)  # most clusters are in few of the scores
    reached = np.zeros(len(least), np.int64)
    chunk = max(8, _CHUNK_CELLS // len(kinds) // 8 * 8)
    for start in range(0, permutations, chunk):
        size = min(chunk, permutations - start)
        if few:
            up = generator.binomial(count[:, None], 0.5, (len(kinds), size)).astype(np.float64)
        else:
            bits = generator.integers(0, 256, (len(kinds), -(-size // 8)), np.uint8)
            up = np.unpackbits(bits, axis=1, count=size).astype(np.float64)
        sums = 2 * (table @ up) - all_up
        reached += (np.abs(sums) >= least[:, None]).sum(axis=1)
    return (1 + reached) / (1 + permutations)


def _checked(term: ArrayLike, value: ArrayLike, weights: ArrayLike) -> tuple[Integers, Floats, Floats]:
    """The three arrays in their types, checked."""
    term, weights, value = as_array(term), as_floats(weights, "weights"), as_floats(value, "value")
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
    """Factor that makes up for the weights of terms without rows [Q, b], from counts [T, b]; NaN if none is left."""
    table = csr_array(weights)
    total, left = table @ np.ones(weights.shape[1]), table @ (count > 0).astype(np.float64)
    return np.divide(total[:, None], left, out=np.full(left.shape, np.nan), where=left > 0)


def _weighted_means(weights: Floats, sums: Floats, count: Floats) -> Floats:
    """Scores [Q, S, b] from sums [T, S, b] and counts [T, b]."""
    means = sums / np.maximum(count, 1)[:, None, :]
    terms, scorers, size = means.shape
    weighted = csr_array(weights) @ means.reshape(terms, scorers * size)
    return weighted.reshape(len(weights), scorers, size) * _scale(weights, count)[:, None, :]
