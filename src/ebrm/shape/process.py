"""Rewards of steps, bounded so that repeating steps that look good does not pay.

Gao et al., "On Designing Effective RL Reward at Training Time for LLM Reasoning" (arXiv 2410.15115). A process reward
model gives each step a score q_k, that of the response up to there; the sum of plain scores grows with every step.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ebrm.errors import ConfigError
from ebrm.groups import Groups
from ebrm.utils.validation import check_finite


def process_clip(score: Tensor, threshold: float) -> Tensor:  # [n] -> [n]
    """What a step falls short of a threshold: r_k = min(q_k - η, 0).

    Never above 0, so that no step that is added raises a response's return; steps above the threshold are all equal.
    Adding a number to scores and threshold changes nothing; a positive scale of both goes through.

    Args:
        score: scores of steps [n].
        threshold: η, in the score's unit. It has no default: it is chosen for each process reward model.

    Returns:
        Rewards of the steps [n], in the type of `score`.

    Raises:
        ConfigError: a threshold that is not finite.
        DataError: a score that is not finite.
        ValueError: not [n].
    """
    if not math.isfinite(threshold):
        raise ConfigError(f"The threshold of step scores is {threshold}; expected a finite number.")
    return (check_finite(score, "step scores") - threshold).clamp_max(0).to(torch.result_type(score, 1.0))


def process_delta(score: Tensor, groups: Groups) -> Tensor:  # [n] -> [n]
    """How much a step's score is above the next one's.

    Of the K steps of a response

        r_k = q_k - q_{k+1} for k < K - 1,  r_{K-1} = q_{K-1},  r_K = 0.

    The last step is left to the reward for success. Rewards from a step k < K to the end add up to q_k: a response gets
    its first score, however many steps follow, and one step repeated adds nothing. Adding a number to all scores of a
    response adds it to the reward of step K - 1 alone; a positive scale goes through.

    The paper's combination of both is `process_delta(process_clip(score, threshold), groups)`.

    Args:
        score: scores of all steps, the steps of a response in their order (other rows may stand between) [n].
        groups: the response that each step belongs to, of n rows.

    Returns:
        Rewards of the steps [n], in the type of `score`. A response of a single step has 0.

    Raises:
        DataError: a score that is not finite.
        ValueError: not one score for each row of the groups.
    """
    scores = _checked(score, groups)
    order = groups.index.int().sort(stable=True).indices  # response by response, steps in their order
    ordered, response = scores[order], groups.index[order]
    follows = torch.zeros_like(response, dtype=torch.bool)  # whether the step k + 1 is of the same response
    follows[:-1] = response[1:] == response[:-1]
    later = torch.zeros_like(ordered)  # q_{k+1}, unless that is the last step
    later[:-1] = torch.where(follows[1:], ordered[1:], 0.0)
    result = torch.empty_like(scores)
    result[order] = torch.where(follows, ordered - later, 0.0)
    return result.to(torch.result_type(score, 1.0))


def process_return(
    reward: Tensor,  # [n]
    groups: Groups,  # of n rows, count responses
    success: Tensor,  # [count]
    weight: float = 1.0,
) -> Tensor:  # [count]
    """A response's reward for success and for its steps: R = success + α Σ_k r_k (less the KL penalty, if any).

    Args:
        reward: rewards of steps, such as those of `process_clip` or `process_delta` [n].
        groups: the response that each step belongs to.
        success: the reward for success of each response, such as 0 or 1 [count].
        weight: α, 0 or more. The paper's value could not be verified; 1 is ours.

    Returns:
        R [count], in the type of `reward`. A response without steps has its reward for success.

    Raises:
        ConfigError: a weight below 0 or not finite.
        DataError: a number that is not finite.
        ValueError: not one reward for each row of the groups, or not one success for each response.
    """
    if not (math.isfinite(weight) and weight >= 0):
        raise ConfigError(f"The weight of the steps is {weight}; expected a finite number of at least 0.")
    rewards, succeeded = _checked(reward, groups), check_finite(success, "rewards for success")
    if len(succeeded) != groups.count:
        raise ValueError(f"{len(succeeded)} rewards for success, and {groups.count} responses in groups")
    return (succeeded + weight * groups.sum(rewards)).to(torch.result_type(reward, 1.0))


def _checked(score: Tensor, groups: Groups) -> Tensor:
    scores = check_finite(score, "step scores")
    if len(scores) != len(groups):
        raise ValueError(f"{len(scores)} steps, and {len(groups)} rows in groups")
    return scores
