"""Accuracy for each user, subset or prompt: the mean over groups, the worst of them, and how many have no mistake."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from ebrm.errors import ConfigError
from ebrm.metrics.accuracy import correct_pairs
from ebrm.metrics.bootstrap import (
    Bootstrap,
    Estimate,
    cluster_labels,
    cluster_sums,
    clustered_mean,
)
from ebrm.metrics.within import check_nested


@dataclass(frozen=True)
class GroupAccuracy:
    """Accuracy over pairs and over groups.

    Attributes:
        mean: share of pairs that are right: groups count by their number of pairs.
        macro: mean of the groups' accuracies: groups count alike.
        worst: lowest accuracy of a group. It has no interval: the lowest of resampled groups is biased.
        worst_group: label of that group, the first in sorted order of equals.
        all_right: share of groups without a mistake (ACC+ where a group is a prompt).
        groups: number of groups.
    """

    mean: Estimate
    macro: Estimate
    worst: float
    worst_group: str
    all_right: Estimate
    groups: int


def group_accuracy(
    chosen: ArrayLike,
    rejected: ArrayLike,
    group: ArrayLike,
    tie: float = 0.0,
    cluster: ArrayLike | None = None,
    *,
    bootstrap: Bootstrap = Bootstrap(),
) -> GroupAccuracy:
    """Accuracy of pairs by groups, as in Personalized RewardBench (users) and MM-RLHF (ACC+, all pairs of a sample).

    Papers: Personalized RewardBench (arXiv 2604.07343); MM-RLHF (arXiv 2502.10391), whose ACC+ is given as commonly
    described, not checked against the paper. What groups are drawn from decides the interval: groups are resampled
    whole, as new users would be. An offset of both rewards of a pair and a rising map of all rewards change nothing.

    Args:
        chosen: rewards of the chosen responses [p].
        rejected: rewards of the rejected responses [p].
        group: label of each pair's group [p], of any sortable type.
        tie: worth of equal rewards, in [0, 1]; 0: wrong. Only pairs worth 1 are without a mistake.
        cluster: label of what is resampled [p], each group in one of them; None: the groups.
        bootstrap: of the intervals.

    Raises:
        DataError: if there are no pairs or a reward is not finite.
        ConfigError: if `tie` is outside [0, 1].
        ValueError: if the arrays differ in length or a group is in several clusters.
    """
    if not 0 <= tie <= 1:
        raise ConfigError(f"tie is {tie}, expected 0 (wrong) to 1 (right)")
    right = correct_pairs(chosen, rejected, tie)
    group = cluster_labels(group, len(right))
    cluster = group if cluster is None else cluster_labels(cluster, len(right))
    check_nested(group, cluster)
    labels, first, place = np.unique(group, return_index=True, return_inverse=True)
    pairs, total = cluster_sums([np.ones(len(right)), right], place).T
    accuracy, of_group = total / pairs, cluster[first]
    worst = int(np.argmin(accuracy))
    return GroupAccuracy(
        mean=clustered_mean(right, cluster, bootstrap=bootstrap),
        macro=clustered_mean(accuracy, of_group, bootstrap=bootstrap),
        worst=float(accuracy[worst]),
        worst_group=str(labels[worst]),
        all_right=clustered_mean(accuracy == 1, of_group, bootstrap=bootstrap),
        groups=len(labels),
    )
