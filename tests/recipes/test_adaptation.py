"""The adaptation study: its splits, closed forms, measures, bars, tables and figures, on small made-up data."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import expit
from tests.recipes.conftest import made_study


@pytest.fixture(scope="module")
def study(recipe):
    return made_study(recipe)


def scenario(recipe, name):
    return next(one for one in recipe.study.SCENARIOS if one.name == name)


# -- splits ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["same domain", "chat to grounded", "longer is better", "seen", "seen, 25% wrong", "random labels"]
)
@pytest.mark.parametrize("fixed", [False, True])
def test_no_prompt_is_on_two_sides(recipe, study, name, fixed):
    for seed in range(3):
        case = recipe.study.case_of(study, scenario(recipe, name), 20, seed, fixed)
        vendor, user, test = (set(study.prompt[pairs]) for pairs in (case.vendor, case.user, case.test))
        assert len(case.user) == 20 and len(test) >= 5
        assert not test & (vendor | user)
        if "seen" in name:
            assert set(case.user) <= set(case.vendor)
        else:
            assert not user & vendor
        for kind, pairs in case.elsewhere.items():
            assert set(study.kind[pairs]) == {kind} and not set(study.prompt[pairs]) & (vendor | user)


def test_the_test_pairs_are_the_same_whatever_the_user_brings(recipe, study):
    few, many = (recipe.study.case_of(study, scenario(recipe, "same domain"), n, 0) for n in (10, 30))
    assert (few.test == many.test).all() and (few.vendor == many.vendor).all()


def test_the_user_has_the_vendors_wrong_labels(recipe, study):
    case = recipe.study.case_of(study, scenario(recipe, "seen, 25% wrong"), 0, 0)
    turned = dict(zip(case.vendor, case.vendor_turned, strict=True))
    assert [turned[pair] for pair in case.user] == case.user_turned.tolist()
    assert 0.05 < case.vendor_turned.mean() < 0.5


def test_longer_is_better_is_tested_where_it_is_not(recipe, study):
    case = recipe.study.case_of(study, scenario(recipe, "longer is better"), 20, 0)
    longer = study.length[study.chosen] > study.length[study.rejected]
    assert longer[case.user].all() and not longer[case.test].any()


def test_groups_that_were_not_read_are_left_out(recipe):
    group = recipe.rows.Group("chat", "s", [{"role": "user", "content": "hello"}])
    group.add("yes", "no", "")
    other = replace(group, prompt=[{"role": "user", "content": "other"}])
    columns = {"pooled": np.array([[np.nan], [np.nan], [1.0], [2.0]], dtype=np.float32)}
    found = recipe.study.assembled([group, other], columns, 9)
    assert (found.read, found.asked) == (1, 9) and found.chosen.tolist() == [0] and found.rejected.tolist() == [1]
    with pytest.raises(SystemExit, match="has 4 responses, its groups 2"):
        recipe.study.assembled([group], columns, 9)


# -- closed forms ------------------------------------------------------------------------------------------------------


def pairs_of(n=40, d=5, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d))
    sign = np.where(rng.random(n) < expit(2 * x[:, 0]), 1.0, -1.0)
    return sign[:, None] * x, rng.normal(size=n), np.arange(n) // 2


def test_newton_is_scipys_minimum(recipe):
    f, offset, _ = pairs_of()
    found = recipe.ridge.newton(f, offset, 3.0, np.zeros(5))
    asked = minimize(lambda c: np.logaddexp(0, -offset - f @ c).sum() + 1.5 * c @ c, np.zeros(5), tol=1e-10)
    assert found == pytest.approx(asked.x, abs=1e-5)


def test_left_out_logits_are_those_of_refits(recipe):
    f, offset, prompt = pairs_of(80)
    c = recipe.ridge.newton(f, offset, 8.0, np.zeros(5))
    found = recipe.ridge.left_out(f, offset, c, 8.0, prompt)
    refits = np.empty(80)
    for one in np.unique(prompt):
        rest = prompt != one
        refits[~rest] = offset[~rest] + f[~rest] @ recipe.ridge.newton(f[rest], offset[rest], 8.0, c)
    assert found == pytest.approx(refits, abs=0.02)
    assert np.abs(refits - offset - f @ c).max() > 0.1


def test_reduced_differences_have_the_same_products_and_give_the_same_rewards(recipe):
    d = np.random.default_rng(0).normal(size=(7, 30))
    f, back = recipe.ridge.reduced(d)
    assert f.shape == (7, 7) and f @ f.T == pytest.approx(d @ d.T) and d @ back == pytest.approx(f)


def test_anchors_hold_the_correction_still_where_they_are(recipe):
    rng = np.random.default_rng(1)
    d, anchors = rng.normal(size=(20, 30)), rng.normal(size=(10, 30))
    f, back = recipe.ridge.anchored(d, anchors, 1e-12)
    assert f @ f.T == pytest.approx(d @ d.T)
    f, back = recipe.ridge.anchored(d, anchors, 2.0)
    norm = np.linalg.inv(np.eye(30) + 2.0 / 10 * anchors.T @ anchors)
    assert f @ f.T == pytest.approx(d @ norm @ d.T) and d @ back == pytest.approx(f)
    _, back = recipe.ridge.anchored(d, anchors, 1e8)
    assert np.abs(anchors @ back).max() < 1e-3 < np.abs(d @ back).max()


# -- cells, measures ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cells(recipe, study, tmp_path_factory):
    """Cells of two seeds, measured on the made-up study."""
    out = tmp_path_factory.mktemp("cells")
    embedding = study.embedding(recipe.study.EMBEDDING["minilm"])
    kept, recipe.run.study_of = recipe.run.study_of, lambda *_: (study, embedding)
    for name, n, seeds in (("chat to grounded", 30, 2), ("same domain", 30, 1), ("seen", 0, 1)):
        for seed in range(seeds):
            recipe.run.measure(recipe.run.Cell("minilm", "head", name, n, seed), out, out, out)
    yield out
    recipe.run.study_of = kept


def test_a_head_that_can_learn_the_target_does(recipe, cells):
    every = {key: recipe.measures.measured(some)[0] for key, some in recipe.measures.by_key(cells).items()}
    found = every["minilm", "head", "chat to grounded", 30]
    assert found.accuracy("base", "target").value == pytest.approx(50, abs=20)
    for method in ("EBRM", "EBRM + anchors", "linear", "a r0 + ridge", "SiLU head"):
        assert found.accuracy(method, "target").value > 70, method
        assert found.gain(method).value == pytest.approx(
            found.accuracy(method, "target").value - found.accuracy("base", "target").value
        )
    assert set(found.sets) == {"chat", "hhh", "hh-harmless", "xstest"}
    assert found.gain("linear", "vendor's own kind").value == found.gain("linear", "chat").value
    assert found.gain("linear", "elsewhere").value == pytest.approx(
        np.mean([found.gain("linear", name).value for name in found.sets])
    )
    assert set(found.above_chance) >= {"chat", "hhh"}
    assert found.best_of("base", 3).value == pytest.approx(
        np.mean([r.meta["pools"]["base"][0][2] - r.meta["pools"]["base"][0][0] for r in found.results])
    )


def test_only_ebrm_can_be_made_again(recipe, cells, study):
    cell = recipe.run.Cell("minilm", "head", "same domain", 30, 0)
    before = recipe.measures.read(cells / f"{cell.name}.npz")
    recipe.run.measure(cell, cells, cells, cells, again=True)
    after = recipe.measures.read(cells / f"{cell.name}.npz")
    assert set(before.score) == set(after.score) and set(before.meta["pools"]) == set(after.meta["pools"])
    assert all((before.score[name] == after.score[name]).all() for name in before.score)


def made_result(recipe, seed, scores, names=("target", "rmb"), probability=None):
    """A cell with ten pairs of five prompts in each set; scores by method [20]."""
    probability = probability or {name: np.where(s[:10] > 0.5, 0.8, 0.2) for name, s in scores.items()}
    meta = {
        "backbone": "minilm", "base": "head", "scenario": "same domain", "n": 100, "seed": seed, "sets": list(names),
        "vendor_sets": [], "pools": {name: [] for name in scores}, "pairs": 100, "prompts_read": 10,
    }  # fmt: skip
    prompt = np.r_[np.arange(10) // 2, 10 + np.arange(10) // 2]
    return recipe.measures.Result(
        meta, prompt, np.repeat([0, 1], 10), np.array(["Harmlessness/pairs"] * 20), scores, probability
    )


def test_the_interval_is_over_prompts_and_seeds(recipe):
    rng = np.random.default_rng(3)
    scores = [{name: rng.integers(0, 3, 20) / 2 for name in ("base", "linear")} for _ in range(3)]
    results = [made_result(recipe, seed, some) for seed, some in enumerate(scores)]
    found = recipe.measures.accuracy(results, ["base", "linear"], "target", draws=50)
    assert found["linear"].value == pytest.approx(100 * np.mean([s["linear"][:10] for s in scores]))
    weights = recipe.measures._generator("target").multinomial(5, np.full(5, 0.2), 50)
    seeds = recipe.measures._generator("seeds", 3).integers(0, 3, (50, 3))
    for draw in (0, 7, 49):
        by_seed = [np.average(s["linear"][:10], weights=np.repeat(weights[draw], 2)) for s in scores]
        assert found["linear"].draws[draw] == pytest.approx(100 * np.mean([by_seed[k] for k in seeds[draw]]))


def test_a_constant_head_is_right_half_of_the_time(recipe, study):
    constant = recipe.methods.Refined(np.zeros(len(study.length)))
    difference = constant.reward[study.chosen] - constant.reward[study.rejected]
    assert set((1 + np.sign(difference)) / 2) == {0.5}
    assert set(constant.probabilities((study.chosen, study.rejected))) == {0.5}
    assert recipe.measures.area(np.full(6, 0.5), np.arange(6) < 2) == 0.5
    assert recipe.measures.area(np.arange(6.0), np.zeros(6, dtype=bool)) == 0.5


def test_area_counts_ordered_pairs(recipe):
    score, positive = np.array([1.0, 2.0, 2.0, 3.0]), np.array([False, True, False, True])
    assert recipe.measures.area(score, positive) == (1 + 0.5 + 1 + 1) / 4


def test_calibrated_probabilities_have_no_error_but_chances(recipe):
    rng = np.random.default_rng(0)
    side = rng.uniform(0.5, 1, 4000)
    probability = np.where(rng.random(4000) < side, side, 1 - side)
    ece, chance = recipe.measures.chance_ece(probability, rng)
    assert ece == pytest.approx(chance, abs=1.5)
    ece, chance = recipe.measures.chance_ece(np.where(probability > 0.5, 0.99, 0.01), rng)
    assert ece - chance > 15


def test_methods_that_some_seeds_have_are_measured_on_those(recipe):
    one = made_result(recipe, 0, {"base": np.ones(20), "linear": np.ones(20), "energy": np.zeros(20)})
    two = made_result(recipe, 1, {"base": np.zeros(20), "linear": np.ones(20)})
    whole, part = recipe.measures.measured([one, two])
    assert whole.methods == ["base", "linear"] and len(whole.results) == 2
    assert part.methods == ["base", "energy"] and part.gain("energy").value == -100


# -- bars, tables, figures ---------------------------------------------------------------------------------------------


def cell_of(recipe, gains, key=("minilm", "head", "same domain", 300), names=("target", "rmb")):
    """Two seeds of a hundred pairs' worth: methods are right on as many of ten pairs as the base, and so many more."""
    methods = {"base": (5, 5)} | gains
    scores = {
        name: np.concatenate([np.arange(10) < right for right in both]).astype(float) for name, both in methods.items()
    }
    results = [made_result(recipe, seed, scores, names) for seed in range(2)]
    for result in results:
        result.meta.update(dict(zip(("backbone", "base", "scenario", "n"), key, strict=True)))
    return {key: recipe.measures.measured(results)[0]}


RIVALS = dict.fromkeys(
    ("linear", "a r0 + ridge", "linear, averaged weights", "SiLU head", "5 SiLU heads, mean", "5 SiLU heads, WCO",
     "5 SiLU heads, UWO"), (6, 5),
)  # fmt: skip


def test_bars_by_hand(recipe):
    every = cell_of(recipe, RIVALS | {"EBRM": (7, 5), "EBRM, unseen": (5, 5)})
    found = {(bar.bar, bar.where.split("; ")[2].split(" - ")[0]): bar for bar in recipe.bars.bars(every)}
    gain = found["2. same domain: gain over the base", "EBRM"]
    assert gain.reached == pytest.approx(20) and gain.required == ">= 2" and gain.met
    assert not found["2. same domain: gain over the base", "EBRM, unseen"].met
    assert found["2. same domain: never below the base", "EBRM, unseen"].met
    behind = found["2. same domain: against the best rival", "EBRM, unseen"]
    assert behind.reached == pytest.approx(-10) and behind.high >= 0 and behind.met
    ahead = [bar for bar in recipe.bars.bars(every) if bar.bar == "2. same domain: ahead of each single rival"]
    assert len(ahead) == 4 and not any(bar.met for bar in ahead)


def test_a_rival_above_on_both_axes_fails_the_shift(recipe):
    key = ("minilm", "head", "chat to HH-harmless", 150)
    ours = dict.fromkeys(("EBRM", "EBRM, unseen", "EBRM + anchors", "EBRM, unseen + anchors"), (2, 1))
    every = cell_of(recipe, RIVALS | ours | {"SiLU head": (10, 10)}, key)
    found = {bar.bar: bar for bar in recipe.bars.bars(every) if "; EBRM + anchors" in bar.where}
    assert found["3. shift: percent of the best rival's gain"].reached == pytest.approx(-60)
    assert found["3. shift: mean of all other sets"].reached == pytest.approx(-40)
    assert not found["3. shift: mean of all other sets"].met
    front = found["3. shift: rivals above on both axes"]
    assert not front.met and front.reached == 1 and "above it: SiLU head" in front.where
    assert found["4. safety: chat to HH-harmless"].reached == pytest.approx(-30)
    harmless = found["4. safety: RMB harmlessness against the base"]
    assert harmless.reached == pytest.approx(-40) and not harmless.met


def test_tables_page_and_figures_come_from_the_cells(recipe, cells, tmp_path, monkeypatch):
    results, out = tmp_path / "results", tmp_path / "figures"
    monkeypatch.setattr("sys.argv", ["tables.py", "--cells", str(cells), "--results", str(results)])
    recipe.tables.main()
    assert isinstance(json.loads((results / "bars.json").read_text()), list)
    summary = recipe.page.Summary(results)
    place = ("minilm", "head", "chat to grounded", "30")
    row = summary(place, "EBRM", "target")
    assert float(row["low"]) <= float(row["value"]) <= float(row["high"])
    assert float(row["score"]) - float(summary(place, "base", "accuracy")["value"]) == pytest.approx(
        float(row["value"]), abs=2e-4
    )
    for make in recipe.page.BLOCKS.values():
        assert make(summary).startswith(("| ", "- "))  # a table or a list
    text = recipe.page.filled("a\n<!-- table seen -->\nold\n<!-- end -->\nb", summary)
    assert "old" not in text and "| EBRM, seen |" in text and text.endswith("<!-- end -->\nb")
    with pytest.raises(SystemExit, match="no table 'noise'"):
        recipe.page.filled("<!-- table noise -->\n<!-- end -->", summary)
    monkeypatch.setattr(recipe.figures, "PANELS", (("chat to grounded", 30),))
    table = recipe.figures.read_table(results / "summary.csv")
    recipe.figures.front(table, "minilm", "head", out.with_suffix(".svg"))
    drawn = out.with_suffix(".svg").read_text()
    assert "EBRM + anchors" in drawn and "prefers-color-scheme:dark" in drawn and "var(--c0)" in drawn


def test_numbers_of_the_page(recipe):
    row = {"value": "-1.25", "low": "-2.0", "high": "0.04"}
    assert recipe.page.number(row) == "−1.2 [−2.0, +0.0]"
    assert recipe.page.number(row | {"low": ""}, sign=False) == "−1.2" and recipe.page.number(None) == "–"


def test_labels_stay_inside(recipe):
    assert recipe.drawing.within([1.0, 3.0], 0.0, 2.0) == [0.0, 2.0]
    assert recipe.drawing.within([0.5, 1.0], 0.0, 2.0) == [0.5, 1.0]


def test_labels_are_moved_apart_in_their_order(recipe):
    found = recipe.drawing.apart([1.0, 0.0, 1.1], 0.5)
    assert found[1] < found[0] < found[2] and math.isclose(min(np.diff(sorted(found))), 0.5, abs_tol=1e-6)
