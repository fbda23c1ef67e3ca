from __future__ import annotations

import pytest
import torch

from ebrm.aggregate.ranges import within
from ebrm.errors import DataError


def test_numbers_in_the_range_come_back_in_float64() -> None:
    found = within(torch.tensor([0, 1]), 0, 1, "score")
    assert found.dtype == torch.float64 and found.tolist() == [0.0, 1.0]
    assert within(torch.tensor([[1e300]], dtype=torch.float64), 0, float("inf"), "deviation", 2).shape == (1, 1)
    assert within(torch.empty(0), 0, 1, "score").shape == (0,)


def test_the_first_outside_is_named() -> None:
    with pytest.raises(DataError, match=r"2 of 3 numbers \(score\) .* index 1: 1.5\. Expected numbers from 0 to 1"):
        within(torch.tensor([1.0, 1.5, -1.0]), 0, 1, "score")
    with pytest.raises(DataError, match=r"index \(0, 1\): -1\. Expected numbers of at least 0"):
        within(torch.tensor([[1.0, -1.0]]), 0, float("inf"), "deviation", 2)
    with pytest.raises(DataError, match="not finite, the first at index 0: nan"):
        within(torch.tensor([torch.nan]), 0, 1, "score")
    with pytest.raises(ValueError, match="2 dimensions"):
        within(torch.zeros(3), 0, 1, "score", 2)
