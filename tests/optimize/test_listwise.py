from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import logsumexp, softmax

from ebrm.groups import Groups
from ebrm.optimize import soft_plackett_luce

ROWS = st.lists(
    st.tuples(st.integers(0, 4), st.floats(-5, 5), st.sampled_from([-1.0, 0.0, 0.1, 0.5, 2.0])), min_size=1, max_size=25
)


def doubles(*values):
    return torch.tensor(values, dtype=torch.float64)


def draws(seed, *shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def one(n):
    return Groups.of([0] * n)


def by_hand(score, reward, temperature):
    """Sum over the choices, all responses of equal reward being left until the last of them is chosen."""
    order = np.argsort(-reward, kind="stable")
    score, reward = score[order], reward[order]
    total = 0.0
    for i in range(len(order) - 1):
        left = reward <= reward[i]
        total += logsumexp(score[left]) - softmax(reward[left] / temperature) @ score[left]
    return total


def test_known_answers():
    pair = soft_plackett_luce(doubles(0.3, -0.4), doubles(2.0, 1.0), one(2), 1e-3)
    assert pair.tolist() == pytest.approx([0.4031861], abs=1e-7)
    assert pair.item() == pytest.approx(math.log1p(math.exp(-0.7)))  # -log σ(0.7), Bradley-Terry
    soft = soft_plackett_luce(doubles(0.3, -0.4), doubles(0.1, 0.0), one(2))  # q = σ(2)
    q = 1 / (1 + math.exp(-2))
    assert soft.item() == pytest.approx(np.logaddexp(0.3, -0.4) - 0.3 * q + 0.4 * (1 - q))
    score = draws(0, 5)
    found = soft_plackett_luce(score, torch.arange(5).flip(0).double(), one(5), 1e-3)  # Plackett-Luce
    assert found.item() == pytest.approx(sum(logsumexp(score[i:].numpy()) - float(score[i]) for i in range(4)))


@settings(max_examples=40)
@given(ROWS, st.sampled_from([0.05, 1.0, 30.0]))
def test_each_group_by_hand(rows: list[tuple[int, float, float]], temperature):
    ids, score, reward = ([row[i] for row in rows] for i in range(3))
    found = soft_plackett_luce(doubles(*score), doubles(*reward), Groups.of(ids), temperature)
    for number, name in enumerate(dict.fromkeys(ids)):
        of = [i for i, id in enumerate(ids) if id == name]
        expected = by_hand(np.array(score)[of], np.array(reward)[of], temperature)
        assert float(found[number]) == pytest.approx(expected, abs=1e-9)
    assert bool((found >= -1e-12).all())


@settings(max_examples=20)
@given(st.integers(0, 2**32 - 1), st.floats(-20, 20), st.floats(0.1, 10))
def test_invariances(seed, offset, scale):
    score, index = draws(seed, 30), torch.arange(30) % 6
    reward = (2 * draws(seed + 1, 30)).round() / 2  # With ties.
    groups, found = Groups(index, 7), soft_plackett_luce(score, reward, Groups(index, 7), 0.3)
    moves = (offset * draws(seed + 2, 7))[index]
    order = torch.randperm(30, generator=torch.Generator().manual_seed(seed))
    same = [
        soft_plackett_luce(score + moves, reward, groups, 0.3),
        soft_plackett_luce(score, reward + moves.round(), groups, 0.3),
        soft_plackett_luce(score, reward * 4, groups, 1.2),
        soft_plackett_luce(score[order], reward[order], Groups(index[order], 7), 0.3),
    ]
    for other in same:
        assert other.tolist() == pytest.approx(found.tolist(), abs=1e-9)
    if abs(scale - 1) > 0.1:
        assert not torch.allclose(soft_plackett_luce(scale * score, reward, groups, 0.3), found)
        assert not torch.allclose(soft_plackett_luce(score, scale * reward, groups, 0.3), found)


def test_gradients():
    score = draws(2, 9).requires_grad_()
    reward, groups = doubles(1, 0, 0, 2, 1, 1, 3, 0, 2), Groups(torch.tensor([0, 0, 0, 0, 0, 1, 1, 2, 4]), 5)
    for temperature in (0.05, 0.7, 10.0):
        assert torch.autograd.gradcheck(lambda s, t=temperature: soft_plackett_luce(s, reward, groups, t), score)
    rewards = reward.clone().requires_grad_()
    loss = soft_plackett_luce(score, rewards, groups).sum()
    loss.backward()
    assert rewards.grad is None and score.grad is not None and bool(score.grad.isfinite().all())
    assert groups.sum(score.grad).tolist() == pytest.approx([0.0] * 5, abs=1e-12)


def test_equal_rewards_want_equal_scores():
    equal = torch.full((4,), 0.7, dtype=torch.float64).requires_grad_()
    least = soft_plackett_luce(equal, torch.ones(4), one(4))
    least.sum().backward()
    assert least.item() == pytest.approx(3 * math.log(4)) and equal.grad is not None
    assert equal.grad.tolist() == pytest.approx([0.0] * 4, abs=1e-12)
    for seed in range(5):
        assert soft_plackett_luce(draws(seed, 4), torch.ones(4), one(4)).item() > least.item()


def test_extremes_stay_finite():
    score, reward = doubles(1e4, -1e4, 0.0).requires_grad_(), doubles(-1e6, 1e6, 0.0)
    loss = soft_plackett_luce(score, reward, one(3))
    loss.sum().backward()
    assert loss.item() == pytest.approx(2e4 + 1e4) and score.grad is not None and bool(score.grad.isfinite().all())


def test_few_rows_and_types():
    found = soft_plackett_luce(torch.ones(3), torch.ones(3), Groups(torch.tensor([1, 3, 3]), 5))
    assert found.tolist() == pytest.approx([0, 0, 0, math.log(2), 0]) and found.dtype == torch.float32
    assert soft_plackett_luce(torch.empty(0), torch.empty(0), Groups.of([])).shape == (0,)
    assert soft_plackett_luce(torch.ones(2, dtype=torch.bfloat16), torch.ones(2), one(2)).dtype == torch.bfloat16
