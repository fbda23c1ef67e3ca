"""One reward from the members of an ensemble, or from a mean with its uncertainty.

Mean, worst case and uncertainty weighting are those of Coste et al., "Reward Model Ensembles Help Mitigate
Overoptimization" (arXiv 2310.02743); median and mean minus deviation those of Eisenstein et al., "Helping or Herding?
Reward Model Ensembles Mitigate but do not Eliminate Reward Hacking" (arXiv 2312.09244). Bradley-Terry leaves a reward's
scale free, and its offset for every prompt, so members have to be brought to common units first: `member_units` and
`standardized` for one offset and scale a member, `centered` for one offset a member and prompt. Otherwise the worst
case
is simply the member with the lowest offset, and the spread is that of the offsets. No combination mends an error that
all members share.

Sums are taken in float64, member by member in the order of their values: results depend neither on which rows come
together nor on the order of the members, and have the rewards' own type.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ebrm.errors import ConfigError, DataError
from ebrm.groups import Groups
from ebrm.utils.validation import check_finite, check_range, check_same_shape


def member_units(rewards: Tensor) -> tuple[Tensor, Tensor]:  # [k, n] -> [k], [k]
    """Mean and standard deviation (divisor n) of each member, for `standardized`.

    Args:
        rewards: rewards of k members for the n rows that set the units, usually the training rows [k, n].

    Returns:
        (mean [k], standard deviation [k]), float64.

    Raises:
        DataError: a reward that is not finite, or a member whose rewards are all equal, so that it has no scale.
        ValueError: not [k, n] with at least one of each.
    """
    members = _checked(rewards)
    equal = members.amin(1) == members.amax(1)
    if bool(equal.any()):
        raise DataError(
            f"Member {int(equal.nonzero()[0, 0])} of the ensemble gives all {members.shape[1]} rows the same reward, "
            "so that it has no scale. Leave it out, or give rows that it tells apart."
        )
    values = members.sort(1).values  # a sum depends on its order in the last bit
    mean = values.mean(1)
    return mean, (values - mean[:, None]).square().mean(1).sqrt()


def standardized(rewards: Tensor, mean: Tensor, std: Tensor) -> Tensor:  # [k, n], [k], [k] -> [k, n]
    """Every member in units of its own standard deviation, from its own mean: (r - mean) / std.

    Args:
        rewards: rewards of k members for n rows [k, n].
        mean, std: of each member over the rows that set the units [k], see `member_units`.

    Raises:
        DataError: a reward or mean that is not finite, or a standard deviation that is not a positive number.
        ValueError: shapes other than [k, n], [k] and [k].
    """
    members = _checked(rewards)
    center, spread = mean.double(), std.double()
    if center.shape != members.shape[:1] or spread.shape != members.shape[:1]:
        raise ValueError(f"{tuple(mean.shape)} means and {tuple(std.shape)} deviations for {len(members)} members")
    bad = ~(center.isfinite() & spread.isfinite() & (spread > 0))
    if bool(bad.any()):
        number = int(bad.nonzero()[0, 0])
        raise DataError(
            f"Member {number} of the ensemble has mean {float(center[number])} and standard deviation "
            f"{float(spread[number])}. Both must be finite and the deviation above 0: leave the member out, or fit its "
            "units on rows that it tells apart."
        )
    return _like(rewards, (members - center[:, None]) / spread[:, None])


def centered(rewards: Tensor, groups: Groups) -> Tensor:  # [k, n] -> [k, n]
    """Every member from its own mean over each prompt's rows: what members then differ in is not their offsets.

    Adding a number to all rewards that one member gives one prompt changes nothing. What is left says nothing of how
    good a prompt's responses are as a whole: compare within prompts only. A prompt of one row gets 0 from every member.
    For a mean over reference rows in place of the prompt's own, give that mean to `standardized` with deviations of 1.

    Args:
        rewards: rewards of k members for n rows [k, n].
        groups: which rows belong to one prompt, of n rows.

    Raises:
        DataError: a reward that is not finite.
        ValueError: not [k, n] with at least one of each, or groups of another number of rows.
    """
    members = _checked(rewards)
    return _like(rewards, torch.stack([member - groups.spread(groups.mean(member)) for member in members]))


def ensemble_mean(rewards: Tensor) -> Tensor:  # [k, n] -> [n]
    """Mean of the members.

    Args:
        rewards: rewards of k members, in common units, for n rows [k, n].

    Raises:
        DataError: a reward that is not finite.
        ValueError: not [k, n] with at least one of each.
    """
    return _like(rewards, _mean(_checked(rewards)))


def ensemble_median(rewards: Tensor) -> Tensor:  # [k, n] -> [n]
    """Median of the members (arXiv 2312.09244): the mean of the two in the middle where k is even.

    Args:
        rewards: rewards of k members, in common units, for n rows [k, n].

    Raises:
        DataError: a reward that is not finite.
        ValueError: not [k, n] with at least one of each.
    """
    values = _checked(rewards).sort(0).values
    k = len(values)
    return _like(rewards, (values[(k - 1) // 2] + values[k // 2]) / 2)


def worst_case(rewards: Tensor) -> Tensor:  # [k, n] -> [n]
    """Lowest reward that a member gives: worst-case optimization, WCO (arXiv 2310.02743).

    Args:
        rewards: rewards of k members, in common units, for n rows [k, n].

    Raises:
        DataError: a reward that is not finite.
        ValueError: not [k, n] with at least one of each.
    """
    return _like(rewards, _checked(rewards).amin(0))


def uncertainty_weighted(rewards: Tensor, weight: float = 0.5) -> Tensor:  # [k, n] -> [n]
    """Mean of the members minus `weight` times their variance (divisor k): UWO (arXiv 2310.02743).

    A variance has the reward's unit squared, so the weight has its inverse: with members in units of their standard
    deviation it means the same for every ensemble. The paper takes 0.5 for best-of-n and 0.1 for PPO.

    Args:
        rewards: rewards of k members, in common units, for n rows [k, n].
        weight: how much the variance costs, 0 or more; 0 is the mean.

    Raises:
        ConfigError: a weight below 0 or not finite.
        DataError: a reward that is not finite.
        ValueError: not [k, n] with at least one of each.
    """
    _check_weight(weight, "The weight of the variance")
    members = _checked(rewards)
    mean = _mean(members)
    return _like(rewards, mean - weight * _mean((members - mean).square()))


def disagreement(rewards: Tensor, ddof: int = 0) -> Tensor:  # [k, n] -> [n]
    """Standard deviation over the members, divisor k - ddof; exactly 0 where all are equal.

    Args:
        rewards: rewards of k members, in common units, for n rows [k, n].
        ddof: 0 takes the members for the whole ensemble, 1 for a sample of those there could be. The paper on mean
            minus deviation leaves open which it takes (arXiv 2312.09244); for five members they differ by 12%.

    Raises:
        ConfigError: `ddof` not 0 or more, or not below the number of members.
        DataError: a reward that is not finite.
        ValueError: not [k, n] with at least one of each.
    """
    members = _checked(rewards)
    return _like(rewards, _std(members, ddof))


def mean_minus_std(rewards: Tensor, weight: float = 1.0, ddof: int = 0) -> Tensor:  # [k, n] -> [n]
    """Mean of the members minus `weight` times their standard deviation (arXiv 2312.09244, with weight 1).

    Scales with the rewards, unlike `uncertainty_weighted`.

    Args:
        rewards: rewards of k members, in common units, for n rows [k, n].
        weight: how many standard deviations are taken off, 0 or more; 0 is the mean.
        ddof: as in `disagreement`.

    Raises:
        ConfigError: a weight below 0 or not finite, or `ddof` not 0 or more, or not below the number of members.
        DataError: a reward that is not finite.
        ValueError: not [k, n] with at least one of each.
    """
    _check_weight(weight, "The weight of the standard deviation")
    members = _checked(rewards)
    return _like(rewards, _mean(members) - weight * _std(members, ddof))


def pessimistic(mean: Tensor, std: Tensor, weight: float = 1.0) -> Tensor:  # [n], [n] -> [n]
    """Mean minus `weight` standard deviations: a lower confidence bound on the reward.

    For a reward with its own uncertainty, such as a refined one; `mean_minus_std` does the same for an ensemble.

    Args:
        mean: rewards [n].
        std: standard deviation of each, in the reward's unit [n].
        weight: how many standard deviations are taken off, 0 or more.

    Raises:
        ConfigError: a weight below 0 or not finite.
        DataError: a mean or deviation that is not finite, or a deviation below 0.
        ValueError: not two tensors of the same length.
    """
    _check_weight(weight, "The weight of the standard deviation")
    center, spread = check_finite(mean, "mean reward"), check_range(std, 0, math.inf, "standard deviation")
    check_same_shape(mean=mean, std=std)
    return _like(mean, center - weight * spread)


def _checked(rewards: Tensor) -> Tensor:
    """Rewards of the members in float64."""
    members = check_finite(rewards, "rewards of the members [k, n]", 2)
    if not members.numel():
        raise ValueError(f"expected the rewards of k members for n rows [k, n], got {tuple(rewards.shape)}")
    return members


def _like(rewards: Tensor, result: Tensor) -> Tensor:
    """The result in the type of the rewards, or in the default type where they are whole numbers."""
    return result.to(torch.result_type(rewards, 1.0))


def _mean(members: Tensor) -> Tensor:
    """Mean over members, added one by one in the order of their values."""
    values = members.sort(0).values
    total = values[0].clone()
    for value in values[1:]:
        total += value
    return total / len(values)


def _std(members: Tensor, ddof: int) -> Tensor:
    """Standard deviation over members, divisor k - ddof."""
    if not 0 <= ddof < len(members):
        raise ConfigError(f"ddof is {ddof} for {len(members)} members; expected 0 or more, and less than members.")
    variance = _mean((members - _mean(members)).square()) * (len(members) / (len(members) - ddof))
    return torch.where(members.amin(0) == members.amax(0), torch.zeros_like(variance), variance).sqrt()


def _check_weight(weight: float, what: str) -> None:
    if not (math.isfinite(weight) and weight >= 0):
        raise ConfigError(f"{what} is {weight}; expected a finite number of at least 0.")
