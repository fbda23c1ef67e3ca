"""What every head answers, on two made ones whose distributions are known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from ebrm.heads import ClosedFormHead, LinearConfig
from ebrm.heads.base import GUMBEL_STD


class Gumbel(ClosedFormHead):
    """Score: the first number of the embedding."""

    def scores(self, x: Tensor) -> Tensor:
        return x[:, 0]


class Normal(Gumbel):
    """The second number is the logarithm of the deviation."""

    noise = "normal"

    def spread(self, x: Tensor) -> Tensor:
        return x[:, 1].exp()


def made(kind: type[ClosedFormHead], gain: float = 0.5, offset: float = -1.0) -> ClosedFormHead:
    head = kind(2, LinearConfig())
    head.gain.fill_(gain)
    head.offset.fill_(offset)
    head.standardizer.reward_mean.fill_(30.0)
    head.standardizer.reward_std.fill_(4.0)
    head.support.copy_(torch.tensor([-4.0, 4.0]))
    return head.eval()


EMBEDDING = torch.tensor([[0.0, 0.0], [1.0, -1.0], [3.0, 0.5], [-2.0, -3.0], [0.5, 1.0]])
BASE = torch.full((5,), 30.0)
# Base units: 4 * (0.5 * score - 1) + 30.
MEAN = 30 + 4 * (0.5 * EMBEDDING[:, 0] - 1).double().numpy()


def scipy_law(kind: type[ClosedFormHead]) -> stats.rv_continuous:
    if kind is Normal:
        return stats.norm(MEAN, 2 * EMBEDDING[:, 1].double().exp().numpy())
    return stats.gumbel_r(MEAN - 2 * np.euler_gamma, 2.0)


@pytest.mark.parametrize("kind", [Gumbel, Normal])
@pytest.mark.parametrize("estimate", ["mean", "mode"])
def test_refine_is_that_of_scipy_s_distribution(kind: type[ClosedFormHead], estimate: str) -> None:
    refined = made(kind).with_inference(estimate=estimate, coverage=0.8).refine(EMBEDDING, BASE)
    law = scipy_law(kind)
    mode = MEAN if kind is Normal else MEAN - 2 * np.euler_gamma
    at = MEAN if estimate == "mean" else mode
    assert refined.reward.numpy() == pytest.approx(at, rel=1e-6)
    assert refined.mean.numpy() == pytest.approx(law.mean(), rel=1e-6)
    assert refined.mode.numpy() == pytest.approx(mode, rel=1e-6)
    assert refined.std.numpy() == pytest.approx(law.std(), rel=1e-6)
    ends = np.stack([law.ppf(0.1), law.ppf(0.9)])
    assert refined.interval.T.numpy() == pytest.approx(ends, rel=1e-6)
    assert refined.log_density.numpy() == pytest.approx(law.logpdf(at), rel=1e-5)


@pytest.mark.parametrize("kind", [Gumbel, Normal])
def test_the_grid_has_the_distribution_s_probabilities(kind: type[ClosedFormHead]) -> None:
    head, law = made(kind), scipy_law(kind)
    rewards, p = head.density(EMBEDDING, BASE, 33)
    step = float(rewards[1] - rewards[0])
    edges = (rewards.double().numpy()[1:] + rewards.double().numpy()[:-1]) / 2
    cdf = np.stack([law.cdf(edge) for edge in edges], 1)
    mass = np.diff(np.concatenate([np.zeros((5, 1)), cdf, np.ones((5, 1))], 1))
    width = np.full(33, step)
    width[[0, -1]] /= 2
    assert p.double().numpy() * width == pytest.approx(mass, abs=1e-6)
    # Row 3 has a deviation of 0.1 where nodes are 1 apart: its probability is all in two cells or fewer.
    at = head.posterior(EMBEDDING, BASE, 33)
    assert at.log_cells().exp().sum(1).numpy() == pytest.approx(np.ones(5))
    assert bool(at.log_density.isfinite().all())
    fine = head.posterior(EMBEDDING, BASE, 4001)
    inside = np.array([0, 1, 2] if kind is Gumbel else [1, 3])  # the others reach beyond the support
    assert head.standardizer.to_base(fine.mean()).numpy()[inside] == pytest.approx(MEAN[inside], rel=5e-3)


def test_preferring_is_the_logistic_or_the_normal_of_the_difference() -> None:
    a, b = EMBEDDING[:4], EMBEDDING[1:]
    score = EMBEDDING[:, 0]
    both = (a, b), (BASE[:4], BASE[1:])
    assert torch.allclose(made(Gumbel).prefer(*both), torch.sigmoid(score[:4] - score[1:]))
    std = EMBEDDING[:, 1].exp()
    z = (score[:4] - score[1:]) / (std[:4].square() + std[1:].square()).sqrt()
    assert made(Normal).prefer(*both).numpy() == pytest.approx(stats.norm.cdf(z.numpy()), abs=1e-6)


def test_the_best_is_luce_s_softmax_or_the_normal_integral() -> None:
    score = EMBEDDING[:, 0]
    assert torch.allclose(made(Gumbel).p_best(EMBEDDING, BASE), torch.softmax(score, 0))
    found = made(Normal).p_best(EMBEDDING, BASE).double().numpy()
    law = scipy_law(Normal)
    draws = law.rvs((400_000, 5), random_state=np.random.default_rng(0))
    share = np.bincount(draws.argmax(1), minlength=5) / len(draws)
    assert found == pytest.approx(share, abs=4e-3) and found.sum() == pytest.approx(1)
    for kind in (Gumbel, Normal):
        head = made(kind)
        two = head.p_best(EMBEDDING[:2], BASE[:2])
        assert float(two[0]) == pytest.approx(
            float(head.prefer((EMBEDDING[:1], EMBEDDING[1:2]), (BASE[:1], BASE[:1]))), abs=1e-4
        )
        assert head.p_best(EMBEDDING[:1], BASE[:1]).tolist() == [1.0]
        assert head.p_best(EMBEDDING[:0], BASE[:0]).shape == (0,)


def test_the_spread_is_that_of_the_random_utility_model() -> None:
    draws = stats.gumbel_r.rvs(size=(2, 200_000), random_state=1)
    assert draws.std() == pytest.approx(GUMBEL_STD, rel=0.01)
    assert (draws[0] + 0.7 > draws[1]).mean() == pytest.approx(1 / (1 + math.exp(-0.7)), abs=4e-3)


@given(st.floats(-50, 50), st.floats(0.1, 10))
def test_units_change_no_probability(offset: float, gain: float) -> None:
    for kind in (Gumbel, Normal):
        plain, other = made(kind), made(kind, gain, offset)
        both = (EMBEDDING[:4], EMBEDDING[1:]), (BASE[:4], BASE[1:])
        assert torch.allclose(plain.prefer(*both), other.prefer(*both), atol=1e-5)
        assert torch.allclose(plain.p_best(EMBEDDING, BASE), other.p_best(EMBEDDING, BASE), atol=2e-3)


def test_far_tails_stay_finite() -> None:
    for kind in (Gumbel, Normal):
        at = made(kind).posterior(torch.tensor([[1e4, -9.0], [-1e4, -9.0]]), BASE[:2], 65)
        assert bool(at.log_density.isfinite().all()) and bool(at.p_best().isfinite().all())
        assert at.prefer(at).tolist() == [0.5, 0.5]
