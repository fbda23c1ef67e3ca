from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats
from tests.energy.toys import plain_energy, small_network
from torch import Tensor

import ebrm.energy.density as density_module
from ebrm.energy.density import Refinement, RewardDensity
from ebrm.energy.settings import FitSettings, InferenceSettings, NetworkSettings

WIDTHS = NetworkSettings(reward_widths=(12,), joint_widths=(10,), dropout=0.5)
STARTS = ["base", "paper", "zero", "random"]
FIELDS = [field.name for field in dataclasses.fields(Refinement)]


def rows(n: int, seed: int = 3) -> tuple[Tensor, Tensor]:
    """Embeddings [n, 5] and base rewards [n] in units far from the internal ones."""
    generator = torch.Generator().manual_seed(seed)
    return 2 + torch.randn(n, 5, generator=generator), 100 + 7 * torch.randn(n, generator=generator)


def some_density(seed: int = 0, gain: float = 4.0, scale: float = 1.0) -> RewardDensity:
    """Random weights large enough for several bumps; units fitted on 200 rows."""
    density = RewardDensity(5, WIDTHS)
    density.network.load_state_dict(small_network(5, (12,), (10,), seed=seed, gain=gain).state_dict())
    embedding, reward = rows(200)
    density.fit_units(reward, [embedding], FitSettings(reward_scale=scale), centre=True)
    return density.eval()


def test_support_is_the_training_range_widened_by_three_noise_widths():
    density = RewardDensity(1, WIDTHS)
    reward = torch.tensor([2.0, 4.0, 6.0, 8.0])  # mean 5, std √5
    training = FitSettings(noise_scales=(0.5, 0.25), reward_scale=4.0)
    density.fit_units(reward, [torch.tensor([[1.0], [3.0]])], training, centre=True)
    low, high = -3 / math.sqrt(5) * 4, 3 / math.sqrt(5) * 4
    assert density.trusted.tolist() == pytest.approx([low, high])
    assert density.support_bounds() == pytest.approx((low - 6.0, high + 6.0))
    assert density.standardizer.embedding_centre.tolist() == [2.0]
    nodes, _ = density.density(torch.zeros(1, 1))
    assert nodes[[0, -1]].tolist() == pytest.approx([2 - 1.5 * math.sqrt(5), 8 + 1.5 * math.sqrt(5)])


def test_embeddings_are_left_alone_without_centring():
    density = RewardDensity(1, WIDTHS)
    density.fit_units(torch.tensor([0.0, 1.0]), [torch.tensor([[5.0]])], FitSettings(), centre=False)
    assert density.standardizer.embed(torch.tensor([[5.0]])).tolist() == [[5.0]]


def test_energy_is_the_plain_networks_in_base_units():
    density = some_density(scale=4.0)
    embedding, reward = rows(6)
    internal = (reward - density.standardizer.reward_mean) / density.standardizer.reward_std * 4
    centred = (embedding - density.standardizer.embedding_centre) / density.standardizer.embedding_rms
    expected = plain_energy(density.network, centred, internal.float().unsqueeze(1))
    assert torch.allclose(density.energy(embedding, reward), expected.squeeze(1), atol=1e-5)
    many = density.energy(embedding, reward.unsqueeze(1) + torch.arange(3.0))
    assert many.shape == (6, 3) and torch.allclose(many[:, 0], expected.squeeze(1), atol=1e-5)
    assert density.energy(embedding[:0], reward[:0]).shape == (0,)
    assert density.energy(embedding[:0], torch.zeros(0, 4)).shape == (0, 4)


def test_density_integrates_to_one_in_base_units():
    nodes, density = some_density(scale=4.0).density(rows(20)[0], nodes=129)
    assert nodes.shape == (129,) and density.shape == (20, 129)
    assert nodes.dtype == density.dtype == torch.float32
    assert np.trapezoid(density.numpy(), nodes.numpy()) == pytest.approx(np.ones(20), abs=1e-5)
    assert nodes[0] < 85 and nodes[-1] > 115


def test_the_posterior_is_adaptive_quadratures():
    density = some_density()
    embedding, reward = rows(3)
    got = density.refine(embedding, reward, InferenceSettings(nodes=1025))
    nodes, _ = density.density(embedding[:1])
    low, high = float(nodes[0]), float(nodes[-1])

    def moment(i: int, power: int) -> float:
        def integrand(r: float) -> float:
            return r**power * density.energy(embedding[i : i + 1], torch.tensor([r], dtype=torch.float64)).exp().item()

        return integrate.quad(integrand, low, high, epsabs=1e-3, epsrel=1e-6, limit=200)[0]

    for i in range(3):
        z, first, second = (moment(i, power) for power in range(3))
        assert got.mean[i].item() == pytest.approx(first / z, abs=0.01)
        assert got.std[i].item() == pytest.approx(math.sqrt(second / z - (first / z) ** 2), rel=2e-3)
        f = density.energy(embedding[i : i + 1], got.reward[i : i + 1]).item()
        assert got.log_density[i].item() == pytest.approx(f - math.log(z), abs=5e-3)


@pytest.mark.parametrize("estimate", ["ascent", "mode", "mean"])
def test_a_refinement_is_consistent_with_the_density(estimate):
    density = some_density()
    embedding, reward = rows(15)
    got = density.refine(embedding, reward, InferenceSettings(estimate=estimate, nodes=513, coverage=0.8))
    nodes, p = (value.double().numpy() for value in density.density(embedding, nodes=513))
    cumulative = integrate.cumulative_trapezoid(p, nodes, axis=1, initial=0)
    for i in range(15):
        inside = np.interp(got.interval[i].numpy(), nodes, cumulative[i])
        assert inside == pytest.approx([0.1, 0.9], abs=2e-3)
        assert got.log_density[i].item() == pytest.approx(
            np.interp(got.reward[i].item(), nodes, np.log(p[i])), abs=2e-3
        )
        assert got.mode[i].item() == pytest.approx(nodes[p[i].argmax()], abs=nodes[1] - nodes[0])
        assert got.mean[i].item() == pytest.approx(np.trapezoid(p[i] * nodes, nodes), abs=1e-3)
    if estimate != "ascent":
        assert torch.equal(got.reward, getattr(got, estimate))
    assert bool((got.interval[:, 0] < got.interval[:, 1]).all())


def test_the_ascent_raises_the_density_from_the_base_reward_and_stays_inside_the_support():
    density = some_density()
    embedding, reward = rows(100)
    got = density.refine(embedding, reward, InferenceSettings())
    start = density.refine(embedding, reward, InferenceSettings(steps=0))
    low, high = density.standardizer.to_base(density.trusted).tolist()
    assert torch.allclose(start.reward, reward.clamp(low, high), atol=1e-4)
    assert bool((density.energy(embedding, got.reward) >= density.energy(embedding, start.reward) - 1e-5).all())
    assert float((got.reward - start.reward).abs().median()) > 0.5  # it moves
    top = density.refine(embedding, reward, InferenceSettings(estimate="mode"))
    assert bool((top.log_density >= got.log_density - 1e-2).all())  # and no climb ends above the global mode


@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_a_flat_energy_returns_the_base_reward(scale):
    density = some_density(scale=scale)
    torch.nn.init.zeros_(density.network.output.weight)
    embedding, reward = rows(50)  # among the training rows, so inside the trusted range
    got = density.refine(embedding, reward, InferenceSettings())
    assert torch.allclose(got.reward, reward, atol=1e-4)
    nodes, p = density.density(embedding)
    assert torch.allclose(p, (1 / (nodes[-1] - nodes[0])).expand_as(p), rtol=1e-5)
    a, b = torch.arange(25), torch.arange(25, 50)
    assert torch.equal(got.reward[a] > got.reward[b], reward[a] > reward[b])  # no pair changes its order
    assert torch.allclose(density.prefer(embedding[a], embedding[b]), torch.full((25,), 0.5))


def test_starts_reach_the_refined_reward_in_base_units():
    density = some_density()
    torch.nn.init.zeros_(density.network.output.weight)
    unit, mean = density.standardizer.unit, float(density.standardizer.reward_mean)
    embedding, _ = rows(6)
    reward = mean + unit * torch.tensor([-90.0, -2.01, -1.9, 0.0, 1.9, 90.0])

    def start(**options) -> Tensor:
        return (density.refine(embedding, reward, InferenceSettings(**options)).reward - mean) / unit

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
    chosen = InferenceSettings(start=start, seed=5)
    one, two = (density.refine(embedding, reward, chosen).reward for _ in range(2))
    given_one = density.refine(embedding, reward, chosen, torch.Generator().manual_seed(5)).reward
    assert torch.equal(one, two) and torch.equal(one, given_one)
    other = density.refine(embedding, reward, chosen, torch.Generator().manual_seed(6)).reward
    assert torch.equal(one, other) == (start in ("base", "zero"))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("n", [0, 1, 2])
def test_any_number_of_rows(n, start):
    density = some_density()
    embedding, reward = rows(2)
    got = density.refine(embedding[:n], reward[:n], InferenceSettings(start=start))
    for name in FIELDS:
        value = getattr(got, name)
        assert value.shape == ((n, 2) if name == "interval" else (n,))
        assert value.dtype == torch.float32 and bool(value.isfinite().all())
    assert density.density(embedding[:n])[1].shape == (n, 257)
    assert density.prefer(embedding[:n], embedding[:n]).shape == (n,)


def assert_same(one: Refinement, other: Refinement, order: Tensor | slice = slice(None)) -> None:
    for name in FIELDS:  # rewards have a standard deviation of 7
        assert torch.allclose(getattr(one, name), getattr(other, name)[order], rtol=0, atol=5e-4), name


def test_a_row_does_not_depend_on_its_batch(monkeypatch):
    density = some_density()
    embedding, reward = rows(60)
    whole = density.refine(embedding, reward, InferenceSettings())
    order = torch.randperm(60, generator=torch.Generator().manual_seed(0))
    assert_same(density.refine(embedding[order], reward[order], InferenceSettings()), whole, order)
    for i in (0, 17, 59):
        part = slice(i, i + 1)
        assert_same(density.refine(embedding[part], reward[part], InferenceSettings()), whole, part)
    energies = density.energy(embedding, reward), density.density(embedding)[1]
    monkeypatch.setattr(density_module, "_ACTIVATIONS", 10 * 257 * 7)  # seven rows at a time on the nodes
    assert len(list(density._chunks(embedding, 257))) == 9
    assert_same(density.refine(embedding, reward, InferenceSettings()), whole)
    monkeypatch.setattr(density_module, "_ACTIVATIONS", 1)  # a row at a time everywhere
    assert_same(density.refine(embedding, reward, InferenceSettings()), whole)
    assert torch.allclose(density.energy(embedding, reward), energies[0], atol=1e-5)
    assert torch.allclose(density.density(embedding)[1], energies[1], atol=1e-5)


def test_it_works_in_inference_mode_and_leaves_no_graph():
    density = some_density()
    embedding, reward = rows(8)
    expected = density.refine(embedding, reward, InferenceSettings()), density.prefer(embedding, embedding.flip(0))
    with torch.inference_mode():
        inside = embedding + 0  # an inference tensor
        got = density.refine(inside, reward, InferenceSettings()), density.prefer(inside, inside.flip(0))
        nodes, p = density.density(inside)
    assert_same(got[0], expected[0])
    assert torch.allclose(got[1], expected[1])
    assert torch.equal(p, density.density(embedding)[1])
    assert not any(getattr(expected[0], name).requires_grad for name in FIELDS)
    assert not expected[1].requires_grad and not density.density(embedding)[1].requires_grad


def test_there_is_no_dropout_in_inference():
    density = some_density().train()
    embedding, reward = rows(8)
    one, two = (density.refine(embedding, reward, InferenceSettings()) for _ in range(2))
    assert all(torch.equal(getattr(one, name), getattr(two, name)) for name in FIELDS)
    assert torch.equal(density.prefer(embedding, embedding.flip(0)), density.prefer(embedding, embedding.flip(0)))


def test_prefer_is_monte_carlo_from_the_two_densities():
    density = some_density()
    a, b = rows(6)[0], rows(6, seed=4)[0]
    rng = np.random.default_rng(0)
    nodes, _ = density.density(a)
    draws = []
    for embedding in (a, b):
        p = density.density(embedding)[1].double().numpy()
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
    got = density.prefer(a, b)
    assert got.numpy() == pytest.approx((draws[0] > draws[1]).mean(1), abs=0.006)
    assert torch.allclose(got + density.prefer(b, a), torch.ones(6), atol=1e-6)
    assert torch.allclose(density.prefer(a, a), torch.full((6,), 0.5), atol=1e-6)
    assert got.max() > 0.6 and got.min() < 0.4


@settings(max_examples=10)
@given(st.integers(-20, 20), st.sampled_from(["base", "paper", "zero", "random"]))
def test_a_power_of_two_times_the_rewards_changes_the_units_exactly(exponent, start):
    a = 2.0**exponent
    embedding, reward = rows(30)
    chosen = InferenceSettings(start=start)
    one, other = some_density(), some_density()
    other.fit_units(a * rows(200)[1], [rows(200)[0]], FitSettings(), centre=True)
    got, expected = other.refine(embedding, a * reward, chosen), one.refine(embedding, reward, chosen)
    for name in ("reward", "std", "interval", "mean", "mode"):
        assert torch.equal(getattr(got, name), a * getattr(expected, name)), name
    assert torch.allclose(got.log_density, expected.log_density - math.log(a), atol=1e-5)
    assert torch.equal(other.prefer(embedding, embedding.flip(0)), one.prefer(embedding, embedding.flip(0)))


def test_units_support_and_weights_travel_in_the_state():
    density = some_density(scale=4.0)
    other = RewardDensity(5, WIDTHS)
    other.load_state_dict(density.state_dict())
    embedding, reward = rows(5)
    one, same = (each.refine(embedding, reward, InferenceSettings()) for each in (density, other))
    assert all(torch.equal(getattr(one, name), getattr(same, name)) for name in FIELDS)


def test_the_interval_covers_what_the_density_says():
    """Goodness of fit of the reading side alone: draws from the very density fall inside at the stated rate."""
    density = some_density()
    embedding, reward = rows(40)
    got = density.refine(embedding, reward, InferenceSettings(coverage=0.7))
    nodes, p = (value.double().numpy() for value in density.density(embedding, nodes=2049))
    cumulative = integrate.cumulative_trapezoid(p, nodes, axis=1, initial=0)
    rng = np.random.default_rng(1)
    draws = np.stack([np.interp(rng.uniform(0, row[-1], 500), row, nodes) for row in cumulative])
    low, high = got.interval[:, :1].numpy(), got.interval[:, 1:].numpy()
    hits = int(((draws > low) & (draws < high)).sum())
    assert stats.binomtest(hits, draws.size, 0.7).pvalue > 0.01
