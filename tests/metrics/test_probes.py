from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

from ebrm.errors import DataError
from ebrm.metrics import Bootstrap, probe_accuracy

NAN = np.nan


def test_by_hand() -> None:
    found = probe_accuracy(
        [[1, 0], [1, 2], [0, 7], [1, 1]], [[1, 0], [0, 2], [0, NAN], [1, 0]], ("helpfulness", "verbosity")
    )
    first, second = found.by_dimension.values()
    assert (first.accuracy.value, first.majority, first.rows) == (0.75, 0.5, 4)
    assert (second.accuracy.value, second.majority, second.rows) == pytest.approx((2 / 3, 2 / 3, 3))
    assert found.overall.value == pytest.approx((3 / 4 + 2 / 3) / 2)  # dimensions count alike, not rows
    assert list(found.by_dimension) == ["helpfulness", "verbosity"]


def test_probes_of_blobs_and_of_nothing() -> None:
    generator = np.random.default_rng(0)
    label = generator.integers(0, 3, (3000, 2)).astype(float)
    embedding = generator.normal(size=(3000, 8))
    embedding[:, :3] += 12 * np.eye(3)[label[:, 0].astype(int)]  # blobs by the first dimension, nothing of the second
    train, test = slice(0, 2000), slice(2000, 3000)
    predicted = np.stack(
        [LogisticRegression().fit(embedding[train], label[train, n]).predict(embedding[test]) for n in range(2)], axis=1
    )
    found = probe_accuracy(predicted, label[test], ("blobs", "nothing"))
    assert found.by_dimension["blobs"].accuracy.value == 1
    nothing = found.by_dimension["nothing"]
    assert not nothing.accuracy.excludes(1 / 3) and nothing.majority < 0.4
    assert found.overall.low < found.overall.value < found.overall.high


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_order_and_the_numbers_of_classes_do_not_matter(seed: int) -> None:
    generator = np.random.default_rng(seed)
    label = np.where(generator.random((20, 2)) < 0.2, NAN, generator.integers(0, 3, (20, 2)))
    label[0] = 0
    predicted, prompt = generator.integers(0, 3, (20, 2)).astype(float), generator.integers(0, 6, 20)
    found = probe_accuracy(predicted, label, ("a", "b"), prompt, bootstrap=Bootstrap(40))
    order = generator.permutation(20)
    assert found == probe_accuracy(predicted[order], label[order], ("a", "b"), prompt[order], bootstrap=Bootstrap(40))
    assert found == probe_accuracy(5 - 2 * predicted, 5 - 2 * label, ("a", "b"), prompt, bootstrap=Bootstrap(40))
    unlabeled = np.where(np.isnan(label), NAN, predicted)  # what is said of rows without a label is not looked at
    assert found == probe_accuracy(unlabeled, label, ("a", "b"), prompt, bootstrap=Bootstrap(40))
    swapped = probe_accuracy(predicted[:, ::-1], label[:, ::-1], ("b", "a"), prompt, bootstrap=Bootstrap(40))
    assert swapped.by_dimension["a"].accuracy.value == found.by_dimension["a"].accuracy.value


def test_intervals_are_over_clusters() -> None:
    generator = np.random.default_rng(1)
    label, predicted = generator.integers(0, 2, (2, 300, 1)).astype(float)
    alone = probe_accuracy(predicted, label, ("a",)).overall
    copies = (np.repeat(predicted, 4, axis=0), np.repeat(label, 4, axis=0))
    repeated = probe_accuracy(*copies, ("a",), np.repeat(np.arange(300), 4)).overall
    assert repeated.high - repeated.low == pytest.approx(alone.high - alone.low, rel=0.1)
    assert np.isnan(probe_accuracy(predicted, label, ("a",), np.zeros(300)).overall.low)


def test_bad_input_is_named() -> None:
    with pytest.raises(DataError, match="No row has a label in b"):
        probe_accuracy([[1, 1]], [[1, NAN]], ("a", "b"))
    with pytest.raises(DataError, match=r"1 labeled rows .* row 1 \(a\): predicted nan, label 0.0"):
        probe_accuracy([[1], [NAN]], [[1], [0]], ("a",))
    with pytest.raises(DataError, match="an infinite label"):
        probe_accuracy([[1]], [[np.inf]], ("a",))
    with pytest.raises(DataError, match="No row has a label in a"):
        probe_accuracy(np.empty((0, 1)), np.empty((0, 1)), ("a",))
    for dimensions in ((), ("a", "b")):
        with pytest.raises(ValueError, match=r"predictions \(1, 1\), labels \(1, 1\)"):
            probe_accuracy([[1]], [[1]], dimensions)
    with pytest.raises(ValueError, match="two dimensions have one name: a, a"):
        probe_accuracy([[1, 1]], [[1, 1]], ("a", "a"))
    with pytest.raises(ValueError, match="1 rows and cluster labels"):
        probe_accuracy([[1]], [[1]], ("a",), cluster=["a", "b"])
