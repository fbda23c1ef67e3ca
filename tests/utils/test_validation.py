from __future__ import annotations

import numpy as np
import pytest
import torch

from ebrm.errors import ConfigError, DataError
from ebrm.utils.validation import (
    as_tensor,
    check_choice,
    check_finite,
    check_mask,
    check_range,
    check_same_shape,
    check_setting,
    match_dtype,
    unit_vectors,
)


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


def test_named_dimensions_and_devices():
    assert check_finite([[1, 2, 3]], "rewards [n, a]", n=1, a=3).shape == (1, 3)
    with pytest.raises(ValueError, match=r"rewards \[n, a\]: expected n = 2 and a = 4, got the shape \(1, 3\)"):
        check_finite([[1, 2, 3]], "rewards [n, a]", n=2, a=4)
    with pytest.raises(ValueError, match=r"rewards \[n, a\]: expected a tensor of 2 dimensions, got the shape \(2,\)"):
        check_finite([1, 2], "rewards [n, a]")
    with pytest.raises(ValueError, match=r"expected at least one number, got the shape \(0,\)"):
        check_finite([], "reward", nonempty=True)
    assert check_finite(3, "level", 0).item() == 3.0


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        ([1.5, 2], torch.float64), ([1, 2], torch.int64), ([True, False], torch.bool), ([], torch.float64),
        (np.float32([1, 2]), torch.float32), (np.uint16([1, 2]), torch.int64),
        (np.array([1.0, 2.0], ">f8"), torch.float64),
        (torch.tensor([1, 2], dtype=torch.bfloat16), torch.bfloat16), ((1, 2), torch.int64),
    ],
)  # fmt: skip
def test_arrays_and_lists_become_tensors_of_their_type(values, dtype):
    tensor = as_tensor(values, "reward")
    assert tensor.dtype == dtype and tensor.tolist() == list(values)
    read_only = np.arange(3.0)
    read_only.flags.writeable = False
    as_tensor(read_only, "reward")[0] = 5.0
    assert read_only[0] == 0.0


@pytest.mark.parametrize(
    "values", ["ab", [1, None], [[1], [1, 2]], {"a": 1}, {1, 2}, None, [object()], np.array(["a"])]
)
def test_what_is_no_number_is_refused_in_a_sentence(values):
    with pytest.raises(TypeError, match="reward: expected numbers in a tensor, a NumPy array or a list of equal rows"):
        as_tensor(values, "reward")


def test_masks_settings_choices_and_types():
    assert check_mask([True, False], "kept [n]", n=2).tolist() == [True, False]
    with pytest.raises(TypeError, match=r"kept \[n\]: expected bool, got torch.int64"):
        check_mask([1, 0], "kept [n]")
    check_setting("share", 1, above=0, at_most=1)
    for bad in (0, 1.1, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match=f"`share` is {bad}; expected a finite number above 0 and at most 1."):
            check_setting("share", bad, above=0, at_most=1)
    with pytest.raises(ConfigError, match="`level` is inf; expected a finite number."):
        check_setting("level", float("inf"))
    check_choice("how", "min", ("min", "max"))
    with pytest.raises(ConfigError, match="`how` is 'mean'; expected one of 'min', 'max'."):
        check_choice("how", "mean", ("min", "max"))
    result = torch.ones(1, dtype=torch.float64)
    assert match_dtype(result, torch.zeros(1, dtype=torch.bfloat16)).dtype == torch.bfloat16
    assert match_dtype(result, [1, 2]).dtype == torch.float32
    assert match_dtype(result, [1.0], torch.zeros(1)).dtype == torch.float64


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
    with pytest.raises(DataError, match=r"1 of 2 embeddings \(texts\) are 0, the first at index 1. They have no direc"):
        unit_vectors(torch.tensor([[1.0, 0.0], [0.0, 0.0]]), "texts")
    with pytest.raises(DataError, match="not finite"):
        unit_vectors(torch.tensor([[torch.nan]]), "texts")
