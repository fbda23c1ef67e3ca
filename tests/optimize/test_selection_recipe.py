"""The evidence's recipe of curves along n and KL, on small made-up pools."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from tests.evaluation.suites import benchmark, item

from ebrm.errors import DataError
from ebrm.metrics import Bootstrap, mean_curve
from ebrm.optimize import best_of_n_gold

RECIPE = Path(__file__).parents[2] / "recipes" / "evidence" / "selection.py"


@pytest.fixture(scope="module")
def selection() -> ModuleType:
    spec = importlib.util.spec_from_file_location("selection_recipe", RECIPE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def made(sizes: tuple[int, ...], width: int) -> tuple[SimpleNamespace, torch.Tensor]:
    """A test set with pools of these sizes, and the gold of all texts; text 0 belongs to none."""
    generator = np.random.default_rng(1)
    items, place, gold, start = [], [], [np.array([50.0])], 1
    for number, size in enumerate(sizes):
        worth = generator.permutation(size) + number * 0.5
        lengths = [int(10 * (worth[i] + 1)) if number % 2 else 200 - int(10 * worth[i]) for i in range(size)]
        items.append(item(f"q{number}", worth.tolist(), cluster=f"c{number // 2}", lengths=lengths))
        place.append([*range(start, start + size), *[-1] * (width - size)])
        gold.append(worth.astype(float))
        start += size
    return SimpleNamespace(benchmark=benchmark(items), place=np.array(place)), torch.from_numpy(np.concatenate(gold))


def test_rows_on_pools_of_different_sizes(selection: ModuleType) -> None:
    tests, gold = made((4, 5, 2, 4, 5, 4), width=7)
    rewards = {"good": gold.float(), "bad": -gold}
    rows, peaks = selection.selection_rows(rewards, {"made": tests}, least=4, kl=[0.0, 0.5, 9.0], resamples=200)
    assert {(row.pool, row.prompts, row.left_out) for row in rows} == {("made", 5, 1)}
    curve = {
        (method, axis): [row for row in rows if (row.method, row.axis) == (method, axis)]
        for method in ("good", "bad", "random", "oracle", "longest")
        for axis in ("n", "kl")
    }
    assert len(rows) == 5 * (4 + 3) and len(peaks) == 5 * 2
    for method in ("good", "oracle"):
        assert [row.gold for row in curve[method, "n"]] == [row.gold for row in curve["oracle", "n"]]
    assert [row.x for row in curve["good", "n"]] == [1.0, 2.0, 3.0, 4.0]
    assert [row.x for row in curve["good", "kl"]] == [0.0, 0.5, 9.0]
    # By hand: pools of 0..s-1, moved by half a point a prompt; prompts 0, 1, 3, 4, 5 stay.
    sizes, moved = np.array([4, 5, 4, 5, 4]), np.array([0, 1, 3, 4, 5]) / 2
    for method, axis, at, expected in [
        ("random", "n", 3, (sizes - 1) / 2 + moved),
        ("random", "kl", 2, (sizes - 1) / 2 + moved),
        ("good", "n", 1, 2 * (sizes + 1) / 3 - 1 + moved),
        ("good", "kl", 2, sizes - 1 + moved),
        ("bad", "kl", 2, moved),
        ("longest", "kl", 2, moved + np.array([0, 4, 3, 0, 3])),
        ("bad", "kl", 0, (sizes - 1) / 2 + moved),
    ]:
        row = curve[method, axis][at]
        assert row.gold == pytest.approx(expected.mean()) and row.low < row.gold < row.high
    peak = {(peak.method, peak.axis): peak for peak in peaks}
    assert peak["good", "n"].x.value == 4.0 and peak["good", "n"].loss.value == 0.0
    assert peak["bad", "n"].x.value == peak["random", "n"].x.value == 1.0
    assert peak["bad", "kl"].loss.value == pytest.approx((sizes - 1).mean() / 2)
    assert peak["bad", "kl"].end.value == curve["bad", "kl"][-1].gold


def test_curves_are_clustered_and_go_as_far_as_the_smallest_pool(selection: ModuleType) -> None:
    tests, gold = made((4, 5, 2, 4), width=5)
    found = dict(selection.pool_curves({"good": gold}, tests))
    curves = found["good"]
    assert curves.axes["n"].tolist() == [1.0, 2.0] and curves.left_out == 0
    assert curves.axes["kl"][[0, -1]] == pytest.approx([0, np.log(2)]) and len(curves.axes["kl"]) == 21
    assert curves.cluster == ("c0", "c0", "c1", "c1")
    table = tests.benchmark.gold()
    assert np.array_equal(curves.gold["n"], best_of_n_gold(table, table)[:, :2])
    rows, peaks = selection.selection_rows({"good": gold}, {"made": tests}, least={"made": 2}, resamples=100, seed=3)
    expected = mean_curve(curves.gold["n"], curves.cluster, bootstrap=Bootstrap(100, seed=3))
    assert [row.low for row in rows if (row.method, row.axis) == ("good", "n")] == expected.low.tolist()
    peak = next(peak for peak in peaks if (peak.method, peak.axis) == ("good", "n"))
    assert (peak.gold.low, peak.gold.high) == (expected.low[1], expected.high[1])


def test_mistakes(selection: ModuleType) -> None:
    tests, gold = made((4, 5), width=5)
    with pytest.raises(ValueError, match="oracle"):
        selection.selection_rows({"oracle": gold}, {"made": tests})
    with pytest.raises(ValueError, match="6 responses; the most are 5"):
        selection.selection_rows({"good": gold}, {"made": tests}, least=6)
    gold[3] = float("nan")
    with pytest.raises(DataError, match="1 of 2 prompts"):
        selection.selection_rows({"good": gold}, {"made": tests})
