from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ebrm.errors import ConfigError, DataError
from ebrm.metrics import Bootstrap, group_accuracy


def test_by_hand() -> None:
    found = group_accuracy([1, 1, 0, 2, 1, 5], [0, 0, 1, 2, 0, 1], ["u", "u", "u", "v", "v", "w"])
    assert found.mean.value == pytest.approx(4 / 6)
    assert found.macro.value == pytest.approx((2 / 3 + 1 / 2 + 1) / 3)  # users count alike
    assert (found.worst, found.worst_group, found.groups) == (0.5, "v", 3)
    assert found.all_right.value == pytest.approx(1 / 3)
    half = group_accuracy([2, 1], [2, 0], ["v", "v"], tie=0.5)
    assert half.mean.value == 0.75 and half.all_right.value == 0 and np.isnan(half.macro.low)


def test_a_constant_reward() -> None:
    for tie in (0.0, 0.5, 1.0):
        found = group_accuracy([3, 3], [3, 3], ["a", "b"], tie)
        assert (found.mean.value, found.macro.value, found.worst) == (tie, tie, tie)
        assert found.worst_group == "a" and found.all_right.value == (tie == 1)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_offsets_rising_maps_order_and_equal_groups(seed: int) -> None:
    generator = np.random.default_rng(seed)
    chosen, rejected = generator.integers(0, 4, (2, 24)) / 2
    group = generator.integers(0, 6, 24)
    found = group_accuracy(chosen, rejected, group, bootstrap=Bootstrap(30))
    order, offset = generator.permutation(24), generator.integers(-8, 8, 24)
    assert found == group_accuracy(chosen[order], rejected[order], group[order], bootstrap=Bootstrap(30))
    assert found == group_accuracy(chosen + offset, rejected + offset, group, bootstrap=Bootstrap(30))
    assert found == group_accuracy(np.exp(chosen), np.exp(rejected), group, bootstrap=Bootstrap(30))
    assert found.worst <= found.macro.value + 1e-12 and found.all_right.value <= found.macro.value + 1e-12
    balanced = group_accuracy(chosen, rejected, np.repeat(np.arange(6), 4), bootstrap=Bootstrap(2))
    assert balanced.macro.value == pytest.approx(balanced.mean.value)
    single = group_accuracy(chosen, rejected, np.arange(24), bootstrap=Bootstrap(2))
    assert single.all_right.value == pytest.approx(single.mean.value)


def test_clusters_of_groups_are_drawn_together() -> None:
    generator = np.random.default_rng(0)
    chosen = np.repeat(generator.normal(size=100), 4)  # four copies of each group, in one cluster
    alone = group_accuracy(chosen[::4], np.zeros(100), np.arange(100)).macro
    copies = group_accuracy(chosen, np.zeros(400), np.arange(400), cluster=np.repeat(np.arange(100), 4)).macro
    assert copies.high - copies.low == pytest.approx(alone.high - alone.low, rel=0.15)


def test_bad_input_is_named() -> None:
    with pytest.raises(DataError, match="the reward of the rejected responses holds 1 of 2.* row 1"):
        group_accuracy([1, 2], [1, np.nan], ["a", "b"])
    with pytest.raises(DataError, match="no rows"):
        group_accuracy([], [], [])
    with pytest.raises(ConfigError, match="tie is 2"):
        group_accuracy([1], [2], ["a"], tie=2)
    with pytest.raises(ValueError, match="2 rows and cluster labels"):
        group_accuracy([1, 2], [1, 3], ["a"])
    with pytest.raises(ValueError, match="in several clusters"):
        group_accuracy([1, 2], [1, 3], ["a", "a"], cluster=[0, 1])
