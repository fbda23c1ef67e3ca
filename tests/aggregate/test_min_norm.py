from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from ebrm.aggregate import min_norm_weights


def gradients(seed, t, d):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(t, d, dtype=torch.float64, generator=generator) + 0.3


def test_known_answers():
    two = torch.tensor([[1.0, 0.0], [0.0, 2.0]], dtype=torch.float64)
    found = min_norm_weights(two, normalize=False)
    assert found.tolist() == pytest.approx([0.8, 0.2])
    assert (found @ two).tolist() == pytest.approx([0.8, 0.4])
    assert (two @ (found @ two)).tolist() == pytest.approx([0.8, 0.8])  # Both improve as much.
    assert min_norm_weights(two).tolist() == pytest.approx([0.5, 0.5])
    against = torch.tensor([[1.0, 2.0], [-1.0, -2.0]])
    assert min_norm_weights(against, normalize=False).tolist() == pytest.approx([0.5, 0.5])
    assert (min_norm_weights(against) @ against).tolist() == pytest.approx([0.0, 0.0], abs=1e-6)
    same = torch.tensor([[3.0, 4.0]]).expand(3, 2)
    assert float((min_norm_weights(same, normalize=False) @ same).norm()) == pytest.approx(5.0)
    assert min_norm_weights(torch.tensor([[3.0, 4.0]])).tolist() == [1.0]


def test_corners_are_exact():
    # The short one decides alone: its product with the other exceeds its own length squared.
    assert min_norm_weights(torch.tensor([[1.0, 0.0], [5.0, 1.0]]), normalize=False).tolist() == [1.0, 0.0]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_two_objectives_have_a_closed_form(seed):
    one, two = gradients(seed, 2, 3)
    expected = float(((two - one) @ two / (one - two).square().sum()).clamp(0, 1))
    assert min_norm_weights(torch.stack([one, two]), normalize=False).tolist() == pytest.approx(
        [expected, 1 - expected], abs=1e-9
    )


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.integers(1, 9), st.booleans())
def test_the_common_gradient_improves_every_objective(seed, t, d, normalize):
    given_ = gradients(seed, t, d)
    weight = min_norm_weights(given_, normalize)
    assert bool((weight >= 0).all()) and float(weight.sum()) == pytest.approx(1)
    directions = given_ / given_.norm(dim=1, keepdim=True) if normalize else given_
    common = weight @ directions
    assert bool((directions @ common >= common.square().sum() - 1e-9).all())
    # No other weights are better: SciPy's general solver finds none.
    product = (directions @ directions.T).numpy()
    other = minimize(lambda w: w @ product @ w, [1 / t] * t, bounds=[(0, 1)] * t,
                     constraints={"type": "eq", "fun": lambda w: w.sum() - 1})  # fmt: skip
    assert float(common.square().sum()) <= other.fun + 1e-7


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(-200, 200))
def test_scale_rotation_and_order(seed, power):
    given_ = gradients(seed, 3, 5)
    weight = min_norm_weights(given_, normalize=False)
    rotation = torch.linalg.qr(gradients(seed + 1, 5, 5)).Q
    for other in (given_ * 10**power, given_ @ rotation):
        assert min_norm_weights(other, normalize=False).tolist() == pytest.approx(weight.tolist(), abs=1e-7)
    assert min_norm_weights(given_.flip(0), normalize=False).tolist() == pytest.approx(weight.flip(0).tolist())
    scaled = given_ * torch.tensor([[1.0], [10**power], [1.0]], dtype=torch.float64)
    assert min_norm_weights(scaled).tolist() == pytest.approx(min_norm_weights(given_).tolist(), abs=1e-7)


def test_no_gradient_at_all():
    nothing = torch.zeros(4, 3)
    assert min_norm_weights(nothing, normalize=False).tolist() == [0.25] * 4
    nothing[[0, 2, 3]] = 1.0
    assert min_norm_weights(nothing, normalize=False).tolist() == [0.0, 1.0, 0.0, 0.0]
