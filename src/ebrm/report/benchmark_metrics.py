"""Numbers behind the scores, as tables: how each metric is named and written."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from ebrm.evaluation import Evaluation
from ebrm.metrics import Estimate
from ebrm.report.benchmark_verdicts import titles
from ebrm.report.page import Grid, GridCell, GridRow
from ebrm.report.words import NONE, decimal, interval, p_number

# With more rows than this a table of metrics is folded.
_OPEN_ROWS = 12


@dataclass(frozen=True)
class Column:
    """How a metric is written: its heading, the line below it, and its unit or its number of decimals."""

    heading: str
    detail: str
    unit: Literal["%", "p"] | int


_LOWER, _HIGHER = "lower is better", "higher is better"
#: Metrics by the section that shows them; their names are explained in `ebrm.evaluation.measures`.
CALIBRATION = {
    "ece": Column("calibration error (ECE), %", _LOWER, "%"),
    "ece_if_calibrated": Column("ECE by chance alone, %", "", "%"),
    "brier": Column("Brier score", _LOWER, 3),
    "log_loss": Column("log loss, nats", _LOWER, 3),
    "interval_coverage": Column("base rewards inside interval, %", "", "%"),
    "interval_level": Column("claimed by interval, %", "", "%"),
}
ABSTENTION = {
    "error_auroc_confidence": Column("AUROC for error", f"by confidence, {_HIGHER}", 3),
    "error_auroc_std": Column("AUROC for error", f"by std, {_HIGHER}", 3),
    "aurc_confidence": Column("area, %", f"by confidence, {_LOWER}", "%"),
    "aurc_std": Column("area, %", f"by std, {_LOWER}", "%"),
    "aurc_gain_confidence": Column("gained, points", f"by confidence, {_HIGHER}", "%"),
    "aurc_gain_std": Column("gained, points", f"by std, {_HIGHER}", "%"),
    "aurc_random": Column("area, %", "at random", "%"),
    "aurc_best": Column("area, %", "best possible", "%"),
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
    "fixed": Column("items put right", "", 0),
    "broken": Column("items put wrong", "", 0),
    "sign_test_p": Column("p, sign test", "", "p"),
    "starc_to_base": Column("STARC distance", "from the base", 3),
}


def all_metrics(evaluation: Evaluation) -> list[Mapping[str, Estimate]]:
    """The metrics of every scorer on every benchmark."""
    return [result.metrics for benchmark in evaluation.benchmarks for result in benchmark.scorers.values()]


def unknown_metrics(evaluation: Evaluation) -> dict[str, Column]:
    """Metrics that no section here knows, under the names they have."""
    known = {*CALIBRATION, *ABSTENTION, *PAIRS, *ORDER, *FLIPS}
    found = dict.fromkeys(name for metrics in all_metrics(evaluation) for name in metrics if name not in known)
    return {name: Column(name.replace("_", " "), "", 3) for name in found}


def metric_grid(
    evaluation: Evaluation, caption: str, columns: Mapping[str, Column], scorers: Sequence[str] | None = None
) -> Grid | None:
    """A table of metrics: the scorers under each benchmark, or the benchmarks alone if there is one scorer.

    Args:
        evaluation: where the numbers are.
        caption: what the table shows.
        columns: metric to how it is written; those that no scorer has are left out.
        scorers: which scorers; None: all.

    Returns:
        The table, or None if there is no such metric.
    """
    names = titles(evaluation)
    scorers = list(evaluation.bases) if scorers is None else scorers
    table = {
        benchmark.name: {who: benchmark.scorers[who].metrics for who in scorers if who in benchmark.scorers}
        for benchmark in evaluation.benchmarks
    }
    every = [metrics for row in table.values() for metrics in row.values()]
    shown = {key: column for key, column in columns.items() if any(key in metrics for metrics in every)}
    if not shown:
        return None
    groups: list[tuple[str, list[GridRow]]] = []
    for benchmark in evaluation.benchmarks:
        rows = [
            GridRow(who, [_cell(metrics.get(key), column) for key, column in shown.items()])
            for who, metrics in table[benchmark.name].items()
            if any(key in metrics for key in shown)
        ]
        if rows:
            groups.append((names[benchmark.name], rows))
    if len(scorers) == 1:
        groups = [("", [GridRow(title, row.cells) for title, rows in groups for row in rows])]
    total = sum(len(rows) for _, rows in groups)
    return Grid(
        caption,
        "benchmark" if len(scorers) == 1 else "reward",
        [(column.heading, column.detail) for column in shown.values()],
        groups,
        folded=total > _OPEN_ROWS,
    )


def metric_value(estimate: Estimate | None, column: Column) -> str:
    """Write a metric without its interval."""
    if estimate is None:
        return NONE
    if column.unit == "p":
        return p_number(estimate.value)
    scale, digits = _scale(column)
    return decimal(scale * estimate.value, digits)


def _scale(column: Column) -> tuple[float, int]:
    return (1.0, column.unit) if isinstance(column.unit, int) else (100.0, 1)


def _cell(estimate: Estimate | None, column: Column) -> GridCell:
    value = metric_value(estimate, column)
    if estimate is None or not math.isfinite(estimate.low):  # counts and p-values have no interval
        return GridCell(value)
    scale, digits = _scale(column)
    return GridCell(value, below=interval(scale * estimate.low, scale * estimate.high, digits))
