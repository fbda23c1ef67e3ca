from __future__ import annotations

import importlib.metadata
import re
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from tests.conftest import ROOT

from ebrm.utils.extras import install_hint

EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
SOURCES = sorted((ROOT / "src" / "ebrm").rglob("*.py"))


def test_a_hint_names_what_the_extras_bring_and_works_where_there_is_no_clone(monkeypatch) -> None:
    hint = install_hint("demo,serve")
    packages, clone = hint.split(", or ")
    assert clone == "pip install '.[demo,serve]' in a clone of the repository"
    found = [Requirement(text) for text in re.findall(r"'([^']+)'", packages)]
    wanted = [Requirement(text) for text in (*EXTRAS["demo"], *EXTRAS["serve"])]
    assert {(canonicalize_name(one.name), one.specifier) for one in found} == {
        (canonicalize_name(one.name), one.specifier) for one in wanted
    }

    def none(name):
        raise importlib.metadata.PackageNotFoundError

    monkeypatch.setattr(importlib.metadata, "requires", none)
    assert install_hint("demo,serve") == clone


def test_every_hint_names_extras_that_exist() -> None:
    found = {name for path in SOURCES for name in re.findall(r"install_hint\([\"']([\w,]+)", path.read_text("utf-8"))}
    assert {"demo", "ray", "serve", "trackers"} <= {extra for name in found for extra in name.split(",")} <= set(EXTRAS)


@pytest.mark.parametrize("path", [*SOURCES, ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))], ids=str)
def test_no_page_or_error_installs_from_an_index(path) -> None:  # ebrm is on none
    assert not re.search(r"pip install (?:-\S+ )*[\"'`]?ebrm(?![-\w])", path.read_text("utf-8"))
