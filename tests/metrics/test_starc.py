from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ebrm.errors import DataError
from ebrm.metrics import Bootstrap, starc_distance, starc_estimate


def simulate(generator: np.random.Generator, prompts: int, noise: float = 0.7) -> tuple[np.ndarray, ...]:
    """Two rewards of the same responses, some prompts' far more alike than others'; and the prompts."""
    prompt = np.repeat(np.arange(prompts), 1 + generator.integers(1, 5, prompts))
    first = generator.normal(size=prompts)[prompt] + generator.normal(size=len(prompt))
    own = noise * generator.choice([0.5, 1.0, 1.4], prompts)[prompt]
    return first, first + own * generator.normal(size=len(prompt)), prompt


@pytest.mark.parametrize("offset", [0.0, 5.0, -1e3])
def test_known_answer(offset: float) -> None:
    prompt = ["a", "a", "b", "b"]
    first, second = np.array([1, -1, 2, -2]), np.array([1, -1, -1, 1]) + np.array([0, 0, offset, offset])
    assert starc_distance(first, second, prompt) == pytest.approx(1.6224844, abs=1e-7)
    rho = -2 / np.sqrt(10 * 4)
    assert starc_distance(first, second, prompt) == pytest.approx(np.sqrt(2 * (1 - rho)))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(1e-3, 1e3), st.floats(-50, 50))
def test_affine_maps_of_each_prompt_are_at_distance_zero(seed: int, factor: float, offset: float) -> None:
    generator = np.random.default_rng(seed)
    first, second, prompt = simulate(generator, 12)
    moved = factor * first + offset * generator.normal(size=12)[prompt]
    assert starc_distance(first, moved, prompt) == pytest.approx(0, abs=1e-7)
    assert starc_distance(first, -moved, prompt) == pytest.approx(2, abs=1e-7)
    assert starc_distance(first, second, prompt) == pytest.approx(starc_distance(moved, second, prompt), abs=1e-7)


def test_equal_rewards_are_at_distance_zero_and_opposite_ones_at_two_exactly() -> None:
    first, _, prompt = simulate(np.random.default_rng(0), 30)
    assert starc_distance(first, first, prompt) == 0
    assert starc_distance(first, -first, prompt) == pytest.approx(2, abs=1e-15)
    assert starc_distance(first, 4 * first, prompt) == 0
    # One factor for all prompts: a factor of its own for each prompt changes what a policy would trade off.
    assert starc_distance(first, first * (1 + prompt % 2), prompt) > 0.1


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_it_is_a_metric_on_standardized_rewards(seed: int) -> None:
    generator = np.random.default_rng(seed)
    first, second, prompt = simulate(generator, 12)
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
    first, second, prompt = simulate(generator, 8)
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
    first, second, prompt = simulate(np.random.default_rng(1), 9)
    more = [np.append(array, value) for array, value in ((first, 50.0), (second, -50.0), (prompt, 99))]
    assert starc_distance(*more) == pytest.approx(starc_distance(first, second, prompt), rel=1e-14)


@pytest.mark.parametrize("size", [1e-200, 1e200])
def test_the_size_of_rewards_does_not_matter(size: float) -> None:
    first, second, prompt = simulate(np.random.default_rng(2), 9)
    assert starc_distance(size * first, second, prompt) == pytest.approx(starc_distance(first, second, prompt))
    assert starc_estimate(size * first, second, prompt, bootstrap=Bootstrap(9)).low > 0.1


def test_unrelated_rewards_are_at_the_root_of_two() -> None:
    generator = np.random.default_rng(3)
    prompt = np.arange(200_000) // 4
    distance = starc_distance(generator.normal(size=200_000), generator.normal(size=200_000), prompt)
    assert distance == pytest.approx(np.sqrt(2), abs=0.01)


def test_draws_are_distances_of_drawn_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every resample, put together row by row, has the distance that the sums say."""
    first, second, prompt = simulate(np.random.default_rng(4), 6)
    seen: list[np.ndarray] = []

    def take(self: Bootstrap, value: float, draws: np.ndarray) -> None:
        seen.append(draws)

    def draw(sums: np.ndarray, *, bootstrap: Bootstrap) -> np.ndarray:
        return np.stack([sums[list(drawn)].sum(axis=0) for drawn in chosen])

    chosen = [(0, 0, 1, 3, 5, 5), (2, 2, 2, 2, 2, 2), (0, 1, 2, 3, 4, 5)]
    monkeypatch.setattr("ebrm.metrics.bootstrap.Bootstrap.estimate", take)
    monkeypatch.setattr("ebrm.metrics.starc.resample_sums", draw)
    starc_estimate(first, second, prompt)
    for found, drawn in zip(seen[0], chosen, strict=True):
        rows = [np.flatnonzero(prompt == number) for number in drawn]
        copies = np.repeat(np.arange(6), [len(part) for part in rows])  # each copy a prompt of its own
        index = np.concatenate(rows)
        assert found == pytest.approx(starc_distance(first[index], second[index], copies))


def test_estimate_has_the_distance_and_is_the_same_in_any_order() -> None:
    generator = np.random.default_rng(5)
    first, second, prompt = simulate(generator, 40)
    weight = generator.random(len(prompt))
    found = starc_estimate(first, second, prompt, weight, bootstrap=Bootstrap(200))
    assert found.value == starc_distance(first, second, prompt, weight) and found.low < found.value < found.high
    order = generator.permutation(len(prompt))
    again = starc_estimate(first[order], second[order], prompt[order], weight[order], bootstrap=Bootstrap(200))
    assert (again.value, again.low, again.high) == pytest.approx((found.value, found.low, found.high), rel=1e-12)
    same = starc_estimate(first, first, prompt)
    assert (same.value, same.low, same.high) == (0, 0, 0)
    assert np.isnan(starc_estimate([1, 2], [2, 1], ["a", "a"]).low)


def test_intervals_cover_the_truth() -> None:
    truth = starc_distance(*simulate(np.random.default_rng(6), 400_000))
    generator, studies = np.random.default_rng(8), 500
    found = [starc_estimate(*simulate(generator, 300), bootstrap=Bootstrap(600, seed=n)) for n in range(studies)]
    coverage = np.mean([not one.excludes(truth) for one in found])
    assert 0.93 < coverage < 0.97, coverage


def test_bad_input_is_named() -> None:
    with pytest.raises(DataError, match="the second reward holds 1 of 2"):
        starc_distance([1, 2], [1, np.nan], ["a", "a"])
    with pytest.raises(ValueError, match="the second reward has shape"):
        starc_distance([1, 2], [1], ["a", "a"])
    with pytest.raises(ValueError, match="2 rewards and 1 prompt labels"):
        starc_distance([1, 2], [1, 2], ["a"])
    for weight in ([1, -1], [0, 0]):
        with pytest.raises(DataError, match="must not be negative, nor all zero"):
            starc_distance([1, 2], [1, 2], ["a", "a"], weight)
    with pytest.raises(ValueError, match="in several clusters"):
        starc_estimate([1, 2], [1, 2], ["a", "a"], cluster=["x", "y"])
