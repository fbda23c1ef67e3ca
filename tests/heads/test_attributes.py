from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from tests.heads.worlds import NONE, linear_truth, world

from ebrm.errors import ConfigError, DataError
from ebrm.heads import HeadConfig, InferenceConfig, fit_head
from ebrm.heads.attributes import AttributeHead
from ebrm.heads.data import Labels

WORLD = world(linear_truth, pairs=600, size=4)
ARGS = (WORLD.embedding, WORLD.reward, WORLD.train, WORLD.validation)


def ratings(noise: float = 0.5) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    clean = torch.stack([2 + WORLD.embedding[:, 0], 1 - 2 * WORLD.embedding[:, 1]], 1)
    return clean + noise * torch.randn(clean.shape, generator=generator)


def train_rows() -> torch.Tensor:
    return torch.unique(torch.cat([WORLD.train.chosen, WORLD.train.rejected]))


def fitted(table: torch.Tensor, **settings) -> AttributeHead:
    head = fit_head("attributes", *ARGS, HeadConfig(**settings), labels=Labels(ratings=table))
    assert isinstance(head, AttributeHead)
    return head


def test_each_attribute_is_a_ridge_regression_on_its_own_ratings() -> None:
    table = torch.full_like(ratings(), math.nan)
    rows = train_rows()
    table[rows] = ratings()[rows]
    table[rows[::3], 1] = math.nan
    head = fitted(table, l2=0.2)
    x = head.standardizer.embed(WORLD.embedding).double().numpy()
    for j in range(2):
        known = ~np.isnan(table[:, j].numpy())
        e, t = x[known], table[known, j].double().numpy()
        design = np.hstack([e, np.ones((len(e), 1))])
        penalty = np.diag([0.2] * 4 + [0.0])
        solution = np.linalg.solve(design.T @ design / len(e) + penalty, design.T @ t / len(e))
        assert head.weight[j].numpy() == pytest.approx(solution[:4], abs=1e-5)
        assert float(head.bias[j]) == pytest.approx(solution[4], abs=1e-5)


def test_the_noise_of_ratings_is_found_and_the_reward_is_the_weighted_sum() -> None:
    head = fitted(ratings(0.5), attribute_weights=(0.65, -0.4))
    # Independent errors of 0.5 each: √(0.65² + 0.4²) · 0.5.
    assert float(head.residual) == pytest.approx(0.5 * math.hypot(0.65, 0.4), rel=0.15)
    x = head.standardizer.embed(WORLD.embedding)
    assert torch.allclose(head.scores(x), head.attributes(x).double() @ torch.tensor([0.65, -0.4], dtype=torch.float64))
    assert np.corrcoef(head.attributes(x)[:, 1].numpy(), WORLD.embedding[:, 1].numpy())[0, 1] < -0.98
    std = head.refine(*ARGS[:2], InferenceConfig()).std
    assert bool((std == std[0]).all())
    equal = fitted(ratings(0.5))
    assert torch.allclose(equal.scores(x), equal.attributes(x).double().mean(1), atol=1e-6)


def test_without_held_out_ratings_the_training_rows_are_measured() -> None:
    table = torch.full_like(ratings(), math.nan)
    table[train_rows()] = ratings()[train_rows()]
    head = fit_head("attributes", *ARGS[:3], NONE, labels=Labels(ratings=table))
    assert float(head.spread(torch.zeros(1, 4))) == pytest.approx(0.5 / math.sqrt(2), rel=0.2)


def test_what_cannot_be_fitted_is_refused() -> None:
    with pytest.raises(DataError, match="there are none"):
        fit_head("attributes", *ARGS)
    with pytest.raises(ConfigError, match="3 attribute_weights for 2"):
        fitted(ratings(), attribute_weights=(1.0, 1.0, 1.0))
    table = ratings()
    table[:, 1] = math.nan
    with pytest.raises(DataError, match="attribute 1"):
        fitted(table)
    rows = train_rows()
    table = torch.full_like(ratings(), math.nan)
    table[rows[::2], 0], table[rows[1::2], 1] = 1.0, 2.0
    with pytest.raises(DataError, match="Fewer than two rows"):
        fitted(table)
