from __future__ import annotations

from dataclasses import replace

from tests.report import small

from ebrm.evaluation import Cell, Evaluation
from ebrm.report.benchmark_run import measured_section
from ebrm.report.page import Table

PAIR = {"rm": None, "ebrm": "rm"}
ROW = {"rm": (0.5, None), "ebrm": (0.6, 0.01)}


def table(evaluation: Evaluation, caption: str) -> Table:
    (found,) = [table for table in measured_section(evaluation).tables if table.caption == caption]
    return found


def captions(evaluation: Evaluation) -> list[str]:
    return [table.caption for table in measured_section(evaluation).tables]


def test_a_bare_evaluation_says_what_was_compared_and_where_it_is_from() -> None:
    evaluation = small.overall_only([ROW, ROW], PAIR)
    assert captions(evaluation) == ["Items", "Where the items are from"]
    assert table(evaluation, "Items").rows == [["A", "200", "100", "0", "0"], ["B", "200", "100", "0", "0"]]
    made = replace(evaluation.benchmarks[0], notes=("First.", "Second."))
    evaluation = replace(evaluation, benchmarks=(made,))
    assert table(evaluation, "Where the items are from").rows == [["A", "made.jsonl\nFirst.\nSecond."]]


def test_items_left_out_are_counted_with_reasons_and_named() -> None:
    evaluation = small.overall_only([ROW], PAIR)
    made = replace(
        evaluation.benchmarks[0],
        excluded={"seen in training": 1200, "not sampled (--limit)": 0, "other": 3},
        unscored={"rm": {"too long": 2, "never": 0}, "ebrm": {"not a number": 1}},
        unscored_items=("one", "two", "three"),
    )
    evaluation = replace(evaluation, benchmarks=(made,))
    assert table(evaluation, "Items").rows == [["A", "200", "100", "1,203", "3"]]
    assert [reason for _, reason in table(evaluation, "Left out, and why").rows] == [
        "seen in training: 1,200 items",
        "other: 3 items",
        "rm, too long: 2 items",
        "ebrm, not a number: 1 item",
        "Left out for every reward: one, two and three.",
    ]
    many = replace(evaluation, benchmarks=(replace(made, unscored_items=tuple(f"i{n}" for n in range(9))),))
    assert table(many, "Left out, and why").rows[-1][1] == (
        "Left out for every reward: i0, i1, i2, i3, i4 and 4 more items."
    )
    five = replace(evaluation, benchmarks=(replace(made, unscored_items=tuple("abcde")),))
    assert table(five, "Left out, and why").rows[-1][1].endswith("a, b, c, d and e.")


def test_ties_are_shown_where_the_rule_matters() -> None:
    evaluation = small.overall_only([ROW, ROW], PAIR)
    made = evaluation.benchmarks[1]
    tied = replace(made.scorers["ebrm"], cells={"overall": Cell(small.exact(0.6), small.exact(0.625))})
    evaluation = replace(
        evaluation,
        benchmarks=(evaluation.benchmarks[0], replace(made, scorers={**made.scorers, "ebrm": tied})),
    )
    shown = table(evaluation, "Overall scores that depend on the rule for ties")
    assert shown.rows == [["B", "ebrm", "60.0%", "62.5%"]]


def test_how_intervals_and_tests_were_made() -> None:
    parts = small.benchmark("A", {"overall": ROW, "s": ROW}, "rm")
    text = " ".join(measured_section(small.evaluation([parts], PAIR)).text)
    assert "central 95% of 2,000 bootstrap resamples" in text and "Seed 0." in text
    assert "9,999 random swaps" in text and "against rm" in text
    assert "the 1 test of the overall scores are one family, the sections and subsets of each benchmark another" in text
    assert "another" not in " ".join(measured_section(small.overall_only([ROW, ROW], PAIR)).text)
    alone = " ".join(measured_section(small.overall_only([{"rm": (0.5, None)}], {"rm": None})).text)
    assert "highest of its row" not in text and "highest of its row" not in alone
    three = small.overall_only([{name: (0.5, 0.5) for name in "abc"}], {"a": None, "b": None, "c": None})
    assert "highest of its row" in " ".join(measured_section(three).text)
    assert "permutation" not in alone and "left out for all of them" in alone


def test_scorers_versions_and_times() -> None:
    evaluation = replace(
        small.overall_only([ROW], PAIR),
        about={"rm": {"path": "here", "grid": {"nodes": 257}}, "ebrm": {}},
        versions={"torch": "2", "ebrm": "0.2"},
        seconds={"features": 61.25, "scores": 1.0},
    )
    assert captions(evaluation)[-3:] == ["rm", "Versions", "Time, seconds"]
    assert table(evaluation, "rm").rows == [["path", "here"], ["grid.nodes", "257"]]
    assert table(evaluation, "Versions").rows == [["ebrm", "0.2"], ["torch", "2"]]
    assert table(evaluation, "Time, seconds").rows == [["features", "61.2"], ["scores", "1.0"], ["together", "62.2"]]
