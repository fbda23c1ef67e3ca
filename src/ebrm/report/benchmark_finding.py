"""The top of the benchmark report: what was found, in one sentence, a few more, and tiles."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ebrm.evaluation import SIGNIFICANT, BenchmarkResult, Evaluation, apart
from ebrm.report.benchmark_verdicts import (
    by_verdict,
    cell_of,
    others,
    overall,
    refined_scorers,
    titles,
)
from ebrm.report.page import Tile
from ebrm.report.words import count, listing, name_in_text, percent, percent_estimate, points_estimate

_TILES = 8


def headline(evaluation: Evaluation) -> str:
    """The finding in one sentence."""
    compared = others(evaluation)
    refining = [name for name in compared if evaluation.bases[name] == evaluation.reference]
    if not compared:
        return _alone(evaluation)
    if len(compared) == 1:
        return _one_against_reference(evaluation, compared[0])
    if len(refining) == 1:
        return _one_against_reference(evaluation, refining[0])
    if refining:
        return _several_refinements(evaluation, refining)
    return _highest(evaluation)


def _score(benchmark: BenchmarkResult, scorer: str) -> float:
    cell = cell_of(benchmark, scorer, overall(benchmark).name)
    return float("nan") if cell is None else cell.value.value


def _alone(evaluation: Evaluation) -> str:
    scorer, names = evaluation.reference, titles(evaluation)
    scored = {names[b.name]: _score(b, scorer) for b in evaluation.benchmarks}
    known = {name: value for name, value in scored.items() if math.isfinite(value)}
    if not known:
        return f"{name_in_text(scorer)} has no score on {_on(list(scored))}"
    if len(scored) <= 2:
        parts = [f"{percent(value)} on {name_in_text(name)}" for name, value in scored.items()]
        return f"{name_in_text(scorer)} scores {listing(parts)}"
    low, high = min(known, key=lambda name: known[name]), max(known, key=lambda name: known[name])
    return (
        f"{name_in_text(scorer)} scores from {percent(known[low])} ({name_in_text(low)}) to {percent(known[high])} "
        f"({name_in_text(high)}) on {count(len(scored), 'benchmark')}"
    )


def _on(names: Sequence[str]) -> str:
    return name_in_text(names[0]) if len(names) == 1 else count(len(names), "benchmark")


def _one_against_reference(evaluation: Evaluation, scorer: str) -> str:
    found = by_verdict(evaluation, scorer)
    name, reference = name_in_text(scorer), name_in_text(evaluation.reference)
    total = len(evaluation.benchmarks)
    better, worse = len(found["better"]), len(found["worse"])
    if total == 1:
        title = name_in_text(evaluation.benchmarks[0].title)
        if better or worse:
            return f"{name} is {'better' if better else 'worse'} than {reference} on {title}"
        if found["not tested"]:
            return f"Too few prompts to tell {name} and {reference} apart on {title}"
        return f"No clear difference between {name} and {reference} on {title}"
    if len(found["not tested"]) == total:
        return f"Too few prompts to tell {name} and {reference} apart on any of {total} benchmarks"
    if not better and not worse:
        return f"No clear difference between {name} and {reference} on any of {total} benchmarks"
    for number, word in ((better, "better"), (worse, "worse")):
        if number == total:
            return f"{name} is {word} than {reference} on all {total} benchmarks"
    if not better:
        return f"{name} is better than {reference} on none of {total} benchmarks, and worse on {worse}"
    return f"{name} is better than {reference} on {better} of {total} benchmarks, and worse on {worse or 'none'}"


def _several_refinements(evaluation: Evaluation, refining: Sequence[str]) -> str:
    found = [by_verdict(evaluation, scorer) for scorer in refining]
    better = sum(bool(one["better"]) and not one["worse"] for one in found)
    mixed = sum(bool(one["better"]) and bool(one["worse"]) for one in found)
    worse = sum(bool(one["worse"]) and not one["better"] for one in found)
    texts = [
        "better on some benchmark and worse on none",
        "better on some and worse on others",
        "worse on some benchmark and better on none",
        "not clearly different on any",
    ]
    if len(evaluation.benchmarks) == 1:
        title = name_in_text(evaluation.benchmarks[0].title)
        texts = [f"{word} {title}" for word in ("better on", "", "worse on", "not clearly different on")]
    numbers = (better, mixed, worse, len(found) - better - mixed - worse)
    parts = [f"{number} {text}" for number, text in zip(numbers, texts, strict=True) if number]
    return f"Of {len(found)} refinements of {name_in_text(evaluation.reference)}: {'; '.join(parts)}"


def _highest(evaluation: Evaluation) -> str:
    """Who has the highest overall score most often."""
    wins = {name: sum(_is_best(b, name) for b in evaluation.benchmarks) for name in evaluation.bases}
    most = max(wins.values())
    leaders = [name for name, number in wins.items() if number == most]
    total = len(evaluation.benchmarks)
    if most == 0:
        return f"No score to compare {count(len(wins), 'reward')} by"
    if len(leaders) > 1:
        who = listing([name_in_text(name) for name in leaders])
        if total == 1:
            return f"{who} share the highest score on {_on([evaluation.benchmarks[0].title])}"
        return f"{who} each score highest on {most} of {total} benchmarks"
    leader = leaders[0]
    clear = sum(_clearly_best(b, leader) for b in evaluation.benchmarks)
    if total == 1:
        where = f"on {_on([evaluation.benchmarks[0].title])}"
        return f"{name_in_text(leader)} scores highest {where}, {'clearly' if clear else 'but not clearly'} so"
    return (
        f"{name_in_text(leader)} scores highest on {most} of {total} benchmarks, clearly above all others on "
        f"{clear or 'none'}"
    )


def _is_best(benchmark: BenchmarkResult, scorer: str) -> bool:
    result = benchmark.scorers.get(scorer)
    return result is not None and overall(benchmark).name in result.best


def _clearly_best(benchmark: BenchmarkResult, scorer: str) -> bool:
    score = overall(benchmark).name
    near = [r for name, r in benchmark.scorers.items() if name != scorer and score in r.not_worse | r.best]
    return _is_best(benchmark, scorer) and not near


def summary(evaluation: Evaluation) -> list[str]:
    """The paragraphs below the headline."""
    paragraphs = []
    compared = others(evaluation)
    named = _named_benchmarks(evaluation, compared)
    if named:
        paragraphs.append(named)
    if len(compared) > 1:
        winners = _winners(evaluation)
        if winners:
            paragraphs.append(winners)
        paragraphs.extend(_other_bases(evaluation, compared))
    if compared:
        tests = len(compared) * len(evaluation.benchmarks)
        corrected = f", corrected (Holm) for {count(tests, 'comparison')} of overall scores" if tests > 1 else ""
        paragraphs.append(
            f"Better and worse mean clearly so: p \u2264 {SIGNIFICANT:g} in a paired permutation test over "
            f"prompts{corrected}. No clear difference does not mean that the rewards are equally good; these prompts "
            "cannot tell."
        )
    paragraphs.append(
        f"Scores are in percent, higher is better. Brackets hold {100 * evaluation.bootstrap.level:g}% intervals from "
        f"{evaluation.bootstrap.resamples:,} bootstrap resamples of the prompts."
    )
    return paragraphs


def _named_benchmarks(evaluation: Evaluation, compared: Sequence[str]) -> str:
    """Which benchmarks the headline counts, with the differences, when it speaks of one scorer."""
    subject = [name for name in compared if evaluation.bases[name] == evaluation.reference]
    if len(compared) == 1:
        subject = list(compared)
    if len(subject) != 1:
        return ""
    found = by_verdict(evaluation, subject[0])
    names = titles(evaluation)
    sentences = []
    advice = f": on data like these, use {name_in_text(evaluation.reference)}"
    for word, chosen, end in (("Better", found["better"], ""), ("Worse", found["worse"], advice)):
        if not chosen:
            continue
        parts = []
        for benchmark in chosen:
            cell = cell_of(benchmark, subject[0], overall(benchmark).name)
            if cell is not None and cell.difference is not None:
                parts.append(f"{name_in_text(names[benchmark.name])} ({points_estimate(cell.difference, ' points')})")
        sentences.append(f"{word} on {listing(parts)}{end}.")
    if len(evaluation.benchmarks) > 1:
        unclear = [name_in_text(names[b.name]) for b in found["no clear difference"]]
        if unclear:
            sentences.append(f"No clear difference on {listing(unclear)}.")
    elif found["no clear difference"]:
        cell = cell_of(evaluation.benchmarks[0], subject[0], overall(evaluation.benchmarks[0]).name)
        if cell is not None and cell.difference is not None:
            sentences.append(f"The difference is {points_estimate(cell.difference, ' points')}.")
    if found["not tested"]:
        untested = [name_in_text(names[b.name]) for b in found["not tested"]]
        sentences.append(f"Not tested, for want of prompts: {listing(untested)}.")
    return " ".join(sentences)


def _winners(evaluation: Evaluation) -> str:
    """Who has the highest overall score where."""
    names = titles(evaluation)
    parts = []
    for scorer in evaluation.bases:
        won = [
            name_in_text(names[b.name]) + (" (clearly)" if _clearly_best(b, scorer) else "")
            for b in evaluation.benchmarks
            if _is_best(b, scorer)
        ]
        if won:
            parts.append(f"{name_in_text(scorer)} on {listing(won)}")
    return f"Highest overall scores: {'; '.join(parts)}." if parts else ""


def _other_bases(evaluation: Evaluation, compared: Sequence[str]) -> list[str]:
    away = [name for name in apart(evaluation) if name in compared]
    if not away:
        return []
    names = listing([name_in_text(name) for name in away])
    verb = "refines another reward" if len(away) == 1 else "refine other rewards"
    return [
        f"{names} {verb} than the reference {name_in_text(evaluation.reference)}: the tests here compare with the "
        "reference; the table of differences to the own base stands below."
    ]


def tiles(evaluation: Evaluation) -> list[Tile]:
    """The numbers behind the finding."""
    compared = others(evaluation)
    if not compared:
        return _score_tiles(evaluation)
    if len(compared) == 1:
        return _verdict_tiles(evaluation, compared[0])
    total = count(len(evaluation.benchmarks), "benchmark")
    made = []
    for scorer in compared:
        found = by_verdict(evaluation, scorer)
        role = "refined" if scorer in refined_scorers(evaluation) else "base"
        made.append(
            Tile(
                name_in_text(scorer, 48),
                f"{len(found['better'])} better, {len(found['worse'])} worse",
                f"of {total}, against {name_in_text(evaluation.reference, 32)}",
                role,
            )
        )
    return made


def _score_tiles(evaluation: Evaluation) -> list[Tile]:
    names = titles(evaluation)
    shown = list(evaluation.benchmarks)
    if len(shown) > _TILES:
        ranked = sorted(shown, key=lambda b: np.nan_to_num(_score(b, evaluation.reference)))
        shown = [ranked[0], ranked[len(ranked) // 2], ranked[-1]]
    made = []
    for benchmark in shown:
        cell = cell_of(benchmark, evaluation.reference, overall(benchmark).name)
        if cell is not None and math.isfinite(cell.value.value):
            value, bracket = percent_estimate(cell.value, "%").split(" [", 1)
            made.append(Tile(name_in_text(names[benchmark.name], 48), value, "[" + bracket, "base"))
    return made


def _verdict_tiles(evaluation: Evaluation, scorer: str) -> list[Tile]:
    found = by_verdict(evaluation, scorer)
    names = titles(evaluation)
    total = len(evaluation.benchmarks)

    def tile(label: str, chosen: Sequence[BenchmarkResult], role: str) -> Tile:
        detail = ", ".join(name_in_text(names[b.name], 32) for b in chosen) or "\u2013"
        return Tile(label, f"{len(chosen)} of {total}", detail, role)

    unclear = [*found["no clear difference"], *found["not tested"]]
    if total > 1:
        return [
            tile("Benchmarks clearly better", found["better"], "refined"),
            tile("Benchmarks clearly worse", found["worse"], "rejected"),
            tile("No clear difference", unclear, "base"),
        ]
    benchmark = evaluation.benchmarks[0]
    made = []
    for name, role in ((evaluation.reference, "base"), (scorer, "refined")):
        cell = cell_of(benchmark, name, overall(benchmark).name)
        if cell is not None:
            value, bracket = percent_estimate(cell.value, "%").split(" [", 1)
            made.append(Tile(name_in_text(name, 48), value, "[" + bracket, role))
    cell = cell_of(benchmark, scorer, overall(benchmark).name)
    if cell is not None and cell.difference is not None:
        value, bracket = points_estimate(cell.difference).split(" [", 1)
        made.append(Tile("Difference, percentage points", value, "[" + bracket, "ink"))
    return made
