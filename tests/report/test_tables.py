from __future__ import annotations

import csv
import io
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.evaluation.suites import all_kinds, pairwise, plain_scores, three

from ebrm.benchmarks import Score
from ebrm.errors import ConfigError
from ebrm.evaluation import BenchmarkResult, Entry, Evaluation, ScoredBenchmark, ScorerResult, Scores, evaluate_scores
from ebrm.metrics import Bootstrap, Estimate
from ebrm.report import Table, details, markdown, overview
from ebrm.report.tables import COLUMNS, FORMATS, Bold
from ebrm.utils.neutral import clean, escape_markdown

NAN = float("nan")
FEW: dict[str, Any] = {"bootstrap": Bootstrap(20), "permutations": 19}


def cell(value: float, difference: float | None = None, p: float | None = None, shared: float | None = None) -> Entry:
    around = Estimate(value, value - 0.05, value + 0.05)
    change = None if difference is None else Estimate(difference, difference - 0.02, difference + 0.02)
    return Entry(around, Estimate(shared or value, NAN, NAN), change, p, None if p is None else min(1.0, 2 * p))


def made_up() -> Evaluation:
    """Two scorers on one benchmark with two subsets, one of them without items."""
    scores = (Score("overall", "overall", {"a": 1.0}), Score("a|b", "subset", {"a": 1.0}), Score("none", "subset", {}))
    nothing = Entry(Estimate(NAN, NAN, NAN), Estimate(NAN, NAN, NAN))
    first = ScorerResult(
        {"overall": cell(0.712, shared=0.75), "a|b": cell(0.5), "none": nothing},
        {
            "pairs": Estimate(1234, NAN, NAN),
            "accuracy": Estimate(0.7, 0.65, 0.75),
            "margin": Estimate(-0.1234, -0.2, 0.0),
            "sign_test_p": Estimate(0.00001, NAN, NAN),
        },
        not_worse=frozenset({"overall"}),
    )
    second = ScorerResult(
        {
            "overall": cell(0.75, 0.038, 0.04),
            "a|b": cell(0.4, -0.1, 0.0004),
            "none": replace(nothing, difference=Estimate(NAN, NAN, NAN)),
        },
        {"pairs": Estimate(1234, NAN, NAN), "kendall": Estimate(0.5, NAN, NAN)},
        best=frozenset({"overall", "a|b"}),
    )
    result = BenchmarkResult(
        name="made",
        title="Made & up",
        origin="made up",
        notes=("One domain is absent.",),
        scores=scores,
        counts={"overall": (1200, 900), "a|b": (1200, 900), "none": (0, 0)},
        items=1200,
        prompts=900,
        excluded={"prompt seen in training": 1, "not sampled": 2000},
        unscored={"my_rm": {}, "new": {"the text is too long": 3}},
        unscored_items=("x", "y", "z"),
        scorers={"my_rm": first, "new": second},
    )
    return Evaluation((result,), {"my_rm": None, "new": "my_rm"}, "my_rm", Bootstrap(), 9999)


def test_markdown() -> None:
    rows = [["RM-Bench", Bold("71.2", "[69.0, 73.1]"), "70.0† "], ["50% & more", "1", "+2.0* p < 0.001"]]
    table = Table("Scores, percent", ["Benchmark", "my_rm", "a|b"], rows)
    assert markdown([table], ["Note on *."]) == (
        "Scores, percent\n"
        "\n"
        "| Benchmark | my\\_rm | a\\|b |\n"
        "| :-- | --: | --: |\n"
        "| RM-Bench | **71.2** \\[69.0, 73.1\\] | 70.0† |\n"
        "| 50% &amp; more | 1 | +2.0\\* p \\< 0.001 |\n"
        "\n"
        "Note on \\*.\n"
    )
    assert markdown([table, table], []).count("| Benchmark |") == 2 and markdown([], ["Only this."]) == "Only this.\n"


@given(st.text(st.characters(codec="utf-8"), max_size=40))
def test_markdown_shows_what_was_given_on_one_line(text: str) -> None:
    escaped = escape_markdown(text)
    assert "\n" not in escaped and "\r" not in escaped
    assert not re.search(r"(?<!\\)(?:\\\\)*[|*_<>`\[\]]", escaped)
    shown = re.sub(r"\\([\\`*_{}\[\]<>|~#$])", r"\1", escaped.replace("&amp;", "&"))
    assert shown == re.sub(r"[^\S\u00a0]+", " ", clean(text)).strip()


def test_overview_in_markdown() -> None:
    assert overview(made_up()).split("\n\n") == [
        "Official overall scores, percent",
        "| Benchmark | Items | my\\_rm (reference) | new |\n"
        "| :-- | --: | --: | --: |\n"
        "| Made &amp; up | 1,200 | 71.2† \\[66.2,\u00a076.2\\] | **75.0** \\[70.0,\u00a080.0\\] |",
        "Official overall scores: difference from my\\_rm, points",
        "| Benchmark | new |\n| :-- | --: |\n| Made &amp; up | +3.8 \\[+1.8,\u00a0+5.8\\], p = 0.080 |",
        "Intervals hold 95% of 2,000 bootstrap resamples of the prompts; there is none where fewer than two prompts "
        "are behind a number.",
        "Bold: the best scorer of a row. †: not clearly worse than the best (paired permutation test over prompts, "
        "9,999 permutations, Holm's correction for the number of scorers, 0.05).",
        "Differences are from my\\_rm. p: paired permutation test over prompts, 9,999 permutations, Holm's correction "
        "for all overall scores and scorers. \\*: p is at most 0.05.",
        "Overall scores with ties between right and wrong responses broken at random (in expectation): Made &amp; up: "
        "my\\_rm 75.0 instead of 71.2.",
        "Made &amp; up: left out before scoring: 1 item (prompt seen in training), 2,000 items (not sampled).",
        "Made &amp; up: 3 of 1,203 items in no number, because not every scorer could score them (new: 3 items (the "
        "text is too long)).\n",
    ]


def test_details_in_markdown() -> None:
    blocks = details(made_up()).split("\n\n")
    assert blocks[:2] == [
        "Made &amp; up, percent",
        "| Score | Items | my\\_rm (reference) | new |\n"
        "| :-- | --: | --: | --: |\n"
        "| overall | 1,200 | 71.2† \\[66.2,\u00a076.2\\] | **75.0** \\[70.0,\u00a080.0\\] |\n"
        "| a\\|b | 1,200 | 50.0 \\[45.0,\u00a055.0\\] | **40.0** \\[35.0,\u00a045.0\\] |\n"
        "| none | 0 | – | – |",
    ]
    assert blocks[3] == (
        "| Score | new |\n"
        "| :-- | --: |\n"
        "| overall | +3.8 \\[+1.8,\u00a0+5.8\\], p = 0.080 |\n"
        "| a\\|b | −10.0\\* \\[−12.0,\u00a0−8.0\\], p \\< 0.001 |\n"
        "| none | – |"
    )
    assert blocks[4:6] == [
        "Made &amp; up: other measures",
        "| Measure | my\\_rm | new |\n"
        "| :-- | --: | --: |\n"
        "| pairs | 1,234 | 1,234 |\n"
        "| accuracy | 70.0% \\[65.0,\u00a075.0\\] | – |\n"
        "| margin | −0.123 \\[−0.200,\u00a00.000\\] | – |\n"
        "| sign\\_test\\_p | p \\< 0.001 | – |\n"
        "| kendall | – | 0.500 |",
    ]
    text = "\n".join(blocks)
    assert "Made &amp; up: One domain is absent." in text
    assert "Holm's correction for all sections and subsets of a benchmark" in text
    assert "at most 1,000 resamples" in text and "my\\_rm 75.0 instead" in text


def test_csv_has_every_number() -> None:
    evaluation = made_up()
    rows = list(csv.reader(io.StringIO(details(evaluation, "csv"))))
    assert tuple(rows[0]) == COLUMNS
    assert rows[1] == ["made", "overall", "overall", "my_rm", "0.712", *map(repr, (0.712 - 0.05, 0.712 + 0.05)), "0.75",
                       *[""] * 10, "1200", "900", "0"]  # fmt: skip
    assert rows[2] == ["made", "overall", "overall", "new", "0.75", "0.7", "0.8", "0.75", "0.038", "0.018",
                       repr(0.038 + 0.02), "0.04", "0.08", *[""] * 5, "1200", "900", "0"]  # fmt: skip
    assert [row[1:4] for row in rows[3:]] == [
        ["a|b", "subset", "my_rm"], ["a|b", "subset", "new"], ["none", "subset", "my_rm"], ["none", "subset", "new"],
    ]  # fmt: skip
    assert rows[5][4:18] == rows[6][4:18] == [""] * 14
    assert list(csv.reader(io.StringIO(overview(evaluation, "csv")))) == rows[:3]


@pytest.fixture(scope="module")
def evaluation() -> Evaluation:
    scored = []
    for made in all_kinds():
        rm, refined, poor = three(made)
        poor = replace(poor, name='owner/po_or |&%$#{}~^\\<>*`"\n2', unscored={0: "50% too long_"})
        scored.append(ScoredBenchmark(made, (rm, refined, poor), {"not sampled & seen": 2}))
    return evaluate_scores(scored, "rm", bootstrap=Bootstrap(50), permutations=49)


def test_csv_gives_back_the_numbers(evaluation: Evaluation) -> None:
    rows = list(csv.DictReader(io.StringIO(details(evaluation, "csv"))))
    assert len(rows) == sum(3 * len(result.scores) for result in evaluation.benchmarks)
    found = {(row["benchmark"], row["score"], row["scorer"]): row for row in rows}
    for result in evaluation.benchmarks:
        for score in result.scores:
            for name, scorer in result.scorers.items():
                row, one = found[result.name, score.name, name], scorer.entries[score.name]
                assert float(row["value"]) == one.value.value and float(row["high"]) == one.value.high
                assert float(row["shared"]) == one.shared.value
                assert row["kind"] == score.kind
                if name != "rm":
                    assert float(row["difference_low"]) == one.difference.low and float(row["p_holm"]) == one.p_holm
    assert len(list(csv.DictReader(io.StringIO(overview(evaluation, "csv"))))) == 12


@pytest.mark.parametrize("table", [overview, details])
def test_every_row_of_markdown_has_as_many_cells(evaluation: Evaluation, table: object) -> None:
    for block in table(evaluation, "markdown").split("\n\n"):
        if block.startswith("|"):
            cells = [line.replace("\\|", "").count("|") for line in block.split("\n")]
            assert len(set(cells)) == 1 and len(cells) > 2


def test_one_scorer_has_no_comparison() -> None:
    made = pairwise()
    evaluation = evaluate_scores([ScoredBenchmark(made, [plain_scores(made, "rm")])], "rm", **FEW)
    text = overview(evaluation)
    assert "(reference)" not in text and "ifference" not in text and "Bold" not in text and "†" not in text
    assert "ties" not in text and "in no number" not in text
    assert details(evaluation).count("| :-- |") == 2


def test_the_reference_may_be_any_scorer() -> None:
    made = pairwise()
    text = overview(evaluate_scores([ScoredBenchmark(made, three(made))], "rm-refined", **FEW))
    heads = [line for line in text.split("\n") if line.startswith("| Benchmark")]
    assert heads == ["| Benchmark | Items | rm | rm-refined (reference) | poor |", "| Benchmark | rm | poor |"]


def test_refined_scorers_with_a_base_of_their_own_are_compared_with_it() -> None:
    made = pairwise()
    rm, refined, poor = three(made)
    other = replace(refined, name="other-refined", base="poor")
    text = overview(evaluate_scores([ScoredBenchmark(made, (rm, refined, poor, other))], "rm", **FEW))
    heads = [line for line in text.split("\n") if line.startswith("| Benchmark")]
    assert heads[2] == "| Benchmark | other-refined minus poor |" and len(heads) == 3
    row = next(line for line in text.split("\n")[text.split("\n").index(heads[2]) :] if line.startswith("| Pairs"))
    assert "p = " in row


def test_a_level_is_said_as_it_is() -> None:
    made = pairwise()
    evaluation = evaluate_scores(
        [ScoredBenchmark(made, [plain_scores(made, "rm")])], "rm", bootstrap=replace(FEW["bootstrap"], level=0.995)
    )
    assert "99.5% of 20 bootstrap" in overview(evaluation)


def test_no_interval_is_nothing() -> None:
    made = pairwise(count=1)
    evaluation = evaluate_scores([ScoredBenchmark(made, [Scores("rm", np.array([[1.0, 0.0]]))])], "rm", **FEW)
    assert "| Pairs | 1 | 100.0 |" in overview(evaluation)


def test_an_unknown_format() -> None:
    assert FORMATS == ("markdown", "csv")
    for table in (overview, details):
        with pytest.raises(ConfigError, match="'html'. Choose one of markdown, csv"):
            table(made_up(), "html")
