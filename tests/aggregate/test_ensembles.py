from __future__ import annotations

import itertools
import math

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
    most_confident_head,
    neighbor_fusion,
    nominal_worst_case,
    pessimistic,
    standardized,
    uncertainty_weighted,
    worst_case,
)
from ebrm.aggregate import ensembles as module
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
def test_members_are_summed_in_float64(dtype):
    rewards = members(3).to(dtype) + 1000
    assert {number.dtype for number in member_units(rewards)} == {torch.float64}
    for combine in (ensemble_mean, uncertainty_weighted):
        assert torch.equal(combine(rewards), combine(rewards.double()).to(dtype))


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


KINDS = ["per_sample", "per_batch"]


def heads(seed, k=5, n=23):
    generator = torch.Generator().manual_seed(seed)
    mean = torch.randn(k, n, dtype=torch.float64, generator=generator)
    return mean, torch.rand(k, n, dtype=torch.float64, generator=generator) + 0.1


def test_known_answers_of_nominal():
    mean = torch.tensor([[1.0, 2.0], [3.0, 0.0], [2.0, 1.0]])
    std = torch.tensor([[0.1, 0.9], [0.2, 0.5], [0.3, 0.7]])
    assert most_confident_head(mean, std).tolist() == [1.0, 0.0]
    sample = nominal_worst_case(mean, std, 0.0)
    assert sample.tolist() == [1.0, 0.0] and float(sample.mean()) == 0.5
    # All heads have the mean 1.5: the least mean is not the mean of the least.
    assert float(nominal_worst_case(mean, std, 0.0, "per_batch").mean()) == 1.5
    lower = torch.tensor([[1.0, 2.0], [3.0, -1.0], [2.0, 1.0]])
    assert nominal_worst_case(lower, std, 0.0, "per_batch").tolist() == [3.0, -1.0]
    # Nominal: 1, then -1. Worst head: 3, -1. A quarter of the first.
    assert nominal_worst_case(lower, std, 0.25, "per_batch").tolist() == [2.5, -1.0]
    assert nominal_worst_case(torch.tensor([[4.0], [2.0]]), torch.tensor([[0.1], [0.2]]), 0.25).tolist() == [2.5]


def test_heads_that_tie_share():
    mean = torch.tensor([[1.0, 1.0], [3.0, 3.0], [8.0, 8.0]])
    std = torch.tensor([[0.5, 0.5], [0.5, 0.6], [0.7, 0.5]])
    assert most_confident_head(mean, std).tolist() == [2.0, 4.5]
    # To the last bit, whatever their order: 0.1 + 0.2 + 0.3 is not 0.3 + 0.2 + 0.1.
    three = torch.tensor([[0.1], [0.2], [0.3]], dtype=torch.float64)
    one, two = (most_confident_head(heads, torch.ones(3, 1)) for heads in (three, three.flip(0)))
    assert torch.equal(one, two)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0, 1), st.floats(0, 1))
def test_the_result_falls_with_the_weight_and_with_more_heads(seed, one, two):
    mean, std = heads(seed)
    nominal = most_confident_head(mean, std)
    low, high = (nominal_worst_case(mean, std, weight) for weight in sorted((one, two)))
    assert bool((low <= high + 1e-12).all()) and bool((high <= nominal + 1e-12).all())
    assert torch.equal(nominal_worst_case(mean, std, 0.0), worst_case(mean))
    assert nominal_worst_case(mean, std, 1.0).tolist() == pytest.approx(nominal.tolist())
    fewer = nominal_worst_case(mean[:3], std[:3], 0.0)
    assert bool((nominal_worst_case(mean, std, 0.0) <= fewer).all())
    batch = nominal_worst_case(mean, std, 0.0, "per_batch").mean()
    assert float(batch) == pytest.approx(float(mean.mean(1).min()))
    assert float(worst_case(mean).mean()) <= float(batch) + 1e-12
    assert float(batch) <= float(nominal_worst_case(mean[:3], std[:3], 0.0, "per_batch").mean()) + 1e-12


def test_per_sample_does_not_depend_on_the_other_rows_and_per_batch_does():
    mean, std = heads(0)
    whole = nominal_worst_case(mean, std)
    single = torch.cat([nominal_worst_case(mean[:, i : i + 1], std[:, i : i + 1]) for i in range(23)])
    assert torch.equal(single, whole)
    batch = nominal_worst_case(mean, std, worst_case="per_batch")
    parts = [nominal_worst_case(mean[:, i : i + 1], std[:, i : i + 1], worst_case="per_batch") for i in range(23)]
    assert torch.equal(torch.cat(parts), whole) and not torch.allclose(batch, whole)


def test_per_batch_can_exceed_the_nominal_reward():
    mean, std = torch.tensor([[0.0, 10.0], [10.0, 0.0]]), torch.tensor([[0.1, 0.9], [0.9, 0.1]])
    assert most_confident_head(mean, std).tolist() == [0.0, 0.0]
    assert float(nominal_worst_case(mean, std, 0.0, "per_batch").mean()) == 5.0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_one_head_and_identical_heads(kind, dtype):
    mean, std = heads(1, 1)
    mean, std = mean.to(dtype), std.to(dtype)
    for k in (1, 4):
        found = nominal_worst_case(mean.expand(k, -1), std.expand(k, -1), 0.3, kind)
        assert found.dtype == dtype and torch.equal(found, mean[0])
        assert torch.equal(most_confident_head(mean.expand(k, -1), std.expand(k, -1)), mean[0])


def case(seed, n=7, m=25, d=3):
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(shape, dtype=torch.float64, generator=generator) for shape in ((n, d), (n,), (m, d), (m,)))


def at(*degrees):
    angle = torch.tensor(degrees, dtype=torch.float64).deg2rad()
    return torch.stack([angle.cos(), angle.sin()], 1)


def test_known_answers_of_neighbors():
    own, reward = at(0), torch.tensor([10.0], dtype=torch.float64)
    bank, others = 3 * at(10, -20, 60), torch.tensor([1.0, 2.0, 100.0], dtype=torch.float64)
    near, next_ = math.cos(math.radians(10)), math.cos(math.radians(20))  # 0.985 and 0.940; the third is at 0.5
    expected = (10 + near * 1 + next_ * 2) / (1 + near + next_)
    assert neighbor_fusion(own, reward, bank, others).tolist() == pytest.approx([expected])
    nearest = neighbor_fusion(own, reward, bank, others, neighbors=1)
    assert nearest.tolist() == pytest.approx([(10 + near) / (1 + near)])
    assert neighbor_fusion(own, reward, bank, others, threshold=0.99).tolist() == [10.0]
    without = neighbor_fusion(own, reward, bank, others, torch.tensor([0]))
    assert without.tolist() == pytest.approx([(10 + 2 * next_) / (1 + next_)])
    assert torch.equal(
        neighbor_fusion(own, reward, bank, others, torch.tensor([-1])), neighbor_fusion(own, reward, bank, others)
    )


def test_a_text_among_themselves_is_not_its_own_neighbor():
    rows, reward = at(0, 1, 90), torch.tensor([0.0, 1.0, 5.0], dtype=torch.float64)
    cosine = math.cos(math.radians(1))
    found = neighbor_fusion(rows, reward, rows, reward, torch.arange(3))
    assert found.tolist() == pytest.approx([cosine / (1 + cosine), 1 / (1 + cosine), 5.0])
    assert neighbor_fusion(rows[:1], reward[:1], rows[:1], reward[:1], torch.tensor([0])).tolist() == [0.0]


def test_equal_embeddings_share_the_last_places():
    bank, others = at(0, 0, 0, 5), torch.tensor([1.0, 2.0, 6.0, 100.0], dtype=torch.float64)
    found = neighbor_fusion(at(0), torch.zeros(1, dtype=torch.float64), bank, others, neighbors=2)
    assert found.tolist() == pytest.approx([2 * 3.0 / 3])  # Two places, and a mean of 3 in each.
    # One direction in forty lengths: their cosines differ in the last bit, and count as equal.
    one, _, near, others = case(0, 1, 40, 16)
    bank = (one + 0.3 * near[:1]) * others.exp()[:, None]
    cosine = float(torch.nn.functional.cosine_similarity(one, bank[:1]))
    found = neighbor_fusion(one, torch.zeros(1, dtype=torch.float64), bank, others, neighbors=2)
    assert found.tolist() == pytest.approx([2 * cosine * float(others.mean()) / (1 + 2 * cosine)])


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 30), st.floats(0.05, 0.95))
def test_against_brute_force(seed, k, threshold):
    embedding, reward, bank, others = case(seed)
    found = neighbor_fusion(embedding, reward, bank, others, threshold=threshold, neighbors=k)
    for i in range(len(reward)):
        cosine = torch.nn.functional.cosine_similarity(embedding[i], bank, dim=1).numpy()
        near = [j for j in np.argsort(-cosine)[:k] if cosine[j] >= threshold]
        total = reward[i] + sum(cosine[j] * others[j] for j in near)
        assert float(found[i]) == pytest.approx(float(total / (1 + sum(cosine[j] for j in near))))
        used = torch.cat([reward[i : i + 1], others[near]])
        assert used.min() - 1e-12 <= found[i] <= used.max() + 1e-12


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(-9, 9), st.floats(0.1, 9))
def test_invariances_of_neighbors(seed, offset, scale):
    embedding, reward, bank, others = case(seed)
    options = {"threshold": 0.3, "neighbors": 4}
    found = neighbor_fusion(embedding, reward, bank, others, **options)
    moved = neighbor_fusion(embedding, scale * reward + offset, bank, scale * others + offset, **options)
    assert moved.tolist() == pytest.approx((scale * found + offset).tolist(), abs=1e-9)
    order = torch.randperm(25, generator=torch.Generator().manual_seed(seed))
    rotation = torch.linalg.qr(case(seed + 1, 3, 3)[0]).Q
    lengths = 10 ** (90 * case(seed)[1]).clamp(-250, 250)
    for other in (
        neighbor_fusion(embedding, reward, bank[order], others[order], **options),
        neighbor_fusion(embedding @ rotation, reward, bank @ rotation, others, **options),
        neighbor_fusion(embedding * lengths[:, None], reward, 5 * bank, others, **options),
        torch.cat([neighbor_fusion(embedding[[i]], reward[[i]], bank, others, **options) for i in range(7)]),
    ):
        assert other.tolist() == pytest.approx(found.tolist(), abs=1e-9)
    same = neighbor_fusion(embedding, torch.full((7,), 2.0), bank, torch.full((25,), 2.0), **options)
    assert same.tolist() == pytest.approx([2.0] * 7)


def test_parts_do_not_matter(monkeypatch):
    embedding, reward, bank, others = case(3)
    own = torch.tensor([0, -1, 24, 3, 3, -1, 1])
    whole = neighbor_fusion(embedding, reward, bank, others, own, 0.2)
    monkeypatch.setattr(module, "_CHUNK_CELLS", 60)
    assert neighbor_fusion(embedding, reward, bank, others, own, 0.2).tolist() == pytest.approx(whole.tolist())
