from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist
from scipy.special import expit

from ebrm.groups import Groups
from ebrm.shape import (
    difficulty_weighted_checks,
    hardness_scale,
    hardness_scaled_advantage,
    process_clip,
    process_delta,
    process_return,
    separability,
)

ROWS = st.lists(st.tuples(st.integers(0, 5), st.floats(0, 1)), min_size=1, max_size=30)


def doubles(*values):
    return torch.tensor(values, dtype=torch.float64)


def one(n):
    return Groups.of([0] * n)


def test_known_answers():
    score = doubles(0.9, 0.8, 0.4, 0.7)
    delta = process_delta(score, one(4))
    assert delta.tolist() == pytest.approx([0.1, 0.4, 0.4, 0.0]) and float(delta.sum()) == pytest.approx(0.9)
    clip = process_clip(score, 0.6)
    assert clip.tolist() == pytest.approx([0.0, 0.0, -0.2, 0.0])
    assert process_delta(clip, one(4)).tolist() == pytest.approx([0.0, 0.2, -0.2, 0.0])  # Clip, then delta.
    assert process_return(clip, one(4), doubles(1.0), 0.5).tolist() == pytest.approx([0.9])
    assert process_delta(doubles(0.7), one(1)).tolist() == [0.0]
    assert process_delta(doubles(0.7, 0.2), one(2)).tolist() == [0.7, 0.0]
    assert process_delta(doubles(0.7, 0.2, 0.9), one(3)).tolist() == pytest.approx([0.5, 0.2, 0.0])


@given(ROWS)
def test_delta_of_each_response_by_hand(rows: list[tuple[int, float]]):
    ids, score = [row[0] for row in rows], doubles(*(row[1] for row in rows))
    found = process_delta(score, Groups.of(ids))
    for name in set(ids):
        where = [i for i, id in enumerate(ids) if id == name]
        q = score[where].tolist()
        expected = [a - b for a, b in zip(q[:-2], q[1:-1], strict=True)] + q[-2:-1] + [0.0]
        assert found[where].tolist() == pytest.approx(expected)
        for k in range(len(q) - 1):  # Telescoping: what is left from step k on is its score.
            assert float(found[where][k:].sum()) == pytest.approx(q[k])


def test_repeating_a_step_does_not_pay():
    success = doubles(1.0)
    for repeats in range(2, 6):
        score = torch.full((repeats,), 0.9, dtype=torch.float64)
        assert process_return(process_delta(score, one(repeats)), one(repeats), success).item() == pytest.approx(1.9)
        assert process_return(process_clip(score, 0.5), one(repeats), success).item() == 1.0
        assert process_return(process_clip(score, 0.95), one(repeats), success).item() <= 1.0
        assert process_return(score, one(repeats), success).item() == pytest.approx(1 + 0.9 * repeats)  # Plain scores.


def test_few_steps_and_types():
    groups = Groups(torch.tensor([2, 2]), 4)
    found = process_return(doubles(0.25, 0.5), groups, doubles(1.0, 0.0, 1.0, 0.5), 2.0)
    assert found.tolist() == [1.0, 0.0, 2.5, 0.5]
    none = Groups(torch.empty(0, dtype=torch.int64), 0)
    assert process_delta(torch.empty(0), none).shape == process_clip(torch.empty(0), 0.0).shape == (0,)


def table(*rows):
    return torch.tensor([[mark == "x" for mark in row] for row in rows])


def random(seed, n, t):
    return torch.rand(n, t, generator=torch.Generator().manual_seed(seed)) < 0.6


def test_known_answers_of_checks():
    # Equal pass rates: the share that is passed.
    assert difficulty_weighted_checks(table("x.", ".x"), one(2)).tolist() == [0.5, 0.5]
    found = difficulty_weighted_checks(table("xxx", "x..", "xx.", "..."), one(4), smoothing=0.0)
    rates = np.array([3, 2, 1]) / 4
    weights = (1 - rates) / (1 - rates).sum()
    assert found.tolist() == pytest.approx([1.0, weights[0], weights[0] + weights[1], 0.0])
    assert found[0] == 1.0 and found[3] == 0.0
    assert difficulty_weighted_checks(table("xx", "xx"), one(2), smoothing=0.0).tolist() == [1.0, 1.0]
    # What all pass counts little; with smoothing, a little.
    assert difficulty_weighted_checks(table("x.", "x."), one(2), smoothing=0.0).tolist() == [0.0, 0.0]
    assert difficulty_weighted_checks(table("x.", "x."), one(2), smoothing=1.0).tolist() == pytest.approx(
        [1 / 3, 1 / 3]
    )


@settings(max_examples=25)
@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.floats(0, 1))
def test_each_prompt_by_hand(seed, t, smoothing):
    passed, index = random(seed, 14, t), torch.arange(14) % 4
    found = difficulty_weighted_checks(passed, Groups(index, 5), smoothing=smoothing)  # Prompt 4 has no responses.
    for prompt in range(4):
        rows = passed[index == prompt].double().numpy()
        weights = 1 - rows.mean(0) + smoothing
        expected = rows @ weights / max(weights.sum(), 1e-300)
        expected[rows.all(1)] = 1
        assert found[index == prompt].tolist() == pytest.approx(expected.tolist(), abs=1e-6)
    full = passed.all(1)
    assert bool((found[full] == 1).all()) and bool((found[~full] < 1).all()) and bool((found >= 0).all())


@settings(max_examples=20)
@given(st.integers(0, 2**32 - 1))
def test_order_padding_and_other_prompts(seed):
    passed, index = random(seed, 18, 5), torch.arange(18) % 3
    groups, found = Groups(index, 3), difficulty_weighted_checks(passed, Groups(index, 3))
    generator = torch.Generator().manual_seed(seed)
    rows, columns = torch.randperm(18, generator=generator), torch.randperm(5, generator=generator)
    assert torch.allclose(difficulty_weighted_checks(passed[:, columns], groups), found)
    assert torch.allclose(difficulty_weighted_checks(passed[rows], Groups(index[rows], 3)), found[rows])
    for filler in (torch.zeros(18, 2), torch.ones(18, 2)):
        wider = torch.cat([filler.bool(), passed], 1)
        present = torch.tensor([False, False, True, True, True, True, True]).expand(3, 7)
        assert torch.allclose(difficulty_weighted_checks(wider, groups, present=present), found)
    alone = difficulty_weighted_checks(passed[index == 1], one(6))
    assert torch.allclose(alone, found[index == 1])
    # Each prompt with checks of its own number.
    present = torch.tensor([[True] * 5, [True] * 2 + [False] * 3, [True] * 5])
    fewer = difficulty_weighted_checks(passed, groups, present=present)
    assert torch.allclose(fewer[index == 1], difficulty_weighted_checks(passed[index == 1, :2], one(6)))
    assert torch.equal(fewer[index != 1], found[index != 1])


def test_more_checks_passed_are_worth_more_at_fixed_weights_alone():
    fixed = torch.tensor([[0.2, 0.3, 0.5]])
    passed = table("x..", "xx.", "..x", "...")
    found = difficulty_weighted_checks(passed, one(4), lambda share: fixed.to(share))
    assert found.tolist() == pytest.approx([0.2, 0.5, 0.5, 0.0])
    more = passed.clone()
    more[0, 2] = True
    assert difficulty_weighted_checks(more, one(4), lambda share: fixed.to(share))[0] == pytest.approx(0.7)
    # Recomputed weights can take away more than the check that is gained gives.
    before = difficulty_weighted_checks(table("x..", "xx.", "x.x", ".xx"), one(4), smoothing=0.0)
    after = difficulty_weighted_checks(table("x..", "xx.", "x.x", "xxx"), one(4), smoothing=0.0)
    assert after[0] < before[0]
    one_more = [difficulty_weighted_checks(table(row, "x..", "x..", "x..", ".x."), one(5), smoothing=0.0)[0]
                for row in ("x..", ".x.")]  # fmt: skip
    assert one_more[1] > one_more[0]  # The rarer check is worth more.


def test_custom_weights():
    passed, groups = table("x.", "xx"), Groups(torch.tensor([1, 1]), 3)
    seen = []
    found = difficulty_weighted_checks(passed, groups, lambda share: seen.append(share) or torch.exp(-share))  # type: ignore[func-returns-value]
    assert seen[0][1].tolist() == [1.0, 0.5] and bool(seen[0][[0, 2]].isnan().all())
    assert found.tolist() == pytest.approx([math.exp(-1) / (math.exp(-1) + math.exp(-0.5)), 1.0])
    assert difficulty_weighted_checks(passed, one(2), lambda share: torch.tensor([[1.0, 0.0]])).tolist() == [1.0, 1.0]


def test_few_rows():
    assert difficulty_weighted_checks(table("x..."), one(1), smoothing=0.5).item() == pytest.approx(0.5 / 5)
    assert difficulty_weighted_checks(torch.empty(0, 3, dtype=torch.bool), Groups.of([])).shape == (0,)
    assert difficulty_weighted_checks(table("x."), one(1)).dtype == torch.float32


def draws(seed, *shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_known_answers_of_hardness():
    scale = hardness_scale(doubles(0.5, 0.0))  # 0.5 where the mean is 0.25
    assert scale[0].item() == pytest.approx(1.107231, abs=1e-6)
    assert hardness_scale(doubles(0.25, 0.5, 0.0))[0].item() == pytest.approx(1.0)
    both = hardness_scale(doubles(0.5, 0.0), doubles(3.0, -1.0))
    expected = expit([0.5, 0.0]) / expit(0.25) * expit([3.0, -1.0]) / expit(1.0)
    assert both.tolist() == pytest.approx(expected.tolist())
    text = draws(0, 3, 4, 5)
    assert separability(text, text).tolist() == pytest.approx([0.0] * 3, abs=1e-12)
    assert separability(doubles(1, 0).view(1, 1, 2), doubles(-2, 0).view(1, 1, 2)).tolist() == [2.0]
    half = separability(doubles(1, 0, 0, 1).view(1, 2, 2), doubles(3, 0).view(1, 1, 2))
    assert half.tolist() == [0.5]  # One of two sentences is there.
    assert separability(doubles(3, 0).view(1, 1, 2), doubles(1, 0, 0, 1).view(1, 2, 2)).tolist() == [0.0]
    advantage = hardness_scaled_advantage(
        doubles(-1, 1, -2, 2), doubles(2.0, 0.5), Groups(torch.tensor([0, 0, 1, 1]), 2)
    )
    assert advantage.tolist() == [-2, 2, -1, 1]


@settings(max_examples=20)
@given(st.integers(0, 2**32 - 1), st.integers(1, 4), st.integers(1, 4))
def test_separability_by_hand_in_any_order_and_padded(seed, s, t):
    first, second = draws(seed, 5, s, 6), draws(seed + 1, 5, t, 6)
    found = separability(first, second)
    for row in range(5):
        nearest = cdist(first[row].numpy(), second[row].numpy(), "cosine").min(1)
        assert float(found[row]) == pytest.approx(nearest.mean())
    lengths = 0.1 + draws(seed + 2, 5, s, 1).abs()
    for other in (
        separability(first.flip(1), second.flip(1)), separability(first * lengths, 3 * second),
        separability(first.repeat(1, 2, 1), second.repeat(1, 3, 1)),
    ):  # fmt: skip
        assert other.tolist() == pytest.approx(found.tolist())
    there = torch.tensor([False] + [True] * s + [False]).expand(5, s + 2)
    present = torch.tensor([True] * t + [False]).expand(5, t + 1)
    wide = torch.cat([torch.full((5, 1, 6), math.nan), first, second[:, :1]], 1)
    wider = torch.cat([second, first[:, :1]], 1)
    assert separability(wide, wider, there, present).tolist() == pytest.approx(found.tolist())


@settings(max_examples=25)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=12), st.integers(0, 2**32 - 1))
def test_scales_by_hand_and_bounds(delta, seed):
    values, gap = doubles(*delta), 5 * draws(seed, len(delta))
    alone, both = hardness_scale(values), hardness_scale(values, gap)
    assert alone.tolist() == pytest.approx((expit(delta) / expit(np.mean(delta))).tolist())
    assert (both / alone).tolist() == pytest.approx((expit(gap.numpy()) / expit(float(gap.mean()))).tolist())
    assert bool((alone > 0.5 / expit(1) - 1e-12).all()) and bool((alone < expit(1) / 0.5 + 1e-12).all())
    order = torch.randperm(len(delta), generator=torch.Generator().manual_seed(seed))
    assert hardness_scale(values[order], gap[order]).tolist() == pytest.approx(both[order].tolist())
    if len(set(delta)) > 1 and max(delta) - min(delta) > 0.1:  # Neither offsets nor scale are free.
        assert not torch.allclose(hardness_scale(values + 3), alone)
        assert not torch.allclose(hardness_scale(values * 2), alone)


def test_scaled_advantages_still_sum_to_zero():
    advantage, groups = doubles(-1, 0, 1, -2, 2, 0), Groups(torch.tensor([0, 0, 0, 2, 2, 3]), 5)
    scale = hardness_scale(draws(3, 5), draws(4, 5))
    assert groups.sum(hardness_scaled_advantage(advantage, scale, groups)).tolist() == pytest.approx([0.0] * 5)
    assert torch.equal(hardness_scaled_advantage(advantage, torch.ones(5), groups), advantage)


def test_equal_few_and_extreme():
    assert hardness_scale(torch.full((7,), 0.1), torch.full((7,), -3.3)).tolist() == [1.0] * 7
    assert hardness_scale(doubles(0.7), doubles(-900.0)).tolist() == [1.0]
    low = hardness_scale(doubles(0.0, 0.0), doubles(-1000.0, -998.0))  # Both σ are 0 in float64.
    assert low.tolist() == pytest.approx([math.exp(-1), math.exp(1)])
    assert hardness_scale(torch.empty(0), torch.empty(0)).shape == (0,)
    assert separability(torch.empty(0, 2, 3), torch.empty(0, 1, 3)).shape == (0,)
    none = Groups(torch.empty(0, dtype=torch.int64), 2)
    assert hardness_scaled_advantage(torch.empty(0), torch.ones(2), none).shape == (0,)
