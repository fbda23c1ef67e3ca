from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.curate.made_pairs import generator

from ebrm.curate import (
    density_ratio_weights,
    error_driven_retrieval,
    odds_weights,
    retrieval,
    retrieval_budget,
    ucb_pairs,
)
from ebrm.errors import ConfigError, DataError
from ebrm.groups import Groups


def test_the_budget_by_hand():
    p = torch.tensor([0.3, 0.5, 0.7, 0.75, 0.9, 0.99, 1.0])
    assert retrieval_budget(p).tolist() == [8, 8, 3, 2, 1, 1, 0]
    assert retrieval_budget(torch.tensor([0.7, 0.9], dtype=torch.float64), 10).tolist() == [3, 1]
    assert retrieval_budget(torch.zeros(0)).shape == (0,)


POOL = torch.tensor([[1.0, 0.0], [5.0, 0.5], [0.0, 2.0], [-1.0, 0.0], [1.0, 1.0]])


def test_the_nearest_by_cosine_are_found():
    wrong, right, sure = torch.tensor([0.1]), torch.tensor([0.8]), torch.tensor([1.0])
    east = torch.tensor([[3.0, 0.0]])
    assert error_driven_retrieval(wrong, east, POOL, most=3).tolist() == [0, 1, 4]
    assert error_driven_retrieval(right, east, POOL, most=3).tolist() == [0]
    assert error_driven_retrieval(sure, east, POOL, most=3).tolist() == []
    assert error_driven_retrieval(wrong, east, POOL).tolist() == [0, 1, 2, 3, 4]  # fewer than 8
    both = error_driven_retrieval(
        torch.cat([wrong, wrong, sure]), torch.tensor([[1.0, 0], [0, 1.0], [-1, 0]]), POOL, most=2
    )
    assert both.tolist() == [0, 1, 2, 4]


def test_of_equally_near_rows_the_earlier_come():
    pool = torch.tensor([[0.0, 1.0], [2.0, 2.0], [7.0, 7.0], [0.3, 0.3], [-1.0, 0.0]])
    found = error_driven_retrieval(torch.tensor([0.0]), torch.tensor([[1.0, 1.0]]), pool, most=2)
    assert found.tolist() == [1, 2]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 12), st.integers(1, 5))
def test_against_sorting_each(seed, rows, most):
    random = generator(seed)
    p, here = torch.rand(4, generator=random), torch.randn(4, 3, generator=random, dtype=torch.float64)
    pool = torch.randn(rows, 3, generator=random, dtype=torch.float64)
    cosine = torch.nn.functional.cosine_similarity(here[:, None], pool[None], dim=2)
    expected: set[int] = set()
    for row, k in zip(cosine, retrieval_budget(p, most).tolist(), strict=True):
        expected |= set(row.argsort(descending=True)[:k].tolist())
    found = error_driven_retrieval(p, here, pool, most)
    assert found.tolist() == sorted(expected)
    length = torch.rand(rows, 1, generator=random) * 1e6 + 1e-6
    assert torch.equal(error_driven_retrieval(p, here * 1e200, pool * length, most), found)


def test_small_parts_find_the_same(monkeypatch):
    random = generator(3)
    p, here, pool = torch.rand(9, generator=random), torch.randn(9, 3, generator=random), torch.randn(50, 3)
    found = error_driven_retrieval(p, here, pool)
    monkeypatch.setattr(retrieval, "_CHUNK_CELLS", 100)
    assert torch.equal(error_driven_retrieval(p, here, pool), found)


def test_nothing_held_out():
    assert error_driven_retrieval(torch.zeros(0), torch.zeros(0, 2), POOL).tolist() == []


def test_odds_between_the_bounds():
    f = torch.tensor([0.5, 0.9, 0.99, 0.2], dtype=torch.float64)
    assert odds_weights(torch.logit(f)).tolist() == pytest.approx([1.0, 9.0, 10.0, 0.5])
    assert odds_weights(torch.tensor([-1e4, 1e4])).tolist() == pytest.approx([0.5, 10.0])
    assert odds_weights(torch.logit(f), 0.25, 100).tolist() == pytest.approx([1.0, 9.0, 99.0, 0.25])


def test_the_ratio_of_two_normal_densities():
    # N(1, 1) against N(0, 1): the ratio is exp(x - 1/2), whatever the numbers of examples.
    random = generator()
    positive = torch.randn(20_000, 1, generator=random, dtype=torch.float64) + 1
    negative = torch.randn(5_000, 1, generator=random, dtype=torch.float64)
    weight = density_ratio_weights(positive, negative)
    expected = (negative[:, 0] - 0.5).exp().clamp(0.5, 10)
    assert float((weight / expected).log().abs().max()) < 0.15
    assert weight.dtype == torch.float64


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10**6))
def test_offset_rotation_and_order_do_not_matter(seed):
    random = generator(seed)
    positive, negative = torch.randn(2, 30, 3, generator=random, dtype=torch.float64)
    weight = density_ratio_weights(positive + 0.5, negative)
    turn = torch.linalg.qr(torch.randn(3, 3, generator=random, dtype=torch.float64))[0]
    order = torch.randperm(30, generator=random)
    moved = density_ratio_weights((positive + 0.5)[order] @ turn - 2, negative @ turn - 2)
    torch.testing.assert_close(moved, weight, rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(density_ratio_weights(positive + 0.5, negative[order]), weight[order], rtol=1e-2, atol=0)


def test_the_penalty_pulls_to_1():
    random = generator()
    positive, negative = torch.randn(50, 2, generator=random) + 1, torch.randn(50, 2, generator=random)
    weak = density_ratio_weights(positive, negative, penalty=1e6)
    assert weak.dtype == torch.float32 and float((weak - 1).abs().max()) < 0.01
    assert float((density_ratio_weights(positive, negative) - 1).abs().max()) > 1


def test_the_same_prompts_weigh_1():
    embedding = torch.randn(40, 3, generator=generator())
    assert density_ratio_weights(embedding, embedding).tolist() == pytest.approx([1.0] * 40, abs=1e-3)


def test_none_and_one():
    assert density_ratio_weights(torch.ones(3, 2), torch.zeros(0, 2)).shape == (0,)
    assert density_ratio_weights(torch.ones(1, 2), torch.ones(1, 2)).tolist() == pytest.approx([1.0])


PROMPTS = Groups(torch.tensor([0, 2, 0, 1, 2, 0, 2]), 4)


def test_the_two_highest_bounds_of_each_prompt_are_labeled_next():
    reward = torch.tensor([[0.0, 5, 1, 0, 1, 2, 1], [0.0, 5, 1, 9, 3, 8, 1]])
    assert ucb_pairs(reward, PROMPTS, 0.0).tolist() == [[5, 2], [1, 4]]  # means 0, 1, 5 and 5, 2, 1
    assert ucb_pairs(reward, PROMPTS, 3.0).tolist() == [[5, 2], [1, 4]]
    reward[1, 0] = 3  # mean 1.5, deviation 1.5
    assert ucb_pairs(reward, PROMPTS).tolist() == [[5, 0], [1, 4]]
    assert ucb_pairs(reward[:1], PROMPTS, 5.0).tolist() == [[5, 2], [1, 4]]  # one member has no deviation
    assert ucb_pairs(torch.zeros(2, 7), PROMPTS).tolist() == [[0, 2], [1, 4]]  # of equal ones the earlier
    assert ucb_pairs(torch.zeros(2, 0), Groups.of([])).shape == (0, 2)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0, 3))
def test_bounds_by_hand(seed, bonus):
    reward = torch.randn(4, 7, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    bound = reward.mean(0) + bonus * reward.std(0, correction=0)
    for prompt, found in zip((0, 2), ucb_pairs(reward, PROMPTS, bonus).tolist(), strict=True):
        rows = (PROMPTS.index == prompt).nonzero().flatten()
        assert found == rows[bound[rows].argsort(descending=True)][:2].tolist()


def test_bounds_of_no_members_are_refused():
    with pytest.raises(DataError, match="no members"):
        ucb_pairs(torch.zeros(0, 7), PROMPTS)
    with pytest.raises(ConfigError, match="`bonus` is -1"):
        ucb_pairs(torch.zeros(1, 7), PROMPTS, -1.0)
