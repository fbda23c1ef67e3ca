from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import zscore

from ebrm.groups import Groups
from ebrm.optimize import attribute_advantage, group_advantage, leave_one_out_advantage

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


@settings(max_examples=25)
@given(st.integers(0, 2**32 - 1), st.floats(-1e3, 1e3), st.floats(0.1, 50))
def test_invariances(seed, offset, scale):
    reward, attribute, index = draws(seed, 40), draws(seed + 1, 40, 3), torch.arange(40) % 7
    groups, weight = Groups(index, 9), doubles(1.0, 0.5, -2.0)  # Two groups are empty.
    order = torch.randperm(40, generator=torch.Generator().manual_seed(seed))
    mixed = Groups(index[order], 9)
    moves = (offset * draws(seed + 2, 9))[index]
    scales = (scale * draws(seed + 3, 9).abs() + 0.01)[index]

    def close(a, b):
        return torch.allclose(a, b, rtol=1e-7, atol=1e-7)

    standardized = group_advantage(reward, groups, eps=0.0)
    centered = group_advantage(reward, groups, divide_by_std=False)
    alone = leave_one_out_advantage(reward, groups)
    assert close(group_advantage(reward * scales + moves, groups, eps=0.0), standardized)
    assert close(group_advantage(reward * scales + moves, groups, divide_by_std=False), centered * scales)
    assert close(leave_one_out_advantage(reward * scales + moves, groups), alone * scales)
    assert close(group_advantage(reward[order], mixed, eps=0.0), standardized[order])
    assert close(leave_one_out_advantage(reward[order], mixed), alone[order])
    total = attribute_advantage(attribute, groups, "sum", weight, eps=0.0)
    each = attribute_advantage(attribute, groups, "per_attribute", weight, eps=0.0)
    for found in (standardized, centered, alone, total, each):
        assert groups.sum(found).tolist() == pytest.approx([0.0] * 9, abs=1e-10)
    moved = attribute + moves[:, None]
    assert close(attribute_advantage(moved, groups, "sum", weight, eps=0.0), total)
    assert close(attribute_advantage(moved, groups, "per_attribute", weight, eps=0.0), each)
    assert close(attribute_advantage(attribute[order], mixed, "sum", weight, eps=0.0), total[order])
    assert close(attribute_advantage(attribute[order], mixed, "per_attribute", weight, eps=0.0), each[order])
    # An attribute of its own scale in every group, and all attributes of another scale together.
    stretched = torch.stack([attribute[:, 0] * scales, attribute[:, 1], attribute[:, 2]], 1)
    assert close(attribute_advantage(stretched, groups, "per_attribute", weight, eps=0.0), each)
    assert not close(attribute_advantage(stretched, groups, "sum", weight, eps=0.0), total)
    assert close(attribute_advantage(attribute * scales[:, None], groups, "sum", weight, eps=0.0), total)


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


def test_types_and_no_rows():
    assert leave_one_out_advantage(torch.tensor([0, 1]), one(2)).tolist() == [-1.0, 1.0]
    none = Groups(torch.empty(0, dtype=torch.int64), 2)
    assert group_advantage(torch.empty(0), none).shape == leave_one_out_advantage(torch.empty(0), none).shape == (0,)
    assert attribute_advantage(torch.empty(0, 2), none, "per_attribute").shape == (0,)
