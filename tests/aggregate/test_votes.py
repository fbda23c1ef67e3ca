from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ebrm.aggregate import majority_vote
from ebrm.groups import Groups


def test_known_answers():
    # Five judges on three pairs.
    votes = torch.tensor([[1, 0, 0], [1, 0, 1], [0, 0, 1], [1, 0, 0], [1, 0, 1]])
    items = Groups(torch.arange(3).repeat(5), 3)
    found = majority_vote(votes.flatten(), items)
    assert found.label.tolist() == [1, 0, 1]
    assert found.share.tolist() == pytest.approx([0.8, 1.0, 0.6]) and not bool(found.tied.any())
    assert torch.equal(majority_vote(votes.flatten().bool(), items).label, found.label)


def test_ties_go_to_the_lowest_and_say_so():
    found = majority_vote(torch.tensor([7, 3, 3, 7, 9, 2, 2]), Groups.of([0, 0, 0, 0, 0, 1, 1]))
    assert found.label.tolist() == [3, 2] and found.tied.tolist() == [True, False]
    assert found.share.tolist() == pytest.approx([0.4, 1.0])


def test_weights_decide():
    votes, groups = torch.tensor([5, 5, 8]), Groups.of([0, 0, 0])
    assert majority_vote(votes, groups).label.tolist() == [5]
    found = majority_vote(votes, groups, torch.tensor([0.2, 0.3, 1.5]))
    assert found.label.tolist() == [8] and found.share.tolist() == pytest.approx([0.75])
    nothing = majority_vote(votes, groups, torch.zeros(3))
    assert nothing.label.tolist() == [5] and nothing.tied.tolist() == [True] and math.isnan(float(nothing.share))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3)), min_size=1, max_size=40), st.integers(0, 99))
def test_against_counting(rows: list[tuple[int, int]], seed):
    index, votes = torch.tensor(rows).T
    groups = Groups(index, 6)
    found = majority_vote(10**9 * votes, groups)
    for group in range(6):
        counts = Counter(vote for id, vote in rows if id == group)
        if not counts:
            assert int(found.label[group]) == -1 and math.isnan(float(found.share[group]))
            assert not bool(found.tied[group])
            continue
        top = max(counts.values())
        winners = sorted(vote for vote, number in counts.items() if number == top)
        assert int(found.label[group]) == 10**9 * winners[0] and bool(found.tied[group]) == (len(winners) > 1)
        assert float(found.share[group]) == pytest.approx(top / counts.total())
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
    weight = torch.full((len(rows),), 4.0)
    other = majority_vote(10**9 * votes[order], Groups(index[order], 6), weight)
    assert torch.equal(other.label, found.label) and torch.equal(other.tied, found.tied)
    assert other.share.tolist() == pytest.approx(found.share.tolist(), nan_ok=True)


def test_no_votes():
    none = torch.empty(0, dtype=torch.int64)
    assert majority_vote(none, Groups.of([])).label.shape == (0,)
    found = majority_vote(none, Groups(none, 2))
    assert found.label.tolist() == [-1, -1] and found.share.isnan().all() and not bool(found.tied.any())
