from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.heads.toys import plain_energy, small_network
from torch import Tensor

from ebrm.heads import EnergyNetwork, InferenceConfig
from ebrm.heads.energy import ascend, starting_reward


def energy_of(network: EnergyNetwork, embedding: Tensor):
    def energy(rows: Tensor, reward: Tensor) -> tuple[Tensor, Tensor]:
        r = reward.detach().clone().requires_grad_()
        value = network(embedding[rows], r)
        return value.detach(), torch.autograd.grad(value.sum(), r)[0]

    return energy


def rows(n: int, seed: int = 2) -> tuple[Tensor, Tensor]:
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
    embedding, start = rows(25)
    start = start.clamp(*support)
    got = ascend(energy_of(network, embedding), start, chosen, support)
    assert len(set(got.accepted.tolist())) > 1  # the rows take different paths
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

    def energy(rows, r):  # row 0 always climbs, row 1 never does though its slope says it could
        asked.append(rows.tolist())
        return torch.where(rows == 0, r, torch.zeros_like(r)), torch.ones_like(r)

    end = ascend(energy, torch.zeros(2), InferenceConfig(steps=10))
    # λ = 0.5, 0.05, …, 5e-6, and 5e-7 is below 1e-6: six refusals.
    assert asked == [[0, 1]] * 7 + [[0]] * 4
    assert end.reward.tolist() == [5.0, 0.0] and end.accepted.tolist() == [10, 0]


def test_all_rows_stopped_ends_the_ascent():
    asked = []

    def energy(rows, r):
        asked.append(len(rows))
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
    embedding, start = (part.float() for part in rows(12, seed))
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
    embedding, start = rows(30)
    whole = ascend(energy_of(network, embedding), start, InferenceConfig())
    order = torch.randperm(30, generator=torch.Generator().manual_seed(0))
    shuffled = ascend(energy_of(network, embedding[order]), start[order], InferenceConfig())
    assert torch.allclose(shuffled.reward, whole.reward[order], rtol=0, atol=1e-6)
    for i in range(30):
        alone = ascend(energy_of(network, embedding[i : i + 1]), start[i : i + 1], InferenceConfig())
        assert torch.allclose(alone.reward, whole.reward[i : i + 1], rtol=0, atol=1e-6)


def test_no_rows():
    end = ascend(energy_of(small_network(), torch.zeros(0, 5)), torch.zeros(0), InferenceConfig())
    assert end.reward.shape == end.value.shape == end.accepted.shape == (0,)


def test_the_start_is_not_written_over():
    start = torch.tensor([-1.0])
    ascend(lambda _, r: (-(r**2), -2 * r), start, InferenceConfig())
    assert start.item() == -1.0


def test_where_f_is_not_a_number_nothing_moves():
    end = ascend(lambda _, r: (r * math.nan, r * math.nan), torch.tensor([0.5, -2.0]), InferenceConfig())
    assert end.reward.tolist() == [0.5, -2.0] and end.accepted.tolist() == [0, 0]


BASE = torch.tensor([-5.0, -2.0, -0.3, 1.5, 2.0, 2.5])
TRUSTED = (-1.0, 2.2)


def test_the_base_start_is_clamped_to_the_trusted_range():
    assert starting_reward(BASE, InferenceConfig(), TRUSTED).tolist() == pytest.approx([-1, -1, -0.3, 1.5, 2, 2.2])


def test_the_zero_start():
    assert torch.equal(starting_reward(BASE, InferenceConfig(start="zero"), TRUSTED), torch.zeros(6))


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


@pytest.mark.parametrize("start", ["base", "paper", "zero", "random"])
def test_no_rows_to_start(start):
    assert starting_reward(torch.zeros(0), InferenceConfig(start=start), TRUSTED).shape == (0,)
