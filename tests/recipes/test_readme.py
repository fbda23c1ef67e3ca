"""The README's summary says what its pages say, also where that is worse."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NUMBER = r"([+\u2212]?\d+\.\d)"


def page(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8").replace("\\", "").replace("\u00a0", " ")


@pytest.fixture(scope="module")
def readme() -> str:
    return " ".join(page("README.md").split())


def differences() -> list[tuple[str, str, str, str]]:
    """Benchmark, difference and interval of every row of the tables of differences."""
    row = re.compile(rf"^\| ([^|]+) \| {NUMBER}\*? \[{NUMBER}, {NUMBER}\], p", re.MULTILINE)
    return row.findall(page("docs/benchmarks.md"))


def negative(text: str) -> bool:
    return text.startswith("\u2212")


def test_benchmarks_on_which_the_refined_reward_is_worse_are_in_the_readme(readme: str) -> None:
    found = differences()
    assert len(found) == 12
    worse = [row for row in found if negative(row[3])]
    assert worse
    for name, value, low, high in worse:
        assert f"{value} [{low}, {high}]" in readme, name
    assert f"below zero on {sum(negative(row[1]) for row in found)} of {len(found)}" in readme


def test_the_page_of_benchmarks_sums_up_its_own_tables() -> None:
    text = " ".join(page("docs/benchmarks.md").split())
    found = {name: value for name, value, *_ in differences()}
    assert f"XSTest {found['XSTest pairs']} points, and HH-harmless {found['hh_harmless_test']}" in text
    below = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
    assert f"{below[sum(map(negative, found.values()))]} of them are below zero" in text


def test_the_longest_of_eight_is_beside_the_best_of_eight_by_the_reward(readme: str) -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \|(.*)\|$", page("docs/benchmarks.md"), re.MULTILINE))
    eight = {name: float(cells.split("|")[2].split()[0]) for name, cells in rows.items()}
    assert eight["length"] > eight["reward"], "the README says otherwise"
    assert f"{eight['length']:.3f} against {eight['reward']:.3f}" in readme


def test_a_linear_head_that_is_ahead_is_named(readme: str) -> None:
    methods = json.loads((ROOT / "recipes/methods/results/results.json").read_text())["methods"]
    accuracy = {one["name"]: 100 * one["accuracy"]["value"] for one in methods}
    assert accuracy["linear"] > accuracy["residual"], "the README says otherwise"
    assert f"({accuracy['linear']:.1f}% against {accuracy['residual']:.1f}%)" in readme
    pool = json.loads((ROOT / "recipes/methods/results/with_pool.json").read_text())["methods"]
    gold = {one["name"]: one["gold"]["value"] for one in pool}
    assert gold["base"] > gold["energy"], "the README says otherwise"


def test_bars_are_counted_where_they_are_spoken_of(readme: str) -> None:
    bars = json.loads((ROOT / "recipes/adaptation/results/bars.json").read_text())
    met = sum(bar["met"] for bar in bars)
    assert f"{met} of {len(bars)} bars" in readme
    assert f"{len(bars) - met} of {len(bars)} bars were missed" in page("docs/evidence.md")


@pytest.mark.parametrize("name", ["README.md", "docs/evidence.md"])
def test_tables_of_the_study_are_what_its_results_make(recipe, name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    summary = recipe.page.Summary(ROOT / "recipes/adaptation/results")
    assert recipe.page.filled(text, summary) == text, "run recipes/adaptation/page.py --write"
