from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
import torch
from benchmarks import train
from benchmarks.rows import made_rows
from benchmarks.train import OURS, PLAIN, held_out_loss, race
from scipy.integrate import quad
from tests.heads.toys import small_network

from ebrm.heads import EnergyConfig, EnergyHead, LikelihoodConfig, NetworkConfig

TINY = NetworkConfig(reward_widths=(4, 8), joint_widths=(16, 8), dropout=0.0)


def test_settings_are_the_papers_and_ebrms_own():
    objective, training = PLAIN.objective, PLAIN.training
    assert (objective.negatives, training.batch_rows, training.learning_rate, objective.beta) == (768, 256, 9e-5, 0.1)
    assert objective.noise_scales == (3.5 / 4,) and training.regularization == 0.05 and training.weight_decay == 1e-2
    assert EnergyConfig(objective=LikelihoodConfig()) == OURS


def test_held_out_loss_against_adaptive_quadrature():
    embedding, reward = made_rows(80, 5)
    density = EnergyHead(5, replace(OURS, network=NetworkConfig(reward_widths=(6, 4), joint_widths=(8, 7))))
    density.network = small_network()
    density.fit_units(reward, [embedding])
    exact = copy.deepcopy(density.network).double()
    low, high = density.support_bounds()
    total = 0.0
    for i in range(10):
        e = density.standardizer.embed(embedding[i : i + 1]).double()
        f = lambda r, e=e: exact(e, torch.tensor([r], dtype=torch.float64)).item()  # noqa: E731
        z = quad(lambda r, f=f: math.exp(f(r)), low, high, limit=200)[0]
        total += math.log(z) - f(density.standardizer.to_internal(reward[i]).item())
    first = held_out_loss(density, embedding[:10], reward[:10])
    assert first == pytest.approx(total / 10, abs=2e-4)
    rest = held_out_loss(density, embedding[10:], reward[10:])
    assert held_out_loss(density, embedding, reward) == pytest.approx((10 * first + 70 * rest) / 80)


def with_training(config: EnergyConfig, negatives: int | None = None, **training) -> EnergyConfig:
    objective = config.objective if negatives is None else replace(config.objective, negatives=negatives)
    return replace(config, objective=objective, training=replace(config.training, **training))


def small_race(**options) -> train.Race:
    embedding, reward = made_rows(320, 6)
    training, held_out = (embedding[:256], reward[:256]), (embedding[256:], reward[256:])
    return race(6, training, held_out, 0, network=TINY, **options)


def test_ours_runs_until_it_is_as_good(monkeypatch):
    clock = iter(range(1000))
    monkeypatch.setattr(train, "seconds", lambda work: (work(), float(next(clock)))[1])
    slow = with_training(PLAIN, 16, batch_rows=64)
    found = small_race(plain_settings=slow, our_settings=with_training(OURS, batch_rows=16))
    assert found.plain_loss < found.before and found.ours_loss <= found.plain_loss
    # 16 steps an epoch, looked at after every two: the turns take 2, 3, ... seconds after plain's 1 (0: its warm-up).
    turns = round(found.epochs * 8)
    assert found.plain_seconds == 1 and found.ours_seconds == sum(range(2, turns + 2))
    assert 0 < turns < 8 and found.pass_seconds == sum(range(2, 10))


def test_not_getting_there_is_said(monkeypatch):
    monkeypatch.setattr(train, "_EPOCHS", 1)
    fast = with_training(PLAIN, 16, batch_rows=16, learning_rate=5e-3)
    with pytest.raises(RuntimeError, match="After 1 epochs on 256 rows of 6 numbers"):
        small_race(plain_settings=fast, our_settings=with_training(OURS, learning_rate=1e-9))


def test_figures_and_what_they_must_reach(monkeypatch, capsys):
    seen = []

    def fake(d, training, held_out, seed, *, device, plain_settings=PLAIN):
        seen.append((d, len(training[1]), len(held_out[1]), seed, plain_settings.training.learning_rate))
        return train.Race(60.0 + 30 * seed, 2.0 + seed, 4.0, 0.5, 2.0, 1.9, 1.89)

    monkeypatch.setattr(train, "race", fake)
    monkeypatch.setattr(train, "ROWS", {512: 32, 4096: 16})
    figures = list(train.figures(quick=False))
    assert [(f.figure, f.d, f.required) for f in figures] == [
        ("training epoch", 512, 20.0), ("training epoch, per pass", 512, None),
        ("training epoch, plain at ebrm's rate", 512, None),
        ("training epoch", 4096, 50.0), ("training epoch, per pass", 4096, None),
    ]  # fmt: skip
    assert (figures[0].plain_seconds, figures[0].ours_seconds) == (75.0, 2.5) and figures[0].ratio == 30.0
    assert seen[0] == (512, 32, 1024, 0, 9e-5) and seen[2] == (512, 32, 1024, 0, 1e-3) and len(seen) == 5
    assert "held-out -log p 2.0000 at first" in capsys.readouterr().out
