from __future__ import annotations

from dataclasses import replace

import pytest
from tests.report import small

from ebrm.evaluation import BenchmarkResult, Evaluation, Regression
from ebrm.report.benchmark_changes import changes_section, regressions_section
from ebrm.report.page import Grid, Section
from ebrm.report.words import NO_BREAK

PAIR = {"rm": None, "ebrm": "rm"}
ROW = {"rm": (0.5, None), "ebrm": (0.6, 0.01)}


def against(differences: list[tuple[float, float | None]], prompts: int = 100, title: str = "A") -> BenchmarkResult:
    rows: dict[str, dict[str, small.Numbers]] = {
        f"s{n}": {"rm": (0.5, None), "ebrm": (0.5 + change, p)} for n, (change, p) in enumerate(differences)
    }
    return small.benchmark(title, {"overall": ROW, **rows}, "rm", prompts=prompts)


def changes(evaluation: Evaluation) -> Section:
    section = changes_section(evaluation)
    assert section is not None
    return section


def listed(grid: Grid) -> list[str]:
    return [row.name for _, rows in grid.groups for row in rows]


def test_one_reward_has_no_changes() -> None:
    assert changes_section(small.overall_only([{"rm": (0.5, None)}], {"rm": None})) is None
    assert regressions_section(small.overall_only([ROW], PAIR)) is None


def test_clear_changes_come_first_then_the_largest() -> None:
    section = changes(
        small.evaluation([against([(0.3, 0.5), (0.1, 0.01), (0.2, 0.01), (-0.1, 0.5), (0.0, 0.9)])], PAIR)
    )
    above, below = section.grids
    assert above.caption == "Scores furthest above the reference" and listed(above) == ["s2", "s1", "s0"]
    assert below.caption == "Scores furthest below the reference" and listed(below) == ["s3"]
    cells = above.groups[0][1][0].cells
    assert [(cell.value, cell.beside.replace(NO_BREAK, " "), cell.below) for cell in cells] == [
        ("50.0", "[49.0, 51.0]", ""),
        ("70.0", "[69.0, 71.0]", ""),
        ("+20.0", "[+18.0, +22.0]", ""),
        ("0.010", "", "0.005"),
    ]
    assert cells[2].mark == ("▲", "clearly better") and below.groups[0][1][0].cells[2].mark is None
    assert [name for name, _ in above.columns] == ["rm", "ebrm", "difference", "p after Holm"]
    assert above.groups[0][1][0].detail.replace(NO_BREAK, " ") == "A, 100 prompts"


@pytest.mark.parametrize(("clear", "shown"), [(0, 10), (9, 10), (12, 12), (20, 15)])
def test_all_clear_changes_are_listed_up_to_a_point(clear: int, shown: int) -> None:
    made = against([(0.01 * (n + 1), 0.01 if n < clear else 0.5) for n in range(30)])
    (above,) = changes(small.evaluation([made], PAIR)).grids
    assert len(listed(above)) == shown and above.caption == f"Scores furthest above the reference, {shown} of 30"


def test_the_text_counts_all_and_warns_of_what_was_picked() -> None:
    made = against([(0.1, 0.01), (0.1, 0.04), (-0.1, 0.01), (0.1, 0.5)])
    (text,) = changes(small.evaluation([made], PAIR)).text
    assert text.startswith(
        "Sections and subsets: of 4 comparisons with the reference, 2 are clearly better and 1 clearly"
    )
    assert "smaller on other prompts" in text and "Fewer" not in text and "permutations" not in text
    (none,) = changes(small.evaluation([against([(0.1, 0.5)])], PAIR)).text
    assert "of 1 comparison with the reference, none is clearly better or worse" in none
    (one,) = changes(small.evaluation([against([(-0.1, 0.01)])], PAIR)).text
    assert "none is clearly better and 1 clearly worse" in one


def test_few_prompts_are_counted_but_not_listed() -> None:
    section = changes(small.evaluation([against([(0.1, 0.01)], prompts=19), against([(0.1, 0.01)], title="B")], PAIR))
    assert listed(section.grids[0]) == ["s0"] and "2 are clearly better" in section.text[0]
    assert section.grids[0].groups[0][1][0].detail.startswith("B,")
    assert "fewer than 20 prompts are not listed" in section.text[0]
    enough = changes(small.evaluation([against([(0.1, 0.01)], prompts=20)], PAIR))
    assert listed(enough.grids[0]) == ["s0"] and "not listed" not in enough.text[0]
    few = changes(small.evaluation([against([(0.1, 0.01)], prompts=19)], PAIR))
    assert few.grids == [] and "tables below" not in few.text[0]


def test_too_few_permutations_are_said() -> None:
    evaluation = replace(small.evaluation([against([(0.1, 0.5)] * 10)], PAIR), permutations=99)
    assert changes(evaluation).text[1] == (
        "99 permutations cannot give p-values small enough for so many tests: no difference on A could have been clear."
    )
    overall = replace(small.overall_only([ROW] * 2, PAIR), permutations=19)
    assert "no difference on the overall scores could" in changes(overall).text[0]


def test_benchmarks_without_parts_have_no_tables_of_them() -> None:
    section = changes(small.overall_only([ROW, ROW], PAIR))
    assert section.text == [] and section.grids == [] and len(section.figures) == 2
    assert section.title == "Better and worse than rm"


def test_two_rewards_get_their_scores_drawn_too() -> None:
    section = changes(small.overall_only([ROW], PAIR))
    assert [figure.title for figure in section.figures] == ["Scores", "ebrm minus rm"]
    assert ">base<" in section.figures[0].svg and ">refined<" in section.figures[0].svg
    plain = changes(small.overall_only([{"rm": (0.5, None), "other": (0.6, 0.5)}], {"rm": None, "other": None}))
    assert ">rm<" in plain.figures[0].svg and ">other<" in plain.figures[0].svg
    bases: dict[str, str | None] = {"rm": None, "a": None, "b": None}
    three = changes(small.overall_only([{name: (0.5, 0.5) for name in bases}], bases))
    assert [figure.title for figure in three.figures] == ["a minus rm", "b minus rm"]


def test_scorers_share_the_axis_and_clear_marks_are_filled() -> None:
    bases: dict[str, str | None] = {"rm": None, "near": None, "far": None}
    row: dict[str, small.Numbers] = {"rm": (0.5, None), "near": (0.51, 0.5), "far": (0.95, 0.01)}
    near, far = (figure.svg for figure in changes(small.overall_only([row], bases)).figures)
    assert ">+40<" in near and ">+40<" in far
    assert ">not clear<" in near and ">clear<" not in near
    assert ">clear<" in far and ">not clear<" not in far


def test_few_benchmarks_show_their_sections() -> None:
    made = [
        small.benchmark(title, {name: ROW for name in ("overall", "first", "second")}, "rm", kinds={"first": "section"})
        for title in "ABCD"
    ]
    few, many = (changes(small.evaluation(made[:number], PAIR)).figures[1].svg for number in (3, 4))
    assert few.count("– first") == 3 and "– second" not in few and "– first" not in many


def test_several_scorers_are_named_in_the_tables() -> None:
    bases: dict[str, str | None] = {"rm": None, "a": "rm", "b": None}
    row: dict[str, small.Numbers] = {"rm": (0.5, None), "a": (0.6, 0.5), "b": (0.7, 0.5)}
    section = changes(small.evaluation([small.benchmark("A", {"overall": row, "s": row}, "rm")], bases))
    (above,) = section.grids
    assert [name for name, _ in above.columns] == ["scorer", "reference", "scorer", "difference", "p after Holm"]
    assert [row.cells[0].value for _, rows in above.groups for row in rows] == ["b", "a"]


def test_flips_are_those_against_the_own_base() -> None:
    metrics = {"ebrm": {"fixed": small.exact(12), "broken": small.exact(7), "sign_test_p": small.exact(0.0004)}}
    made = small.benchmark("A", {"overall": ROW}, "rm", metrics=metrics)
    section = changes(small.evaluation([made], PAIR))
    (flips,) = section.grids
    assert flips.caption == "What refining flipped" and [cell.value for cell in flips.groups[0][1][0].cells] == [
        "12",
        "7",
        "<0.001",
    ]
    assert listed(flips) == ["A"] and "own base" in section.notes[0]
    assert changes(small.overall_only([ROW], PAIR)).notes == []


def lost(count: int, scorer: str = "ebrm", title: str = "A") -> list[Regression]:
    return [
        Regression(f"{title}{n}", "group", "the prompt", "good", "bad", (1.5, 0.25), (-0.5, 0.75), scorer)
        for n in range(count)
    ]


def with_regressions(counts: list[int], bases: dict[str, str | None] = PAIR) -> Evaluation:
    evaluation = small.overall_only([{name: (0.5, 0.5) for name in bases}] * len(counts), bases)
    scorers = [name for name, base in bases.items() if base]
    made = [
        replace(b, regressions=tuple(one for scorer in scorers for one in lost(count, scorer, b.title)))
        for b, count in zip(evaluation.benchmarks, counts, strict=True)
    ]
    return replace(evaluation, benchmarks=tuple(made))


def test_a_regression_shows_texts_rewards_and_margins() -> None:
    section = regressions_section(with_regressions([1]))
    assert section is not None and len(section.text) == 1
    (card,) = section.cards
    assert card.title == "A: group" and card.passages[0].text == "the prompt"
    assert [(side.speaker, side.text) for side in card.sides] == [
        ("Right response: base reward 1.50, refined −0.50", "good"),
        ("Wrong response: base reward 0.25, refined 0.75", "bad"),
    ]
    assert card.text == ["Margin: base +1.25, refined −1.25. Item A0."]


def test_regressions_are_taken_in_turn_from_the_benchmarks() -> None:
    section = regressions_section(with_regressions([6, 1, 6, 6]))
    assert section is not None
    items = [card.text[0].rpartition("Item ")[2] for card in section.cards]
    assert items == ["A0.", "A1.", "A2.", "A3.", "B0.", "C0.", "C1.", "C2.", "C3.", "D0.", "D1.", "D2."]
    assert section.text[1].startswith("12 of 19 are shown")


def test_regressions_of_several_refinements_are_all_there() -> None:
    bases: dict[str, str | None] = {"rm": None, "a": "rm", "b": "rm", "c": "rm"}
    section = regressions_section(with_regressions([6, 6], bases))
    assert section is not None and len(section.cards) == 24
    assert [sum(f"refined ({name})" in card.text[0] for card in section.cards) for name in "abc"] == [8, 8, 8]
    many: dict[str, str | None] = {"rm": None} | {f"e{n}": "rm" for n in range(12)}
    section = regressions_section(with_regressions([6, 6], many))
    assert section is not None and len(section.cards) == 36


def test_refined_rewards_with_another_base_are_set_beside_it() -> None:
    row = {"rm": (0.5, None), "other": (0.6, 0.5), "ebrm": (0.7, 0.01)}
    made = small.overall_only([row], {"rm": None, "other": None, "ebrm": "other"})
    (result,) = made.benchmarks
    cell = replace(result.scorers["ebrm"].cells["overall"], gain=small.around(0.1, 0.03), p_gain=0.02, p_gain_holm=0.04)
    scorers = {**result.scorers, "ebrm": replace(result.scorers["ebrm"], cells={"overall": cell})}
    section = changes(replace(made, benchmarks=(replace(result, scorers=scorers),)))
    (grid,) = [grid for grid in section.grids if grid.caption == "Refined rewards beside their own base"]
    ((_, (line,)),) = grid.groups
    assert [one.value for one in line.cells] == ["ebrm", "60.0", "70.0", "+10.0", "0.040"]
    assert line.cells[3].beside == f"[+7.0,{NO_BREAK}+13.0]" and line.cells[4].below == "0.020"
    alone = changes(small.overall_only([{"rm": (0.5, None), "ebrm": (0.7, 0.01)}], {"rm": None, "ebrm": "rm"}))
    assert all(grid.caption != "Refined rewards beside their own base" for grid in alone.grids)
