"""Rewards against those of reference responses to the same prompt: how often a response would be preferred to them.

A reward that grows without end is worth hacking; one that saturates is not. References are responses of the policy
before training, to the same prompt; with them the reward's offset, which Bradley-Terry leaves free for every prompt,
falls away.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Literal, get_args

import numpy as np
import torch
from scipy.special import ndtri
from torch import Tensor
from torch.nn.functional import logsigmoid

from ebrm.errors import ConfigError, DataError
from ebrm.utils.validation import check_finite

Squash = Literal["sigmoid", "tanh", "arctan", "polynomial"]
_EDGE = 5.0


def preference_as_reward(
    reward: Tensor,  # [n]
    reference: Tensor,  # [n, m]
    slope: float = 1.0,
    squash: Squash = "sigmoid",
    present: Tensor | None = None,  # [n, m]
) -> Tensor:  # [n]
    """Probability of being preferred to a reference response, on average: r' = 1/m Σ_j σ( s (r - r_ref,j) ).

    Preference As Reward (PAR) of Fu et al., "Reward Shaping to Mitigate Reward Hacking in RLHF" (arXiv 2502.18770).
    With m = 1 and slope 1 it is the Bradley-Terry probability itself. It rises with the reward, fastest at the
    reference (m = 1), and towards 1 as 1 - r' ~ exp(-s (r - r_ref)).

    Adding a number to a prompt's rewards and to its references' changes nothing; the order of references does not
    matter. Scale does: multiplying all rewards is the same as multiplying the slope.

    The other squashings are baselines of the paper's code, which gives a slope to the sigmoid only:

        tanh        1/m Σ_j tanh(s (r - r_ref,j)), which is 2 r' - 1 with r' at twice the slope
        arctan      1/m Σ_j arctan(s (r - r_ref,j))
        polynomial  the polynomial of degree 5 closest to σ at 100 even steps from -5 to 5; 0 below, 1 above

    Further baselines of that code need no function here: squashing without centering is a reference of 0; its
    "slow-then-fast" is that of `reward - 3`; its ceiling is `reward.clamp(max=…)`. A length penalty comes before.

    Args:
        reward: rewards, in Bradley-Terry units (log odds) for slope 1 [n].
        reference: rewards of each row's m references [n, m]. The paper takes m = 1; its code up to 10.
        slope: s, above 0.
        squash: "sigmoid", or one of the baselines.
        present: which references there are, bool [n, m], where rows have fewer than m; the others are not looked at.
            None: all.

    Returns:
        r' [n], in the type of `reward`: from 0 to 1, for tanh from -1 to 1, for arctan from -π/2 to π/2. A reward
        equal to all its references gives 0.5 (0 for tanh and arctan).

    Raises:
        ConfigError: a slope that is not above 0 and finite, or another `squash`.
        DataError: a number that is not finite, or a row without references.
        ValueError: not [n] and [n, m], or `present` not bool [n, m].
    """
    if not (math.isfinite(slope) and slope > 0):
        raise ConfigError(f"The slope is {slope}; expected a finite number above 0.")
    if squash not in get_args(Squash):
        raise ConfigError(f"The squashing is {squash!r}; expected one of {', '.join(get_args(Squash))}.")
    values = check_finite(reward, "rewards")
    others, there = _references(reference, present, len(values))
    ahead = slope * (values[:, None] - others)
    match squash:
        case "sigmoid":
            squashed = ahead.sigmoid()
        case "tanh":
            squashed = ahead.tanh()
        case "arctan":
            squashed = ahead.arctan()
        case "polynomial":
            squashed = _polynomial(ahead)
    return _mean(squashed, there).to(torch.result_type(reward, 1.0))


def centred_on_references(reward: Tensor, reference: Tensor, present: Tensor | None = None) -> Tensor:
    """Reward minus the mean of its references', 1/m Σ_j (r - r_ref,j): PAR's unbounded baseline.

    Adding a number to a prompt's rewards and to its references' changes nothing; a positive scale goes through.

    Args:
        reward: rewards [n].
        reference, present: see `preference_as_reward` [n, m].

    Returns:
        Centered rewards [n], in the type of `reward`.

    Raises:
        DataError: a number that is not finite, or a row without references.
        ValueError: not [n] and [n, m], or `present` not bool [n, m].
    """
    values = check_finite(reward, "rewards")
    others, there = _references(reference, present, len(values))
    return (values - _mean(others, there)).to(torch.result_type(reward, 1.0))


def log_sigmoid_centered(reward: Tensor, level: Tensor) -> Tensor:  # [n], [n] or [] -> [n]
    """Log probability that a response is good: u = log σ(r - r_ref).

    Wang et al., "Transforming and Combining Rewards for Aligning Large Language Models" (arXiv 2402.00742), where
    σ(r - r_ref) is the probability of being preferred to a response at the reference level, taken as good. Far below
    the level u is r - r_ref, at it -log 2 with half the slope, and above it hardly rises any more.

    Adding a number to rewards and level changes nothing, and the order of rewards of one level stays; scale matters
    (Bradley-Terry units). Adding several u makes a soft "and": `ebrm.aggregate.gates.log_sigmoid_sum`. Public code
    (PAR's) takes the log of a sigmoid, which is -infinity from -104 (float32) on; this does not.

    Args:
        reward: rewards, in Bradley-Terry units [n].
        level: the reward from which on a response is good, for each row or for all [n] or []; see `reference_level`.

    Returns:
        u [n], 0 at most, in the type of `reward`.

    Raises:
        DataError: a number that is not finite.
        ValueError: not [n], or a level of another shape.
    """
    values, at = check_finite(reward, "rewards"), check_finite(level, "reference level", level.dim())
    if at.dim() and at.shape != values.shape:
        raise ValueError(
            f"expected rewards [n] and levels [n] or [], got {tuple(reward.shape)} and {tuple(level.shape)}"
        )
    return logsigmoid(values - at).to(torch.result_type(reward, 1.0))


def reference_level(
    reference: Tensor,  # [q, m]
    quantile: float = 0.85,
    how: Literal["empirical", "normal"] = "empirical",
    ddof: int = 1,
    present: Tensor | None = None,  # [q, m]
) -> Tensor:  # [q]
    """A quantile of each prompt's reference rewards: from there on a response counts as good.

    "empirical" is the quantile of the references themselves, linear between neighbors (as `torch.quantile`). "normal"
    is that of a normal distribution fitted to them, mean + Φ⁻¹(quantile) · std, which PAR's code takes (arXiv
    2502.18770; it adds 0.00001 to the deviation, and here nothing is). An offset and positive scale of a prompt's
    references go through; their order does not matter.

    Args:
        reference: rewards of m references for each of q prompts [q, m].
        quantile: above 0 and below 1. The 0.85 is the paper's for helpfulness (arXiv 2402.00742; from PAR's code, not
            verified in the paper). For harmlessness it has the reward of a canned refusal in place of a quantile.
        how: "empirical" or "normal".
        ddof: for "normal", the divisor of the variance is m - ddof, at least 1: one reference has deviation 0.
        present: as in `preference_as_reward` [q, m].

    Returns:
        Levels [q], in the type of `reference`. A single reference, and equal ones, are their own level.

    Raises:
        ConfigError: a quantile outside (0, 1), `ddof` not 0 or 1, or another `how`.
        DataError: a number that is not finite, or a prompt without references.
        ValueError: not [q, m], or `present` not bool [q, m].
    """
    if not 0 < quantile < 1:
        raise ConfigError(f"The quantile is {quantile}; expected a number above 0 and below 1.")
    if ddof not in (0, 1):
        raise ConfigError(f"ddof is {ddof}; expected 0 or 1.")
    values, there = _references(reference, present, len(reference))
    sizes = torch.full_like(values[:, 0], values.shape[1], dtype=torch.int64) if there is None else there.sum(1)
    values = (values if there is None else torch.where(there, values, torch.inf)).sort(1).values
    if not len(values):
        return reference.new_empty(0, dtype=torch.result_type(reference, 1.0))
    if how == "empirical":
        place = quantile * (sizes - 1).double()
        below = place.floor().long()[:, None]
        low, high = values.gather(1, below)[:, 0], values.gather(1, place.ceil().long()[:, None])[:, 0]
        level = low + (place - below[:, 0]) * (high - low)
    elif how == "normal":
        kept = torch.arange(values.shape[1], device=values.device) < sizes[:, None]
        lowest = values[:, :1]
        off = torch.where(kept, values - lowest, 0.0)  # exactly 0 where all are equal
        mean = off.sum(1) / sizes
        square = torch.where(kept, off - mean[:, None], 0.0).square().sum(1) / (sizes - ddof).clamp_min(1)
        level = lowest[:, 0] + mean + float(ndtri(quantile)) * square.sqrt()
    else:
        raise ConfigError(f"The level is {how!r}; expected 'empirical' or 'normal'.")
    return level.to(torch.result_type(reference, 1.0))


def _references(reference: Tensor, present: Tensor | None, rows: int) -> tuple[Tensor, Tensor | None]:
    """References in float64, 0 where there are none [n, m], and which there are [n, m]; None: all."""
    if reference.dim() != 2 or len(reference) != rows:
        raise ValueError(f"expected references [n, m] for {rows} rows, got {tuple(reference.shape)}")
    if present is not None and (present.shape != reference.shape or present.dtype != torch.bool):
        raise ValueError(
            f"expected the references there are as bool {tuple(reference.shape)}, got {present.dtype} "
            f"{tuple(present.shape)}"
        )
    none = torch.full((rows,), not reference.shape[1]) if present is None else ~present.any(1)
    if bool(none.any()):
        raise DataError(
            f"{int(none.sum())} of {rows} rows are without references, the first at index {int(none.nonzero()[0, 0])}. "
            "Every row needs at least one: sample a response to its prompt, or leave it out."
        )
    there = reference if present is None else torch.where(present, reference, torch.zeros_like(reference))
    return check_finite(there, "rewards of references", 2), present


def _mean(values: Tensor, there: Tensor | None) -> Tensor:  # [n, m], [n, m] -> [n]
    """Mean over the references that there are."""
    return values.mean(1) if there is None else torch.where(there, values, 0.0).sum(1) / there.sum(1)


def _polynomial(values: Tensor) -> Tensor:
    """Close to σ inside the edges; 0 and 1 outside."""
    result = torch.zeros_like(values)
    for factor in reversed(_factors()):
        result = result * values + factor
    return torch.where(values <= -_EDGE, 0.0, torch.where(values >= _EDGE, 1.0, result))


@cache
def _factors() -> tuple[float, ...]:
    """Of the powers 0 … 5, by least squares."""
    places = np.linspace(-_EDGE, _EDGE, 100)
    return tuple(np.polynomial.polynomial.polyfit(places, 1 / (1 + np.exp(-places)), 5).tolist())
