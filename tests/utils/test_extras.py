from __future__ import annotations

import re
import tomllib

import pytest
from tests.conftest import ROOT

from ebrm import __version__
from ebrm.utils.extras import install_hint

EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
SOURCES = sorted((ROOT / "src" / "ebrm").rglob("*.py"))


def test_a_hint_holds_for_a_clone_and_for_a_wheel() -> None:
    hint = install_hint("ray,serve")
    assert "pip install '.[ray,serve]'" in hint and f"'ebrm-{__version__}-py3-none-any.whl[ray,serve]'" in hint


def test_every_hint_names_extras_that_exist() -> None:
    found = {name for path in SOURCES for name in re.findall(r"install_hint\([\"']([\w,]+)", path.read_text("utf-8"))}
    assert {"demo", "ray", "serve", "trackers"} <= {extra for name in found for extra in name.split(",")} <= set(EXTRAS)


@pytest.mark.parametrize("path", [*SOURCES, ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))], ids=str)
def test_no_page_or_error_installs_from_an_index(path) -> None:  # ebrm is on none
    assert not re.search(r"pip install (?:-\S+ )*[\"'`]?ebrm(?![-\w])", path.read_text("utf-8"))
