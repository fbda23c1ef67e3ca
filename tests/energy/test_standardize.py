from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ebrm.energy.standardize import Standardizer
from ebrm.errors import ModelError


def fitted(reward: torch.Tensor, scale: float = 1.0) -> Standardizer:
    standardizer = Standardizer(1)
    standardizer.fit_reward(reward, scale)
    return standardizer


def test_known_reward_units():
    standardizer = fitted(torch.tensor([1.0, 3.0, 5.0, 7.0]), scale=4.0)  # mean 4, std √5 with divisor n
    assert float(standardizer.reward_mean) == 4.0
    assert float(standardizer.reward_std) == pytest.approx(5**0.5, rel=1e-15)
    assert standardizer.unit == pytest.approx(5**0.5 / 4)
    internal = standardizer.to_internal(torch.tensor([4.0, 4.0 + 5**0.5, 4.0 - 5**0.5]))
    assert internal.tolist() == pytest.approx([0.0, 4.0, -4.0], abs=1e-6)
    assert internal.dtype == torch.float32
    assert standardizer.to_base(torch.tensor([0.0, 4.0])).tolist() == pytest.approx([4.0, 4.0 + 5**0.5])


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e3), st.sampled_from([1.0, 4.0]), st.integers(0, 99))
def test_there_and_back(mean, std, scale, seed):
    reward = mean + std * torch.randn(20, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    standardizer = fitted(reward, scale)
    internal = standardizer.to_internal(reward)
    assert float(internal.double().mean()) == pytest.approx(0.0, abs=1e-5 * scale)
    assert float(internal.double().std(correction=0)) == pytest.approx(scale, rel=1e-5)
    back = standardizer.to_base(internal)
    assert torch.allclose(back.double(), reward, rtol=1e-6, atol=1e-5 * std)


@given(st.floats(0.01, 100), st.floats(-100, 100))
def test_an_affine_change_of_the_rewards_does_not_reach_the_network(a, b):
    reward = torch.tensor([0.3, -1.2, 2.0, 0.7, 5.1], dtype=torch.float64)
    assert torch.allclose(
        fitted(a * reward + b).to_internal(a * reward + b), fitted(reward).to_internal(reward), atol=1e-5
    )


@pytest.mark.parametrize("count", [0, 1, 2, 3, 7, 10, 100])
@pytest.mark.parametrize("value", [0.0, 0.1, -3.3])
def test_equal_rewards_have_no_scale(count, value):
    with pytest.raises(ModelError, match=f"The {count} training rewards are all equal"):
        Standardizer(1).fit_reward(torch.full((count,), value), 1.0)


def test_rewards_of_large_magnitude_keep_their_digits():
    reward = 1e6 + torch.arange(8, dtype=torch.float64) / 16  # exact in float32 too
    standardizer = fitted(reward.float())
    assert torch.equal(standardizer.to_base(standardizer.to_internal(reward.float())), reward.float())


@pytest.mark.parametrize("size", [1, 3, 50])
def test_embedding_units_do_not_depend_on_the_batches(size):
    values = 100.0 + torch.randn(50, 4, generator=torch.Generator().manual_seed(1)) * torch.tensor([1.0, 2.0, 3.0, 4.0])
    standardizer = Standardizer(4)
    standardizer.fit_embedding(values.split(size))
    expected = values.numpy().astype(np.float64)
    assert standardizer.embedding_centre.numpy() == pytest.approx(expected.mean(0), rel=1e-6)
    assert float(standardizer.embedding_rms) == pytest.approx(np.sqrt(((expected - expected.mean(0)) ** 2).mean()))
    embedded = standardizer.embed(values)
    assert embedded.dtype == torch.float32
    assert embedded.mean(0).tolist() == pytest.approx([0.0] * 4, abs=1e-4)
    assert float(embedded.square().mean()) == pytest.approx(1.0, abs=1e-4)


# What rounding leaves of the variance is 0, above 0 (1.1, 0.7) and below 0 (0.1).
@pytest.mark.parametrize(
    ("value", "rows"), [(0.0, 37), (-1e-3, 37), (12345.678, 37), (1.1, 37), (0.7, 100), (0.1, 100)]
)
def test_equal_embeddings_are_only_centred(value, rows):
    values = torch.full((rows, 3), value)
    standardizer = Standardizer(3)
    standardizer.fit_embedding([values])
    assert float(standardizer.embedding_rms) == 1.0
    assert standardizer.embed(values).abs().max() <= abs(value) * 1e-6


def test_without_rows_embeddings_stay_as_they_are():
    standardizer = Standardizer(2)
    standardizer.fit_embedding([])
    values = torch.tensor([[1.5, -2.0]])
    assert torch.equal(standardizer.embed(values), values)


def test_half_precision_embeddings_come_out_in_float32():
    standardizer = Standardizer(2)
    standardizer.fit_embedding([torch.tensor([[1.0, 2.0], [3.0, 6.0]], dtype=torch.bfloat16)])
    assert standardizer.embed(torch.ones(1, 2, dtype=torch.bfloat16)).dtype == torch.float32
    assert standardizer.embedding_centre.tolist() == [2.0, 4.0]


def test_units_travel_in_the_state():
    standardizer = fitted(torch.tensor([1.0, 3.0]), scale=4.0)
    standardizer.fit_embedding([torch.tensor([[1.0], [5.0]])])
    other = Standardizer(1)
    other.load_state_dict(standardizer.state_dict())
    probe = torch.tensor([0.1, 9.0])
    assert torch.equal(other.to_internal(probe), standardizer.to_internal(probe))
    assert torch.equal(other.embed(probe.unsqueeze(1)), standardizer.embed(probe.unsqueeze(1)))
    assert other.reward_mean.dtype == torch.float64
