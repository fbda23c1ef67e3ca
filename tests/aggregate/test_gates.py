from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ebrm.aggregate import EDITING, GENERATION, base_and_bonus, gate, gated, log_sigmoid_sum, verifiable_or_model

GATES = ["smooth", "min", "product"]


def scores(seed, n=17, a=3):
    return torch.rand(n, a, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def doubles(*values):
    return torch.tensor(values, dtype=torch.float64)


def test_log_sigmoid_sum():
    at, above, below = (log_sigmoid_sum(doubles(r)[:, None], doubles(3.0)).item() for r in (3.0, 13.0, -7.0))
    assert at == pytest.approx(-math.log(2)) and above == pytest.approx(-4.54e-5, rel=1e-3)
    assert below == pytest.approx(-10.0000454, abs=1e-7)
    two = log_sigmoid_sum(torch.tensor([[4.0, -2.0], [1.0, 1.0]], dtype=torch.float64), torch.zeros(2))
    assert two.tolist() == pytest.approx([-2.145078, -0.626523], abs=1e-6)  # Equal sums: 2 and 2.
    # Where log(sigmoid) is -infinity in either type, and where it is exactly 0.
    for dtype in (torch.float32, torch.float64):
        assert log_sigmoid_sum(torch.tensor([[-1e4]], dtype=dtype), torch.zeros(1)).tolist() == [-1e4]
        assert log_sigmoid_sum(torch.tensor([[1e4]], dtype=dtype), torch.zeros(1)).tolist() == [0.0]


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(-50, 50), st.floats(0.1, 10))
def test_log_sigmoid_sum_moves_with_its_reference_alone(seed, offset, scale):
    rewards, reference = 6 * scores(seed) - 3, 2 * scores(seed + 1)
    found = log_sigmoid_sum(rewards, reference)
    moves = offset * scores(seed + 2)
    assert log_sigmoid_sum(rewards + moves, reference + moves).tolist() == pytest.approx(found.tolist(), abs=1e-10)
    assert found.tolist() == pytest.approx((rewards - reference).sigmoid().log().sum(1).tolist())
    one = log_sigmoid_sum(rewards[:, :1], reference[0, :1])
    assert torch.equal(one.argsort(), rewards[:, 0].argsort())
    assert bool((log_sigmoid_sum(rewards + 1, reference) > found).all())
    assert log_sigmoid_sum(rewards, reference[0]).tolist() == pytest.approx(
        log_sigmoid_sum(rewards, reference[:1].expand_as(rewards)).tolist()
    )
    if abs(scale - 1) > 0.1:  # Units matter.
        assert not torch.allclose(log_sigmoid_sum(scale * rewards, scale * reference), found)


def test_gradient_of_log_sigmoid_sum():
    rewards, reference = (6 * scores(0) - 3).requires_grad_(), scores(1).requires_grad_()
    assert torch.autograd.gradcheck(log_sigmoid_sum, (rewards, reference))
    log_sigmoid_sum(rewards, reference).sum().backward()
    expected = (reference - rewards).sigmoid()
    assert rewards.grad is not None and torch.allclose(rewards.grad, expected)


def test_gated():
    both, one, none = doubles(1, 1), doubles(0, 1), doubles(0, 0)
    soft = doubles(0.5, 1)[None]
    assert gated(both[None], soft).tolist() == pytest.approx([0.75])
    assert gated(one[None], soft).tolist() == pytest.approx([0.226134], abs=1e-6)
    assert gated(none[None], doubles(1, 1)[None]).tolist() == pytest.approx([0.090909], abs=1e-6)
    assert gated(both[None], doubles(1, 1)[None]).tolist() == [1.0]
    assert gated(both[None], soft, doubles(3, 1)).tolist() == pytest.approx([0.625])
    assert gated(one[None], soft, how="min").tolist() == gated(one[None], soft, how="product").tolist() == [0.0]
    assert gate(doubles(0.5, 0.4)[None], "min").tolist() == [0.4]
    assert gate(doubles(0.5, 0.4)[None], "product").tolist() == pytest.approx([0.2])


def test_one_failure_of_many_is_no_veto_with_the_smooth_gate():
    many = torch.ones(1, 10, dtype=torch.float64)
    many[0, 3] = 0
    assert gate(many).tolist() == pytest.approx([0.787], abs=5e-4)
    assert gate(many, "min").tolist() == gate(many, "product").tolist() == [0.0]
    assert gate(many, smoothing=1e-300).tolist() == pytest.approx([0.0], abs=1e-29)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from(GATES), st.integers(0, 2))
def test_gates_rise_with_every_score_and_do_not_depend_on_the_order(seed, how, column):
    given_ = scores(seed)
    found = gate(given_, how)
    raised = given_.clone()
    raised[:, column] = (raised[:, column] + 0.1).clamp_max(1)
    assert bool((gate(raised, how) >= found - 1e-15).all())
    assert gate(given_.flip(1), how).tolist() == pytest.approx(found.tolist())
    assert bool((found >= 0).all()) and bool((found <= 1).all())
    assert gate(given_, smoothing=1e-12).tolist() == pytest.approx((given_.log().mean(1).exp()).tolist(), abs=1e-9)
    assert gate(given_, smoothing=1e12).tolist() == pytest.approx([1.0] * 17)
    assert gate(given_[:, :1], "min").tolist() == gate(given_[:, :1], "product").tolist() == given_[:, 0].tolist()
    assert gated(given_, raised, how=how).tolist() == pytest.approx((found * raised.mean(1)).tolist())


def test_base_and_bonus():
    half = doubles(0.5, 0.5, 0.0)
    assert base_and_bonus(half, doubles(1, 0, 1), EDITING).tolist() == pytest.approx([0.5, 0.3, 0.0])
    assert base_and_bonus(half, doubles(1, 0, 1), GENERATION).tolist() == pytest.approx([0.5, 0.2, 0.0])
    assert base_and_bonus(half, doubles(1, 0, 1)).tolist() == pytest.approx([0.5, 0.25, 0.0])
    # Doing nothing keeps all and follows nothing: a sum prefers it.
    base, bonus = doubles(0.0, 0.4), doubles(1.0, 0.0)
    assert int((base / 2 + bonus / 2).argmax()) == 0 and int(base_and_bonus(base, bonus).argmax()) == 1


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0.1, 9), st.floats(0, 9))
def test_base_and_bonus_between_its_bounds(seed, first, second):
    base, bonus = scores(seed, a=2).T
    found = base_and_bonus(base, bonus, (first, second))
    assert bool((found <= base + 1e-15).all()) and bool((found >= base * first / (first + second) - 1e-15).all())
    assert found.tolist() == pytest.approx((base * (first + second * bonus) / (first + second)).tolist())
    assert base_and_bonus(base, bonus, (3 * first, 3 * second)).tolist() == pytest.approx(found.tolist())
    assert torch.equal(base_and_bonus(base, bonus, (first, 0.0)), base)
    assert bool((base_and_bonus(base, (bonus + 0.1).clamp_max(1), (first, second)) >= found).all())
    assert bool((base_and_bonus((base + 0.1).clamp_max(1), bonus, (first, second)) >= found).all())
    has = base > 0.5
    some = base_and_bonus(base, torch.where(has, bonus, torch.nan), (first, second), has)
    assert torch.equal(some, torch.where(has, found, base))


def test_verifiable_or_model():
    check, model = doubles(1.0, math.nan, 0.0), doubles(math.nan, 0.3, math.inf)
    verifiable = torch.tensor([True, False, True])
    assert verifiable_or_model(check, model, verifiable).tolist() == [1.0, 0.3, 0.0]
    ones, threes = torch.ones(3), torch.full((3,), 3.0)
    assert torch.equal(verifiable_or_model(ones, threes, torch.ones(3, dtype=torch.bool)), ones)
    assert torch.equal(verifiable_or_model(ones, threes, torch.zeros(3, dtype=torch.bool)), threes)
    passed = verifiable_or_model(torch.tensor([1, 0, 0]), doubles(0.0, 0.3, 0.5), verifiable)
    assert passed.tolist() == [1.0, 0.3, 0.0] and passed.dtype == torch.float64


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_types_and_no_rows(dtype):
    some = scores(0).to(dtype)
    none = torch.empty(0, 3, dtype=dtype)
    assert log_sigmoid_sum(some, some[0]).dtype == gated(some, some).dtype == gate(some, "min").dtype == dtype
    assert base_and_bonus(some[:, 0], some[:, 1]).dtype == dtype
    assert verifiable_or_model(some[:, 0], some[:, 1], some[:, 2] > 0.5).dtype == dtype
    assert log_sigmoid_sum(none, some[0]).shape == gated(none, none).shape == base_and_bonus(*none.T[:2]).shape == (0,)
