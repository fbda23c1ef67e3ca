from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import mannwhitneyu

from ebrm.errors import DataError
from ebrm.metrics import (
    Bootstrap,
    Estimate,
    error_auroc,
    error_by_uncertainty,
    interval_coverage,
    pair_std,
    risk_coverage,
)


def auroc(*args: object, **settings: object) -> Estimate:
    found = error_auroc(*args, **settings)  # type: ignore[arg-type]
    assert found is not None
    return found


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


def test_auroc_knows_its_direction_and_when_there_is_none() -> None:
    assert auroc([1, 2, 3, 4], [False, False, True, True]).value == 1.0
    assert auroc([4, 3, 2, 1], [False, False, True, True]).value == 0.0
    assert error_auroc([1, 2], [True, True]) is None
    assert error_auroc([1, 2], [False, False]) is None


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


def test_does_not_depend_on_the_order_of_rows() -> None:
    generator = np.random.default_rng(1)
    uncertainty, error, prompt = (
        generator.random(300).round(2),
        generator.random(300) < 0.4,
        np.arange(300) // 2,
    )
    order = generator.permutation(300)
    rows, mixed = (uncertainty, error, prompt), (uncertainty[order], error[order], prompt[order])
    one, two = risk_coverage(*rows), risk_coverage(*mixed)
    assert (one.risk == two.risk).all() and (one.area, one.gain) == (two.area, two.gain)
    assert auroc(*rows) == auroc(*mixed)
    bins = [
        error_by_uncertainty(u, e, p, bootstrap=Bootstrap(20))
        for u, e, p in ((uncertainty, error, prompt), (uncertainty[order], error[order], prompt[order]))
    ]
    assert [b.error for b in bins[0]] == [b.error for b in bins[1]]


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
        monkeypatch.setattr("ebrm.metrics.auroc._LEVELS", levels)
        found[levels] = estimates()
    # Three groups change the statistic itself: its resamples are moved back by that much.
    for levels, share in ((128, 0.01), (3, 0.2)):
        for one, two in zip(found[levels], found[10**6], strict=True):
            assert one.value == two.value and one != two
            assert (one.low, one.high) == pytest.approx((two.low, two.high), abs=share * (two.high - two.low))


def test_intervals_cover_the_truth_under_clustered_prompts() -> None:
    population = simulate(np.random.default_rng(9), 200_000)
    curve = risk_coverage(*population, bootstrap=Bootstrap(1))
    truth = [auroc(*population, bootstrap=Bootstrap(1)).value, curve.area.value, curve.gain.value]
    generator, studies, hits = np.random.default_rng(10), 400, np.zeros(3)
    for study in range(studies):
        rows = simulate(generator, 150)
        curve = risk_coverage(*rows, bootstrap=Bootstrap(250, seed=study))
        estimates = (auroc(*rows, bootstrap=Bootstrap(250, seed=study)), curve.area, curve.gain)
        hits += [not estimate.excludes(value) for estimate, value in zip(estimates, truth, strict=True)]
    coverage = hits / studies
    assert (coverage > 0.93).all() and (coverage < 0.97).all(), coverage


def test_the_gain_is_paired() -> None:
    rows = simulate(np.random.default_rng(11), 500)
    curve = risk_coverage(*rows)
    assert curve.gain.value == pytest.approx(curve.random - curve.area.value) and curve.gain.low > 0
    assert curve.gain.high - curve.gain.low < 0.8 * (curve.area.high - curve.area.low)


def test_one_prompt_has_no_intervals() -> None:
    curve = risk_coverage([1, 2, 3], [False, True, True], ["a", "a", "a"])
    for estimate in (curve.area, curve.gain, auroc([1, 2, 3], [False, True, True], ["a", "a", "a"])):
        assert np.isfinite(estimate.value) and np.isnan([estimate.low, estimate.high]).all()


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
    generator = np.random.default_rng(13)
    hits, studies = 0, 400
    for study in range(studies):
        prompt = np.repeat(np.arange(150), 4)
        mean = generator.normal(size=600)
        # Rewards of one prompt are off together; 1.645 standard deviations hold 90% of each.
        value = mean + 0.8 * generator.normal(size=150)[prompt] + 0.6 * generator.normal(size=600)
        found = interval_coverage(
            mean[:, None] + [-1.6448536, 1.6448536], value, prompt, bootstrap=Bootstrap(300, seed=study)
        )
        hits += not found.excludes(0.9)
    assert 0.93 < hits / studies < 0.97


def test_bad_intervals_are_named() -> None:
    with pytest.raises(ValueError, match=r"intervals \(2, 1\) and cluster labels \(2,\): expected \(2, 2\) and \(2,\)"):
        interval_coverage([[0], [1]], [1, 1], ["a", "b"])
    with pytest.raises(ValueError, match="expected"):
        interval_coverage([[0, 1], [0, 1]], [1, 1], ["a"])
    with pytest.raises(ValueError, match="noise is -1"):
        interval_coverage([[0, 1]], [1], ["a"], noise=-1)
    with pytest.raises(DataError, match="1 of 2 intervals end before they begin, the first in row 1: 2.0 to 1.0"):
        interval_coverage([[0, 1], [2, 1]], [1, 1], ["a", "b"])
    with pytest.raises(DataError, match="the upper end of the intervals holds 1 of 1"):
        interval_coverage([[0, np.nan]], [1], ["a"])


def test_bad_input_is_named() -> None:
    with pytest.raises(DataError, match="the uncertainty holds 1 of 2"):
        risk_coverage([np.nan, 1], [True, False])
    with pytest.raises(ValueError, match="the errors has shape"):
        risk_coverage([1, 1, 1], [True, False])
    with pytest.raises(ValueError, match="2 pairs and 1 prompt ids"):
        error_by_uncertainty([1, 1], [True, False], ["a"])
