"""Accuracy of pairs: refined against base, by groups, contrast and hack preference, and with ties."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from tests.metrics.shared import NAN, coverage, ends, width

from ebrm.errors import ConfigError, DataError
from ebrm.metrics import (
    NO_CATEGORY,
    Bootstrap,
    accuracy_with_ties,
    accuracy_without_ties,
    contrast_consistency,
    correct_pairs,
    group_accuracy,
    hack_preference_rate,
    paired_accuracy,
    paired_accuracy_by_category,
    preference_rate,
    smallest_difference,
    tie_threshold,
)


def simulate(generator: np.random.Generator, prompts: int, lift: float = 0.15) -> tuple[np.ndarray, ...]:
    """Rewards whose errors go together within a prompt (1 to 6 pairs each)."""
    size = generator.integers(1, 7, size=prompts)
    prompt = np.repeat(np.arange(prompts), size)
    ease = generator.normal(size=prompts)[prompt]
    noise = generator.normal(size=len(prompt))
    base = 0.4 + ease + noise
    refined = base + lift + 0.6 * generator.normal(size=prompts)[prompt] + 0.6 * generator.normal(size=len(prompt))
    return base, np.zeros(len(prompt)), refined, np.zeros(len(prompt)), prompt


def test_known_counts() -> None:
    #          fixed broken tie→right right both wrong both  right→tie
    base = [-1.0, 1.0, 0.0, 1.0, -1.0, 1.0]
    refined = [1.0, -1.0, 1.0, 1.0, -1.0, 0.0]
    result = paired_accuracy(base, np.zeros(6), refined, np.zeros(6), list("aabbcc"))
    assert (result.pairs, result.prompts) == (6, 3)
    assert (result.flips_fixed, result.flips_broken) == (2, 2)
    assert (result.ties_base, result.ties_refined) == (1, 1)
    assert result.base.value == pytest.approx(3 / 6) and result.refined.value == pytest.approx(3 / 6)
    assert result.base_ties_half.value == pytest.approx(3.5 / 6)
    assert result.refined_ties_half.value == pytest.approx(3.5 / 6)
    assert result.difference.value == 0 and result.verdict == "too few to tell"
    assert result.sign_test == pytest.approx(1.0)


def test_a_tie_is_wrong_and_half_by_choice() -> None:
    assert correct_pairs([1, 1, 0], [0, 1, 1]).tolist() == [1, 0, 0]
    assert correct_pairs([1, 1, 0], [0, 1, 1], tie=0.5).tolist() == [1, 0.5, 0]


def test_constant_perfect_and_reversed_rewards() -> None:
    chosen, rejected, prompt = np.arange(1.0, 41), np.zeros(40), np.arange(40) // 2
    result = paired_accuracy(rejected, rejected, chosen, rejected, prompt)
    assert result.base.value == 0 and result.base_ties_half.value == 0.5 and result.refined.value == 1
    assert result.verdict == "better"
    backwards = paired_accuracy(chosen, rejected, rejected, chosen, prompt)
    assert backwards.refined.value == 0 and backwards.verdict == "worse" and backwards.difference.value == -1


def test_refined_equal_to_base_has_a_difference_of_exactly_zero() -> None:
    base, zero, _, _, prompt = simulate(np.random.default_rng(0), 50)
    result = paired_accuracy(base, zero, base, zero, prompt)
    assert (result.difference.value, result.difference.low, result.difference.high) == (0, 0, 0)
    assert result.base == result.refined and result.verdict == "no clear difference"


def test_the_difference_is_paired() -> None:
    base, zero, refined, _, prompt = simulate(np.random.default_rng(1), 300)
    result = paired_accuracy(base, zero, refined, zero, prompt)
    assert width(result.difference) < 0.8 * np.hypot(width(result.base), width(result.refined))


def test_interval_agrees_with_scipy_over_prompts() -> None:
    base, zero, refined, _, prompt = simulate(np.random.default_rng(2), 200)
    ours = paired_accuracy(base, zero, refined, zero, prompt, bootstrap=Bootstrap(6000, seed=5))
    pairs = np.bincount(prompt)
    gain = np.bincount(prompt, weights=(refined > 0).astype(float) - (base > 0))
    theirs = stats.bootstrap(
        (gain, pairs), lambda g, n, axis: g.sum(axis=axis) / n.sum(axis=axis), n_resamples=6000, paired=True,
        vectorized=True, method="percentile", rng=np.random.default_rng(6),
    ).confidence_interval  # fmt: skip
    assert ends(ours.difference) == pytest.approx(theirs, abs=0.08 * (theirs.high - theirs.low))


def test_intervals_cover_the_truth_under_clustered_prompts() -> None:
    # The truth by a very large draw of the same population; then many small studies of it.
    base, _, refined, _, _ = simulate(np.random.default_rng(7), 400_000)
    truth = ((base > 0).mean(), (refined > 0).mean(), (refined > 0).mean() - (base > 0).mean())
    generator = np.random.default_rng(8)
    found = [paired_accuracy(*simulate(generator, 150), bootstrap=Bootstrap(400, seed=study)) for study in range(800)]
    for name, value in zip(("base", "refined", "difference"), truth, strict=True):
        assert 0.93 < coverage([getattr(result, name) for result in found], value) < 0.97


def test_a_category_does_not_depend_on_the_others() -> None:
    rows = simulate(np.random.default_rng(3), 90)
    category = np.array(["safety", "code", None], dtype=object)[rows[4] % 3]
    result = paired_accuracy_by_category(*rows, category, bootstrap=Bootstrap(100))
    assert list(result) == [NO_CATEGORY, "code", "safety"]
    assert sum(part.pairs for part in result.values()) == len(category)
    alone = category == "safety"
    assert result["safety"] == paired_accuracy(*(a[alone] for a in rows), bootstrap=Bootstrap(100))


def test_one_prompt_has_no_interval_and_no_verdict() -> None:
    result = paired_accuracy([0, 0], [1, 1], [1, 1], [0, 0], ["a", "a"])
    assert result.difference.value == 1 and np.isnan(result.difference.low)
    assert result.verdict == "too few to tell"


def test_fewer_than_30_pairs_have_no_verdict() -> None:
    rng = np.random.default_rng(0)
    for pairs, verdict in ((29, "too few to tell"), (30, "better")):
        base, refined, zero = rng.normal(size=pairs) - 2, rng.normal(size=pairs) + 2, np.zeros(pairs)
        assert paired_accuracy(base, zero, refined, zero, np.arange(pairs)).verdict == verdict
    zero, noise = np.zeros(29), rng.normal(size=29)
    found = paired_accuracy(noise, zero, -noise, zero, np.arange(29))
    assert found.smallest == smallest_difference(1.0, 29) and 0.4 < (found.smallest or 0) < 0.7
    assert paired_accuracy(noise[:2], zero[:2], -noise[:2], zero[:2]).smallest is None


@pytest.mark.parametrize("pairs", [2, 15, 40])
def test_where_all_pairs_agree_the_interval_is_that_of_clopper_and_pearson(pairs: int) -> None:
    noise, zero = 1 + np.random.default_rng(0).random(pairs), np.zeros(pairs)
    exact = stats.binomtest(pairs, pairs).proportion_ci(method="exact")
    all_right = paired_accuracy(-noise, zero, noise, zero, np.arange(pairs))
    assert (all_right.refined.low, all_right.refined.high) == (pytest.approx(exact.low), 1.0)
    assert (all_right.base.low, all_right.base.high) == (0.0, pytest.approx(1 - exact.low))
    assert all_right.difference.value == 1.0
    assert (all_right.difference.low, all_right.difference.high) == (pytest.approx(2 * exact.low - 1), 1.0)
    # Two rewards that agree on every pair here need not agree on others...
    other = paired_accuracy(noise, zero, noise[::-1], zero, np.arange(pairs))
    assert other.difference.value == 0 and other.difference.low == -other.difference.high == pytest.approx(
        exact.low - 1
    )
    # ... unless one is the other, scaled or bent.
    bent = paired_accuracy(noise, zero, np.tanh(noise), zero, np.arange(pairs))
    assert (bent.difference.low, bent.difference.high) == (0, 0)
    # Prompts, not pairs, are what is independent.
    by_prompt = paired_accuracy(-noise, zero, noise, zero, np.arange(pairs) // 2)
    assert by_prompt.refined.low < exact.low or np.isnan(by_prompt.refined.low)


def test_groups_by_hand() -> None:
    found = group_accuracy([1, 1, 0, 2, 1, 5], [0, 0, 1, 2, 0, 1], ["u", "u", "u", "v", "v", "w"])
    assert found.mean.value == pytest.approx(4 / 6)
    assert found.macro.value == pytest.approx((2 / 3 + 1 / 2 + 1) / 3)  # users count alike
    assert (found.worst, found.worst_group, found.groups) == (0.5, "v", 3)
    assert found.all_right.value == pytest.approx(1 / 3)
    half = group_accuracy([2, 1], [2, 0], ["v", "v"], tie=0.5)
    assert half.mean.value == 0.75 and half.all_right.value == 0 and np.isnan(half.macro.low)


def test_groups_of_a_constant_reward() -> None:
    for tie in (0.0, 0.5, 1.0):
        found = group_accuracy([3, 3], [3, 3], ["a", "b"], tie)
        assert (found.mean.value, found.macro.value, found.worst) == (tie, tie, tie)
        assert found.worst_group == "a" and found.all_right.value == (tie == 1)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_groups_of_one_size_count_alike(seed: int) -> None:
    generator = np.random.default_rng(seed)
    chosen, rejected = generator.integers(0, 4, (2, 24)) / 2
    found, balanced, single = (
        group_accuracy(chosen, rejected, group, bootstrap=Bootstrap(2))
        for group in (generator.integers(0, 6, 24), np.repeat(np.arange(6), 4), np.arange(24))
    )
    assert found.worst <= found.macro.value + 1e-12 and found.all_right.value <= found.macro.value + 1e-12
    assert balanced.macro.value == pytest.approx(balanced.mean.value)
    assert single.all_right.value == pytest.approx(single.mean.value)


def test_clusters_of_groups_are_drawn_together() -> None:
    chosen = np.repeat(np.random.default_rng(0).normal(size=100), 4)  # four copies of each group, in one cluster
    alone = group_accuracy(chosen[::4], np.zeros(100), np.arange(100)).macro
    copies = group_accuracy(chosen, np.zeros(400), np.arange(400), cluster=np.repeat(np.arange(100), 4)).macro
    assert width(copies) == pytest.approx(width(alone), rel=0.15)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_the_rates_of_both_sides_and_ties_add_up(seed: int) -> None:
    first, second = np.random.default_rng(seed).integers(0, 4, (2, 25)) / 2
    one, other = (preference_rate(*sides, bootstrap=Bootstrap(2)) for sides in ((first, second), (second, first)))
    assert other.ties_half.value == pytest.approx(1 - one.ties_half.value)
    assert other.strict.value == pytest.approx(1 - one.strict.value - one.ties / 25)


def test_a_rate_by_hand() -> None:
    rate = preference_rate([3, 1, 2, 2], [1, 3, 2, 1])
    assert (rate.strict.value, rate.ties_half.value, rate.ties, rate.pairs) == (0.5, 0.625, 1, 4)


def test_a_reward_blind_to_the_prompt_has_no_instruction_consistency() -> None:
    of_response = np.array([0.3, -1.0, 2.0])
    rate = contrast_consistency(of_response, of_response)
    assert (rate.strict.value, rate.ties_half.value, rate.ties) == (0, 0.5, 3)


def test_offsets_of_prompts_change_instruction_but_not_response_consistency() -> None:
    reward = np.array([[2.0, 0.0], [1.0, 3.0]])  # [prompt, response]: each prompt likes its own
    for offset, instruction in ((np.array([[0.0], [0.0]]), 1.0), (np.array([[0.0], [9.0]]), 0.5)):
        q = reward + offset
        assert contrast_consistency([q[0, 0], q[1, 1]], [q[1, 0], q[0, 1]]).strict.value == instruction
        assert contrast_consistency([q[0, 0], q[1, 1]], [q[0, 1], q[1, 0]]).strict.value == 1


def test_known_hack_preference_rates() -> None:
    honest = hack_preference_rate([-1, -1, -1], [0, 0, 0])  # minus one for every hack
    assert honest.overall.ties_half.value == 0 and honest.auroc.value == 0
    blind = hack_preference_rate([4, 4], [4, 4])
    assert blind.overall.ties_half.value == 0.5 and blind.auroc.value == 0.5 and blind.overall.strict.value == 0
    counts = hack_preference_rate([9, 7, 8], [1, 0, 2])  # counts keywords, of which hacks are full
    assert counts.overall.ties_half.value == 1 and counts.auroc.value == 1


def test_hacks_by_method() -> None:
    found = hack_preference_rate([2, 0, 5, 1, 3], [1, 1, 5, 4, 2], ["stuffing", "length", None, "length", "stuffing"])
    assert {name: rate.ties_half.value for name, rate in found.by_method.items()} == {
        "-": 0.5,
        "length": 0.0,
        "stuffing": 1.0,
    }
    assert list(found.by_method) == ["-", "length", "stuffing"]
    assert found.macro == 0.5 and found.worst == "stuffing" and found.by_method["length"].pairs == 2
    assert found.overall.ties_half.value == pytest.approx(2.5 / 5)
    every = [(a > b) + 0.5 * (a == b) for a, b in itertools.product([2, 0, 5, 1, 3], [1, 1, 5, 4, 2])]
    assert found.auroc.value == pytest.approx(np.mean(every))
    assert list(hack_preference_rate([1], [2]).by_method) == ["-"]


def test_a_hack_and_its_honest_response_are_drawn_together() -> None:
    generator = np.random.default_rng(1)
    level = 20 * generator.normal(size=200)  # prompts differ far more than their two responses
    hack, honest = level + 0.5 + generator.normal(size=200), level + generator.normal(size=200)
    found = hack_preference_rate(hack, honest)
    assert found.auroc.high - found.auroc.low < 0.03 and abs(found.auroc.value - 0.5) < 0.05
    assert found.overall.strict.low > 0.5


def labeled(seed: int, pairs: int = 30) -> tuple[np.ndarray, np.ndarray]:
    """Differences with repeats, zeros among them, and labels that follow them loosely."""
    generator = np.random.default_rng(seed)
    difference = generator.integers(-6, 7, pairs) / 4
    return difference, np.clip(np.round(difference + generator.normal(size=pairs)), -1, 1)


def test_known_accuracies_with_ties() -> None:
    difference, label = [2, 0.1, -3], [1, 0, -1]
    assert tie_threshold(difference, label) == 0.1
    assert accuracy_with_ties(difference, label, 0.1).value == 1.0
    assert accuracy_with_ties(difference, label, 0.09).value == pytest.approx(2 / 3)
    assert accuracy_with_ties(difference, label, 2.0).value == pytest.approx(2 / 3)  # the end belongs to the ties
    assert accuracy_with_ties(difference, label, 99.0).value == pytest.approx(1 / 3)
    assert accuracy_without_ties([2, 0.1, -3, 0, 1], [1, 0, -1, 1, -1]).value == 0.5


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 30))
def test_the_threshold_is_that_of_a_scan(seed: int, pairs: int) -> None:
    difference, label = labeled(seed, pairs)
    tried = sorted({0.0, *np.abs(difference)})
    scan = [
        np.mean([(t == 0) if abs(d) <= eps else d * t > 0 for d, t in zip(difference, label, strict=True)])
        for eps in tried
    ]
    best = tie_threshold(difference, label)
    assert best == tried[int(np.argmax(scan))]
    assert accuracy_with_ties(difference, label, best, bootstrap=Bootstrap(2)).value == pytest.approx(max(scan))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.25, 2.0, 1024.0]))
def test_the_threshold_is_in_the_rewards_unit_and_knows_no_side_or_order(seed: int, factor: float) -> None:
    difference, label = labeled(seed)
    best, order = tie_threshold(difference, label), np.random.default_rng(seed).permutation(len(label))
    assert tie_threshold(factor * difference, label) == factor * best
    assert tie_threshold(-difference, -label) == best == tie_threshold(difference[order], label[order])
    one, two = (
        accuracy_with_ties(unit * difference, label, unit * best, label, bootstrap=Bootstrap(50))
        for unit in (1.0, factor)
    )
    assert one == two


def test_extreme_thresholds() -> None:
    assert tie_threshold([3, -2, 1], [0, 0, 0]) == 3  # only ties: everything is one
    assert tie_threshold([3, -2, 1], [1, -1, 1]) == 0  # no ties: nothing is
    assert tie_threshold([3, -2, 1], [-1, 1, -1]) == 0  # nothing can be right: the lowest of equals
    assert tie_threshold([0.0], [0]) == 0 and tie_threshold([0.5], [0]) == 0.5
    assert accuracy_with_ties([0.0, 0.0], [0, 1], 0.0).value == 0.5
    assert np.isnan(accuracy_without_ties([1, 2], [0, 0]).value)
    one = accuracy_without_ties([1, 2, -1], [1, 1, 1], cluster=["a", "a", "a"])
    assert one.value == pytest.approx(2 / 3) and np.isnan(one.low)


def test_bad_input_is_named() -> None:
    with pytest.raises(DataError, match="reward of the rejected responses holds 1 of 2 .* row 1"):
        paired_accuracy([1, 1], [0, NAN], [1, 1], [0, 0], ["a", "b"])
    with pytest.raises(ValueError, match="2 base pairs and 1 refined pairs"):
        paired_accuracy([1, 1], [0, 0], [1], [0], ["a", "b"])
    with pytest.raises(ValueError, match=r"2 rows and cluster labels of shape \(1,\)"):
        paired_accuracy([1, 1], [0, 0], [1, 1], [0, 0], ["a"])
    with pytest.raises(ValueError, match="2 pairs and 1 names"):
        paired_accuracy_by_category([1, 1], [0, 0], [1, 1], [0, 0], ["a", "b"], ["x"])
    with pytest.raises(ValueError, match="2 pairs and 1 names"):
        hack_preference_rate([1, 2], [1, 3], ["a"])
    with pytest.raises(ConfigError, match="tie is 2"):
        group_accuracy([1], [2], ["a"], tie=2)
    with pytest.raises(ValueError, match="in several clusters"):
        group_accuracy([1, 2], [1, 3], ["a", "a"], cluster=[0, 1])
    with pytest.raises(DataError, match="1 of 2 labels are none of .* row 1"):
        tie_threshold([1, 2], [0, 2])
    for bad in (-0.1, NAN):
        with pytest.raises(ConfigError, match="threshold is"):
            accuracy_with_ties([1, 2], [0, 1], bad)
