from __future__ import annotations

import math
from dataclasses import replace

import pytest
from tests.report import small

from ebrm.evaluation import BenchmarkResult, Cell, Evaluation
from ebrm.metrics import Bootstrap, Estimate
from ebrm.report.benchmark_scores import scorer_columns, scores_section
from ebrm.report.page import GridCell
from ebrm.report.words import NO_BREAK

PAIR = {"rm": None, "ebrm": "rm"}
ROW = {"rm": (0.5, None), "ebrm": (0.6, 0.01)}


def cells(evaluation: Evaluation, grid: int = 0, row: int = 0) -> list[GridCell]:
    return list(scores_section(evaluation).grids[grid].groups[0][1][row].cells)


def plain(text: str) -> str:
    return text.replace(NO_BREAK, " ")


def parts(count: int, kind: str = "subset", title: str = "A") -> BenchmarkResult:
    names = [f"part {number}" for number in range(count)]
    return small.benchmark(
        title, {name: ROW for name in ["overall", *names]}, "rm", kinds={name: kind for name in names}
    )


def test_a_cell_says_score_interval_difference_and_whether_it_is_clear() -> None:
    rows = [ROW, {"rm": (0.5, None), "ebrm": (0.45, 0.02)}, {"rm": (0.5, None), "ebrm": (0.55, 0.2)}]
    evaluation = small.overall_only(rows, PAIR)
    rm, ebrm = cells(evaluation)
    assert (rm.value, plain(rm.beside), rm.below, rm.mark) == ("50.0", "[49.0, 51.0]", "", None)
    assert (ebrm.value, plain(ebrm.beside)) == ("60.0", "[59.0, 61.0]")
    assert plain(ebrm.below) == "+10.0 [+8.0, +12.0]" and ebrm.mark == ("▲", "clearly better")
    assert cells(evaluation, row=1)[1].mark == ("▼", "clearly worse")
    assert cells(evaluation, row=2)[1].mark is None


def test_best_and_not_worse_are_marked_among_three_or_more() -> None:
    evaluation = small.overall_only([ROW], PAIR)
    assert not any(cell.strong for cell in cells(evaluation))
    bases: dict[str, str | None] = {"a": None, "b": None, "c": None}
    evaluation = small.overall_only([{"a": (0.5, None), "b": (0.6, 0.3), "c": (0.7, 0.3)}], bases)
    made = evaluation.benchmarks[0]
    near = replace(made.scorers["b"], not_worse=frozenset(["overall"]))
    both = replace(made.scorers["c"], not_worse=frozenset(["overall"]))
    evaluation = replace(evaluation, benchmarks=(replace(made, scorers={**made.scorers, "b": near, "c": both}),))
    assert [(cell.value, cell.strong) for cell in cells(evaluation)] == [
        ("50.0", False),
        ("60.0†", False),
        ("70.0", True),
    ]
    assert "†" in scores_section(evaluation).text[0]


def test_many_scorers_leave_no_room_for_intervals_of_differences() -> None:
    for count, below in ((4, "+10.0 [+8.0, +12.0]"), (5, "+10.0")):
        bases: dict[str, str | None] = {f"rm{number}": None for number in range(count)}
        row: dict[str, small.Numbers] = {name: (0.6, 0.5) for name in bases} | {"rm0": (0.5, None)}
        evaluation = small.overall_only([row], bases)
        assert plain(cells(evaluation)[1].below) == below
        assert ("results.json" in scores_section(evaluation).text[0]) == (count == 5)


def test_shades_run_from_the_lowest_to_the_highest_score_of_the_page() -> None:
    rows = [{"rm": (value, None)} for value in (0.4, 0.65, 0.9)]
    section = scores_section(small.overall_only(rows, {"rm": None}))
    assert [row.cells[0].shade for row in section.grids[0].groups[0][1]] == [0, 5, 10]
    assert section.grids[0].scale == ("40%", "90%")
    # Bounds are multiples of 5%, and a fifth apart at least, so that equal scores do not look far apart.
    narrow = scores_section(small.overall_only([{"rm": (0.52, None)}, {"rm": (0.54, None)}], {"rm": None}))
    assert narrow.grids[0].scale == ("50%", "70%")
    assert [row.cells[0].shade for row in narrow.grids[0].groups[0][1]] == [1, 2]


def test_every_shade_is_one_of_the_pages(evaluation: Evaluation) -> None:
    shades = {
        cell.shade
        for grid in scores_section(evaluation).grids
        for _, rows in grid.groups
        for row in rows
        for cell in row.cells
    }
    assert shades <= {None, *range(11)} and len(shades) > 5


def test_missing_numbers_are_dashes_without_shade() -> None:
    evaluation = small.overall_only([ROW], PAIR)
    made = evaluation.benchmarks[0]
    nothing = Estimate(math.nan, math.nan, math.nan)
    gone = replace(made.scorers["ebrm"], cells={"overall": Cell(nothing, nothing, nothing)})
    known = replace(made.scorers["rm"], cells={"overall": Cell(small.exact(0.5), small.exact(0.5))})
    evaluation = replace(evaluation, benchmarks=(replace(made, scorers={"rm": known, "ebrm": gone}),))
    rm, ebrm = cells(evaluation)
    assert (ebrm.value, ebrm.beside, ebrm.below, ebrm.shade) == ("–", "", "", None)
    assert plain(rm.beside) == "[no interval]"
    only = replace(evaluation, benchmarks=(replace(made, scorers={"rm": known}),))
    assert cells(only)[1].value == "–"


def test_differences_without_interval_are_written_alone() -> None:
    evaluation = small.overall_only([ROW], PAIR)
    made = evaluation.benchmarks[0]
    lonely = replace(made.scorers["ebrm"].cells["overall"], difference=small.exact(0.1))
    result = replace(made.scorers["ebrm"], cells={"overall": lonely})
    evaluation = replace(evaluation, benchmarks=(replace(made, scorers={**made.scorers, "ebrm": result}),))
    assert cells(evaluation)[1].below == "+10.0"


def test_rows_say_how_many_items_and_prompts_there_are() -> None:
    few = small.benchmark("A", {"overall": ROW, "s": ROW}, "rm", prompts=19)
    section = scores_section(small.evaluation([few], PAIR))
    row = section.grids[0].groups[0][1][0]
    assert (row.name, plain(row.detail), row.strong) == ("A *", "38 items, 19 prompts", True)
    subset = section.grids[1].groups[0][1][0]
    assert (subset.name, subset.strong) == ("s *", False)
    assert any("Fewer than 20 prompts" in note for note in section.notes)
    enough = scores_section(small.evaluation([small.benchmark("A", {"overall": ROW}, "rm", prompts=20)], PAIR))
    assert enough.grids[0].groups[0][1][0].name == "A" and enough.notes == []


def test_few_scores_are_shown_and_many_subsets_folded() -> None:
    ten, eleven = (scores_section(small.evaluation([parts(count)], PAIR)) for count in (10, 11))
    assert [(grid.caption, grid.folded) for grid in ten.grids[1:]] == [("A: 10 subsets", False)]
    assert [(grid.caption, grid.folded) for grid in eleven.grids[1:]] == [
        ("A: 11 subsets (11 clearly better, 0 clearly worse)", True)
    ]


def test_sections_stay_open_where_subsets_are_folded() -> None:
    names = [f"s{number}" for number in range(12)]
    kinds = {"one": "section", "two": "section"}
    weights = {"one": {"s0": 0.5, "s1": 0.5}, "two": {f"s{n}": 0.1 for n in range(2, 11)}}
    made = small.benchmark("A", {n: ROW for n in ["overall", *kinds, *names]}, "rm", kinds=kinds, weights=weights)
    _, sections, subsets = scores_section(small.evaluation([made], PAIR)).grids
    assert sections.caption == "A: 2 sections" and not sections.folded
    assert all(row.strong for row in sections.groups[0][1])
    assert [(title, len(rows)) for title, rows in subsets.groups] == [("one", 2), ("two", 9), ("other subsets", 1)]


def test_subsets_of_several_sections_are_in_none() -> None:
    names = [f"s{number}" for number in range(11)]
    kinds = {"one": "section", "all": "section"}
    weights = {"one": {"s0": 1.0}, "all": dict.fromkeys(names, 1.0)}
    made = small.benchmark("A", {n: ROW for n in ["overall", *kinds, *names]}, "rm", kinds=kinds, weights=weights)
    subsets = scores_section(small.evaluation([made], PAIR)).grids[2]
    assert [(title, [row.name for row in rows]) for title, rows in subsets.groups] == [
        ("all", names[1:]),
        ("other subsets", ["s0"]),
    ]


def test_subsets_partly_in_a_section_are_not_in_it() -> None:
    names = [f"s{number}" for number in range(11)]
    weights = {"one": {"s0": 1.0, "s1": 1.0}, "s1": {"s1": 1.0, "x": 1.0}}
    scores = {n: ROW for n in ["overall", "one", *names]}
    made = small.benchmark("A", scores, "rm", kinds={"one": "section"}, weights=weights)
    subsets = scores_section(small.evaluation([made], PAIR)).grids[2]
    assert [(title, len(rows)) for title, rows in subsets.groups] == [("one", 1), ("other subsets", 10)]


@pytest.mark.parametrize(("benchmarks", "folded"), [(6, False), (7, True)])
def test_a_crowded_page_is_folded(benchmarks: int, folded: bool) -> None:
    made = [parts(10, title="ABCDEFG"[number]) for number in range(benchmarks)]
    grids = scores_section(small.evaluation(made, PAIR)).grids
    assert [grid.folded for grid in grids] == [False] + [folded] * benchmarks
    assert [grid.narrow for grid in grids] == [False] + [True] * benchmarks


def test_what_is_open_comes_before_what_is_folded() -> None:
    made = [parts(30, title="A"), parts(2, title="B")]
    captions = [grid.caption[0] for grid in scores_section(small.evaluation(made, PAIR)).grids]
    assert captions == ["O", "B", "A"]


def test_a_folded_table_says_what_is_in_it() -> None:
    rows = {f"s{n}": {"rm": (0.5, None), "ebrm": (0.5 + 0.1 * (n - 6), p)} for n, p in enumerate([0.9] * 11)}
    unclear = small.benchmark("A", {"overall": ROW, **rows}, "rm")
    assert scores_section(small.evaluation([unclear], PAIR)).grids[1].caption == "A: 11 subsets (no clear difference)"
    alone = small.benchmark("A", {name: {"rm": (0.5, None)} for name in ["overall", *rows]}, "rm")
    assert scores_section(small.evaluation([alone], {"rm": None})).grids[1].caption == "A: 11 subsets"


def test_columns_say_who_refines_whom() -> None:
    bases: dict[str, str | None] = {"rm": None, "ebrm": "rm", "e2": "gone"}
    evaluation = Evaluation((), bases, "ebrm", Bootstrap(1), 1)
    assert scorer_columns(evaluation) == [("rm", ""), ("ebrm", "reference, refines rm"), ("e2", "refines gone")]
    assert scorer_columns(Evaluation((), {"rm": None}, "rm", Bootstrap(1), 1)) == [("rm", "")]


def test_every_score_of_every_scorer_is_on_the_page(evaluation: Evaluation) -> None:
    found = {}
    for grid in scores_section(evaluation).grids[1:]:
        title = grid.caption.split(":")[0]
        for _, rows in grid.groups:
            found.update({(title, row.name.removesuffix(" *")): [cell.value for cell in row.cells] for row in rows})
    for benchmark in evaluation.benchmarks:
        for score in benchmark.scores[1:]:
            values = [benchmark.scorers[name].cells[score.name].value.value for name in evaluation.bases]
            assert found.pop((benchmark.title, score.name)) == [f"{100 * value:.1f}" for value in values]
    assert found == {}
