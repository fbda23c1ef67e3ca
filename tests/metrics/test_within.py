from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ebrm.metrics import centered, check_nested


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
