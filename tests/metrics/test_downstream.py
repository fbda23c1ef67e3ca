from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from ebrm.errors import DataError
from ebrm.metrics import Bootstrap, downstream_correlation


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(3, 20))
def test_the_values_are_scipys(seed: int, models: int) -> None:
    generator = np.random.default_rng(seed)
    score = generator.integers(0, 6, models) / 5
    score[:2] = 0, 1
    outcome = score + generator.normal(size=models).round(1)
    outcome[0] -= 5
    found = downstream_correlation(score, outcome, bootstrap=Bootstrap(3))
    assert found.pearson.value == pytest.approx(stats.pearsonr(score, outcome).statistic)
    assert found.spearman.value == pytest.approx(stats.spearmanr(score, outcome).statistic)
    assert found.models == models


def test_known_answers() -> None:
    same = downstream_correlation([0.6, 0.7, 0.9], [1, 2, 4])
    assert same.pearson.value == pytest.approx(1) and same.spearman.value == pytest.approx(1)
    bent = downstream_correlation([1, 2, 3, 4], [1, 10, 100, 1000])
    assert bent.spearman.value == pytest.approx(1) and 0.7 < bent.pearson.value < 0.9
    swapped = downstream_correlation([1, 2, 3], [1, 3, 2])
    assert swapped.spearman.value == pytest.approx(0.5)  # 1 - 6 Σ d² / (k (k² - 1)) = 1 - 6 · 2 / 24


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_rising_maps_and_order(seed: int) -> None:
    generator = np.random.default_rng(seed)
    score, outcome = generator.integers(0, 9, (2, 12)) / 4
    score[:2], outcome[:2] = (0, 1), (0, 1)
    one = downstream_correlation(score, outcome, bootstrap=Bootstrap(50))
    order = generator.permutation(12)
    assert one == downstream_correlation(score[order], outcome[order], bootstrap=Bootstrap(50))
    moved = downstream_correlation(4 * score + 7, outcome - 3, bootstrap=Bootstrap(50))
    for first, second in ((one.pearson, moved.pearson), (one.spearman, moved.spearman)):
        assert (second.value, second.low, second.high) == pytest.approx((first.value, first.low, first.high))
    assert downstream_correlation(np.exp(score), outcome, bootstrap=Bootstrap(50)).spearman == one.spearman
    other_way = downstream_correlation(-score, outcome, bootstrap=Bootstrap(2))
    assert other_way.pearson.value == pytest.approx(-one.pearson.value)
    assert other_way.spearman.value == pytest.approx(-one.spearman.value)


def test_constant_sides_and_few_models() -> None:
    assert np.isnan(downstream_correlation([0.1] * 3, [1, 2, 3]).pearson.value)
    assert np.isnan(downstream_correlation([1, 2, 3], [0.1] * 3).spearman.value)
    two = downstream_correlation([1, 2], [3, 5])
    assert two.pearson.value == pytest.approx(1) and np.isnan(two.pearson.low)
    assert np.isnan(downstream_correlation([1], [3]).pearson.value)


def test_large_numbers_do_not_overflow() -> None:
    found = downstream_correlation([1e300, 2e300, 4e300], [1e-300, 2e-300, 4e-300])
    assert found.pearson.value == pytest.approx(1)


def test_intervals_cover_the_truth() -> None:
    generator, hits = np.random.default_rng(0), 0
    for seed in range(200):
        score = generator.normal(size=60)
        outcome = 0.6 * score + 0.8 * generator.normal(size=60)
        hits += not downstream_correlation(score, outcome, bootstrap=Bootstrap(300, seed=seed)).pearson.excludes(0.6)
    assert 176 <= hits <= 199


def test_bad_input_is_named() -> None:
    with pytest.raises(DataError, match="the outcome holds 1 of 2.* row 1"):
        downstream_correlation([1, 2], [1, np.nan])
    with pytest.raises(DataError, match="no rows"):
        downstream_correlation([], [])
    with pytest.raises(ValueError, match="the outcome has shape"):
        downstream_correlation([1, 2], [1])
