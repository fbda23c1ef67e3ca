"""Benchmark scores against outcomes, probes of embeddings, and gold along optimization."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.linear_model import LogisticRegression
from tests.metrics.shared import NAN, coverage, numbers

from ebrm.errors import DataError
from ebrm.metrics import Bootstrap, curve_peak, downstream_correlation, mean_curve, probe_accuracy


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


def test_known_correlations() -> None:
    same = downstream_correlation([0.6, 0.7, 0.9], [1, 2, 4])
    assert same.pearson.value == pytest.approx(1) and same.spearman.value == pytest.approx(1)
    bent = downstream_correlation([1, 2, 3, 4], [1, 10, 100, 1000])
    assert bent.spearman.value == pytest.approx(1) and 0.7 < bent.pearson.value < 0.9
    swapped = downstream_correlation([1, 2, 3], [1, 3, 2])
    assert swapped.spearman.value == pytest.approx(0.5)  # 1 - 6 Σ d² / (k (k² - 1)) = 1 - 6 · 2 / 24


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_rising_maps_keep_spearman_and_turning_a_side_turns_both(seed: int) -> None:
    score, outcome = np.random.default_rng(seed).integers(0, 9, (2, 12)) / 4
    score[:2], outcome[:2] = (0, 1), (0, 1)
    one = downstream_correlation(score, outcome, bootstrap=Bootstrap(50))
    moved = downstream_correlation(4 * score + 7, outcome - 3, bootstrap=Bootstrap(50))
    assert numbers(moved) == pytest.approx(numbers(one))
    assert downstream_correlation(np.exp(score), outcome, bootstrap=Bootstrap(50)).spearman == one.spearman
    turned = downstream_correlation(-score, outcome, bootstrap=Bootstrap(2))
    assert turned.pearson.value == pytest.approx(-one.pearson.value)
    assert turned.spearman.value == pytest.approx(-one.spearman.value)


def test_constant_sides_and_few_models() -> None:
    assert np.isnan(downstream_correlation([0.1] * 3, [1, 2, 3]).pearson.value)
    assert np.isnan(downstream_correlation([1, 2, 3], [0.1] * 3).spearman.value)
    two = downstream_correlation([1, 2], [3, 5])
    assert two.pearson.value == pytest.approx(1) and np.isnan(two.pearson.low)
    assert np.isnan(downstream_correlation([1], [3]).pearson.value)


def test_large_numbers_do_not_overflow() -> None:
    found = downstream_correlation([1e300, 2e300, 4e300], [1e-300, 2e-300, 4e-300])
    assert found.pearson.value == pytest.approx(1)


def test_correlation_intervals_cover_the_truth() -> None:
    generator, found = np.random.default_rng(0), []
    for seed in range(200):
        score = generator.normal(size=60)
        outcome = 0.6 * score + 0.8 * generator.normal(size=60)
        found.append(downstream_correlation(score, outcome, bootstrap=Bootstrap(300, seed=seed)).pearson)
    assert 0.88 <= coverage(found, 0.6) <= 0.995


def test_probes_by_hand() -> None:
    found = probe_accuracy(
        [[1, 0], [1, 2], [0, 7], [1, 1]], [[1, 0], [0, 2], [0, NAN], [1, 0]], ("helpfulness", "verbosity")
    )
    first, second = found.by_dimension.values()
    assert (first.accuracy.value, first.majority, first.rows) == (0.75, 0.5, 4)
    assert (second.accuracy.value, second.majority, second.rows) == pytest.approx((2 / 3, 2 / 3, 3))
    assert found.overall.value == pytest.approx((3 / 4 + 2 / 3) / 2)  # dimensions count alike, not rows
    assert list(found.by_dimension) == ["helpfulness", "verbosity"]


def test_probes_of_blobs_and_of_nothing() -> None:
    generator = np.random.default_rng(0)
    label = generator.integers(0, 3, (3000, 2)).astype(float)
    embedding = generator.normal(size=(3000, 8))
    embedding[:, :3] += 12 * np.eye(3)[label[:, 0].astype(int)]  # blobs by the first dimension, nothing of the second
    train, test = slice(0, 2000), slice(2000, 3000)
    predicted = np.stack(
        [LogisticRegression().fit(embedding[train], label[train, n]).predict(embedding[test]) for n in range(2)], axis=1
    )
    found = probe_accuracy(predicted, label[test], ("blobs", "nothing"))
    assert found.by_dimension["blobs"].accuracy.value == 1
    nothing = found.by_dimension["nothing"]
    assert not nothing.accuracy.excludes(1 / 3) and nothing.majority < 0.4
    assert found.overall.low < found.overall.value < found.overall.high


def test_the_numbers_of_classes_and_rows_without_a_label_do_not_matter() -> None:
    generator = np.random.default_rng(2)
    label = np.where(generator.random((20, 2)) < 0.2, NAN, generator.integers(0, 3, (20, 2)))
    predicted, prompt = generator.integers(0, 3, (20, 2)).astype(float), generator.integers(0, 6, 20)

    def measured(*columns: np.ndarray, names: tuple[str, ...] = ("a", "b")) -> object:
        return probe_accuracy(*columns, names, prompt, bootstrap=Bootstrap(40))

    found = measured(predicted, label)
    assert found == measured(5 - 2 * predicted, 5 - 2 * label)
    assert found == measured(np.where(np.isnan(label), NAN, predicted), label)
    swapped = measured(predicted[:, ::-1], label[:, ::-1], names=("b", "a"))
    assert swapped.by_dimension["a"].accuracy.value == found.by_dimension["a"].accuracy.value


def test_probes_that_cannot_be_tested_are_named() -> None:
    with pytest.raises(DataError, match="No row has a label in b"):
        probe_accuracy([[1, 1]], [[1, NAN]], ("a", "b"))
    with pytest.raises(DataError, match=r"1 labeled rows .* row 1 \(a\): predicted nan, label 0.0"):
        probe_accuracy([[1], [NAN]], [[1], [0]], ("a",))
    for dimensions in ((), ("a", "b")):
        with pytest.raises(ValueError, match=r"predictions \(1, 1\), labels \(1, 1\)"):
            probe_accuracy([[1]], [[1]], dimensions)
    with pytest.raises(ValueError, match="two dimensions have one name: a, a"):
        probe_accuracy([[1, 1]], [[1, 1]], ("a", "a"))


def curves(seed: int = 0, prompts: int = 60, shape: tuple[float, ...] = (0.0, 1.0, 2.0, 1.0)) -> np.ndarray:
    return np.array(shape) + np.random.default_rng(seed).normal(size=(prompts, len(shape)))


def test_peak_of_a_known_curve() -> None:
    values = np.tile([[0.0, 3.0, 5.0, 5.0, 4.0]], (6, 1))
    found = curve_peak(values, [1, 2, 4, 8, 16])
    assert [getattr(found, name).value for name in ("x", "gold", "end", "loss")] == [4.0, 5.0, 4.0, 1.0]
    for interval in (found.x, found.gold, found.end, found.loss):
        assert interval.low == interval.high == interval.value
    last_bits = curve_peak(0.1 + np.array([[0.0, 1.4e-17, 2.8e-17]] * 6), [1, 2, 4])
    assert last_bits.x.value == last_bits.x.low == last_bits.x.high == 1.0
    assert curve_peak(1e-9 * values, [1, 2, 4, 8, 16]).x.high == 4.0
    rising = curve_peak(values[:, :3], [1, 2, 4])
    assert [rising.x.value, rising.gold.value, rising.loss.value] == [4.0, 5.0, 0.0]


def test_the_mean_and_its_interval_are_the_usual_ones() -> None:
    values = curves(prompts=400)
    found = mean_curve(values, bootstrap=Bootstrap(4000))
    assert found.value == pytest.approx(values.mean(0))
    error = values.std(0) / np.sqrt(len(values))
    reach = stats.norm.ppf(0.975) * error
    assert found.low == pytest.approx(found.value - reach, abs=0.15 * error.max())
    assert found.high == pytest.approx(found.value + reach, abs=0.15 * error.max())
    narrow = mean_curve(values, bootstrap=Bootstrap(4000, level=0.5))
    assert narrow.high - narrow.low == pytest.approx(2 * stats.norm.ppf(0.75) * error, rel=0.1)


def test_the_interval_of_the_loss_is_paired_and_can_reach_below_nothing() -> None:
    level = 100 * np.random.default_rng(1).normal(size=(60, 1))  # prompts differ by far more than points do
    values = curves(1) + level
    found = curve_peak(values, [1, 2, 3, 4])
    assert found.gold.high - found.gold.low > 20
    fall = values[:, 2] - values[:, 3]
    reach = stats.norm.ppf(0.975) * fall.std() / np.sqrt(60)
    assert [found.loss.value, found.loss.low, found.loss.high] == pytest.approx(
        [fall.mean(), fall.mean() - reach, fall.mean() + reach], abs=0.06
    )
    flat = curve_peak(curves(2, shape=(0.0, 0.0, 0.0, 0.0)), [1, 2, 3, 4])
    assert flat.loss.low < 0 < flat.loss.value
    assert flat.x.low < flat.x.high


def test_the_peak_and_the_curve_see_the_same_resamples() -> None:
    values = curves(3)
    peak, curve = (
        curve_peak(values, [1, 2, 3, 4], bootstrap=Bootstrap(seed=5)),
        mean_curve(values, bootstrap=Bootstrap(seed=5)),
    )
    top = int(curve.value.argmax())
    assert (peak.gold.value, peak.gold.low, peak.gold.high) == (curve.value[top], curve.low[top], curve.high[top])
    assert (peak.end.value, peak.end.low, peak.end.high) == (curve.value[-1], curve.low[-1], curve.high[-1])


def test_prompts_of_a_cluster_are_drawn_together() -> None:
    values = curves(4, 40)
    alone = mean_curve(values, bootstrap=Bootstrap(500))
    labeled = mean_curve(values, [f"prompt {i}" for i in range(40)], bootstrap=Bootstrap(500))
    # Every prompt five times over is no more evidence than once.
    copied = mean_curve(np.repeat(values, 5, axis=0), np.repeat(np.arange(40), 5), bootstrap=Bootstrap(500))
    for other in (labeled, copied):
        for one, two in ((alone.value, other.value), (alone.low, other.low), (alone.high, other.high)):
            assert two == pytest.approx(one)
    free = mean_curve(np.repeat(values, 5, axis=0), bootstrap=Bootstrap(500))
    assert (free.high - free.low < 0.6 * (alone.high - alone.low)).all()
    # Prompts weigh the same, clusters by their prompts.
    uneven = mean_curve([[0.0], [0.0], [0.0], [8.0]], ["a", "a", "a", "b"], bootstrap=Bootstrap(500))
    assert (uneven.value[0], uneven.low[0], uneven.high[0]) == (2.0, 0.0, 8.0)


def test_chunks_of_resamples_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    values = curves(5)
    whole = mean_curve(values, bootstrap=Bootstrap(200))
    monkeypatch.setattr("ebrm.metrics.bootstrap._CHUNK_CELLS", 60 * 7)
    chunked = mean_curve(values, bootstrap=Bootstrap(200))
    assert chunked.low == pytest.approx(whole.low) and chunked.high == pytest.approx(whole.high)


@pytest.mark.parametrize(("prompts", "cluster"), [(1, None), (5, ["one"] * 5)])
def test_one_prompt_has_no_interval(prompts: int, cluster: list | None) -> None:
    values = curves(7, prompts)
    found = mean_curve(values, cluster)
    assert found.value == pytest.approx(values.mean(0))
    assert np.isnan(found.low).all() and np.isnan(found.high).all()
    peak = curve_peak(values, [1, 2, 3, 4], cluster)
    for interval in (peak.x, peak.gold, peak.end, peak.loss):
        assert np.isfinite(interval.value) and np.isnan(interval.low) and np.isnan(interval.high)


def test_a_mean_over_changing_prompts_is_refused() -> None:
    values = curves(8)
    values[[4, 9], 3] = NAN
    with pytest.raises(DataError, match="2 of 60 prompts .* row 4"):
        mean_curve(values)
    with pytest.raises(DataError, match="no prompts"):
        mean_curve(np.empty((0, 4)))


@pytest.mark.parametrize("axis", [[1, 2, 3], [1, 2, 2, 3], [4, 3, 2, 1], [1, 2, 3, NAN], [1, 2, 3, np.inf]])
def test_the_axis_ascends(axis: list) -> None:
    with pytest.raises(ValueError, match="ascending"):
        curve_peak(curves(), axis)


def test_curves_of_other_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="ascending"):
        curve_peak(np.empty((3, 0)), [])
    with pytest.raises(ValueError, match=r"\[q, k\]"):
        mean_curve(np.ones(3))
