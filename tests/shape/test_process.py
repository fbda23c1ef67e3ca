from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ebrm.groups import Groups
from ebrm.shape import process_clip, process_delta, process_return

ROWS = st.lists(st.tuples(st.integers(0, 5), st.floats(0, 1)), min_size=1, max_size=30)


def doubles(*values):
    return torch.tensor(values, dtype=torch.float64)


def one(n):
    return Groups.of([0] * n)


def test_known_answers():
    score = doubles(0.9, 0.8, 0.4, 0.7)
    delta = process_delta(score, one(4))
    assert delta.tolist() == pytest.approx([0.1, 0.4, 0.4, 0.0]) and float(delta.sum()) == pytest.approx(0.9)
    clip = process_clip(score, 0.6)
    assert clip.tolist() == pytest.approx([0.0, 0.0, -0.2, 0.0])
    assert process_delta(clip, one(4)).tolist() == pytest.approx([0.0, 0.2, -0.2, 0.0])  # Clip, then delta.
    assert process_return(clip, one(4), doubles(1.0), 0.5).tolist() == pytest.approx([0.9])
    assert process_delta(doubles(0.7), one(1)).tolist() == [0.0]
    assert process_delta(doubles(0.7, 0.2), one(2)).tolist() == [0.7, 0.0]
    assert process_delta(doubles(0.7, 0.2, 0.9), one(3)).tolist() == pytest.approx([0.5, 0.2, 0.0])


@given(ROWS)
def test_delta_of_each_response_by_hand(rows: list[tuple[int, float]]):
    ids, score = [row[0] for row in rows], doubles(*(row[1] for row in rows))
    found = process_delta(score, Groups.of(ids))
    for name in set(ids):
        where = [i for i, id in enumerate(ids) if id == name]
        q = score[where].tolist()
        expected = [a - b for a, b in zip(q[:-2], q[1:-1], strict=True)] + q[-2:-1] + [0.0]
        assert found[where].tolist() == pytest.approx(expected)
        for k in range(len(q) - 1):  # Telescoping: what is left from step k on is its score.
            assert float(found[where][k:].sum()) == pytest.approx(q[k])


@settings(max_examples=25)
@given(st.integers(0, 2**32 - 1), st.floats(-5, 5), st.floats(0.1, 10))
def test_invariances(seed, offset, scale):
    generator = torch.Generator().manual_seed(seed)
    score, index = torch.rand(40, dtype=torch.float64, generator=generator), torch.arange(40) % 6
    groups, clip = Groups(index, 8), process_clip(score, 0.4)
    assert bool((clip <= 0).all())
    assert process_clip(score + offset, 0.4 + offset).tolist() == pytest.approx(clip.tolist(), abs=1e-9)
    assert process_clip(scale * score, scale * 0.4).tolist() == pytest.approx((scale * clip).tolist())
    delta = process_delta(score, groups)
    assert process_delta(scale * score, groups).tolist() == pytest.approx((scale * delta).tolist())
    moved = process_delta(score + offset, groups) - delta
    step = torch.arange(40) // 6
    before_last = step == groups.spread(groups.sizes) - 2
    assert moved.tolist() == pytest.approx((offset * before_last.double()).tolist(), abs=1e-9)
    # Responses in another order, their steps in the same one.
    order = (torch.randperm(6, generator=generator)[index] * 40 + step).argsort()
    assert process_delta(score[order], Groups(index[order], 8)).tolist() == delta[order].tolist()


def test_repeating_a_step_does_not_pay():
    success = doubles(1.0)
    for repeats in range(2, 6):
        score = torch.full((repeats,), 0.9, dtype=torch.float64)
        assert process_return(process_delta(score, one(repeats)), one(repeats), success).item() == pytest.approx(1.9)
        assert process_return(process_clip(score, 0.5), one(repeats), success).item() == 1.0
        assert process_return(process_clip(score, 0.95), one(repeats), success).item() <= 1.0
        assert process_return(score, one(repeats), success).item() == pytest.approx(1 + 0.9 * repeats)  # Plain scores.


def test_few_steps_and_types():
    groups = Groups(torch.tensor([2, 2]), 4)
    found = process_return(doubles(0.25, 0.5), groups, doubles(1.0, 0.0, 1.0, 0.5), 2.0)
    assert found.tolist() == [1.0, 0.0, 2.5, 0.5]
    none = Groups(torch.empty(0, dtype=torch.int64), 0)
    assert process_delta(torch.empty(0), none).shape == process_clip(torch.empty(0), 0.0).shape == (0,)
