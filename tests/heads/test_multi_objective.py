"""Heads for other feedback: rated attributes, thumbs with and without pairs, several objectives."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize
from tests.heads.toys import NONE, World, linear_truth, world
from torch.autograd import gradcheck

from ebrm.errors import ConfigError, DataError
from ebrm.heads import (
    AttributesConfig,
    BinaryConfig,
    LinearConfig,
    MinNormConfig,
    binary_feedback_loss,
    class_mean_shift,
    fit_head,
    pair_loss,
)
from ebrm.heads.data import Standardizer, head_data
from ebrm.heads.multi_objective import MinNormHead
from ebrm.pairs import PreferencePairs

RATED = world(linear_truth, pairs=600, size=4)


def ratings(noise: float = 0.5) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    clean = torch.stack([2 + RATED.embedding[:, 0], 1 - 2 * RATED.embedding[:, 1]], 1)
    return clean + noise * torch.randn(clean.shape, generator=generator)


def fitted(table: torch.Tensor, **settings: Any) -> Any:
    return RATED.fit(AttributesConfig(**settings), ratings=table)


def test_each_attribute_is_a_ridge_regression_on_its_own_ratings() -> None:
    table = torch.full_like(ratings(), math.nan)
    rows = RATED.rows
    table[rows] = ratings()[rows]
    table[rows[::3], 1] = math.nan
    head = fitted(table, ridge=0.2)
    x = head.standardizer.embed(RATED.embedding).double().numpy()
    for j in range(2):
        known = ~np.isnan(table[:, j].numpy())
        e, t = x[known], table[known, j].double().numpy()
        design = np.hstack([e, np.ones((len(e), 1))])
        penalty = np.diag([0.2] * 4 + [0.0])
        solution = np.linalg.solve(design.T @ design / len(e) + penalty, design.T @ t / len(e))
        assert head.weight[j].numpy() == pytest.approx(solution[:4], abs=1e-5)
        assert float(head.bias[j]) == pytest.approx(solution[4], abs=1e-5)


def test_the_noise_of_ratings_is_found_and_the_reward_is_the_weighted_sum() -> None:
    head = fitted(ratings(0.5), weights=(0.65, -0.4))
    # Independent errors of 0.5 each: √(0.65² + 0.4²) · 0.5.
    assert float(head.residual) == pytest.approx(0.5 * math.hypot(0.65, 0.4), rel=0.15)
    x = head.standardizer.embed(RATED.embedding)
    assert torch.allclose(head.scores(x), head.attributes(x).double() @ torch.tensor([0.65, -0.4], dtype=torch.float64))
    assert np.corrcoef(head.attributes(x)[:, 1].numpy(), RATED.embedding[:, 1].numpy())[0, 1] < -0.98
    std = RATED.refined(head).std
    assert bool((std == std[0]).all())
    equal = fitted(ratings(0.5))
    assert torch.allclose(equal.scores(x), equal.attributes(x).double().mean(1), atol=1e-6)


def test_without_held_out_ratings_the_training_rows_are_measured() -> None:
    table = torch.full_like(ratings(), math.nan)
    table[RATED.rows] = ratings()[RATED.rows]
    head = RATED.fit(AttributesConfig(), NONE, ratings=table)
    assert float(head.spread(torch.zeros(1, 4))) == pytest.approx(0.5 / math.sqrt(2), rel=0.2)


def test_ratings_that_cannot_be_fitted_are_refused() -> None:
    with pytest.raises(DataError, match="there are none"):
        RATED.fit(AttributesConfig())
    with pytest.raises(ConfigError, match="3 weights for 2"):
        fitted(ratings(), weights=(1.0, 1.0, 1.0))
    table = ratings()
    table[:, 1] = math.nan
    with pytest.raises(DataError, match="attribute 1"):
        fitted(table)
    rows = RATED.rows
    table = torch.full_like(ratings(), math.nan)
    table[rows[::2], 0], table[rows[1::2], 1] = 1.0, 2.0
    with pytest.raises(DataError, match="Fewer than two rows"):
        fitted(table)


UP = torch.tensor([True, False])
PAIR = torch.tensor([3.0, 1.0], dtype=torch.float64)


def test_known_answers_of_thumbs() -> None:
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


def test_gradients_of_thumbs_are_those_of_finite_differences() -> None:
    rewards = torch.tensor([0.3, -2.0, 1.0], dtype=torch.float64, requires_grad=True)
    up = torch.tensor([True, False, False])
    weight = torch.tensor([1.0, 0.5, 3.0], dtype=torch.float64)
    assert gradcheck(lambda r: binary_feedback_loss(r, up, class_mean_shift(r, up), weight), [rewards])


THUMBED = world(linear_truth, pairs=450, size=4)


def test_thumbs_of_pairs_are_where_scipy_finds_the_lowest_loss() -> None:
    weight = torch.linspace(0.5, 2, len(THUMBED.train), dtype=torch.float64)
    head = THUMBED.fit(BinaryConfig(ridge=0.1), weight=weight)
    x = head.standardizer.embed(THUMBED.embedding).double().numpy()
    c, r, w = x[THUMBED.train.chosen], x[THUMBED.train.rejected], (weight / weight.mean()).numpy()

    def loss(v: np.ndarray) -> float:
        shift = (w * (c @ v + r @ v)).mean() / 2
        up, down = np.logaddexp(0, -(c @ v - shift)), np.logaddexp(0, r @ v - shift)
        return (w * up).mean() + (w * down).mean() + 0.05 * v @ v

    best = minimize(loss, np.zeros(4), method="BFGS", options={"gtol": 1e-9}).x
    assert head.weight.numpy() == pytest.approx(best, abs=1e-5)
    assert THUMBED.accuracy(THUMBED.refined(head).reward) > 0.9


def test_unpaired_thumbs_alone_rank_pairs() -> None:
    thumbs = torch.full((len(THUMBED.reward), 1), math.nan)
    rows = torch.cat([THUMBED.train.chosen, THUMBED.train.rejected])
    thumbs[rows, 0] = (THUMBED.truth[rows] > 1).float()  # far more down than up
    head = THUMBED.fit(BinaryConfig(ridge=0.1), ratings=thumbs)
    x, up = head.standardizer.embed(THUMBED.embedding)[rows].double().numpy(), thumbs[rows, 0].numpy() == 1

    def loss(v: np.ndarray) -> float:
        u = x @ v
        shift = (u[up].mean() + u[~up].mean()) / 2
        return np.logaddexp(0, shift - u[up]).mean() + np.logaddexp(0, u[~up] - shift).mean() + 0.05 * v @ v

    assert head.weight.numpy() == pytest.approx(minimize(loss, np.zeros(4), options={"gtol": 1e-9}).x, abs=1e-5)
    assert THUMBED.accuracy(THUMBED.refined(head).reward) > 0.95


def test_what_cannot_be_learned_from_is_refused() -> None:
    with pytest.raises(DataError, match="None of 3 responses has a thumb up"):
        class_mean_shift(torch.zeros(3), torch.zeros(3, dtype=torch.bool))
    with pytest.raises(DataError, match="index 1"):
        binary_feedback_loss(torch.tensor([0.0, math.nan]), UP)
    with pytest.raises(DataError, match="weight of response 1 is -1"):
        binary_feedback_loss(PAIR, UP, weight=torch.tensor([1.0, -1.0]))
    with pytest.raises(ValueError, match="one shape"):
        binary_feedback_loss(PAIR, UP[:1])
    thumbs = torch.full((len(THUMBED.reward), 1), 1.0)
    with pytest.raises(DataError, match="thumb down"):
        THUMBED.fit(BinaryConfig(), ratings=thumbs)
    thumbs[0] = 3.0
    with pytest.raises(DataError, match="from 0 .thumb down. to 1 .up."):
        THUMBED.fit(BinaryConfig(), ratings=thumbs)


MANY = world(linear_truth, pairs=300, size=4)
USER = (torch.arange(len(MANY.train)) % 10 == 0).long()  # nine pairs of objective 0 for one of objective 1
SOURCE = [str(user) for user in USER.tolist()]


def turned() -> World:
    """Objective 1's labels go by the second number of the embedding alone."""
    train, e = MANY.train, MANY.embedding
    swap = (USER == 1) & (e[train.chosen, 1] < e[train.rejected, 1])
    chosen, rejected = torch.where(swap, train.rejected, train.chosen), torch.where(swap, train.chosen, train.rejected)
    return World(
        e, MANY.reward, MANY.truth, PreferencePairs.of(chosen, rejected, source=SOURCE), MANY.validation, MANY.test
    )


def losses(head: Any, made: World) -> list[float]:
    u = head.scores(head.standardizer.embed(made.embedding)).double()
    every = pair_loss(u[made.train.chosen], u[made.train.rejected])
    return [float(every[t == USER].mean()) for t in (0, 1)]


def test_every_step_improves_every_objective(monkeypatch: pytest.MonkeyPatch) -> None:
    made, before = turned(), [0.6931472] * 2
    for steps in (1, 3, 10, 40, 120):
        monkeypatch.setattr("ebrm.heads.multi_objective._STEPS", steps)
        head = fit_head(MinNormConfig(), made.embedding, made.reward, made.train, NONE).head
        now = losses(head, made)
        assert now[0] < before[0] + 1e-9 and now[1] < before[1] + 1e-9
        before = now
    pooled = fit_head(LinearConfig(ridge=1e-4), made.embedding, made.reward, made.train, NONE).head
    assert before[1] < losses(pooled, made)[1]  # the small objective is not outvoted


def test_one_objective_ends_where_the_linear_head_does(caplog: pytest.LogCaptureFixture) -> None:
    head, linear = MANY.fit(MinNormConfig(ridge=0.1), NONE), MANY.fit(LinearConfig(ridge=0.1), NONE)
    assert torch.allclose(head.weight, linear.weight, atol=1e-3)
    assert head.mixture.tolist() == [1.0] and "one source" in caplog.text


def test_gradients_are_those_of_the_objectives_mean_losses() -> None:
    head = MinNormHead(4, MinNormConfig(label_smoothing=0.1), 2)
    weight = torch.linspace(0.5, 2, len(MANY.train))
    train = PreferencePairs.of(MANY.train.chosen, MANY.train.rejected, source=SOURCE, weight=weight)
    data = head_data(MANY.embedding, MANY.reward, train, NONE, Standardizer(4))
    assert data.group.tolist() == USER.tolist() and data.names == ("0", "1")
    x, w = data.embedding.double(), torch.tensor([0.3, -0.2, 0.1, 1.0], dtype=torch.float64, requires_grad=True)
    difference = x[data.train.chosen] - x[data.train.rejected]
    members = torch.stack([USER == 0, USER == 1], 1).double()
    found = head._gradients(w.detach(), difference, members / members.sum(0), data)
    every = pair_loss(difference @ w, torch.zeros(len(weight)).double(), weight=data.train.weight, label_smoothing=0.1)
    for t in (0, 1):
        (expected,) = torch.autograd.grad(every[t == USER].mean(), w, retain_graph=True)
        assert torch.allclose(found[t], expected)
