"""The evidence's curves of selection and its measures of uncertainty, against direct computations."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy.special import expit
from tests.evaluation.suites import pool, styles
from tests.recipes.refinements import METHODS, made_cells, pair_set

from ebrm.metrics import Bootstrap, Estimate, calibration, error_auroc, risk_coverage
from ebrm.optimize import best_of_n_gold


def test_curves_are_means_over_seeds_and_gains_are_paired(recipe):
    made = pool(6, 5, name="tulu_bon_pool")
    cells = made_cells(recipe, 0.0, 2, pools=(made,))
    rows, lines = recipe.curves.selection_tables(cells)
    test, gold = cells[0].texts.pools["tulu_bon_pool"], made.gold()
    by_method = {
        name: np.mean([best_of_n_gold(test.rewards(cell.reward[name]), gold) for cell in cells], axis=0)
        for name in ("base", "EBRM")
    }
    found = {(row.method, row.metric): row for row in rows}
    for n in (2, 4, 5):
        value = by_method["EBRM"][:, n - 1]
        assert found["EBRM", f"gold at n={n}"].value == pytest.approx(value.mean())
        gain = found["EBRM", f"gain at n={n}"]
        assert gain.value == pytest.approx((value - by_method["base"][:, n - 1]).mean())
        assert gain.low <= gain.value <= gain.high
    assert ("EBRM", "gold at n=8") not in found and ("EBRM", "gold at KL 2") not in found
    assert ("base", "gain at n=2") not in found and ("EBRM", "gain at KL 1") in found
    curve = by_method["EBRM"].mean(axis=0)
    assert found["EBRM", "peak n"].value == 1 + curve.argmax()
    assert found["EBRM", "loss past the peak, n"].value == pytest.approx(curve.max() - curve[-1])
    assert found["random", "gold at n=5"].value == pytest.approx(gold.mean()) and found["oracle", "peak n"].seeds == 0
    assert found["oracle", "gold at n=5"].value == pytest.approx(gold.max(axis=1).mean())
    assert {row.items for row in rows} == {6} and {row.seeds for row in rows} == {0, 2}
    at = ["head", "tulu_bon_pool", "0.00", "EBRM", "n", "5", f"{curve[-1]:.4f}"]
    assert [line for line in lines if line[:6] == at[:6]][0][:7] == at
    pessimistic = recipe.curves.selecting_rewards(cells[0])
    expected = cells[0].reward["EBRM"] - 2 * cells[0].std["EBRM"]
    assert pessimistic["EBRM, mean - 2 std"] == pytest.approx(expected, abs=1e-6)
    assert set(pessimistic) == {*METHODS, "EBRM, mean - 1 std", "EBRM, mean - 2 std"}


def test_how_far_curves_go(recipe):
    assert recipe.curves.longest_axis(np.full(10, 7)) == 7
    assert recipe.curves.longest_axis(np.array([2, *[7] * 9])) == 7
    assert recipe.curves.longest_axis(np.array([2, 3, *[7] * 8])) == 3
    assert recipe.curves.longest_axis(np.array([5])) == 5


def test_temperature(recipe):
    generator = np.random.default_rng(0)
    for inverse in (0.2, 3.0):
        margin = generator.normal(size=100_000)
        margin = np.where(generator.random(100_000) < expit(inverse * np.abs(margin)), 1, -1) * np.abs(margin)
        found = recipe.uncertainty.inverse_temperature(margin)
        assert found == pytest.approx(inverse, rel=0.1)
        assert np.mean(margin * expit(-found * margin)) == pytest.approx(0, abs=1e-4)  # the loss's slope
    assert recipe.uncertainty.inverse_temperature(np.zeros(4)) == 0.0
    assert recipe.uncertainty.inverse_temperature(-np.ones(4)) < 1e-4


def test_over_seeds(recipe):
    one = Estimate(0.5, 0.4, 0.7)
    assert recipe.uncertainty.over_seeds([one]) == pytest.approx((0.5, 0.4, 0.7))
    value, low, high = recipe.uncertainty.over_seeds([one, Estimate(0.7, 0.4, 0.8)])
    error = 0.1 * 12.7062  # of the mean of two, times Student's t with one degree of freedom
    assert (value, low, high) == pytest.approx((0.6, 0.6 - math.hypot(0.2, error), 0.6 + math.hypot(0.15, error)))


def test_uncertainty_rows(recipe):
    tests = (pair_set("one"), pair_set("two"), styles(12, "rm-bench"))
    cells = made_cells(recipe, seeds=2, tests=tests)
    judged = recipe.uncertainty.judge(cells[1])
    assert list(judged) == ["one", "two", "all", "held-out"]
    reward, std, pairs = cells[1].reward, cells[1].std["EBRM"], cells[1].texts.pairs
    place = np.concatenate([pairs["one"].place, pairs["two"].place])
    for name in ("EBRM", "base"):
        assert judged["all"].margin[name] == pytest.approx(reward[name][place[:, 0]] - reward[name][place[:, 1]])
    assert judged["all"].std["EBRM"] == pytest.approx(np.sqrt(std[place[:, 0]] ** 2 + std[place[:, 1]] ** 2))
    assert judged["all"].probability["EBRM"] == pytest.approx(
        np.concatenate([cells[1].wins[name] for name in ("one", "two")])
    )
    given = reward["base"][cells[1].held_out.given]
    inverse = recipe.uncertainty.inverse_temperature(given[:, 0] - given[:, 1])
    published = reward["base"][cells[1].held_out.published.place]
    assert judged["held-out"].probability["base"] == pytest.approx(expit(inverse * (published[:, 0] - published[:, 1])))
    assert "EBRM" not in judged["held-out"].probability
    assert "EBRM, logistic of its margin" in judged["held-out"].probability

    rows, lines = recipe.uncertainty.uncertainty_tables(cells)
    found = {(row.method, row.benchmark, row.metric): row for row in rows}
    sets = [recipe.uncertainty.judge(cell)["all"] for cell in cells]
    wrong = [one.margin["EBRM"] <= 0 for one in sets]
    for metric, uncertainty in {
        "std": [one.std["EBRM"] for one in sets],
        "small margin": [-np.abs(one.margin["EBRM"]) for one in sets],
        "P near 1/2": [-np.abs(one.probability["EBRM"] - 0.5) for one in sets],
    }.items():
        both = list(zip(uncertainty, wrong, strict=True))
        auroc = [error_auroc(u, w, bootstrap=Bootstrap(1)).value for u, w in both]
        assert found["EBRM", "all", f"error AUROC, {metric}"].value == pytest.approx(np.mean(auroc))
        gain = [risk_coverage(u, w, bootstrap=Bootstrap(1)).gain.value for u, w in both]
        assert found["EBRM", "all", f"risk-coverage gain, {metric}"].value == pytest.approx(np.mean(gain))
    brier = np.mean([np.mean((1 - one.probability["base"]) ** 2) for one in sets])
    assert found["base", "all", "Brier"].value == pytest.approx(brier)
    assert found["EBRM", "all", "ECE"].items == 36 and found["EBRM", "held-out", "error AUROC, std"].items == 20
    assert ("base", "all", "error AUROC, std") not in found and ("EBRM", "held-out", "ECE") not in found
    bins = [line for line in lines if line[2:4] == ["all", "EBRM"]]
    both = calibration(np.concatenate([one.probability["EBRM"] for one in sets])).bins
    assert [line[-1] for line in bins] == [one.pairs for one in both]
    assert [line[4] for line in bins] == [f"{one.confidence:.4f}" for one in both]


def test_a_seed_without_errors_has_no_auroc(recipe):
    cells = made_cells(recipe, seeds=2)
    sure = {name: value.copy() for name, value in cells[1].reward.items()}
    place = cells[1].texts.pairs["llmbar"].place
    sure["EBRM"][place] = [1.0, 0.0]
    rows, _ = recipe.uncertainty.uncertainty_tables([cells[0], replace(cells[1], reward=sure)])
    kinds = {(row.benchmark, row.metric) for row in rows if row.method == "EBRM"}
    assert ("llmbar", "error AUROC, std") not in kinds and ("llmbar", "risk-coverage gain, std") in kinds
    assert ("held-out", "error AUROC, std") in kinds
