"""Rows of the evidence's table, and the file they go to."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path

import numpy as np

from ebrm.metrics import Bootstrap
from ebrm.utils.files import atomic_path


@dataclass(frozen=True)
class Row:
    """One number with its 95% interval.

    Attributes:
        question: which question it helps to answer, "1 paper".
        base_rm: kind of base reward model, "head".
        noise: share of the training labels turned round.
        method: whose number it is; of metric "ahead", the method that EBRM is compared with.
        benchmark: test set or pool, or "mean" of the test sets.
        category: "overall", or a part of the benchmark.
        metric: what is measured; scores, gains and what EBRM is ahead by are in points.
        value, low, high: the number and its interval.
        seeds: how many base reward models it is a mean over.
        items: how many items, pairs or prompts.
    """

    question: str
    base_rm: str
    noise: float
    method: str
    benchmark: str
    category: str
    metric: str
    value: float
    low: float
    high: float
    seeds: int
    items: int


#: Metrics that are in points.
POINTS = ("score", "gain", "ahead")
COLUMNS = tuple(field.name for field in fields(Row))


def interval(draws: np.ndarray) -> tuple[float, float]:
    """Central 95% of resampled values [B]."""
    found = Bootstrap().estimate(0.0, draws)
    return found.low, found.high


def write_rows(rows: Iterable[Row], path: Path) -> None:
    """Write the table, sorted: the same rows give the same bytes.

    Raises:
        ValueError: two rows about the same thing.
    """
    ordered = sorted(rows, key=lambda row: astuple(row)[:7])
    for first, second in zip(ordered, ordered[1:], strict=False):
        if astuple(first)[:7] == astuple(second)[:7]:
            raise ValueError(f"two rows about the same thing: {first} and {second}")
    write_table([_line(row) for row in ordered], COLUMNS, path)


def write_table(lines: Iterable[Sequence[object]], columns: Sequence[str], path: Path) -> None:
    """Write a CSV file with `columns`, lines ending in a newline."""
    with atomic_path(path) as partial, open(partial, "w", newline="", encoding="utf-8") as handle:
        out = csv.writer(handle, lineterminator="\n")
        out.writerow(columns)
        out.writerows(lines)


def read_rows(path: Path) -> list[Row]:
    """The rows of a file that `write_rows` wrote."""
    return [_row(line) for line in read_table(path)]


def read_table(path: Path) -> list[dict[str, str]]:
    """The lines of a CSV file by column."""
    with open(path, newline="", encoding="utf-8") as handle:
        return list(csv.DictReader(handle))


def decimal(value: float, digits: int) -> str:
    """A number with so many decimals, empty for NaN; never "-0.00"."""
    if math.isnan(value):
        return ""
    return f"{round(value, digits) + 0.0:.{digits}f}"


def number(text: str) -> float:
    """What `decimal` wrote."""
    return float(text) if text else math.nan


def _line(row: Row) -> list[object]:
    """Points with two decimals, all other numbers, which are smaller, with three."""
    digits = 2 if row.metric in POINTS else 3
    numbers = [decimal(value, digits) for value in (row.value, row.low, row.high)]
    about = [row.question, row.base_rm, decimal(row.noise, 2), *astuple(row)[3:7]]
    return [*about, *numbers, row.seeds, row.items]


def _row(line: Mapping[str, str]) -> Row:
    texts = [line[name] for name in COLUMNS]
    numbers = [number(texts[at]) for at in (7, 8, 9)]
    return Row(texts[0], texts[1], float(texts[2]), *texts[3:7], *numbers, int(texts[10]), int(texts[11]))
