from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ebrm.errors import ModelError
from ebrm.heads.standardize import Standardizer


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


@given(st.integers(1, 40), st.integers(0, 99), st.data())
def test_embedding_units_are_numpys_however_the_rows_come_in_batches(n, seed, data):
    scale = torch.tensor([1e-3, 1.0, 1e4, 3.0, 1e-3])
    offset = torch.tensor([0.0, 100.0, -3e4, 5.0, 0.5])
    values = offset + scale * torch.randn(n, 5, generator=torch.Generator().manual_seed(seed))
    cuts = data.draw(st.lists(st.integers(0, n), max_size=6).map(sorted))  # equal cuts: batches without rows
    ends = [0, *cuts, n]
    standardizer = Standardizer(5)
    standardizer.fit_embedding(values[a:b] for a, b in zip(ends[:-1], ends[1:], strict=True))
    expected = values.double().numpy()
    assert standardizer.embedding_center.numpy() == pytest.approx(expected.mean(0), rel=1e-6, abs=1e-9)
    spread = expected.std(0) if n > 1 else np.ones(5)
    assert standardizer.embedding_spread.numpy() == pytest.approx(spread, rel=1e-5)
    assert standardizer.embedding_spread.shape == standardizer.embedding_center.shape == (5,)


@pytest.mark.parametrize("size", [1, 3, 50])
def test_numbers_of_any_scale_come_out_alike(size):
    scale = torch.tensor([1e-3, 1e4, 1.0])
    values = scale * (2 + torch.randn(50, 3, generator=torch.Generator().manual_seed(1)))
    standardizer = Standardizer(3)
    standardizer.fit_embedding(values.split(size))
    embedded = standardizer.embed(values)
    assert embedded.dtype == torch.float32
    assert embedded.mean(0).tolist() == pytest.approx([0.0] * 3, abs=1e-5)
    assert embedded.std(0, correction=0).tolist() == pytest.approx([1.0] * 3, abs=1e-5)
    # Each number by its own: the others do not reach it.
    alone = Standardizer(1)
    alone.fit_embedding([values[:, 1:2]])
    assert torch.allclose(alone.embed(values[:, 1:2]), embedded[:, 1:2], atol=1e-6)


def test_a_small_spread_around_a_large_mean_keeps_its_digits():
    """The sum of squares would lose them: 1e4² against 1e-1², in batches of two."""
    values = 1e4 + torch.tensor([[0.0], [0.125], [0.25], [0.375]])  # exact in float32
    standardizer = Standardizer(1)
    standardizer.fit_embedding(values.split(2))
    assert float(standardizer.embedding_spread) == pytest.approx(np.std([0.0, 0.125, 0.25, 0.375]), rel=1e-6)


@pytest.mark.parametrize(
    ("value", "rows"), [(0.0, 37), (-1e-3, 37), (12345.678, 37), (1.1, 37), (0.7, 100), (0.1, 100)]
)
def test_equal_embeddings_are_only_centered(value, rows):
    values = torch.full((rows, 3), value)
    standardizer = Standardizer(3)
    standardizer.fit_embedding(values.split(10))
    assert standardizer.embedding_spread.tolist() == [1.0] * 3
    assert standardizer.embed(values).abs().max() <= abs(value) * 1e-6


def test_a_number_that_never_changes_stays_beside_those_that_do():
    values = torch.tensor([[7.3, 0.0, 1.0], [7.3, 0.0, 3.0], [7.3, 0.0, 8.0]])
    standardizer = Standardizer(3)
    standardizer.fit_embedding(values.split(1))
    assert standardizer.embedding_spread.tolist() == pytest.approx([1.0, 1.0, float(np.std([1.0, 3.0, 8.0]))])
    # In new rows it may differ after all; then it is neither blown up nor lost.
    assert standardizer.embed(torch.tensor([[8.3, -2.0, 4.0]]))[0].tolist() == pytest.approx([1.0, -2.0, 0.0], abs=1e-6)


def test_rounding_is_not_spread():
    values = torch.full((100, 1), 0.1, dtype=torch.float64)
    values[::2] *= 1 + 1e-9  # below what float32 embeddings can hold
    standardizer = Standardizer(1)
    standardizer.fit_embedding(values.split(7))
    assert float(standardizer.embedding_spread) == 1.0


def test_without_rows_embeddings_stay_as_they_are():
    standardizer = Standardizer(2)
    standardizer.fit_embedding([])
    values = torch.tensor([[1.5, -2.0]])
    assert torch.equal(standardizer.embed(values), values)


def test_half_precision_embeddings_come_out_in_float32():
    standardizer = Standardizer(2)
    standardizer.fit_embedding([torch.tensor([[1.0, 2.0], [3.0, 6.0]], dtype=torch.bfloat16)])
    assert standardizer.embed(torch.ones(1, 2, dtype=torch.bfloat16)).dtype == torch.float32
    assert standardizer.embedding_center.tolist() == [2.0, 4.0]


def test_units_travel_in_the_state():
    standardizer = fitted(torch.tensor([1.0, 3.0]), scale=4.0)
    standardizer.fit_embedding([torch.tensor([[1.0], [5.0]])])
    other = Standardizer(1)
    other.load_state_dict(standardizer.state_dict())
    probe = torch.tensor([0.1, 9.0])
    assert torch.equal(other.to_internal(probe), standardizer.to_internal(probe))
    assert torch.equal(other.embed(probe.unsqueeze(1)), standardizer.embed(probe.unsqueeze(1)))
    assert other.reward_mean.dtype == torch.float64


def test_scores_are_the_logistic_of_standard_deviations_from_the_training_mean():
    standardizer = fitted(torch.tensor([1.0, 3.0, 5.0, 7.0]), scale=4.0)  # mean 4, std √5; the scale is none of theirs
    scores = standardizer.to_score(torch.tensor([[4.0, 4.0 + 5**0.5], [4.0 - 5**0.5, 1e9]]))
    expected = 1 / (1 + np.exp(-np.array([[0.0, 1.0], [-1.0, 1e9]])))
    np.testing.assert_allclose(scores.numpy(), expected, atol=1e-6)
    assert scores.dtype == torch.float32
