from __future__ import annotations

import numpy as np
import torch

from ebrm.optimize import pool_tables, pools_by_size, tie_groups

NAN = np.nan


def test_pools_come_by_size_in_ascending_order():
    reward = [[3, 1, 2], [NAN, 5, 4], [NAN, NAN, NAN], [7, 7, 6]]
    gold = [[0.3, 0.1, 0.2], [NAN, 0.5, 0.4], [NAN, NAN, NAN], [9, 8, 0]]
    found = [(rows.tolist(), r.tolist(), g.tolist()) for rows, r, g in pools_by_size(*pool_tables(reward, gold))]
    assert found == [
        ([1], [[4, 5]], [[0.4, 0.5]]),
        ([0, 3], [[1, 2, 3], [6, 7, 7]], [[0.1, 0.2, 0.3], [0, 8, 9]]),
    ]
    assert list(pools_by_size(np.empty((0, 3)), np.empty((0, 3)))) == []


def test_equal_rewards_are_one_group():
    assert tie_groups(np.array([[1.0, 1.0, 2.0, 3.0, 3.0], [0.0, 1.0, 2.0, 3.0, 4.0]])).tolist() == [
        [0, 0, 1, 2, 2],
        [0, 1, 2, 3, 4],
    ]
    assert tie_groups(np.array([[-3.0]])).tolist() == [[0]]


def test_tensors_of_float32_are_taken():
    reward, gold = pool_tables(torch.tensor([[1.5, NAN]]), torch.tensor([[1.0, NAN]]))
    assert reward.dtype == gold.dtype == np.float64 and reward[0, 0] == 1.5
