"""Losses of policies: known answers, what they reduce to, and their gradients."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit, log_expit, log_softmax
from scipy.stats import entropy
from torch.autograd import gradcheck

from ebrm.curate import dynamic_labels
from ebrm.errors import ConfigError, DataError
from ebrm.heads import pair_loss
from ebrm.optimize import distillation_loss, margin_scaled_beta, optimistic_dpo_loss, power_loss, power_margin
from ebrm.pairs import PreferencePairs


def draws(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_beta_rises_from_its_start_to_its_limit_and_has_a_floor() -> None:
    found = margin_scaled_beta([0.0, 2.0, 1e4, -1.0, -20.0, -1e308], beta=0.1, weight=0.5, rate=0.5).tolist()
    assert found[:3] == pytest.approx([0.1, 0.131606, 0.15], abs=1e-6)
    assert found[3] == pytest.approx(0.1 * (1 + 0.5 * (1 - math.exp(0.5))))
    assert found[4:] == [1e-3, 1e-3]  # exp(10) would have made it negative
    assert margin_scaled_beta([-1e308, 3.0], weight=0.0).tolist() == [0.1, 0.1]
    assert margin_scaled_beta([-5.0, 3.0], rate=0.0).tolist() == [0.1, 0.1]


def test_a_scaled_beta_is_a_scale_of_the_pair_loss_and_has_no_gradient() -> None:
    ratio, reward = draws(1, 2, 5), draws(2, 5).requires_grad_()
    beta = margin_scaled_beta(reward)
    assert not beta.requires_grad
    expected = -log_expit(beta.numpy() * (ratio[0] - ratio[1]).numpy())
    assert pair_loss(ratio[0], ratio[1], scale=beta).tolist() == pytest.approx(expected.tolist())


def test_optimism_adds_the_log_ratio_of_a_sample_to_dpo() -> None:
    loss = optimistic_dpo_loss([10.0], [0.0], [5.0], beta=0.01, alpha=0.001)
    assert loss.tolist() == pytest.approx([0.644447], abs=1e-6)
    chosen, rejected, sampled = draws(3, 3, 4)
    plain = pair_loss(chosen, rejected, scale=0.3)
    assert torch.allclose(optimistic_dpo_loss(chosen, rejected, sampled, 0.3, 0.0), plain)
    sampled.requires_grad_()
    (slope,) = torch.autograd.grad(optimistic_dpo_loss(chosen, rejected, sampled, 0.3, 0.2).sum(), sampled)
    assert slope.tolist() == pytest.approx([0.06] * 4)


def test_responses_of_one_length_have_simpos_margin() -> None:
    chosen, rejected = -10 * draws(4, 2, 6).abs()
    five = torch.full((6,), 5)
    assert torch.allclose(power_margin(chosen, rejected, five, five, 2.5), 2.5 / 5 * (chosen - rejected))
    assert power_margin([-6.0], [-8.0], [3], [2], 2.0).tolist() == pytest.approx([2 * (-2 + 4 + 1 / 3 - 1 / 2)])


def test_powers_margin_is_the_difference_of_rewards_of_the_weighted_entropys_best_policy() -> None:
    """max_π E[r] - β Σ w π log π has π with r = β w (log π + 1) + const; no policy nearby is better."""
    policy, length, beta = draws(5, 6).softmax(0), torch.tensor([1, 4, 2, 7, 3, 5]), 0.7
    logp = policy.log()
    reward = torch.stack(
        [power_margin(logp[i : i + 1], logp[:1], length[i : i + 1], length[:1], beta) for i in range(6)]
    )

    def worth(p: torch.Tensor) -> torch.Tensor:
        return (p * (reward[:, 0] - beta * p.log() / length)).sum(-1)

    others = (logp + 0.3 * draws(6, 2000, 6)).softmax(1)
    assert bool((worth(others) < worth(policy)).all())


def test_power_is_the_pair_loss_of_its_margin_and_a_likelihood() -> None:
    chosen, rejected = -10 * draws(7, 2, 5).abs()
    one, two, label = torch.arange(1, 6), torch.arange(5, 0, -1), draws(8, 5).sigmoid()
    m = power_margin(chosen, rejected, one, two, 2.0)
    expected = pair_loss(m, 0 * m, label=label) - 0.3 * 2.0 * chosen / one
    assert torch.allclose(power_loss(chosen, rejected, one, two, 2.0, 0.3, label), expected)
    assert torch.allclose(power_loss(chosen, rejected, one, two, 2.0, 0.0), pair_loss(m, 0 * m))


def test_labels_that_reached_the_policys_belief_pull_no_more() -> None:
    chosen, rejected = torch.tensor([-3.0], dtype=torch.float64).requires_grad_(), torch.tensor([-2.0])
    pairs = PreferencePairs.of([0], [1])
    m = power_margin(chosen, rejected, [1], [1], 1.0)
    for _ in range(5):  # towards σ(-1), a tenth of the way at a time
        pairs, _ = dynamic_labels(pairs, m.detach(), rate=0.1)
    assert pairs.label.tolist() == pytest.approx([0.7006242], abs=1e-7)
    (slope,) = torch.autograd.grad(power_loss(chosen, rejected, [1], [1], 1.0, 0.0, expit(-1)).sum(), chosen)
    assert slope.tolist() == pytest.approx([0.0], abs=1e-12)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(-50, 50))
def test_distillation_is_the_divergence_from_the_teacher_and_knows_no_constants(seed: int, constant: float) -> None:
    student, teacher = draws(seed, 2, 3, 4, 5)
    mask = torch.tensor([[True, True, False, False], [True] * 4, [False] * 4])
    weight = draws(seed + 1, 3, 4).exp()
    found = distillation_loss(student, teacher + constant, mask, weight)
    p, q = (torch.from_numpy(log_softmax(x.numpy(), axis=2)).exp() for x in (student, teacher))
    kl = torch.from_numpy(entropy(p.numpy(), q.numpy(), axis=2)) * weight
    assert found.tolist() == pytest.approx([float(kl[0, :2].mean()), float(kl[1].mean()), 0.0], rel=1e-8)
    total = distillation_loss(student, teacher, mask, weight, length_average=False)
    assert total.tolist() == pytest.approx([2 * float(found[0]), 4 * float(found[1]), 0.0], rel=1e-8)
    elsewhere = torch.where(mask[..., None], student, 7.0)
    assert torch.equal(distillation_loss(elsewhere, teacher + constant, mask, weight), found)
    assert distillation_loss(student, student, mask).tolist() == [0.0] * 3


def test_gradients_are_those_of_finite_differences() -> None:
    a, b, c = (x.requires_grad_() for x in draws(9, 3, 4).unbind())
    one, two = torch.arange(1, 5), torch.tensor([2, 2, 5, 1])
    assert gradcheck(optimistic_dpo_loss, (a, b, c))
    assert gradcheck(lambda x, y: power_loss(x, y, one, two, 2.0, 0.3, [0.2, 0.5, 1.0, 0.0]), (a, b))
    student, teacher = draws(10, 2, 1, 3, 3)
    mask, weight = torch.tensor([[True, False, True]]), draws(11, 1, 3).exp()
    assert gradcheck(lambda x: distillation_loss(x, teacher, mask, weight), (student.requires_grad_(),))


def test_no_pairs_have_no_loss_and_narrow_floats_are_taken() -> None:
    none = torch.empty(0)
    assert margin_scaled_beta(none).shape == optimistic_dpo_loss(none, none, none).shape == (0,)
    assert power_loss(none, none, none, none, 1.0, 1.0).shape == (0,)
    empty = torch.empty(0, 2, 3)
    assert distillation_loss(empty, empty, torch.empty(0, 2, dtype=torch.bool)).shape == (0,)
    half = draws(12, 1, 2, 8).bfloat16()
    exact = distillation_loss(half.double(), -half.double(), [[True, True]])
    assert distillation_loss(half, -half, [[True, True]]).tolist() == pytest.approx(exact.tolist(), rel=1e-2)


ONE, TOKENS = torch.zeros(1), torch.zeros(1, 2, 3)
CASES = [
    *((lambda o=o: margin_scaled_beta(ONE, **o), ConfigError, f"`{next(iter(o))}`") for o in (
        {"beta": 0.0}, {"weight": -1.0}, {"rate": -1.0}, {"least": 0.0}, {"least": 0.2})),
    (lambda: optimistic_dpo_loss(ONE, ONE, ONE, beta=0.0), ConfigError, "`beta` is 0.0"),
    (lambda: optimistic_dpo_loss(ONE, ONE, ONE, alpha=-1.0), ConfigError, "`alpha` is -1.0"),
    (lambda: power_margin(ONE, ONE, [0], [1], 1.0), DataError, "tokens of the chosen .* index 0: 0"),
    (lambda: power_margin(ONE, ONE, [1], [0.5], 1.0), DataError, "tokens of the rejected"),
    (lambda: power_loss(ONE, ONE, [1], [1], -1.0, 0.1), ConfigError, "`beta`"),
    (lambda: power_loss(ONE, ONE, [1], [1], 1.0, math.nan), ConfigError, "`eta`"),
    (lambda: power_loss(ONE, ONE, [1], [1], 1.0, 0.1, 1.5), DataError, "label .* from 0 to 1"),
    (lambda: distillation_loss(TOKENS, TOKENS[..., :2], [[True, True]]), ValueError, r"teacher \(1, 2, 2\)"),
    (lambda: distillation_loss(TOKENS, TOKENS, [[1, 1]]), TypeError, "mask .* expected bool"),
    (lambda: distillation_loss(TOKENS, TOKENS, [[True]]), ValueError, "expected t = 2"),
    (lambda: distillation_loss(TOKENS, TOKENS, [[True, True]], -1.0), DataError, "weight"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "kind", "message"), CASES)
def test_what_has_no_loss_is_refused(call, kind, message) -> None:
    with pytest.raises(kind, match=message):
        call()
