"""What the experiments share: readings of all texts, training pairs with wrong labels, test sets."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from encoder import LAYERS
from features import POOLS, cache_of, load, rm_training_rows, test_sets, training_texts
from labels import held_out, turned
from labels import place as place_of
from torch import Tensor

from ebrm.benchmarks import Benchmark
from ebrm.evaluation import BenchmarkTexts
from ebrm.pairs import PreferencePairs

#: Fewest readable responses of a pool's prompt.
LEAST_RESPONSES = 8
#: Numbers a layer gives to the embedding. As ebrm reads them, the pooled top layer comes first.
POOLED = 384


@dataclass(frozen=True)
class TestSet:
    """A benchmark without training prompts, and where its responses stand among the texts [n, r] (-1: none)."""

    benchmark: Benchmark
    place: np.ndarray

    def rewards(self, reward: np.ndarray) -> np.ndarray:
        """Rewards of the items' responses [n, r], NaN beyond an item's last."""
        return np.where(self.place >= 0, reward[self.place], np.nan)


@dataclass(frozen=True)
class Study:
    """What was read of a reward model.

    Attributes:
        embedding: of all texts [n, 1152]: pooled top layer, then the means of layers 2 and 4.
        reward: of all texts [n], where the reward model is fine-tuned; zeros for the frozen encoder.
        chosen, rejected: training pairs as rows [p], labels as published.
        pair, prompt, source: their ids, prompts and sources [p].
        tests: test sets by name.
    """

    embedding: Tensor
    reward: Tensor
    chosen: Tensor
    rejected: Tensor
    pair: np.ndarray
    prompt: np.ndarray
    source: np.ndarray
    tests: dict[str, TestSet]

    def labeled(self, noise: float, seed: int) -> tuple[Tensor, Tensor]:
        """(chosen, rejected) with a share `noise` of the labels turned round."""
        wrong = torch.from_numpy(turned(self.pair.tolist(), noise, seed))
        return torch.where(wrong, self.rejected, self.chosen), torch.where(wrong, self.chosen, self.rejected)

    def split(self, noise: float, seed: int) -> tuple[PreferencePairs, PreferencePairs, np.ndarray]:
        """Training and held-out pairs under `noise`, and the places of the training pairs."""
        chosen, rejected = self.labeled(noise, seed)
        held = held_out(self.prompt.tolist(), seed)
        train, rest = np.flatnonzero(~held), np.flatnonzero(held)
        return (
            PreferencePairs.of(chosen[train], rejected[train]),
            PreferencePairs.of(chosen[rest], rejected[rest]),
            train,
        )


def readable(benchmark: Benchmark, place: np.ndarray) -> tuple[Benchmark, np.ndarray]:
    """Pools without the responses that were too long to read (-1 in `place` [n, r]), where eight or more are left."""
    items, places = [], []
    for item, row in zip(benchmark.items, place, strict=True):
        kept = [k for k in range(len(item.responses)) if row[k] >= 0]
        if len(kept) < LEAST_RESPONSES:
            items.append(item)
            places.append([-1])
            continue
        responses, gold = tuple(item.responses[k] for k in kept), tuple(item.gold[k] for k in kept)
        items.append(replace(item, responses=responses, gold=gold))
        places.append([int(row[k]) for k in kept])
    print(f"{benchmark.name}: {(place == -1).sum():,} of {(place >= -1).sum():,} responses too long")
    table = np.full((len(items), max(map(len, places))), -2)
    for row, numbers in zip(table, places, strict=True):
        row[: len(numbers)] = numbers
    return replace(benchmark, items=tuple(items)), table


def open_study(data: Path, cache_folder: Path, model: str = "frozen", looked_at: bool = False) -> Study:
    """What `features.py` read with a model; pairs and items with an unread text are left out and counted.

    One half of the test prompts, by a hash, was looked at while the method was made. It is left out, or the other is.
    """
    cache = cache_of(load(model), cache_folder)
    texts, rows_read = training_texts(data), rm_training_rows(data)
    rows = cache.rows([text.id for text in texts]).reshape(-1, 2)
    whole = (rows >= 0).all(axis=1)
    print(f"training pairs: {whole.sum():,}; {(~whole).sum():,} left out because a text is too long")
    prompt = np.array([text.prompt_id for text in texts[::2]])
    seen = set(prompt.tolist())
    tests, wanted = {}, [rows[whole].reshape(-1)]
    for name, test_set in test_sets(data, model).items():
        found = BenchmarkTexts.of(test_set)
        place = np.nan_to_num(found.table(cache.rows(found.ids)), nan=-2).astype(np.int64)
        benchmark = found.benchmark
        if name in POOLS:  # a pool can do without some of its responses
            benchmark, place = readable(benchmark, place)
        unread = (place == -1).any(axis=1)
        trained = np.array([cluster in seen for cluster in benchmark.clusters()])
        other_half = np.array(
            [name not in POOLS and (place_of(f"half {one}") < 0.5) != looked_at for one in benchmark.clusters()]
        )
        index = np.flatnonzero(~unread & ~trained & ~other_half)
        benchmark = benchmark.take(index)
        tests[name] = TestSet(benchmark, np.maximum(place[index], -1)[:, : benchmark.gold().shape[1]])
        wanted.append(tests[name].place.reshape(-1))
        print(
            f"{name}: {len(index):,} items; left out: {unread.sum():,} too long, {trained.sum():,} trained on, "
            f"{(other_half & ~unread & ~trained).sum():,} of the other half"
        )
    used = np.unique(np.concatenate(wanted))
    used = torch.from_numpy(used[used >= 0])
    ends = torch.tensor([0, *np.cumsum([len(part) for part in cache.parts])])
    embedding, reward = [], []
    for part, first in zip(cache.parts, ends.tolist(), strict=False):
        inside = used[(used >= first) & (used < first + len(part))] - first
        embedding.append(part.embedding(inside))
        reward.append(part.reward[inside])
    renumber = torch.full((int(ends[-1]),), -1)
    renumber[used] = torch.arange(len(used))
    for name, test in tests.items():
        place = np.where(test.place >= 0, renumber.numpy()[test.place], -1)
        tests[name] = TestSet(test.benchmark, place)
    pairs = renumber[torch.from_numpy(rows[whole])]
    whole_embedding = torch.cat(embedding)
    if model == "frozen":  # it has its layers in ascending order
        width = POOLED * (len(LAYERS) - 1)
        whole_embedding = torch.cat([whole_embedding[:, width:], whole_embedding[:, :width]], 1)
    names = [np.array([row[key] for row in rows_read])[whole] for key in ("id", "source")]
    return Study(whole_embedding, torch.cat(reward), pairs[:, 0], pairs[:, 1], names[0], prompt[whole], names[1], tests)
