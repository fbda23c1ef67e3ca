"""Whether a reward model was trained on the pairs: it is caught where it was, and left alone where it was not."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression, Ridge
from torch import Tensor

from ebrm.evaluation import memorization
from ebrm.evaluation.seen_pairs import PENALTIES, _cross_fitted
from ebrm.metrics import Bootstrap
from ebrm.pairs import PreferencePairs

QUICK = Bootstrap(300)


def noisy_pairs(count: int, size: int, seed: int) -> tuple[Tensor, PreferencePairs]:
    """Pairs over random embeddings, labeled by a linear reward through Bradley and Terry's model: far from surely."""
    generator = torch.Generator().manual_seed(seed)
    embedding = torch.randn(2 * count, size, generator=generator)
    truth = torch.randn(size, generator=torch.Generator().manual_seed(99)) / size**0.5
    first = torch.arange(0, 2 * count, 2)
    chance = torch.sigmoid((embedding[first] - embedding[first + 1]) @ truth)
    better = torch.rand(count, generator=generator) < chance
    chosen, rejected = torch.where(better, first, first + 1), torch.where(better, first + 1, first)
    return embedding, PreferencePairs.of(chosen, rejected, prompt_id=[f"p{k // 2}" for k in range(count)])


def base_head(embedding: Tensor, pairs: PreferencePairs) -> np.ndarray:
    """Weights of a Bradley-Terry head fitted to pairs almost without penalty, as a reward model's last layer is."""
    difference = (embedding[pairs.chosen] - embedding[pairs.rejected]).numpy()
    sign = np.where(np.arange(len(pairs)) % 2, 1, -1)
    fitted = LogisticRegression(C=100.0, fit_intercept=False, max_iter=2000)
    return np.asarray(fitted.fit(difference * sign[:, None], sign).coef_[0])


def reward_of(embedding: Tensor, weight: np.ndarray) -> Tensor:
    return embedding @ torch.from_numpy(weight).float()


def test_a_head_trained_on_the_pairs_themselves_is_suspected() -> None:
    embedding, pairs = noisy_pairs(400, 100, seed=1)
    found = memorization(embedding, reward_of(embedding, base_head(embedding, pairs)), pairs, bootstrap=QUICK)
    assert found is not None and found.suspected and "was it trained on them?" in str(found)
    assert found.accuracy.refined.value > found.accuracy.base.value + 0.1


@pytest.mark.parametrize("seed", range(2, 7))
def test_a_head_trained_on_other_pairs_is_not(seed: int) -> None:
    embedding, pairs = noisy_pairs(400, 100, seed)
    weight = base_head(*noisy_pairs(400, 100, seed=1))
    found = memorization(embedding, reward_of(embedding, weight), pairs, bootstrap=QUICK)
    assert found is not None and not found.suspected and "was it trained" not in str(found)


def test_a_reward_model_that_knows_nothing_is_not_suspected() -> None:
    embedding, pairs = noisy_pairs(200, 20, seed=1)
    found = memorization(embedding, torch.randn(400, generator=torch.Generator().manual_seed(0)), pairs)
    assert found is not None and not found.suspected and found.accuracy.difference.value < 0.05


@pytest.mark.parametrize("size", [5, 80])
def test_the_cross_fitted_scores_are_those_of_ridge_regressions_fold_by_fold(size: int) -> None:
    generator = np.random.default_rng(size)
    x, fold = generator.normal(0.1, 1, (60, size)), np.arange(60) % 3
    scale, scores = (x**2).sum() / 60, np.empty((len(PENALTIES), 60))
    for number, penalty in enumerate(PENALTIES):
        for held in range(3):
            rest = fold != held
            fitted = Ridge(penalty * scale * rest.sum(), fit_intercept=False, solver="svd").fit(x[rest], np.ones(40))
            scores[number, ~rest] = fitted.predict(x[~rest])
    error = (1 - scores) ** 2
    for held in range(3):
        best = error[:, fold != held].mean(axis=1).argmin()
        assert _cross_fitted(x, fold)[fold == held] == pytest.approx(scores[best, fold == held], rel=1e-6)


def test_the_result_is_the_same_again_turned_around_and_in_other_units() -> None:
    embedding, pairs = noisy_pairs(100, 10, seed=3)
    reward = reward_of(embedding, base_head(embedding, pairs))
    found = memorization(embedding, reward, pairs, bootstrap=QUICK)
    turned = replace(pairs, chosen=pairs.rejected, rejected=pairs.chosen, label=1 - pairs.label)
    assert found == memorization(embedding, reward, pairs, bootstrap=QUICK)
    assert found == memorization(embedding, reward, turned, bootstrap=QUICK)
    assert found == memorization(embedding.double() * 8 + 3, reward * 4 - 1, pairs, bootstrap=QUICK)


def test_the_prompt_of_a_pair_is_never_fitted_on() -> None:
    # Each prompt has its own axis, on which its first pair says one thing and its second the same: by prompts, nothing
    # can be learned; by pairs, everything.
    pairs, embedding = 60, torch.zeros(120, 30)
    for pair in range(pairs):
        embedding[2 * pair, pair // 2] = 1.0
    table = PreferencePairs.of(range(0, 120, 2), range(1, 120, 2), prompt_id=[str(pair // 2) for pair in range(pairs)])
    found = memorization(embedding, embedding.sum(1), table, bootstrap=QUICK)
    assert found is not None and found.accuracy.base.value == 0 and found.accuracy.refined.value == 1
    assert found.suspected


def test_whole_prompts_are_drawn_and_labels_of_one_half_left_out() -> None:
    embedding, pairs = noisy_pairs(300, 10, seed=4)
    reward = embedding[:, 0]
    some = memorization(embedding, reward, pairs, most=101, bootstrap=QUICK)
    assert some is not None and some.accuracy.pairs == 100 and some.accuracy.prompts == 50
    label = torch.ones(300, dtype=torch.float64)
    label[:100] = 0.5
    rest = memorization(embedding, reward, replace(pairs, label=label), bootstrap=QUICK)
    assert rest is not None and rest.accuracy.pairs == 200


def test_too_few_prompts_tell_nothing() -> None:
    embedding, pairs = noisy_pairs(38, 4, seed=5)
    assert memorization(embedding, embedding[:, 0], pairs) is None
    embedding, pairs = noisy_pairs(40, 4, seed=5)
    assert memorization(embedding, embedding[:, 0], pairs, bootstrap=QUICK) is not None


def test_suspicion_begins_where_the_interval_is_above_the_margin() -> None:
    embedding, pairs = noisy_pairs(400, 100, seed=1)
    reward = reward_of(embedding, base_head(embedding, pairs))
    found = memorization(embedding, reward, pairs, bootstrap=QUICK)
    assert found is not None
    low = found.accuracy.difference.low
    assert not replace(found, margin=low).suspected and replace(found, margin=low - 1e-9).suspected
    values = json.loads(json.dumps(found.to_dict()))
    assert values["difference"]["low"] == low and values["suspected"] is True and values["pairs"] == 400
    assert values["reward_model"]["value"] == found.accuracy.refined.value
