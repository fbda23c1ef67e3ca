"""How different two reward functions are, once all that cannot change the order of responses is taken out.

STARC, a standardized reward comparison (Skalse et al., arXiv 2309.15257): canonicalize both rewards, bring them to unit
norm, and take the norm of the difference. Here an episode is one step: the prompt is the state, the response the
action. Then the value-adjusted canonicalization subtracts from each reward the mean over its prompt's responses,
c(r)(x, y) = r(x, y) - Σ_y' π(y' | x) r(x, y'), and with the L2 norm the distance is sqrt(2 (1 - ρ)), ρ the Pearson
correlation within prompts: 0 for rewards that differ by a positive factor and an offset of each prompt, sqrt(2) for
unrelated ones, 2 for opposite ones.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ebrm.errors import DataError
from ebrm.metrics.bootstrap import (
    Bootstrap,
    Estimate,
    cluster_sums,
    finite_array,
    resample_sums,
)
from ebrm.metrics.within import centered, check_nested

Floats = NDArray[np.float64]


def starc_distance(first: ArrayLike, second: ArrayLike, prompt: ArrayLike, weight: ArrayLike | None = None) -> float:
    """STARC distance (L2) of two rewards of the same responses, in [0, 2].

    A reward that is constant within every prompt has no order to compare: it is at distance 1 from every reward that
    is not (the norm of a unit vector), and at distance 0 from another such reward. Prompts with one response say
    nothing and add nothing.

    Args:
        first: rewards of all responses under the one function [m].
        second: rewards of the same responses under the other [m].
        prompt: one label a response [m], of any sortable type.
        weight: how much each response counts, in its prompt's mean and in the norm, π(y | x) times the prompt's
            weight [m]; not negative; None: all the same.

    Raises:
        DataError: if there are no responses, a number is not finite, a weight is negative or all are zero.
        ValueError: if the arrays differ in length.
    """
    one, two = _standard(first, second, prompt, weight)
    return float(np.linalg.norm(np.sort(np.abs(one - two))))  # sorted: the same in any order of rows


def starc_estimate(
    first: ArrayLike,
    second: ArrayLike,
    prompt: ArrayLike,
    weight: ArrayLike | None = None,
    cluster: ArrayLike | None = None,
    *,
    bootstrap: Bootstrap = Bootstrap(),
) -> Estimate:
    """`starc_distance` with its interval over prompts.

    Args:
        first: see `starc_distance`.
        second: see `starc_distance`.
        prompt: see `starc_distance`.
        weight: see `starc_distance`.
        cluster: label of what is resampled [m]; None: the prompts.
        bootstrap: of the intervals.

    Raises:
        DataError: see `starc_distance`.
        ValueError: see `starc_distance`; or if a prompt is in several clusters.
    """
    value = starc_distance(first, second, prompt, weight)
    one, two = _standard(first, second, prompt, weight)
    cluster = np.asarray(prompt if cluster is None else cluster)
    check_nested(prompt, cluster)
    sums = cluster_sums([one**2, two**2, (two - one) ** 2, one * (two - one)], cluster)
    draws = resample_sums(sums, bootstrap=bootstrap)
    return bootstrap.estimate(value, _distance(draws))


def _standard(
    first: ArrayLike, second: ArrayLike, prompt: ArrayLike, weight: ArrayLike | None
) -> tuple[Floats, Floats]:
    """Both rewards centered within prompts, times the root of the weight, of norm 1 or all zero."""
    first = finite_array(first, "the first reward")
    second = finite_array(second, "the second reward", len(first))
    prompt = np.asarray(prompt)
    if prompt.shape != first.shape:
        raise ValueError(f"{len(first)} rewards and {len(prompt)} prompt labels")
    weight = np.ones(len(first)) if weight is None else finite_array(weight, "the weight", len(first))
    if (weight < 0).any() or not (weight > 0).any():
        raise DataError("The weights of the responses must not be negative, nor all zero.")
    one, two = (np.sqrt(weight) * _unit(centered(reward, prompt, weight)) for reward in (first, second))
    return _unit(one), _unit(two)


def _unit(value: Floats) -> Floats:
    """The vector at norm 1, or as it is if it is zero; scaled first, so that squares neither overflow nor vanish."""
    largest = np.abs(value).max()
    if largest == 0:
        return value
    scaled = value / largest
    return scaled / np.linalg.norm(np.sort(np.abs(scaled)))


def _distance(sums: Floats) -> Floats:
    """Distances [b] from [b, (Σ x², Σ y², Σ (y - x)², Σ x (y - x))] of drawn rows.

    |y/|y| - x/|x||² is written by y - x, which is exactly zero for equal rewards, and not as 2 (1 - ρ), which is not.
    """
    xx, yy, dd, xd = sums.T
    a, b = (np.divide(1, np.sqrt(square), out=np.zeros(len(sums)), where=square > 0) for square in (yy, xx))
    square = a**2 * dd + 2 * a * (a - b) * xd + (a - b) ** 2 * xx
    return np.sqrt(square.clip(0, 4))
