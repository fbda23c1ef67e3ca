"""What two quantities share *within* prompts: each prompt's own level is taken out, as rewards have none."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]


def centered(value: ArrayLike, group: ArrayLike, weight: ArrayLike | None = None) -> Floats:
    """Subtract from each value the (weighted) mean of its group.

    Args:
        value: numbers [m].
        group: one label a value [m] of any sortable type, usually the prompt.
        weight: weight of each value in its group's mean [m], not negative, not all zero; None: all the same.

    Returns:
        Centered values [m]; exactly 0 where all values of a group are equal, and in groups without weight. To the last
        bit they do not depend on the order of rows.
    """
    value = np.asarray(value, dtype=np.float64)
    _, place = np.unique(np.asarray(group), return_inverse=True)
    weight = np.ones(len(value)) if weight is None else np.asarray(weight, dtype=np.float64)
    order = np.lexsort((weight, value, place))
    sorted_place, sorted_value, sorted_weight = place[order], value[order], weight[order]
    total = np.bincount(sorted_place, sorted_weight)
    mean = np.bincount(sorted_place, sorted_weight * sorted_value) / np.where(total > 0, total, 1)
    # Rounding of the mean must not turn equal values into small differences, which a correlation would blow up.
    starts = np.flatnonzero(np.diff(sorted_place, prepend=-1))
    equal = np.minimum.reduceat(sorted_value, starts) == np.maximum.reduceat(sorted_value, starts)
    return np.where((equal | (total == 0))[place], 0.0, value - mean[place])


def check_nested(group: ArrayLike, cluster: ArrayLike) -> None:
    """Check that each group lies in one cluster: only then can clusters be resampled after centering in groups.

    Raises:
        ValueError: if the lengths differ, or a group is in several clusters.
    """
    _, first = np.unique(np.asarray(group), return_inverse=True)
    _, second = np.unique(np.asarray(cluster), return_inverse=True)
    if first.shape != second.shape:
        raise ValueError(f"{len(first)} rows and {len(second)} cluster labels")
    if len(np.unique(first * np.int64(second.max(initial=0) + 1) + second)) != first.max(initial=-1) + 1:
        raise ValueError("a prompt's rows are in several clusters, but they have to be resampled together")
