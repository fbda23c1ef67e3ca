"""Where a scorer is better or worse than the reference, and what a refined reward flipped: sections of the report."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ebrm.benchmarks import Score
from ebrm.evaluation import BenchmarkResult, Cell, Evaluation, Regression, apart
from ebrm.metrics import Estimate
from ebrm.report.benchmark_figures import ForestRow, difference_forest, score_forest
from ebrm.report.benchmark_metrics import FLIPS, metric_grid
from ebrm.report.benchmark_verdicts import (
    FEW_PROMPTS,
    MARKS,
    cell_of,
    others,
    overall,
    part_cells,
    refined_scorers,
    titles,
    too_few_permutations,
    verdict,
)
from ebrm.report.page import Card, Figure, Grid, GridCell, GridRow, Passage, Section
from ebrm.report.words import (
    NO_BREAK,
    NONE,
    count,
    decimal,
    interval,
    listing,
    name_in_text,
    p_number,
    reward_digits,
)

_LARGEST = 10
_MOST = 15  # if so many are clear
# With so few benchmarks the forest has room for their sections.
_FEW_BENCHMARKS = 3
_CARDS = 24


def changes_section(evaluation: Evaluation) -> Section | None:
    """Differences to the reference, overall and where they are largest, and what refining flipped."""
    compared = others(evaluation)
    if not compared:
        return None
    reference = name_in_text(evaluation.reference)
    grids, text = _largest(evaluation)
    hopeless = too_few_permutations(evaluation)
    if hopeless:
        where = listing([name_in_text(title) for title in hopeless])
        text.append(
            f"{count(evaluation.permutations, 'permutation')} cannot give p-values small enough for so many tests: no "
            f"difference on {where} could have been clear."
        )
    refined = refined_scorers(evaluation)
    flips = metric_grid(evaluation, "What refining flipped", FLIPS, refined) if refined else None
    notes = []
    if gains := _gain_grid(evaluation):
        grids.append(gains)
    if flips:
        notes.append(
            "Put right and put wrong: items whose official value rose or fell from a refined reward's own base to it. "
            "The sign test is exact, takes items as independent and is not corrected. The STARC distance compares "
            "rewards within prompts, from 0 (same order and proportions) to 2 (opposite)."
        )
    return Section(
        "changes",
        f"Better and worse than {reference}",
        text=text,
        figures=_forests(evaluation, compared),
        grids=[*grids, flips] if flips else grids,
        notes=notes,
    )


def _forests(evaluation: Evaluation, compared: Sequence[str]) -> list[Figure]:
    drawn = _drawn_scores(evaluation)
    ends = [0.0]
    for scorer in compared:
        for benchmark, score in drawn:
            cell = cell_of(benchmark, scorer, score.name)
            if cell is not None and cell.difference is not None:
                ends += [cell.difference.value, cell.difference.low, cell.difference.high]
    finite = [end for end in ends if math.isfinite(end)]
    pad = 0.05 * (max(finite) - min(finite)) or 0.01
    bounds = (min(finite) - pad, max(finite) + pad)
    figures = []
    if len(compared) == 1:
        labels = {"base": evaluation.reference, "refined": compared[0]}
        rows = [_forest_row(evaluation, benchmark, score, labels) for benchmark, score in drawn]
        shown = {role: role if _is_pair(evaluation, compared[0]) else name for role, name in labels.items()}
        short = {role: name_in_text(name, 20) for role, name in shown.items()}
        figures.append(
            Figure(
                "Scores",
                score_forest("forest", "Scores of both rewards with intervals, as in the tables.", rows, short),
                "Each mark is an official score and its bar the interval: further right is better.",
            )
        )
    for number, scorer in enumerate(compared, start=1):
        rows = [_forest_row(evaluation, benchmark, score, {"difference": scorer}) for benchmark, score in drawn]
        figures.append(
            Figure(
                f"{name_in_text(scorer, 28)} minus {name_in_text(evaluation.reference, 28)}",
                difference_forest(
                    f"difference-{number}",
                    "Differences to the reference with intervals, as in the tables.",
                    rows,
                    bounds,
                ),
                "Right of the dashed line the score is higher than the reference's. A filled mark is a clear "
                "difference after Holm's correction; the bars are not corrected.",
            )
        )
    return figures


def _is_pair(evaluation: Evaluation, scorer: str) -> bool:
    return evaluation.bases[scorer] == evaluation.reference


def _drawn_scores(evaluation: Evaluation) -> list[tuple[BenchmarkResult, Score]]:
    """The overall score of each benchmark; of few benchmarks the sections too."""
    drawn = []
    for benchmark in evaluation.benchmarks:
        drawn.append((benchmark, overall(benchmark)))
        if len(evaluation.benchmarks) <= _FEW_BENCHMARKS:
            drawn += [(benchmark, score) for score in benchmark.scores[1:] if score.kind == "section"]
    return drawn


def _forest_row(evaluation: Evaluation, benchmark: BenchmarkResult, score: Score, roles: dict[str, str]) -> ForestRow:
    """A row with each role's score, or with the difference of the one scorer under "difference"."""
    estimates, clear = {}, False
    for role, scorer in roles.items():
        cell = cell_of(benchmark, scorer, score.name)
        estimate = None if cell is None else cell.difference if role == "difference" else cell.value
        estimates[role] = estimate or Estimate(math.nan, math.nan, math.nan)
        clear = clear or verdict(cell) in MARKS
    name = titles(evaluation)[benchmark.name] if score.kind == "overall" else f"\u2013 {score.name}"
    prompts = benchmark.counts.get(score.name, (0, benchmark.prompts))[1]
    return ForestRow(name, estimates, prompts, clear, score.kind == "overall")


def _largest(evaluation: Evaluation) -> tuple[list[Grid], list[str]]:
    """The sections and subsets whose scores differ most from the reference's, and what to make of them."""
    cells = list(part_cells(evaluation))
    if not cells:
        return [], []
    enough = [one for one in cells if _prompts(one) >= FEW_PROMPTS and math.isfinite(_difference(one[3]).value)]
    found = [verdict(cell) for _, _, _, cell in cells]
    better, worse = found.count("better"), found.count("worse")
    tests = count(len(cells), "comparison")
    text = (
        f"Sections and subsets: of {tests} with the reference, {_found(better, worse)}, corrected (Holm) within each "
        "benchmark."
    )
    if enough:
        text += (
            " The tables below list the largest differences, clear ones first; having been picked for their size, they "
            "will be smaller on other prompts."
        )
        if len(enough) < len(cells):
            text += f" Those with fewer than {FEW_PROMPTS} prompts are not listed."
    grids = []
    for word, sign in (("above", 1), ("below", -1)):
        side = [one for one in enough if sign * _difference(one[3]).value > 0]
        # `sorted` keeps the order of the tables among equals.
        ranked = sorted(side, key=lambda one: (verdict(one[3]) not in MARKS, -abs(_difference(one[3]).value)))
        if ranked:
            clear = sum(verdict(one[3]) in MARKS for one in ranked)
            shown = ranked[: min(max(clear, _LARGEST), _MOST)]
            few = f", {len(shown)} of {len(ranked)}" if len(shown) < len(ranked) else ""
            grids.append(_change_grid(evaluation, f"Scores furthest {word} the reference{few}", shown))
    return grids, [text]


def _found(better: int, worse: int) -> str:
    if not better and not worse:
        return "none is clearly better or worse"
    return f"{better or 'none'} {'are' if better > 1 else 'is'} clearly better and {worse or 'none'} clearly worse"


def _prompts(one: tuple[BenchmarkResult, Score, str, Cell]) -> int:
    benchmark, score = one[:2]
    return benchmark.counts.get(score.name, (0, benchmark.prompts))[1]


def _difference(cell: Cell) -> Estimate:
    return cell.difference or Estimate(math.nan, math.nan, math.nan)


def _change_grid(
    evaluation: Evaluation, caption: str, chosen: Sequence[tuple[BenchmarkResult, Score, str, Cell]]
) -> Grid:
    names = titles(evaluation)
    several = len(others(evaluation)) > 1
    rows = []
    for one in chosen:
        benchmark, score, scorer, cell = one
        base = cell_of(benchmark, evaluation.reference, score.name)
        difference = _difference(cell)
        cells = [
            _percent(base.value if base else None),
            _percent(cell.value),
            GridCell(
                decimal(100 * difference.value, 1, sign=True),
                interval(100 * difference.low, 100 * difference.high, 1, sign=True),
                mark=MARKS.get(verdict(cell)),
            ),
            GridCell(p_number(cell.p_holm), below=p_number(cell.p)),
        ]
        if several:
            cells.insert(0, GridCell(name_in_text(scorer, 32)))
        detail = f"{names[benchmark.name]}, {count(_prompts(one), 'prompt').replace(' ', NO_BREAK)}"
        rows.append(GridRow(score.name, cells, detail))
    pair = [("reference", "%"), ("scorer", "%")]
    if not several:
        pair = [(name_in_text(name), "%") for name in (evaluation.reference, others(evaluation)[0])]
    who = [("scorer", "")] if several else []
    columns = [*who, *pair, ("difference", "points"), ("p after Holm", "uncorrected")]
    return Grid(caption, "score", columns, [("", rows)])


def _gain_grid(evaluation: Evaluation) -> Grid | None:
    """Overall scores of refined rewards minus those of their own base, where that is not the reference."""
    rows = []
    for name in apart(evaluation):
        base = evaluation.bases[name]
        for benchmark in evaluation.benchmarks:
            cell = cell_of(benchmark, name, overall(benchmark).name)
            if cell is None or cell.gain is None or base is None:
                continue
            own = cell_of(benchmark, base, overall(benchmark).name)
            gain = cell.gain
            cells = [
                GridCell(name_in_text(name)),
                _percent(None if own is None else own.value),
                _percent(cell.value),
                GridCell(
                    decimal(100 * gain.value, 1, sign=True), interval(100 * gain.low, 100 * gain.high, 1, sign=True)
                ),
                GridCell(p_number(cell.p_gain_holm), below=p_number(cell.p_gain)),
            ]
            rows.append(GridRow(titles(evaluation)[benchmark.name], cells))
    if not rows:
        return None
    columns = [("scorer", ""), ("own base", "%"), ("scorer", "%"), ("difference", "points")]
    return Grid(
        "Refined rewards beside their own base", "benchmark", [*columns, ("p after Holm", "uncorrected")], [("", rows)]
    )


def _percent(estimate: Estimate | None) -> GridCell:
    if estimate is None:
        return GridCell(NONE)
    return GridCell(decimal(100 * estimate.value, 1), interval(100 * estimate.low, 100 * estimate.high, 1))


def regressions_section(evaluation: Evaluation) -> Section | None:
    """The worst items that refined rewards lost, with their texts, taken in turn from the benchmarks."""
    names = titles(evaluation)
    refined = [s for s in refined_scorers(evaluation) if any(_lost(b, s) for b in evaluation.benchmarks)]
    if not refined:
        return None
    each = max(3, min(12, _CARDS // len(refined)))
    cards, total = [], 0
    for scorer in refined:
        lost = [(b, one) for b in evaluation.benchmarks for one in _lost(b, scorer)]
        total += len(lost)
        ranks = {id(one): rank for b in evaluation.benchmarks for rank, one in enumerate(_lost(b, scorer))}
        turn = sorted(range(len(lost)), key=lambda i: (ranks[id(lost[i][1])], i))[:each]
        for place in sorted(turn):
            benchmark, one = lost[place]
            cards.append(_card(names[benchmark.name], one, several=len(refined) > 1))
    text = [
        "Pairs that the base reward ranks rightly and the refined reward does not, the largest loss of margin first "
        "(right minus wrong response, in standard deviations of each reward). Where responses are graded, right and "
        "wrong are the better and the worse one. They are picked for being the worst: read them for what they have in "
        "common. Texts are as in the benchmarks, which hold harmful and offensive ones on purpose."
    ]
    if len(cards) < total:
        text.append(
            f"{len(cards)} of {total} are shown, in turn from each benchmark; every reward of every item is in "
            "items.parquet."
        )
    return Section("regressions", "Worst regressions", text=text, cards=cards)


def _lost(benchmark: BenchmarkResult, scorer: str) -> list[Regression]:
    return [one for one in benchmark.regressions if one.scorer == scorer]


def _card(title: str, one: Regression, several: bool) -> Card:
    digits = reward_digits([*one.base, *one.refined])

    def side(speaker: str, which: int, text: str) -> Passage:
        base, refined = decimal(one.base[which], digits), decimal(one.refined[which], digits)
        return Passage(f"{speaker} response: base reward {base}, refined {refined}", text)

    margins = [decimal(right - wrong, digits, sign=True) for right, wrong in (one.base, one.refined)]
    by = f" ({name_in_text(one.scorer)})" if several else ""
    return Card(
        f"{title}: {one.group}" if one.group else title,
        [Passage("Prompt", one.prompt)],
        [f"Margin: base {margins[0]}, refined{by} {margins[1]}. Item {name_in_text(one.item)}."],
        sides=[side("Right", 0, one.right), side("Wrong", 1, one.wrong)],
    )
