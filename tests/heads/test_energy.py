"""The energy model: its density, what is read off it, and the ascent."""

from __future__ import annotations

import copy
import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats
from tests.heads.toys import energy, plain_energy, reading, small_network
from torch import Tensor

import ebrm.heads.energy as density_module
from ebrm.heads import EnergyHead, EnergyNetwork, Fusion, InferenceConfig, NetworkConfig, Refinement
from ebrm.heads.energy import Ascent, ascend, starting_reward

WIDTHS = NetworkConfig(reward_widths=(12,), joint_widths=(10,), dropout=0.5)
STARTS = ["base", "paper", "zero", "random"]
FIELDS = [field.name for field in dataclasses.fields(Refinement)]
ASCENT, MEAN = InferenceConfig(estimate="ascent"), InferenceConfig()
#: The density alone, density and base reward, and the base reward alone.
FUSIONS = [Fusion(), Fusion(0.5, 0.7), Fusion(0.0, 0.35)]


def rows(n: int, seed: int = 3) -> tuple[Tensor, Tensor]:
    """Embeddings [n, 5] and base rewards [n] in units far from the internal ones."""
    generator = torch.Generator().manual_seed(seed)
    return 2 + torch.randn(n, 5, generator=generator), 100 + 7 * torch.randn(n, generator=generator)


def some_density(seed: int = 0, gain: float = 4.0, scale: float = 1.0, fusion: Fusion = FUSIONS[0]) -> EnergyHead:
    """Random weights large enough for several bumps; units fitted on 200 rows."""
    density = EnergyHead(5, energy(WIDTHS, objective="likelihood", reward_scale=scale))
    density.network.load_state_dict(small_network(5, (12,), (10,), seed=seed, gain=gain).state_dict())
    embedding, reward = rows(200)
    density.fit_units(reward, [embedding])
    density.fusion = fusion
    return density.eval()


def flattened(density: EnergyHead) -> EnergyHead:
    """The same with a flat energy: it says nothing about r."""
    torch.nn.init.zeros_(density.network.output.weight)
    return density


def test_support_is_the_training_range_widened_by_three_noise_widths():
    density = EnergyHead(1, energy(WIDTHS, objective="likelihood", noise_scales=(0.5, 0.25), reward_scale=4.0))
    reward = torch.tensor([2.0, 4.0, 6.0, 8.0])  # mean 5, std √5
    density.fit_units(reward, [torch.tensor([[1.0], [3.0]])])
    low, high = -3 / math.sqrt(5) * 4, 3 / math.sqrt(5) * 4
    assert density.trusted.tolist() == pytest.approx([low, high])
    assert density.support_bounds() == pytest.approx((low - 6.0, high + 6.0))
    assert density.standardizer.embedding_center.tolist() == [2.0]
    nodes, _ = density.density(torch.zeros(1, 1), torch.zeros(1))
    assert nodes[[0, -1]].tolist() == pytest.approx([2 - 1.5 * math.sqrt(5), 8 + 1.5 * math.sqrt(5)])


@pytest.mark.parametrize("scale", [1.0, 4.0])
@pytest.mark.parametrize(
    ("reward", "expected"),
    [
        ([-1.0, 1.0] * 8, (-4.0, 4.0)),  # no base reward is far out, a true one may be
        ([-6.0, 0.0] + [0.5] * 12, (-3.44, 4.0)),  # mean 0, std √3: the wider side of the training range
        ([0.0] * 30 + [6.0], (-4.0, 5.48)),
        ([0.0] * 99 + [1.0], (-4.0, 8.0)),  # 9.9 standard deviations out: the support would be all tail
        ([0.0] * 99 + [-1.0], (-8.0, 4.0)),
    ],
)
def test_support_of_the_joint_objective_is_at_least_four_and_at_most_eight_standard_deviations(reward, expected, scale):
    density = EnergyHead(1, energy(WIDTHS, reward_scale=scale))
    values = torch.tensor(reward)
    density.fit_units(values, [])
    internal = (values - values.mean()) / values.std(correction=0)
    low, high = float(internal.min()), float(internal.max())
    expected = min(-4.0, low) if low > -8 else -8.0, max(4.0, high) if high < 8 else 8.0
    assert density.support_bounds() == pytest.approx((expected[0] * scale, expected[1] * scale))
    assert density.trusted.tolist() == pytest.approx([low * scale, high * scale], rel=1e-5)  # this one is not cut


def test_embeddings_are_left_alone_without_centering():
    density = EnergyHead(1, energy(dataclasses.replace(WIDTHS, standardize_embedding=False)))
    density.fit_units(torch.tensor([0.0, 1.0]), [torch.tensor([[5.0]])])
    assert density.standardizer.embed(torch.tensor([[5.0]])).tolist() == [[5.0]]


def test_a_density_that_is_not_fitted_is_trusted_alone():
    density = EnergyHead(1, energy(WIDTHS))
    assert density.fusion == Fusion(1.0, math.inf)
    density.fusion = Fusion(0.25, 1.4)
    assert density.fusion == Fusion(0.25, pytest.approx(1.4))
    assert {"power", "base_noise"} <= set(density.state_dict())


def test_energy_is_the_plain_networks_in_base_units():
    density = some_density(scale=4.0)
    embedding, reward = rows(6)
    internal = (reward - density.standardizer.reward_mean) / density.standardizer.reward_std * 4
    centered = (embedding - density.standardizer.embedding_center) / density.standardizer.embedding_spread
    expected = plain_energy(density.network, centered, internal.float().unsqueeze(1))
    assert torch.allclose(density.energy(embedding, reward), expected.squeeze(1), atol=1e-5)
    many = density.energy(embedding, reward.unsqueeze(1) + torch.arange(3.0))
    assert many.shape == (6, 3) and torch.allclose(many[:, 0], expected.squeeze(1), atol=1e-5)
    assert density.energy(embedding[:0], reward[:0]).shape == (0,)
    assert density.energy(embedding[:0], torch.zeros(0, 4)).shape == (0, 4)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_density_integrates_to_one_in_base_units(fusion):
    nodes, density = some_density(scale=4.0, fusion=fusion).density(*rows(20), nodes=129)
    assert nodes.shape == (129,) and density.shape == (20, 129)
    assert nodes.dtype == density.dtype == torch.float32
    assert np.trapezoid(density.numpy(), nodes.numpy()) == pytest.approx(np.ones(20), abs=1e-5)
    assert nodes[0] < 85 and nodes[-1] > 115


@pytest.mark.parametrize("scale", [1.0, 4.0])
@pytest.mark.parametrize("fusion", FUSIONS)
def test_the_posterior_is_adaptive_quadratures(fusion, scale):
    density = some_density(fusion=fusion, scale=scale)
    embedding, reward = rows(3)
    got = density.with_inference(nodes=1025).refine(embedding, reward)
    nodes, _ = density.density(embedding[:1], reward[:1])
    low, high = float(nodes[0]), float(nodes[-1])
    noise = fusion.base_noise * float(density.standardizer.reward_std)  # s is in standard deviations

    def log_integrand(i: int, r: float) -> float:
        f = density.energy(embedding[i : i + 1], torch.tensor([r], dtype=torch.float64)).item()
        return fusion.power * f - 0.5 * ((reward[i].item() - r) / noise) ** 2

    def moment(i: int, power: int) -> float:
        def integrand(r: float) -> float:
            return r**power * math.exp(log_integrand(i, r))

        return integrate.quad(integrand, low, high, epsabs=1e-3, epsrel=1e-6, limit=200)[0]

    for i in range(3):
        z, first, second = (moment(i, power) for power in range(3))
        assert got.mean[i].item() == pytest.approx(first / z, abs=0.01)
        assert got.std[i].item() == pytest.approx(math.sqrt(second / z - (first / z) ** 2), rel=2e-3)
        expected = log_integrand(i, got.reward[i].item()) - math.log(z)
        assert got.log_density[i].item() == pytest.approx(expected, abs=5e-3)


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("estimate", ["ascent", "mode", "mean"])
def test_a_refinement_is_consistent_with_the_density(estimate, fusion):
    density = some_density(fusion=fusion)
    embedding, reward = rows(15)
    got = density.with_inference(estimate=estimate, nodes=513, coverage=0.8).refine(embedding, reward)
    nodes, p = (value.double().numpy() for value in density.density(embedding, reward, nodes=513))
    cumulative = integrate.cumulative_trapezoid(p, nodes, axis=1, initial=0)
    for i in range(15):
        inside = np.interp(got.interval[i].numpy(), nodes, cumulative[i])
        assert inside == pytest.approx([0.1, 0.9], abs=2e-3)
        assert got.log_density[i].item() == pytest.approx(
            np.interp(got.reward[i].item(), nodes, np.log(p[i].clip(1e-30))), abs=2e-3
        )
        assert got.mode[i].item() == pytest.approx(nodes[p[i].argmax()], abs=nodes[1] - nodes[0])
        assert got.mean[i].item() == pytest.approx(np.trapezoid(p[i] * nodes, nodes), abs=1e-3)
    if estimate != "ascent":
        assert torch.equal(got.reward, getattr(got, estimate))
    assert bool((got.interval[:, 0] < got.interval[:, 1]).all())


def test_the_ascent_raises_the_density_from_the_base_reward_and_stays_inside_the_support():
    density = some_density()
    embedding, reward = rows(100)
    got = reading(density, ASCENT).refine(embedding, reward)
    start = reading(density, dataclasses.replace(ASCENT, steps=0)).refine(embedding, reward)
    low, high = density.standardizer.to_base(density.trusted).tolist()
    assert torch.allclose(start.reward, reward.clamp(low, high), atol=1e-4)
    assert bool((density.energy(embedding, got.reward) >= density.energy(embedding, start.reward) - 1e-5).all())
    assert float((got.reward - start.reward).abs().median()) > 0.5  # it moves
    top = density.with_inference(estimate="mode").refine(embedding, reward)
    # And no climb ends above the global mode, but for what lies between two nodes.
    assert bool((top.log_density >= got.log_density - 0.02).all())


def test_the_ascent_climbs_the_density_given_the_base_reward(monkeypatch):
    """The function it climbs, and its slope, in chunks of rows: t·f + log N(r0; r, s²) up to a constant a row."""
    density = some_density(scale=4.0, fusion=Fusion(0.5, 0.7))
    monkeypatch.setattr(density_module, "_BLOCK_ROWS", 4)
    asked = []

    def watch(climbed, start, *rest):
        asked.append((climbed, start))
        return Ascent(start, start, torch.zeros(len(start)))

    monkeypatch.setattr(density_module, "ascend", watch)
    embedding, reward = rows(10)
    reading(density, ASCENT).refine(embedding, reward)
    assert [len(start) for _, start in asked] == [4, 4, 2] and asked[0][1].dtype == torch.float64
    base, first = density.standardizer.to_internal(reward).double(), 0
    network = copy.deepcopy(density.network).double()
    for climbed, start in asked:
        places = torch.arange(len(start)).flip(0)  # rows still moving, in any order
        e = density.standardizer.embed(embedding[first : first + len(start)]).double()[places]
        r0 = base[first : first + len(start)][places]
        at, h = torch.linspace(-5, 5, len(start), dtype=torch.float64), 1e-5
        value, slope = climbed(places, at)

        def log_density(r: Tensor, e: Tensor = e, r0: Tensor = r0) -> Tensor:
            f = network(e, r).detach()
            return 0.5 * f + torch.distributions.Normal(r, 0.7 * 4.0).log_prob(r0)

        assert torch.allclose(slope, (log_density(at + h) - log_density(at - h)) / (2 * h), atol=1e-3)
        elsewhere, _ = climbed(places, at + 1)
        assert torch.allclose(elsewhere - value, log_density(at + 1) - log_density(at), atol=1e-5)
        first += len(start)


@pytest.mark.parametrize("scale", [1.0, 4.0])
@pytest.mark.parametrize("fusion", [Fusion(1.0, 1.0), Fusion(0.5, 0.7), Fusion(0.0, 0.35)])
def test_the_ascent_ends_on_a_top_of_the_density_given_the_base_reward(fusion, scale):
    density = some_density(gain=3.0, scale=scale, fusion=fusion)
    embedding, reward = rows(40)
    nearby = dataclasses.replace(ASCENT, steps=2000, nodes=2049)
    got = reading(density, nearby).refine(embedding, reward)
    nodes, p = (value.double() for value in density.density(embedding, reward, nodes=2049))
    inside = (got.reward > nodes[8]) & (got.reward < nodes[-9])
    place = torch.searchsorted(nodes, got.reward.double()).clamp(8, len(nodes) - 9)
    around = torch.stack([p.gather(1, (place + k).unsqueeze(1)).squeeze(1) for k in range(-8, 9)])
    at_end = got.log_density.double().exp()
    assert inside.sum() > 30
    assert bool((at_end >= around.max(0).values * (1 - 1e-3))[inside].all())  # highest point around
    highest = p.max(1).values
    on_the_mode = (at_end >= highest * (1 - 1e-3)) & inside
    assert on_the_mode.sum() > 20
    step = float(nodes[1] - nodes[0])
    assert torch.allclose(got.reward[on_the_mode], got.mode[on_the_mode], atol=3 * step)


def test_with_no_trust_in_the_density_the_ascent_returns_the_base_reward():
    density = some_density(fusion=Fusion(0.0, 0.5))
    embedding, reward = rows(50)
    for start in ("base", "zero"):
        got = reading(density, dataclasses.replace(ASCENT, start=start)).refine(embedding, reward)
        assert torch.allclose(got.reward, reward, atol=1e-2)


@pytest.mark.parametrize("power", [0.0, 1.0])
@pytest.mark.parametrize("scale", [1.0, 4.0])
@pytest.mark.parametrize("noise", [0.35, 1.4, 8.0])
def test_where_the_density_says_nothing_the_base_reward_and_its_error_are_left(power, scale, noise):
    density = some_density(scale=scale, fusion=Fusion(power, noise))
    if power:
        flattened(density)
    embedding, reward = rows(20)
    got = density.with_inference(nodes=513).refine(embedding, reward)
    nodes, _ = density.density(embedding, reward)
    s = noise * float(density.standardizer.reward_std)
    low, high = ((float(edge) - reward.double().numpy()) / s for edge in nodes[[0, -1]])
    truth = stats.truncnorm(low, high, loc=reward.double().numpy(), scale=s)
    assert got.mean.numpy() == pytest.approx(truth.mean(), abs=0.01)
    assert got.std.numpy() == pytest.approx(truth.std(), rel=2e-3)
    assert got.interval[:, 0].numpy() == pytest.approx(truth.ppf(0.05), abs=0.02)
    assert got.log_density.numpy() == pytest.approx(truth.logpdf(got.reward.double().numpy()), abs=2e-3)
    order = reward.argsort()
    assert torch.equal(got.reward.argsort(), order)


@settings(max_examples=15)
@given(st.integers(0, 99), st.sampled_from([0.125, 0.5, 1.0]), st.sampled_from([0.25, 1.0, 5.6]))
def test_the_refined_mean_rises_with_the_base_reward(seed, power, noise):
    density = some_density(seed=seed, fusion=Fusion(power, noise))
    embedding = rows(1)[0].expand(60, 5)
    low, high = density.standardizer.to_base(density.support).tolist()
    reward = torch.linspace(low, high, 60)
    mean = density.with_inference(nodes=257).refine(embedding, reward).mean
    assert bool((mean[1:] >= mean[:-1] - 1e-4).all()) and mean[-1] > mean[0]


@pytest.mark.parametrize("fusion", FUSIONS[1:])
def test_a_base_reward_far_outside_the_support_moves_the_density_at_its_edge_along(fusion):
    density = some_density(fusion=fusion)
    embedding = rows(1)[0].expand(8, 5)
    reward = torch.tensor([-1e30, -1e10, -1e7, -1e5, 1e5, 1e7, 1e10, 1e30])
    low, high = density.standardizer.to_base(density.support).tolist()
    for settings_ in (MEAN, InferenceConfig(estimate="mode")):
        got = reading(density, settings_).refine(embedding, reward)
        edge = reading(density, settings_).refine(embedding[:2], torch.tensor([low, high]))
        beyond = reward - torch.tensor([low] * 4 + [high] * 4)
        assert torch.allclose(got.reward, edge.reward.repeat_interleave(4) + beyond, rtol=1e-6, atol=0.05)
        assert torch.allclose(got.std, edge.std.repeat_interleave(4), rtol=1e-3) and bool((got.std > 0).all())
        assert all(bool(getattr(got, name).isfinite().all()) for name in FIELDS)
    got = reading(density, ASCENT).refine(embedding, reward)
    assert all(bool(getattr(got, name).isfinite().all()) for name in ("reward", "mean", "std"))


@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_a_flat_energy_returns_the_base_reward(scale):
    density = flattened(some_density(scale=scale))
    embedding, reward = rows(50)  # among the training rows, so inside the trusted range
    got = reading(density, ASCENT).refine(embedding, reward)
    assert torch.allclose(got.reward, reward, atol=1e-4)
    nodes, p = density.density(embedding, reward)
    assert torch.allclose(p, (1 / (nodes[-1] - nodes[0])).expand_as(p), rtol=1e-5)
    a, b = torch.arange(25), torch.arange(25, 50)
    assert torch.equal(got.reward[a] > got.reward[b], reward[a] > reward[b])  # no pair changes its order
    half = density.prefer((embedding[a], embedding[b]), (reward[a], reward[b]))
    assert torch.allclose(half, torch.full((25,), 0.5))


def test_starts_reach_the_refined_reward_in_base_units():
    density = flattened(some_density())
    unit, mean = density.standardizer.unit, float(density.standardizer.reward_mean)
    embedding, _ = rows(6)
    reward = mean + unit * torch.tensor([-90.0, -2.01, -1.9, 0.0, 1.9, 90.0])

    def start(**options) -> Tensor:
        return (reading(density, dataclasses.replace(ASCENT, **options)).refine(embedding, reward).reward - mean) / unit

    low, high = density.trusted.tolist()
    assert start().tolist() == pytest.approx([low, -2.01, -1.9, 0.0, 1.9, high], abs=1e-4)
    assert start(start="zero").tolist() == pytest.approx([0.0] * 6, abs=1e-4)
    paper = start(start="paper", fallback=(-3.0, 3.0))
    assert paper[2:5].tolist() == pytest.approx([-1.9, 0.0, 1.9], abs=1e-4)
    draw = -3 + 6 * torch.rand(6, generator=torch.Generator().manual_seed(0))
    assert paper[[0, 1, 5]].tolist() == pytest.approx(draw[[0, 1, 5]].tolist(), abs=1e-4)
    assert start(start="random", fallback=(-3.0, 3.0)).tolist() == pytest.approx(draw.tolist(), abs=1e-4)
    # A draw outside the support begins on its edge: there is no density beyond.
    edges = start(start="random", fallback=(50.0, 60.0))
    assert edges.tolist() == pytest.approx([density.support_bounds()[1]] * 6, abs=1e-4)


@pytest.mark.parametrize("start", STARTS)
def test_refining_is_deterministic_given_its_generator(start):
    density, before = some_density(), torch.get_rng_state()
    embedding, reward = rows(40)
    chosen = InferenceConfig(estimate="ascent", start=start, seed=5)
    one, two = (reading(density, chosen).refine(embedding, reward).reward for _ in range(2))
    given_one = reading(density, chosen).refine(embedding, reward, torch.Generator().manual_seed(5)).reward
    assert torch.equal(one, two) and torch.equal(one, given_one)
    other = reading(density, chosen).refine(embedding, reward, torch.Generator().manual_seed(6)).reward
    assert torch.equal(one, other) == (start in ("base", "zero"))
    assert torch.equal(torch.get_rng_state(), before)


def assert_same(one: Refinement, other: Refinement) -> None:
    for name in FIELDS:  # rewards have a standard deviation of 7
        assert torch.allclose(getattr(one, name), getattr(other, name), rtol=0, atol=5e-4), name


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("chosen", [MEAN, ASCENT], ids=["mean", "ascent"])
def test_how_rows_are_blocked_changes_nothing(chosen, fusion, monkeypatch):
    density = some_density(fusion=fusion)
    embedding, reward = rows(60)
    whole = reading(density, chosen).refine(embedding, reward)
    energies = density.energy(embedding, reward), density.density(embedding, reward)[1]
    monkeypatch.setattr(density_module, "_BLOCK_ROWS", 13)
    assert_same(reading(density, chosen).refine(embedding, reward), whole)
    monkeypatch.setattr(density_module, "_CPU_ACTIVATIONS", 10 * 65 * 7)  # seven rows at a time on the nodes
    assert len(list(density._embedded(embedding, 65))) == 9
    assert_same(reading(density, chosen).refine(embedding, reward), whole)
    monkeypatch.setattr(density_module, "_CPU_ACTIVATIONS", 1)  # a row at a time everywhere
    assert_same(reading(density, chosen).refine(embedding, reward), whole)
    assert torch.allclose(density.energy(embedding, reward), energies[0], atol=1e-5)
    assert torch.allclose(density.density(embedding, reward)[1], energies[1], atol=1e-5)


@pytest.mark.parametrize("chosen", [MEAN, ASCENT], ids=["mean", "ascent"])
def test_there_is_no_dropout_in_inference(chosen):
    density = some_density().train()
    embedding, reward = rows(8)
    one, two = (reading(density, chosen).refine(embedding, reward) for _ in range(2))
    assert all(torch.equal(getattr(one, name), getattr(two, name)) for name in FIELDS)
    sides = (embedding, embedding.flip(0)), (reward, reward.flip(0))
    assert torch.equal(density.prefer(*sides), density.prefer(*sides))


@pytest.mark.parametrize("fusion", FUSIONS)
def test_prefer_is_monte_carlo_from_the_two_densities(fusion):
    density = some_density(fusion=fusion)
    a, b = rows(6), rows(6, seed=4)
    rng = np.random.default_rng(0)
    nodes, _ = density.density(*a)
    draws = []
    for side in (a, b):
        p = density.density(*side)[1].double().numpy()
        p[:, [0, -1]] /= 2
        step = float(nodes[1] - nodes[0])
        draws.append(
            np.stack(
                [
                    rng.choice(nodes.numpy(), 100_000, p=row / row.sum()) + rng.uniform(-step, step, 100_000) / 2
                    for row in p
                ]
            )
        )
    (ea, ra), (eb, rb) = a, b
    got = density.prefer((ea, eb), (ra, rb))
    assert got.numpy() == pytest.approx((draws[0] > draws[1]).mean(1), abs=0.006)
    assert got.max() > 0.6 and got.min() < 0.4


@pytest.mark.parametrize("fusion", FUSIONS)
def test_the_best_row_is_monte_carlos(fusion):
    density = some_density(fusion=fusion)
    embedding, reward = rows(7)
    nodes, p = (value.double().numpy() for value in density.density(embedding, reward, nodes=2049))
    cumulative = integrate.cumulative_trapezoid(p, nodes, axis=1, initial=0)
    rng = np.random.default_rng(0)
    draws = np.stack([np.interp(rng.uniform(0, row[-1], 100_000), row, nodes) for row in cumulative])
    got = density.p_best(embedding, reward)
    assert got.dtype == torch.float32 and float(got.sum()) == pytest.approx(1, abs=1e-6)
    assert got.numpy() == pytest.approx(np.bincount(draws.argmax(0), minlength=7) / 100_000, abs=0.01)


def test_prefer_of_two_measurements_is_the_normal_distributions():
    density = some_density(fusion=Fusion(0.0, 0.5))
    embedding, _ = rows(20)
    a, b = 100 + 3 * torch.randn(2, 20, generator=torch.Generator().manual_seed(2))
    got = density.prefer((embedding, embedding.flip(0)), (a, b), nodes=513)
    s = 0.5 * float(density.standardizer.reward_std) * math.sqrt(2)
    assert got.numpy() == pytest.approx(stats.norm.cdf((a - b).numpy() / s), abs=1e-3)


def test_the_interval_covers_what_the_density_says():
    """Goodness of fit of the reading side alone: draws from the very density fall inside at the stated rate."""
    density = some_density()
    embedding, reward = rows(40)
    got = density.with_inference(coverage=0.7).refine(embedding, reward)
    nodes, p = (value.double().numpy() for value in density.density(embedding, reward, nodes=2049))
    cumulative = integrate.cumulative_trapezoid(p, nodes, axis=1, initial=0)
    rng = np.random.default_rng(1)
    draws = np.stack([np.interp(rng.uniform(0, row[-1], 500), row, nodes) for row in cumulative])
    low, high = got.interval[:, :1].numpy(), got.interval[:, 1:].numpy()
    hits = int(((draws > low) & (draws < high)).sum())
    assert stats.binomtest(hits, draws.size, 0.7).pvalue > 0.01


def energy_of(network: EnergyNetwork, embedding: Tensor):
    def energy(starts: Tensor, reward: Tensor) -> tuple[Tensor, Tensor]:
        r = reward.detach().clone().requires_grad_()
        value = network(embedding[starts], r)
        return value.detach(), torch.autograd.grad(value.sum(), r)[0]

    return energy


def starts(n: int, seed: int = 2) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(n, 5, generator=generator, dtype=torch.float64),
        2 * torch.randn(n, generator=generator, dtype=torch.float64),
    )


def climb_plainly(
    network: EnergyNetwork, embedding: Tensor, start: float, settings: InferenceConfig, low: float, high: float
) -> tuple[float, float, float, int]:
    """The same rule for one row, with autograd on the plainly written network: (r, f, slope, accepted steps)."""

    def f(r: float) -> tuple[float, float]:
        x = torch.tensor([[r]], dtype=torch.float64, requires_grad=True)
        value = plain_energy(network, embedding.unsqueeze(0), x)
        (slope,) = torch.autograd.grad(value.sum(), x)
        return value.item(), slope.item()

    r, step, accepted = start, settings.step_size, 0
    value, slope = f(r)
    for _ in range(settings.steps):
        if step < settings.step_stop:
            break
        candidate = r + step * slope
        new_value, new_slope = f(candidate)
        if new_value > value and low <= candidate <= high:
            r, value, slope, accepted = candidate, new_value, new_slope, accepted + 1
        else:
            step *= settings.step_decay
    return r, value, slope, accepted


@pytest.mark.parametrize(
    "options",
    [{}, {"step_decay": 0.2}, {"steps": 7}, {"step_size": 3.0, "step_decay": 0.5}, {"step_stop": 1e-2, "steps": 100}],
)
@pytest.mark.parametrize("support", [(-math.inf, math.inf), (-1.5, 1.0)])
def test_it_is_the_plain_rule_row_by_row(options, support):
    network, chosen = small_network(seed=0).double(), InferenceConfig(**options)
    embedding, start = starts(25)
    start = start.clamp(*support)
    got = ascend(energy_of(network, embedding), start, chosen, support)
    assert len(set(got.accepted.tolist())) > 1  # the starts take different paths
    for i in range(25):
        reward, value, slope, accepted = climb_plainly(network, embedding[i], start[i].item(), chosen, *support)
        assert got.reward[i].item() == pytest.approx(reward, abs=1e-6)
        assert got.value[i].item() == pytest.approx(value, abs=1e-12)
        if abs(slope) > 1e-3:  # on the top itself, whether f still rises is a matter of its last digit
            assert got.accepted[i].item() == accepted


def test_a_known_path():
    # f = -(r - 3)² / 2 has slope 3 - r: from -1 with λ = ½ the distance halves at every step.
    def energy(_, r):
        return -0.5 * (r - 3) ** 2, 3 - r

    for steps in (0, 1, 2, 5):
        end = ascend(energy, torch.tensor([-1.0, 3.0]), InferenceConfig(steps=steps))
        assert end.reward.tolist() == [3 - 4 * 0.5**steps, 3.0]
        assert end.value.tolist() == [-8 * 0.25**steps, 0.0]
        assert end.accepted.tolist() == [steps, 0]


def test_an_overshoot_shrinks_the_step():
    # Slope -10 r: λ = ½ jumps from 1 to -4 and is refused; λ = 0.05 goes to ½.
    def energy(_, r):
        return -5 * r**2, -10 * r

    end = ascend(energy, torch.tensor([1.0]), InferenceConfig(steps=2))
    assert end.reward.tolist() == pytest.approx([0.5]) and end.accepted.tolist() == [1]


def test_a_row_stops_when_its_step_is_too_small():
    asked = []

    def energy(starts, r):  # row 0 always climbs, row 1 never does though its slope says it could
        asked.append(starts.tolist())
        return torch.where(starts == 0, r, torch.zeros_like(r)), torch.ones_like(r)

    end = ascend(energy, torch.zeros(2), InferenceConfig(steps=10))
    # λ = 0.5, 0.05, …, 5e-6, and 5e-7 is below 1e-6: six refusals.
    assert asked == [[0, 1]] * 7 + [[0]] * 4
    assert end.reward.tolist() == [5.0, 0.0] and end.accepted.tolist() == [10, 0]


def test_all_rows_stopped_ends_the_ascent():
    asked = []

    def energy(starts, r):
        asked.append(len(starts))
        return torch.zeros_like(r), torch.ones_like(r)

    ascend(energy, torch.zeros(3), InferenceConfig(steps=1000))
    assert asked == [3] * 7


@given(st.lists(st.floats(-5, 5, width=32), max_size=6))
def test_no_steps_and_a_flat_energy_return_the_start(start):
    network = small_network()
    r, embedding = torch.tensor(start), torch.randn(len(start), 5, generator=torch.Generator().manual_seed(0))
    assert torch.equal(ascend(energy_of(network, embedding), r, InferenceConfig(steps=0)).reward, r)
    torch.nn.init.zeros_(network.output.weight)
    flat = ascend(energy_of(network, embedding), r, InferenceConfig())
    assert torch.equal(flat.reward, r) and flat.accepted.sum() == 0


@settings(max_examples=15)
@given(st.integers(0, 1000), st.floats(0.01, 5), st.floats(0.05, 0.9))
def test_f_never_falls(seed, step_size, step_decay):
    network = small_network(seed=seed)
    embedding, start = (part.float() for part in starts(12, seed))
    energy = energy_of(network, embedding)
    last, _ = energy(torch.arange(12), start)
    for steps in range(8):
        end = ascend(energy, start, InferenceConfig(steps=steps, step_size=step_size, step_decay=step_decay))
        value, _ = energy(torch.arange(12), end.reward)
        assert torch.allclose(value, end.value, atol=1e-6)  # the value reported is f at the reward reported
        assert bool((end.value >= last).all())
        assert bool((end.reward.isfinite()).all())
        last = end.value


def test_a_row_does_not_depend_on_its_batch():
    network = small_network(seed=0).double()
    embedding, start = starts(30)
    whole = ascend(energy_of(network, embedding), start, InferenceConfig())
    order = torch.randperm(30, generator=torch.Generator().manual_seed(0))
    shuffled = ascend(energy_of(network, embedding[order]), start[order], InferenceConfig())
    assert torch.allclose(shuffled.reward, whole.reward[order], rtol=0, atol=1e-6)
    for i in range(30):
        alone = ascend(energy_of(network, embedding[i : i + 1]), start[i : i + 1], InferenceConfig())
        assert torch.allclose(alone.reward, whole.reward[i : i + 1], rtol=0, atol=1e-6)


def test_the_start_is_not_written_over():
    start = torch.tensor([-1.0])
    ascend(lambda _, r: (-(r**2), -2 * r), start, InferenceConfig())
    assert start.item() == -1.0


def test_where_f_is_not_a_number_nothing_moves():
    end = ascend(lambda _, r: (r * math.nan, r * math.nan), torch.tensor([0.5, -2.0]), InferenceConfig())
    assert end.reward.tolist() == [0.5, -2.0] and end.accepted.tolist() == [0, 0]


BASE = torch.tensor([-5.0, -2.0, -0.3, 1.5, 2.0, 2.5])
TRUSTED = (-1.0, 2.2)


def test_the_papers_start_keeps_the_window_and_draws_outside_it():
    base = torch.linspace(-6, 6, 4001)
    chosen = InferenceConfig(start="paper", window=(-2.0, 1.0), fallback=(-4.0, 3.0))
    start = starting_reward(base, chosen, TRUSTED, torch.Generator().manual_seed(0))
    inside = (base >= -2) & (base <= 1)
    assert torch.equal(start[inside], base[inside])
    drawn = start[~inside]
    assert bool(((drawn >= -4) & (drawn < 3)).all())
    assert drawn.min() < -3.95 and drawn.max() > 2.95
    assert float(drawn.mean()) == pytest.approx(-0.5, abs=0.15)
    edges = starting_reward(torch.tensor([-2.0, 1.0]), chosen, TRUSTED)
    assert edges.tolist() == [-2.0, 1.0]  # the window is closed


@pytest.mark.parametrize("start", ["paper", "random"])
def test_draws_are_reproducible(start):
    chosen, before = InferenceConfig(start=start, seed=3), torch.get_rng_state()

    def draw(generator=None, settings=chosen, base=BASE):
        return starting_reward(base, settings, TRUSTED, generator)

    assert torch.equal(draw(), draw())
    assert torch.equal(draw(), draw(torch.Generator().manual_seed(3)))
    assert not torch.equal(draw(), draw(torch.Generator().manual_seed(4)))
    assert not torch.equal(draw(), draw(settings=InferenceConfig(start=start, seed=4)))
    generator = torch.Generator().manual_seed(3)
    assert torch.equal(torch.cat([draw(generator, base=BASE[:2]), draw(generator, base=BASE[2:])]), draw())
    assert torch.equal(torch.get_rng_state(), before)


def test_whether_a_row_is_inside_the_window_does_not_shift_the_draws_of_others():
    chosen = InferenceConfig(start="paper")
    one = starting_reward(torch.tensor([0.0, 5.0]), chosen, TRUSTED)
    other = starting_reward(torch.tensor([-9.0, 5.0]), chosen, TRUSTED)
    assert one[1] == other[1] and one[0] != other[0]


def test_a_random_start_uses_no_reward():
    chosen = InferenceConfig(start="random", fallback=(7.0, 8.0))
    start = starting_reward(BASE, chosen, TRUSTED)
    assert torch.equal(start, starting_reward(BASE + 1, chosen, TRUSTED))
    assert bool(((start >= 7) & (start < 8)).all())
    assert len(start.unique()) == len(start)
