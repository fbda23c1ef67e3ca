"""Pairs of a better and a worse response to one prompt: what accuracy, calibration and uncertainty are measured on."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

#: Pairs of one item at most: nine is all of them for three right and three wrong responses, or one right, nine wrong.
MOST = 9

# Comparisons of two responses looked at together: bounds the memory.
_CHUNK_CELLS = 4_000_000


@dataclass(frozen=True, eq=False)
class Pairs:
    """p pairs of responses, each of one item, ordered by item, better and worse response.

    Attributes:
        item: int64 [p], place of the item in the benchmark.
        a: int64 [p], the better response.
        b: int64 [p], the worse response.
        weight: float64 [p], one over the number of pairs of that item: every item weighs the same.
    """

    item: Integers
    a: Integers
    b: Integers
    weight: Floats

    def __len__(self) -> int:
        return len(self.item)


def right_wrong_pairs(gold: Floats, most: int = MOST, seed: int = 0, ids: Sequence[str] | None = None) -> Pairs:
    """Pair the responses of each item whose gold differs, the better one first.

    An item with more than `most` such pairs gives `most` of them, drawn without replacement. The draw depends on the
    seed, the item's id and the places of the responses in the item only: not on the other items, nor on their order.

    Args:
        gold: worth of every response [n, r], NaN beyond an item's last.
        most: pairs of one item at most, 1 or more.
        seed: seed of the draws.
        ids: ids of the items [n], different from each other; None takes their places.

    Returns:
        The pairs; an item whose responses all have the same gold has none.
    """
    if most < 1:
        raise ValueError(f"most is {most}; an item gives at least one pair")
    names: Sequence[str] = [str(number) for number in range(len(gold))] if ids is None else ids
    if len(names) != len(gold):
        raise ValueError(f"{len(gold)} items and {len(names)} ids")
    responses = gold.shape[1]
    size = max(1, _CHUNK_CELLS // max(1, responses**2))
    items, betters, worses = [], [], []
    for start in range(0, len(gold), size):
        part = gold[start : start + size]
        better = part[:, :, None] > part[:, None, :]  # NaN compares as False
        crowded = np.flatnonzero(better.sum(axis=(1, 2)) > most)
        if len(crowded):
            key = _random_keys([names[start + row] for row in crowded.tolist()], responses**2, seed)
            key[~better[crowded].reshape(len(crowded), -1)] = np.iinfo(np.uint64).max
            chosen = np.argpartition(key, most - 1, axis=1)[:, :most]
            kept = np.zeros((len(crowded), responses**2), dtype=bool)
            np.put_along_axis(kept, chosen, True, axis=1)
            better[crowded] = kept.reshape(-1, responses, responses)
        item, a, b = np.nonzero(better)
        items.append(item + start)
        betters.append(a)
        worses.append(b)
    item = np.concatenate(items, dtype=np.int64) if items else np.empty(0, np.int64)
    weight = 1.0 / np.bincount(item, minlength=len(gold))[item]
    return Pairs(
        item,
        np.concatenate(betters, dtype=np.int64) if betters else np.empty(0, np.int64),
        np.concatenate(worses, dtype=np.int64) if worses else np.empty(0, np.int64),
        weight,
    )


def _random_keys(names: Sequence[str], count: int, seed: int) -> NDArray[np.uint64]:
    """`count` random numbers [names, count] for every name: the output function of SplitMix64 (Steele et al. 2014)."""
    digest = b"".join(
        hashlib.blake2b(f"{seed}\0{name}".encode("utf-8", "surrogatepass"), digest_size=8).digest() for name in names
    )
    state = np.frombuffer(digest, dtype="<u8").astype(np.uint64)[:, None]
    key = state + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    key = (key ^ (key >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    key = (key ^ (key >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return key ^ (key >> np.uint64(31))
