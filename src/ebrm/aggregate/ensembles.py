"""Ensembles: one reward from k members, from heads with uncertainty, or from near texts.

Mean, worst case and uncertainty weighting: Coste et al. (arXiv 2310.02743); median and mean minus deviation: Eisenstein
et al. (arXiv 2312.09244). Bradley-Terry leaves a reward's scale free, and its offset for every prompt, so bring members
to common units first: `standardized` (one offset and scale a member) or `centered` (one offset a member and prompt).
Otherwise the worst case is the member with the lowest offset. No combination mends an error that all members share.

Sums are in float64, member by member in the order of their values: results depend neither on which rows come together
nor on the order of the members, and have the rewards' float type. All refuse rewards that are not finite (DataError)
or not [k, n] with at least one of each (ValueError).
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from ebrm.errors import ConfigError, DataError
from ebrm.groups import Groups, safe_sqrt
from ebrm.utils.validation import (
    ArrayLike,
    as_tensor,
    check_choice,
    check_finite,
    check_range,
    check_setting,
    match_dtype,
    unit_vectors,
)

# Cosines are held in tables of so many cells.
_CHUNK_CELLS = 4_000_000
# Equal embeddings must have equal cosines, which rounding would keep them from.
_DECIMALS = 12


def member_units(rewards: ArrayLike) -> tuple[Tensor, Tensor]:  # [k, n] -> [k], [k]
    """Mean and standard deviation (divisor n) of each member over the rows that set the units, for `standardized`.

    Both [k] in float64. DataError: a member whose rewards are all equal, so that it has no scale.
    """
    members = _members(rewards)
    equal = members.amin(1) == members.amax(1)
    if bool(equal.any()):
        raise DataError(
            f"Member {int(equal.nonzero()[0, 0])} of the ensemble gives all {members.shape[1]} rows the same reward, "
            "so that it has no scale. Leave it out, or give rows that it tells apart."
        )
    values = members.sort(1).values  # a sum depends on its order in the last bit
    mean = values.mean(1)
    return mean, (values - mean[:, None]).square().mean(1).sqrt()


def standardized(rewards: ArrayLike, mean: ArrayLike, std: ArrayLike) -> Tensor:  # [k, n], [k], [k] -> [k, n]
    """Every member in units of its own standard deviation, from its own mean: (r - mean) / std, of `member_units`.

    DataError: a mean that is not finite, or a standard deviation that is not a positive number.
    """
    members = _members(rewards)
    center, spread = (as_tensor(v, n, members.device).double() for n, v in (("mean", mean), ("std", std)))
    if center.shape != members.shape[:1] or spread.shape != members.shape[:1]:
        raise ValueError(f"{tuple(center.shape)} means and {tuple(spread.shape)} deviations for {len(members)} members")
    bad = ~(center.isfinite() & spread.isfinite() & (spread > 0))
    if bool(bad.any()):
        number = int(bad.nonzero()[0, 0])
        raise DataError(
            f"Member {number} of the ensemble has mean {float(center[number])} and standard deviation "
            f"{float(spread[number])}. Both must be finite and the deviation above 0: leave the member out, or fit its "
            "units on rows that it tells apart."
        )
    return match_dtype((members - center[:, None]) / spread[:, None], rewards)


def centered(rewards: ArrayLike, groups: Groups) -> Tensor:  # [k, n] -> [k, n]
    """Every member from its own mean over each prompt's rows (`groups`): compare within prompts only.

    Adding a number to all rewards that one member gives one prompt changes nothing. A prompt of one row gets 0.
    """
    members = _members(rewards)
    return match_dtype(torch.stack([member - groups.spread(groups.mean(member)) for member in members]), rewards)


def ensemble_mean(rewards: ArrayLike) -> Tensor:  # [k, n] -> [n]
    """Mean of the members."""
    return match_dtype(_mean(_members(rewards)), rewards)


def ensemble_median(rewards: ArrayLike) -> Tensor:  # [k, n] -> [n]
    """Median of the members (arXiv 2312.09244): the mean of the two in the middle where k is even."""
    values = _members(rewards).sort(0).values
    k = len(values)
    return match_dtype((values[(k - 1) // 2] + values[k // 2]) / 2, rewards)


def worst_case(rewards: ArrayLike) -> Tensor:  # [k, n] -> [n]
    """Worst-case optimization (WCO, arXiv 2310.02743): the lowest reward that a member gives."""
    return match_dtype(_members(rewards).amin(0), rewards)


def uncertainty_weighted(rewards: ArrayLike, weight: float = 0.5) -> Tensor:  # [k, n] -> [n]
    """Uncertainty-weighted optimization (UWO, arXiv 2310.02743): mean minus `weight` times the variance (divisor k).

    A variance has the reward's unit squared, so the weight has its inverse: use members in units of their standard
    deviation. The paper takes 0.5 for best-of-n and 0.1 for PPO. ConfigError: a weight below 0.
    """
    check_setting("weight", weight, at_least=0)
    members = _members(rewards)
    mean = _mean(members)
    return match_dtype(mean - weight * _mean((members - mean).square()), rewards)


def disagreement(rewards: ArrayLike, ddof: int = 0) -> Tensor:  # [k, n] -> [n]
    """Standard deviation over the members, divisor k - ddof; exactly 0 where all are equal.

    arXiv 2312.09244 leaves open which `ddof` it takes; for five members 0 and 1 differ by 12%. ConfigError: `ddof`
    below 0 or not below k.
    """
    return match_dtype(_std(_members(rewards), ddof), rewards)


def mean_minus_std(rewards: ArrayLike, weight: float = 1.0, ddof: int = 0) -> Tensor:  # [k, n] -> [n]
    """Mean minus `weight` standard deviations of the members (arXiv 2312.09244, with weight 1).

    Scales with the rewards, unlike `uncertainty_weighted`. `ddof` as in `disagreement`.
    """
    check_setting("weight", weight, at_least=0)
    members = _members(rewards)
    return match_dtype(_mean(members) - weight * _std(members, ddof), rewards)


def pessimistic(mean: ArrayLike, std: ArrayLike, weight: float = 1.0) -> Tensor:  # [n], [n] -> [n]
    """Lower confidence bound on a reward with its own uncertainty: mean minus `weight` standard deviations."""
    check_setting("weight", weight, at_least=0)
    center = check_finite(mean, "mean reward [n]")
    spread = check_range(std, 0, math.inf, "standard deviation [n]", device=center.device, n=len(center))
    return match_dtype(center - weight * spread, mean)


def most_confident_head(mean: ArrayLike, std: ArrayLike) -> Tensor:  # [k, n], [k, n] -> [n]
    """Nominal reward of BRME (arXiv 2409.15360): that of the head with the smallest standard deviation.

    Heads that tie for the smallest have the mean of their rewards (ours), so that their order does not matter.
    """
    rewards, spread = _heads(mean, std)
    return match_dtype(_mean_where(rewards, spread == spread.amin(0)), mean)


def nominal_worst_case(
    mean: ArrayLike,  # [k, n]
    std: ArrayLike,  # [k, n]
    nominal_weight: float = 0.5,
    worst_case: Literal["per_sample", "per_batch"] = "per_sample",
) -> Tensor:  # [n]
    """Reward-robust RLHF (arXiv 2409.15360): J = w · E[r_nom] + (1 - w) · min_h E[μ_h], r_nom by `most_confident_head`.

    Args:
        mean, std: rewards of k heads, in common units, for n rows, and the standard deviation of each.
        nominal_weight: w: 1 is the nominal reward, 0 the worst case. The paper tries 0, 0.2, … 1; 0.5 is ours.
        worst_case: "per_batch": the rewards of the head with the least mean over the n rows, as in the paper.
            "per_sample": each row's least reward, a lower bound that does not depend on which rows come together.
    """
    check_setting("nominal_weight", nominal_weight, at_least=0, at_most=1)
    check_choice("worst_case", worst_case, ("per_sample", "per_batch"))
    rewards, spread = _heads(mean, std)
    worst = rewards.amin(0)
    if worst_case == "per_batch":
        of_heads = rewards.sort(1).values.mean(1)  # a sum depends on its order in the last bit
        worst = _mean_where(rewards, (of_heads == of_heads.amin())[:, None].expand_as(rewards))
    nominal = _mean_where(rewards, spread == spread.amin(0))
    return match_dtype(worst + nominal_weight * (nominal - worst), mean)


def neighbor_fusion(
    embedding: ArrayLike,  # [n, d]
    reward: ArrayLike,  # [n]
    bank: ArrayLike,  # [m, d]
    bank_reward: ArrayLike,  # [m]
    own: ArrayLike | None = None,  # [n]
    threshold: float = 0.9,
    neighbors: int = 5,
) -> Tensor:  # [n]
    """RewardFusion (arXiv 2309.16155): each reward averaged with those of its nearest texts, weighted by cosine.

        r' = (r + Σ_j c_j r_j) / (1 + Σ_j c_j),  j over the nearest `neighbors` rows with cosine c_j ≥ threshold

    The paper takes sentence embeddings; any will do. Its code counts a text that is in the bank itself twice; here
    `own` leaves it out. Rows that tie for the last places share them (ours); cosines are equal to 12 decimals. Takes
    n · m · d multiplications, in parts of at most 4 million cosines.

    Args:
        embedding, reward: of the n texts.
        bank, bank_reward: of the m texts that are looked at as neighbors; may be the n texts themselves.
        own: the row of the bank that is the text itself, -1 if none is, whole numbers; None: none is.
        threshold: the least cosine of a neighbor, above 0 and at most 1. The paper's 0.9 is for its encoder.
        neighbors: how many at most, 1 or more.
    """
    check_setting("threshold", threshold, above=0, at_most=1)
    check_setting("neighbors", neighbors, at_least=1)
    here = unit_vectors(embedding, "embedding")
    there = unit_vectors(bank, "bank", here.device)
    rewards = check_finite(reward, "reward [n]", device=here.device, n=len(here))
    others = check_finite(bank_reward, "reward in the bank [m]", device=here.device, m=len(there))
    if here.shape[1:] != there.shape[1:]:
        raise ValueError(f"expected embeddings [n, d] and [m, d], got {tuple(here.shape)} and {tuple(there.shape)}")
    itself = None if own is None else as_tensor(own, "own", here.device)
    if itself is not None and (
        itself.shape != rewards.shape
        or itself.is_floating_point()
        or bool(((itself < -1) | (itself >= len(there))).any())
    ):
        raise ValueError(f"own: expected {len(rewards)} rows of the bank [n], from -1 to {len(there) - 1}")
    if not len(there):
        return match_dtype(rewards, reward)
    parts = []
    most = min(neighbors, len(there))
    for rows in torch.arange(len(here), device=here.device).split(max(1, _CHUNK_CELLS // len(there))):
        cosine = (here[rows] @ there.T).round(decimals=_DECIMALS).clamp_max(1)
        if itself is not None:
            place = itself[rows, None].long()
            cosine = cosine.scatter(1, place.clamp_min(0), cosine.gather(1, place.clamp_min(0)).where(place < 0, -2.0))
        last = cosine.topk(most, 1).values[:, -1:]
        above, level = cosine > last, cosine == last
        share = (most - above.sum(1, keepdim=True)) / level.sum(1, keepdim=True)
        weight = torch.where(cosine >= threshold, cosine * (above + level * share), 0.0)
        parts.append((rewards[rows] + weight @ others) / (1 + weight.sum(1)))
    return match_dtype(torch.cat(parts) if parts else rewards, reward)


def _members(rewards: ArrayLike) -> Tensor:
    return check_finite(rewards, "rewards of the members [k, n]", nonempty=True)


def _heads(mean: ArrayLike, std: ArrayLike) -> tuple[Tensor, Tensor]:
    rewards = check_finite(mean, "rewards of the heads [k, n]", nonempty=True)
    k, n = rewards.shape
    return rewards, check_range(
        std, 0, math.inf, "standard deviations of the heads [k, n]", device=rewards.device, k=k, n=n
    )


def _mean(members: Tensor) -> Tensor:
    """Mean over members, added one by one in the order of their values."""
    values = members.sort(0).values
    total = values[0].clone()
    for value in values[1:]:
        total += value
    return total / len(values)


def _std(members: Tensor, ddof: int) -> Tensor:
    if not 0 <= ddof < len(members):
        raise ConfigError(f"`ddof` is {ddof} for {len(members)} members; expected 0 or more, and less than members.")
    variance = _mean((members - _mean(members)).square()) * (len(members) / (len(members) - ddof))
    return safe_sqrt(torch.where(members.amin(0) == members.amax(0), 0.0, variance))


def _mean_where(rewards: Tensor, chosen: Tensor) -> Tensor:
    """Mean over the chosen heads of each row, of which there is at least one."""
    kept = torch.where(chosen, rewards, 0.0)
    return kept.sort(0).values.sum(0) / chosen.sum(0)
