"""The evidence's recipe as modules."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

EVIDENCE = Path(__file__).parents[2] / "recipes" / "evidence"
NAMES = (
    "bars", "curves", "drawing", "figures", "items", "reward_files", "scores", "selection", "summary", "tables",
    "uncertainty",
)  # fmt: skip


@pytest.fixture(scope="module")
def recipe() -> Iterator[SimpleNamespace]:
    """The recipe's modules, which import one another by their plain names."""
    sys.path.insert(0, str(EVIDENCE))
    try:
        yield SimpleNamespace(**{name: __import__(name) for name in NAMES})
    finally:
        sys.path.remove(str(EVIDENCE))
        for name in NAMES:
            sys.modules.pop(name, None)
