from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.heads.toys import energy, fit_energy, plain_energy, small_network

import ebrm.heads.energy as density_module
from ebrm.heads import (
    EnergyHead,
    EnergyNetwork,
    NetworkConfig,
    find_interpolation,
)
from ebrm.heads.interpolation import MISFIT, Interpolation
from ebrm.pairs import PreferencePairs

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
    pairs, none = PreferencePairs.of(torch.arange(0, 512, 2), torch.arange(1, 512, 2)), torch.empty(0, dtype=torch.long)
    fit = fit_energy(
        embedding, reward, pairs, PreferencePairs.of(none, none),
        network=NetworkConfig(reward_widths=(16, 32), joint_widths=(64, 32)),
        training={"objective": "likelihood", "epochs": 20, "learning_rate": 3e-3},
    )  # fmt: skip
    return fit.head, embedding[:50], reward[:50]


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
