from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from tests.linear import QUICK, linear_features
from torch import Tensor
from torch.nn.functional import logsigmoid

from ebrm.aggregate import worst_case
from ebrm.errors import ConfigError, DataError
from ebrm.evaluation import METHODS, Comparison, HeadBenchmark, check_names, compare_heads, fit_temperature
from ebrm.evaluation.head_benchmark import FittedMethod, Rows, measure_methods
from ebrm.evaluation.score_models import ReadPool
from ebrm.fitting import fit
from ebrm.groups import Groups
from ebrm.heads import (
    HEADS,
    DirectionalConfig,
    FitConfig,
    FittedHead,
    LinearConfig,
    PrototypesConfig,
    ResidualConfig,
    SiLUConfig,
    fit_head,
)
from ebrm.metrics import Bootstrap
from ebrm.model import EnergyRewardModel
from ebrm.pairs import PreferencePairs

FEATURES = linear_features(pairs=200, size=6)
EMBEDDING = FEATURES.embedding(slice(None))


HEAD_CONFIGS = {
    "energy": replace(QUICK, training=replace(QUICK.training, epochs=3)),
    "silu": SiLUConfig(epochs=3, hidden=8),
    "directional": DirectionalConfig(epochs=3, hidden=8),
    "prototypes": PrototypesConfig(epochs=3, hidden=8),
}


def problem(**changes: object) -> HeadBenchmark:
    chosen, rejected = FEATURES.pairs.chosen, FEATURES.pairs.rejected
    made = HeadBenchmark(
        FEATURES,
        PreferencePairs.of(chosen[:120], rejected[:120], source=["a", "b"] * 60),
        PreferencePairs.of(chosen[120:160], rejected[120:160], source=["a", "c"] * 20),
        members=3, heads=HEAD_CONFIGS,
    )  # fmt: skip
    return replace(made, **changes)  # type: ignore[arg-type]


PROBLEM = problem()
ROWS = Rows(EMBEDDING, FEATURES.reward, Groups.of([k // 2 for k in range(400)]), torch.arange(400.0) + 100)


@pytest.fixture(scope="module")
def fitted() -> dict[str, FittedMethod]:
    return {name: method(PROBLEM) for name, method in METHODS.items()}


def test_heads_know_who_has_seen_the_pairs() -> None:
    weights = {}
    for seen in ("unknown", "yes"):
        made = problem(config=FitConfig(pairs_seen=seen))
        alone = fit_head(
            ResidualConfig(), FEATURES.embeddings, FEATURES.reward, made.train, made.validation, pairs_seen=seen
        )
        found = METHODS["residual"](made).head
        assert found is not None and torch.equal(found.base_weight, alone.head.base_weight)
        weights[seen] = float(found.base_weight)
    assert weights["unknown"] != weights["yes"]


def test_every_method_gives_each_row_a_reward(fitted: dict[str, FittedMethod]) -> None:
    for name, method in fitted.items():
        reward = method.reward(ROWS)
        assert reward.shape == (400,) and bool(reward.isfinite().all()), name
        assert torch.equal(reward, method.reward(ROWS)), name
        assert (method.head is not None) == (name == "energy" or name in HEADS), name
    assert set(HEADS) - set(METHODS) == {"attributes"}


def test_learned_rewards_follow_the_labels(fitted: dict[str, FittedMethod]) -> None:
    chosen, rejected = FEATURES.pairs.chosen[160:], FEATURES.pairs.rejected[160:]
    for name in ("energy", "linear", "bayesian", "gaussian", "binary", "anchored", "min_norm", "base-neighbors"):
        reward = fitted[name].reward(ROWS)
        assert float((reward[chosen] > reward[rejected]).float().mean()) > 0.7, name


def test_ensembles_are_the_aggregates_of_their_members(fitted: dict[str, FittedMethod]) -> None:
    members = torch.stack([head.location_scale(EMBEDDING)[0] for head in PROBLEM.ensemble])
    assert len(members) == 3 and not torch.allclose(members[0], members[1])
    found = {name: fitted[f"silu-{name}"].reward(ROWS) for name in ("mean", "median", "worst-case", "uwo")}
    torch.testing.assert_close(found["mean"], members.mean(0))
    torch.testing.assert_close(found["median"], members.median(0).values)
    torch.testing.assert_close(found["worst-case"], worst_case(members))
    torch.testing.assert_close(found["uwo"], members.mean(0) - 0.5 * members.var(0, correction=0))
    off = members - ROWS.groups.spread(ROWS.groups.mean(members.mean(0)))
    own = torch.stack([m - ROWS.groups.spread(ROWS.groups.mean(m)) for m in members])
    torch.testing.assert_close(fitted["silu-mean-std"].reward(ROWS), off.mean(0) - own.std(0, correction=0))


def test_bounded_shapes_keep_the_base_order(fitted: dict[str, FittedMethod]) -> None:
    for name in ("base-par", "base-log-sigmoid", "base-standardized", "base-min-max"):
        assert spearmanr(fitted[name].reward(ROWS), ROWS.base).statistic == pytest.approx(1), name
    good = np.quantile(FEATURES.reward[PROBLEM.rows].double(), 0.85)
    torch.testing.assert_close(fitted["base-log-sigmoid"].reward(ROWS), logsigmoid(ROWS.base.double() - good))
    clipped = fitted["base-clipped"].reward(ROWS)
    assert 0.1 < float((clipped == clipped.max()).float().mean()) < 0.25  # beyond one deviation
    assert bool((fitted["base-par"].reward(ROWS) <= 1).all())


def test_good_in_both_respects(fitted: dict[str, FittedMethod]) -> None:
    members = torch.stack([head.location_scale(EMBEDDING)[0] for head in PROBLEM.ensemble]).mean(0).double()
    total = torch.zeros(400, dtype=torch.float64)
    for reward in (ROWS.base.double(), members):
        known = reward[PROBLEM.rows]
        unit = known.std(correction=0) if reward is not members else 1.0
        total += logsigmoid((reward - torch.quantile(known, 0.85)) / unit)
    torch.testing.assert_close(fitted["base-and-silu"].reward(ROWS), total)


def test_length_costs(fitted: dict[str, FittedMethod]) -> None:
    torch.testing.assert_close(
        fitted["base-length"].reward(ROWS), ROWS.base - 0.01 * (torch.arange(400.0) - 200).clamp_min(0),
        check_dtype=False,
    )  # fmt: skip
    change = fitted["base-shorter"].reward(ROWS) - ROWS.base
    assert bool((change[0::2] > 0).all()) and bool((change[1::2] < 0).all())  # the second is the longer one
    unknown = replace(ROWS, length=None)
    for name in ("base-length", "base-shorter"):
        with pytest.raises(DataError, match="how long their texts are"):
            fitted[name].reward(unknown)


def test_parameters_are_what_is_learned(fitted: dict[str, FittedMethod]) -> None:
    count = {name: method.parameters for name, method in fitted.items()}
    assert count["base"] == count["base-par"] == count["base-neighbors"] == 0
    assert count["linear"] == count["binary"] == 6
    assert count["silu"] == 6 * 8 + 8 + 8
    assert count["silu-mean"] == count["base-and-silu"] == 3 * count["silu"]
    assert count["bayesian"] == 6 + 36 and count["gaussian"] == count["gaussian-worst-case"] == 5 * 2 * 6


def test_users_and_objectives_are_the_sources() -> None:
    one = problem(train=PreferencePairs.of(PROBLEM.train.chosen, PROBLEM.train.rejected))
    assert int(PROBLEM.fit("min_norm").head.groups) == 2 and int(one.fit("min_norm").head.groups) == 1
    assert int(PROBLEM.fit("prototypes").head.groups) == 2  # "c" stands in held-out pairs alone


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
    with pytest.raises(ConfigError, match=r"no method 'liner'. Did you mean 'linear'\? Known: base, residual, .*`all`"):
        check_names(["liner"])
    with pytest.raises(ConfigError, match="nothing to compare"):
        check_names([])
