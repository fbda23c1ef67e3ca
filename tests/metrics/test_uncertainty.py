"""AUROC, risk-coverage curves and interval coverage."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import mannwhitneyu
from tests.metrics.shared import NAN, coverage

from ebrm.errors import DataError
from ebrm.metrics import (
    Bootstrap,
    Estimate,
    detection_auroc,
    error_auroc,
    error_by_uncertainty,
    interval_coverage,
    pair_std,
    risk_coverage,
)


def auroc(*args: object, **settings: object) -> Estimate:
    found = detection_auroc(*args, **settings)  # type: ignore[arg-type]
    assert found is not None
    return found


def test_known_areas() -> None:
    assert auroc([3, 4, 1, 2], [1, 1, 0, 0]).value == 1.0
    assert auroc([1, 2, 3, 4], [1, 1, 0, 0]).value == 0.0
    assert auroc([7, 7, 7], [True, False, False]).value == 0.5
    assert auroc([1, 2, 1, 2], [1, 1, 0, 0]).value == 0.5  # the same scores on both sides
    assert auroc([2, 1, 2], [1, 0, 0]).value == 0.75


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_the_area_is_the_share_of_all_pairs(seed: int) -> None:
    generator = np.random.default_rng(seed)
    score, positive = generator.integers(0, 6, 20) / 3, generator.random(20) < 0.4
    positive[:2] = True, False
    pairs = itertools.product(score[positive], score[~positive])
    value = np.mean([(one > two) + 0.5 * (one == two) for one, two in pairs])
    assert auroc(score, positive, bootstrap=Bootstrap(2)).value == pytest.approx(value)
    assert auroc(-score, positive, bootstrap=Bootstrap(2)).value == pytest.approx(1 - value)
    assert error_auroc(score, positive, bootstrap=Bootstrap(2)) == auroc(score, positive, bootstrap=Bootstrap(2))


def test_turning_the_score_round_mirrors_the_interval() -> None:
    generator = np.random.default_rng(0)
    positive = generator.random(60) < 0.5
    score = generator.integers(0, 2, 60) + positive  # most pairs are ties or one apart
    one, other = auroc(score, positive), auroc(-score, positive)
    assert (other.low, other.value, other.high) == pytest.approx((1 - one.high, 1 - one.value, 1 - one.low))


def test_offsets_of_single_prompts_matter() -> None:
    assert auroc([1, 0, 1, 0], [1, 0, 1, 0]).value == 1.0
    assert auroc([1, 0, 9, 8], [1, 0, 1, 0]).value == 0.75


def test_nothing_to_tell_apart() -> None:
    assert detection_auroc([1, 2], [1, 1]) is None
    assert detection_auroc([1, 2], [0, 0]) is None
    one = auroc([1, 2], [0, 1], cluster=["a", "a"])
    assert one.value == 1 and np.isnan(one.low)


def simulate(generator: np.random.Generator, prompts: int) -> tuple[np.ndarray, ...]:
    """Uncertainty, error and prompt of 1 to 5 pairs a prompt that are hard or easy, and sure or unsure, together."""
    prompt = np.repeat(np.arange(prompts), generator.integers(1, 6, prompts))
    hard = generator.normal(size=prompts)[prompt]
    uncertainty = hard + generator.normal(size=prompts)[prompt] + generator.normal(size=len(prompt))
    return uncertainty, 0.6 * hard + generator.normal(size=len(prompt)) > 0.8, prompt


def test_pair_std_adds_variances() -> None:
    assert pair_std([3.0, 1.0], [4.0, 0.0]).tolist() == [5.0, 1.0]


def test_auroc_agrees_with_mann_whitney() -> None:
    generator = np.random.default_rng(0)
    error = generator.random(500) < 0.3
    uncertainty = (generator.normal(size=500) + error).round(1)
    u = mannwhitneyu(uncertainty[error], uncertainty[~error]).statistic
    assert auroc(uncertainty, error).value == pytest.approx(u / (error.sum() * (~error).sum()))


def test_risk_coverage_by_hand() -> None:
    curve = risk_coverage([0.4, 0.1, 0.3, 0.2], [True, False, False, True])
    # The most certain first: right, wrong, right, wrong.
    assert curve.coverage.tolist() == [0.25, 0.5, 0.75, 1.0]
    assert curve.risk == pytest.approx([0, 1 / 2, 1 / 3, 2 / 4])
    assert curve.area.value == pytest.approx((0 + 1 / 2 + 1 / 3 + 2 / 4) / 4)
    assert curve.random == 0.5
    assert curve.best == pytest.approx((0 + 0 + 1 / 3 + 2 / 4) / 4)


def test_areas_of_the_best_the_worst_and_the_ignorant() -> None:
    error = np.arange(200) < 50
    best, worst = risk_coverage(error * 1.0, error), risk_coverage(-1.0 * error, error)
    # Ties within "certain" and within "uncertain" do not matter here: their errors are all equal.
    assert best.area.value == pytest.approx(best.best) and worst.area.value > worst.random > best.area.value
    ignorant = risk_coverage(np.ones(200), error)
    assert ignorant.risk == pytest.approx(np.full(200, 0.25)) and ignorant.area.value == pytest.approx(ignorant.random)


def test_ties_count_by_their_mean_over_all_orders() -> None:
    uncertainty, error = np.array([1, 1, 1, 2, 2]), np.array([True, False, False, True, False])
    generator = np.random.default_rng(0)
    shuffled = [
        risk_coverage(uncertainty + 0.1 * generator.permutation(5) / 5, error, bootstrap=Bootstrap(1)).area.value
        for _ in range(4000)
    ]
    assert risk_coverage(uncertainty, error).area.value == pytest.approx(np.mean(shuffled), abs=0.005)


def test_error_by_uncertainty_rises_with_it_and_counts_everyone() -> None:
    generator = np.random.default_rng(2)
    uncertainty = generator.random(4000)
    bins = error_by_uncertainty(uncertainty, generator.random(4000) < 0.5 * uncertainty, bins=5)
    rates = [b.error.value for b in bins]
    assert rates == sorted(rates) and rates == pytest.approx([0.05, 0.15, 0.25, 0.35, 0.45], abs=0.04)
    assert [b.pairs for b in bins] == [800] * 5
    assert all(b.error.low < b.error.value < b.error.high for b in bins)


def naive_draws(
    uncertainty: np.ndarray, error: np.ndarray, prompt: np.ndarray, seed: int, resamples: int
) -> np.ndarray:
    """AUROC, area and gain of resamples put together row by row."""
    labels = np.unique(prompt)
    found = []
    for drawn in np.random.default_rng(seed).integers(0, len(labels), (resamples, len(labels))):
        rows = np.concatenate([np.flatnonzero(prompt == labels[number]) for number in drawn])
        curve = risk_coverage(uncertainty[rows], error[rows], bootstrap=Bootstrap(1))
        ranks = error_auroc(uncertainty[rows], error[rows], bootstrap=Bootstrap(1))
        found.append([np.nan if ranks is None else ranks.value, curve.area.value, curve.random - curve.area.value])
    return np.array(found)


@pytest.mark.parametrize("digits", [0, 1])
def test_intervals_are_those_of_drawn_prompts(digits: int) -> None:
    uncertainty, error, prompt = simulate(np.random.default_rng(3), 30)
    uncertainty = uncertainty.round(digits)  # fewer values than groups: no approximation
    draws = naive_draws(uncertainty, error, prompt, seed=5, resamples=60)
    curve = risk_coverage(uncertainty, error, prompt, bootstrap=Bootstrap(60, seed=5))
    estimates = (auroc(uncertainty, error, prompt, bootstrap=Bootstrap(60, seed=5)), curve.area, curve.gain)
    for estimate, column in zip(estimates, draws.T, strict=True):
        assert (estimate.low, estimate.high) == pytest.approx(tuple(np.nanquantile(column, [0.025, 0.975])))


def test_grouping_hardly_changes_the_intervals(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = simulate(np.random.default_rng(4), 400)

    def estimates() -> list[Estimate]:
        curve = risk_coverage(*rows, bootstrap=Bootstrap(500))
        return [auroc(*rows, bootstrap=Bootstrap(500)), curve.area, curve.gain]

    found = {}
    for levels in (3, 128, 10**6):
        monkeypatch.setattr("ebrm.metrics.uncertainty._LEVELS", levels)
        found[levels] = estimates()
    # Three groups change the statistic itself: its resamples are moved back by that much.
    for levels, share in ((128, 0.01), (3, 0.2)):
        for one, two in zip(found[levels], found[10**6], strict=True):
            assert one.value == two.value and one != two
            assert (one.low, one.high) == pytest.approx((two.low, two.high), abs=share * (two.high - two.low))


def test_intervals_cover_the_truth_under_clustered_prompts() -> None:
    def measured(rows: tuple[np.ndarray, ...], bootstrap: Bootstrap) -> list[Estimate]:
        curve = risk_coverage(*rows, bootstrap=bootstrap)
        return [auroc(*rows, bootstrap=bootstrap), curve.area, curve.gain]

    truth = measured(simulate(np.random.default_rng(9), 200_000), Bootstrap(1))
    generator = np.random.default_rng(10)
    found = [measured(simulate(generator, 150), Bootstrap(250, seed=study)) for study in range(400)]
    for number, true in enumerate(truth):
        assert 0.93 < coverage([one[number] for one in found], true.value) < 0.97


def test_the_gain_is_paired() -> None:
    rows = simulate(np.random.default_rng(11), 500)
    curve = risk_coverage(*rows)
    assert curve.gain.value == pytest.approx(curve.random - curve.area.value) and curve.gain.low > 0
    assert curve.gain.high - curve.gain.low < 0.8 * (curve.area.high - curve.area.low)


def test_interval_coverage_by_hand() -> None:
    interval = [[0, 1], [0, 1], [0, 1], [0, 1], [2, 2]]
    found = interval_coverage(interval, [0, 1, 0.5, 1.5, 2], list("aabbc"))
    assert found.value == pytest.approx(4 / 5) and found.low < 0.8 <= found.high


@pytest.mark.parametrize("noise", [0.3, 2.0])
def test_noise_counts_by_its_probability(noise: float) -> None:
    generator = np.random.default_rng(12)
    value, center, prompt = generator.normal(size=300), generator.normal(size=300), np.arange(300) // 3
    interval = np.stack([center - 1, center + 0.5], axis=1)
    found = interval_coverage(interval, value, prompt, noise)
    noisy = value + noise * generator.normal(size=(4000, 300))
    assert found.value == pytest.approx(((interval[:, 0] <= noisy) & (noisy <= interval[:, 1])).mean(), abs=0.002)
    order = generator.permutation(300)
    assert found == interval_coverage(interval[order], value[order], prompt[order], noise)
    tiny = interval_coverage(interval, value, prompt, 1e-12)
    assert tiny.value == pytest.approx(interval_coverage(interval, value, prompt).value)


def test_honest_intervals_cover_what_they_claim() -> None:
    generator, found, prompt = np.random.default_rng(13), [], np.repeat(np.arange(150), 4)
    for study in range(400):
        mean = generator.normal(size=600)
        # Rewards of one prompt are off together; 1.645 standard deviations hold 90% of each.
        value = mean + 0.8 * generator.normal(size=150)[prompt] + 0.6 * generator.normal(size=600)
        interval = mean[:, None] + [-1.6448536, 1.6448536]
        found.append(interval_coverage(interval, value, prompt, bootstrap=Bootstrap(300, seed=study)))
    assert 0.93 < coverage(found, 0.9) < 0.97


def test_bad_input_is_named() -> None:
    with pytest.raises(
        DataError, match=r"whether rows are positive: 1 of 2 are neither 0 nor 1, the first \(0.5\) in row 0"
    ):
        detection_auroc([1, 2], [0.5, 1])
    with pytest.raises(ValueError, match=r"intervals of shape \(2, 1\), expected \(2, 2\)"):
        interval_coverage([[0], [1]], [1, 1], ["a", "b"])
    with pytest.raises(ValueError, match="noise is -1"):
        interval_coverage([[0, 1]], [1], ["a"], noise=-1)
    with pytest.raises(DataError, match="1 of 2 intervals end before they begin, the first in row 1: 2.0 to 1.0"):
        interval_coverage([[0, 1], [2, 1]], [1, 1], ["a", "b"])
    with pytest.raises(DataError, match="the upper end of the intervals holds 1 of 1"):
        interval_coverage([[0, NAN]], [1], ["a"])
