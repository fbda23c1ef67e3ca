"""Percentile bootstrap over clusters (prompts), and what every metric shares: array checks and sums by cluster.

Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapters 8 and 13. Statistics are functions of column
sums, so that a resample is one row of multinomial weights times the clusters' sums. Every statistic of one table of
sums sees the same resamples: two models compared on it are compared *paired*.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from numbers import Integral

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ebrm.errors import ConfigError, DataError

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

# Drawing multinomial weights costs one binomial a category; counting drawn indices costs one step a cluster.
_FEW_KINDS = 0.1
# Draws are held in tables of so many cells, which stay in the cache of a processor.
_CHUNK_CELLS = 250_000


@dataclass(frozen=True)
class Estimate:
    """A measured value and its bootstrap interval, in the value's unit; NaN to NaN with fewer than two clusters."""

    value: float
    low: float
    high: float

    def excludes(self, value: float) -> bool:
        """Whether `value` lies outside the interval; False where there is no interval."""
        return bool(value < self.low or value > self.high)

    def to_dict(self) -> dict[str, float | None]:
        """Value, low and high for JSON; None for what is not a finite number."""
        return {name: one if np.isfinite(one) else None for name, one in vars(self).items()}


#: Where there is nothing to estimate.
NOTHING = Estimate(float("nan"), float("nan"), float("nan"))


@dataclass(frozen=True)
class Bootstrap:
    """Settings of a percentile bootstrap over clusters.

    Attributes:
        resamples: number of draws, at least 1.
        level: coverage of the intervals, in (0, 1).
        seed: seed of the draws, at least 0. The same seed and rows give the same interval.

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
                raise ConfigError(f"{name} is {value!r}, expected a whole number of {least} or more")
        if not 0 < self.level < 1:
            raise ConfigError(f"level is {self.level!r}, expected a share between 0 and 1, such as 0.95")

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


def share_interval(share: float, draws: Floats, clusters: int, bootstrap: Bootstrap) -> Estimate:
    """`Bootstrap.estimate` of a share from its resampled values [B], also where these say nothing: at 0 and at 1.

    Where every one of the clusters is right, or none, all resamples are equal and the bootstrap's interval is a point.
    Then the exact one of Clopper and Pearson (Biometrika 26, 1934) is taken, of as many independent trials as there are
    clusters: from (α/2)^(1/clusters) to 1, or from 0 to 1 minus that.
    """
    found = bootstrap.estimate(share, draws)
    if not np.isfinite(found.low) or found.low != found.high or share not in (0.0, 1.0):
        return found
    far = ((1 - bootstrap.level) / 2) ** (1 / clusters)
    return Estimate(share, far, 1.0) if share == 1.0 else Estimate(share, 0.0, 1 - far)


def as_array(value: ArrayLike) -> NDArray[np.generic]:
    """A list, array or tensor (of any device or precision, with or without gradient) as a NumPy array."""
    if hasattr(value, "detach"):
        tensor = value.detach().cpu()
        value = tensor.double().numpy() if tensor.is_floating_point() else tensor.numpy()
    return np.asarray(value)


def as_floats(value: ArrayLike, name: str) -> Floats:
    """`value` in float64, whatever its shape.

    Raises:
        ValueError: it does not hold numbers, or rows of different lengths.
    """
    try:
        return as_array(value).astype(np.float64, copy=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} is not an array of numbers: {error}") from None


def finite_array(value: ArrayLike, name: str, length: int | None = None) -> Floats:
    """`value` as a float64 array of `length` numbers (None: any number from one up), called `name` in errors.

    DataError: there are none, or one is NaN or infinite (with the count and the first row). ValueError: another shape.
    """
    array = as_floats(value, name)
    if array.ndim != 1 or (length is not None and len(array) != length):
        raise ValueError(f"{name} has shape {array.shape}, expected {(length if length is not None else 'n',)}")
    if not len(array):
        raise DataError(f"There are no rows to evaluate: {name} is empty. At least one row is needed.")
    bad = np.flatnonzero(~np.isfinite(array))
    if len(bad):
        raise DataError(
            f"{name} holds {len(bad)} of {len(array)} values that are not finite numbers, the first "
            f"({array[bad[0]]}) in row {bad[0]}. An average over them would say nothing; find out why those rows "
            "have no number, or leave them out."
        )
    return array


def zero_or_one(value: ArrayLike, name: str, length: int) -> Floats:
    """Take `value` [length], bool or 0 and 1, as 0.0 and 1.0; a DataError if one is anything else."""
    array = finite_array(value, name, length)
    bad = np.flatnonzero((array != 0) & (array != 1))
    if len(bad):
        raise DataError(
            f"{name}: {len(bad)} of {length} are neither 0 nor 1, the first ({array[bad[0]]}) in row {bad[0]}."
        )
    return array


def cluster_labels(cluster: ArrayLike | None, rows: int, name: str = "cluster") -> NDArray[np.generic]:
    """The labels of what is resampled [rows]; None: each row its own; a ValueError unless there is one a row."""
    found = np.arange(rows) if cluster is None else as_array(cluster)
    if found.shape != (rows,):
        raise ValueError(f"{rows} rows and {name} labels of shape {found.shape}, expected one a row")
    return found


def cluster_sums(columns: Sequence[ArrayLike], cluster: ArrayLike) -> Floats:
    """Sum k columns of n numbers within each cluster [clusters, k], by sorted label; free of the order of rows."""
    labels, index = np.unique(as_array(cluster), return_inverse=True)
    sums = []
    for column in columns:
        values = np.asarray(column, dtype=np.float64)
        # A sum of several numbers depends on their order in its last bit.
        order = np.lexsort((values, index)) if len(labels) < len(index) else slice(None)
        sums.append(np.bincount(index[order], weights=values[order]))
    return np.stack(sums, axis=1)


def resample_sums(sums: Floats, *, bootstrap: Bootstrap = Bootstrap()) -> Floats:
    """Totals of `sums` [clusters, k] over draws of as many clusters, with replacement [resamples, k].

    One row of NaN where there are fewer than two clusters, which do not tell how clusters differ.
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
    totals = np.empty((resamples, sums.shape[1]))
    for which, drawn in _drawn(clusters, clusters, bootstrap):
        totals[which] = _counts(kind_of[drawn], len(kinds)) @ kinds
    return totals


def cluster_draws(
    clusters: int, rows: int = 0, *, bootstrap: Bootstrap = Bootstrap()
) -> Iterator[tuple[slice, Floats]]:
    """Draw clusters with replacement, some resamples at a time, for statistics that need more than a few sums.

    `rows` is of the largest table [rows, resamples at a time] that the caller makes of them: as many resamples come at
    a time as keep it in the cache of a processor. Yields which resamples these are, and how often each cluster is drawn
    in them [clusters, b].
    """
    for which, drawn in _drawn(clusters, max(clusters, rows), bootstrap):
        yield which, np.ascontiguousarray(_counts(drawn, clusters).T)


def clustered_mean(
    value: ArrayLike, cluster: ArrayLike | None = None, *, bootstrap: Bootstrap = Bootstrap()
) -> Estimate:
    """Mean of `value` [n] with its interval; clusters with more rows weigh more, as in the plain mean."""
    value = finite_array(value, "what is averaged")
    sums = cluster_sums([np.ones(len(value)), value], cluster_labels(cluster, len(value)))
    total, weighted = sums.sum(axis=0)
    draws = resample_sums(sums, bootstrap=bootstrap)
    return bootstrap.estimate(weighted / total, draws[:, 1] / draws[:, 0])


def ratio(top: ArrayLike, bottom: ArrayLike) -> Floats:
    """Top / bottom, NaN where the bottom is 0."""
    top, bottom = np.asarray(top, dtype=np.float64), np.asarray(bottom, dtype=np.float64)
    return np.divide(top, bottom, out=np.full(np.broadcast(top, bottom).shape, np.nan), where=bottom != 0)


def _drawn(clusters: int, width: int, bootstrap: Bootstrap) -> Iterator[tuple[slice, Integers]]:
    """Drawn clusters [b, clusters], so many resamples at a time that tables of `width` stay in the cache."""
    generator, chunk = bootstrap.generator(), max(1, _CHUNK_CELLS // width)
    for start in range(0, bootstrap.resamples, chunk):
        size = min(chunk, bootstrap.resamples - start)
        yield slice(start, start + size), generator.integers(0, clusters, size=(size, clusters))


def _counts(drawn: Integers, kinds: int) -> Floats:
    """How often each kind is in each row of `drawn` [b, n]: [b, kinds]."""
    size = len(drawn)
    places = drawn + np.arange(size)[:, None] * kinds
    return np.bincount(places.ravel(), minlength=size * kinds).reshape(size, kinds).astype(np.float64)
