"""Results as tables for a paper, a README or a spreadsheet: Markdown, LaTeX (booktabs) and CSV."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

from ebrm.benchmarks import Score
from ebrm.errors import ConfigError
from ebrm.evaluation import MOST_RESAMPLES, SIGNIFICANT, BenchmarkResult, Cell, Evaluation, apart
from ebrm.metrics import Estimate
from ebrm.report.typeset import Entry, Table, latex, markdown
from ebrm.report.words import count, decimal, interval, p_value, percent

Format = Literal["markdown", "csv", "latex"]
FORMATS: tuple[Format, ...] = ("markdown", "csv", "latex")

#: Columns of the CSV form. Scores, intervals and differences are shares of 1, not percent; what there is not is empty.
COLUMNS = (
    "benchmark", "score", "kind", "scorer", "value", "low", "high", "shared", "difference", "difference_low",
    "difference_high", "p", "p_holm", "gain", "gain_low", "gain_high", "p_gain", "p_gain_holm", "items", "prompts",
)  # fmt: skip

# Measures that are shown in percent, and those that count.
_SHARES = {
    "accuracy", "accuracy_ties_half", "ties", "length_matched_accuracy", "one_to_many", "ece", "ece_if_calibrated",
    "aurc_confidence", "aurc_std", "aurc_gain_confidence", "aurc_gain_std", "aurc_random", "aurc_best",
    "interval_coverage", "interval_level",
}  # fmt: skip
_COUNTS = {"pairs", "length_matched_pairs", "one_to_many_items", "fixed", "broken"}


def overview(evaluation: Evaluation, format: Format = "markdown") -> str:
    """The overall score of every benchmark: one row a benchmark, one column a scorer, and the differences.

    Args:
        evaluation: what was found.
        format: "markdown", "latex" (needs the package booktabs) or "csv" (see `COLUMNS`).

    Returns:
        The table with what must be known to read it; a newline ends it.

    Raises:
        ConfigError: if the format is none of these.
    """
    check_format(format)
    if format == "csv":
        return _csv(row for result in evaluation.benchmarks for row in _rows(evaluation, result, result.scores[:1]))
    rows = [(result.title, result, result.scores[0]) for result in evaluation.benchmarks]
    tables = _score_tables(evaluation, "Benchmark", rows, "Official overall scores")
    notes = [
        *_legend(evaluation, "all overall scores"),
        *_shared(evaluation.benchmarks),
        *left_out(evaluation.benchmarks),
    ]
    return _render(tables, notes, format)


def details(evaluation: Evaluation, format: Format = "markdown") -> str:
    """All scores of every benchmark and, in Markdown and LaTeX, the other measures and the benchmarks' notes.

    Args:
        evaluation: what was found.
        format: see `overview`.

    Raises:
        ConfigError: see `overview`.
    """
    check_format(format)
    if format == "csv":
        return _csv(row for result in evaluation.benchmarks for row in _rows(evaluation, result, result.scores))
    parts = [
        _render(
            [
                *_score_tables(
                    evaluation, "Score", [(score.name, result, score) for score in result.scores], result.title
                ),
                _measures(result),
            ],
            [*(f"{result.title}: {note}" for note in result.notes), *_shared([result]), *left_out([result])],
            format,
        )
        for result in evaluation.benchmarks
    ]
    legend = _legend(evaluation, "all sections and subsets of a benchmark (for its overall score: of all benchmarks)")
    legend.append(f"Intervals of the other measures are from at most {MOST_RESAMPLES:,} resamples.")
    return "\n".join([*parts, _render([], legend, format)])


def check_format(format: str) -> None:
    """Raise a ConfigError unless `format` is one that tables can take."""
    if format not in FORMATS:
        raise ConfigError(f"There is no table format {format!r}. Choose one of {', '.join(FORMATS)}.")


def _score_tables(
    evaluation: Evaluation, first: str, rows: Sequence[tuple[str, BenchmarkResult, Score]], caption: str
) -> list[Table]:
    """Values of all scorers and, if there are several, their differences from the reference."""
    names, reference = list(evaluation.bases), evaluation.reference
    head = [
        first,
        "Items",
        *(f"{name} (reference)" if name == reference and len(names) > 1 else name for name in names),
    ]
    body = [
        [
            Entry(label),
            Entry(f"{result.counts[score.name][0]:,}"),
            *(_value(result, score.name, name) for name in names),
        ]
        for label, result, score in rows
    ]
    tables = [Table(f"{caption}, percent", head, body)]
    others = [name for name in names if name != reference]
    if others:
        body = [
            [Entry(label), *(_difference(result.scorers[name].cells[score.name]) for name in others)]
            for label, result, score in rows
        ]
        tables.append(Table(f"{caption}: difference from {reference}, points", [first, *others], body))
    if away := apart(evaluation):
        body = [
            [Entry(label), *(_gain(result.scorers[name].cells[score.name]) for name in away)]
            for label, result, score in rows
        ]
        head = [first, *(f"{name} minus {evaluation.bases[name]}" for name in away)]
        tables.append(Table(f"{caption}: difference from the scorer's own base, points", head, body))
    return tables


def _value(result: BenchmarkResult, score: str, name: str) -> Entry:
    scorer = result.scorers[name]
    value = scorer.cells[score].value
    mark = "†" if score in scorer.not_worse else ""
    return Entry(decimal(100 * value.value, 1), after=_interval(value, 100, 1), strong=score in scorer.best, mark=mark)


def _difference(cell: Cell) -> Entry:
    return _change(cell.difference, cell.p_holm)


def _gain(cell: Cell) -> Entry:
    return _change(cell.gain, cell.p_gain_holm)


def _change(change: Estimate | None, p: float | None) -> Entry:
    if change is None or not math.isfinite(change.value):
        return Entry(decimal(None, 1))
    after = _interval(change, 100, 1, sign=True)
    if p is not None:
        after = f"{after}, {p_value(p)}"
    mark = "*" if p is not None and p <= SIGNIFICANT else ""
    return Entry(decimal(100 * change.value, 1, sign=True), after=after, mark=mark)


def _measures(result: BenchmarkResult) -> Table:
    """The other measures, one row each; those that no scorer has are not there."""
    names = list(dict.fromkeys(name for scorer in result.scorers.values() for name in scorer.metrics))
    body = [
        [Entry(name), *(_measure(name, scorer.metrics.get(name)) for scorer in result.scorers.values())]
        for name in names
    ]
    return Table(f"{result.title}: other measures", ["Measure", *result.scorers], body)


def _measure(name: str, estimate: Estimate | None) -> Entry:
    if estimate is None:
        return Entry(decimal(None, 1))
    if name in _COUNTS:
        return Entry(f"{estimate.value:,.0f}")
    if name == "sign_test_p":
        return Entry(p_value(estimate.value))
    if name in _SHARES:
        return Entry(percent(estimate.value), after=_interval(estimate, 100, 1))
    return Entry(decimal(estimate.value, 3), after=_interval(estimate, 1, 3))


def _interval(estimate: Estimate, scale: float, digits: int, sign: bool = False) -> str:
    if not (math.isfinite(estimate.low) and math.isfinite(estimate.high)):
        return ""
    return interval(scale * estimate.low, scale * estimate.high, digits, sign)


def _legend(evaluation: Evaluation, family: str) -> list[str]:
    """How to read the numbers."""
    lines = [
        f"Intervals hold {100 * evaluation.bootstrap.level:g}% of "
        f"{evaluation.bootstrap.resamples:,} bootstrap resamples of the prompts; "
        "there is none where fewer than two prompts are behind a number."
    ]
    if len(evaluation.bases) > 1:
        test = f"paired permutation test over prompts, {evaluation.permutations:,} permutations"
        lines += [
            f"Bold: the best scorer of a row. †: not clearly worse than the best ({test}, Holm's correction for the "
            f"number of scorers, {SIGNIFICANT}).",
            f"Differences are from {evaluation.reference}. p: {test}, Holm's correction for {family} and scorers. "
            f"*: p is at most {SIGNIFICANT}.",
        ]
    return lines


def _shared(results: Sequence[BenchmarkResult]) -> list[str]:
    """What the overall scores would be if ties were broken by lot, where that differs."""
    told = []
    for result in results:
        cells = {name: scorer.cells[result.scores[0].name] for name, scorer in result.scorers.items()}
        changed = [
            f"{name} {decimal(100 * cell.shared.value, 1)} instead of {decimal(100 * cell.value.value, 1)}"
            for name, cell in cells.items()
            if abs(cell.shared.value - cell.value.value) > 1e-12
        ]
        if changed:
            told.append(f"{result.title}: {', '.join(changed)}")
    if not told:
        return []
    return [f"Overall scores with ties between right and wrong responses broken by lot: {'; '.join(told)}."]


def left_out(results: Sequence[BenchmarkResult]) -> list[str]:
    """Items that are in no number, by benchmark and reason."""
    lines = []
    for result in results:
        if result.excluded:
            lines.append(f"{result.title}: left out before scoring: {_reasons(result.excluded)}.")
        if result.unscored_items:
            left = len(result.unscored_items)
            reasons = {name: _reasons(found) for name, found in result.unscored.items() if found}
            told = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
            if len(reasons) == len(result.unscored) and len(set(reasons.values())) == 1:
                told = next(iter(reasons.values()))  # the same for all
            lines.append(
                f"{result.title}: {left:,} of {count(left + result.items, 'item')} in no number, because not every "
                f"scorer could score them ({told})."
            )
    return lines


def _reasons(numbers: Mapping[str, int]) -> str:
    return ", ".join(f"{count(number, 'item')} ({reason})" for reason, number in numbers.items())


def _rows(evaluation: Evaluation, result: BenchmarkResult, scores: Sequence[Score]) -> Iterator[list[str]]:
    for score in scores:
        items, prompts = result.counts[score.name]
        for name in evaluation.bases:
            cell = result.scorers[name].cells[score.name]
            change, gain = (one or Estimate(math.nan, math.nan, math.nan) for one in (cell.difference, cell.gain))
            numbers = (
                cell.value.value, cell.value.low, cell.value.high, cell.shared.value, change.value, change.low,
                change.high, cell.p, cell.p_holm, gain.value, gain.low, gain.high, cell.p_gain, cell.p_gain_holm,
            )  # fmt: skip
            yield [result.name, score.name, score.kind, name, *map(_number, numbers), str(items), str(prompts)]


def _number(value: float | None) -> str:
    return "" if value is None or not math.isfinite(value) else repr(float(value))


def _csv(rows: Iterator[list[str]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(rows)
    return text.getvalue()


def _render(tables: Sequence[Table], notes: Sequence[str], format: Format) -> str:
    return (latex if format == "latex" else markdown)(tables, notes)
