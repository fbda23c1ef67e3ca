"""Small made-up benchmarks of every kind, and scorers for them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.special import ndtr

from ebrm.benchmarks import Benchmark, Floats, Item, Score, Terms, Ties
from ebrm.evaluation import Scores


def item(
    name: str, gold: Sequence[float], prompt: str = "", group: str = "", cluster: str = "", lengths: Sequence[int] = ()
) -> Item:
    texts = tuple("x" * length for length in (lengths or range(20, 20 + len(gold))))
    turns = ({"role": "user", "content": prompt or name},)
    return Item(name, turns, texts, tuple(gold), group, f"made.jsonl:{name}", cluster)


def success(items: Sequence[Item], rewards: Floats, ties: Ties | None) -> Floats:
    """Does the worst right response beat the best wrong one? A naive loop; of graded gold the share of pairs."""
    worth = 0.5 if ties == "shared" else 0.0
    values = []
    for one, row in zip(items, rewards, strict=True):
        pairs = [(row[a], row[b]) for a, x in enumerate(one.gold) for b, y in enumerate(one.gold) if x > y]
        if set(one.gold) <= {0.0, 1.0}:
            low, high = min(a for a, _ in pairs), max(b for _, b in pairs)
            values.append(1.0 if low > high else worth if low == high else 0.0)
        else:
            values.append(sum(1.0 if a > b else worth if a == b else 0.0 for a, b in pairs) / len(pairs))
    return np.array(values)


def by_group(items: Sequence[Item], rewards: Floats, ties: Ties | None) -> Terms:
    names = tuple(sorted({one.group for one in items}))
    term = np.array([names.index(one.group) for one in items], dtype=np.int64)
    return Terms(names, term, np.arange(len(items)), success(items, rewards, ties))


def benchmark(items: Sequence[Item], name: str = "made", title: str = "Made up") -> Benchmark:
    """Overall is the mean of the groups, each group a subset."""
    groups = sorted({one.group for one in items})
    scores = (
        Score("overall", "overall", dict.fromkeys(groups, 1 / len(groups))),
        *(Score(group, "subset", {group: 1.0}) for group in groups if len(groups) > 1),
    )
    return Benchmark(name, title, "made up", tuple(items), scores, by_group, ("No real data.",))


def pairwise(count: int = 120, prompts: int = 60, seed: int = 0, name: str = "pairs") -> Benchmark:
    generator = np.random.default_rng(seed)
    asked = generator.integers(0, prompts, count)
    lengths = generator.integers(1, 40, (count, 2))
    return benchmark(
        [
            item(
                f"p{row:03}",
                (1.0, 0.0),
                f"question {asked[row]}",
                f"group {asked[row] % 3}",
                lengths=lengths[row].tolist(),
            )
            for row in range(count)
        ],
        name,
        "Pairs",
    )


def best_of(count: int = 60, responses: int = 4, seed: int = 0, name: str = "best-of") -> Benchmark:
    """One right response; items have 3 to `responses`."""
    sizes = np.random.default_rng(seed).integers(3, responses + 1, count)
    items = [item(f"b{row:03}", (1.0,) + (0.0,) * (sizes[row] - 1), group="ab"[row % 2]) for row in range(count)]
    return benchmark(items, name, "Best of n")


def pool(count: int = 40, responses: int = 8, seed: int = 0, name: str = "pool") -> Benchmark:
    gold = np.round(np.random.default_rng(seed).random((count, responses)), 2)
    return benchmark([item(f"q{row:03}", gold[row].tolist()) for row in range(count)], name, "Pool")


def _halves(items: Sequence[Item], rewards: Floats, ties: Ties | None) -> Terms:
    """Three right against three wrong responses: easy and hard comparisons, each a term of its domain."""
    won = rewards[:, :3, None] > rewards[:, None, 3:6]
    won = won + (0.5 if ties == "shared" else 0.0) * (rewards[:, :3, None] == rewards[:, None, 3:6])
    upper = np.triu(np.ones((3, 3), dtype=bool), 1)
    value = np.stack([won[:, ~upper].mean(axis=1), won[:, upper].mean(axis=1)], axis=1)
    domain = np.array([int(one.group == "code") for one in items])
    names = ("chat/easy", "chat/hard", "code/easy", "code/hard")
    return Terms(
        names, (2 * domain[:, None] + [0, 1]).ravel(), np.repeat(np.arange(len(items)), 2), value.astype(float).ravel()
    )


def styles(count: int = 50, name: str = "styles") -> Benchmark:
    """Several terms an item."""
    scores = (
        Score("overall", "overall", {"chat/easy": 0.25, "chat/hard": 0.25, "code/easy": 0.25, "code/hard": 0.25}),
        Score("chat", "section", {"chat/easy": 0.5, "chat/hard": 0.5}),
        Score("code", "section", {"code/easy": 0.5, "code/hard": 0.5}),
        Score("hard", "section", {"chat/hard": 0.5, "code/hard": 0.5}),
        Score("code/hard", "subset", {"code/hard": 1.0}),
    )
    items = [item(f"s{row:03}", (1.0,) * 3 + (0.0,) * 3, group="code" if row % 3 else "chat") for row in range(count)]
    return Benchmark(name, "Styles", "made up", tuple(items), scores, _halves)


def reward_of(made: Benchmark, skill: float, seed: int, digits: int = 6) -> Floats:
    """Rewards that know `skill` times the gold, under noise that all scorers share in part."""
    gold = made.gold()
    shared = np.random.default_rng(99).normal(size=gold.shape)
    own = np.random.default_rng(seed).normal(size=gold.shape)
    return np.round(skill * gold + 0.7 * shared + 0.5 * own, digits)


def plain_scores(made: Benchmark, name: str, skill: float = 1.0, seed: int = 1, digits: int = 6) -> Scores:
    return Scores(name, reward_of(made, skill, seed, digits))


def refined_scores(made: Benchmark, name: str, base: str, skill: float = 1.2, seed: int = 2) -> Scores:
    """A scorer with Gaussian densities."""
    reward = reward_of(made, skill, seed)
    std = np.where(np.isfinite(reward), np.random.default_rng(seed).gamma(8, 0.1, reward.shape), np.nan)
    interval = np.stack([reward - 1.645 * std, reward + 1.645 * std], axis=-1)

    def prefer(place: np.ndarray, a: np.ndarray, b: np.ndarray) -> Floats:
        spread = np.hypot(std[place, a], std[place, b])
        return np.asarray(ndtr((reward[place, a] - reward[place, b]) / spread))

    return Scores(name, reward, base, std, interval, 0.9, prefer)


def three(made: Benchmark) -> tuple[Scores, ...]:
    """A reward model, its refinement, and a much worse one."""
    return plain_scores(made, "rm"), refined_scores(made, "rm-refined", "rm"), plain_scores(made, "poor", -0.5, 3)


def all_kinds() -> list[Benchmark]:
    return [pairwise(), best_of(), pool(), styles()]
