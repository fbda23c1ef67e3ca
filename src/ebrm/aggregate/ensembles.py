"""One reward from the members of an ensemble, or from a mean with its uncertainty.

Mean, worst case and uncertainty weighting are those of Coste et al., "Reward Model Ensembles Help Mitigate
Overoptimization" (arXiv 2310.02743). Bradley-Terry leaves a reward's offset and scale free, so members have to be
brought to common units first (`member_units`, `standardised`): otherwise the worst case is simply the member with the
lowest offset, and the spread is that of the offsets. No combination mends an error that all members share.

Sums are taken in float64, member by member in the order of their values: results depend neither on which rows come
together nor on the order of the members, and have the rewards' own type.
"""

from __future__ import annotations

import math

from torch import Tensor

from ebrm.errors import DataError, SettingsError


def member_units(rewards: Tensor) -> tuple[Tensor, Tensor]:  # [k, n] -> [k], [k]
    """Mean and standard deviation (divisor n) of each member, for `standardised`.

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


def standardised(rewards: Tensor, mean: Tensor, std: Tensor) -> Tensor:  # [k, n], [k], [k] -> [k, n]
    """Every member in units of its own standard deviation, from its own mean: (r - mean) / std.

    Args:
        rewards: rewards of k members for n rows [k, n].
        mean, std: of each member over the rows that set the units [k], see `member_units`.

    Raises:
        DataError: a reward or mean that is not finite, or a standard deviation that is not a positive number.
        ValueError: shapes other than [k, n], [k] and [k].
    """
    members = _checked(rewards)
    centre, spread = mean.double(), std.double()
    if centre.shape != members.shape[:1] or spread.shape != members.shape[:1]:
        raise ValueError(f"{tuple(mean.shape)} means and {tuple(std.shape)} deviations for {len(members)} members")
    bad = ~(centre.isfinite() & spread.isfinite() & (spread > 0))
    if bool(bad.any()):
        number = int(bad.nonzero()[0, 0])
        raise DataError(
            f"Member {number} of the ensemble has mean {float(centre[number])} and standard deviation "
            f"{float(spread[number])}. Both must be finite and the deviation above 0: leave the member out, or fit its "
            "units on rows that it tells apart."
        )
    return ((members - centre[:, None]) / spread[:, None]).to(rewards.dtype)


def ensemble_mean(rewards: Tensor) -> Tensor:  # [k, n] -> [n]
    """Mean of the members.

    Args:
        rewards: rewards of k members, in common units, for n rows [k, n].

    Raises:
        DataError: a reward that is not finite.
        ValueError: not [k, n] with at least one of each.
    """
    return _mean(_checked(rewards)).to(rewards.dtype)


def worst_case(rewards: Tensor) -> Tensor:  # [k, n] -> [n]
    """Lowest reward that a member gives: worst-case optimisation, WCO (arXiv 2310.02743).

    Args:
        rewards: rewards of k members, in common units, for n rows [k, n].

    Raises:
        DataError: a reward that is not finite.
        ValueError: not [k, n] with at least one of each.
    """
    return _checked(rewards).amin(0).to(rewards.dtype)


def uncertainty_weighted(rewards: Tensor, weight: float = 0.5) -> Tensor:  # [k, n] -> [n]
    """Mean of the members minus `weight` times their variance (divisor k): UWO (arXiv 2310.02743).

    A variance has the reward's unit squared, so the weight has its inverse: with members in units of their standard
    deviation it means the same for every ensemble. The paper takes 0.5 for best-of-n and 0.1 for PPO.

    Args:
        rewards: rewards of k members, in common units, for n rows [k, n].
        weight: how much the variance costs, 0 or more; 0 is the mean.

    Raises:
        SettingsError: a weight below 0 or not finite.
        DataError: a reward that is not finite.
        ValueError: not [k, n] with at least one of each.
    """
    _check_weight(weight, "The weight of the variance")
    members = _checked(rewards)
    mean = _mean(members)
    return (mean - weight * _mean((members - mean).square())).to(rewards.dtype)


def pessimistic(mean: Tensor, std: Tensor, weight: float = 1.0) -> Tensor:  # [n], [n] -> [n]
    """Mean minus `weight` standard deviations: a lower confidence bound on the reward.

    For a reward with its own uncertainty, such as a refined one; of an ensemble's mean and standard deviation it is
    the mean-minus-deviation of Eisenstein et al. (arXiv 2312.09244).

    Args:
        mean: rewards [n].
        std: standard deviation of each, in the reward's unit [n].
        weight: how many standard deviations are taken off, 0 or more.

    Raises:
        SettingsError: a weight below 0 or not finite.
        DataError: a mean or deviation that is not finite, or a deviation below 0.
        ValueError: not two tensors of the same length.
    """
    _check_weight(weight, "The weight of the standard deviation")
    if mean.dim() != 1 or mean.shape != std.shape:
        raise ValueError(f"expected two [n] tensors, got {tuple(mean.shape)} and {tuple(std.shape)}")
    bad = ~(mean.isfinite() & std.isfinite() & (std >= 0))
    if bool(bad.any()):
        row = int(bad.nonzero()[0, 0])
        raise DataError(
            f"{int(bad.sum())} of {len(mean)} rewards cannot be made pessimistic, the first in row {row} (mean "
            f"{float(mean[row])}, standard deviation {float(std[row])}). Both must be finite and the deviation at "
            "least 0: find out why those rows have no such numbers, or leave them out."
        )
    return (mean.double() - weight * std.double()).to(mean.dtype)


def _checked(rewards: Tensor) -> Tensor:
    """Rewards of the members in float64."""
    if rewards.dim() != 2 or not rewards.numel():
        raise ValueError(f"expected the rewards of k members for n rows [k, n], got {tuple(rewards.shape)}")
    bad = ~rewards.isfinite()
    if bool(bad.any()):
        member, row = bad.nonzero()[0].tolist()
        raise DataError(
            f"{int(bad.sum())} of {rewards.numel()} rewards of the ensemble are not finite numbers, the first "
            f"({float(rewards[member, row])}) of member {member} in row {row}. Find out why, or leave those rows out "
            "for all members."
        )
    return rewards.double()


def _mean(members: Tensor) -> Tensor:
    """Mean over members, added one by one in the order of their values."""
    values = members.sort(0).values
    total = values[0].clone()
    for value in values[1:]:
        total += value
    return total / len(values)


def _check_weight(weight: float, what: str) -> None:
    if not (math.isfinite(weight) and weight >= 0):
        raise SettingsError(f"{what} is {weight}; expected a finite number of at least 0.")
