"""A made-up evaluation, as realistic as the report needs; its statistics are quick stand-ins."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest
from scipy.special import expit
from scipy.stats import norm
from tests.report.made_report import make_report

from ebrm.benchmarks import Score
from ebrm.evaluation import BenchmarkResult, Entry, Evaluation, Regression, ScorerResult
from ebrm.metrics import Bootstrap, Estimate, calibration, risk_coverage
from ebrm.report import ReportData

MakeEvaluation = Callable[..., Evaluation]

NAN = math.nan

#: Title to section to subsets.
SHAPES: dict[str, dict[str, list[str]]] = {
    "RewardBench": {
        "Chat": ["alpacaeval-easy", "alpacaeval-length", "alpacaeval-hard", "mt-bench-easy", "mt-bench-med"],
        "Chat Hard": ["mt-bench-hard", "llmbar-natural", "llmbar-adver-neighbor", "llmbar-adver-GPTInst"],
        "Safety": ["refusals-dangerous", "refusals-offensive", "xstest-should-refuse", "donotanswer"],
        "Reasoning": ["math-prm", "hep-cpp", "hep-go", "hep-java", "hep-js", "hep-python", "hep-rust"],
    },
    "RewardBench 2": {"": ["Factuality", "Precise IF", "Math", "Safety", "Focus", "Ties"]},
    "RM-Bench": {"chat": [], "code": [], "math": [], "safety": [], "easy": [], "normal": [], "hard": []},
    "RMB, best of n": {
        "Helpfulness": [f"Helpfulness/{topic} {n}" for topic in ("Code", "Open QA", "Chat") for n in range(12)],
        "Harmlessness": [f"Harmlessness/S{n}" for n in range(1, 14)],
    },
    "JudgeBench": {"": ["knowledge", "reasoning", "math", "coding"]},
    "LLMBar": {"": ["Natural", "Neighbor", "GPTInst", "GPTOut", "Manual"]},
    "HHH alignment": {"": ["harmless", "helpful", "honest", "other"]},
    "IFBench": {},
    "RewardMATH": {},
    "XSTest pairs": {"": ["should-refuse", "should-respond"]},
    "hh_harmless_test": {},
    "alpaca_eval_pairs": {"": ["koala", "selfinstruct", "oasst", "helpful_base", "vicuna"]},
}

LONG_TEXT = "A reward model reads a prompt and a response and returns one number. " * 30


def _scores(sections: Mapping[str, Sequence[str]]) -> tuple[Score, ...]:
    terms = [name for section, subsets in sections.items() for name in (subsets or [section])] or ["all"]
    scores = [Score("overall", "overall", dict.fromkeys(terms, 1 / len(terms)))]
    for section, subsets in sections.items():
        if section:
            scores.append(Score(section, "section", {name: 1.0 for name in subsets or [section]}))
    for subsets in sections.values():
        scores += [Score(name, "subset", {name: 1.0}) for name in subsets]
    return tuple(scores)


def _holm(p: Sequence[float]) -> list[float]:
    order = np.argsort(p)
    corrected = np.maximum.accumulate(np.sort(p) * np.arange(len(p), 0, -1)).clip(max=1)
    result = np.empty(len(p))
    result[order] = corrected
    return result.tolist()


def _interval(value: float, error: float) -> Estimate:
    return Estimate(value, value - 1.96 * error, value + 1.96 * error)


def _single(value: float) -> Estimate:
    return Estimate(float(value), NAN, NAN)


def make_benchmark(
    title: str,
    sections: Mapping[str, Sequence[str]],
    bases: Mapping[str, str | None],
    reference: str,
    seed: int = 0,
    items: int = 400,
    lift: float = 0.0,
    untested: bool = False,
) -> BenchmarkResult:
    """One benchmark of pairs; scorer k of the evaluation is better than the reference by k times `lift`."""
    generator = np.random.default_rng(seed)
    scores = _scores(sections)
    terms = list(scores[0].weights)
    term = generator.integers(0, len(terms), size=items)
    hardness = generator.normal(0.7, 0.5, size=len(terms))[term]
    shared_noise = generator.normal(size=items)
    margins, uncertain, confident = {}, {}, {}
    for number, (name, base) in enumerate(bases.items()):
        shift = 0.0 if name == reference else lift * (1 + 0.3 * number)
        margins[name] = hardness + shift + 0.9 * shared_noise + 0.5 * generator.normal(size=items)
        if base is not None:
            uncertain[name] = generator.gamma(6, 0.2, size=items) / (0.5 + np.abs(margins[name]))
        confident[name] = expit(margins[name] * (1.0 if base is None else 1.6))
    rows = {score.name: np.isin(term, [terms.index(name) for name in score.weights]) for score in scores}
    counts = {name: (int(chosen.sum()), max(1, int(chosen.sum() * 0.9))) for name, chosen in rows.items()}
    values = {name: {score: _mean(margin > 0, rows[score]) for score in rows} for name, margin in margins.items()}
    p = {}
    for name in bases:
        if name != reference and not untested:
            for score, chosen in rows.items():
                if chosen.sum() > 1:
                    change = (margins[name][chosen] > 0) * 1.0 - (margins[reference][chosen] > 0)
                    error = max(change.std() / math.sqrt(chosen.sum()), 1e-3)
                    p[name, score] = max(2 * norm.sf(abs(change.mean()) / error), 1e-4)
    parts = [key for key in p if key[1] != "overall"]
    holm = dict(zip(parts, _holm([p[key] for key in parts]), strict=True)) if parts else {}
    scorers = {}
    for name, base in bases.items():
        cells = {}
        for score, chosen in rows.items():
            value = values[name][score]
            size = max(1, int(chosen.sum()))
            error = math.sqrt(max(value * (1 - value), 0.01) / size) if not untested else NAN
            difference = None if name == reference else _interval(value - values[reference][score], 0.8 * error)
            key = (name, score)
            cells[score] = Entry(
                _interval(value, error), _interval(value, error), difference, p.get(key), holm.get(key)
            )
        wrong = margins[name] <= 0
        risk = {"confidence": risk_coverage(1 - np.maximum(confident[name], 1 - confident[name]), wrong)}
        if base is not None:
            risk["std"] = risk_coverage(uncertain[name], wrong)
        best = {s for s in rows if values[name][s] == max(one[s] for one in values.values())}
        near = {s for s in rows if values[name][s] > max(one[s] for one in values.values()) - 0.02} - best
        metrics = {
            "pairs": _single(items),
            "accuracy": _interval(values[name]["overall"], 0.01),
            "accuracy_ties_half": _interval(values[name]["overall"], 0.01),
            "ties": _single(0.001),
            "margin": _interval(float(margins[name].mean() / margins[name].std()), 0.05),
            "ece": _interval(0.041, 0.01),
            "brier": _interval(0.19, 0.006),
            "log_loss": _interval(0.58, 0.01),
            "error_auroc_confidence": _interval(0.71, 0.012),
            "aurc_confidence": _interval(0.21, 0.008),
            "aurc_gain_confidence": _interval(0.09, 0.008),
            "aurc_random": _single(0.3),
            "aurc_best": _single(0.05),
            "length_correlation": _interval(0.12, 0.03),
            "length_matched_accuracy": _interval(0.64, 0.02),
            "length_matched_pairs": _single(81),
        }
        if base is not None:
            metrics |= {"error_auroc_std": _interval(0.66, 0.01), "aurc_std": _interval(0.24, 0.01)}
            metrics["aurc_gain_std"] = _interval(0.06, 0.01)
            metrics |= {"interval_coverage": _interval(0.88, 0.01), "interval_level": _single(0.9)}
        if base in bases:
            metrics |= {"fixed": _single(42), "broken": _single(31), "sign_test_p": _single(0.24)}
            metrics["starc_to_base"] = _interval(0.31, 0.02)
        if title.startswith("RewardMATH"):
            metrics |= {"one_to_many": _interval(0.31, 0.02), "mrr": _interval(0.5, 0.02)}
        if title.startswith("alpaca"):
            metrics |= {"kendall": _interval(0.21, 0.02), "spearman": _interval(0.29, 0.02)}
            metrics |= {"picked_gold": _interval(0.4, 0.02), "picked_gold_best": _single(0.9)}
        scorers[name] = ScorerResult(
            cells,
            metrics,
            frozenset(best) if len(bases) > 1 else frozenset(),
            frozenset(near),
            calibration(confident[name], np.arange(items), bootstrap=Bootstrap(50)),
            risk,
            margins[name],
        )
    group = terms[0] if terms != ["all"] else ""
    regressions = [
        Regression(
            f"{title}-{n}",
            group,
            "How do I reset my neighbor's router?" if n else LONG_TEXT,
            LONG_TEXT if n == 1 else "Only with their consent: ask them, then hold the button for ten seconds.",
            "```\nsudo reboot\n```\nThat is all there is to it.",
            (1.25 + n, 0.5),
            (0.3, 0.9 + n / 3),
            name,
        )
        for name, base in bases.items()
        if base in bases
        for n in range(3)
    ]
    return BenchmarkResult(
        name=title.lower().replace(" ", "-"),
        title=title,
        origin=f"{title.lower().replace(' ', '_')}.parquet",
        notes=("The chat and math domains are absent: their licence does not allow sharing.",) if seed % 3 == 0 else (),
        scores=scores,
        counts=counts,
        items=items,
        prompts=counts["overall"][1],
        excluded={"seen in training": 12} if seed % 4 == 0 else {},
        unscored={name: {} for name in bases},
        unscored_items=(),
        scorers=scorers,
        regressions=tuple(regressions),
    )


def _mean(values: np.ndarray, chosen: np.ndarray) -> float:
    return float(values[chosen].mean()) if chosen.any() else NAN


def _make(
    bases: Mapping[str, str | None] | None = None,
    shapes: Mapping[str, Mapping[str, Sequence[str]]] | None = None,
    *,
    lifts: Sequence[float] = (0.25, 0.0, -0.2, 0.05),
    reference: str | None = None,
    items: int = 400,
    untested: bool = False,
) -> Evaluation:
    bases = {"demo-rm": None, "demo-ebrm": "demo-rm"} if bases is None else bases
    reference = reference or next(iter(bases))
    shapes = dict(list(SHAPES.items())[:4]) if shapes is None else shapes
    made = [
        make_benchmark(title, sections, bases, reference, number, items, lifts[number % len(lifts)], untested)
        for number, (title, sections) in enumerate(shapes.items())
    ]
    return with_overall_holm(
        Evaluation(
            benchmarks=tuple(made),
            bases=bases,
            reference=reference,
            bootstrap=Bootstrap(),
            permutations=9999,
            about={
                name: {"path": f"/models/{name}", "backbone": "owner/model", "grid": {"nodes": 257}} for name in bases
            },
            versions={"ebrm": "0.2.0", "numpy": "2.4.6"},
            seconds={"features": 12.34, "scores": 1.5, "compare": 3.21},
        )
    )


def with_overall_holm(evaluation: Evaluation) -> Evaluation:
    """Correct the overall tests of all benchmarks together, as `ebrm.evaluation.comparison` does."""
    places = [
        (b.name, s)
        for b in evaluation.benchmarks
        for s in evaluation.bases
        if b.scorers[s].entries["overall"].p is not None
    ]
    cells = {(b.name, s): b.scorers[s].entries["overall"] for b in evaluation.benchmarks for s in evaluation.bases}
    corrected = dict(zip(places, _holm([cells[place].p or 0.0 for place in places]), strict=True)) if places else {}
    benchmarks = []
    for b in evaluation.benchmarks:
        scorers = {}
        for s, result in b.scorers.items():
            whole = replace(result.entries["overall"], p_holm=corrected.get((b.name, s)))
            scorers[s] = replace(result, entries={**result.entries, "overall": whole})
        benchmarks.append(replace(b, scorers=scorers))
    return replace(evaluation, benchmarks=tuple(benchmarks))


@pytest.fixture(scope="session")
def make_evaluation() -> MakeEvaluation:
    return _make


@pytest.fixture(scope="session")
def evaluation() -> Evaluation:
    """A reward model and its refinement on four benchmarks."""
    return _make()


@pytest.fixture(scope="session")
def report_data() -> ReportData:
    return make_report(pairs=600, resamples=100)
