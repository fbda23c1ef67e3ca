"""Centering within prompts, length, spread of good responses, STARC distance and drift."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.metrics.shared import NAN, coverage, numbers

from ebrm.errors import ConfigError, DataError
from ebrm.metrics import (
    Bootstrap,
    length_correlation,
    length_matched,
    positive_spread,
    reward_drift,
    starc_distance,
    starc_estimate,
)
from ebrm.metrics.within import centered, check_nested


def test_centered_by_hand() -> None:
    assert centered([1, 5, 3, 10], ["a", "b", "a", "b"]).tolist() == [-1, -2.5, 1, 2.5]
    assert centered([1, 5, 3], ["a", "a", "a"], [1, 1, 2]).tolist() == [-2, 2, 0]
    assert centered([1, 5, 3], ["a", "a", "b"], [0, 0, 1]).tolist() == [0, 0, 0]  # no weight: nothing to say
    assert centered([], []).tolist() == []


@given(st.floats(-1e6, 1e6), st.integers(1, 9), st.floats(0.1, 10))
def test_equal_values_are_exactly_zero(value: float, number: int, weight: float) -> None:
    assert (centered(np.full(number, value), np.zeros(number), np.linspace(weight, 1, number)) == 0).all()


@given(st.integers(0, 2**32 - 1))
def test_centered_does_not_depend_on_the_order_of_rows(seed: int) -> None:
    generator = np.random.default_rng(seed)
    value, group, weight = generator.normal(size=40), generator.integers(0, 9, 40), generator.random(40)
    found, order = centered(value, group, weight), generator.permutation(40)
    assert (found[order] == centered(value[order], group[order], weight[order])).all()
    for label in np.unique(group):
        rows = group == label
        assert np.average(found[rows], weights=weight[rows]) == pytest.approx(0, abs=1e-12)
        assert np.ptp(value[rows] - found[rows]) == pytest.approx(0, abs=1e-12)


def test_groups_must_lie_in_one_cluster() -> None:
    check_nested([1, 1, 2, 3], ["x", "x", "y", "x"])
    check_nested([], [])
    with pytest.raises(ValueError, match="in several clusters"):
        check_nested([1, 1, 2], ["x", "y", "y"])
    with pytest.raises(ValueError, match="2 rows and 1 cluster"):
        check_nested([1, 2], ["x"])


def lengths(generator: np.random.Generator, items: int, slope: float = 0.3) -> tuple[np.ndarray, ...]:
    """Reward, length and item; an item's slope differs from the mean one, so that its responses go together."""
    item = np.repeat(np.arange(items), 2 + generator.integers(0, 4, items))
    length = 20 * generator.random(items)[item] + generator.normal(size=len(item))
    own = slope + 0.5 * generator.normal(size=items)
    reward = 9 * generator.normal(size=items)[item] + own[item] * length + generator.normal(size=len(item))
    return reward, length, item


def test_correlation_is_within_items() -> None:
    # Between items the longer one has the lower rewards; within each, the longer response the higher one.
    found = length_correlation([5, 6, 1, 2], [10, 20, 110, 120], ["a", "a", "b", "b"])
    assert found.value == 1 and np.corrcoef([5, 6, 1, 2], [10, 20, 110, 120])[0, 1] < -0.9


def test_correlation_by_numpy() -> None:
    reward, length, item = lengths(np.random.default_rng(0), 50)
    inside = [np.concatenate([x[item == i] - x[item == i].mean() for i in range(50)]) for x in (reward, length)]
    expected = np.corrcoef(*inside)[0, 1]
    assert length_correlation(reward, length, item).value == pytest.approx(expected)
    assert length_correlation(-reward, length, item).value == pytest.approx(-expected)


def test_correlation_has_none_where_a_side_does_not_vary() -> None:
    for reward in ([0.1, 0.1, 0.1, 0.7, 0.7], [1e300, 1e300, 1e300, 0.0, 0.0]):
        found = length_correlation(reward, [1, 2, 3, 4, 5], list("aaabb"))
        assert np.isnan([found.value, found.low, found.high]).all()
    assert np.isnan(length_correlation([1, 2, 3], [1, 2, 3], list("abc")).value)  # one response an item
    huge = length_correlation([-1e200, 1e200, 2e200, 0], [1, 2, 2, 1], list("aabb"))
    assert huge.value == pytest.approx(1)


def test_correlation_intervals_cover_the_truth() -> None:
    truth = length_correlation(*lengths(np.random.default_rng(2), 400_000), bootstrap=Bootstrap(1)).value
    generator = np.random.default_rng(3)
    found = [length_correlation(*lengths(generator, 300), bootstrap=Bootstrap(300, seed=n)) for n in range(400)]
    assert 0.93 < coverage(found, truth) < 0.97


def test_matched_pairs_by_hand() -> None:
    first, second = [100, 100, 100, 0, 0, 90], [110, 111, 95, 0, 1, 100]
    accuracy, pairs = length_matched([1, 0, 0, 1, 0, 1], first, second, list("abcdef"))
    # Matched: 100/110, 100/95 and 0/0; 90/100 is 1.11 times as long.
    assert pairs == 3 and accuracy.value == pytest.approx(2 / 3)
    assert length_matched([1, 0, 0, 1, 0, 1], second, first, list("abcdef")) == (accuracy, pairs)
    assert length_matched([1, 0, 0, 1, 0, 1], first, second, list("abcdef"), ratio=1)[1] == 1


@given(st.integers(1, 10_000), st.sampled_from([1.1, 1.13, 1.3, 1.7]))
def test_a_pair_on_the_boundary_is_matched(hundreds: int, ratio: float) -> None:
    longer = round(100 * hundreds * ratio)  # 1.13 times 100 is below 113 in floating point
    assert length_matched([1.0], [100 * hundreds], [longer], ["a"], ratio)[1] == 1
    assert length_matched([1.0], [100 * hundreds], [longer + 1], ["a"], ratio)[1] == 0


def test_no_matched_pair_has_no_accuracy() -> None:
    accuracy, pairs = length_matched([1, 0], [1, 2], [5, 9], ["a", "b"])
    assert pairs == 0 and np.isnan([accuracy.value, accuracy.low, accuracy.high]).all()


def good(seed: int, prompts: int = 12) -> tuple[np.ndarray, ...]:
    generator = np.random.default_rng(seed)
    prompt = np.repeat(np.arange(prompts), generator.integers(2, 7, prompts))
    positive = generator.random(len(prompt)) < 0.6
    positive[:2] = True
    return positive + generator.normal(size=len(prompt)), positive, prompt


def test_spread_by_hand() -> None:
    # Prompt a: good 1 and 3, bad 0. Prompt b: good 7, 7, 10, bad 4 and 6. Prompt c: one good response, no spread.
    found = positive_spread([1, 3, 0, 7, 7, 10, 4, 6, 5, 1], [1, 1, 0, 1, 1, 1, 0, 0, 1, 0], list("aaabbbbbcc"))
    assert found.variance.value == pytest.approx((2 + 6) / (1 + 2))
    assert found.gap.value == pytest.approx(((2 - 0) + (8 - 5) + (5 - 1)) / 3)
    assert found.relative.value == pytest.approx(np.sqrt(8 / 3) / 3)
    assert (found.positives, found.prompts) == (5, 2)
    biased = positive_spread([1, 3, 7, 7, 10], [1] * 5, list("aabbb"), ddof=0)
    assert biased.variance.value == pytest.approx(8 / 5) and np.isnan(biased.gap.value)


def test_the_gap_does_not_depend_on_how_many_are_good() -> None:
    positive = np.array([True] * 1 + [False] * 9 + [True] * 9 + [False] * 1)
    assert positive_spread(3.0 * positive, positive, np.repeat([0, 1], 10)).gap.value == pytest.approx(3)


def test_the_spread_of_one_prompt_is_the_variance_of_the_whole_set() -> None:
    reward, positive, prompt = good(0)
    found = positive_spread(reward, positive, np.zeros(len(reward)))
    assert found.variance.value == pytest.approx(np.var(reward[positive], ddof=1))
    assert found.gap.value == pytest.approx(reward[positive].mean() - reward[~positive].mean())
    assert np.isnan(found.variance.low)


def test_equal_good_rewards_have_no_spread() -> None:
    found = positive_spread([0.1, 0.1, 0.1, 0, 7, 7], [1, 1, 1, 0, 1, 1], [0, 0, 0, 0, 1, 1])
    assert found.variance.value == 0 == found.relative.value
    constant = positive_spread([3.0] * 4, [1, 1, 0, 0], [0] * 4)
    assert constant.variance.value == 0 == constant.gap.value and np.isnan(constant.relative.value)


@pytest.mark.parametrize("size", [1e-100, 1e100])
def test_the_size_of_rewards_does_not_break_the_relative_spread(size: float) -> None:
    reward, positive, prompt = good(5)
    one, two = (positive_spread(factor * reward, positive, prompt).relative for factor in (1.0, size))
    assert numbers(two) == pytest.approx(numbers(one))


def test_a_factor_is_one_of_the_gap_and_a_square_of_the_variance() -> None:
    reward, positive, prompt = good(3)
    one, two = (positive_spread(factor * reward, positive, prompt, bootstrap=Bootstrap(30)) for factor in (1.0, 7.0))
    scale = np.repeat([49.0, 7.0, 1.0], 3)
    assert numbers(two)[:9] == pytest.approx((scale * numbers(one)[:9]).tolist())


def test_spread_intervals_cover_the_truth() -> None:
    found = [positive_spread(*good(seed, prompts=120), bootstrap=Bootstrap(300, seed=seed)).gap for seed in range(200)]
    assert 0.9 <= coverage(found, 1.0) <= 0.995


def two_rewards(generator: np.random.Generator, prompts: int, noise: float = 0.7) -> tuple[np.ndarray, ...]:
    """Two rewards of the same responses, some prompts' far more alike than others'; and the prompts."""
    prompt = np.repeat(np.arange(prompts), 1 + generator.integers(1, 5, prompts))
    first = generator.normal(size=prompts)[prompt] + generator.normal(size=len(prompt))
    own = noise * generator.choice([0.5, 1.0, 1.4], prompts)[prompt]
    return first, first + own * generator.normal(size=len(prompt)), prompt


@pytest.mark.parametrize("offset", [0.0, 5.0, -1e3])
def test_a_known_distance(offset: float) -> None:
    prompt = ["a", "a", "b", "b"]
    first, second = np.array([1, -1, 2, -2]), np.array([1, -1, -1, 1]) + np.array([0, 0, offset, offset])
    assert starc_distance(first, second, prompt) == pytest.approx(1.6224844, abs=1e-7)
    rho = -2 / np.sqrt(10 * 4)
    assert starc_distance(first, second, prompt) == pytest.approx(np.sqrt(2 * (1 - rho)))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(1e-3, 1e3), st.floats(-50, 50))
def test_affine_maps_of_each_prompt_are_at_distance_zero(seed: int, factor: float, offset: float) -> None:
    generator = np.random.default_rng(seed)
    first, second, prompt = two_rewards(generator, 12)
    moved = factor * first + offset * generator.normal(size=12)[prompt]
    assert starc_distance(first, moved, prompt) == pytest.approx(0, abs=1e-7)
    assert starc_distance(first, -moved, prompt) == pytest.approx(2, abs=1e-7)
    assert starc_distance(first, second, prompt) == pytest.approx(starc_distance(moved, second, prompt), abs=1e-7)


def test_equal_rewards_are_at_distance_zero_and_opposite_ones_at_two_exactly() -> None:
    first, _, prompt = two_rewards(np.random.default_rng(0), 30)
    assert starc_distance(first, first, prompt) == 0
    assert starc_distance(first, -first, prompt) == pytest.approx(2, abs=1e-15)
    assert starc_distance(first, 4 * first, prompt) == 0
    # One factor for all prompts: a factor of its own for each prompt changes what a policy would trade off.
    assert starc_distance(first, first * (1 + prompt % 2), prompt) > 0.1


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_it_is_a_metric_on_standardized_rewards(seed: int) -> None:
    generator = np.random.default_rng(seed)
    first, second, prompt = two_rewards(generator, 12)
    third = generator.normal(size=len(prompt)) * (seed % 3 > 0)  # now and then constant
    weight = generator.random(len(prompt)) + 0.01
    d = [
        starc_distance(one, two, prompt, weight)
        for one, two in ((first, second), (second, third), (first, third), (second, first))
    ]
    assert d[0] == d[3] and all(0 <= one <= 2 for one in d)
    assert d[2] <= d[0] + d[1] + 1e-12 and d[0] <= d[1] + d[2] + 1e-12
    order = generator.permutation(len(prompt))
    assert d[0] == pytest.approx(starc_distance(first[order], second[order], prompt[order], weight[order]), rel=1e-14)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_weights_are_numbers_of_copies(seed: int) -> None:
    generator = np.random.default_rng(seed)
    first, second, prompt = two_rewards(generator, 8)
    copies = generator.integers(0, 4, len(prompt))
    copies[0] = 1
    repeated = [np.repeat(array, copies) for array in (first, second, prompt)]
    assert starc_distance(first, second, prompt, copies) == pytest.approx(starc_distance(*repeated), abs=1e-9)


def test_constant_rewards_are_at_distance_one_from_others_and_zero_from_each_other() -> None:
    prompt = np.repeat(np.arange(4), 3)
    constant, other = 0.1 * prompt, np.arange(12.0) ** 2  # constant within each prompt
    assert starc_distance(constant, other, prompt) == starc_distance(other, constant, prompt) == 1
    assert starc_distance(constant, -7 * constant, prompt) == 0
    assert starc_distance([3, 4], [1, 9], ["a", "b"]) == 0  # one response a prompt: nothing to order


def test_prompts_with_one_response_add_nothing() -> None:
    first, second, prompt = two_rewards(np.random.default_rng(1), 9)
    more = [np.append(array, value) for array, value in ((first, 50.0), (second, -50.0), (prompt, 99))]
    assert starc_distance(*more) == pytest.approx(starc_distance(first, second, prompt), rel=1e-14)


@pytest.mark.parametrize("size", [1e-200, 1e200])
def test_the_size_of_rewards_does_not_matter(size: float) -> None:
    first, second, prompt = two_rewards(np.random.default_rng(2), 9)
    assert starc_distance(size * first, second, prompt) == pytest.approx(starc_distance(first, second, prompt))
    assert starc_estimate(size * first, second, prompt, bootstrap=Bootstrap(9)).low > 0.1


def test_unrelated_rewards_are_at_the_root_of_two() -> None:
    generator = np.random.default_rng(3)
    prompt = np.arange(200_000) // 4
    distance = starc_distance(generator.normal(size=200_000), generator.normal(size=200_000), prompt)
    assert distance == pytest.approx(np.sqrt(2), abs=0.01)


def test_draws_are_distances_of_drawn_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every resample, put together row by row, has the distance that the sums say."""
    first, second, prompt = two_rewards(np.random.default_rng(4), 6)
    seen: list[np.ndarray] = []

    def take(self: Bootstrap, value: float, draws: np.ndarray) -> None:
        seen.append(draws)

    def draw(sums: np.ndarray, *, bootstrap: Bootstrap) -> np.ndarray:
        return np.stack([sums[list(drawn)].sum(axis=0) for drawn in chosen])

    chosen = [(0, 0, 1, 3, 5, 5), (2, 2, 2, 2, 2, 2), (0, 1, 2, 3, 4, 5)]
    monkeypatch.setattr("ebrm.metrics.bootstrap.Bootstrap.estimate", take)
    monkeypatch.setattr("ebrm.metrics.within.resample_sums", draw)
    starc_estimate(first, second, prompt)
    for found, drawn in zip(seen[0], chosen, strict=True):
        rows = [np.flatnonzero(prompt == number) for number in drawn]
        copies = np.repeat(np.arange(6), [len(part) for part in rows])  # each copy a prompt of its own
        index = np.concatenate(rows)
        assert found == pytest.approx(starc_distance(first[index], second[index], copies))


def test_equal_rewards_have_an_interval_of_zero() -> None:
    first, _, prompt = two_rewards(np.random.default_rng(5), 40)
    assert numbers(starc_estimate(first, first, prompt)) == [0, 0, 0]


def test_distance_intervals_cover_the_truth() -> None:
    truth = starc_distance(*two_rewards(np.random.default_rng(6), 400_000))
    generator = np.random.default_rng(8)
    found = [starc_estimate(*two_rewards(generator, 300), bootstrap=Bootstrap(600, seed=n)) for n in range(500)]
    assert 0.93 < coverage(found, truth) < 0.97


def test_drift_by_hand() -> None:
    found = reward_drift([1, 3, 5, 5, 9], list("aabbc"), length=[1, 2, 1, 2, 7], ceiling=5.0)
    assert found.spread.value == 0.5  # std 1 and 0; the one response of c has none
    assert found.saturated.value == 0.5 and found.prompts == 2
    assert found.ceiling is not None and found.ceiling.value == 0.6
    assert found.length is not None and found.length.value == pytest.approx(1 / np.sqrt(2))
    assert found.distance is None
    assert reward_drift([1, 3, 5, 6], list("aabb"), flat=0.5).saturated.value == 0.5  # the end belongs to it


def test_constant_rewards_are_saturated() -> None:
    found = reward_drift([0.1] * 6, np.repeat([0, 1], 3), length=np.arange(6), held_out=np.arange(6.0))
    assert found.saturated.value == 1 and found.spread.value == 0
    assert found.length is not None and np.isnan(found.length.value)
    assert found.distance is not None and found.distance.value == 1


def test_a_reward_that_is_length_correlates_by_one() -> None:
    length = np.array([3.0, 9.0, 4.0, 1.0, 2.0])
    found = reward_drift(length, [0, 0, 1, 1, 1], length, held_out=-length, ceiling=1.0)
    assert found.length is not None and found.length.value == pytest.approx(1)
    assert found.distance is not None and found.distance.value == pytest.approx(2)


def test_the_distance_of_a_drift_is_starc_and_a_factor_is_one_of_the_spread() -> None:
    prompt = np.repeat(np.arange(15), 1 + np.arange(15) % 4)
    generator = np.random.default_rng(0)
    reward = generator.integers(0, 4, len(prompt)) / 2
    other = reward + generator.normal(size=len(prompt))
    one, two = (
        reward_drift(factor * reward, prompt, None, other, factor * 1.5, factor * 0.25, bootstrap=Bootstrap(30))
        for factor in (1, 8)
    )
    assert one.distance is not None and one.distance.value == starc_distance(reward, other, prompt)
    scale = np.array([8] * 3 + [1] * 10)
    assert numbers(two) == pytest.approx((scale * numbers(one)).tolist())


@pytest.mark.parametrize("size", [1e-200, 1e200])
def test_the_size_of_rewards_does_not_break_the_spread(size: float) -> None:
    assert reward_drift([size, 3 * size], ["a", "a"]).spread.value == pytest.approx(size)


def test_bad_input_is_named() -> None:
    nested = [
        lambda: length_correlation([0, 1], [1, 2], ["a", "a"], ["x", "y"]),
        lambda: positive_spread([1, 2], [1, 1], ["a", "a"], cluster=[0, 1]),
        lambda: starc_estimate([1, 2], [1, 2], ["a", "a"], cluster=["x", "y"]),
    ]
    for call in nested:
        with pytest.raises(ValueError, match="in several clusters"):
            call()
    with pytest.raises(DataError, match="1 of 2 pairs have a negative length, the first in row 1"):
        length_matched([1, 1], [1, 1], [1, -1], ["a", "b"])
    for ratio in (0.9, NAN):
        with pytest.raises(ValueError, match="expected 1 or more"):
            length_matched([1], [1], [1], ["a"], ratio)
    with pytest.raises(DataError, match="None of 2 prompts has two good responses"):
        positive_spread([1, 2], [1, 1], ["a", "b"])
    with pytest.raises(ConfigError, match="ddof is 2"):
        positive_spread([1, 2], [1, 1], ["a", "a"], ddof=2)
    for weight in ([1, -1], [0, 0]):
        with pytest.raises(DataError, match="must not be negative, nor all zero"):
            starc_distance([1, 2], [1, 2], ["a", "a"], weight)
    with pytest.raises(DataError, match="None of 2 prompts has two responses"):
        reward_drift([1, 2], ["a", "b"])
    for settings_ in ({"flat": -1.0}, {"flat": NAN}, {"ceiling": NAN}):
        with pytest.raises(ConfigError, match="expected"):
            reward_drift([1, 2], ["a", "a"], **settings_)


@pytest.mark.parametrize("norm", [1, 2, np.inf])
def test_starc_in_every_norm_knows_no_offset_of_a_prompt_and_no_scale(norm):
    draws = np.random.default_rng(3)
    prompt, weight = np.arange(12) % 3, draws.random(12)
    first, second, third = draws.normal(size=(3, 12))
    moved = 3 * first + draws.normal(size=3)[prompt]
    far = lambda a, b: starc_distance(a, b, prompt, weight, norm)  # noqa: E731
    assert far(first, moved) == pytest.approx(0, abs=1e-7) and far(first, -moved) == pytest.approx(2)
    assert far(first, second) == far(second, first) <= far(first, third) + far(third, second)
    assert far(first, 1.0 * prompt) == pytest.approx(1) and far(prompt, prompt) == 0
    shuffled = draws.permutation(12)
    again = starc_distance(first[shuffled], second[shuffled], prompt[shuffled], weight[shuffled], norm)
    assert again == pytest.approx(far(first, second))


def test_starc_by_hand_in_the_other_norms():
    first, second, prompt = [1.0, -1, 2, -2], [3.0, 1, -1, 1], [0, 0, 1, 1]
    assert starc_distance(first, second, prompt, norm=1) == pytest.approx(1 / 12 * 2 + 7 / 12 * 2)
    assert starc_distance(first, second, prompt, norm=np.inf) == pytest.approx(2)  # 1 and -1 at the third
    # (1, -1, 2, -2) / 6 against (1, -1, -1, 1) / 4
    weighted = starc_distance(first, second, prompt, [1, 1, 0, 0], norm=1)
    assert weighted == pytest.approx(0) and starc_distance(first, second, prompt, [1, 1, 0, 0], norm=np.inf) == 0
    with pytest.raises(ConfigError, match="norm is 3"):
        starc_distance(first, second, prompt, norm=3)
