"""What an evaluation finds: plain data that tables, files and the report are made from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ebrm.benchmarks import Score
from ebrm.metrics import Bootstrap, Calibration, Estimate, RiskCoverage

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Entry:
    """One score of one scorer.

    Attributes:
        value: the official score with its interval over prompts.
        shared: the same with ties between right and wrong responses broken by lot, on average.
        difference: minus the reference's, from the same resamples; None for the reference itself.
        p: permutation test of that difference, two-sided; None for the reference itself.
        p_holm: `p` corrected (Holm) for all tests of the same family: the overall scores of all benchmarks and scorers
            are one family, a benchmark's sections and subsets by all scorers another.
        gain: minus the scorer's own base, for refined scorers; the same as `difference` where that is the reference.
        p_gain, p_gain_holm: as `p` and `p_holm`, for the gains.
    """

    value: Estimate
    shared: Estimate
    difference: Estimate | None = None
    p: float | None = None
    p_holm: float | None = None
    gain: Estimate | None = None
    p_gain: float | None = None
    p_gain_holm: float | None = None


@dataclass(frozen=True)
class ScorerResult:
    """One scorer on one benchmark.

    Attributes:
        entries: score name to its entry.
        metrics: further numbers by name (see `ebrm.evaluation.measures`), with intervals where they have one.
        best: names of the scores in which this scorer is the best.
        not_worse: names of the scores in which it is not clearly worse than the best (Holm over the scorers).
        calibration: reliability of P(right > wrong); None where the benchmark has no right and wrong.
        risk: risk-coverage curve by uncertainty, by name: "confidence" for all, "std" where there is a density.
        margins: reward of right minus wrong response of each pair [p].
    """

    entries: Mapping[str, Entry]
    metrics: Mapping[str, Estimate]
    best: frozenset[str] = frozenset()
    not_worse: frozenset[str] = frozenset()
    calibration: Calibration | None = None
    risk: Mapping[str, RiskCoverage] = field(default_factory=dict)
    margins: Floats = field(default_factory=lambda: np.empty(0))


@dataclass(frozen=True)
class Regression:
    """An item that a refined reward lost: base right, refined wrong (or worse), with its texts.

    Attributes:
        item: its id.
        group: its group.
        prompt: as people read it.
        right, wrong: the two responses in question.
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
class BenchmarkResult:
    """All scorers on one benchmark, on the items that all of them could score.

    Attributes:
        name, title, origin, notes: as in the benchmark.
        scores: what is reported, "overall" first.
        counts: score name to (items, prompts) behind it.
        items: items compared.
        prompts: distinct prompts (clusters) of those.
        excluded: reason to number of items left out before scoring ("seen in training", "not sampled (--limit)").
        unscored: scorer to {reason: number of items}; these items are in no number.
        unscored_items: ids of those items, all of them.
        scorers: scorer name to its result, in the order of the evaluation.
        regressions: the worst, at most six a refined scorer.
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


@dataclass(frozen=True)
class Evaluation:
    """Everything `ebrm eval` found.

    Attributes:
        benchmarks: one result each.
        bases: scorer name to the scorer it refines, or None; the order is that of every table.
        reference: the scorer that the others are compared with.
        bootstrap: of the intervals; its seed is that of the permutation tests too.
        permutations: of the permutation tests.
        about: scorer name to what it is (path, backbone, fingerprint, settings), for the files.
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
