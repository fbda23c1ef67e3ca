"""Comparing scorers on benchmarks: the official scores, what is sure of their differences, and further measures."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ebrm.benchmarks import Benchmark
from ebrm.errors import ConfigError
from ebrm.evaluation.measures import measure, right_wrong_pairs, worst_regressions
from ebrm.evaluation.results import BenchmarkResult, Evaluation, ScoredBenchmark, ScorerResult, Scores, common_items
from ebrm.evaluation.score_tables import official_values, standings
from ebrm.metrics import PERMUTATIONS, Bootstrap, holm


def compare(
    benchmark: Benchmark,
    scorers: Sequence[Scores],
    reference: str,
    *,
    bootstrap: Bootstrap = Bootstrap(),
    permutations: int = PERMUTATIONS,
    excluded: Mapping[str, int] | None = None,
) -> BenchmarkResult:
    """Compare scorers on one benchmark, on the items that all of them could score.

    Args:
        benchmark: the items that were to be scored.
        scorers: the scores of each scorer, in the order of the tables.
        reference: name of the scorer that the others are compared with.
        bootstrap: of the intervals, over prompts, the same resamples for all scorers; its seed is that of permutations
            and drawn pairs too. Nothing depends on the order of the items.
        permutations: random patterns of each permutation test.
        excluded: reason to number of items that were left out before scoring; passed on.

    Returns:
        The result. In it, `p_holm` of the overall scores is corrected over the scorers only; `evaluate_scores` corrects
        over all benchmarks. The metrics' names are explained in `ebrm.evaluation.measures`.

    Raises:
        DataError: if no item could be scored by all.
        ConfigError: if the reference is not among the scorers, or two have the same name.
    """
    common = common_items(ScoredBenchmark(benchmark, scorers, excluded or {}))
    names = [scores.name for scores in common.scorers]
    check_reference(reference, names)
    official = official_values(common)
    bases = [scores.base for scores in common.scorers]
    standing = standings(official, names, reference, bases, bootstrap=bootstrap, permutations=permutations)
    pairs = right_wrong_pairs(common.gold, seed=bootstrap.seed, ids=[item.id for item in common.benchmark.items])
    measures = measure(common, official, pairs, bootstrap=bootstrap)
    by_name = {scores.name: scores for scores in common.scorers}
    regressions = [
        worst_regressions(common, pairs, by_name[scores.base], scores)
        for scores in common.scorers
        if scores.base in by_name
    ]
    return BenchmarkResult(
        name=benchmark.name,
        title=benchmark.title,
        origin=benchmark.origin,
        notes=benchmark.notes,
        scores=benchmark.scores,
        counts=official.counts(),
        items=len(common.benchmark),
        prompts=len(np.unique(common.cluster)),
        excluded=dict(excluded or {}),
        unscored=common.unscored,
        unscored_items=common.unscored_items,
        scorers={
            name: ScorerResult(
                entries=standing[name].entries,
                metrics=measures[name].metrics,
                best=standing[name].best,
                not_worse=standing[name].not_worse,
                calibration=measures[name].calibration,
                risk=measures[name].risk,
                margins=measures[name].margins,
            )
            for name in names
        },
        regressions=tuple(regression for found in regressions for regression in found),
    )


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
    """Compare the same scorers on several benchmarks, and correct the tests of the overall scores for all of them.

    Args:
        scored: the benchmarks, each with the scores of the same scorers in the same order.
        reference: see `compare`, as for `bootstrap` and `permutations`.
        bootstrap: see `compare`.
        permutations: see `compare`.
        about: scorer name to what it is, for the files.
        versions: package to version.
        seconds: stage to time so far; "compare" is added.

    Raises:
        DataError: if a benchmark has no item that all could score.
        ConfigError: if there is nothing to compare, or two benchmarks have the same name.
        ValueError: if the benchmarks have different scorers.
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
    results = [
        compare(
            one.benchmark,
            one.scorers,
            reference,
            bootstrap=bootstrap,
            permutations=permutations,
            excluded=one.excluded,
        )
        for one in scored
    ]
    corrected = _correct_overall(results)
    return Evaluation(
        benchmarks=corrected,
        bases=bases[0],
        reference=reference,
        bootstrap=bootstrap,
        permutations=permutations,
        about=dict(about or {}),
        versions=dict(versions or {}),
        seconds={**(seconds or {}), "compare": time.monotonic() - started},
    )


def check_reference(reference: str, names: Sequence[str]) -> None:
    """Raise a ConfigError unless the reference is one of the scorers."""
    if reference not in names:
        raise ConfigError(
            f"The reference {reference!r} is not among the reward models that are compared: {', '.join(names)}. "
            "Name one of them."
        )


def _correct_overall(results: Sequence[BenchmarkResult]) -> tuple[BenchmarkResult, ...]:
    """Correct the overall scores' tests over all benchmarks and scorers: one family of differences, one of gains."""
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

    def corrected(number: int, name: str, scorer: ScorerResult) -> ScorerResult:
        cells = {score: replace(cell, **new.get((number, name, score), {})) for score, cell in scorer.entries.items()}
        return replace(scorer, entries=cells)

    return tuple(
        replace(result, scorers={name: corrected(number, name, scorer) for name, scorer in result.scorers.items()})
        for number, result in enumerate(results)
    )
