"""Linear heads: Bradley-Terry against SciPy, Laplace's posterior, Gaussian ensembles, the anchor."""

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
from tests.heads.worlds import NONE, linear_truth, world
from torch.autograd import gradcheck

from ebrm.aggregate import pessimistic
from ebrm.errors import ConfigError, DataError
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
)
from ebrm.pairs import PreferencePairs

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
