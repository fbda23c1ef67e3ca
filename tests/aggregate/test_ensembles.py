from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ebrm.aggregate.ensembles import (
    ensemble_mean,
    member_units,
    pessimistic,
    standardised,
    uncertainty_weighted,
    worst_case,
)
from ebrm.errors import DataError, SettingsError

COMBINE = [ensemble_mean, worst_case, uncertainty_weighted]


def members(seed: int, k: int = 4, n: int = 37) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(k, n, generator=generator) + torch.arange(k)[:, None]


def test_known_answers() -> None:
    rewards = torch.tensor([[1.0], [2.0], [3.0], [4.0], [100.0]])
    assert ensemble_mean(rewards).tolist() == [22.0]
    assert worst_case(rewards).tolist() == [1.0]
    # Deviations -21, -20, -19, -18, 78: squares add up to 7610, the variance is 1522.
    assert uncertainty_weighted(rewards).tolist() == [22.0 - 761.0]
    assert uncertainty_weighted(rewards, 0.1).tolist() == pytest.approx([22.0 - 152.2])
    found = pessimistic(torch.tensor([22.0, 1.0]), torch.tensor([1522.0**0.5, 0.0]), 1.0)
    assert found.tolist() == pytest.approx([-17.0128, 1.0], abs=1e-4)
    assert pessimistic(torch.tensor([5.0]), torch.tensor([2.0]), 1.5).tolist() == [2.0]


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 6))
def test_against_numpy(seed: int, k: int) -> None:
    rewards = members(seed, k)
    table = rewards.double().numpy()
    assert ensemble_mean(rewards).numpy() == pytest.approx(table.mean(0), rel=1e-6, abs=1e-6)
    assert worst_case(rewards).tolist() == table.min(0).tolist()
    expected = table.mean(0) - 0.3 * table.var(0)
    assert uncertainty_weighted(rewards, 0.3).numpy() == pytest.approx(expected, rel=1e-6, abs=1e-5)
    mean, std = member_units(rewards)
    assert mean.numpy() == pytest.approx(table.mean(1)) and std.numpy() == pytest.approx(table.std(1))


@pytest.mark.parametrize("combine", COMBINE)
def test_one_member_and_equal_members_stay_as_they_are(combine) -> None:
    one = members(1, 1)
    assert torch.equal(combine(one), one[0])
    assert torch.equal(combine(one.expand(4, -1)), one[0])


@pytest.mark.parametrize("combine", COMBINE)
def test_nothing_depends_on_the_order_of_members_or_on_the_other_rows(combine) -> None:
    rewards = members(2, 4, 53).double() * 1e3
    whole = combine(rewards)
    for order in itertools.permutations(range(4)):
        assert torch.equal(combine(rewards[list(order)]), whole)
    single = torch.cat([combine(rewards[:, i : i + 1]) for i in range(53)])
    assert torch.equal(single, whole)
    for one, two in zip(member_units(rewards), member_units(rewards.flip(1)), strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_rewards_keep_their_type_and_are_summed_in_float64(dtype: torch.dtype) -> None:
    rewards = members(3).to(dtype)
    for combine in COMBINE:
        assert combine(rewards).dtype == dtype
    mean, std = member_units(rewards)
    assert mean.dtype == std.dtype == torch.float64
    assert standardised(rewards, mean, std).dtype == dtype
    assert pessimistic(rewards[0], rewards[1].abs()).dtype == dtype
    for combine in (ensemble_mean, uncertainty_weighted):
        assert torch.equal(combine(rewards + 1000), combine((rewards + 1000).double()).to(dtype))


def test_standardised_members_have_common_units() -> None:
    rewards = members(4)
    moved = rewards * torch.tensor([1.0, 10.0, 0.1, 3.0])[:, None] + torch.tensor([0.0, -5.0, 100.0, 1.0])[:, None]
    same, other = (standardised(r.double(), *member_units(r)) for r in (rewards, moved))
    assert other.numpy() == pytest.approx(same.numpy(), abs=1e-4)
    assert same.mean(1).numpy() == pytest.approx(np.zeros(4), abs=1e-12)
    assert same.square().mean(1).numpy() == pytest.approx(np.ones(4))
    by_hand = standardised(torch.tensor([[1.0, 5.0], [4.0, 0.0]]), torch.tensor([1.0, 2.0]), torch.tensor([2.0, 4.0]))
    assert by_hand.tolist() == [[0.0, 2.0], [0.5, -0.5]]
    # What it is for: an offset alone decides the worst case before, and nothing after.
    assert torch.equal(worst_case(moved)[:5], moved.amin(0)[:5])
    assert worst_case(other).numpy() == pytest.approx(worst_case(same).numpy(), abs=1e-4)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0, 3), st.floats(-50, 50))
def test_worst_case_and_weighted_are_at_most_the_mean_and_move_with_an_offset(
    seed: int, weight: float, offset: float
) -> None:
    rewards = members(seed).double()
    mean = ensemble_mean(rewards)
    assert bool((worst_case(rewards) <= mean).all()) and bool((uncertainty_weighted(rewards, weight) <= mean).all())
    assert torch.equal(uncertainty_weighted(rewards, 0.0), mean)
    for combine in COMBINE:
        assert combine(rewards + offset).numpy() == pytest.approx((combine(rewards) + offset).numpy(), abs=1e-9)


@pytest.mark.parametrize("combine", [*COMBINE, member_units])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_rewards_that_are_no_numbers_are_named(combine, bad: float) -> None:
    rewards = members(5)
    rewards[2, 7] = bad
    with pytest.raises(DataError, match=rf"1 of 148 .*\({bad}\) of member 2 in row 7"):
        combine(rewards)


@pytest.mark.parametrize("combine", [*COMBINE, member_units])
@pytest.mark.parametrize("shape", [(5,), (2, 3, 4), (0, 3), (3, 0)])
def test_shapes_are_checked(combine, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"\[k, n\]"):
        combine(torch.ones(shape))


def test_members_without_a_scale_are_named() -> None:
    rewards = members(6)
    rewards[1] = 0.1
    with pytest.raises(DataError, match="Member 1 .* all 37 rows the same reward"):
        member_units(rewards)
    good = torch.ones(4)
    for mean, std in (
        (good, torch.tensor([1.0, 0.0, 1.0, 1.0])),
        (good, torch.tensor([1.0, -1.0, 1.0, 1.0])),
        (good, torch.tensor([1.0, float("inf"), 1.0, 1.0])),
        (torch.tensor([1.0, float("nan"), 1.0, 1.0]), good),
    ):
        with pytest.raises(DataError, match="Member 1 "):
            standardised(rewards, mean, std)
    for mean, std in ((torch.ones(3), good), (good, torch.ones(3)), (good[:, None], good)):
        with pytest.raises(ValueError, match="4 members"):
            standardised(rewards, mean, std)


@pytest.mark.parametrize("weight", [-0.1, float("nan"), float("inf")])
def test_weights_are_checked(weight: float) -> None:
    with pytest.raises(SettingsError, match="weight of the variance"):
        uncertainty_weighted(members(7), weight)
    with pytest.raises(SettingsError, match="weight of the standard deviation"):
        pessimistic(torch.ones(2), torch.ones(2), weight)


def test_pessimism_needs_a_deviation_of_every_row() -> None:
    mean, std = torch.ones(4), torch.ones(4)
    for bad in (-1.0, float("nan"), float("inf")):
        wrong = std.clone()
        wrong[2:] = bad
        with pytest.raises(DataError, match="2 of 4 .* row 2"):
            pessimistic(mean, wrong)
    with pytest.raises(DataError, match="1 of 4 .* row 0"):
        pessimistic(torch.tensor([float("nan"), 1, 1, 1]), std)
    for wrong in (torch.ones(3), torch.ones(1, 4)):
        with pytest.raises(ValueError, match=r"\[n\]"):
            pessimistic(mean, wrong)
