from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ebrm.errors import DataError
from ebrm.metrics import Bootstrap, contrast_consistency, hack_preference_rate, preference_rate


def test_a_rate_by_hand() -> None:
    rate = preference_rate([3, 1, 2, 2], [1, 3, 2, 1])
    assert (rate.strict.value, rate.ties_half.value, rate.ties, rate.pairs) == (0.5, 0.625, 1, 4)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_offsets_rising_maps_and_order_do_not_matter(seed: int) -> None:
    generator = np.random.default_rng(seed)
    first, second = generator.integers(0, 4, (2, 25)) / 2
    prompt = generator.integers(0, 9, 25)
    rate = preference_rate(first, second, prompt, bootstrap=Bootstrap(40))
    offset = generator.integers(-8, 8, 9)[prompt]
    order = generator.permutation(25)
    assert rate == preference_rate(first + offset, second + offset, prompt, bootstrap=Bootstrap(40))
    assert rate == preference_rate(np.exp(first), np.exp(second), prompt, bootstrap=Bootstrap(40))
    assert rate == preference_rate(first[order], second[order], prompt[order], bootstrap=Bootstrap(40))
    other = preference_rate(second, first, prompt, bootstrap=Bootstrap(2))
    assert other.ties_half.value == pytest.approx(1 - rate.ties_half.value)
    assert other.strict.value == pytest.approx(1 - rate.strict.value - rate.ties / 25)


def test_intervals_are_over_clusters() -> None:
    generator = np.random.default_rng(0)
    first, second = generator.normal(size=(2, 300))
    alone = preference_rate(first, second).strict
    copies = preference_rate(np.repeat(first, 5), np.repeat(second, 5), np.repeat(np.arange(300), 5)).strict
    assert alone.low < alone.value < alone.high
    assert copies.high - copies.low == pytest.approx(alone.high - alone.low, rel=0.1)
    assert np.isnan(preference_rate([1, 2], [2, 1], ["a", "a"]).strict.low)


def test_a_reward_blind_to_the_prompt_has_no_instruction_consistency() -> None:
    of_response = np.array([0.3, -1.0, 2.0])
    rate = contrast_consistency(of_response, of_response)
    assert (rate.strict.value, rate.ties_half.value, rate.ties) == (0, 0.5, 3)


def test_offsets_of_prompts_change_instruction_but_not_response_consistency() -> None:
    reward = np.array([[2.0, 0.0], [1.0, 3.0]])  # [prompt, response]: each prompt likes its own
    for offset, instruction in ((np.array([[0.0], [0.0]]), 1.0), (np.array([[0.0], [9.0]]), 0.5)):
        q = reward + offset
        assert contrast_consistency([q[0, 0], q[1, 1]], [q[1, 0], q[0, 1]]).strict.value == instruction
        assert contrast_consistency([q[0, 0], q[1, 1]], [q[0, 1], q[1, 0]]).strict.value == 1


def test_known_hack_preference_rates() -> None:
    honest = hack_preference_rate([-1, -1, -1], [0, 0, 0])  # minus one for every hack
    assert honest.overall.ties_half.value == 0 and honest.auroc.value == 0
    blind = hack_preference_rate([4, 4], [4, 4])
    assert blind.overall.ties_half.value == 0.5 and blind.auroc.value == 0.5 and blind.overall.strict.value == 0
    counts = hack_preference_rate([9, 7, 8], [1, 0, 2])  # counts keywords, of which hacks are full
    assert counts.overall.ties_half.value == 1 and counts.auroc.value == 1


def test_hacks_by_method() -> None:
    found = hack_preference_rate([2, 0, 5, 1, 3], [1, 1, 5, 4, 2], ["stuffing", "length", None, "length", "stuffing"])
    assert {name: rate.ties_half.value for name, rate in found.by_method.items()} == {
        "-": 0.5,
        "length": 0.0,
        "stuffing": 1.0,
    }
    assert list(found.by_method) == ["-", "length", "stuffing"]
    assert found.macro == 0.5 and found.worst == "stuffing" and found.by_method["length"].pairs == 2
    assert found.overall.ties_half.value == pytest.approx(2.5 / 5)
    every = [(a > b) + 0.5 * (a == b) for a, b in itertools.product([2, 0, 5, 1, 3], [1, 1, 5, 4, 2])]
    assert found.auroc.value == pytest.approx(np.mean(every))
    assert list(hack_preference_rate([1], [2]).by_method) == ["-"]


def test_a_hack_and_its_honest_response_are_drawn_together() -> None:
    generator = np.random.default_rng(1)
    level = 20 * generator.normal(size=200)  # prompts differ far more than their two responses
    hack, honest = level + 0.5 + generator.normal(size=200), level + generator.normal(size=200)
    found = hack_preference_rate(hack, honest)
    assert found.auroc.high - found.auroc.low < 0.03 and abs(found.auroc.value - 0.5) < 0.05
    assert found.overall.strict.low > 0.5


def test_bad_input_is_named() -> None:
    for function in (preference_rate, contrast_consistency, hack_preference_rate):
        with pytest.raises(DataError, match="holds 1 of 2 .* row 1"):
            function([1, np.nan], [1, 2])
        with pytest.raises(DataError, match="no rows"):
            function([], [])
        with pytest.raises(ValueError, match="has shape"):
            function([1, 2], [1])
        with pytest.raises(ValueError, match="2 rows and cluster labels"):
            function([1, 2], [1, 3], cluster=["a"])
    with pytest.raises(ValueError, match="2 pairs and 1 names"):
        hack_preference_rate([1, 2], [1, 3], ["a"])
