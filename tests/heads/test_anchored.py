from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.heads.worlds import linear_truth, world
from torch.autograd import gradcheck

from ebrm.errors import ConfigError, DataError
from ebrm.heads import HeadConfig, InferenceConfig, fit_head
from ebrm.heads.anchored import anchored_ranking_loss

ZERO = torch.zeros(3, dtype=torch.float64)
NO = torch.empty(0, dtype=torch.float64)


def test_known_answers() -> None:
    assert float(anchored_ranking_loss(ZERO, ZERO, ZERO, NO, NO)) == pytest.approx((0.35 + 1 + 0.35) * math.log(2) / 3)
    assert float(anchored_ranking_loss(ZERO, ZERO, ZERO, NO, NO)) == pytest.approx(0.392783, abs=1e-6)
    new, old = torch.tensor([1.0, 5.0]), torch.tensor([0.0, 3.0])
    assert float(anchored_ranking_loss(NO, NO, NO, new, old)) == pytest.approx(0.01 * (1 + 4))
    assert float(anchored_ranking_loss(NO, NO, NO, old, old)) == 0.0
    one = torch.ones(1, dtype=torch.float64)
    squares = float(anchored_ranking_loss(one, one, one, NO, NO) - anchored_ranking_loss(one, one, one, NO, NO, size=0))
    assert squares == pytest.approx((0.35 + 1 + 0.35) * 0.01 / 3)


@given(st.integers(0, 2**31))
def test_order_matters_and_a_shift_only_through_the_squares(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    a, b, c = torch.randn(3, 4, generator=generator, dtype=torch.float64).sort(0, descending=True).values
    right = anchored_ranking_loss(a, b, c, NO, NO)
    assert float(right) < float(anchored_ranking_loss(c, b, a, NO, NO))
    moved = anchored_ranking_loss(a + 3, b + 3, c + 3, NO, NO, size=0)
    assert float(moved) == pytest.approx(float(anchored_ranking_loss(a, b, c, NO, NO, size=0)))
    order = torch.randperm(4, generator=generator)
    assert float(anchored_ranking_loss(a[order], b[order], c[order], NO, NO)) == pytest.approx(float(right))


def test_gradients_against_finite_differences() -> None:
    values = [
        v.requires_grad_() for v in torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    ]
    assert gradcheck(lambda a, b, c, new, old: anchored_ranking_loss(a, b, c, new, old), values)


def test_bad_numbers_are_refused() -> None:
    with pytest.raises(DataError, match="new reward.*index 0"):
        anchored_ranking_loss(NO, NO, NO, torch.tensor([math.inf]), torch.zeros(1))
    with pytest.raises(ConfigError, match="must all be 0 or more"):
        anchored_ranking_loss(NO, NO, NO, NO, NO, anchor=-1)


WORLD = world(linear_truth, pairs=450, size=4, offset=5.0, scale=1.0)
ARGS = (WORLD.embedding, WORLD.reward, WORLD.train, WORLD.validation)


def rewards(anchor: float, l2: float = 1e-6) -> torch.Tensor:
    return fit_head("anchored", *ARGS, HeadConfig(anchor=anchor, l2=l2)).refine(*ARGS[:2], InferenceConfig()).reward


def test_a_strong_anchor_gives_the_base_reward_as_far_as_it_is_linear() -> None:
    rows = torch.unique(torch.cat([WORLD.train.chosen, WORLD.train.rejected])).numpy()
    e = np.hstack([WORLD.embedding.numpy(), np.ones((len(WORLD.reward), 1))])
    linear = e @ np.linalg.lstsq(e[rows], WORLD.reward.numpy()[rows], rcond=None)[0]
    assert rewards(1e6).numpy() == pytest.approx(linear, abs=1e-2)


def test_no_anchor_gives_the_linear_head_s_differences_in_its_own_units() -> None:
    linear = fit_head("linear", *ARGS, HeadConfig(l2=0.01))
    scores = linear.scores(linear.standardizer.embed(WORLD.embedding)).double().numpy()
    free = rewards(0.0, 0.01).double().numpy()
    assert free - free[0] == pytest.approx(scores - scores[0], abs=1e-4)
    distance = [float((rewards(anchor) - WORLD.reward).square().mean()) for anchor in (0.0, 0.01, 1.0)]
    assert distance[0] > distance[1] > distance[2]


def test_rewards_and_deviation_are_in_base_units() -> None:
    refined = fit_head("anchored", *ARGS).refine(*ARGS[:2], InferenceConfig())
    assert refined.std.numpy() == pytest.approx(np.full(len(WORLD.reward), math.pi / math.sqrt(6)), rel=1e-5)
    assert float(refined.reward.mean()) == pytest.approx(5.0, abs=0.3)
