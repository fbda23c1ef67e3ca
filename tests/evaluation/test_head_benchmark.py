from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.evaluation.test_head_methods import FEATURES, problem
from torch import Tensor

from ebrm.errors import ConfigError, DataError
from ebrm.evaluation import METHODS, Comparison, check_names, compare_heads, fit_temperature
from ebrm.evaluation.head_benchmark import FittedMethod, measure_methods
from ebrm.evaluation.score_models import ReadPool
from ebrm.fitting import fit
from ebrm.heads import FitConfig, FittedHead, LinearConfig
from ebrm.metrics import Bootstrap
from ebrm.model import EnergyRewardModel

TEST, TUNED = FEATURES.pairs.select(np.arange(160, 200)), FEATURES.pairs.select(np.arange(120, 160))


@pytest.fixture(autouse=True)
def columns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Methods whose rewards are known: the base reward, a multiple of it, and its opposite."""
    for name, factor in (("ten", 10.0), ("minus", -1.0), ("none", 0.0)):
        monkeypatch.setitem(METHODS, name, lambda p, f=factor: FittedMethod(lambda rows: f * rows.base, 7))  # type: ignore[misc]


def pool() -> ReadPool:
    base = torch.tensor([1.0, 2, 3, 1, 2, 3])
    return ReadPool(torch.zeros(6, 6), base, torch.ones(6), np.array([[0, 0.5, 1], [0, 1, 0.2]]), {"why": 2}, 6)


def compared(*names: str, with_pool: bool = False) -> Comparison:
    made = problem(validation=TUNED)
    return measure_methods(names, made, TEST, pool=pool() if with_pool else None, bootstrap=Bootstrap(200))[0]


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


class Known:
    """A head whose probability is the sigmoid of a multiple of the base reward's difference."""

    def __init__(self, factor: float) -> None:
        self.factor = factor

    def prefer(self, embeddings: tuple[Tensor, Tensor], base: tuple[Tensor, Tensor]) -> Tensor:
        return (self.factor * (base[0] - base[1]).double()).sigmoid()


def test_every_method_is_calibrated_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, factor in (("sure", 2.0), ("unsure", 0.1)):
        fitted = FittedHead(Known(factor), (), None)  # type: ignore[arg-type]
        monkeypatch.setitem(METHODS, name, lambda p, f=fitted: FittedMethod(lambda rows: rows.base, 0, f))  # type: ignore[misc]
    found = compared("base", "ten", "sure", "unsure").methods
    for method, factor in zip(found, (1, 10, 2, 0.1), strict=True):
        # The same order of the same pairs: whatever scale a method has, its numbers are those of the others.
        assert method.temperature == pytest.approx(factor * found[0].temperature, rel=1e-3)
        assert method.log_loss.value == pytest.approx(found[0].log_loss.value, rel=1e-4)
        assert method.ece.value == pytest.approx(found[0].ece.value, abs=1e-4)


def test_the_temperature_is_that_of_the_least_log_loss_on_the_validation_pairs() -> None:
    base, minus = compared("base", "minus").methods
    reward = FEATURES.reward.double()
    ahead = (reward[TUNED.chosen] - reward[TUNED.rejected]).numpy()
    assert base.temperature == fit_temperature(ahead)

    def loss(temperature: float) -> float:
        return float(np.logaddexp(0, -ahead / temperature).mean())

    least = loss(base.temperature)
    assert least < loss(1.2 * base.temperature) and least < loss(base.temperature / 1.2)
    assert minus.temperature > 100  # the opposite reward says as little as it can
    assert fit_temperature(np.empty(0)) == fit_temperature(np.zeros(3)) == 1


def test_heads_are_those_of_a_fit_and_can_be_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ebrm.report.write_report", lambda path, data: path.write_text("a report"))  # figures take time
    config = FitConfig(seed=3)
    heads = {"linear": LinearConfig(ridge=0.5)}
    found = compare_heads(
        FEATURES, ["base", "linear"], heads=heads, config=config, bootstrap=Bootstrap(100), save=tmp_path
    )
    assert found.saved == ("linear",) and [path.name for path in tmp_path.iterdir()] == ["linear"]
    alone = fit(FEATURES, head=heads["linear"], config=config)
    saved = EnergyRewardModel.from_pretrained(tmp_path / "linear")
    assert saved.record.head == heads["linear"] and saved.record.fit == config
    some = FEATURES.embedding(slice(5)), FEATURES.reward[:5]
    torch.testing.assert_close(saved.refine(*some).reward, alone.model.refine(*some).reward)
    assert alone.evaluation.refined is not None
    assert found.methods[1].accuracy.value == alone.evaluation.refined.value
    assert (found.train, found.validation) == (len(alone.splits.train), len(alone.splits.validation))


def test_something_must_be_held_out() -> None:
    with pytest.raises(DataError, match="higher `test_fraction`"):
        compare_heads(FEATURES, ["base"], config=FitConfig(test_fraction=1e-9))


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
