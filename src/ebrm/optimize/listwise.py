"""A loss on whole groups of scored responses, rather than on pairs of them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ebrm.errors import ConfigError
from ebrm.groups import Groups
from ebrm.utils.validation import check_finite


def soft_plackett_luce(
    score: Tensor,  # [n]
    reward: Tensor,  # [n]
    groups: Groups,  # of n rows, count groups
    temperature: float = 0.05,
) -> Tensor:  # [count]
    """How badly scores fit the ranking that rewards give, softly: a Plackett-Luce likelihood with soft choices.

    With a group's k responses in the order of their rewards, r_1 ≥ … ≥ r_k, and τ the temperature:

        q_i = softmax of r_j / τ over j in i … k
        L = Σ_{i=1}^{k-1} ( logsumexp_{m≥i} s_m - Σ_{j≥i} q_i(j) s_j )

    "GDRO: Group-level Reward Post-training Suitable for Diffusion Models" (arXiv 2601.02036). Each term is the cross
    entropy of the choice among those that are left. τ → 0 without ties: the Plackett-Luce negative log-likelihood,
    which for k = 2 is Bradley-Terry's, -log σ(s_1 - s_2). τ → ∞: scores are drawn to be equal. The paper's further term
    on the likelihood of the best response needs log-probabilities, and is left to the caller.

    Adding a number to a group's scores, or to its rewards, changes nothing; multiplying rewards is the same as
    multiplying τ. The order of rows does not matter. With equal rewards the paper's sum would depend on which comes
    first. Here, and not in the paper, responses of equal reward are all among those that are left until the last of
    them is chosen (as Breslow has it for ties in Cox regression); without ties nothing changes. If all rewards of a
    group are equal, L is least where its scores are equal.

    Args:
        score: s, what is fitted: a head's scores, or implicit rewards β log(π / π_ref) of a policy [n].
        reward: rewards that rank, and say how surely [n]. No gradient goes through them.
        groups: the prompt of each row.
        temperature: τ, in the reward's unit, above 0. 0.05 is the paper's.

    Returns:
        L of each group [count], in the type of `score`: 0 or more, and 0 for groups of fewer than two rows. Not divided
        by the k - 1 choices.

    Raises:
        ConfigError: a temperature that is not above 0 and finite.
        DataError: a score or reward that is not finite.
        ValueError: not a score and a reward for each row of the groups.
    """
    if not (math.isfinite(temperature) and temperature > 0):
        raise ConfigError(f"The temperature is {temperature}; expected a finite number above 0.")
    scores, logits = check_finite(score, "scores"), check_finite(reward.detach(), "rewards") / temperature
    if not len(scores) == len(logits) == len(groups):
        raise ValueError(f"{len(scores)} scores, {len(logits)} rewards, and {len(groups)} rows in groups")
    rank = groups.rank(logits)
    starts = groups.sizes.cumsum(0) - groups.sizes
    order = torch.empty_like(rank)
    order[groups.spread(starts) + rank] = torch.arange(len(rank), device=rank.device)
    loss = scores.new_zeros(groups.count)
    for size in groups.sizes.unique().tolist():  # groups of one size together: nothing is padded
        if size < 2:
            continue
        which = (groups.sizes == size).nonzero()[:, 0]
        rows = order[starts[which][:, None] + torch.arange(size, device=rank.device)]
        loss = loss.index_copy(0, which, _loss(scores[rows], logits[rows]))
    return loss.to(torch.result_type(score, 1.0))


def _loss(score: Tensor, logit: Tensor) -> Tensor:
    """Of groups of one size, best first [g, k], [g, k] -> [g]."""
    size = score.shape[1]
    logit = logit - logit[:, :1]
    first, last = _ties(logit)
    left = _logcumsumexp_from_the_end(logit).gather(1, first)
    # Σ_i q_i(j), over the choices i at which j is still left: all up to the last that ties with it, but for the k-th.
    chosen = (logit + torch.logcumsumexp(-left, 1).gather(1, last.clamp_max(size - 2))).exp()
    spread = _logcumsumexp_from_the_end(score).gather(1, first)[:, :-1]
    return spread.sum(1) - (chosen * score).sum(1)


def _ties(descending: Tensor) -> tuple[Tensor, Tensor]:
    """Places of the first and the last that equal each number of rows in descending order [g, k], both [g, k]."""
    size = descending.shape[1]
    place = torch.arange(size, device=descending.device).expand_as(descending)
    edge = descending[:, 1:] != descending[:, :-1]
    ends = torch.ones_like(edge[:, :1])
    first = torch.where(torch.cat([ends, edge], 1), place, 0).cummax(1).values
    last = torch.where(torch.cat([edge, ends], 1), place, size).flip(1).cummin(1).values.flip(1)
    return first, last


def _logcumsumexp_from_the_end(values: Tensor) -> Tensor:
    return values.flip(1).logcumsumexp(1).flip(1)
