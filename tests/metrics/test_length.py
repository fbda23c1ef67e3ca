from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ebrm.errors import DataError
from ebrm.metrics import Bootstrap, length_correlation, length_matched


def simulate(generator: np.random.Generator, items: int, slope: float = 0.3) -> tuple[np.ndarray, ...]:
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
    reward, length, item = simulate(np.random.default_rng(0), 50)
    inside = [np.concatenate([x[item == i] - x[item == i].mean() for i in range(50)]) for x in (reward, length)]
    assert length_correlation(reward, length, item).value == pytest.approx(np.corrcoef(*inside)[0, 1])


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0.01, 100), st.floats(-5, 5))
def test_units_and_levels_do_not_matter_but_the_sign_does(seed: int, unit: float, level: float) -> None:
    generator = np.random.default_rng(seed)
    reward, length, item = simulate(generator, 15)
    one = length_correlation(reward, length, item, bootstrap=Bootstrap(40))
    two = length_correlation(unit * reward + level * item, 3 * length, item, bootstrap=Bootstrap(40))
    assert two.value == pytest.approx(one.value, abs=1e-9)
    assert length_correlation(-reward, length, item, bootstrap=Bootstrap(40)).value == pytest.approx(-one.value)
    order = generator.permutation(len(item))
    assert length_correlation(reward[order], length[order], item[order], bootstrap=Bootstrap(40)) == one


def test_correlation_has_none_where_a_side_does_not_vary() -> None:
    for reward in ([0.1, 0.1, 0.1, 0.7, 0.7], [1e300, 1e300, 1e300, 0.0, 0.0]):
        found = length_correlation(reward, [1, 2, 3, 4, 5], list("aaabb"))
        assert np.isnan([found.value, found.low, found.high]).all()
    assert np.isnan(length_correlation([1, 2, 3], [1, 2, 3], list("abc")).value)  # one response an item
    huge = length_correlation([-1e200, 1e200, 2e200, 0], [1, 2, 2, 1], list("aabb"))
    assert huge.value == pytest.approx(1)


def test_one_item_has_no_interval() -> None:
    found = length_correlation([1, 2, 4], [1, 2, 3], list("aaa"))
    assert found.value == pytest.approx(np.corrcoef([1, 2, 4], [1, 2, 3])[0, 1]) and np.isnan(found.low)


def test_clusters_of_items_are_resampled_together() -> None:
    reward, length, item = simulate(np.random.default_rng(1), 200)
    copies = [np.tile(array, 4) for array in (reward, length)]
    items = np.concatenate([item + 1000 * copy for copy in range(4)])
    together = length_correlation(*copies, items, np.tile(item, 4))
    once = length_correlation(reward, length, item)
    apart = length_correlation(*copies, items)
    assert together.value == pytest.approx(once.value)
    assert together.high - together.low == pytest.approx(once.high - once.low, rel=0.1)
    assert apart.high - apart.low == pytest.approx((once.high - once.low) / 2, rel=0.1)


def test_correlation_intervals_cover_the_truth() -> None:
    truth = length_correlation(*simulate(np.random.default_rng(2), 400_000), bootstrap=Bootstrap(1)).value
    generator, studies = np.random.default_rng(3), 400
    found = [length_correlation(*simulate(generator, 300), bootstrap=Bootstrap(300, seed=n)) for n in range(studies)]
    coverage = np.mean([not one.excludes(truth) for one in found])
    assert 0.93 < coverage < 0.97, coverage


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


def test_the_interval_of_matched_pairs_is_over_clusters() -> None:
    generator = np.random.default_rng(4)
    right = np.repeat((generator.random(300) < 0.7).astype(float), 4)
    size = np.ones(1200)
    clustered, pairs = length_matched(right, size, size, np.repeat(np.arange(300), 4))
    loose, _ = length_matched(right, size, size, np.arange(1200))
    assert pairs == 1200 and clustered.value == loose.value == right.mean()
    assert (clustered.high - clustered.low) / (loose.high - loose.low) == pytest.approx(2, rel=0.1)


def test_no_matched_pair_has_no_accuracy() -> None:
    accuracy, pairs = length_matched([1, 0], [1, 2], [5, 9], ["a", "b"])
    assert pairs == 0 and np.isnan([accuracy.value, accuracy.low, accuracy.high]).all()


def test_bad_input_is_named() -> None:
    with pytest.raises(DataError, match="reward of the responses holds 1 of 2"):
        length_correlation([np.nan, 1], [1, 2], ["a", "a"])
    with pytest.raises(ValueError, match="2 rewards and 1 item labels"):
        length_correlation([0, 1], [1, 2], ["a"])
    with pytest.raises(ValueError, match="in several clusters"):
        length_correlation([0, 1], [1, 2], ["a", "a"], ["x", "y"])
    with pytest.raises(DataError, match="1 of 2 pairs have a negative length, the first in row 1"):
        length_matched([1, 1], [1, 1], [1, -1], ["a", "b"])
    with pytest.raises(ValueError, match="2 pairs and 1 cluster labels"):
        length_matched([1, 1], [1, 1], [1, 1], ["a"])
    for ratio in (0.9, float("nan")):
        with pytest.raises(ValueError, match="expected 1 or more"):
            length_matched([1], [1], [1], ["a"], ratio)
