from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from tests.linear import QUICK, linear_features
from torch.nn.functional import logsigmoid

from ebrm.aggregate import worst_case
from ebrm.errors import DataError
from ebrm.evaluation import METHODS, HeadBenchmark
from ebrm.evaluation.head_benchmark import FittedMethod, Rows
from ebrm.groups import Groups
from ebrm.heads import HEADS, DirectionalConfig, PrototypesConfig, SiLUConfig
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
