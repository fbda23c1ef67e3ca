"""What heads are fitted on: units, reads of rows, pairs as places, strength."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.heads.toys import NONE

import ebrm.heads.data as rows_module
from ebrm.errors import DataError, ModelError
from ebrm.heads import FiniteRows, agreement, refuse_not_finite
from ebrm.heads.data import Standardizer, head_data, rows_at_once, with_strength
from ebrm.pairs import PreferencePairs

EMBEDDING = torch.arange(16.0).reshape(8, 2)
REWARD = torch.tensor([0.0, 2.0, 4.0, 6.0, 100.0, 1.0, 3.0, 9.0])
TRAIN = PreferencePairs.of([3, 1], [2, 3])
HELD = PreferencePairs.of([6], [2])


def test_each_row_stands_there_once_in_the_training_rows_units() -> None:
    standardizer = Standardizer(2)
    ratings = torch.where(torch.arange(8) < 7, torch.nan, REWARD)[:, None]
    ratings[6] = 5.0
    train = PreferencePairs.of([3, 1], [2, 3], ratings=ratings, weight=[1, 3])
    data = head_data(EMBEDDING, REWARD, train, HELD, standardizer, rated=True)
    assert len(data.embedding) == 5  # rows 1, 2, 3, 6, 7
    assert data.training_rows.tolist() == [True, True, True, False, True]  # row 6 is held out, row 7 rated alone
    assert data.train.chosen.tolist() == [2, 0] and data.train.rejected.tolist() == [1, 2]
    assert data.validation.chosen.tolist() == [3] and data.validation.rejected.tolist() == [1]
    assert float(standardizer.reward_mean) == 5.25  # of 2, 4, 6, 9
    assert data.reward[data.training_rows].mean() == pytest.approx(0.0, abs=1e-6)
    assert data.embedding[data.training_rows].mean(0).tolist() == pytest.approx([0.0, 0.0], abs=1e-6)
    assert data.ratings is not None and data.ratings[3:, 0].tolist() == [5.0, 9.0]
    assert data.train.weight.tolist() == [0.5, 1.5] and data.evidence == 4  # weights are relative to their mean
    unrated = head_data(EMBEDDING, REWARD, train, HELD, Standardizer(2))
    assert len(unrated.embedding) == 4 and unrated.ratings is None


def test_what_does_not_fit_is_refused() -> None:
    def build(embedding=EMBEDDING, reward=REWARD, train=TRAIN, **columns) -> None:
        given = PreferencePairs.of(train.chosen, train.rejected, **columns)
        head_data(embedding, reward, given, NONE, Standardizer(2), rated=True)

    with pytest.raises(ModelError, match="No training pairs"):
        build(train=NONE)
    with pytest.raises(ValueError, match=r"ratings \[8, a\]"):
        build(ratings=torch.zeros(5, 2))
    bad = EMBEDDING.clone()
    bad[2, 1] = math.nan
    with pytest.raises(ModelError, match="embedding of row 2"):
        build(bad)
    with pytest.raises(DataError, match="base reward.*index 3"):
        build(reward=torch.where(REWARD == 6, torch.inf, REWARD))
    with pytest.raises(ModelError, match="all equal"):
        build(reward=torch.ones(8))


def test_sources_become_groups_and_held_out_pairs_of_others_are_left_out() -> None:
    train = PreferencePairs.of([0, 2, 4, 6], [1, 3, 5, 7], source=["b", None, "b", "a"])
    held = PreferencePairs.of([0, 2, 4], [1, 3, 5], source=["a", "c", None])
    data = head_data(EMBEDDING, REWARD, train, held, Standardizer(2), grouped=True)
    assert data.names == ("", "a", "b") and data.group.tolist() == [2, 0, 2, 1]
    assert data.validation_group.tolist() == [1, 0] and data.validation.chosen.tolist() == [0, 4]
    assert len(head_data(EMBEDDING, REWARD, train, held, Standardizer(2)).validation) == 3


def test_strength_is_scaled_to_mean_one_over_the_pairs_that_have_one() -> None:
    pairs = PreferencePairs.of([0, 1, 2], [3, 4, 5], strength=[1, 3, None], weight=[1, 1, 2], margin=[0, 1, 0])
    weighted, margin, off = (with_strength(pairs, use) for use in ("weight", "margin", "off"))
    assert weighted.weight.tolist() == [0.5, 1.5, 2.0] and weighted.margin.tolist() == [0, 1, 0]
    assert margin.margin.tolist() == [1, 4, 0] and margin.weight.tolist() == off.weight.tolist() == [1, 1, 2]
    assert all(bool(found.strength.isnan().all()) for found in (weighted, margin, off))
    with pytest.raises(DataError, match="pair 1 has -1"):
        with_strength(PreferencePairs.of([0, 1], [2, 3], strength=[1, -1]), "weight")
    with pytest.raises(DataError, match="not all 0"):
        with_strength(PreferencePairs.of([0, 1], [2, 3], strength=[0, 0]), "weight")


def test_agreement_goes_by_label_and_weight() -> None:
    pairs = PreferencePairs.of([0, 0, 1, 1], [1, 2, 3, 4], label=[1, 0.2, 0.5, 1], weight=[1, 2, 4, 8])
    reward = torch.tensor([3.0, 2.0, 5.0, 0.0, 2.0])  # right, right (turned around), undecided, tie
    assert agreement(pairs, reward) == (3.0, 11.0)


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


def test_a_read_is_of_a_fixed_number_of_bytes_and_of_a_pair_at_least():
    assert rows_at_once(torch.empty(9, 4096)) * 4096 * 4 == 4 * 2**20
    assert rows_at_once(torch.empty(9, 512)) == 8 * rows_at_once(torch.empty(9, 4096))
    assert rows_at_once(torch.empty(1, 10**7, device="meta")) == 2


def test_finite_rows_are_what_they_are_of():
    embedding = torch.randn(7, 3, requires_grad=True)
    rows = FiniteRows(embedding)
    assert rows.shape == (7, 3) and len(rows) == 7
    assert torch.equal(rows[2:5], embedding[2:5]) and not rows[2:5].requires_grad


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_all_rows_that_are_not_finite_are_counted_once_one_is_read(monkeypatch, bad):
    monkeypatch.setattr(rows_module, "_READ_FLOATS", 6)
    embedding = torch.zeros(9, 3)
    embedding[5, 1] = embedding[7, 0] = embedding[7, 2] = bad
    rows = FiniteRows(embedding)
    assert torch.equal(rows[:5], embedding[:5])
    with pytest.raises(ModelError, match=r"embedding of row 5 is not finite.*\. 2 of 9 rows"):
        rows[6:9]


def test_rows_that_are_all_finite_are_not_refused():
    refuse_not_finite("reward", torch.ones(0, dtype=torch.bool))
    refuse_not_finite("reward", torch.ones(3, dtype=torch.bool))
