"""Weights of scored responses for training a policy on them by weighted likelihood; no models.

Weights of a prompt's responses are a softmax over them: adding a number to all rewards, or log-probabilities, of a
prompt changes none. Numbers that are not finite are a DataError, other shapes a ValueError; results have the float type
of the first argument.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ebrm.errors import ConfigError
from ebrm.groups import Groups
from ebrm.utils.validation import ArrayLike, check_finite, match_dtype


def tilt_weights(reward: ArrayLike, groups: Groups, beta: float) -> Tensor:  # [n] -> [n]
    """Exponential tilt on samples: w_i = softmax over the prompt's responses of r_i / β; they add up to 1.

    Weights under which a policy's own samples stand for the policy that maximizes E[r] - β KL (Korbak et al., arXiv
    2205.11275; Yang et al., arXiv 2404.01730). No other weights as far from uniform have a higher mean reward. How far
    that is, and what it is worth in gold, says `tilt`.

    Args:
        reward: rewards.
        groups: the prompt of each row.
        beta: β in the reward's unit, 0 or more: 0 is the limit that chooses the highest reward (equal ones equally
            often), infinity weighs all alike.
    """
    return match_dtype(_softmax(reward, groups, beta), reward)


def regression_weights(reward: ArrayLike, groups: Groups, beta: float) -> Tensor:  # [n] -> [n]
    """Reward-weighted regression: w_i = exp(r_i / β) over its mean for the prompt; weights have mean 1.

    Weights of the responses' log-likelihoods in fine-tuning (Peters and Schaal, 2007; VideoReward's RWR, arXiv
    2501.13918). Dividing by the prompt's mean is ours: the loss keeps its size, and a prompt with high rewards does not
    outweigh the others. One group for all rows is the classic form.

    Args:
        reward: rewards.
        groups: the prompt of each row.
        beta: β in the reward's unit, as in `tilt_weights`.
    """
    weight = _softmax(reward, groups, beta)
    return match_dtype(weight * groups.spread(groups.sizes.to(weight)), reward)


def steerlm2_weights(target: ArrayLike, proposal: ArrayLike, groups: Groups) -> Tensor:  # [n], [n] -> [n]
    """SteerLM 2.0's weights: w_i = softmax over the prompt's samples of log target_i - log proposal_i.

    Samples y_i of a proposal Q'(y | a, x) stand for the policy P(y | a, x) ∝ P(a | x, y) P(y | x) that has the
    attributes a (HelpSteer2, arXiv 2406.08673; NeMo-Aligner's code). The gradient for the policy Q that is trained is
    -Σ (w_i - b_i) ∇ log Q(y_i | a, x), its baseline b the same function with log Q as the target: it vanishes once Q
    is the target.

    Args:
        target: log P(a | x, y_i) + log P(y_i | x) of each sample, up to a constant of the prompt.
        proposal: log Q'(y_i | a, x) of each.
        groups: the prompt (and attributes) of each row.
    """
    wanted = check_finite(target, "log-probability of the target [n]", n=len(groups))
    drawn = check_finite(proposal, "log-probability of the proposal [n]", device=wanted.device, n=len(groups))
    return match_dtype(groups.softmax(wanted - drawn), target)


def _softmax(reward: ArrayLike, groups: Groups, beta: float) -> Tensor:
    """Softmax of the rewards over β within groups, float64."""
    if not beta >= 0:
        raise ConfigError(f"`beta` is {beta}; expected a number of at least 0, in the reward's unit.")
    values = check_finite(reward, "rewards [n]", n=len(groups))
    gap = values - groups.spread(groups.maximum(values))
    if math.isinf(beta):
        gap = 0 * gap
    elif beta == 0:
        gap = torch.where(gap < 0, -math.inf, 0.0)
    else:
        gap = gap / beta
    weight = gap.exp()
    return weight / groups.spread(groups.sum(weight))
