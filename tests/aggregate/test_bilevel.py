from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax

from ebrm.aggregate import bilevel_weights, expected_trusted
from ebrm.groups import Groups


def case(seed, n=60, a=3, prompts=9):
    generator = torch.Generator().manual_seed(seed)
    trusted = torch.randn(n, dtype=torch.float64, generator=generator)
    auxiliary = torch.randn(n, a, dtype=torch.float64, generator=generator)
    return trusted, auxiliary, Groups(torch.arange(n) % prompts, prompts)


def test_by_hand():
    # One prompt, rewards 0 and 1, β = 1: the policy chooses the second with probability σ(1 + w · 2).
    trusted, auxiliary, groups = torch.tensor([0.0, 1.0]), torch.tensor([[1.0], [3.0]]), Groups.of([0, 0])
    for weight in (0.0, 0.7, -2.0):
        value, gradient = expected_trusted(trusted, auxiliary, groups, torch.tensor([weight]))
        chance = 1 / (1 + math.exp(-1 - 2 * weight))
        assert value == pytest.approx(chance) and gradient.tolist() == pytest.approx([2 * chance * (1 - chance)])


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0.2, 5))
def test_value_and_gradient_against_scipy_and_finite_differences(seed, beta):
    trusted, auxiliary, groups = case(seed)
    weight = auxiliary[0].clone()
    value, gradient = expected_trusted(trusted, auxiliary, groups, weight, beta)
    by_hand = [
        softmax((trusted + auxiliary @ weight)[groups.index == x].numpy() / beta) @ trusted[groups.index == x].numpy()
        for x in range(9)
    ]
    assert value == pytest.approx(sum(by_hand) / 9)
    for k in range(3):
        step = 1e-5 * torch.eye(3, dtype=torch.float64)[k]
        up, down = (expected_trusted(trusted, auxiliary, groups, weight + s, beta)[0] for s in (step, -step))
        assert float(gradient[k]) == pytest.approx((up - down) / 2e-5, abs=1e-6)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_auxiliary_rewards_that_say_nothing_or_the_same(seed):
    trusted, auxiliary, groups = case(seed)
    per_prompt = groups.spread(torch.arange(9, dtype=torch.float64))
    policy = groups.softmax(trusted / 2)
    variance = groups.sum(policy * trusted.square()) - groups.sum(policy * trusted).square()
    columns = torch.stack([torch.ones(60, dtype=torch.float64), per_prompt, trusted, -trusted], 1)
    _, gradient = expected_trusted(trusted, columns, groups, torch.zeros(4), 2.0)
    expected = [0.0, 0.0, float(variance.mean() / 2), -float(variance.mean() / 2)]
    assert gradient.tolist() == pytest.approx(expected, abs=1e-9)
    uniform, none = expected_trusted(trusted, auxiliary, groups, torch.ones(3), 1e12)
    assert uniform == pytest.approx(float(groups.mean(trusted).mean())) and none.tolist() == pytest.approx([0.0] * 3)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(-9, 9))
def test_learned_weights_never_do_worse_here_and_do_not_see_offsets_or_order(seed, offset):
    trusted, auxiliary, groups = case(seed)
    found = bilevel_weights(trusted, auxiliary, groups, decay=0.01)
    assert found.after >= found.before
    assert found.before == pytest.approx(expected_trusted(trusted, auxiliary, groups, torch.zeros(3))[0])
    assert found.after == pytest.approx(expected_trusted(trusted, auxiliary, groups, found.weight)[0])
    moved = auxiliary + offset * groups.spread(torch.arange(9, dtype=torch.float64))[:, None]
    order = torch.randperm(60, generator=torch.Generator().manual_seed(seed))
    for other in (
        bilevel_weights(trusted, moved, groups, decay=0.01),
        bilevel_weights(trusted[order], auxiliary[order], Groups(groups.index[order], 9), decay=0.01),
    ):
        assert other.after == pytest.approx(found.after, abs=1e-6)
        assert other.weight.tolist() == pytest.approx(found.weight.tolist(), abs=1e-3)
    _, gradient = expected_trusted(trusted, auxiliary, groups, found.weight)
    assert gradient.tolist() == pytest.approx((0.01 * found.weight).tolist(), abs=1e-5)


def test_what_helps_gains_weight_and_what_misleads_is_turned_round():
    trusted, noise, groups = case(0, 3000, 1, 500)
    others = torch.cat([trusted[:, None] + noise, -trusted[:, None] + noise.flip(0), case(1, 3000, 1, 500)[1]], 1)
    found = bilevel_weights(trusted, others, groups, beta=2.0, decay=0.05)
    helps, misleads, nothing = found.weight.tolist()
    assert helps > 0.3 and misleads < -0.3 and abs(nothing) < 0.1
    assert found.after > found.before + 0.1
    assert float(bilevel_weights(trusted, others, groups, 2.0, 0.5).weight.norm()) < float(found.weight.norm())


def test_nothing_to_learn():
    trusted, auxiliary, groups = case(2)
    none = bilevel_weights(trusted, auxiliary[:, :0], groups)
    assert none.weight.shape == (0,) and none.after == none.before
    alone = bilevel_weights(trusted[:4], auxiliary[:4], Groups.of(range(4)))  # One response a prompt.
    assert alone.weight.tolist() == [0.0] * 3 and alone.after == alone.before == pytest.approx(
        float(trusted[:4].mean())
    )
    ties = bilevel_weights(torch.ones(60), auxiliary, groups)
    assert ties.weight.tolist() == pytest.approx([0.0] * 3, abs=1e-12) and ties.after == pytest.approx(1.0)
