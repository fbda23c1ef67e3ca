from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from ebrm.metrics import cluster_differences, holm, permutation_test, score_values


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
            (difference, np.zeros(len(difference))),
            lambda x, y, axis: np.sum(x - y, axis=axis),
            permutation_type="samples",
            n_resamples=resamples,
            rng=np.random.default_rng(1),
        )
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
        monkeypatch.setattr("ebrm.metrics.permutation._FEW_KINDS", few)
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
    monkeypatch.setattr("ebrm.metrics.permutation._CHUNK_CELLS", 1)
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
