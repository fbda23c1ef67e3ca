"""Install hints of optional features (`pyproject.toml`, `[project.optional-dependencies]`)."""

from __future__ import annotations

import importlib.metadata
import re


def install_hint(extras: str) -> str:
    """How to install extras, as a clause for an error: ebrm is on no package index, but what its extras bring is.

    Args:
        extras: names of extras, separated by commas ("ray,serve").
    """
    clone = f"pip install '.[{extras}]' in a clone of the repository"
    try:
        wanted = importlib.metadata.requires("ebrm") or []
    except importlib.metadata.PackageNotFoundError:  # run from its sources
        wanted = []
    named = "|".join(map(re.escape, extras.split(",")))
    found = [text.partition(";")[0].strip() for text in wanted if re.search(rf"extra == ['\"]({named})['\"]", text)]
    return f"pip install {' '.join(map(repr, found))}, or {clone}" if found else clone
