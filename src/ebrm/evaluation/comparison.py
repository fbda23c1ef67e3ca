"""Comparing scorers on benchmarks: the official scores, what is sure of their differences, and further measures."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ebrm.benchmarks import Benchmark, Floats, Integers
from ebrm.errors import ConfigError
from ebrm.evaluation.measures import measure, right_wrong_pairs, worst_regressions
from ebrm.evaluation.results import (
    BenchmarkResult,
    Common,
    Entry,
    Evaluation,
    Official,
    ScoredBenchmark,
    ScorerResult,
    Scores,
    TrainingItems,
    common_items,
    official_values,
)
from ebrm.metrics import (
    FEW,
    PERMUTATIONS,
    Bootstrap,
    Estimate,
    bootstrap_scores,
    cluster_differences,
    holm,
    permutation_test,
    score_values,
    share_interval,
    smallest_difference,
)
from ebrm.pairs import swapped_sides

logger = logging.getLogger(__name__)


def compare(
    benchmark: Benchmark,
    scorers: Sequence[Scores],
    reference: str,
    *,
    bootstrap: Bootstrap = Bootstrap(),
    permutations: int = PERMUTATIONS,
    excluded: Mapping[str, int] | None = None,
    training: TrainingItems | None = None,
) -> BenchmarkResult:
    """Compare scorers on one benchmark, on the items that all of them could score, whatever their order.

    Args:
        benchmark: items that were to be scored.
        scorers: scores of each scorer, in the order of the tables.
        reference: name of the scorer that the others are compared with.
        bootstrap: of the intervals, over prompts; its seed is that of permutations and drawn pairs too.
        permutations: random patterns of each permutation test.
        excluded: reason to number of items left out before scoring; passed on.
        training: items with prompts that models were fitted on; passed on.

    Returns:
        The result, with `p_holm` of the overall scores corrected over the scorers alone (`evaluate_scores`: over all
        benchmarks), and metrics as explained in `ebrm.evaluation.measures`.

    Raises:
        DataError: no item could be scored by all.
        ConfigError: the reference is not among the scorers, or two have the same name.
    """
    common = common_items(ScoredBenchmark(benchmark, scorers, excluded or {}))
    by_name = {scores.name: scores for scores in common.scorers}
    names = list(by_name)
    if reference not in names:
        raise ConfigError(
            f"The reference {reference!r} is not among the reward models that are compared: {', '.join(names)}. "
            "Name one of them."
        )
    official = official_values(common)
    bases = [scores.base for scores in common.scorers]
    standing = standings(official, names, reference, bases, bootstrap=bootstrap, permutations=permutations)
    pairs = right_wrong_pairs(common.gold, seed=bootstrap.seed, ids=[item.id for item in common.benchmark.items])
    measures = measure(common, official, pairs, bootstrap=bootstrap)
    regressions = [
        worst_regressions(common, pairs, by_name[scores.base], scores)
        for scores in common.scorers
        if scores.base in by_name
    ]
    said = _swapped(common, standing)
    for sentence in said:
        logger.warning("%s: %s", benchmark.title, sentence)
    return BenchmarkResult(
        name=benchmark.name, title=benchmark.title, origin=benchmark.origin, notes=(*said, *benchmark.notes),
        scores=benchmark.scores, counts=official.counts(),
        items=len(common.benchmark), prompts=len(np.unique(common.cluster)),
        excluded=dict(excluded or {}), unscored=common.unscored, unscored_items=common.unscored_items,
        scorers={name: replace(standing[name], **vars(measures[name])) for name in names},
        regressions=tuple(regression for found in regressions for regression in found), training=training,
    )  # fmt: skip


def _swapped(common: Common, standing: Mapping[str, ScorerResult]) -> list[str]:
    """The question whether chosen and rejected are swapped, for base rewards that rank few pairs as labeled."""
    items, score = common.benchmark.items, common.benchmark.scores[0].name
    if any(len(item.responses) != 2 for item in items):
        return []
    shares = {
        scores.name: standing[scores.name].entries[score].value.value
        for scores in common.scorers if scores.base is None
    }  # fmt: skip
    found = {name: swapped_sides(round(share * len(items)), len(items), "pairs") for name, share in shares.items()}
    return [f"{name}: {sentence}" for name, sentence in found.items() if sentence is not None]


def evaluate_scores(
    scored: Sequence[ScoredBenchmark],
    reference: str,
    *,
    bootstrap: Bootstrap = Bootstrap(),
    permutations: int = PERMUTATIONS,
    about: Mapping[str, Mapping[str, Any]] | None = None,
    versions: Mapping[str, str] | None = None,
    seconds: Mapping[str, float] | None = None,
) -> Evaluation:
    """Compare the same scorers on several benchmarks; tests of overall scores are corrected over all of them.

    Args:
        scored: benchmarks with the scores of the same scorers in the same order.
        reference: see `compare`, as for `bootstrap` and `permutations`.
        bootstrap: see `compare`.
        permutations: see `compare`.
        about: scorer name to what it is, for the files.
        versions: package to version.
        seconds: stage to time so far; "compare" is added.

    Raises:
        DataError: a benchmark has no item that all could score.
        ConfigError: nothing to compare, or two benchmarks of the same name.
        ValueError: the benchmarks have different scorers.
    """
    started = time.monotonic()
    twice = [name for name, count in Counter(one.benchmark.name for one in scored).items() if count > 1]
    if twice:
        raise ConfigError(
            f"Several benchmarks have the same name: {', '.join(sorted(twice))}. Name each benchmark once, and give "
            "files different names (a file's benchmark is called by the file's name without its ending)."
        )
    if not scored:
        raise ConfigError("There is no benchmark to evaluate on. Name at least one.")
    bases = [{scores.name: scores.base for scores in one.scorers} for one in scored]
    for one, found in zip(scored, bases, strict=True):
        if list(found.items()) != list(bases[0].items()):
            raise ValueError(f"{one.benchmark.name} was scored by {found}, {scored[0].benchmark.name} by {bases[0]}")
    statistics: dict[str, Any] = {"bootstrap": bootstrap, "permutations": permutations}
    results = [
        compare(one.benchmark, one.scorers, reference, excluded=one.excluded, training=one.training, **statistics)
        for one in scored
    ]
    return Evaluation(
        benchmarks=_correct_overall(results),
        bases=bases[0],
        reference=reference,
        **statistics,
        about=dict(about or {}),
        versions=dict(versions or {}),
        seconds={**(seconds or {}), "compare": time.monotonic() - started},
    )


def _correct_overall(results: Sequence[BenchmarkResult]) -> tuple[BenchmarkResult, ...]:
    """Holm's correction over all benchmarks and scorers: one family of differences, one of gains."""
    places = [
        (number, name, score.name)
        for number, result in enumerate(results)
        for score in result.scores
        if score.kind == "overall"
        for name in result.scorers
    ]
    new: dict[tuple[int, str, str], dict[str, Any]] = {place: {} for place in places}
    for field in ("p", "p_gain"):
        p = [getattr(results[number].scorers[name].entries[score], field) for number, name, score in places]
        family = holm([np.nan if value is None else value for value in p])
        for place, value in zip(places, family, strict=True):
            if np.isfinite(value):
                new[place][f"{field}_holm"] = float(value)

    corrected = []
    for number, result in enumerate(results):
        scorers = {}
        for name, one in result.scorers.items():
            cells = {score: replace(cell, **new.get((number, name, score), {})) for score, cell in one.entries.items()}
            scorers[name] = replace(one, entries=cells)
        corrected.append(replace(result, scorers=scorers))
    return tuple(corrected)


#: A test below this, after correction, counts as a difference.
SIGNIFICANT = 0.05

# Scores closer than this are equal but for rounding.
_ROUNDING = 1e-12


def standings(
    official: Official,
    names: Sequence[str],
    reference: str,
    bases: Sequence[str | None] = (),
    *,
    bootstrap: Bootstrap = Bootstrap(),
    permutations: int = PERMUTATIONS,
) -> dict[str, ScorerResult]:
    """Estimates of every score, tests against the reference's and the own base's, and the best and those not worse."""
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
    behind = [min(counts) for counts in official.counts().values()]  # items, or prompts, which are independent
    for row, prompts in enumerate(behind):
        for column in range(count):
            for place in {column, int(shared[column])}:
                if value[row][place].low == value[row][place].high:  # all the same: no spread to resample
                    one = float(point[row, place])
                    value[row][place] = share_interval(one, draws[:, row, place], prompts, bootstrap)

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
        at = row, column
        if behind[row] < FEW:
            of = (official.weights[row] > 0)[official.term]
            moved = official.value[of, column] != official.value[of, against]
            smallest = smallest_difference(
                float(moved.mean()) if len(moved) else 0.0, behind[row], level=bootstrap.level
            )
            made = replace(made, few=True, smallest=None if np.isnan(smallest) else smallest)
        if references[column] is not None:
            made = replace(made, difference=difference[row][column], p=_number(p[at]), p_holm=_number(p_holm[at]))
        if own[column] is not None:
            made = replace(
                made, gain=gain[row][column], p_gain=_number(p_gain[at]), p_gain_holm=_number(p_gain_holm[at])
            )
        return made

    return {
        name: ScorerResult(
            {score.name: cell(row, column) for row, score in enumerate(scores)},
            best=frozenset(score.name for row, score in enumerate(scores) if best[row, column]),
            not_worse=frozenset(score.name for row, score in enumerate(scores) if close[row, column]),
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


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
