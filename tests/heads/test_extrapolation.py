"""Extrapolated heads: rewards go on along the way from one head to another, whatever units either was fitted in."""

from __future__ import annotations

import math

import pytest
import torch
from tests.heads.toys import linear_truth, world

from ebrm.errors import ConfigError, ModelError
from ebrm.heads import (
    AnchoredConfig,
    BayesianConfig,
    BinaryConfig,
    LinearConfig,
    MinNormConfig,
    ResidualConfig,
    RewardHead,
    SiLUConfig,
    extrapolate_head,
    fit_head,
)

WORLD = world(linear_truth, 100)
#: Other rows, other base rewards: other units.
OTHER = world(linear_truth, 60, seed=5)


def rewards(head: RewardHead) -> torch.Tensor:
    return head.refine(WORLD.embedding, WORLD.reward).reward.double()


@pytest.fixture(scope="module")
def start() -> RewardHead:
    return fit_head(LinearConfig(ridge=1.0), OTHER.embedding, 7 * OTHER.reward - 3, OTHER.train, OTHER.validation).head


@pytest.mark.parametrize("config", [LinearConfig(), AnchoredConfig(), MinNormConfig(), BinaryConfig()])
def test_rewards_go_on_by_alpha(config, start) -> None:
    head = WORLD.fit(config)
    one, zero = rewards(head), rewards(start)
    for alpha in (-1.0, -0.3, 0.0, 0.52, 3.0):
        made = extrapolate_head(head, start, alpha)
        assert torch.allclose(rewards(made), one + alpha * (one - zero), atol=1e-4 * (1 + abs(alpha)))
    assert torch.equal(rewards(head), one)  # the head itself is as it was


def test_the_support_holds_what_is_extrapolated(start) -> None:
    made = extrapolate_head(WORLD.fit(LinearConfig()), start, 2.0)
    nodes, density = made.density(WORLD.embedding[:20], WORLD.reward[:20])
    mean = (density * nodes).sum(1) / density.sum(1)
    assert torch.allclose(
        mean, made.refine(WORLD.embedding[:20], WORLD.reward[:20]).mean, atol=0.05 * float(nodes.std())
    )


def test_a_residual_head_goes_on_from_the_base_reward() -> None:
    head = WORLD.fit(ResidualConfig())
    assert bool(head.weight.any())
    one, added = rewards(head), head.standardizer.unit * head.gain * head.correction(WORLD.embedding)
    for alpha in (-1.0, -0.5, 0.0, 0.4, 5.0):
        made = extrapolate_head(head, None, alpha)
        assert torch.allclose(rewards(made), one + alpha * added, atol=1e-4 * (1 + abs(alpha)))
    back = extrapolate_head(head, None, -1.0)  # in the order of the base rewards
    assert torch.equal(rewards(back).argsort(stable=True), WORLD.reward.argsort(stable=True))
    assert torch.equal(rewards(extrapolate_head(head.unmoved(), None, 0.7)), rewards(head.unmoved()))


def test_heads_that_are_not_linear_in_their_parameters_are_refused(start) -> None:
    linear, silu = WORLD.fit(LinearConfig()), WORLD.fit(SiLUConfig(epochs=1, hidden=2))
    for head, other, kind in (
        (silu, linear, "silu"), (linear, silu, "silu"), (WORLD.fit(BayesianConfig()), linear, "bayesian"),
        (linear, None, "the base reward"), (WORLD.fit(ResidualConfig()), linear, "residual"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=f"one of these is {kind}"):
            extrapolate_head(head, other, 0.5)
    with pytest.raises(ConfigError, match="`alpha` is nan"):
        extrapolate_head(linear, start, math.nan)
    few = fit_head(LinearConfig(), WORLD.embedding[:, :2], WORLD.reward, WORLD.train, WORLD.validation).head
    with pytest.raises(ModelError, match="embeddings of 6 and 2 numbers"):
        extrapolate_head(linear, few, 0.5)
