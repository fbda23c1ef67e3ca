from __future__ import annotations

import math

import pytest
import torch
from benchmarks import plain
from benchmarks.plain import copy_back, draw_samples, nce_loss, plain_epoch, plain_network, plain_refine
from tests.heads.toys import KNOWN, energy, plain_energy, reading, small_network
from torch import Tensor

from ebrm.heads import EnergyHead, InferenceConfig, NetworkConfig
from ebrm.heads.energy import ascend
from ebrm.heads.objective import MixtureNoise, nce_step_losses

SIGMAS = (0.9, 0.3)


def rows(n: int, d: int = 5, seed: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=generator), torch.randn(n, generator=generator)


def bent_density(seed: int = 0) -> tuple[EnergyHead, Tensor, Tensor]:
    """A density with units of its own whose f is far from flat, and rows for it."""
    e, r = rows(60, seed=seed + 1)
    e, r = 3 * e + 1, 7 * r - 20
    density = EnergyHead(5, energy(NetworkConfig(reward_widths=(6, 4), joint_widths=(8, 7)), objective="likelihood"))
    density.network = small_network(seed=seed)
    density.fit_units(r, [e])
    return density.eval(), e, r


@pytest.mark.parametrize("widths", [((6, 4), (8, 7)), ((3,), (9,)), ((2, 3, 4), (5, 6, 7))])
def test_it_is_the_same_f(widths):
    network = small_network(reward_widths=widths[0], joint_widths=widths[1]).eval()
    e, r = rows(20)
    torch.testing.assert_close(plain_network(network)(e, r), network(e, r), rtol=1e-5, atol=1e-5)


def test_weights_go_there_and_back():
    network, other = small_network(seed=0).eval(), small_network(seed=1).eval()
    copy_back(plain_network(network), other)
    for name, value in network.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


CLIMBS = [{}, {"steps": 3}, {"step_size": 4.0, "step_decay": 0.5}, {"step_stop": 0.1, "steps": 200}]


@pytest.mark.parametrize("options", CLIMBS)
def test_it_climbs_by_the_rule(monkeypatch, options):
    monkeypatch.setattr(plain, "BATCH", 25)
    density, e, r = bent_density()
    density.trusted.copy_(torch.tensor([-0.8, 1.1]))  # rows outside start on its edge
    network = density.network.double()
    inside = density.standardizer.embed(e).double()

    def climbed(rows: Tensor, reward: Tensor) -> tuple[Tensor, Tensor]:
        at = reward.clone().requires_grad_()
        f = plain_energy(network, inside[rows], at.unsqueeze(1)).squeeze(1)
        return f.detach(), torch.autograd.grad(f.sum(), at)[0]

    settings = InferenceConfig(estimate="ascent", **options)
    start = density.standardizer.to_internal(r).clamp(*density.trusted.tolist()).double()
    expected = ascend(climbed, start, settings, density.support_bounds())
    got = plain_refine(plain_network(network).double(), density, e, r, settings)
    torch.testing.assert_close(got.reward, density.standardizer.to_base(expected.reward), rtol=0, atol=1e-4)
    assert len(got.steps) == 3 and all(0 < taken <= settings.steps for taken in got.steps)
    assert len(set(expected.accepted.tolist())) > 1 and not torch.equal(got.reward, r)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("options", [CLIMBS[0], CLIMBS[1], CLIMBS[3]])  # steps of 4 jump about: no path is stable
def test_it_climbs_to_where_the_density_does(options, seed):
    density, e, r = bent_density(seed)
    assert density.fusion.power == 1.0 and math.isinf(density.fusion.base_noise)
    settings = InferenceConfig(estimate="ascent", start="base", **options)
    expected = reading(density, settings).refine(e, r).reward
    wide = plain_refine(plain_network(density.network).double(), density, e, r, settings).reward
    # Where f is flat to its last digits, the two may stop a little way from each other.
    torch.testing.assert_close(wide, expected, rtol=0, atol=2e-3 * density.standardizer.unit)
    for climbed in (wide, plain_refine(plain_network(density.network), density, e, r, settings).reward):
        assert float((density.energy(e, expected) - density.energy(e, climbed)).abs().max()) < 1e-3


def test_a_batch_stops_when_its_rows_have():
    density, e, r = bent_density()
    for parameter in density.network.parameters():
        parameter.data.zero_()
    flat = plain_refine(plain_network(density.network), density, e, r)
    assert flat.steps == (6,)  # 0.5 · 0.1^6 is the first step size below 1e-6
    torch.testing.assert_close(flat.reward, r)
    assert plain_refine(plain_network(density.network), density, e[:0], r[:0]).reward.shape == (0,)


def test_candidates_outside_the_support_are_refused():
    density, e, r = bent_density()
    density.support.copy_(torch.tensor([-0.5, 0.25]))
    inside = density.standardizer.to_internal(plain_refine(plain_network(density.network), density, e, r).reward)
    assert float(inside.min()) >= -0.5 - 1e-6 and float(inside.max()) <= 0.25 + 1e-6


def test_samples_and_loss_are_those_of_the_density():
    network = small_network(gain=1.5)
    e, r = rows(12)
    theirs = nce_step_losses(
        network, e, r, MixtureNoise(SIGMAS), beta=0.2, negatives=40, regularization=0.05,
        generator=torch.Generator().manual_seed(5), rows_at_once=12,
    )  # fmt: skip
    y = draw_samples(r, SIGMAS, 0.2, 40, torch.Generator().manual_seed(5))
    assert y.shape == (12, 41)
    own = plain_network(network)
    loss = nce_loss(own, e, r, y, SIGMAS, 0.05)
    expected = sum(theirs)
    torch.testing.assert_close(loss, expected)
    loss.backward()
    expected.backward()
    both = torch.cat([network.from_embedding.weight.grad, network.from_reward.weight.grad], dim=1)
    torch.testing.assert_close(own.joint[0].weight.grad, both, rtol=1e-4, atol=1e-6)


def test_samples_of_a_row_share_dropout():
    network = plain_network(small_network(dropout=0.5)).train()
    e, _ = rows(6)
    with torch.no_grad():
        f = network(e.unsqueeze(1).expand(-1, 3, -1), torch.zeros(6, 3))
        again = network(e.unsqueeze(1).expand(-1, 3, -1), torch.zeros(6, 3))
    assert torch.allclose(f, f[:, :1].expand(-1, 3)) and not torch.allclose(f, again)


def test_parts_of_a_batch_add_up(monkeypatch):
    density, e, r = bent_density()
    settings = energy(objective="nce", negatives=16, batch_rows=32)
    ends = []
    for floats in (2**27, 17 * 9 * 5):
        monkeypatch.setattr(plain, "CONCATENATED", floats)
        network = plain_network(density.network)
        optimizer = torch.optim.SGD(network.parameters(), lr=0.01)
        loss = plain_epoch(network, optimizer, density, e, r, settings, torch.Generator().manual_seed(0))
        ends.append((loss, network.joint[0].weight.detach().clone()))
    assert ends[0][0] == pytest.approx(ends[1][0], rel=1e-5)
    torch.testing.assert_close(ends[0][1], ends[1][1])


def test_an_epoch_learns_a_known_density():
    known = KNOWN["heteroscedastic"]
    e, r = known.sample(4000, seed=0)
    shape = NetworkConfig(reward_widths=(8, 16), joint_widths=(32, 16), dropout=0.0)
    settings = energy(shape, objective="nce", negatives=64, batch_rows=16)
    density = EnergyHead(1, settings, torch.Generator().manual_seed(0))
    density.fit_units(r, [e])
    network = plain_network(density.network)
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    losses = [
        plain_epoch(network, optimizer, density, e, r, settings, torch.Generator().manual_seed(epoch))
        for epoch in range(2)
    ]
    assert losses[1] < losses[0]
    copy_back(network, density.network)
    held_out, _ = known.sample(1000, seed=1)
    nodes, p = density.eval().density(held_out, torch.zeros(1000))
    truth = known.log_density(held_out.squeeze(1), nodes)
    divergence = (truth.exp() * (truth - p.double().log())).sum(1).mean() * float(nodes[1] - nodes[0])
    assert float(divergence) < 0.05  # without the embedding, the normal of all rewards has 0.84
