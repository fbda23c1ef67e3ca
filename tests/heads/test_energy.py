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
from ebrm.heads import EnergyHead, Fusion, InferenceConfig, NetworkConfig, Refinement
from ebrm.heads.energy import Ascent

WIDTHS = NetworkConfig(reward_widths=(12,), joint_widths=(10,), dropout=0.5)
STARTS = ["base", "paper", "zero", "random"]
FIELDS = [field.name for field in dataclasses.fields(Refinement)]
ASCENT, MEAN = InferenceConfig(estimate="ascent"), InferenceConfig()
#: The density alone, density and base reward, and the base reward alone.
TRUSTS = [Fusion(), Fusion(0.5, 0.7), Fusion(0.0, 0.35)]


def rows(n: int, seed: int = 3) -> tuple[Tensor, Tensor]:
    """Embeddings [n, 5] and base rewards [n] in units far from the internal ones."""
    generator = torch.Generator().manual_seed(seed)
    return 2 + torch.randn(n, 5, generator=generator), 100 + 7 * torch.randn(n, generator=generator)


def some_density(seed: int = 0, gain: float = 4.0, scale: float = 1.0, trust: Fusion = TRUSTS[0]) -> EnergyHead:
    """Random weights large enough for several bumps; units fitted on 200 rows."""
    density = EnergyHead(5, energy(WIDTHS, objective="likelihood", reward_scale=scale))
    density.network.load_state_dict(small_network(5, (12,), (10,), seed=seed, gain=gain).state_dict())
    embedding, reward = rows(200)
    density.fit_units(reward, [embedding])
    density.fusion = trust
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


@pytest.mark.parametrize("fusion", TRUSTS)
def test_density_integrates_to_one_in_base_units(trust):
    nodes, density = some_density(scale=4.0, trust=trust).density(*rows(20), nodes=129)
    assert nodes.shape == (129,) and density.shape == (20, 129)
    assert nodes.dtype == density.dtype == torch.float32
    assert np.trapezoid(density.numpy(), nodes.numpy()) == pytest.approx(np.ones(20), abs=1e-5)
    assert nodes[0] < 85 and nodes[-1] > 115


@pytest.mark.parametrize("scale", [1.0, 4.0])
@pytest.mark.parametrize("fusion", TRUSTS)
def test_the_posterior_is_adaptive_quadratures(trust, scale):
    density = some_density(trust=trust, scale=scale)
    embedding, reward = rows(3)
    got = density.with_inference(nodes=1025).refine(embedding, reward)
    nodes, _ = density.density(embedding[:1], reward[:1])
    low, high = float(nodes[0]), float(nodes[-1])
    noise = trust.base_noise * float(density.standardizer.reward_std)  # s is in standard deviations

    def log_integrand(i: int, r: float) -> float:
        f = density.energy(embedding[i : i + 1], torch.tensor([r], dtype=torch.float64)).item()
        return trust.power * f - 0.5 * ((reward[i].item() - r) / noise) ** 2

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


@pytest.mark.parametrize("fusion", TRUSTS)
@pytest.mark.parametrize("estimate", ["ascent", "mode", "mean"])
def test_a_refinement_is_consistent_with_the_density(estimate, trust):
    density = some_density(trust=trust)
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
    density = some_density(scale=4.0, trust=Fusion(0.5, 0.7))
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
def test_the_ascent_ends_on_a_top_of_the_density_given_the_base_reward(trust, scale):
    density = some_density(gain=3.0, scale=scale, trust=trust)
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
    density = some_density(trust=Fusion(0.0, 0.5))
    embedding, reward = rows(50)
    for start in ("base", "zero"):
        got = reading(density, dataclasses.replace(ASCENT, start=start)).refine(embedding, reward)
        assert torch.allclose(got.reward, reward, atol=1e-2)


@pytest.mark.parametrize("power", [0.0, 1.0])
@pytest.mark.parametrize("scale", [1.0, 4.0])
@pytest.mark.parametrize("noise", [0.35, 1.4, 8.0])
def test_where_the_density_says_nothing_the_base_reward_and_its_error_are_left(power, scale, noise):
    density = some_density(scale=scale, trust=Fusion(power, noise))
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
    density = some_density(seed=seed, trust=Fusion(power, noise))
    embedding = rows(1)[0].expand(60, 5)
    low, high = density.standardizer.to_base(density.support).tolist()
    reward = torch.linspace(low, high, 60)
    mean = density.with_inference(nodes=257).refine(embedding, reward).mean
    assert bool((mean[1:] >= mean[:-1] - 1e-4).all()) and mean[-1] > mean[0]


@pytest.mark.parametrize("fusion", TRUSTS[1:])
def test_a_base_reward_far_outside_the_support_pulls_to_its_edge(trust):
    density = some_density(trust=trust)
    embedding = rows(1)[0].expand(8, 5)
    reward = torch.tensor([-1e30, -1e10, -1e7, -1e5, 1e5, 1e7, 1e10, 1e30])
    low, high = density.standardizer.to_base(density.support).tolist()
    for settings_ in (MEAN, InferenceConfig(estimate="mode")):
        got = reading(density, settings_).refine(embedding, reward)
        assert got.reward.tolist() == pytest.approx([low] * 4 + [high] * 4, abs=1.0)
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


@pytest.mark.parametrize("chosen", [MEAN, *(dataclasses.replace(ASCENT, start=start) for start in STARTS)])
@pytest.mark.parametrize("fusion", TRUSTS)
@pytest.mark.parametrize("n", [0, 1, 2])
def test_any_number_of_rows(n, trust, chosen):
    density = some_density(trust=trust)
    embedding, reward = rows(2)
    got = reading(density, chosen).refine(embedding[:n], reward[:n])
    for name in FIELDS:
        value = getattr(got, name)
        assert value.shape == ((n, 2) if name == "interval" else (n,))
        assert value.dtype == torch.float32 and bool(value.isfinite().all())
    assert density.density(embedding[:n], reward[:n])[1].shape == (n, 257)
    assert density.prefer((embedding[:n], embedding[:n]), (reward[:n], reward[:n])).shape == (n,)


def assert_same(one: Refinement, other: Refinement, order: Tensor | slice = slice(None)) -> None:
    for name in FIELDS:  # rewards have a standard deviation of 7
        assert torch.allclose(getattr(one, name), getattr(other, name)[order], rtol=0, atol=5e-4), name


@pytest.mark.parametrize("fusion", TRUSTS)
@pytest.mark.parametrize("chosen", [MEAN, ASCENT], ids=["mean", "ascent"])
def test_a_row_does_not_depend_on_its_batch(chosen, trust, monkeypatch):
    density = some_density(trust=trust)
    embedding, reward = rows(60)
    whole = reading(density, chosen).refine(embedding, reward)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(0))
    assert_same(reading(density, chosen).refine(embedding[order], reward[order]), whole, order)
    for i in (0, 17, 59):
        part = slice(i, i + 1)
        assert_same(reading(density, chosen).refine(embedding[part], reward[part]), whole, part)
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
def test_it_works_in_inference_mode_and_leaves_no_graph(chosen):
    density = some_density(trust=Fusion(0.5, 1.0))
    embedding, reward = rows(8)
    rewards = (reward, reward.flip(0))
    expected = (
        reading(density, chosen).refine(embedding, reward),
        density.prefer((embedding, embedding.flip(0)), rewards),
    )
    with torch.inference_mode():
        inside = embedding + 0  # an inference tensor
        got = reading(density, chosen).refine(inside, reward), density.prefer((inside, inside.flip(0)), rewards)
        nodes, p = density.density(inside, reward)
    assert_same(got[0], expected[0])
    assert torch.allclose(got[1], expected[1])
    assert torch.equal(p, density.density(embedding, reward)[1])
    assert not any(getattr(expected[0], name).requires_grad for name in FIELDS)
    assert not expected[1].requires_grad and not density.density(embedding, reward)[1].requires_grad


@pytest.mark.parametrize("chosen", [MEAN, ASCENT], ids=["mean", "ascent"])
def test_there_is_no_dropout_in_inference(chosen):
    density = some_density().train()
    embedding, reward = rows(8)
    one, two = (reading(density, chosen).refine(embedding, reward) for _ in range(2))
    assert all(torch.equal(getattr(one, name), getattr(two, name)) for name in FIELDS)
    sides = (embedding, embedding.flip(0)), (reward, reward.flip(0))
    assert torch.equal(density.prefer(*sides), density.prefer(*sides))


@pytest.mark.parametrize("fusion", TRUSTS)
def test_prefer_is_monte_carlo_from_the_two_densities(trust):
    density = some_density(trust=trust)
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
    assert torch.allclose(got + density.prefer((eb, ea), (rb, ra)), torch.ones(6), atol=1e-6)
    assert torch.allclose(density.prefer((ea, ea), (ra, ra)), torch.full((6,), 0.5), atol=1e-6)
    assert got.max() > 0.6 and got.min() < 0.4


@pytest.mark.parametrize("fusion", TRUSTS)
def test_the_best_row_is_monte_carlos(trust):
    density = some_density(trust=trust)
    embedding, reward = rows(7)
    nodes, p = (value.double().numpy() for value in density.density(embedding, reward, nodes=2049))
    cumulative = integrate.cumulative_trapezoid(p, nodes, axis=1, initial=0)
    rng = np.random.default_rng(0)
    draws = np.stack([np.interp(rng.uniform(0, row[-1], 100_000), row, nodes) for row in cumulative])
    got = density.p_best(embedding, reward)
    assert got.dtype == torch.float32 and float(got.sum()) == pytest.approx(1, abs=1e-6)
    assert got.numpy() == pytest.approx(np.bincount(draws.argmax(0), minlength=7) / 100_000, abs=0.01)
    assert density.p_best(embedding[:1], reward[:1]).tolist() == [1.0]
    assert density.p_best(embedding[:0], reward[:0]).shape == (0,)


def test_prefer_of_two_measurements_is_the_normal_distributions():
    density = some_density(trust=Fusion(0.0, 0.5))
    embedding, _ = rows(20)
    a, b = 100 + 3 * torch.randn(2, 20, generator=torch.Generator().manual_seed(2))
    got = density.prefer((embedding, embedding.flip(0)), (a, b), nodes=513)
    s = 0.5 * float(density.standardizer.reward_std) * math.sqrt(2)
    assert got.numpy() == pytest.approx(stats.norm.cdf((a - b).numpy() / s), abs=1e-3)


@settings(max_examples=15)
@given(
    st.integers(-20, 20),
    st.sampled_from([MEAN, *(dataclasses.replace(ASCENT, start=start) for start in STARTS)]),
    st.sampled_from(TRUSTS),
)
def test_a_power_of_two_times_the_rewards_changes_the_units_exactly(exponent, chosen, trust):
    a = 2.0**exponent
    embedding, reward = rows(30)
    one, other = some_density(trust=trust), some_density(trust=trust)
    other.fit_units(a * rows(200)[1], [rows(200)[0]])
    got, expected = reading(other, chosen).refine(embedding, a * reward), reading(one, chosen).refine(embedding, reward)
    for name in ("reward", "std", "interval", "mean", "mode"):
        assert torch.equal(getattr(got, name), a * getattr(expected, name)), name
    assert torch.allclose(got.log_density, expected.log_density - math.log(a), atol=1e-5)
    sides = (embedding, embedding.flip(0))
    assert torch.equal(
        other.prefer(sides, (a * reward, a * reward.flip(0))), one.prefer(sides, (reward, reward.flip(0)))
    )


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
