"""What holds for both pages: of a fit, and of an evaluation on benchmarks."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest
from tests.report.reader import Reader

from ebrm.evaluation import Evaluation
from ebrm.report import ReportData, write_benchmark_report, write_report
from ebrm.report.benchmarks import benchmark_page
from ebrm.report.fit import fit_page
from ebrm.report.page import breakable, folded

SECTIONS = {
    "fit": [
        "accuracy",
        "heads",
        "rewards",
        "reliability",
        "uncertainty",
        "delta",
        "live",
        "filter",
        "training",
        "settings",
    ],
    "benchmarks": ["scores", "changes", "calibration", "abstention", "rewards", "regressions", "measured"],
}


@pytest.fixture(scope="module")
def pages(report_data: ReportData, evaluation: Evaluation) -> dict[str, Reader]:
    return {"fit": Reader(fit_page(report_data)), "benchmarks": Reader(benchmark_page(evaluation))}


@pytest.fixture(params=list(SECTIONS))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def page(pages: dict[str, Reader], name: str) -> Reader:
    return pages[name]


def test_the_same_data_give_the_same_bytes(
    report_data: ReportData, evaluation: Evaluation, pages: dict[str, Reader], tmp_path: Path
) -> None:
    path = tmp_path / "deep" / "report.html"
    assert write_report(path, report_data) == path and path.read_bytes() == pages["fit"].html.encode()
    assert write_benchmark_report(path, evaluation).read_bytes() == pages["benchmarks"].html.encode()
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]


def test_needs_no_network_and_no_script(page: Reader) -> None:
    assert "http" not in page.html.replace("http-equiv", "") and "@import" not in page.html and "src=" not in page.html
    assert not {"script", "link", "img", "iframe"} & {tag for tag, _ in page.elements}
    for tag, attributes in page.elements:
        assert not [name for name in attributes if name.startswith("on")], tag
        assert (attributes.get("href") or "#").startswith("#")
    assert "default-src 'none'" in str(page.all("meta")) and len(page.html) < 500_000


def test_every_section_is_there_and_linked_in_reading_order(page: Reader, name: str) -> None:
    assert page.sections == SECTIONS[name]
    assert [a["href"] for a in page.all("a")] == [f"#{section}" for section in SECTIONS[name]]
    assert "Not on this page" not in page.text


def test_ids_are_unique_and_labels_resolve(page: Reader) -> None:
    ids = Counter(attributes["id"] for _, attributes in page.elements if "id" in attributes)
    assert [one for one, times in ids.items() if times > 1] == []
    for _, attributes in page.elements:
        assert attributes.get("aria-labelledby", next(iter(ids))) in ids


def test_is_accessible(page: Reader) -> None:
    assert page.all("html")[0]["lang"] == "en"
    headings = [int(tag[1]) for tag, _ in page.elements if tag in {"h1", "h2", "h3", "h4"}]
    assert headings[0] == 1 and headings.count(1) == 1
    assert all(after <= before + 1 for before, after in zip(headings, headings[1:], strict=False))
    assert all(a["scope"] in {"col", "row", "rowgroup"} for a in page.all("th")) and len(page.all("table")) > 5
    drawings = page.all("svg")
    assert all(a.get("role") == "img" or a.get("aria-hidden") == "true" for a in drawings)
    shown = sum(a.get("role") == "img" for a in drawings)
    assert shown == len(page.all("figure")) == len(page.all("figcaption")) >= 13
    assert all(a["role"] == "region" and a["tabindex"] == "0" for a in page.all("div") if a.get("class") == "scroll")


def test_marks_are_named(pages: dict[str, Reader]) -> None:
    marks = [a["aria-label"] for a in pages["benchmarks"].all("span") if "aria-label" in a]
    assert set(marks) == {"clearly better", "clearly worse"}


def test_rows_have_as_many_cells_as_the_heading(page: Reader) -> None:
    for table in page.made:
        assert {len(row) for row in table.rows} <= {1, len(table.head)} and table.body
    for span in re.findall(r'colspan="(\d+)"', page.html):
        assert int(span) in {len(table.head) for table in page.made}


def test_shades_and_colors_are_defined(page: Reader) -> None:
    style = page.html[page.html.index("<style>") : page.html.index("</style>")]
    for step in set(re.findall(r"shade s(\d+)", page.html)):
        assert f".s{step} {{" in style
    for role in set(re.findall(r"var\(--([a-z]+)\)", page.html)) - {"step"}:
        assert style.count(f"--{role}: ") >= 2, role  # light and dark


def test_long_texts_are_folded_and_very_long_ones_cut() -> None:
    assert folded("short\r\ntext") == ("short\ntext", "")
    shown, rest = folded("word " * 200 + "x" * 1_000_000)
    assert len(shown) <= 700 and shown.endswith("word") and len(rest) < 6000
    assert rest.endswith("… [995,000 more characters not shown]")


def test_names_break_at_slashes_first_and_stay_escaped() -> None:
    assert breakable("owner/<b>_name/") == "owner/&lt;b&gt;_<wbr>name/"
    assert breakable("a/b") == "a/<wbr>b"
    assert breakable("x" * 40) == f"{'x' * 16}<wbr>{'x' * 16}<wbr>{'x' * 8}"
