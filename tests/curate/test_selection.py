from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.curate.made_pairs import generator

from ebrm.curate import best_worst_pairs, hard_subset
from ebrm.groups import Groups

REWARD = torch.tensor([1.0, 3.0, 2.0, 5.0, 5.0, 0.0, 0.5])
PROMPT = Groups(torch.tensor([0, 0, 0, 1, 1, 3, 3]), 5)


def test_best_and_worst_of_each_prompt():
    pairs, report = best_worst_pairs(REWARD, PROMPT)
    assert (pairs.chosen.tolist(), pairs.rejected.tolist()) == ([1, 6], [0, 5])  # equal rewards have no pair
    assert report.made == 2 and report.numbers == {"prompts": 3, "share with a pair": pytest.approx(2 / 3)}
    assert pairs.label.tolist() == [1.0, 1.0] and pairs.history(0) == ["best and worst: made"]


def test_evidence_is_added_with_its_weight():
    evidence = torch.tensor([[0.0, 0, 9, 0, 0, 0, 0], [0.0, 0, 0, 1, 0, 1, 0]])
    pairs, _ = best_worst_pairs(REWARD, PROMPT, evidence)
    assert (pairs.chosen.tolist(), pairs.rejected.tolist()) == ([2, 3, 5], [0, 4, 6])
    pairs, _ = best_worst_pairs(REWARD, PROMPT, evidence, torch.tensor([0.0, 0.0]))
    assert pairs.chosen.tolist() == [1, 6]
    pairs, _ = best_worst_pairs(REWARD, PROMPT, evidence, torch.tensor([-1.0, 0.0]))
    assert pairs.rejected.tolist() == [2, 5]


def test_of_equal_totals_the_first_counts():
    groups = Groups(torch.zeros(5, dtype=torch.int64), 1)
    pairs, _ = best_worst_pairs(torch.tensor([2.0, 0.0, 7.0, 7.0, 0.0]), groups)
    assert (pairs.chosen.tolist(), pairs.rejected.tolist()) == ([2], [1])


def test_bounds():
    assert best_worst_pairs(REWARD, PROMPT, least_gap=0.5)[0].chosen.tolist() == [1, 6]
    assert best_worst_pairs(REWARD, PROMPT, least_gap=0.6)[0].chosen.tolist() == [1]
    assert best_worst_pairs(REWARD, PROMPT, least_best=0.5)[0].chosen.tolist() == [1, 6]
    assert best_worst_pairs(REWARD, PROMPT, least_best=3.1)[0].chosen.tolist() == []
    # The bound on the best is on its reward, not on the total.
    evidence = torch.full((1, 7), 100.0)
    assert best_worst_pairs(REWARD, PROMPT, evidence, least_best=3.1)[0].chosen.tolist() == []


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.floats(0, 2), st.floats(0, 2), st.floats(0.1, 10))
def test_fewer_pairs_at_a_wider_gap_and_offsets_do_not_matter(seed, gap, more, scale):
    random = generator(seed)
    groups = Groups(torch.randint(0, 6, (20,), generator=random), 7)
    reward = torch.randn(20, generator=random, dtype=torch.float64)
    pairs, _ = best_worst_pairs(reward, groups, least_gap=gap)
    wider, _ = best_worst_pairs(reward, groups, least_gap=gap + more)
    assert set(wider.chosen.tolist()) <= set(pairs.chosen.tolist())
    for group in range(7):
        rows = (groups.index == group).nonzero().flatten()
        if len(rows) > 1 and float(reward[rows].max() - reward[rows].min()) >= gap:
            assert (
                int(rows[reward[rows].argmax()]) in pairs.chosen and int(rows[reward[rows].argmin()]) in pairs.rejected
            )
        else:
            assert not bool(torch.isin(rows, pairs.chosen).any())
    offset = torch.randint(-9, 9, (7,), generator=random).double()
    plain, _ = best_worst_pairs(reward, groups)
    moved, _ = best_worst_pairs(scale * reward + groups.spread(offset), groups)
    assert torch.equal(moved.chosen, plain.chosen) and torch.equal(moved.rejected, plain.rejected)


def test_the_hard_subset_is_the_lowest():
    bleu = torch.tensor([0.3, 0.1, 0.9, 0.1, 0.2])
    assert hard_subset(bleu, 3).tolist() == [1, 3, 4] and hard_subset(bleu, 1).tolist() == [1]
    assert hard_subset(bleu, 9).tolist() == [0, 1, 2, 3, 4] and hard_subset(bleu, 0).tolist() == []
    assert hard_subset(10 * bleu - 3, 3).tolist() == [1, 3, 4]
    assert hard_subset(torch.zeros(0), 3).tolist() == []
