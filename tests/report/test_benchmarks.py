from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from tests.evaluation import suites
from tests.report import small
from tests.report.reader import Reader, plain

from ebrm.errors import DataError
from ebrm.evaluation import BenchmarkResult, Entry, Evaluation, Regression, ScorerResult
from ebrm.metrics import Bootstrap, Estimate
from ebrm.report import benchmarks as report
from ebrm.report import write_benchmark_report
from ebrm.report.benchmarks import benchmark_page, metric_table, panels, part_tables, verdict
from ebrm.report.page import ends, number
from ebrm.report.tables import ABSTENTION, CALIBRATION, FLIPS, ORDER, PAIRS, Column

SECTIONS = ["scores", "changes", "calibration", "abstention", "rewards", "regressions", "measured"]
MakeEvaluation = Callable[..., Evaluation]
Bases = dict[str, str | None]
PAIR: Bases = {"rm": None, "ebrm": "rm"}
ROW: dict[str, small.Numbers] = {"rm": (0.5, None), "ebrm": (0.6, 0.01)}
BETTER, WORSE, UNCLEAR, UNTESTED = (0.6, 0.01), (0.4, 0.01), (0.55, 0.7), (0.9, None)


def page(evaluation: Evaluation) -> Reader:
    with patch.object(report, "forests", return_value={}):  # figures take a second
        return Reader(benchmark_page(evaluation))


def headline(evaluation: Evaluation) -> str:
    return page(evaluation).headline


def pair(*refined: small.Numbers, bases: Bases = PAIR, reference: str = "rm") -> Evaluation:
    (other,) = (name for name in bases if name != reference)
    return small.overall_only([{reference: (0.5, None), other: one} for one in refined], bases, reference)


def many(rows: list[dict[str, small.Numbers]], bases: Bases | str, reference: str | None = None) -> Evaluation:
    return small.overall_only(rows, dict.fromkeys(bases) if isinstance(bases, str) else bases, reference)


def parts(count: int, kind: str = "subset", title: str = "A", prompts: int = 100) -> BenchmarkResult:
    names = [f"part {place}" for place in range(count)]
    scores = {name: ROW for name in ["overall", *names]}
    return small.benchmark(title, scores, "rm", kinds={name: kind for name in names}, prompts=prompts)


def changed(evaluation: Evaluation, place: int = 0, scorer: str | None = None, **changes: Any) -> Evaluation:
    """The evaluation with one benchmark, or one scorer's result in it, changed."""
    made = list(evaluation.benchmarks)
    if scorer is not None:
        result = replace(made[place].scorers[scorer], **changes)
        changes = {"scorers": {**made[place].scorers, scorer: result}}
    made[place] = replace(made[place], **changes)
    return replace(evaluation, benchmarks=tuple(made))


# Verdicts and the headline


@pytest.mark.parametrize(
    ("difference", "p_holm", "found"),
    [
        (0.1, 0.05, "better"),
        (0.1, 0.0501, "no clear difference"),
        (-0.1, 0.0001, "worse"),
        (-0.1, 0.6, "no clear difference"),
        (0.1, None, "too few to tell"),
        (0.1, math.nan, "too few to tell"),
        (None, 0.01, "too few to tell"),
    ],
)
def test_only_the_corrected_test_counts(difference: float | None, p_holm: float | None, found: str) -> None:
    estimate = None if difference is None else small.around(difference, 0.5)
    assert verdict(Entry(small.exact(0.6), small.exact(0.6), estimate, 0.0001, p_holm)) == found


def test_what_is_absent_is_not_tested() -> None:
    made = pair(BETTER).benchmarks[0]
    assert verdict(report.entry_of(made, "absent")) == "too few to tell"
    assert report.entry_of(made, "rm", "absent") is None and verdict(report.entry_of(made, "ebrm")) == "better"


def test_the_verdict_table_has_every_benchmark_once() -> None:
    table = report.verdict_table(pair(BETTER, WORSE, UNCLEAR, UNTESTED, BETTER))
    assert table["ebrm"] == {
        "better": ["A", "E"], "worse": ["B"], "no clear difference": ["C"], "too few to tell": ["D"],
        "highest": ["A", "C", "D", "E"], "clearly highest": ["A", "C", "D", "E"],
    }  # fmt: skip
    assert not any(table["rm"][word] for word in report.VERDICTS) and table["rm"]["highest"] == ["B"]


@pytest.mark.parametrize(
    ("refined", "text"),
    [
        ([BETTER], "ebrm is better than rm on A"),
        ([WORSE], "ebrm is worse than rm on A"),
        ([UNCLEAR], "No clear difference between ebrm and rm on A"),
        ([UNTESTED], "Too few items to tell ebrm and rm apart on A"),
        ([BETTER, BETTER, WORSE, UNCLEAR], "ebrm is better than rm on 2 of 4 benchmarks, and worse on 1"),
        ([BETTER, UNCLEAR, UNTESTED], "ebrm is better than rm on 1 of 3 benchmarks, and worse on none"),
        ([WORSE, UNCLEAR, WORSE], "ebrm is better than rm on none of 3 benchmarks, and worse on 2"),
        ([BETTER, BETTER], "ebrm is better than rm on all 2 benchmarks"),
        ([WORSE, WORSE], "ebrm is worse than rm on all 2 benchmarks"),
        ([UNCLEAR, UNTESTED], "No clear difference between ebrm and rm on any of 2 benchmarks"),
        ([UNTESTED, UNTESTED], "Too few items to tell ebrm and rm apart on any of 2 benchmarks"),
    ],
)
def test_the_headline_counts_significant_differences_only(refined: list[small.Numbers], text: str) -> None:
    assert headline(pair(*refined)) == text


def test_one_reward_is_not_compared() -> None:
    two = many([{"rm": (0.5, None)}, {"rm": (0.75, None)}], {"rm": None})
    assert headline(two) == "rm scores 50.0% on A and 75.0% on B"
    found = page(two)
    assert "p ≤" not in found.text
    assert found.tiles == [("A", "50.0%", "[49.0, 51.0]"), ("B", "75.0%", "[74.0, 76.0]")]
    three = many([{"rm": (value, None)} for value in (0.5, 0.75, 0.25)], {"rm": None})
    assert headline(three) == "rm scores from 25.0% (C) to 75.0% (B) on 3 benchmarks"
    nine = many([{"rm": (place / 20, None)} for place in (9, *range(1, 9))], {"rm": None})
    assert [label for label, *_ in page(nine).tiles] == ["B", "F", "A"]
    nothing = page(many([{"rm": (math.nan, None)}], {"rm": None}))
    assert nothing.headline == "rm has no score on A" and nothing.tiles == []


def test_the_finding_is_of_the_reference_or_its_refinement() -> None:
    assert (
        headline(pair(BETTER, WORSE, reference="ebrm")) == "rm is better than ebrm on 1 of 2 benchmarks, and worse on 1"
    )
    bases: Bases = {"rm": None, "ebrm": "rm", "other": None}
    assert headline(many([{"rm": (0.5, None), "ebrm": BETTER, "other": (0.3, 0.001)}], bases)) == (
        "ebrm is better than rm on A"
    )


@pytest.mark.parametrize(
    ("rows", "text"),
    [
        ([(0.5, 0.6, 0.7)], "c scores highest on A, significantly so"),
        ([(0.5, 0.7, 0.7)], "b and c share the highest score on A"),
        ([(0.5, 0.6, 0.7), (0.5, 0.6, 0.7)], "c scores highest on 2 of 2 benchmarks, significantly on 2"),
        ([(0.5, 0.6, 0.7), (0.8, 0.6, 0.7)], "a and c each score highest on 1 of 2 benchmarks"),
    ],
)
def test_other_rewards_are_ranked(rows: list[tuple[float, ...]], text: str) -> None:
    numbers = [{name: (value, 0.01) for name, value in zip("abc", row, strict=True)} for row in rows]
    assert headline(many(numbers, "abc")) == text


def test_a_lead_that_another_may_share_is_not_significant() -> None:
    evaluation = many([{"a": (0.5, None), "b": (0.6, 0.5), "c": (0.7, 0.5)}], "abc")
    near = changed(evaluation, scorer="b", not_worse=frozenset(["overall"]))
    assert headline(near) == "c scores highest on A, but not significantly so"
    assert page(evaluation).tables["Verdicts against a, by overall scores"].body == [
        ["a reference", "–", "–", "–", "0"],
        ["b", "0", "0", "1 A", "0"],
        ["c", "0", "0", "1 A", "1 A*"],
    ]
    assert page(near).tables["Verdicts against a, by overall scores"].body[2][-1] == "1 A"


def test_no_scores_at_all() -> None:
    evaluation = many([{name: (0.5, None) for name in "abc"}], "abc")
    for name in "abc":
        evaluation = changed(evaluation, scorer=name, best=frozenset())
    assert headline(evaluation) == "No score to compare 3 rewards by"


def test_names_in_the_headline_are_on_one_line_and_not_endless() -> None:
    name = "owner/\n" + "x" * 300
    text = headline(many([{name: (0.5, None), "b": BETTER}], {name: None, "b": name}))
    assert len(text) < 120 and "owner/ xxx" in text and "…" in text


def test_the_top_says_where_and_what_the_words_mean() -> None:
    found = page(pair(BETTER, WORSE, UNCLEAR, UNTESTED))
    assert [tile[1:] for tile in found.tiles] == [("1 of 4", "A"), ("1 of 4", "B"), ("2 of 4", "C; D")]
    assert "corrected (Holm) for 4 comparisons" in found.text and "Where a reward is worse, use rm" in found.text
    one = page(pair(BETTER))
    assert "p ≤ 0.05" in one.text and "corrected (Holm) for" not in one.text and "Where a reward" not in one.text
    assert "95% intervals from 2,000 bootstrap resamples" in one.text and "these prompts cannot tell" in one.text
    assert one.tiles == [
        ("rm", "50.0%", "[49.0, 51.0]"),
        ("ebrm", "60.0%", "[59.0, 61.0]"),
        ("Difference, percentage points", "+10.0", "[+8.0, +12.0]"),
    ]


def test_refinements_of_other_bases_are_said_to_be_tested_elsewhere() -> None:
    bases: Bases = {"rm": None, "ebrm": "rm", "grm": None, "grm2": "grm"}
    text = page(many([{name: UNCLEAR for name in bases} | {"rm": (0.5, None)}], bases)).text
    assert "grm2 refines another reward than the reference rm" in text
    assert "another reward" not in page(pair(BETTER)).text


def test_scorers_are_sorted_into_bases_and_refinements() -> None:
    evaluation = many([dict.fromkeys(("x", "rm", "y"), (0.5, 0.5))], {"x": "gone", "rm": None, "y": "rm"}, "rm")
    assert report.refined_scorers(evaluation) == ["y"] and report.others(evaluation) == ["x", "y"]
    heads = [page(one).tables["Overall scores, %"].head for one in (evaluation, many([ROW], {"rm": None}))]
    assert heads == [["benchmark", "x refines gone", "rm reference", "y refines rm"], ["benchmark", "rm"]]


def test_equal_titles_are_told_apart() -> None:
    evaluation = changed(many([{"rm": (0.5, None)}] * 3, {"rm": None}), 1, title="A")
    assert report.titles(evaluation) == {"a": "A (a)", "b": "A (b)", "c": "C"}


# Scores


def test_a_cell_says_score_interval_difference_and_whether_it_is_significant() -> None:
    found = page(pair(BETTER, (0.45, 0.02), (0.55, 0.2))).tables["Overall scores, %"]
    assert found.head == ["benchmark", "rm reference", "ebrm refines rm"]
    assert [row[1:] for row in found.body] == [
        ["50.0 [49.0, 51.0]", "60.0 [59.0, 61.0] ▲ +10.0 [+8.0, +12.0]"],
        ["50.0 [49.0, 51.0]", "45.0 [44.0, 46.0] ▼ −5.0 [−7.0, −3.0]"],
        ["50.0 [49.0, 51.0]", "55.0 [54.0, 56.0] +5.0 [+3.0, +7.0]"],
    ]


def test_best_and_not_worse_are_marked_among_three_or_more() -> None:
    assert "<strong>" not in page(pair(BETTER)).html
    evaluation = many([{"a": (0.5, None), "b": (0.6, 0.3), "c": (0.7, 0.3)}], "abc")
    for name in "bc":
        evaluation = changed(evaluation, scorer=name, not_worse=frozenset(["overall"]))
    found = page(evaluation)
    assert [cell.split()[0] for cell in found.tables["Overall scores, %"].body[0][1:]] == ["50.0", "60.0†", "70.0"]
    assert re.findall(r"<strong>([\d.]+†?)</strong> <small>\[", found.html) == ["70.0"]


@pytest.mark.parametrize(("count", "below"), [(4, "+10.0 [+8.0, +12.0]"), (5, "+10.0")])
def test_many_scorers_leave_no_space_for_intervals_of_differences(count: int, below: str) -> None:
    names = "abcde"[:count]
    found = page(many([{name: (0.6, 0.5) for name in names} | {"a": (0.5, None)}], names))
    assert found.tables["Overall scores, %"].body[0][2].endswith("61.0] " + below)
    assert ("results.json" in found.text) == (count == 5)
    assert ('<body class="wide">' in found.html) and found.text.startswith(f"{count} reward models on 1 benchmark")


def test_shades_run_from_the_lowest_to_the_highest_score_of_the_page(evaluation: Evaluation) -> None:
    def shades(*values: float) -> tuple[tuple[float, float], list[int]]:
        made = many([{"rm": (value, None)} for value in values], {"rm": None})
        return report.score_bounds(made), list(map(int, re.findall(r'<td class="shade s(\d+)"', page(made).html)))

    assert shades(0.4, 0.65, 0.9) == ((0.4, 0.9), [0, 5, 10])
    # Bounds are multiples of 5%, and a fifth apart at least, so that equal scores do not look far apart.
    assert shades(0.52, 0.54) == ((0.5, 0.7), [1, 2])
    assert set(re.findall(r"shade s(\d+)", benchmark_page(evaluation))) <= set(map(str, range(11)))


def test_missing_numbers_are_dashes_without_shade() -> None:
    nothing = Estimate(math.nan, math.nan, math.nan)
    evaluation = changed(pair(BETTER), scorer="ebrm", entries={"overall": Entry(nothing, nothing, nothing)})
    evaluation = changed(evaluation, scorer="rm", entries={"overall": Entry(small.exact(0.5), small.exact(0.5))})
    assert page(evaluation).tables["Overall scores, %"].body == [
        ["A 200 items, 100 prompts", "50.0 [no interval]", "–"]
    ]


def test_differences_without_interval_are_written_alone() -> None:
    evaluation = pair(BETTER)
    entry = replace(evaluation.benchmarks[0].scorers["ebrm"].entries["overall"], difference=small.exact(0.1))
    found = page(changed(evaluation, scorer="ebrm", entries={"overall": entry}))
    assert found.tables["Overall scores, %"].body[0][2].endswith("] ▲ +10.0")


def test_rows_say_how_many_items_and_prompts_there_are() -> None:
    few = page(small.evaluation([parts(1, prompts=19)], PAIR))
    assert few.tables["Overall scores, %"].body[0][0] == "A * 38 items, 19 prompts"
    assert few.tables["A: 1 subset"].body[0][0].startswith("part 0 *") and "Fewer than 20 prompts: such" in few.text
    enough = page(small.evaluation([parts(0, prompts=20)], PAIR))
    assert "A *" not in enough.text and "Fewer than 20" not in enough.text


def captions(*made: BenchmarkResult, bases: Bases = PAIR) -> list[tuple[str, bool]]:
    """Captions of the tables of sections and subsets, and whether they are folded."""
    found = page(small.evaluation(made, bases))
    return [(found.by_id[table.label], table.folded) for table in found.made if re.match(r"scores-\d", table.label)]


def test_few_scores_are_shown_and_many_subsets_folded() -> None:
    assert captions(parts(10)) == [("A: 10 subsets", False)]
    assert captions(parts(11)) == [("A: 11 subsets (11 significantly better, 0 significantly worse)", True)]


@pytest.mark.parametrize(
    ("weights", "groups"),
    [
        (
            {"one": {"s0": 0.5, "s1": 0.5}, "two": {f"s{n}": 0.1 for n in range(2, 11)}},
            {"one": 2, "two": 9, "other subsets": 1},
        ),
        ({"one": {"s0": 1.0}, "all": {f"s{n}": 1.0 for n in range(12)}}, {"all": 11, "other subsets": 1}),
        ({"one": {"s0": 1.0, "s1": 1.0}, "s1": {"s1": 1.0, "x": 1.0}}, {"one": 1, "other subsets": 11}),
    ],
)
def test_subsets_are_under_the_one_section_that_holds_them(
    weights: dict[str, dict[str, float]], groups: dict[str, int]
) -> None:
    names = [f"s{n}" for n in range(12)]
    kinds = {name: "section" for name in weights if name not in names}
    scores = {name: ROW for name in ["overall", *kinds, *names]}
    evaluation = small.evaluation([small.benchmark("A", scores, "rm", kinds=kinds, weights=weights)], PAIR)
    sections, subsets = part_tables(evaluation)
    assert not sections["folded"] and all(row["strong"] for row in sections["groups"][""]) and subsets["folded"]
    assert {title: len(rows) for title, rows in subsets["groups"].items()} == groups


@pytest.mark.parametrize(("benchmarks", "folded"), [(6, False), (7, True)])
def test_a_crowded_page_is_folded(benchmarks: int, folded: bool) -> None:
    made = [parts(10, title="ABCDEFG"[place]) for place in range(benchmarks)]
    assert [one for _, one in captions(*made)] == [folded] * benchmarks


def test_what_is_open_comes_before_what_is_folded_which_says_what_is_in_it() -> None:
    assert [one[0][0] for one in captions(parts(30, title="A"), parts(2, title="B"))] == ["B", "A"]
    rows = {f"s{n}": {"rm": (0.5, None), "ebrm": (0.5 + 0.1 * (n - 6), 0.9)} for n in range(11)}
    unclear = small.benchmark("A", {"overall": ROW, **rows}, "rm")
    assert captions(unclear) == [("A: 11 subsets (no significant difference)", True)]
    alone = small.benchmark("A", {name: {"rm": (0.5, None)} for name in ["overall", *rows]}, "rm")
    assert captions(alone, bases={"rm": None}) == [("A: 11 subsets", True)]


def test_every_score_of_every_scorer_is_on_the_page(evaluation: Evaluation) -> None:
    found: dict[tuple[str, str], list[str]] = {}
    for caption, table in page(evaluation).tables.items():
        if table.label.startswith("scores-") and table.label != "scores-overall":
            for row in table.body:
                name = re.sub(r" \*?\s?[\d,]+ items?, [\d,]+ prompts?$", "", row[0])
                found[caption.split(":")[0], name] = [cell.split()[0] for cell in row[1:]]
    for benchmark in evaluation.benchmarks:
        for score in benchmark.scores[1:]:
            values = [benchmark.scorers[name].entries[score.name].value.value for name in evaluation.bases]
            assert found.pop((benchmark.title, score.name)) == [f"{100 * value:.1f}" for value in values]
    assert found == {}


# Differences


def against(differences: list[tuple[float, float | None]], prompts: int = 100, title: str = "A") -> BenchmarkResult:
    rows: dict[str, dict[str, small.Numbers]] = {
        f"s{n}": {"rm": (0.5, None), "ebrm": (0.5 + change, p)} for n, (change, p) in enumerate(differences)
    }
    return small.benchmark(title, {"overall": ROW, **rows}, "rm", prompts=prompts)


def largest(*made: BenchmarkResult) -> dict[str, list[str]]:
    tables = page(small.evaluation(made, PAIR)).tables
    return {
        caption: [row[0].split()[0] for row in one.body] for caption, one in tables.items() if "furthest" in caption
    }


def test_significant_differences_come_first_then_the_largest() -> None:
    made = against([(0.3, 0.5), (0.1, 0.01), (0.2, 0.01), (-0.1, 0.5), (0.0, 0.9)])
    assert largest(made) == {
        "Scores furthest above the reference": ["s2", "s1", "s0"],
        "Scores furthest below the reference": ["s3"],
    }
    table = page(small.evaluation([made], PAIR)).tables["Scores furthest above the reference"]
    assert table.head == ["score", "rm %", "ebrm %", "difference points", "p after Holm uncorrected"]
    assert table.body[0] == [
        "s2 A, 100 prompts", "50.0 [49.0, 51.0]", "70.0 [69.0, 71.0]", "▲ +20.0 [+18.0, +22.0]", "0.010 0.005",
    ]  # fmt: skip
    assert table.body[2][3] == "+30.0 [+28.0, +32.0]"


@pytest.mark.parametrize(("clear", "shown"), [(0, 10), (9, 10), (12, 12), (20, 15)])
def test_all_significant_differences_are_listed_up_to_a_point(clear: int, shown: int) -> None:
    found = largest(against([(0.01 * (n + 1), 0.01 if n < clear else 0.5) for n in range(30)]))
    assert {caption: len(names) for caption, names in found.items()} == {
        f"Scores furthest above the reference, {shown} of 30": shown
    }


def test_the_text_counts_all_and_warns_of_selection() -> None:
    text = page(small.evaluation([against([(0.1, 0.01), (0.1, 0.04), (-0.1, 0.01), (0.1, 0.5)])], PAIR)).text
    assert "of 4 comparisons with the reference, 2 are significantly better and 1 significantly worse" in text
    assert "smaller on other prompts" in text and "not listed" not in text and "cannot give p-values" not in text
    none = page(small.evaluation([against([(0.1, 0.5)])], PAIR)).text
    assert "of 1 comparison with the reference, none is significantly better and none significantly worse" in none


def test_few_prompts_are_counted_but_not_listed() -> None:
    few, enough = against([(0.1, 0.01)], prompts=19), against([(0.1, 0.01)], title="B", prompts=20)
    found = page(small.evaluation([few, enough], PAIR))
    assert largest(few, enough) == {"Scores furthest above the reference": ["s0"]} and largest(few) == {}
    assert "2 are significantly better" in found.text and "fewer than 20 prompts are not listed" in found.text
    assert "tables below" not in page(small.evaluation([few], PAIR)).text


def test_too_few_permutations_are_said() -> None:
    scores = {name: {"rm": (0.5, None), "ebrm": (0.6, 0.5)} for name in ("overall", *"abcdef")}
    made = [small.benchmark("A", scores, "rm"), small.benchmark("B", dict(list(scores.items())[:6]), "rm")]
    evaluation = small.evaluation(made, PAIR)

    def too_few(permutations: int) -> list[str]:
        return report.too_few_permutations(replace(evaluation, permutations=permutations))

    # The smallest p is 1 / (n + 1); with 99 permutations five tests can just be won, 5 * 0.01 = 0.05, and six cannot.
    assert [too_few(n) for n in (9999, 99, 98)] == [[], ["A"], ["A", "B"]]
    assert too_few(19) == ["the overall scores", "A", "B"]
    alone = small.evaluation([small.benchmark("A", {"overall": {"rm": (0.5, None)}}, "rm")], {"rm": None})
    assert report.too_few_permutations(alone) == []
    assert "98 permutations cannot give p-values small enough for so many tests: no difference on A, B could" in (
        page(replace(evaluation, permutations=98)).text
    )


def test_two_rewards_get_their_scores_drawn_too() -> None:
    refined = report.forests(pair(BETTER))
    assert list(refined) == ["Scores", "ebrm minus rm"]
    assert ">base<" in refined["Scores"] and ">refined<" in refined["Scores"]
    plain_ = report.forests(many([{"rm": (0.5, None), "other": (0.6, 0.5)}], {"rm": None, "other": None}))
    assert ">rm<" in plain_["Scores"] and ">other<" in plain_["Scores"]
    assert list(report.forests(many([dict.fromkeys("abc", (0.5, 0.5))], "abc"))) == ["b minus a", "c minus a"]


def test_scorers_share_the_axis_and_significant_marks_are_filled() -> None:
    row: dict[str, small.Numbers] = {"rm": (0.5, None), "near": (0.51, 0.5), "far": (0.95, 0.01)}
    near, far = report.forests(many([row], dict.fromkeys(row))).values()
    assert ">+40<" in near and ">+40<" in far
    assert ">not significant<" in near and ">significant<" not in near
    assert ">significant<" in far and ">not significant<" not in far


def test_few_benchmarks_show_their_sections() -> None:
    scores = {name: ROW for name in ("overall", "first", "second")}
    made = [small.benchmark(title, scores, "rm", kinds={"first": "section"}) for title in "ABCD"]
    few, many_ = (report.forests(small.evaluation(made[:n], PAIR))["ebrm minus rm"] for n in (3, 4))
    assert few.count("– first") == 3 and "– second" not in few and "– first" not in many_


def test_several_scorers_are_named_in_the_tables() -> None:
    row: dict[str, small.Numbers] = {"rm": (0.5, None), "a": (0.6, 0.5), "b": (0.7, 0.5)}
    made = small.benchmark("A", {"overall": row, "s": row}, "rm")
    found = page(small.evaluation([made], {"rm": None, "a": "rm", "b": None}))
    above = found.tables["Scores furthest above the reference"]
    assert above.head[:4] == ["score", "scorer", "reference %", "scorer %"]
    assert [row[1] for row in above.body] == ["b", "a"]


def test_flips_are_those_against_the_own_base() -> None:
    metrics = {"ebrm": {"fixed": small.exact(12), "broken": small.exact(7), "sign_test_p": small.exact(0.0004)}}
    found = page(small.evaluation([small.benchmark("A", {"overall": ROW}, "rm", metrics=metrics)], PAIR))
    assert found.tables["Items fixed and broken by refining"].body == [["A", "12", "7", "<0.001"]]
    assert "own base" in found.text and "own base" not in page(pair(BETTER)).text


def test_refined_rewards_with_another_base_are_set_beside_it() -> None:
    row = {"rm": (0.5, None), "other": (0.6, 0.5), "ebrm": (0.7, 0.01)}
    made = many([row], {"rm": None, "other": None, "ebrm": "other"})
    entry = made.benchmarks[0].scorers["ebrm"].entries["overall"]
    entry = replace(entry, gain=small.around(0.1, 0.03), p_gain=0.02, p_gain_holm=0.04)
    found = page(changed(made, scorer="ebrm", entries={"overall": entry}))
    assert found.tables["Refined rewards beside their own base"].body == [
        ["A", "ebrm", "60.0 [59.0, 61.0]", "70.0 [69.0, 71.0]", "+10.0 [+7.0, +13.0]", "0.040 0.020"]
    ]
    assert report.gains(pair(BETTER)) == []


# Metrics and curves

COLUMNS = {"share": Column("share, %", "better", "%"), "number": Column("n", "", 0), "p": Column("p", "", "p")}


def with_metrics(rm: dict[str, float], ebrm: dict[str, float], benchmarks: int = 1) -> Evaluation:
    metrics = {
        name: {key: small.around(value, 0.1) if key == "share" else small.exact(value) for key, value in row.items()}
        for name, row in (("rm", rm), ("ebrm", ebrm))
    }
    made = [small.benchmark("ABCDEFGH"[n], {"overall": ROW}, "rm", metrics=metrics) for n in range(benchmarks)]
    return small.evaluation(made, PAIR)


def bare(evaluation: Evaluation, **changes: object) -> Evaluation:
    """The evaluation without any curves and metrics but those in `changes`."""
    empty = {"metrics": {}, "calibration": None, "risk": {}, "margins": np.empty(0)} | changes
    made = [
        replace(b, scorers={name: replace(result, **empty) for name, result in b.scorers.items()})  # type: ignore[arg-type]
        for b in evaluation.benchmarks
    ]
    return replace(evaluation, benchmarks=tuple(made))


def test_every_metric_has_one_column() -> None:
    names = [name for table in (CALIBRATION, ABSTENTION, PAIRS, ORDER, FLIPS) for name in table]
    assert len(names) == len(set(names))
    found = report.unknown_metrics(with_metrics({"ece": 0.1, "new_measure": 0.5}, {"fixed": 1.0, "another": 0.25}))
    assert {name: column.heading for name, column in found.items()} == {
        "new_measure": "new measure",
        "another": "another",
    }


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.1234, "%", "12.3"),
        (0.1234, "points", "+12.3"),
        (-0.1234, 3, "−0.123"),
        (12345.0, 0, "12,345"),
        (0.0002, "p", "<0.001"),
        (0.04, "p", "0.040"),
    ],
)
def test_metrics_are_written_in_their_unit(value: float, unit: str, text: str) -> None:
    assert number(small.exact(value), unit) == text and number(None, unit) == "–"
    assert ends(None, unit) == "" and plain(ends(small.around(0.5, 0.1), "%")) == "[40.0, 60.0]"


def test_metrics_are_on_the_page_with_their_intervals() -> None:
    made = with_metrics({"ece": 0.5}, {"ece": 0.25, "brier": 0.2})
    found = page(changed(made, scorer="ebrm", metrics={"ece": small.around(0.25, 0.1), "brier": small.exact(0.2)}))
    shown = found.tables["Calibration errors"]
    assert shown.groups == ["A"] and shown.body == [["rm", "50.0", "–"], ["ebrm", "25.0 [15.0, 35.0]", "0.200"]]


SHARE = {"share": 0.5}
BOTH = {"A": ["rm", "ebrm"], "B": ["rm", "ebrm"]}


@pytest.mark.parametrize(
    ("metrics", "benchmarks", "scorers", "groups"),
    [
        ((SHARE, SHARE), 2, None, BOTH),
        (({}, SHARE), 2, ["ebrm"], {"": ["A", "B"]}),
        (({}, SHARE), 2, None, {"A": ["ebrm"], "B": ["ebrm"]}),
        (({}, {}), 1, None, None),
        (({"other": 1.0}, {}), 1, None, None),
    ],
    ids=["scorers under each benchmark", "one scorer: a row a benchmark", "a scorer without", "no metrics", "others"],
)
def test_a_table_has_what_was_measured(
    metrics: tuple[dict[str, float], ...], benchmarks: int, scorers: list[str] | None, groups: dict | None
) -> None:
    evaluation = with_metrics(*metrics, benchmarks)
    table = metric_table(evaluation, "Title", COLUMNS, scorers)
    if table is None:
        assert groups is None
    else:
        assert {title: list(rows) for title, rows in table["groups"].items()} == groups
        assert table["corner"] == ("benchmark" if scorers else "reward") and list(table["columns"]) == ["share"]
    for name in PAIR:
        evaluation = changed(evaluation, benchmarks - 1, name, metrics={})
    if (table := metric_table(evaluation, "Title", COLUMNS, scorers)) is not None:  # a benchmark without is left out
        shown = [title for rows in table["groups"].values() for title in rows] if scorers else list(table["groups"])
        assert shown == ["A"]


@pytest.mark.parametrize(("benchmarks", "folded"), [(6, False), (7, True)])
def test_long_tables_are_folded(benchmarks: int, folded: bool) -> None:
    table = metric_table(with_metrics(SHARE, SHARE, benchmarks), "Title", COLUMNS)
    assert table is not None and table["folded"] == folded


def test_every_benchmark_is_drawn_once_and_summed_up_by_a_number(evaluation: Evaluation) -> None:
    both = ["base: demo-rm", "refined: demo-ebrm"]
    risks = [f"{label}, by confidence" for label in both] + ["refined: demo-ebrm, by std"]
    metrics = [evaluation.benchmarks[0].scorers[name].metrics for name in evaluation.bases]
    for kind, name, word, unit, legend in (
        ("reliability", "ece", "ECE, %:", "%", both),
        ("risk", "aurc_gain_confidence", "AURC gain, points:", "%", risks),
        ("margin", "margin", "mean, in stds:", 3, both),
    ):
        (panel,) = panels(evaluation, kind)  # type: ignore[arg-type]
        graded = kind == "reliability"  # pools have no right and wrong
        assert [title for title, _, _ in panel["figures"]] == [
            b.title for b in evaluation.benchmarks if not (graded and b.title == "Pool")
        ]
        assert [label for _, label in panel["legend"]] == legend and not panel["folded"]
        base, refined = (number(one[name], unit) for one in metrics)  # type: ignore[arg-type]
        assert panel["figures"][0][1] == f"{word} {base} base, {refined} refined"
    (alone,) = panels(replace(evaluation, bases={"demo-rm": None}), "reliability")
    assert alone["figures"][0][1] == f"ECE, %: {number(metrics[0]['ece'])}"


def test_curves_without_metrics_and_some_without_curves(evaluation: Evaluation) -> None:
    first = evaluation.benchmarks[0].scorers["demo-rm"]
    nothing, titles = bare(evaluation), [b.title for b in evaluation.benchmarks]
    curves = bare(evaluation, calibration=first.calibration, risk=first.risk, margins=np.ones(3))
    mixed = replace(evaluation, benchmarks=(nothing.benchmarks[0], *curves.benchmarks[1:]))
    for kind in ("reliability", "risk", "margin"):
        assert panels(nothing, kind) == []  # type: ignore[arg-type]
        assert [(title, detail) for title, detail, _ in panels(curves, kind)[0]["figures"]] == [  # type: ignore[arg-type]
            (title, "") for title in titles
        ]
        assert [title for title, _, _ in panels(mixed, kind)[0]["figures"]] == titles[1:]  # type: ignore[arg-type]
    without = changed(curves, 0, "demo-rm", calibration=None)
    assert [title for title, _, _ in panels(without, "reliability")[0]["figures"]] == titles


@pytest.mark.parametrize(
    ("bases", "expected"),
    [
        ({"rm": None}, [{"base": "rm"}]),
        ({"rm": None, "ebrm": "rm"}, [{"base": "rm", "refined": "ebrm"}]),
        (
            {"a": None, "a2": "a", "b": None, "a3": "a"},
            [{"base": "a", "refined": "a2"}, {"base": "a", "refined": "a3"}, {"base": "b"}],
        ),
        ({"rm": None, "ebrm": "absent"}, [{"base": "rm"}, {"refined": "ebrm"}]),
    ],
)
def test_a_refined_reward_is_drawn_with_its_base(bases: Bases, expected: list[dict[str, str]]) -> None:
    assert report.families(Evaluation((), bases, next(iter(bases)), Bootstrap(1), 1)) == expected


def test_other_families_are_folded_and_named() -> None:
    bases: Bases = {"a": None, "b": None, "b2": "b"}
    evaluation = bare(many([dict.fromkeys(bases, (0.5, 0.5))], bases, "b"), margins=np.arange(5.0))
    assert [(panel["title"], panel["folded"]) for panel in panels(evaluation, "margin")] == [
        ("Reward margins, right minus wrong response: b2 and its base b", False),
        ("Reward margins, right minus wrong response: a", True),
    ]
    assert panels(evaluation, "margin")[1]["legend"][0][1] == "a"


@pytest.mark.parametrize(("benchmarks", "drawn"), [(9, 4), (10, 3), (40, 1)])
def test_there_is_a_limit_to_figures_and_it_is_said(benchmarks: int, drawn: int) -> None:
    made = [small.benchmark(f"B{n}", {"overall": dict.fromkeys("abcd", (0.5, 0.5))}, "d") for n in range(benchmarks)]
    evaluation = bare(small.evaluation(made, dict.fromkeys("abcd"), "d"), metrics={"ece": small.exact(0.1)})
    assert report.not_drawn(evaluation) == sorted(list("dabc")[drawn:])
    if benchmarks == 10:
        assert "Not drawn, for lack of space: c; the tables have their numbers." in page(evaluation).text


def test_ties_are_shown_where_there_are_some(evaluation: Evaluation) -> None:
    assert "ties, %" in " ".join(page(evaluation).tables["Pairs of a right and a wrong response"].head)
    metrics = {"ties": small.exact(0.0), "accuracy_ties_half": small.exact(0.5), "accuracy": small.exact(0.5)}
    found = page(bare(pair(BETTER), metrics=metrics))
    assert found.tables["Pairs of a right and a wrong response"].head[1:] == ["pairs right, % higher is better"]
    assert "No two rewards of a pair are tied." in found.text


# Regressions, how it was measured, and the whole page


def with_regressions(counts: list[int], bases: Bases = PAIR) -> Evaluation:
    evaluation = many([{name: (0.5, 0.5) for name in bases}] * len(counts), bases)
    for place, count in enumerate(counts):
        title = evaluation.benchmarks[place].title
        lost = [
            Regression(f"{title}{n}", "group", "the prompt", "good", "bad", (1.5, 0.25), (-0.5, 0.75), scorer)
            for scorer, base in bases.items() if base for n in range(count)
        ]  # fmt: skip
        evaluation = changed(evaluation, place, regressions=tuple(lost))
    return evaluation


def test_a_regression_shows_texts_rewards_and_margins() -> None:
    text = page(with_regressions([1])).text
    assert (
        "A: group Prompt the prompt Right response: base reward 1.50, refined −0.50 good Wrong response: base" in text
    )
    assert "base reward 0.25, refined 0.75 bad Margin: base +1.25, refined −1.25. Item A0." in text
    assert "are shown, in turn" not in text


def test_regressions_are_taken_in_turn_from_the_benchmarks() -> None:
    cards, total = report.regressions(with_regressions([6, 1, 6, 6]))
    items = [card["one"].item for card in cards]
    assert items == ["A0", "A1", "A2", "A3", "B0", "C0", "C1", "C2", "C3", "D0", "D1", "D2"] and total == 19
    assert "12 of 19 are shown" in page(with_regressions([6, 1, 6, 6])).text


def test_regressions_of_several_refinements_are_all_there() -> None:
    cards, _ = report.regressions(with_regressions([6, 6], {"rm": None, "a": "rm", "b": "rm", "c": "rm"}))
    assert [sum(card["one"].scorer == name for card in cards) for name in "abc"] == [8, 8, 8] and len(cards) == 24
    cards, _ = report.regressions(with_regressions([6, 6], {"rm": None} | {f"e{n}": "rm" for n in range(12)}))
    assert len(cards) == 36


def measured(evaluation: Evaluation) -> dict[str, list[list[str]]]:
    return {caption: one.body for caption, one in page(evaluation).tables.items() if one.label.startswith("measured")}


def test_a_bare_evaluation_says_what_was_compared_and_where_it_is_from() -> None:
    evaluation = changed(pair(BETTER, BETTER), 0, notes=("First.", "Second."))
    assert measured(evaluation) == {
        "Items": [["A", "200", "100", "0", "0"], ["B", "200", "100", "0", "0"]],
        "Where the items are from": [["A", "made.jsonl First. Second."], ["B", "made.jsonl"]],
    }


def test_items_left_out_are_counted_with_reasons_and_named() -> None:
    evaluation = changed(
        pair(BETTER),
        excluded={"seen in training": 1200, "not sampled": 0, "other": 3},
        unscored={"rm": {"too long": 2, "never": 0}, "ebrm": {"not a number": 1}},
        unscored_items=("one", "two", "three"),
    )
    assert measured(evaluation)["Items"] == [["A", "200", "100", "1,203", "3"]]
    assert [reason for _, reason in measured(evaluation)["Left out, and why"]] == [
        "seen in training: 1,200 items",
        "other: 3 items",
        "rm, too long: 2 items",
        "ebrm, not a number: 1 item",
        "Left out for every reward: one, two and three.",
    ]
    for count, said in ((9, "i0, i1, i2, i3, i4 and 4 more items."), (5, "i0, i1, i2, i3 and i4.")):
        some = changed(evaluation, unscored_items=tuple(f"i{n}" for n in range(count)))
        assert measured(some)["Left out, and why"][-1][1] == f"Left out for every reward: {said}"


def test_ties_scorers_and_versions() -> None:
    tied = {"overall": Entry(small.exact(0.6), small.exact(0.625))}
    evaluation = replace(
        changed(pair(BETTER, BETTER), 1, "ebrm", entries=tied),
        about={"rm": {"path": "here", "grid": {"nodes": 257}}, "ebrm": {}},
        versions={"torch": "2", "ebrm": "0.2"},
    )
    tables = measured(evaluation)
    assert list(tables)[-2:] == ["rm", "Versions"]
    assert tables["Overall scores that depend on the rule for ties"] == [["B", "ebrm", "60.0%", "62.5%"]]
    assert tables["rm"] == [["path", "here"], ["grid.nodes", "257"]]
    assert tables["Versions"] == [["ebrm", "0.2"], ["torch", "2"]]


def test_how_intervals_and_tests_were_made() -> None:
    text = page(small.evaluation([parts(1)], PAIR)).text
    assert "central 95% of 2,000 bootstrap resamples" in text and "Seed 0." in text
    assert "9,999 random swaps" in text and "against rm" in text and "highest of its row" not in text
    assert "the 1 test of the overall scores are one family, the sections and subsets of each benchmark another" in text
    assert "each benchmark another" not in page(pair(BETTER, BETTER)).text
    alone = page(many([{"rm": (0.5, None)}], {"rm": None})).text
    assert "permutation" not in alone and "left out for all of them" in alone
    assert "highest of its row" in page(many([dict.fromkeys("abc", (0.5, 0.5))], "abc")).text


@pytest.mark.parametrize(
    ("bases", "sections", "missing"),
    [
        ({"rm": None}, ["scores", "calibration", "abstention", "rewards", "measured", "missing"], 1),
        ({"a": None, "b": None}, [*(name for name in SECTIONS if name != "regressions"), "missing"], 1),
        ({"a": None, "b": None, "b2": "b"}, SECTIONS, 0),
    ],
)
def test_what_there_is_decides_the_sections(
    make_evaluation: MakeEvaluation, bases: Bases, sections: list[str], missing: int
) -> None:
    found = page(make_evaluation(bases, [suites.pairwise(60)]))
    assert found.sections == sections
    listed = found.html.partition('<section id="missing"')[2].count("<li>")
    assert listed == missing


def test_nothing_but_scores() -> None:
    found = page(pair(BETTER))
    assert found.sections == ["scores", "changes", "measured", "missing"]
    for what in ("Calibration", "Uncertainty and error", "Margins, length and order", "Worst regressions"):
        assert f"{what}: " in found.by_id["missing"]
    assert found.headline == "ebrm is better than rm on A"


def test_every_string_of_the_evaluation_is_escaped(make_evaluation: MakeEvaluation) -> None:
    nasty = "<i>\"'&\x00\ud800</i>"
    items = [replace(one, group=nasty + "s" * (place % 2)) for place, one in enumerate(suites.pairwise(60).items)]
    bases: Bases = {nasty: None, nasty + "2": nasty, "third": None}
    evaluation = make_evaluation(bases, [suites.benchmark(items, title=nasty)])
    made = evaluation.benchmarks[0]
    regression = Regression(nasty, nasty, nasty, nasty, nasty, (1.0, 0.0), (0.0, 1.0), nasty + "2")
    scorers: dict[str, ScorerResult] = {
        name: replace(r, metrics={**r.metrics, nasty: small.exact(1)}) for name, r in made.scorers.items()
    }
    evaluation = changed(
        evaluation, scorers=scorers, regressions=(regression,), notes=(nasty,), origin=nasty, excluded={nasty: 1},
        unscored={nasty: {nasty: 1}}, unscored_items=(nasty,),
    )  # fmt: skip
    about = {"about": {nasty: {nasty: nasty}}, "versions": {nasty: nasty}, "seconds": {nasty: 1.0}}
    html = benchmark_page(replace(evaluation, **about), notes=[nasty])  # type: ignore[arg-type]
    assert "i" not in {tag for tag, _ in Reader(html).elements} and "\x00" not in html
    assert html.encode().count(b"&lt;i&gt;") > 60


def test_numbers_that_are_not_there_can_be_shown(make_evaluation: MakeEvaluation) -> None:
    found = page(make_evaluation(None, [suites.pairwise(12, prompts=1)]))  # no interval over one prompt
    assert "[no interval]" in found.text and "nan" not in found.text.lower()


def test_there_must_be_something_to_report(evaluation: Evaluation, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text("old")
    with pytest.raises(DataError, match="no benchmark"):
        write_benchmark_report(path, replace(evaluation, benchmarks=()))
    with pytest.raises(DataError, match=r"reference 'x' is not among the scorers demo-rm, demo-ebrm"):
        write_benchmark_report(path, replace(evaluation, reference="x"))
    assert path.read_text() == "old"


def test_a_report_of_many_scorers_and_benchmarks_is_no_giant(make_evaluation: MakeEvaluation) -> None:
    bases: Bases = {f"rm{n}": None for n in range(4)} | {f"e{n}": f"rm{n}" for n in range(4)}
    html = benchmark_page(make_evaluation(bases, [suites.pairwise(60)]))
    assert len(html) < 500_000
    assert len(np.unique(re.findall(r'<svg viewBox[^>]*aria-labelledby="([^"]+)"', html))) == 7 + 3 * 4
