"""Pair loss, optimizers and linear heads: Bradley-Terry, Laplace's posterior, Gaussian ensembles, the anchor."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from scipy.optimize import minimize
from tests.heads.toys import NONE, linear_truth, world
from torch import nn
from torch.autograd import gradcheck

from ebrm.aggregate import pessimistic
from ebrm.errors import ConfigError, DataError, ModelError
from ebrm.heads import (
    AnchoredConfig,
    BayesianConfig,
    GaussianConfig,
    GaussianHead,
    LinearConfig,
    anchored_ranking_loss,
    fit_head,
    gaussian_pair_loss,
    pair_loss,
    tie_probabilities,
)
from ebrm.heads.minimize import PENALTIES, UNMEASURED_PENALTY, best_penalty, early_stopping, lowest
from ebrm.heads.objective import noisy_preference_nll
from ebrm.pairs import PreferencePairs

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


TARGET = torch.tensor([3.0, -2.0], dtype=torch.float64)


def square(w: torch.Tensor) -> torch.Tensor:
    return 0.5 * (w - TARGET).square().sum()


def test_the_lowest_point_of_a_penalized_square() -> None:
    for l2 in (0.0, 0.5, 3.0):
        assert torch.allclose(lowest(square, torch.zeros(2), l2), TARGET / (1 + l2), atol=1e-7)


def test_a_loss_that_is_not_finite_is_refused() -> None:
    with pytest.raises(ModelError, match="not finite"):
        lowest(lambda w: (w * torch.nan).sum(), torch.zeros(2), 0.1)


def test_the_penalty_with_the_lowest_held_out_loss() -> None:
    wanted = TARGET / (1 + 0.3)
    weights, l2 = best_penalty(square, lambda w: float((w - wanted).square().sum()), torch.zeros(2), None)
    assert l2 == 0.3 and torch.allclose(weights, wanted, atol=1e-6)
    assert best_penalty(square, None, torch.zeros(2), None)[1] == UNMEASURED_PENALTY
    weights, l2 = best_penalty(square, lambda w: float(w.square().sum()), torch.zeros(2), 0.7)
    assert l2 == 0.7 and torch.allclose(weights, TARGET / 1.7, atol=1e-6)
    bumpy = iter([3.0, 4.0, 2.0, 5.0, 6.0, 1.0])
    assert best_penalty(square, lambda w: next(bumpy), torch.zeros(2), None)[1] == PENALTIES[2]  # two worse in a row
    assert best_penalty(square, lambda w: 1.0, torch.zeros(2), None)[1] == PENALTIES[0]  # ties: the stronger


def run(values: list[float], patience: int) -> tuple[int, int, float]:
    """Early stopping against held-out losses that are given: (pass kept, passes made, its weight)."""
    network = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(network.weight)
    seen: list[float] = []

    def held_out() -> float:
        seen.append(float(network.weight.detach()))
        return values[len(seen) - 1]

    kept = early_stopping(
        network, lambda g: [torch.zeros(1)], lambda batch: -network.weight.sum(), held_out, learning_rate=0.1,
        weight_decay=0.0, epochs=len(values), patience=patience, generator=torch.Generator(),
    )  # fmt: skip
    assert float(network.weight.detach()) == seen[kept - 1]
    return kept, len(seen), float(network.weight.detach())


def test_early_stopping_keeps_the_best_pass_and_stops_after_patience() -> None:
    assert run([3.0, 1.0, 2.0, 2.0, 0.5], 2)[:2] == (2, 4)
    assert run([3.0, 1.0, 2.0, 2.0, 0.5], 0)[:2] == (5, 5)
    assert run([1.0, 1.0, 1.0], 3)[:2] == (1, 3)


def test_without_held_out_pairs_the_last_pass_is_kept_and_nan_is_refused() -> None:
    network = nn.Linear(1, 1, bias=False)
    more = {"learning_rate": 0.1, "weight_decay": 0.0, "epochs": 3, "patience": 1, "generator": torch.Generator()}
    batches = lambda g: [torch.zeros(1)]  # noqa: E731
    assert early_stopping(network, batches, lambda b: network.weight.sum(), None, **more) == 3  # type: ignore[arg-type]
    with pytest.raises(ModelError, match="pass 1"):
        early_stopping(network, batches, lambda b: network.weight.sum() * torch.nan, None, **more)  # type: ignore[arg-type]


WORLD = world(linear_truth)


def test_the_linear_head_is_where_scipy_finds_the_lowest_loss() -> None:
    strength = torch.linspace(0.5, 2, len(WORLD.train), dtype=torch.float64)
    config = LinearConfig(ridge=0.05, label_smoothing=0.1, centering=0.02)
    head = WORLD.fit(config, weight=strength, label=torch.full_like(strength, 0.9), margin=0.1 * strength)
    x = head.standardizer.embed(WORLD.embedding).double().numpy()
    c, r = x[WORLD.train.chosen], x[WORLD.train.rejected]
    s, mu = strength.numpy(), 0.9 * 0.9 + 0.1 * 0.1

    def loss(w: np.ndarray) -> float:
        d = (c - r) @ w
        pair = mu * np.logaddexp(0, -(d - 0.1 * s)) + (1 - mu) * np.logaddexp(0, d + 0.1 * s)
        return (s / s.mean() * pair + 0.02 * ((c + r) @ w) ** 2).mean() + 0.025 * w @ w

    best = minimize(loss, np.zeros(6), method="BFGS", options={"gtol": 1e-9}).x
    assert head.weight.numpy() == pytest.approx(best, abs=1e-5)


def test_units_are_those_of_the_training_rows_base_rewards() -> None:
    head = WORLD.fit(LinearConfig())
    rows = torch.cat([WORLD.train.chosen, WORLD.train.rejected])
    refined = head.refine(WORLD.embedding[rows], WORLD.reward[rows])
    base = WORLD.reward[rows]
    assert float(refined.reward.mean()) == pytest.approx(float(base.mean()), abs=1e-3)
    assert float(refined.reward.std()) == pytest.approx(float(base.std()), rel=1e-4)
    score_unit = float(base.std(correction=0)) / float(
        head.scores(head.standardizer.embed(WORLD.embedding[rows])).std(correction=0)
    )
    assert refined.std.numpy() == pytest.approx(np.full(len(rows), math.pi / math.sqrt(6) * score_unit), rel=1e-4)
    assert WORLD.accuracy(WORLD.refined(head).reward) > 0.95


def test_the_penalty_is_chosen_by_held_out_pairs_and_stronger_on_little_data() -> None:
    few = world(linear_truth, pairs=60, size=40, seed=3)
    found, unpenalized = few.fit(LinearConfig()), few.fit(LinearConfig(ridge=1e-6))
    assert float(found.weight.norm()) < 0.5 * float(unpenalized.weight.norm())
    alone, named = few.fit(LinearConfig(), NONE), few.fit(LinearConfig(ridge=0.1), NONE)
    assert torch.equal(alone.weight, named.weight)


def test_held_out_pairs_count_by_label_and_weight() -> None:
    """A held-out pair with label 0 is the pair turned around, and one of weight 2 is two."""
    few = world(linear_truth, pairs=60, size=40, seed=3)
    held = few.validation
    p = len(held)
    plain = few.fit(LinearConfig(), PreferencePairs.of(held.rejected, held.chosen))
    turned = few.fit(LinearConfig(), PreferencePairs.of(held.chosen, held.rejected, label=torch.zeros(p)))
    assert torch.equal(plain.weight, turned.weight) and not torch.equal(plain.weight, few.fit(LinearConfig()).weight)
    half = torch.arange(p) < p // 2
    twice = PreferencePairs.of(
        torch.cat([held.chosen, held.chosen[half]]), torch.cat([held.rejected, held.rejected[half]])
    )
    weighted = few.fit(LinearConfig(), PreferencePairs.of(held.chosen, held.rejected, weight=1.0 + half.double()))
    assert torch.equal(few.fit(LinearConfig(), twice).weight, weighted.weight)


BAYES = world(linear_truth, pairs=240, size=3)


def test_the_covariance_is_the_inverse_of_the_losses_second_derivative() -> None:
    p = len(BAYES.train)
    weight = torch.linspace(0.5, 2, p, dtype=torch.float64)
    margin, label = 0.2 * weight, torch.full_like(weight, 0.8)
    config = BayesianConfig(ridge=0.05, label_smoothing=0.1, centering=0.03)
    head = BAYES.fit(config, weight=weight, margin=margin, label=label)
    x = head.standardizer.embed(BAYES.embedding).double()

    def total(w: torch.Tensor) -> torch.Tensor:
        u = x @ w
        pairs = pair_loss(
            u[BAYES.train.chosen], u[BAYES.train.rejected], weight=weight / weight.mean(), margin=margin, label=label,
            label_smoothing=0.1, centering=0.03,
        )  # fmt: skip
        return float(weight.mean()) * (pairs.sum() + 0.5 * p * 0.05 * w.square().sum())

    second = torch.autograd.functional.hessian(total, head.weight.double())
    root = head.root.double()
    assert (root.T @ root).numpy() == pytest.approx(torch.linalg.inv(second).numpy(), rel=1e-4, abs=1e-9)
    std = (x * (x @ torch.linalg.inv(second))).sum(1).sqrt()
    assert head.spread(x.float()).numpy() == pytest.approx(std.numpy(), rel=1e-4)


def test_the_reward_is_the_linear_head_s_and_surer_with_more_pairs() -> None:
    head, linear = BAYES.fit(BayesianConfig(ridge=0.05)), BAYES.fit(LinearConfig(ridge=0.05))
    assert torch.equal(head.weight, linear.weight)
    more = BAYES.fit(BayesianConfig(ridge=0.05), weight=torch.full((len(BAYES.train),), 4.0))
    x = head.standardizer.embed(BAYES.embedding)
    assert more.spread(x).numpy() == pytest.approx(0.5 * head.spread(x).numpy(), rel=1e-3)


def test_it_knows_less_where_no_pair_has_been() -> None:
    lone = BAYES.embedding.clone()
    lone[:, 2] = 0.01 * lone[:, 2] + 1  # no pair differs in it by much
    head: Any = fit_head(BayesianConfig(ridge=0.001), lone, BAYES.reward, BAYES.train, BAYES.validation).head
    far = torch.tensor([[0.0, 0.0, 0.0], [3.0, 0.0, 0.0], [30.0, 0.0, 0.0]])
    std = head.spread(far)
    assert float(std[0]) == 0 and float(std[2]) == pytest.approx(10 * float(std[1]))


def test_preferring_averages_over_the_weights() -> None:
    few = BAYES.train.select(slice(12))  # so that the weights are far from known
    head: Any = fit_head(BayesianConfig(ridge=0.05), BAYES.embedding, BAYES.reward, few, BAYES.validation).head
    a, b = BAYES.embedding[:40], BAYES.embedding[40:80]
    found = head.prefer((a, b), (BAYES.reward[:40], BAYES.reward[40:80]))
    rng = np.random.default_rng(0)
    root = head.root.double().numpy()
    draws = head.weight.double().numpy() + rng.standard_normal((20_000, 3)) @ root
    d = (head.standardizer.embed(a) - head.standardizer.embed(b)).double().numpy() @ draws.T
    assert found.numpy() == pytest.approx((1 / (1 + np.exp(-d))).mean(1), abs=0.02)
    plain = torch.sigmoid((head.standardizer.embed(a) - head.standardizer.embed(b)) @ head.weight)
    assert bool(((found - 0.5).abs() <= (plain - 0.5).abs() + 1e-6).all())  # never surer than the weights' mean


def test_pessimism_takes_deviations_off() -> None:
    for config in (BayesianConfig, GaussianConfig):
        plain, careful = (BAYES.refined(BAYES.fit(config(ridge=0.05, pessimism=c))) for c in (0.0, 2.0))
        assert torch.allclose(careful.reward, pessimistic(plain.reward, plain.std, 2.0), atol=1e-3)
        assert torch.equal(careful.std, plain.std) and torch.equal(careful.mean, plain.mean)
        width = float((plain.interval[0, 1] - plain.interval[0, 0]) / 3.2897)
        assert math.isclose(float(plain.std[0]), width, rel_tol=1e-3)


def four(seed: int, p: int = 5) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(4, p, generator=generator, dtype=torch.float64)
    return [values[0], values[1], values[2].exp(), values[3].exp()]


@given(st.integers(0, 2**31), st.floats(0.1, 10), st.floats(-10, 10))
def test_thurstone_s_probability_and_what_leaves_it_alone(seed: int, scale: float, shift: float) -> None:
    a, b, s, t = four(seed)
    z = ((a - b) / (s**2 + t**2).sqrt()).numpy()
    assert gaussian_pair_loss((a, b), (s, t)).numpy() == pytest.approx(-stats.norm.logcdf(z), rel=1e-9)
    soft = gaussian_pair_loss((a, b), (s, t), 0.3).numpy()
    assert soft == pytest.approx(-0.3 * stats.norm.logcdf(z) - 0.7 * stats.norm.logcdf(-z), rel=1e-9)
    moved = gaussian_pair_loss((scale * a + shift, scale * b + shift), (scale * s, scale * t), 0.3)
    assert moved.numpy() == pytest.approx(soft, rel=1e-6)


def test_gradients_of_the_gaussian_loss_are_those_of_finite_differences() -> None:
    values = [v.requires_grad_() for v in four(1, 3)]
    assert gradcheck(lambda a, b, s, t: gaussian_pair_loss((a, b), (s, t), 0.8), values)


def noisy(seed: int, pairs: int) -> tuple[torch.Tensor, torch.Tensor, PreferencePairs]:
    """Pairs compared with noise whose logarithm grows with the second number of the embedding."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2 * pairs, 2, generator=generator)
    judged = 2 * x[:, 0] + (0.8 * x[:, 1]).exp() * torch.randn(2 * pairs, generator=generator)
    a, b = torch.arange(0, 2 * pairs, 2), torch.arange(1, 2 * pairs, 2)
    first = judged[a] > judged[b]
    return x, 2 * x[:, 0], PreferencePairs.of(torch.where(first, a, b), torch.where(first, b, a))


def test_deviations_that_differ_between_rows_are_found() -> None:
    x, reward, pairs = noisy(0, 4000)
    train, held = (pairs.select(part) for part in (slice(3200), slice(3200, 4000)))
    head = fit_head(GaussianConfig(heads=3), x, reward, train, held).head
    assert isinstance(head, GaussianHead)
    mean, std = head.all_heads(head.standardizer.embed(x))
    for m, s in zip(mean, std, strict=True):
        slope = np.polyfit(x[:, 1].numpy(), s.log().numpy(), 1)[0]
        assert slope == pytest.approx(0.8, abs=0.25)
        assert np.corrcoef(m.numpy(), x[:, 0].numpy())[0, 1] > 0.97
        # Both are in units of the average row's noise, which is 1 here.
        assert float(m.std()) == pytest.approx(2.0, rel=0.25)


def test_the_head_with_the_smallest_deviation_is_used() -> None:
    head = GaussianHead(1, GaussianConfig(heads=2)).eval()
    head.weight.copy_(torch.tensor([[[1.0], [1.0]], [[-3.0], [-1.0]]]))  # smallest deviation where x < 0; where x > 0
    x = torch.tensor([[-1.0], [2.0]])
    assert head.scores(x).tolist() == [-1.0, -6.0]
    assert head.spread(x).numpy() == pytest.approx(np.exp([-1.0, -2.0]))
    assert head.scores(x[:0]).shape == (0,)


ZERO = torch.zeros(3, dtype=torch.float64)
NO = torch.empty(0, dtype=torch.float64)


def test_known_answers_of_the_ranking_loss() -> None:
    assert float(anchored_ranking_loss(ZERO, ZERO, ZERO, NO, NO)) == pytest.approx((0.35 + 1 + 0.35) * math.log(2) / 3)
    assert float(anchored_ranking_loss(ZERO, ZERO, ZERO, NO, NO)) == pytest.approx(0.392783, abs=1e-6)
    new, old = torch.tensor([1.0, 5.0]), torch.tensor([0.0, 3.0])
    assert float(anchored_ranking_loss(NO, NO, NO, new, old)) == pytest.approx(0.01 * (1 + 4))
    assert float(anchored_ranking_loss(NO, NO, NO, old, old)) == 0.0
    one = torch.ones(1, dtype=torch.float64)
    squares = float(anchored_ranking_loss(one, one, one, NO, NO) - anchored_ranking_loss(one, one, one, NO, NO, size=0))
    assert squares == pytest.approx((0.35 + 1 + 0.35) * 0.01 / 3)


@given(st.integers(0, 2**31))
def test_order_matters_and_a_shift_only_through_the_squares(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    a, b, c = torch.randn(3, 4, generator=generator, dtype=torch.float64).sort(0, descending=True).values
    right = anchored_ranking_loss(a, b, c, NO, NO)
    assert float(right) < float(anchored_ranking_loss(c, b, a, NO, NO))
    moved = anchored_ranking_loss(a + 3, b + 3, c + 3, NO, NO, size=0)
    assert float(moved) == pytest.approx(float(anchored_ranking_loss(a, b, c, NO, NO, size=0)))
    order = torch.randperm(4, generator=generator)
    assert float(anchored_ranking_loss(a[order], b[order], c[order], NO, NO)) == pytest.approx(float(right))


def test_gradients_of_the_ranking_loss_are_those_of_finite_differences() -> None:
    values = [
        v.requires_grad_() for v in torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    ]
    assert gradcheck(lambda a, b, c, new, old: anchored_ranking_loss(a, b, c, new, old), values)


def test_bad_numbers_are_refused() -> None:
    with pytest.raises(DataError, match="new reward.*index 0"):
        anchored_ranking_loss(NO, NO, NO, torch.tensor([math.inf]), torch.zeros(1))
    with pytest.raises(ConfigError, match="must all be 0 or more"):
        anchored_ranking_loss(NO, NO, NO, NO, NO, anchor=-1)


NEAR = world(linear_truth, pairs=450, size=4, offset=5.0, scale=1.0)


def rewards(anchor: float, ridge: float = 1e-6) -> torch.Tensor:
    return NEAR.refined(NEAR.fit(AnchoredConfig(anchor=anchor, ridge=ridge))).reward


def test_a_strong_anchor_gives_the_base_reward_as_far_as_it_is_linear() -> None:
    rows = NEAR.rows.numpy()
    e = np.hstack([NEAR.embedding.numpy(), np.ones((len(NEAR.reward), 1))])
    linear = e @ np.linalg.lstsq(e[rows], NEAR.reward.numpy()[rows], rcond=None)[0]
    assert rewards(1e6).numpy() == pytest.approx(linear, abs=1e-2)


def test_no_anchor_gives_the_linear_head_s_differences_in_its_own_units() -> None:
    linear = NEAR.fit(LinearConfig(ridge=0.01))
    scores = linear.scores(linear.standardizer.embed(NEAR.embedding)).double().numpy()
    free = rewards(0.0, 0.01).double().numpy()
    assert free - free[0] == pytest.approx(scores - scores[0], abs=1e-4)
    distance = [float((rewards(anchor) - NEAR.reward).square().mean()) for anchor in (0.0, 0.01, 1.0)]
    assert distance[0] > distance[1] > distance[2]


def test_rewards_and_deviation_of_the_anchored_head_are_in_base_units() -> None:
    refined = NEAR.refined(NEAR.fit(AnchoredConfig()))
    assert refined.std.numpy() == pytest.approx(np.full(len(NEAR.reward), math.pi / math.sqrt(6)), rel=1e-5)
    assert float(refined.reward.mean()) == pytest.approx(5.0, abs=0.3)
