"""Learning curve of a fit: what a quarter, half and all of the training pairs gain on the same held-out pairs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ebrm.errors import DataError
from ebrm.metrics import Bootstrap, Estimate, cluster_sums, correct_pairs, resample_sums
from ebrm.pairs import PreferencePairs
from ebrm.report import points_estimate

#: Parts that the training prompts are divided into, each fitted on by itself.
PARTS = (4, 2, 1)


@dataclass(frozen=True)
class LearningCurve:
    """Gain over the base reward by the number of training pairs, with paired intervals over the held-out prompts.

    Attributes:
        pairs: training pairs of a part, a mean over the parts: about n/4, n/2 and n.
        gain: refined minus base accuracy on the held-out pairs, a mean over the parts.
        doubling: what the second half of the training pairs added, gain at n minus gain at n/2.
    """

    pairs: tuple[int, ...]
    gain: tuple[Estimate, ...]
    doubling: Estimate

    def __str__(self) -> str:
        """What another doubling of the training pairs could add, or that it cannot be told."""
        said = f"From {self.pairs[-2]:,} to {self.pairs[-1]:,} training pairs the gain changed by "
        said += points_estimate(self.doubling, " points")
        if self.doubling.low > 0:
            return f"{said}; learning curves flatten, so as many pairs again would add at most about that."
        if self.doubling.high < 0:
            return f"{said}: more pairs like these did not help."
        return f"{said}: whether more training pairs would help cannot be told."

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        gain = [one.to_dict() for one in self.gain]
        return {"pairs": list(self.pairs), "gain": gain, "doubling": self.doubling.to_dict()}


def learning_curve(
    refit: Callable[[PreferencePairs], Tensor],
    train: PreferencePairs,
    test: PreferencePairs,
    reward: Tensor,  # [n]
    *,
    seed: int = 0,
    bootstrap: Bootstrap = Bootstrap(),
) -> LearningCurve:
    """Measure the learning curve of a head by fitting it to all, both halves and all four quarters of the prompts.

    The intervals are over held-out prompts only: other training pairs would give another curve, too. Only the change by
    doubling is meant to be read, and no curve is fitted through three points: where gains follow a - b n^(-c), each
    doubling adds less than the one before.

    Args:
        refit: fits a head to some of the pairs and gives the refined rewards of all n rows; called seven times.
        train: the training pairs, of at least four prompts.
        test: held-out pairs of the same rows; those of label 0.5 are left out.
        reward: base rewards of all rows.
        seed: of the division of the prompts.
        bootstrap: of the intervals.

    Raises:
        DataError: fewer training prompts than parts, or no labeled held-out pair.
    """
    prompts, place = np.unique(train.prompt_id, return_inverse=True)
    if len(prompts) < max(PARTS):
        raise DataError(f"A learning curve needs {max(PARTS)} training prompts or more; there are {len(prompts)}.")
    test = test.select(test.label != 0.5)
    if not len(test):
        raise DataError("A learning curve needs held-out pairs with labels; there are none.")
    order = np.random.default_rng(seed).permutation(len(prompts))[place]
    base = _right(test, reward)
    gains, sizes = [], []
    for parts in PARTS:
        masks = [order % parts == part for part in range(parts)]
        gains.append(np.mean([_right(test, refit(train.select(mask))) for mask in masks], axis=0) - base)
        sizes.append(round(len(train) / parts))
    sums = cluster_sums([np.ones(len(test)), *gains, gains[-1] - gains[-2]], test.prompt_id)
    total, draws = sums.sum(axis=0), resample_sums(sums, bootstrap=bootstrap)
    *found, doubling = (
        bootstrap.estimate(total[k] / total[0], draws[:, k] / draws[:, 0]) for k in range(1, len(total))
    )
    return LearningCurve(tuple(sizes), tuple(found), doubling)


def _right(pairs: PreferencePairs, reward: Tensor) -> NDArray[np.float64]:
    """1 where the likelier side of a pair has the higher reward, else 0."""
    toward = (pairs.difference(reward) * (pairs.label - 0.5).sign()).numpy()
    return correct_pairs(toward, np.zeros(len(toward)))
