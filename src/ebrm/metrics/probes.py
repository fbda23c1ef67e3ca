"""What an embedding holds: the accuracy of probes trained on it, dimension by dimension."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ebrm.errors import DataError
from ebrm.metrics.bootstrap import Bootstrap, Estimate, cluster_labels
from ebrm.metrics.terms import bootstrap_scores, score_values

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class DimensionAccuracy:
    """Accuracy of the probe of one dimension.

    Attributes:
        accuracy: share of the labeled rows whose class is predicted.
        majority: share of the most frequent class among them: what always predicting it would reach here.
        rows: number of labeled rows.
    """

    accuracy: Estimate
    majority: float
    rows: int


@dataclass(frozen=True)
class ProbeAccuracy:
    """Accuracy of the probes of several dimensions.

    Attributes:
        overall: unweighted mean of the dimensions' accuracies, however many rows each has.
        by_dimension: the accuracy of each dimension, in the order given.
    """

    overall: Estimate
    by_dimension: dict[str, DimensionAccuracy]


def probe_accuracy(
    predicted: ArrayLike,
    label: ArrayLike,
    dimensions: Sequence[str],
    cluster: ArrayLike | None = None,
    *,
    bootstrap: Bootstrap = Bootstrap(),
) -> ProbeAccuracy:
    """Test accuracy of probes of several preference dimensions, and its mean over dimensions.

    The score of MRMBench (arXiv 2511.12464), whose probes are linear classifiers on a frozen reward model's last hidden
    state, one for each of harmlessness, helpfulness, correctness, coherence, complexity and verbosity. The share of the
    most frequent class is beside it (not in the paper): a probe that does no better has found nothing. Predict rows
    that the probe was not trained on. How the classes are numbered does not matter.

    Args:
        predicted: predicted classes [n, a], one column a dimension, any whole numbers; not looked at where there is no
            label.
        label: true classes [n, a], NaN where a row has no label in a dimension.
        dimensions: the dimensions' names [a].
        cluster: one label a row [n], usually prompt ids, the unit resampled, the same for all dimensions; None: each
            row its own.
        bootstrap: of the intervals.

    Raises:
        DataError: if a dimension has no label, or a labeled row has no finite prediction or an infinite label.
        ValueError: if the arrays do not fit together or two dimensions have one name.
    """
    predicted, label = np.asarray(predicted, dtype=np.float64), np.asarray(label, dtype=np.float64)
    if label.ndim != 2 or predicted.shape != label.shape or label.shape[1] != len(dimensions) or not len(dimensions):
        raise ValueError(
            f"predictions {predicted.shape}, labels {label.shape} and {len(dimensions)} dimensions: expected [n, a], "
            "[n, a] and a, at least one"
        )
    if len(set(dimensions)) < len(dimensions):
        raise ValueError(f"two dimensions have one name: {', '.join(dimensions)}")
    cluster = cluster_labels(cluster, len(label))
    there = ~np.isnan(label)
    bad = np.argwhere(there & ~(np.isfinite(predicted) & np.isfinite(label)))
    if len(bad):
        row, column = bad[0]
        raise DataError(
            f"{len(bad)} labeled rows have no finite prediction or an infinite label, the first in row {row} "
            f"({dimensions[column]}): predicted {predicted[row, column]}, label {label[row, column]}."
        )
    empty = [name for name, some in zip(dimensions, there.any(axis=0), strict=True) if not some]
    if empty:
        raise DataError(f"No row has a label in {', '.join(empty)}. Leave out what cannot be tested.")

    row, term = there.nonzero()
    right = (predicted == label)[row, term].astype(np.float64)[:, None]
    count = len(dimensions)
    weights = np.concatenate([np.full((1, count), 1 / count), np.eye(count)])
    values = score_values(term, right, weights)[:, 0]
    draws = bootstrap_scores(term, right, cluster[row], weights, bootstrap=bootstrap)[:, :, 0]
    overall, *found = (bootstrap.estimate(value, draws[:, n]) for n, value in enumerate(values))
    return ProbeAccuracy(
        overall=overall,
        by_dimension={
            name: DimensionAccuracy(found[n], _majority(label[there[:, n], n]), int(there[:, n].sum()))
            for n, name in enumerate(dimensions)
        },
    )


def _majority(label: Floats) -> float:
    return float(np.unique(label, return_counts=True)[1].max() / len(label))
