"""The page of methods is what its recipe makes of the code and the results."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import ebrm.energy.heads
import pytest

import ebrm.aggregate
import ebrm.curate
import ebrm.optimize
import ebrm.shape
from ebrm.evaluation.head_benchmark import METHODS

FOLDER = Path(__file__).parents[2] / "recipes" / "methods"
ROOMS = (ebrm.aggregate, ebrm.shape, ebrm.curate, ebrm.optimize, ebrm.energy.heads)


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


def public() -> set[str]:
    """Public functions and classes of the rooms, as Python sees them."""
    found = set()
    for room in ROOMS:
        for part in pkgutil.iter_modules(room.__path__):
            module = importlib.import_module(f"{room.__name__}.{part.name}")
            for name, value in vars(module).items():
                own = getattr(value, "__module__", None) == module.__name__ and not name.startswith("_")
                if own and (inspect.isfunction(value) or inspect.isclass(value)):
                    found.add(name)
    return found


def test_the_page_is_what_the_recipe_makes(page: ModuleType) -> None:
    text = page.PAGE.read_text(encoding="utf-8")
    assert page.filled(text, page.tables()) == text, "run recipes/methods/page.py"


def test_every_public_member_is_on_the_page(page: ModuleType) -> None:
    text = page.PAGE.read_text(encoding="utf-8")
    listed = {member.name for member in page.members()}
    parts = frozenset().union(*page.PARTS.values())
    assert listed | parts == public() and not listed & parts
    assert [name for name in listed if f".{name}` |" not in text] == []


def test_what_the_recipe_knows_is_there(page: ModuleType) -> None:
    found = list(page.members())
    assert {member.module for member in found} == set(page.WHEN)
    assert set(page.MEASURED) <= {member.name for member in found}
    assert set(page.MEASURED.values()) <= set(METHODS)
    by_name = {member.name: member for member in found}
    assert by_name["uncertainty_weighted"].papers == ("2310.02743",)
    assert by_name["worst_case"].what.startswith("Lowest reward that a member gives")


def test_a_changed_page_is_noticed(page: ModuleType) -> None:
    made = {"a": "1", "b": "2"}
    text = "x\n<!-- table a -->\nold\n<!-- end -->\ny\n<!-- table b -->\n<!-- end -->\n"
    whole = "x\n<!-- table a -->\n1\n<!-- end -->\ny\n<!-- table b -->\n2\n<!-- end -->\n"
    assert page.filled(text, made) == page.filled(whole, made) == whole
    with pytest.raises(SystemExit, match="0 places for the table 'c'"):
        page.filled(text, {"c": ""})


def test_numbers_are_written_with_their_intervals(page: ModuleType) -> None:
    found = {"value": 0.012, "low": -0.004, "high": 0.03}
    assert page.change(found, 100, 1) == "+1.2 (−0.4 to +3.0)"
    assert page.plain(found, 1, 3) == "0.012 (−0.004 to 0.030)"
    assert page.effect(None) == "–" and page.effect({"difference": found, "gain": None}).startswith("accuracy +1.2")
