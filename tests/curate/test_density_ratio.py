from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.curate.made_pairs import generator

from ebrm.curate import density_ratio_weights, odds_weights


def test_odds_between_the_bounds():
    f = torch.tensor([0.5, 0.9, 0.99, 0.2], dtype=torch.float64)
    assert odds_weights(torch.logit(f)).tolist() == pytest.approx([1.0, 9.0, 10.0, 0.5])
    assert odds_weights(torch.tensor([-1e4, 1e4])).tolist() == pytest.approx([0.5, 10.0])
    assert odds_weights(torch.logit(f), 0.25, 100).tolist() == pytest.approx([1.0, 9.0, 99.0, 0.25])


def test_the_ratio_of_two_normal_densities():
    # N(1, 1) against N(0, 1): the ratio is exp(x - 1/2), whatever the numbers of examples.
    random = generator()
    positive = torch.randn(20_000, 1, generator=random, dtype=torch.float64) + 1
    negative = torch.randn(5_000, 1, generator=random, dtype=torch.float64)
    weight = density_ratio_weights(positive, negative)
    expected = (negative[:, 0] - 0.5).exp().clamp(0.5, 10)
    assert float((weight / expected).log().abs().max()) < 0.15
    assert weight.dtype == torch.float64


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10**6))
def test_offset_rotation_and_order_do_not_matter(seed):
    random = generator(seed)
    positive, negative = torch.randn(2, 30, 3, generator=random, dtype=torch.float64)
    weight = density_ratio_weights(positive + 0.5, negative)
    turn = torch.linalg.qr(torch.randn(3, 3, generator=random, dtype=torch.float64))[0]
    order = torch.randperm(30, generator=random)
    moved = density_ratio_weights((positive + 0.5)[order] @ turn - 2, negative @ turn - 2)
    torch.testing.assert_close(moved, weight, rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(density_ratio_weights(positive + 0.5, negative[order]), weight[order], rtol=1e-2, atol=0)


def test_the_penalty_pulls_to_1():
    random = generator()
    positive, negative = torch.randn(50, 2, generator=random) + 1, torch.randn(50, 2, generator=random)
    weak = density_ratio_weights(positive, negative, penalty=1e6)
    assert weak.dtype == torch.float32 and float((weak - 1).abs().max()) < 0.01
    assert float((density_ratio_weights(positive, negative) - 1).abs().max()) > 1


def test_the_same_prompts_weigh_1():
    embedding = torch.randn(40, 3, generator=generator())
    assert density_ratio_weights(embedding, embedding).tolist() == pytest.approx([1.0] * 40, abs=1e-3)


def test_none_and_one():
    assert density_ratio_weights(torch.ones(3, 2), torch.zeros(0, 2)).shape == (0,)
    assert density_ratio_weights(torch.ones(1, 2), torch.ones(1, 2)).tolist() == pytest.approx([1.0])
