from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ebrm.aggregate import mixed_granularity
from ebrm.groups import Groups

WHOLE, ITEM, GROUPS = torch.tensor([10.0, 20.0]), torch.tensor([1.0, 8.0, 2.0, 6.0]), Groups.of([0, 1, 0, 0])


def test_known_answers():
    assert mixed_granularity(WHOLE, ITEM, GROUPS, 1.0).tolist() == [10.0, 20.0]
    assert mixed_granularity(WHOLE, ITEM, GROUPS, 0.0).tolist() == [3.0, 8.0]
    assert mixed_granularity(WHOLE, ITEM, GROUPS).tolist() == [6.5, 14.0]
    first = 1 / math.log2(2) + 2 / math.log2(3) + 6 / math.log2(4)
    assert mixed_granularity(WHOLE, ITEM, GROUPS, 0.0, "discounted_sum").tolist() == pytest.approx([first, 8.0])
    assert mixed_granularity(WHOLE, ITEM, GROUPS, 0.25, "discounted_sum").tolist() == pytest.approx(
        [2.5 + 0.75 * first, 11.0]
    )


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0, 1), st.floats(-9, 9), st.floats(0.1, 9))
def test_order_offset_and_scale(seed, weight, offset, scale):
    generator = torch.Generator().manual_seed(seed)
    whole, item = (torch.randn(n, dtype=torch.float64, generator=generator) for n in (5, 30))
    index = torch.arange(30) % 5
    found = mixed_granularity(whole, item, Groups(index, 5), weight)
    moved = mixed_granularity(scale * whole + offset, scale * item + offset, Groups(index, 5), weight)
    assert moved.tolist() == pytest.approx((scale * found + offset).tolist(), abs=1e-9)
    order = torch.randperm(30, generator=generator)
    for items, same in (("mean", True), ("discounted_sum", False)):
        here = mixed_granularity(whole, item, Groups(index, 5), 0.2, items)
        there = mixed_granularity(whole, item[order], Groups(index[order], 5), 0.2, items)
        assert torch.allclose(here, there) == same
    # Other responses' items may stand between.
    apart, kept = index.argsort(stable=True), mixed_granularity(whole, item, Groups(index, 5), 0.2, "discounted_sum")
    together = mixed_granularity(whole, item[apart], Groups(index[apart], 5), 0.2, "discounted_sum")
    assert together.tolist() == pytest.approx(kept.tolist())


def test_responses_without_items():
    groups = Groups(torch.tensor([1, 1, 1, 1]), 2)
    for items in ("mean", "discounted_sum"):
        assert mixed_granularity(WHOLE, ITEM, groups, 0.5, items, empty=4.0)[0] == 7.0
    assert mixed_granularity(torch.empty(0), torch.empty(0), Groups.of([])).shape == (0,)
