from __future__ import annotations

import math

import pytest
import torch
from tests.curate.made_pairs import a_pair_each, fit_linear, generator, separable

from ebrm.curate import (
    cross_fitted_difference,
    estimated_noise,
    flip_weakest,
    head_difference,
    preference_strength,
)
from ebrm.groups import Groups
from ebrm.pairs import PreferencePairs


def remember(embedding, pairs):
    """A head that knows by heart the rows it was fitted to (their first number is the row), and nothing else."""
    best = set(pairs.chosen.tolist())
    return lambda rows: torch.tensor([1.0 if int(row) in best else 0.0 for row in rows[:, 0]])


def test_no_head_judges_what_it_was_fitted_to():
    pairs, embedding = a_pair_each(20), torch.arange(40.0)[:, None]
    assert head_difference(remember(embedding, pairs), embedding, pairs).tolist() == [1.0] * 20
    found = cross_fitted_difference(pairs, embedding, remember, generator(), folds=4, repeats=3)
    assert found.shape == (3, 20) and bool((found == 0).all())


def test_pairs_that_share_a_row_or_a_prompt_are_judged_together():
    # A chain 0 > 1 > 2 > 3 and pairs of their own: with row 1 known from one pair, the other would not be 0.
    pairs = PreferencePairs.of(torch.tensor([0, 1, 2, 4, 6, 8]), torch.tensor([1, 2, 3, 5, 7, 9]))
    embedding = torch.arange(10.0)[:, None]
    for seed in range(10):
        found = cross_fitted_difference(pairs, embedding, remember, generator(seed), folds=2)
        assert bool((found == 0).all())
    calls: list[set[int]] = []

    def fit(embedding, pairs):
        calls.append(set(pairs.origin.tolist()))
        return remember(embedding, pairs)

    prompt = Groups.of([0, 0, 0, 0, 1, 1, 0, 0, 1, 1])  # pairs 0, 1, 2, 4 and 3, 5
    cross_fitted_difference(pairs, embedding, fit, generator(), folds=2, prompt=prompt)
    assert sorted(calls, key=len) == [{3, 5}, {0, 1, 2, 4}]


def test_every_fold_has_its_share_and_the_seed_decides():
    sizes: list[int] = []

    def fit(embedding, pairs):
        sizes.append(len(pairs))
        return lambda rows: rows[:, 0]

    embedding = torch.randn(46, 2, generator=generator(1))
    cross_fitted_difference(a_pair_each(23), embedding, fit, generator(), folds=5)
    assert sorted(sizes) == [18, 18, 18, 19, 19]
    embedding, pairs, _ = separable(60, 0.2)
    one, same, other = (
        cross_fitted_difference(pairs, embedding, fit_linear, generator(seed), repeats=2) for seed in (3, 3, 4)
    )
    assert torch.equal(one, same) and not torch.equal(one, other) and not torch.equal(one[0], one[1])


def test_wrong_labels_are_found_where_the_fitted_head_would_repeat_them():
    # As many dimensions as pairs: a head fitted to all of them agrees with every wrong label.
    embedding, pairs, wrong = separable(60, 0.1, width=60)
    inside = head_difference(fit_linear(embedding, pairs), embedding, pairs)
    assert estimated_noise(inside[None]) == 0.0
    embedding, pairs, wrong = separable(200, 0.2)
    difference = cross_fitted_difference(pairs, embedding, fit_linear, generator(), repeats=3)
    assert estimated_noise(difference) == pytest.approx(0.2, abs=0.06)
    flipped, _ = flip_weakest(pairs, preference_strength(difference), 0.2)
    assert float((flipped.chosen == 2 * torch.arange(200)).double().mean()) > 0.93


def test_noise_counts_ties_half():
    assert estimated_noise(torch.tensor([[-1.0, 0.0, 2.0, 3.0], [-1.0, 0.0, -3.0, 3.0]])) == 0.625
    assert math.isnan(estimated_noise(torch.zeros(1, 0)))


def test_a_head_reads_only_the_rows_of_pairs():
    embedding = torch.tensor([[1.0], [math.nan], [5.0], [2.0]])
    pairs = PreferencePairs.of(torch.tensor([2, 3]), torch.tensor([0, 2]))
    assert head_difference(lambda rows: 2 * rows[:, 0], embedding, pairs).tolist() == [8.0, -6.0]
