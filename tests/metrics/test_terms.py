from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from ebrm.errors import DataError
from ebrm.metrics import Bootstrap, bootstrap_scores, clustered_mean, score_values, term_shares

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


def test_the_seed_decides_the_draws() -> None:
    arrays = made(0)
    assert np.array_equal(
        bootstrap_scores(*arrays, bootstrap=Bootstrap(9, seed=1)),
        bootstrap_scores(*arrays, bootstrap=Bootstrap(9, seed=1)),
        equal_nan=True,
    )
    assert not np.array_equal(
        bootstrap_scores(*arrays, bootstrap=Bootstrap(9, seed=1)),
        bootstrap_scores(*arrays, bootstrap=Bootstrap(9, seed=2)),
        equal_nan=True,
    )


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
            [
                norm.cdf(np.array([0.2, -0.3, 0.5]) / np.sqrt(2)),
                norm.cdf(np.array([0.4, -0.1, 0.7]) / np.sqrt(2.49)),
            ],
            axis=1,
        )
        a, b = draws[:, :studies], draws[:, studies:]
        for place, (column, value) in enumerate(((a, truth[0]), (b, truth[1]), (b - a, truth[1] - truth[0]))):
            low, high = np.quantile(column, [0.025, 0.975], axis=0)
            hits[place] += ((low <= value) & (value <= high)).sum()
    coverage = hits / (studies * rounds)
    assert (coverage > 0.93).all() and (coverage < 0.97).all(), coverage


def test_bad_input_is_named() -> None:
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
