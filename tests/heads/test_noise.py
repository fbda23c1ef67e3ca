from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from ebrm.heads.noise import MixtureNoise

MIXTURES = [(0.875,), (0.1, 1.0), (0.25, 0.5, 2.0)]


def mixture_pdf(sigmas, offset):
    return np.mean([stats.norm(0, sigma).pdf(offset) for sigma in sigmas], axis=0)


def mixture_cdf(sigmas, offset):
    return np.mean([stats.norm(0, sigma).cdf(offset) for sigma in sigmas], axis=0)


@given(st.sampled_from(MIXTURES), st.floats(-5, 5), st.floats(-5, 5))
def test_log_density_is_scipys(sigmas, y, center):
    got = MixtureNoise(sigmas).log_prob(torch.tensor(y, dtype=torch.float64), torch.tensor(center, dtype=torch.float64))
    assert float(got) == pytest.approx(
        np.logaddexp.reduce([stats.norm(center, s).logpdf(y) for s in sigmas]) - np.log(len(sigmas)), abs=1e-10
    )


def test_log_density_broadcasts_and_keeps_float32():
    y, center = torch.randn(4, 7, generator=torch.Generator().manual_seed(0)), torch.tensor([[0.0], [1.0], [2.0], [-1]])
    got = MixtureNoise((0.1, 1.0)).log_prob(y, center)
    assert got.dtype == torch.float32
    assert got.exp().numpy() == pytest.approx(mixture_pdf((0.1, 1.0), (y - center).double().numpy()), rel=1e-5)


@pytest.mark.parametrize("sigmas", MIXTURES)
@pytest.mark.parametrize("beta", [1.0, 0.1])
def test_draws_follow_the_mixture_with_widths_times_beta(sigmas, beta):
    draws = MixtureNoise(sigmas).offsets((20_000,), torch.Generator().manual_seed(4), beta).double().numpy()
    scaled = tuple(beta * sigma for sigma in sigmas)
    # 1.63 / √n is the 1% point of the Kolmogorov-Smirnov distance.
    assert stats.kstest(draws, lambda x: mixture_cdf(scaled, x)).statistic < 1.63 / 20_000**0.5
    assert draws.std() == pytest.approx(beta * np.sqrt(np.mean(np.square(sigmas))), rel=0.05)


def test_beta_scales_the_very_same_draws():
    noise = MixtureNoise((0.3, 2.0))
    whole, tenth, none = (noise.offsets((3, 5), torch.Generator().manual_seed(9), beta) for beta in (1.0, 0.1, 0.0))
    assert torch.allclose(tenth, 0.1 * whole)
    assert torch.equal(none, torch.zeros(3, 5))


def test_every_draw_has_its_own_component():
    draws = MixtureNoise((1e-3, 10.0)).offsets((1000, 8), torch.Generator().manual_seed(5))
    wide = (draws.abs() > 0.01).double()
    assert float(wide.mean()) == pytest.approx(0.5, abs=0.03)
    assert not torch.equal(wide[:, 0], wide[:, 1])


def test_draws_come_from_the_generator_alone():
    noise, before = MixtureNoise((0.5, 1.0)), torch.get_rng_state()
    one, same, other = (noise.offsets((6,), torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(one, same) and not torch.equal(one, other)
    assert one.dtype == torch.float32
    assert torch.equal(torch.get_rng_state(), before)
