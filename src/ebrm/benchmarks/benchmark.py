"""What a benchmark is: prompts with responses of known worth, and scores that are weighted means over them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ebrm.data import Message, prompt_id

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

#: What a tie between a right and a wrong response is worth: nothing, or what breaking it by lot would give on average.
Ties = Literal["wrong", "shared"]
ScoreKind = Literal["overall", "section", "subset"]


@dataclass(frozen=True)
class Item:
    """One prompt with the responses that a reward model has to put in order.

    Attributes:
        id: unique within the benchmark.
        prompt: the conversation up to the response.
        responses: two or more texts.
        gold: the worth of each response, higher is better; right or wrong is 1.0 or 0.0.
        group: what the official score averages within (subset, category, domain); "" where there is none.
        where: the place it was read from (`file.parquet:12`), for messages.
        cluster: items with the same are resampled together; "" means: those of the same prompt.
    """

    id: str
    prompt: tuple[Message, ...]
    responses: tuple[str, ...]
    gold: tuple[float, ...]
    group: str
    where: str
    cluster: str = ""


@dataclass(frozen=True)
class Score:
    """One number that a benchmark reports: Σ_t weight_t · mean of the values of term t.

    Attributes:
        name: "overall", a section's or a subset's name; unique within the benchmark.
        kind: "overall" (exactly one score, the first), "section" or "subset".
        weights: term to its weight. A term without items is left out, and the other weights are scaled to the same sum.
    """

    name: str
    kind: ScoreKind
    weights: Mapping[str, float]


@dataclass(frozen=True, eq=False)
class Terms:
    """The values whose means make up a benchmark's scores; an item may give several, to several terms.

    Attributes:
        names: names of the terms, T of them.
        term: int64 [k], which term a value belongs to.
        item: int64 [k], which item it comes from.
        value: float64 [k], the item's success in [0, 1] (RewardBench 2's margin term also has values below 0).
    """

    names: tuple[str, ...]
    term: Integers
    item: Integers
    value: Floats


@dataclass(frozen=True, eq=False)
class Benchmark:
    """Items and the rule by which rewards for them become scores. Higher is better, 1.0 is perfect, on all of them.

    Attributes:
        name: as the command line knows it ("rm-bench").
        title: as people write it ("RM-Bench").
        origin: where the items were read, in words.
        items: the items.
        scores: what is reported, "overall" first.
        terms: from (items, rewards [n, r], ties) to the values behind the scores. `rewards` has a finite number for
            every response and NaN beyond an item's last; `ties` None means the benchmark's official rule.
        notes: what a reader must know (domains that are absent, deviations), one sentence each.
    """

    name: str
    title: str
    origin: str
    items: tuple[Item, ...]
    scores: tuple[Score, ...]
    terms: Callable[[Sequence[Item], Floats, Ties | None], Terms]
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.items)

    def take(self, index: Sequence[int] | Integers) -> Benchmark:
        """The benchmark with only the items at `index`, in that order."""
        return replace(self, items=tuple(self.items[int(i)] for i in index))

    def gold(self) -> Floats:
        """The worth of every response [n, r], NaN beyond an item's last."""
        return padded([item.gold for item in self.items])

    def clusters(self) -> tuple[str, ...]:
        """What each item is resampled with [n]."""
        return tuple(item.cluster or prompt_id(item.prompt) for item in self.items)


def padded(rows: Sequence[Sequence[float]]) -> Floats:
    """Rows of different lengths as one table [n, r], NaN beyond the end of each."""
    length = np.fromiter(map(len, rows), dtype=np.int64, count=len(rows))
    table = np.full((len(rows), length.max(initial=0)), np.nan)
    values = np.fromiter(chain.from_iterable(rows), dtype=np.float64, count=int(length.sum()))
    table[np.arange(table.shape[1]) < length[:, None]] = values
    return table
