from __future__ import annotations

import pytest
import torch

import ebrm.heads.rows as rows_module
from ebrm.errors import ModelError
from ebrm.heads import FiniteRows, refuse_not_finite
from ebrm.heads.rows import rows_at_once


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
