from __future__ import annotations

import math

import pytest
import torch
from tests.curate.made_pairs import a_pair_each, fit_linear, generator, separable
from torch import Tensor

from ebrm.curate import (
    Head,
    cross_fitted_difference,
    estimated_noise,
    flip_weakest,
    head_difference,
    preference_strength,
)
from ebrm.errors import ConfigError, DataError
from ebrm.groups import Groups
from ebrm.pairs import PreferencePairs


def remember(embedding: Tensor, pairs: PreferencePairs) -> Head:
    """A head that knows by heart the rows it was fitted to (their first number is the row), and nothing else."""
    best = set(pairs.chosen.tolist())
    return lambda rows: torch.tensor([1.0 if int(row) in best else 0.0 for row in rows[:, 0]])


def test_no_head_judges_what_it_was_fitted_to() -> None:
    pairs, embedding = a_pair_each(20), torch.arange(40.0)[:, None]
    assert head_difference(remember(embedding, pairs), embedding, pairs).tolist() == [1.0] * 20
    found = cross_fitted_difference(pairs, embedding, remember, generator(), folds=4, repeats=3)
    assert found.shape == (3, 20) and bool((found == 0).all())


def test_pairs_that_share_a_row_or_a_prompt_are_judged_together() -> None:
    # A chain 0 > 1 > 2 > 3 and pairs of their own: with row 1 known from one pair, the other would not be 0.
    pairs = PreferencePairs.of(torch.tensor([0, 1, 2, 4, 6, 8]), torch.tensor([1, 2, 3, 5, 7, 9]))
    embedding = torch.arange(10.0)[:, None]
    for seed in range(10):
        found = cross_fitted_difference(pairs, embedding, remember, generator(seed), folds=2)
        assert bool((found == 0).all())
    calls: list[set[int]] = []

    def fit(embedding: Tensor, pairs: PreferencePairs) -> Head:
        calls.append(set(pairs.origin.tolist()))
        return remember(embedding, pairs)

    prompt = Groups.of([0, 0, 0, 0, 1, 1, 0, 0, 1, 1])  # pairs 0, 1, 2, 4 and 3, 5
    cross_fitted_difference(pairs, embedding, fit, generator(), folds=2, prompt=prompt)
    assert sorted(calls, key=len) == [{3, 5}, {0, 1, 2, 4}]
    with pytest.raises(DataError, match="6 pairs fall into 2 sets .* 3 folds"):
        cross_fitted_difference(pairs, embedding, fit, generator(), folds=3, prompt=prompt)


def test_every_fold_has_its_share_and_the_seed_decides() -> None:
    sizes: list[int] = []

    def fit(embedding: Tensor, pairs: PreferencePairs) -> Head:
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


def test_wrong_labels_are_found_where_the_fitted_head_would_repeat_them() -> None:
    # As many dimensions as pairs: a head fitted to all of them agrees with every wrong label.
    embedding, pairs, wrong = separable(60, 0.1, width=60)
    inside = head_difference(fit_linear(embedding, pairs), embedding, pairs)
    assert estimated_noise(inside[None]) == 0.0
    embedding, pairs, wrong = separable(200, 0.2)
    difference = cross_fitted_difference(pairs, embedding, fit_linear, generator(), repeats=3)
    assert estimated_noise(difference) == pytest.approx(0.2, abs=0.06)
    flipped, _ = flip_weakest(pairs, preference_strength(difference), 0.2)
    assert float((flipped.chosen == 2 * torch.arange(200)).double().mean()) > 0.93


def test_noise_counts_ties_half() -> None:
    assert estimated_noise(torch.tensor([[-1.0, 0.0, 2.0, 3.0], [-1.0, 0.0, -3.0, 3.0]])) == 0.625
    assert math.isnan(estimated_noise(torch.zeros(1, 0)))


def test_refusals() -> None:
    pairs, embedding = a_pair_each(4), torch.zeros(8, 2)
    for folds, repeats in ((1, 1), (2, 0)):
        with pytest.raises(ConfigError, match=f"{folds} folds, {repeats} times"):
            cross_fitted_difference(pairs, embedding, fit_linear, generator(), folds, repeats)
    with pytest.raises(DataError, match="0 pairs fall into 0 sets"):
        cross_fitted_difference(a_pair_each(0), embedding, fit_linear, generator())
    with pytest.raises(DataError, match="rows beyond the 7"):
        cross_fitted_difference(pairs, embedding[:7], fit_linear, generator(), 2)
    with pytest.raises(ValueError, match="3 rows have a prompt, and 8 an embedding"):
        cross_fitted_difference(pairs, embedding, fit_linear, generator(), 2, prompt=Groups.of([0, 1, 2]))
    embedding[3, 1] = math.nan
    with pytest.raises(DataError, match=r"index \(3, 1\)"):
        cross_fitted_difference(pairs, embedding, fit_linear, generator(), 2)


def test_a_head_reads_only_the_rows_of_pairs() -> None:
    embedding = torch.tensor([[1.0], [math.nan], [5.0], [2.0]])
    pairs = PreferencePairs.of(torch.tensor([2, 3]), torch.tensor([0, 2]))
    assert head_difference(lambda rows: 2 * rows[:, 0], embedding, pairs).tolist() == [8.0, -6.0]
    with pytest.raises(ValueError, match="gave 2 rewards for 3 embeddings"):
        head_difference(lambda rows: rows[:2, 0], embedding, pairs)
    with pytest.raises(DataError, match="reward by a fitted head"):
        head_difference(lambda rows: rows[:, 0] * math.inf, embedding, pairs)
