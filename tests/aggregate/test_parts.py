from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit, logit
from scipy.stats import gmean

from ebrm.aggregate import How, majority_vote, mixed_granularity, step_reward, swap_average
from ebrm.errors import DataError
from ebrm.groups import Groups

BY_HAND = {
    "min": np.min, "max": np.max, "mean": np.mean, "last": lambda p: p[-1], "product": np.prod, "geometric_mean": gmean,
    "mean_logit": lambda p: expit(logit(p).mean()), "mean_odds": lambda p: (p / (1 - p)).mean(),
}  # fmt: skip
ANY_ORDER: list[How] = ["min", "max", "mean", "product", "geometric_mean", "mean_logit", "mean_odds"]
HOW: list[How] = [*ANY_ORDER, "last"]


def one(*scores):
    return torch.tensor(scores, dtype=torch.float64), Groups.of([0] * len(scores))


def test_known_answers():
    for how, expected in (("min", 0.25), ("max", 1.0), ("product", 0.25), ("geometric_mean", 0.5), ("last", 1.0)):
        assert step_reward(*one(0.25, 1.0), how).tolist() == pytest.approx([expected]), how
    assert step_reward(*one(0.5, 0.5), "mean_logit").tolist() == pytest.approx([0.5])
    assert step_reward(*one(0.9, 0.1), "mean_logit").tolist() == pytest.approx([0.5])
    assert step_reward(*one(0.5, 0.75), "mean_odds").tolist() == pytest.approx([2.0])
    assert step_reward(*one(-3.0, 5.0, 2.0), "last").tolist() == [2.0]  # Scores that are no probabilities.


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.floats(0.01, 0.99)), min_size=1, max_size=30), st.sampled_from(HOW))
def test_each_response_by_hand(rows: list[tuple[int, float]], how):
    ids, scores = [row[0] for row in rows], torch.tensor([row[1] for row in rows], dtype=torch.float64)
    found = step_reward(scores, Groups.of(ids), how)
    for number, name in enumerate(dict.fromkeys(ids)):
        steps = np.array([score for id, score in rows if id == name])
        assert float(found[number]) == pytest.approx(BY_HAND[how](steps)), how
        if len(steps) == 1 and how != "mean_odds":
            assert float(found[number]) == pytest.approx(steps[0])


def test_certain_steps_and_many_steps():
    for how in ANY_ORDER:
        assert bool(step_reward(*one(0.0, 1.0, 1.0), how).isfinite().all()), how
    assert step_reward(*one(0.0, 1.0), "product").tolist() == step_reward(*one(0.0, 1.0), "geometric_mean").tolist()
    assert step_reward(*one(0.0, 1.0), "product").tolist() == [0.0]
    assert step_reward(*one(0.0, 1.0), "mean_logit").tolist() == pytest.approx([0.5])
    assert step_reward(*one(1.0), "mean_odds", clip=0.1).tolist() == pytest.approx([9.0])
    assert step_reward(*one(*[0.01] * 1000), "geometric_mean").tolist() == pytest.approx([0.01])  # The product is 0.


@pytest.mark.parametrize("how", HOW)
def test_responses_without_steps(how):
    scores, groups = torch.tensor([0.5, 0.25]), Groups(torch.tensor([1, 1]), 3)
    found = step_reward(scores, groups, how, empty=0.0625)
    assert found[[0, 2]].tolist() == [0.0625, 0.0625] and float(found[1]) != 0.0625
    assert step_reward(torch.empty(0), Groups.of([]), how).shape == (0,)


WHOLE, ITEM, GROUPS = torch.tensor([10.0, 20.0]), torch.tensor([1.0, 8.0, 2.0, 6.0]), Groups.of([0, 1, 0, 0])


def test_known_answers_of_granularity():
    assert mixed_granularity(WHOLE, ITEM, GROUPS, 1.0).tolist() == [10.0, 20.0]
    assert mixed_granularity(WHOLE, ITEM, GROUPS, 0.0).tolist() == [3.0, 8.0]
    assert mixed_granularity(WHOLE, ITEM, GROUPS).tolist() == [6.5, 14.0]
    first = 1 / math.log2(2) + 2 / math.log2(3) + 6 / math.log2(4)
    assert mixed_granularity(WHOLE, ITEM, GROUPS, 0.0, "discounted_sum").tolist() == pytest.approx([first, 8.0])
    assert mixed_granularity(WHOLE, ITEM, GROUPS, 0.25, "discounted_sum").tolist() == pytest.approx(
        [2.5 + 0.75 * first, 11.0]
    )


def test_responses_without_items():
    groups = Groups(torch.tensor([1, 1, 1, 1]), 2)
    for items in ("mean", "discounted_sum"):
        assert mixed_granularity(WHOLE, ITEM, groups, 0.5, items, empty=4.0)[0] == 7.0
    assert mixed_granularity(torch.empty(0), torch.empty(0), Groups.of([])).shape == (0,)


def test_known_answers_of_votes():
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


def test_a_position_that_a_judge_favors_cancels():
    assert swap_average([1.0, 0.9, 0.2], [1.0, 0.1, 0.2]).tolist() == pytest.approx([0.5, 0.9, 0.5])
    assert swap_average(torch.tensor([True, True, False]), torch.tensor([False, True, True])).tolist() == [1, 0.5, 0]
    first, second = torch.rand(2, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(swap_average(second, first), 1 - swap_average(first, second))
    with pytest.raises(DataError, match="second order .* out of range"):
        swap_average([0.5], [1.5])
