from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, special, stats
from tests.optimize.pools import ragged

from ebrm.optimize import Tilted, best_of_n_gold, best_of_n_kl, pool_tables, pools_by_size, tie_groups, tilt, tilt_to_kl

NAN = np.nan


def test_pools_come_by_size_in_ascending_order():
    reward = [[3, 1, 2], [NAN, 5, 4], [NAN, NAN, NAN], [7, 7, 6]]
    gold = [[0.3, 0.1, 0.2], [NAN, 0.5, 0.4], [NAN, NAN, NAN], [9, 8, 0]]
    found = [(rows.tolist(), r.tolist(), g.tolist()) for rows, r, g in pools_by_size(*pool_tables(reward, gold))]
    assert found == [([1], [[4, 5]], [[0.4, 0.5]]), ([0, 3], [[1, 2, 3], [6, 7, 7]], [[0.1, 0.2, 0.3], [0, 8, 9]])]
    assert list(pools_by_size(np.empty((0, 3)), np.empty((0, 3)))) == []


def test_equal_rewards_are_one_group():
    assert tie_groups(np.array([[1.0, 1.0, 2.0, 3.0, 3.0], [0.0, 1.0, 2.0, 3.0, 4.0]])).tolist() == [
        [0, 0, 1, 2, 2],
        [0, 1, 2, 3, 4],
    ]
    assert tie_groups(np.array([[-3.0]])).tolist() == [[0]]


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


BETAS = [0.05, 0.3, 1.0, 10.0]
KLS = [0.0, 0.01, 0.2, 0.9, 5.0]


def fields(tilted):
    return tilted.beta, tilted.kl, tilted.gold


def same(one, two):
    return all(np.array_equal(a, b, equal_nan=True) for a, b in zip(fields(one), fields(two), strict=True))


def test_known_answers_of_tilting():
    found = tilt([[0.0, 1.0]], [[0.0, 1.0]], [1.0])
    assert [found.beta.item(), found.gold.item()] == pytest.approx([1.0, 0.7310586])
    assert found.kl.item() == pytest.approx(0.1109441, abs=1e-7)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_against_scipy(seed):
    reward, gold = ragged(seed)
    found = tilt(reward, gold, BETAS)
    for i, (one, two) in enumerate(zip(reward, gold, strict=True)):
        there = ~np.isnan(one)
        for j, beta in enumerate(BETAS):
            policy = special.softmax(one[there] / beta)
            assert found.gold[i, j] == pytest.approx(float(policy @ two[there]), abs=1e-12)
            assert found.kl[i, j] == pytest.approx(float(stats.entropy(policy, np.ones(len(policy)))), abs=1e-12)
            assert found.beta[i, j] == beta


def test_the_limits_are_chance_and_the_highest_reward():
    reward, gold = [[1.0, 3.0, 3.0, 0.0]], [[1.0, 2.0, 6.0, 7.0]]
    for betas in ([0.0, np.inf], [1e-320, 1e300], [1e-3, 1e12]):
        found = tilt(reward, gold, betas)
        assert found.gold[0] == pytest.approx([4.0, 4.0])
        assert found.kl[0] == pytest.approx([np.log(2), 0.0], abs=1e-12)
    gold = [[1.0, 2.0, 6.0, 8.0]]
    assert tilt(reward, gold, [0.0, np.inf]).gold[0] == pytest.approx([4.0, 4.25])


@pytest.mark.parametrize("function", [tilt, tilt_to_kl])
def test_a_reward_that_says_nothing_stays_at_the_mean_of_tilting(function):
    found = function([[2.5] * 4, [7.0, NAN, NAN, NAN]], [[1.0, 2.0, 3.0, 4.0], [9.0, NAN, NAN, NAN]], KLS)
    assert found.gold == pytest.approx(np.array([[2.5] * 5, [9.0] * 5]))
    assert found.kl.tolist() == [[0.0] * 5] * 2


def test_kl_stays_in_its_range():
    reward, gold = ragged(2, prompts=300)
    found = tilt(reward, gold, np.geomspace(1e-3, 1e12, 40))
    furthest = np.log((~np.isnan(reward)).sum(axis=1, keepdims=True))
    assert found.kl.min() == 0.0 and (found.kl <= furthest).all()


def test_huge_rewards_are_no_trouble():
    found = tilt([[1e6, -1e6, 1e6 - 1]], [[1.0, 5.0, 2.0]], [1.0])
    assert found.gold.item() == pytest.approx((1 + 2 * np.exp(-1)) / (1 + np.exp(-1)))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_kl_rises_and_expected_reward_with_it_as_the_penalty_falls(seed):
    reward, _ = ragged(seed)
    found = tilt(reward, reward, [np.inf, 10, 1, 0.3, 0.1, 0.01, 0])
    assert np.diff(found.kl, axis=1).min() >= -1e-12 and np.diff(found.gold, axis=1).min() >= -1e-12
    best = reward == np.nanmax(reward, axis=1, keepdims=True)
    size = (~np.isnan(reward)).sum(axis=1)
    assert found.kl[:, -1] == pytest.approx(np.log(size / best.sum(axis=1)), abs=1e-12)
    assert found.kl[:, 0].tolist() == [0.0] * len(reward)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_the_penalty_at_a_kl_is_that_of_a_root_finder(seed):
    generator = np.random.default_rng(seed)
    reward, gold = generator.normal(size=(2, 3, 6)) * 10.0 ** generator.integers(-6, 7)
    target = generator.uniform(0.001, 1.7, 3)
    found = tilt_to_kl(reward, gold, target)
    assert found.kl == pytest.approx(np.tile(target, (3, 1)), abs=1e-9)
    for i in range(3):
        unit = np.std(reward[i])

        def kl_at(log_beta, scores=reward[i] / unit):
            return float(stats.entropy(special.softmax(scores / np.exp(log_beta)), np.ones(6)))

        for j, kl in enumerate(target):
            beta = unit * np.exp(optimize.brentq(lambda b, kl=kl: kl_at(b) - kl, -20, 8, xtol=1e-13))
            assert found.beta[i, j] == pytest.approx(beta, rel=1e-6)
            assert found.gold[i, j] == pytest.approx(float(special.softmax(reward[i] / beta) @ gold[i]), rel=1e-5)


def test_kl_is_a_budget():
    # Two of four tie at the top: no tilt is further from chance than log 2.
    reward, gold = [[1.0, 3.0, 3.0, 0.0]], [[1.0, 2.0, 6.0, 8.0]]
    found = tilt_to_kl(reward, gold, [0.0, 0.5, np.log(2), 1.0, np.inf])
    assert found.kl[0] == pytest.approx([0.0, 0.5, np.log(2), np.log(2), np.log(2)])
    assert found.gold[0, [0, 2, 3, 4]] == pytest.approx([4.25, 4.0, 4.0, 4.0])
    assert found.beta[0, [0, 2, 3, 4]].tolist() == [np.inf, 0.0, 0.0, 0.0]
    # Nearly equal rewards at the top are told apart, however wide the rest is.
    found = tilt_to_kl([[0.0, 1.0, 1.0 + 1e-12]], [[0.0, 0.0, 1.0]], [np.log(1.5), 1.0])
    assert found.kl[0] == pytest.approx([np.log(1.5), 1.0])
    assert found.gold[0, 0] == pytest.approx(0.5, abs=1e-6)
    assert np.log(3) - stats.bernoulli(found.gold[0, 1]).entropy() == pytest.approx(1.0)


def test_small_budgets_are_met():
    reward, _ = ragged(1, levels=1000)
    target = [1e-9, 1e-6, 1e-3]
    found = tilt_to_kl(reward, reward, target)
    there = (~np.isnan(reward)).sum(axis=1) > 1
    assert found.kl[there] == pytest.approx(np.tile(target, (there.sum(), 1)), rel=1e-6)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(1e-4, 1e4), st.floats(-100, 100))
def test_gold_at_a_kl_knows_no_scale_or_offset(seed, scale, offset):
    reward, gold = ragged(seed)
    moved = scale * reward + offset * scale * np.arange(len(reward))[:, None]
    assert tilt_to_kl(moved, gold, KLS).gold == pytest.approx(tilt_to_kl(reward, gold, KLS).gold, abs=1e-6)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_no_other_policy_gets_more_reward_at_its_kl(seed):
    generator = np.random.default_rng(seed)
    reward = generator.normal(size=6)
    policies = generator.dirichlet(np.ones(6) * generator.uniform(0.1, 2), size=50)
    kl = np.array([stats.entropy(policy, np.ones(6)) for policy in policies])
    best = tilt_to_kl(reward[None], reward[None], kl)
    assert (best.gold[0] >= policies @ reward - 1e-9).all()


@pytest.mark.parametrize(("function", "axis"), [(tilt, BETAS), (tilt_to_kl, KLS)])
def test_nothing_depends_on_order_padding_or_the_other_prompts_of_tilting(function, axis, monkeypatch):
    reward, gold = ragged(3, prompts=40, most=9)
    whole = function(reward, gold, axis)
    generator = np.random.default_rng(4)
    places, rows = generator.permutation(9), generator.permutation(40)
    assert same(whole, function(reward[:, places], gold[:, places], axis))
    assert same(Tilted(*(table[rows] for table in fields(whole))), function(reward[rows], gold[rows], axis))
    assert same(whole, function(*(np.hstack([t, np.full((40, 5), NAN)]) for t in (reward, gold)), axis))
    single = [function(reward[i : i + 1], gold[i : i + 1], axis) for i in range(40)]
    assert same(whole, Tilted(*(np.concatenate(parts) for parts in zip(*map(fields, single), strict=True))))
    columns = [function(reward, gold, axis[j : j + 1]) for j in range(len(axis))]
    assert same(whole, Tilted(*(np.hstack(parts) for parts in zip(*map(fields, columns), strict=True))))
    monkeypatch.setattr("ebrm.optimize.pools._CHUNK_CELLS", 100)
    assert same(whole, function(reward, gold, axis))


@pytest.mark.parametrize("function", [tilt, tilt_to_kl])
def test_prompts_without_responses_and_bad_input(function):
    empty = function([[NAN, NAN], [1.0, 2.0]], [[NAN, NAN], [1.0, 2.0]], [0.3])
    assert all(np.isnan(table[0]).all() and np.isfinite(table[1]).all() for table in fields(empty))
    assert function(np.empty((0, 2)), np.empty((0, 2)), KLS).gold.shape == (0, 5)
    assert function([[1.0, 2.0]], [[1.0, 2.0]], []).gold.shape == (1, 0)
