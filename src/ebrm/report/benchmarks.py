"""The report of an evaluation on benchmarks: scores, significant differences and what is behind them, on one page."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from ebrm.benchmarks import Score
from ebrm.errors import DataError
from ebrm.evaluation import SIGNIFICANT, BenchmarkResult, Entry, Evaluation, Regression, ScorerResult, apart
from ebrm.metrics import Estimate
from ebrm.report import figures
from ebrm.report.figures import ForestRow, PanelKind
from ebrm.report.page import FEW_PROMPTS, number, render
from ebrm.report.tables import (
    ABSTENTION,
    CALIBRATION,
    FLIPS,
    ORDER,
    PAIRS,
    Column,
    few_notes,
    known_metrics,
    training_notes,
)
from ebrm.report.words import name_in_text
from ebrm.utils.files import write_text

_LARGEST, _MOST_LARGEST = 10, 15  # differences listed on each side; the second if so many are significant
_FEW_BENCHMARKS = 3  # with so few, their sections are in the forest plots too
_CARDS = 24
_OPEN_SCORES, _OPEN_ROWS, _OPEN_METRICS = 10, 60, 12  # longer tables are folded
_FIGURES = 36  # curves of one kind, but at least one for each benchmark
_WIDE = 4  # with so many scorers the page is wide, and intervals of differences are left to the figures

Verdict = Literal["better", "worse", "no clear difference", "too few to tell"]
VERDICTS: tuple[Verdict, ...] = ("better", "worse", "no clear difference", "too few to tell")
_NAN = Estimate(math.nan, math.nan, math.nan)


def write_benchmark_report(path: str | Path, evaluation: Evaluation, *, notes: Sequence[str] = ()) -> Path:
    """Write the report as one HTML file that needs no network; the same evaluation gives the same bytes.

    Args:
        path: where to write; an existing file is replaced, as a whole.
        evaluation: what to show.
        notes: small print at the end of the page, such as the command that was run, a paragraph each.

    Returns:
        The path.

    Raises:
        DataError: if there is no benchmark, or the reference is not among the scorers.
    """
    write_text(path, benchmark_page(evaluation, notes=notes))
    return Path(path)


def benchmark_page(evaluation: Evaluation, *, notes: Sequence[str] = ()) -> str:
    """Render the page; see `write_benchmark_report`."""
    if not evaluation.benchmarks:
        raise DataError("There is nothing to report: the evaluation has no benchmark. Evaluate at least one.")
    if evaluation.reference not in evaluation.bases:
        raise DataError(
            f"The reference {evaluation.reference!r} is not among the scorers {', '.join(evaluation.bases)}. "
            "Name one of them."
        )
    compared, refined = others(evaluation), refined_scorers(evaluation)
    tied = any(metrics["ties"].value > 0 for metrics in all_metrics(evaluation) if "ties" in metrics)
    pairs = PAIRS if tied else {name: column for name, column in PAIRS.items() if "ties" not in name}
    measures: dict[str, tuple[PanelKind, dict[str, Mapping[str, Column]]]] = {
        "calibration": ("reliability", {"Calibration errors": CALIBRATION}),
        "abstention": ("risk", {"Detection of errors by uncertainty": ABSTENTION}),
        "rewards": (
            "margin",
            {
                "Pairs of a right and a wrong response": pairs,
                "Order of several responses": ORDER,
                "Further measures": unknown_metrics(evaluation),
            },
        ),
    }
    curves = {}
    for id, (kind, captions) in measures.items():
        tables = [metric_table(evaluation, caption, columns) for caption, columns in captions.items()]
        curves[id] = {"panels": panels(evaluation, kind), "tables": [table for table in tables if table]}
    cards, lost = regressions(evaluation)
    parts: dict[str, Any] = {id: any(shown.values()) for id, shown in curves.items()}
    parts |= {"scores": True, "changes": compared, "measured": True} | ({"regressions": cards} if compared else {})
    return render(
        "benchmarks.html",
        parts=parts,
        notes=notes,
        wide=len(evaluation.bases) >= _WIDE,
        evaluation=evaluation,
        bootstrap=evaluation.bootstrap,
        significant=SIGNIFICANT,
        few_prompts=FEW_PROMPTS,
        training=[*few_notes(evaluation.benchmarks), *training_notes(evaluation.benchmarks)],
        few=any(prompts < FEW_PROMPTS for b in evaluation.benchmarks for _, prompts in b.counts.values()),
        compared=compared,
        refined=refined,
        away=apart(evaluation),
        titles=titles(evaluation),
        verdicts=verdict_table(evaluation),
        subject=subject(evaluation),
        known=known_scores(evaluation),
        entry_of=entry_of,
        whole=[_row(evaluation, b, b.scores[0], titles(evaluation)[b.name]) for b in evaluation.benchmarks],
        part_tables=part_tables(evaluation),
        bounds=score_bounds(evaluation),
        forests=forests(evaluation) if compared else {},
        largest=largest_differences(evaluation),
        listed=_listed(evaluation),
        hopeless=too_few_permutations(evaluation),
        flips=metric_table(evaluation, "Items fixed and broken by refining", FLIPS, refined) if refined else None,
        gains=gains(evaluation),
        curves=curves,
        not_drawn=not_drawn(evaluation),
        tied=tied,
        cards=cards,
        lost=lost,
    )


# Verdicts


def verdict(entry: Entry | None) -> Verdict:
    """Whether a score is significantly above or below the reference's; "too few to tell" of few items or prompts."""
    if (
        entry is None
        or entry.few
        or entry.difference is None
        or entry.p_holm is None
        or not math.isfinite(entry.p_holm)
    ):
        return "too few to tell"
    if entry.p_holm > SIGNIFICANT:
        return "no clear difference"
    return "better" if entry.difference.value > 0 else "worse"


def entry_of(benchmark: BenchmarkResult, scorer: str, score: str | None = None) -> Entry | None:
    """The entry of a scorer in a score (None: the overall one), or None."""
    result = benchmark.scorers.get(scorer)
    return None if result is None else result.entries.get(benchmark.scores[0].name if score is None else score)


def others(evaluation: Evaluation) -> list[str]:
    """The scorers that are compared with the reference, in the order of every table."""
    return [name for name in evaluation.bases if name != evaluation.reference]


def refined_scorers(evaluation: Evaluation) -> list[str]:
    """The scorers that refine another one of this evaluation."""
    return [name for name, base in evaluation.bases.items() if base in evaluation.bases]


def titles(evaluation: Evaluation) -> dict[str, str]:
    """Name to title of each benchmark; the name is added where two have the same title."""
    times = Counter(benchmark.title for benchmark in evaluation.benchmarks)
    return {b.name: b.title if times[b.title] == 1 else f"{b.title} ({b.name})" for b in evaluation.benchmarks}


def verdict_table(evaluation: Evaluation) -> dict[str, dict[str, list[str]]]:
    """Scorer to verdict to titles of benchmarks, by overall scores; "highest" and "clearly highest" besides."""
    names = titles(evaluation)
    table: dict[str, dict[str, list[str]]] = {}
    for scorer in evaluation.bases:
        row: dict[str, list[str]] = {word: [] for word in (*VERDICTS, "highest", "clearly highest")}
        for benchmark in evaluation.benchmarks:
            title = names[benchmark.name]
            if scorer != evaluation.reference:
                row[verdict(entry_of(benchmark, scorer))].append(title)
            score, mine = benchmark.scores[0].name, benchmark.scorers.get(scorer)
            if mine is not None and score in mine.best:
                row["highest"].append(title)
                rivals = [one for name, one in benchmark.scorers.items() if name != scorer]
                if not any(score in one.best | one.not_worse for one in rivals):
                    row["clearly highest"].append(title)
        table[scorer] = row
    return table


def subject(evaluation: Evaluation) -> str | None:
    """The scorer that the page is about: the only one compared, or the only refinement of the reference."""
    compared = others(evaluation)
    refining = [name for name in compared if evaluation.bases[name] == evaluation.reference]
    return compared[0] if len(compared) == 1 else refining[0] if len(refining) == 1 else None


def known_scores(evaluation: Evaluation) -> list[tuple[str, Estimate]]:
    """The reference's overall scores that there are, with the titles of the benchmarks."""
    found = [(titles(evaluation)[b.name], entry_of(b, evaluation.reference)) for b in evaluation.benchmarks]
    return [(title, one.value) for title, one in found if one is not None and math.isfinite(one.value.value)]


# Scores


def score_bounds(evaluation: Evaluation) -> tuple[float, float]:
    """Scores of the faintest and the strongest shade: twentieths around all scores on the page."""
    scorers = [result for benchmark in evaluation.benchmarks for result in benchmark.scorers.values()]
    values = [entry.value.value for result in scorers for entry in result.entries.values()]
    values = [value for value in values if math.isfinite(value)]
    if not values:
        return 0.0, 1.0
    low, high = math.floor(20 * min(values) + 1e-9) / 20, math.ceil(20 * max(values) - 1e-9) / 20
    return low, max(high, low + 0.2)


def part_tables(evaluation: Evaluation) -> list[dict[str, Any]]:
    """Sections and subsets of each benchmark, the folded ones last."""
    chosen: list[tuple[BenchmarkResult, list[Score], bool]] = []
    for benchmark in evaluation.benchmarks:
        below = list(benchmark.scores[1:])
        many = len(below) > _OPEN_SCORES
        chosen.append((benchmark, [s for s in below if s.kind == "section"] if many else below, False))
        chosen.append((benchmark, [s for s in below if s.kind != "section"] if many else [], True))
    crowded = sum(len(scores) for _, scores, folded in chosen if not folded) > _OPEN_ROWS
    tables = [_part(evaluation, b, scores, folded or crowded) for b, scores, folded in chosen if scores]
    return sorted(tables, key=lambda one: one["folded"])


def _part(evaluation: Evaluation, benchmark: BenchmarkResult, scores: Sequence[Score], folded: bool) -> dict[str, Any]:
    """One benchmark's sections or subsets, the subsets under the section that they belong to."""
    groups: dict[str, list[dict[str, Any]]] = {}
    sections = [score for score in benchmark.scores if score.kind == "section"]
    alone = {score.kind for score in scores} == {"subset"}
    for score in scores:
        holding = [section.name for section in sections if set(score.weights) <= set(section.weights)]
        group = holding[0] if alone and len(holding) == 1 else ""
        groups.setdefault(group, []).append(_row(evaluation, benchmark, score, score.name))
    if len(groups) > 1 and "" in groups:
        groups["other subsets"] = groups.pop("")
    found = None
    if folded and others(evaluation):
        found = Counter(verdict(entry_of(benchmark, who, s.name)) for who in others(evaluation) for s in scores)
    kinds = Counter(score.kind for score in scores)
    title = titles(evaluation)[benchmark.name]
    return {"title": title, "kinds": kinds, "found": found, "groups": groups, "folded": folded}


def _row(evaluation: Evaluation, benchmark: BenchmarkResult, score: Score, name: str) -> dict[str, Any]:
    return {
        "name": name,
        "counts": benchmark.counts.get(score.name, (benchmark.items, benchmark.prompts)),
        "strong": score.kind != "subset",
        "cells": [_score_cell(evaluation, benchmark, score, scorer) for scorer in evaluation.bases],
    }


def _score_cell(evaluation: Evaluation, benchmark: BenchmarkResult, score: Score, scorer: str) -> dict[str, Any] | None:
    """The entry with its verdict, its shade (0 to 10) and, among more than two scorers, whether it is the best."""
    entry = entry_of(benchmark, scorer, score.name)
    if entry is None or not math.isfinite(entry.value.value):
        return None
    low, high = score_bounds(evaluation)
    result, several = benchmark.scorers[scorer], len(evaluation.bases) > 2
    best = several and score.name in result.best
    return {
        "entry": entry,
        "verdict": verdict(entry),
        "shade": round(10 * (entry.value.value - low) / (high - low)),
        "best": best,
        "near": several and not best and score.name in result.not_worse,
        "ends": entry.difference is not None and math.isfinite(entry.difference.low) and len(evaluation.bases) <= _WIDE,
    }


# Differences


Part = tuple[BenchmarkResult, Score, str, Entry]


def part_entries(evaluation: Evaluation) -> Iterator[Part]:
    """Every section and subset of every benchmark with each scorer that is compared with the reference."""
    for benchmark in evaluation.benchmarks:
        for score in benchmark.scores[1:]:
            for scorer in others(evaluation):
                entry = entry_of(benchmark, scorer, score.name)
                if entry is not None and entry.difference is not None:
                    yield benchmark, score, scorer, entry


def too_few_permutations(evaluation: Evaluation) -> list[str]:
    """What has so many tests that no p-value can be small enough: "the overall scores", and titles of benchmarks."""
    # The smallest p-value of n random permutations is 1 / (n + 1), and Holm's method multiplies the smallest of m by m.
    tests = {"the overall scores": len(evaluation.benchmarks)}
    tests |= {titles(evaluation)[benchmark.name]: len(benchmark.scores) - 1 for benchmark in evaluation.benchmarks}
    most = SIGNIFICANT * (evaluation.permutations + 1) / max(1, len(others(evaluation)))
    return [name for name, tested in tests.items() if tested > most]


def _prompts(benchmark: BenchmarkResult, score: Score) -> int:
    return benchmark.counts.get(score.name, (0, benchmark.prompts))[1]


def _listed(evaluation: Evaluation) -> dict[str, int]:
    """How many sections and subsets were compared, significantly better or worse, and have enough prompts to list."""
    parts = list(part_entries(evaluation))
    found = Counter(verdict(entry) for *_, entry in parts)
    enough = sum(_prompts(b, s) >= FEW_PROMPTS and math.isfinite((e.difference or _NAN).value) for b, s, _, e in parts)
    return {"all": len(parts), "better": found["better"], "worse": found["worse"], "enough": enough}


def largest_differences(evaluation: Evaluation) -> list[tuple[str, list[dict[str, Any]], int]]:
    """Sections and subsets furthest "above" and "below" the reference: rows, significant ones first, of how many."""
    parts = [one for one in part_entries(evaluation) if _prompts(*one[:2]) >= FEW_PROMPTS]
    tables = []
    for word, sign in (("above", 1), ("below", -1)):
        side = [one for one in parts if sign * (one[3].difference or _NAN).value > 0]  # NaN compares as False
        clear = sum(verdict(entry) in ("better", "worse") for *_, entry in side)
        # `sorted` keeps the order of the tables among equals.
        side.sort(key=lambda one: (verdict(one[3]) not in VERDICTS[:2], -abs((one[3].difference or _NAN).value)))
        if side:
            shown = side[: min(max(clear, _LARGEST), _MOST_LARGEST)]
            tables.append((word, [_change(evaluation, *one) for one in shown], len(side)))
    return tables


def _change(
    evaluation: Evaluation, benchmark: BenchmarkResult, score: Score, scorer: str, entry: Entry, gain: bool = False
) -> dict[str, Any]:
    """A row of a scorer's difference to the reference, or of its gain over its own base."""
    base = entry_of(benchmark, (evaluation.bases[scorer] or "") if gain else evaluation.reference, score.name)
    return {
        "name": titles(evaluation)[benchmark.name] if gain else score.name,
        "on": "" if gain else titles(evaluation)[benchmark.name],
        "prompts": _prompts(benchmark, score),
        "scorer": scorer,
        "from": None if base is None else base.value,
        "to": entry.value,
        "difference": (entry.gain if gain else entry.difference) or _NAN,
        "verdict": "no clear difference" if gain else verdict(entry),
        "p": (entry.p_gain_holm, entry.p_gain) if gain else (entry.p_holm, entry.p),
    }


def gains(evaluation: Evaluation) -> list[dict[str, Any]]:
    """Overall scores of refined rewards minus those of their own base, where that is not the reference."""
    return [
        _change(evaluation, benchmark, benchmark.scores[0], name, entry, gain=True)
        for name in apart(evaluation)
        for benchmark in evaluation.benchmarks
        if (entry := entry_of(benchmark, name)) is not None and entry.gain is not None
    ]


def forests(evaluation: Evaluation) -> dict[str, str]:
    """Title to figure: scores of both rewards, if there are two, and the difference of each scorer to the reference."""
    compared, reference = others(evaluation), evaluation.reference
    drawn: list[tuple[BenchmarkResult, Score]] = []
    for benchmark in evaluation.benchmarks:
        below = benchmark.scores[1:] if len(evaluation.benchmarks) <= _FEW_BENCHMARKS else ()
        drawn += [(benchmark, score) for score in (benchmark.scores[0], *(s for s in below if s.kind == "section"))]

    def row(benchmark: BenchmarkResult, score: Score, roles: Mapping[str, str], place: int) -> ForestRow:
        estimates, clear = {}, False
        for role, scorer in roles.items():
            entry = entry_of(benchmark, scorer, score.name)
            estimates[role] = (entry and (entry.difference if role == "difference" else entry.value)) or _NAN
            clear |= verdict(entry) in ("better", "worse")
        whole = score.kind == "overall"
        name = titles(evaluation)[benchmark.name] if whole else f"\u2013 {score.name}"
        return ForestRow(name, estimates, _prompts(benchmark, score), clear, rule=whole and place > 0)

    found = {}
    if len(compared) == 1:
        roles = {"base": reference, "refined": compared[0]}
        rows = [row(*one, roles, place) for place, one in enumerate(drawn)]
        pair = evaluation.bases[compared[0]] == reference
        labels = {role: role if pair else name_in_text(name, 20) for role, name in roles.items()}
        title = "Scores of both rewards with intervals, as in the tables."
        found["Scores"] = figures.score_forest("forest", title, rows, labels, "official score", "prompts")
    rows_of = {who: [row(*one, {"difference": who}, place) for place, one in enumerate(drawn)] for who in compared}
    changes = [one.estimates["difference"] for rows in rows_of.values() for one in rows]
    ends = [end for one in changes for end in (one.value, one.low, one.high) if math.isfinite(end)] + [0.0]
    pad = 0.05 * (max(ends) - min(ends)) or 0.01
    for place, (who, rows) in enumerate(rows_of.items(), start=1):
        found[f"{name_in_text(who, 28)} minus {name_in_text(reference, 28)}"] = figures.difference_forest(
            f"difference-{place}", "Differences to the reference with intervals, as in the tables.", rows, "prompts",
            labels={True: "significant", False: "not significant"}, bounds=(min(ends) - pad, max(ends) + pad),
        )  # fmt: skip
    return found


# Metrics and curves


def all_metrics(evaluation: Evaluation) -> list[Mapping[str, Estimate]]:
    """The metrics of every scorer on every benchmark."""
    return [result.metrics for benchmark in evaluation.benchmarks for result in benchmark.scorers.values()]


def unknown_metrics(evaluation: Evaluation) -> dict[str, Column]:
    """Metrics that no table has a column for, under the names they have."""
    found = dict.fromkeys(
        name for metrics in all_metrics(evaluation) for name in metrics if name not in known_metrics()
    )
    return {name: Column(name.replace("_", " "), "", 3) for name in found}


def metric_table(
    evaluation: Evaluation, caption: str, columns: Mapping[str, Column], scorers: Sequence[str] | None = None
) -> dict[str, Any] | None:
    """A table of metrics, the scorers under each benchmark, or the benchmarks of a lone scorer; None without any."""
    scorers = list(evaluation.bases) if scorers is None else scorers
    found: dict[str, dict[str, Mapping[str, Estimate]]] = {
        titles(evaluation)[b.name]: {who: b.scorers[who].metrics for who in scorers if who in b.scorers}
        for b in evaluation.benchmarks
    }
    every = [metrics for rows in found.values() for metrics in rows.values()]
    shown = {key: column for key, column in columns.items() if any(key in metrics for metrics in every)}
    if not shown:
        return None
    groups = {title: {who: m for who, m in rows.items() if shown.keys() & m.keys()} for title, rows in found.items()}
    groups = {title: rows for title, rows in groups.items() if rows}
    if len(scorers) == 1:
        groups = {"": {title: metrics for title, rows in groups.items() for metrics in rows.values()}}
    return {
        "caption": caption,
        "corner": "benchmark" if len(scorers) == 1 else "reward",
        "columns": shown,
        "groups": groups,
        "folded": sum(map(len, groups.values())) > _OPEN_METRICS,
    }


def families(evaluation: Evaluation) -> list[dict[str, str]]:
    """Role ("base", "refined") to scorer of each drawing: pairs, and lone scorers; those with the reference first."""
    refined = refined_scorers(evaluation)
    bases = {evaluation.bases[name] for name in refined}
    found = []
    for name, base in evaluation.bases.items():
        if name in refined and base is not None:
            found.append({"base": base, "refined": name})
        elif name not in bases:
            found.append({"base" if base is None else "refined": name})
    return sorted(found, key=lambda roles: evaluation.reference not in roles.values())


def _drawn(evaluation: Evaluation) -> list[dict[str, str]]:
    return families(evaluation)[: max(1, _FIGURES // len(evaluation.benchmarks))]


def not_drawn(evaluation: Evaluation) -> list[str]:
    """Scorers for whose figures there is no space."""
    drawn = {who for roles in _drawn(evaluation) for who in roles.values()}
    return [name_in_text(who) for who in evaluation.bases if who not in drawn]


@dataclass(frozen=True)
class _Panel:
    """A kind of panel: its title, the metric above each figure with its words and unit, and the drawing of a curve."""

    title: str
    metric: str
    words: str
    unit: str
    curve: Callable[[ScorerResult], Any]  # None where there is none
    draw: Callable[[str, str, Any], str]


_PANELS: dict[PanelKind, _Panel] = {
    "reliability": _Panel(
        "Accuracy against confidence", "ece", "ECE, %:", "%",
        lambda one: one.calibration, partial(figures.reliability, panel=True),
    ),
    "risk": _Panel(
        "Risk\u2013coverage curves", "aurc_gain_confidence", "AURC gain, points:", "%",
        lambda one: one.risk or None, partial(figures.risk_curves, panel=True),
    ),
    "margin": _Panel(
        "Reward margins, right minus wrong response", "margin", "mean, in stds:", "3",
        lambda one: one.margins if len(one.margins) else None, figures.margin_panel,
    ),
}  # fmt: skip


def panels(evaluation: Evaluation, kind: PanelKind) -> list[dict[str, Any]]:
    """One panel for each base with its refined reward, one figure in it for each benchmark."""
    panel, drawn = _PANELS[kind], _drawn(evaluation)
    found: list[dict[str, Any]] = []
    for place, roles in enumerate(drawn, start=1):
        label = " and its base ".join(name_in_text(roles[role]) for role in ("refined", "base") if role in roles)
        made = []
        for number_, benchmark in enumerate(evaluation.benchmarks, start=1):
            results = {role: benchmark.scorers[who] for role, who in roles.items() if who in benchmark.scorers}
            curves = {role: curve for role, one in results.items() if (curve := panel.curve(one)) is not None}
            if curves:
                on = titles(evaluation)[benchmark.name]
                svg = panel.draw(f"{kind}-{place}-{number_}", f"{panel.title} on {on}: {label}.", curves)
                values = {role: m for role, one in results.items() if (m := one.metrics.get(panel.metric)) is not None}
                said = [number(m, panel.unit) + ("" if len(roles) == 1 else f" {role}") for role, m in values.items()]
                made.append((on, f"{panel.words} {', '.join(said)}" if said else "", svg))
        if made:
            std = [r for r, who in roles.items() if any("std" in b.scorers[who].risk for b in evaluation.benchmarks)]
            names = {role: name_in_text(who) for role, who in roles.items()}
            found.append(
                {
                    "title": f"{panel.title}: {label}" if len(drawn) > 1 else panel.title,
                    "legend": figures.panel_legend(names, kind, std),
                    "figures": made,
                    "folded": bool(found),
                }
            )
    return found


# Regressions


def regressions(evaluation: Evaluation) -> tuple[list[dict[str, Any]], int]:
    """The worst items that refined rewards lost, in turn from the benchmarks, and how many there are in all."""
    by_scorer: dict[str, list[tuple[int, BenchmarkResult, Regression]]] = {}
    for scorer in refined_scorers(evaluation):
        for benchmark in evaluation.benchmarks:
            mine = [one for one in benchmark.regressions if one.scorer == scorer]
            by_scorer.setdefault(scorer, []).extend((rank, benchmark, one) for rank, one in enumerate(mine))
    by_scorer = {scorer: lost for scorer, lost in by_scorer.items() if lost}
    each = max(3, min(12, _CARDS // max(1, len(by_scorer))))
    cards = []
    for lost in by_scorer.values():
        turn = sorted(range(len(lost)), key=lambda place: (lost[place][0], place))[:each]
        cards += [{"on": titles(evaluation)[lost[place][1].name], "one": lost[place][2]} for place in sorted(turn)]
    return cards, sum(map(len, by_scorer.values()))
