from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

from ebrm.errors import ConfigError, DataError
from ebrm.heads.linear_probe import fit_probe


def labeled(seed: int = 0, n: int = 300, classes: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    e = torch.randn(n, 4, generator=generator, dtype=torch.float64)
    noise = torch.randn(n, generator=generator, dtype=torch.float64)
    label = torch.bucketize(e[:, 0] + 0.7 * noise, torch.linspace(-0.5, 0.5, classes - 1, dtype=torch.float64))
    return e, 10 * label - 5


def test_it_is_scikit_learn_s_regression() -> None:
    e, label = labeled()
    probe = fit_probe(e, label, 0.05)
    x = ((e - e.mean(0)) / e.std(0, correction=0)).numpy()
    known = LogisticRegression(C=1 / (0.05 * len(e)), tol=1e-10, max_iter=1000).fit(x, label.numpy())
    logits = probe.logits(e).numpy()
    expected = known.decision_function(x)
    assert logits - logits.mean(1, keepdims=True) == pytest.approx(expected - expected.mean(1, keepdims=True), abs=1e-4)
    assert probe.predict(e).tolist() == known.predict(x).tolist() and set(probe.classes.tolist()) == {-5, 5, 15}
    assert probe.accuracy(e, label) == pytest.approx(known.score(x, label.numpy()))


def test_separable_classes_are_all_found_and_noise_is_at_chance() -> None:
    generator = torch.Generator().manual_seed(1)
    label = torch.randint(3, (900,), generator=generator)
    e = torch.randn(900, 5, generator=generator)
    blobs = e + 20 * torch.nn.functional.one_hot(label, 5)
    assert fit_probe(blobs[:600], label[:600]).accuracy(blobs[600:], label[600:]) == 1.0
    assert fit_probe(e[:600], label[:600]).accuracy(e[600:], label[600:]) == pytest.approx(1 / 3, abs=0.09)


@given(st.floats(0.01, 100), st.floats(-100, 100))
def test_units_of_the_embedding_do_not_matter(scale: float, offset: float) -> None:
    e, label = labeled(n=60)
    plain, moved = fit_probe(e, label), fit_probe(scale * e + offset, label)
    assert moved.logits(scale * e + offset).numpy() == pytest.approx(plain.logits(e).numpy(), abs=1e-4)


def test_a_number_that_never_changes_is_left_alone() -> None:
    e, label = labeled(n=60)
    probe = fit_probe(torch.cat([e, torch.full((60, 1), 7.0)], 1), label)
    assert bool(probe.weight.isfinite().all()) and np.abs(probe.weight[4].numpy()).max() < 1e-9


def test_what_cannot_be_told_apart_is_refused() -> None:
    e, label = labeled(n=20)
    with pytest.raises(DataError, match="same label"):
        fit_probe(e, torch.ones(20))
    with pytest.raises(DataError, match="same label"):
        fit_probe(e[:0], label[:0])
    with pytest.raises(DataError, match="index"):
        fit_probe(torch.where(e > 1, math.nan, e), label)
    with pytest.raises(ConfigError, match="penalty"):
        fit_probe(e, label, 0.0)
    with pytest.raises(ValueError, match="one label"):
        fit_probe(e, label[:3])
    assert math.isnan(fit_probe(e, label).accuracy(e[:0], label[:0]))
