"""PreferenceCalibration: one temperature from held-out pairs, symmetric, never worse where it was fitted."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize
from sklearn.linear_model import LogisticRegression

from ebrm.calibration import PreferenceCalibration, confidence, cross_calibrated
from ebrm.errors import ConfigError, DataError
from ebrm.metrics import detection_auroc

probabilities = st.lists(st.floats(0, 1, width=32), min_size=1, max_size=30)


def overconfident(pairs: int, factor: float, noise: float = 0.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """P(first > second) of a head that multiplies true log odds by `factor`, and labels, a share `noise` turned."""
    generator = np.random.default_rng(seed)
    odds = generator.normal(0, 1.5, pairs)
    label = generator.random(pairs) < 1 / (1 + np.exp(-odds))
    label ^= generator.random(pairs) < noise
    return 1 / (1 + np.exp(-factor * odds)), label.astype(np.float64)


def log_loss(p: np.ndarray, y: np.ndarray, w: np.ndarray | float = 1.0) -> float:
    w = np.broadcast_to(w, y.shape)
    tiny = np.finfo(np.float64).tiny
    losses = -(y * np.log(np.maximum(p, tiny)) + (1 - y) * np.log(np.maximum(1 - p, tiny)))
    return float((w * losses).sum() / w.sum())


@pytest.mark.parametrize("factor", [0.5, 1.0, 3.0])
def test_the_temperature_undoes_what_a_head_multiplies_its_log_odds_by(factor):
    p, y = overconfident(20_000, factor)
    found = PreferenceCalibration.fit(p, y)
    assert found.temperature == pytest.approx(factor, rel=0.05)
    assert found.evidence > 0.99 and found.pairs == 20_000


def test_the_temperature_of_many_pairs_is_the_slope_of_a_logistic_regression_without_intercept():
    p, y = overconfident(50_000, 2.0)
    odds = np.log(p / (1 - p))
    slope = LogisticRegression(C=1e10, fit_intercept=False, tol=1e-10).fit(odds[:, None], y).coef_[0, 0]
    assert 1 / PreferenceCalibration.fit(p, y).temperature == pytest.approx(slope, rel=1e-4)


@pytest.mark.parametrize("noise", [0.0, 0.2])
def test_it_minimizes_the_stated_objective_of_soft_labels_weights_and_prior(noise):
    generator = np.random.default_rng(1)
    p, y, w = generator.uniform(0.02, 0.98, 40), generator.random(40), generator.exponential(1.0, 40)
    odds, scaled = np.log(p / (1 - p)), w * w.sum() / (w**2).sum()

    def objective(log_temperature: np.ndarray) -> float:
        q = noise + (1 - 2 * noise) / (1 + np.exp(-odds / math.exp(log_temperature[0])))
        return float(-(scaled * (y * np.log(q) + (1 - y) * np.log(1 - q))).sum() + log_temperature[0] ** 2 / 2)

    best = min((minimize(objective, [start], method="BFGS") for start in (-2, 0, 2)), key=lambda found: found.fun)
    found = PreferenceCalibration.fit(p, y, w, noise)
    assert math.log(found.temperature) == pytest.approx(best.x[0], abs=1e-4)
    # The share of the curvature that is not the prior's, which is 1.
    assert found.evidence == pytest.approx(max(0, 1 - float(best.hess_inv[0, 0])), abs=0.02)


@given(probabilities, st.data(), st.floats(0, 0.49))
def test_log_loss_is_never_worse_on_the_pairs_it_was_fitted_on(given_p, data, noise):
    p = np.array(given_p)
    numbers = st.lists(st.floats(0, 1), min_size=len(p), max_size=len(p))
    y, w = np.array(data.draw(numbers)), np.array(data.draw(numbers))
    found = PreferenceCalibration.fit(p, y, w, noise)
    assert found.log_loss <= found.raw_log_loss + 1e-12
    assert found.temperature > 0 and 0 <= found.evidence <= 1


def test_the_log_losses_are_those_of_the_label_probability():
    p, y = overconfident(500, 3.0, noise=0.1)
    w = np.random.default_rng(0).exponential(1.0, 500)
    found = PreferenceCalibration.fit(p, y, w, 0.1)
    assert found.raw_log_loss == pytest.approx(log_loss(0.1 + 0.8 * p, y, w), abs=1e-9)
    assert found.log_loss == pytest.approx(log_loss(found.label_probability(p).double().numpy(), y, w), abs=1e-6)
    assert found.log_loss < found.raw_log_loss


@given(probabilities, st.floats(0.01, 100))
def test_a_over_b_and_b_over_a_sum_to_one_exactly(given_p, temperature):
    calibrate = PreferenceCalibration(temperature)
    high = torch.tensor([max(p, 1 - p) for p in given_p], dtype=torch.float64)
    a, b = calibrate(high), calibrate(1 - high)
    assert torch.equal(a + b, torch.ones_like(a))
    assert bool((a >= 0.5).all()) and bool(torch.isfinite(a).all())
    assert a.dtype == torch.float32 and float(calibrate(torch.tensor(0.5))) == 0.5


def test_a_temperature_of_one_changes_nothing():
    p = torch.rand(1000, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(PreferenceCalibration()(p), p, atol=1e-6)


def test_a_temperature_divides_the_log_odds():
    odds = torch.tensor([-3.0, -0.1, 0.0, 2.0], dtype=torch.float64)
    assert torch.allclose(PreferenceCalibration(2.5)(odds.sigmoid()), (odds / 2.5).sigmoid().float(), atol=1e-7)


def test_calibration_changes_no_auroc():
    p, y = overconfident(300, 4.0)
    after = PreferenceCalibration.fit(p, y)(p)
    error = (p > 0.5) != (y > 0.5)
    before = detection_auroc(1 - confidence(p), error)
    assert detection_auroc(1 - confidence(after), error).value == pytest.approx(before.value)


def test_labels_say_q_and_p_is_what_is_behind_them():
    p, y = overconfident(20_000, 2.0, noise=0.2)
    found = PreferenceCalibration.fit(p, y, label_noise=0.2)
    assert found.temperature == pytest.approx(2.0, rel=0.1)
    assert torch.allclose(found.label_probability(p), 0.2 + 0.6 * found(p), atol=1e-7)
    # Without it, labels that are often wrong look like a head that knows little.
    assert PreferenceCalibration.fit(p, y).temperature > 3


def test_without_noise_the_label_probability_is_p():
    p = np.linspace(0, 1, 21)
    found = PreferenceCalibration(1.7)
    assert torch.equal(found.label_probability(p), found(p))


def test_few_pairs_move_the_temperature_less_than_many_of_the_same():
    p, y = overconfident(12, 4.0)
    few, many = PreferenceCalibration.fit(p, y), PreferenceCalibration.fit(np.tile(p, 50), np.tile(y, 50))
    assert 1 < few.temperature < many.temperature
    assert few.evidence < 0.9 < many.evidence
    assert "prior at 1" in few.sentence() and "prior" not in many.sentence()


def test_without_pairs_probabilities_stay_as_they_are():
    none = PreferenceCalibration.fit([])
    assert none == PreferenceCalibration() == PreferenceCalibration.fit([0.9, 0.2], weight=[0.0, 0.0])
    assert "no pairs" in none.sentence()


def test_a_pair_of_weight_zero_is_no_pair():
    p, y = overconfident(30, 3.0)
    padded = PreferenceCalibration.fit([*p, 0.99], [*y, 0.0], [1.0] * 30 + [0.0])
    assert padded.temperature == pytest.approx(PreferenceCalibration.fit(p, y).temperature, rel=1e-6)
    assert padded.pairs == 30


def test_weights_count_by_their_ratios():
    p, y = overconfident(30, 3.0)
    w = np.linspace(0.5, 2, 30)
    assert PreferenceCalibration.fit(p, y, w).temperature == pytest.approx(
        PreferenceCalibration.fit(p, y, 1e-3 * w).temperature, rel=1e-6
    )


def test_certain_and_wrong_is_finite():
    found = PreferenceCalibration.fit([0.0, 1.0, 1.0])
    assert math.isfinite(found.log_loss) and found.temperature > 1
    assert bool(torch.isfinite(found([0.0, 1.0])).all())


def test_p_best_of_two_is_the_calibrated_p():
    found, p = PreferenceCalibration(2.0), torch.tensor([0.8, 0.2])
    assert torch.equal(found.best(p)[:1], found(p[:1])) and float(found.best(p).sum()) == 1


def test_p_best_of_a_softmax_is_the_softmax_of_rewards_over_the_temperature():
    rewards = torch.tensor([1.0, -2.0, 0.5, 4.0], dtype=torch.float64)
    found = PreferenceCalibration(3.0).best(rewards.softmax(0))
    assert torch.allclose(found, (rewards / 3).softmax(0).float(), atol=1e-6)
    assert PreferenceCalibration(3.0).best(torch.ones(1)).tolist() == [1.0]
    assert PreferenceCalibration(3.0).best(torch.empty(0)).tolist() == []


def test_confidence_is_that_of_the_more_probable_side():
    assert confidence([0.2, 0.5, 0.9, 1.0]).tolist() == pytest.approx([0.8, 0.5, 0.9, 1.0])


def test_it_goes_through_json():
    p, y = overconfident(40, 3.0)
    found = PreferenceCalibration.fit(p, y, label_noise=0.1)
    back = PreferenceCalibration.from_dict(json.loads(json.dumps(found.to_dict())))
    assert back == found and torch.equal(back(p), found(p))


def test_something_else_than_a_calibration_is_refused():
    with pytest.raises(ConfigError, match="cannot be put together"):
        PreferenceCalibration.from_dict({"warmth": 2})
    with pytest.raises(ConfigError, match="`temperature` is 0"):
        PreferenceCalibration.from_dict({"temperature": 0.0})


@pytest.mark.parametrize(
    ("arguments", "error", "what"),
    [
        (([0.5, 1.5],), DataError, "out of range, the first at index 1"),
        (([0.5, math.nan],), DataError, "not finite"),
        (([0.5], [2.0]), DataError, "label"),
        (([0.5], [1.0], [-1.0]), DataError, "weight"),
        (([0.5], [1.0, 1.0]), ValueError, "label"),
        (([0.5], None, None, 0.5), ConfigError, "`label_noise` is 0.5"),
    ],
)
def test_numbers_out_of_range_are_named(arguments, error, what):
    with pytest.raises(error, match=what):
        PreferenceCalibration.fit(*arguments)


def test_cross_calibration_never_sees_the_pair_s_own_prompt():
    p, y = overconfident(60, 3.0)
    prompt = np.arange(60) // 2
    turned = y.copy()
    turned[:2] = 1 - turned[:2]
    one, other = cross_calibrated(p, y, prompt_id=prompt), cross_calibrated(p, turned, prompt_id=prompt)
    assert torch.equal(one[:2], other[:2]) and not torch.equal(one, other)
    rest = prompt % 5 != 0
    assert torch.equal(one[:2], PreferenceCalibration.fit(p[rest], y[rest])(p[:2]))


def test_cross_calibration_lowers_the_log_loss_of_an_overconfident_head():
    p, y = overconfident(400, 4.0)
    assert log_loss(cross_calibrated(p, y).double().numpy(), y) < log_loss(p, y) - 0.1


def test_cross_calibration_needs_a_prompt_a_fold():
    with pytest.raises(DataError, match="2 prompts cannot be divided into 5 folds"):
        cross_calibrated([0.5, 0.6, 0.7], prompt_id=["a", "b", "b"])
    with pytest.raises(ConfigError, match="`folds` is 1"):
        cross_calibrated([0.5, 0.6], folds=1)
    with pytest.raises(ValueError, match="prompt_id"):
        cross_calibrated([0.5, 0.6], prompt_id=["a"], folds=2)
