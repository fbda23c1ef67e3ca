from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ebrm.aggregate import LLAMA3_70B_STEERLM, NEMOTRON_4_340B, attribute_sum, weighted_mean, weighted_sum

NAMES = ["helpfulness", "correctness", "coherence", "complexity", "verbosity"]


def table(seed, n=19, a=4):
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(n, a, dtype=torch.float64, generator=generator),
        torch.rand(a, dtype=torch.float64, generator=generator) + 0.1,
    )


def test_known_answers():
    rewards = torch.tensor([[1.0, 2.0, 3.0], [0.0, -1.0, 0.5]])
    weight = torch.tensor([2.0, 1.0, -1.0])
    assert weighted_sum(rewards, weight).tolist() == [1.0, -1.5]
    assert weighted_mean(rewards).tolist() == pytest.approx([2.0, -1 / 6])
    assert weighted_mean(rewards, torch.tensor([3.0, 1.0, 0.0])).tolist() == [1.25, -0.25]
    assert weighted_mean(rewards, torch.tensor([0.0, 7.0, 0.0])).tolist() == [2.0, -1.0]
    huge = torch.tensor([9e307, 9e307, 0.0], dtype=torch.float64)
    assert weighted_mean(rewards, huge).tolist() == [1.5, -0.5]


def test_published_weights():
    fours = {name: torch.tensor([4.0], dtype=torch.float64) for name in NAMES}
    assert attribute_sum(fours, LLAMA3_70B_STEERLM).tolist() == pytest.approx([8.2])
    assert attribute_sum(fours, NEMOTRON_4_340B).tolist() == pytest.approx([4 * 1.64])
    assert list(LLAMA3_70B_STEERLM) == list(NEMOTRON_4_340B) == NAMES
    for weights in (LLAMA3_70B_STEERLM, NEMOTRON_4_340B):
        # A shorter answer gains, all else equal.
        assert attribute_sum(fours | {"verbosity": torch.tensor([0.0])}, weights) > attribute_sum(fours, weights)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(-20, 20), st.floats(0.01, 100))
def test_offset_scale_and_order(seed, offset, scale):
    rewards, weight = table(seed)
    mean, total = weighted_mean(rewards, weight), weighted_sum(rewards, weight)
    assert mean.tolist() == pytest.approx((total / weight.sum()).tolist())
    assert bool((rewards.amin(1) - 1e-12 <= mean).all()) and bool((mean <= rewards.amax(1) + 1e-12).all())
    assert weighted_mean(scale * rewards + offset, scale * weight).tolist() == pytest.approx(
        (scale * mean + offset).tolist(), abs=1e-9
    )
    moved = weighted_sum(rewards + torch.tensor([offset, 0, 0, 0], dtype=torch.float64), weight)
    assert moved.tolist() == pytest.approx((total + offset * weight[0]).tolist(), abs=1e-9)
    columns = torch.randperm(4, generator=torch.Generator().manual_seed(seed))
    assert weighted_sum(rewards[:, columns], weight[columns]).tolist() == pytest.approx(total.tolist())
    single = torch.cat([weighted_sum(row[None], weight) for row in rewards])
    assert torch.equal(single, total)


def test_the_scale_of_one_reward_changes_the_order():
    rewards, equal = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.ones(2)
    assert weighted_sum(rewards, equal).argmax() == 1
    assert weighted_sum(rewards * torch.tensor([1000.0, 1.0]), equal).argmax() == 0


def test_names_decide_and_not_their_order():
    one, two = torch.tensor([1.0, 2.0]), torch.tensor([5.0, 7.0])
    for attributes in ({"a": one, "b": two}, {"b": two, "unused": one, "a": one}):
        assert attribute_sum(attributes, {"b": 2.0, "a": -1.0}).tolist() == [9.0, 12.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_types_and_no_rows(dtype):
    rewards, weight = table(3)
    for combine in (weighted_sum, weighted_mean):
        assert combine(rewards.to(dtype), weight).dtype == dtype
        assert combine(rewards[:0].to(dtype), weight).shape == (0,)
        large = (rewards + 1000).to(dtype)
        assert torch.equal(combine(large, weight), combine(large.double(), weight).to(dtype))
    assert attribute_sum({"a": rewards[:, 0].to(dtype)}, {"a": 1.0}).dtype == dtype
    assert attribute_sum({"a": torch.tensor([4])}, {"a": 0.5}).tolist() == [2.0]
    assert weighted_sum(torch.tensor([[1, 2]]), torch.tensor([0.5, 0.25])).tolist() == [1.0]
