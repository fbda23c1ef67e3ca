"""Labels of the training pairs: which are held out, and which are turned round."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

sys.path.append(str(Path(__file__).parent.parent / "demo_rm"))
from rows import place  # noqa: E402

#: Share of the prompts whose pairs no reward model is trained on: they choose the epoch and the trust.
HELD_OUT = 0.1


def held_out(prompts: Sequence[str], seed: int) -> NDArray[np.bool_]:
    """Which pairs [p] are held out, by their prompt's id."""
    return np.array([place(f"held out {seed} {prompt}") < HELD_OUT for prompt in prompts])


def turned(pairs: Sequence[str], noise: float, seed: int) -> NDArray[np.bool_]:
    """Which pairs [p] have their label turned round, by their id; those of less noise are among those of more."""
    return np.array([place(f"turned {seed} {pair}") < noise for pair in pairs])
