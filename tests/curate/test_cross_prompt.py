from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.curate.made_pairs import generator
from torch.nn.functional import logsigmoid

from ebrm.curate import cross_prompt_pairs


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
