from __future__ import annotations

import math
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ebrm.groups import Groups
from ebrm.optimize import best_of_n_gold, contrastive_subsample, reward_ranked_local, reward_ranked_top

ROWS = st.lists(st.tuples(st.integers(0, 4), st.integers(-4, 4)), min_size=1, max_size=30)


def draws(seed, *shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_known_answers():
    reward = torch.tensor([3.0, 9, 1, 4, 8, 0, 7, 2, 6, 5])
    groups = Groups(torch.arange(10) // 5, 2)
    top = reward_ranked_top(reward, groups)
    assert top.rows.tolist() == [1, 4] and top.coverage == 0.5  # The best two are of one prompt: the other starves.
    local = reward_ranked_local(reward, groups)
    assert local.rows.tolist() == [1, 6] and local.coverage == 1.0
    assert reward_ranked_top(reward, groups, 1.0).rows.tolist() == list(range(10))
    assert reward_ranked_local(reward, groups, 2).rows.tolist() == [1, 4, 6, 8]
    assert contrastive_subsample(reward, groups, 2).rows.tolist() == [1, 2, 5, 6]
    assert contrastive_subsample(reward, groups, 3).rows.tolist() == [1, 2, 4, 5, 6, 8]  # One more of the best.
    assert contrastive_subsample(reward, groups, 5).rows.tolist() == list(range(10))
    assert len(reward_ranked_top(draws(0, 100), Groups.of([0] * 100), 0.29).rows) == 29  # 0.29 * 100 is 28.999…
    assert len(reward_ranked_top(draws(0, 99), Groups.of([0] * 99), 0.2).rows) == 19


@given(ROWS, st.floats(0.05, 1), st.integers(2, 6))
def test_by_hand(rows: list[tuple[int, int]], share, keep):
    ids, reward = [row[0] for row in rows], torch.tensor([float(row[1]) for row in rows])
    groups, n = Groups.of(ids), len(rows)
    ranked = sorted(range(n), key=lambda i: (-rows[i][1], i))
    if share * n >= 1:
        top = reward_ranked_top(reward, groups, share)
        assert top.rows.tolist() == sorted(ranked[: int(share * n + 1e-9)])
        assert top.coverage == pytest.approx(len({ids[i] for i in top.rows.tolist()}) / len(set(ids)))
        assert float(reward[top.rows].mean()) >= float(reward.mean()) - 1e-6
    best, ends = [], []
    for name in set(ids):
        of = [i for i in ranked if ids[i] == name]
        best += of[:keep]
        ends += of if len(of) <= keep else of[: math.ceil(keep / 2)] + of[len(of) - keep // 2 :]
    local, contrast = reward_ranked_local(reward, groups, keep), contrastive_subsample(reward, groups, keep)
    assert local.rows.tolist() == sorted(best) and contrast.rows.tolist() == sorted(ends)
    assert local.coverage == contrast.coverage == 1.0


@settings(max_examples=20)
@given(st.integers(0, 2**32 - 1), st.floats(5, 50), st.floats(0.1, 10))
def test_offsets_of_prompts_move_the_top_alone(seed, offset, scale):
    reward, index = draws(seed, 40), torch.arange(40) % 8
    groups = Groups(index, 9)
    moved = scale * reward + offset * torch.arange(9, dtype=torch.float64)[index]
    assert torch.equal(reward_ranked_local(moved, groups).rows, reward_ranked_local(reward, groups).rows)
    assert torch.equal(contrastive_subsample(moved, groups, 3).rows, contrastive_subsample(reward, groups, 3).rows)
    top = reward_ranked_top(reward, groups)
    assert torch.equal(reward_ranked_top(scale * reward + offset, groups).rows, top.rows)
    shifted = reward_ranked_top(reward + 10 * torch.arange(9, dtype=torch.float64)[index], groups)
    assert set(index[shifted.rows].tolist()) <= {6, 7} and shifted.coverage <= 0.25 and top.coverage > 0.25
    order = torch.randperm(40, generator=torch.Generator().manual_seed(seed))
    mixed = Groups(index[order], 9)
    for function in (reward_ranked_top, reward_ranked_local, lambda r, g: contrastive_subsample(r, g, 4)):
        assert set(order[function(reward[order], mixed).rows].tolist()) == set(function(reward, groups).rows.tolist())


def test_ties_go_to_the_first():
    reward, groups = torch.ones(6), Groups(torch.tensor([0, 1, 0, 1, 0, 1]), 2)
    assert reward_ranked_top(reward, groups, 0.5).rows.tolist() == [0, 1, 2]
    assert reward_ranked_local(reward, groups).rows.tolist() == [0, 1]
    assert contrastive_subsample(reward, groups, 2).rows.tolist() == [0, 1, 4, 5]


def test_the_expected_reward_of_what_is_kept_is_that_of_best_of_n():
    pool = draws(1, 4)
    draws_of = torch.tensor(list(product(range(4), repeat=2)))
    draws_of = draws_of[draws_of[:, 0] != draws_of[:, 1]]
    reward, groups = pool[draws_of].flatten(), Groups(torch.arange(len(draws_of)).repeat_interleave(2), len(draws_of))
    kept = reward[reward_ranked_local(reward, groups).rows].mean()
    assert float(kept) == pytest.approx(best_of_n_gold(pool[None].numpy(), pool[None].numpy())[0, 1])


def test_few_rows():
    single = Groups(torch.tensor([2]), 4)  # One row, three prompts without any.
    for found in (
        reward_ranked_top(torch.zeros(1), single, 1.0),
        reward_ranked_local(torch.zeros(1), single),
        contrastive_subsample(torch.zeros(1), single, 2),
    ):
        assert found.rows.tolist() == [0] and found.coverage == 1.0
    none = Groups(torch.empty(0, dtype=torch.int64), 0)
    for found in (reward_ranked_top(torch.empty(0), none), reward_ranked_local(torch.empty(0), none)):
        assert found.rows.tolist() == [] and math.isnan(found.coverage)
