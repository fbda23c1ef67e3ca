"""A nominal reward held back by the worst case, from heads that each give a reward and how sure they are.

Yan et al., "Reward-Robust RLHF in LLMs" (arXiv 2409.15360). The heads of such an ensemble (BRME) are all fitted to the
rewards of one model, and so are in common units; other members have to be brought there first, see `ensembles`. As
always with ensembles, no combination mends an error that all heads share.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from ebrm.errors import ConfigError
from ebrm.utils.validation import check_finite, check_range, check_same_shape


def most_confident_head(mean: Tensor, std: Tensor) -> Tensor:  # [k, n], [k, n] -> [n]
    """For each row the reward of the head with the smallest standard deviation: the paper's nominal reward.

        r_nom = μ_h*,  h* = argmin_h σ_h

    Heads that tie for the smallest have the mean of their rewards (the paper does not say), so that the order of the
    heads does not matter. An offset or scale that all heads share goes through; scaling σ alone changes nothing.

    Args:
        mean: rewards of k heads, in common units, for n rows [k, n].
        std: standard deviation of each [k, n], 0 or more.

    Returns:
        Rewards [n], in the type of `mean`.

    Raises:
        DataError: a number that is not finite, or a standard deviation below 0.
        ValueError: not two [k, n] of the same shape, with at least one of each.
    """
    rewards, spread = _checked(mean, std)
    return _nominal(rewards, spread).to(torch.result_type(mean, 1.0))


def nominal_worst_case(
    mean: Tensor,  # [k, n]
    std: Tensor,  # [k, n]
    nominal_weight: float = 0.5,
    worst_case: Literal["per_sample", "per_batch"] = "per_sample",
) -> Tensor:  # [n]
    """The nominal reward mixed with the worst that any head says: J = w · E[r_nom] + (1 - w) · min_h E[μ_h].

    The paper's objective takes the least mean over the batch ("per_batch"). The least of each row ("per_sample") is
    a lower bound of it that does not depend on which rows come together: the mean of the minimum is at most the
    minimum of the mean. Per sample the result is never above the nominal reward; per batch it can be, for single rows
    and on average.

    Args:
        mean: rewards of k heads, in common units, for n rows [k, n].
        std: standard deviation of each [k, n], 0 or more.
        nominal_weight: w: 1 is the nominal reward, 0 the worst case. The paper tries 0, 0.2, … 1 and names no best
            one; 0.5 is ours. (Accounts of the paper disagree on which end of its α is which; this one says so.)
        worst_case: "per_sample": each row's least reward. "per_batch": the rewards of the head with the least mean
            over the n rows; heads that tie for it have the mean of their rewards.

    Returns:
        Rewards [n], in the type of `mean`. Identical heads, and k = 1, give that head's rewards. Offset and positive
        scale that all heads share go through; the order of heads does not matter. More heads never raise the worst
        case.

    Raises:
        ConfigError: a weight outside 0 to 1, or another `worst_case`.
        DataError: a number that is not finite, or a standard deviation below 0.
        ValueError: not two [k, n] of the same shape, with at least one of each.
    """
    if not 0 <= nominal_weight <= 1:
        raise ConfigError(f"The weight of the nominal reward is {nominal_weight}; expected a number from 0 to 1.")
    rewards, spread = _checked(mean, std)
    if worst_case == "per_sample":
        worst = rewards.amin(0)
    elif worst_case == "per_batch":
        of_heads = rewards.sort(1).values.mean(1)  # a sum depends on its order in the last bit
        worst = _mean_where(rewards, (of_heads == of_heads.amin())[:, None].expand_as(rewards))
    else:
        raise ConfigError(f"worst_case is {worst_case!r}; expected 'per_sample' or 'per_batch'.")
    result = worst + nominal_weight * (_nominal(rewards, spread) - worst)
    return result.to(torch.result_type(mean, 1.0))


def _nominal(rewards: Tensor, spread: Tensor) -> Tensor:
    return _mean_where(rewards, spread == spread.amin(0))


def _mean_where(rewards: Tensor, chosen: Tensor) -> Tensor:
    """Mean over the chosen heads of each row, of which there is at least one."""
    kept = torch.where(chosen, rewards, torch.zeros_like(rewards))
    return kept.sort(0).values.sum(0) / chosen.sum(0)


def _checked(mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
    rewards = check_finite(mean, "rewards of the heads [k, n]", 2)
    spread = check_range(std, 0, math.inf, "standard deviations of the heads [k, n]", 2)
    check_same_shape(mean=mean, std=std)
    if not rewards.numel():
        raise ValueError(f"expected the rewards of k heads for n rows [k, n], got {tuple(mean.shape)}")
    return rewards, spread
