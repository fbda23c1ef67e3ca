from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import logsumexp, softmax
from scipy.stats import zscore

from ebrm.groups import Groups
from ebrm.optimize import (
    attribute_advantage,
    best_of_n_gold,
    contrastive_subsample,
    group_advantage,
    leave_one_out_advantage,
    reward_ranked_local,
    reward_ranked_top,
    soft_plackett_luce,
)

ROWS = st.lists(st.tuples(st.integers(0, 4), st.integers(-20, 20)), min_size=1, max_size=30)


def doubles(*values):
    return torch.tensor(values, dtype=torch.float64)


def draws(seed, *shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def one(n):
    return Groups.of([0] * n)


def test_known_answers():
    reward = doubles(1.0, 2.0, 3.0)
    assert group_advantage(reward, one(3)).tolist() == pytest.approx([-1.2247449, 0, 1.2247449])
    assert group_advantage(reward, one(3), ddof=1).tolist() == pytest.approx([-1, 0, 1])
    assert group_advantage(reward, one(3), divide_by_std=False).tolist() == [-1, 0, 1]
    assert group_advantage(reward, one(3), ddof=1, eps=1.0).tolist() == pytest.approx([-0.5, 0, 0.5])
    assert leave_one_out_advantage(reward, one(3)).tolist() == pytest.approx([1 - 2.5, 0, 3 - 1.5])


@given(ROWS, st.sampled_from([0, 1]))
def test_each_group_by_hand(rows: list[tuple[int, int]], ddof):
    ids, reward = [row[0] for row in rows], doubles(*(float(row[1]) for row in rows))
    groups = Groups.of(ids)
    standardized = group_advantage(reward, groups, ddof=ddof, eps=0.0)
    centered = group_advantage(reward, groups, divide_by_std=False)
    alone = leave_one_out_advantage(reward, groups)
    for name in set(ids):
        where = [i for i, id in enumerate(ids) if id == name]
        some = reward[where]
        if bool((some == some[0]).all()):
            for found in (standardized, centered, alone):
                assert found[where].tolist() == [0.0] * len(where)
            continue
        assert standardized[where].tolist() == pytest.approx(zscore(some.numpy(), ddof=ddof).tolist())
        assert centered[where].tolist() == pytest.approx((some - some.mean()).tolist())
        others = [(some.sum() - r) / (len(where) - 1) for r in some]
        assert alone[where].tolist() == pytest.approx([float(r - o) for r, o in zip(some, others, strict=True)])


def test_a_large_attribute_swamps_the_sum_alone():
    attribute, groups = draws(3, 8, 2), one(8)
    large = attribute * doubles(1000.0, 1.0)
    first = group_advantage(attribute[:, 0], groups)
    assert torch.allclose(attribute_advantage(large, groups, "sum"), first, atol=0.01)
    assert torch.allclose(
        attribute_advantage(large, groups, "per_attribute"), attribute_advantage(attribute, groups, "per_attribute")
    )
    assert not torch.allclose(attribute_advantage(attribute, groups, "sum"), first, atol=0.1)


def test_one_attribute_is_the_reward():
    reward, groups = draws(4, 12), Groups(torch.arange(12) % 3, 3)
    for normalize in ("sum", "per_attribute"):
        for ddof in (0, 1):
            found = attribute_advantage(reward[:, None], groups, normalize, ddof=ddof)
            assert torch.equal(found, group_advantage(reward, groups, ddof=ddof))


def test_weights_before_and_after():
    attribute, weight, groups = draws(6, 12, 3), doubles(2.0, -0.5, 0.0), Groups(torch.arange(12) % 3, 3)
    total = attribute_advantage(attribute, groups, "sum", weight)
    assert torch.allclose(total, group_advantage(2 * attribute[:, 0] - attribute[:, 1] / 2, groups))
    each = attribute_advantage(attribute, groups, "per_attribute", weight)
    first, second = (group_advantage(attribute[:, column], groups) for column in (0, 1))
    assert torch.allclose(each, 2 * first - second / 2)


def test_steps_are_groups_of_prompt_and_step():
    score = draws(5, 6, 4)  # Six responses to two prompts, of four steps.
    prompt = torch.tensor([0, 0, 0, 1, 1, 1])
    found = group_advantage(score.flatten(), Groups((prompt[:, None] * 4 + torch.arange(4)).flatten(), 8)).view(6, 4)
    for step in range(4):
        assert torch.allclose(found[:, step], group_advantage(score[:, step], Groups(prompt, 2)))


def test_equal_rewards_have_advantage_zero_exactly():
    reward, groups = torch.full((7,), 0.1, dtype=torch.float64), Groups(torch.tensor([0, 0, 0, 1, 1, 1, 3]), 5)
    for ddof in (0, 1):
        for eps in (0.0, 1e-8):
            assert group_advantage(reward, groups, ddof=ddof, eps=eps).tolist() == [0.0] * 7
    assert leave_one_out_advantage(reward, groups).tolist() == [0.0] * 7
    for normalize in ("sum", "per_attribute"):
        assert attribute_advantage(reward[:, None], groups, normalize, eps=0.0).tolist() == [0.0] * 7


SELECTION_ROWS = st.lists(st.tuples(st.integers(0, 4), st.integers(-4, 4)), min_size=1, max_size=30)


def test_known_answers_of_selection():
    reward = torch.tensor([3.0, 9, 1, 4, 8, 0, 7, 2, 6, 5])
    groups = Groups(torch.arange(10) // 5, 2)
    top = reward_ranked_top(reward, groups)
    assert top.rows.tolist() == [1, 4] and top.coverage == 0.5  # The best two are of one prompt: the other starves.
    local = reward_ranked_local(reward, groups)
    assert local.rows.tolist() == [1, 6] and local.coverage == 1.0
    assert reward_ranked_top(reward, groups, 1.0).rows.tolist() == list(range(10))
    assert reward_ranked_local(reward, groups, 2).rows.tolist() == [1, 4, 6, 8]
    assert contrastive_subsample(reward, groups, 2).rows.tolist() == [1, 2, 5, 6]
    assert contrastive_subsample(reward, groups, 3).rows.tolist() == [1, 2, 4, 5, 6, 8]  # One more of the best.
    assert contrastive_subsample(reward, groups, 5).rows.tolist() == list(range(10))
    assert len(reward_ranked_top(draws(0, 100), Groups.of([0] * 100), 0.29).rows) == 29  # 0.29 * 100 is 28.999…
    assert len(reward_ranked_top(draws(0, 99), Groups.of([0] * 99), 0.2).rows) == 19


@given(SELECTION_ROWS, st.floats(0.05, 1), st.integers(2, 6))
def test_by_hand(rows: list[tuple[int, int]], share, keep):
    ids, reward = [row[0] for row in rows], torch.tensor([float(row[1]) for row in rows])
    groups, n = Groups.of(ids), len(rows)
    ranked = sorted(range(n), key=lambda i: (-rows[i][1], i))
    if share * n >= 1:
        top = reward_ranked_top(reward, groups, share)
        assert top.rows.tolist() == sorted(ranked[: int(share * n + 1e-9)])
        assert top.coverage == pytest.approx(len({ids[i] for i in top.rows.tolist()}) / len(set(ids)))
        assert float(reward[top.rows].mean()) >= float(reward.mean()) - 1e-6
    best, ends = [], []
    for name in set(ids):
        of = [i for i in ranked if ids[i] == name]
        best += of[:keep]
        ends += of if len(of) <= keep else of[: math.ceil(keep / 2)] + of[len(of) - keep // 2 :]
    local, contrast = reward_ranked_local(reward, groups, keep), contrastive_subsample(reward, groups, keep)
    assert local.rows.tolist() == sorted(best) and contrast.rows.tolist() == sorted(ends)
    assert local.coverage == contrast.coverage == 1.0


def test_ties_go_to_the_first():
    reward, groups = torch.ones(6), Groups(torch.tensor([0, 1, 0, 1, 0, 1]), 2)
    assert reward_ranked_top(reward, groups, 0.5).rows.tolist() == [0, 1, 2]
    assert reward_ranked_local(reward, groups).rows.tolist() == [0, 1]
    assert contrastive_subsample(reward, groups, 2).rows.tolist() == [0, 1, 4, 5]


def test_the_expected_reward_of_what_is_kept_is_that_of_best_of_n():
    pool = draws(1, 4)
    draws_of = torch.tensor(list(product(range(4), repeat=2)))
    draws_of = draws_of[draws_of[:, 0] != draws_of[:, 1]]
    reward, groups = pool[draws_of].flatten(), Groups(torch.arange(len(draws_of)).repeat_interleave(2), len(draws_of))
    kept = reward[reward_ranked_local(reward, groups).rows].mean()
    assert float(kept) == pytest.approx(best_of_n_gold(pool[None].numpy(), pool[None].numpy())[0, 1])


def test_few_rows():
    single = Groups(torch.tensor([2]), 4)  # One row, three prompts without any.
    for found in (
        reward_ranked_top(torch.zeros(1), single, 1.0),
        reward_ranked_local(torch.zeros(1), single),
        contrastive_subsample(torch.zeros(1), single, 2),
    ):
        assert found.rows.tolist() == [0] and found.coverage == 1.0
    none = Groups(torch.empty(0, dtype=torch.int64), 0)
    for found in (reward_ranked_top(torch.empty(0), none), reward_ranked_local(torch.empty(0), none)):
        assert found.rows.tolist() == [] and math.isnan(found.coverage)


LISTWISE_ROWS = st.lists(
    st.tuples(st.integers(0, 4), st.floats(-5, 5), st.sampled_from([-1.0, 0.0, 0.1, 0.5, 2.0])), min_size=1, max_size=25
)


def by_hand(score, reward, temperature):
    """Sum over the choices, all responses of equal reward being left until the last of them is chosen."""
    order = np.argsort(-reward, kind="stable")
    score, reward = score[order], reward[order]
    total = 0.0
    for i in range(len(order) - 1):
        left = reward <= reward[i]
        total += logsumexp(score[left]) - softmax(reward[left] / temperature) @ score[left]
    return total


def test_known_answers_of_listwise():
    pair = soft_plackett_luce(doubles(0.3, -0.4), doubles(2.0, 1.0), one(2), 1e-3)
    assert pair.tolist() == pytest.approx([0.4031861], abs=1e-7)
    assert pair.item() == pytest.approx(math.log1p(math.exp(-0.7)))  # -log σ(0.7), Bradley-Terry
    soft = soft_plackett_luce(doubles(0.3, -0.4), doubles(0.1, 0.0), one(2))  # q = σ(2)
    q = 1 / (1 + math.exp(-2))
    assert soft.item() == pytest.approx(np.logaddexp(0.3, -0.4) - 0.3 * q + 0.4 * (1 - q))
    score = draws(0, 5)
    found = soft_plackett_luce(score, torch.arange(5).flip(0).double(), one(5), 1e-3)  # Plackett-Luce
    assert found.item() == pytest.approx(sum(logsumexp(score[i:].numpy()) - float(score[i]) for i in range(4)))


@settings(max_examples=40)
@given(LISTWISE_ROWS, st.sampled_from([0.05, 1.0, 30.0]))
def test_each_group_by_hand_of_listwise(rows: list[tuple[int, float, float]], temperature):
    ids, score, reward = ([row[i] for row in rows] for i in range(3))
    found = soft_plackett_luce(doubles(*score), doubles(*reward), Groups.of(ids), temperature)
    for number, name in enumerate(dict.fromkeys(ids)):
        of = [i for i, id in enumerate(ids) if id == name]
        expected = by_hand(np.array(score)[of], np.array(reward)[of], temperature)
        assert float(found[number]) == pytest.approx(expected, abs=1e-9)
    assert bool((found >= -1e-12).all())


def test_gradients():
    score = draws(2, 9).requires_grad_()
    reward, groups = doubles(1, 0, 0, 2, 1, 1, 3, 0, 2), Groups(torch.tensor([0, 0, 0, 0, 0, 1, 1, 2, 4]), 5)
    for temperature in (0.05, 0.7, 10.0):
        assert torch.autograd.gradcheck(lambda s, t=temperature: soft_plackett_luce(s, reward, groups, t), score)
    rewards = reward.clone().requires_grad_()
    loss = soft_plackett_luce(score, rewards, groups).sum()
    loss.backward()
    assert rewards.grad is None and score.grad is not None and bool(score.grad.isfinite().all())
    assert groups.sum(score.grad).tolist() == pytest.approx([0.0] * 5, abs=1e-12)


def test_equal_rewards_want_equal_scores():
    equal = torch.full((4,), 0.7, dtype=torch.float64).requires_grad_()
    least = soft_plackett_luce(equal, torch.ones(4), one(4))
    least.sum().backward()
    assert least.item() == pytest.approx(3 * math.log(4)) and equal.grad is not None
    assert equal.grad.tolist() == pytest.approx([0.0] * 4, abs=1e-12)
    for seed in range(5):
        assert soft_plackett_luce(draws(seed, 4), torch.ones(4), one(4)).item() > least.item()


def test_extremes_stay_finite():
    score, reward = doubles(1e4, -1e4, 0.0).requires_grad_(), doubles(-1e6, 1e6, 0.0)
    loss = soft_plackett_luce(score, reward, one(3))
    loss.sum().backward()
    assert loss.item() == pytest.approx(2e4 + 1e4) and score.grad is not None and bool(score.grad.isfinite().all())


def test_few_rows_and_types():
    found = soft_plackett_luce(torch.ones(3), torch.ones(3), Groups(torch.tensor([1, 3, 3]), 5))
    assert found.tolist() == pytest.approx([0, 0, 0, math.log(2), 0]) and found.dtype == torch.float32
    assert soft_plackett_luce(torch.empty(0), torch.empty(0), Groups.of([])).shape == (0,)
    assert soft_plackett_luce(torch.ones(2, dtype=torch.bfloat16), torch.ones(2), one(2)).dtype == torch.bfloat16
