from __future__ import annotations

import pytest
import torch

from ebrm.errors import DataError
from ebrm.utils.validation import check_finite, check_range, check_same_shape, unit_vectors


def test_numbers_come_back_in_float64() -> None:
    values = check_finite(torch.tensor([1, 2], dtype=torch.bfloat16), "reward")
    assert values.dtype == torch.float64 and values.tolist() == [1.0, 2.0]
    assert check_finite(torch.empty(0), "reward").shape == (0,)


def test_the_first_that_is_not_a_number_is_named() -> None:
    with pytest.raises(DataError, match=r"2 of 3 numbers \(reward\) are not finite, the first at index 1: nan"):
        check_finite(torch.tensor([0.0, torch.nan, torch.inf]), "reward")
    with pytest.raises(DataError, match=r"first at index \(1, 0\): -inf"):
        check_finite(torch.tensor([[0.0, 1.0], [-torch.inf, 1.0]]), "reward", dims=2)


def test_shapes() -> None:
    with pytest.raises(ValueError, match=r"reward: expected a tensor of 2 dimensions, got the shape \(3,\)"):
        check_finite(torch.zeros(3), "reward", dims=2)
    check_same_shape(a=torch.zeros(2), b=torch.ones(2))
    with pytest.raises(ValueError, match=r"one shape, got a \(2,\), b \(3,\)"):
        check_same_shape(a=torch.zeros(2), b=torch.ones(3))


def test_numbers_in_the_range_come_back_in_float64() -> None:
    found = check_range(torch.tensor([0, 1]), 0, 1, "score")
    assert found.dtype == torch.float64 and found.tolist() == [0.0, 1.0]
    assert check_range(torch.tensor([[1e300]], dtype=torch.float64), 0, float("inf"), "deviation", 2).shape == (1, 1)
    assert check_range(torch.empty(0), 0, 1, "score").shape == (0,)


def test_the_first_outside_is_named() -> None:
    with pytest.raises(DataError, match=r"2 of 3 numbers \(score\) .* index 1: 1.5\. Expected numbers from 0 to 1"):
        check_range(torch.tensor([1.0, 1.5, -1.0]), 0, 1, "score")
    with pytest.raises(DataError, match=r"index \(0, 1\): -1\. Expected numbers of at least 0"):
        check_range(torch.tensor([[1.0, -1.0]]), 0, float("inf"), "deviation", 2)
    with pytest.raises(DataError, match="not finite, the first at index 0: nan"):
        check_range(torch.tensor([torch.nan]), 0, 1, "score")
    with pytest.raises(ValueError, match="2 dimensions"):
        check_range(torch.zeros(3), 0, 1, "score", 2)


def test_directions_have_length_one_whatever_their_size() -> None:
    rows = torch.tensor([[3.0, 4.0], [3e-200, 4e-200], [3e200, -4e200]], dtype=torch.float64)
    expected = torch.tensor([[0.6, 0.8], [0.6, 0.8], [0.6, -0.8]], dtype=torch.float64)
    torch.testing.assert_close(unit_vectors(rows, "texts"), expected)
    with pytest.raises(DataError, match=r"1 of 2 embeddings \(texts\) are 0, the first at index 1, and have no direc"):
        unit_vectors(torch.tensor([[1.0, 0.0], [0.0, 0.0]]), "texts")
    with pytest.raises(DataError, match="not finite"):
        unit_vectors(torch.tensor([[torch.nan]]), "texts")
