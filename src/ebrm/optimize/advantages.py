"""Group advantages, rejection sampling and a listwise loss: what training on several responses a prompt needs.

Every advantage sums to 0 over each group, and adding a number to all rewards of a group changes none. A group whose
rewards are all equal, and so a group of one row, has advantage 0, exactly. Numbers that are not finite are a DataError,
other shapes a ValueError; results have the float type of the first argument.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from ebrm.errors import DataError
from ebrm.groups import Groups, safe_sqrt
from ebrm.utils.validation import ArrayLike, check_choice, check_finite, check_setting, match_dtype

Normalize = Literal["sum", "per_attribute"]
# A share of rows, such as 0.29 of 100, may fall short of a whole number by its last bits.
_ROUNDING = 1e-9


def group_advantage(
    reward: ArrayLike, groups: Groups, divide_by_std: bool = True, ddof: int = 0, eps: float = 1e-8
) -> Tensor:  # [n] -> [n]
    """Group-relative advantage: A = (r - mean) / (std + eps) (GRPO, arXiv 2402.03300).

    Without the division A = r - mean scales with the rewards: Dr. GRPO (arXiv 2503.20783) and HARMO (arXiv
    2510.05283); with it a group that differs in the last digits weighs as much as one that differs widely.

    Args:
        reward: rewards.
        groups: the prompt of each row; for rewards of steps, one prompt and one step.
        divide_by_std: whether to divide.
        ddof: 0 or 1, taken off the group's rows in the divisor of the variance. Papers leave it open and public code
            has both; with 4 rows they differ by 15%.
        eps: what is added to the deviation, in the reward's unit, 0 or more.
    """
    _check(ddof, eps)
    return match_dtype(_advantage(check_finite(reward, "rewards [n]"), groups, divide_by_std, ddof, eps), reward)


def attribute_advantage(
    attribute: ArrayLike,  # [n, a]
    groups: Groups,
    normalize: Normalize,
    weight: ArrayLike | None = None,  # [a]
    ddof: int = 0,
    eps: float = 1e-8,
) -> Tensor:  # [n]
    """Group advantage by several rewards, added before or after each is brought to the group's units.

        sum             R = Σ_a w_a r_a,  A = (R - mean R) / (std R + eps)
        per_attribute   A = Σ_a w_a (r_a - mean r_a) / (std r_a + eps)

    "sum" is that of multi-objective GRPO (arXiv 2503.21819), where attributes with large numbers decide;
    "per_attribute" that of Euphonium's code (arXiv 2602.04928), where an attribute that hardly differs counts as much
    as any other (with ddof 1 and eps 1e-8). They differ by more than a detail: there is no default. Weights (None: 1
    each) may be negative; `ddof` and `eps` are those of `group_advantage`.
    """
    _check(ddof, eps)
    check_choice("normalize", normalize, get_args(Normalize))
    values = check_finite(attribute, "attributes [n, a]", nonempty=len(groups) > 0)
    a = values.shape[1]
    weights = values.new_ones(a)
    if weight is not None:
        weights = check_finite(weight, "weights of attributes [a]", device=values.device, a=a)
    if normalize == "sum":
        total = _advantage((values * weights).sum(1), groups, True, ddof, eps)
    else:
        each = [_advantage(column, groups, True, ddof, eps) for column in values.unbind(1)]
        total = sum((w * own for w, own in zip(weights, each, strict=True)), start=values.new_zeros(len(values)))
    return match_dtype(total, attribute)


def leave_one_out_advantage(reward: ArrayLike, groups: Groups) -> Tensor:  # [n] -> [n]
    """RLOO: reward minus the mean of the others of its group, A = s / (s - 1) · (r_i - mean r) (arXiv 2402.14740).

    The baseline does not know the row's own reward, which makes the policy gradient unbiased. A row without others has
    advantage 0.
    """
    off = groups.centered(check_finite(reward, "rewards [n]"))
    sizes = groups.sizes.to(off)
    return match_dtype(off * groups.spread(sizes / (sizes - 1).clamp_min(1)), reward)


@dataclass(frozen=True, eq=False)
class Selection:
    """Selection of responses for training.

    Attributes:
        rows: their rows, ascending, int64 [k].
        coverage: share of the prompts that have responses of which at least one is kept; NaN without such prompts.
    """

    rows: Tensor
    coverage: float


def reward_ranked_top(reward: ArrayLike, groups: Groups, share: float = 0.2) -> Selection:  # [n]
    """RAFT "top" (arXiv 2304.06767): the highest rewards of all prompts together, ⌊share · n⌋ of them.

    Prompts compete, though a reward's offset is arbitrary for each prompt under Bradley-Terry; `reward_ranked_local`
    has no such trouble. Of equal rewards the first rows are kept.

    `share` is above 0 and at most 1 (public code: 0.2); DataError if it keeps none of the rows there are.
    """
    check_setting("share", share, above=0, at_most=1)
    values = check_finite(reward, "rewards [n]", n=len(groups))
    count = math.floor(share * len(values) + _ROUNDING)
    if len(values) and not count:
        raise DataError(
            f"A share of {share:g} of {len(values)} responses is none of them. Give more responses or a larger share."
        )
    best = values.sort(stable=True, descending=True).indices[:count]
    return _selection(torch.zeros_like(values, dtype=torch.bool).index_fill(0, best, True), groups)


def reward_ranked_local(reward: ArrayLike, groups: Groups, keep: int = 1) -> Selection:  # [n]
    """RAFT "local" (arXiv 2304.06767): each prompt's `keep` (1 or more) highest rewards, best of n for 1.

    Of equal rewards of a prompt the first rows are kept; prompts with fewer responses keep all.
    """
    check_setting("keep", keep, at_least=1)
    return _selection(groups.rank(check_finite(reward, "rewards [n]", n=len(groups))) < keep, groups)


def contrastive_subsample(score: ArrayLike, groups: Groups, keep: int) -> Selection:  # [n]
    """Each prompt's best and worst responses, half of each, after Euphonium's code (arXiv 2602.04928).

    That code selects from all rows of a batch together; here, from each prompt's. What is kept no longer has mean
    advantage 0 by itself: compute advantages before. Of equal scores the first rows count as better.

    `keep` is 2 or more: ⌈keep / 2⌉ of the best and ⌊keep / 2⌋ of the worst of a prompt.
    """
    check_setting("keep", keep, at_least=2)
    rank = groups.rank(check_finite(score, "scores [n]", n=len(groups)))
    last = groups.spread(groups.sizes.to(rank.device)) - keep // 2
    return _selection((rank < keep - keep // 2) | (rank >= last), groups)


def soft_plackett_luce(
    score: ArrayLike, reward: ArrayLike, groups: Groups, temperature: float = 0.05
) -> Tensor:  # [n], [n] -> [count]
    """Soft Plackett-Luce loss of scores against the ranking by rewards (GDRO, arXiv 2601.02036).

    With a group's k responses in the order of their rewards, r_1 ≥ … ≥ r_k, and τ the temperature:

        q_i = softmax of r_j / τ over j in i … k
        L = Σ_{i=1}^{k-1} ( logsumexp_{m≥i} s_m - Σ_{j≥i} q_i(j) s_j )

    τ → 0 without ties: the Plackett-Luce negative log-likelihood, for k = 2 Bradley-Terry's. The paper's sum depends on
    which of equal rewards comes first; here (ours, as Breslow's ties in Cox regression) responses of equal reward are
    all left until the last of them is chosen. The paper's further term on the best response's likelihood needs
    log-probabilities, and is left to the caller.

    Args:
        score: s, what is fitted: a head's scores, or implicit rewards β log(π / π_ref) of a policy.
        reward: rewards that rank, by how much. No gradient goes through them.
        groups: the prompt of each row.
        temperature: τ, in the reward's unit, above 0. 0.05 is the paper's.

    Returns:
        L of each group, 0 or more (0 for fewer than two rows), not divided by the k - 1 choices.
    """
    check_setting("temperature", temperature, above=0)
    scores = check_finite(score, "scores [n]", n=len(groups))
    logits = check_finite(reward, "rewards [n]", device=scores.device, n=len(groups)).detach() / temperature
    order = logits.sort(stable=True, descending=True).indices
    ranked = Groups(groups.index.to(scores.device)[order], groups.count)
    loss = scores.new_zeros(groups.count)
    for which, rows in ranked.by_size():  # groups of one size together: nothing is padded
        if rows.shape[1] > 1:
            loss = loss.index_copy(0, which, _loss(scores[order[rows]], logits[order[rows]]))
    return match_dtype(loss, score)


def _advantage(values: Tensor, groups: Groups, divide_by_std: bool, ddof: int, eps: float) -> Tensor:
    off = groups.centered(values)
    if not divide_by_std:
        return off
    scale = safe_sqrt(groups.sum(off.square()) / (groups.sizes.to(off) - ddof).clamp_min(1)) + eps
    return off / groups.spread(torch.where(scale > 0, scale, 1.0))


def _check(ddof: int, eps: float) -> None:
    check_choice("ddof", ddof, (0, 1))
    check_setting("eps", eps, at_least=0)


def _selection(kept: Tensor, groups: Groups) -> Selection:
    groups = groups.to(kept.device)
    there = groups.sizes > 0
    covered = torch.bincount(groups.index[kept], minlength=groups.count)[there] > 0
    return Selection(kept.nonzero()[:, 0], float(covered.double().mean()))


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
