from __future__ import annotations

from dataclasses import replace

import pytest
from tests.report import small

from ebrm.evaluation import Evaluation
from ebrm.report.benchmark_metrics import (
    ABSTENTION,
    CALIBRATION,
    FLIPS,
    ORDER,
    PAIRS,
    Column,
    metric_grid,
    metric_value,
    unknown_metrics,
)
from ebrm.report.words import NO_BREAK

PAIR = {"rm": None, "ebrm": "rm"}
ROW = {"rm": (0.5, None), "ebrm": (0.6, 0.01)}
COLUMNS = {"share": Column("share, %", "better", "%"), "number": Column("n", "", 0), "p": Column("p", "", "p")}


def with_metrics(rm: dict[str, float], ebrm: dict[str, float], benchmarks: int = 1) -> Evaluation:
    metrics = {
        name: {key: small.around(value, 0.1) if key == "share" else small.exact(value) for key, value in row.items()}
        for name, row in (("rm", rm), ("ebrm", ebrm))
    }
    made = [small.benchmark("ABCDEFGH"[n], {"overall": ROW}, "rm", metrics=metrics) for n in range(benchmarks)]
    return small.evaluation(made, PAIR)


def test_every_measure_that_is_made_has_a_column_and_is_in_one_table() -> None:
    tables = (CALIBRATION, ABSTENTION, PAIRS, ORDER, FLIPS)
    names = [name for table in tables for name in table]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.1234, "%", "12.3"),
        (-0.1234, 3, "−0.123"),
        (12345.0, 0, "12,345"),
        (0.0002, "p", "<0.001"),
        (0.04, "p", "0.040"),
    ],
)
def test_metrics_are_written_in_their_unit(value: float, unit: int | str, text: str) -> None:
    assert metric_value(small.exact(value), Column("", "", unit)) == text  # type: ignore[arg-type]
    assert metric_value(None, Column("", "", unit)) == "–"  # type: ignore[arg-type]


def test_a_table_has_the_scorers_under_each_benchmark() -> None:
    evaluation = with_metrics({"share": 0.5}, {"share": 0.25, "number": 1234.0, "p": 0.03}, benchmarks=2)
    grid = metric_grid(evaluation, "Title", COLUMNS)
    assert grid is not None and grid.columns == [("share, %", "better"), ("n", ""), ("p", "")]
    assert grid.corner == "reward" and not grid.folded
    assert [(title, [row.name for row in rows]) for title, rows in grid.groups] == [
        ("A", ["rm", "ebrm"]),
        ("B", ["rm", "ebrm"]),
    ]
    rm, ebrm = (row.cells for row in grid.groups[0][1])
    assert [(cell.value, cell.below.replace(NO_BREAK, " ")) for cell in rm] == [
        ("50.0", "[40.0, 60.0]"),
        ("–", ""),
        ("–", ""),
    ]
    assert [(cell.value, cell.below.replace(NO_BREAK, " ")) for cell in ebrm] == [
        ("25.0", "[15.0, 35.0]"),
        ("1,234", ""),
        ("0.030", ""),
    ]


def test_one_scorer_has_a_row_for_each_benchmark() -> None:
    evaluation = with_metrics({}, {"share": 0.25}, benchmarks=2)
    grid = metric_grid(evaluation, "Title", COLUMNS, ["ebrm"])
    assert grid is not None and grid.corner == "benchmark" and grid.columns == [("share, %", "better")]
    assert [(title, [row.name for row in rows]) for title, rows in grid.groups] == [("", ["A", "B"])]


def test_a_benchmark_or_scorer_without_the_metrics_is_left_out() -> None:
    assert metric_grid(with_metrics({}, {}), "Title", COLUMNS) is None
    assert metric_grid(with_metrics({"other": 1.0}, {}), "Title", COLUMNS) is None
    evaluation = with_metrics({}, {"share": 0.5}, benchmarks=2)
    bare = with_metrics({}, {}, benchmarks=2).benchmarks[1]
    grid = metric_grid(replace(evaluation, benchmarks=(evaluation.benchmarks[0], bare)), "Title", COLUMNS)
    assert grid is not None and [(title, [row.name for row in rows]) for title, rows in grid.groups] == [
        ("A", ["ebrm"])
    ]


def test_long_tables_are_folded() -> None:
    six, seven = (metric_grid(with_metrics({"share": 0.5}, {"share": 0.5}, n), "Title", COLUMNS) for n in (6, 7))
    assert six is not None and seven is not None and (six.folded, seven.folded) == (False, True)


def test_metrics_that_nobody_knows_are_not_lost() -> None:
    evaluation = with_metrics({"ece": 0.1, "new_measure": 0.5}, {"pairs": 3.0, "fixed": 1.0, "another": 0.25})
    found = unknown_metrics(evaluation)
    assert {name: column.heading for name, column in found.items()} == {
        "new_measure": "new measure",
        "another": "another",
    }
