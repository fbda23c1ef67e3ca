"""Power of a paired comparison: textbook values, simulated tests, and the two functions as inverses."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom, norm

from ebrm.errors import ConfigError, DataError
from ebrm.metrics import Bootstrap, clustered_mean, design_effect, pairs_needed, smallest_difference

shares = st.floats(0.001, 1.0)


def exact_power(difference: float, discordant: float, pairs: int) -> float:
    """Power of the exact two-sided McNemar test at 5%: a sum over the number of discordant pairs."""
    better = (discordant + difference) / 2 / discordant
    total = 0.0
    for flips in range(1, pairs + 1):
        fixed = np.arange(flips + 1)
        p = 2 * np.minimum(binom.cdf(fixed, flips, 0.5), binom.sf(fixed - 1, flips, 0.5))
        total += binom.pmf(flips, pairs, discordant) * binom.pmf(fixed, flips, better)[p <= 0.05].sum()
    return float(total)


def test_the_number_of_pairs_is_the_textbook_s() -> None:
    # Machin, Campbell, Tan and Tan, "Sample Size Tables for Clinical Studies", chapter on paired binary outcomes:
    # discordant shares s and t with odds ratio s / t give (z (ψ + 1) + z' √((ψ + 1)² - (ψ - 1)² π))² / ((ψ - 1)² π).
    for odds, discordant in ((2.0, 0.3), (4.0, 0.4), (1.2, 0.1)):
        z, z_power = 1.959964, 0.841621
        root = math.sqrt((odds + 1) ** 2 - (odds - 1) ** 2 * discordant)
        expected = (z * (odds + 1) + z_power * root) ** 2 / ((odds - 1) ** 2 * discordant)
        difference = discordant * (odds - 1) / (odds + 1)
        assert pairs_needed(difference, discordant) == math.ceil(expected)


def test_that_many_pairs_have_about_that_power_in_the_exact_test() -> None:
    pairs = pairs_needed(0.16, 0.3)
    assert pairs is not None
    assert exact_power(0.16, 0.3, pairs) == pytest.approx(0.8, abs=0.05)  # the exact test is conservative
    assert exact_power(0.16, 0.3, 2 * pairs) > 0.95


def test_intervals_over_prompts_exclude_zero_about_as_often_as_said() -> None:
    generator = np.random.default_rng(0)
    difference = smallest_difference(0.3, 400)
    fixed, broken = (0.3 + difference) / 2, (0.3 - difference) / 2
    found = [
        clustered_mean(
            generator.choice([1.0, -1.0, 0.0], size=400, p=[fixed, broken, 1 - 0.3]), bootstrap=Bootstrap(200)
        ).low
        > 0
        for _ in range(300)
    ]
    assert np.mean(found) == pytest.approx(0.8, abs=0.07)


@given(discordant=shares, pairs=st.integers(5, 10**6), effect=st.floats(0.5, 4))
def test_the_smallest_difference_and_the_number_of_pairs_are_inverses(
    discordant: float, pairs: int, effect: float
) -> None:
    size = smallest_difference(discordant, pairs, design_effect=effect)
    if math.isnan(size):
        assert (pairs_needed(1.0, discordant, design_effect=effect) or 0) > pairs
    else:
        needed = pairs_needed(size, discordant, design_effect=effect)
        assert needed is not None and abs(needed - pairs) <= 1 + 1e-6 * pairs
        assert needed == pairs_needed(-size, discordant, design_effect=effect)


@given(discordant=shares, pairs=st.integers(8, 10**5), power=st.floats(0.5, 0.95))
def test_more_pairs_less_noise_and_less_power_find_smaller_differences(
    discordant: float, pairs: int, power: float
) -> None:
    size = smallest_difference(discordant, pairs, power=power)
    assert smallest_difference(discordant, 2 * pairs, power=power) < size
    assert smallest_difference(discordant / 2, pairs, power=power) <= size + 1e-9
    assert smallest_difference(discordant, pairs, power=power, level=0.9) < size
    assert smallest_difference(discordant, pairs, power=0.97) > size
    assert smallest_difference(discordant, 2 * pairs, power=power, design_effect=2.0) == pytest.approx(size)


def test_without_a_flip_a_difference_needs_flips_of_its_own_size() -> None:
    # All discordant pairs point one way: n δ = (z + z' √(1 - δ))².
    size = smallest_difference(0.0, 100)
    z, z_power = norm.ppf(0.975), norm.ppf(0.8)
    assert 100 * size == pytest.approx((z + z_power * math.sqrt(1 - size)) ** 2)
    assert pairs_needed(0.05, 0.0) == pairs_needed(0.05, 0.05)


def test_a_difference_of_zero_is_never_shown_and_too_few_pairs_show_none() -> None:
    assert pairs_needed(0.0, 0.2) is None
    assert math.isnan(smallest_difference(0.2, 3)) and math.isnan(smallest_difference(0.2, 0))
    assert not math.isnan(smallest_difference(0.2, 4))


def test_the_design_effect_is_that_of_the_variance_over_clusters() -> None:
    generator = np.random.default_rng(1)
    value = generator.normal(size=300)
    assert design_effect(value) == pytest.approx(1)
    # Each prompt's pairs are copies: three pairs are worth one (but for the C / (C - 1) of so many clusters).
    cluster = np.repeat(np.arange(300), 3)
    assert design_effect(np.repeat(value, 3), cluster) == pytest.approx(3, rel=0.01)
    # Equal clusters of opposite values: the mean does not vary at all.
    assert design_effect([1.0, -1.0] * 10, np.repeat(np.arange(10), 2)) == pytest.approx(0, abs=1e-12)
    several = np.repeat(generator.normal(size=100), 3) + generator.normal(size=300)
    draws = clustered_mean(several, np.repeat(np.arange(100), 3), bootstrap=Bootstrap(4000))
    alone = clustered_mean(several, bootstrap=Bootstrap(4000))
    ratio = (draws.high - draws.low) ** 2 / (alone.high - alone.low) ** 2
    assert design_effect(several, np.repeat(np.arange(100), 3)) == pytest.approx(ratio, rel=0.15)


def test_where_clusters_tell_nothing_the_design_effect_is_one() -> None:
    assert design_effect([1.0, 0.0, 1.0], [5, 5, 5]) == 1
    assert design_effect([0.1] * 6, [0, 0, 1, 1, 2, 2]) == 1
    assert design_effect([0.3]) == 1


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"discordant": 1.1}, "discordant is 1.1"),
        ({"discordant": math.nan}, "discordant is nan"),
        ({"pairs": -1}, "pairs is -1"),
        ({"design_effect": 0.0}, "design_effect is 0.0"),
        ({"power": 0.4}, "power is 0.4"),
        ({"power": 1.0}, "power is 1.0"),
        ({"level": 1.0}, "level is 1.0"),
    ],
)
def test_numbers_outside_their_range_are_refused(changes: dict[str, float], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        smallest_difference(**({"discordant": 0.2, "pairs": 100} | changes))  # type: ignore[arg-type]


def test_other_bad_numbers_are_refused() -> None:
    with pytest.raises(ConfigError, match="difference is 1.5"):
        pairs_needed(1.5, 0.2)
    with pytest.raises(ConfigError, match="difference is nan"):
        pairs_needed(math.nan, 0.2)
    with pytest.raises(DataError, match="not finite"):
        design_effect([1.0, math.nan])
    with pytest.raises(ValueError, match="cluster labels"):
        design_effect([1.0, 2.0], [1])
