"""Pools of responses: what selecting by a reward is worth in gold, by best-of-n or under a KL penalty, exactly.

A pool holds a prompt's responses, with the reward that selects among them and the gold that judges. Tables are
[q prompts, m responses], NaN where a prompt has fewer than m in both; NumPy arrays, lists and tensors (of any device)
are taken, and results are NumPy arrays. A response that lacks reward or gold, or an infinite number, is a DataError.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaln

from ebrm.errors import ConfigError, DataError
from ebrm.utils.validation import ArrayLike, as_tensor

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

_CHUNK_CELLS = 1_000_000
#: In units of a pool's range of rewards: below it KL is smaller than its rounding, about 1e-16.
_LEAST_INVERSE = 1e-9
#: exp of minus this is nothing beside 1, even a million times.
_EXPONENT = 60.0
#: Halvings of an interval of some 60 in log β: to the last bit of β.
_HALVINGS = 60


def best_of_n_gold(reward: ArrayLike, gold: ArrayLike) -> Floats:
    """Expected gold of the best-rewarded of n responses, exactly, for every n from 1 to the size of each pool.

    The n are drawn without replacement from the prompt's s responses. Without ties, the response of rank i (1 lowest)
    is the best of C(i-1, n-1) of the C(s, n) sets. Ties are broken at random, in expectation: each of c equal responses
    gets the mean weight of their c ranks. For independent draws from a policy this is the unbiased estimate of the
    policy's best-of-n (a U-statistic), worth little near n = s, where it rests on one set. With `gold=reward` it is the
    expected reward itself. Column j of the result [q, m], in gold's unit, is n = j + 1; NaN for n above a prompt's s.
    """
    reward, gold = pool_tables(reward, gold)
    expected = np.full(reward.shape, np.nan)
    for rows, rewards, golds in pools_by_size(reward, gold):
        size = rewards.shape[1]
        weight = _rank_weights(size)
        shared = _shared(tie_groups(rewards), golds)
        step = max(1, _CHUNK_CELLS // size**2)
        for start in range(0, len(rows), step):
            part = slice(start, start + step)
            # Not a matrix product: its last bits depend on how many prompts there are.
            expected[rows[part], :size] = (shared[part, None, :] * weight).sum(axis=2)
    return expected


def best_of_n_kl(n: ArrayLike | float) -> Floats:
    """Distance of best-of-n from the policy it draws from: log n - (n - 1) / n, in nats, for n of any shape.

    An upper bound on KL(best-of-n ‖ policy) for independent draws, reached where no two responses have the same reward
    and none comes twice (Beirami et al., arXiv 2401.01879, theorem 3.1). The best of all s responses of a finite pool
    is at log s from a uniform choice among them. ConfigError: an n below 1 or not finite.
    """
    number = _array(n)
    bad = number[~(np.isfinite(number) & (number >= 1))]
    if len(bad):
        raise ConfigError(f"Best-of-n draws a finite number of responses, at least one; n is {bad[0]}.")
    return np.log(number) - (number - 1) / number


@dataclass(frozen=True, eq=False)
class Tilted:
    """Tilted policies, one a prompt and β; NaN for prompts without responses.

    Attributes:
        beta: β of each, in the reward's unit [q, b].
        kl: KL(π ‖ uniform), in nats, from 0 to log(responses / those that tie for the highest reward) [q, b].
        gold: expected gold under π, in gold's unit [q, b].
    """

    beta: Floats
    kl: Floats
    gold: Floats


def tilt(reward: ArrayLike, gold: ArrayLike, beta: ArrayLike) -> Tilted:
    """Exponentially tilted policy of every pool: π(y) ∝ exp(r(y) / β), which maximizes E_π[r] - β KL(π ‖ uniform).

    Reinforcement learning with a KL penalty, carried to its end on the responses at hand (Korbak et al., arXiv
    2205.11275; Yang et al., arXiv 2404.01730). No other policy as far from uniform has a higher expected reward. The
    penalty's weights `beta` [b] are in the reward's unit, 0 or more: the same β means another strength for a reward of
    another scale (see `tilt_to_kl`), 0 is the limit that chooses the highest reward (equal ones equally often), and
    infinity the one that chooses at random.
    """
    reward, gold = pool_tables(reward, gold)
    betas = _axis(beta, "β")
    with np.errstate(divide="ignore", over="ignore"):
        inverse = 1 / betas
    return _tilted(reward, gold, betas, lambda gap: np.broadcast_to(inverse, (len(gap), len(betas))), betas)


def tilt_to_kl(reward: ArrayLike, gold: ArrayLike, kl: ArrayLike) -> Tilted:
    """Tilted policy of every pool at a given distance: for each prompt the β whose policy is that far from uniform.

    Found by bisection in log β. Offset and positive scale of the reward, of each prompt by itself, make no difference.
    `kl` [b] in nats, 0 (the uniform choice) or more, is a budget: the policy that chooses among the highest rewards
    only (β = 0) is the furthest that a reward can lead, and is the one wherever more is allowed, with the result's `kl`
    saying what it takes.
    """
    reward, gold = pool_tables(reward, gold)
    target = _axis(kl, "KL")
    return _tilted(reward, gold, target, lambda gap: _inverse_at(gap, target), None)


def pool_tables(reward: ArrayLike, gold: ArrayLike) -> tuple[Floats, Floats]:
    """Both tables [q, m] in float64, checked."""
    reward, gold = _array(reward), _array(gold)
    if reward.ndim != 2 or reward.shape != gold.shape:
        raise ValueError(f"reward {reward.shape} and gold {gold.shape}: expected [q, m] of both")
    bad = ((np.isnan(reward) != np.isnan(gold)) | np.isinf(reward) | np.isinf(gold)).any(axis=1)
    if bad.any():
        raise DataError(
            f"{bad.sum()} of {len(bad)} prompts have a response that lacks its reward or its gold, or where one is "
            f"infinite, the first in row {np.flatnonzero(bad)[0]}. Every response needs both, and NaN in both tables "
            "marks a place without one: leave such prompts out for all rewards that are compared, and count them."
        )
    return reward, gold


def pools_by_size(reward: Floats, gold: Floats) -> Iterator[tuple[Integers, Floats, Floats]]:
    """Pools of equal size together, without the empty places: nothing then depends on padding or on order.

    Yields rows of the prompts [p]; their rewards [p, s], ascending; their gold in the same order [p, s], ascending
    where rewards are equal. Prompts without responses come in none.
    """
    size = np.isfinite(reward).sum(axis=1)
    order = np.lexsort((gold, reward), axis=-1)  # NaN last
    for responses in np.unique(size[size > 0]):
        rows = np.flatnonzero(size == responses)
        places = order[rows, :responses]
        yield rows, reward[rows[:, None], places], gold[rows[:, None], places]


def tie_groups(reward: Floats) -> Integers:
    """Number of the group of equal rewards that each response is in, from 0 [p, s], for ascending rewards [p, s]."""
    return np.cumsum(np.diff(reward, axis=1, prepend=reward[:, :1]) != 0, axis=1)


def _array(values: ArrayLike | float) -> Floats:
    if isinstance(values, int | float):
        return np.asarray(values, dtype=np.float64)
    array: Floats = as_tensor(values, "numbers").detach().cpu().double().numpy()
    return array


def _tilted(
    reward: Floats, gold: Floats, axis: Floats, inverse_at: Callable[[Floats], Floats], betas: Floats | None
) -> Tilted:
    """Tilted policies with the 1 / β [p, b] of `inverse_at`; `betas`: what they are exactly, if known."""
    found = Tilted(*(np.full((len(reward), len(axis)), np.nan) for _ in range(3)))
    for rows, rewards, golds in pools_by_size(reward, gold):
        # Some prompts at a time, so that [prompts, columns, responses] stays small.
        step = max(1, _CHUNK_CELLS // max(1, len(axis) * rewards.shape[1]))
        for part in (slice(start, start + step) for start in range(0, len(rewards), step)):
            gap = rewards[part] - rewards[part, -1:]
            inverse = inverse_at(gap)
            with np.errstate(divide="ignore"):
                found.beta[rows[part]] = 1 / inverse if betas is None else betas
            found.kl[rows[part]], policy = _tilt(gap, inverse)
            found.gold[rows[part]] = (policy * golds[part, None, :]).sum(axis=2)
    return found


def _inverse_at(gap: Floats, target: Floats) -> Floats:
    """1 / β at which KL is `target` [b], for gaps to the highest reward [p, s]; infinite where none is [p, b]."""
    size = gap.shape[1]
    behind = gap < 0
    furthest = np.log(size / (size - behind.sum(axis=1)))
    widest = np.where(behind.any(axis=1), -gap[:, 0], 1.0)
    narrowest = np.where(behind.any(axis=1), -gap.max(axis=1, initial=-np.inf, where=behind), 1.0)
    low = np.tile((np.log(_LEAST_INVERSE) - np.log(widest))[:, None], len(target))
    high = np.tile((np.log(_EXPONENT) - np.log(narrowest))[:, None], len(target))
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        short = _tilt(gap, np.exp(middle))[0] < target
        low, high = np.where(short, middle, low), np.where(short, high, middle)
    inverse = np.where(target == 0, 0.0, np.exp((low + high) / 2))
    return np.where((target > 0) & (target >= furthest[:, None]), np.inf, inverse)


def _tilt(gap: Floats, inverse: Floats) -> tuple[Floats, Floats]:
    """KL to uniform [p, b] and the policy [p, b, s] for gaps to the highest reward [p, s] and 1 / β [p, b]."""
    with np.errstate(invalid="ignore", over="ignore", under="ignore"):
        exponent = np.where(gap[:, None, :] < 0, gap[:, None, :] * inverse[:, :, None], 0.0)
        weight = np.exp(exponent)
        total = weight.sum(axis=2)
        policy = weight / total[:, :, None]
        taken = np.where(policy > 0, policy * exponent, 0.0).sum(axis=2)
    # Rounding may leave KL a little outside its range.
    return np.clip(taken - np.log(total / gap.shape[1]), 0.0, np.log(gap.shape[1])), policy


def _axis(value: ArrayLike, name: str) -> Floats:
    """One-dimensional, not negative, float64."""
    axis = _array(value)
    if axis.ndim != 1:
        raise ValueError(f"{name} has shape {axis.shape}, expected [b]")
    if not (axis >= 0).all():
        raise ConfigError(
            f"{name} is {axis[~(axis >= 0)][0]} at place {np.flatnonzero(~(axis >= 0))[0]}; expected "
            "numbers of at least 0."
        )
    return axis


def _rank_weights(size: int) -> Floats:
    """C(i-1, n-1) / C(s, n) at [n - 1, i - 1]: how likely the response of rank i is the best of n."""
    n, rank = np.arange(1, size + 1)[:, None], np.arange(1, size + 1)
    below = np.maximum(rank - n, 0)
    log_weight = gammaln(rank) - gammaln(n) - gammaln(below + 1)
    log_weight -= gammaln(size + 1) - gammaln(n + 1) - gammaln(size - n + 1)
    weight = np.where(rank >= n, np.exp(log_weight), 0.0)
    # Rounding of the logarithms grows with the pool; a reward that is worth nothing must stay at the mean.
    return weight / weight.sum(axis=1, keepdims=True)


def _shared(group: Integers, gold: Floats) -> Floats:
    """Each response's gold replaced by the mean of those with equal reward [p, s]."""
    prompts, size = gold.shape
    label = (group + size * np.arange(prompts)[:, None]).ravel()
    count = np.bincount(label, minlength=prompts * size)
    total = np.bincount(label, weights=gold.ravel(), minlength=prompts * size)
    return (total[label] / count[label]).reshape(gold.shape)
