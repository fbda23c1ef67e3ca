from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize
from tests.heads.worlds import linear_truth, world
from torch.autograd import gradcheck

from ebrm.errors import DataError
from ebrm.heads import HeadConfig, InferenceConfig, fit_head
from ebrm.heads.binary import BinaryFeedbackHead, binary_feedback_loss, class_mean_shift
from ebrm.heads.data import Labels
from ebrm.heads.losses import pair_loss

UP = torch.tensor([True, False])
PAIR = torch.tensor([3.0, 1.0], dtype=torch.float64)


def test_known_answers() -> None:
    assert float(binary_feedback_loss(PAIR, UP).sum()) == pytest.approx(1.361849, abs=1e-6)
    assert float(binary_feedback_loss(PAIR, UP, class_mean_shift(PAIR, UP)).sum()) == pytest.approx(0.626523, abs=1e-6)
    assert float(pair_loss(PAIR[:1], PAIR[1:])) == pytest.approx(0.126928, abs=1e-6)
    # Not the mean of all rewards: nine thumbs up of 1 and one down of -1.
    rewards = torch.cat([torch.ones(9), -torch.ones(1)])
    assert float(class_mean_shift(rewards, rewards > 0)) == 0.0
    weighted = binary_feedback_loss(PAIR, UP, weight=torch.tensor([1.0, 10.0]))
    assert weighted.tolist() == pytest.approx([0.048587, 13.13262], abs=1e-5)


@given(st.floats(-20, 20), st.floats(-20, 20), st.floats(-20, 20))
def test_it_bounds_the_pair_s_loss_closest_halfway(won: float, lost: float, shift: float) -> None:
    rewards = torch.tensor([won, lost], dtype=torch.float64)
    pair = float(pair_loss(rewards[:1], rewards[1:]))
    bound = float(binary_feedback_loss(rewards, UP, shift).sum())
    halfway = float(binary_feedback_loss(rewards, UP, class_mean_shift(rewards, UP)).sum())
    assert bound >= halfway - 1e-12 and halfway >= pair
    moved = binary_feedback_loss(rewards + 5, UP, shift + 5)
    assert moved.tolist() == pytest.approx(binary_feedback_loss(rewards, UP, shift).tolist())


def test_gradients_against_finite_differences() -> None:
    rewards = torch.tensor([0.3, -2.0, 1.0], dtype=torch.float64, requires_grad=True)
    up = torch.tensor([True, False, False])
    weight = torch.tensor([1.0, 0.5, 3.0], dtype=torch.float64)
    assert gradcheck(lambda r: binary_feedback_loss(r, up, class_mean_shift(r, up), weight), [rewards])


WORLD = world(linear_truth, pairs=450, size=4)
ARGS = (WORLD.embedding, WORLD.reward, WORLD.train, WORLD.validation)


def test_the_head_is_where_scipy_finds_the_lowest_loss() -> None:
    weight = torch.linspace(0.5, 2, len(WORLD.train), dtype=torch.float64)
    head = fit_head("binary", *ARGS, HeadConfig(l2=0.1), labels=Labels(weight=weight))
    x = head.standardizer.embed(WORLD.embedding).double().numpy()
    c, r, w = x[WORLD.train.chosen], x[WORLD.train.rejected], weight.numpy()

    def loss(v: np.ndarray) -> float:
        shift = ((c @ v).mean() + (r @ v).mean()) / 2
        up, down = np.logaddexp(0, -(c @ v - shift)), np.logaddexp(0, r @ v - shift)
        return (w * up).mean() + (w * down).mean() + 0.05 * v @ v

    best = minimize(loss, np.zeros(4), method="BFGS", options={"gtol": 1e-9}).x
    assert isinstance(head, BinaryFeedbackHead) and head.weight.numpy() == pytest.approx(best, abs=1e-5)
    assert WORLD.accuracy(head.refine(*ARGS[:2], InferenceConfig()).reward) > 0.9


def test_unpaired_thumbs_alone_rank_pairs() -> None:
    thumbs = torch.full((len(WORLD.reward), 1), math.nan)
    rows = torch.cat([WORLD.train.chosen, WORLD.train.rejected])
    thumbs[rows, 0] = (WORLD.truth[rows] > 1).float()  # far more down than up
    head = fit_head("binary", *ARGS, HeadConfig(l2=0.1), labels=Labels(ratings=thumbs))
    assert isinstance(head, BinaryFeedbackHead)
    x, up = head.standardizer.embed(WORLD.embedding)[rows].double().numpy(), thumbs[rows, 0].numpy() == 1

    def loss(v: np.ndarray) -> float:
        u = x @ v
        shift = (u[up].mean() + u[~up].mean()) / 2
        return np.logaddexp(0, shift - u[up]).mean() + np.logaddexp(0, u[~up] - shift).mean() + 0.05 * v @ v

    assert head.weight.numpy() == pytest.approx(minimize(loss, np.zeros(4), options={"gtol": 1e-9}).x, abs=1e-5)
    assert WORLD.accuracy(head.refine(*ARGS[:2], InferenceConfig()).reward) > 0.95


def test_what_cannot_be_learned_from_is_refused() -> None:
    with pytest.raises(DataError, match="None of 3 responses has a thumb up"):
        class_mean_shift(torch.zeros(3), torch.zeros(3, dtype=torch.bool))
    with pytest.raises(DataError, match="index 1"):
        binary_feedback_loss(torch.tensor([0.0, math.nan]), UP)
    with pytest.raises(DataError, match="weight of response 1 is -1"):
        binary_feedback_loss(PAIR, UP, weight=torch.tensor([1.0, -1.0]))
    with pytest.raises(ValueError, match="one shape"):
        binary_feedback_loss(PAIR, UP[:1])
    thumbs = torch.full((len(WORLD.reward), 1), 1.0)
    with pytest.raises(DataError, match="thumb down"):
        fit_head("binary", *ARGS, labels=Labels(ratings=thumbs))
    thumbs[0] = 3.0
    with pytest.raises(DataError, match="1 .thumb up., 0"):
        fit_head("binary", *ARGS, labels=Labels(ratings=thumbs))
