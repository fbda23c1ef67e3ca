from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tests.report.reader import Reader

from ebrm.errors import DataError
from ebrm.metrics import Bootstrap, calibration, error_auroc, paired_accuracy, risk_coverage
from ebrm.report import ReportData, interval, write_report
from ebrm.report.fit import report_page
from ebrm.report.fit_results import accuracy_section
from ebrm.report.fit_run import delta_section, filter_section, live_section, settings_section, training_section
from ebrm.report.page import Page, render_page
from ebrm.report.words import NO_BREAK, percent_estimate

SECTIONS = ["accuracy", "rewards", "reliability", "uncertainty", "delta", "live", "filter", "training", "settings"]


@pytest.fixture(scope="module")
def html(report_data: ReportData, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("report") / "deep" / "report.html"
    assert write_report(path, report_data) == path
    return path.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def reader(html: str) -> Reader:
    return Reader(html)


def test_the_same_data_give_the_same_bytes(report_data: ReportData, html: str, tmp_path: Path) -> None:
    assert write_report(tmp_path / "again.html", report_data).read_bytes() == html.encode()
    assert [p.name for p in tmp_path.iterdir()] == ["again.html"]


def test_needs_no_network_and_no_script(reader: Reader, html: str) -> None:
    assert "http" not in html.replace("http-equiv", "") and "@import" not in html and "src=" not in html
    assert not {"script", "link", "img", "iframe"} & {tag for tag, _ in reader.elements}
    for tag, attributes in reader.elements:
        assert not [name for name in attributes if name.startswith("on")], tag
        assert (attributes.get("href") or "#").startswith("#")
    assert len(html) < 1_000_000


def test_every_section_is_there_and_linked(reader: Reader) -> None:
    assert [a["id"] for a in reader.all("section")] == SECTIONS
    assert [a["href"] for a in reader.all("a")] == [f"#{name}" for name in SECTIONS]


def test_ids_are_unique_and_labels_resolve(reader: Reader) -> None:
    ids = Counter(attributes["id"] for _, attributes in reader.elements if "id" in attributes)
    assert [name for name, times in ids.items() if times > 1] == []
    for _, attributes in reader.elements:
        assert attributes.get("aria-labelledby", next(iter(ids))) in ids


def test_is_accessible(reader: Reader) -> None:
    assert reader.all("html")[0]["lang"] == "en" and len(reader.all("title")) == 1 + len(reader.all("svg"))
    headings = [int(tag[1]) for tag, _ in reader.elements if tag in {"h1", "h2", "h3", "h4"}]
    assert headings[0] == 1 and headings.count(1) == 1
    assert all(after <= before + 1 for before, after in zip(headings, headings[1:], strict=False))
    assert all(a["scope"] in {"col", "row"} for a in reader.all("th")) and len(reader.all("table")) > 5
    figures = len(reader.all("figure"))
    assert figures == len(reader.all("svg")) == len(reader.all("figcaption")) >= 15


def test_hostile_text_stays_text(reader: Reader, html: str) -> None:
    assert "<script>alert('no')</script> & \ufffd \ufffd emoji 🦜" in reader.text
    assert "<script" not in html and "<b>not bold" not in html
    assert "# <b>not bold</b>" in reader.text


def test_every_string_of_the_data_is_escaped(report_data: ReportData) -> None:
    nasty = "<i>\"'&\x00\ud800</i>"
    score = replace(report_data.live[0], prompt=nasty, responses=[nasty] * 3)
    example = replace(report_data.examples[0], prompt=nasty, response=nasty, label=nasty)
    part = {k: v for k, v in (report_data.filter_report or {}).items() if not k.startswith("by")}
    data = replace(
        report_data,
        title=nasty,
        by_category={nasty: report_data.overall, "b": report_data.overall},
        live=[score],
        examples=[example],
        filter_report={**part, "by_source": {nasty: part, "b": part}},
        settings={nasty: nasty, "stage": {nasty: nasty, "more": [nasty]}},
        versions={nasty: nasty},
        notes=[nasty],
    )
    html = render_page(report_page(data))
    reader = Reader(html)
    assert "i" not in {tag for tag, _ in reader.elements} and "\x00" not in html
    assert html.encode().count(b"&lt;i&gt;") > 15


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
    base, noise = generator.normal(size=400), generator.normal(size=400)
    overall = paired_accuracy(
        base, np.zeros(400), base + gain + 0.3 * noise, np.zeros(400), np.arange(400), bootstrap=Bootstrap(200)
    )
    page = report_page(ReportData("t", overall))
    assert page.headline == headline
    assert ("use the base reward" in page.summary[0]) == (gain < 0)
    assert ("contains zero" in page.summary[0]) == (gain == 0)


def test_the_headline_numbers_are_the_accuracies(report_data: ReportData, reader: Reader) -> None:
    overall = report_data.overall
    assert f"On 600 held-out pairs from {overall.prompts} prompts" in reader.text
    assert (
        f"{100 * overall.base.value:.1f}% [{100 * overall.base.low:.1f}, {100 * overall.base.high:.1f}]" in reader.text
    )
    assert (
        f"put {overall.flips_fixed} pairs right" in reader.text and f"and {overall.flips_broken} wrong" in reader.text
    )


def test_calibration_and_uncertainty_show_their_intervals(report_data: ReportData, reader: Reader) -> None:
    found = calibration(np.asarray(report_data.probability), report_data.prompt_id)
    refined = np.asarray(report_data.refined_reward)
    confidence = np.maximum(np.asarray(report_data.probability), 1 - np.asarray(report_data.probability))
    wrong = refined[:, 0] <= refined[:, 1]
    auroc = error_auroc(1 - confidence, wrong, report_data.prompt_id)
    area = risk_coverage(1 - confidence, wrong, report_data.prompt_id).area
    assert auroc is not None
    for estimate in (found.brier, found.log_loss, auroc):
        shown = f"{estimate.value:.3f} {interval(estimate.low, estimate.high, 3)}"
        assert shown.replace(NO_BREAK, " ") in reader.text
    for estimate in (found.ece, area):
        assert percent_estimate(estimate, "%").replace(NO_BREAK, " ") in reader.text


def test_ties_are_reported_both_ways() -> None:
    overall = paired_accuracy(
        [0, 1, 1, 0], [0, 0, 0, 0], [1, 0, 1, 1], [0, 0, 0, 0], [1, 2, 3, 4], bootstrap=Bootstrap(50)
    )
    summary = " ".join(report_page(ReportData("t", overall)).summary)
    assert "(2 base, 1 refined)" in summary and "75.0%" in summary and "87.5%" in summary


def test_what_is_missing_is_said() -> None:
    overall = paired_accuracy([1, 0], [0, 1], [1, 1], [0, 0], ["a", "b"], bootstrap=Bootstrap(10))
    page = report_page(ReportData("t", overall))
    assert [section.id for section in page.sections] == ["accuracy"]
    assert len(page.missing) == len(SECTIONS) - 1 and all(sentence.endswith(".") for sentence in page.missing)
    assert "Not on this page" in Reader(render_page(page)).text


def test_nothing_is_missing_from_a_full_report(reader: Reader) -> None:
    assert "Not on this page" not in reader.text


def test_small_categories_are_in_the_table_but_not_in_the_figures(report_data: ReportData) -> None:
    small = replace(report_data.overall, prompts=19)
    section = accuracy_section(report_data.overall, {"tiny": small, "big": report_data.overall})
    assert [row[0] for row in section.tables[0].rows] == ["all pairs", "tiny *", "big"]
    assert all(">tiny<" not in figure.svg and ">big<" in figure.svg for figure in section.figures)
    assert any("Fewer than 20 prompts" in note for note in section.notes)


def test_many_categories_are_all_in_the_table(report_data: ReportData) -> None:
    section = accuracy_section(report_data.overall, {f"c{i}": replace(report_data.overall, pairs=i) for i in range(40)})
    assert (
        len(section.tables[0].rows) == 41 and ">c10<" in section.figures[0].svg and ">c9<" not in section.figures[0].svg
    )
    assert any("30 largest of 40" in note for note in section.notes)


def test_the_live_table_is_sorted_by_refined_reward(report_data: ReportData) -> None:
    section = live_section(report_data.live, 2)
    table = section.cards[0].table
    assert table is not None
    assert [row[0][:6] for row in table.rows] == ["Canber", "Sydney", "(empty"]
    assert [row[1] for row in table.rows] == ["1.10", "0.20", "−1.00"] and [row[4] for row in table.rows] == [
        "2",
        "1",
        "3",
    ]


def test_filter_off_is_said(report_data: ReportData) -> None:
    report = report_data.filter_report or {}
    on, off = (filter_section(report, filtered, 2) for filtered in (True, False))
    for section in (on, off):
        assert "Of 5,225 training pairs" in section.text[0] and "3,011 (57.6%)" in section.text[0]
    assert on.title == "Conflict filter" and on.text[0].endswith("Only the first were fitted.")
    assert off.title == "Labels and base reward" and off.text[0].endswith("All of them were fitted.")
    heads = [[column for table in section.tables for column in table.columns] for section in (on, off)]
    assert {"kept", "dropped"} < set(heads[0]) and not any("kept" in c or "dropped" in c for c in heads[1])
    assert [t.rows for t in on.tables] == [t.rows for t in off.tables]


@pytest.mark.parametrize(
    ("noise", "said"),
    [
        (
            1.4,
            "base reward trusted to within 1.4 standard deviations; density to the power 0.5 (the standard deviation",
        ),
        (None, "base reward given no weight; density to the power 0.5."),
    ],
)
def test_what_refined_rewards_trust_is_said(noise: float | None, said: str) -> None:
    history = [{"epoch": 1, "loss": 2.0}]
    (_, sentence) = training_section(history, 1, {"power": 0.5, "base_noise": noise}).text
    assert said in sentence
    assert len(training_section(history, 1).text) == 1


def test_the_page_shows_what_is_trusted(reader: Reader) -> None:
    assert "base reward trusted to within 2 standard deviations; density to the power 0.25" in reader.text


def test_settings_are_flattened(report_data: ReportData) -> None:
    section = settings_section(report_data.settings, report_data.versions)
    rows = {row[0]: row[1] for table in section.tables for row in table.rows}
    assert rows["grid.nodes"] == "257" and rows["noise_scales"] == "3.5" and rows["clip"] == "none"
    assert rows["trust_remote_code"] == "no" and rows["seed"] == "0" and rows["torch"] == "2.13.0+cpu"


def test_history_without_validation() -> None:
    history = [
        {"epoch": 1, "loss": 2.0, "validation_accuracy": float("nan"), "seconds": 1.5},
        {"epoch": 2, "loss": 1.0},
    ]
    section = training_section(history, None)
    assert [figure.title for figure in section.figures] == ["Training loss"]
    assert section.notes == [
        "Validation accuracy: not measured in this run.",
        "Validation loss: not measured in this run.",
    ]
    assert section.text[0].startswith("2 epochs in 1.5 seconds")


def test_long_texts_are_folded_and_very_long_ones_cut(report_data: ReportData) -> None:
    long = "word " * 200 + "x" * 1_000_000
    example = replace(report_data.examples[0], response=long)
    section = delta_section([example], 0.9, 2)
    html = render_page(Page("t", "h", [], [], [section]))
    assert len(html) < 1_000_000
    assert f"… [{len(long) - 6000:,} more characters not shown]" in html
    kept = Reader(html).text.count("word")
    assert kept >= 200


def test_bad_arrays_are_refused(report_data: ReportData) -> None:
    base = np.asarray(report_data.base_reward)
    broken = base.copy()
    broken[7, 1] = np.nan
    with pytest.raises(DataError, match="base_reward is not finite in 1 of 600 held-out pairs, the first in row 7"):
        report_page(replace(report_data, base_reward=broken))
    with pytest.raises(ValueError, match=r"std has shape \(600,\), expected \(600, 2\)"):
        report_page(replace(report_data, std=base[:, 0]))
    with pytest.raises(ValueError, match="prompt_id has 3 entries"):
        report_page(replace(report_data, prompt_id=[1, 2, 3]))
    with pytest.raises(ValueError, match="live score 1 has 3 responses"):
        report_page(replace(report_data, live=[replace(report_data.live[0], base=[1.0])]))


def test_a_failed_report_leaves_the_old_one(report_data: ReportData, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text("old")
    with pytest.raises(ValueError, match="prompt_id"):
        write_report(path, replace(report_data, prompt_id=[1]))
    assert path.read_text() == "old"


def test_one_pair_and_constant_rewards_can_be_reported() -> None:
    one = paired_accuracy([1.0], [1.0], [1.0], [1.0], ["a"])
    array = np.ones((1, 2))
    data = ReportData("t", one, base_reward=array, refined_reward=array, probability=[0.5], std=array)
    page = report_page(data)
    assert page.headline.startswith("No clear difference") and "one prompt" in page.summary[0]
    assert "[no interval]" in Reader(render_page(page)).text
    many = paired_accuracy(*[np.ones(30)] * 4, np.arange(30), bootstrap=Bootstrap(20))
    array = np.ones((30, 2))
    report_page(ReportData("t", many, base_reward=array, refined_reward=array, probability=[1.0] * 30, std=0 * array))


def test_an_empty_page_renders() -> None:
    html = render_page(Page("title", "headline", [], [], []))
    assert Reader(html).text == "title title headline"
