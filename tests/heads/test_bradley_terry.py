from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from tests.heads.worlds import NONE, linear_truth, world, xor_truth

from ebrm.heads import HeadConfig, InferenceConfig, fit_head
from ebrm.heads.bradley_terry import LinearHead, SiluHead, TwoLayers
from ebrm.heads.data import Labels

WORLD = world(linear_truth)


def test_the_linear_head_is_where_scipy_finds_the_lowest_loss() -> None:
    strength = torch.linspace(0.5, 2, len(WORLD.train), dtype=torch.float64)
    labels = Labels(weight=strength, label=torch.full_like(strength, 0.9), margin=0.1 * strength)
    settings = HeadConfig(l2=0.05, smoothing=0.1, centering=0.02)
    head = fit_head("linear", WORLD.embedding, WORLD.reward, WORLD.train, WORLD.validation, settings, labels=labels)
    x = head.standardizer.embed(WORLD.embedding).double().numpy()
    c, r = x[WORLD.train.chosen], x[WORLD.train.rejected]
    s, mu = strength.numpy(), 0.9 * 0.9 + 0.1 * 0.1

    def loss(w: np.ndarray) -> float:
        d = (c - r) @ w
        pair = mu * np.logaddexp(0, -(d - 0.1 * s)) + (1 - mu) * np.logaddexp(0, d + 0.1 * s)
        return (s * pair + 0.02 * ((c + r) @ w) ** 2).mean() + 0.025 * w @ w

    best = minimize(loss, np.zeros(6), method="BFGS", options={"gtol": 1e-9}).x
    assert isinstance(head, LinearHead) and head.weight.numpy() == pytest.approx(best, abs=1e-5)


def test_units_are_those_of_the_training_rows_base_rewards() -> None:
    head = fit_head("linear", WORLD.embedding, WORLD.reward, WORLD.train, WORLD.validation)
    rows = torch.cat([WORLD.train.chosen, WORLD.train.rejected])
    refined = head.refine(WORLD.embedding[rows], WORLD.reward[rows], InferenceConfig())
    base = WORLD.reward[rows]
    assert float(refined.reward.mean()) == pytest.approx(float(base.mean()), abs=1e-3)
    assert float(refined.reward.std()) == pytest.approx(float(base.std()), rel=1e-4)
    score_unit = float(base.std(correction=0)) / float(
        head.scores(head.standardizer.embed(WORLD.embedding[rows])).std(correction=0)
    )
    assert refined.std.numpy() == pytest.approx(np.full(len(rows), math.pi / math.sqrt(6) * score_unit), rel=1e-4)
    assert WORLD.accuracy(head.refine(WORLD.embedding, WORLD.reward, InferenceConfig()).reward) > 0.95


def test_the_penalty_is_chosen_by_held_out_pairs_and_stronger_on_little_data() -> None:
    few = world(linear_truth, pairs=60, size=40, seed=3)
    found = fit_head("linear", few.embedding, few.reward, few.train, few.validation)
    unpenalized = fit_head("linear", few.embedding, few.reward, few.train, few.validation, HeadConfig(l2=1e-6))
    assert isinstance(found, LinearHead) and isinstance(unpenalized, LinearHead)
    assert float(found.weight.norm()) < 0.5 * float(unpenalized.weight.norm())
    alone = fit_head("linear", few.embedding, few.reward, few.train, NONE)
    named = fit_head("linear", few.embedding, few.reward, few.train, NONE, HeadConfig(l2=0.1))
    assert torch.equal(alone.weight, named.weight)  # type: ignore[arg-type]


def test_two_layers() -> None:
    network = TwoLayers(3, 4)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
    assert network(torch.randn(5, 3)).tolist() == [[0.0]] * 5
    with torch.no_grad():
        network.first.weight[0, 0] = 1
        network.last[0, 0] = 2
    x = torch.zeros(2, 3)
    x[:, 0] = torch.tensor([0.0, 20.0])
    assert network(x).squeeze(1).tolist() == pytest.approx([0.0, 40.0], abs=1e-5)
    drawn = [TwoLayers(3, 4, generator=torch.Generator().manual_seed(seed)).last for seed in (1, 1, 2)]
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])


def test_what_no_linear_head_tells_two_layers_do() -> None:
    crossed = world(xor_truth, pairs=1500, size=2)
    keep = crossed.truth[crossed.test.chosen] != crossed.truth[crossed.test.rejected]
    found = {}
    for kind in ("linear", "silu"):
        head = fit_head(
            kind,
            crossed.embedding,
            crossed.reward,
            crossed.train,
            crossed.validation,
            HeadConfig(hidden=32, learning_rate=1e-2),
        )
        reward = head.refine(crossed.embedding, crossed.reward, InferenceConfig()).reward
        right = reward[crossed.test.chosen] > reward[crossed.test.rejected]
        found[kind] = float(right[keep].float().mean())
    assert 0.3 < found["linear"] < 0.7 and found["silu"] > 0.85


def test_the_pass_with_the_lowest_held_out_loss_is_kept() -> None:
    few = world(linear_truth, pairs=90, size=60, seed=5)
    settings = HeadConfig(hidden=64, learning_rate=1e-2, weight_decay=0.0, epochs=40, patience=0)
    from ebrm.heads.bradley_terry import held_out_loss
    from ebrm.heads.data import head_data
    from ebrm.heads.standardize import Standardizer

    stopped = fit_head("silu", few.embedding, few.reward, few.train, few.validation, settings)
    last = fit_head("silu", few.embedding, few.reward, few.train, NONE, settings)
    data = head_data(few.embedding, few.reward, few.train, few.validation, Labels(), Standardizer(60))
    assert held_out_loss(stopped.scores(data.embedding), data) < held_out_loss(last.scores(data.embedding), data)


def test_the_same_seed_gives_the_same_head() -> None:
    settings = HeadConfig(epochs=2)
    heads = [
        fit_head("silu", WORLD.embedding, WORLD.reward, WORLD.train, WORLD.validation, s)
        for s in (settings, settings, HeadConfig(epochs=2, seed=1))
    ]
    states = [head.state_dict()["network.last"] for head in heads]
    assert torch.equal(states[0], states[1]) and not torch.equal(states[0], states[2])
    assert isinstance(heads[0], SiluHead) and not any(p.requires_grad for p in heads[0].parameters())
