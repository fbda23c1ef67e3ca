"""How well rewards order the responses to one prompt, item by item.

Tables are [n, r]: one row an item, one column a response, NaN beyond an item's last response in both tables.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ebrm.errors import DataError

Floats = NDArray[np.float64]

_CHUNK_CELLS = 1_000_000


def reciprocal_rank(rewards: ArrayLike, gold: ArrayLike) -> Floats:
    """One over the rank of the best right response; its mean over items is the mean reciprocal rank (MRR).

    As in RewardMATH (arXiv 2410.01729) ties count against the right response: wrong ones of equal reward come first.
    Of several right responses only the best-placed counts, and the others do not stand in its way.

    Args:
        rewards: rewards [n, r].
        gold: 1.0 for right and 0.0 for wrong responses [n, r].

    Returns:
        1 / (1 + number of wrong responses with at least the reward of the best right one) [n]; NaN for items without
        a right response.

    Raises:
        DataError: if a response has no finite reward or no gold.
        ValueError: if the shapes differ or gold is not 0 or 1.
    """
    rewards, gold, there = checked_tables(rewards, gold)
    if not np.isin(gold[there], (0.0, 1.0)).all():
        raise ValueError("the reciprocal rank needs responses that are right (1.0) or wrong (0.0)")
    best = np.max(rewards, axis=1, initial=-np.inf, where=gold == 1)
    before = ((gold == 0) & (rewards >= best[:, None])).sum(axis=1)
    return np.where((gold == 1).any(axis=1), 1 / (1 + before), np.nan)


def rank_correlation(rewards: ArrayLike, gold: ArrayLike) -> tuple[Floats, Floats]:
    """Kendall's tau-b and Spearman's rho of rewards and graded gold within each item.

    Both are the same coefficient Σ a b / sqrt(Σ a² Σ b²) of Daniels (Biometrika 33, 1944): tau-b (Kendall 1945,
    ties corrected) with the signs of all differences as scores, rho with their sums, which are twice the centered
    average ranks. They equal `scipy.stats.kendalltau` and `spearmanr`, for all items at once.

    Args:
        rewards: rewards [n, r].
        gold: worth of the responses, any numbers [n, r].

    Returns:
        (tau-b [n], rho [n]), in [-1, 1]; NaN for items whose rewards or golds are all equal.

    Raises:
        DataError: if a response has no finite reward or no gold.
        ValueError: if the shapes differ.
    """
    rewards, gold, _ = checked_tables(rewards, gold)
    items, responses = rewards.shape
    tau, rho = np.full(items, np.nan), np.full(items, np.nan)
    chunk = max(1, _CHUNK_CELLS // max(1, responses**2))
    for start in range(0, items, chunk):
        rows = slice(start, start + chunk)
        first, second = (_difference_signs(table[rows]) for table in (rewards, gold))
        tau[rows] = _correlation(first.reshape(len(first), -1), second.reshape(len(second), -1))
        rho[rows] = _correlation(first.sum(axis=2), second.sum(axis=2))
    return tau, rho


def weighted_agreement(rewards: ArrayLike, gold: ArrayLike) -> Floats:
    """Share of agreement of the response pairs of each item, a pair weighing 1 + |difference of its golds|.

    With w_ij = 1 + |g_i - g_j| over all pairs of an item, it is 1 - Σ penalty / Σ w: a pair in the reversed order costs
    w_ij, equal rewards for different golds cost w_ij / 2, and equal golds cost nothing whatever the rewards (their
    weight of 1 still counts in Σ w). From RewardAnything (arXiv 2506.03637), whose code gives 1 to items of fewer than
    two responses; here they are NaN, so that no mean is raised by items that have nothing to order. Only the order of
    the rewards matters; an offset of all golds of an item does not, their unit does.

    Args:
        rewards: rewards [n, r].
        gold: worth of the responses, any numbers [n, r], higher is better.

    Returns:
        [n], in [0, 1]: 1 for the same order, 0.5 for constant rewards of different golds; NaN for items of fewer than
        two responses.

    Raises:
        DataError: if a response has no finite reward or no gold.
        ValueError: if the shapes differ.
    """
    rewards, gold, there = checked_tables(rewards, gold)
    agreement = np.full(len(gold), np.nan)
    chunk = max(1, _CHUNK_CELLS // max(1, gold.shape[1] ** 2))
    for start in range(0, len(gold), chunk):
        rows = slice(start, start + chunk)
        better = _difference_signs(gold[rows]) > 0  # each pair of different golds once, from its better side
        penalty = np.where(better, (1 - _difference_signs(rewards[rows])) / 2, 0.0)
        difference = np.where(there[rows], gold[rows], 0.0)
        weight = 1 + np.abs(difference[:, :, None] - difference[:, None, :])
        pairs = there[rows, :, None] & there[rows, None, :] & ~np.eye(gold.shape[1], dtype=bool)
        total = np.sum(weight, axis=(1, 2), where=pairs) / 2
        cost = np.sum(weight * penalty, axis=(1, 2))
        agreement[rows] = 1 - np.divide(cost, total, out=np.full(len(total), np.nan), where=total > 0)
    return agreement


def item_tables(item: ArrayLike, *columns: ArrayLike) -> tuple[Floats, ...]:
    """Put numbers of responses into tables [n, r], as the functions here take them.

    Args:
        item: label of each response's item [m], of any sortable type.
        columns: numbers of the responses [m] each: rewards, golds.

    Returns:
        A table for each column: items in the sorted order of their labels, a response a column in the order of rows,
        NaN beyond an item's last response.

    Raises:
        ValueError: if the lengths differ.
    """
    labels, row = np.unique(np.asarray(item), return_inverse=True)
    sizes = np.bincount(row, minlength=len(labels))
    order = np.argsort(row, kind="stable")
    place = np.empty(len(row), dtype=np.int64)
    place[order] = np.arange(len(row)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    tables = []
    for column in columns:
        values = np.asarray(column, dtype=np.float64)
        if values.shape != row.shape:
            raise ValueError(f"{len(row)} item labels and a column of shape {values.shape}")
        table = np.full((len(labels), int(sizes.max(initial=0))), np.nan)
        table[row, place] = values
        tables.append(table)
    return tuple(tables)


def picked_gold(rewards: ArrayLike, gold: ArrayLike) -> Floats:
    """Mean worth of the response that best-of-n would pick by the rewards, ties broken by lot on average.

    Args:
        rewards: rewards [n, r].
        gold: worth of the responses, any numbers [n, r].

    Returns:
        Mean gold of the responses of highest reward [n]; NaN for items without responses.

    Raises:
        DataError: if a response has no finite reward or no gold.
        ValueError: if the shapes differ.
    """
    rewards, gold, there = checked_tables(rewards, gold)
    best = np.max(rewards, axis=1, initial=-np.inf, where=there)
    picked = there & (rewards == best[:, None])
    total = np.sum(gold, axis=1, where=picked)
    return np.divide(total, picked.sum(axis=1), out=np.full(len(gold), np.nan), where=picked.any(axis=1))


def checked_tables(rewards: ArrayLike, gold: ArrayLike) -> tuple[Floats, Floats, NDArray[np.bool_]]:
    """Both tables in float64, and where there are responses [n, r].

    Raises:
        DataError: if a response has no finite reward or no gold.
        ValueError: if the shapes differ or are not [n, r].
    """
    rewards, gold = np.asarray(rewards, dtype=np.float64), np.asarray(gold, dtype=np.float64)
    if rewards.ndim != 2 or rewards.shape != gold.shape:
        raise ValueError(f"rewards {rewards.shape} and gold {gold.shape}: expected [n, r] of both")
    bad = np.flatnonzero(((np.isfinite(rewards) != np.isfinite(gold)) | np.isinf(rewards)).any(axis=1))
    if len(bad):
        raise DataError(
            f"{len(bad)} of {len(rewards)} items have a response without a finite reward, or a reward without a "
            f"response, the first in row {bad[0]}. Leave such items out for all rewards that are compared, and count "
            "them."
        )
    return rewards, gold, np.isfinite(gold)


def _difference_signs(table: Floats) -> NDArray[np.int64]:
    """Signs of all differences within a row [n, r, r]; 0 where a response is missing."""
    first, second = table[:, :, None], table[:, None, :]
    return (first > second).astype(np.int64) - (first < second)


def _correlation(first: NDArray[np.int64], second: NDArray[np.int64]) -> Floats:
    """Σ a b / sqrt(Σ a² Σ b²) of each row [n]; NaN where a side is all zero."""
    squares = np.float64(1) * (first**2).sum(axis=1) * (second**2).sum(axis=1)
    return np.divide((first * second).sum(axis=1), np.sqrt(squares), out=np.full(len(first), np.nan), where=squares > 0)
