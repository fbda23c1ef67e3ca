from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from ebrm.errors import DataError
from ebrm.metrics import NO_CATEGORY, Bootstrap, correct_pairs, paired_accuracy, paired_accuracy_by_category, sign_test


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
    assert result.difference.value == 0 and result.verdict == "no clear difference"
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
    width = result.difference.high - result.difference.low
    unpaired = np.hypot(result.base.high - result.base.low, result.refined.high - result.refined.low)
    assert width < 0.8 * unpaired


def test_interval_agrees_with_scipy_over_prompts() -> None:
    base, zero, refined, _, prompt = simulate(np.random.default_rng(2), 200)
    ours = paired_accuracy(base, zero, refined, zero, prompt, bootstrap=Bootstrap(6000, seed=5))
    pairs = np.bincount(prompt)
    gain = np.bincount(prompt, weights=(refined > 0).astype(float) - (base > 0))
    theirs = stats.bootstrap(
        (gain, pairs),
        lambda g, n, axis: g.sum(axis=axis) / n.sum(axis=axis),
        n_resamples=6000,
        paired=True,
        vectorized=True,
        method="percentile",
        rng=np.random.default_rng(6),
    ).confidence_interval
    width = theirs.high - theirs.low
    assert (ours.difference.low, ours.difference.high) == pytest.approx((theirs.low, theirs.high), abs=0.08 * width)


def test_intervals_cover_the_truth_under_clustered_prompts() -> None:
    # The truth by a very large draw of the same population; then many small studies of it.
    base, _, refined, _, _ = simulate(np.random.default_rng(7), 400_000)
    truth = ((base > 0).mean(), (refined > 0).mean(), (refined > 0).mean() - (base > 0).mean())
    generator = np.random.default_rng(8)
    studies, hits = 800, np.zeros(3)
    for study in range(studies):
        result = paired_accuracy(*simulate(generator, 150), bootstrap=Bootstrap(400, seed=study))
        estimates = (result.base, result.refined, result.difference)
        hits += [not e.excludes(t) for e, t in zip(estimates, truth, strict=True)]
    assert (hits / studies > 0.93).all() and (hits / studies < 0.97).all(), hits / studies


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_nothing_depends_on_the_order_of_rows(seed: int) -> None:
    generator = np.random.default_rng(seed)
    rows = simulate(generator, 40)
    order = generator.permutation(len(rows[0]))
    category = np.array(["x", "y", None], dtype=object)[rows[4] % 3]
    assert paired_accuracy(*rows, bootstrap=Bootstrap(50)) == paired_accuracy(
        *(a[order] for a in rows), bootstrap=Bootstrap(50)
    )
    assert paired_accuracy_by_category(*rows, category, bootstrap=Bootstrap(50)) == paired_accuracy_by_category(
        *(a[order] for a in rows), category[order], bootstrap=Bootstrap(50)
    )


def test_a_category_does_not_depend_on_the_others() -> None:
    rows = simulate(np.random.default_rng(3), 90)
    category = np.array(["safety", "code", None], dtype=object)[rows[4] % 3]
    result = paired_accuracy_by_category(*rows, category, bootstrap=Bootstrap(100))
    assert list(result) == [NO_CATEGORY, "code", "safety"]
    assert sum(part.pairs for part in result.values()) == len(category)
    alone = category == "safety"
    assert result["safety"] == paired_accuracy(*(a[alone] for a in rows), bootstrap=Bootstrap(100))


def test_the_seed_decides_the_resamples() -> None:
    rows = simulate(np.random.default_rng(3), 90)
    assert paired_accuracy(*rows, bootstrap=Bootstrap(100, seed=1)) == paired_accuracy(
        *rows, bootstrap=Bootstrap(100, seed=1)
    )
    assert paired_accuracy(*rows, bootstrap=Bootstrap(100, seed=1)) != paired_accuracy(
        *rows, bootstrap=Bootstrap(100, seed=2)
    )


def test_sign_test_by_hand() -> None:
    assert sign_test(0, 0) == 1.0
    assert sign_test(5, 0) == pytest.approx(2 * 0.5**5)
    assert sign_test(1, 7) == pytest.approx(2 * 9 * 0.5**8)
    assert sign_test(3, 9) == pytest.approx(sign_test(9, 3))


def test_one_prompt_has_no_interval_and_no_verdict() -> None:
    result = paired_accuracy([0, 0], [1, 1], [1, 1], [0, 0], ["a", "a"])
    assert result.difference.value == 1 and np.isnan(result.difference.low)
    assert result.verdict == "no clear difference"


def test_bad_input_is_named() -> None:
    with pytest.raises(DataError, match="empty"):
        paired_accuracy([], [], [], [], [])
    with pytest.raises(DataError, match="reward of the rejected responses holds 1 of 2 .* row 1"):
        paired_accuracy([1, 1], [0, np.nan], [1, 1], [0, 0], ["a", "b"])
    with pytest.raises(ValueError, match="2 base pairs, 2 refined pairs and 1 prompt ids"):
        paired_accuracy([1, 1], [0, 0], [1, 1], [0, 0], ["a"])
    with pytest.raises(ValueError, match="2 pairs and 1 categories"):
        paired_accuracy_by_category([1, 1], [0, 0], [1, 1], [0, 0], ["a", "b"], ["x"])
    with pytest.raises(DataError, match="no pairs"):
        paired_accuracy_by_category([], [], [], [], [], [])
