"""Intervals by resampling prompts: the rows of one prompt are not independent, so they are drawn together.

The percentile bootstrap over clusters (Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapters 8
and 13). Statistics are functions of column sums, so that a resample is one row of multinomial weights times the
clusters' sums, and 2,000 of them are a few matrix products. Every statistic of one table of sums sees the same
resamples: two models compared on it are compared *paired*.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from numbers import Integral

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ebrm.errors import ConfigError, DataError

Floats = NDArray[np.float64]

# Drawing multinomial weights costs one binomial a category; counting drawn indices costs one step a cluster.
_FEW_KINDS = 0.1
# Draws are held in tables of so many cells, which stay in the cache of a processor.
_CHUNK_CELLS = 250_000


@dataclass(frozen=True)
class Estimate:
    """A measured value and its bootstrap interval, in the value's own unit.

    The interval is NaN to NaN where it cannot be computed (fewer than two prompts).
    """

    value: float
    low: float
    high: float

    def excludes(self, value: float) -> bool:
        """Whether `value` lies outside the interval; False where there is no interval."""
        return bool(value < self.low or value > self.high)


@dataclass(frozen=True)
class Bootstrap:
    """Settings of a percentile bootstrap over clusters.

    Attributes:
        resamples: number of draws, at least 1.
        level: coverage of the intervals, in (0, 1).
        seed: seed of the draws, at least 0. The same seed and rows give the same interval, in any order of the rows.

    Raises:
        ConfigError: a field is outside its range.
    """

    resamples: int = 2000
    level: float = 0.95
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("resamples", 1), ("seed", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
                raise ConfigError(f"Bootstrap: {name} is {value!r}, expected a whole number of {least} or more.")
        if not 0 < self.level < 1:
            raise ConfigError(f"Bootstrap: level is {self.level!r}, expected a share between 0 and 1, such as 0.95.")

    def generator(self) -> np.random.Generator:
        """A fresh source of draws: every statistic that starts from it sees the same resamples."""
        return np.random.default_rng(self.seed)

    def estimate(self, value: float, draws: Floats) -> Estimate:
        """Percentile interval of resampled values [B] around `value`; draws that are NaN are left out."""
        draws = draws[np.isfinite(draws)]
        if not len(draws):
            return Estimate(float(value), float("nan"), float("nan"))
        low, high = np.quantile(draws, [(1 - self.level) / 2, (1 + self.level) / 2])
        return Estimate(float(value), float(low), float(high))


def cluster_sums(columns: Sequence[ArrayLike], cluster: ArrayLike) -> Floats:
    """Sum each column within each cluster.

    Args:
        columns: k arrays of n numbers.
        cluster: n labels of any sortable type; rows with equal labels are one cluster.

    Returns:
        Sums [clusters, k] in the sorted order of the labels; to the last bit they do not depend on the order of rows.
    """
    labels, index = np.unique(np.asarray(cluster), return_inverse=True)
    sums = []
    for column in columns:
        values = np.asarray(column, dtype=np.float64)
        # A sum of several numbers depends on their order in its last bit.
        order = np.lexsort((values, index)) if len(labels) < len(index) else slice(None)
        sums.append(np.bincount(index[order], weights=values[order]))
    return np.stack(sums, axis=1)


def resample_sums(sums: Floats, *, bootstrap: Bootstrap = Bootstrap()) -> Floats:
    """Total the columns of `sums` [clusters, k] over draws of as many clusters, with replacement.

    Returns:
        Totals [resamples, k], the same in any order of the clusters; one row of NaN where there are fewer than two
        clusters, which say nothing about how clusters differ.
    """
    clusters, resamples, generator = len(sums), bootstrap.resamples, bootstrap.generator()
    if clusters < 2:
        return np.full((1, sums.shape[1]), np.nan)
    # Clusters with equal sums are interchangeable: drawing how often each *kind* comes up is the same experiment.
    kinds, kind_of, count = np.unique(sums, axis=0, return_inverse=True, return_counts=True)
    if len(kinds) <= max(1, _FEW_KINDS * clusters):
        weights = generator.multinomial(clusters, count / clusters, size=resamples)
        return weights.astype(np.float64) @ kinds
    kind_of = np.sort(kind_of.ravel())
    chunk = max(1, _CHUNK_CELLS // clusters)
    totals = np.empty((resamples, sums.shape[1]))
    for start in range(0, resamples, chunk):
        size = min(chunk, resamples - start)
        drawn = kind_of[generator.integers(0, clusters, size=(size, clusters))]
        drawn += np.arange(size)[:, None] * len(kinds)
        weights = np.bincount(drawn.ravel(), minlength=size * len(kinds)).reshape(size, len(kinds))
        totals[start : start + size] = weights.astype(np.float64) @ kinds
    return totals


def cluster_draws(
    clusters: int, rows: int = 0, *, bootstrap: Bootstrap = Bootstrap()
) -> Iterator[tuple[slice, Floats]]:
    """Draw clusters with replacement, some resamples at a time, for statistics that need more than a few sums.

    Args:
        clusters: how many there are; each resample draws as many.
        rows: the largest table [rows, resamples at a time] that the caller makes of them; as many resamples come
            at a time as keep it and the draws in the cache of a processor.
        bootstrap: of the draws.

    Yields:
        Which resamples these are, and how often each cluster is drawn in them [clusters, b].
    """
    chunk, resamples, generator = (
        max(1, _CHUNK_CELLS // max(clusters, rows)),
        bootstrap.resamples,
        bootstrap.generator(),
    )
    for start in range(0, resamples, chunk):
        size = min(chunk, resamples - start)
        drawn = generator.integers(0, clusters, size=(size, clusters))
        drawn += np.arange(size)[:, None] * clusters
        times = np.bincount(drawn.ravel(), minlength=size * clusters).reshape(size, clusters)
        yield slice(start, start + size), np.ascontiguousarray(times.T, dtype=np.float64)


def clustered_mean(value: ArrayLike, cluster: ArrayLike, *, bootstrap: Bootstrap = Bootstrap()) -> Estimate:
    """Mean over rows with its interval over clusters (clusters with more rows weigh more, as in the plain mean).

    Args:
        value: n numbers.
        cluster: n labels, usually prompt ids.
        bootstrap: of the intervals.
    """
    sums = cluster_sums([np.ones(len(np.asarray(value))), value], cluster)
    total, weighted = sums.sum(axis=0)
    draws = resample_sums(sums, bootstrap=bootstrap)
    return bootstrap.estimate(weighted / total, draws[:, 1] / draws[:, 0])


def cluster_labels(cluster: ArrayLike | None, rows: int) -> NDArray[np.generic]:
    """The labels of what is resampled [rows]; None: each row its own.

    Raises:
        ValueError: if there is not one label a row.
    """
    found = np.arange(rows) if cluster is None else np.asarray(cluster)
    if found.shape != (rows,):
        raise ValueError(f"{rows} rows and cluster labels of shape {found.shape}, expected one a row")
    return found


def finite_array(value: ArrayLike, name: str, length: int | None = None) -> Floats:
    """Take `value` as a one-dimensional float64 array.

    Args:
        value: numbers.
        name: what they are, for the error.
        length: how many there must be; None accepts any number from one up.

    Raises:
        DataError: if there are none, or one is NaN or infinite (with the count and the first row).
        ValueError: if the shape is not [length].
    """
    array = np.asarray(value, dtype=np.float64)
    if array.ndim != 1 or (length is not None and len(array) != length):
        raise ValueError(f"{name} has shape {array.shape}, expected {(length if length is not None else 'n',)}")
    if not len(array):
        raise DataError(f"There are no rows to evaluate: {name} is empty. At least one pair is needed.")
    bad = np.flatnonzero(~np.isfinite(array))
    if len(bad):
        raise DataError(
            f"{name} holds {len(bad)} of {len(array)} values that are not finite numbers, the first "
            f"({array[bad[0]]}) in row {bad[0]}. An average over them would say nothing; find out why those rows "
            "have no number, or leave them out."
        )
    return array
