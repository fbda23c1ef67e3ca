"""Regularized relevance is the product of its three parts."""

from __future__ import annotations

import pytest
import torch

from ebrm.errors import DataError
from ebrm.references import length_incentive, relevance_reward, unique_trigrams


def test_known_answers() -> None:
    one = relevance_reward(["a a a a a"], [[1.0]], [[1.0]])
    assert one.reward.item() == pytest.approx(0.05 / 3) == pytest.approx(0.016667, abs=1e-6)
    assert (one.length.item(), one.unique.item()) == pytest.approx((0.05, 1 / 3))
    assert unique_trigrams(["", "a b", "a b c d"]).tolist() == [1, 1, 1]
    assert length_incentive(["It's 3.5!", ""]).tolist() == pytest.approx([0.07, 0])  # It ' s 3 . 5 !
    text = " ".join(map(str, range(50)))
    twice = f"{text} {text}"
    assert length_incentive([twice]).item() == pytest.approx(2 * length_incentive([text]).item())
    assert unique_trigrams([twice]).item() == pytest.approx(50 / 98)


def test_constrained_answers_are_compared_with_the_reference() -> None:
    texts, y = ["a b c", "a b c", "a b c"], torch.tensor([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]])
    x, references = torch.ones(3, 2), torch.tensor([[torch.nan] * 2, [0.0, 1.75], [0.0, 0.0]])
    where = torch.tensor([False, True, True])
    found = relevance_reward(texts, y, x, references, where)
    assert found.reward.tolist() == pytest.approx([1 * 0.03, 5.12, 0.0])  # F(3.5) = 5.12, F(0) = 0
    assert found.relevance.tolist() == pytest.approx([1.0, 5.12, 0.0])
    longer = relevance_reward(texts, y, x, references, where, max_tokens=1024)
    assert longer.reward[1].item() == pytest.approx(10.24)


def test_lengths_and_numbers_are_checked() -> None:
    assert relevance_reward([], torch.zeros(0, 2), torch.zeros(0, 2)).reward.shape == (0,)
    assert relevance_reward(["a b"], [[2]], [[3]]).reward.item() == pytest.approx(0.12)  # whole numbers
    with pytest.raises(DataError, match="no reference_embedding is given"):
        relevance_reward(["a"], [[1.0]], [[1.0]], constrained=torch.tensor([True]))
    with pytest.raises(ValueError, match="n = 2"):
        relevance_reward(["a", "b"], [[1.0]], [[1.0]])
    with pytest.raises(DataError, match="not finite"):
        relevance_reward(["a"], [[float("nan")]], [[1.0]])
    with pytest.raises(DataError, match="prompt embeddings are"):
        relevance_reward(["a"], [[1.0]], [[1.0, 2.0]])
