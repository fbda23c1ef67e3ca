from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit

from ebrm.groups import Groups
from ebrm.shape import correct_length_penalty, length_penalty, relative_length_penalty

ROWS = st.lists(
    st.tuples(st.integers(0, 4), st.integers(1, 500), st.sampled_from([0.0, 0.5, 1.0])), min_size=1, max_size=30
)


def doubles(*values):
    return torch.tensor(values, dtype=torch.float64)


def one(n):
    return Groups.of([0] * n)


def test_known_answers():
    assert length_penalty(doubles(0, 300, 301, 500)).tolist() == pytest.approx([0, 0, -0.01, -2.0])
    assert length_penalty(doubles(5, 20), 10, 0.5).tolist() == [0.0, -5.0]
    assert relative_length_penalty(doubles(100, 200, 300), one(3)).tolist() == pytest.approx([1.0, 0.0, -1 / 3])
    assert relative_length_penalty(doubles(10, 390), one(2)).tolist() == pytest.approx([1.0, -190 / 390])  # 19, clipped
    found = correct_length_penalty(doubles(100, 300, 900, 5), doubles(1, 1, 0, 0), one(4))
    short = 2 * float(expit(1)) - 1
    assert found.tolist() == pytest.approx([short, -short, 0, 0], abs=1e-6)  # Only the correct set the mean, 200.


@given(ROWS)
def test_each_group_by_hand(rows: list[tuple[int, int, float]]):
    ids, length, correct = [row[0] for row in rows], np.array([r[1] for r in rows]), np.array([r[2] for r in rows])
    groups, lengths = Groups.of(ids), torch.tensor(length)
    relative = relative_length_penalty(lengths.double(), groups)
    among = correct_length_penalty(lengths.double(), torch.tensor(correct), groups)
    for i, id in enumerate(ids):
        of = np.array([other == id for other in ids])
        expected = -np.clip((length[i] - length[of].mean()) / length[i], -1, 1)
        assert float(relative[i]) == pytest.approx(expected, abs=1e-12)
        right = length[of & (correct > 0)]
        expected = 0.0
        if correct[i] > 0 and len(right) > 1:
            expected = -correct[i] * (2 * expit((length[i] - right.mean()) / (right.std() + 1e-5)) - 1)
        assert float(among[i]) == pytest.approx(expected, abs=1e-9)


@settings(max_examples=25)
@given(st.integers(0, 2**32 - 1), st.floats(1, 500), st.floats(0.2, 5))
def test_invariances(seed, more, scale):
    generator = torch.Generator().manual_seed(seed)
    length, index = 10 + 500 * torch.rand(40, dtype=torch.float64, generator=generator), torch.arange(40) % 6
    groups, correct = Groups(index, 8), (torch.rand(40, generator=generator) < 0.6).double()
    order = torch.randperm(40, generator=generator)
    mixed, factor = Groups(index[order], 8), scale * (1 + torch.arange(8, dtype=torch.float64))[index]
    relative, among = relative_length_penalty(length, groups), correct_length_penalty(length, correct, groups)
    assert relative_length_penalty(factor * length, groups).tolist() == pytest.approx(relative.tolist())
    assert not torch.allclose(relative_length_penalty(length + more, groups), relative)
    for moved in (length + more * torch.arange(8, dtype=torch.float64)[index], factor * length):
        assert correct_length_penalty(moved, correct, groups).tolist() == pytest.approx(among.tolist(), abs=1e-5)
    assert torch.allclose(relative_length_penalty(length[order], mixed), relative[order])
    assert torch.allclose(correct_length_penalty(length[order], correct[order], mixed), among[order])
    for found in (relative, among):
        assert bool((found.abs() <= 1).all())
    assert bool((length_penalty(length + more) <= length_penalty(length)).all())
    wrong = torch.where(correct > 0, length, length * 3)  # The length of wrong responses is nobody's business.
    assert torch.equal(correct_length_penalty(wrong, correct, groups), among)


def test_equal_lengths_and_few_rows():
    groups = Groups(torch.tensor([0, 0, 0, 2]), 4)
    for length in (doubles(0.1, 0.1, 0.1, 7.0), torch.tensor([3, 3, 3, 1])):
        for found in (
            relative_length_penalty(length, groups),
            correct_length_penalty(length, torch.ones(4), groups),
            correct_length_penalty(length, torch.zeros(4), groups),
        ):
            assert found.tolist() == [0.0] * 4
    assert correct_length_penalty(doubles(1, 9), torch.tensor([True, False]), one(2)).tolist() == [0.0, 0.0]
    none = Groups(torch.empty(0, dtype=torch.int64), 0)
    assert relative_length_penalty(torch.empty(0), none).shape == length_penalty(torch.empty(0)).shape == (0,)
    assert correct_length_penalty(torch.empty(0), torch.empty(0), none).shape == (0,)
