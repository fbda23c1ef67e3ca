from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ebrm.errors import ConfigError, DataError
from ebrm.metrics import Bootstrap, Estimate, PositiveSpread, positive_spread


def simulate(seed: int, prompts: int = 12) -> tuple[np.ndarray, ...]:
    generator = np.random.default_rng(seed)
    prompt = np.repeat(np.arange(prompts), generator.integers(2, 7, prompts))
    positive = generator.random(len(prompt)) < 0.6
    positive[:2] = True
    return positive + generator.normal(size=len(prompt)), positive, prompt


def numbers(found: PositiveSpread) -> list[float]:
    """Values and intervals, variance first."""
    parts: list[Estimate] = [found.variance, found.gap, found.relative]
    return [number for part in parts for number in (part.value, part.low, part.high)]


def test_by_hand() -> None:
    # Prompt a: good 1 and 3, bad 0. Prompt b: good 7, 7, 10, bad 4 and 6. Prompt c: one good response, no spread.
    found = positive_spread(
        [1, 3, 0, 7, 7, 10, 4, 6, 5, 1],
        [1, 1, 0, 1, 1, 1, 0, 0, 1, 0],
        list("aaabbbbbcc"),
    )
    assert found.variance.value == pytest.approx((2 + 6) / (1 + 2))
    assert found.gap.value == pytest.approx(((2 - 0) + (8 - 5) + (5 - 1)) / 3)
    assert found.relative.value == pytest.approx(np.sqrt(8 / 3) / 3)
    assert (found.positives, found.prompts) == (5, 2)
    biased = positive_spread([1, 3, 7, 7, 10], [1] * 5, list("aabbb"), ddof=0)
    assert biased.variance.value == pytest.approx(8 / 5) and np.isnan(biased.gap.value)


def test_the_gap_does_not_depend_on_how_many_are_good() -> None:
    positive = np.array([True] * 1 + [False] * 9 + [True] * 9 + [False] * 1)
    assert positive_spread(3.0 * positive, positive, np.repeat([0, 1], 10)).gap.value == pytest.approx(3)


def test_one_prompt_is_the_variance_of_the_whole_set() -> None:
    reward, positive, prompt = simulate(0)
    found = positive_spread(reward, positive, np.zeros(len(reward)))
    assert found.variance.value == pytest.approx(np.var(reward[positive], ddof=1))
    assert found.gap.value == pytest.approx(reward[positive].mean() - reward[~positive].mean())
    assert np.isnan(found.variance.low)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(1e-2, 1e2))
def test_offsets_and_order_do_not_matter_and_a_factor_is_one(seed: int, factor: float) -> None:
    reward, positive, prompt = simulate(seed)
    generator = np.random.default_rng(seed)
    found = numbers(positive_spread(reward, positive, prompt, bootstrap=Bootstrap(30)))
    moved = factor * reward + generator.normal(size=12)[prompt] * 50
    scale = np.repeat([factor**2, factor, 1.0], 3)
    got = np.array(numbers(positive_spread(moved, positive, prompt, bootstrap=Bootstrap(30))))
    assert got[[0, 3]] == pytest.approx((scale * found)[[0, 3]], rel=1e-6)
    assert got[6] == pytest.approx(found[6], rel=1e-6)
    order = generator.permutation(len(prompt))
    again = positive_spread(reward[order], positive[order], prompt[order], bootstrap=Bootstrap(30))
    assert numbers(again) == pytest.approx(found, rel=1e-9, nan_ok=True)


def test_equal_good_rewards_have_no_spread() -> None:
    found = positive_spread([0.1, 0.1, 0.1, 0, 7, 7], [1, 1, 1, 0, 1, 1], [0, 0, 0, 0, 1, 1])
    assert found.variance.value == 0 == found.relative.value
    constant = positive_spread([3.0] * 4, [1, 1, 0, 0], [0] * 4)
    assert constant.variance.value == 0 == constant.gap.value and np.isnan(constant.relative.value)


@pytest.mark.parametrize("size", [1e-100, 1e100])
def test_the_size_of_rewards_does_not_break_it(size: float) -> None:
    reward, positive, prompt = simulate(5)
    one, two = (positive_spread(factor * reward, positive, prompt).relative for factor in (1.0, size))
    assert (two.value, two.low) == pytest.approx((one.value, one.low))


def test_intervals_cover_the_truth() -> None:
    hits = 0
    for seed in range(200):
        reward, positive, prompt = simulate(seed, prompts=120)
        hits += not positive_spread(reward, positive, prompt, bootstrap=Bootstrap(300, seed=seed)).gap.excludes(1.0)
    assert 180 <= hits <= 199


def test_bad_input_is_named() -> None:
    with pytest.raises(DataError, match="None of 2 prompts has two good responses"):
        positive_spread([1, 2], [1, 1], ["a", "b"])
    with pytest.raises(DataError, match="the reward of the responses holds 1 of 2.* row 1"):
        positive_spread([1, np.nan], [1, 1], ["a", "a"])
    with pytest.raises(DataError, match="whether responses are good: 1 of 2 are neither"):
        positive_spread([1, 2], [1, 2], ["a", "a"])
    with pytest.raises(ConfigError, match="ddof is 2"):
        positive_spread([1, 2], [1, 1], ["a", "a"], ddof=2)
    with pytest.raises(ValueError, match="cluster labels"):
        positive_spread([1, 2], [1, 1], ["a"])
    with pytest.raises(ValueError, match="in several clusters"):
        positive_spread([1, 2], [1, 1], ["a", "a"], cluster=[0, 1])
