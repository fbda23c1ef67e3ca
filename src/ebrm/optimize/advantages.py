"""Group advantages: how much better a response is than the others to its prompt, in place of a critic's estimate.

Every advantage here sums to 0 over each group, and adding a number to all rewards of a group changes none. A group
whose rewards are all equal, and so a group of one row, has advantage 0, exactly. Rows of a group may stand anywhere;
groups without rows are no trouble.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor

from ebrm.errors import ConfigError
from ebrm.groups import Groups
from ebrm.utils.validation import check_finite

Normalize = Literal["sum", "per_attribute"]


def group_advantage(
    reward: Tensor,  # [n]
    groups: Groups,
    divide_by_std: bool = True,
    ddof: int = 0,
    eps: float = 1e-8,
) -> Tensor:  # [n]
    """Reward from the mean of its group, in units of the group's deviation: A = (r - mean) / (std + eps).

    Group-relative advantages of "DeepSeekMath" (GRPO, arXiv 2402.03300). With the division, the scale of a group's
    rewards does not matter: a group that differs in the last digits weighs as much as one that differs widely. Without
    it, A = r - mean scales with the rewards: "Understanding R1-Zero-Like Training" (Dr. GRPO, arXiv 2503.20783), and
    "Beyond Monolithic Rewards" (HARMO, arXiv 2510.05283).

    For rewards of steps, take the rows of one prompt and one step for a group.

    Args:
        reward: rewards [n].
        groups: the prompt of each row, of n rows.
        divide_by_std: whether to divide.
        ddof: the divisor of the variance is the group's rows minus this. Papers leave it open and public code differs:
            1 in many (`torch.std`'s default), 0 in others; with 4 rows they differ by 15%.
        eps: what is added to the deviation, in the reward's unit, 0 or more. Deviations of its size shrink advantages.

    Returns:
        Advantages [n], in the type of `reward`.

    Raises:
        ConfigError: `ddof` not 0 or 1, or an eps below 0 or not finite.
        DataError: a reward that is not finite.
        ValueError: not one reward for each row of the groups.
    """
    _check(ddof, eps)
    return _advantage(check_finite(reward, "rewards"), groups, divide_by_std, ddof, eps).to(
        torch.result_type(reward, 1.0)
    )


def attribute_advantage(
    attribute: Tensor,  # [n, a]
    groups: Groups,
    normalize: Normalize,
    weight: Tensor | None = None,  # [a]
    ddof: int = 0,
    eps: float = 1e-8,
) -> Tensor:  # [n]
    """Advantage by several rewards at once, added before or after each is brought to the group's units.

        sum             R = Σ_a w_a r_a,  A = (R - mean R) / (std R + eps)
        per_attribute   A = Σ_a w_a (r_a - mean r_a) / (std r_a + eps)

    "sum" is that of "Optimizing Safe and Aligned Language Generation: A Multi-Objective GRPO Approach" (arXiv
    2503.21819); there attributes with large numbers decide. "per_attribute" is that of the public code of "Euphonium"
    (arXiv 2602.04928): the scale of an attribute within a group does not matter, so an attribute that hardly differs
    there counts as much as any other. With one attribute of weight 1 both are `group_advantage`. A is not brought to
    deviation 1 again after "per_attribute".

    Args:
        attribute: a rewards for each of n rows [n, a].
        groups: the prompt of each row, of n rows.
        normalize: "sum" or "per_attribute". There is no default: they differ by more than a detail.
        weight: of each attribute, in "sum" per unit of the attribute [a]; None: 1 each. Negative ones count against.
        ddof, eps: see `group_advantage`. (Euphonium's code has ddof 1 and eps 1e-8.)

    Returns:
        Advantages [n], in the type of `attribute`.

    Raises:
        ConfigError: another `normalize`, `ddof` not 0 or 1, or an eps below 0 or not finite.
        DataError: an attribute or weight that is not finite.
        ValueError: not [n, a] with a ≥ 1 and n rows of groups, or not one weight an attribute.
    """
    _check(ddof, eps)
    values = check_finite(attribute, "attributes [n, a]", 2)
    weights = values.new_ones(values.shape[1]) if weight is None else check_finite(weight, "weights of attributes")
    if not values.shape[1] or weights.shape != values.shape[1:]:
        raise ValueError(
            f"expected attributes [n, a] and weights [a], got {tuple(values.shape)} and {tuple(weights.shape)}"
        )
    if normalize == "sum":
        total = _advantage((values * weights).sum(1), groups, True, ddof, eps)
    elif normalize == "per_attribute":
        total = sum(
            (
                w * _advantage(column, groups, True, ddof, eps)
                for w, column in zip(weights, values.unbind(1), strict=True)
            ),
            start=values.new_zeros(len(values)),
        )
    else:
        raise ConfigError(f"normalize is {normalize!r}; expected one of {', '.join(get_args(Normalize))}.")
    return total.to(torch.result_type(attribute, 1.0))


def leave_one_out_advantage(reward: Tensor, groups: Groups) -> Tensor:  # [n] -> [n]
    """Reward minus the mean of the others of its group: A = r_i - mean_{j≠i} r_j = s / (s - 1) · (r_i - mean r).

    RLOO, "Back to Basics: Revisiting REINFORCE Style Optimization for Learning from Human Feedback in LLMs" (arXiv
    2402.14740). The baseline does not know the row's own reward, which makes the policy gradient unbiased. Scales with
    the rewards.

    Args:
        reward: rewards [n].
        groups: the prompt of each row, of n rows.

    Returns:
        Advantages [n], in the type of `reward`. A row without others has advantage 0.

    Raises:
        DataError: a reward that is not finite.
        ValueError: not one reward for each row of the groups.
    """
    off = _advantage(check_finite(reward, "rewards"), groups, False, 0, 0.0)
    sizes = groups.sizes.to(off)
    return (off * groups.spread(sizes / (sizes - 1).clamp_min(1))).to(torch.result_type(reward, 1.0))


def _advantage(values: Tensor, groups: Groups, divide_by_std: bool, ddof: int, eps: float) -> Tensor:
    off = values - groups.spread(groups.minimum(values))  # exactly 0 where all are equal
    off = off - groups.spread(groups.mean(off))
    if not divide_by_std:
        return off
    scale = (groups.sum(off.square()) / (groups.sizes - ddof).clamp_min(1)).sqrt() + eps
    return off / groups.spread(torch.where(scale > 0, scale, 1.0))


def _check(ddof: int, eps: float) -> None:
    if ddof not in (0, 1):
        raise ConfigError(f"ddof is {ddof}; expected 0 or 1.")
    if not (math.isfinite(eps) and eps >= 0):
        raise ConfigError(f"eps is {eps}; expected a finite number of at least 0.")
