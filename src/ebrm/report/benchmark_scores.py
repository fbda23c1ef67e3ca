"""The benchmark report's tables of scores: every score of every scorer, shaded by its value."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ebrm.benchmarks import Score
from ebrm.evaluation import SIGNIFICANT, BenchmarkResult, Evaluation
from ebrm.report.benchmark_verdicts import (
    FEW_PROMPTS,
    MARKS,
    cell_of,
    others,
    overall,
    titles,
    verdict,
)
from ebrm.report.page import Grid, GridCell, GridRow, Section
from ebrm.report.words import NO_BREAK, NONE, count, decimal, interval, listing, name_in_text

_DAGGER = "\u2020"
_SHADES = 10
# A benchmark with more scores than this shows its sections, and folds its subsets.
_OPEN_SCORES = 10
# With more scorers than this a difference's interval has no room in the tables.
_ROOM_FOR_INTERVALS = 4
# With more rows than this on the page, everything below the overall scores is folded.
_OPEN_ROWS = 60


def scores_section(evaluation: Evaluation) -> Section:
    """Overall scores of all benchmarks, then each benchmark's sections and subsets."""
    names = titles(evaluation)
    bounds = _bounds(evaluation)
    rows = [
        _row(evaluation, benchmark, overall(benchmark), names[benchmark.name], bounds, few=True)
        for benchmark in evaluation.benchmarks
    ]
    columns = scorer_columns(evaluation)
    scale = (f"{100 * bounds[0]:.0f}%", f"{100 * bounds[1]:.0f}%")
    whole = Grid("Overall scores, %", "benchmark", columns, [("", rows)], scale)
    parts = {benchmark.name: _open_and_folded(benchmark) for benchmark in evaluation.benchmarks}
    crowded = sum(len(shown) for shown, _ in parts.values()) > _OPEN_ROWS
    opened: list[Grid] = []
    closed: list[Grid] = []
    for benchmark in evaluation.benchmarks:
        shown, hidden = parts[benchmark.name]
        for scores, folded in ((shown, crowded), (hidden, True)):
            if scores:
                grid = _part(evaluation, benchmark, names[benchmark.name], scores, bounds, folded)
                (closed if folded else opened).append(grid)
    grids = [whole, *opened, *closed]
    return Section("scores", "Scores", text=_reading(evaluation), grids=grids, notes=_notes(evaluation))


def scorer_columns(evaluation: Evaluation) -> list[tuple[str, str]]:
    """Heading of each scorer's column, and its part in the comparison."""
    columns = []
    for name, base in evaluation.bases.items():
        parts = ["reference"] if name == evaluation.reference and others(evaluation) else []
        if base is not None:
            parts.append(f"refines {base}")
        columns.append((name, ", ".join(parts)))
    return columns


def _reading(evaluation: Evaluation) -> list[str]:
    text = ["Each cell has the benchmark's official score with its interval; a stronger shade means a higher score."]
    if others(evaluation):
        text[0] += (
            f" Below it is the difference to {name_in_text(evaluation.reference)} in percentage points, with \u25b2 "
            f"where the score is clearly higher and \u25bc where it is clearly lower (p \u2264 {SIGNIFICANT:g} after "
            "Holm's correction)."
        )
        if len(evaluation.bases) > _ROOM_FOR_INTERVALS:
            text[0] += " The intervals of the differences are in the figures below and in results.json."
    if len(evaluation.bases) > 2:
        text[0] += f" The highest score of a row is bold, and {_DAGGER} marks those that are not clearly below it."
    return text


def _notes(evaluation: Evaluation) -> list[str]:
    notes = []
    few = any(prompts < FEW_PROMPTS for b in evaluation.benchmarks for _, prompts in b.counts.values())
    if few:
        notes.append(f"* Fewer than {FEW_PROMPTS} prompts: such an interval is too narrow to rely on.")
    if len(evaluation.benchmarks) > 1:
        notes.append(
            "Benchmarks differ in what chance would score (a half for a pair, a quarter for the best of four): compare "
            "along a row, not down a column."
        )
    return notes


def _bounds(evaluation: Evaluation) -> tuple[float, float]:
    """Scores of the faintest and the strongest shade: twentieths around all scores on the page."""
    values = [
        cell.value.value
        for benchmark in evaluation.benchmarks
        for result in benchmark.scorers.values()
        for cell in result.cells.values()
        if math.isfinite(cell.value.value)
    ]
    if not values:
        return 0.0, 1.0
    low, high = math.floor(20 * min(values) + 1e-9) / 20, math.ceil(20 * max(values) - 1e-9) / 20
    return low, max(high, low + 0.2)


def _shade(value: float, bounds: tuple[float, float]) -> int | None:
    low, high = bounds
    return round(_SHADES * (value - low) / (high - low)) if math.isfinite(value) else None


def _cell(
    evaluation: Evaluation, benchmark: BenchmarkResult, score: Score, scorer: str, bounds: tuple[float, float]
) -> GridCell:
    cell = cell_of(benchmark, scorer, score.name)
    if cell is None or not math.isfinite(cell.value.value):
        return GridCell(NONE)
    value = decimal(100 * cell.value.value, 1)
    best = near = False
    if len(evaluation.bases) > 2:  # beside the difference to the reference, two scorers need no second mark
        result = benchmark.scorers[scorer]
        best = score.name in result.best
        near = not best and score.name in result.not_worse
    below = ""
    if cell.difference is not None:
        difference = cell.difference
        below = decimal(100 * difference.value, 1, sign=True)
        if math.isfinite(difference.low) and len(evaluation.bases) <= _ROOM_FOR_INTERVALS:
            below += " " + interval(100 * difference.low, 100 * difference.high, 1, sign=True)
    return GridCell(
        value + (_DAGGER if near else ""),
        interval(100 * cell.value.low, 100 * cell.value.high, 1),
        below,
        MARKS.get(verdict(cell)),
        _shade(cell.value.value, bounds),
        best,
    )


def _row(
    evaluation: Evaluation,
    benchmark: BenchmarkResult,
    score: Score,
    name: str,
    bounds: tuple[float, float],
    few: bool = False,
) -> GridRow:
    cells = [_cell(evaluation, benchmark, score, scorer, bounds) for scorer in evaluation.bases]
    items, prompts = benchmark.counts.get(score.name, (benchmark.items, benchmark.prompts))
    detail = item_count(items, prompts)
    star = " *" if prompts < FEW_PROMPTS else ""
    return GridRow(name + star, cells, detail, strong=score.kind != "subset")


def item_count(items: int, prompts: int) -> str:
    """Write how many items and prompts there are, to be broken between the two at most."""
    return ", ".join(count(*one).replace(" ", NO_BREAK) for one in ((items, "item"), (prompts, "prompt")))


def _open_and_folded(benchmark: BenchmarkResult) -> tuple[list[Score], list[Score]]:
    """The scores below the overall one that are shown at once, and those that are folded."""
    below = list(benchmark.scores[1:])
    if len(below) <= _OPEN_SCORES:
        return below, []
    sections = [score for score in below if score.kind == "section"]
    return sections, [score for score in below if score.kind != "section"]


def _part(
    evaluation: Evaluation,
    benchmark: BenchmarkResult,
    title: str,
    scores: Sequence[Score],
    bounds: tuple[float, float],
    folded: bool,
) -> Grid:
    """One benchmark's sections or subsets, the subsets under the section that they belong to."""
    groups: dict[str, list[GridRow]] = {}
    sections = [score for score in benchmark.scores if score.kind == "section"]
    alone = {score.kind for score in scores} == {"subset"}
    for score in scores:
        group = _section_of(score, sections) if alone else ""
        groups.setdefault(group, []).append(_row(evaluation, benchmark, score, score.name, bounds))
    if len(groups) > 1 and "" in groups:
        groups["other subsets"] = groups.pop("")
    kinds = [
        count(sum(score.kind == kind for score in scores), kind)
        for kind in ("section", "subset")
        if any(score.kind == kind for score in scores)
    ]
    caption = f"{title}: {listing(kinds)}"
    if folded and others(evaluation):
        caption += f" ({_found(evaluation, benchmark, scores)})"
    return Grid(
        caption,
        "score, %",
        [(name, "") for name in evaluation.bases],
        list(groups.items()),
        folded=folded,
        narrow=len(evaluation.bases) <= 2,
    )


def _section_of(score: Score, sections: Sequence[Score]) -> str:
    """The one section whose terms hold all of the subset's; "" if there is none, or more than one."""
    holding = [section.name for section in sections if set(score.weights) <= set(section.weights)]
    return holding[0] if len(holding) == 1 else ""


def _found(evaluation: Evaluation, benchmark: BenchmarkResult, scores: Sequence[Score]) -> str:
    """How many differences of a folded table are clear, so that nobody has to open it to know."""
    verdicts = [verdict(cell_of(benchmark, scorer, score.name)) for scorer in others(evaluation) for score in scores]
    better, worse = verdicts.count("better"), verdicts.count("worse")
    if not better and not worse:
        return "no clear difference"
    return f"{better} clearly better, {worse} clearly worse"
