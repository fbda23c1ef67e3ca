from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ebrm.aggregate import Lagrangian


def numbers(seed, *shape):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_known_answers():
    start = Lagrangian.start(torch.tensor([0.5, 0.0]), rate=2.0)
    assert start.multiplier.tolist() == pytest.approx([1 / 3] * 3)
    reward, met = torch.tensor([3.0, 0.0]), torch.tensor([[0.0, 3.0], [0.5, 1.0]])
    assert start.combine(reward, met).tolist() == pytest.approx([2.0, 0.5])
    # Means 0.25 and 2: the first falls short by 0.25, the second is met by 2.
    after = start.updated(met)
    assert after.level.tolist() == pytest.approx([0.5, -4.0])
    total = 1 + math.exp(0.5) + math.exp(-4)
    assert after.multiplier.tolist() == pytest.approx([1 / total, math.exp(0.5) / total, math.exp(-4) / total])
    assert start.level.tolist() == [0.0, 0.0]  # The old multipliers stay as they were.


def test_what_is_violated_gains_and_what_is_met_loses():
    state = Lagrangian.start(torch.tensor([0.8, 0.2]), rate=0.5)
    met = torch.tensor([[0.5, 0.5], [0.3, 0.9]])
    shares = [state.multiplier]
    for _ in range(200):
        state = state.updated(met)
        shares.append(state.multiplier)
    table = torch.stack(shares)
    assert bool((table[1:, 1] >= table[:-1, 1]).all()) and bool((table[1:, 2] <= table[:-1, 2]).all())
    assert table.sum(1).tolist() == pytest.approx([1.0] * 201)
    assert state.level.tolist() == [10.0, -10.0] and bool((state.multiplier > 0).all())
    # From the limit the way back is as long as the violation says.
    assert state.updated(torch.tensor([[10.8, 0.2]])).level.tolist() == pytest.approx([5.0, -10.0])


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(-5, 5))
def test_order_and_offset(seed, offset):
    reward, met = numbers(seed, 9), numbers(seed + 1, 9, 3)
    state = Lagrangian.start(numbers(seed + 2, 3)).updated(met)
    found = state.combine(reward, met)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(state.combine(reward[order], met[order]), found[order])
    assert state.updated(met[order]).level.tolist() == pytest.approx(state.updated(met).level.tolist())
    assert bool((found <= torch.cat([reward[:, None], met], 1).amax(1) + 1e-12).all())  # A mean of the four.
    assert state.combine(reward + offset, met + offset).tolist() == pytest.approx((found + offset).tolist(), abs=1e-9)
    moved = Lagrangian.start(state.threshold + offset).updated(met + offset)
    assert moved.level.tolist() == pytest.approx(state.level.tolist(), abs=1e-9)


def test_no_requirements_and_no_rows():
    state = Lagrangian.start(torch.empty(0))
    reward = numbers(0, 4)
    assert torch.equal(state.combine(reward, torch.empty(4, 0)), reward)
    assert state.updated(torch.empty(4, 0)).multiplier.tolist() == [1.0]
    some = Lagrangian.start(torch.zeros(2))
    assert some.updated(torch.empty(0, 2)) is some
    assert some.combine(torch.empty(0), torch.empty(0, 2)).shape == (0,)
