"""Results as tables for a paper, a README or a spreadsheet: Markdown and CSV; and how metrics are named and written."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from ebrm.benchmarks import Score
from ebrm.errors import ConfigError
from ebrm.evaluation import FITTED_ON, MOST_RESAMPLES, SIGNIFICANT, BenchmarkResult, Evaluation, apart
from ebrm.metrics import Estimate
from ebrm.report.words import count, decimal, interval, p_value, percent, too_few
from ebrm.utils.neutral import csv_text, escape_markdown

Format = Literal["markdown", "csv"]
FORMATS: tuple[Format, ...] = ("markdown", "csv")

#: Columns of the CSV form. Scores, intervals and differences are shares of 1, not percent; what there is not is empty.
COLUMNS = (
    "benchmark", "score", "kind", "scorer", "value", "low", "high", "shared", "difference", "difference_low",
    "difference_high", "p", "p_holm", "gain", "gain_low", "gain_high", "p_gain", "p_gain_holm", "items", "prompts",
    "training_items",
)  # fmt: skip


@dataclass(frozen=True)
class Column:
    """How a metric is written: its heading, the line below it, and its unit ("%", "p") or number of decimals."""

    heading: str
    detail: str
    unit: Literal["%", "p"] | int

    def has_interval(self, estimate: Estimate | None) -> bool:
        """Whether there is an interval to write: counts and p-values have none."""
        return estimate is not None and math.isfinite(estimate.low)


_LOWER, _HIGHER = "lower is better", "higher is better"
#: Metrics by the table that shows them; their names are explained in `ebrm.evaluation.measures`.
CALIBRATION = {
    "ece": Column("calibration error (ECE), %", _LOWER, "%"),
    "ece_if_calibrated": Column("ECE if calibrated, %", "by chance alone", "%"),
    "brier": Column("Brier score", _LOWER, 3),
    "log_loss": Column("log loss, nats", _LOWER, 3),
    "interval_coverage": Column("interval coverage of base rewards, %", "", "%"),
    "interval_level": Column("nominal coverage, %", "", "%"),
}
ABSTENTION = {
    "error_auroc_confidence": Column("AUROC for error", f"by confidence, {_HIGHER}", 3),
    "error_auroc_std": Column("AUROC for error", f"by std, {_HIGHER}", 3),
    "aurc_confidence": Column("AURC, %", f"by confidence, {_LOWER}", "%"),
    "aurc_std": Column("AURC, %", f"by std, {_LOWER}", "%"),
    "aurc_gain_confidence": Column("AURC gain, points", f"by confidence, {_HIGHER}", "%"),
    "aurc_gain_std": Column("AURC gain, points", f"by std, {_HIGHER}", "%"),
    "aurc_random": Column("AURC, %", "at random", "%"),
    "aurc_best": Column("AURC, %", "best possible", "%"),
}
PAIRS = {
    "pairs": Column("pairs", "", 0),
    "accuracy": Column("pairs right, %", _HIGHER, "%"),
    "accuracy_ties_half": Column("pairs right, ties as half, %", _HIGHER, "%"),
    "ties": Column("ties, %", "", "%"),
    "margin": Column("mean margin", "in stds of the reward", 3),
    "length_correlation": Column("correlation with length", "within prompts", 3),
    "length_matched_accuracy": Column("pairs of like length right, %", _HIGHER, "%"),
    "length_matched_pairs": Column("pairs of like length", "", 0),
}
ORDER = {
    "one_to_many_items": Column("items with one right of several", "", 0),
    "one_to_many": Column("right above all wrong, %", _HIGHER, "%"),
    "mrr": Column("mean reciprocal rank", _HIGHER, 3),
    "kendall": Column("Kendall\u2019s \u03c4-b with gold", _HIGHER, 3),
    "spearman": Column("Spearman\u2019s \u03c1 with gold", _HIGHER, 3),
    "picked_gold": Column("gold of the top response", _HIGHER, 3),
    "picked_gold_random": Column("gold of a random response", "", 3),
    "picked_gold_best": Column("gold of the best response", "", 3),
}
FLIPS = {
    "fixed": Column("items fixed", "", 0),
    "broken": Column("items broken", "", 0),
    "sign_test_p": Column("p, sign test", "", "p"),
    "starc_to_base": Column("STARC distance", "from the base", 3),
}


def known_metrics() -> dict[str, Column]:
    """All metrics with a column of their own."""
    return CALIBRATION | ABSTENTION | PAIRS | ORDER | FLIPS


class Bold(NamedTuple):
    """A cell with its first part in bold."""

    text: str
    after: str = ""


@dataclass(frozen=True)
class Table:
    """A table whose first column names the rows and is set left, the others right."""

    caption: str
    head: Sequence[str]
    body: Sequence[Sequence[str | Bold]]


def markdown(tables: Sequence[Table], notes: Sequence[str]) -> str:
    """Write tables as GitHub-flavored Markdown, each with its caption above it, and the notes as paragraphs below."""
    blocks = []
    for table in tables:
        rule = [":--", *["--:"] * (len(table.head) - 1)]
        rows = [list(map(escape_markdown, table.head)), rule, *([_cell(cell) for cell in row] for row in table.body)]
        lines = "\n".join("| " + " | ".join(row) + " |" for row in rows)
        blocks.append(f"{escape_markdown(table.caption)}\n\n{lines}")
    return "\n\n".join([*blocks, *map(escape_markdown, notes)]) + "\n"


def _cell(cell: str | Bold) -> str:
    if isinstance(cell, str):
        return escape_markdown(cell)
    return f"**{escape_markdown(cell.text)}** {escape_markdown(cell.after)}".rstrip()


def overview(evaluation: Evaluation, format: Format = "markdown") -> str:
    """The overall score of every benchmark: one row a benchmark, one column a scorer, and the differences.

    Args:
        evaluation: the results.
        format: "markdown" or "csv" (see `COLUMNS`).

    Returns:
        The table with what must be known to read it; a newline ends it.

    Raises:
        ConfigError: another format.
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
    return markdown(tables, notes)


def details(evaluation: Evaluation, format: Format = "markdown") -> str:
    """All scores of every benchmark and, in Markdown, the other measures and the benchmarks' notes; see `overview`."""
    check_format(format)
    if format == "csv":
        return _csv(row for result in evaluation.benchmarks for row in _rows(evaluation, result, result.scores))
    parts = []
    for result in evaluation.benchmarks:
        rows = [(score.name, result, score) for score in result.scores]
        tables = [*_score_tables(evaluation, "Score", rows, result.title), _measures(result)]
        notes = [*(f"{result.title}: {note}" for note in result.notes), *_shared([result]), *left_out([result])]
        parts.append(markdown(tables, notes))
    legend = _legend(evaluation, "all sections and subsets of a benchmark (for its overall score: of all benchmarks)")
    legend.append(f"Intervals of the other measures are from at most {MOST_RESAMPLES:,} resamples.")
    return "\n".join([*parts, markdown([], legend)])


def check_format(format: str) -> None:
    """Raise a ConfigError unless `format` is one that tables can take."""
    if format not in FORMATS:
        raise ConfigError(f"There is no table format {format!r}. Choose one of {', '.join(FORMATS)}.")


def _score_tables(
    evaluation: Evaluation, first: str, rows: Sequence[tuple[str, BenchmarkResult, Score]], caption: str
) -> list[Table]:
    """Values of all scorers and, if there are several, their differences from the reference and from their own base."""
    names, reference = list(evaluation.bases), evaluation.reference
    marked = [f"{name} (reference)" if name == reference and len(names) > 1 else name for name in names]
    body = [
        [label, f"{result.counts[score.name][0]:,}", *(_value(result, score.name, name) for name in names)]
        for label, result, score in rows
    ]
    tables = [Table(f"{caption}, percent", [first, "Items", *marked], body)]

    def differences(names: Sequence[str], head: Sequence[str], words: str, gain: bool) -> None:
        if names:
            body = [
                [label, *(_change(result, score.name, name, gain) for name in names)] for label, result, score in rows
            ]
            tables.append(Table(f"{caption}: difference from {words}, points", [first, *head], body))

    others, away = [name for name in names if name != reference], apart(evaluation)
    differences(others, others, reference, gain=False)
    heads = [f"{name} minus {evaluation.bases[name]}" for name in away]
    differences(away, heads, "the scorer's own base", gain=True)
    return tables


def _value(result: BenchmarkResult, score: str, name: str) -> str | Bold:
    scorer = result.scorers[name]
    value = scorer.entries[score].value
    text, ends = decimal(100 * value.value, 1), _interval(value, 100, 1)
    if score in scorer.best:
        return Bold(text, ends)
    return f"{text}{'†' if score in scorer.not_worse else ''} {ends}"


def _change(result: BenchmarkResult, score: str, name: str, gain: bool) -> str:
    entry = result.scorers[name].entries[score]
    change, p = (entry.gain, entry.p_gain_holm) if gain else (entry.difference, entry.p_holm)
    if change is None or not math.isfinite(change.value):
        return decimal(None, 1)
    mark = "*" if p is not None and p <= SIGNIFICANT else ""
    ends = _interval(change, 100, 1, sign=True) + (f", {p_value(p)}" if p is not None else "")
    return f"{decimal(100 * change.value, 1, sign=True)}{mark} {ends}"


def _measures(result: BenchmarkResult) -> Table:
    names = list(dict.fromkeys(name for scorer in result.scorers.values() for name in scorer.metrics))
    body = [[name, *(_measure(name, one.metrics.get(name)) for one in result.scorers.values())] for name in names]
    return Table(f"{result.title}: other measures", ["Measure", *result.scorers], body)


def _measure(name: str, estimate: Estimate | None) -> str:
    column = known_metrics().get(name)
    unit = 3 if column is None else column.unit
    if estimate is None:
        return decimal(None, 1)
    if unit == "p":
        return p_value(estimate.value)
    if unit == "%":
        return f"{percent(estimate.value)} {_interval(estimate, 100, 1)}"
    return f"{decimal(estimate.value, unit)} {_interval(estimate, 1, unit)}"


def _interval(estimate: Estimate, scale: float, digits: int, sign: bool = False) -> str:
    if not (math.isfinite(estimate.low) and math.isfinite(estimate.high)):
        return ""
    return interval(scale * estimate.low, scale * estimate.high, digits, sign)


def _legend(evaluation: Evaluation, family: str) -> list[str]:
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
    """What the overall scores would be with ties broken at random, in expectation, where that differs."""
    told = []
    for result in results:
        entries = {name: scorer.entries[result.scores[0].name] for name, scorer in result.scorers.items()}
        changed = [
            f"{name} {decimal(100 * entry.shared.value, 1)} instead of {decimal(100 * entry.value.value, 1)}"
            for name, entry in entries.items()
            if abs(entry.shared.value - entry.value.value) > 1e-12
        ]
        if changed:
            told.append(f"{result.title}: {', '.join(changed)}")
    if not told:
        return []
    return [
        "Overall scores with ties between right and wrong responses broken at random (in expectation): "
        f"{'; '.join(told)}."
    ]


def training_notes(results: Sequence[BenchmarkResult]) -> list[str]:
    """What readers have to know of items with prompts that models were fitted on, by benchmark."""
    looked = [(result.title, result.training) for result in results if result.training is not None]
    lines = [f"{title}: {told}" for title, training in looked if (told := training.sentence()) is not None]
    unknown = list(dict.fromkeys(name for _, training in looked for name in training.unknown))
    if unknown:
        lines.append(
            f"Which prompts {' and '.join(unknown)} {'were' if len(unknown) > 1 else 'was'} fitted on is not known: "
            "training pairs among the items, if there are any, count like others."
        )
    return lines


def few_notes(results: Sequence[BenchmarkResult]) -> list[str]:
    """Benchmarks with too few items to tell rewards apart, and the smallest difference that they could show."""
    lines = []
    for result in results:
        score = result.scores[0].name
        entries = [scorer.entries[score] for scorer in result.scorers.values() if score in scorer.entries]
        few = [one for one in entries if one.few]
        if few:
            compared = [one for one in few if one.difference is not None] or few
            seen = [one.smallest for one in compared if one.smallest is not None]
            smallest = max(seen) if len(seen) == len(compared) else None
            items, prompts = result.counts[score]
            behind = (items, "item") if items <= prompts else (prompts, "prompt")
            lines.append(f"{result.title}: {too_few(behind[0], smallest, behind[1])}.")
    return lines


def left_out(results: Sequence[BenchmarkResult]) -> list[str]:
    """Items that are in no number, by benchmark and reason, and training pairs that are in some."""
    lines = [*few_notes(results), *training_notes(results)]
    for result in results:
        if excluded := {reason: n for reason, n in result.excluded.items() if reason != FITTED_ON}:
            lines.append(f"{result.title}: left out before scoring: {_reasons(excluded)}.")
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
    # Of the whole benchmark: a score may have fewer.
    looked = result.training
    training = looked.fitted if looked is not None and looked.rule == "label" else 0
    for score in scores:
        items, prompts = result.counts[score.name]
        for name in evaluation.bases:
            entry = result.scorers[name].entries[score.name]
            change, gain = (one or Estimate(math.nan, math.nan, math.nan) for one in (entry.difference, entry.gain))
            numbers = (
                entry.value.value, entry.value.low, entry.value.high, entry.shared.value, change.value, change.low,
                change.high, entry.p, entry.p_holm, gain.value, gain.low, gain.high, entry.p_gain, entry.p_gain_holm,
            )  # fmt: skip
            counts = (items, prompts, training)
            yield [result.name, score.name, score.kind, name, *map(_number, numbers), *map(str, counts)]


def _number(value: float | None) -> str:
    return "" if value is None or not math.isfinite(value) else repr(float(value))


def _csv(rows: Iterator[list[str]]) -> str:
    return csv_text([COLUMNS, *rows])
