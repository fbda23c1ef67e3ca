from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import logsumexp, softmax
from scipy.stats import rankdata

from ebrm.groups import Groups

ROWS = st.lists(st.tuples(st.integers(0, 5), st.floats(-50, 50)), min_size=1, max_size=40)


@given(rows=ROWS)
def test_every_reduction_is_that_of_the_rows_of_each_group(rows: list[tuple[int, float]]) -> None:
    ids, values = [row[0] for row in rows], torch.tensor([row[1] for row in rows], dtype=torch.float64)
    groups = Groups.of(ids)
    assert groups.count == len(set(ids)) and len(groups) == len(ids)
    for number, name in enumerate(dict.fromkeys(ids)):
        rows_of = [i for i, id in enumerate(ids) if id == name]
        some = values[rows_of].numpy()
        assert groups.index[rows_of].tolist() == [number] * len(rows_of)
        assert int(groups.sizes[number]) == len(some)
        expected = {
            "sum": some.sum(), "mean": some.mean(), "std": some.std(), "minimum": some.min(), "maximum": some.max(),
            "logsumexp": logsumexp(some),
        }  # fmt: skip
        for reduction, value in expected.items():
            assert float(getattr(groups, reduction)(values)[number]) == pytest.approx(value, abs=1e-6), reduction
        np.testing.assert_allclose(groups.softmax(values)[rows_of], softmax(some), atol=1e-12)
        sample = float(groups.std(values, ddof=1)[number])
        assert math.isnan(sample) if len(some) == 1 else sample == pytest.approx(some.std(ddof=1), abs=1e-6)
        assert groups.rank(values, descending=False)[rows_of].tolist() == (rankdata(some, "ordinal") - 1).tolist()
        assert groups.rank(values)[rows_of].tolist() == (rankdata(-some, "ordinal") - 1).tolist()


@given(rows=ROWS, seed=st.integers(0, 100))
def test_the_order_of_rows_does_not_matter(rows: list[tuple[int, float]], seed: int) -> None:
    ids, values = torch.tensor([row[0] for row in rows]), torch.tensor([row[1] for row in rows], dtype=torch.float64)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
    here, there = Groups.of(ids), Groups.of(ids[order])
    for reduction in ("sum", "std", "maximum", "logsumexp"):
        one = here.spread(getattr(here, reduction)(values))[order]
        torch.testing.assert_close(there.spread(getattr(there, reduction)(values[order])), one)


def test_numbering_follows_first_appearance_for_numbers_and_names_alike() -> None:
    assert Groups.of(["b", "a", "b", "c"]).index.tolist() == [0, 1, 0, 2]
    assert Groups.of(torch.tensor([7, 3, 7, 9])).index.tolist() == [0, 1, 0, 2]


def test_equal_values_have_no_spread_at_all() -> None:
    groups = Groups.of([0, 0, 0, 1])
    assert groups.std(torch.tensor([0.1, 0.1, 0.1, 5.0], dtype=torch.float64)).tolist() == [0.0, 0.0]


def test_empty_groups_and_no_rows() -> None:
    groups = Groups(torch.tensor([2, 2]), 4)
    values = torch.tensor([1.0, 3.0], dtype=torch.float64)
    assert groups.sum(values).tolist() == [0.0, 0.0, 4.0, 0.0]
    assert groups.mean(values).isnan().tolist() == [True, True, False, True]
    assert groups.maximum(values).isnan().tolist() == [True, True, False, True]
    none = Groups.of([])
    assert none.count == 0 and none.mean(torch.empty(0)).shape == (0,) and none.rank(torch.empty(0)).shape == (0,)


def test_values_of_another_number_of_rows_are_refused() -> None:
    with pytest.raises(ValueError, match=r"each of 2 rows \[n\], got \(3,\)"):
        Groups.of([0, 1]).sum(torch.zeros(3))
