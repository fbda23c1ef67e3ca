"""Quadrature: posteriors on a grid, and f(e, .) of any row from a few nodes."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats
from tests.heads.toys import NONE, energy, plain_energy, small_network
from torch import Tensor

import ebrm.heads.energy as density_module
from ebrm.heads import (
    EnergyHead,
    EnergyNetwork,
    NetworkConfig,
    Posterior,
    find_interpolation,
    fit_head,
    grid_nodes,
    posterior,
)
from ebrm.heads.grid import Curves
from ebrm.heads.interpolation import MISFIT, Interpolation
from ebrm.pairs import PreferencePairs

PEAKED = stats.norm(0.7, 0.6)
SKEWED = stats.gamma(3.0, loc=-2.0, scale=0.35)
#: Truncated to a support, the truth of a density that is zero outside it.
LAWS = {"normal": stats.truncnorm(-10, 8, loc=1.0, scale=0.5), "gamma": SKEWED, "logistic": stats.logistic(0.2, 0.15)}


def of(*laws, low: float = -4.0, high: float = 5.0, count: int = 257) -> Posterior:
    nodes = grid_nodes(low, high, count)
    with np.errstate(divide="ignore"):
        log_p = np.stack([law.logpdf(nodes.numpy()) for law in laws])
    return posterior(nodes, torch.from_numpy(log_p).clamp_min(-700))


def random_posterior(rows: int = 6, count: int = 257, seed: int = 0) -> Posterior:
    """Several bumps a row, a few of them cut off at an end of the support."""
    network = small_network(reward_widths=(12,), joint_widths=(10,), seed=seed, gain=6.0)
    embedding = torch.randn(rows, 5, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        nodes = grid_nodes(-3.0, 4.0, count)
        return posterior(nodes, network.on_nodes(network.embed(embedding), nodes.float()))


def cdf(at: Posterior, reward: Tensor) -> Tensor:  # [n, k] -> [n, k]
    """P(r ≤ reward), by hand: whole cells, then the linear density inside the last one."""
    result = torch.empty_like(reward)
    x, p = at.nodes.numpy(), at.density.numpy()
    for i in range(reward.shape[0]):
        for j in range(reward.shape[1]):
            r = float(reward[i, j])
            inside = x[x < r]
            points = np.append(inside, r)
            result[i, j] = np.trapezoid(np.interp(points, x, p[i]), points)
    return result


def test_cells_are_probabilities_around_the_nodes():
    at = random_posterior(count=65)
    cells = at.log_cells().exp()
    assert torch.allclose(cells.sum(1), torch.ones(6, dtype=torch.float64))
    assert torch.allclose((cells * at.nodes).sum(1), at.mean())
    truth = of(PEAKED).log_cells().exp()
    edges = (0.5 * (grid_nodes(-4.0, 5.0, 257)[1:] + grid_nodes(-4.0, 5.0, 257)[:-1])).numpy()
    expected = np.diff(np.concatenate([[0.0], PEAKED.cdf(edges), [1.0]]))
    assert truth[0].numpy() == pytest.approx(expected, abs=2e-5)


@pytest.mark.parametrize("constant", [-1e30, -1e12, 1e12, 1e30])
def test_energies_that_are_all_huge_are_normalized(constant):
    """On such numbers a cell's width is below the last digit, and so is every difference but the steepest."""
    nodes = grid_nodes(-1.0, 3.0, 9)
    flat = posterior(nodes, torch.full((1, 9), constant))
    assert torch.allclose(flat.density, torch.full((1, 9), 0.25, dtype=torch.float64))
    edge = posterior(nodes, constant * nodes.float().unsqueeze(0))
    assert edge.mean().item() == pytest.approx(3.0 if constant > 0 else -1.0)
    assert edge.log_cells().exp().sum().item() == pytest.approx(1.0)


def test_nodes():
    assert grid_nodes(-1.0, 3.0, 5).tolist() == [-1.0, 0.0, 1.0, 2.0, 3.0]
    assert grid_nodes(0.0, 1.0, 9).dtype == torch.float64


def test_a_flat_energy_is_uniform_with_half_weights_at_the_ends():
    at = posterior(grid_nodes(-1.0, 3.0, 9), torch.full((2, 9), 5.0))
    assert torch.allclose(at.log_z, torch.full((2,), 5 + math.log(4), dtype=torch.float64), rtol=1e-14)
    assert torch.allclose(at.density, torch.full((2, 9), 0.25, dtype=torch.float64))
    assert at.mean().tolist() == pytest.approx([1.0] * 2)
    assert torch.allclose(at.log_cells().exp(), torch.tensor([0.0625, *[0.125] * 7, 0.0625]).double())
    assert at.std().tolist() == pytest.approx([4 / math.sqrt(12)] * 2, rel=0.02)
    for probability in (0.0, 0.05, 0.3, 0.5, 0.95, 1.0):
        assert at.quantile(probability).tolist() == pytest.approx([-1 + 4 * probability] * 2)


def test_a_known_piecewise_density():
    # exp f = 1, 3, 1 at 0, 1, 2: Z = ½ + 3 + ½ = 4; the first cell holds half.
    at = posterior(grid_nodes(0.0, 2.0, 3), torch.tensor([[0.0, math.log(3), 0.0]]))
    assert at.log_z.tolist() == pytest.approx([math.log(4)])
    assert at.density[0].tolist() == pytest.approx([0.25, 0.75, 0.25])
    assert at.mean().tolist() == pytest.approx([1.0])
    assert at.std().tolist() == pytest.approx([0.5])
    assert at.quantile(0.5).tolist() == pytest.approx([1.0])
    # Inside the first cell the density is ¼ + t / 2: a quarter of the mass is where t/4 + t²/4 = ¼.
    assert at.quantile(0.25).tolist() == pytest.approx([(math.sqrt(5) - 1) / 2])


@pytest.mark.parametrize("name", LAWS)
def test_moments_and_quantiles_are_scipys(name):
    law, at = LAWS[name], of(LAWS[name])
    assert at.log_z.item() == pytest.approx(0.0, abs=1e-4)
    assert at.mean().item() == pytest.approx(law.mean(), abs=1e-3)
    assert at.std().item() == pytest.approx(law.std(), rel=5e-3)
    for probability in (0.001, 0.05, 0.25, 0.5, 0.9, 0.95, 0.999):
        assert at.quantile(probability).item() == pytest.approx(law.ppf(probability), abs=5e-3)
    reward = torch.tensor([law.ppf(0.3)])
    assert at.log_density_at(reward).item() == pytest.approx(law.logpdf(law.ppf(0.3)), abs=5e-3)


def test_log_z_is_adaptive_quadratures():
    network = small_network(seed=1).double()
    embedding = torch.randn(4, 5, generator=torch.Generator().manual_seed(0)).double()
    with torch.no_grad():
        nodes = grid_nodes(-5.0, 6.0, 257)
        at = posterior(nodes, network.on_nodes(network.embed(embedding), nodes))
        for i in range(4):
            z, _ = integrate.quad(
                lambda r, e=embedding[i : i + 1]: plain_energy(
                    network, e, torch.tensor([[r]], dtype=torch.float64)
                ).exp().item(),
                -5, 6, epsabs=1e-9, limit=200,
            )  # fmt: skip
            assert at.log_z[i].item() == pytest.approx(math.log(z), abs=1e-4)


def test_a_coarse_grid_agrees_with_a_fine_one():
    coarse, fine = random_posterior(count=257), random_posterior(count=4097)
    assert torch.allclose(coarse.log_z, fine.log_z, atol=2e-3)
    assert torch.allclose(coarse.mean(), fine.mean(), atol=2e-3)
    assert torch.allclose(coarse.std(), fine.std(), atol=2e-3)
    assert torch.allclose(coarse.mode(), fine.mode(), atol=5e-3)
    for probability in (0.05, 0.5, 0.95):
        assert torch.allclose(coarse.quantile(probability), fine.quantile(probability), atol=1e-2)


@given(st.integers(0, 200))
def test_density_integrates_to_one(seed):
    at = random_posterior(3, seed=seed)
    assert np.trapezoid(at.density.numpy(), at.nodes.numpy()) == pytest.approx(np.ones(3), abs=1e-12)
    inside = (at.mean() > at.nodes[0]) & (at.mean() < at.nodes[-1])
    assert bool(inside.all()) and bool((at.std() > 0).all()) and bool((at.std() < 7 / 2).all())


@given(st.integers(0, 200), st.floats(-300, 300))
def test_a_constant_added_to_the_energy_changes_only_z(seed, constant):
    at = random_posterior(2, seed=seed)
    shifted = posterior(at.nodes, at.log_density + constant)
    assert torch.allclose(shifted.log_density, at.log_density, atol=1e-10)
    assert torch.allclose(shifted.log_z, torch.full((2,), constant, dtype=torch.float64), atol=1e-10)


@given(st.integers(0, 100), st.lists(st.floats(0.0, 1.0), min_size=2, max_size=6))
def test_quantiles_rise_with_the_probability_and_invert_the_cdf(seed, probabilities):
    at = random_posterior(3, count=33, seed=seed)
    probabilities = sorted(probabilities)
    quantiles = torch.stack([at.quantile(probability) for probability in probabilities], dim=1)
    assert bool((quantiles[:, 1:] >= quantiles[:, :-1]).all())
    expected = torch.tensor(probabilities, dtype=torch.float64).expand(3, -1)
    assert torch.allclose(cdf(at, quantiles), expected, atol=1e-9)


def test_quantiles_of_all_and_nothing():
    at = random_posterior()
    assert torch.equal(at.quantile(0.0), at.nodes[0].expand(6))
    assert torch.allclose(at.quantile(1.0), at.nodes[-1].expand(6))


def test_quantiles_where_most_cells_are_empty():
    at = of(stats.norm(2.0, 0.02), stats.norm(-3.9, 0.03))
    assert at.quantile(0.5).tolist() == pytest.approx([2.0, -3.9], abs=5e-3)
    assert bool(at.quantile(0.0).isfinite().all()) and bool(at.quantile(1.0).isfinite().all())


def test_the_mode_is_the_vertex_of_a_gaussian_wherever_it_falls_between_nodes():
    laws = [stats.norm(mean, 0.5) for mean in np.linspace(-0.1, 0.1, 23)]
    assert of(*laws, count=65).mode().tolist() == pytest.approx([law.mean() for law in laws], abs=1e-9)


def test_the_mode_is_the_highest_of_two_peaks():
    nodes = grid_nodes(-4.0, 4.0, 257)
    x = nodes.numpy()
    f = [
        np.log(weight * stats.norm(-1.5, 0.2).pdf(x) + (1 - weight) * stats.norm(1.2, 0.2).pdf(x))
        for weight in (0.55, 0.45)
    ]
    assert posterior(nodes, torch.tensor(np.stack(f))).mode().tolist() == pytest.approx([-1.5, 1.2], abs=1e-3)


def test_the_mode_on_an_end_of_the_support():
    nodes = grid_nodes(0.0, 2.0, 9)
    f = torch.stack([nodes, -nodes, nodes**2, (nodes - 2) ** 2, -((nodes - 5) ** 2), torch.exp(-3 * nodes)])
    assert posterior(nodes, f).mode().tolist() == pytest.approx([2.0, 0.0, 2.0, 0.0, 2.0, 0.0])
    one_cell_in = -((nodes - 0.25) ** 2)
    assert posterior(nodes, one_cell_in.unsqueeze(0)).mode().item() == pytest.approx(0.25)


def test_log_density_at_and_between_nodes_and_outside():
    at = posterior(grid_nodes(0.0, 2.0, 3), torch.tensor([[0.0, math.log(3), 0.0]] * 7))
    got = at.log_density_at(torch.tensor([0.0, 1.0, 2.0, 0.5, 1.75, -0.01, 2.01]))
    expected = [0.25, 0.75, 0.25, 0.75 / 3**0.5, 0.25 * 3**0.25, 0.0, 0.0]
    assert got.exp().tolist() == pytest.approx(expected)
    assert got[5:].tolist() == [-math.inf, -math.inf]


@given(st.integers(0, 200))
def test_preferences_of_a_pair_add_up_to_one_and_a_row_ties_with_itself(seed):
    a, b = random_posterior(4, seed=seed), random_posterior(4, seed=seed + 1)
    assert torch.allclose(a.prefer(b) + b.prefer(a), torch.ones(4, dtype=torch.float64), atol=1e-12)
    assert torch.allclose(a.prefer(a), torch.full((4,), 0.5, dtype=torch.float64), atol=1e-12)
    assert bool(((a.prefer(b) > 0) & (a.prefer(b) < 1)).all())


def test_preference_between_gaussians_is_the_closed_form():
    means, stds = [0.0, 0.5, -1.0, 2.0], [0.3, 0.6, 0.5, 0.2]
    a = of(*[stats.norm(m, s) for m, s in zip(means, stds, strict=True)])
    b = of(*[stats.norm(0.25, 0.4)] * 4)
    expected = stats.norm.cdf((np.array(means) - 0.25) / np.sqrt(np.square(stds) + 0.4**2))
    assert a.prefer(b).numpy() == pytest.approx(expected, abs=5e-4)


def test_preference_is_monte_carlos():
    a, b = LAWS["gamma"], LAWS["logistic"]
    rng = np.random.default_rng(0)
    wins = (a.rvs(200_000, random_state=rng) > b.rvs(200_000, random_state=rng)).mean()
    assert of(a).prefer(of(b)).item() == pytest.approx(wins, abs=5e-3)


def test_a_sure_preference():
    low, high = of(stats.norm(-2.0, 0.1)), of(stats.norm(2.0, 0.1))
    assert high.prefer(low).item() == pytest.approx(1.0) and low.prefer(high).item() == pytest.approx(0.0, abs=1e-12)


def test_preference_needs_the_same_nodes():
    with pytest.raises(ValueError, match="on the same nodes"):
        of(PEAKED).prefer(of(PEAKED, high=6.0))


def best_of(*laws) -> np.ndarray:
    """P(each is the largest) by SciPy: ∫ p_i Π F_j dr, adaptively."""
    low, high = min(law.ppf(1e-12) for law in laws), max(law.ppf(1 - 1e-12) for law in laws)

    def integrand(r: float, i: int) -> float:
        return laws[i].pdf(r) * math.prod(law.cdf(r) for j, law in enumerate(laws) if j != i)

    middles = sorted(law.median() for law in laws)
    return np.array(
        [integrate.quad(integrand, low, high, (i,), points=middles, limit=200)[0] for i in range(len(laws))]
    )


def test_the_best_of_several_laws_is_adaptive_quadratures_and_monte_carlos():
    laws = [*LAWS.values(), stats.norm(0.9, 0.3), stats.norm(-1.0, 0.5)]
    got = of(*laws, count=1025).p_best().numpy()
    assert got == pytest.approx(best_of(*laws), abs=2e-4)
    assert got.max() > 0.3 and 1e-6 < got.min() < 0.01
    rng = np.random.default_rng(0)
    draws = np.stack([law.rvs(200_000, random_state=rng) for law in laws])
    assert got == pytest.approx(np.bincount(draws.argmax(0)) / 200_000, abs=5e-3)


@settings(max_examples=50)
@given(st.integers(0, 1000), st.integers(1, 12))
def test_the_chances_to_be_best_sum_to_one_and_go_with_their_rows(seed, n):
    at = random_posterior(n, seed=seed, count=65)
    got = at.p_best()
    assert got.shape == (n,) and bool((got >= 0).all()) and float(got.sum()) == pytest.approx(1, abs=1e-12)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    moved = Posterior(at.nodes, at.log_density[order], at.log_z[order])
    assert torch.allclose(moved.p_best(), got[order], atol=1e-12)


@given(st.integers(0, 200))
def test_the_best_of_two_is_the_preferred_one(seed):
    at = random_posterior(2, seed=seed)
    a, b = (Posterior(at.nodes, at.log_density[i : i + 1], at.log_z[i : i + 1]) for i in (0, 1))
    assert at.p_best().tolist() == pytest.approx([a.prefer(b).item(), b.prefer(a).item()], abs=1e-12)


def test_the_best_of_one_of_none_and_of_equals():
    assert of(PEAKED).p_best().tolist() == [1.0]
    assert of(*[SKEWED] * 5).p_best().tolist() == pytest.approx([0.2] * 5, abs=1e-12)
    # All of the mass in a cell or two, and more rows than the points inside a cell are exact for.
    assert of(*[stats.norm(0.1, 0.02)] * 200).p_best().tolist() == pytest.approx([1 / 200] * 200, rel=1e-9)


def test_mass_inside_a_cell_is_spread_evenly():
    # Of two cells, one row has half its mass in each, the other two have theirs in the upper one:
    # P(first) = 1/2 ∫ t² dt, P(second) = ∫ (1 + t) / 2 · t dt.
    none = -1e3
    at = posterior(grid_nodes(0.0, 2.0, 3), torch.tensor([[0.0, none, 0.0], [none, none, 0.0], [none, none, 0.0]]))
    assert at.p_best().tolist() == pytest.approx([1 / 6, 5 / 12, 5 / 12], abs=1e-12)


def test_a_small_chance_to_be_best_keeps_its_digits():
    far, near = stats.norm(-2.0, 0.3), stats.norm(2.0, 0.3)
    expected = stats.norm.cdf(-4 / (0.3 * math.sqrt(2)))
    assert expected < 1e-20
    got = of(far, near, count=4097).p_best()
    assert got.tolist() == pytest.approx([expected, 1.0], rel=1e-3)
    hopeless = of(stats.norm(-3.0, 0.05), stats.norm(3.0, 0.05)).p_best()
    assert hopeless.tolist() == pytest.approx([0.0, 1.0], abs=1e-300)


def test_the_best_of_a_thousand():
    at = random_posterior(1000, seed=7)
    got = at.p_best().numpy()
    x, p = at.nodes.numpy(), at.density.numpy()
    below = integrate.cumulative_trapezoid(p, x, axis=1, initial=0)
    draws = np.random.default_rng(2).uniform(size=(1000, 5_000))
    wins = np.bincount(np.argmax([np.interp(u, f, x) for u, f in zip(draws, below, strict=True)], 0), minlength=1000)
    assert got.sum() == pytest.approx(1, abs=1e-9)
    assert got == pytest.approx(wins / 5_000, abs=6 * math.sqrt(got.max() / 5_000))
    assert np.corrcoef(got, wins)[0, 1] > 0.9


def test_a_row_does_not_depend_on_its_batch():
    at = random_posterior(6)
    for i in range(6):
        alone = posterior(at.nodes, at.log_density[i : i + 1])
        for whole, one in (
            (at.mean(), alone.mean()),
            (at.mode(), alone.mode()),
            (at.quantile(0.9), alone.quantile(0.9)),
        ):
            assert one.item() == pytest.approx(whole[i].item(), abs=1e-12)


@pytest.mark.parametrize("peak", np.linspace(-4.9, 4.9, 23))
def test_the_mode_of_a_skewed_density_is_found_between_nodes(peak):
    # log p = t - exp(t) has its top at t = 0 and is steeper to the right; a parabola would miss it by 1e-2.
    nodes = grid_nodes(-5.0, 5.0, 65)
    t = (nodes - peak).unsqueeze(0)
    assert posterior(nodes, t - t.exp()).mode().item() == pytest.approx(peak, abs=2e-4)
    assert posterior(nodes, (-t) - (-t).exp()).mode().item() == pytest.approx(peak, abs=2e-4)


@settings(max_examples=30)
@given(st.integers(0, 1000))
def test_the_mode_is_at_least_as_high_as_the_best_node_and_next_to_it(seed):
    nodes, network = grid_nodes(-3.0, 4.0, 129), small_network(seed=seed)
    embedding = torch.randn(8, 5, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        at = posterior(nodes, network.on_nodes(network.embed(embedding), nodes.float()))
        mode = at.mode()
        higher = network(embedding, mode.float()).double() - at.log_z
    best = at.log_density.argmax(1)
    assert bool(((mode - nodes[best]).abs() <= (nodes[1] - nodes[0]) * (1 + 1e-9)).all())
    assert bool((higher >= at.log_density.amax(1) - 2e-4).all())


def test_curves_are_read_to_the_fourth_order_with_the_derivative_of_what_is_read():
    rows, at = torch.arange(3).repeat(40), torch.linspace(-2, 3, 120, dtype=torch.float64)
    wave = torch.tensor([1.0, 2.0, 3.0]).double()
    errors = []
    for count in (65, 129, 257):
        nodes = grid_nodes(-2.0, 3.0, count)
        curves = Curves(nodes, torch.sin(wave.unsqueeze(1) * nodes))
        value, slope = curves.at(rows, at)
        errors.append((value - torch.sin(wave[rows] * at)).abs().max().item())
        assert torch.allclose(slope, wave[rows] * torch.cos(wave[rows] * at), rtol=0, atol=(32 / count) ** 3)
        inner = at.clamp(-1.99, 2.99)
        h = 1e-6
        numeric = (curves.at(rows, inner + h)[0] - curves.at(rows, inner - h)[0]) / (2 * h)
        assert torch.allclose(curves.at(rows, inner)[1], numeric, rtol=0, atol=1e-5)
    assert errors[0] < 1e-4 and errors[1] < errors[0] / 10 and errors[2] < errors[1] / 10


def test_curves_are_exact_at_nodes_on_cubics_and_clamped_outside():
    nodes = grid_nodes(-1.0, 1.0, 9)
    curves = Curves(nodes, (nodes**3 - 2 * nodes).unsqueeze(0))
    r = torch.tensor([-1.0, -0.9, -0.5, 0.1, 0.77, 1.0]).double()
    value, slope = curves.at(torch.zeros(6).long(), r)
    assert torch.allclose(value, r**3 - 2 * r, atol=1e-12) and torch.allclose(slope, 3 * r**2 - 2, atol=1e-12)
    far, _ = curves.at(torch.zeros(3).long(), torch.tensor([-7.0, 9.0, torch.inf]).double())
    assert far.tolist() == pytest.approx([1.0, -1.0, -1.0])


SUPPORT = (-4.0, 5.0)


def published(size: str, d: int = 24, gain: float = 1.5) -> EnergyNetwork:
    """A network of a published size, in float64, its weights a little larger than at the start."""
    network = EnergyNetwork(d, NetworkConfig(size=size), torch.Generator().manual_seed(1)).double()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(gain)
    return network


def space_of(network: EnergyNetwork) -> Interpolation:
    space = find_interpolation(network, SUPPORT)
    assert space is not None
    return space


@pytest.mark.parametrize("size", ["slim", "small"])
@pytest.mark.parametrize("spread", [0.1, 1.0, 10.0])
def test_a_few_nodes_tell_f_everywhere(size, spread):
    network = published(size)
    space = space_of(network)
    assert len(space.nodes) <= 26
    assert SUPPORT[0] <= space.nodes[0] < space.nodes[-1] <= SUPPORT[1] and bool((space.nodes.diff() > 0).all())
    embedding = spread * torch.randn(40, 24, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    rewards = torch.linspace(*SUPPORT, 101, dtype=torch.float64)
    with torch.no_grad():
        exact = plain_energy(network, embedding, rewards.expand(40, -1))
        f = plain_energy(network, embedding, space.nodes.expand(40, -1))
    assert (exact.amax(1) - exact.amin(1)).max() > 0.01  # not flat
    assert torch.allclose(f @ space.at(rewards), exact, rtol=0, atol=1e-4)
    assert (f @ space.misfit).abs().max() < MISFIT
    assert torch.allclose(f @ space.on_grid(101, f.device), exact, rtol=0, atol=1e-4)


def test_the_basis_is_one_at_its_node_and_zero_at_the_others():
    space = space_of(published("slim"))
    assert torch.allclose(space.at(space.nodes), torch.eye(len(space.nodes)).double(), rtol=0, atol=1e-9)
    ones = torch.ones(1, len(space.nodes)).double()
    assert torch.allclose(ones @ space.at(torch.linspace(*SUPPORT, 50)), torch.ones(1, 50).double(), atol=1e-5)
    assert torch.allclose(space.misfit.T @ space.misfit, torch.eye(2).double(), atol=1e-12)


@settings(max_examples=20)
@given(st.floats(3.0, 30.0), st.floats(0, 6.3))
def test_a_function_of_another_kind_does_not_fit(frequency, phase):
    space = space_of(published("slim"))
    strange = 0.1 * torch.sin(frequency * space.nodes + phase).unsqueeze(0)
    assert (strange @ space.misfit).abs().max() > MISFIT


def test_a_matter_of_weights_and_support_only():
    network, before = published("slim"), torch.get_rng_state()
    state = copy.deepcopy(network.state_dict())
    first, second = space_of(network), space_of(copy.deepcopy(network))
    assert torch.equal(first.nodes, second.nodes) and torch.equal(first.basis, second.basis)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())
    single = copy.deepcopy(network).float()
    assert space_of(single).nodes.dtype == torch.float64
    assert {value.dtype for value in single.state_dict().values()} == {torch.float32}
    assert find_interpolation(network, (-1.0, 1.0)).nodes.abs().max() <= 1.0


def test_there_is_none_for_functions_without_a_small_space():
    assert find_interpolation(small_network(gain=40.0), SUPPORT) is None
    broken = small_network()
    with torch.no_grad():
        broken.output.weight[0, 0] = torch.nan
    assert find_interpolation(broken, SUPPORT) is None


def test_a_flat_energy():
    flat = small_network()
    torch.nn.init.zeros_(flat.output.weight)
    space = space_of(flat)
    values = torch.full((1, len(space.nodes)), 0.7).double()
    assert torch.allclose(values @ space.at(torch.linspace(*SUPPORT, 9)), torch.full((1, 9), 0.7).double(), atol=1e-9)


def a_density(gain: float = 2.0) -> tuple[EnergyHead, torch.Tensor, torch.Tensor]:
    density = EnergyHead(24, energy(), torch.Generator().manual_seed(0))
    with torch.no_grad():
        for parameter in density.parameters():
            parameter.mul_(gain)
    density.support.copy_(torch.tensor(SUPPORT))
    generator = torch.Generator().manual_seed(3)
    return density.eval(), torch.randn(50, 24, generator=generator), torch.randn(50, generator=generator)


def refined(density: EnergyHead, *rows: torch.Tensor, estimate: str = "mean") -> np.ndarray:
    got = density.with_inference(estimate=estimate).refine(*rows)
    return torch.stack([got.reward, got.mean, got.mode, got.std, *got.interval.T, got.log_density]).numpy()


def fitted() -> tuple[EnergyHead, torch.Tensor, torch.Tensor]:
    """A density with two joint layers, fitted until its functions are steeper than what goes into the second."""
    generator = torch.Generator().manual_seed(0)
    embedding = torch.randn(512, 24, generator=generator)
    reward = embedding[:, 0] + 0.3 * torch.randn(512, generator=generator)
    pairs = PreferencePairs.of(torch.arange(0, 512, 2), torch.arange(1, 512, 2))
    network = NetworkConfig(reward_widths=(16, 32), joint_widths=(64, 32))
    config = energy(network, objective="likelihood", epochs=20, learning_rate=3e-3)
    return fit_head(config, embedding, reward, pairs, NONE).head, embedding[:50], reward[:50]


def test_what_goes_into_the_second_joint_layer_is_told_by_fewer_nodes():
    density, embedding, _ = fitted()
    network, space = density.network.double(), density._interpolation()
    assert space is not None and space.hidden is not None and len(space.hidden.nodes) < len(space.nodes)
    assert space_of(published("slim")).hidden is None and space_of(published("small")).hidden is None
    with torch.no_grad():
        embedded = network.embed(density.standardizer.embed(embedding).double())
        few = network.hidden_on_nodes(embedded, space.hidden.nodes)
        exact = network.hidden_on_nodes(embedded, space.nodes)
        between = torch.einsum("ab,naw->nbw", space.hidden_to_nodes, few)
        assert torch.allclose(between, exact, rtol=0, atol=1e-4)
        assert torch.einsum("nkw,kc->ncw", few, space.hidden.misfit).abs().max() < MISFIT
        assert torch.allclose(network.from_hidden(exact), network.on_nodes(embedded, space.nodes), rtol=0, atol=1e-12)


@pytest.mark.parametrize("made", ["slim", "two joint layers"])
@pytest.mark.parametrize("estimate", ["mean", "mode", "ascent"])
def test_rows_that_do_not_fit_are_evaluated_reward_by_reward_and_all_agree(estimate, made, monkeypatch):
    density, *rows = a_density() if made == "slim" else fitted()
    expected = refined(density, *rows, estimate=estimate)
    near = {"rtol": 0, "atol": 5e-3 if estimate == "ascent" else 1e-3}  # where f is flat, an ascent may stop anywhere
    asked = []
    monkeypatch.setattr(EnergyNetwork, "on_nodes", watch(asked, EnergyNetwork.on_nodes))
    assert np.allclose(refined(density, *rows, estimate=estimate), expected, rtol=0, atol=1e-12)
    few = len(density._interpolation().nodes)
    if made == "slim":
        assert set(asked) == {(50, few)}
    else:  # by way of what goes into the second layer, but for few rows
        assert all(rows < 10 for rows, _ in asked)
    monkeypatch.setattr(density_module, "MISFIT", -1.0)  # no row fits
    asked.clear()
    assert np.allclose(refined(density, *rows, estimate=estimate), expected, **near)
    assert 129 in {nodes for _, nodes in asked}
    monkeypatch.setattr(density_module, "find_interpolation", lambda *_: None)
    density._space.clear()
    asked.clear()
    assert np.allclose(refined(density, *rows, estimate=estimate), expected, **near)
    assert 129 in {nodes for _, nodes in asked} and few not in {nodes for _, nodes in asked}


def test_only_the_rows_that_do_not_fit_are_evaluated_again(monkeypatch):
    density, embedding, reward = a_density()
    expected = refined(density, embedding, reward)
    space = density._interpolation()
    with torch.no_grad():
        f = density.network(density.standardizer.embed(embedding), space.nodes.float().expand(50, -1)).double()
    misfit = (f @ space.misfit).abs().amax(1)
    monkeypatch.setattr(density_module, "MISFIT", float(misfit.median()))
    asked = []
    monkeypatch.setattr(EnergyNetwork, "on_nodes", watch(asked, EnergyNetwork.on_nodes))
    assert np.allclose(refined(density, embedding, reward), expected, rtol=0, atol=1e-3)
    again = sum(rows for rows, nodes in asked if nodes == 129)
    assert 20 <= again <= 30


def watch(asked, on_nodes):
    def watched(self, embedded, nodes):
        asked.append((len(embedded), len(nodes)))
        return on_nodes(self, embedded, nodes)

    return watched


def test_the_space_is_found_once_and_again_when_weights_or_support_change(monkeypatch):
    density, *rows = a_density()
    found = []

    def find(*arguments):
        found.append(1)
        return find_interpolation(*arguments)

    monkeypatch.setattr(density_module, "find_interpolation", find)
    refined(density, *rows)
    refined(density, *rows)
    with torch.inference_mode():
        refined(density, *rows)
    assert len(found) == 1
    other = EnergyHead(24, energy(), torch.Generator().manual_seed(9)).eval()
    changes = [
        lambda: density.load_state_dict(other.state_dict()),
        lambda: torch.optim.SGD(density.parameters(), lr=0.1).step(),
        lambda: density.support.copy_(torch.tensor([-2.0, 2.0])),
        lambda: setattr(density.network, "output", copy.deepcopy(other.network.output)),
    ]
    for number, change in enumerate(changes):
        for parameter in density.parameters():
            parameter.grad = torch.ones_like(parameter)
        change()
        fresh = copy.deepcopy(density)
        fresh._space.clear()
        before = len(found)
        assert np.allclose(refined(density, *rows), refined(fresh, *rows), rtol=0, atol=1e-12), number
        assert len(found) == before + 2, number


def test_weights_that_are_replaced_by_others_of_the_same_age_are_noticed():
    density, *rows = a_density()
    refined(density, *rows)
    old, new = density.network.output, copy.deepcopy(density.network.output)
    with torch.no_grad():
        new.weight.neg_()
        for ours, theirs in zip(new.parameters(), old.parameters(), strict=True):
            while ours._version < theirs._version:
                ours.mul_(1.0)
            assert ours._version == theirs._version
    first = density._interpolation()
    density.network.output = new
    assert density._interpolation() is not first
