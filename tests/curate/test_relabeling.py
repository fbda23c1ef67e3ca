from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kendalltau, spearmanr
from tests.curate.made_pairs import a_pair_each, generator
from torch.nn.functional import logsigmoid

from ebrm.curate import (
    Strength,
    adaptive_margin,
    consistency_labels,
    dynamic_labels,
    flip_weakest,
    preference_strength,
    rank_consistency,
    soften_labels,
)
from ebrm.groups import Groups
from ebrm.pairs import PreferencePairs


def strength(*mean):
    return Strength(torch.tensor(mean, dtype=torch.float64), torch.zeros(len(mean)))


def test_mean_and_population_deviation():
    difference = torch.tensor([[1.0, -2.0, 0.0], [3.0, -2.0, 1.0], [5.0, -2.0, -4.0]])
    found = preference_strength(difference)
    assert found.mean.tolist() == pytest.approx([3.0, -2.0, -1.0])
    assert found.std.tolist() == pytest.approx(np.std(difference.numpy(), axis=0, ddof=0).tolist())
    one = preference_strength(difference[:1])
    assert one.mean.tolist() == [1.0, -2.0, 0.0] and one.std.tolist() == [0.0] * 3


def test_copies_of_one_model_do_not_disagree_at_all():
    difference = torch.tensor([[0.1, -0.7, 1e9 + 0.3]], dtype=torch.float64)
    found = preference_strength(difference.repeat(3, 1))
    assert found.std.tolist() == [0.0] * 3 and torch.equal(found.mean, difference[0])


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 4), st.floats(0.1, 10))
def test_offsets_do_not_matter_scale_goes_through_and_a_flip_negates(seed, models, scale):
    random = generator(seed)
    pairs, reward = a_pair_each(6), torch.randn(models, 12, generator=random, dtype=torch.float64)
    found = preference_strength(pairs.difference(reward))
    prompt = torch.randn(models, 6, generator=random, dtype=torch.float64).repeat_interleave(2, 1)
    moved = preference_strength(pairs.difference(reward + prompt))
    torch.testing.assert_close(moved.mean, found.mean)
    torch.testing.assert_close(moved.std, found.std, atol=1e-9, rtol=0)
    torch.testing.assert_close(preference_strength(pairs.difference(scale * reward)).std, scale * found.std)
    flipped, _ = pairs.after("flip", flip=torch.ones(6, dtype=torch.bool))
    torch.testing.assert_close(preference_strength(flipped.difference(reward)).mean, -found.mean)
    order = torch.randperm(6, generator=random)
    torch.testing.assert_close(preference_strength(pairs.select(order).difference(reward)).mean, found.mean[order])


def test_the_lowest_fifth_is_flipped():
    pairs = a_pair_each(10)
    weak = strength(3, -1, 0.5, 2, -0.2, 4, 1, 0.1, 6, 5)
    flipped, report = flip_weakest(pairs, weak)
    assert ((flipped.done[:, 1] > 0).nonzero().flatten()).tolist() == [1, 4]
    assert report.flipped == 2 and report.kept == 10 and report.numbers["mean strength"] == pytest.approx(2.04)
    again, _ = pairs.after("x", flip=flipped.done[:, 1] > 0)
    assert torch.equal(again.chosen, flipped.chosen)
    # Whatever its sign, unless bounded.
    assert flip_weakest(pairs, weak, 0.4)[1].flipped == 4
    assert flip_weakest(pairs, weak, 0.4, below=0.0)[1].flipped == 2
    assert flip_weakest(pairs, weak, 0.4, below=-0.2)[1].flipped == 1
    assert flip_weakest(pairs, weak, 0.0)[1].flipped == 0 and flip_weakest(pairs, weak, 1.0)[1].flipped == 10
    assert flip_weakest(a_pair_each(100), strength(*range(100)), 0.29)[1].flipped == 29


def test_equal_strengths_are_flipped_together_or_not_at_all():
    tied = strength(0, 0, 1, 1, 1)
    assert flip_weakest(a_pair_each(5), tied, 0.2)[1].flipped == 0
    assert flip_weakest(a_pair_each(5), tied, 0.4)[1].flipped == 2
    assert flip_weakest(a_pair_each(5), tied, 0.8)[1].flipped == 2
    assert flip_weakest(a_pair_each(5), strength(*[2.0] * 5), 0.8)[1].flipped == 0


def test_weak_and_strongest_labels_are_softened():
    pairs = PreferencePairs.of(
        2 * torch.arange(5), 2 * torch.arange(5) + 1, label=torch.tensor([1.0, 1.0, 0.9, 1.0, 0.5], dtype=torch.float64)
    )
    soft, report = soften_labels(pairs, strength(-1, 0, -2, 5, 3), smoothing=0.2, strongest=0.4)
    assert soft.label.tolist() == pytest.approx([0.8, 1.0, 0.8 * 0.9 + 0.2 * 0.1, 0.8, 0.5])
    assert report.relabeled == 3  # a tie stays one
    assert soften_labels(pairs, strength(-1, 0, -2, 5, 3), 0.5, weak=10.0)[0].label.tolist() == [0.5] * 5
    assert soften_labels(pairs, strength(-1, 0, -2, 5, 3), 0.0, weak=10.0)[1].relabeled == 0


@pytest.mark.parametrize("smoothing", [0.1, 0.3, 0.5])
def test_the_gradient_of_a_softened_pair_vanishes_at_the_logit(smoothing):
    soft, _ = soften_labels(a_pair_each(1), strength(-1), smoothing)
    d = torch.tensor([math.log((1 - smoothing) / smoothing)], dtype=torch.float64, requires_grad=True)
    loss = -soft.label * logsigmoid(d) - (1 - soft.label) * logsigmoid(-d)
    loss.sum().backward()
    assert d.grad is not None and abs(float(d.grad)) < 1e-12


def test_the_margin_is_the_strength():
    voted = strength(0.5, -1.5)
    with_margin, report = adaptive_margin(a_pair_each(2), voted)
    assert with_margin.margin.tolist() == [0.5, -1.5] and report.new_margins == 2
    assert report.numbers["mean margin"] == pytest.approx(-0.5)
    loss = -logsigmoid(voted.mean.double() - with_margin.margin)
    assert loss.tolist() == pytest.approx([math.log(2)] * 2)


def test_flip_then_margin_asks_for_what_the_models_say():
    reward = torch.tensor([[0.0, 2.0, 1.0, 0.0], [0.0, 1.0, 3.0, 0.0]])
    pairs = a_pair_each(2)
    flipped, _ = flip_weakest(pairs, preference_strength(pairs.difference(reward)), 0.5)
    final, _ = adaptive_margin(flipped, preference_strength(flipped.difference(reward)))
    assert final.chosen.tolist() == [1, 2] and final.margin.tolist() == [1.5, 2.0]
    assert final.history(0) == ["given: made", "flip the weakest: flipped", "adaptive margin: margin"]


def test_no_pairs_and_one():
    none = preference_strength(torch.zeros(3, 0))
    for step in (flip_weakest, adaptive_margin):
        assert step(a_pair_each(0), none)[1].given == 0
    assert soften_labels(a_pair_each(0), none, 0.1)[1].relabeled == 0
    assert flip_weakest(a_pair_each(1), strength(-1))[1].flipped == 0  # a fifth of one pair is none


def test_five_steps_at_one_difference():
    pairs = a_pair_each(1)
    for _ in range(5):
        pairs, report = dynamic_labels(pairs, torch.tensor([-1.0], dtype=torch.float64))
    belief = 1 / (1 + math.e)
    assert pairs.label.item() == pytest.approx(0.7006242, abs=1e-7)
    assert pairs.label.item() == pytest.approx(belief + 0.9**5 * (1 - belief), abs=1e-12)
    assert report.relabeled == 1 and len(pairs.steps) == 6


def test_the_gradient_vanishes_where_the_label_is_the_belief():
    d = torch.tensor([-2.0, 0.3, 5.0], dtype=torch.float64, requires_grad=True)
    pairs, _ = dynamic_labels(a_pair_each(3), d, rate=1.0)
    torch.testing.assert_close(pairs.label, torch.sigmoid(d.detach()))
    assert not pairs.label.requires_grad
    (-(pairs.label * logsigmoid(d) + (1 - pairs.label) * logsigmoid(-d))).sum().backward()
    assert d.grad is not None and float(d.grad.abs().max()) < 1e-12


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1), st.floats(-800, 800)), min_size=1, max_size=10), st.floats(0, 1))
def test_labels_stay_probabilities_between_label_and_belief(rows: list[tuple[float, float]], rate):
    label, difference = torch.tensor(rows, dtype=torch.float64).T
    pairs = PreferencePairs.of(2 * torch.arange(len(rows)), 2 * torch.arange(len(rows)) + 1, label=label)
    moved, _ = dynamic_labels(pairs, difference, rate)
    belief = torch.sigmoid(difference)
    assert bool((moved.label >= torch.minimum(label, belief) - 1e-12).all())
    assert bool((moved.label <= torch.maximum(label, belief) + 1e-12).all())
    assert bool(((moved.label >= 0) & (moved.label <= 1)).all())


def test_rate_0_changes_nothing():
    pairs, report = dynamic_labels(a_pair_each(2), torch.tensor([-3.0, 1.0]), rate=0.0)
    assert pairs.label.tolist() == [1.0, 1.0] and report.relabeled == 0 and report.numbers["mean move"] == 0.0


def test_no_pairs_and_refusals():
    assert dynamic_labels(a_pair_each(0), torch.zeros(0))[1].numbers == {"mean move": 0.0}


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
