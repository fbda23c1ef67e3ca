"""Where a curve of gold peaks as a reward is optimized harder, and what is lost beyond: over-optimization.

As rewards are imperfect, gold often rises and then falls (Gao et al., arXiv 2210.10760). Intervals are percentile
bootstrap intervals over prompts: whole curves are drawn, so that what holds at one point and at another is compared on
the same prompts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from ebrm.errors import ConfigError, DataError
from ebrm.optimize.pools import Floats, Integers

RESAMPLES = 2000
LEVEL = 0.95

# Draws are held in tables of so many cells.
_CHUNK_CELLS = 1_000_000
# Of the largest value: a curve that is flat but for its last bits peaks at its start.
_ROUNDING = 1e-12


@dataclass(frozen=True)
class Interval:
    """A measured value and its bootstrap interval; NaN to NaN with fewer than two prompts to draw from."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, eq=False)
class MeanCurve:
    """A mean over prompts along an axis, with its interval at each point, all [k]; NaN as in `Interval`."""

    value: Floats
    low: Floats
    high: Floats


@dataclass(frozen=True)
class Peak:
    """The highest point of a mean curve, and what comes after it.

    Attributes:
        x: where it is, the first place if there are several (up to rounding). Every resample has its own, so the
            interval says how well the place is known.
        gold: the mean there. This and the next two keep the place that all prompts gave.
        end: the mean at the end of the axis.
        loss: gold minus end; 0 for a curve that peaks at its end. As the highest point is chosen on the same prompts,
            gold and loss are a little too high; resamples without a fall make the loss negative.
    """

    x: Interval
    gold: Interval
    end: Interval
    loss: Interval


def mean_curve(
    values: ArrayLike,
    cluster: ArrayLike | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
    level: float = LEVEL,
) -> MeanCurve:
    """Mean over prompts at each point of an axis.

    Args:
        values: one curve a prompt [q, k], such as gold by n. A difference of two rewards' curves gives the paired
            interval of their difference.
        cluster: label of what is resampled together [q], of any sortable type; None: each prompt by itself.
        resamples: bootstrap resamples, 1 or more.
        seed: seed of the resampling. Nothing depends on the order of prompts.
        level: share of the resampled values inside the interval, in (0, 1).

    Raises:
        ConfigError: `resamples` or `level` outside its range.
        DataError: no prompts, or a value that is not finite.
        ValueError: values not [q, k], or not one cluster label a prompt.
    """
    value, draws = _means(values, cluster, resamples, seed, level)
    low, high = _bounds(draws, level)
    return MeanCurve(value, low, high)


def curve_peak(
    values: ArrayLike,
    axis: ArrayLike,
    cluster: ArrayLike | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
    level: float = LEVEL,
) -> Peak:
    """Find where the mean of many curves peaks, and what is lost from there to the end.

    Args:
        values: one curve a prompt [q, k], such as gold by n.
        axis: where the values are, finite and ascending, such as n or KL [k].
        cluster, resamples, seed, level: as in `mean_curve`; the same of the same values see the same resamples.

    Raises:
        ConfigError: `resamples` or `level` outside its range.
        DataError: no prompts, or a value that is not finite.
        ValueError: values not [q, k] with at least one point, an axis that is not [k], finite and ascending, or not
            one cluster label a prompt.
    """
    places = np.asarray(axis, dtype=np.float64)
    mean, draws = _means(values, cluster, resamples, seed, level)
    if places.shape != mean.shape or not len(mean) or not np.isfinite(places).all() or (np.diff(places) <= 0).any():
        raise ValueError(f"the axis {places.shape} of {len(mean)} points must be [k], finite and ascending")
    rounding = _ROUNDING * float(np.abs(np.asarray(values, dtype=np.float64)).max())
    top = int(_first_highest(mean[None], rounding)[0])
    peaks = places[_first_highest(draws, rounding)]
    columns = {
        "x": (places[top], np.where(np.isnan(draws[:, 0]), np.nan, peaks)),
        "gold": (mean[top], draws[:, top]),
        "end": (mean[-1], draws[:, -1]),
        "loss": (mean[top] - mean[-1], draws[:, top] - draws[:, -1]),
    }
    found = {}
    for name, (value, drawn) in columns.items():
        low, high = _bounds(drawn[:, None], level)
        found[name] = Interval(float(value), float(low[0]), float(high[0]))
    return Peak(**found)


def _means(
    values: ArrayLike, cluster: ArrayLike | None, resamples: int, seed: int, level: float
) -> tuple[Floats, Floats]:
    """The mean curve [k] and those of the resamples [resamples, k]; no resamples with fewer than two clusters."""
    if resamples < 1 or not 0 < level < 1:
        raise ConfigError(f"{resamples} resamples and level {level}: expected 1 or more, and a level between 0 and 1.")
    curves = np.asarray(values, dtype=np.float64)
    if curves.ndim != 2:
        raise ValueError(f"values have shape {curves.shape}, expected [q, k]")
    if not len(curves):
        raise DataError("There are no prompts to average over. At least one is needed.")
    bad = ~np.isfinite(curves).all(axis=1)
    if bad.any():
        raise DataError(
            f"{bad.sum()} of {len(curves)} prompts have no finite value somewhere on the axis, the first in row "
            f"{np.flatnonzero(bad)[0]}. The points of a mean curve must be means over the same prompts: end the axis "
            "where every prompt still has a value (best-of-n: at the size of the smallest pool), or leave those "
            "prompts out and count them."
        )
    label = np.arange(len(curves)) if cluster is None else np.unique(np.asarray(cluster), return_inverse=True)[1]
    if label.shape != (len(curves),):
        raise ValueError(f"{label.shape} cluster labels for {len(curves)} prompts")
    sums = _ordered_sums(curves, label)
    value = sums[:, 1:].sum(axis=0) / len(curves)
    clusters = len(sums)
    if clusters < 2:
        return value, np.full((1, curves.shape[1]), np.nan)
    generator = np.random.default_rng(seed)
    draws = np.empty((resamples, curves.shape[1]))
    step = max(1, _CHUNK_CELLS // clusters)
    for start in range(0, resamples, step):
        size = min(step, resamples - start)
        drawn = generator.integers(0, clusters, size=(size, clusters)) + np.arange(size)[:, None] * clusters
        times = np.bincount(drawn.ravel(), minlength=size * clusters).reshape(size, clusters)
        totals = times.astype(np.float64) @ sums
        draws[start : start + size] = totals[:, 1:] / totals[:, :1]
    return value, draws


def _ordered_sums(curves: Floats, label: np.ndarray) -> Floats:
    """Prompts and summed curves of each cluster [c, 1 + k], in an order that only their values decide."""
    order = np.lexsort((*curves.T[::-1], label))
    starts = np.flatnonzero(np.diff(label[order], prepend=-1))
    table = np.concatenate([np.ones((len(curves), 1)), curves[order]], axis=1)
    sums = np.add.reduceat(table, starts, axis=0)
    return sums[np.lexsort(sums.T[::-1])]


def _first_highest(curves: Floats, rounding: float) -> Integers:
    """The first place of each curve [b, k] that is within rounding of its highest [b]."""
    return (curves >= curves.max(axis=1, keepdims=True) - rounding).argmax(axis=1)


def _bounds(draws: Floats, level: float) -> tuple[Floats, Floats]:
    """Central share `level` of the draws [resamples, k]: lower [k], upper [k]."""
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return low, high
