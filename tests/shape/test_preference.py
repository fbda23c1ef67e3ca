from __future__ import annotations

import json
import math
from collections.abc import Callable
from functools import partial
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import curve_fit
from scipy.special import expit, log_expit
from scipy.stats import norm, zscore

from ebrm.shape import (
    RunningStatistics,
    Squash,
    centered_on_references,
    log_sigmoid_centered,
    preference_as_reward,
    reference_level,
    running_clipped,
    running_min_max,
    running_standardized,
)

ALL = get_args(Squash)


def doubles(*values):
    return torch.tensor(values, dtype=torch.float64)


def draws(seed, *shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_preference_as_reward_known_answers():
    for slope, expected in ((1.0, 0.6155293), (2.0, 0.6903985)):
        found = preference_as_reward(doubles(1.0), doubles(0.0, 1.0)[None], slope)
        assert found.item() == pytest.approx(expected, abs=1e-7)
    assert preference_as_reward(doubles(1.0), doubles(0.0, 1.0)[None]).item() == pytest.approx((expit(1) + 0.5) / 2)
    equal = preference_as_reward(doubles(0.3, -7.0), doubles(0.3, -7.0)[:, None].expand(2, 5))
    assert equal.tolist() == [0.5, 0.5]
    # Saturation: 1 - r' ~ exp(-s (r - r_ref)); no overflow at either end.
    assert 1 - preference_as_reward(doubles(12.0), doubles(2.0)[:, None], 2.0).item() == pytest.approx(math.exp(-20))
    assert preference_as_reward(doubles(1e4, -1e4), torch.zeros(2, 1)).tolist() == [1.0, 0.0]


def test_the_other_squashings():
    reward, reference = draws(0, 30) * 4, draws(1, 30, 3) * 3
    ahead = (0.7 * (reward[:, None] - reference)).numpy()
    assert preference_as_reward(reward, reference, 0.7, "arctan").tolist() == pytest.approx(
        np.arctan(ahead).mean(1).tolist()
    )
    assert preference_as_reward(reward, reference, 0.7, "tanh").tolist() == pytest.approx(
        (2 * preference_as_reward(reward, reference, 1.4) - 1).tolist()
    )
    places = np.linspace(-5, 5, 100)
    best, _ = curve_fit(lambda x, a, b, c, d, e, f: np.polyval([a, b, c, d, e, f], x), places, expit(places))
    expected = np.where(ahead <= -5, 0, np.where(ahead >= 5, 1, np.polyval(best, ahead))).mean(1)
    found = preference_as_reward(reward, reference, 0.7, "polynomial")
    assert found.tolist() == pytest.approx(expected.tolist(), abs=1e-6)
    assert (abs(ahead) > 5).any()
    assert preference_as_reward(doubles(-5.0, 5.0), torch.zeros(2, 1), squash="polynomial").tolist() == [0.0, 1.0]


@pytest.mark.parametrize("squash", ALL)
def test_scale_is_slope_and_more_reward_is_never_less(squash):
    reward, reference = draws(9, 12), draws(10, 12, 4)
    found = preference_as_reward(reward, reference, squash=squash)
    torch.testing.assert_close(preference_as_reward(3 * reward, 3 * reference, 1 / 3, squash), found)
    torch.testing.assert_close(preference_as_reward(reward, reference.flip(1), squash=squash), found)
    if squash != "polynomial":
        assert bool((preference_as_reward(reward + 0.1, reference, squash=squash) > found).all())
    assert torch.allclose(centered_on_references(reward, reference), reward - reference.mean(1))


@pytest.mark.parametrize("squash", ALL)
def test_padding_is_not_looked_at(squash):
    reward, reference = draws(3, 6), draws(4, 6, 3)
    padded = torch.cat([torch.full((6, 1), math.nan), reference, torch.full((6, 2), math.inf)], 1)
    present = torch.tensor([False, True, True, True, False, False]).expand(6, 6)
    for function in (partial(preference_as_reward, squash=squash), centered_on_references):
        assert function(reward, padded, present=present).tolist() == pytest.approx(function(reward, reference).tolist())


def test_the_slope_is_highest_at_the_reference_and_gradients_are_right():
    reward = torch.linspace(-4, 4, 81, dtype=torch.float64).requires_grad_()
    preference_as_reward(reward, torch.zeros(81, 1)).sum().backward()
    assert reward.grad is not None and int(reward.grad.argmax()) == 40 and float(reward.grad[40]) == pytest.approx(0.25)
    values, reference = draws(5, 4).requires_grad_(), draws(6, 4, 3).requires_grad_()
    for squash in ALL:
        assert torch.autograd.gradcheck(
            lambda r, f, how=squash: preference_as_reward(r, f, 1.3, how), (values, reference)
        )
    assert torch.autograd.gradcheck(log_sigmoid_centered, (values, reference[:, 0]))


def test_log_sigmoid_centered():
    found = log_sigmoid_centered(doubles(3.0, 13.0, -7.0), torch.tensor(3.0))
    assert found.tolist() == pytest.approx([-math.log(2), -4.5398899e-5, -10.0000454], rel=1e-6)
    for dtype in (torch.float32, torch.float64):  # Where log(sigmoid) is -infinity.
        assert log_sigmoid_centered(torch.tensor([-1e4, 1e4], dtype=dtype), torch.zeros(2)).tolist() == [-1e4, 0.0]
    reward = doubles(1.0).requires_grad_()
    log_sigmoid_centered(reward, doubles(1.0)).sum().backward()
    assert reward.grad is not None and reward.grad.item() == pytest.approx(0.5)


@settings(max_examples=20)
@given(st.integers(0, 2**32 - 1), st.floats(-50, 50))
def test_log_sigmoid_centered_moves_with_its_level(seed, offset):
    reward, level = 5 * draws(seed, 20), draws(seed + 1, 20)
    found = log_sigmoid_centered(reward, level)
    assert found.tolist() == pytest.approx(log_expit((reward - level).numpy()).tolist())
    assert log_sigmoid_centered(reward + offset, level + offset).tolist() == pytest.approx(found.tolist(), abs=1e-9)
    assert torch.equal(log_sigmoid_centered(reward, level[0]).argsort(), reward.argsort())
    assert not torch.allclose(log_sigmoid_centered(2 * reward, 2 * level), found)


def test_levels_against_numpy_and_scipy():
    reference = draws(7, 9, 11)
    for quantile in (0.05, 0.5, 0.85):
        expected = np.quantile(reference.numpy(), quantile, axis=1)
        assert reference_level(reference, quantile).tolist() == pytest.approx(expected.tolist())
        for ddof in (0, 1):
            fitted = norm.ppf(quantile, reference.numpy().mean(1), reference.numpy().std(1, ddof=ddof))
            assert reference_level(reference, quantile, "normal", ddof).tolist() == pytest.approx(fitted.tolist())
    normal = reference_level(doubles(0.0, 1.0)[None], how="normal", ddof=0)
    assert normal.item() == pytest.approx(0.5 + 1.0364334 * 0.5)


@pytest.mark.parametrize("how", ["empirical", "normal"])
def test_levels_of_few_equal_and_padded_references(how):
    assert reference_level(torch.full((2, 3), 0.1, dtype=torch.float64), how=how).tolist() == [0.1, 0.1]
    assert reference_level(doubles(0.7)[:, None], how=how).tolist() == [0.7]
    assert reference_level(torch.empty(0, 3), how=how).shape == (0,)
    reference, present = draws(8, 5, 4), torch.ones(5, 4, dtype=torch.bool)
    present[0, 1:] = False
    present[1, 0] = False
    padded = torch.where(present, reference, math.nan)
    found = reference_level(padded, how=how, present=present)
    assert found[0] == reference[0, 0]
    torch.testing.assert_close(found[1:2], reference_level(reference[1:2, 1:], how=how))
    torch.testing.assert_close(found[2:], reference_level(reference[2:], how=how))
    torch.testing.assert_close(reference_level(3 * reference - 2, how=how), 3 * reference_level(reference, how=how) - 2)


RUNNING_SHAPES: list[Callable[[torch.Tensor, RunningStatistics], torch.Tensor]]
RUNNING_SHAPES = [running_standardized, running_min_max, running_clipped]
REWARDS = st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=30)


def seen(*values):
    return RunningStatistics().updated(doubles(*values))


def test_known_answers():
    reward = doubles(1.0, 2.0, 3.0, 6.0)
    statistics = RunningStatistics().updated(reward)
    assert statistics == RunningStatistics(4, 3.0, 14.0, 1.0, 6.0)
    assert statistics.std() == pytest.approx(math.sqrt(3.5)) and statistics.std(1) == pytest.approx(math.sqrt(14 / 3))
    assert running_standardized(reward, statistics).tolist() == pytest.approx(zscore(reward.numpy()).tolist())
    assert running_standardized(reward, statistics, 1).tolist() == pytest.approx(
        zscore(reward.numpy(), ddof=1).tolist()
    )
    low, high = 3 - math.sqrt(3.5), 3 + math.sqrt(3.5)
    assert running_clipped(reward, statistics).tolist() == pytest.approx([low, 2.0, 3.0, high])
    assert running_clipped(reward, statistics, 0.5, 1).tolist() == pytest.approx(
        [3 - 1.0801, 2.0, 3.0, 3 + 1.0801], abs=1e-4
    )
    assert running_min_max(reward, statistics).tolist() == pytest.approx([0.0, 0.2, 0.4, 1.0])
    assert running_min_max(doubles(-4.0, 11.0), statistics).tolist() == pytest.approx([-1.0, 2.0])


@given(REWARDS, REWARDS, st.integers(0, 30))
def test_batches_and_parts_make_no_difference(first, second, cut):
    both = np.array(first + second)
    in_turn = seen(*first).updated(doubles(*second))
    merged = RunningStatistics().merged(seen(*first)).merged(seen(*second)).merged(RunningStatistics())
    other_cut = seen(*both[:cut]).updated(doubles(*both[cut:]))
    for found in (in_turn, merged, other_cut, seen(*second).merged(seen(*first))):
        assert found.count == len(both)
        assert (found.lowest, found.highest) == (both.min(), both.max())
        assert found.mean == pytest.approx(both.mean(), abs=1e-9)
        assert found.std() == pytest.approx(both.std(), abs=1e-6)
        if len(both) > 1:
            assert found.std(1) == pytest.approx(both.std(ddof=1), abs=1e-6)
    assert in_turn.updated(torch.empty(0)) == in_turn
    assert RunningStatistics(**json.loads(json.dumps(vars(in_turn)))) == in_turn


def test_a_large_offset_costs_no_digits():
    reward = 1e9 + doubles(0.0, 1.0, 2.0)
    assert RunningStatistics().updated(reward[:1]).updated(reward[1:]).std() == pytest.approx(math.sqrt(2 / 3))


def test_equal_rewards():
    same = seen(0.1, 0.1, 0.1)
    assert same.std() == same.std(1) == same.updated(doubles(0.1)).std() == 0.0
    assert running_standardized(doubles(0.1, 1.1), same).tolist() == pytest.approx([0.0, 1.0])
    assert running_clipped(doubles(0.1, 1.1), same).tolist() == pytest.approx([0.1, 0.1])
    assert running_min_max(doubles(0.1, 1.1), same).tolist() == [0.5, 0.5]
    assert seen(4.0).std(1) == 0.0
