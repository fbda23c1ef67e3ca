from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.report.reader import Reader, plain

from ebrm.errors import DataError
from ebrm.metrics import Bootstrap, calibration, error_auroc, paired_accuracy, risk_coverage
from ebrm.report import Answer, ReportData, interval, write_report
from ebrm.report.fit import fit_page
from ebrm.report.words import percent_estimate


def page(data: ReportData, **changes: Any) -> Reader:
    return Reader(fit_page(replace(data, **changes)))


@pytest.fixture(scope="module")
def reader(report_data: ReportData) -> Reader:
    return page(report_data)


@pytest.fixture(scope="module")
def bare(report_data: ReportData) -> ReportData:
    """Nothing but the accuracies: quick to draw."""
    return ReportData("t", report_data.overall)


def test_hostile_text_stays_text(reader: Reader) -> None:
    assert "<script>alert('no')</script> & \ufffd \ufffd emoji 🦜" in reader.text
    assert "<script" not in reader.html and "<b>not bold" not in reader.html
    assert "# <b>not bold</b>" in reader.text


def test_every_string_of_the_data_is_escaped(report_data: ReportData) -> None:
    nasty = "<i>\"'&\x00\ud800</i>"
    part = {k: v for k, v in (report_data.filter_report or {}).items() if not k.startswith("by")}
    found = page(
        report_data,
        title=nasty,
        by_category={nasty: report_data.overall, "b": report_data.overall},
        live=[replace(report_data.live[0], prompt=nasty, responses=[nasty] * 3)],
        examples=[replace(report_data.examples[0], prompt=nasty, response=nasty, label=nasty)],
        filter_report={**part, "by_source": {nasty: part, "b": part}},
        settings={nasty: nasty, "stage": {nasty: nasty, "more": [nasty]}},
        versions={nasty: nasty},
        notes=[nasty],
    )
    assert "i" not in {tag for tag, _ in found.elements} and "\x00" not in found.html
    assert found.html.encode().count(b"&lt;i&gt;") > 15


@pytest.mark.parametrize(
    ("gain", "headline"),
    [
        (2.0, "The refined reward is better than the base reward"),
        (-2.0, "The refined reward is worse than the base reward"),
        (0.0, "No clear difference between the refined and the base reward"),
    ],
)
def test_the_headline_is_honest(gain: float, headline: str) -> None:
    generator = np.random.default_rng(0)
    base, noise, zero = generator.normal(size=400), generator.normal(size=400), np.zeros(400)
    overall = paired_accuracy(base, zero, base + gain + 0.3 * noise, zero, np.arange(400), bootstrap=Bootstrap(200))
    found = page(ReportData("t", overall))
    assert found.headline == headline
    assert ("use the base reward" in found.text) == (gain < 0)
    assert ("contains zero" in found.text) == (gain == 0)


def test_questions_are_answered_first_in_plain_text(bare: ReportData) -> None:
    nasty = "<b>not bold</b>"
    answers = [Answer("Better for me?", "Yes", ("On 9 pairs.", "So.")), Answer(nasty, nasty, (nasty,))]
    found = page(bare, headline=f"Deploy {nasty}", answers=answers)
    assert "b" not in {tag for tag, _ in found.elements} and "Deploy" in found.headline
    order = [found.text.index(part) for part in ("Better for me?", "Yes", "On 9 pairs.", "pairs ranked correctly")]
    assert order == sorted(order)
    assert "answers" not in {a.get("class") for a in page(bare).all("div")}


def test_missing_texts_are_said_once_and_the_places_named(report_data: ReportData) -> None:
    without = [replace(e, prompt=None, response=None, place=f"rows {n}") for n, e in enumerate(report_data.examples)]
    found = page(report_data, examples=without)
    assert found.text.count("not at hand") == 1 and "Their texts are not at hand" in found.text
    assert all(f"Pair at rows {n}." in found.text for n in range(len(without)))
    some = page(report_data, examples=[*report_data.examples[:1], without[1]])
    assert some.text.count("not at hand") == 1 and "The texts of some are not at hand" in some.text
    assert "Pair at rows 1." in some.text
    whole = page(report_data, examples=[replace(report_data.examples[0], place="rows 5")])
    assert "not at hand" not in whole.text and "rows 5" not in whole.text


def test_the_numbers_at_the_top_are_the_accuracies(report_data: ReportData, reader: Reader) -> None:
    overall = report_data.overall
    assert f"On 600 held-out pairs from {overall.prompts} prompts" in reader.text
    assert [tile[1] for tile in reader.tiles[:2]] == [f"{100 * e.value:.1f}%" for e in (overall.base, overall.refined)]
    assert reader.tiles[0][2] == f"[{100 * overall.base.low:.1f}, {100 * overall.base.high:.1f}]"
    assert f"fixed {overall.flips_fixed} pairs and broke {overall.flips_broken} (" in reader.text


def test_calibration_and_uncertainty_show_their_intervals(report_data: ReportData, reader: Reader) -> None:
    probability = np.asarray(report_data.probability)
    found = calibration(probability, report_data.prompt_id)
    refined = np.asarray(report_data.refined_reward)
    uncertainty = 1 - np.maximum(probability, 1 - probability)
    wrong = refined[:, 0] <= refined[:, 1]
    auroc = error_auroc(uncertainty, wrong, report_data.prompt_id)
    area = risk_coverage(uncertainty, wrong, report_data.prompt_id).area
    assert auroc is not None
    for estimate in (found.brier, found.log_loss, auroc):
        assert plain(f"{estimate.value:.3f} {interval(estimate.low, estimate.high, 3)}") in reader.text
    for estimate in (found.ece, area):
        assert plain(percent_estimate(estimate, "%")) in reader.text


def test_ties_are_reported_both_ways(reader: Reader) -> None:
    zero = [0, 0, 0, 0]
    text = page(
        ReportData("t", paired_accuracy([0, 1, 1, 0], zero, [1, 0, 1, 1], zero, [1, 2, 3, 4], bootstrap=Bootstrap(50)))
    ).text
    assert "(2 base, 1 refined)" in text and "75.0%" in text and "87.5%" in text
    assert "No two rewards of a pair are tied." in reader.text


def test_heads_are_shown_side_by_side(reader: Reader, bare: ReportData) -> None:
    assert "heads" in reader.sections and "heads" not in page(bare).sections
    assert "20.0 [10.0, 30.0]" in reader.text.replace("+", "")
    assert "plain head" in reader.html.partition('<section id="heads"')[2].partition("</section>")[0]


def test_what_is_missing_is_said(bare: ReportData) -> None:
    found = page(bare)
    assert found.sections == ["accuracy", "missing"] and "Not on this page" in found.text
    assert found.html.partition('<section id="missing"')[2].count("<li>") == 8


def test_small_categories_are_in_the_table_but_not_in_the_figures(bare: ReportData) -> None:
    found = page(bare, by_category={"tiny": replace(bare.overall, prompts=19), "big": bare.overall})
    assert [row[0] for row in found.made[0].body] == ["all pairs", "tiny *", "big"]
    drawn = found.html[found.html.index("<svg") : found.html.rindex("</svg>")]
    assert ">tiny<" not in drawn and drawn.count(">big<") == 2
    assert "Fewer than 20 prompts: such an interval is too narrow to rely on, and is not in the figures." in found.text


def test_many_categories_are_all_in_the_table(bare: ReportData) -> None:
    found = page(bare, by_category={f"c{i}": replace(bare.overall, pairs=i) for i in range(40)})
    drawn = found.html[found.html.index("<svg") : found.html.rindex("</svg>")]
    assert len(found.made[0].body) == 41 and ">c10<" in drawn and ">c9<" not in drawn
    assert "30 largest of 40" in found.text


def test_one_category_is_no_split(bare: ReportData) -> None:
    assert "the pairs have none" in page(bare).text
    assert "all pairs are in one, chat" in page(bare, by_category={"chat": bare.overall}).text


def test_the_live_table_is_sorted_by_refined_reward(reader: Reader) -> None:
    table = next(table for table in reader.made if table.label == "live-1")
    assert [row[0][:6] for row in table.body] == ["Canber", "Sydney", "(empty"]
    assert [(row[1], row[4]) for row in table.body] == [("1.10", "2"), ("0.20", "1"), ("−1.00", "3")]


def test_filter_off_is_said(report_data: ReportData, bare: ReportData) -> None:
    report = {k: v for k, v in (report_data.filter_report or {}).items() if k != "by_category"}
    on, off = (page(bare, filter_report=report, filtered=filtered) for filtered in (True, False))
    for found in (on, off):
        assert "Of 5,225 training pairs" in found.text and "3,011 (57.6%)" in found.text
    assert "Conflict filter" in on.text and "Only the first were fitted." in on.text
    assert "Labels and base reward" in off.text and "All of them were fitted." in off.text
    tables = [[t for t in found.made if t.label.startswith("filter")] for found in (on, off)]
    assert {"kept", "dropped"} < set(tables[0][0].head) and {"agree", "contradict"} < set(tables[1][0].head)
    assert [t.body for t in tables[0]] == [t.body for t in tables[1]] and len(tables[0]) == 2


@pytest.mark.parametrize(
    ("noise", "said"), [(1.4, "standard deviation of 1.4"), (None, "the base reward has no weight.")]
)
def test_fusion_weights_are_said(bare: ReportData, noise: float | None, said: str) -> None:
    history = [{"epoch": 1, "loss": 2.0}]
    text = page(bare, history=history, fusion={"power": 0.5, "base_noise": noise}).text
    assert "the density is tempered to the power 0.5" in text and said in text
    assert "Fusion weights" not in page(bare, history=history).text


def test_settings_are_flattened(reader: Reader) -> None:
    rows = {row[0]: row[1] for table in reader.made if table.label.startswith("settings") for row in table.body}
    assert rows["grid.nodes"] == "257" and rows["noise_scales"] == "3.5" and rows["clip"] == "none"
    assert rows["trust_remote_code"] == "no" and rows["seed"] == "0" and rows["torch"] == "2.13.0+cpu"


def test_history_without_validation(bare: ReportData) -> None:
    history = [
        {"epoch": 1, "loss": 2.0, "validation_accuracy": float("nan")},
        {"epoch": 2, "loss": 1.0},
    ]
    found = page(bare, history=history)
    assert "Validation accuracy: not measured in this run." in found.text and "2 epochs." in found.text
    assert "Validation loss: not measured in this run." in found.text and 'id="loss-title"' in found.html


def test_bad_arrays_are_refused(report_data: ReportData) -> None:
    base = np.asarray(report_data.base_reward)
    broken = base.copy()
    broken[7, 1] = np.nan
    with pytest.raises(DataError, match="base_reward is not finite in 1 of 600 held-out pairs, the first in row 7"):
        page(report_data, base_reward=broken)
    with pytest.raises(ValueError, match=r"std has shape \(600,\), expected \(600, 2\)"):
        page(report_data, std=base[:, 0])
    with pytest.raises(ValueError, match="live score 1 has 3 responses"):
        page(report_data, live=[replace(report_data.live[0], base=[1.0])])


def test_a_failed_report_leaves_the_old_one(report_data: ReportData, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text("old")
    with pytest.raises(ValueError, match="prompt_id has 1 entries"):
        write_report(path, replace(report_data, prompt_id=[1]))
    assert path.read_text() == "old"


def test_one_pair_and_constant_rewards_can_be_reported() -> None:
    one = paired_accuracy([1.0], [1.0], [1.0], [1.0], ["a"])
    array = np.ones((1, 2))
    found = page(ReportData("t", one, base_reward=array, refined_reward=array, probability=[0.5], std=array))
    assert (
        found.headline == "1 pair is too few to tell; no difference at all could be seen" and "one prompt" in found.text
    )
    assert "[no interval]" in found.text and "constant on these responses" in found.text
    many = paired_accuracy(*[np.ones(30)] * 4, np.arange(30), bootstrap=Bootstrap(20))
    array = np.ones((30, 2))
    page(ReportData("t", many, base_reward=array, refined_reward=array, probability=[1.0] * 30, std=0 * array))
