"""Held-out pairs: how density and base reward are weighed by them, and what validation measures."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from tests.heads.toys import energy
from torch import Tensor

import ebrm.heads.data as rows_module
import ebrm.heads.fusion as fusion_module
from ebrm.heads import UNMEASURED, EnergyHead, Fusion, NetworkConfig, grid_nodes, posterior
from ebrm.heads.fusion import BASE_NOISE, POWERS, HeldOut, choose_fusion, weigh
from ebrm.heads.objective import noisy_preference_nll
from ebrm.heads.training import held_out_densities, log_density_of, validate
from ebrm.pairs import PreferencePairs

NODES = torch.linspace(-4, 4, 33)


def cells(mean: Tensor, std: Tensor | float) -> Tensor:  # [n] -> [n, g]
    """Log-probabilities of the nodes' cells under Gaussians cut off at the ends, as a posterior gives them."""
    f = stats.norm(mean.unsqueeze(1).numpy(), np.broadcast_to(np.reshape(std, (-1, 1)), (len(mean), 1)))
    return posterior(NODES.double(), torch.from_numpy(f.logpdf(NODES.numpy()))).log_cells().float()


def rows(n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """True rewards, and pairs of neighbors in the order (chosen, rejected) that the truth has: [n], [n / 2, 2]."""
    true = torch.randn(n, generator=torch.Generator().manual_seed(seed))
    pairs = torch.arange(n).reshape(-1, 2)
    return true, torch.where((true[0::2] > true[1::2]).unsqueeze(1), pairs, pairs.flip(1))


def flipped(pairs: Tensor, share: float, seed: int = 1) -> Tensor:
    wrong = torch.rand(len(pairs), generator=torch.Generator().manual_seed(seed)) < share
    return torch.where(wrong.unsqueeze(1), pairs.flip(1), pairs)


def held_out(log_mass: Tensor, nodes: Tensor, reward: Tensor, sides: Tensor, **columns) -> HeldOut:
    return HeldOut(log_mass, nodes, reward, PreferencePairs.of(sides[0], sides[1], **columns))


def chosen_fusion(log_mass: Tensor, reward: Tensor, pairs: Tensor, flips: float = 0.1, **options) -> Fusion:
    return choose_fusion([held_out(log_mass, NODES, reward, pairs.T)], flips=flips, **options)


# Density and base reward together.


@given(st.floats(0, 1), st.integers(0, 99))
def test_an_unknown_error_of_the_base_reward_leaves_the_density(power, seed):
    log_density = torch.randn(3, 33, generator=torch.Generator().manual_seed(seed))
    reward = torch.randn(3, generator=torch.Generator().manual_seed(seed + 1))
    assert torch.equal(weigh(log_density, NODES, reward, power, math.inf), power * log_density)


@given(st.floats(-2.5, 2.5), st.floats(0.3, 4.0))
def test_power_zero_leaves_a_truncated_normal(reward, noise):
    nodes, nothing = grid_nodes(-4, 4, 1025), torch.zeros(1, 1025)
    for log_density in (nothing, 100 * torch.randn(1, 1025, generator=torch.Generator().manual_seed(0))):
        at = posterior(nodes, weigh(log_density, nodes, torch.tensor([reward]), 0.0, noise))
        truth = stats.truncnorm((-4 - reward) / noise, (4 - reward) / noise, loc=reward, scale=noise)
        assert at.mean().item() == pytest.approx(truth.mean(), abs=1e-4)
        assert at.std().item() == pytest.approx(truth.std(), abs=1e-4)


@given(st.floats(-1.5, 1.5), st.floats(-1.5, 1.5), st.floats(0.3, 0.6), st.floats(0.3, 0.6), st.floats(0.25, 1.0))
def test_two_gaussians_are_weighed_by_their_precisions(mean, reward, std, noise, power):
    nodes = grid_nodes(-8, 8, 1025)
    log_density = -0.5 * ((nodes - mean) / std).square().unsqueeze(0)
    at = posterior(nodes, weigh(log_density, nodes, torch.tensor([reward]), power, noise))
    precision = power / std**2 + 1 / noise**2
    assert at.mean().item() == pytest.approx((power * mean / std**2 + reward / noise**2) / precision, abs=1e-4)
    assert at.std().item() == pytest.approx(precision**-0.5, abs=1e-4)


@given(st.integers(0, 99), st.floats(0, 1), st.floats(0.25, 8.0))
def test_a_higher_base_reward_never_lowers_the_mean(seed, power, noise):
    log_density = 3 * torch.randn(33, generator=torch.Generator().manual_seed(seed))
    reward = torch.linspace(-6, 6, 40)
    at = posterior(NODES, weigh(log_density.expand(40, 33), NODES, reward, power, noise))
    assert bool((at.mean().diff() >= -1e-5).all())


def test_every_row_is_weighed_by_its_own_base_reward():
    log_density = torch.randn(2, 33, generator=torch.Generator().manual_seed(0))
    reward = torch.tensor([-1.0, 2.0])
    both = torch.log_softmax(weigh(log_density, NODES, reward, 0.5, 0.7), 1)
    for row in range(2):
        plain = 0.5 * log_density[row] + torch.distributions.Normal(NODES, 0.7).log_prob(reward[row])
        assert torch.allclose(both[row], torch.log_softmax(plain, 0), atol=1e-4)


@pytest.mark.parametrize("reward", [1e5, 1e10, 1e30])
def test_a_base_reward_far_outside_the_nodes_is_finite_and_pulls_to_the_edge(reward):
    log_density = torch.zeros(2, 33)
    weighed = torch.log_softmax(weigh(log_density, NODES, torch.tensor([-reward, reward]), 1.0, 0.25), 1).exp()
    assert weighed.argmax(1).tolist() == [0, 32]
    assert weighed.max(1).values.tolist() == pytest.approx([1.0, 1.0])


# How far each is trusted.


def test_without_pairs_held_out_the_density_counts_whole_and_the_base_reward_as_little_as_is_tried():
    none = torch.empty(0, 2, dtype=torch.long)
    got = chosen_fusion(cells(torch.zeros(2), 1.0), torch.zeros(2), none)
    assert got == choose_fusion([], flips=0.1) == UNMEASURED == Fusion(1.0, 2.0)


def brute_force(
    log_mass: Tensor, nodes: Tensor, reward: Tensor, pairs: Tensor, flips: float, scale: float
) -> dict[Fusion, float]:
    """Held-out loss of all weights, with loops: densities, not cells, to the power; then cells again."""
    width = np.full(len(nodes), 1.0)
    width[[0, -1]] = 0.5
    density = np.exp(log_mass.double().numpy()) / width
    losses = {}
    for t in fusion_module.POWERS:
        for s in fusion_module.BASE_NOISE:
            likelihood = stats.norm(nodes.double().numpy(), s * scale).pdf(reward.double().numpy()[:, None])
            mass = density**t * likelihood * width
            mass /= mass.sum(1, keepdims=True)
            total = 0.0
            for c, r in pairs.tolist():
                win = sum(
                    mass[c, i] * mass[r, j] * (1.0 if i > j else 0.5 if i == j else 0.0)
                    for i in range(len(nodes))
                    for j in range(len(nodes))
                )
                total -= math.log((1 - flips) * win + flips * (1 - win))
            losses[Fusion(t, s)] = total / len(pairs)
    return losses


@pytest.mark.parametrize("scale", [1.0, 4.0])
@pytest.mark.parametrize("seed", range(4))
def test_the_fusion_is_the_likeliest_by_brute_force(seed, scale, monkeypatch):
    monkeypatch.setattr(fusion_module, "POWERS", (0.0, 0.25, 1.0))
    monkeypatch.setattr(fusion_module, "BASE_NOISE", (0.3, 1.0, 3.0))
    generator = torch.Generator().manual_seed(seed)
    nodes = scale * torch.linspace(-3, 3, 7)
    log_mass = torch.log_softmax(2 * torch.randn(8, 7, generator=generator), 1)
    reward = scale * torch.randn(8, generator=generator)
    pairs = torch.tensor([[0, 1], [2, 3], [4, 5], [0, 7], [6, 2]])
    losses = brute_force(log_mass, nodes, reward, pairs, 0.15, scale)
    seen: list[float] = []

    def watch(*arguments) -> Tensor:
        seen.append(float(noisy_preference_nll(*arguments).mean()))
        return noisy_preference_nll(*arguments)

    monkeypatch.setattr(fusion_module, "noisy_preference_nll", watch)
    got = choose_fusion([held_out(log_mass, nodes, reward, pairs.T)], flips=0.15, scale=scale)
    assert seen == pytest.approx(list(losses.values()), rel=1e-4)
    ordered = sorted(losses.values())
    assert ordered[1] - ordered[0] > 1e-5  # one is best
    assert got == min(losses, key=losses.__getitem__)


def share_of_base(fusion: Fusion, std: float) -> float:
    """Weight of the base reward in the mean, against Gaussian densities of this standard deviation."""
    own, other = fusion.power / std**2, fusion.base_noise**-2
    return other / (own + other)


@pytest.mark.parametrize("seed", range(3))
def test_the_one_that_knows_is_followed(seed):
    true, pairs = rows(1000, seed)
    noise, off = torch.randn(2, 1000, generator=torch.Generator().manual_seed(seed + 9))
    pairs = flipped(pairs, 0.1)
    knowing = chosen_fusion(cells(true + 0.5 * off, 0.5), noise, pairs)
    assert knowing == Fusion(1.0, BASE_NOISE[-1])  # as little of the base reward as is tried, but never nothing
    assert 0 < share_of_base(knowing, 0.5) < 0.1
    assert share_of_base(chosen_fusion(cells(noise, 1.0), true + 0.3 * off, pairs), 1.0) > 0.9


def test_a_density_that_is_too_sure_is_weakened():
    true, pairs = rows(1000)
    seen = true + torch.randn(1000, generator=torch.Generator().manual_seed(9))  # off by 1 each
    honest, sure = (
        chosen_fusion(cells(seen, std), torch.zeros(1000), flipped(pairs, 0.1)).power for std in (1.0, 0.25)
    )
    assert sure < honest and sure <= 0.125


def test_equally_good_ones_both_count():
    true, pairs = rows(2000)
    one, other = torch.randn(2, 2000, generator=torch.Generator().manual_seed(9))
    got = chosen_fusion(cells(true + one, 1.0), true + other, flipped(pairs, 0.1))
    assert got.power >= 0.5 and 0.5 <= got.base_noise <= 2.0


def test_base_noise_is_in_standard_deviations_of_the_reward():
    true, pairs = rows(400)
    seen = true + torch.randn(400, generator=torch.Generator().manual_seed(9))
    log_mass, pairs = cells(seen, 1.0), flipped(pairs, 0.1)
    one = chosen_fusion(log_mass, true, pairs)
    fourfold = [held_out(log_mass, 4 * NODES, 4 * true, pairs.T)]
    assert one.base_noise < BASE_NOISE[-1]  # else the scale could not be told
    assert choose_fusion(fourfold, flips=0.1, scale=4.0) == one
    wrong = choose_fusion(fourfold, flips=0.1, scale=1.0)
    assert wrong.base_noise > one.base_noise


@pytest.mark.parametrize("sizes", [[1] * 200, [7, 193], [199, 1], [0, 200]])
def test_fusion_is_chosen_by_all_pairs_however_they_are_divided(sizes):
    """Also where the parts alone would choose otherwise: their losses add up by their numbers of pairs."""
    true, pairs = rows(400)
    seen = true + torch.randn(400, generator=torch.Generator().manual_seed(9))
    log_mass, pairs = cells(seen, 1.0), flipped(pairs, 0.1)
    pairs = torch.cat([pairs[:7].flip(1), pairs[7:]])
    parts = []
    for some in pairs.split(sizes):
        places, place = torch.unique(some, return_inverse=True)
        parts.append(held_out(log_mass[places], NODES, true[places], place.T))
    assert choose_fusion(iter(parts), flips=0.1) == chosen_fusion(log_mass, true, pairs)


@pytest.mark.parametrize("seed", range(3))
def test_a_base_reward_that_is_the_opposite_of_the_truth_counts_least(seed):
    true, pairs = rows(400, seed)
    assert chosen_fusion(cells(true, 0.5), -true, pairs) == Fusion(1.0, BASE_NOISE[-1])


def test_the_tried_weights_go_down_to_the_base_reward_alone_but_only_the_default_leaves_it_out():
    assert Fusion() == Fusion(1.0, math.inf) and Fusion().to_dict() == {"power": 1.0, "base_noise": None}
    assert Fusion(0.25, 1.4).to_dict() == {"power": 0.25, "base_noise": 1.4}
    assert POWERS[0] == 0.0 and POWERS[-1] == 1.0 and sorted(set(POWERS)) == list(POWERS)
    assert BASE_NOISE[-1] == 2.0 and sorted(set(BASE_NOISE)) == list(BASE_NOISE)
    assert 0 < BASE_NOISE[0] <= 0.25


def test_held_out_labels_and_weights_count():
    true, pairs = rows(400)
    seen = true + torch.randn(400, generator=torch.Generator().manual_seed(9))
    log_mass, pairs = cells(seen, 1.0), flipped(pairs, 0.1)
    turned = torch.rand(200, generator=torch.Generator().manual_seed(2)) < 0.5
    shown = torch.where(turned.unsqueeze(1), pairs.flip(1), pairs)
    one = torch.ones(200, dtype=torch.float64)
    part = held_out(log_mass, NODES, true, shown.T, label=(~turned).double())
    assert choose_fusion([part], flips=0.1) == chosen_fusion(log_mass, true, pairs)
    wrong = torch.cat([pairs, pairs.flip(1), pairs.flip(1)])
    weight = torch.cat([one, 0 * one, 0 * one])
    ignored = held_out(log_mass, NODES, true, wrong.T, weight=weight)
    assert choose_fusion([ignored], flips=0.1) == chosen_fusion(log_mass, true, pairs)


D = 3
#: Responses that stand in several pairs, near to one another and far apart.
PAIRS = PreferencePairs.of([0, 0, 5, 7, 9, 0, 11, 2], [1, 2, 6, 8, 1, 3, 10, 12])


@pytest.fixture(scope="module")
def density() -> EnergyHead:
    network = NetworkConfig(reward_widths=(4,), joint_widths=(6,))
    made = EnergyHead(D, energy(network, label_noise=0.2), torch.Generator().manual_seed(0))
    embedding, reward = data()
    made.fit_units(reward, [embedding])
    with torch.no_grad():
        for parameter in made.network.parameters():
            parameter.mul_(3)  # densities that differ
    return made.eval()


def data() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(13, D, generator=generator), 2 + 5 * torch.randn(13, generator=generator)


class Watched:
    """Embeddings that say which rows were read."""

    def __init__(self, embedding: torch.Tensor) -> None:
        self.embedding, self.shape = embedding, tuple(embedding.shape)
        self.reads: list[list[int]] = []

    def __getitem__(self, index: torch.Tensor) -> torch.Tensor:
        self.reads.append(index.tolist())
        return self.embedding[index]


@pytest.mark.parametrize("rows", [2, 4, 6, 100])
@pytest.mark.parametrize("estimate", ["mean", "mode", "ascent"])
def test_parts_give_the_numbers_of_the_whole(monkeypatch, density, rows, estimate):
    monkeypatch.setattr(rows_module, "_READ_FLOATS", rows * D)
    (embedding, reward), head = data(), density.with_inference(estimate=estimate)
    accuracy, nll, loss = validate(head, embedding, reward, PAIRS)
    refined = head.refine(embedding, reward).reward
    assert accuracy == float((refined[PAIRS.chosen] > refined[PAIRS.rejected]).double().mean())
    at = density.posterior(embedding, reward)
    once = [0, 1, 2, 3, 5, 6, 7, 8, 9, 10, 11, 12]  # 4 stands in no pair
    assert nll == pytest.approx(-float(log_density_of(density, at, reward)[once].mean()), rel=1e-5)
    mass = at.log_cells().float()
    assert loss == pytest.approx(
        float(noisy_preference_nll(mass[PAIRS.chosen], mass[PAIRS.rejected], 0.2).mean()), rel=1e-5
    )


def test_every_response_of_a_part_is_read_and_its_density_computed_once(monkeypatch, density):
    monkeypatch.setattr(rows_module, "_READ_FLOATS", 6 * D)  # three pairs a part
    embedding, reward = data()
    watched, computed = Watched(embedding), []
    original = density.posterior
    monkeypatch.setattr(density, "posterior", lambda e, *rest: computed.append(len(e)) or original(e, *rest))
    validate(density, watched, reward, PAIRS)
    assert watched.reads == [[0, 1, 2, 5, 6], [0, 1, 3, 7, 8, 9], [2, 10, 11, 12]]
    assert computed == [5, 6, 4]


def test_densities_come_with_the_rows_they_belong_to(monkeypatch, density):
    monkeypatch.setattr(rows_module, "_READ_FLOATS", 6 * D)
    embedding, reward = data()
    parts = list(held_out_densities(density.with_inference(nodes=33), embedding, reward, PAIRS))
    whole = density.posterior(embedding, reward, 33)
    internal = density.standardizer.to_internal(reward)
    for side in ("chosen", "rejected"):
        places, rows = [getattr(part.pairs, side) for part in parts], getattr(PAIRS, side)
        got = torch.cat([part.log_mass[place] for part, place in zip(parts, places, strict=True)])
        assert torch.allclose(got, whole.log_cells().float()[rows], atol=1e-5)
        assert torch.equal(
            torch.cat([part.reward[place] for part, place in zip(parts, places, strict=True)]), internal[rows]
        )
    assert all(torch.equal(part.nodes, whole.nodes.float()) for part in parts)


def test_nothing_held_out_has_no_numbers(density):
    assert all(math.isnan(value) for value in validate(density, *data(), PreferencePairs.of([], [])))
