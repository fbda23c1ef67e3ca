"""Downstream value: benchmark scores against outcomes, gold along optimization, and probes of embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import rankdata

from ebrm.errors import DataError
from ebrm.metrics.bootstrap import (
    Bootstrap,
    Estimate,
    Floats,
    Integers,
    as_floats,
    cluster_draws,
    cluster_labels,
    finite_array,
)
from ebrm.metrics.significance import bootstrap_scores, score_values

# Of the largest value: a curve that is flat but for its last bits peaks at its start.
_ROUNDING = 1e-12


@dataclass(frozen=True)
class DownstreamCorrelation:
    """Correlation of benchmark scores and outcomes over `models` reward models, linear and of ranks (ties share)."""

    pearson: Estimate
    spearman: Estimate
    models: int


@dataclass(frozen=True, eq=False)
class MeanCurve:
    """A mean over prompts along an axis, with its interval at each point, all [k]; NaN as in `Estimate`."""

    value: Floats
    low: Floats
    high: Floats


@dataclass(frozen=True)
class Peak:
    """The highest point of a mean curve, and what comes after it.

    Attributes:
        x: where it is, the first place if there are several (up to rounding); every resample has its own.
        gold: the mean there. This and the next two keep the place that all prompts gave.
        end: the mean at the end of the axis.
        loss: gold minus end, 0 for a curve that peaks at its end. Chosen on the same prompts, gold and loss are a
            little too high; resamples without a fall make the loss negative.
    """

    x: Estimate
    gold: Estimate
    end: Estimate
    loss: Estimate


@dataclass(frozen=True)
class DimensionAccuracy:
    """Accuracy of the probe of one dimension.

    Attributes:
        accuracy: share of the labeled rows whose class is predicted.
        majority: share of the most frequent class among them, which always predicting it would reach.
        rows: number of labeled rows.
    """

    accuracy: Estimate
    majority: float
    rows: int


@dataclass(frozen=True)
class ProbeAccuracy:
    """Accuracy of several probes: `overall` is the unweighted mean of the dimensions, however many rows each has."""

    overall: Estimate
    by_dimension: dict[str, DimensionAccuracy]


def downstream_correlation(
    score: ArrayLike, outcome: ArrayLike, *, bootstrap: Bootstrap = Bootstrap()
) -> DownstreamCorrelation:
    """Pearson's and Spearman's correlation of benchmark scores and downstream outcomes over reward models.

    The check of validity of RewardBench 2 (arXiv 2506.01937; Pearson 0.87 with best-of-16) and Personalized RewardBench
    (arXiv 2604.07343). Scores [k] and outcomes [k] (any unit, such as the mean gold reward of each model's best-of-n)
    give correlations in [-1, 1], NaN where all of one are equal. Intervals resample *reward models*: with fewer than
    some ten they are too narrow, with fewer than three there are none; that scores rest on few prompts is not in them.
    """
    score = finite_array(score, "the benchmark score")
    outcome = finite_array(outcome, "the outcome", len(score))
    order = np.lexsort((outcome, score))
    score, outcome = score[order], outcome[order]
    drawn = np.empty((0, len(score)), dtype=np.int64)
    if len(score) > 2:
        drawn = bootstrap.generator().integers(0, len(score), size=(bootstrap.resamples, len(score)))

    def estimate(first: Floats, second: Floats, draws: Floats) -> Estimate:
        return bootstrap.estimate(float(_correlation(first[None], second[None])[0]), draws)

    pearson = _correlation(score[drawn], outcome[drawn])
    spearman = _correlation(_ranks(score[drawn]), _ranks(outcome[drawn]))
    return DownstreamCorrelation(
        pearson=estimate(score, outcome, pearson),
        spearman=estimate(_ranks(score[None])[0], _ranks(outcome[None])[0], spearman),
        models=len(score),
    )


def mean_curve(values: ArrayLike, cluster: ArrayLike | None = None, *, bootstrap: Bootstrap = Bootstrap()) -> MeanCurve:
    """Mean over prompts at each point of an axis, from one curve a prompt [q, k], such as gold by n.

    Whole curves are drawn, so that one point and another are compared on the same prompts. A difference of two
    rewards' curves gives the paired interval of their difference.
    """
    value, draws = _means(values, cluster, bootstrap)
    low, high = np.quantile(draws, [(1 - bootstrap.level) / 2, (1 + bootstrap.level) / 2], axis=0)
    return MeanCurve(value, low, high)


def curve_peak(
    values: ArrayLike, axis: ArrayLike, cluster: ArrayLike | None = None, *, bootstrap: Bootstrap = Bootstrap()
) -> Peak:
    """Peak of a mean curve and the loss from there to its end: over-optimization (Gao et al., arXiv 2210.10760).

    From one curve a prompt [q, k], such as gold by n, over a finite and ascending axis [k], such as n or KL. The
    resamples are those of `mean_curve`.
    """
    places = as_floats(axis, "the axis")
    mean, draws = _means(values, cluster, bootstrap)
    if places.shape != mean.shape or not len(mean) or not np.isfinite(places).all() or (np.diff(places) <= 0).any():
        raise ValueError(f"the axis {places.shape} of {len(mean)} points must be [k], finite and ascending")
    rounding = _ROUNDING * float(np.abs(as_floats(values, "values")).max())
    top = int(_first_highest(mean[None], rounding)[0])
    peaks = places[_first_highest(draws, rounding)]
    return Peak(
        x=bootstrap.estimate(places[top], np.where(np.isnan(draws[:, 0]), np.nan, peaks)),
        gold=bootstrap.estimate(mean[top], draws[:, top]),
        end=bootstrap.estimate(mean[-1], draws[:, -1]),
        loss=bootstrap.estimate(mean[top] - mean[-1], draws[:, top] - draws[:, -1]),
    )


def probe_accuracy(
    predicted: ArrayLike,
    label: ArrayLike,
    dimensions: Sequence[str],
    cluster: ArrayLike | None = None,
    *,
    bootstrap: Bootstrap = Bootstrap(),
) -> ProbeAccuracy:
    """Accuracy of probes of several preference dimensions, and its mean over dimensions (MRMBench, arXiv 2511.12464).

    There the probes are linear classifiers on a frozen reward model's last hidden state, one for each of harmlessness,
    helpfulness, correctness, coherence, complexity and verbosity. Beside each accuracy is the share of the most
    frequent class (ours). Predict rows that the probe was not trained on.

    Args:
        predicted: predicted classes [n, a], one column a dimension; ignored where there is no label.
        label: true classes [n, a], NaN where a row has no label in a dimension.
        dimensions: the dimensions' names [a].
    """
    predicted, label = as_floats(predicted, "predictions"), as_floats(label, "labels")
    if label.ndim != 2 or predicted.shape != label.shape or label.shape[1] != len(dimensions) or not len(dimensions):
        raise ValueError(
            f"predictions {predicted.shape}, labels {label.shape} and {len(dimensions)} dimensions: expected [n, a], "
            "[n, a] and a, at least one"
        )
    if len(set(dimensions)) < len(dimensions):
        raise ValueError(f"two dimensions have one name: {', '.join(dimensions)}")
    labels = cluster_labels(cluster, len(label))
    there = ~np.isnan(label)
    bad = np.argwhere(there & ~(np.isfinite(predicted) & np.isfinite(label)))
    if len(bad):
        row, column = bad[0]
        raise DataError(
            f"{len(bad)} labeled rows have no finite prediction or an infinite label, the first in row {row} "
            f"({dimensions[column]}): predicted {predicted[row, column]}, label {label[row, column]}."
        )
    empty = np.array(dimensions)[~there.any(axis=0)]
    if len(empty):
        raise DataError(f"No row has a label in {', '.join(empty)}. Leave out what cannot be tested.")
    row, term = there.nonzero()
    right = (predicted == label)[row, term].astype(np.float64)[:, None]
    count = len(dimensions)
    weights = np.concatenate([np.full((1, count), 1 / count), np.eye(count)])
    values = score_values(term, right, weights)[:, 0]
    draws = bootstrap_scores(term, right, labels[row], weights, bootstrap=bootstrap)[:, :, 0]
    overall, *found = (bootstrap.estimate(value, draws[:, n]) for n, value in enumerate(values))
    return ProbeAccuracy(
        overall=overall,
        by_dimension={
            name: DimensionAccuracy(
                found[n], float(np.unique(kept, return_counts=True)[1].max() / len(kept)), len(kept)
            )
            for n, name in enumerate(dimensions)
            for kept in (label[there[:, n], n],)
        },
    )


def _ranks(values: Floats) -> Floats:
    """Mean ranks within each row [b, k]."""
    return np.asarray(rankdata(values, axis=1), dtype=np.float64) if values.size else values


def _correlation(first: Floats, second: Floats) -> Floats:
    """Pearson correlation of each row [b] of [b, k]; NaN where a side is constant."""
    (one, varies), (two, also) = _standard(first), _standard(second)
    return np.where(varies & also, (one * two).sum(axis=1), np.nan).clip(-1, 1)


def _standard(values: Floats) -> tuple[Floats, np.ndarray]:
    """Rows of mean 0 and norm 1, and whether they vary at all; free of overflow."""
    low, high = values.min(axis=1, keepdims=True), values.max(axis=1, keepdims=True)
    scale = np.maximum(np.abs(low), np.abs(high))
    values = values / np.where(scale > 0, scale, 1)
    off = values - values.mean(axis=1, keepdims=True)
    norm = np.linalg.norm(off, axis=1, keepdims=True)
    return off / np.where(norm > 0, norm, 1), ((low < high) & (norm > 0))[:, 0]


def _means(values: ArrayLike, cluster: ArrayLike | None, bootstrap: Bootstrap) -> tuple[Floats, Floats]:
    """The mean curve [k] and those of the resamples [resamples, k]; NaN with fewer than two clusters."""
    curves = as_floats(values, "values")
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
    label = np.unique(cluster_labels(cluster, len(curves)), return_inverse=True)[1]
    sums = _ordered_sums(curves, label)
    value = sums[:, 1:].sum(axis=0) / len(curves)
    clusters = len(sums)
    if clusters < 2:
        return value, np.full((1, curves.shape[1]), np.nan)
    draws = np.empty((bootstrap.resamples, curves.shape[1]))
    for which, times in cluster_draws(clusters, bootstrap=bootstrap):
        totals = np.ascontiguousarray(times.T) @ sums
        draws[which] = totals[:, 1:] / totals[:, :1]
    return value, draws


def _ordered_sums(curves: Floats, label: Integers) -> Floats:
    """Prompts and summed curves of each cluster [c, 1 + k], in an order that only their values decide."""
    order = np.lexsort((*curves.T[::-1], label))
    starts = np.flatnonzero(np.diff(label[order], prepend=-1))
    table = np.concatenate([np.ones((len(curves), 1)), curves[order]], axis=1)
    sums = np.add.reduceat(table, starts, axis=0)
    return sums[np.lexsort(sums.T[::-1])]


def _first_highest(curves: Floats, rounding: float) -> Integers:
    """The first place of each curve [b, k] that is within rounding of its highest [b]."""
    return (curves >= curves.max(axis=1, keepdims=True) - rounding).argmax(axis=1)
