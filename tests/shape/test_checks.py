from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ebrm.groups import Groups
from ebrm.shape import difficulty_weighted_checks


def table(*rows):
    return torch.tensor([[mark == "x" for mark in row] for row in rows])


def one(n):
    return Groups.of([0] * n)


def random(seed, n, t):
    return torch.rand(n, t, generator=torch.Generator().manual_seed(seed)) < 0.6


def test_known_answers():
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
