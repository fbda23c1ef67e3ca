from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss, log_loss

from ebrm.errors import ConfigError, DataError
from ebrm.metrics import Bootstrap, binned_calibration, calibration, clustered_mean, confidence_and_correct
from ebrm.metrics.reliability import equal_mass_bins


def simulate(generator: np.random.Generator, pairs: int, temperature: float = 1.0) -> np.ndarray:
    """P(chosen > rejected) stated by a judge whose logits are `temperature` times the honest ones."""
    honest = generator.normal(scale=1.5, size=pairs)
    first_is_chosen = generator.random(pairs) < 1 / (1 + np.exp(-honest))
    stated = 1 / (1 + np.exp(-temperature * honest))
    return np.where(first_is_chosen, stated, 1 - stated)


def test_known_answer() -> None:
    # Two confidences: 0.6, right 3 of 4; 0.9, right 2 of 4.
    p = np.array([0.6, 0.6, 0.6, 0.4, 0.9, 0.9, 0.1, 0.1])
    result = calibration(p, bins=2)
    assert [b.pairs for b in result.bins] == [4, 4]
    assert [b.confidence for b in result.bins] == pytest.approx([0.6, 0.9])
    assert [b.accuracy.value for b in result.bins] == pytest.approx([0.75, 0.5])
    assert result.ece.value == pytest.approx((0.15 + 0.4) / 2)
    assert result.brier.value == pytest.approx((3 * 0.16 + 0.36 + 2 * 0.01 + 2 * 0.81) / 8)
    assert result.log_loss.value == pytest.approx(-np.log(p).mean())


def test_agrees_with_sklearn() -> None:
    generator = np.random.default_rng(0)
    p = simulate(generator, 4000, temperature=1.7)
    result = calibration(p, bins=10, bootstrap=Bootstrap(10))
    confidence, correct = confidence_and_correct(p)
    rate, mean = calibration_curve(correct, confidence, n_bins=10, strategy="quantile")
    assert [b.confidence for b in result.bins] == pytest.approx(mean)
    assert [b.accuracy.value for b in result.bins] == pytest.approx(rate)
    # Brier and log loss do not care which side is called first: any orientation gives the same.
    side = generator.integers(0, 2, size=len(p))
    stated = np.where(side == 1, p, 1 - p)
    assert result.brier.value == pytest.approx(brier_score_loss(side, stated))
    assert result.log_loss.value == pytest.approx(log_loss(side, stated))


def test_ece_of_a_calibrated_simulator_goes_to_zero() -> None:
    generator = np.random.default_rng(1)
    small, large = (calibration(simulate(generator, n), bootstrap=Bootstrap(10)) for n in (1_000, 300_000))
    assert large.ece.value < 0.003 < small.ece.value
    assert calibration(simulate(generator, 300_000, temperature=3.0), bootstrap=Bootstrap(10)).ece.value > 0.08


def test_ece_by_chance_is_what_calibrated_simulators_show() -> None:
    generator = np.random.default_rng(2)
    results = [calibration(simulate(generator, 800), bootstrap=Bootstrap(2)) for _ in range(60)]
    assert np.mean([r.ece.value for r in results]) == pytest.approx(
        np.mean([r.ece_if_calibrated for r in results]), rel=0.1
    )


def together(generator: np.random.Generator, prompts: int, temperature: float) -> tuple[np.ndarray, np.ndarray]:
    """As `simulate`, but the pairs of a prompt (1 to 4) tend to be right or wrong together; and their prompts."""
    prompt = np.repeat(np.arange(prompts), generator.integers(1, 5, prompts))
    honest = generator.normal(scale=1.5, size=len(prompt))
    luck = np.sqrt(0.5) * (generator.normal(size=prompts)[prompt] + generator.normal(size=len(prompt)))
    first_is_chosen = luck < norm.ppf(1 / (1 + np.exp(-honest)))
    stated = 1 / (1 + np.exp(-temperature * honest))
    return np.where(first_is_chosen, stated, 1 - stated), prompt


def test_ece_by_chance_knows_that_pairs_go_together() -> None:
    generator = np.random.default_rng(5)
    p = np.repeat(simulate(generator, 500), 4)
    loose, clustered = (
        calibration(p, bootstrap=Bootstrap(2)),
        calibration(p, np.repeat(np.arange(500), 4), bootstrap=Bootstrap(2)),
    )
    assert clustered.ece_if_calibrated == pytest.approx(2 * loose.ece_if_calibrated)
    results = [calibration(*together(generator, 400, 1.0), bootstrap=Bootstrap(2)) for _ in range(100)]
    chance = np.mean([r.ece_if_calibrated for r in results])
    assert np.mean([r.ece.value for r in results]) == pytest.approx(chance, rel=0.1)
    # Sure and right: nothing varies, and rounding is not taken for variation.
    assert calibration(
        np.full(60, 0.9), np.arange(60) // 20, bootstrap=Bootstrap(2)
    ).ece_if_calibrated == pytest.approx(np.sqrt(2 / np.pi * 0.9 * 0.1 / 60))


@pytest.mark.parametrize(("temperature", "most"), [(1.0, 0.99), (2.0, 0.97)])
def test_intervals_cover_the_truth_under_clustered_prompts(temperature: float, most: float) -> None:
    """The ECE's is for its mean over samples of this size; it is somewhat too wide where all its bins are noise."""
    generator = np.random.default_rng(6)
    population = calibration(*together(generator, 100_000, temperature), bins=5, bootstrap=Bootstrap(1))
    found = [
        calibration(*together(generator, 250, temperature), bins=5, bootstrap=Bootstrap(250, seed=study))
        for study in range(800)
    ]
    mean = np.mean([one.ece.value for one in found])
    for truth, estimates, widest in (
        (mean, [one.ece for one in found], most),
        (population.brier.value, [one.brier for one in found], 0.97),
        (population.log_loss.value, [one.log_loss for one in found], 0.97),
    ):
        coverage = np.mean([not estimate.excludes(truth) for estimate in estimates])
        assert 0.93 < coverage < widest, coverage
        assert all(estimate.low <= estimate.value <= estimate.high for estimate in estimates)
    # As wide as the ECEs of such samples are spread, also where resampling alone would add to their noise.
    width = np.mean([one.ece.high - one.ece.low for one in found])
    assert width == pytest.approx(3.92 * np.std([one.ece.value for one in found]), rel=0.08)


def test_ece_interval_tells_real_errors_from_chance() -> None:
    generator = np.random.default_rng(7)
    honest, bold = calibration(simulate(generator, 2000)), calibration(simulate(generator, 2000, temperature=2.0))
    assert honest.ece.low < honest.ece_if_calibrated < honest.ece.high
    assert bold.ece.low > 1.5 * bold.ece_if_calibrated
    for found in (honest, bold):
        assert 0 <= found.ece.low < found.ece.value < found.ece.high


def test_brier_and_log_loss_have_the_intervals_of_means() -> None:
    p, prompt = together(np.random.default_rng(8), 300, 1.0)
    found = calibration(p, prompt, bootstrap=Bootstrap(6000))
    for ours, value in ((found.brier, (1 - p) ** 2), (found.log_loss, -np.log(p))):
        theirs = clustered_mean(value, prompt, bootstrap=Bootstrap(6000, seed=1))
        assert ours.value == pytest.approx(theirs.value)
        width = theirs.high - theirs.low
        assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.08 * width)


def test_one_half_is_half_right() -> None:
    confidence, correct = confidence_and_correct([0.5, 0.2, 0.7])
    assert confidence.tolist() == [0.5, 0.8, 0.7] and correct.tolist() == [0.5, 0, 1]
    result = calibration([0.5] * 20)
    assert len(result.bins) == 1 and result.ece.value == 0 and result.brier.value == 0.25


def test_certain_and_wrong_is_finite() -> None:
    assert 30 < calibration([0.0]).log_loss.value < 40


def test_float32_rounding_is_forgiven() -> None:
    rounded = calibration(np.array([1 + 1e-6, -1e-6]), bootstrap=Bootstrap(2))
    assert rounded == calibration([1.0, 0.0], bootstrap=Bootstrap(2))


def test_equal_mass_bins_are_equal_and_keep_ties_together() -> None:
    assert np.bincount(equal_mass_bins(np.random.default_rng(0).random(1000), 10)).tolist() == pytest.approx(
        [100] * 10, abs=1
    )
    index = equal_mass_bins([1, 1, 1, 1, 1, 1, 2, 3], 4)
    assert len(set(index[:6])) == 1 and index.min() == 0 and set(np.diff(np.unique(index))) <= {1}


def test_bad_input_is_named() -> None:
    with pytest.raises(DataError, match=r"lie in \[0, 1\], but 1 of 3 values do not, the first \(1.5\) in row 2"):
        calibration([0.1, 0.2, 1.5])


def test_bins_of_equal_width_by_hand():
    """Bins [0.2, 0.4) and [0.6, 0.8) hold 0.3, 0.7 with y = 0, 1 and 0.7, 0.3 with 1, 0; 0.9 and 0.1 the outer ones."""
    found = binned_calibration([0.7, 0.3, 0.9], bins=5)
    assert found.bins == 4
    assert found.mce == pytest.approx(0.2) and found.ace == pytest.approx((2 * 0.2 + 2 * 0.1) / 4)
    assert found.ece == pytest.approx((2 * 0.4 + 2 * 0.1) / 6)
    assert binned_calibration([0.5, 0.5], [1, 0]).ece == 0
    assert binned_calibration([1.0, 1.0, 0.0], [1, 1, 0]).mce == 0
    assert binned_calibration([1.0], [0]).ece == 1


@pytest.mark.parametrize("bins", [1, 5, 20])
def test_equal_width_against_a_loop(bins):
    draws = np.random.default_rng(bins)
    p, y = draws.random(200).round(2), draws.integers(0, 2, 200)
    both, outcome = np.concatenate([p, 1 - p]), np.concatenate([y, 1 - y])
    gaps, sizes = [], []
    for low in range(bins):
        inside = [low <= round(x * bins, 6) < low + 1 or (low == bins - 1 and round(x, 6) == 1) for x in both]
        if any(inside):
            gaps.append(abs(both[inside].sum() - outcome[inside].sum()))
            sizes.append(sum(inside))
    gaps, sizes = np.array(gaps), np.array(sizes)
    found = binned_calibration(p, y, bins)
    expected = (gaps.sum() / 400, (gaps / sizes).mean(), (gaps / sizes).max(), len(gaps))
    assert (found.ece, found.ace, found.mce, found.bins) == pytest.approx(expected)
    turned = binned_calibration(1 - p, 1 - y, bins)  # each pair the other way round
    assert (turned.ece, turned.mce) == pytest.approx((found.ece, found.mce))


def test_a_calibrated_simulator_has_little_error_in_equal_widths():
    draws = np.random.default_rng(0)
    p = draws.random(20_000)
    found = binned_calibration(p, draws.random(20_000) < p)
    assert found.ece < 0.01 and found.mce < 0.03


def test_what_has_no_bins_is_refused():
    with pytest.raises(ConfigError, match="bins is 0"):
        binned_calibration([0.5], bins=0)
    with pytest.raises(DataError, match="label in row 1 is 2; expected 0 to 1"):
        binned_calibration([0.5, 0.5], [0, 2])
    with pytest.raises(DataError, match="probability in row 0 is -0.5"):
        binned_calibration([-0.5])
    with pytest.raises(DataError):
        binned_calibration([])
