"""Bounded and centered rewards: against reference responses to the same prompt, or against all rewards seen so far.

A reward that grows without end is worth hacking; one that saturates is not. References are responses of the policy
before training, to the same prompt; with them the reward's offset, which Bradley-Terry leaves free for every prompt,
falls away. Shaping by running statistics changes as training goes on: the same text is worth something else later.
Numbers that are not finite are a DataError, other shapes a ValueError; results have the rewards' float type.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import Literal, get_args

import numpy as np
import torch
from scipy.special import ndtri
from torch import Tensor
from torch.nn.functional import logsigmoid

from ebrm.errors import DataError
from ebrm.groups import safe_sqrt
from ebrm.utils.validation import (
    ArrayLike,
    as_tensor,
    check_choice,
    check_finite,
    check_mask,
    check_setting,
    match_dtype,
    refuse,
)

Squash = Literal["sigmoid", "tanh", "arctan", "polynomial"]
_EDGE = 5.0


def preference_as_reward(
    reward: ArrayLike,  # [n]
    reference: ArrayLike,  # [n, m]
    slope: float = 1.0,
    squash: Squash = "sigmoid",
    present: ArrayLike | None = None,  # [n, m]
) -> Tensor:  # [n]
    """Preference as reward (PAR, arXiv 2502.18770): r' = 1/m Σ_j σ( s (r - r_ref,j) ).

    The mean Bradley-Terry probability of being preferred to a reference (slope 1). The other squashings are baselines
    of the paper's code, which gives a slope to the sigmoid only:

        tanh        1/m Σ_j tanh(s (r - r_ref,j)), which is 2 r' - 1 with r' at twice the slope
        arctan      1/m Σ_j arctan(s (r - r_ref,j))
        polynomial  the polynomial of degree 5 closest to σ at 100 even steps from -5 to 5; 0 below, 1 above

    Squashing without centering is a reference of 0; that code's "slow-then-fast" is that of `reward - 3`, its ceiling
    is `reward.clamp(max=…)`. A length penalty comes before.

    Args:
        reward: rewards, in Bradley-Terry units (log odds) for slope 1.
        reference: rewards of each row's m references, at least one. The paper takes m = 1; its code up to 10.
        slope: s, above 0.
        squash: "sigmoid", or one of the baselines.
        present: which references there are, bool, where rows have fewer than m; the others are not looked at.
    """
    check_setting("slope", slope, above=0)
    check_choice("squash", squash, get_args(Squash))
    values = check_finite(reward, "rewards [n]")
    others, there = _references(reference, present, values.device, len(values))
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
    return match_dtype(_mean(squashed, there), reward)


def centered_on_references(
    reward: ArrayLike, reference: ArrayLike, present: ArrayLike | None = None
) -> Tensor:  # [n], [n, m], [n, m] -> [n]
    """Reward minus the mean of its references', PAR's unbounded baseline; arguments as in `preference_as_reward`."""
    values = check_finite(reward, "rewards [n]")
    others, there = _references(reference, present, values.device, len(values))
    return match_dtype(values - _mean(others, there), reward)


def log_sigmoid_centered(reward: ArrayLike, level: ArrayLike | float) -> Tensor:  # [n], [n] or [] -> [n]
    """Log probability that a response is good: u = log σ(r - r_ref), 0 at most (Wang et al., arXiv 2402.00742).

    σ(r - r_ref) is the probability of being preferred to a response at the reference `level` (of each row or of all,
    see `reference_level`), taken as good; rewards are in Bradley-Terry units. Sums of several u make a soft "and":
    `ebrm.aggregate.log_sigmoid_sum`.
    """
    values = check_finite(reward, "rewards [n]")
    at = torch.tensor(level, device=values.device) if isinstance(level, int | float) else as_tensor(level, "level")
    at = check_finite(at, "reference level", at.dim(), device=values.device)
    if at.dim() and at.shape != values.shape:
        raise ValueError(f"expected rewards [n] and levels [n] or [], got {tuple(values.shape)} and {tuple(at.shape)}")
    return match_dtype(logsigmoid(values - at), reward)


def reference_level(
    reference: ArrayLike,  # [q, m]
    quantile: float = 0.85,
    how: Literal["empirical", "normal"] = "empirical",
    ddof: int = 1,
    present: ArrayLike | None = None,  # [q, m]
) -> Tensor:  # [q]
    """Quantile of each prompt's reference rewards, from which on a response counts as good.

    "empirical" is the quantile of the references themselves, linear between neighbors (as `torch.quantile`). "normal"
    is that of a normal distribution fitted to them, mean + Φ⁻¹(quantile) · std (PAR's code, arXiv 2502.18770).

    Args:
        reference: rewards of m references, at least one, for each of q prompts.
        quantile: above 0 and below 1; 0.85 is that of PAR's code, for helpfulness. For harmlessness arXiv 2402.00742
            has the reward of a canned refusal in place of a quantile.
        how: "empirical" or "normal".
        ddof: for "normal", the divisor of the variance is m - ddof, at least 1: one reference has deviation 0.
        present: as in `preference_as_reward`.
    """
    check_setting("quantile", quantile, above=0, below=1)
    check_choice("ddof", ddof, (0, 1))
    check_choice("how", how, ("empirical", "normal"))
    values, there = _references(reference, present)
    if not len(values):
        return match_dtype(values.new_empty(0), reference)
    sizes = torch.full_like(values[:, 0], values.shape[1], dtype=torch.int64) if there is None else there.sum(1)
    values = (values if there is None else torch.where(there, values, torch.inf)).sort(1).values
    if how == "empirical":
        place = quantile * (sizes - 1).double()
        below = place.floor().long()[:, None]
        low, high = values.gather(1, below)[:, 0], values.gather(1, place.ceil().long()[:, None])[:, 0]
        level = low + (place - below[:, 0]) * (high - low)
    else:
        kept = torch.arange(values.shape[1], device=values.device) < sizes[:, None]
        lowest = values[:, :1]
        off = torch.where(kept, values, lowest) - lowest  # exactly 0 where all are equal
        mean = off.sum(1) / sizes
        square = torch.where(kept, off - mean[:, None], 0.0).square().sum(1) / (sizes - ddof).clamp_min(1)
        level = lowest[:, 0] + mean + float(ndtri(quantile)) * safe_sqrt(square)
    return match_dtype(level, reference)


@dataclass(frozen=True)
class RunningStatistics:
    """Mean, deviation and range of the rewards seen so far, in plain numbers, to be kept with a checkpoint.

        statistics = statistics.updated(reward)  # PAR's code updates with a batch before it shapes that batch
        shaped = running_standardized(reward, statistics)

    Updates in any batches give the same up to rounding, and statistics of two parts merge to those of both (Chan et
    al., 1979).

    Attributes:
        count, mean: number of rewards, and their mean.
        squares: sum of their squared deviations from the mean.
        lowest, highest: infinity and -infinity before any.
    """

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0
    lowest: float = math.inf
    highest: float = -math.inf

    def updated(self, reward: ArrayLike) -> RunningStatistics:  # [n]
        """The statistics with these rewards as well; the same where there are none."""
        values = check_finite(reward, "rewards [n]").detach()
        if not len(values):
            return self
        lowest, highest = float(values.min()), float(values.max())
        off = values - lowest  # exactly 0 where all are equal
        mean = float(off.mean())
        squares = float((off - mean).square().sum())
        return self.merged(RunningStatistics(len(values), lowest + mean, squares, lowest, highest))

    def merged(self, other: RunningStatistics) -> RunningStatistics:
        """The statistics of both."""
        if not self.count or not other.count:
            return self if self.count else other
        count = self.count + other.count
        apart = other.mean - self.mean
        return RunningStatistics(
            count,
            self.mean + apart * (other.count / count),
            self.squares + other.squares + apart * apart * (self.count * other.count / count),
            min(self.lowest, other.lowest),
            max(self.highest, other.highest),
        )

    def std(self, ddof: int = 0) -> float:
        """Standard deviation, divisor count - ddof; DataError if nothing has been seen."""
        check_choice("ddof", ddof, (0, 1))
        return math.sqrt(_seen(self).squares / max(self.count - ddof, 1))


def running_standardized(reward: ArrayLike, statistics: RunningStatistics, ddof: int = 0) -> Tensor:  # [n] -> [n]
    """Standardized by running statistics: (r - mean) / std; centered only while all rewards seen were equal."""
    values, std = check_finite(reward, "rewards [n]"), statistics.std(ddof)
    return match_dtype((values - statistics.mean) / (std or 1.0), reward)


def running_clipped(
    reward: ArrayLike, statistics: RunningStatistics, width: float = 1.0, ddof: int = 0
) -> Tensor:  # [n] -> [n]
    """Clipped to within `width` (above 0) standard deviations of the mean: min(max(r, mean - w · std), mean + w · std).

    While all rewards seen were equal every reward becomes that one.
    """
    check_setting("width", width, above=0)
    values, reach = check_finite(reward, "rewards [n]"), width * statistics.std(ddof)
    return match_dtype(values.clamp(statistics.mean - reach, statistics.mean + reach), reward)


def running_min_max(reward: ArrayLike, statistics: RunningStatistics) -> Tensor:  # [n] -> [n]
    """From 0 at the lowest reward seen to 1 at the highest; 0.5 while all were equal (PAR's code divides by 0).

    Rewards beyond what the statistics have seen get less than 0 or more than 1. A single reward far out squeezes all
    others for good.
    """
    values = check_finite(reward, "rewards [n]")
    reach = _seen(statistics).highest - statistics.lowest
    shaped = (values - statistics.lowest) / reach if reach > 0 else torch.full_like(values, 0.5)
    return match_dtype(shaped, reward)


def _seen(statistics: RunningStatistics) -> RunningStatistics:
    if not statistics.count:
        raise DataError("The running statistics have seen no reward. Update them with the first batch before its use.")
    return statistics


def _references(
    reference: ArrayLike, present: ArrayLike | None, device: torch.device | None = None, rows: int | None = None
) -> tuple[Tensor, Tensor | None]:
    """References in float64, 0 where there are none [n, m], and which there are [n, m]; None: all."""
    known = as_tensor(reference, "rewards of references", device)
    if known.dim() != 2 or len(known) != (len(known) if rows is None else rows):
        raise ValueError(f"expected references [n, m] for {rows} rows, got {tuple(known.shape)}")
    n, m = known.shape
    there = None if present is None else check_mask(present, "present [n, m]", known.device, n=n, m=m)
    some = torch.full((n,), m > 0) if there is None else there.any(1)
    do = "Every row needs at least one: sample a response to its prompt, or leave it out."
    refuse(~some, "rows are without references", do)
    return check_finite(known if there is None else torch.where(there, known, 0), "rewards of references [n, m]"), there


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
