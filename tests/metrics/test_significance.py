"""Benchmark scores with their resamples, permutation tests and Holm's correction."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.stats import norm

from ebrm.errors import DataError
from ebrm.metrics import (
    Bootstrap,
    bootstrap_scores,
    cluster_differences,
    clustered_mean,
    holm,
    permutation_test,
    score_values,
    sign_test,
)
from ebrm.metrics.significance import term_shares

Arrays = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def made(seed: int, rows: int = 60, terms: int = 5, scorers: int = 3, scores: int = 4, clusters: int = 20) -> Arrays:
    """Rows of random terms, some terms without rows, some weights zero."""
    generator = np.random.default_rng(seed)
    term = generator.choice(generator.permutation(terms)[: generator.integers(1, terms + 1)], rows)
    weights = generator.random((scores, terms)) * (generator.random((scores, terms)) < 0.6)
    return term, generator.normal(size=(rows, scorers)), generator.integers(0, clusters, rows), weights


def naive(term: np.ndarray, value: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The written rule, one score and one scorer at a time."""
    result = np.full((len(weights), value.shape[1]), np.nan)
    for number, row in enumerate(weights):
        there = [t for t, weight in enumerate(row) if weight > 0 and (term == t).any()]
        if there:
            for scorer in range(value.shape[1]):
                total = sum(row[t] * value[term == t, scorer].mean() for t in there)
                result[number, scorer] = total * row.sum() / sum(row[t] for t in there)
    return result


def test_a_term_without_rows_is_left_out_and_the_others_make_up_for_it() -> None:
    value = np.array([[1.0], [0.0], [1.0], [1.0]])
    weights = [[0.25, 0.25, 0.5], [0, 0, 1], [1, 0, 0], [0.3, 0, 0.1]]
    scores = score_values([0, 0, 1, 1], value, weights)
    assert scores[:, 0] == pytest.approx([0.25 / 0.5 * 0.5 + 0.25 / 0.5, np.nan, 0.5, 0.4 * 0.5], nan_ok=True)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_scores_are_the_written_rule(seed: int) -> None:
    term, value, _, weights = made(seed)
    assert score_values(term, value, weights) == pytest.approx(naive(term, value, weights), nan_ok=True, abs=1e-12)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_draws_are_the_written_rule_on_drawn_clusters(seed: int) -> None:
    term, value, cluster, weights = made(seed, rows=25, clusters=9)
    draws = bootstrap_scores(term, value, cluster, weights, bootstrap=Bootstrap(6, seed=seed))
    labels = np.unique(cluster)
    for draw, drawn in zip(draws, np.random.default_rng(seed).integers(0, len(labels), (6, len(labels))), strict=True):
        rows = np.concatenate([np.flatnonzero(cluster == labels[number]) for number in drawn])
        assert draw == pytest.approx(naive(term[rows], value[rows], weights), nan_ok=True, abs=1e-12)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_nothing_depends_on_the_order_of_rows(seed: int) -> None:
    term, value, cluster, weights = made(seed)
    order = np.random.default_rng(seed).permutation(len(term))
    mixed = term[order], value[order]
    assert np.array_equal(score_values(term, value, weights), score_values(*mixed, weights), equal_nan=True)
    draws = [
        bootstrap_scores(term, value, cluster, weights, bootstrap=Bootstrap(20, seed=3)),
        bootstrap_scores(*mixed, cluster[order], weights, bootstrap=Bootstrap(20, seed=3)),
    ]
    assert np.array_equal(*draws, equal_nan=True)


def test_a_score_does_not_depend_on_the_other_scores_or_scorers() -> None:
    term, value, cluster, weights = made(4)
    alone = bootstrap_scores(term, value[:, 1:2], cluster, weights[2:3], bootstrap=Bootstrap(30, seed=1))
    together = bootstrap_scores(term, value, cluster, weights, bootstrap=Bootstrap(30, seed=1))
    assert np.array_equal(alone, together[:, 2:3, 1:2], equal_nan=True)


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    arrays = (*made(0)[:3], np.ones((2, 5)))
    whole = bootstrap_scores(*arrays, bootstrap=Bootstrap(23, seed=1))
    monkeypatch.setattr("ebrm.metrics.bootstrap._CHUNK_CELLS", 130)
    assert np.array_equal(whole, bootstrap_scores(*arrays, bootstrap=Bootstrap(23, seed=1)), equal_nan=True)
    assert len(np.unique(whole[:, 0, 0])) == 23


def test_scorers_share_their_draws() -> None:
    term, value, cluster, weights = made(1)
    draws = bootstrap_scores(
        term, np.column_stack([value[:, 0], value[:, 0] + 0.25]), cluster, np.ones((1, 5)), bootstrap=Bootstrap(50)
    )
    # The weights sum to 5: 0.25 more on every row is 1.25 more in every draw.
    assert draws[:, 0, 1] - draws[:, 0, 0] == pytest.approx(np.full(50, 1.25))


def test_one_term_is_the_clustered_mean() -> None:
    generator = np.random.default_rng(5)
    cluster = generator.integers(0, 150, 600)
    value = generator.normal(size=150)[cluster] + generator.normal(size=600)
    draws = bootstrap_scores(np.zeros(600, int), value[:, None], cluster, [[1.0]], bootstrap=Bootstrap(8000, seed=1))
    ours = Bootstrap().estimate(float(score_values(np.zeros(600, int), value[:, None], [[1.0]])[0, 0]), draws[:, 0, 0])
    theirs = clustered_mean(value, cluster, bootstrap=Bootstrap(8000, seed=2))
    assert ours.value == pytest.approx(theirs.value)
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.06 * (theirs.high - theirs.low))


def test_one_cluster_has_no_draws() -> None:
    draws = bootstrap_scores([0, 1], [[0.0], [1.0]], ["a", "a"], [[0.5, 0.5]], bootstrap=Bootstrap(5))
    assert draws.shape == (5, 1, 1) and np.isnan(draws).all()


def test_a_small_term_is_missing_from_some_draws() -> None:
    # Term 1 is in one cluster of three: without it (8 of 27 draws) the score is that of term 0 alone.
    draws = bootstrap_scores(
        [0, 0, 1], [[0.0], [0.0], [1.0]], [0, 1, 2], [[0.5, 0.5], [0, 1]], bootstrap=Bootstrap(20_000)
    )[:, :, 0]
    assert np.isnan(draws[:, 1]).mean() == pytest.approx(8 / 27, abs=0.01)
    assert (draws[np.isnan(draws[:, 1]), 0] == 0).all()
    assert np.nanmax(draws[:, 1]) == np.nanmin(draws[:, 1]) == 1
    assert (draws[:, 0] == 1).mean() == pytest.approx(1 / 27, abs=0.005)  # term 0 missing


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_shares_rebuild_the_scores(seed: int) -> None:
    term, value, _, weights = made(seed)
    shares = term_shares(term, weights)
    assert shares[:, term] @ value == pytest.approx(score_values(term, value, weights), nan_ok=True, abs=1e-12)
    empty = np.setdiff1d(np.arange(weights.shape[1]), term)
    known = np.isfinite(shares).all(axis=1)
    assert (shares[np.ix_(known, empty)] == 0).all()


def test_intervals_cover_the_truth_under_clustered_prompts() -> None:
    """Official-like scores of two scorers and their difference, each scorer column pair one simulated study."""
    generator = np.random.default_rng(6)
    hits, studies, rounds = np.zeros(3), 400, 5
    weights = np.array([[0.5, 0.3, 0.2]])
    for number in range(rounds):
        size = generator.integers(1, 7, size=150)
        cluster = np.repeat(np.arange(150), size)
        term = generator.integers(0, 3, len(cluster))  # the rows of one prompt go to several terms
        ease = np.array([0.2, -0.3, 0.5])[term][:, None] + generator.normal(size=(150, studies))[cluster]
        effect = 0.7 * generator.normal(size=(150, studies))[cluster]
        first = ease + generator.normal(size=ease.shape) > 0
        second = 0.2 + ease + effect + generator.normal(size=ease.shape) > 0
        draws = bootstrap_scores(
            term, np.hstack([first, second]), cluster, weights, bootstrap=Bootstrap(400, seed=number)
        )[:, 0]
        truth = weights[0] @ np.stack(
            [norm.cdf(np.array([0.2, -0.3, 0.5]) / np.sqrt(2)), norm.cdf(np.array([0.4, -0.1, 0.7]) / np.sqrt(2.49))],
            axis=1,
        )
        a, b = draws[:, :studies], draws[:, studies:]
        for place, (column, value) in enumerate(((a, truth[0]), (b, truth[1]), (b - a, truth[1] - truth[0]))):
            low, high = np.quantile(column, [0.025, 0.975], axis=0)
            hits[place] += ((low <= value) & (value <= high)).sum()
    coverage = hits / (studies * rounds)
    assert (coverage > 0.93).all() and (coverage < 0.97).all(), coverage


def test_bad_terms_values_and_weights_are_named() -> None:
    with pytest.raises(DataError, match="2 of 3 rows hold a value that is not a finite number, the first is row 1"):
        score_values([0, 0, 0], [[1.0, 0.0], [np.nan, 1.0], [np.inf, 1.0]], [[1.0]])
    with pytest.raises(ValueError, match=r"expected \[k\], \[k, S\] and \[Q, T\]"):
        score_values([0], [1.0], [[1.0]])
    with pytest.raises(ValueError, match=r"expected \[k\], \[k, S\] and \[Q, T\]"):
        score_values([0, 0], [[1.0]], [[1.0]])
    with pytest.raises(ValueError, match="terms 0 to 1, but the weights are of 1 terms"):
        score_values([0, 1], [[1.0], [1.0]], [[1.0]])
    with pytest.raises(ValueError, match="terms -1 to 0"):
        score_values([0, -1], [[1.0], [1.0]], [[1.0]])
    for bad in (-0.1, np.nan):
        with pytest.raises(ValueError, match="a weight is negative or not a finite number"):
            score_values([0], [[1.0]], [[bad]])
    with pytest.raises(ValueError, match="2 values and 1 cluster labels"):
        bootstrap_scores([0, 0], [[1.0], [1.0]], ["a"], [[1.0]])


def studies(generator: np.random.Generator, number: int, lift: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Differences of two exchangeable scorers whose errors go together within a prompt: (prompt [k], [k, number])."""
    prompt = np.repeat(np.arange(60), generator.integers(1, 7, size=60))
    both = generator.normal(size=(2, 60, number))[:, prompt] + generator.normal(size=(2, len(prompt), number))
    return prompt, both[1] - both[0] + lift


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_cluster_differences_add_up_to_the_difference_of_the_scores(seed: int) -> None:
    generator = np.random.default_rng(seed)
    term, cluster = generator.choice([0, 2, 3], 50), generator.integers(0, 12, 50)
    values, weights = generator.normal(size=(50, 2)), generator.random((3, 5)) * [1, 1, 1, 1, 0]
    parts = cluster_differences(term, cluster, values[:, 0] - values[:, 1], weights)
    scores = score_values(term, values, weights)
    assert parts.shape == (len(np.unique(cluster)), 3)
    assert parts.sum(axis=0) == pytest.approx(scores[:, 0] - scores[:, 1], abs=1e-12)
    order = generator.permutation(50)
    assert (
        parts == cluster_differences(term[order], cluster[order], (values[:, 0] - values[:, 1])[order], weights)
    ).all()


def test_a_cluster_adds_its_rows_shares() -> None:
    # Term 0 has three rows and weight 0.6, term 1 has one row and weight 0.4.
    parts = cluster_differences([0, 0, 0, 1], ["b", "a", "b", "a"], [1, -1, 1, 0.5], [[0.6, 0.4]])
    assert parts[:, 0] == pytest.approx([-0.2 + 0.2, 0.4])


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(-3, 3), min_size=1, max_size=9), st.sampled_from([1, 1 / 3, 1e-9, 1e6 / 7]))
def test_few_clusters_are_tested_by_all_patterns(values: list[int], unit: float) -> None:
    observed = abs(sum(values))
    sums = [abs(np.dot(signs, values)) for signs in itertools.product((-1, 1), repeat=len(values))]
    p = permutation_test(unit * np.array([values]).T)
    assert p[0] == pytest.approx(np.mean([total >= observed for total in sums]), abs=1e-12)


def test_agrees_with_scipy() -> None:
    generator = np.random.default_rng(0)
    small, large = generator.normal(0.4, 1, 10), generator.normal(0.1, 1, 80)

    def theirs(difference: np.ndarray, resamples: int) -> float:
        result = stats.permutation_test(
            (difference, np.zeros(len(difference))), lambda x, y, axis: np.sum(x - y, axis=axis),
            permutation_type="samples", n_resamples=resamples, rng=np.random.default_rng(1),
        )  # fmt: skip
        return float(result.pvalue)

    assert permutation_test(small[:, None])[0] == pytest.approx(theirs(small, 2000))  # 1,024 patterns: exact
    p = theirs(large, 20_000)
    assert 0.02 < p < 0.5
    assert permutation_test(large[:, None], 20_000)[0] == pytest.approx(p, abs=5 * np.sqrt(2 * p / 20_000))


def test_equal_steps_are_the_exact_sign_test() -> None:
    # 30 clusters lost, 50 won, 900 equal: with unit steps the test is the binomial one.
    difference = np.repeat([-1.0, 1.0, 0.0], [30, 50, 900])[:, None] / 980
    exact = stats.binomtest(30, 80).pvalue
    assert permutation_test(difference, 200_000)[0] == pytest.approx(exact, abs=4 * np.sqrt(exact / 200_000))


def test_both_ways_of_drawing_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(3)
    difference = generator.choice([-1, -0.5, 0, 0.5, 1], (300, 4), p=[0.15, 0.15, 0.3, 0.2, 0.2])
    found = []
    for few in (0.0, 2.0):
        monkeypatch.setattr("ebrm.metrics.significance._FEW_KINDS", few)
        found.append(permutation_test(difference, 40_000))
    assert found[0] == pytest.approx(found[1], abs=0.012)
    assert (found[0] != found[1]).any()  # they did draw in different ways
    normal = 2 * stats.norm.sf(np.abs(difference.sum(axis=0)) / np.sqrt((difference**2).sum(axis=0)))
    assert found[0] == pytest.approx(normal, abs=0.05)


def test_p_is_uniform_under_the_null() -> None:
    prompt, difference = studies(np.random.default_rng(4), 1500)
    term = np.arange(len(prompt)) % 3
    parts = [cluster_differences(term, prompt, column, [[0.5, 0.3, 0.2]]) for column in difference.T]
    assert stats.kstest(permutation_test(np.hstack(parts), 1999), "uniform").pvalue > 0.05
    # Rows of one prompt go together: taking them apart makes the test too sure of itself, and this check sees it.
    assert stats.kstest(permutation_test(difference, 1999), "uniform").pvalue < 1e-6


def test_the_level_is_kept_with_discrete_values_and_few_clusters() -> None:
    generator = np.random.default_rng(5)
    for clusters in (8, 40):
        difference = generator.choice([-1.0, 0.0, 1.0], (clusters, 4000), p=[0.25, 0.5, 0.25])
        p = permutation_test(difference, 999)
        for level in (0.01, 0.05, 0.2, 0.5):
            assert (p <= level).mean() <= level + 4 * np.sqrt(level / 4000)
        assert (p <= 0.2).mean() > 0.05  # it does reject


def test_power_under_an_alternative() -> None:
    prompt, difference = studies(np.random.default_rng(6), 300, lift=0.9)
    parts = [cluster_differences(np.zeros(len(prompt), int), prompt, column, [[1.0]]) for column in difference.T]
    power = (permutation_test(np.hstack(parts), 999) < 0.05).mean()
    # Standard error of the mean difference of about 60 prompts of sizes 1 to 6: the normal approximation of the power.
    size = np.bincount(prompt)
    error = np.sqrt((2 * size + 2 * size**2).sum()) / size.sum()
    assert power == pytest.approx(stats.norm.sf(1.96 - 0.9 / error), abs=0.06)
    assert 0.5 < power < 1


def test_swapping_the_scorers_or_the_order_of_clusters_changes_nothing() -> None:
    generator = np.random.default_rng(7)
    for difference in (generator.normal(size=(40, 3)), generator.choice([-0.1, 0.0, 0.12], (400, 3))):
        p = permutation_test(difference, 500)
        assert (p == permutation_test(-difference, 500)).all()
        assert (p == permutation_test(difference[generator.permutation(len(difference))], 500)).all()
        assert (p != permutation_test(difference, 500, seed=1)).any()


def test_the_smallest_p_is_one_in_b_plus_one() -> None:
    assert permutation_test(np.ones((100, 1)), 199)[0] == 1 / 200
    assert permutation_test(np.ones((12, 1)), 199)[0] == 2 / 2**12
    assert permutation_test(np.ones((13, 1)), 199)[0] >= 1 / 200


def test_no_difference_is_one_and_no_number_is_nan() -> None:
    difference = np.column_stack([np.zeros(30), np.full(30, np.nan), np.ones(30)])
    p = permutation_test(difference, 99)
    assert p[0] == 1 and np.isnan(p[1]) and p[2] == 1 / 100
    assert permutation_test(np.empty((0, 2))).tolist() == [1, 1]
    assert permutation_test(np.empty((3, 0))).tolist() == []


def test_chunks_cover_every_pattern(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ebrm.metrics.significance._CHUNK_CELLS", 1)
    # All sums but the two extreme ones stay below: p counts the patterns that were drawn.
    difference = np.concatenate([np.full(5, 1e-6), np.linspace(1, 2, 20)])[:, None] * [[1, 0]]
    difference[:, 1] = np.tile([1.0, -1.0], 13)[:25]  # |sum| = 1, the smallest an odd number can have
    p = permutation_test(difference, 77)
    assert p[1] == 1 and 1 / 78 <= p[0] < 0.1


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.4]) == pytest.approx([0.8, 0.8]) and holm([0.9, 0.9]) == pytest.approx([1, 1])
    assert holm([np.nan, 0.02, np.nan, 0.01]) == pytest.approx([np.nan, 0.02, np.nan, 0.02], nan_ok=True)
    assert holm([[0.01, np.nan], [0.02, 0.5]]).shape == (2, 2)
    assert holm([]).shape == (0,) and np.isnan(holm([np.nan])).all()


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8), st.floats(0.001, 0.999))
def test_holm_rejects_what_the_procedure_rejects(p: list[float], level: float) -> None:
    # The procedure as written: from the smallest on, stop at the first p above level / (number left).
    rejected = set()
    for step, place in enumerate(sorted(range(len(p)), key=lambda place: p[place])):
        if p[place] * (len(p) - step) > level:
            break
        rejected.add(place)
    corrected = holm(p)
    assert set(np.flatnonzero(corrected <= level)) == rejected
    assert (corrected >= np.array(p)).all() and (corrected <= 1).all()


def test_holm_keeps_the_family_wise_level() -> None:
    p = np.random.default_rng(8).random((4000, 20))
    found = np.mean([(holm(row) <= 0.05).any() for row in p])
    assert found == pytest.approx(1 - (1 - 0.05 / 20) ** 20, abs=0.012)
    assert (p <= 0.05).any(axis=1).mean() > 0.6  # what it would be without a correction


def test_bad_shapes_are_named() -> None:
    with pytest.raises(ValueError, match=r"expected \[k\] of each"):
        cluster_differences([0, 0], ["a"], [1.0, 2.0], [[1.0]])
    with pytest.raises(ValueError, match=r"expected \[clusters, scores\]"):
        permutation_test(np.ones(3))


def test_sign_test_by_hand() -> None:
    assert sign_test(0, 0) == 1.0
    assert sign_test(5, 0) == pytest.approx(2 * 0.5**5)
    assert sign_test(1, 7) == pytest.approx(2 * 9 * 0.5**8)
    assert sign_test(3, 9) == pytest.approx(sign_test(9, 3))
