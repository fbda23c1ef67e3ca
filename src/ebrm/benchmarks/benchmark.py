"""Benchmarks: prompts with responses of known worth, and scores that are weighted means of the items' success."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import binom

from ebrm.data import Message, Prompt, Reply, prompt_id, with_tools

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

#: Worth of a tie between a right and a wrong response: nothing, or that of breaking it at random, in expectation.
Ties = Literal["wrong", "shared"]
ScoreKind = Literal["overall", "section", "subset"]
Success = Callable[[Floats, Floats, Ties], Floats]  # (rewards [n, r], gold [n, r], ties) to [n]

_CELLS = 4_000_000  # response pairs compared at a time


@dataclass(frozen=True)
class Item:
    """One prompt with the responses that a reward model has to put in order.

    Attributes:
        id: unique within the benchmark.
        prompt: the conversation up to the response.
        responses: two or more texts, or messages where they hold tool calls or reasoning.
        gold: the worth of each response, higher is better; right or wrong is 1.0 or 0.0.
        group: subset, category or domain that the official score averages within; "" where there is none.
        where: the place it was read from (`file.parquet:12`), for messages.
        cluster: items with the same are resampled together; "" means: those of the same prompt.
        tools: descriptions of the tools that the prompt offers; None for none.
    """

    id: str
    prompt: tuple[Message, ...]
    responses: tuple[Reply, ...]
    gold: tuple[float, ...]
    group: str
    where: str
    cluster: str = ""
    tools: tuple[dict[str, Any], ...] | None = None

    @property
    def asked(self) -> Prompt:
        """The prompt with its tools, as a reward model takes it."""
        return with_tools(self.prompt, self.tools)

    @property
    def prompt_id(self) -> str:
        """As `ebrm.data.prompt_id`."""
        return prompt_id(self.prompt, self.tools)


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
        term, item: which term a value belongs to, and which item it comes from, int64 [k].
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
        name, title: as the command line knows it ("rm-bench"), and as people write it ("RM-Bench").
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
        """Cluster of each item, which is resampled whole [n]."""
        return tuple(item.cluster or item.prompt_id for item in self.items)


def padded(rows: Sequence[Sequence[float]], least: int = 0) -> Floats:
    """Rows of different lengths as one table [n, r], NaN beyond the end of each; `least`: columns at least."""
    length = np.fromiter(map(len, rows), dtype=np.int64, count=len(rows))
    table = np.full((len(rows), max(length.max(initial=0), least)), np.nan)
    values = np.fromiter(chain.from_iterable(rows), dtype=np.float64, count=int(length.sum()))
    table[np.arange(table.shape[1]) < length[:, None]] = values
    return table


def item_success(rewards: Floats, gold: Floats, ties: Ties = "wrong") -> Floats:
    """1 where every right response beats every wrong one, else 0 [n]; a pair is the case r = 2.

    "shared" is the expectation of breaking ties at random: where the lowest right reward equals the highest wrong one,
    with a right and b wrong responses at that value, all a right ones lead in a! b! of the (a + b)! orders, so the item
    is worth 1 / C(a + b, a). One right response tied with k wrong ones at the top is worth 1 / (k + 1).

    Rewards are finite for every response, gold is 1.0 (right) or 0.0 (wrong), both [n, r] and NaN beyond an item's
    last; anything else, or an item without one of each, is a ValueError.
    """
    check_rewards(rewards, gold)
    right, wrong = gold == 1.0, gold == 0.0
    if not ((right | wrong) == np.isfinite(gold)).all() or not (right.any(axis=1) & wrong.any(axis=1)).all():
        raise ValueError("gold must be 1.0 or 0.0, with at least one of each in every item")
    lowest = np.where(right, rewards, np.inf).min(axis=1, initial=np.inf)
    highest = np.where(wrong, rewards, -np.inf).max(axis=1, initial=-np.inf)
    success = (lowest > highest).astype(np.float64)
    if ties == "shared":
        level = lowest == highest
        at_level = rewards[level] == lowest[level, None]
        a, b = (right[level] & at_level).sum(axis=1), (wrong[level] & at_level).sum(axis=1)
        success[level] = 1.0 / binom(a + b, a)
    return success


def pair_agreement(rewards: Floats, gold: Floats, ties: Ties = "wrong") -> Floats:
    """Share of an item's response pairs with different gold that the rewards put in the same order [n].

    (tau + 1) / 2 for Kendall's tau over the pairs without a tie in gold; equal rewards for different gold are worth 0
    ("wrong") or 1/2 ("shared"). Tables as in `item_success`, with gold of any value; an item whose gold is all equal is
    a ValueError.
    """
    check_rewards(rewards, gold)
    agreement = np.empty(len(gold))
    step = max(1, _CELLS // max(1, gold.shape[1] ** 2))
    for start in range(0, len(gold), step):
        part = slice(start, start + step)
        better = gold[part, :, None] > gold[part, None, :]  # NaN compares as false
        pairs = better.sum(axis=(1, 2))
        if not pairs.all():
            raise ValueError("an item has no two responses with different gold")
        won = ((rewards[part, :, None] > rewards[part, None, :]) & better).sum(axis=(1, 2))
        equal = ((rewards[part, :, None] == rewards[part, None, :]) & better).sum(axis=(1, 2))
        agreement[part] = (won + (0.5 * equal if ties == "shared" else 0.0)) / pairs
    return agreement


def check_rewards(rewards: Floats, gold: Floats) -> None:
    """Rewards are finite exactly where there is a response (ValueError)."""
    if rewards.shape != gold.shape or not (np.isfinite(rewards) == np.isfinite(gold)).all():
        raise ValueError(
            f"rewards [{', '.join(map(str, rewards.shape))}] must be finite for each of the items' responses "
            f"[{', '.join(map(str, gold.shape))}] and NaN elsewhere"
        )


def gold_table(items: Sequence[Item], rewards: Floats) -> Floats:
    """The items' gold [n, r], as wide as the rewards."""
    return padded([item.gold for item in items], rewards.shape[1])


def group_terms(items: Sequence[Item], values: NDArray[np.float64], of: Mapping[str, Sequence[str]]) -> Terms:
    """One value an item [n], to every term that its group belongs to (`of`: group to the names of its terms).

    All terms are in the result, in the order of their first mention, also those without items.
    """
    names = tuple(dict.fromkeys(term for terms in of.values() for term in terms))
    place = {term: number for number, term in enumerate(names)}
    places = {group: [place[term] for term in terms] for group, terms in of.items()}
    rows = [places[item.group] for item in items]
    counts = np.array([len(row) for row in rows], dtype=np.int64)
    item = np.repeat(np.arange(len(items), dtype=np.int64), counts)
    term = np.array([number for row in rows for number in row], dtype=np.int64)
    return Terms(names, term, item, np.asarray(values, dtype=np.float64)[item])


def terms_by_group(
    of: Mapping[str, Sequence[str]], success: Success = item_success, official: Ties = "wrong"
) -> Callable[[Sequence[Item], Floats, Ties | None], Terms]:
    """`Benchmark.terms` where items give one value each, by `success`, to the terms of their group in `of`."""
    return partial(_terms_by_group, {group: tuple(terms) for group, terms in of.items()}, success, official)


def _terms_by_group(
    of: Mapping[str, Sequence[str]],
    success: Success,
    official: Ties,
    items: Sequence[Item],
    rewards: Floats,
    ties: Ties | None,
) -> Terms:
    return group_terms(items, success(rewards, gold_table(items, rewards), ties or official), of)


def mean_of_items(name: str, kind: ScoreKind, term: str) -> Score:
    """A score that is the mean over the items of one term."""
    return Score(name, kind, {term: 1.0})


def mean_of_groups(name: str, kind: ScoreKind, terms: Sequence[str]) -> Score:
    """A score that is the unweighted mean of the means of several terms."""
    return Score(name, kind, {term: 1.0 / len(terms) for term in terms})
