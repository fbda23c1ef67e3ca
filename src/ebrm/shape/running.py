"""Rewards in the units of all rewards seen so far: standardized, clipped, or from 0 to 1.

Baselines of the public code of "Reward Shaping to Mitigate Reward Hacking in RLHF" (PAR, arXiv 2502.18770), which
updates the statistics with a batch before it shapes that batch:

    statistics = statistics.updated(reward)
    shaped = running_standardized(reward, statistics)

The shape of a reward thus changes as training goes on: the same text is worth something else later.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ebrm.errors import ConfigError, DataError
from ebrm.utils.validation import check_finite


@dataclass(frozen=True)
class RunningStatistics:
    """What has been seen so far: nothing at first. Plain numbers, to be kept with a checkpoint.

    Updates in any batches give the same up to rounding, and statistics of two parts merge to those of both (Chan et
    al., "Updating Formulae and a Pairwise Algorithm for Computing Sample Variances", 1979).

    Attributes:
        count: number of rewards.
        mean: their mean.
        squares: sum of their squared deviations from the mean.
        lowest, highest: infinity and -infinity before any.
    """

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0
    lowest: float = math.inf
    highest: float = -math.inf

    def updated(self, reward: Tensor) -> RunningStatistics:  # [n]
        """The statistics with these rewards as well; the same where there are none.

        Raises:
            DataError: a reward that is not finite.
            ValueError: not [n].
        """
        values = check_finite(reward.detach(), "rewards")
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
        """Standard deviation, divisor count - ddof; 0 of a single reward and of equal ones.

        Raises:
            ConfigError: `ddof` not 0 or 1.
            DataError: nothing has been seen.
        """
        if ddof not in (0, 1):
            raise ConfigError(f"ddof is {ddof}; expected 0 or 1.")
        _seen(self)
        return math.sqrt(self.squares / max(self.count - ddof, 1))


def running_standardized(reward: Tensor, statistics: RunningStatistics, ddof: int = 0) -> Tensor:  # [n] -> [n]
    """In standard deviations from the mean: (r - mean) / std.

    If the statistics are of the same rewards, offset and positive scale of all of them change nothing; an offset of one
    prompt does. While all rewards seen were equal they are centered only, as in the public code.

    Args:
        reward: rewards [n].
        statistics: of what was seen so far.
        ddof: see `RunningStatistics.std`; the public code has 0.

    Returns:
        Rewards [n], in the type of `reward`.

    Raises:
        ConfigError: `ddof` not 0 or 1.
        DataError: a reward that is not finite, or statistics of nothing.
        ValueError: not [n].
    """
    values, std = check_finite(reward, "rewards"), statistics.std(ddof)
    return ((values - statistics.mean) / (std or 1.0)).to(torch.result_type(reward, 1.0))


def running_clipped(
    reward: Tensor, statistics: RunningStatistics, width: float = 1.0, ddof: int = 0
) -> Tensor:  # [n] -> [n]
    """Kept within `width` standard deviations of the mean: min(max(r, mean - w · std), mean + w · std).

    Not a fixed bound: it moves with what has been seen. If the statistics are of the same rewards, an offset and
    positive scale of all of them go through.

    Args:
        reward: rewards [n].
        statistics: of what was seen so far.
        width: w, above 0; the public code has 1.
        ddof: see `RunningStatistics.std`; the public code has 0.

    Returns:
        Rewards [n], in the type of `reward`. While all rewards seen were equal every reward becomes that one.

    Raises:
        ConfigError: a width that is not above 0 and finite, or `ddof` not 0 or 1.
        DataError: a reward that is not finite, or statistics of nothing.
        ValueError: not [n].
    """
    if not (math.isfinite(width) and width > 0):
        raise ConfigError(f"The width of the clip is {width} deviations; expected a finite number above 0.")
    values, reach = check_finite(reward, "rewards"), width * statistics.std(ddof)
    return values.clamp(statistics.mean - reach, statistics.mean + reach).to(torch.result_type(reward, 1.0))


def running_min_max(reward: Tensor, statistics: RunningStatistics) -> Tensor:  # [n] -> [n]
    """From 0 at the lowest reward seen to 1 at the highest: (r - lowest) / (highest - lowest).

    If the statistics are of the same rewards, offset and positive scale of all of them change nothing. A single reward
    far out squeezes all others for good.

    Args:
        reward: rewards [n].
        statistics: of what was seen so far. Rewards beyond what they have seen get less than 0 or more than 1.

    Returns:
        Rewards [n], in the type of `reward`. While all rewards seen were equal, 0.5 (the public code divides by 0).

    Raises:
        DataError: a reward that is not finite, or statistics of nothing.
        ValueError: not [n].
    """
    values = check_finite(reward, "rewards")
    _seen(statistics)
    reach = statistics.highest - statistics.lowest
    shaped = (values - statistics.lowest) / reach if reach > 0 else torch.full_like(values, 0.5)
    return shaped.to(torch.result_type(reward, 1.0))


def _seen(statistics: RunningStatistics) -> None:
    if not statistics.count:
        raise DataError("The running statistics have seen no reward. Update them with the first batch before its use.")
