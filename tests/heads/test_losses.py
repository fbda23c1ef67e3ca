"""What is added to the pair loss: ties by their squared difference, agreement of several, differences on new data."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit, logit
from scipy.stats import entropy
from torch.autograd import gradcheck

from ebrm.errors import ConfigError, DataError
from ebrm.groups import Groups
from ebrm.heads import difference_objective, inconsistency_penalty, pair_loss


def draws(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_a_tied_pair_costs_its_squared_difference_and_others_what_they_did() -> None:
    chosen, rejected = torch.tensor([3.0, 1.0, 0.5]), torch.tensor([1.0, 1.0, 2.0])
    tied = torch.tensor([True, True, False])
    loss = pair_loss(chosen, rejected, margin=0.3, tied=tied, tie_square=0.25, weight=2.0)
    alone = pair_loss(chosen[2:], rejected[2:], margin=0.3, weight=2.0)
    assert loss.tolist() == pytest.approx([2 * 0.25 * 4, 0.0, float(alone)])
    assert pair_loss(chosen, rejected, tied=tied, tie_square=0.0).tolist()[:2] == [0.0, 0.0]
    sides = (chosen.double().requires_grad_(), rejected.double().requires_grad_())
    assert gradcheck(lambda c, r: pair_loss(c, r, tied=tied, tie_square=0.7, centering=0.1), sides)


def test_ties_have_one_loss() -> None:
    one, tied = torch.zeros(1), torch.tensor([True])
    with pytest.raises(ConfigError, match="`ties` or `tie_square`, not both"):
        pair_loss(one, one, tied=tied, ties=5.0, tie_square=1.0)
    with pytest.raises(ConfigError, match="`tie_square` is -1"):
        pair_loss(one, one, tied=tied, tie_square=-1.0)
    with pytest.raises(ConfigError, match=r"Give `ties` \(the paper: 5\) or `tie_square`"):
        pair_loss(one, one, tied=tied)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 4), st.floats(0, 2))
def test_disagreement_is_the_mean_divergence_from_the_mean(seed: int, k: int, weight: float) -> None:
    d = 3 * draws(seed, k, 5)
    p = expit(d.numpy())
    both, mean = np.stack([p, 1 - p]), np.stack([p.mean(0), 1 - p.mean(0)])
    expected = entropy(both, mean[:, None].repeat(k, 1)).mean(0) + weight * entropy(mean)
    assert inconsistency_penalty(d, weight).tolist() == pytest.approx(expected.tolist(), abs=1e-12)
    assert torch.allclose(inconsistency_penalty(-d, weight), inconsistency_penalty(d, weight))
    assert bool((inconsistency_penalty(d) <= math.log(k) + 1e-12).all())


def test_rewards_that_agree_have_no_penalty_and_sure_ones_that_do_not_have_log_2() -> None:
    assert inconsistency_penalty(draws(1, 1, 4).repeat(3, 1)).tolist() == [0.0] * 4
    assert inconsistency_penalty(logit([[0.9, 0.8], [0.9, 0.8]])).tolist() == [0.0, 0.0]
    assert inconsistency_penalty([[1e4], [-1e4]]).tolist() == pytest.approx([math.log(2)])
    assert inconsistency_penalty([[0.0], [0.0]], entropy=1.0).tolist() == pytest.approx([math.log(2)])
    assert inconsistency_penalty(torch.empty(2, 0)).shape == (0,)
    with pytest.raises(DataError, match="no rewards"):
        inconsistency_penalty(torch.empty(0, 2))


def test_the_penalty_pulls_to_a_mean_that_stands_still() -> None:
    d = draws(2, 3, 4).requires_grad_()
    p = torch.sigmoid(d)
    (found,) = torch.autograd.grad(inconsistency_penalty(d).sum(), d)
    fixed = p.mean(0).detach()

    def against(d: torch.Tensor) -> torch.Tensor:
        p = torch.sigmoid(d)
        return (p * (p / fixed).log() + (1 - p) * ((1 - p) / (1 - fixed)).log()).mean(0)

    (expected,) = torch.autograd.grad(against(d).sum(), d)
    assert torch.allclose(found, expected) and gradcheck(against, (d,))
    assert torch.equal(found.sign(), (p - fixed).sign())


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_the_difference_objective_of_each_prompt_by_hand(seed: int) -> None:
    reward, index = draws(seed, 7), torch.tensor([0, 1, 0, 3, 0, 1, 0])
    found = difference_objective(reward, Groups(index, 4))
    for group, value in enumerate(found.tolist()):
        some = reward[index == group].tolist()
        terms = [expit(abs(a - b)) for a, b in combinations(some, 2)]
        assert value == pytest.approx(np.mean(terms) if terms else 0.0)


def test_its_gradient_drives_responses_apart() -> None:
    groups, reward = Groups.of([0, 0, 0, 1, 1, 2]), draws(3, 6).requires_grad_()
    assert gradcheck(lambda r: difference_objective(r, groups), (reward,))
    before = difference_objective(reward, groups)
    (slope,) = torch.autograd.grad(before.sum(), reward)
    assert bool((difference_objective(reward + 0.1 * slope, groups) >= before).all()) and float(slope[5]) == 0
    assert difference_objective(torch.ones(3), Groups.of([0, 0, 0])).tolist() == [0.5]
