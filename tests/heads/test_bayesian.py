from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from tests.heads.worlds import linear_truth, world

from ebrm.aggregate import pessimistic
from ebrm.heads import HeadConfig, InferenceConfig, PairRows, fit_head
from ebrm.heads.bayesian import BayesianHead
from ebrm.heads.data import Labels
from ebrm.heads.losses import pair_loss

WORLD = world(linear_truth, pairs=240, size=3)
ARGS = (WORLD.embedding, WORLD.reward, WORLD.train, WORLD.validation)


def fitted(settings: HeadConfig, labels: Labels = Labels()) -> BayesianHead:  # noqa: B008
    head = fit_head("bayesian", *ARGS, settings, labels=labels)
    assert isinstance(head, BayesianHead)
    return head


def test_the_covariance_is_the_inverse_of_the_losses_second_derivative() -> None:
    p = len(WORLD.train)
    weight = torch.linspace(0.5, 2, p, dtype=torch.float64)
    margin, label = 0.2 * weight, torch.full_like(weight, 0.8)
    head = fitted(HeadConfig(l2=0.05, smoothing=0.1, centering=0.03), Labels(weight=weight, margin=margin, label=label))
    x = head.standardizer.embed(WORLD.embedding).double()

    def total(w: torch.Tensor) -> torch.Tensor:
        u = x @ w
        pairs = pair_loss(
            u[WORLD.train.chosen], u[WORLD.train.rejected], weight=weight, margin=margin, label=label, smoothing=0.1,
            centering=0.03,
        )  # fmt: skip
        return pairs.sum() + 0.5 * p * 0.05 * w.square().sum()

    second = torch.autograd.functional.hessian(total, head.weight.double())
    root = head.root.double()
    assert (root.T @ root).numpy() == pytest.approx(torch.linalg.inv(second).numpy(), rel=1e-4, abs=1e-9)
    std = (x * (x @ torch.linalg.inv(second))).sum(1).sqrt()
    assert head.spread(x.float()).numpy() == pytest.approx(std.numpy(), rel=1e-4)


def test_the_reward_is_the_linear_head_s_and_surer_with_more_pairs() -> None:
    settings = HeadConfig(l2=0.05)
    head, linear = fitted(settings), fit_head("linear", *ARGS, settings)
    assert torch.equal(head.weight, linear.weight)  # type: ignore[arg-type]
    twice = PairRows(torch.cat([WORLD.train.chosen] * 4), torch.cat([WORLD.train.rejected] * 4))
    more = fit_head("bayesian", *ARGS[:2], twice, WORLD.validation, settings)
    x = head.standardizer.embed(WORLD.embedding)
    assert more.spread(x).numpy() == pytest.approx(0.5 * head.spread(x).numpy(), rel=1e-3)


def test_it_knows_less_where_no_pair_has_been() -> None:
    lone = WORLD.embedding.clone()
    lone[:, 2] = 0.01 * lone[:, 2] + 1  # no pair differs in it by much
    head = fit_head("bayesian", lone, *ARGS[1:], HeadConfig(l2=0.001))
    far = torch.tensor([[0.0, 0.0, 0.0], [3.0, 0.0, 0.0], [30.0, 0.0, 0.0]])
    std = head.spread(far)
    assert float(std[0]) == 0 and float(std[2]) == pytest.approx(10 * float(std[1]))


def test_preferring_averages_over_the_weights() -> None:
    few = PairRows(WORLD.train.chosen[:12], WORLD.train.rejected[:12])  # so that the weights are far from known
    head = fit_head("bayesian", *ARGS[:2], few, WORLD.validation, HeadConfig(l2=0.05))
    assert isinstance(head, BayesianHead)
    a, b = WORLD.embedding[:40], WORLD.embedding[40:80]
    found = head.prefer((a, b), (WORLD.reward[:40], WORLD.reward[40:80]))
    rng = np.random.default_rng(0)
    root = head.root.double().numpy()
    draws = head.weight.double().numpy() + rng.standard_normal((20_000, 3)) @ root
    d = (head.standardizer.embed(a) - head.standardizer.embed(b)).double().numpy() @ draws.T
    assert found.numpy() == pytest.approx((1 / (1 + np.exp(-d))).mean(1), abs=0.02)
    plain = torch.sigmoid((head.standardizer.embed(a) - head.standardizer.embed(b)) @ head.weight)
    assert bool(((found - 0.5).abs() <= (plain - 0.5).abs() + 1e-6).all())  # never surer than the weights' mean
    assert head.prefer((a, a), (WORLD.reward[:40],) * 2).tolist() == [0.5] * 40


def test_pessimism_takes_deviations_off() -> None:
    plain, careful = (fitted(HeadConfig(l2=0.05, pessimism=c)).refine(*ARGS[:2], InferenceConfig()) for c in (0, 2))
    assert torch.allclose(careful.reward, pessimistic(plain.reward, plain.std, 2.0), atol=1e-3)
    assert torch.equal(careful.std, plain.std)
    assert math.isclose(
        float(plain.std[0]), float((plain.interval[0, 1] - plain.interval[0, 0]) / 3.2897), rel_tol=1e-3
    )
