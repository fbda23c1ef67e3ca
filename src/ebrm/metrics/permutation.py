"""Is a difference between two scorers more than chance? Permutation tests over prompts, and their correction."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import csr_array

from ebrm.metrics.terms import term_shares

Floats = NDArray[np.float64]

PERMUTATIONS = 9999

# So few clusters are tested by all their 2^c sign patterns.
_EXACT = 12
# Sums closer than this share of the largest possible one are equal but for rounding.
_ROUNDING = 1e-10
# Below this many different clusters per cluster, drawing a binomial a kind is cheaper than a sign a cluster.
_FEW_KINDS = 0.1
_CHUNK_CELLS = 1_000_000


def cluster_differences(term: ArrayLike, cluster: ArrayLike, difference: ArrayLike, weights: ArrayLike) -> Floats:
    """Split the difference of two scorers' scores into what each cluster adds to it.

    Args:
        term: which term each row belongs to [k].
        cluster: one label a row [k] of any sortable type, usually prompt ids.
        difference: value of the one scorer minus value of the other [k].
        weights: weight of each term in each score [Q, T], see `ebrm.metrics.terms`.

    Returns:
        Differences [c, Q] in the sorted order of the labels. Their sum over clusters is the difference of the scores
        (NaN for scores none of whose terms has rows).

    Raises:
        ValueError: if the arrays do not fit together.
    """
    difference, term = np.asarray(difference, dtype=np.float64), np.asarray(term)
    labels, place = np.unique(np.asarray(cluster), return_inverse=True)
    if not difference.shape == term.shape == place.shape:
        shapes = f"term {term.shape}, cluster {place.shape} and difference {difference.shape}"
        raise ValueError(f"{shapes}: expected [k] of each")
    shares = term_shares(term, weights)
    order = np.lexsort((difference, term, place))  # the same sums, to the last bit, in any order of the rows
    term, place, difference = term[order], place[order], difference[order]
    columns = [np.bincount(place, share[term] * difference, minlength=len(labels)) for share in shares]
    return np.stack(columns, axis=1) if columns else np.empty((len(labels), 0))


def permutation_test(difference: ArrayLike, permutations: int = PERMUTATIONS, seed: int = 0) -> Floats:
    """Two-sided p-value of the hypothesis that it makes no difference which scorer is which.

    Under it, swapping the two scorers within a prompt is as likely as not: each cluster's difference may as well have
    had the other sign. The statistic is |Σ_c difference|; the signs of whole clusters are flipped, so that rows of
    one prompt stay together (Good, "Permutation, Parametric and Bootstrap Tests of Hypotheses", 2005, chapter 3).
    With at most 12 clusters that are not zero the test is exact, by all sign patterns; otherwise
    p = (1 + b) / (1 + B), with b of B random patterns at least as extreme, which keeps the level (Phipson and Smyth,
    2010). Sums that are equal but for rounding count as equal.

    Args:
        difference: what each cluster adds to the difference, one column a score [c, q], as from
            `cluster_differences`; all columns with more than 12 such clusters see the same patterns.
        permutations: random patterns B.
        seed: seed of the patterns.

    Returns:
        p-values [q]; 1 where no cluster differs, NaN where a column holds NaN. They do not depend on the order of
        the clusters.
    """
    difference = np.asarray(difference, dtype=np.float64)
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
    """Correct the p-values of one family of tests by Holm's step-down method (Scandinavian J. Statistics 6, 1979).

    Rejecting where the corrected value is at most α keeps the chance of *any* false rejection in the family at most
    α, however the tests depend on each other.

    Args:
        p: p-values of any shape; NaN means that there was no test: it stays NaN and does not count.

    Returns:
        Corrected p-values in the same shape: at least `p`, at most 1.
    """
    p = np.asarray(p, dtype=np.float64)
    corrected = np.full(p.shape, np.nan)
    tested = ~np.isnan(p)
    values = p[tested]
    order = np.argsort(values, kind="stable")
    steps = values[order] * np.arange(len(values), 0, -1)
    back = np.empty_like(values)
    back[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    corrected[tested] = back
    return corrected


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
