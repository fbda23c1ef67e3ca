from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from ebrm.errors import ConfigError, DataError
from ebrm.optimize import curve_peak, mean_curve

NAN = np.nan


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
    found = mean_curve(values, resamples=4000)
    assert found.value == pytest.approx(values.mean(0))
    error = values.std(0) / np.sqrt(len(values))
    reach = stats.norm.ppf(0.975) * error
    assert found.low == pytest.approx(found.value - reach, abs=0.15 * error.max())
    assert found.high == pytest.approx(found.value + reach, abs=0.15 * error.max())
    narrow = mean_curve(values, resamples=4000, level=0.5)
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
    peak, curve = curve_peak(values, [1, 2, 3, 4], seed=5), mean_curve(values, seed=5)
    top = int(curve.value.argmax())
    assert (peak.gold.value, peak.gold.low, peak.gold.high) == (curve.value[top], curve.low[top], curve.high[top])
    assert (peak.end.value, peak.end.low, peak.end.high) == (curve.value[-1], curve.low[-1], curve.high[-1])


def test_prompts_of_a_cluster_are_drawn_together() -> None:
    values = curves(4, 40)
    alone = mean_curve(values, resamples=500)
    labeled = mean_curve(values, [f"prompt {i}" for i in range(40)], resamples=500)
    # Every prompt five times over is no more evidence than once.
    copied = mean_curve(np.repeat(values, 5, axis=0), np.repeat(np.arange(40), 5), resamples=500)
    for other in (labeled, copied):
        for one, two in ((alone.value, other.value), (alone.low, other.low), (alone.high, other.high)):
            assert two == pytest.approx(one)
    free = mean_curve(np.repeat(values, 5, axis=0), resamples=500)
    assert (free.high - free.low < 0.6 * (alone.high - alone.low)).all()
    # Prompts weigh the same, clusters by their prompts.
    uneven = mean_curve([[0.0], [0.0], [0.0], [8.0]], ["a", "a", "a", "b"], resamples=500)
    assert (uneven.value[0], uneven.low[0], uneven.high[0]) == (2.0, 0.0, 8.0)


def test_nothing_depends_on_the_order_of_prompts_or_the_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    values, cluster = curves(5), np.random.default_rng(5).integers(0, 20, 60)
    order = np.random.default_rng(6).permutation(60)
    for label in (None, cluster):
        one = mean_curve(values, label, resamples=200)
        two = mean_curve(values[order], None if label is None else 99 - label[order], resamples=200)
        for name in ("value", "low", "high"):
            assert getattr(one, name).tolist() == getattr(two, name).tolist()
        peak = curve_peak(values, [1, 2, 3, 4], label, resamples=200)
        assert peak == curve_peak(values[order], [1, 2, 3, 4], None if label is None else label[order], resamples=200)
    assert mean_curve(values, resamples=200, seed=1).low.tolist() != mean_curve(values, resamples=200).low.tolist()
    whole = mean_curve(values, resamples=200)
    monkeypatch.setattr("ebrm.optimize.peak._CHUNK_CELLS", 60 * 7)
    chunked = mean_curve(values, resamples=200)
    assert chunked.low.tolist() == whole.low.tolist() and chunked.high.tolist() == whole.high.tolist()


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


def test_other_mistakes() -> None:
    with pytest.raises(ValueError, match="ascending"):
        curve_peak(np.empty((3, 0)), [])
    with pytest.raises(ValueError, match=r"\[q, k\]"):
        mean_curve(np.ones(3))
    with pytest.raises(ValueError, match="60 prompts"):
        mean_curve(curves(), np.zeros(59))
    for wrong in ({"resamples": 0}, {"level": 0.0}, {"level": 1.0}):
        with pytest.raises(ConfigError, match="resamples"):
            mean_curve(curves(), **wrong)
