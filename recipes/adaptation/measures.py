"""From cells to estimates: scores and gains with intervals over prompts and seeds, and how good confidence is.

The bootstrap is two-way: a resample draws prompts of every set (the same weights for all seeds and methods, so that
differences are paired) and seeds; a value is the mean over its seeds of the mean over its pairs.
"""

from __future__ import annotations

import json
import zlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from ebrm.calibration import conformal_abstention

Floats = NDArray[np.float64]
DRAWS, LEVEL = 1000, 0.95
BASE = "base"
ELSEWHERE, ABOVE_CHANCE, VENDOR = "elsewhere", "elsewhere, base above chance", "vendor's own kind"


@dataclass(frozen=True)
class Estimate:
    """A value with its interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, eq=False)
class Drawn:
    """A value and its resamples [B]."""

    value: float
    draws: Floats

    def __sub__(self, other: Drawn) -> Drawn:
        return Drawn(self.value - other.value, self.draws - other.draws)

    @property
    def estimate(self) -> Estimate:
        """The percentile interval."""
        tail = (1 - LEVEL) / 2
        return Estimate(self.value, *(float(end) for end in np.quantile(self.draws, [tail, 1 - tail])))


def mean_of(drawn: Sequence[Drawn]) -> Drawn:
    """The mean of some values, resample by resample."""
    return Drawn(float(np.mean([one.value for one in drawn])), np.mean([one.draws for one in drawn], axis=0))


@dataclass(frozen=True, eq=False)
class Result:
    """A cell's file.

    Attributes:
        meta: of the cell: backbone, base, scenario, n, seed, sets, pools, ….
        prompt, set: of every measured pair [p]; set 0 is the target.
        category: of every pair [p].
        score: 1 right, 0.5 a tie, 0 wrong, by method [p].
        probability: P(chosen) of the target's pairs, by method [t].
    """

    meta: dict[str, Any]
    prompt: NDArray[np.int32]
    set: NDArray[np.int8]
    category: NDArray[np.str_]
    score: dict[str, Floats]
    probability: dict[str, Floats]

    @property
    def sets(self) -> list[str]:
        """Names of the sets; the first is "target"."""
        return self.meta["sets"]

    def where(self, name: str) -> NDArray[np.intp]:
        """The pairs of a set."""
        return np.flatnonzero(self.set == self.sets.index(name))


def read(file: Path) -> Result:
    """A cell."""
    with np.load(file) as found:
        columns = {name: found[name] for name in found.files}
    score = {name[6:]: column / 2 for name, column in columns.items() if name.startswith("score ")}
    probability = {
        name[12:]: column.astype(np.float64) for name, column in columns.items() if name.startswith("probability ")
    }
    meta = json.loads(str(columns["meta"]))
    return Result(meta, columns["prompt"], columns["set"], columns["category"], score, probability)


Key = tuple[str, str, str, int]  # backbone, base, scenario, n


def by_key(folder: Path) -> dict[Key, list[Result]]:
    """Cells that differ in their seed alone."""
    found: dict[Key, list[Result]] = defaultdict(list)
    for file in sorted(folder.glob("*.npz")):
        if not file.name.endswith(".partial.npz"):
            result = read(file)
            meta = result.meta
            found[meta["backbone"], meta["base"], meta["scenario"], meta["n"]].append(result)
    return dict(found)


def _generator(*names: object) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32(repr(names).encode()))


def accuracy(
    results: Sequence[Result], methods: Sequence[str], name: str, category: str = "", draws: int = DRAWS
) -> dict[str, Drawn]:
    """Percent right of a set (its categories that begin so), by method."""
    prompts, values, resampled = _prompts(results, name), [], []
    weights = _generator(name).multinomial(len(prompts), np.full(len(prompts), 1 / len(prompts)), draws).astype(float)
    for result in results:
        at = result.where(name)
        if category:
            at = at[np.char.startswith(result.category[at], category)]
        place = np.searchsorted(prompts, result.prompt[at])
        count = np.bincount(place, minlength=len(prompts)).astype(float)
        sums = np.stack([np.bincount(place, result.score[m][at], len(prompts)) for m in methods], 1)
        values.append(100 * sums.sum(0) / max(count.sum(), 1))
        resampled.append(100 * (weights @ sums) / np.maximum(weights @ count, 1)[:, None])
    seeds = _generator("seeds", len(results)).integers(0, len(results), (draws, len(results)))
    mean = np.stack(resampled)[seeds, np.arange(draws)[:, None]].mean(1)  # [B, methods]
    total = np.mean(values, axis=0)
    return {method: Drawn(float(total[k]), mean[:, k]) for k, method in enumerate(methods)}


def _prompts(results: Sequence[Result], name: str) -> NDArray[np.int32]:
    return np.unique(np.concatenate([result.prompt[result.where(name)] for result in results]))


@dataclass(eq=False)
class Measured:
    """What was measured of a backbone, base, scenario and size, for methods that all seeds have."""

    results: list[Result]
    methods: list[str]
    _kept: dict[tuple[str, str], dict[str, Drawn]] = field(default_factory=dict)

    @cached_property
    def sets(self) -> list[str]:
        """Every set but the target."""
        return [name for name in self.results[0].sets if name != "target"]

    @cached_property
    def above_chance(self) -> list[str]:
        """Sets on which the base is above 50%."""
        return [name for name in self.sets if self.accuracy(BASE, name).value > 50]

    def accuracy(self, method: str, name: str, category: str = "") -> Drawn:
        """Percent right on a set."""
        if (name, category) not in self._kept:
            self._kept[name, category] = accuracy(self.results, self.methods, name, category)
        return self._kept[name, category][method]

    def gain(self, method: str, measure: str = "target", category: str = "") -> Drawn:
        """Points above the base: on a set, or on the mean of those elsewhere."""
        if measure in (ELSEWHERE, ABOVE_CHANCE, VENDOR):
            own = [name for name in self.results[0].meta["vendor_sets"] if name in self.sets]
            names = {ELSEWHERE: self.sets, ABOVE_CHANCE: self.above_chance, VENDOR: own}[measure]
            if not names:
                return Drawn(float("nan"), np.full(DRAWS, np.nan))
            return mean_of([self.gain(method, name) for name in names])
        return self.accuracy(method, measure, category) - self.accuracy(BASE, measure, category)

    # -- confidence on the target -----------------------------------------------------------------------------------

    def log_loss(self, method: str) -> Drawn:
        """Mean -log P(label)."""
        return self._by_prompt(lambda result: -np.log(np.clip(result.probability[method], 1e-7, 1)))

    def _by_prompt(self, of) -> Drawn:  # noqa: ANN001 - Result -> values [t]
        prompts, values, resampled = _prompts(self.results, "target"), [], []
        weights = _generator("target").multinomial(
            len(prompts), np.full(len(prompts), 1 / len(prompts)), DRAWS
        ).astype(float)  # fmt: skip
        for result in self.results:
            place = np.searchsorted(prompts, result.prompt[result.where("target")])
            value = of(result)
            values.append(value.mean())
            sums, count = np.bincount(place, value, len(prompts)), np.bincount(place, minlength=len(prompts))
            resampled.append(weights @ sums / np.maximum(weights @ count, 1))
        seeds = _generator("seeds", len(self.results)).integers(0, len(self.results), (DRAWS, len(self.results)))
        mean = np.stack(resampled)[seeds, np.arange(DRAWS)[:, None]].mean(1)
        return Drawn(float(np.mean(values)), mean)

    def auroc(self, method: str, draws: int = 200) -> Drawn:
        """How well confidence tells right pairs from wrong ones; ties in the reward count as wrong."""
        values, resampled = [], []
        for result in self.results:
            p, prompt = result.probability[method], result.prompt[result.where("target")]
            sure, right = np.maximum(p, 1 - p), result.score[method][result.where("target")] > 0.5
            values.append(area(sure, right))
            groups = [np.flatnonzero(prompt == one) for one in np.unique(prompt)]
            rng, found = _generator("auroc", result.meta["seed"]), []
            for _ in range(draws):
                at = np.concatenate([groups[k] for k in rng.integers(0, len(groups), len(groups))])
                found.append(area(sure[at], right[at]))
            resampled.append(found)
        seeds = _generator("seeds", len(self.results)).integers(0, len(self.results), (draws, len(self.results)))
        mean = np.array(resampled)[seeds, np.arange(draws)[:, None]].mean(1)
        return Drawn(float(np.mean(values)), mean)

    def calibration_error(self, method: str) -> tuple[float, float]:
        """(ECE, what perfectly calibrated probabilities would show), in points, mean over seeds."""
        both = [chance_ece(result.probability[method], _generator("ece", k)) for k, result in enumerate(self.results)]
        return float(np.mean([ece for ece, _ in both])), float(np.mean([chance for _, chance in both]))

    def conformal_risk(self, method: str, risk: float = 0.1, splits: int = 200) -> tuple[float, float]:
        """(share of pairs that are decided and wrong, share decided) on the other half of the prompts."""
        wrong, decided = [], []
        for number in range(splits):
            result, rng = self.results[number % len(self.results)], _generator("split", number)
            p, prompt = result.probability[method], result.prompt[result.where("target")]
            names = rng.permutation(np.unique(prompt))
            held = np.isin(prompt, names[: len(names) // 2])
            threshold = conformal_abstention(p[held], risk=risk, prompt_id=prompt[held].astype(str)).threshold
            part = 1 / np.unique(prompt[~held], return_counts=True)[1][np.unique(prompt[~held], return_inverse=True)[1]]
            sure = np.maximum(p[~held], 1 - p[~held]) > threshold
            wrong.append(np.average(sure & (p[~held] <= 0.5), weights=part))
            decided.append(np.average(sure, weights=part))
        return float(np.mean(wrong)), float(np.mean(decided))

    def risk_coverage(self, method: str, coverages: Iterable[float]) -> list[float]:
        """Percent wrong among the most confident share of the target's pairs, mean over seeds."""
        found = []
        for coverage in coverages:
            errors = []
            for result in self.results:
                p, score = result.probability[method], result.score[method][result.where("target")]
                order = np.argsort(-np.maximum(p, 1 - p), kind="stable")[: max(1, round(coverage * len(p)))]
                errors.append(100 * (1 - score[order].mean()))
            found.append(float(np.mean(errors)))
        return found

    # -- best of n --------------------------------------------------------------------------------------------------

    def best_of(self, method: str, n: int) -> Drawn:
        """Gold score of the best-rewarded of n responses of a pool, above the mean of all, in gold's unit."""
        gold = np.array([result.meta["pools"][method] for result in self.results])  # [seeds, pools, sizes]
        above = gold[:, :, n - 1] - gold[:, :, 0]
        rng = _generator("pools", above.shape)
        pools = rng.integers(0, above.shape[1], (DRAWS, above.shape[1]))
        seeds = rng.integers(0, len(above), (DRAWS, len(above)))
        return Drawn(float(above.mean()), np.stack([above[s][:, p].mean() for s, p in zip(seeds, pools, strict=True)]))


def area(score: Floats, positive: NDArray[np.bool_]) -> float:
    """Area under the ROC curve, ties half; 0.5 where there is one class only."""
    count = positive.sum()
    if count in (0, len(positive)):
        return 0.5
    return float((rankdata(score)[positive].sum() - count * (count + 1) / 2) / (count * (len(positive) - count)))


def expected_error(sure: Floats, right: Floats, bins: int = 10) -> float:
    """Expected calibration error in points: bins of equal counts."""
    parts = np.array_split(np.argsort(sure, kind="stable"), bins)
    return 100 * sum(len(at) * abs(sure[at].mean() - right[at].mean()) for at in parts if len(at)) / len(sure)


def chance_ece(probability: Floats, rng: np.random.Generator, simulations: int = 100) -> tuple[float, float]:
    """(ECE, its mean where labels are drawn by the probabilities themselves)."""
    sure = np.maximum(probability, 1 - probability)
    right = np.where(probability == 0.5, 0.5, probability > 0.5).astype(float)
    chance = [expected_error(sure, (rng.random(len(sure)) < sure).astype(float)) for _ in range(simulations)]
    return expected_error(sure, right), float(np.mean(chance))


def measured(results: Sequence[Result]) -> list[Measured]:
    """One for the methods that all seeds have, one for each set of methods that only some have (beside the base)."""
    seeds: dict[str, list[int]] = defaultdict(list)
    for number, result in enumerate(results):
        for method in result.score:
            seeds[method].append(number)
    groups: dict[tuple[int, ...], list[str]] = defaultdict(list)
    for method, which in seeds.items():
        groups[tuple(which)].append(method)
    made = []
    for which in sorted(groups, key=len, reverse=True):
        methods = groups[which]
        made.append(Measured([results[k] for k in which], methods if BASE in methods else [BASE, *methods]))
    return made
