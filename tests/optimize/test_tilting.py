from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, special, stats
from tests.optimize.pools import ragged

from ebrm.optimize import Tilted, tilt, tilt_to_kl

NAN = np.nan
BETAS = [0.05, 0.3, 1.0, 10.0]
KLS = [0.0, 0.01, 0.2, 0.9, 5.0]


def fields(tilted):
    return tilted.beta, tilted.kl, tilted.gold


def same(one, two):
    return all(np.array_equal(a, b, equal_nan=True) for a, b in zip(fields(one), fields(two), strict=True))


def test_known_answers():
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
def test_a_reward_that_says_nothing_stays_at_the_mean(function):
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
def test_nothing_depends_on_order_padding_or_the_other_prompts(function, axis, monkeypatch):
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
