from __future__ import annotations

import math
from dataclasses import replace

import pytest
from tests.report import small

from ebrm.evaluation import Evaluation
from ebrm.report.benchmark_finding import headline, summary, tiles
from ebrm.report.words import NO_BREAK

PAIR = {"rm": None, "ebrm": "rm"}
BETTER, WORSE, UNCLEAR, UNTESTED = (0.6, 0.01), (0.4, 0.01), (0.55, 0.7), (0.9, None)


def pair(*refined: small.Numbers, bases: dict[str, str | None] = PAIR, reference: str = "rm") -> Evaluation:
    (other,) = (name for name in bases if name != reference)
    return small.overall_only([{reference: (0.5, None), other: one} for one in refined], bases, reference)


@pytest.mark.parametrize(
    ("refined", "text"),
    [
        ([BETTER], "ebrm is better than rm on A"),
        ([WORSE], "ebrm is worse than rm on A"),
        ([UNCLEAR], "No clear difference between ebrm and rm on A"),
        ([UNTESTED], "Too few prompts to tell ebrm and rm apart on A"),
        ([BETTER, BETTER, WORSE, UNCLEAR], "ebrm is better than rm on 2 of 4 benchmarks, and worse on 1"),
        ([BETTER, UNCLEAR, UNTESTED], "ebrm is better than rm on 1 of 3 benchmarks, and worse on none"),
        ([WORSE, UNCLEAR, WORSE], "ebrm is better than rm on none of 3 benchmarks, and worse on 2"),
        ([BETTER, BETTER], "ebrm is better than rm on all 2 benchmarks"),
        ([WORSE, WORSE], "ebrm is worse than rm on all 2 benchmarks"),
        ([UNCLEAR, UNTESTED], "No clear difference between ebrm and rm on any of 2 benchmarks"),
        ([UNTESTED, UNTESTED], "Too few prompts to tell ebrm and rm apart on any of 2 benchmarks"),
    ],
)
def test_the_headline_counts_clear_differences_only(refined: list[small.Numbers], text: str) -> None:
    assert headline(pair(*refined)) == text


def test_the_headline_holds_whichever_is_the_reference() -> None:
    evaluation = pair(BETTER, WORSE, bases={"rm": None, "ebrm": "rm"}, reference="ebrm")
    assert headline(evaluation) == "rm is better than ebrm on 1 of 2 benchmarks, and worse on 1"


def test_the_summary_names_the_benchmarks_and_differences() -> None:
    text = summary(pair(BETTER, WORSE, UNCLEAR, UNTESTED))[0].replace(NO_BREAK, " ")
    assert text == (
        "Better on A (+10.0 points [+8.0, +12.0]). Worse on B (−10.0 points [−12.0, −8.0]): on data like these, use "
        "rm. No clear difference on C. Not tested, for want of prompts: D."
    )
    assert summary(pair(UNCLEAR))[0].replace(NO_BREAK, " ") == "The difference is +5.0 points [+3.0, +7.0]."


def test_the_summary_says_what_the_words_and_brackets_mean() -> None:
    one, many = (" ".join(summary(pair(*[UNCLEAR] * number))) for number in (1, 3))
    assert "p ≤ 0.05" in one and "Holm" not in one and "corrected (Holm) for 3 comparisons" in many
    assert "95% intervals from 2,000 bootstrap resamples" in one and "these prompts cannot tell" in one


def test_one_reward_is_not_compared() -> None:
    two = small.overall_only([{"rm": (0.5, None)}, {"rm": (0.75, None)}], {"rm": None})
    assert headline(two) == "rm scores 50.0% on A and 75.0% on B"
    assert not any("p ≤" in text for text in summary(two))
    assert [(tile.label, tile.value, tile.detail.replace(NO_BREAK, " ")) for tile in tiles(two)] == [
        ("A", "50.0%", "[49.0, 51.0]"),
        ("B", "75.0%", "[74.0, 76.0]"),
    ]
    three = small.overall_only([{"rm": (value, None)} for value in (0.5, 0.75, 0.25)], {"rm": None})
    assert headline(three) == "rm scores from 25.0% (C) to 75.0% (B) on 3 benchmarks"
    many = small.overall_only([{"rm": (number / 20, None)} for number in (9, *range(1, 9))], {"rm": None})
    assert [tile.label for tile in tiles(many)] == ["B", "F", "A"]
    nothing = small.overall_only([{"rm": (math.nan, None)}], {"rm": None})
    assert headline(nothing) == "rm has no score on A" and tiles(nothing) == []


def test_the_refinement_of_the_reference_is_the_finding() -> None:
    row: dict[str, small.Numbers] = {"rm": (0.5, None), "ebrm": BETTER, "other": (0.3, 0.001)}
    evaluation = small.overall_only([row], {"rm": None, "ebrm": "rm", "other": None})
    assert headline(evaluation) == "ebrm is better than rm on A"
    assert summary(evaluation)[1] == "Highest overall scores: ebrm on A (clearly)."
    assert [(tile.label, tile.value, tile.role) for tile in tiles(evaluation)] == [
        ("ebrm", "1 better, 0 worse", "refined"),
        ("other", "0 better, 1 worse", "base"),
    ]


def test_several_refinements_are_counted() -> None:
    bases: dict[str, str | None] = {"rm": None, "a": "rm", "b": "rm", "c": "rm", "d": "rm"}
    first: dict[str, small.Numbers] = {"rm": (0.5, None), "a": BETTER, "b": BETTER, "c": WORSE, "d": UNCLEAR}
    second: dict[str, small.Numbers] = {"rm": (0.5, None), "a": UNCLEAR, "b": WORSE, "c": UNCLEAR, "d": UNCLEAR}
    assert headline(small.overall_only([first, second], bases)) == (
        "Of 4 refinements of rm: 1 better on some benchmark and worse on none; 1 better on some and worse on others; "
        "1 worse on some benchmark and better on none; 1 not clearly different on any"
    )
    assert headline(small.overall_only([first], bases)) == (
        "Of 4 refinements of rm: 2 better on A; 1 worse on A; 1 not clearly different on A"
    )


@pytest.mark.parametrize(
    ("rows", "text"),
    [
        ([(0.5, 0.6, 0.7)], "c scores highest on A, clearly so"),
        ([(0.5, 0.7, 0.7)], "b and c share the highest score on A"),
        ([(0.5, 0.6, 0.7), (0.5, 0.6, 0.7)], "c scores highest on 2 of 2 benchmarks, clearly above all others on 2"),
        ([(0.5, 0.6, 0.7), (0.8, 0.6, 0.7)], "a and c each score highest on 1 of 2 benchmarks"),
    ],
)
def test_unrefined_rewards_are_ranked(rows: list[tuple[float, ...]], text: str) -> None:
    numbers = [{name: (value, 0.01) for name, value in zip("abc", row, strict=True)} for row in rows]
    evaluation = small.overall_only(numbers, {"a": None, "b": None, "c": None})
    assert headline(evaluation) == text


def test_a_lead_that_another_may_share_is_not_clear() -> None:
    evaluation = small.overall_only(
        [{"a": (0.5, None), "b": (0.6, 0.5), "c": (0.7, 0.5)}], {"a": None, "b": None, "c": None}
    )
    made = evaluation.benchmarks[0]
    near = replace(made.scorers["b"], not_worse=frozenset(["overall"]))
    evaluation = replace(evaluation, benchmarks=(replace(made, scorers={**made.scorers, "b": near}),))
    assert headline(evaluation) == "c scores highest on A, but not clearly so"
    assert "Highest overall scores: c on A." in summary(evaluation)


def test_a_shared_lead_is_nobodys_clearly() -> None:
    evaluation = small.overall_only(
        [{"a": (0.5, None), "b": (0.7, 0.5), "c": (0.7, 0.5)}], {"a": None, "b": None, "c": None}
    )
    assert "Highest overall scores: b on A; c on A." in summary(evaluation)


def test_no_scores_at_all() -> None:
    evaluation = small.overall_only([{name: (0.5, None) for name in "abc"}], {"a": None, "b": None, "c": None})
    made = evaluation.benchmarks[0]
    bare = {name: replace(result, best=frozenset()) for name, result in made.scorers.items()}
    evaluation = replace(evaluation, benchmarks=(replace(made, scorers=bare),))
    assert headline(evaluation) == "No score to compare 3 rewards by"
    assert not any("Highest" in text for text in summary(evaluation))


def test_refinements_of_other_bases_are_said_to_be_tested_elsewhere() -> None:
    bases: dict[str, str | None] = {"rm": None, "ebrm": "rm", "grm": None, "grm2": "grm"}
    row: dict[str, small.Numbers] = {name: UNCLEAR for name in bases} | {"rm": (0.5, None)}
    text = " ".join(summary(small.overall_only([row], bases)))
    assert "grm2 refines another reward than the reference rm" in text
    assert "another reward" not in " ".join(summary(pair(BETTER)))


def test_tiles_of_two_rewards() -> None:
    many = tiles(pair(BETTER, WORSE, UNCLEAR, UNTESTED))
    assert [(tile.value, tile.detail) for tile in many] == [("1 of 4", "A"), ("1 of 4", "B"), ("2 of 4", "C, D")]
    one = tiles(pair(BETTER))
    assert [(tile.label, tile.value) for tile in one] == [
        ("rm", "50.0%"),
        ("ebrm", "60.0%"),
        ("Difference, percentage points", "+10.0"),
    ]
    assert tiles(pair(BETTER, BETTER))[1].detail == "–"


def test_names_in_the_headline_are_on_one_line_and_not_endless() -> None:
    name = "owner/\n" + "x" * 300
    evaluation = small.overall_only([{name: (0.5, None), "b": BETTER}], {name: None, "b": name})
    text = headline(evaluation)
    assert "\n" not in text and len(text) < 120 and "owner/ xxx" in text and "…" in text
