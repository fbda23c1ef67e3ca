"""The policy that a reward leads to under a KL penalty, exactly, on the responses at hand.

Maximizing E_π[r] - β KL(π ‖ uniform) over a prompt's responses gives π(y) ∝ exp(r(y) / β): reinforcement learning
with that penalty, carried to its end (Korbak et al., arXiv 2205.11275; Yang et al., arXiv 2404.01730). Small β selects
hard. No other policy as far from uniform has a higher expected reward, so expected gold along the KL shows what the
reward alone is worth when it is optimized; comparing rewards at equal KL takes out their scale.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from ebrm.errors import ConfigError
from ebrm.optimize.pools import Floats, pool_tables, pools_by_size

_CHUNK_CELLS = 1_000_000
#: In units of a pool's range of rewards: below it KL is smaller than its rounding, about 1e-16.
_LEAST_INVERSE = 1e-9
#: exp of minus this is nothing beside 1, even a million times.
_EXPONENT = 60.0
#: Halvings of an interval of some 60 in log β: to the last bit of β.
_HALVINGS = 60


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
    """Tilt every pool with the same penalties.

    The same β means another strength for a reward of another scale; see `tilt_to_kl`.

    Args:
        reward: rewards of the responses [q, m], NaN where a prompt has fewer than m.
        gold: their worth, in any unit, NaN in the same places [q, m].
        beta: weights of the penalty, in the reward's unit [b]. 0 is the limit that chooses the highest reward (equal
            ones equally often), infinity the one that chooses at random.

    Raises:
        ConfigError: a β below 0 or NaN.
        DataError: a response with a reward but no gold or the reverse, or an infinite number.
        ValueError: not two tables of the same shape, or β not [b].
    """
    reward, gold = pool_tables(reward, gold)
    betas = _axis(beta, "β")
    with np.errstate(divide="ignore", over="ignore"):
        inverse = 1 / betas
    found = Tilted(*(np.full((len(reward), len(betas)), np.nan) for _ in range(3)))
    for rows, rewards, golds in pools_by_size(reward, gold):
        for part in _parts(rewards, len(betas)):
            gap = rewards[part] - rewards[part, -1:]
            found.beta[rows[part]] = betas
            found.kl[rows[part]], policy = _tilt(gap, np.broadcast_to(inverse, (len(gap), len(betas))))
            found.gold[rows[part]] = (policy * golds[part, None, :]).sum(axis=2)
    return found


def tilt_to_kl(reward: ArrayLike, gold: ArrayLike, kl: ArrayLike) -> Tilted:
    """Tilt every pool by what a KL allows: for each prompt the β whose policy is that far from uniform.

    KL rises as β falls, so β is found by bisection in log β. Offset and positive scale of the reward, of each prompt by
    itself, make no difference to the result. KL is a budget: the policy that chooses among the highest rewards only
    (β = 0) is the furthest that a reward can lead, and it is the one wherever more is allowed, with `kl` saying what it
    takes. A reward that is equal for all responses thus stays at the mean gold.

    Args:
        reward: rewards of the responses [q, m], NaN where a prompt has fewer than m.
        gold: their worth, in any unit, NaN in the same places [q, m].
        kl: how far to go, in nats [b]; 0 is the uniform choice, infinity that of the highest reward.

    Raises:
        ConfigError: a KL below 0 or NaN.
        DataError: a response with a reward but no gold or the reverse, or an infinite number.
        ValueError: not two tables of the same shape, or KL not [b].
    """
    reward, gold = pool_tables(reward, gold)
    target = _axis(kl, "KL")
    found = Tilted(*(np.full((len(reward), len(target)), np.nan) for _ in range(3)))
    for rows, rewards, golds in pools_by_size(reward, gold):
        for part in _parts(rewards, len(target)):
            gap = rewards[part] - rewards[part, -1:]
            inverse = _inverse_at(gap, target)
            with np.errstate(divide="ignore"):
                found.beta[rows[part]] = 1 / inverse
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
    axis = np.asarray(value, dtype=np.float64)
    if axis.ndim != 1:
        raise ValueError(f"{name} has shape {axis.shape}, expected [b]")
    if not (axis >= 0).all():
        raise ConfigError(
            f"{name} is {axis[~(axis >= 0)][0]} at place {np.flatnonzero(~(axis >= 0))[0]}; expected "
            "numbers of at least 0."
        )
    return axis


def _parts(rewards: Floats, columns: int) -> list[slice]:
    """Some prompts at a time, so that [prompts, columns, responses] stays small."""
    step = max(1, _CHUNK_CELLS // max(1, columns * rewards.shape[1]))
    return [slice(start, start + step) for start in range(0, len(rewards), step)]
