"""Evaluations with nothing but the numbers that a test is about."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from ebrm.benchmarks import Score
from ebrm.evaluation import BenchmarkResult, Entry, Evaluation, ScorerResult
from ebrm.metrics import Bootstrap, Estimate

#: Value and, for a scorer that is compared with the reference, corrected p-value.
Numbers = tuple[float, float | None]


def exact(value: float) -> Estimate:
    return Estimate(value, math.nan, math.nan)


def around(value: float, width: float = 0.01) -> Estimate:
    return Estimate(value, value - width, value + width)


def cell(value: float, reference: float | None = None, p: float | None = None) -> Entry:
    if reference is None:
        return Entry(around(value), around(value))
    raw = None if p is None else p / 2
    return Entry(around(value), around(value), around(value - reference, 0.02), raw, p)


def benchmark(
    title: str,
    scores: Mapping[str, Mapping[str, Numbers]],
    reference: str,
    *,
    kinds: Mapping[str, str] | None = None,
    weights: Mapping[str, Mapping[str, float]] | None = None,
    prompts: int = 100,
    metrics: Mapping[str, Mapping[str, Estimate]] | None = None,
) -> BenchmarkResult:
    """A benchmark from score to scorer to numbers; those after the first are subsets, unless `kinds` says otherwise."""
    names = list(scores)
    scorers = list(scores[names[0]])
    kinds = {names[0]: "overall"} | dict(kinds or {})
    made = tuple(
        Score(name, kinds.get(name, "subset"), (weights or {}).get(name, {name: 1.0}))  # type: ignore[arg-type]
        for name in names
    )
    results = {}
    for scorer in scorers:
        cells = {}
        for name in names:
            value, p = scores[name][scorer]
            cells[name] = cell(value) if scorer == reference else cell(value, scores[name][reference][0], p)
        best = {n for n in names if scores[n][scorer][0] == max(v for v, _ in scores[n].values())}
        results[scorer] = ScorerResult(cells, (metrics or {}).get(scorer, {}), frozenset(best))
    return BenchmarkResult(
        name=title.lower(),
        title=title,
        origin="made.jsonl",
        notes=(),
        scores=made,
        counts={name: (2 * prompts, prompts) for name in names},
        items=2 * prompts,
        prompts=prompts,
        excluded={},
        unscored={scorer: {} for scorer in scorers},
        unscored_items=(),
        scorers=results,
    )


def evaluation(
    benchmarks: Sequence[BenchmarkResult], bases: Mapping[str, str | None], reference: str | None = None
) -> Evaluation:
    return Evaluation(tuple(benchmarks), bases, reference or next(iter(bases)), Bootstrap(), 9999)


def overall_only(
    numbers: Sequence[Mapping[str, Numbers]], bases: Mapping[str, str | None], reference: str | None = None
) -> Evaluation:
    """An evaluation on benchmarks A, B, C, … that report one score each."""
    reference = reference or next(iter(bases))
    made = [benchmark("ABCDEFGHIJKLMNOP"[place], {"overall": row}, reference) for place, row in enumerate(numbers)]
    return evaluation(made, bases, reference)
