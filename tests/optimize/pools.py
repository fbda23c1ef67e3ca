"""Pools for the tests."""

from __future__ import annotations

import numpy as np


def ragged(seed: int, prompts: int = 12, most: int = 7, levels: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """Pools of 1 to `most` responses with few different rewards, so that there are ties, and NaN at odd places."""
    generator = np.random.default_rng(seed)
    reward = generator.integers(0, levels, (prompts, most)) / 3
    gold = generator.normal(size=(prompts, most))
    missing = generator.random((prompts, most)) < 0.3
    missing[np.arange(prompts), generator.integers(0, most, prompts)] = False
    return np.where(missing, np.nan, reward), np.where(missing, np.nan, gold)
