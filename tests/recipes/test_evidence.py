"""The evidence's scores, bars, tables and figures, on small made-up test sets with known answers."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import astuple, replace
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.numpy import save_file
from tests.evaluation.suites import benchmark, item, pool, styles
from tests.recipes.refinements import METHODS, made_cells, official, pair_set

from ebrm.errors import DataError


def test_two_way_bootstrap_against_loops(recipe):
    tests = (pair_set("one"), pair_set("two"))
    cells = made_cells(recipe, seeds=3, tests=tests, methods=("base", "EBRM"))
    found, _ = recipe.scores.measure(cells, ["base", "EBRM"], draws=40)
    seeds = np.random.default_rng((0, 3)).integers(0, 3, size=(40, 3))
    drawn = np.zeros((2, 40, 2))
    for number, name in enumerate(("one", "two")):
        test = cells[0].texts.tests[name]
        clusters = np.array(test.benchmark.clusters())
        order = np.unique(clusters)
        prompts = np.random.default_rng(number).integers(0, len(order), size=(40, len(order)))
        for column, method in enumerate(("base", "EBRM")):
            whole = [official(test, cell.reward[method]) for cell in cells]
            assert found.value[name, "overall"][column] == pytest.approx(np.mean(whole))
            for draw in range(40):
                keep = [row for one in prompts[draw] for row in np.flatnonzero(clusters == order[one])]
                values = [official(test, cells[seed].reward[method], keep) for seed in seeds[draw]]
                drawn[number, draw, column] = np.mean(values)
        assert found.draws[name, "overall"] == pytest.approx(drawn[number])
    assert found.draws["mean", "overall"] == pytest.approx(drawn.mean(axis=0))
    assert found.items["mean", "overall"] == 36 and found.seeds == 3
    rows = {
        (row.question, row.method, row.benchmark, row.metric): row
        for row in recipe.scores.score_rows(found, found.methods)
    }
    gap = 100 * (drawn[0, :, 1] - drawn[0, :, 0])
    row = rows["2 noise", "EBRM", "one", "gain"]
    assert row.value == pytest.approx(100 * np.diff(found.value["one", "overall"])[0])
    assert (row.low, row.high) == pytest.approx(tuple(np.quantile(gap, [0.025, 0.975])))
    ahead = rows["2 noise", "base", "mean", "ahead"]
    assert ahead.value == pytest.approx(rows["2 noise", "EBRM", "mean", "gain"].value)
    assert {key[0] for key in rows} == {"1 paper", "2 noise", "3 objective"}
    assert ("1 paper", "base", "one", "gain") not in rows and ("1 paper", "EBRM", "mean", "ahead") not in rows


def test_scores_by_hand(recipe):
    tests = (benchmark([item("a", (1.0, 0.0)), item("b", (1.0, 0.0)), item("c", (1.0, 0.0))], "xstest"),)
    cells = made_cells(recipe, 0.0, 2, tests, methods=("base", "EBRM"))
    base = np.zeros(46, dtype=np.float32)
    base[:6] = 1, 0, 1, 1, 0, 1  # right, tied, wrong
    first = {"base": base, "EBRM": base.copy()}
    first["EBRM"][2] = 2  # the tie goes
    cells = [replace(cells[0], reward=first), replace(cells[1], reward={**first, "EBRM": base})]
    found, values = recipe.scores.measure(cells, ["base", "EBRM"], draws=30)
    rows = {
        (row.method, row.benchmark, row.metric): row
        for row in recipe.scores.score_rows(found, found.methods)
        if row.question == "1 paper"
    }
    assert rows["base", "xstest", "score"].value == pytest.approx(100 / 3)
    assert rows["EBRM", "xstest", "score"].value == pytest.approx(50)
    assert rows["EBRM", "mean", "gain"].value == pytest.approx(100 / 6)
    assert rows["base", "mean", "ahead"].value == pytest.approx(100 / 6)
    assert rows["EBRM", "xstest", "gain"].items == 3 and rows["EBRM", "xstest", "gain"].seeds == 2
    assert values["xstest"].value.tolist() == [[1, 1, 1, 1], [0, 0, 1, 0], [0, 0, 0, 0]]


def test_parts_that_are_reported(recipe):
    made = styles(12, "rm-bench")
    names = [score.name for score in recipe.scores.reported_scores(made)]
    assert names == ["overall", "chat", "code", "hard"]
    assert [score.name for score in recipe.scores.reported_scores(replace(made, name="llmbar"))] == ["overall"]
    three = benchmark([item(name, (1.0, 0.0), group=name) for name in ("harmless", "honest", "other")], "hhh")
    assert [score.name for score in recipe.scores.reported_scores(three)] == ["overall", "harmless"]
    cells = made_cells(recipe, methods=("base", "EBRM"))
    found, _ = recipe.scores.measure(cells, ["base", "EBRM"], draws=10)
    assert found.items["rm-bench", "chat"] == 4 and found.items["rm-bench", "overall"] == 12


def test_questions(recipe):
    ask = recipe.scores.questions
    assert ask("paper, mode", 0.25) == ["1 paper"]
    assert ask("EBRM", 0.1) == ["2 noise", "3 objective"] and ask("base", 0.0)[0] == "1 paper"
    assert ask("EBRM, mode", 0.25) == ["3 objective"]
    assert ask("linear refit, pooled", 0.0) == ["2 noise"]


def test_what_seeds_disagree_about_is_an_error(recipe):
    cells = made_cells(recipe, methods=("base", "EBRM"))
    other = replace(cells[1], reward={"base": cells[1].reward["base"]})
    with pytest.raises(DataError, match="only one has EBRM"):
        recipe.reward_files.method_groups([cells[0], other])
    reward = {name: value.copy() for name, value in cells[1].reward.items()}
    reward["EBRM"][3] = np.nan
    with pytest.raises(DataError, match=r"EBRM \(noise 0.25, seed 1\) has no finite reward for 1 of 36"):
        recipe.scores.measure([cells[0], replace(cells[1], reward=reward)], ["base", "EBRM"], 5)
    fewer = made_cells(recipe, methods=("base", "EBRM"), tests=(pair_set(), styles(11, "rm-bench")))
    with pytest.raises(DataError, match="rm-bench: seed 1 was read with other items"):
        recipe.scores.measure([cells[0], fewer[1]], ["base"], 5)
    turned = benchmark([item("a", (0.0, 1.0))], "llmbar")
    with pytest.raises(DataError, match="must come first"):
        made_cells(recipe, tests=(turned,))


def test_reward_files(recipe, tmp_path):
    cells = made_cells(recipe, methods=("base", "EBRM"))
    one, about = cells[0], ("head", 0.25, 0)
    tensors = {**one.reward, "std of EBRM": one.std["EBRM"], "fusion": np.ones(2, np.float32)}
    tensors |= {"wins of EBRM in llmbar": one.wins["llmbar"], "wins of EBRM in a pool": np.ones(3)}
    for name in ("head-0.25-0", "head-0.00-1", "head-0.25-10", "finetuned-0.25-0"):
        save_file(tensors, tmp_path / f"{name}.safetensors")
    (tmp_path / ".head-0.10-0.safetensors.1.partial").touch()
    paths = recipe.reward_files.reward_paths(tmp_path, "head")
    assert list(paths) == [(0.0, 1), (0.25, 0), (0.25, 10)]
    found = recipe.reward_files.open_refinements(paths[0.25, 0], about, one.texts, one.held_out)
    assert list(found.reward) == ["base", "EBRM"] and list(found.std) == ["EBRM"] and list(found.wins) == ["llmbar"]
    assert np.array_equal(found.reward["EBRM"], one.reward["EBRM"]) and found.seed == 0
    for wrong, message in (
        ({"EBRM": np.ones(3, np.float32)}, ": EBRM has shape"),
        ({"std of EBRM": np.ones(3, np.float32)}, ": std of EBRM has shape"),
        ({"wins of EBRM in held-out": np.ones(3)}, "held-out has 3 pairs, but there are 20"),
    ):
        save_file({**tensors, **wrong}, tmp_path / "x.safetensors")
        with pytest.raises(DataError, match=message):
            recipe.reward_files.open_refinements(tmp_path / "x.safetensors", about, one.texts, one.held_out)
    save_file({"paper": one.reward["EBRM"]}, tmp_path / "paper-head-0.25-0.safetensors")
    found = recipe.reward_files.open_refinements(paths[0.25, 0], about, one.texts, one.held_out)
    assert list(found.reward) == ["base", "EBRM", "paper"] and list(recipe.reward_files.reward_paths(tmp_path, "head"))
    save_file({"EBRM": one.reward["EBRM"]}, tmp_path / "x.safetensors")
    with pytest.raises(DataError, match="under the name base"):
        recipe.reward_files.open_refinements(tmp_path / "x.safetensors", about, one.texts, one.held_out)


def test_held_out_pairs_of_a_study(recipe):
    class Study:
        chosen, rejected = torch.arange(0, 10, 2), torch.arange(1, 10, 2)
        pair = prompt = np.array(list("abcde"))

        def split(self, noise, seed):
            sides = SimpleNamespace(chosen=torch.tensor([2, 9]), rejected=torch.tensor([3, 8]))  # the last is turned
            return None, sides, np.array([0, 2, 3])

    found = recipe.tables.held_out_pairs(Study(), 0.25, 0)
    assert found.published.place.tolist() == [[2, 3], [8, 9]] and found.published.prompt.tolist() == ["b", "e"]
    assert found.given.tolist() == [[2, 3], [9, 8]]


def bar_row(recipe, method, benchmark, metric, value, low=0.1, noise=0.25, category="overall"):
    return recipe.summary.Row("q", "head", noise, method, benchmark, category, metric, value, low, 9.0, 5, 100)


def test_bars(recipe):
    rows = [
        bar_row(recipe, "EBRM", "llmbar", "gain", -0.25, noise=0.0),
        bar_row(recipe, "EBRM", "rmb", "gain", -0.2, noise=0.0),
        bar_row(recipe, "EBRM", "mean", "gain", -9.0, noise=0.0),
        bar_row(recipe, "EBRM", "mean", "gain", 3.0, low=-0.1),
        bar_row(recipe, "linear refit, pooled", "mean", "ahead", 2.0),
        bar_row(recipe, "SiLU head", "mean", "ahead", 0.5),
        bar_row(recipe, "5 SiLU heads, WCO", "mean", "ahead", -0.5),
        bar_row(recipe, "5 SiLU heads, mean", "mean", "ahead", 1.5),
        bar_row(recipe, "base", "mean", "ahead", -7.0),
        bar_row(recipe, "EBRM", "xstest", "gain", -1.0),
        bar_row(recipe, "EBRM", "rmb", "gain", 6.0, category="Harmlessness pairwise"),
        bar_row(recipe, "EBRM", "rmb", "gain", 99.0, category="Helpfulness pairwise"),
    ]
    found = recipe.bars.bars([*rows, rows[0]], {"head": 1152})
    said = [(bar["required"], bar["reached"], bar["where"], bar["met"]) for bar in found]
    ratio = 0.2063
    assert said == [
        (">= -0.3", -0.25, "llmbar, overall", True),
        (">= 2.5, low > 0", 3.0, "mean, overall", False),
        (">= 0", 0.5, "SiLU head", True),
        (">= 0", -0.5, "5 SiLU heads, WCO", False),
        ("<= 0.2", ratio, None, False),
        (">= 5.97", 6.0, "rmb, Harmlessness pairwise", True),
        (">= 0", -1.0, "xstest, overall", False),
    ]
    assert {bar["base_rm"] for bar in found} == {"head"} and found[1]["low"] == -0.1 and found[1]["high"] == 9.0
    assert [bar["met"] for bar in recipe.bars.bars([], {"head": 1152})] == [None] * 4 + [False] + [None] * 2
    # A branch of 16 and 32, joined with the embedding in 128, then one number.
    network = (1152 + 32) * 128 + 128 + 128 + 1 + 16 + 16 + 16 * 32 + 32
    assert recipe.bars.parameters_ratio(1152) == pytest.approx(network / (5 * (1152 * 128 + 128 + 128 + 1)))


def test_rows_as_text(recipe, tmp_path):
    row = bar_row(recipe, "b, c", "mean", "gain", -0.001, low=math.nan)
    finer = replace(row, metric="ECE", value=0.0126, noise=0.1)
    recipe.summary.write_rows([row, finer], tmp_path / "a.csv")
    head = "question,base_rm,noise,method,benchmark,category,metric,value,low,high,seeds,items"
    assert (tmp_path / "a.csv").read_bytes().decode().split("\n") == [
        head,
        'q,head,0.10,"b, c",mean,overall,ECE,0.013,,9.000,5,100',
        'q,head,0.25,"b, c",mean,overall,gain,0.00,,9.00,5,100',
        "",
    ]
    back = recipe.summary.read_rows(tmp_path / "a.csv")
    assert astuple(back[0])[:7] == astuple(finer)[:7] and back[0].value == 0.013 and math.isnan(back[1].low)
    with pytest.raises(ValueError, match="two rows about the same"):
        recipe.summary.write_rows([row, row], tmp_path / "a.csv")


def test_tables_and_figures(recipe, tmp_path, monkeypatch):
    pools = tuple(pool(8, 4, seed=at, name=name) for at, name in enumerate(recipe.figures.POOLS))
    tests = (pair_set(), styles(12, "rm-bench"), pair_set("hh_harmless_test"))

    methods = (*METHODS, "linear refit", "paper", "paper, mode")

    def cells():
        for noise in (0.0, 0.25):
            first, second = made_cells(recipe, noise, 2, tests, pools, methods)
            if noise:  # the paper's variants are there for one seed only
                ours = {name: value for name, value in first.reward.items() if not name.startswith("paper")}
                first = replace(first, reward=ours)
            yield from (second, first)

    for name in ("first", "second"):
        recipe.tables.write_tables(cells(), tmp_path / name, tmp_path / name / "results")
    whole = {path.name for path in (tmp_path / "first" / "results").iterdir()}
    assert whole == {"summary.csv", "curves.csv", "reliability.csv", "bars.json"}
    for path in (tmp_path / "first").rglob("*.*"):
        assert path.read_bytes() == (tmp_path / "second" / path.relative_to(tmp_path / "first")).read_bytes()

    items = pq.read_table(tmp_path / "first" / "items.parquet").to_pylist()
    assert len(items) == (2 * 2 * len(methods) - 2) * (18 + 12 + 18)
    cell = made_cells(recipe, 0.25, 2, tests, pools, methods)[1]
    for name, value in (("llmbar", "p07"), ("rm-bench", "s004")):
        test = cell.texts.tests[name]
        row = [one.id for one in test.benchmark.items].index(value)
        method = "paper" if name == "llmbar" else "EBRM, mode"
        reward = test.rewards(cell.reward[method])[row]
        right = [float(a > b) for a in reward[: len(reward) // 2] for b in reward[len(reward) // 2 :]]
        terms = test.benchmark.terms([test.benchmark.items[row]], reward[None].astype(float), None)
        expected = np.mean(right) if name == "llmbar" else terms.value.mean()
        match = {"noise": 0.25, "seed": 1, "method": method, "benchmark": name, "item": value}
        (found,) = [one for one in items if match.items() <= one.items()]
        assert found["success"] == pytest.approx(expected) and found["category"] == test.benchmark.items[row].group
    rows = recipe.summary.read_rows(tmp_path / "first" / "results" / "summary.csv")
    seeds = {(row.method, row.noise): row.seeds for row in rows if row.question == "1 paper"}
    assert (seeds["paper", 0.0], seeds["paper", 0.25], seeds["EBRM", 0.25]) == (2, 1, 2)
    alone, _ = recipe.scores.measure([cell], ["base", "EBRM", "paper"])
    expected = 100 * (alone.value["mean", "overall"] @ [-1, 0, 1])
    assert next(
        row.value for row in rows
        if (row.method, row.noise, row.benchmark, row.metric) == ("paper", 0.25, "mean", "gain")
    ) == pytest.approx(expected, abs=0.006)  # fmt: skip
    with pytest.raises(DataError, match="noise 0.0 and seed 0 is there twice"):
        recipe.tables.write_tables([*cells(), *cells()], tmp_path / "x", tmp_path / "x")
    assert json.loads((tmp_path / "first" / "results" / "bars.json").read_text())[0]["base_rm"] == "head"

    pictures = tmp_path / "pictures"
    monkeypatch.setattr(sys, "argv", ["", "--results", str(tmp_path / "first" / "results"), "--out", str(pictures)])
    recipe.figures.main()
    names = ("ablation", "best-of-n", "calibration", "kl", "noise", "safety")
    assert [path.name for path in sorted(pictures.iterdir())] == [f"{name}.png" for name in names]
    assert all(5_000 < path.stat().st_size < 120_000 for path in pictures.iterdir())


def test_labels_are_kept_apart(recipe, tmp_path):
    with recipe.drawing.drawn(tmp_path / "a.png", 2.0) as figure:
        axes = figure.add_subplot()
        axes.plot([0, 1], [0, 1])
        recipe.drawing.label_ends(axes, {"EBRM": 0.5, "base": 0.51, "paper": 0.1}, gap=0.2)
        places = {text.get_text(): text.get_position()[1] for text in axes.texts}
    assert places["base"] - places["EBRM"] >= 0.2 - 1e-6 and places["EBRM"] - places["paper"] >= 0.2 - 1e-6
    assert places["paper"] <= 0.1 and (places["base"] + places["EBRM"]) / 2 == pytest.approx(0.505, abs=0.05)
    assert recipe.drawing.look("SiLU head, pooled") == recipe.drawing.LOOKS["SiLU head"]
    assert recipe.drawing.look("5 SiLU heads, UWO") == recipe.drawing.LOOKS["5 SiLU heads"]
    assert recipe.drawing.look("EBRM, mean - 1 std") == recipe.drawing.LOOKS["EBRM, mean - 1 std"]
