from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial import ConvexHull
from tests.curate.made_pairs import a_pair_each, generator
from torch.nn.functional import logsigmoid

from ebrm.curate import (
    augmentation,
    best_worst_pairs,
    convex_hull_augmentation,
    corruption_pairs,
    cross_prompt_pairs,
    goal_conditioned_pairs,
    hard_subset,
    hull_vertices,
)
from ebrm.groups import Groups
from ebrm.pairs import PreferencePairs

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


def said(pairs, label):
    which = pairs.label == label
    return list(zip(pairs.chosen[which].tolist(), pairs.rejected[which].tolist(), strict=True))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.booleans(), max_size=14))
def test_every_pass_over_every_fail_and_every_two_passes_once(passed):
    pairs, report = cross_prompt_pairs(torch.tensor(passed, dtype=torch.bool), generator())
    good = [i for i, ok in enumerate(passed) if ok]
    bad = [i for i, ok in enumerate(passed) if not ok]
    assert sorted(said(pairs, 1.0)) == [(i, j) for i in good for j in bad]
    ties = sorted(tuple(sorted(pair)) for pair in said(pairs, 0.5))
    assert ties == [(i, j) for i in good for j in good if i < j]
    assert report.numbers == {"wins": len(good) * len(bad), "ties": len(good) * (len(good) - 1) // 2}
    assert report.made == len(pairs) == len(good) * len(bad) + len(ties)
    assert not bool(pairs.margin.any())


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 60), st.integers(0, 60))
def test_a_quota_is_drawn_without_repeating(seed, wins, ties):
    passed = torch.arange(15) < 8
    pairs, _ = cross_prompt_pairs(passed, generator(seed), wins, ties)
    won, tied = said(pairs, 1.0), {frozenset(pair) for pair in said(pairs, 0.5)}
    assert len(won) == len(set(won)) == min(wins, 56) and len(tied) == len(pairs) - len(won) == min(ties, 28)
    again, _ = cross_prompt_pairs(passed, generator(seed), wins, ties)
    assert torch.equal(again.chosen, pairs.chosen) and torch.equal(again.rejected, pairs.rejected)


@pytest.mark.parametrize("quota", [3, 12])
def test_every_pair_is_drawn_as_often(quota):
    random, counts = generator(), torch.zeros(4, 5)
    for _ in range(1000):
        pairs, _ = cross_prompt_pairs(torch.arange(9) < 4, random, wins=quota, ties=0)
        counts[pairs.chosen, pairs.rejected - 4] += 1
    expected = 1000 * quota / 20
    statistic = float(((counts - expected) ** 2 / expected).sum())
    assert statistic < 43.8  # 99.9% of χ² with 19 degrees of freedom, which draws without replacement stay below


def test_few_of_very_many():
    pairs, _ = cross_prompt_pairs(torch.arange(200_000) < 100_000, generator(), wins=100, ties=100)
    assert len(pairs) == 200 and pairs.label.sum() == 150


def test_the_loss_of_a_tie_is_log_2_at_equal_rewards():
    pairs, _ = cross_prompt_pairs(torch.tensor([True, True]), generator())
    d = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    loss = -pairs.label * logsigmoid(d - pairs.margin) - (1 - pairs.label) * logsigmoid(-d - pairs.margin)
    assert loss.item() == pytest.approx(math.log(2))
    (slope,) = torch.autograd.grad(loss.sum(), d, create_graph=True)
    (curve,) = torch.autograd.grad(slope.sum(), d)
    assert slope.item() == 0.0 and curve.item() == pytest.approx(0.25)


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


# Parts of responses 0, 2 and 3, out of line; responses 1 and 4 have none.
RESPONSE = Groups(torch.tensor([2, 0, 0, 3, 2, 0, 2]), 5)
PARTS = {0: [1, 2, 5], 2: [0, 4, 6], 3: [3]}


def sequences(made):
    found: dict[int, list[int]] = {int(origin): [] for origin in made.origin}
    for part, number in zip(made.part.tolist(), made.response.index.tolist(), strict=True):
        found[int(made.origin[number])].append(part)
    return found


@pytest.mark.parametrize("seed", range(20))
def test_a_swap_keeps_the_parts_and_changes_the_places_of_two(seed):
    pairs, made, report = corruption_pairs(RESPONSE, "swap", generator(seed))
    assert pairs.chosen.tolist() == [0, 2] and pairs.rejected.tolist() == [5, 6]
    for origin, parts in sequences(made).items():
        assert sorted(parts) == sorted(PARTS[origin])
        assert sum(a != b for a, b in zip(parts, PARTS[origin], strict=True)) == 2
    assert report.made == 2 and report.numbers == {"responses": 5} and pairs.history(0) == ["swap corruption: made"]


@pytest.mark.parametrize("seed", range(20))
def test_a_duplicate_stands_beside_its_part(seed):
    pairs, made, _ = corruption_pairs(RESPONSE, "duplicate", generator(seed))
    assert pairs.chosen.tolist() == [0, 2, 3]
    assert made.response.sizes.tolist() == [4, 4, 2] and made.response.index.tolist() == sorted(made.response.index)
    for origin, parts in sequences(made).items():
        (twice,) = (Counter(parts) - Counter(PARTS[origin])).elements()
        assert parts[parts.index(twice) + 1] == twice
        parts.remove(twice)
        assert parts == PARTS[origin]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.lists(st.tuples(st.integers(0, 5), st.just(0)), max_size=25))
def test_a_splice_comes_from_another_prompt(seed, rows: list[tuple[int, int]]):
    response = Groups(torch.tensor([row for row, _ in rows], dtype=torch.int64), 6)
    prompt = torch.tensor([0, 1, 0, 2, 1, 0])
    pairs, made, _ = corruption_pairs(response, "splice", generator(seed), Groups(prompt, 4))
    prompts = {int(prompt[row]) for row, _ in rows}
    assert made.origin.tolist() == (sorted({row for row, _ in rows}) if len(prompts) > 1 else [])
    for origin, parts in sequences(made).items():
        before = [i for i, (row, _) in enumerate(rows) if row == origin]
        ((old, new),) = [(a, b) for a, b in zip(before, parts, strict=True) if a != b]
        assert old in before and int(prompt[rows[new][0]]) != int(prompt[origin])


def test_every_part_is_as_likely():
    # 1000 responses of three parts each, with prompts 0, 1, 2, … of one response: which part is spliced in and where.
    response = Groups(torch.arange(3000) // 3, 1000)
    prompt = Groups(torch.arange(1000) % 4, 4)
    _, made, _ = corruption_pairs(response, "splice", generator(), prompt)
    new = (made.part != torch.arange(3000)).nonzero().flatten()
    assert len(new) == 1000
    places = torch.bincount(new % 3, minlength=3).double()
    assert float(((places - 1000 / 3) ** 2 / (1000 / 3)).sum()) < 13.8  # 99.9% of χ² with 2 degrees of freedom
    mine, theirs = made.origin % 4, (made.part[new] // 3) % 4
    counts = torch.zeros(4, 4, dtype=torch.float64).index_put_((mine, theirs), torch.ones(1000).double(), True)
    expected = (250 / 3) * (1 - torch.eye(4, dtype=torch.float64))
    assert float(((counts - expected)[expected > 0] ** 2 / (250 / 3)).sum()) < 32.9  # with 12, to be generous
    assert not bool(counts.diagonal().any())
    _, swapped, _ = corruption_pairs(response, "swap", generator())
    still = (swapped.part == torch.arange(3000)).nonzero().flatten() % 3
    assert float(((torch.bincount(still) - 1000 / 3) ** 2 / (1000 / 3)).sum()) < 13.8


def test_what_cannot_be_corrupted_has_no_pair():
    single = Groups(torch.tensor([0, 1]), 2)
    assert len(corruption_pairs(single, "swap", generator())[0]) == 0
    assert len(corruption_pairs(single, "splice", generator())[0]) == 2
    assert len(corruption_pairs(single, "splice", generator(), Groups(torch.tensor([0, 0]), 1))[0]) == 0
    for kind in ("swap", "duplicate", "splice"):
        pairs, made, report = corruption_pairs(Groups(torch.zeros(0, dtype=torch.int64), 0), kind, generator())
        assert len(pairs) == len(made.part) == made.response.count == report.made == 0


def test_the_seed_decides():
    response = Groups(torch.arange(300) // 3, 100)
    one, same, other = (corruption_pairs(response, "swap", generator(seed))[1].part for seed in (0, 0, 1))
    assert torch.equal(one, same) and not torch.equal(one, other)


TRIANGLE = torch.tensor([[0.0, 0], [1, 1], [9, 0], [2, 1], [0, 9], [3, 3]])


def one(count):
    return Groups(torch.zeros(count, dtype=torch.int64), 1)


def test_the_corners_of_a_triangle():
    assert hull_vertices(TRIANGLE, one(6)).tolist() == [True, False, True, False, True, False]
    # In more dimensions, turned and moved.
    turn = torch.linalg.qr(torch.randn(7, 7, generator=generator(), dtype=torch.float64))[0][:2]
    assert hull_vertices(TRIANGLE.double() @ turn * 1e-3 + 5, one(6)).tolist() == [
        True, False, True, False, True, False,
    ]  # fmt: skip


def test_points_on_a_line_at_one_place_and_on_an_edge():
    line = torch.tensor([[1.0, 1], [0, 0], [3, 3], [2, 2], [3, 3]])
    assert hull_vertices(line, one(5)).tolist() == [False, True, True, False, False]
    assert hull_vertices(line[:, :1], one(5)).tolist() == [False, True, True, False, False]  # one dimension
    assert hull_vertices(torch.full((4, 3), 0.1), one(4)).tolist() == [True, False, False, False]
    square = torch.tensor([[0.0, 0], [2, 0], [2, 2], [0, 2], [1, 0], [1, 1], [0, 0]])
    assert hull_vertices(square * 1.0, one(7)).tolist() == [True, True, True, True, False, False, False]


def test_few_rows_are_all_corners():
    groups = Groups(torch.tensor([3, 0, 3]), 5)
    assert hull_vertices(torch.tensor([[0.0, 1], [5, 5], [2, 2]]), groups).tolist() == [True] * 3
    assert hull_vertices(torch.zeros(0, 4), Groups(torch.zeros(0, dtype=torch.int64), 2)).shape == (0,)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.01, 100))
def test_against_scipy_group_by_group(seed, scale):
    random = generator(seed)
    groups = Groups(torch.randint(0, 4, (40,), generator=random), 4)
    points = torch.randn(40, 6, generator=random, dtype=torch.float64)
    found = hull_vertices(points, groups)
    for group in range(4):
        rows = (groups.index == group).nonzero().flatten()
        if len(rows) >= 4:
            off = points[rows] - points[rows].mean(0)
            plane = off @ torch.linalg.svd(off, full_matrices=False)[2][:2].T
            assert found[rows].nonzero().flatten().tolist() == sorted(ConvexHull(plane.numpy()).vertices.tolist())
    order = torch.randperm(40, generator=random)
    moved = scale * points[order] + groups.index[order, None]
    assert torch.equal(hull_vertices(moved, Groups(groups.index[order], 4)), found[order])


def test_small_parts_find_the_same(monkeypatch):
    points, groups = torch.randn(60, 3, generator=generator()), Groups(torch.arange(60) % 12, 12)
    found = hull_vertices(points, groups)
    monkeypatch.setattr(augmentation, "_CHUNK_CELLS", 60)
    assert torch.equal(hull_vertices(points, groups), found)


def test_the_outermost_copies_become_chosen():
    # Rows 0 … 3 are two pairs; 4 … 9 copies of row 2, and 10, 11 of row 3, which is never chosen.
    embedding = torch.cat([torch.zeros(4, 2), TRIANGLE, torch.ones(2, 2)])
    copy_of = torch.tensor([-1] * 4 + [2] * 6 + [3] * 2)
    pairs, _ = a_pair_each(2).after("weigh", weight=torch.tensor([1.0, 4.0]))
    made, report = convex_hull_augmentation(pairs, embedding, copy_of)
    assert made.chosen.tolist() == [0, 2, 4, 6, 8] and made.rejected.tolist() == [1, 3, 3, 3, 3]
    assert made.weight.tolist() == [1, 4, 4, 4, 4] and made.origin.tolist() == [0, 1, 1, 1, 1]
    assert (report.given, report.kept, report.made, report.dropped) == (2, 2, 3, 0)
    assert report.numbers == {"copies": 8, "outermost": 4}
    assert made.history(1)[-1] == "convex hull: kept" and made.history(2)[-1] == "convex hull: made"
    same, report = convex_hull_augmentation(pairs, embedding, torch.full((12,), -1))
    assert torch.equal(same.chosen, pairs.chosen) and report.made == 0


def test_copies_of_several_pairs_go_to_theirs():
    embedding = torch.randn(10, 3, generator=generator())
    copy_of = torch.tensor([-1, -1, -1, -1, 2, 0, 2, 0, -1, -1])
    made, _ = convex_hull_augmentation(a_pair_each(2), embedding, copy_of)
    assert made.chosen.tolist() == [0, 2, 5, 7, 4, 6] and made.rejected.tolist() == [1, 3, 1, 1, 3, 3]
    none, report = convex_hull_augmentation(a_pair_each(0), embedding, copy_of)
    assert len(none) == report.made == 0
