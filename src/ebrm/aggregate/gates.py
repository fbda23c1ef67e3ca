"""Rewards of which one decides whether, or how much, another counts: and, gates, bonuses, and one where another fails.

A sum lets a high reward make up for a low one; these do not, or less so.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from ebrm.aggregate.weights import weighted_mean
from ebrm.errors import ConfigError, DataError
from ebrm.utils.validation import check_finite, check_range, check_same_shape

#: Weights (base, bonus) that FIRM's public code takes: consistency as a bonus on the execution of an edit, quality as
#: one on following the instruction.
EDITING = (0.6, 0.4)
GENERATION = (0.4, 0.6)


def log_sigmoid_sum(rewards: Tensor, reference: Tensor) -> Tensor:  # [n, a], [n, a] or [a] -> [n]
    """Log probability that a response is good in every respect: u = Σ_a log σ(r_a - r_ref,a), a soft "and".

    Wang et al., "Transforming and Combining Rewards for Aligning Large Language Models" (arXiv 2402.00742). With
    Bradley-Terry rewards σ(r_a - r_ref,a) is the probability of being preferred to a response at the reference, taken
    as "good"; the sum is log P(all good) if the respects are independent given the response. A reward counts in full
    far below its reference, by half there, and hardly above: one failure is not made up for elsewhere.

    Adding a number to a reward and to its reference (of each prompt by itself) changes nothing. Scale matters:
    rewards are in Bradley-Terry units (log odds). With a = 1 and one reference a prompt, the order of its responses
    stays. The order of sums changes: (4, -2) and (1, 1) have equal sums, and (1, 1) the higher u. Computed with
    log-sigmoid; a published re-implementation takes the log of a sigmoid, which is -infinity from about -745 (float64)
    or -104 (float32) on.

    Args:
        rewards: a rewards, in Bradley-Terry units, for each of n rows [n, a].
        reference: the reward from which on a response is good: one a row and reward [n, a], or one a reward [a]. The
            paper takes a quantile of each prompt's rewards under the policy at the start, or the reward of a canned
            refusal for harmlessness.

    Returns:
        u [n], 0 at most, in the type of `rewards`.

    Raises:
        DataError: a number that is not finite.
        ValueError: not [n, a] with a ≥ 1, or a reference of another shape.
    """
    values, level = check_finite(rewards, "rewards [n, a]", 2), check_finite(reference, "reference", reference.dim())
    if not values.shape[1] or level.shape not in (values.shape, values.shape[1:]):
        raise ValueError(
            f"expected rewards [n, a] and a reference [n, a] or [a], got {tuple(rewards.shape)} and "
            f"{tuple(reference.shape)}"
        )
    return logsigmoid(values - level).sum(1).to(torch.result_type(rewards, 1.0))


def gate(
    score: Tensor, how: Literal["smooth", "min", "product"] = "smooth", smoothing: float = 0.1
) -> Tensor:  # [n, m] -> [n]
    """How far m requirements are met together, from 0 to 1: one that fails pulls all down.

        smooth: B = exp( 1/m Σ_i log( (s_i + δ) / (1 + δ) ) )
        min: the least of them; product: their product

    "smooth" is that of "Aligning Large Language Models with Searcher Preferences" (SearchLLM, arXiv 2603.10473): a
    geometric mean that a single 0 does not make 0; δ towards 0 gives the geometric mean, towards infinity 1. It is no
    veto where there are many requirements: with m = 10 and δ = 0.1 one that is 0 leaves 0.79. "min" and "product",
    which are, are not from the paper.

    Args:
        score: how far each requirement is met, from 0 to 1 [n, m].
        how: "smooth", "min" or "product".
        smoothing: δ, above 0, for "smooth" only. The paper's value could not be verified; 0.1 is ours.

    Returns:
        Values [n], in the type of `score`, that never fall as a score rises. The order of requirements does not matter.

    Raises:
        ConfigError: a smoothing that is not above 0 and finite, or another `how`.
        DataError: a score that is not finite or outside 0 to 1.
        ValueError: not [n, m] with m ≥ 1.
    """
    scores = check_range(score, 0, 1, "scores of the requirements [n, m]", 2)
    if not scores.shape[1]:
        raise ValueError(f"expected the scores of m requirements for n rows [n, m], got {tuple(score.shape)}")
    if not (math.isfinite(smoothing) and smoothing > 0):
        raise ConfigError(f"The smoothing of a gate is {smoothing}; expected a finite number above 0.")
    if how == "smooth":
        # log((s + δ) / (1 + δ)) = log1p(-(1 - s) / (1 + δ)), exactly 0 where s = 1
        result = torch.log1p((scores - 1) / (1 + smoothing)).mean(1).exp()
    elif how == "min":
        result = scores.amin(1)
    elif how == "product":
        result = scores.prod(1)
    else:
        raise ConfigError(f"The gate is {how!r}; expected 'smooth', 'min' or 'product'.")
    return result.to(torch.result_type(score, 1.0))


def gated(
    requirement: Tensor,  # [n, m]
    objective: Tensor,  # [n, a]
    weight: Tensor | None = None,  # [a]
    how: Literal["smooth", "min", "product"] = "smooth",
    smoothing: float = 0.1,
) -> Tensor:  # [n]
    """Weighted mean of soft objectives, times the `gate` of the requirements: R = B · Σ_a w_a s_a / Σ_a w_a.

    SearchLLM (arXiv 2603.10473), whose requirements are a searcher's bottom lines and whose objectives are how well
    the answer behaves beyond.

    Args:
        requirement: how far each requirement is met, from 0 to 1 [n, m].
        objective: scores of the objectives, from 0 to 1 [n, a].
        weight: one for each objective, 0 or more, not all 0 [a]; None: equal ones.
        how, smoothing: see `gate`.

    Returns:
        Rewards from 0 to 1 [n], in the type of `objective`, that never fall as a score rises.

    Raises:
        ConfigError: as `gate`.
        DataError: a score that is not finite or outside 0 to 1, or weights that are not as said.
        ValueError: not [n, m] and [n, a], or not one weight an objective.
    """
    scores = check_range(objective, 0, 1, "scores of the objectives [n, a]", 2)
    if len(requirement) != len(objective):
        raise ValueError(f"{len(requirement)} rows of requirements and {len(objective)} of objectives")
    result = gate(requirement.double(), how, smoothing) * weighted_mean(scores, weight)
    return result.to(torch.result_type(objective, 1.0))


def base_and_bonus(
    base: Tensor,  # [n]
    bonus: Tensor,  # [n]
    weights: tuple[float, float] = (1.0, 1.0),
    has_bonus: Tensor | None = None,  # [n]
) -> Tensor:  # [n]
    """A base score that a bonus raises to its full worth: R = base · (w_1 + w_2 · bonus) / (w_1 + w_2).

    "Fusion Your Critic" (FIRM, arXiv 2603.12247). Nothing is gained by the bonus where the base is 0, as with a sum:
    there (base 0, bonus 1) beats (base 0.4, bonus 0), and a model learns to do nothing well. R lies between
    base · w_1 / (w_1 + w_2) and base. Rises with both; the weights' common scale does not matter.

    The public code clips R to [0, 1]; here scores outside [0, 1] are refused, so that there is nothing to clip. Its
    guard, which leaves the bonus out where the base is low, belongs to a sum of the two, and a product has no need of
    it.

    Args:
        base: the score that is a must, from 0 to 1 [n]: of a rating from 1 to 5 take (rating - 1) / 4, or rating / 5.
        bonus: the score that comes on top, from 0 to 1 [n].
        weights: (w_1, w_2), 0 or more and w_1 above 0. The code takes (1, 1), and recommends `EDITING` and
            `GENERATION`. w_2 = 0 gives the base.
        has_bonus: whether each row has a bonus, bool [n]; where not, R is the base, and `bonus` is not looked at.

    Returns:
        Rewards from 0 to 1 [n], in the type of `base`.

    Raises:
        ConfigError: weights that are not as said.
        DataError: a score that is not finite or outside 0 to 1.
        ValueError: not [n] and [n].
    """
    first, second = weights
    if not (math.isfinite(first) and math.isfinite(second) and first > 0 and second >= 0):
        raise ConfigError(f"The weights of base and bonus are {weights}; expected finite, above 0 and at least 0.")
    check_same_shape(base=base, bonus=bonus)
    given = bonus if has_bonus is None else _chosen(has_bonus, bonus, torch.ones_like(bonus))
    must, extra = check_range(base, 0, 1, "base score"), check_range(given, 0, 1, "bonus")
    share = second / (first + second)
    return (must * (1 - share * (1 - extra))).to(torch.result_type(base, 1.0))


def verifiable_or_model(check: Tensor, model: Tensor, verifiable: Tensor) -> Tensor:  # [n], [n], [n] -> [n]
    """What a check says where there is one, and what a model says elsewhere.

    "Beyond Monolithic Rewards" (HARMO, arXiv 2510.05283), where a rule checks answers that can be checked, and the
    others have a model's reward or their embedding's likeness to a reference. No scale is changed: rewards of both
    kinds that are compared (in one prompt, or in one loss over prompts) have to be brought to one before.

    Args:
        check: the checked rewards, such as 0 and 1 [n]; looked at where verifiable only.
        model: the model's rewards [n]; looked at elsewhere only.
        verifiable: which rows can be checked, bool [n].

    Returns:
        Rewards [n], in the common type of both.

    Raises:
        DataError: a number that is not finite where it is looked at.
        ValueError: not three [n], or `verifiable` not bool.
    """
    check_same_shape(check=check, model=model)
    result = _chosen(verifiable, check, model)
    for name, numbers, looked_at in (("check", check, verifiable), ("model's reward", model, ~verifiable)):
        bad = looked_at & ~numbers.isfinite()
        if bool(bad.any()):
            row = int(bad.nonzero()[0, 0])
            raise DataError(
                f"{int(bad.sum())} of the {int(looked_at.sum())} rows whose {name} counts have none that is finite, "
                f"the first at index {row}: {float(numbers[row])}. Find out why, mark those rows otherwise, or leave "
                "them out."
            )
    return result.to(torch.result_type(result, 1.0))


def _chosen(which: Tensor, here: Tensor, elsewhere: Tensor) -> Tensor:
    """`here` where `which`, and `elsewhere` else [n]."""
    if here.dim() != 1 or which.shape != here.shape or which.dtype != torch.bool:
        raise ValueError(
            f"expected values [n] and bool [n], got {tuple(here.shape)} and {which.dtype} {tuple(which.shape)}"
        )
    return torch.where(which, here, elsewhere)
