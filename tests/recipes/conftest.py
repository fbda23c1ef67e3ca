"""The adaptation study's recipe as modules, and a small made-up study."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

ADAPTATION = Path(__file__).parents[2] / "recipes" / "adaptation"
NAMES = (
    "rows", "minilm", "finetune", "ridge", "study", "methods", "run", "measures", "bars", "tables", "drawing",
    "figures", "page",
)  # fmt: skip


@pytest.fixture(scope="session")
def recipe() -> Iterator[SimpleNamespace]:
    """The recipe's modules, which import one another by their plain names."""
    kept = {name: sys.modules.pop(name) for name in NAMES if name in sys.modules}
    sys.path.insert(0, str(ADAPTATION))
    try:
        yield SimpleNamespace(**{name: __import__(name) for name in NAMES})
    finally:
        sys.path.remove(str(ADAPTATION))
        for name in NAMES:
            sys.modules.pop(name, None)
        sys.modules.update(kept)


def made_study(recipe: SimpleNamespace, prompts: int = 120, size: int = 6):
    """Pairs of five kinds whose better side has more of one direction; each kind's own, but for "chat" and "hhh"."""
    rng = np.random.default_rng(0)
    ways = {"chat": 0, "hhh": 0, "grounded": 1, "hh-harmless": 2, "xstest": 3}
    groups, parts = [], []
    for kind, way in ways.items():
        for number in range(prompts):
            # Every tenth prompt is one that "chat" has, too.
            name = f"chat {number}" if number % 10 == 0 else f"{kind} {number}"
            group = recipe.rows.Group(kind, f"owner/{kind}", [{"role": "user", "content": name}])
            x = rng.normal(size=(2, size))
            better = int(x[1, way] > x[0, way])
            group.responses = ["a" * int(rng.integers(1, 50)) for _ in range(2)]
            group.pairs.append((better, 1 - better, "Harmlessness"))
            groups.append(group)
            parts.append(x)
    pool = recipe.rows.Group("tulu-pool", "pool", [{"role": "user", "content": "pool"}], ["a", "bb", "ccc"])
    pool.gold = [0.1, 0.2, 0.3]
    parts.append(rng.normal(size=(3, size)))
    columns = {name: np.concatenate(parts).astype(np.float32) for name in ("pooled", "text2", "text4", "response3")}
    columns["response5"] = columns["pooled"]
    columns["reward"] = columns["pooled"][:, :1]
    return recipe.study.assembled([*groups, pool], columns, len(groups) + 1)
