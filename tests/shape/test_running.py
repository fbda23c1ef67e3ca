from __future__ import annotations

import json
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import zscore

from ebrm.shape import RunningStatistics, running_clipped, running_min_max, running_standardized

SHAPES: list[Callable[[torch.Tensor, RunningStatistics], torch.Tensor]]
SHAPES = [running_standardized, running_min_max, running_clipped]
REWARDS = st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=30)


def doubles(*values):
    return torch.tensor(values, dtype=torch.float64)


def seen(*values):
    return RunningStatistics().updated(doubles(*values))


def test_known_answers():
    reward = doubles(1.0, 2.0, 3.0, 6.0)
    statistics = RunningStatistics().updated(reward)
    assert statistics == RunningStatistics(4, 3.0, 14.0, 1.0, 6.0)
    assert statistics.std() == pytest.approx(math.sqrt(3.5)) and statistics.std(1) == pytest.approx(math.sqrt(14 / 3))
    assert running_standardized(reward, statistics).tolist() == pytest.approx(zscore(reward.numpy()).tolist())
    assert running_standardized(reward, statistics, 1).tolist() == pytest.approx(
        zscore(reward.numpy(), ddof=1).tolist()
    )
    low, high = 3 - math.sqrt(3.5), 3 + math.sqrt(3.5)
    assert running_clipped(reward, statistics).tolist() == pytest.approx([low, 2.0, 3.0, high])
    assert running_clipped(reward, statistics, 0.5, 1).tolist() == pytest.approx(
        [3 - 1.0801, 2.0, 3.0, 3 + 1.0801], abs=1e-4
    )
    assert running_min_max(reward, statistics).tolist() == pytest.approx([0.0, 0.2, 0.4, 1.0])
    assert running_min_max(doubles(-4.0, 11.0), statistics).tolist() == pytest.approx([-1.0, 2.0])


@given(REWARDS, REWARDS, st.integers(0, 30))
def test_batches_and_parts_make_no_difference(first, second, cut):
    both = np.array(first + second)
    in_turn = seen(*first).updated(doubles(*second))
    merged = RunningStatistics().merged(seen(*first)).merged(seen(*second)).merged(RunningStatistics())
    other_cut = seen(*both[:cut]).updated(doubles(*both[cut:]))
    for found in (in_turn, merged, other_cut, seen(*second).merged(seen(*first))):
        assert found.count == len(both)
        assert (found.lowest, found.highest) == (both.min(), both.max())
        assert found.mean == pytest.approx(both.mean(), abs=1e-9)
        assert found.std() == pytest.approx(both.std(), abs=1e-6)
        if len(both) > 1:
            assert found.std(1) == pytest.approx(both.std(ddof=1), abs=1e-6)
    assert in_turn.updated(torch.empty(0)) == in_turn
    assert RunningStatistics(**json.loads(json.dumps(vars(in_turn)))) == in_turn


def test_a_large_offset_costs_no_digits():
    reward = 1e9 + doubles(0.0, 1.0, 2.0)
    assert RunningStatistics().updated(reward[:1]).updated(reward[1:]).std() == pytest.approx(math.sqrt(2 / 3))


@settings(max_examples=25)
@given(st.integers(0, 2**32 - 1), st.floats(-1e3, 1e3), st.floats(0.1, 50))
def test_offset_and_scale(seed, offset, scale):
    generator = torch.Generator().manual_seed(seed)
    reward = torch.randn(20, dtype=torch.float64, generator=generator)
    moved, order = scale * reward + offset, torch.randperm(20, generator=generator)
    here, there = RunningStatistics().updated(reward), RunningStatistics().updated(moved)
    for shape in SHAPES[:2]:
        assert shape(moved, there).tolist() == pytest.approx(shape(reward, here).tolist(), abs=1e-8)
    clipped = scale * running_clipped(reward, here) + offset
    assert running_clipped(moved, there).tolist() == pytest.approx(clipped.tolist(), abs=1e-8)
    for shape in SHAPES:
        assert torch.equal(shape(reward[order], here), shape(reward, here)[order])
    one_prompt = reward + offset * (torch.arange(20) < 5)  # An offset of some rows is not lost on any.
    if abs(offset) > 1:
        assert not torch.allclose(running_standardized(one_prompt, RunningStatistics().updated(one_prompt)),
                                  running_standardized(reward, here))  # fmt: skip


def test_equal_rewards():
    same = seen(0.1, 0.1, 0.1)
    assert same.std() == same.std(1) == same.updated(doubles(0.1)).std() == 0.0
    assert running_standardized(doubles(0.1, 1.1), same).tolist() == pytest.approx([0.0, 1.0])
    assert running_clipped(doubles(0.1, 1.1), same).tolist() == pytest.approx([0.1, 0.1])
    assert running_min_max(doubles(0.1, 1.1), same).tolist() == [0.5, 0.5]
    assert seen(4.0).std(1) == 0.0


def test_types_and_no_rows():
    for shape in SHAPES:
        for dtype in (torch.float32, torch.float64, torch.bfloat16):
            assert shape(torch.ones(2, dtype=dtype), seen(0.0, 1.0)).dtype == dtype
        assert shape(torch.empty(0), seen(0.0, 1.0)).shape == (0,)
