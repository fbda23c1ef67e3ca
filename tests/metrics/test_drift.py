from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ebrm.errors import ConfigError, DataError
from ebrm.metrics import Bootstrap, Drift, DriftLimits, corrected_score, reward_drift, starc_distance


def simulate(seed: int, prompts: int = 15) -> tuple[np.ndarray, ...]:
    """Rewards, prompts, lengths and a second scorer of 1 to 4 responses a prompt."""
    generator = np.random.default_rng(seed)
    prompt = np.repeat(np.arange(prompts), 1 + np.arange(prompts) % 4)
    reward = generator.integers(0, 4, len(prompt)) / 2
    return reward, prompt, generator.integers(5, 50, len(prompt)), reward + generator.normal(size=len(prompt))


def values(found: Drift) -> list[float]:
    assert found.ceiling is not None and found.length is not None and found.distance is not None
    parts = (found.spread, found.saturated, found.ceiling, found.length, found.distance)
    return [number for part in parts for number in (part.value, part.low, part.high)]


def test_by_hand() -> None:
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
    assert found.warnings() == (
        "of prompts 1.00 have no spread of rewards (limit 0.5)",
        "the distance from the held-out scorer is 1.00 (limit 1)",
    )


def test_a_reward_that_is_length_correlates_by_one() -> None:
    length = np.array([3.0, 9.0, 4.0, 1.0, 2.0])
    found = reward_drift(length, [0, 0, 1, 1, 1], length, held_out=-length, ceiling=1.0)
    assert found.length is not None and found.length.value == pytest.approx(1)
    assert len(found.warnings()) == 3  # ceiling, length, distance
    assert found.warnings()[1] == "rewards correlate with length within prompts by 1.00 (limit 0.5)"
    assert len(found.warnings(DriftLimits(ceiling=1.0, distance=2.0))) == 3  # at the limit is beyond it
    healthy = reward_drift([1, 2, 2, 1], [0, 0, 1, 1], [5, 6, 5, 6], held_out=[0, 1, 1, 0], ceiling=9.0)
    assert healthy.warnings() == ()


def test_the_distance_is_starc() -> None:
    reward, prompt, length, other = simulate(0)
    found = reward_drift(reward, prompt, length, other)
    assert found.distance is not None
    assert found.distance.value == starc_distance(reward, other, prompt)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.25, 8.0]))
def test_offsets_factor_and_order(seed: int, factor: float) -> None:
    reward, prompt, length, other = simulate(seed)
    generator = np.random.default_rng(seed)
    one = reward_drift(reward, prompt, length, other, ceiling=1.5, flat=0.25, bootstrap=Bootstrap(30))
    order = generator.permutation(len(prompt))
    columns = (column[order] for column in (factor * reward, prompt, length, 3 * other))
    two = reward_drift(*columns, ceiling=factor * 1.5, flat=factor * 0.25, bootstrap=Bootstrap(30))
    scale = np.repeat([factor, 1, 1, 1, 1], 3)
    assert values(two) == pytest.approx((scale * values(one)).tolist(), nan_ok=True)
    offset = generator.integers(-5, 5, 15)[prompt]
    three = values(
        reward_drift(reward + offset, prompt, length, other - offset, 1.5, flat=0.25, bootstrap=Bootstrap(30))
    )
    # Values only: which prompts are interchangeable in the resamples may change with rounding.
    kept = [0, 3, 9, 12]  # the ceiling is one of rewards as they are
    assert [three[n] for n in kept] == pytest.approx([values(one)[n] for n in kept], nan_ok=True, abs=1e-12)


@pytest.mark.parametrize("size", [1e-200, 1e200])
def test_the_size_of_rewards_does_not_break_the_spread(size: float) -> None:
    assert reward_drift([size, 3 * size], ["a", "a"]).spread.value == pytest.approx(size)


def test_corrected_scores_by_hand() -> None:
    assert corrected_score([1, 1, 0.5, 0], [5, 1, 4, 1]) == pytest.approx([2.2, -1.8, 0.7, 0.2])
    assert corrected_score([0.25], [3.0]) == pytest.approx([0.2])
    assert corrected_score([2.0], [1.0], neutral=0.5, offset=1.0) == pytest.approx([2.0])
    rising = corrected_score([0, 0.5, 1], [2, 2, 2])
    assert (np.diff(rising) < 0).all()  # below the neutral quality, more reward is worse


def test_bad_input_is_named() -> None:
    with pytest.raises(DataError, match="None of 2 prompts has two responses"):
        reward_drift([1, 2], ["a", "b"])
    with pytest.raises(DataError, match="the reward of the responses holds 1 of 2.* row 1"):
        reward_drift([1, np.nan], ["a", "a"])
    with pytest.raises(DataError, match="the second reward holds 1 of 2"):
        reward_drift([1, 2], ["a", "a"], held_out=[1, np.inf])
    with pytest.raises(ValueError, match="2 rows and cluster labels"):
        reward_drift([1, 2], ["a"])
    for settings_ in ({"flat": -1.0}, {"flat": float("nan")}, {"ceiling": float("nan")}):
        with pytest.raises(ConfigError, match="expected"):
            reward_drift([1, 2], ["a", "a"], **settings_)
    for name, value in (("saturated", 1.1), ("ceiling", -0.1), ("length", 2.0), ("distance", float("nan"))):
        with pytest.raises(ConfigError, match=f"{name} is {value}"):
            DriftLimits(**{name: value})
    with pytest.raises(DataError, match="1 of 2 rewards are negative, .* in row 1"):
        corrected_score([1, -1], [3, 3])
    with pytest.raises(DataError, match="the quality of the responses holds 1"):
        corrected_score([1, 1], [3, np.nan])
    with pytest.raises(ConfigError, match="neutral is inf"):
        corrected_score([1], [3], neutral=float("inf"))
    with pytest.raises(ValueError, match="has shape"):
        corrected_score([1, 2], [3])
