from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist
from scipy.special import expit

from ebrm.groups import Groups
from ebrm.shape import hardness_scale, hardness_scaled_advantage, separability


def doubles(*values):
    return torch.tensor(values, dtype=torch.float64)


def draws(seed, *shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_known_answers():
    scale = hardness_scale(doubles(0.5, 0.0))  # 0.5 where the mean is 0.25
    assert scale[0].item() == pytest.approx(1.107231, abs=1e-6)
    assert hardness_scale(doubles(0.25, 0.5, 0.0))[0].item() == pytest.approx(1.0)
    both = hardness_scale(doubles(0.5, 0.0), doubles(3.0, -1.0))
    expected = expit([0.5, 0.0]) / expit(0.25) * expit([3.0, -1.0]) / expit(1.0)
    assert both.tolist() == pytest.approx(expected.tolist())
    text = draws(0, 3, 4, 5)
    assert separability(text, text).tolist() == pytest.approx([0.0] * 3, abs=1e-12)
    assert separability(doubles(1, 0).view(1, 1, 2), doubles(-2, 0).view(1, 1, 2)).tolist() == [2.0]
    half = separability(doubles(1, 0, 0, 1).view(1, 2, 2), doubles(3, 0).view(1, 1, 2))
    assert half.tolist() == [0.5]  # One of two sentences is there.
    assert separability(doubles(3, 0).view(1, 1, 2), doubles(1, 0, 0, 1).view(1, 2, 2)).tolist() == [0.0]
    advantage = hardness_scaled_advantage(
        doubles(-1, 1, -2, 2), doubles(2.0, 0.5), Groups(torch.tensor([0, 0, 1, 1]), 2)
    )
    assert advantage.tolist() == [-2, 2, -1, 1]


@settings(max_examples=20)
@given(st.integers(0, 2**32 - 1), st.integers(1, 4), st.integers(1, 4))
def test_separability_by_hand_in_any_order_and_padded(seed, s, t):
    first, second = draws(seed, 5, s, 6), draws(seed + 1, 5, t, 6)
    found = separability(first, second)
    for row in range(5):
        nearest = cdist(first[row].numpy(), second[row].numpy(), "cosine").min(1)
        assert float(found[row]) == pytest.approx(nearest.mean())
    lengths = 0.1 + draws(seed + 2, 5, s, 1).abs()
    for other in (
        separability(first.flip(1), second.flip(1)), separability(first * lengths, 3 * second),
        separability(first.repeat(1, 2, 1), second.repeat(1, 3, 1)),
    ):  # fmt: skip
        assert other.tolist() == pytest.approx(found.tolist())
    there = torch.tensor([False] + [True] * s + [False]).expand(5, s + 2)
    present = torch.tensor([True] * t + [False]).expand(5, t + 1)
    wide = torch.cat([torch.full((5, 1, 6), math.nan), first, second[:, :1]], 1)
    wider = torch.cat([second, first[:, :1]], 1)
    assert separability(wide, wider, there, present).tolist() == pytest.approx(found.tolist())


@settings(max_examples=25)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=12), st.integers(0, 2**32 - 1))
def test_scales_by_hand_and_bounds(delta, seed):
    values, gap = doubles(*delta), 5 * draws(seed, len(delta))
    alone, both = hardness_scale(values), hardness_scale(values, gap)
    assert alone.tolist() == pytest.approx((expit(delta) / expit(np.mean(delta))).tolist())
    assert (both / alone).tolist() == pytest.approx((expit(gap.numpy()) / expit(float(gap.mean()))).tolist())
    assert bool((alone > 0.5 / expit(1) - 1e-12).all()) and bool((alone < expit(1) / 0.5 + 1e-12).all())
    order = torch.randperm(len(delta), generator=torch.Generator().manual_seed(seed))
    assert hardness_scale(values[order], gap[order]).tolist() == pytest.approx(both[order].tolist())
    if len(set(delta)) > 1 and max(delta) - min(delta) > 0.1:  # Neither offsets nor scale are free.
        assert not torch.allclose(hardness_scale(values + 3), alone)
        assert not torch.allclose(hardness_scale(values * 2), alone)


def test_scaled_advantages_still_sum_to_zero():
    advantage, groups = doubles(-1, 0, 1, -2, 2, 0), Groups(torch.tensor([0, 0, 0, 2, 2, 3]), 5)
    scale = hardness_scale(draws(3, 5), draws(4, 5))
    assert groups.sum(hardness_scaled_advantage(advantage, scale, groups)).tolist() == pytest.approx([0.0] * 5)
    assert torch.equal(hardness_scaled_advantage(advantage, torch.ones(5), groups), advantage)


def test_equal_few_and_extreme():
    assert hardness_scale(torch.full((7,), 0.1), torch.full((7,), -3.3)).tolist() == [1.0] * 7
    assert hardness_scale(doubles(0.7), doubles(-900.0)).tolist() == [1.0]
    low = hardness_scale(doubles(0.0, 0.0), doubles(-1000.0, -998.0))  # Both σ are 0 in float64.
    assert low.tolist() == pytest.approx([math.exp(-1), math.exp(1)])
    assert hardness_scale(torch.empty(0), torch.empty(0)).shape == (0,)
    assert separability(torch.empty(0, 2, 3), torch.empty(0, 1, 3)).shape == (0,)
    none = Groups(torch.empty(0, dtype=torch.int64), 2)
    assert hardness_scaled_advantage(torch.empty(0), torch.ones(2), none).shape == (0,)
