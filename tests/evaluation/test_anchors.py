"""Drift on anchors: known answers, SciPy's correlation, and what the prompts do."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch import Tensor

from ebrm.errors import DataError
from ebrm.evaluation import AnchorDrift, measure_anchors
from ebrm.features import Features
from ebrm.metrics import Bootstrap
from ebrm.model import RefinedReward
from ebrm.pairs import PreferencePairs

NONE = PreferencePairs.of([], [])
FEW = Bootstrap(200)


class Model:
    """Refines by a rule; all that `measure_anchors` asks of a model."""

    def __init__(self, rule: Any) -> None:
        self.rule = rule

    def refine(self, embedding: Tensor, reward: Tensor) -> RefinedReward:
        refined, zero = self.rule(embedding, reward), torch.zeros_like(reward)
        return RefinedReward(refined, reward, zero, torch.stack([zero, zero], 1), zero, refined - reward)


def features(reward: Any, pairs: PreferencePairs = NONE) -> Features:
    reward = torch.as_tensor(reward, dtype=torch.float32)
    return Features.from_tensors(torch.arange(len(reward), dtype=torch.float32)[:, None], reward, pairs)


def measure(rule: Any, reward: Any, pairs: PreferencePairs = NONE, **more: Any) -> AnchorDrift:
    made = features(reward)
    rows = more.pop("rows", torch.arange(len(made)))
    return measure_anchors(Model(rule), made, rows, pairs, bootstrap=FEW, **more)  # type: ignore[arg-type]


def random_rewards(count: int = 40) -> Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(0))


def test_a_model_that_gives_the_base_back_does_not_drift() -> None:
    reward = random_rewards()
    pairs = PreferencePairs.of(range(0, 40, 2), range(1, 40, 2))
    found = measure(lambda e, r: r, reward, pairs)
    assert found.mean_abs.value == found.max_abs == 0 and found.rank_correlation.value == pytest.approx(1)
    assert found.flipped is not None and found.flipped.value == 0 and found.compared == found.pairs == 20
    assert found.accuracy is not None and found.accuracy.difference.value == 0


def test_drift_is_counted_in_the_base_rewards_standard_deviations() -> None:
    reward = random_rewards()
    found = measure(lambda e, r: r + torch.where(e[:, 0] < 10, 3.0, 1.0), reward)
    std = reward.double().numpy().std()
    assert found.std == pytest.approx(std)
    assert found.mean_abs.value == pytest.approx((10 * 3 + 30 * 1) / 40 / std)
    assert found.max_abs == pytest.approx(3 / std)
    assert found.mean_abs.low < found.mean_abs.value < found.mean_abs.high
    scaled = measure(lambda e, r: r + 5 * torch.where(e[:, 0] < 10, 3.0, 1.0), 5 * reward)
    assert scaled.mean_abs.value == pytest.approx(found.mean_abs.value, rel=1e-5)


def test_the_rank_correlation_is_spearman_s() -> None:
    reward = random_rewards().round(decimals=1)
    noise = torch.randn(40, generator=torch.Generator().manual_seed(1)).round(decimals=1)
    found = measure(lambda e, r: r + noise[e[:, 0].long()], reward)
    assert found.rank_correlation.value == pytest.approx(spearmanr(reward, reward + noise).statistic)
    assert found.rank_correlation.low < found.rank_correlation.value < found.rank_correlation.high
    assert measure(lambda e, r: -r, reward).rank_correlation.value == pytest.approx(-1)


def test_flips_are_counted_within_prompts_one_by_one() -> None:
    reward = random_rewards(30).round(decimals=1)
    refined = reward + torch.randn(30, generator=torch.Generator().manual_seed(2)).round(decimals=1)
    prompt = np.arange(30) // 4
    found = measure(lambda e, r: refined[e[:, 0].long()], reward, prompt_id=prompt)
    lost = [
        (reward[a] - reward[b]) * (refined[a] - refined[b]) <= 0
        for a, b in combinations(range(30), 2)
        if prompt[a] == prompt[b] and reward[a] != reward[b]
    ]
    assert found.compared == len(lost) and found.prompts == 8
    assert found.flipped is not None and found.flipped.value == pytest.approx(np.mean(lost))


def test_pairs_tell_the_prompts_and_rows_without_one_stand_alone() -> None:
    pairs = PreferencePairs.of([0, 2], [1, 3], prompt_id=["a", "a"])
    found = measure(lambda e, r: -r, [0.0, 1.0, 2.0, 3.0, 4.0, 5.0], pairs)
    assert (found.rows, found.pairs, found.prompts, found.compared) == (6, 2, 3, 6)
    assert found.flipped is not None and found.flipped.value == 1


def test_rows_and_pairs_are_joined_and_counted_once() -> None:
    pairs = PreferencePairs.of([3], [2])
    found = measure(lambda e, r: r, random_rewards(6), pairs, rows=torch.tensor([5, 5, 3]))
    assert found.rows == 3


def test_accuracy_is_of_the_labeled_pairs_by_the_likelier_side() -> None:
    pairs = PreferencePairs.of([0, 2, 4], [1, 3, 5], label=[1.0, 0.2, 0.5])
    found = measure(lambda e, r: -r, [1.0, 0.0, 0.0, 1.0, 0.0, 1.0], pairs)
    assert found.accuracy is not None and found.pairs == 2
    assert found.accuracy.base.value == 1 and found.accuracy.refined.value == 0
    unlabeled = measure(lambda e, r: r, random_rewards(2), PreferencePairs.of([0], [1], label=[0.5]))
    assert unlabeled.accuracy is None and unlabeled.pairs == 0 and unlabeled.compared == 1


def test_intervals_are_over_prompts() -> None:
    reward, prompt = random_rewards(200), np.repeat(np.arange(10), 20)
    rule = lambda e, r: r + (e[:, 0] // 20 % 2)  # noqa: E731 - half of the prompts move
    together, alone = (measure(rule, reward, prompt_id=p) for p in (prompt, np.arange(200)))
    assert together.mean_abs.value == pytest.approx(alone.mean_abs.value)
    widths = [found.mean_abs.high - found.mean_abs.low for found in (together, alone)]
    assert widths[0] > 3 * widths[1]


def test_one_response_and_equal_rewards_give_what_there_is() -> None:
    one = measure(lambda e, r: r + 1, [2.0])
    assert one.rows == 1 and np.isnan([one.mean_abs.value, one.max_abs, one.rank_correlation.value]).all()
    assert one.flipped is None and one.accuracy is None
    values = json.loads(json.dumps(one.to_dict(), allow_nan=False))
    assert values["mean_abs"] == {"value": None, "low": None, "high": None} and values["flipped"] is None
    constant = measure(lambda e, r: r + e[:, 0], [1.0] * 5, prompt_id=["p"] * 5)
    assert constant.std == 0 and constant.flipped is None and np.isnan(constant.mean_abs.value)


def test_all_numbers_are_json() -> None:
    pairs = PreferencePairs.of(range(0, 40, 2), range(1, 40, 2))
    found = measure(lambda e, r: r + e[:, 0] / 40, random_rewards(), pairs)
    values = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert values["mean_abs"] == vars(found.mean_abs) and values["rows"] == 40
    assert found.accuracy is not None
    assert values["accuracy_difference"]["low"] == found.accuracy.difference.low


def test_the_order_of_rows_changes_nothing() -> None:
    reward = random_rewards(50)
    rule = lambda e, r: r + torch.sin(e[:, 0])  # noqa: E731
    order = torch.randperm(50, generator=torch.Generator().manual_seed(3))
    one = measure(rule, reward, prompt_id=np.arange(50) // 2)
    two = measure(rule, reward, rows=order, prompt_id=(order // 2).numpy())
    assert replace(one, max_abs=0) == replace(two, max_abs=0) and one.max_abs == two.max_abs


def test_what_cannot_be_measured_is_refused() -> None:
    with pytest.raises(DataError, match="no anchors"):
        measure(lambda e, r: r, [1.0, 2.0], rows=torch.zeros(0, dtype=torch.long))
    with pytest.raises(DataError, match="from 0 to 2 of 2"):
        measure(lambda e, r: r, [1.0, 2.0], rows=torch.tensor([0, 2]))
    with pytest.raises(DataError, match="beyond the 2"):
        measure(lambda e, r: r, [1.0, 2.0], PreferencePairs.of([0], [5]))
    with pytest.raises(DataError, match="Row 1 of the anchors is a response to two prompts"):
        measure(lambda e, r: r, [1.0, 2.0, 3.0], PreferencePairs.of([0, 1], [1, 2], prompt_id=["a", "b"]))
    with pytest.raises(ValueError, match=r"prompt_id has shape \(1,\)"):
        measure(lambda e, r: r, [1.0, 2.0], prompt_id=["a"])
