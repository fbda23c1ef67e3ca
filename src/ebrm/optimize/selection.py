"""Which responses to train on, by their rewards: the best ones, or the best and the worst."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ebrm.errors import ConfigError, DataError
from ebrm.groups import Groups
from ebrm.utils.validation import check_finite

# A share of rows, such as 0.29 of 100, may fall short of a whole number by its last bits.
_ROUNDING = 1e-9


@dataclass(frozen=True, eq=False)
class Selection:
    """The responses that are kept.

    Attributes:
        rows: their rows, ascending, int64 [k].
        coverage: share of the prompts that have responses of which at least one is kept; NaN without such prompts.
    """

    rows: Tensor
    coverage: float


def reward_ranked_top(reward: Tensor, groups: Groups, share: float = 0.2) -> Selection:  # [n]
    """Keep the responses with the highest rewards of all prompts together: ⌊share · n⌋ of them.

    "top" of "RAFT: Reward rAnked FineTuning for Generative Foundation Model Alignment" (arXiv 2304.06767). Prompts
    compete: one whose rewards are low, for whatever reason, may keep none, and `coverage` says how many do keep some. A
    reward's offset is arbitrary for each prompt under Bradley-Terry, and here it decides; `reward_ranked_local` has no
    such trouble. A common offset and positive scale change nothing.

    Args:
        reward: rewards [n].
        groups: the prompt of each row, of n rows; for the coverage only.
        share: of all rows, above 0 and at most 1. 0.2 is the default of the public code, which rounds down as well.

    Returns:
        The selection. Of equal rewards the first rows are kept.

    Raises:
        ConfigError: a share outside (0, 1].
        DataError: a reward that is not finite, or a share that keeps none of the rows there are.
        ValueError: not one reward for each row of the groups.
    """
    if not 0 < share <= 1:
        raise ConfigError(f"The share of responses to keep is {share}; expected a number above 0, at most 1.")
    values = _checked(reward, groups)
    count = math.floor(share * len(values) + _ROUNDING)
    if len(values) and not count:
        raise DataError(
            f"A share of {share:g} of {len(values)} responses is none of them. Give more responses or a larger share."
        )
    best = values.sort(stable=True, descending=True).indices[:count]
    return _selection(torch.zeros_like(groups.index, dtype=torch.bool).index_fill(0, best, True), groups)


def reward_ranked_local(reward: Tensor, groups: Groups, keep: int = 1) -> Selection:  # [n]
    """Keep each prompt's responses with the highest rewards.

    "local" of RAFT (arXiv 2304.06767), which samples 1 / share responses to a prompt (5 by default) and keeps one: the
    best of n. Every prompt that has responses keeps some. An offset and positive scale of a prompt's rewards change
    nothing. The expected reward of what is kept is `ebrm.optimize.best_of_n.best_of_n_gold` with `gold=reward`.

    Args:
        reward: rewards [n].
        groups: the prompt of each row, of n rows.
        keep: how many of a prompt, 1 or more; prompts with fewer keep all. The paper keeps 1.

    Returns:
        The selection. Of equal rewards of a prompt the first rows are kept.

    Raises:
        ConfigError: `keep` below 1.
        DataError: a reward that is not finite.
        ValueError: not one reward for each row of the groups.
    """
    if keep < 1:
        raise ConfigError(f"{keep} responses of each prompt are to be kept; expected 1 or more.")
    return _selection(groups.rank(_checked(reward, groups)) < keep, groups)


def contrastive_subsample(score: Tensor, groups: Groups, keep: int) -> Selection:  # [n]
    """Keep each prompt's best and worst responses, half of each, and leave out those in the middle.

    From the public code of "Euphonium: Steering Video Flow Matching via Process Reward Gradient Guided Stochastic
    Dynamics" (arXiv 2602.04928): advantages are computed on all responses, and the policy is trained on those that say
    most. That code selects from all rows of a batch together; here, from each prompt's, so that every prompt stays in.
    An offset and positive scale of a prompt's scores change nothing. What is kept no longer has mean advantage 0 by
    itself: compute advantages before.

    Args:
        score: rewards or advantages, such as the weighted sum of several [n].
        groups: the prompt of each row, of n rows.
        keep: how many of a prompt, 2 or more: ⌈keep / 2⌉ of the best, ⌊keep / 2⌋ of the worst. Prompts with no more
            than `keep` keep all.

    Returns:
        The selection. Of equal scores the first rows count as better.

    Raises:
        ConfigError: `keep` below 2.
        DataError: a score that is not finite.
        ValueError: not one score for each row of the groups.
    """
    if keep < 2:
        raise ConfigError(f"{keep} responses of each prompt are to be kept; expected 2 or more, best and worst.")
    rank = groups.rank(_checked(score, groups))
    return _selection((rank < keep - keep // 2) | (rank >= groups.spread(groups.sizes) - keep // 2), groups)


def _checked(reward: Tensor, groups: Groups) -> Tensor:
    values = check_finite(reward, "rewards")
    if len(values) != len(groups):
        raise ValueError(f"{len(values)} rewards, and {len(groups)} rows in groups")
    return values


def _selection(kept: Tensor, groups: Groups) -> Selection:
    there = groups.sizes > 0
    covered = torch.bincount(groups.index[kept], minlength=groups.count)[there] > 0
    return Selection(kept.nonzero()[:, 0], float(covered.double().mean()))
