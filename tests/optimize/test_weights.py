"""Weights of responses: a softmax over each prompt's, by rewards or log-probabilities."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax
from torch.autograd import gradcheck

from ebrm.errors import ConfigError, DataError
from ebrm.groups import Groups
from ebrm.optimize import regression_weights, steerlm2_weights, tilt, tilt_weights

INDEX = torch.tensor([0, 2, 0, 1, 2, 0])
GROUPS = Groups(INDEX, 4)


def draws(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_known_answers() -> None:
    both = Groups.of([0, 0])
    assert tilt_weights([0, 1], both, 1.0).tolist() == pytest.approx([1 - 0.7310586, 0.7310586])
    assert regression_weights([0.0, 1.0], both, 1.0).tolist() == pytest.approx([2 - 2 * 0.7310586, 2 * 0.7310586])
    assert steerlm2_weights([0.0, math.log(3)], [0.0, 0.0], both).tolist() == pytest.approx([0.25, 0.75])


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0.01, 100))
def test_each_prompt_by_hand(seed: int, beta: float) -> None:
    reward, proposal = draws(seed, 2, 6)
    found, regression = tilt_weights(reward, GROUPS, beta), regression_weights(reward, GROUPS, beta)
    steer = steerlm2_weights(reward, proposal, GROUPS)
    for group in range(3):
        rows = (group == INDEX).nonzero()[:, 0]
        expected = softmax(reward[rows].numpy() / beta)
        assert found[rows].tolist() == pytest.approx(expected.tolist())
        assert regression[rows].tolist() == pytest.approx((len(rows) * expected).tolist())
        assert steer[rows].tolist() == pytest.approx(softmax((reward - proposal)[rows].numpy()).tolist())


def test_the_limits_are_the_best_response_and_all_alike() -> None:
    reward = torch.tensor([1.0, 5.0, 3.0, 2.0, -1e300, 3.0], dtype=torch.float64)
    assert tilt_weights(reward, GROUPS, 0.0).tolist() == [0, 1, 0.5, 1, 0, 0.5]
    assert tilt_weights(reward, GROUPS, 1e-12).tolist() == [0, 1, 0.5, 1, 0, 0.5]
    assert tilt_weights(reward, GROUPS, math.inf).tolist() == pytest.approx([1 / 3, 0.5, 1 / 3, 1, 0.5, 1 / 3])
    assert regression_weights(reward, GROUPS, math.inf).tolist() == pytest.approx([1.0] * 6)


def test_the_weights_are_those_of_the_tilted_policy_and_no_others_as_far_are_worth_more() -> None:
    reward, gold, one = draws(1, 8), draws(2, 8), Groups.of([0] * 8)
    weight = tilt_weights(reward, one, 0.7)
    policy = tilt(reward[None], gold[None], [0.7])
    assert float(weight @ gold) == pytest.approx(float(policy.gold[0, 0]))
    kl = float((weight * (8 * weight).log()).sum())
    assert kl == pytest.approx(float(policy.kl[0, 0]))
    others = draws(3, 5000, 8).softmax(1)
    near = (others * (8 * others).log()).sum(1) <= kl
    assert int(near.sum()) > 100 and float((others[near] @ reward).max()) < float(weight @ reward)


def test_the_baseline_makes_the_gradient_vanish_at_the_target_and_sum_to_0() -> None:
    target, proposal, policy = draws(4, 3, 6)
    difference = steerlm2_weights(target, proposal, GROUPS) - steerlm2_weights(policy, proposal, GROUPS)
    assert GROUPS.sum(difference).tolist() == pytest.approx([0.0] * 4, abs=1e-12)
    moved = target + torch.tensor([3.0, -7, 3, 1, -7, 3])  # by a constant of each prompt
    same = steerlm2_weights(target, proposal, GROUPS) - steerlm2_weights(moved, proposal, GROUPS)
    assert same.tolist() == pytest.approx([0.0] * 6, abs=1e-12)


def test_gradients_are_those_of_finite_differences() -> None:
    first, second = (x.requires_grad_() for x in draws(5, 2, 6).unbind())
    assert gradcheck(lambda r: regression_weights(r, GROUPS, 0.4), (first,))
    assert gradcheck(lambda t, p: steerlm2_weights(t, p, GROUPS), (first, second))


def test_what_has_no_weights_is_refused() -> None:
    none = Groups.of([])
    assert tilt_weights([], none, 1.0).shape == steerlm2_weights([], [], none).shape == (0,)
    for beta in (-1.0, math.nan):
        with pytest.raises(ConfigError, match="`beta` is"):
            tilt_weights([1.0], Groups.of([0]), beta)
    with pytest.raises(ValueError, match="n = 6"):
        regression_weights([1.0], GROUPS, 1.0)
    with pytest.raises(DataError, match="index 1"):
        steerlm2_weights([0.0, math.nan], [0.0, 0.0], Groups.of([0, 0]))
