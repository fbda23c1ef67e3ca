from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from ebrm.errors import DataError
from ebrm.logprobs import TokenLogprobs

YES = torch.tensor([[True, True, False], [False, False, False]])


def test_sums_and_means_are_over_the_tokens_of_the_response_only() -> None:
    tokens = TokenLogprobs(torch.tensor([[-1.0, -2.0, math.nan], [9.0, 9.0, 9.0]]), YES)
    assert len(tokens) == 2 and tokens.lengths.tolist() == [2, 0]
    assert tokens.sum().tolist() == [-3.0, 0.0]
    assert tokens.logp.tolist() == [[-1.0, -2.0, 0.0], [0.0, 0.0, 0.0]]
    with pytest.raises(DataError, match="1 of 2 responses have no tokens, the first in row 1.*Leave those rows out"):
        tokens.mean()
    one = TokenLogprobs(tokens.logp[:1], YES[:1])
    assert one.mean().tolist() == [-1.5]


def test_arrays_lists_and_whole_numbers_are_taken_and_float_types_kept() -> None:
    for logp in ([[-1, -2, 0], [0, 0, 0]], np.array([[-1, -2, 0], [0, 0, 0]], dtype=np.int32)):
        tokens = TokenLogprobs(logp, YES.tolist(), logp)  # type: ignore[arg-type]
        assert tokens.logp.dtype == torch.float32 and tokens.log_z is not None and tokens.sum().tolist() == [-3, 0]
    for dtype in (torch.float64, torch.bfloat16):
        assert TokenLogprobs(torch.zeros(2, 3, dtype=dtype), YES).sum().dtype == dtype


@pytest.mark.parametrize("bad", [math.nan, -math.inf])
def test_a_token_without_a_finite_log_probability_is_refused_by_row(bad: float) -> None:
    logp = torch.zeros(2, 3)
    logp[0, 1] = bad
    with pytest.raises(DataError, match=f"1 log-probabilities are not finite, the first in row 0 at place 1: {bad}"):
        TokenLogprobs(logp, YES)
    with pytest.raises(DataError, match="1 values of log Z are not finite, the first in row 0 at place 1"):
        TokenLogprobs(torch.zeros(2, 3), YES, logp)


def test_probabilities_are_no_log_probabilities() -> None:
    TokenLogprobs(torch.full((2, 3), 1e-6), YES)  # rounding
    with pytest.raises(DataError, match="2 log-probabilities are above 0, .* row 0 at place 0: 0.5.*not probabilities"):
        TokenLogprobs(torch.full((2, 3), 0.5), YES)


def test_shapes_and_types_are_checked() -> None:
    for logp, mask, z, kind, said in (
        (torch.zeros(3), YES, None, ValueError, r"logp \[n, T\]: expected a tensor of 2 dimensions"),
        (torch.zeros(2, 2), YES, None, ValueError, r"mask \[n, T\]: expected T = 2"),
        (torch.zeros(2, 3), YES.float(), None, TypeError, "expected bool"),
        ("abc", YES, None, TypeError, "expected numbers"),
        (torch.zeros(2, 3), YES, torch.zeros(2), ValueError, r"log_z \[n, T\]: expected \(2, 3\) as logp"),
    ):
        with pytest.raises(kind, match=said):
            TokenLogprobs(logp, mask, z)  # type: ignore[arg-type]
