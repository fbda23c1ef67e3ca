from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.heads.toys import plain_energy, small_network

from ebrm.heads import EnergyNetwork, NetworkConfig, tanh


def rows(n: int, d: int = 5, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=generator), 2 * torch.randn(n, generator=generator)


@settings(max_examples=25)
@given(
    st.integers(1, 6),
    st.lists(st.integers(1, 6), min_size=1, max_size=3),
    st.lists(st.integers(1, 6), min_size=1, max_size=3),
    st.integers(0, 4),
    st.integers(1, 5),
)
def test_factorised_is_plain(d, reward_widths, joint_widths, n, m):
    network = small_network(d, tuple(reward_widths), tuple(joint_widths)).double()
    embedding = torch.randn(n, d, generator=torch.Generator().manual_seed(n)).double()
    reward = torch.randn(n, m, generator=torch.Generator().manual_seed(m)).double()
    expected = plain_energy(network, embedding, reward)
    assert torch.allclose(network(embedding, reward), expected, rtol=0, atol=1e-12)
    assert torch.allclose(network(embedding, reward[:, 0]), expected[:, 0], rtol=0, atol=1e-12)
    on_nodes = network.on_nodes(network.embed(embedding), torch.arange(3).double())
    nodes = torch.arange(3).double().expand(n, 3)
    assert torch.allclose(on_nodes, plain_energy(network, embedding, nodes), rtol=0, atol=1e-12)


def test_factorised_is_plain_in_float32_at_published_sizes():
    network = EnergyNetwork(384, NetworkConfig(size="small"), torch.Generator().manual_seed(0))
    embedding, _ = rows(6, 384)
    reward = torch.linspace(-4, 4, 30).reshape(6, 5)
    assert torch.allclose(network(embedding, reward), plain_energy(network, embedding, reward), rtol=0, atol=1e-5)


def weight_shapes(network: EnergyNetwork) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in network.named_parameters() if "weight" in name}


def test_a_slim_network_has_one_joint_layer():
    network = EnergyNetwork(384, NetworkConfig())
    assert weight_shapes(network) == {
        "reward_layers.0.weight": (16, 1),
        "reward_layers.1.weight": (32, 16),
        "from_embedding.weight": (128, 384),
        "from_reward.weight": (128, 32),
        "output.weight": (1, 128),
    }
    assert network.width == 128


def test_published_shapes():
    network = EnergyNetwork(384, NetworkConfig(size="small"))
    assert weight_shapes(network) == {
        "reward_layers.0.weight": (16, 1),
        "reward_layers.1.weight": (32, 16),
        "reward_layers.2.weight": (64, 32),
        "from_embedding.weight": (1024, 384),
        "from_reward.weight": (1024, 64),
        "joint_layers.0.weight": (512, 1024),
        "output.weight": (1, 512),
    }
    assert network.from_reward.bias is None  # the first joint layer has one bias, not two
    assert network.width == 1024
    assert small_network(joint_widths=(3, 9, 2)).width == 9


def test_each_branch_runs_once_a_row_and_once_a_node():
    network = small_network()
    seen: dict[str, list[tuple[int, ...]]] = {"embedding": [], "reward": []}
    network.from_embedding.register_forward_hook(lambda _, x, __: seen["embedding"].append(tuple(x[0].shape)))
    network.from_reward.register_forward_hook(lambda _, x, __: seen["reward"].append(tuple(x[0].shape)))
    network.on_nodes(network.embed(torch.zeros(7, 5)), torch.zeros(11))
    network(torch.zeros(7, 5), torch.zeros(7, 13))
    assert seen == {"embedding": [(7, 5), (7, 5)], "reward": [(11, 4), (7, 13, 4)]}


def test_the_initial_distribution_is_that_of_the_unsplit_layer():
    d, g = 30, 20
    settings = NetworkConfig(reward_widths=(g,), joint_widths=(200,))
    network = EnergyNetwork(d, settings, torch.Generator().manual_seed(3))
    bound = 1 / math.sqrt(d + g)
    for weight in (network.from_embedding.weight, network.from_reward.weight, network.from_embedding.bias):
        assert weight.abs().max() <= bound
        assert weight.abs().max() > 0.97 * bound
        assert float(weight.detach().std()) == pytest.approx(bound / math.sqrt(3), rel=0.1)


def test_initial_weights_come_from_the_generator_alone():
    before = torch.get_rng_state()
    one, same, other = (small_network(seed=seed).state_dict() for seed in (7, 7, 8))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not any(torch.equal(one[name], other[name]) for name in one)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(("dtype", "accuracy"), [(torch.float32, 2e-7), (torch.float64, 4e-16)])
def test_tanh_is_pytorchs_to_the_rounding_of_one(dtype, accuracy):
    x = torch.cat([torch.linspace(-12, 12, 4001), torch.tensor([0.0, 1e-9, -1e4, 1e4, torch.inf, -torch.inf])]).to(
        dtype
    )
    assert torch.allclose(tanh(x), torch.tanh(x), rtol=0, atol=accuracy)
    assert tanh(x).dtype == dtype and bool(tanh(torch.tensor(torch.nan)).isnan())


def test_tanh_leaves_its_input_and_has_the_gradient_of_tanh():
    x = torch.linspace(-3, 3, 13, dtype=torch.float64, requires_grad=True)
    before = x.detach().clone()
    assert torch.autograd.gradcheck(tanh, (x,))
    (slope,) = torch.autograd.grad((tanh(x) * torch.arange(13)).sum(), x)
    assert torch.allclose(slope, torch.arange(13) * (1 - torch.tanh(before) ** 2), rtol=0, atol=1e-14)
    assert torch.equal(x.detach(), before)


def test_dropout_masks_are_one_a_row_and_layer():
    network = small_network(joint_widths=(400, 300), dropout=0.25)
    masks = network.dropout_masks(50, torch.Generator().manual_seed(0))
    assert [tuple(mask.shape) for mask in masks] == [(50, 1, 400), (50, 1, 300)]
    for mask in masks:
        assert mask.unique().tolist() == pytest.approx([0.0, 1 / 0.75])
        assert float(mask.mean()) == pytest.approx(1.0, abs=0.02)  # the expectation is kept
        flat = mask.squeeze(1)
        assert torch.unique(flat, dim=0).shape[0] == 50  # rows differ
        assert flat.mean(1).std() < 0.1 and flat.mean(0).std() < 0.15  # and no row or unit is singled out


def test_without_dropout_there_are_no_masks_and_no_draws():
    network, generator = small_network(dropout=0.0), torch.Generator().manual_seed(0)
    before = generator.get_state()
    assert network.dropout_masks(4, generator) == []
    assert torch.equal(generator.get_state(), before)


def test_masks_act_on_the_outputs_of_each_joint_layer():
    network = small_network(dropout=0.5).double()
    embedding, reward = (part.double() for part in rows(6))
    masks = [mask.double() for mask in network.dropout_masks(6, torch.Generator().manual_seed(2))]
    got = network.join(network.embed(embedding).unsqueeze(1), network.reward_part(reward.unsqueeze(1)), masks)
    x = torch.tanh(network.embed(embedding) + network.reward_part(reward)) * masks[0].squeeze(1)
    x = torch.tanh(network.joint_layers[0](x)) * masks[1].squeeze(1)
    assert torch.allclose(got, network.output(x), rtol=0, atol=1e-12)


def test_there_is_no_dropout_outside_training_steps():
    network = small_network(dropout=0.5).train()
    embedding, reward = rows(6)
    assert torch.equal(network(embedding, reward), network(embedding, reward))
    expected = plain_energy(network, embedding, reward.unsqueeze(1)).squeeze(1)
    assert torch.allclose(network(embedding, reward), expected, atol=1e-5)
