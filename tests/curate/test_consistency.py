from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kendalltau, spearmanr
from tests.curate.made_pairs import a_pair_each, generator
from torch.nn.functional import logsigmoid

from ebrm.curate import consistency_labels, rank_consistency
from ebrm.groups import Groups
from ebrm.pairs import PreferencePairs

ONE = Groups(torch.zeros(4, dtype=torch.int64), 1)
UP = torch.arange(4.0)
MEASURES = ["kendall", "spearman", "top order"]


@pytest.mark.parametrize("measure", MEASURES)
def test_the_same_order_and_the_reversed_one(measure):
    assert rank_consistency(UP, UP.exp(), ONE, measure).item() == pytest.approx(1.0)
    assert rank_consistency(UP, -UP, ONE, measure).item() == pytest.approx(0.0)


def test_one_adjacent_swap_of_four():
    swapped = torch.tensor([0.0, 2.0, 1.0, 3.0])
    assert rank_consistency(UP, swapped, ONE).item() == pytest.approx(5 / 6)
    assert rank_consistency(UP, swapped, ONE, "spearman").item() == pytest.approx(0.9)
    assert rank_consistency(UP, swapped, ONE, "top order").item() == 1.0  # best and worst coincide
    assert rank_consistency(UP, torch.tensor([1.0, 0, 2, 3]), ONE, "top order").item() == 0.0


@pytest.mark.parametrize("measure", MEASURES)
def test_constant_rewards_do_not_agree_nor_disagree(measure):
    flat = torch.full((4,), 0.1)
    for one, two in ((flat, flat), (flat, UP), (UP, flat)):
        assert rank_consistency(one, two, ONE, measure).item() == 0.5
    # One response; none.
    found = rank_consistency(torch.tensor([2.0]), torch.tensor([3.0]), Groups(torch.tensor([1]), 3), measure)
    assert math.isnan(found[0]) and found[1] == 0.5 and math.isnan(found[2])
    nobody = rank_consistency(torch.zeros(0), torch.zeros(0), Groups(torch.zeros(0, dtype=torch.int64), 0), measure)
    assert nobody.shape == (0,)


def test_top_order_with_ties_asks_for_the_same_best_ones():
    tied = torch.tensor([0.0, 1.0, 3.0, 3.0])
    assert rank_consistency(UP, tied, ONE, "top order").item() == 0.0
    assert rank_consistency(tied, 2 * tied, ONE, "top order").item() == 1.0


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(-2, 2), st.integers(-2, 2)), min_size=1, max_size=30))
def test_against_scipy_prompt_by_prompt(rows: list[tuple[int, int, int]]):
    index, one, two = torch.tensor(rows).T
    groups = Groups(index, 4)
    kendall, spearman = (rank_consistency(one, two, groups, measure) for measure in ("kendall", "spearman"))
    for group in range(4):
        a, b = one[index == group].tolist(), two[index == group].tolist()
        if not a:
            assert math.isnan(kendall[group]) and math.isnan(spearman[group])
        elif len(set(a)) == 1 or len(set(b)) == 1:
            assert kendall[group] == spearman[group] == 0.5
        else:
            assert float(kendall[group]) == pytest.approx((kendalltau(a, b).statistic + 1) / 2)
            assert float(spearman[group]) == pytest.approx((spearmanr(a, b).statistic + 1) / 2)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(MEASURES))
def test_offsets_and_scales_of_prompts_and_the_order_of_rows_do_not_matter(seed, measure):
    random = generator(seed)
    groups = Groups(torch.randint(0, 5, (24,), generator=random), 6)
    one, two = torch.randint(-3, 4, (2, 24), generator=random).double()
    found = rank_consistency(one, two, groups, measure)
    offset, scale = torch.randint(1, 5, (2, 6), generator=random).double()
    moved = rank_consistency(one * groups.spread(scale) + groups.spread(offset), two, groups, measure)
    torch.testing.assert_close(moved, found, equal_nan=True)
    torch.testing.assert_close(rank_consistency(two, one, groups, measure), found, equal_nan=True)
    order = torch.randperm(24, generator=random)
    other = rank_consistency(one[order], two[order], Groups(groups.index[order], 6), measure)
    torch.testing.assert_close(other, found, equal_nan=True)
    if measure != "top order":
        torch.testing.assert_close(rank_consistency(-one, two, groups, measure), 1 - found, equal_nan=True)


def test_labels_are_the_agreement():
    groups = Groups.of([0, 0, 1, 1, 2])
    c = torch.tensor([1.0, 0.25, math.nan], dtype=torch.float64)
    pairs = PreferencePairs.of(torch.tensor([0, 2]), torch.tensor([1, 3]), label=torch.tensor([1.0, 0.75]))
    labeled, report = consistency_labels(pairs, c, groups)
    assert labeled.label.tolist() == [1.0, 0.25 * 0.75 + 0.75 * 0.25]
    assert report.relabeled == 1 and report.numbers["mean consistency"] == 0.625
    labeled, _ = consistency_labels(a_pair_each(2), c, groups, average=True)
    assert labeled.label.tolist() == [0.625, 0.625]
    assert consistency_labels(a_pair_each(0), c, groups)[1].numbers["mean consistency"] == 0.0


@pytest.mark.parametrize("c", [0.1, 0.5, 5 / 6])
def test_the_loss_with_that_label(c):
    labeled, _ = consistency_labels(
        a_pair_each(1), torch.tensor([c], dtype=torch.float64), Groups(torch.zeros(2, dtype=torch.int64), 1)
    )
    z = torch.tensor([math.log(c / (1 - c))], dtype=torch.float64, requires_grad=True)
    loss = (-labeled.label * logsigmoid(z) - (1 - labeled.label) * logsigmoid(-z)).sum()
    loss.backward()
    assert z.grad is not None and abs(float(z.grad)) < 1e-12
    if c == 0.5:
        assert loss.item() == pytest.approx(math.log(2))
