"""Scores that scorers gave a benchmark, and what an evaluation finds: plain data for tables, files and the report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from scipy.special import expit

from ebrm.benchmarks import Benchmark, Floats, Integers, Item, Score, Ties
from ebrm.errors import ConfigError, DataError
from ebrm.evaluation.config import TrainingRule
from ebrm.metrics import Bootstrap, Calibration, Estimate, RiskCoverage


@dataclass(frozen=True)
class Entry:
    """One score of one scorer.

    Attributes:
        value: official score with its interval over prompts.
        shared: the same with ties between right and wrong responses broken at random, in expectation.
        difference: minus the reference's, from the same resamples; None for the reference itself.
        p: two-sided permutation test of that difference; None for the reference itself.
        p_holm: `p` corrected (Holm): overall scores of all benchmarks and scorers are one family, a benchmark's other
            scores by all scorers another.
        gain: minus the scorer's own base, for refined scorers.
        p_gain, p_gain_holm: as `p` and `p_holm`, for the gains.
        few: whether fewer than `ebrm.metrics.FEW` items or prompts are behind the score: too few to tell a difference.
        smallest: where there are few, the smallest difference that they could show, a share; None: not any.
    """

    value: Estimate
    shared: Estimate
    difference: Estimate | None = None
    p: float | None = None
    p_holm: float | None = None
    gain: Estimate | None = None
    p_gain: float | None = None
    p_gain_holm: float | None = None
    few: bool = False
    smallest: float | None = None


@dataclass(frozen=True)
class ScorerResult:
    """One scorer on one benchmark.

    Attributes:
        entries: score name to its entry.
        metrics: further numbers by name (see `ebrm.evaluation.measures`).
        best: names of the scores in which this scorer is the best.
        not_worse: names of the scores in which it is not clearly worse than the best (Holm over the scorers).
        calibration: reliability of P(right > wrong); None where the benchmark has no right and wrong.
        risk: risk-coverage curve by uncertainty: "confidence" for all, "std" where there is a density.
        margins: reward of right minus wrong response of each pair [p].
    """

    entries: Mapping[str, Entry]
    metrics: Mapping[str, Estimate] = field(default_factory=dict)
    best: frozenset[str] = frozenset()
    not_worse: frozenset[str] = frozenset()
    calibration: Calibration | None = None
    risk: Mapping[str, RiskCoverage] = field(default_factory=dict)
    margins: Floats = field(default_factory=lambda: np.empty(0))


@dataclass(frozen=True)
class Regression:
    """A pair that a refined reward lost: base right, refined wrong (or worse), with its texts.

    Attributes:
        item: its id.
        group: its group.
        prompt: as people read it.
        right, wrong: the two responses.
        base: base rewards of (right, wrong).
        refined: refined rewards of (right, wrong).
        scorer: name of the refined scorer.
    """

    item: str
    group: str
    prompt: str
    right: str
    wrong: str
    base: tuple[float, float]
    refined: tuple[float, float]
    scorer: str


@dataclass(frozen=True)
class TrainingItems:
    """How many items of a benchmark have prompts that models were fitted on.

    Attributes:
        items: items looked at.
        fitted: those with a prompt that one of the models or several were fitted on.
        of: the same for each model that knows its prompts, by its name.
        unknown: names of the models that do not know which prompts they were fitted on.
        rule: what became of them.
    """

    items: int
    fitted: int
    of: Mapping[str, int]
    unknown: tuple[str, ...]
    rule: TrainingRule

    def sentence(self) -> str | None:
        """What a reader of the numbers has to know; None where no prompt was fitted on."""
        if not self.fitted:
            return None
        counts = {name: count for name, count in self.of.items() if count}
        by = " or ".join(name if len(counts) == 1 else f"{name} ({count:,})" for name, count in counts.items())
        have = "items have prompts" if self.items != 1 else "item has a prompt"
        told = f"{self.fitted:,} of {self.items:,} {have} that {by} was fitted on"
        if self.rule == "skip":
            return f"{told}; left out for all."
        return f"{told}: training pairs, so that the numbers do not say how good its rewards are on other prompts."


@dataclass(frozen=True)
class BenchmarkResult:
    """All scorers on one benchmark, on the items that all of them could score.

    Attributes:
        name, title, origin, notes: as in the benchmark.
        scores: "overall" first.
        counts: score name to (items, prompts) behind it.
        items: items compared.
        prompts: distinct prompts (clusters) of those.
        excluded: reason to number of items left out before scoring ("prompt seen in training", "not sampled").
        unscored: scorer to {reason: number of items}; these items are in no number.
        unscored_items: ids of those items.
        scorers: scorer name to its result, in the order of the evaluation.
        regressions: the worst, at most six a refined scorer.
        training: items with prompts that models were fitted on; None where nobody looked.
    """

    name: str
    title: str
    origin: str
    notes: tuple[str, ...]
    scores: tuple[Score, ...]
    counts: Mapping[str, tuple[int, int]]
    items: int
    prompts: int
    excluded: Mapping[str, int]
    unscored: Mapping[str, Mapping[str, int]]
    unscored_items: tuple[str, ...]
    scorers: Mapping[str, ScorerResult]
    regressions: tuple[Regression, ...] = ()
    training: TrainingItems | None = None


@dataclass(frozen=True)
class Evaluation:
    """Result of an evaluation on benchmarks.

    Attributes:
        benchmarks: one result each.
        bases: scorer name to the scorer it refines, or None; the order is that of every table.
        reference: the scorer that the others are compared with.
        bootstrap: of the intervals; its seed is that of the permutation tests too.
        permutations: of the permutation tests.
        about: scorer name to its path, backbone, fingerprint and settings.
        versions: package to version.
        seconds: stage to time.
    """

    benchmarks: tuple[BenchmarkResult, ...]
    bases: Mapping[str, str | None]
    reference: str
    bootstrap: Bootstrap
    permutations: int
    about: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)


def apart(evaluation: Evaluation) -> list[str]:
    """The refined scorers that no difference to the reference compares with their own base."""
    bases, reference = evaluation.bases, evaluation.reference
    return [name for name, base in bases.items() if base in bases and reference not in (name, base)]


@dataclass(frozen=True, eq=False)
class Scores:
    """Rewards of one scorer for the n items of a benchmark, in tables [n, r] like `Benchmark.gold()`.

    Attributes:
        name: unique in an evaluation ("my-rm", "my-ebrm").
        reward: float64 [n, r]; NaN beyond an item's last response and where there is no reward.
        base: name of the scorer that this one refines; None for a reward model itself.
        std: standard deviation of the density, float64 [n, r]; None where there is no density.
        interval: ends of the density's central interval, float64 [n, r, 2]; None where there is no density.
        interval_level: coverage that the interval claims.
        prefer: P(response a of item i > its response b) under the densities, from (i [p], a [p], b [p]) to [p]; None:
            the logistic function of the reward difference (Bradley-Terry).
        unscored: place of an item to why it has no reward.
    """

    name: str
    reward: Floats
    base: str | None = None
    std: Floats | None = None
    interval: Floats | None = None
    interval_level: float = 0.9
    prefer: Callable[[Integers, Integers, Integers], Floats] | None = None
    unscored: Mapping[int, str] = field(default_factory=dict)

    def probability(self, item: Integers, a: Integers, b: Integers) -> Floats:
        """P(response `a` of `item` is better than its response `b`) [p]."""
        if self.prefer is not None:
            return self.prefer(item, a, b)
        return np.asarray(expit(self.reward[item, a] - self.reward[item, b]), dtype=np.float64)

    def take(self, index: Integers) -> Scores:
        """The scores of the items at `index`, in that order."""
        prefer = self.prefer
        place = {int(old): new for new, old in enumerate(index)}
        return replace(
            self,
            reward=self.reward[index],
            std=None if self.std is None else self.std[index],
            interval=None if self.interval is None else self.interval[index],
            prefer=None if prefer is None else lambda item, a, b: prefer(np.asarray(index)[item], a, b),
            unscored={place[old]: reason for old, reason in self.unscored.items() if old in place},
        )


#: Why an item is left out although its scorer gave no reason.
NOT_A_NUMBER = "the reward is not a number"
INFINITE = "the reward is infinite"
NO_DENSITY = "the density of the reward is not a number"


@dataclass(frozen=True, eq=False)
class ScoredBenchmark:
    """A benchmark with the scores of every scorer.

    Attributes:
        benchmark: all items that were to be scored.
        scorers: in the order of the tables; rewards [n, r] like `benchmark.gold()`.
        excluded: reason to number of items left out before scoring.
        training: items with prompts that models were fitted on; None where nobody looked.
    """

    benchmark: Benchmark
    scorers: Sequence[Scores]
    excluded: Mapping[str, int] = field(default_factory=dict)
    training: TrainingItems | None = None


@dataclass(frozen=True, eq=False)
class Common:
    """The items that every scorer could score, and the count of the others."""

    benchmark: Benchmark  # only those n items, in the order of their ids: then no sum depends on the order they came in
    scorers: tuple[Scores, ...]
    gold: Floats  # worth of every response [n, r]
    cluster: Integers  # number of the item's cluster [n], in the order of the names
    prompt: Integers  # number of the item's prompt [n]; every prompt lies in one cluster
    unscored: Mapping[str, Mapping[str, int]]  # scorer to {reason: number of items}
    unscored_items: tuple[str, ...]  # ids of the items left out, sorted


def common_items(scored: ScoredBenchmark) -> Common:
    """The items for which every scorer has finite rewards (and densities) and gives no reason against."""
    benchmark, scorers = scored.benchmark, tuple(scored.scorers)
    check_names([scores.name for scores in scorers])
    if not len(benchmark):
        raise DataError(f"{benchmark.title} ({benchmark.origin}) has no items left to score. At least one is needed.")
    gold = benchmark.gold()
    kept = np.ones(len(benchmark), dtype=bool)
    unscored: dict[str, dict[str, int]] = {}
    for scores in scorers:
        found = _reasons(scores, gold, benchmark.name)
        kept[list(found)] = False
        unscored[scores.name] = dict(sorted(Counter(found.values()).items()))
    if not kept.any():
        reasons_of = "; ".join(
            f"{name}: " + ", ".join(f"{n:,} of {len(benchmark):,} items: {reason}" for reason, n in reasons.items())
            for name, reasons in unscored.items()
            if reasons
        )
        raise DataError(
            f"{benchmark.title}: there is no item that all reward models could score, so there is nothing to compare "
            f"({reasons_of}). Leave out the reward model that could not score them, or find out why it could not."
        )
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
        if item.tools or any(len(turn) > 2 for turn in item.prompt):
            names.append(item.prompt_id)
            continue
        turns = tuple((turn["role"], turn["content"]) for turn in item.prompt)
        names.append(known.get(turns) or known.setdefault(turns, item.prompt_id))
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


def _numbers(labels: Sequence[str]) -> Integers:
    place = {label: number for number, label in enumerate(sorted(set(labels)))}
    return np.fromiter((place[label] for label in labels), dtype=np.int64, count=len(labels))


@dataclass(frozen=True, eq=False)
class Official:
    """The k values behind the Q official scores of S scorers."""

    scores: tuple[Score, ...]
    weights: Floats  # of each term in each score [Q, T]
    term: Integers  # of each value [k], as the next two
    item: Integers
    cluster: Integers
    value: Floats  # by the benchmark's own rule for ties [k, S]
    shared: Floats  # with ties broken at random, in expectation [k, S]

    def counts(self) -> dict[str, tuple[int, int]]:
        """Numbers of items and of clusters behind each score."""
        found = {}
        for score, weights in zip(self.scores, self.weights, strict=True):
            rows = (weights > 0)[self.term]
            found[score.name] = (len(np.unique(self.item[rows])), len(np.unique(self.cluster[rows])))
        return found


def official_values(common: Common) -> Official:
    """Apply the benchmark's rule to every scorer's rewards, with its own treatment of ties and with shared ties."""
    benchmark = common.benchmark

    def apply(reward: Floats, ties: Ties | None) -> tuple[tuple[str, ...], Integers, Integers, Floats]:
        terms = benchmark.terms(benchmark.items, reward, ties)
        if not np.isfinite(terms.value).all():
            raise ValueError(f"{benchmark.name}: its rule gives a value that is not finite")
        order = np.lexsort((terms.item, terms.term))
        return terms.names, terms.term[order], terms.item[order], terms.value[order]

    own = [apply(scores.reward, None) for scores in common.scorers]
    # Without equal rewards in an item there is nothing to share.
    shared = [
        apply(scores.reward, "shared") if (np.diff(np.sort(scores.reward, axis=1), axis=1) == 0).any() else found
        for scores, found in zip(common.scorers, own, strict=True)
    ]
    names, term, item, _ = own[0]
    for other, *places, _ in own + shared:
        if other != names or not all(map(np.array_equal, places, (term, item))):
            raise ValueError(f"{benchmark.name}: its rule gives other items to other rewards")
    place = {name: number for number, name in enumerate(names)}
    for score in benchmark.scores:  # a term without items may be missing from the names
        for name in score.weights:
            place.setdefault(name, len(place))
    weights = np.zeros((len(benchmark.scores), len(place)))
    for row, score in enumerate(benchmark.scores):
        for name, weight in score.weights.items():
            weights[row, place[name]] = weight
    values = [np.stack([found[3] for found in rule], axis=1) for rule in (own, shared)]
    return Official(benchmark.scores, weights, term, item, common.cluster[item], *values)
