from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.curate.made_pairs import a_pair_each, fit_linear, generator, separable
from torch.nn.functional import logsigmoid

from ebrm.curate import (
    cross_fitted_difference,
    estimated_noise,
    exchange,
    flip_weakest,
    head_difference,
    independent_heads,
    peer_review,
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


def test_each_head_gets_what_the_other_is_surest_of():
    one, two = torch.tensor([5.0, 1.0, 3.0, -2.0]), torch.tensor([0.0, 4.0, -1.0, 2.0])
    for_one, for_two = exchange(one, two, 0.5)
    assert for_one.tolist() == [False, True, False, True] and for_two.tolist() == [True, False, True, False]
    # The second head's share does not depend on its own opinion.
    assert torch.equal(exchange(one, -two, 0.5)[1], for_two) and not torch.equal(exchange(one, -two, 0.5)[0], for_one)
    same = exchange(one, one, 0.5)
    assert torch.equal(same[0], same[1])
    assert exchange(one, two, 1.0)[0].all() and exchange(one, two, 0.51)[0].sum() == 3
    assert int(exchange(torch.arange(100.0), torch.arange(100.0), 0.55)[0].sum()) == 55
    assert exchange(torch.zeros(3), torch.zeros(3), 0.3)[0].tolist() == [True, False, False]
    assert exchange(torch.zeros(0), torch.zeros(0), 0.3)[0].shape == (0,)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.05, 1), st.floats(0.1, 9), st.integers(-5, 5))
def test_the_exchange_knows_no_scale_offset_or_order(seed, rate, scale, offset):
    random = generator(seed)
    one, two = torch.randn(2, 15, generator=random, dtype=torch.float64)
    found = exchange(one, two, rate)
    moved = exchange(scale * one + offset, two, rate)
    order = torch.randperm(15, generator=random)
    other = exchange(one[order], two[order], rate)
    for mask, again, shuffled in zip(found, moved, other, strict=True):
        assert torch.equal(mask, again) and torch.equal(mask[order], shuffled)
        assert int(mask.sum()) == math.ceil(rate * 15 - 1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_wrong_labels_are_left_out_and_what_is_kept_fits_clean_pairs_better(seed):
    embedding, pairs, wrong = separable(300, 0.3, seed)
    trusted, peers, report = peer_review(pairs, embedding, fit_linear, 0.3, generator(seed))
    assert float((~wrong[trusted.origin]).double().mean()) > 0.95  # 0.7 before
    assert 150 < report.kept == len(trusted) <= 210
    assert report.numbers == {"noise": 0.3, "rounds": 5} and trusted.steps[-1] == "peer review"
    fresh, clean, _ = separable(2000, 0.0, seed + 100)

    def loss(head):
        return float(-logsigmoid(head_difference(head, fresh, clean)).mean())

    # Labels that are wrong at random shrink a linear head rather than turn it, so it is the loss that tells.
    plain, control = fit_linear(embedding, pairs), independent_heads(pairs, embedding, fit_linear, generator(seed))
    assert loss(fit_linear(embedding, trusted)) < 0.5 * min(loss(plain), loss(control.reward))
    assert loss(peers.reward) < 0.5 * min(loss(plain), loss(control.reward))


def test_the_keep_rate_falls_along_the_ramp():
    embedding, pairs, _ = separable(100, 0.2)
    sizes: list[int] = []

    def fit(embedding, pairs):
        sizes.append(len(pairs))
        return fit_linear(embedding, pairs)

    _, peers, _ = peer_review(pairs, embedding, fit, 0.2, generator(), rounds=4, ramp=2)
    assert peers.kept == pytest.approx((0.9, 0.8, 0.8, 0.8))
    assert sizes == [50, 50, 90, 90, 80, 80, 80, 80, 80, 80]
    assert peers.fitted.sum(1).tolist() == [80, 80]


def test_without_noise_both_heads_are_fitted_to_all_pairs():
    embedding, pairs, _ = separable(60, 0.1)
    trusted, peers, report = peer_review(pairs, embedding, fit_linear, 0.0, generator(), rounds=1)
    plain = head_difference(fit_linear(embedding, pairs), embedding, pairs)
    torch.testing.assert_close(peers.difference, plain)
    assert len(trusted) == 60 and report.dropped == 0 and bool(peers.fitted.all())


def test_the_seed_decides():
    embedding, pairs, _ = separable(60, 0.2)
    one, same, other = (
        peer_review(pairs, embedding, fit_linear, 0.2, generator(seed), rounds=1)[1].difference for seed in (0, 0, 1)
    )
    assert torch.equal(one, same) and not torch.equal(one, other)


def test_the_control_averages_two_heads_fitted_to_their_own_draws():
    embedding, pairs, _ = separable(80, 0.2)
    peers = independent_heads(pairs, embedding, fit_linear, generator())
    draws = torch.randint(80, (2, 80), generator=generator())
    for head, draw in zip((peers.first, peers.second), draws, strict=True):
        torch.testing.assert_close(head(embedding), fit_linear(embedding, pairs.select(draw))(embedding))
    assert peers.fitted[0].nonzero().flatten().tolist() == draws[0].unique().tolist() and peers.kept == ()
    torch.testing.assert_close(peers.reward(embedding), (peers.first(embedding) + peers.second(embedding)) / 2)
    torch.testing.assert_close(peers.difference, pairs.difference(peers.reward(embedding)))
