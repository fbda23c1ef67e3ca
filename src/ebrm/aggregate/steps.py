"""One reward of a response from the scores of its steps, as a process reward model gives them."""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor

from ebrm.errors import ConfigError, DataError
from ebrm.groups import Groups
from ebrm.utils.validation import check_finite, check_range

How = Literal["min", "max", "mean", "last", "product", "geometric_mean", "mean_logit", "mean_odds"]
_PROBABILITIES = ("product", "geometric_mean", "mean_logit", "mean_odds")


def step_reward(
    score: Tensor,  # [n]
    groups: Groups,  # of n rows, count responses
    how: How,
    clip: float = 1e-6,
    empty: float | None = None,
) -> Tensor:  # [count]
    """Reduce the scores of each response's steps to one.

    The reductions of "Evaluating Robustness of Reward Models for Mathematical Reasoning" (RewardMATH, arXiv 2410.01729,
    and its code):

        min, max, mean, last                    of any scores
        product         Π p                     of probabilities that a step is right
        geometric_mean  (Π p)^(1/steps)
        mean_logit      σ(mean log p / (1 - p))
        mean_odds       mean p / (1 - p)

    "min" and "product" let one bad step spoil a response; the product, and it alone, falls with the number of steps.
    "min", "max", "mean" and "last" go along with an offset and positive scale of the scores. Products are sums of
    logarithms. The public code has no clip, and gives NaN or infinity for probabilities of 0 and 1.

    Args:
        score: scores of all steps, the steps of a response in their order (other rows may stand between) [n].
        groups: the response that each step belongs to.
        how: the reduction. There is no default: a process reward model is trained for one.
        clip: probabilities are kept this far from 0 and 1 in "mean_logit" and "mean_odds" (not from the paper). In
            (0, 0.5).
        empty: the reward of a response without steps; None refuses it. (RewardMATH gives 0.5 in best-of-n.)

    Returns:
        Rewards of the responses [count], in the type of `score`. One step: its score (for "mean_odds" its odds).
        Only "last" depends on the order of steps.

    Raises:
        ConfigError: another `how`, or a clip or `empty` that is not as said.
        DataError: a score that is not finite, or outside 0 to 1 where it has to be a probability, or a response
            without steps.
        ValueError: not one score for each row of the groups.
    """
    if how not in get_args(How):
        raise ConfigError(f"The reduction is {how!r}; expected one of {', '.join(get_args(How))}.")
    if not 0 < clip < 0.5:
        raise ConfigError(f"The clip of probabilities is {clip}; expected a number above 0 and below 0.5.")
    probabilities = how in _PROBABILITIES
    scores = check_range(score, 0, 1, "step probabilities") if probabilities else check_finite(score, "step scores")
    if len(groups) != len(scores):
        raise ValueError(f"{len(scores)} scores of steps, and {len(groups)} rows in groups")
    none = groups.sizes == 0
    clipped = scores.clamp(clip, 1 - clip) if probabilities else scores
    match how:
        case "min":
            result = groups.minimum(scores)
        case "max":
            result = groups.maximum(scores)
        case "mean":
            result = groups.mean(scores)
        case "last":
            rows = groups.maximum(torch.arange(len(scores), dtype=torch.float64, device=scores.device))
            result = torch.full_like(rows, torch.nan)
            result[~none] = scores[rows[~none].long()]
        case "product":
            result = groups.sum(scores.log()).exp()
        case "geometric_mean":
            result = groups.mean(scores.log()).exp()
        case "mean_logit":
            result = groups.mean(clipped.logit()).sigmoid()
        case "mean_odds":
            result = groups.mean(clipped / (1 - clipped))
    return filled(result, none, empty, "responses", "steps").to(torch.result_type(score, 1.0))


def filled(values: Tensor, none: Tensor, empty: float | None, of: str, without: str) -> Tensor:  # [q], [q] -> [q]
    """The values, with `empty` where there was nothing to reduce.

    Raises:
        DataError: `empty` is None, and there is such a place.
        ConfigError: `empty` is not finite.
    """
    if empty is not None:
        if not math.isfinite(empty):
            raise ConfigError(f"The reward without {without} is {empty}; expected a finite number, or None.")
        return torch.where(none, torch.full_like(values, empty), values)
    if bool(none.any()):
        raise DataError(
            f"{int(none.sum())} of {len(none)} {of} are without {without}, the first at index "
            f"{int(none.nonzero()[0, 0])}. Leave them out, or say what they are worth (`empty`)."
        )
    return values
