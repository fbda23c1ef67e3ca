from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit, logit
from scipy.stats import gmean

from ebrm.aggregate import How, step_reward
from ebrm.groups import Groups

BY_HAND = {
    "min": np.min, "max": np.max, "mean": np.mean, "last": lambda p: p[-1], "product": np.prod, "geometric_mean": gmean,
    "mean_logit": lambda p: expit(logit(p).mean()), "mean_odds": lambda p: (p / (1 - p)).mean(),
}  # fmt: skip
ANY_ORDER: list[How] = ["min", "max", "mean", "product", "geometric_mean", "mean_logit", "mean_odds"]
HOW: list[How] = [*ANY_ORDER, "last"]


def one(*scores):
    return torch.tensor(scores, dtype=torch.float64), Groups.of([0] * len(scores))


def test_known_answers():
    for how, expected in (("min", 0.25), ("max", 1.0), ("product", 0.25), ("geometric_mean", 0.5), ("last", 1.0)):
        assert step_reward(*one(0.25, 1.0), how).tolist() == pytest.approx([expected]), how
    assert step_reward(*one(0.5, 0.5), "mean_logit").tolist() == pytest.approx([0.5])
    assert step_reward(*one(0.9, 0.1), "mean_logit").tolist() == pytest.approx([0.5])
    assert step_reward(*one(0.5, 0.75), "mean_odds").tolist() == pytest.approx([2.0])
    assert step_reward(*one(-3.0, 5.0, 2.0), "last").tolist() == [2.0]  # Scores that are no probabilities.


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.floats(0.01, 0.99)), min_size=1, max_size=30), st.sampled_from(HOW))
def test_each_response_by_hand(rows: list[tuple[int, float]], how):
    ids, scores = [row[0] for row in rows], torch.tensor([row[1] for row in rows], dtype=torch.float64)
    found = step_reward(scores, Groups.of(ids), how)
    for number, name in enumerate(dict.fromkeys(ids)):
        steps = np.array([score for id, score in rows if id == name])
        assert float(found[number]) == pytest.approx(BY_HAND[how](steps)), how
        if len(steps) == 1 and how != "mean_odds":
            assert float(found[number]) == pytest.approx(steps[0])


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(-9, 9), st.floats(0.1, 9))
def test_order_offset_and_scale(seed, offset, scale):
    generator = torch.Generator().manual_seed(seed)
    scores, index = torch.rand(40, dtype=torch.float64, generator=generator), torch.arange(40) % 6
    order = torch.randperm(40, generator=generator)
    for how in HOW:
        found = step_reward(scores, Groups(index, 6), how)
        mixed = step_reward(scores[order], Groups(index[order], 6), how)
        assert torch.allclose(mixed, found) == (how != "last")
        if how in ("min", "max", "mean", "last"):
            moved = step_reward(scale * scores + offset, Groups(index, 6), how)
            assert moved.tolist() == pytest.approx((scale * found + offset).tolist())
    longer = step_reward(torch.cat([scores, scores]), Groups(torch.cat([index, index]), 6), "product")
    assert longer.tolist() == pytest.approx(step_reward(scores, Groups(index, 6), "product").square().tolist())


def test_certain_steps_and_many_steps():
    for how in ANY_ORDER:
        assert bool(step_reward(*one(0.0, 1.0, 1.0), how).isfinite().all()), how
    assert step_reward(*one(0.0, 1.0), "product").tolist() == step_reward(*one(0.0, 1.0), "geometric_mean").tolist()
    assert step_reward(*one(0.0, 1.0), "product").tolist() == [0.0]
    assert step_reward(*one(0.0, 1.0), "mean_logit").tolist() == pytest.approx([0.5])
    assert step_reward(*one(1.0), "mean_odds", clip=0.1).tolist() == pytest.approx([9.0])
    assert step_reward(*one(*[0.01] * 1000), "geometric_mean").tolist() == pytest.approx([0.01])  # The product is 0.


@pytest.mark.parametrize("how", HOW)
def test_responses_without_steps(how):
    scores, groups = torch.tensor([0.5, 0.25]), Groups(torch.tensor([1, 1]), 3)
    found = step_reward(scores, groups, how, empty=0.0625)
    assert found[[0, 2]].tolist() == [0.0625, 0.0625] and float(found[1]) != 0.0625
    assert step_reward(torch.empty(0), Groups.of([]), how).shape == (0,)
