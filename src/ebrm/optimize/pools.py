"""Pools: several responses to each prompt, with the reward that selects among them and the gold that judges."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ebrm.errors import DataError

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


def pool_tables(reward: ArrayLike, gold: ArrayLike) -> tuple[Floats, Floats]:
    """Both tables in float64, checked.

    Args:
        reward: rewards of the responses [q, m], NaN where a prompt has fewer than m.
        gold: their worth, NaN in the same places [q, m].

    Returns:
        (reward [q, m], gold [q, m]).

    Raises:
        DataError: a response with a reward but no gold or the reverse, or an infinite number.
        ValueError: not two tables of the same shape.
    """
    reward, gold = np.asarray(reward, dtype=np.float64), np.asarray(gold, dtype=np.float64)
    if reward.ndim != 2 or reward.shape != gold.shape:
        raise ValueError(f"reward {reward.shape} and gold {gold.shape}: expected [q, m] of both")
    bad = ((np.isnan(reward) != np.isnan(gold)) | np.isinf(reward) | np.isinf(gold)).any(axis=1)
    if bad.any():
        raise DataError(
            f"{bad.sum()} of {len(bad)} prompts have a response that lacks its reward or its gold, or where one is "
            f"infinite, the first in row {np.flatnonzero(bad)[0]}. Every response needs both, and NaN in both tables "
            "marks a place without one: leave such prompts out for all rewards that are compared, and count them."
        )
    return reward, gold


def pools_by_size(reward: Floats, gold: Floats) -> Iterator[tuple[Integers, Floats, Floats]]:
    """Pools of equal size together, without the empty places: nothing then depends on padding or on order.

    Args:
        reward, gold: checked tables [q, m], see `pool_tables`.

    Yields:
        Rows of the prompts [p]; their rewards [p, s], ascending; their gold in the same order [p, s], ascending where
        rewards are equal. Prompts without responses come in none.
    """
    size = np.isfinite(reward).sum(axis=1)
    order = np.lexsort((gold, reward), axis=-1)  # NaN last
    for responses in np.unique(size[size > 0]):
        rows = np.flatnonzero(size == responses)
        places = order[rows, :responses]
        yield rows, reward[rows[:, None], places], gold[rows[:, None], places]


def tie_groups(reward: Floats) -> Integers:
    """Number of the group of equal rewards that each response is in, from 0 [p, s], for ascending rewards [p, s]."""
    return np.cumsum(np.diff(reward, axis=1, prepend=reward[:, :1]) != 0, axis=1)
