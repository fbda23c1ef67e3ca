from __future__ import annotations

import math
from dataclasses import replace

import pytest
from tests.report import small

from ebrm.evaluation import Cell, Evaluation
from ebrm.metrics import Bootstrap, Estimate
from ebrm.report import benchmark_verdicts as verdicts

PAIR = {"rm": None, "ebrm": "rm"}


@pytest.mark.parametrize(
    ("difference", "p_holm", "found"),
    [
        (0.1, 0.05, "better"),
        (0.1, 0.0501, "no clear difference"),
        (-0.1, 0.0001, "worse"),
        (-0.1, 0.6, "no clear difference"),
        (0.1, None, "not tested"),
        (0.1, math.nan, "not tested"),
        (None, 0.01, "not tested"),
    ],
)
def test_only_the_corrected_test_counts(difference: float | None, p_holm: float | None, found: str) -> None:
    estimate = None if difference is None else small.around(difference, 0.5)
    assert verdicts.verdict(Cell(small.exact(0.6), small.exact(0.6), estimate, 0.0001, p_holm)) == found


def test_no_cell_is_not_tested() -> None:
    evaluation = small.overall_only([{"rm": (0.5, None), "ebrm": (0.6, 0.01)}], PAIR)
    assert verdicts.verdict(verdicts.cell_of(evaluation.benchmarks[0], "absent", "overall")) == "not tested"
    assert verdicts.cell_of(evaluation.benchmarks[0], "rm", "absent") is None
    assert verdicts.verdict(verdicts.cell_of(evaluation.benchmarks[0], "ebrm", "overall")) == "better"


@pytest.mark.parametrize(
    ("bases", "expected"),
    [
        ({"rm": None}, [{"base": "rm"}]),
        ({"rm": None, "ebrm": "rm"}, [{"base": "rm", "refined": "ebrm"}]),
        (
            {"a": None, "a2": "a", "b": None, "a3": "a"},
            [{"base": "a", "refined": "a2"}, {"base": "b"}, {"base": "a", "refined": "a3"}],
        ),
        ({"ebrm": "absent", "rm": None}, [{"refined": "ebrm"}, {"base": "rm"}]),
    ],
)
def test_a_refined_reward_is_drawn_with_its_base(bases: dict[str, str | None], expected: list[dict[str, str]]) -> None:
    evaluation = Evaluation((), bases, next(iter(bases)), Bootstrap(1), 1)
    assert verdicts.families(evaluation) == expected
    assert sorted({who for roles in expected for who in roles.values()}) == sorted(bases)


def test_a_scorer_refines_only_what_is_there() -> None:
    evaluation = Evaluation((), {"x": "gone", "rm": None, "y": "rm"}, "rm", Bootstrap(1), 1)
    assert verdicts.refined_scorers(evaluation) == ["y"]
    assert verdicts.others(evaluation) == ["x", "y"]


def test_equal_titles_are_told_apart() -> None:
    rows = [{"rm": (0.5, None)}] * 3
    evaluation = small.overall_only(rows, {"rm": None})
    one, two, three = evaluation.benchmarks
    evaluation = replace(evaluation, benchmarks=(one, replace(two, title="A"), three))
    assert verdicts.titles(evaluation) == {"a": "A (a)", "b": "A (b)", "c": "C"}


def test_benchmarks_by_verdict() -> None:
    numbers: list[dict[str, small.Numbers]] = [
        {"rm": (0.5, None), "ebrm": (0.6, 0.01)},
        {"rm": (0.5, None), "ebrm": (0.4, 0.02)},
        {"rm": (0.5, None), "ebrm": (0.9, 0.2)},
        {"rm": (0.5, None), "ebrm": (0.9, None)},
        {"rm": (0.5, None), "ebrm": (0.6, 0.03)},
    ]
    found = verdicts.by_verdict(small.overall_only(numbers, PAIR), "ebrm")
    assert {word: [b.title for b in some] for word, some in found.items()} == {
        "better": ["A", "E"],
        "worse": ["B"],
        "no clear difference": ["C"],
        "not tested": ["D"],
    }


def test_parts_are_sections_and_subsets_of_all_but_the_reference() -> None:
    made = small.benchmark("A", {name: {"rm": (0.5, None), "ebrm": (0.6, 0.5)} for name in ("overall", "x", "y")}, "rm")
    parts = list(verdicts.part_cells(small.evaluation([made], PAIR)))
    assert [(score.name, scorer) for _, score, scorer, _ in parts] == [("x", "ebrm"), ("y", "ebrm")]
    estimates = [cell.difference for *_, cell in parts]
    assert all(isinstance(one, Estimate) and one.value == pytest.approx(0.1) for one in estimates)


def test_families_too_large_for_the_permutations_are_named() -> None:
    scores = {name: {"rm": (0.5, None), "ebrm": (0.6, 0.5)} for name in ("overall", *"abcdef")}
    made = [small.benchmark("A", scores, "rm"), small.benchmark("B", dict(list(scores.items())[:6]), "rm")]
    evaluation = small.evaluation(made, PAIR)
    # The smallest p is 1 / (n + 1); with 99 permutations five tests can just be won, 5 * 0.01 = 0.05, and six cannot.
    assert verdicts.too_few_permutations(evaluation) == []
    assert verdicts.too_few_permutations(replace(evaluation, permutations=99)) == ["A"]
    assert verdicts.too_few_permutations(replace(evaluation, permutations=98)) == ["A", "B"]
    assert verdicts.too_few_permutations(replace(evaluation, permutations=19)) == ["the overall scores", "A", "B"]
    alone = small.evaluation([small.benchmark("A", {"overall": {"rm": (0.5, None)}}, "rm")], {"rm": None})
    assert verdicts.too_few_permutations(alone) == []
