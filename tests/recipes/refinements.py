"""Small made-up base reward models with their refinements, as the evidence's recipe reads them."""

from __future__ import annotations

import numpy as np
from scipy.special import expit
from tests.evaluation.suites import benchmark, item, styles

METHODS = ("base", "EBRM", "EBRM, mode", "SiLU head", "5 SiLU heads, mean", "5 SiLU heads, WCO", "5 SiLU heads, UWO")


class Set:
    """As the study's test sets."""

    def __init__(self, made, first):
        gold = made.gold()
        known = np.isfinite(gold)
        self.benchmark, self.place = made, np.full(gold.shape, -1)
        self.place[known] = np.arange(first, first + known.sum())

    def rewards(self, reward):
        return np.where(self.place >= 0, reward[self.place], np.nan)


def pair_set(name="llmbar"):
    """Pairs of two groups, 12 and 6 of them, two a prompt."""
    return benchmark([item(f"p{i:02}", (1.0, 0.0), f"q{i // 2}", "ab"[i >= 12]) for i in range(18)], name)


def texts_of(recipe, tests, pools=()):
    sets, first = {}, 0
    for made in (*tests, *pools):
        sets[made.name] = Set(made, first)
        first += int((sets[made.name].place >= 0).sum())
    chosen = first + np.arange(0, 40, 2)
    names = [made.name for made in pools]
    texts = recipe.reward_files.Texts(
        {name: one for name, one in sets.items() if name not in names},
        {name: sets[name] for name in names}, 1152, first + 40,
    )  # fmt: skip
    published = recipe.reward_files.Pairs(
        np.stack([chosen, chosen + 1], 1), np.array([f"h{i // 2}" for i in range(20)])
    )
    return texts, published


def made_cells(recipe, noise=0.25, seeds=2, tests=None, pools=(), methods=METHODS, digits=6):
    """Random rewards for all texts; gold is worth more to later methods."""
    texts, published = texts_of(recipe, tests or (pair_set(), styles(12, "rm-bench")), pools)
    gold = np.zeros(texts.count)
    for one in (*texts.tests.values(), *texts.pools.values()):
        gold[one.place[one.place >= 0]] = one.benchmark.gold()[one.place >= 0]
    gold[published.place[:, 0]] = 1.0
    given = published.place.copy()
    given[:3] = given[:3, ::-1]
    cells = []
    for seed in range(seeds):
        generator = np.random.default_rng((round(100 * noise), seed))
        reward = {
            name: np.round(generator.normal(size=texts.count) + (0.3 + 0.1 * at) * gold, digits).astype(np.float32)
            for at, name in enumerate(methods)
        }
        std = {
            name: generator.gamma(8, 0.1, texts.count).astype(np.float32)
            for name in ("EBRM", "5 SiLU heads, mean")
            if name in methods
        }
        wins = {
            name: expit(reward[methods[-1]][pairs.place[:, 0]] - reward[methods[-1]][pairs.place[:, 1]])
            for name, pairs in texts.pairs.items()
        }
        held = recipe.reward_files.HeldOut(published, given)
        cells.append(recipe.reward_files.Refinements("head", noise, seed, texts, held, reward, std, wins))
    return cells


def official(test, reward, keep=None):
    """The mean over groups of the shares of pairs whose first reward is higher; `keep` are rows with repetition."""
    rows = range(len(test.benchmark)) if keep is None else keep
    found = {}
    for row in rows:
        place = test.place[row]
        found.setdefault(test.benchmark.items[row].group, []).append(float(reward[place[0]] > reward[place[1]]))
    return np.mean([np.mean(values) for values in found.values()])
