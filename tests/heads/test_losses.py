from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.autograd import gradcheck

from ebrm.errors import ConfigError, DataError
from ebrm.heads import pair_loss, tie_probabilities
from ebrm.heads.objective import noisy_preference_nll

NUMBERS = st.lists(st.floats(-8, 8), min_size=1, max_size=6)


def two(seed: int, p: int = 9) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, p, generator=generator, dtype=torch.float64).mul(2).unbind()


def one(d: float, **more) -> float:
    return float(pair_loss(torch.tensor([d], dtype=torch.float64), torch.zeros(1, dtype=torch.float64), **more))


def test_known_answers_of_graded_preferences() -> None:
    assert one(1.0) == pytest.approx(0.313262, abs=1e-6)
    assert [one(1.0, margin=m) for m in (1, 2, 3)] == pytest.approx([0.693147, 1.313262, 2.126928], abs=1e-6)
    assert [one(1.0, weight=w) for w in (2, 3)] == pytest.approx([0.626523, 0.939785], abs=1e-6)
    # Adaptive margin equal to the difference: log 2.
    assert one(1.7, margin=1.7) == pytest.approx(math.log(2))


def test_known_answers_of_win_tie_soft_labels_and_bounds() -> None:
    assert one(0.0, label=0.5) == pytest.approx(math.log(2))
    # The published code's tie is twice the loss with a margin: 2 softplus(3).
    assert 2 * one(0.0, label=0.5, margin=3.0) == pytest.approx(6.097175, abs=1e-6)
    assert one(2.0, label=0.5) == one(-2.0, label=0.5) > one(0.0, label=0.5)
    # -ls(r_w) - ls(-r_l) bounds -ls(r_w - r_l): 1.361849 unshifted, 0.126928 the pair's (arXiv 2404.04656).
    assert one(3.0) + one(-1.0, label=0.0) == pytest.approx(0.048587 + 0.313262, abs=1e-5)
    assert one(2.0) == pytest.approx(0.126928, abs=1e-6)


def test_known_answers_of_ties() -> None:
    d = torch.tensor([0.0, 1.0], dtype=torch.float64)
    first, second, tie = tie_probabilities(d)
    assert first.tolist() == pytest.approx([1 / 6, 0.3521874], abs=1e-7)
    assert second.tolist() == pytest.approx([1 / 6, 0.0685335], abs=1e-7)
    assert tie.tolist() == pytest.approx([2 / 3, 0.5792791], abs=1e-7)
    tied = torch.tensor([True, True])
    assert torch.allclose(pair_loss(d, torch.zeros_like(d), ties=5.0, tied=tied), -tie.log())
    assert torch.allclose(pair_loss(d, torch.zeros_like(d), ties=5.0), -first.log())
    assert torch.allclose(pair_loss(torch.zeros_like(d), d, ties=5.0), -second.log())


@given(st.floats(-30, 30), st.floats(1, 20))
def test_tie_probabilities_add_up_to_one(d: float, theta: float) -> None:
    parts = tie_probabilities(torch.tensor([d], dtype=torch.float64), theta)
    assert sum(float(p) for p in parts) == pytest.approx(1, abs=1e-12)
    back = tie_probabilities(torch.tensor([-d], dtype=torch.float64), theta)
    assert float(parts[0]) == float(back[1]) and float(parts[2]) == pytest.approx(float(back[2]))


@given(NUMBERS, st.floats(0, 3), st.floats(0.1, 3), st.floats(0, 1))
def test_the_reductions(d: list[float], strength: float, beta: float, c: float) -> None:
    chosen = torch.tensor(d, dtype=torch.float64)
    zero = torch.zeros_like(chosen)
    ls = torch.nn.functional.logsigmoid
    full = torch.full_like(chosen, strength)
    assert torch.allclose(pair_loss(chosen, zero, weight=full), -strength * ls(chosen))  # scaled
    assert torch.allclose(pair_loss(chosen, zero, margin=full), -ls(chosen - strength))  # margin
    consistency = -c * ls(beta * chosen) - (1 - c) * ls(-beta * chosen)  # rank consistency
    assert torch.allclose(pair_loss(chosen, zero, label=torch.full_like(chosen, c), scale=beta), consistency)
    assert torch.allclose(pair_loss(chosen, zero, label=0.5), -0.5 * ls(chosen) - 0.5 * ls(-chosen))  # win-tie
    dynamic = beta * (1 + 0.5 * (1 - (-0.5 * chosen.abs()).exp()))  # beta by the margin
    assert torch.allclose(pair_loss(chosen, zero, scale=dynamic), -ls(dynamic * chosen))
    assert torch.equal(pair_loss(chosen, zero, ties=1.0), pair_loss(chosen, zero))


@given(st.integers(0, 2**31), st.floats(-100, 100), st.floats(0, 0.5))
def test_what_leaves_the_loss_alone_and_what_does_not(seed: int, shift: float, smoothing: float) -> None:
    chosen, rejected = two(seed)
    plain = pair_loss(chosen, rejected, label_smoothing=smoothing, ties=2.0)
    assert torch.allclose(pair_loss(chosen + shift, rejected + shift, label_smoothing=smoothing, ties=2.0), plain)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(pair_loss(chosen[order], rejected[order], label_smoothing=smoothing, ties=2.0), plain[order])
    assert torch.allclose(pair_loss(rejected, chosen, label=0.0), pair_loss(chosen, rejected))
    assert not torch.allclose(pair_loss(2 * chosen, 2 * rejected), pair_loss(chosen, rejected))
    if abs(shift) > 1:
        moved = pair_loss(chosen + shift, rejected + shift, centering=0.1)
        assert not torch.allclose(moved, pair_loss(chosen, rejected, centering=0.1))


def test_scaled_is_the_pair_repeated_and_its_gradient_scales() -> None:
    chosen, rejected = two(3)
    chosen.requires_grad_()
    (single,) = torch.autograd.grad(pair_loss(chosen, rejected).sum(), chosen)
    (triple,) = torch.autograd.grad(pair_loss(chosen, rejected, weight=3.0).sum(), chosen)
    assert torch.allclose(triple, 3 * single)


def test_smoothing_has_its_minimum_at_the_logit() -> None:
    d = torch.tensor([math.log(0.8 / 0.2)], dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(pair_loss(d, torch.zeros(1, dtype=torch.float64), label_smoothing=0.2), d)
    assert float(gradient) == pytest.approx(0, abs=1e-12)
    zero = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    (first,) = torch.autograd.grad(
        pair_loss(zero, torch.zeros_like(zero), label_smoothing=0.5), zero, create_graph=True
    )
    (second,) = torch.autograd.grad(first, zero)
    assert float(first.detach()) == 0 and float(second) == pytest.approx(0.25)


def test_gradients_against_finite_differences() -> None:
    chosen, rejected = (side.requires_grad_() for side in two(5, 4))
    margin = torch.tensor([0.0, 0.5, -0.3, 2.0], dtype=torch.float64)
    label = torch.tensor([1.0, 0.0, 0.3, 0.5], dtype=torch.float64)
    tied = torch.tensor([False, False, True, False])

    def loss(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return pair_loss(
            a, b, margin=margin, scale=1.5, label=label, label_smoothing=0.1, weight=2.0, ties=3.0, tied=tied,
            centering=0.2,
        )  # fmt: skip

    assert gradcheck(loss, (chosen, rejected))


def test_mixing_labels_is_not_mixing_probabilities() -> None:
    """Two cells: the chosen's reward is above with probability P; the energy's label loss is bounded, this is not."""
    p = torch.tensor(1e-9, dtype=torch.float64)
    mass = torch.stack([1 - p, p]).log().unsqueeze(0), torch.tensor([[0.0, -torch.inf]], dtype=torch.float64)
    assert float(noisy_preference_nll(mass[0], mass[1], 0.1)) <= -math.log(0.1)
    assert one(-100.0, label_smoothing=0.1) == pytest.approx(90)


def test_extreme_rewards_stay_finite_and_types_are_kept() -> None:
    far = torch.tensor([1e6, -1e6, 0.0])
    found = pair_loss(far, torch.zeros(3), ties=5.0, tied=torch.tensor([True, True, False]))
    assert bool(found.isfinite().all()) and found.dtype == torch.float32
    assert pair_loss(torch.ones(2).half(), torch.zeros(2).half()).dtype == torch.float16
    assert one(-800.0) == 800.0  # log σ(-800) underflows where it is computed as log of σ
    assert pair_loss(torch.empty(0), torch.empty(0)).shape == (0,)


def test_whole_numbers_lists_and_arrays_give_the_losses_of_floats() -> None:
    expected = [math.log1p(math.exp(-2)), 2 + math.log1p(math.exp(-2))]
    for chosen, rejected in (
        (torch.tensor([3, 1]), torch.tensor([1, 3])),
        ([3, 1], [1, 3]),
        (np.array([3, 1]), np.array([1, 3])),
    ):
        found = pair_loss(chosen, rejected, margin=torch.tensor([0, 0]), weight=[1, 1])
        assert found.dtype == torch.float64 and found.tolist() == pytest.approx(expected)
    assert float(tie_probabilities(torch.tensor([1]))[0]) == pytest.approx(0.3521874, abs=1e-7)


def test_gradients_at_ties_are_finite_and_those_of_a_half_are_none() -> None:
    at = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    for options in ({}, {"label": 0.5}, {"label": 0.0, "margin": 2.0}, {"ties": 5.0, "tied": torch.ones(3) > 0}):
        (gradient,) = torch.autograd.grad(pair_loss(at, torch.zeros_like(at), **options).sum(), at)
        assert bool(gradient.isfinite().all())
        assert (gradient == 0).all() == ("label" in options and options["label"] == 0.5 or "tied" in options)


def test_what_cannot_be_computed_with_is_refused() -> None:
    good, bad = torch.zeros(3), torch.tensor([0.0, 0.0, math.nan])
    with pytest.raises(DataError, match="index 2"):
        pair_loss(good, bad)
    with pytest.raises(DataError, match="index 2"):
        pair_loss(good, good, weight=bad)
    with pytest.raises(DataError, match="label of pair 1 is 1.5"):
        pair_loss(good, good, label=torch.tensor([0.0, 1.5, 2.0]))
    with pytest.raises(DataError, match="weight of pair 0 is -1"):
        pair_loss(good, good, weight=-1.0)
    with pytest.raises(ConfigError, match="label smoothing is 0.6"):
        pair_loss(good, good, label_smoothing=0.6)
    with pytest.raises(ConfigError, match="theta is 0.5"):
        pair_loss(good, good, ties=0.5)
    with pytest.raises(ConfigError, match="theta is nan"):
        tie_probabilities(good, math.nan)
    with pytest.raises(ConfigError, match="centering penalty is -1"):
        pair_loss(good, good, centering=-1.0)
    tied = torch.tensor([True, False, True])
    for theta in (None, 1.0):
        with pytest.raises(ConfigError, match="2 pairs are ties"):
            pair_loss(good, good, ties=theta, tied=tied)
    with pytest.raises(ValueError, match=r"\(3,\), rejected \(2,\)"):
        pair_loss(good, torch.zeros(2))
    with pytest.raises(ValueError, match="one margin for each of 3 pairs"):
        pair_loss(good, good, margin=torch.zeros(2))
