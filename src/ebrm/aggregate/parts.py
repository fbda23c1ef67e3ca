"""One reward from many scores of a response: those of its steps, of its items, or the votes of judges."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from ebrm.groups import Groups
from ebrm.utils.validation import (
    ArrayLike,
    as_tensor,
    check_choice,
    check_finite,
    check_range,
    check_setting,
    match_dtype,
    refuse,
)

How = Literal["min", "max", "mean", "last", "product", "geometric_mean", "mean_logit", "mean_odds"]
_PROBABILITIES = ("product", "geometric_mean", "mean_logit", "mean_odds")


def step_reward(
    score: ArrayLike, groups: Groups, how: How, clip: float = 1e-6, empty: float | None = None
) -> Tensor:  # [n] -> [count]
    """Reduction of a process reward model's step scores to a reward a response (RewardMATH, arXiv 2410.01729).

        min, max, mean, last                    of any scores
        product         Π p                     of probabilities that a step is right
        geometric_mean  (Π p)^(1/steps)
        mean_logit      σ(mean log p / (1 - p))
        mean_odds       mean p / (1 - p)

    "min" and "product" let one bad step spoil a response; the product alone falls with the number of steps.

    Args:
        score: scores of all steps, the steps of a response in their order (other rows may stand between).
        groups: the response that each step belongs to.
        how: the reduction. There is no default: a process reward model is trained for one.
        clip: distance that "mean_logit" and "mean_odds" keep probabilities from 0 and 1, in (0, 0.5) (ours; the public
            code gives NaN or infinity there).
        empty: the reward of a response without steps; None refuses it. (RewardMATH gives 0.5 in best-of-n.)

    Raises:
        DataError: a score that is not finite, or no probability where it has to be one, or a response without steps.
    """
    check_choice("how", how, get_args(How))
    check_setting("clip", clip, above=0, below=0.5)
    bound = (0.0, 1.0) if how in _PROBABILITIES else (-math.inf, math.inf)
    scores = check_range(score, *bound, "step scores [n]", n=len(groups))
    groups = groups.to(scores.device)
    none = groups.sizes == 0
    clipped = scores.clamp(clip, 1 - clip)
    match how:
        case "min":
            result = groups.minimum(scores)
        case "max":
            result = groups.maximum(scores)
        case "mean":
            result = groups.mean(scores)
        case "last":
            rows = groups.maximum(torch.arange(len(scores), dtype=torch.float64, device=scores.device))
            result = torch.cat([scores, scores.new_zeros(1)])[torch.where(none, len(scores), rows).long()]
        case "product":  # not a sum of logarithms, which has no gradient at 0
            result = scores.new_ones(groups.count).scatter_reduce(0, groups.index, scores, "prod")
        case "geometric_mean":
            result = groups.mean(scores.log()).exp()
        case "mean_logit":
            result = groups.mean(clipped.logit()).sigmoid()
        case "mean_odds":
            result = groups.mean(clipped / (1 - clipped))
    return match_dtype(_filled(result, none, empty, "steps"), score)


def mixed_granularity(
    whole: ArrayLike,  # [n]
    item: ArrayLike,  # [m]
    groups: Groups,  # of m rows, n in number
    whole_weight: float = 0.5,
    items: Literal["mean", "discounted_sum"] = "mean",
    empty: float | None = None,
) -> Tensor:  # [n]
    """Reward of a response mixed with those of its items: R = w · r + (1 - w) · items.

        mean: the items' mean; discounted_sum: Σ_j r_j / log2(j + 1), j = 1 for the first

    Mixing page and item rewards is the idea of PageLLM (arXiv 2506.09084); form, weight and discount (that of the
    discounted cumulative gain) are ours. Whole and items must be of one scale; the discounted sum grows with items.

    Args:
        whole: rewards of n responses.
        item: rewards of all their items, those of a response in their order (others may stand between).
        groups: the response that each item belongs to.
        whole_weight: w, from 0 to 1.
        items: how a response's items are made one number.
        empty: that number for a response without items; None refuses it.
    """
    check_setting("whole_weight", whole_weight, at_least=0, at_most=1)
    check_choice("items", items, ("mean", "discounted_sum"))
    of_whole = check_finite(whole, "rewards of the whole [n]", n=groups.count)
    of_items = check_finite(item, "rewards of the items [m]", device=of_whole.device, m=len(groups))
    groups = groups.to(of_whole.device)
    discount = (groups.place.double() + 2).log2()
    parts = groups.mean(of_items) if items == "mean" else groups.sum(of_items / discount)
    parts = _filled(parts, groups.sizes == 0, empty, "items")
    return match_dtype(whole_weight * of_whole + (1 - whole_weight) * parts, whole)


@dataclass(frozen=True, eq=False)
class Majority:
    """Result of `majority_vote` in each group.

    Attributes:
        label: the answer with the most votes, the lowest where several have them; -1 without votes [count], int64.
        share: its votes over all votes of the group, float64; NaN without votes, or if all weights are 0 [count].
        tied: whether another answer has as many votes [count], bool.
    """

    label: Tensor
    share: Tensor
    tied: Tensor


def majority_vote(vote: ArrayLike, groups: Groups, weight: ArrayLike | None = None) -> Majority:  # [n] -> of [count]
    """Majority vote of each group: of judges on one pair, or of several responses' answers to one prompt.

    Self-consistency (arXiv 2203.11171), and the five-fold vote of OpenRubrics (arXiv 2510.07743). The lowest of tied
    labels wins and `tied` is set: leave such items out, or use `share` as a soft label. With rewards as weights it is
    best-of-n by the summed reward of each answer.

    Args:
        vote: answers as whole numbers from 0, or bool (`Groups.of(answers).index` numbers texts); abstentions have no
            row.
        groups: the item that each vote is on.
        weight: weight of each vote, 0 or more; None: 1 each.
    """
    votes = as_tensor(vote, "vote")
    if votes.is_floating_point() or votes.is_complex() or votes.shape != groups.index.shape:
        raise ValueError(f"expected {len(groups)} votes [n], whole numbers, got {tuple(votes.shape)} of {votes.dtype}")
    check_range(votes, 0, math.inf, "votes [n], none of those who abstain")
    label, groups = votes.long(), groups.to(votes.device)
    counts = torch.ones_like(label, dtype=torch.float64)
    if weight is not None:
        counts = check_range(weight, 0, math.inf, "weights of the votes [n]", device=label.device, n=len(label))
    labels, number = torch.unique(label, return_inverse=True)
    width = max(len(labels), 1)
    options, option = torch.unique(groups.index * width + number, return_inverse=True)
    total = counts.new_zeros(len(options)).index_add_(0, option, counts)
    of_options = Groups(options // width, groups.count)
    top = total == of_options.spread(of_options.maximum(total))
    number_of = torch.where(top, options % width, len(labels))
    lowest = number_of.new_full((groups.count,), len(labels)).scatter_reduce_(0, of_options.index, number_of, "amin")
    return Majority(
        torch.cat([labels, labels.new_full((1,), -1)])[lowest],
        of_options.maximum(total) / of_options.sum(total),
        of_options.sum(top) > 1,
    )


def swap_average(first: ArrayLike, second: ArrayLike) -> Tensor:  # [n], [n] -> [n]
    """Position-swap average of a judge: P(a is better) = ½ (p_ab + 1 - p_ba), for judges that favor a position.

    With votes for probabilities, Rubric-ARM's ½ (1[a wins as first] + 1[a wins as second]) (the sequel of OpenRubrics,
    arXiv 2510.07743). A judge that always takes the first has 1/2 throughout. mean(½ (p_ab + p_ba)) - ½ is how much it
    favors the first.

    Args:
        first: p_ab, probability (or vote, bool) for the response shown first, a, with b second.
        second: p_ba, that for the response shown first once they are swapped, b.
    """
    one = check_range(first, 0, 1, "probabilities in the first order [n]")
    two = check_range(second, 0, 1, "probabilities in the second order [n]", device=one.device, n=len(one))
    return match_dtype((one + 1 - two) / 2, first, second)


def _filled(values: Tensor, none: Tensor, empty: float | None, without: str) -> Tensor:  # [q], [q] -> [q]
    """The values, with `empty` where there was nothing to reduce."""
    if empty is not None:
        check_setting("empty", empty)
        return torch.where(none, empty, values)
    refuse(none, f"responses are without {without}", "Leave them out, or give the number they count as in `empty`.")
    return values
