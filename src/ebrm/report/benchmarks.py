"""The report of an evaluation on benchmarks: scores, significant differences and what is behind them, on one page."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from ebrm.benchmarks import Score
from ebrm.errors import DataError
from ebrm.evaluation import SIGNIFICANT, BenchmarkResult, Entry, Evaluation, Regression, apart
from ebrm.metrics import Estimate
from ebrm.report import figures
from ebrm.report.figures import ForestRow, PanelKind
from ebrm.report.page import number, render
from ebrm.report.tables import ABSTENTION, CALIBRATION, FLIPS, ORDER, PAIRS, Column, known_metrics
from ebrm.report.words import NO_BREAK, count, listing, name_in_text, percent, reward_digits, setting_rows
from ebrm.utils.files import write_text

#: With fewer prompts a bootstrap interval is too narrow to rely on.
FEW_PROMPTS = 20
_LARGEST, _MOST_LARGEST = 10, 15  # differences listed on each side; the second if so many are significant
_FEW_BENCHMARKS = 3  # with so few, their sections are in the forest plots too
_CARDS = 24
_OPEN_SCORES, _OPEN_ROWS, _OPEN_METRICS = 10, 60, 12  # longer tables are folded
_FIGURES = 36  # curves of one kind, but at least one for each benchmark
_WIDE = 4  # with so many scorers the page is wide, and intervals of differences are left to the figures
_TILES = 8
_NAMED_ITEMS = 5

Verdict = Literal["better", "worse", "no clear difference", "not tested"]
VERDICTS: tuple[Verdict, ...] = ("better", "worse", "no clear difference", "not tested")
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
    pairs = PAIRS if _tied(evaluation) else {name: column for name, column in PAIRS.items() if "ties" not in name}
    curves = {
        "calibration": (
            panels(evaluation, "reliability"),
            [metric_table(evaluation, "Calibration errors", CALIBRATION)],
        ),
        "abstention": (
            panels(evaluation, "risk"),
            [metric_table(evaluation, "Detection of errors by uncertainty", ABSTENTION)],
        ),
        "rewards": (
            panels(evaluation, "margin"),
            [
                metric_table(evaluation, "Pairs of a right and a wrong response", pairs),
                metric_table(evaluation, "Order of several responses", ORDER),
                metric_table(evaluation, "Further measures", unknown_metrics(evaluation)),
            ],
        ),
    }
    shown = {
        name: {"panels": drawn, "tables": [one for one in tables if one]} for name, (drawn, tables) in curves.items()
    }
    cards, lost = regressions(evaluation)
    regressed = {"regressions": ("Worst regressions", "Worst regressions: no refined reward lost a pair.", cards)}
    parts: dict[str, tuple[str, str, object]] = {  # id: title, what is said where it is missing, whether it is there
        "scores": ("Scores", "", True),
        "changes": (
            f"Differences to {name_in_text(evaluation.reference)}",
            "Differences: there is only one reward, and nothing to compare it with.",
            compared,
        ),
        "calibration": (
            "Calibration of P(right > wrong)",
            "Calibration: none of these benchmarks has responses that are right or wrong, or it was not measured.",
            any(shown["calibration"].values()),
        ),
        "abstention": (
            "Uncertainty and error",
            "Uncertainty and error: no uncertainty was measured.",
            any(shown["abstention"].values()),
        ),
        "rewards": (
            "Margins, length and order",
            "Margins, length and order: they were not measured.",
            any(shown["rewards"].values()),
        ),
        **(regressed if compared else {}),
        "measured": ("How it was measured", "", True),
    }
    return render(
        "benchmarks.html",
        title=_title(evaluation),
        headline=headline(evaluation),
        sections={id: title for id, (title, _, there) in parts.items() if there},
        missing=[otherwise for _, otherwise, there in parts.values() if not there],
        notes=notes,
        wide=len(evaluation.bases) >= _WIDE,
        evaluation=evaluation,
        bootstrap=evaluation.bootstrap,
        significant=SIGNIFICANT,
        few_prompts=FEW_PROMPTS,
        few=any(prompts < FEW_PROMPTS for b in evaluation.benchmarks for _, prompts in b.counts.values()),
        compared=compared,
        refined=refined,
        away=apart(evaluation),
        titles=titles(evaluation),
        verdicts=verdict_table(evaluation),
        columns=scorer_columns(evaluation),
        whole=overall_rows(evaluation),
        part_tables=part_tables(evaluation),
        bounds=score_bounds(evaluation),
        tiles=tiles(evaluation),
        forests=forests(evaluation) if compared else {},
        largest=largest_differences(evaluation),
        listed=_listed(evaluation),
        hopeless=too_few_permutations(evaluation),
        flips=metric_table(evaluation, "Items fixed and broken by refining", FLIPS, refined) if refined else None,
        gains=gains(evaluation),
        curves=shown,
        not_drawn=_not_drawn(evaluation),
        tied=_tied(evaluation),
        cards=cards,
        lost=lost,
        measured=measured_tables(evaluation),
    )


# Verdicts


def verdict(entry: Entry | None) -> Verdict:
    """Whether a score is significantly above or below the reference's; "not tested" without a corrected p-value."""
    if entry is None or entry.difference is None or entry.p_holm is None or not math.isfinite(entry.p_holm):
        return "not tested"
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


def headline(evaluation: Evaluation) -> str:
    """The finding in one sentence."""
    reference, total = name_in_text(evaluation.reference), len(evaluation.benchmarks)
    where = name_in_text(evaluation.benchmarks[0].title) if total == 1 else f"{total} benchmarks"
    table, who = verdict_table(evaluation), subject(evaluation)
    if not others(evaluation):
        scores = {titles(evaluation)[b.name]: entry_of(b, evaluation.reference) for b in evaluation.benchmarks}
        known = {name: one.value.value for name, one in scores.items() if one and math.isfinite(one.value.value)}
        if not known:
            return f"{reference} has no score on {where}"
        if total <= 2:
            parts = [f"{percent(value)} on {name_in_text(name)}" for name, value in known.items()]
            return f"{reference} scores {listing(parts)}"
        ends = [f"{percent(known[name])} ({name_in_text(name)})" for name in sorted(known, key=known.__getitem__)]
        return f"{reference} scores from {ends[0]} to {ends[-1]} on {where}"
    if who is not None:
        better, worse, _, untested = (len(table[who][word]) for word in VERDICTS)
        name, on = name_in_text(who), where if total == 1 else f"any of {where}"
        if untested == total:
            return f"Too few prompts to tell {name} and {reference} apart on {on}"
        if not better and not worse:
            return f"No clear difference between {name} and {reference} on {on}"
        if total in (better, worse):
            word = "better" if better else "worse"
            return f"{name} is {word} than {reference} on {where if total == 1 else f'all {where}'}"
        return f"{name} is better than {reference} on {better or 'none'} of {where}, and worse on {worse or 'none'}"
    wins = {name: len(row["highest"]) for name, row in table.items()}
    most = max(wins.values())
    if most == 0:
        return f"No score to compare {count(len(wins), 'reward')} by"
    leaders = [name for name, won in wins.items() if won == most]
    clear = sum(len(table[name]["clearly highest"]) for name in leaders)
    each = " each" if len(leaders) > 1 and total > 1 else ""
    verb = "scores" if len(leaders) == 1 else "share the" if total == 1 else "score"
    first = f"{listing([name_in_text(name) for name in leaders])}{each} {verb} highest"
    if total == 1:
        significantly = ", significantly so" if clear else ", but not significantly so" if len(leaders) == 1 else ""
        return f"{first}{' score' if len(leaders) > 1 else ''} on {where}{significantly}"
    return f"{first} on {most} of {where}" + (f", significantly on {clear or 'none'}" if len(leaders) == 1 else "")


def tiles(evaluation: Evaluation) -> list[tuple[str, str, Estimate, str]]:
    """Label, unit, estimate and role: scores of a lone reward, or the numbers of a comparison on one benchmark."""
    compared, found = others(evaluation), list(evaluation.benchmarks)
    if not compared:
        scored = [(titles(evaluation)[b.name], entry_of(b, evaluation.reference)) for b in found]
        known = [(name, one.value) for name, one in scored if one is not None and math.isfinite(one.value.value)]
        if len(known) > _TILES:
            ranked = sorted(known, key=lambda one: one[1].value)
            known = [ranked[0], ranked[len(ranked) // 2], ranked[-1]]
        return [(name, "%", value, "base") for name, value in known]
    if len(compared) > 1 or len(found) > 1:
        return []
    base, entry = (entry_of(found[0], name) for name in (evaluation.reference, compared[0]))
    if base is None or entry is None:
        return []
    return [
        (evaluation.reference, "%", base.value, "base"),
        (compared[0], "%", entry.value, "refined"),
        ("Difference, percentage points", "points", entry.difference or _NAN, "ink"),
    ]


def _title(evaluation: Evaluation) -> str:
    names = [name_in_text(name) for name in evaluation.bases]
    who = listing(names) if len(names) < _WIDE else count(len(names), "reward model")
    return f"{who} on {count(len(evaluation.benchmarks), 'benchmark')}"


# Scores


def scorer_columns(evaluation: Evaluation) -> list[tuple[str, str]]:
    """Heading of each scorer's column, and its part in the comparison."""
    columns = []
    for name, base in evaluation.bases.items():
        parts = ["reference"] if name == evaluation.reference and others(evaluation) else []
        columns.append((name, ", ".join([*parts, f"refines {base}"] if base is not None else parts)))
    return columns


def score_bounds(evaluation: Evaluation) -> tuple[float, float]:
    """Scores of the faintest and the strongest shade: twentieths around all scores on the page."""
    scorers = [result for benchmark in evaluation.benchmarks for result in benchmark.scorers.values()]
    values = [entry.value.value for result in scorers for entry in result.entries.values()]
    values = [value for value in values if math.isfinite(value)]
    if not values:
        return 0.0, 1.0
    low, high = math.floor(20 * min(values) + 1e-9) / 20, math.ceil(20 * max(values) - 1e-9) / 20
    return low, max(high, low + 0.2)


def overall_rows(evaluation: Evaluation) -> list[dict[str, Any]]:
    """The overall score of every benchmark as rows of a table."""
    return [_row(evaluation, b, b.scores[0], titles(evaluation)[b.name]) for b in evaluation.benchmarks]


def part_tables(evaluation: Evaluation) -> list[dict[str, Any]]:
    """Sections and subsets of each benchmark: `caption`, `groups` (title, rows) and `folded`, the folded ones last."""
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
    kinds = Counter(score.kind for score in scores)
    caption = f"{titles(evaluation)[benchmark.name]}: " + listing(
        [count(kinds[kind], kind) for kind in ("section", "subset") if kinds[kind]]
    )
    if folded and others(evaluation):
        found = Counter(verdict(entry_of(benchmark, who, s.name)) for who in others(evaluation) for s in scores)
        some = f"{found['better']} significantly better, {found['worse']} significantly worse"
        caption += f" ({some if found['better'] or found['worse'] else 'no significant difference'})"
    return {"caption": caption, "groups": groups, "folded": folded}


def _row(evaluation: Evaluation, benchmark: BenchmarkResult, score: Score, name: str) -> dict[str, Any]:
    items, prompts = benchmark.counts.get(score.name, (benchmark.items, benchmark.prompts))
    detail = ", ".join(count(*one).replace(" ", NO_BREAK) for one in ((items, "item"), (prompts, "prompt")))
    return {
        "name": name + (" *" if prompts < FEW_PROMPTS else ""),
        "detail": detail,
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
    """What has so many tests that no p-value can be small enough: "the overall scores", and titles of benchmarks.

    The smallest p-value that n random permutations can give is 1 / (n + 1), and Holm's method multiplies the smallest
    of m by m. (Exact tests, where prompts are few, may go below.)
    """
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


def largest_differences(evaluation: Evaluation) -> list[tuple[str, list[dict[str, Any]]]]:
    """Sections and subsets furthest above and below the reference: caption and rows, significant ones first."""
    parts = [one for one in part_entries(evaluation) if _prompts(*one[:2]) >= FEW_PROMPTS]
    tables = []
    for word, sign in (("above", 1), ("below", -1)):
        side = [one for one in parts if sign * (one[3].difference or _NAN).value > 0]  # NaN compares as False
        clear = sum(verdict(entry) in ("better", "worse") for *_, entry in side)
        # `sorted` keeps the order of the tables among equals.
        side.sort(key=lambda one: (verdict(one[3]) not in VERDICTS[:2], -abs((one[3].difference or _NAN).value)))
        if side:
            shown = side[: min(max(clear, _LARGEST), _MOST_LARGEST)]
            few = f", {len(shown)} of {len(side)}" if len(shown) < len(side) else ""
            tables.append((f"Scores furthest {word} the reference{few}", [_change(evaluation, *one) for one in shown]))
    return tables


def _change(
    evaluation: Evaluation, benchmark: BenchmarkResult, score: Score, scorer: str, entry: Entry
) -> dict[str, Any]:
    base = entry_of(benchmark, evaluation.reference, score.name)
    prompts = count(_prompts(benchmark, score), "prompt").replace(" ", NO_BREAK)
    return {
        "name": score.name,
        "detail": f"{titles(evaluation)[benchmark.name]}, {prompts}",
        "scorer": scorer,
        "from": None if base is None else base.value,
        "to": entry.value,
        "difference": entry.difference or _NAN,
        "verdict": verdict(entry),
        "p": (entry.p_holm, entry.p),
    }


def gains(evaluation: Evaluation) -> list[dict[str, Any]]:
    """Overall scores of refined rewards minus those of their own base, where that is not the reference."""
    rows = []
    for name in apart(evaluation):
        for benchmark in evaluation.benchmarks:
            entry, base = entry_of(benchmark, name), evaluation.bases[name]
            if entry is None or entry.gain is None or base is None:
                continue
            own = entry_of(benchmark, base)
            rows.append(
                {
                    "name": titles(evaluation)[benchmark.name], "detail": "", "scorer": name,
                    "from": None if own is None else own.value, "to": entry.value, "difference": entry.gain,
                    "verdict": "no clear difference", "p": (entry.p_gain_holm, entry.p_gain),
                }
            )  # fmt: skip
    return rows


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


def _tied(evaluation: Evaluation) -> bool:
    return any(metrics["ties"].value > 0 for metrics in all_metrics(evaluation) if "ties" in metrics)


def unknown_metrics(evaluation: Evaluation) -> dict[str, Column]:
    """Metrics that no table has a column for, under the names they have."""
    found = dict.fromkeys(
        name for metrics in all_metrics(evaluation) for name in metrics if name not in known_metrics()
    )
    return {name: Column(name.replace("_", " "), "", 3) for name in found}


def metric_table(
    evaluation: Evaluation, caption: str, columns: Mapping[str, Column], scorers: Sequence[str] | None = None
) -> dict[str, Any] | None:
    """A table of metrics: the scorers under each benchmark, or the benchmarks alone if there is one scorer.

    Args:
        evaluation: where the numbers are.
        caption: what the table shows.
        columns: metric to how it is written; those that no scorer has are left out.
        scorers: which scorers; None: all.

    Returns:
        `caption`, `corner`, `columns`, `groups` (title, rows of name and metrics) and `folded`; None without metrics.
    """
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
    """What is drawn together: every refined scorer with its base, and each scorer that is in no such pair.

    Returns:
        Role ("base", "refined") to scorer, one mapping a drawing, those with the reference first.
    """
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


def _not_drawn(evaluation: Evaluation) -> list[str]:
    drawn = {who for roles in _drawn(evaluation) for who in roles.values()}
    return [name_in_text(who) for who in evaluation.bases if who not in drawn]


#: Kind of panel to its title, and the metric above each figure with its unit.
_PANELS: dict[PanelKind, tuple[str, str, str, str]] = {
    "reliability": ("Accuracy against confidence", "ece", "ECE, %:", "%"),
    "risk": ("Risk\u2013coverage curves", "aurc_gain_confidence", "AURC gain, points:", "%"),
    "margin": ("Reward margins, right minus wrong response", "margin", "mean, in stds:", "3"),
}


def panels(evaluation: Evaluation, kind: PanelKind) -> list[dict[str, Any]]:
    """One panel for each base with its refined reward, one figure in it for each benchmark."""
    title, metric, word, unit = _PANELS[kind]
    found: list[dict[str, Any]] = []
    drawn = _drawn(evaluation)
    for place, roles in enumerate(drawn, start=1):
        label = " and its base ".join(name_in_text(roles[role]) for role in ("refined", "base") if role in roles)
        made = []
        for number_, benchmark in enumerate(evaluation.benchmarks, start=1):
            results = {role: benchmark.scorers[who] for role, who in roles.items() if who in benchmark.scorers}
            name, on = f"{kind}-{place}-{number_}", titles(evaluation)[benchmark.name]
            about = f"{title} on {on}: {label}."
            svg = ""
            if kind == "reliability":
                curves = {role: one.calibration for role, one in results.items() if one.calibration is not None}
                svg = figures.reliability(name, about, curves, panel=True) if curves else ""
            elif kind == "risk":
                risks = {role: one.risk for role, one in results.items() if one.risk}
                svg = figures.risk_curves(name, about, risks, panel=True) if risks else ""
            else:
                margins = {role: one.margins for role, one in results.items() if len(one.margins)}
                svg = figures.margin_panel(name, about, margins) if margins else ""
            values = {role: one.metrics[metric] for role, one in results.items() if metric in one.metrics}
            said = [number(v, unit) + ("" if len(roles) == 1 else f" {role}") for role, v in values.items()]
            if svg:
                made.append((on, f"{word} {', '.join(said)}" if said else "", svg))
        if made:
            std = [r for r, who in roles.items() if any("std" in b.scorers[who].risk for b in evaluation.benchmarks)]
            names = {role: name_in_text(who) for role, who in roles.items()}
            found.append(
                {
                    "title": f"{title}: {label}" if len(drawn) > 1 else title,
                    "legend": figures.panel_legend(names, kind, std),
                    "figures": made,
                    "folded": bool(found),
                }
            )
    return found


# Regressions and how it was measured


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
        for place in sorted(turn):
            _, benchmark, one = lost[place]
            title = titles(evaluation)[benchmark.name]
            cards.append(
                {
                    "title": f"{title}: {one.group}" if one.group else title,
                    "one": one,
                    "digits": reward_digits([*one.base, *one.refined]),
                    "by": f" ({name_in_text(one.scorer)})" if len(by_scorer) > 1 else "",
                }
            )
    return cards, sum(map(len, by_scorer.values()))


def measured_tables(evaluation: Evaluation) -> list[tuple[str, tuple[str, ...], list[list[str]], bool]]:
    """Tables of what was scored and what was not, and what it ran on: caption, columns, rows, whether it is text."""
    names, found = titles(evaluation), evaluation.benchmarks
    items = [
        [names[b.name], *(f"{n:,}" for n in (b.items, b.prompts, sum(b.excluded.values()), len(b.unscored_items)))]
        for b in found
    ]
    left, ties = [], []
    for b in found:
        reasons = [("", reason, n) for reason, n in b.excluded.items()]
        reasons += [
            (f"{name_in_text(who)}, ", reason, n) for who, some in b.unscored.items() for reason, n in some.items()
        ]
        left += [[names[b.name], f"{who}{reason}: {count(n, 'item')}"] for who, reason, n in reasons if n]
        if ids := [name_in_text(item) for item in b.unscored_items]:
            more = [count(len(ids) - _NAMED_ITEMS, "more item")] if len(ids) > _NAMED_ITEMS else []
            left.append([names[b.name], f"Left out for every reward: {listing([*ids[:_NAMED_ITEMS], *more])}."])
        for who in b.scorers:
            entry = entry_of(b, who)
            if entry is not None and abs(entry.value.value - entry.shared.value) > 1e-9:
                ties.append([names[b.name], name_in_text(who), percent(entry.value.value), percent(entry.shared.value)])
    tables: list[tuple[str, tuple[str, ...], list[list[str]], bool]] = [
        ("Items", ("benchmark", "compared", "prompts", "left out before scoring", "not scored"), items, False),
        ("Left out, and why", ("benchmark", "reason"), left, True),
        (
            "Overall scores that depend on the rule for ties",
            ("benchmark", "reward", "official", "ties broken at random, in expectation"),
            ties,
            False,
        ),
        (
            "Where the items are from",
            ("benchmark", "origin and notes"),
            [[names[b.name], "\n".join([b.origin, *b.notes])] for b in found],
            True,
        ),
    ]
    for scorer, about in evaluation.about.items():
        tables.append((name_in_text(scorer), ("setting", "value"), setting_rows(about), True))
    versions = [[name, str(evaluation.versions[name])] for name in sorted(evaluation.versions)]
    times = [[stage, f"{seconds:,.1f}"] for stage, seconds in evaluation.seconds.items()]
    tables += [
        ("Versions", ("package", "version"), versions, True),
        (
            "Time, seconds",
            ("stage", "time"),
            [*times, ["together", f"{sum(evaluation.seconds.values()):,.1f}"]] if times else [],
            False,
        ),
    ]
    return [table for table in tables if table[2]]
