"""Official scores of several scorers on one benchmark: intervals, differences, tests, and which are the best."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ebrm.benchmarks import Score, Ties
from ebrm.evaluation.results import Common, Entry
from ebrm.metrics import (
    PERMUTATIONS,
    Bootstrap,
    Estimate,
    bootstrap_scores,
    cluster_differences,
    holm,
    permutation_test,
    score_values,
)

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

#: A test below this, after correction, counts as a difference.
SIGNIFICANT = 0.05

# Scores closer than this are equal but for rounding.
_ROUNDING = 1e-12


@dataclass(frozen=True, eq=False)
class Official:
    """The values behind the official scores of S scorers.

    Attributes:
        scores: the Q scores.
        weights: weight of each term in each score [Q, T].
        term: int64 [k], term of each value.
        item: int64 [k], item of each value.
        cluster: int64 [k], cluster of each value.
        value: by the benchmark's own rule for ties [k, S].
        shared: with ties broken at random, in expectation [k, S].
    """

    scores: tuple[Score, ...]
    weights: Floats
    term: Integers
    item: Integers
    cluster: Integers
    value: Floats
    shared: Floats

    def counts(self) -> dict[str, tuple[int, int]]:
        """Numbers of items and of clusters behind each score."""
        found = {}
        for score, weights in zip(self.scores, self.weights, strict=True):
            rows = (weights > 0)[self.term]
            found[score.name] = (len(np.unique(self.item[rows])), len(np.unique(self.cluster[rows])))
        return found


@dataclass(frozen=True)
class ScoreTable:
    """One scorer's cells, and the scores in which it is the best or not clearly worse than the best."""

    entries: Mapping[str, Entry]
    best: frozenset[str]
    not_worse: frozenset[str]


def official_values(common: Common) -> Official:
    """Apply the benchmark's rule to every scorer's rewards, with its own treatment of ties and with shared ties.

    Raises:
        ValueError: if the rule gives other items to other scorers, or a value that is not finite: a defect of the rule.
    """
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
        apply(scores.reward, "shared") if _has_ties(scores.reward) else found
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


def standings(
    official: Official,
    names: Sequence[str],
    reference: str,
    bases: Sequence[str | None] = (),
    *,
    bootstrap: Bootstrap = Bootstrap(),
    permutations: int = PERMUTATIONS,
) -> dict[str, ScoreTable]:
    """Estimate every score of every scorer, test it against the reference's, and see which are the best.

    The best of a score is the highest value; where several scorers have it, all of them. The others are tested against
    the best by the paired permutation test, corrected for their number (Holm); one that stays above 0.05 is not clearly
    worse. With one scorer there is neither.

    Args:
        official: the values.
        names: the scorers, in the order of the values' columns.
        reference: one of them.
        bases: for each scorer the one it refines, or None; one that is not among the scorers counts as None.
        bootstrap: of the intervals; its seed is that of the tests too.
        permutations: random patterns of each test.

    Returns:
        Scorer to its standing. `p_holm` is corrected in two families: the overall scores of all scorers, and all
        sections and subsets of all scorers.
    """
    count, against = len(names), names.index(reference)
    scores = official.scores
    # Without ties the shared values are the official ones: no need to resample them again.
    tied = [column for column in range(count) if (official.value[:, column] != official.shared[:, column]).any()]
    table = np.concatenate([official.value, official.shared[:, tied]], axis=1)
    shared = np.arange(count)
    shared[tied] = count + np.arange(len(tied))
    point = score_values(official.term, table, official.weights)
    draws = bootstrap_scores(official.term, table, official.cluster, official.weights, bootstrap=bootstrap)
    lonely = np.array([prompts < 2 for _, prompts in official.counts().values()])
    draws[:, lonely] = np.nan

    value = estimates(point, draws, bootstrap)
    tests = _tests(official, permutations, bootstrap.seed)
    overall = np.array([score.kind == "overall" for score in scores])

    def versus(others: Sequence[int | None]) -> tuple[list[list[Estimate]], Floats, Floats]:
        """Every scorer minus another one: the differences, their p-values and the corrected ones [Q, S]."""
        to = np.array([column if other is None else other for column, other in enumerate(others)])
        change = estimates(point[:, :count] - point[:, to], draws[:, :, :count] - draws[:, :, to], bootstrap)
        p = np.full((len(scores), count), np.nan)
        for column, other in enumerate(others):
            if other is not None:
                p[:, column] = tests(column, other, np.arange(len(scores)))
        corrected = np.empty_like(p)
        corrected[overall], corrected[~overall] = holm(p[overall]), holm(p[~overall])
        return change, p, corrected

    references = [None if column == against else against for column in range(count)]
    own = [names.index(base) if base in names else None for base in (bases or [None] * count)]
    difference, p, p_holm = versus(references)
    gain, p_gain, p_gain_holm = versus(own)
    best, close = _best(point[:, :count], tests)

    def cell(row: int, column: int) -> Entry:
        made = Entry(value[row][column], value[row][shared[column]])
        if references[column] is not None:
            tested = _number(p[row, column]), _number(p_holm[row, column])
            made = replace(made, difference=difference[row][column], p=tested[0], p_holm=tested[1])
        if own[column] is not None:
            tested = _number(p_gain[row, column]), _number(p_gain_holm[row, column])
            made = replace(made, gain=gain[row][column], p_gain=tested[0], p_gain_holm=tested[1])
        return made

    return {
        name: ScoreTable(
            {score.name: cell(row, column) for row, score in enumerate(scores)},
            frozenset(score.name for row, score in enumerate(scores) if best[row, column]),
            frozenset(score.name for row, score in enumerate(scores) if close[row, column]),
        )
        for column, name in enumerate(names)
    }


def estimates(value: Floats, draws: Floats, bootstrap: Bootstrap) -> list[list[Estimate]]:
    """Put percentile intervals from draws [B, q, s] around values [q, s]; see `Bootstrap.estimate`."""
    rows, columns = value.shape
    whole = np.asarray(np.isfinite(draws).all(axis=0))
    ends = np.full((2, rows, columns), np.nan)
    if whole.any():
        ends[:, whole] = np.quantile(draws[:, whole], [(1 - bootstrap.level) / 2, (1 + bootstrap.level) / 2], axis=0)

    def estimate(row: int, column: int) -> Estimate:
        if whole[row, column]:
            return Estimate(float(value[row, column]), float(ends[0, row, column]), float(ends[1, row, column]))
        return bootstrap.estimate(float(value[row, column]), draws[:, row, column])

    return [[estimate(row, column) for column in range(columns)] for row in range(rows)]


Tests = Callable[[int, int, Integers], Floats]


def _tests(official: Official, permutations: int, seed: int) -> Tests:
    """A function from two scorers and scores to p-values, which remembers what it has tested."""
    known: dict[tuple[int, int], Floats] = {}

    def tests(first: int, second: int, scores: Integers) -> Floats:
        pair = (min(first, second), max(first, second))
        p = known.setdefault(pair, np.full(len(official.scores), np.nan))
        new = scores[np.isnan(p[scores])]
        if len(new):
            change = official.value[:, pair[0]] - official.value[:, pair[1]]
            parts = cluster_differences(official.term, official.cluster, change, official.weights[new])
            # One score at a time: it has few different clusters, and its p does not depend on the other scores.
            for score, column in zip(new, parts.T, strict=True):
                p[score] = permutation_test(column[:, None], permutations, seed)[0]
        return p[scores]

    return tests


def _best(point: Floats, tests: Tests) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which scorers are the best in each score, and which others are not clearly worse [Q, S]."""
    best, close = np.zeros(point.shape, dtype=bool), np.zeros(point.shape, dtype=bool)
    count = point.shape[1]
    if count < 2:
        return best, close
    known = np.isfinite(point).all(axis=1)
    best[known] = point[known] >= point[known].max(axis=1, keepdims=True) - _ROUNDING
    leader = best.argmax(axis=1)
    p = np.where(best, 1.0, np.nan)  # as good as the leader: one of the tests, and lost from the start
    for first in range(count):
        for other in range(count):
            rows = np.flatnonzero(known & (leader == first) & ~best[:, other])
            if len(rows):
                p[rows, other] = tests(other, first, rows)
    p[np.arange(len(p)), leader] = np.nan
    for row in np.flatnonzero(known):
        close[row] = (holm(p[row]) > SIGNIFICANT) & ~best[row]
    return best, close


def _has_ties(reward: Floats) -> bool:
    return bool((np.diff(np.sort(reward, axis=1), axis=1) == 0).any())


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
