from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.evaluation.test_compare_heads import FEATURES, problem

from ebrm.errors import ConfigError
from ebrm.evaluation import Comparison, compare_methods
from ebrm.evaluation.compare_heads import METHODS, Fitted
from ebrm.evaluation.method_table import check_names
from ebrm.evaluation.score_models import ReadPool
from ebrm.metrics import Bootstrap

TEST, TUNED = FEATURES.pairs.select(np.arange(160, 200)), FEATURES.pairs.select(np.arange(120, 160))


@pytest.fixture(autouse=True)
def columns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Methods whose rewards are known: the base reward, a multiple of it, and its opposite."""
    for name, factor in (("ten", 10.0), ("minus", -1.0), ("none", 0.0)):
        monkeypatch.setitem(METHODS, name, lambda p, f=factor: Fitted(lambda rows: f * rows.base, 7))  # type: ignore[misc]


def pool() -> ReadPool:
    base = torch.tensor([1.0, 2, 3, 1, 2, 3])
    return ReadPool(torch.zeros(6, 6), base, torch.ones(6), np.array([[0, 0.5, 1], [0, 1, 0.2]]), {"why": 2}, 6)


def compared(*names: str, with_pool: bool = False) -> Comparison:
    return compare_methods(
        names, problem(), FEATURES, TEST, TUNED, pool=pool() if with_pool else None, bootstrap=Bootstrap(200)
    )


def test_numbers_by_hand() -> None:
    found = compared("base", "ten", "minus", "none")
    base, ten, minus, none = found.methods
    reward = FEATURES.reward.numpy()
    right = (reward[TEST.chosen] > reward[TEST.rejected]).mean()
    assert base.accuracy.value == ten.accuracy.value == pytest.approx(right)
    assert minus.accuracy.value == pytest.approx(1 - right)
    assert minus.difference is not None and minus.difference.value == pytest.approx(1 - 2 * right)
    assert base.difference is None and ten.difference is not None and ten.difference.high == 0
    assert none.ties == 40 and none.accuracy.value == 0 and none.log_loss.value == pytest.approx(np.log(2))
    assert (found.pairs, found.prompts, found.n, found.random) == (40, 40, None, None)
    assert base.parameters == 0 and ten.parameters == 7 and min(base.microseconds, ten.microseconds) > 0


def test_a_reward_without_a_probability_gets_the_temperature_that_suits_held_out_pairs() -> None:
    base, ten, minus = compared("base", "ten", "minus").methods
    assert base.temperature is not None and ten.temperature is not None and minus.temperature is not None
    assert ten.temperature == pytest.approx(10 * base.temperature, rel=1e-3)
    assert ten.log_loss.value == pytest.approx(base.log_loss.value, rel=1e-4)
    reward = FEATURES.reward.double().numpy()
    ahead = reward[TUNED.chosen] - reward[TUNED.rejected]

    def loss(temperature: float) -> float:
        return float(np.logaddexp(0, -ahead / temperature).mean())

    least = loss(base.temperature)
    assert least < loss(1.2 * base.temperature) and least < loss(base.temperature / 1.2)
    assert minus.temperature > 100  # the opposite reward says as little as it can
    assert compared("linear").methods[0].temperature is None


def test_best_of_n_where_there_is_a_pool() -> None:
    found = compared("base", "minus", with_pool=True)
    base, minus = found.methods
    assert (found.n, found.pool_prompts, found.left_out) == (3, 2, {"why": 2})
    assert base.gold is not None and base.gold.value == pytest.approx(0.6) and base.gain is None
    assert minus.gold is not None and minus.gold.value == 0
    assert minus.gain is not None and minus.gain.value == pytest.approx(-0.6)
    assert found.random == pytest.approx((0.5 + 0.4) / 2)
    json.dumps(found.to_dict(), allow_nan=False)


def test_the_same_twice() -> None:
    def untimed(found: Comparison) -> list[object]:
        return [replace(method, microseconds=0.0, seconds=0.0) for method in found.methods]

    assert untimed(compared("base", "silu")) == untimed(compared("base", "silu"))


def test_names() -> None:
    assert check_names(["linear", "base", "linear"]) == ("linear", "base")
    assert check_names(["linear", "all"])[0] == "linear" and set(check_names(["all"])) == set(METHODS)
    with pytest.raises(ConfigError, match=r"no method 'liner'. Did you mean 'linear'\? Known: base, energy, .*`all`"):
        check_names(["liner"])
    with pytest.raises(ConfigError, match="nothing to compare"):
        check_names([])
