from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import stats

from ebrm.errors import ConfigError, DataError
from ebrm.metrics import Bootstrap, Estimate, cluster_sums, clustered_mean, resample_sums
from ebrm.metrics.bootstrap import cluster_draws, cluster_labels, finite_array


def test_cluster_sums_adds_within_labels_in_sorted_order() -> None:
    sums = cluster_sums([[1, 1, 1, 1], [1, 2, 3, 4]], ["b", "a", "b", "c"])
    assert sums.tolist() == [[1, 2], [2, 4], [1, 4]]


def test_cluster_sums_do_not_depend_on_the_order_of_rows_to_the_last_bit() -> None:
    generator = np.random.default_rng(0)
    value, cluster = generator.normal(size=500), generator.integers(0, 40, 500)
    order = generator.permutation(500)
    assert (cluster_sums([value], cluster) == cluster_sums([value[order]], cluster[order])).all()
    alone = cluster_sums([value, value], np.arange(500))
    assert (alone[:, 0] == value).all() and (cluster_sums([value[order]], order)[:, 0] == value).all()


def test_cluster_draws_count_how_often_each_cluster_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ebrm.metrics.bootstrap._CHUNK_CELLS", 200)
    parts = list(cluster_draws(50, bootstrap=Bootstrap(11)))
    assert [len(range(11)[which]) for which, _ in parts] == [4, 4, 3]
    drawn = np.random.default_rng(0).integers(0, 50, (11, 50))
    expected = np.stack([np.bincount(row, minlength=50) for row in drawn], axis=1)
    assert (np.concatenate([times for _, times in parts], axis=1) == expected).all()
    assert [times.shape[1] for _, times in cluster_draws(50, rows=100, bootstrap=Bootstrap(3))] == [2, 1]


def test_one_cluster_has_no_resamples() -> None:
    assert np.isnan(resample_sums(np.array([[2.0, 5.0]]), bootstrap=Bootstrap(7))).all()


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"resamples": 0}, "resamples is 0"), ({"resamples": 2.5}, "resamples is 2.5"),
        ({"resamples": True}, "resamples is True"), ({"seed": -1}, "seed is -1"), ({"level": 0.0}, "level is 0.0"),
        ({"level": 1.0}, "level is 1.0"), ({"level": float("nan")}, "level is nan"),
    ],
)  # fmt: skip
def test_a_bootstrap_outside_its_range_is_refused(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Bootstrap(**wrong)


@pytest.mark.parametrize("distinct", [False, True], ids=["few kinds", "all clusters differ"])
def test_resampled_totals_have_the_bootstrap_mean_and_covariance(distinct: bool) -> None:
    generator = np.random.default_rng(3)
    clusters = 60
    sums = (
        generator.normal(size=(clusters, 2)) if distinct else generator.integers(0, 2, size=(clusters, 2)).astype(float)
    )
    draws = resample_sums(sums, bootstrap=Bootstrap(20_000, seed=4))
    # A total of n draws with replacement has n times the population's mean and covariance.
    expected = clusters * np.cov(sums.T, bias=True)
    assert draws.mean(axis=0) == pytest.approx(sums.sum(axis=0), abs=5 * np.sqrt(expected.max() / 20_000))
    assert np.cov(draws.T) == pytest.approx(expected, rel=0.08, abs=0.5)


def test_chunks_cover_every_resample(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ebrm.metrics.bootstrap._CHUNK_CELLS", 130)
    sums = np.column_stack([np.ones(50), np.arange(50.0)])
    draws = resample_sums(sums, bootstrap=Bootstrap(11))
    assert (draws[:, 0] == 50).all()
    assert len(np.unique(draws[:, 1])) == 11


def test_an_estimate_takes_the_central_share() -> None:
    estimate = Bootstrap(level=0.9).estimate(0.5, np.linspace(0, 1, 1001))
    assert (estimate.value, estimate.low, estimate.high) == pytest.approx((0.5, 0.05, 0.95))


def test_clustered_mean_agrees_with_scipy_when_every_row_is_its_own_cluster() -> None:
    value = np.random.default_rng(0).exponential(size=300)
    ours = clustered_mean(value, np.arange(300), bootstrap=Bootstrap(8000, seed=1))
    theirs = stats.bootstrap(
        (value,), np.mean, n_resamples=8000, method="percentile", rng=np.random.default_rng(2)
    ).confidence_interval
    width = theirs.high - theirs.low
    assert ours.value == pytest.approx(value.mean())
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.06 * width)


def test_rows_of_one_cluster_count_as_one_draw() -> None:
    value = np.random.default_rng(0).normal(size=100)
    once = clustered_mean(value, np.arange(100), bootstrap=Bootstrap(seed=1))
    copied = clustered_mean(np.tile(value, 9), np.tile(np.arange(100), 9), bootstrap=Bootstrap(seed=1))
    assert copied.high - copied.low == pytest.approx(once.high - once.low, rel=0.1)
    ignoring = clustered_mean(np.tile(value, 9), np.arange(900), bootstrap=Bootstrap(seed=1))
    assert ignoring.high - ignoring.low == pytest.approx((once.high - once.low) / 3, rel=0.1)


def test_excludes_is_strict() -> None:
    assert Estimate(1.0, 0.5, 2.0).excludes(0.4) and Estimate(1.0, 0.5, 2.0).excludes(2.1)
    assert not Estimate(1.0, 0.5, 2.0).excludes(0.5) and not Estimate(1.0, 0.5, 2.0).excludes(2.0)


def test_finite_array_names_the_first_bad_row() -> None:
    with pytest.raises(DataError, match=r"the std holds 2 of 4 values .* \(nan\) in row 1"):
        finite_array([0, np.nan, 1, np.inf], "the std")
    with pytest.raises(DataError, match="the std is empty"):
        finite_array([], "the std")
    with pytest.raises(ValueError, match=r"shape \(2,\), expected \(3,\)"):
        finite_array([1, 2], "the std", 3)


def test_cluster_labels_are_one_a_row() -> None:
    assert cluster_labels(None, 3).tolist() == [0, 1, 2]
    assert cluster_labels(["a", "b"], 2).tolist() == ["a", "b"]
    with pytest.raises(ValueError, match=r"2 rows and cluster labels of shape \(3,\)"):
        cluster_labels(["a", "b", "c"], 2)
