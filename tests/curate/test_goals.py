from __future__ import annotations

import torch
from tests.curate.made_pairs import a_pair_each, generator

from ebrm.curate import goal_conditioned_pairs
from ebrm.pairs import PreferencePairs


def test_two_pairs_of_each():
    score = torch.tensor([9.0, 4.0, 5.0, 5.0, 2.0, 8.0, 7.0, 6.0])
    made, goal, report = goal_conditioned_pairs(a_pair_each(4), score)
    assert made.chosen.tolist() == [0, 6, 1, 7] and made.rejected.tolist() == [1, 7, 0, 6]
    assert goal.tolist() == [9.0, 7.0, 4.0, 6.0] and made.origin.tolist() == [0, 3, 0, 3]
    assert (report.given, report.made, report.numbers) == (4, 4, {"left out": 2})
    assert made.history(2) == ["given: made", "goal-conditioned: made"]


def test_the_goal_prefers_the_chosen_side():
    score = torch.randn(100, generator=generator())
    made, goal, report = goal_conditioned_pairs(a_pair_each(50), score)
    reward = -((goal[:, None] - score[torch.stack([made.chosen, made.rejected], 1)].double()) ** 2)
    assert bool((reward[:, 0] == 0).all()) and bool((reward[:, 1] < 0).all())
    assert 2 * int((score[::2] > score[1::2]).sum()) == report.made == len(made)


def test_all_pairs_of_three_responses_aim_at_each_against_each_other():
    pairs = PreferencePairs.of(torch.tensor([0, 0, 1]), torch.tensor([1, 2, 2]))
    made, goal, _ = goal_conditioned_pairs(pairs, torch.tensor([3.0, 2.0, 1.0]))
    said = set(zip(goal.tolist(), made.chosen.tolist(), made.rejected.tolist(), strict=True))
    assert said == {(3 - i, i, j) for i in range(3) for j in range(3) if i != j}


def test_columns_are_those_of_the_pair():
    pairs = PreferencePairs.of([0], [1], weight=[2.0], label=[0.75], margin=[3.0])
    made, _, _ = goal_conditioned_pairs(pairs, torch.tensor([1.0, 0.0]))
    assert (made.weight.tolist(), made.label.tolist(), made.margin.tolist()) == ([2, 2], [0.75, 0.75], [3, 3])


def test_no_pairs_and_refusals():
    made, goal, report = goal_conditioned_pairs(a_pair_each(0), torch.zeros(0))
    assert len(made) == len(goal) == report.made == 0
    assert len(goal_conditioned_pairs(a_pair_each(1), torch.tensor([1.0, 1.0]))[0]) == 0
