from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ebrm.aggregate import (
    centered,
    disagreement,
    ensemble_mean,
    ensemble_median,
    mean_minus_std,
    member_units,
    pessimistic,
    standardized,
    uncertainty_weighted,
    worst_case,
)
from ebrm.groups import Groups

COMBINE = [ensemble_mean, ensemble_median, worst_case, uncertainty_weighted, mean_minus_std]


def members(seed, k=4, n=37):
    generator = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(k, n, generator=generator) + torch.arange(k)[:, None]


def test_known_answers():
    rewards = torch.tensor([[1.0], [2.0], [3.0], [4.0], [100.0]])
    assert ensemble_mean(rewards).tolist() == [22.0]
    assert worst_case(rewards).tolist() == [1.0]
    assert ensemble_median(rewards).tolist() == [3.0] and ensemble_median(rewards[:4]).tolist() == [2.5]
    assert mean_minus_std(rewards).tolist() == pytest.approx([-17.0128], abs=1e-4)
    assert mean_minus_std(rewards, ddof=1).tolist() == pytest.approx([-21.6177], abs=1e-4)
    assert mean_minus_std(rewards, 2.0).tolist() == pytest.approx([22 - 2 * 1522**0.5])
    # Deviations -21, -20, -19, -18, 78: squares add up to 7610, the variance is 1522.
    assert uncertainty_weighted(rewards).tolist() == [22.0 - 761.0]
    assert uncertainty_weighted(rewards, 0.1).tolist() == pytest.approx([22.0 - 152.2])
    found = pessimistic(torch.tensor([22.0, 1.0]), torch.tensor([1522.0**0.5, 0.0]), 1.0)
    assert found.tolist() == pytest.approx([-17.0128, 1.0], abs=1e-4)
    assert pessimistic(torch.tensor([5.0]), torch.tensor([2.0]), 1.5).tolist() == [2.0]


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 6))
def test_against_numpy(seed, k):
    rewards = members(seed, k)
    table = rewards.double().numpy()
    assert ensemble_mean(rewards).numpy() == pytest.approx(table.mean(0), rel=1e-6, abs=1e-6)
    assert worst_case(rewards).tolist() == table.min(0).tolist()
    assert ensemble_median(rewards).numpy() == pytest.approx(np.median(table, axis=0), rel=1e-6)
    for ddof in range(min(k, 2)):
        assert disagreement(rewards, ddof).numpy() == pytest.approx(table.std(0, ddof=ddof), rel=1e-5, abs=1e-12)
        expected = table.mean(0) - 0.7 * table.std(0, ddof=ddof)
        assert mean_minus_std(rewards, 0.7, ddof).numpy() == pytest.approx(expected, rel=1e-5, abs=1e-5)
    expected = table.mean(0) - 0.3 * table.var(0)
    assert uncertainty_weighted(rewards, 0.3).numpy() == pytest.approx(expected, rel=1e-6, abs=1e-5)
    mean, std = member_units(rewards)
    assert mean.numpy() == pytest.approx(table.mean(1)) and std.numpy() == pytest.approx(table.std(1))


@pytest.mark.parametrize("combine", COMBINE)
def test_one_member_and_equal_members_stay_as_they_are(combine):
    one = members(1, 1)
    assert torch.equal(combine(one), one[0])
    assert torch.equal(combine(one.expand(4, -1)), one[0])
    equal = torch.full((3, 2), 0.1, dtype=torch.float64)
    assert disagreement(equal).tolist() == [0.0, 0.0] and disagreement(one).count_nonzero() == 0


@pytest.mark.parametrize("combine", COMBINE)
def test_nothing_depends_on_the_order_of_members_or_on_the_other_rows(combine):
    rewards = members(2, 4, 53).double() * 1e3
    whole = combine(rewards)
    for order in itertools.permutations(range(4)):
        assert torch.equal(combine(rewards[list(order)]), whole)
    single = torch.cat([combine(rewards[:, i : i + 1]) for i in range(53)])
    assert torch.equal(single, whole)
    for one, two in zip(member_units(rewards), member_units(rewards.flip(1)), strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_rewards_keep_their_type_and_are_summed_in_float64(dtype):
    rewards = members(3).to(dtype)
    for combine in COMBINE:
        assert combine(rewards).dtype == dtype
    mean, std = member_units(rewards)
    assert mean.dtype == std.dtype == torch.float64
    assert standardized(rewards, mean, std).dtype == dtype
    assert pessimistic(rewards[0], rewards[1].abs()).dtype == dtype
    for combine in (ensemble_mean, uncertainty_weighted):
        assert torch.equal(combine(rewards + 1000), combine((rewards + 1000).double()).to(dtype))
    assert ensemble_mean(torch.tensor([[1], [2]])).tolist() == [1.5]  # Whole numbers do not stay so.


def test_standardized_members_have_common_units():
    rewards = members(4)
    moved = rewards * torch.tensor([1.0, 10.0, 0.1, 3.0])[:, None] + torch.tensor([0.0, -5.0, 100.0, 1.0])[:, None]
    same, other = (standardized(r.double(), *member_units(r)) for r in (rewards, moved))
    assert other.numpy() == pytest.approx(same.numpy(), abs=1e-4)
    assert same.mean(1).numpy() == pytest.approx(np.zeros(4), abs=1e-12)
    assert same.square().mean(1).numpy() == pytest.approx(np.ones(4))
    by_hand = standardized(torch.tensor([[1.0, 5.0], [4.0, 0.0]]), torch.tensor([1.0, 2.0]), torch.tensor([2.0, 4.0]))
    assert by_hand.tolist() == [[0.0, 2.0], [0.5, -0.5]]
    # What it is for: an offset alone decides the worst case before, and nothing after.
    assert torch.equal(worst_case(moved)[:5], moved.amin(0)[:5])
    assert worst_case(other).numpy() == pytest.approx(worst_case(same).numpy(), abs=1e-4)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_centered_members_do_not_depend_on_their_offsets(seed):
    groups = Groups.of([f"{i % 7}" for i in range(36)] + ["alone"])
    rewards = members(seed).double()
    generator = torch.Generator().manual_seed(seed)
    moved = rewards + 50 * torch.randn(4, 8, dtype=torch.float64, generator=generator)[:, groups.index]
    found = centered(rewards, groups)
    assert centered(moved, groups).numpy() == pytest.approx(found.numpy(), abs=1e-10)
    for member in found:
        assert groups.mean(member).numpy() == pytest.approx(np.zeros(8), abs=1e-12)
    assert found[:, -1].tolist() == [0.0] * 4
    for combine in COMBINE:
        assert combine(centered(moved, groups)).numpy() == pytest.approx(combine(found).numpy(), abs=1e-9)
    order = torch.randperm(37, generator=generator)
    mixed = centered(rewards[:, order], Groups(groups.index[order], groups.count))
    assert mixed.numpy() == pytest.approx(found[:, order].numpy(), abs=1e-12)


def test_what_centering_is_for():
    # Two members, two responses: both prefer the first, and the second member's offset turns the worst case round.
    rewards, groups = torch.tensor([[1.0, 0.0], [-4.0, -7.0]]), Groups.of([0, 0])
    moved = rewards + torch.tensor([[0.0, 0.0], [6.0, 6.0]])
    assert worst_case(rewards).tolist() == [-4.0, -7.0] and worst_case(moved).tolist() == [1.0, -1.0]
    assert ensemble_median(rewards).argmax() == 0
    assert centered(rewards, groups).tolist() == [[0.5, -0.5], [1.5, -1.5]]
    assert worst_case(centered(moved, groups)).tolist() == [0.5, -1.5]


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0, 3), st.floats(-50, 50))
def test_worst_case_and_weighted_are_at_most_the_mean_and_move_with_an_offset(
    seed: int, weight: float, offset: float
) -> None:
    rewards = members(seed).double()
    mean = ensemble_mean(rewards)
    assert bool((worst_case(rewards) <= mean).all()) and bool((uncertainty_weighted(rewards, weight) <= mean).all())
    assert torch.equal(uncertainty_weighted(rewards, 0.0), mean) and torch.equal(mean_minus_std(rewards, 0.0), mean)
    assert bool((mean_minus_std(rewards, weight) <= mean).all())
    for combine in COMBINE:
        assert combine(rewards + offset).numpy() == pytest.approx((combine(rewards) + offset).numpy(), abs=1e-9)
        scaled = combine(4 * rewards).numpy() == pytest.approx((4 * combine(rewards)).numpy())
        assert scaled == (combine is not uncertainty_weighted)


def test_an_offset_of_one_member_changes_the_order_of_rows_unless_it_is_a_mean():
    rewards = torch.tensor([[0.0, 1.0], [3.0, 0.5], [4.0, 2.5]])
    moved = rewards + torch.tensor([[0.0], [0.0], [-9.0]])
    for combine, kept in ((ensemble_mean, True), (ensemble_median, False), (worst_case, False)):
        assert (combine(rewards).argmax() == combine(moved).argmax()) == kept, combine


def centred_alone(rewards):
    return centered(rewards, Groups.of(range(rewards.shape[-1])))
