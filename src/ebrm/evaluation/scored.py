"""A benchmark with the rewards that scorers gave it, and the part of it on which they can be compared."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ebrm.benchmarks import Benchmark, Item
from ebrm.data import prompt_id
from ebrm.errors import ConfigError, DataError
from ebrm.evaluation.scores import Scores

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

#: Why an item is left out although its scorer gave no reason.
NOT_A_NUMBER = "the reward is not a number"
INFINITE = "the reward is infinite"
NO_DENSITY = "the density of the reward is not a number"


@dataclass(frozen=True, eq=False)
class ScoredBenchmark:
    """A benchmark and what every scorer says of it.

    Attributes:
        benchmark: all items that were to be scored.
        scorers: one for each scorer, in the order of the tables; their rewards are [n, r] like `benchmark.gold()`.
        excluded: reason to number of items that were left out of `benchmark` before scoring.
    """

    benchmark: Benchmark
    scorers: Sequence[Scores]
    excluded: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Common:
    """The items that every scorer could score, and the count of the others.

    Attributes:
        benchmark: only those n items, in the order of their ids: then no sum depends on the order they came in.
        scorers: the scores of those items.
        gold: worth of every response [n, r].
        cluster: int64 [n], number of the item's cluster, clusters numbered in the order of their names.
        prompt: int64 [n], number of the item's prompt; every prompt lies in one cluster.
        unscored: scorer to {reason: number of items}; scorers that scored everything are there too, with no reason.
        unscored_items: ids of the items left out, sorted.
    """

    benchmark: Benchmark
    scorers: tuple[Scores, ...]
    gold: Floats
    cluster: Integers
    prompt: Integers
    unscored: Mapping[str, Mapping[str, int]]
    unscored_items: tuple[str, ...]


def common_items(scored: ScoredBenchmark) -> Common:
    """Keep the items that every scorer could score, so that all are compared on the same ones.

    An item is left out if a scorer gives a reason for it (`Scores.unscored`), or if one of its rewards, or of its
    standard deviations or intervals where there are any, is not a finite number.

    Raises:
        DataError: if no item is left; it names the reasons of every scorer.
        ConfigError: if two scorers have the same name.
        ValueError: if the rewards do not fit the items.
    """
    benchmark, scorers = scored.benchmark, tuple(scored.scorers)
    check_names([scores.name for scores in scorers])
    if not len(benchmark):
        raise DataError(f"{benchmark.title} ({benchmark.origin}) has no items left to score. At least one is needed.")
    gold = benchmark.gold()
    kept = np.ones(len(benchmark), dtype=bool)
    unscored: dict[str, dict[str, int]] = {}
    for scores in scorers:
        reasons = _reasons(scores, gold, benchmark.name)
        kept[list(reasons)] = False
        unscored[scores.name] = dict(sorted(Counter(reasons.values()).items()))
    if not kept.any():
        raise DataError(_nothing_left(benchmark, unscored))
    order = sorted(range(len(benchmark)), key=lambda row: benchmark.items[row].id)
    left = tuple(benchmark.items[row].id for row in order if not kept[row])
    index = np.array([row for row in order if kept[row]])
    scorers = tuple(scores.take(index) for scores in scorers)
    benchmark, gold = benchmark.take(index), gold[index]
    prompts = prompt_ids(benchmark.items)
    cluster = [item.cluster or name for item, name in zip(benchmark.items, prompts, strict=True)]
    # A prompt in two clusters counts as two, so that clusters can be resampled.
    prompt = [f"{item.cluster}\0{name}" for item, name in zip(benchmark.items, prompts, strict=True)]
    return Common(benchmark, scorers, gold, _numbers(cluster), _numbers(prompt), unscored, left)


def prompt_ids(items: Sequence[Item]) -> list[str]:
    """The id of every item's prompt; each different prompt is hashed once."""
    known: dict[tuple[tuple[str, str], ...], str] = {}
    names = []
    for item in items:
        turns = tuple((turn["role"], turn["content"]) for turn in item.prompt)
        names.append(known.get(turns) or known.setdefault(turns, prompt_id(item.prompt)))
    return names


def check_names(names: Sequence[str]) -> None:
    """Raise a ConfigError unless there are scorers, each with a name of its own."""
    if not names:
        raise ConfigError("There is no reward model to compare. Name at least one.")
    twice = sorted(name for name, count in Counter(names).items() if count > 1)
    if twice:
        raise ConfigError(
            f"Several reward models have the same name: {', '.join(twice)}. Tables and files tell them apart by name: "
            "give each one its own."
        )


def _reasons(scores: Scores, gold: Floats, benchmark: str) -> dict[int, str]:
    """Why items cannot be compared, by their place."""
    reward = scores.reward
    if reward.shape != gold.shape:
        raise ValueError(f"{scores.name} on {benchmark}: rewards {reward.shape}, but the responses are {gold.shape}")
    there = np.isfinite(gold)
    beyond = np.argwhere(~np.isnan(reward) & ~there)
    if len(beyond):
        raise ValueError(f"{scores.name} on {benchmark}: a reward where there is no response, at {beyond[0].tolist()}")
    reasons: dict[int, str] = {}
    density = np.zeros_like(there)
    if scores.std is not None:
        density |= ~np.isfinite(scores.std)
    if scores.interval is not None:
        density |= ~np.isfinite(scores.interval).all(axis=2)
    for reason, wrong in ((NO_DENSITY, density), (INFINITE, np.isinf(reward)), (NOT_A_NUMBER, np.isnan(reward))):
        reasons |= dict.fromkeys(np.flatnonzero((wrong & there).any(axis=1)).tolist(), reason)
    for place, reason in scores.unscored.items():
        if not 0 <= place < len(gold):
            raise ValueError(f"{scores.name} on {benchmark}: item {place} is unscored, but there are {len(gold)} items")
        reasons[place] = reason
    return reasons


def _nothing_left(benchmark: Benchmark, unscored: Mapping[str, Mapping[str, int]]) -> str:
    """Say that no item of a benchmark can be compared, and why."""
    total = len(benchmark)
    said = "; ".join(
        f"{name}: " + ", ".join(f"{count:,} of {total:,} items: {reason}" for reason, count in reasons.items())
        for name, reasons in unscored.items()
        if reasons
    )
    return (
        f"{benchmark.title}: there is no item that all reward models could score, so there is nothing to compare "
        f"({said}). Leave out the reward model that could not score them, or find out why it could not."
    )


def _numbers(labels: Sequence[str]) -> Integers:
    """Number the labels in their sorted order [n]."""
    place = {label: number for number, label in enumerate(sorted(set(labels)))}
    return np.fromiter((place[label] for label in labels), dtype=np.int64, count=len(labels))
