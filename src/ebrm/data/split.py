"""Splits by prompt, never by row: rows that share a prompt must not sit on both sides of a comparison."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from itertools import accumulate

import numpy as np

from ebrm.errors import ConfigError

_SPAN = 2**64


def hash_position(text: str) -> int:
    """Where `text` falls among 2**64 equal places: the first 8 bytes of its SHA-256."""
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8], "big")


def split_by_prompt(
    prompt_ids: Sequence[str], fractions: dict[str, float], seed: int
) -> dict[str, np.ndarray]:  # int64 row indices, ascending
    """Divide rows into named parts so that all rows of a prompt are in one part.

    The part depends on nothing but (seed, prompt_id), so it stays when rows are added, removed or reordered.
    Parts hold their fraction of the *prompts* in expectation; with few prompts a part may be empty.

    Args:
        prompt_ids: One id a row.
        fractions: Part name to its share of prompts, at least 0 each, summing to 1. Their order counts: it lays the
            parts out along the hash.
        seed: Another seed gives an independent split.

    Returns:
        The rows of every part, ascending int64 indices; together every row exactly once.

    Raises:
        ConfigError: a negative or non-finite fraction, or a sum other than 1.

    """
    shares = list(fractions.values())
    if not shares or any(not (math.isfinite(s) and s >= 0) for s in shares) or abs(math.fsum(shares) - 1) > 1e-9:
        raise ConfigError(f"fractions are {fractions}; they must each be 0 or more and sum to 1.")
    bounds = [min(round(total * _SPAN), _SPAN) for total in accumulate(shares)]
    # Rounding may leave the sum just under 1; whatever lies beyond the last part that has a share is that part's.
    last = max(i for i, share in enumerate(shares) if share > 0)
    bounds[last:] = [_SPAN] * (len(bounds) - last)
    names = list(fractions)
    part_of: dict[str, int] = {}
    for prompt in prompt_ids:
        if prompt not in part_of:
            position = hash_position(f"split:{seed}:{prompt}")
            part_of[prompt] = next(i for i, bound in enumerate(bounds) if position < bound)
    parts = np.fromiter((part_of[prompt] for prompt in prompt_ids), dtype=np.int64, count=len(prompt_ids))
    return {name: np.flatnonzero(parts == i) for i, name in enumerate(names)}
