from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ebrm.errors import ConfigError, DataError
from ebrm.metrics import Bootstrap, accuracy_with_ties, accuracy_without_ties, tie_threshold


def simulate(seed: int, pairs: int = 30) -> tuple[np.ndarray, np.ndarray]:
    """Differences with repeats, zeros among them, and labels that follow them loosely."""
    generator = np.random.default_rng(seed)
    difference = generator.integers(-6, 7, pairs) / 4
    return difference, np.clip(np.round(difference + generator.normal(size=pairs)), -1, 1)


def test_known_answer() -> None:
    difference, label = [2, 0.1, -3], [1, 0, -1]
    assert tie_threshold(difference, label) == 0.1
    assert accuracy_with_ties(difference, label, 0.1).value == 1.0
    assert accuracy_with_ties(difference, label, 0.09).value == pytest.approx(2 / 3)
    assert accuracy_with_ties(difference, label, 2.0).value == pytest.approx(2 / 3)  # the end belongs to the ties
    assert accuracy_with_ties(difference, label, 99.0).value == pytest.approx(1 / 3)
    assert accuracy_without_ties([2, 0.1, -3, 0, 1], [1, 0, -1, 1, -1]).value == 0.5


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 30))
def test_the_threshold_is_that_of_a_scan(seed: int, pairs: int) -> None:
    difference, label = simulate(seed, pairs)
    tried = sorted({0.0, *np.abs(difference)})
    scan = [
        np.mean([(t == 0) if abs(d) <= eps else d * t > 0 for d, t in zip(difference, label, strict=True)])
        for eps in tried
    ]
    best = tie_threshold(difference, label)
    assert best == tried[int(np.argmax(scan))]
    assert accuracy_with_ties(difference, label, best, bootstrap=Bootstrap(2)).value == pytest.approx(max(scan))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.25, 2.0, 1024.0]))
def test_unit_side_and_order_do_not_matter(seed: int, factor: float) -> None:
    difference, label = simulate(seed)
    best = tie_threshold(difference, label)
    assert tie_threshold(factor * difference, label) == factor * best
    assert tie_threshold(-difference, -label) == best
    order = np.random.default_rng(seed).permutation(len(label))
    assert tie_threshold(difference[order], label[order]) == best
    one = accuracy_with_ties(difference, label, best, cluster=label, bootstrap=Bootstrap(50))
    assert one == accuracy_with_ties(factor * difference, label, factor * best, cluster=label, bootstrap=Bootstrap(50))
    assert one == accuracy_with_ties(
        difference[order], label[order], best, cluster=label[order], bootstrap=Bootstrap(50)
    )


def test_the_extremes() -> None:
    assert tie_threshold([3, -2, 1], [0, 0, 0]) == 3  # only ties: everything is one
    assert tie_threshold([3, -2, 1], [1, -1, 1]) == 0  # no ties: nothing is
    assert tie_threshold([3, -2, 1], [-1, 1, -1]) == 0  # nothing can be right: the lowest of equals
    assert tie_threshold([0.0], [0]) == 0 and tie_threshold([0.5], [0]) == 0.5
    assert accuracy_with_ties([0.0, 0.0], [0, 1], 0.0).value == 0.5
    assert np.isnan(accuracy_without_ties([1, 2], [0, 0]).value)
    one = accuracy_without_ties([1, 2, -1], [1, 1, 1], cluster=["a", "a", "a"])
    assert one.value == pytest.approx(2 / 3) and np.isnan(one.low)


def test_intervals_are_over_clusters() -> None:
    difference, label = simulate(0, 400)
    alone = accuracy_with_ties(difference, label, 0.25)
    paired = accuracy_with_ties(np.repeat(difference, 4), np.repeat(label, 4), 0.25, np.repeat(np.arange(400), 4))
    assert alone.low < alone.value < alone.high
    assert paired.high - paired.low == pytest.approx(alone.high - alone.low, rel=0.1)


def test_bad_input_is_named() -> None:
    with pytest.raises(DataError, match="the difference of the rewards holds 1 of 2.* in row 1"):
        tie_threshold([1, np.nan], [0, 1])
    with pytest.raises(DataError, match="1 of 2 labels are none of .* row 1"):
        tie_threshold([1, 2], [0, 2])
    with pytest.raises(DataError, match="no rows"):
        accuracy_without_ties([], [])
    for bad in (-0.1, float("nan")):
        with pytest.raises(ConfigError, match="threshold is"):
            accuracy_with_ties([1, 2], [0, 1], bad)
    with pytest.raises(ValueError, match="the label has shape"):
        tie_threshold([1, 2], [0])
    with pytest.raises(ValueError, match=r"2 rows and cluster labels of shape \(1,\)"):
        accuracy_with_ties([1, 2], [0, 1], 0.5, cluster=["a"])
