"""The energy network and the objectives it is fitted by."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from tests.heads.toys import plain_energy, small_network
from torch import Tensor

from ebrm.heads import EnergyNetwork, NetworkConfig, tanh
from ebrm.heads.objective import (
    MixtureNoise,
    joint_step_losses,
    likelihood_loss,
    likelihood_step_losses,
    measurement_loss,
    nce_loss,
    nce_step_losses,
    noisy_preference_nll,
    shifted_nodes,
)


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


NCE = {"beta": 0.1, "negatives": 16, "regularization": 0.0}
LIKELIHOOD = {"beta": 0.1, "support": (-4.0, 5.0), "nodes": 40, "regularization": 0.0}
JOINT = {
    "flips": 0.1, "reward_weight": 0.3, "reward_noise": 1.5, "support": (-4.0, 5.0), "nodes": 40,
    "regularization": 0.05,
}  # fmt: skip
STEPS = [(nce_step_losses, NCE), (likelihood_step_losses, LIKELIHOOD)]
ALL_STEPS = [*STEPS, (joint_step_losses, JOINT)]
WIDE = MixtureNoise((0.5, 1.5))


def data(n: int = 6, d: int = 5) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(11)
    return torch.randn(n, d, generator=generator), torch.randn(n, generator=generator)


class Spy(EnergyNetwork):
    """Keeps what the objective asks: the rewards, and f at them."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__(5, NetworkConfig(reward_widths=(6,), joint_widths=(8, 7), dropout=dropout))
        self.load_state_dict(small_network(5, (6,), (8, 7)).state_dict())
        self.rewards: list[Tensor] = []
        self.values: list[Tensor] = []

    def reward_part(self, reward: Tensor) -> Tensor:
        self.rewards.append(reward)
        return super().reward_part(reward)

    def join(self, embedded, rewarded, masks=()):
        self.values.append(super().join(embedded, rewarded, masks))
        return self.values[-1]


def total(step, network, embedding, reward, noise=WIDE, seed=0, rows_at_once=10_000, **options) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    more = () if step is joint_step_losses else (noise,)
    losses = step(network, embedding, reward, *more, generator=generator, rows_at_once=rows_at_once, **options)
    return torch.stack(list(losses)).sum()


def joint_total(network, embedding, reward, **options) -> Tensor:
    return total(joint_step_losses, network, embedding, reward, **JOINT | options)


def test_nce_loss_by_hand():
    # a0 = 1 - (-1) = 2 against a1 = 0.5 - (-0.5) = 1: log(e² + e¹) - 2 = log(1 + 1/e).
    one = nce_loss(torch.tensor([1.0]), torch.tensor([-1.0]), torch.tensor([[0.5]]), torch.tensor([[-0.5]]))
    assert one.tolist() == pytest.approx([math.log(1 + math.exp(-1))])
    # a = 0 | log 2, log 5 in the first row: log(1 + 2 + 5); a = log 4 | 0, log 3 in the second: log(8 / 4).
    two = nce_loss(
        torch.tensor([-2.0, math.log(4)]),
        torch.tensor([-2.0, 0.0]),
        torch.tensor([[0.0, math.log(5)], [1.0, math.log(3) - 7]]),
        torch.tensor([[-math.log(2), 0.0], [1.0, -7.0]]),
    )
    assert two.tolist() == pytest.approx([math.log(8), math.log(2)], abs=1e-6)


@given(st.integers(1, 20), st.floats(-50, 50), st.integers(0, 99))
def test_nce_loss_of_an_energy_that_cannot_tell(m, constant, seed):
    log_noise = torch.randn(3, m + 1, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    f = log_noise + constant  # exp f is the noise density up to a factor
    loss = nce_loss(f[:, 0], log_noise[:, 0], f[:, 1:], log_noise[:, 1:])
    assert torch.allclose(loss, torch.full((3,), math.log(m + 1), dtype=torch.float64))


def test_nce_loss_falls_as_the_positive_rises_and_rises_with_a_negative():
    negative, log_noise = torch.tensor([[0.3, -0.2]]), torch.tensor([[-1.0, -2.0]])
    positive = torch.linspace(-30, 30, 50)
    losses = torch.cat([nce_loss(f.view(1), torch.tensor([-1.0]), negative, log_noise) for f in positive])
    assert bool((losses[1:] <= losses[:-1]).all()) and losses[0] > 29
    assert 0 <= losses[-1] < 1e-6
    raised = nce_loss(torch.tensor([0.0]), torch.tensor([-1.0]), negative + torch.tensor([[1.0, 0.0]]), log_noise)
    assert raised > nce_loss(torch.tensor([0.0]), torch.tensor([-1.0]), negative, log_noise)


def test_likelihood_loss_by_hand():
    # Flat over [0, 2] with four cells of width ½: log Z = log 2; f = 1 at the positive.
    flat = likelihood_loss(torch.tensor([1.0]), torch.zeros(1, 4), torch.tensor(math.log(0.5)))
    assert flat.tolist() == pytest.approx([math.log(2) - 1])
    # exp f = 1, 3 with weights 2, 5: Z = 17.
    weighted = likelihood_loss(
        torch.tensor([0.0]), torch.tensor([[0.0, math.log(3)]]), torch.tensor([math.log(2), math.log(5)])
    )
    assert weighted.tolist() == pytest.approx([math.log(17)])


def test_shifted_nodes_are_one_a_cell_at_one_random_offset():
    offsets = []
    for seed in range(200):
        nodes, log_weight = shifted_nodes(-2.0, 3.0, 20, torch.Generator().manual_seed(seed))
        offset = nodes - (-2.0 + 0.25 * torch.arange(20))
        assert torch.allclose(offset, offset[0].expand(20), atol=1e-6)
        assert float(log_weight) == pytest.approx(math.log(0.25))
        offsets.append(float(offset[0]))
    assert stats.kstest(offsets, stats.uniform(0, 0.25).cdf).pvalue > 0.01


def test_shifted_nodes_meet_a_narrow_peak_as_often_as_they_should():
    peak = stats.norm(0.3, 0.02)  # a tenth of a cell wide
    z = []
    for seed in range(2000):
        nodes, log_weight = shifted_nodes(-2.0, 2.0, 20, torch.Generator().manual_seed(seed))
        z.append(peak.pdf(nodes.numpy()).sum() * math.exp(log_weight))
    assert np.mean(z) == pytest.approx(1.0, abs=4 * np.std(z) / len(z) ** 0.5)
    assert np.median(z) < 0.5  # while most single grids miss it


def test_nce_step_is_the_written_formula():
    network, noise = Spy(), WIDE
    embedding, reward = data()
    loss = total(nce_step_losses, network, embedding, reward, noise, **NCE | {"regularization": 0.05})
    (y,) = network.rewards
    assert y.shape == (6, 17)
    f = plain_energy(network, embedding, y).detach().double().numpy()
    offset = (y - reward.unsqueeze(1)).double().numpy()
    # The noise density of all of them, the noisy positive among them, is that of the unscaled mixture.
    log_noise = np.log(np.mean([stats.norm(0, s).pdf(offset) for s in noise.sigmas], axis=0))
    a = f - log_noise
    rows = np.logaddexp.reduce(a, axis=1) - a[:, 0]
    assert loss.item() == pytest.approx(rows.mean() + 0.05 * (f**2).mean(), rel=1e-5)


def test_nce_step_draws_positives_beta_times_closer():
    network, noise = Spy(), MixtureNoise((0.5,))
    embedding, reward = data(3000)
    total(nce_step_losses, network, embedding, reward, noise, beta=0.1, negatives=3, regularization=0.0)
    offset = (network.rewards[0] - reward.unsqueeze(1)).numpy()
    assert stats.kstest(offset[:, 0], stats.norm(0, 0.05).cdf).pvalue > 0.01
    assert stats.kstest(offset[:, 1:].ravel(), stats.norm(0, 0.5).cdf).pvalue > 0.01
    assert abs(np.corrcoef(offset[:, 0], offset[:, 1])[0, 1]) < 0.06


def test_likelihood_step_is_the_written_formula():
    network = Spy()
    embedding, reward = data()
    loss = total(likelihood_step_losses, network, embedding, reward, **LIKELIHOOD | {"regularization": 0.05})
    positive, nodes = network.rewards
    assert nodes.shape == (40,) and nodes.min() >= -4 and nodes.max() <= 5
    assert not torch.equal(positive.squeeze(1), reward)
    f0 = plain_energy(network, embedding, positive).squeeze(1).detach().double().numpy()
    f = plain_energy(network, embedding, nodes.expand(6, 40)).detach().double().numpy()
    rows = np.logaddexp.reduce(f, axis=1) + math.log(9 / 40) - f0
    square = (np.square(f0).sum() + np.square(f).sum()) / (6 * 41)
    assert loss.item() == pytest.approx(rows.mean() + 0.05 * square, rel=1e-5)


def test_likelihood_step_keeps_the_noisy_positive_inside_the_support():
    network = Spy()
    embedding, reward = data(500)
    total(likelihood_step_losses, network, embedding, reward, **LIKELIHOOD | {"beta": 3.0, "support": (-1.0, 2.0)})
    positive = network.rewards[0]
    assert float(positive.min()) == -1.0 and float(positive.max()) == 2.0


@pytest.mark.parametrize(("step", "options"), STEPS)
def test_without_beta_the_positive_is_the_reward(step, options):
    network = Spy()
    embedding, reward = data()
    total(step, network, embedding, reward, **options | {"beta": 0.0})
    assert torch.equal(network.rewards[0][:, 0], reward)


@pytest.mark.parametrize(("step", "options"), STEPS)
def test_a_row_has_one_dropout_mask_for_its_positive_and_all_it_is_compared_with(step, options):
    network = Spy(dropout=0.5)
    with torch.no_grad():
        network.from_reward.weight.zero_()  # f depends on the embedding and on the mask only
    embedding = data(1)[0].expand(6, 5)
    total(step, network, embedding, data()[1], **options)
    f = torch.cat([value.reshape(6, -1) for value in network.values], dim=1)
    assert f.shape[1] > 16
    assert torch.allclose(f, f[:, :1].expand_as(f), atol=1e-5)
    assert len(f[:, 0].detach().round(decimals=4).unique()) == 6  # and every row has its own


@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize(("step", "options"), ALL_STEPS)
def test_splitting_a_batch_changes_neither_loss_nor_gradient(step, options, dropout):
    embedding, reward = data(14)
    results = []
    for rows_at_once in (14, 6, 5, 1, 99):
        network = small_network(dropout=dropout)
        loss = total(step, network, embedding, reward, rows_at_once=rows_at_once, **options | {"regularization": 0.1})
        loss.backward()
        results.append((loss.detach(), [p.grad for p in network.parameters()]))
    whole, *split = results
    for loss, gradients in split:
        assert torch.allclose(loss, whole[0], rtol=1e-5)
        for a, b in zip(gradients, whole[1], strict=True):
            assert torch.allclose(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("step", "options"), ALL_STEPS)
def test_a_step_is_reproducible_and_leaves_the_global_generator_alone(step, options):
    embedding, reward = data()
    before = torch.get_rng_state()
    network = small_network(dropout=0.5)
    one, same, other = (total(step, network, embedding, reward, seed=seed, **options) for seed in (1, 1, 2))
    assert torch.equal(one, same) and not torch.equal(one, other)
    assert torch.equal(torch.get_rng_state(), before)


class Decaying(EnergyNetwork):
    """f(e, r) - r² / 2: has a finite Z on the whole line, as NCE+ needs it for its limit to exist."""

    def reward_part(self, reward: Tensor) -> Tensor:
        return torch.cat([super().reward_part(reward), -0.5 * reward.square().unsqueeze(-1)], dim=-1)

    def join(self, embedded, rewarded, masks=()):
        return super().join(embedded, rewarded[..., :-1], masks) + rewarded[..., -1]


def test_the_nce_gradient_tends_to_the_exact_likelihoods_as_negatives_grow():
    network = Decaying(5, NetworkConfig(reward_widths=(6,), joint_widths=(8,), dropout=0.0))
    network.load_state_dict(small_network(5, (6,), (8,)).state_dict())
    embedding, reward = data(4)

    def gradient(loss: Tensor) -> Tensor:
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(network.parameters()))])

    exact = gradient(
        total(
            likelihood_step_losses, network, embedding, reward,
            beta=0.0, support=(-12.0, 12.0), nodes=2000, regularization=0.0,
        )
    )  # fmt: skip
    noise, size = MixtureNoise((1.5,)), exact.norm()
    assert size > 0.1
    error, bias = {}, {}
    for m, draws in ((16, 300), (64, 200), (1024, 60), (16384, 20)):
        options = {"beta": 0.0, "negatives": m, "regularization": 0.0}
        sampled = torch.stack(
            [
                gradient(total(nce_step_losses, network, embedding, reward, noise, seed=seed, **options))
                for seed in range(draws)
            ]
        )
        error[m] = float((sampled - exact).square().sum(1).mean().sqrt() / size)
        bias[m] = float((sampled.mean(0) - exact).norm() / size)
    # A single draw is off by about 1 / √M; the mean over draws, by about 1 / M, of which the first is well above noise.
    assert error[64] / error[1024] == pytest.approx(4.0, rel=0.3)
    assert error[1024] / error[16384] == pytest.approx(4.0, rel=0.3)
    assert error[16384] < 0.02
    assert bias[16] > 2 * bias[64] > 4 * bias[1024]
    assert bias[16384] < 0.005


# The joint objective: labels of pairs, and the base reward as a measurement.


def gaussian_cells(mean: Tensor, std: float, nodes: Tensor) -> Tensor:  # [n], [g] -> [n, g]
    """Log-probabilities of the nodes' cells under N(mean, std²), cut off at the ends."""
    return torch.log_softmax(-0.5 * ((nodes - mean.unsqueeze(1)) / std).square(), 1)


def random_cells(p: int, g: int, seed: int) -> Tensor:
    draws = 2 * torch.randn(p, g, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.log_softmax(draws, 1)


@pytest.mark.parametrize("flips", [0.0, 0.1, 0.25, 0.49])
def test_label_loss_of_rewards_that_are_known(flips):
    """All mass in one cell: the label is right with 1 - ε, wrong with ε, and even in the same cell."""
    points = torch.eye(4).log()
    chosen, rejected = points[[3, 1, 2, 0]], points[[0, 2, 2, 3]]
    expected = [1 - flips, flips, 0.5, flips]
    got = noisy_preference_nll(chosen, rejected, flips).exp()
    assert (1 / got).tolist() == pytest.approx(expected, abs=1e-6)


@given(st.integers(1, 30), st.integers(0, 99), st.floats(0, 0.49))
def test_label_loss_of_equal_densities_is_log_two_whatever_the_flips(g, seed, flips):
    cells = random_cells(3, g, seed)
    assert torch.allclose(noisy_preference_nll(cells, cells, flips), torch.full((3,), math.log(2), dtype=torch.float64))


@given(st.integers(1, 30), st.integers(0, 99), st.floats(0, 0.49))
def test_a_label_and_its_opposite_are_one_in_probability(g, seed, flips):
    chosen, rejected = random_cells(4, g, seed), random_cells(4, g, seed + 1000)
    one, other = noisy_preference_nll(chosen, rejected, flips), noisy_preference_nll(rejected, chosen, flips)
    assert torch.allclose((-one).exp() + (-other).exp(), torch.ones(4, dtype=torch.float64))
    # A label that is wrong with ε is the opposite label, wrong with 1 - ε.
    assert torch.allclose(one, noisy_preference_nll(rejected, chosen, 1 - flips))


@given(st.integers(2, 12), st.integers(0, 99), st.floats(0, 0.49))
def test_label_loss_is_the_sum_over_all_pairs_of_cells(g, seed, flips):
    chosen, rejected = random_cells(3, g, seed), random_cells(3, g, seed + 1000)
    for row, loss in enumerate(noisy_preference_nll(chosen, rejected, flips).tolist()):
        a, b = chosen[row].exp().tolist(), rejected[row].exp().tolist()
        win = sum(a[i] * b[j] * (1.0 if i > j else 0.5 if i == j else 0.0) for i in range(g) for j in range(g))
        assert loss == pytest.approx(-math.log((1 - flips) * win + flips * (1 - win)), rel=1e-9)


@given(st.floats(-2, 2), st.floats(-2, 2), st.floats(0.3, 1.0), st.floats(0.3, 1.0), st.floats(0, 0.49))
def test_label_loss_of_gaussians_is_the_normal_distribution_functions(mean_c, mean_r, std_c, std_r, flips):
    nodes = torch.linspace(-8, 8, 801, dtype=torch.float64)
    chosen, rejected = (
        gaussian_cells(torch.tensor([mean], dtype=torch.float64), std, nodes)
        for mean, std in ((mean_c, std_c), (mean_r, std_r))
    )
    win = stats.norm.cdf((mean_c - mean_r) / math.hypot(std_c, std_r))
    expected = -math.log(flips + (1 - 2 * flips) * win)
    assert noisy_preference_nll(chosen, rejected, flips).item() == pytest.approx(expected, abs=1e-3, rel=1e-3)


def test_label_loss_rises_to_what_a_wrong_label_costs_and_no_further():
    nodes = torch.linspace(-6, 6, 241)
    rejected = gaussian_cells(torch.zeros(1), 0.2, nodes)
    means = torch.linspace(4, -4, 40)
    losses = torch.cat([noisy_preference_nll(gaussian_cells(m.view(1), 0.2, nodes), rejected, 0.1) for m in means])
    assert bool((losses[1:] >= losses[:-1] - 1e-6).all())
    assert losses[[0, -1]].tolist() == pytest.approx([-math.log(0.9), -math.log(0.1)], abs=1e-4)
    never = noisy_preference_nll(torch.eye(2)[:1].log(), torch.eye(2)[1:].log(), 0.0)
    assert bool(never.isfinite()) and never.item() > 80  # impossible, and still a number


@pytest.mark.parametrize("flips", [0.0, 0.1, 0.4])
def test_the_gradient_of_label_loss_is_that_of_finite_differences(flips):
    draws = torch.randn(2, 3, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    inputs = [side.clone().requires_grad_() for side in draws]
    assert torch.autograd.gradcheck(
        lambda a, b: noisy_preference_nll(torch.log_softmax(a, 1), torch.log_softmax(b, 1), flips), inputs
    )


@given(
    st.floats(-1.5, 1.5),
    st.floats(0.3, 1.0),
    st.floats(-4, 4),
    st.floats(0.3, 3.0),
    st.sampled_from([torch.float32, torch.float64]),
)
def test_measurement_loss_of_a_gaussian_is_the_closed_form(mean, std, reward, noise, dtype):
    nodes = torch.linspace(-8, 8, 641, dtype=dtype)
    cells = gaussian_cells(torch.tensor([mean], dtype=dtype), std, nodes)
    got = measurement_loss(cells, nodes, torch.tensor([reward], dtype=dtype), noise).item()
    assert got == pytest.approx(-stats.norm(mean, math.hypot(std, noise)).logpdf(reward), abs=2e-4)


def test_measurement_loss_of_a_known_reward_is_the_noise_alone():
    nodes = torch.tensor([-1.0, 0.5, 2.0])
    cells = torch.eye(3).log()
    reward = torch.tensor([0.0, 7.0, -300.0])
    got = measurement_loss(cells, nodes, reward, 0.7)
    assert got.tolist() == pytest.approx((-stats.norm(nodes, 0.7).logpdf(reward)).tolist(), rel=1e-5)


def test_the_gradient_of_measurement_loss_is_that_of_finite_differences():
    draws = torch.randn(3, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    nodes, reward = torch.linspace(-2, 2, 6, dtype=torch.float64), torch.tensor([0.3, -1.0, 5.0], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda f: measurement_loss(torch.log_softmax(f, 1), nodes, reward, 0.8), [draws])


@pytest.mark.parametrize("weight", [0.0, 0.3, 2.0])
@pytest.mark.parametrize("flips", [0.0, 0.2])
def test_joint_step_is_the_written_formula(weight, flips):
    network = Spy()
    embedding, reward = data(8)  # four pairs: row i against row 4 + i
    loss = joint_total(network, embedding, reward, flips=flips, reward_weight=weight)
    (nodes,) = network.rewards
    assert nodes.shape == (40,) and nodes.min() >= -4 and nodes.max() <= 5
    f = plain_energy(network, embedding, nodes.expand(8, 40)).detach().double().numpy()
    p, r = np.exp(f - np.logaddexp.reduce(f, axis=1)[:, None]), nodes.double().numpy()
    label, measured = 0.0, 0.0
    for i in range(4):
        win = sum(
            p[i, a] * p[4 + i, b] * (1.0 if r[a] > r[b] else 0.5 if a == b else 0.0)
            for a in range(40)
            for b in range(40)
        )
        label -= math.log((1 - flips) * win + flips * (1 - win)) / 4
    for row in range(8):
        measured -= math.log((p[row] * stats.norm(r, 1.5).pdf(reward[row].item())).sum()) / 8
    assert loss.item() == pytest.approx(label + weight * measured + 0.05 * np.square(f).mean(), rel=1e-5)


@pytest.mark.parametrize(
    ("rows_at_once", "parts"), [(14, [14]), (15, [14]), (6, [6, 6, 2]), (5, [4, 4, 4, 2]), (1, [2] * 7)]
)
def test_a_joint_batch_is_split_between_pairs(rows_at_once, parts):
    network = Spy()
    joint_total(network, *data(14), rows_at_once=rows_at_once)
    assert [len(value) for value in network.values] == parts


def test_chosen_and_rejected_share_their_dropout_mask():
    """The same embedding on both sides is one density, so that P is ½ and the label costs log 2 under any mask."""
    network = Spy(dropout=0.5)
    embedding, reward = data(6)
    same = torch.cat([embedding, embedding])
    options = {"reward_weight": 0.0, "regularization": 0.0, "rows_at_once": 6}
    loss = joint_total(network, same, torch.cat([reward, reward]), **options)
    assert loss.item() == pytest.approx(math.log(2), rel=1e-5)
    for part in network.values:
        assert torch.allclose(*part.chunk(2), atol=1e-5)
    # And every pair has a mask of its own.
    network.values.clear()
    joint_total(network, embedding[:1].expand(12, 5), reward.repeat(2), **options)
    f = torch.cat([part.chunk(2)[0] for part in network.values]).detach()
    assert len(f[:, 0].round(decimals=4).unique()) == 6


def test_which_pairs_come_first_does_not_change_the_joint_loss():
    embedding, reward = data(10)
    order = torch.tensor([3, 0, 4, 1, 2])
    both = torch.cat([order, 5 + order])
    network = small_network()
    assert torch.allclose(
        joint_total(network, embedding[both], reward[both]), joint_total(network, embedding, reward), rtol=1e-5
    )
    # Chosen and rejected swapped is another matter.
    swapped = torch.arange(10).roll(5)
    assert not torch.allclose(
        joint_total(network, embedding[swapped], reward[swapped]), joint_total(network, embedding, reward), rtol=1e-3
    )


# Soft labels and weights.


@pytest.mark.parametrize("flips", [0.0, 0.1])
def test_a_soft_label_mixes_the_two_labels(flips):
    chosen, rejected = random_cells(6, 9, 1), random_cells(6, 9, 2)
    right, wrong = noisy_preference_nll(chosen, rejected, flips), noisy_preference_nll(rejected, chosen, flips)
    label = torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0, 1.0]).double()
    mixed = noisy_preference_nll(chosen, rejected, flips, label)
    assert torch.allclose(mixed, label * right + (1 - label) * wrong)
    assert torch.equal(noisy_preference_nll(chosen, rejected, flips, torch.ones(6)), right)


def test_a_label_of_a_half_pulls_equal_densities_nowhere():
    cells = random_cells(3, 9, 1)
    f = cells.clone().requires_grad_()
    loss = noisy_preference_nll(torch.log_softmax(f, 1), cells, 0.1, torch.full((3,), 0.5))
    (gradient,) = torch.autograd.grad(loss.sum(), f)
    assert gradient.abs().max() < 1e-12
    (pulled,) = torch.autograd.grad(noisy_preference_nll(torch.log_softmax(f, 1), cells, 0.1).sum(), f)
    assert pulled.abs().max() > 1e-3


def test_a_pair_of_weight_two_is_two_and_one_of_weight_nothing_is_none():
    embedding, reward = data(8)  # pairs i and 4 + i
    one = small_network(5, (6,), (8, 7))
    weight = torch.tensor([2.0, 1.0, 0.0, 1.0])
    places = torch.tensor([0, 0, 1, 3])
    repeated = torch.cat([places, 4 + places])
    got = joint_total(one, embedding, reward, weight=weight, label=None)
    twice = joint_total(one, embedding[repeated], reward[repeated])
    assert got.item() == pytest.approx(twice.item(), rel=1e-6)
    ones = joint_total(one, embedding, reward, weight=torch.ones(4), label=torch.ones(4))
    assert torch.equal(ones, joint_total(one, embedding, reward))
    split = joint_total(one, embedding, reward, weight=weight, label=weight / 2, rows_at_once=2)
    assert split.item() == pytest.approx(joint_total(one, embedding, reward, weight=weight, label=weight / 2).item())


# The noise that NCE+ contrasts with.

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
