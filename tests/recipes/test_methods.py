"""The page of methods is what its recipe makes of the public names and the results."""

from __future__ import annotations

import importlib
import inspect
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from benchmarks.members import ELSEWHERE

from ebrm.evaluation import METHODS

FOLDER = Path(__file__).parents[2] / "recipes" / "methods"


@pytest.fixture(scope="module")
def page() -> Iterator[ModuleType]:
    sys.path.insert(0, str(FOLDER))
    kept = sys.modules.pop("page", None)
    try:
        yield importlib.import_module("page")
    finally:
        sys.path.remove(str(FOLDER))
        sys.modules.pop("page", None)
        if kept is not None:
            sys.modules["page"] = kept


def test_the_page_is_what_the_recipe_makes(page: ModuleType) -> None:
    text = page.PAGE.read_text(encoding="utf-8")
    assert page.filled(text, page.tables()) == text, "run recipes/methods/page.py"


@pytest.mark.parametrize("package", ["aggregate", "shape", "curate", "optimize", "heads"])
def test_every_public_name_is_a_method_or_a_part(page: ModuleType, package: str) -> None:
    listed = [name for names in page.WHEN[package].values() for name in names.split()]
    module = importlib.import_module(f"ebrm.{package}")
    values = {name: getattr(module, name) for name in module.__all__}
    public = [name for name, value in values.items() if inspect.isfunction(value) or inspect.isclass(value)]
    assert len(set(listed)) == len(listed) and set(listed) <= set(public)
    assert set(public) - set(listed) <= set(page.PARTS[package].split())


def test_what_the_recipe_knows_is_there(page: ModuleType) -> None:
    by_name = {member.name: member for member in page.members()}
    assert set(page.MEASURED) <= set(by_name) and set(page.MEASURED.values()) <= set(METHODS)
    results = json.loads((page.RESULTS / "results.json").read_text())["methods"]
    assert {method["name"] for method in results} == set(METHODS)
    timed = set(json.loads((page.RESULTS / "members.json").read_text()))
    assert timed <= set(by_name) and not timed & set(ELSEWHERE)
    assert by_name["uncertainty_weighted"].papers == ("2310.02743",)
    assert by_name["worst_case"].what.startswith("Worst-case optimization")


def test_a_changed_page_is_noticed(page: ModuleType) -> None:
    made = {"a": "1", "b": "2"}
    text = "x\n<!-- table a -->\nold\n<!-- end -->\ny\n<!-- table b -->\n<!-- end -->\n"
    whole = "x\n<!-- table a -->\n1\n<!-- end -->\ny\n<!-- table b -->\n2\n<!-- end -->\n"
    assert page.filled(text, made) == page.filled(whole, made) == whole
    with pytest.raises(SystemExit, match="0 places for the table 'c'"):
        page.filled(text, {"c": ""})


def test_simple_methods_ahead_of_ours_are_named(page: ModuleType) -> None:
    def method(name: str, accuracy: float, gold: float) -> dict[str, object]:
        return {"name": name, "accuracy": {"value": accuracy}, "gold": {"value": gold}}

    methods = [
        method("base", 0.5, 0.4), method("residual", 0.7, 0.45), method("energy", 0.6, 0.39),
        method("linear", 0.65, 0.3), method("silu-mean", 0.9, 0.9), method("base-par", 0.5, 0.4),
        method("base-shorter", 0.62, 0.1),
    ]  # fmt: skip
    said = page.ahead({"methods": methods, "n": 8})
    assert "than the energy (60.0%): `linear` 65.0%, `base-shorter` 62.0%; than" in said
    assert "residual head, (70.0%): none. Their best of 8" in said
    assert "than the energy (0.390): `base` 0.400; than the default, the residual head, (0.450): none." in said


def test_numbers_are_written_with_their_intervals(page: ModuleType) -> None:
    found = {"value": 0.012, "low": -0.004, "high": 0.03}
    assert page.change(found, 100, 1) == "+1.2 (−0.4 to +3.0)"
    assert page.plain(found, 1, 3) == "0.012 (−0.004 to 0.030)"
    assert page.effect(None) == "–" and page.effect({"difference": found, "gain": None}).startswith("accuracy +1.2")
