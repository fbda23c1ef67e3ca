from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.optimize.pools import ragged

from ebrm.optimize import best_of_n_gold, best_of_n_kl

NAN = np.nan


def brute_force(reward, gold, n):
    """Mean over all sets of n of the mean gold of those with the highest reward in the set."""
    worth = []
    for chosen in itertools.combinations(range(len(reward)), n):
        best = max(reward[i] for i in chosen)
        worth.append(np.mean([gold[i] for i in chosen if reward[i] == best]))
    return float(np.mean(worth))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_against_all_sets(seed):
    reward, gold = ragged(seed)
    found = best_of_n_gold(reward, gold)
    assert found.shape == reward.shape
    for row, one, two in zip(found, reward, gold, strict=True):
        there = ~np.isnan(one)
        expected = [brute_force(one[there], two[there], n) for n in range(1, there.sum() + 1)]
        assert row == pytest.approx(expected + [NAN] * (len(one) - len(expected)), nan_ok=True, abs=1e-12)


def test_known_answers():
    scores = np.array([[2.0, 4.0, 1.0, 3.0]])
    # Of the six pairs from 1..4, the best is 2 once, 3 twice and 4 three times.
    assert best_of_n_gold(scores, scores)[0] == pytest.approx([2.5, 20 / 6, 15 / 4, 4])
    assert best_of_n_gold(-scores, scores)[0] == pytest.approx([2.5, 10 / 6, 5 / 4, 1])
    # One right response among m is drawn with probability n / m, and then found.
    right = np.eye(1, 5)
    assert best_of_n_gold(right, right)[0] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert best_of_n_gold([[1.0, 1.0, 0.0]], [[1.0, 0.0, 0.0]])[0] == pytest.approx([1 / 3, 1 / 2, 1 / 2])


def test_a_reward_that_says_nothing_stays_at_the_mean():
    gold = np.random.default_rng(0).normal(size=(3, 40))
    found = best_of_n_gold(np.zeros((3, 40)), gold)
    assert found == pytest.approx(np.repeat(gold.mean(1)[:, None], 40, 1), abs=1e-13)


def test_large_pools_are_exact():
    worth = np.full((1, 1500), 0.7)
    assert best_of_n_gold(np.arange(1500.0)[None], worth) == pytest.approx(worth, rel=1e-14)
    # E max of n out of 1..m is n (m + 1) / (n + 1).
    m = 1500
    ranks = np.random.default_rng(1).permutation(m)[None] + 1.0
    n = np.arange(1, m + 1)
    assert best_of_n_gold(ranks, ranks)[0] == pytest.approx(n * (m + 1) / (n + 1), rel=1e-10)
    weight = [math.comb(i, 699) / math.comb(m, 700) for i in range(m)]
    worth = np.random.default_rng(2).normal(size=m)
    found = best_of_n_gold(ranks, worth[ranks.astype(int) - 1])[0, 699]
    assert found == pytest.approx(float(np.dot(weight, worth)), rel=1e-9)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_invariants(seed):
    reward, gold = ragged(seed)
    found = best_of_n_gold(reward, gold)
    # Only the order of rewards counts; the expected reward itself never falls with n; no reward beats the gold.
    assert np.array_equal(found, best_of_n_gold(np.exp(reward) * 7 - 100, gold), equal_nan=True)
    own = best_of_n_gold(reward, reward)
    assert np.nan_to_num(np.diff(own, axis=1)).min() >= -1e-12
    oracle = best_of_n_gold(gold, gold)
    assert np.nan_to_num(oracle - found).min() >= -1e-12
    assert found[:, 0] == pytest.approx(np.nanmean(gold, axis=1), abs=1e-12)
    assert best_of_n_gold(reward, 2 * gold + 3) == pytest.approx(2 * found + 3, nan_ok=True, abs=1e-12)


def test_nothing_depends_on_order_padding_or_the_other_prompts(monkeypatch):
    reward, gold = ragged(3, prompts=40, most=9)
    whole = best_of_n_gold(reward, gold)
    generator = np.random.default_rng(4)
    places, rows = generator.permutation(9), generator.permutation(40)
    assert np.array_equal(whole, best_of_n_gold(reward[:, places], gold[:, places]), equal_nan=True)
    assert np.array_equal(whole[rows], best_of_n_gold(reward[rows], gold[rows]), equal_nan=True)
    wide = [np.hstack([table, np.full((40, 5), NAN)]) for table in (reward, gold)]
    assert np.array_equal(whole, best_of_n_gold(*wide)[:, :9], equal_nan=True)
    single = np.concatenate([best_of_n_gold(reward[i : i + 1], gold[i : i + 1]) for i in range(40)])
    assert np.array_equal(whole, single, equal_nan=True)
    monkeypatch.setattr("ebrm.optimize.pools._CHUNK_CELLS", 81 * 2)
    assert np.array_equal(whole, best_of_n_gold(reward, gold), equal_nan=True)


def test_prompts_without_responses_and_no_prompts():
    assert np.isnan(best_of_n_gold([[NAN, NAN]], [[NAN, NAN]])).all()
    assert best_of_n_gold(np.empty((0, 3)), np.empty((0, 3))).shape == (0, 3)


def test_kl_bound():
    found = best_of_n_kl([1, 2, 4, 16])
    assert found == pytest.approx([0, 0.1931472, 0.6362944, 1.8350887], abs=1e-7)
    assert float(best_of_n_kl(2)) == pytest.approx(math.log(2) - 0.5)


@pytest.mark.parametrize("n", [2, 3, 7])
def test_kl_bound_is_that_of_independent_draws(n):
    # Best of n from a uniform choice of s different rewards: the chance of rank i is (i/s)^n - ((i-1)/s)^n.
    bound = float(best_of_n_kl(n))
    for size, near in ((3, 1.0), (50, 0.1), (5000, 2e-3)):
        chance = np.diff((np.arange(size + 1) / size) ** n)
        kl = float((chance * np.log(chance * size)).sum())
        assert bound - near < kl <= bound
