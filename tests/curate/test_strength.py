from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.curate.made_pairs import a_pair_each, generator
from torch.nn.functional import logsigmoid

from ebrm.curate import Strength, adaptive_margin, flip_weakest, preference_strength, soften_labels
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
