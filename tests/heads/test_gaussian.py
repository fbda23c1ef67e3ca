from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from tests.heads.worlds import linear_truth, world
from torch.autograd import gradcheck

from ebrm.heads import GaussianHeads, HeadConfig, InferenceConfig, PairRows, fit_head
from ebrm.heads.gaussian import gaussian_pair_loss


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


def test_gradients_against_finite_differences() -> None:
    values = [v.requires_grad_() for v in four(1, 3)]
    assert gradcheck(lambda a, b, s, t: gaussian_pair_loss((a, b), (s, t), 0.8), values)


def noisy(seed: int, pairs: int) -> tuple[torch.Tensor, torch.Tensor, PairRows]:
    """Pairs compared with noise whose logarithm grows with the second number of the embedding."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2 * pairs, 2, generator=generator)
    heard = 2 * x[:, 0] + (0.8 * x[:, 1]).exp() * torch.randn(2 * pairs, generator=generator)
    a, b = torch.arange(0, 2 * pairs, 2), torch.arange(1, 2 * pairs, 2)
    first = heard[a] > heard[b]
    return x, 2 * x[:, 0], PairRows(torch.where(first, a, b), torch.where(first, b, a))


def test_deviations_that_differ_between_rows_are_found() -> None:
    x, reward, pairs = noisy(0, 4000)
    train, held = (PairRows(pairs.chosen[part], pairs.rejected[part]) for part in (slice(3200), slice(3200, 4000)))
    head = fit_head("gaussian", x, reward, train, held, HeadConfig(heads=3))
    assert isinstance(head, GaussianHeads)
    mean, std = head.all_heads(head.standardizer.embed(x))
    for m, s in zip(mean, std, strict=True):
        slope = np.polyfit(x[:, 1].numpy(), s.log().numpy(), 1)[0]
        assert slope == pytest.approx(0.8, abs=0.25)
        assert np.corrcoef(m.numpy(), x[:, 0].numpy())[0, 1] > 0.97
        # Both are in units of the average row's noise, which is 1 here.
        assert float(m.std()) == pytest.approx(2.0, rel=0.25)


def test_the_surest_head_is_heard() -> None:
    head = GaussianHeads(1, HeadConfig(heads=2)).eval()
    head.weight.copy_(torch.tensor([[[1.0], [1.0]], [[-3.0], [-1.0]]]))  # surest where x < 0; where x > 0
    x = torch.tensor([[-1.0], [2.0]])
    assert head.scores(x).tolist() == [-1.0, -6.0]
    assert head.spread(x).numpy() == pytest.approx(np.exp([-1.0, -2.0]))
    assert head.scores(x[:0]).shape == (0,)


def test_one_head_and_pessimism_and_the_same_seed() -> None:
    small = world(linear_truth, pairs=120)
    args = (small.embedding, small.reward, small.train, small.validation)
    plain, again, careful = (
        fit_head("gaussian", *args, HeadConfig(heads=1, pessimism=c)).refine(*args[:2], InferenceConfig())
        for c in (0.0, 0.0, 1.5)
    )
    assert torch.equal(plain.reward, again.reward)
    assert torch.allclose(careful.reward, plain.reward - 1.5 * plain.std, atol=1e-3)
    assert torch.equal(careful.mean, plain.mean) and torch.equal(careful.interval, plain.interval)
