from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.curate.made_pairs import a_pair_each
from torch.nn.functional import logsigmoid

from ebrm.curate import dynamic_labels
from ebrm.pairs import PreferencePairs


def test_five_steps_at_one_difference():
    pairs = a_pair_each(1)
    for _ in range(5):
        pairs, report = dynamic_labels(pairs, torch.tensor([-1.0], dtype=torch.float64))
    belief = 1 / (1 + math.e)
    assert pairs.label.item() == pytest.approx(0.7006242, abs=1e-7)
    assert pairs.label.item() == pytest.approx(belief + 0.9**5 * (1 - belief), abs=1e-12)
    assert report.relabeled == 1 and len(pairs.steps) == 6


def test_the_gradient_vanishes_where_the_label_is_the_belief():
    d = torch.tensor([-2.0, 0.3, 5.0], dtype=torch.float64, requires_grad=True)
    pairs, _ = dynamic_labels(a_pair_each(3), d, rate=1.0)
    torch.testing.assert_close(pairs.label, torch.sigmoid(d.detach()))
    assert not pairs.label.requires_grad
    (-(pairs.label * logsigmoid(d) + (1 - pairs.label) * logsigmoid(-d))).sum().backward()
    assert d.grad is not None and float(d.grad.abs().max()) < 1e-12


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0, 1), st.floats(-800, 800)), min_size=1, max_size=10),
    st.floats(0, 1),
)
def test_labels_stay_probabilities_between_label_and_belief(rows: list[tuple[float, float]], rate):
    label, difference = torch.tensor(rows, dtype=torch.float64).T
    pairs = PreferencePairs.of(2 * torch.arange(len(rows)), 2 * torch.arange(len(rows)) + 1, label=label)
    moved, _ = dynamic_labels(pairs, difference, rate)
    belief = torch.sigmoid(difference)
    assert bool((moved.label >= torch.minimum(label, belief) - 1e-12).all())
    assert bool((moved.label <= torch.maximum(label, belief) + 1e-12).all())
    assert bool(((moved.label >= 0) & (moved.label <= 1)).all())


def test_rate_0_changes_nothing():
    pairs, report = dynamic_labels(a_pair_each(2), torch.tensor([-3.0, 1.0]), rate=0.0)
    assert pairs.label.tolist() == [1.0, 1.0] and report.relabeled == 0 and report.numbers["mean move"] == 0.0


def test_no_pairs_and_refusals():
    assert dynamic_labels(a_pair_each(0), torch.zeros(0))[1].numbers == {"mean move": 0.0}
