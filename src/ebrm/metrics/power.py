"""Power of a paired comparison of two accuracies: what so many pairs could show, and how many would be needed.

McNemar's test compares the pairs that one reward ranks right and the other wrong. With a share d of such discordant
pairs and a difference δ of the accuracies, the mean difference of n independent pairs has the variance d / n without an
effect and (d - δ²) / n with it, so that a two-sided test finds it with power 1 - β if

    √n δ = z(1 - α/2) √d + z(1 - β) √(d - δ²)

(Connor, Biometrics 43, 1987; the far tail is left out). A difference δ needs discordant pairs, so d counts as at least
δ. Pairs of one prompt are not independent: n is divided by their design effect (Kish, "Survey Sampling", 1965).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import brentq
from scipy.stats import norm
from scipy.stats import t as student

from ebrm.errors import ConfigError
from ebrm.metrics.bootstrap import cluster_labels, cluster_sums, finite_array

#: With fewer pairs or prompts to measure on, nothing is said of a difference but that they are too few to tell.
FEW = 30
#: Differences below this are not told from 0.
_LEAST = 1e-9


def smallest_difference(
    discordant: float, pairs: int, *, design_effect: float = 1.0, power: float = 0.8, level: float = 0.95
) -> float:
    """The smallest difference of two accuracies, a share, that a paired test on so many pairs finds with `power`.

    NaN where there are too few pairs for any.

    Args:
        discordant: share of pairs that one reward ranks right and the other wrong, in [0, 1].
        pairs: number of pairs, 0 or more.
        design_effect: how many pairs are worth one independent one, above 0; see `design_effect`.
        power: chance to find the difference, from 0.5 to below 1.
        level: confidence level of the two-sided test, in (0, 1).

    Raises:
        ConfigError: a number outside its range.
    """
    z = _quantiles(discordant, design_effect, power, level)
    if pairs < 0:
        raise ConfigError(f"pairs is {pairs}, expected 0 or more")
    independent = pairs / design_effect
    if independent < _independent(1.0, discordant, z):
        return math.nan
    if independent >= _independent(_LEAST, discordant, z):
        return 0.0
    return float(brentq(lambda size: _independent(size, discordant, z) - independent, _LEAST, 1.0, xtol=1e-12))


def pairs_needed(
    difference: float, discordant: float, *, design_effect: float = 1.0, power: float = 0.8, level: float = 0.95
) -> int | None:
    """Number of pairs on which a paired test finds a `difference` of two accuracies, a share of either sign.

    None for a difference of 0, which no number of pairs shows. The inverse of `smallest_difference`, with its other
    arguments and errors.
    """
    z = _quantiles(discordant, design_effect, power, level)
    if not abs(difference) <= 1:
        raise ConfigError(f"difference is {difference!r}, expected a share between -1 and 1, such as 0.02")
    if abs(difference) < _LEAST:
        return None
    return math.ceil(design_effect * _independent(abs(difference), discordant, z) * (1 - 1e-12))


def smallest_mean(value: ArrayLike, *, power: float = 0.8, level: float = 0.95) -> float:
    """The smallest mean of independent differences [n] that a two-sided t-test finds with `power`, in their unit.

    (t(1 - α/2) + t(power)) s / √n with the t-distribution of n - 1 degrees of freedom and the deviation s of `value`.
    NaN where the values do not tell how they spread: fewer than two, or all equal.
    """
    value = finite_array(value, "the differences")
    _quantiles(0.0, 1.0, power, level)
    if len(value) < 2 or np.ptp(value) == 0:
        return math.nan
    quantiles = student.ppf([(1 + level) / 2, power], len(value) - 1).sum()
    return float(quantiles * value.std(ddof=1) / math.sqrt(len(value)))


def design_effect(value: ArrayLike, cluster: ArrayLike | None = None) -> float:
    """Design effect of clusters: variance of the mean of `value` [n] over that with independent rows.

    Σ_c (S_c - n_c m)² C / (C - 1) over Σ_i (v_i - m)² n / (n - 1), where S_c is the sum and n_c the number of rows of
    cluster c of C, and m the mean. Above 1 where the rows of a cluster are alike. 1 where there is nothing to tell it
    from: fewer than two clusters, or equal values.
    """
    value = finite_array(value, "the differences of the pairs")
    labels = cluster_labels(cluster, len(value))
    count, total = cluster_sums([np.ones(len(value)), value], labels).T
    mean = total.sum() / len(value)
    if len(count) < 2 or np.ptp(value) == 0:
        return 1.0
    alone = np.sort((value - mean) ** 2).sum() * len(value) / (len(value) - 1)
    together = np.sort((total - count * mean) ** 2).sum() * len(count) / (len(count) - 1)
    return float(together / alone)


def _independent(size: float, discordant: float, z: tuple[float, float]) -> float:
    """Independent pairs on which a difference of this size is found; falls with the size."""
    d = max(discordant, size)
    return ((z[0] * math.sqrt(d) + z[1] * math.sqrt(d - size * size)) / size) ** 2


def _quantiles(discordant: float, effect: float, power: float, level: float) -> tuple[float, float]:
    """Normal quantiles of the two-sided level and of the power; a ConfigError for a number outside its range."""
    if not 0 <= discordant <= 1:
        raise ConfigError(f"discordant is {discordant!r}, expected a share between 0 and 1")
    if not 0 < effect < math.inf:
        raise ConfigError(f"design_effect is {effect!r}, expected a number above 0")
    if not 0.5 <= power < 1:
        raise ConfigError(f"power is {power!r}, expected a share from 0.5 to below 1, such as 0.8")
    if not 0 < level < 1:
        raise ConfigError(f"level is {level!r}, expected a share between 0 and 1, such as 0.95")
    return float(norm.ppf((1 + level) / 2)), float(norm.ppf(power))
