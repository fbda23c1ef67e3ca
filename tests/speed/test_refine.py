from __future__ import annotations

import math

import pytest
import torch
from benchmarks import refine
from benchmarks.refine import ASCENT, DEFAULT, GRID, Error, error
from benchmarks.rows import fit_briefly, made_rows
from benchmarks.timing import Ratio

from ebrm.heads import EnergyConfig, EnergyHead, Fusion, LikelihoodConfig, NetworkConfig, TrainingConfig
from ebrm.heads.config import SIZES


@pytest.fixture(scope="module")
def fitted() -> tuple[EnergyHead, torch.Tensor, torch.Tensor]:
    embedding, reward = made_rows(256, 6)
    network = NetworkConfig(reward_widths=(8, 8), joint_widths=(32, 16))
    training = TrainingConfig(epochs=4, batch_rows=32)
    config = EnergyConfig(network=network, objective=LikelihoodConfig(nodes=16), training=training)
    return fit_briefly(embedding, reward, config).head, embedding, reward


@pytest.mark.parametrize("fusion", [Fusion(), Fusion(0.5, 0.7)])
def test_mean_and_mode_are_those_of_4097_points(fitted, fusion):
    density, embedding, reward = fitted
    density.fusion = fusion
    found = error(density, embedding[:32], reward[:32])
    assert 0 <= found.mean < refine.TOLERANCE and 0 <= found.mode < refine.TOLERANCE
    found.check("fitted")


def test_errors_are_in_standard_deviations(fitted, monkeypatch):
    density, embedding, reward = fitted
    density.fusion = Fusion()
    right = density.with_inference(nodes=1025).refine(embedding[:8], reward[:8])
    off = {"mean": right.mean + 0.5 * right.std, "mode": right.mode - 0.25 * right.std}
    moved = type(right)(**{**vars(right), **off})
    monkeypatch.setattr(EnergyHead, "refine", lambda *_: moved)
    found = error(density, embedding[:8], reward[:8])
    assert found.mean == pytest.approx(0.5, abs=5e-3) and found.mode == pytest.approx(0.25, abs=5e-3)
    with pytest.raises(RuntimeError, match="somewhere: the mean is off by .* must be below 0.001"):
        found.check("somewhere")


@pytest.mark.parametrize("wrong", [Error(1e-3, 0.0), Error(0.0, 1e-3), Error(math.nan, 0.0)])
def test_an_inaccurate_posterior_stops_the_run(wrong):
    Error(9e-4, 9e-4).check("fine")
    with pytest.raises(RuntimeError):
        wrong.check("wrong")


def test_figures_and_what_they_must_reach(monkeypatch, capsys):
    tiny = {size: ((4,), (8,)) for size in SIZES}
    monkeypatch.setattr("ebrm.heads.config.SIZES", tiny)
    monkeypatch.setattr(refine, "made_rows", lambda n, d, made=made_rows: made(min(n, 4096), d // 64))
    monkeypatch.setattr(refine, "PLAIN_ROWS", {512: (8, 16), 4096: (8,)})
    monkeypatch.setattr(refine, "OWN_ROWS", (64,))
    monkeypatch.setattr(refine, "FITTED_ROWS", {True: 64, False: 64})
    compared = []

    def compare(plain, ours, repeats, *, warm_up):
        outcomes = [plain(), *(way() for way in ours.values())]
        compared.append((repeats, warm_up, [len(outcome.reward) for outcome in outcomes]))
        return {name: Ratio(6.0, 2.0, 3.0, 2.0, 4.0) for name in ours}

    monkeypatch.setattr(refine, "compare_each", compare)
    made = list(refine.figures(quick=False))
    slow = [f for f in made if "at the paper's rate" in f.figure]
    assert [(f.d, f.required) for f in slow] == [(512, 12.0), (4096, 30.0)]
    required = {(f.figure, f.d, f.network): f.required for f in made if f.required is not None and f not in slow}
    assert required == {
        (ASCENT, 512, "small"): 2.5, (ASCENT, 4096, "small"): 8.0,
        (GRID, 512, "small"): 12.0, (GRID, 4096, "small"): 30.0, (DEFAULT, 4096, "slim"): 200.0,
    }  # fmt: skip
    assert [(f.rows, f.ratio) for f in made if f.figure == ASCENT] == [(8, 3.0), (16, 3.0), (8, 3.0)]
    scaled = [
        (f.figure, f.d, f.rows, f.plain_seconds, f.ratio, f.required) for f in made if f.rows == 64 and ";" in f.figure
    ]
    assert (f"{GRID}; plain: 4 x 16 rows", 512, 64, 24.0, 12.0, None) in scaled and len(scaled) == 4
    assert (made[-1].figure, made[-1].network, made[-1].required) == (GRID, "large", None)
    assert compared[0] == (3, True, [8, 8, 8, 8]) and compared[1] == (3, False, [16] * 4)
    assert compared[2] == (3, False, [16, 16]) and compared[3] == (1, False, [16, 64, 64])
    assert "the plain ascent takes" in capsys.readouterr().out
