"""Signs that a reward no longer tells the responses it is used on apart, so that it is time to revise it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ebrm.errors import ConfigError, DataError
from ebrm.metrics.bootstrap import Bootstrap, Estimate, cluster_labels, clustered_mean, finite_array
from ebrm.metrics.length import length_correlation
from ebrm.metrics.starc import starc_estimate
from ebrm.metrics.within import centered

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class DriftLimits:
    """From which value on each sign of `Drift` is a warning; all of them are ours, set them by a run that went well.

    Attributes:
        saturated: share of prompts, in [0, 1].
        ceiling: share of responses, in [0, 1].
        length: correlation, in [-1, 1].
        distance: STARC distance, in [0, 2]; 1.414 is that of unrelated rewards.
    """

    saturated: float = 0.5
    ceiling: float = 0.5
    length: float = 0.5
    distance: float = 1.0

    def __post_init__(self) -> None:
        for name, low, high in (("saturated", 0, 1), ("ceiling", 0, 1), ("length", -1, 1), ("distance", 0, 2)):
            if not low <= getattr(self, name) <= high:
                raise ConfigError(f"{name} is {getattr(self, name)}, expected a limit from {low} to {high}")


@dataclass(frozen=True)
class Drift:
    """What a reward says of one batch of responses, several a prompt.

    Attributes:
        spread: mean over prompts of the standard deviation (divisor: responses of the prompt) of their rewards.
        saturated: share of prompts whose standard deviation is `flat` or less: they give no direction.
        ceiling: share of responses at or above the ceiling; None: no ceiling was given.
        length: correlation of reward and length within prompts; None: no lengths were given. NaN: one does not vary.
        distance: STARC distance from the held-out scorer; None: none was given.
        prompts: prompts with two or more responses, over which spread and saturation are counted.
    """

    spread: Estimate
    saturated: Estimate
    ceiling: Estimate | None
    length: Estimate | None
    distance: Estimate | None
    prompts: int

    def warnings(self, limits: DriftLimits | None = None) -> tuple[str, ...]:
        """A sentence for each sign whose value (not its interval) is at or beyond its limit, in the order of fields."""
        limits = limits or DriftLimits()
        told = (
            (self.saturated, limits.saturated, "of prompts {:.2f} have no spread of rewards"),
            (self.ceiling, limits.ceiling, "of responses {:.2f} are at the ceiling"),
            (self.length, limits.length, "rewards correlate with length within prompts by {:.2f}"),
            (self.distance, limits.distance, "the distance from the held-out scorer is {:.2f}"),
        )
        return tuple(
            f"{text.format(sign.value)} (limit {limit:g})"
            for sign, limit, text in told
            if sign is not None and sign.value >= limit  # NaN is not
        )


def reward_drift(
    reward: ArrayLike,
    prompt: ArrayLike,
    length: ArrayLike | None = None,
    held_out: ArrayLike | None = None,
    ceiling: float | None = None,
    flat: float = 0.0,
    *,
    bootstrap: Bootstrap = Bootstrap(),
) -> Drift:
    """Measure saturation, rewards at a ceiling, length preference and disagreement with another scorer on a batch.

    For each prompt x with two or more responses, std_x = sqrt(mean_x (r - mean_x)²); `spread` is the mean of std_x and
    `saturated` the share of std_x <= flat. Made for the question when a reward should be revised during training, which
    Meta Policy Optimization (arXiv 2504.20157) answers by the clock (every ten batches); these signs and their limits
    are not from the paper. Compare batches of the same prompts, and a number with that of the first batch.

    Offsets of prompts change nothing but the ceiling; a positive factor of all rewards is one of `spread` (give `flat`
    and `ceiling` the same) and changes nothing else.

    Args:
        reward: rewards of all responses of the batch [m].
        prompt: label of each response's prompt [m], the unit resampled.
        length: lengths of the responses in any unit [m]; None: not measured.
        held_out: rewards of the same by a scorer that is not optimized [m]; None: not measured.
        ceiling: the reward from which on a response is at the top; None: not measured.
        flat: the largest standard deviation that is none, 0 or more, in the reward's unit; 0: exactly equal rewards.
        bootstrap: of the intervals.

    Raises:
        DataError: if there are no rows, no prompt has two responses, or a number is not finite.
        ConfigError: if `flat` is negative or NaN, or `ceiling` is NaN.
        ValueError: if the arrays differ in length.
    """
    if not flat >= 0:
        raise ConfigError(f"flat is {flat}, expected 0 or more: the largest standard deviation that is none")
    if ceiling is not None and np.isnan(ceiling):
        raise ConfigError("ceiling is NaN, expected the reward from which on a response is at the top, or None")
    reward = finite_array(reward, "the reward of the responses")
    prompt = cluster_labels(prompt, len(reward))
    place = np.unique(prompt, return_inverse=True)[1]
    several = np.bincount(place) >= 2
    if not several.any():
        raise DataError(
            f"None of {len(several)} prompts has two responses, so nothing can be said of the differences between "
            "responses. Check that the prompt labels of one prompt are equal."
        )
    std = _std(reward, place)[several]
    labels = np.arange(len(std))
    return Drift(
        spread=clustered_mean(std, labels, bootstrap=bootstrap),
        saturated=clustered_mean(std <= flat, labels, bootstrap=bootstrap),
        ceiling=None if ceiling is None else clustered_mean(reward >= ceiling, place, bootstrap=bootstrap),
        length=None if length is None else length_correlation(reward, length, place, bootstrap=bootstrap),
        distance=None if held_out is None else starc_estimate(reward, held_out, place, bootstrap=bootstrap),
        prompts=int(several.sum()),
    )


def corrected_score(reward: ArrayLike, quality: ArrayLike, neutral: float = 3.0, offset: float = 0.2) -> Floats:
    """Rewards corrected by a quality that is not optimized, so that a reward gained by spoiling it counts against it.

    r (u - neutral) + offset, with u the mean of third-party quality scores: from GDRO (arXiv 2601.02036), which has
    neutral 3 on a scale from 1 to 5, and offset 0.2 (read in a summary of the paper, not in the paper). A reward r of
    0 gives `offset` whatever the quality; below the neutral quality a higher reward is *worse*. Neither an offset nor a
    factor of the rewards leaves the order of responses as it was: r is meant to be a share, such as that of a text
    that can be read.

    Args:
        reward: rewards [m], 0 or more: with negative ones, poor quality would raise the score.
        quality: quality of the same responses [m].
        neutral: the quality that is neither good nor bad, in its unit.
        offset: what every response gets.

    Returns:
        [m], float64.

    Raises:
        DataError: if there are no rows, a number is not finite or a reward is negative.
        ConfigError: if a setting is not finite.
        ValueError: if the arrays differ in length.
    """
    if not (np.isfinite(neutral) and np.isfinite(offset)):
        raise ConfigError(f"neutral is {neutral} and offset {offset}, expected finite numbers")
    reward = finite_array(reward, "the reward of the responses")
    quality = finite_array(quality, "the quality of the responses", len(reward))
    negative = np.flatnonzero(reward < 0)
    if len(negative):
        raise DataError(
            f"{len(negative)} of {len(reward)} rewards are negative, the first ({reward[negative[0]]}) in row "
            f"{negative[0]}: times a quality below {neutral} they would count as good. Map the rewards to 0 or more."
        )
    return reward * (quality - neutral) + offset


def _std(reward: Floats, place: NDArray[np.int64]) -> Floats:
    """Standard deviation of each prompt: exactly 0 for equal rewards, the same in any order, without overflow."""
    off = centered(reward, place)
    largest = np.zeros(int(place.max()) + 1)
    np.maximum.at(largest, place, np.abs(off))
    size = np.where(largest > 0, largest, 1.0)
    squares = (off / size[place]) ** 2
    order = np.lexsort((squares, place))
    return size * np.sqrt(np.bincount(place[order], weights=squares[order]) / np.bincount(place))
