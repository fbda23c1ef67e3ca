from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import logsumexp, softmax
from scipy.stats import rankdata
from tests.other_device import other_device

from ebrm.groups import Groups

ROWS = st.lists(st.tuples(st.integers(0, 5), st.floats(-50, 50)), min_size=1, max_size=40)


@given(rows=ROWS)
def test_every_reduction_is_that_of_the_rows_of_each_group(rows):
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
def test_the_order_of_rows_does_not_matter(rows, seed):
    ids, values = torch.tensor([row[0] for row in rows]), torch.tensor([row[1] for row in rows], dtype=torch.float64)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
    here, there = Groups.of(ids), Groups.of(ids[order])
    for reduction in ("sum", "std", "maximum", "logsumexp"):
        one = here.spread(getattr(here, reduction)(values))[order]
        torch.testing.assert_close(there.spread(getattr(there, reduction)(values[order])), one)


def test_numbering_follows_first_appearance_for_numbers_and_names_alike():
    assert Groups.of(["b", "a", "b", "c"]).index.tolist() == [0, 1, 0, 2]
    assert Groups.of(torch.tensor([7, 3, 7, 9])).index.tolist() == [0, 1, 0, 2]


def test_equal_values_have_no_spread_at_all():
    groups = Groups.of([0, 0, 0, 1])
    assert groups.std(torch.tensor([0.1, 0.1, 0.1, 5.0], dtype=torch.float64)).tolist() == [0.0, 0.0]


def test_empty_groups_and_no_rows():
    groups = Groups(torch.tensor([2, 2]), 4)
    values = torch.tensor([1.0, 3.0], dtype=torch.float64)
    assert groups.sum(values).tolist() == [0.0, 0.0, 4.0, 0.0]
    assert groups.mean(values).isnan().tolist() == [True, True, False, True]
    assert groups.maximum(values).isnan().tolist() == [True, True, False, True]
    none = Groups.of([])
    assert none.count == 0 and none.mean(torch.empty(0)).shape == (0,) and none.rank(torch.empty(0)).shape == (0,)


def test_prompts_are_grouped_whatever_they_are():
    hi = [{"role": "user", "content": "hi"}]
    same = [{"content": "hi", "role": "user"}]
    image = [{"role": "user", "content": [{"type": "image", "url": "a"}, {"type": "text", "text": "hi"}]}]
    assert Groups.of([hi, image, same, "hi", [*hi, *hi], list(image)]).index.tolist() == [0, 1, 0, 2, 3, 1]
    for ids in (["b", "a", "b"], np.array(["b", "a", "b"]), np.array(["b", "a", "b"], object), np.array([7, 3, 7]),
                torch.tensor([7, 3, 7]), [None, "a", None], [(1, 2), (1, 3), (1, 2)]):  # fmt: skip
        assert Groups.of(ids).index.tolist() == [0, 1, 0]


@pytest.mark.parametrize("ids", ["aba", [{"role": "user", "content": "hi"}], {"role": "user", "content": "hi"}])
def test_one_prompt_is_not_split_into_ids(ids):
    with pytest.raises(TypeError, match="ids: expected one id for each row, got a single prompt"):
        Groups.of(ids)
    with pytest.raises(ValueError, match=r"one id for each row \[n\], got the shape \(2, 2\)"):
        Groups.of(torch.zeros(2, 2))


def test_groups_of_a_tensor_are_where_it_is_and_those_of_a_list_come_to_the_values():
    with other_device() as device:
        here, there = Groups.of([7, 3, 7]), Groups.of(torch.tensor([7, 3, 7]).to(device))
        assert there.index.device == device and there.index.tolist() == here.index.tolist() == [0, 1, 0]
        values = torch.tensor([1.0, 2.0, 4.0])
        for groups, on in ((here, device), (there, device), (there, "cpu")):
            found = groups.spread(groups.sum(values.to(on)))
            assert found.device == torch.device(on) and found.tolist() == [5.0, 2.0, 5.0]


def test_rows_of_equal_groups_come_together():
    groups = Groups(torch.tensor([2, 0, 2, 3, 0]), 5)
    assert groups.place.tolist() == [0, 0, 1, 0, 1] and groups.order.tolist() == [1, 4, 0, 2, 3]
    found = [(numbers.tolist(), rows.tolist()) for numbers, rows in groups.by_size()]
    assert found == [([3], [[3]]), ([0, 2], [[1, 4], [0, 2]])]
    assert groups.to("cpu") is groups


def test_values_of_another_number_of_rows_are_refused():
    with pytest.raises(ValueError, match=r"each of 2 rows \[n\], got \(3,\)"):
        Groups.of([0, 1]).sum(torch.zeros(3))
