from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ebrm.aggregate import most_confident_head, nominal_worst_case, worst_case

KINDS = ["per_sample", "per_batch"]


def heads(seed, k=5, n=23):
    generator = torch.Generator().manual_seed(seed)
    mean = torch.randn(k, n, dtype=torch.float64, generator=generator)
    return mean, torch.rand(k, n, dtype=torch.float64, generator=generator) + 0.1


def test_known_answers():
    mean = torch.tensor([[1.0, 2.0], [3.0, 0.0], [2.0, 1.0]])
    std = torch.tensor([[0.1, 0.9], [0.2, 0.5], [0.3, 0.7]])
    assert most_confident_head(mean, std).tolist() == [1.0, 0.0]
    sample = nominal_worst_case(mean, std, 0.0)
    assert sample.tolist() == [1.0, 0.0] and float(sample.mean()) == 0.5
    # All heads have the mean 1.5: the least mean is not the mean of the least.
    assert float(nominal_worst_case(mean, std, 0.0, "per_batch").mean()) == 1.5
    lower = torch.tensor([[1.0, 2.0], [3.0, -1.0], [2.0, 1.0]])
    assert nominal_worst_case(lower, std, 0.0, "per_batch").tolist() == [3.0, -1.0]
    # Nominal: 1, then -1. Worst head: 3, -1. A quarter of the first.
    assert nominal_worst_case(lower, std, 0.25, "per_batch").tolist() == [2.5, -1.0]
    assert nominal_worst_case(torch.tensor([[4.0], [2.0]]), torch.tensor([[0.1], [0.2]]), 0.25).tolist() == [2.5]


def test_heads_that_tie_share():
    mean = torch.tensor([[1.0, 1.0], [3.0, 3.0], [8.0, 8.0]])
    std = torch.tensor([[0.5, 0.5], [0.5, 0.6], [0.7, 0.5]])
    assert most_confident_head(mean, std).tolist() == [2.0, 4.5]
    # To the last bit, whatever their order: 0.1 + 0.2 + 0.3 is not 0.3 + 0.2 + 0.1.
    three = torch.tensor([[0.1], [0.2], [0.3]], dtype=torch.float64)
    one, two = (most_confident_head(heads, torch.ones(3, 1)) for heads in (three, three.flip(0)))
    assert torch.equal(one, two)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from(KINDS), st.floats(0, 1), st.floats(-9, 9), st.floats(0.01, 100))
def test_invariances(seed, kind, weight, offset, scale):
    mean, std = heads(seed)
    found = nominal_worst_case(mean, std, weight, kind)
    order = torch.randperm(5, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(nominal_worst_case(mean[order], std[order], weight, kind), found)
    assert torch.equal(most_confident_head(mean[order], std[order]), most_confident_head(mean, std))
    moved = nominal_worst_case(scale * mean + offset, std, weight, kind)
    assert moved.tolist() == pytest.approx((scale * found + offset).tolist(), abs=1e-9)
    assert torch.equal(most_confident_head(mean, scale * std), most_confident_head(mean, std))
    rows = torch.randperm(23, generator=torch.Generator().manual_seed(seed))
    mixed = nominal_worst_case(mean[:, rows], std[:, rows], weight, kind)
    assert mixed.tolist() == pytest.approx(found[rows].tolist())


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0, 1), st.floats(0, 1))
def test_the_result_falls_with_the_weight_and_with_more_heads(seed, one, two):
    mean, std = heads(seed)
    nominal = most_confident_head(mean, std)
    low, high = (nominal_worst_case(mean, std, weight) for weight in sorted((one, two)))
    assert bool((low <= high + 1e-12).all()) and bool((high <= nominal + 1e-12).all())
    assert torch.equal(nominal_worst_case(mean, std, 0.0), worst_case(mean))
    assert nominal_worst_case(mean, std, 1.0).tolist() == pytest.approx(nominal.tolist())
    fewer = nominal_worst_case(mean[:3], std[:3], 0.0)
    assert bool((nominal_worst_case(mean, std, 0.0) <= fewer).all())
    batch = nominal_worst_case(mean, std, 0.0, "per_batch").mean()
    assert float(batch) == pytest.approx(float(mean.mean(1).min()))
    assert float(worst_case(mean).mean()) <= float(batch) + 1e-12
    assert float(batch) <= float(nominal_worst_case(mean[:3], std[:3], 0.0, "per_batch").mean()) + 1e-12


def test_per_sample_does_not_depend_on_the_other_rows_and_per_batch_does():
    mean, std = heads(0)
    whole = nominal_worst_case(mean, std)
    single = torch.cat([nominal_worst_case(mean[:, i : i + 1], std[:, i : i + 1]) for i in range(23)])
    assert torch.equal(single, whole)
    batch = nominal_worst_case(mean, std, worst_case="per_batch")
    parts = [nominal_worst_case(mean[:, i : i + 1], std[:, i : i + 1], worst_case="per_batch") for i in range(23)]
    assert torch.equal(torch.cat(parts), whole) and not torch.allclose(batch, whole)


def test_per_batch_can_exceed_the_nominal_reward():
    mean, std = torch.tensor([[0.0, 10.0], [10.0, 0.0]]), torch.tensor([[0.1, 0.9], [0.9, 0.1]])
    assert most_confident_head(mean, std).tolist() == [0.0, 0.0]
    assert float(nominal_worst_case(mean, std, 0.0, "per_batch").mean()) == 5.0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_one_head_and_identical_heads(kind, dtype):
    mean, std = heads(1, 1)
    mean, std = mean.to(dtype), std.to(dtype)
    for k in (1, 4):
        found = nominal_worst_case(mean.expand(k, -1), std.expand(k, -1), 0.3, kind)
        assert found.dtype == dtype and torch.equal(found, mean[0])
        assert torch.equal(most_confident_head(mean.expand(k, -1), std.expand(k, -1)), mean[0])
