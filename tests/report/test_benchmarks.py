from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tests.report import small
from tests.report.reader import Reader

from ebrm.errors import DataError
from ebrm.evaluation import Evaluation, ScorerResult
from ebrm.report import write_benchmark_report
from ebrm.report.benchmarks import benchmark_page
from ebrm.report.page import Grid, GridCell, GridRow, Page, Section, render_page

SECTIONS = ["scores", "changes", "calibration", "abstention", "rewards", "regressions", "measured"]
MakeEvaluation = Callable[..., Evaluation]


@pytest.fixture(scope="module")
def html(evaluation: Evaluation, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("report") / "deep" / "report.html"
    assert write_benchmark_report(path, evaluation, notes=["Made by a test."]) == path
    return path.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def reader(html: str) -> Reader:
    return Reader(html)


def test_the_same_evaluation_gives_the_same_bytes(evaluation: Evaluation, html: str, tmp_path: Path) -> None:
    path = write_benchmark_report(tmp_path / "again.html", evaluation, notes=["Made by a test."])
    assert path.read_bytes() == html.encode()
    assert [p.name for p in tmp_path.iterdir()] == ["again.html"]


def test_needs_no_network_and_no_script(reader: Reader, html: str) -> None:
    assert "http" not in html.replace("http-equiv", "") and "@import" not in html and "src=" not in html
    assert not {"script", "link", "img", "iframe"} & {tag for tag, _ in reader.elements}
    for tag, attributes in reader.elements:
        assert not [name for name in attributes if name.startswith("on")], tag
        assert (attributes.get("href") or "#").startswith("#")
    assert "default-src 'none'" in str(reader.all("meta")) and len(html) < 500_000


def test_every_section_is_there_and_linked_in_reading_order(reader: Reader) -> None:
    assert [a["id"] for a in reader.all("section")] == SECTIONS
    assert [a["href"] for a in reader.all("a")] == [f"#{name}" for name in SECTIONS]
    assert "Not on this page" not in reader.text and "Made by a test." in reader.text


def test_ids_are_unique_and_labels_resolve(reader: Reader) -> None:
    ids = Counter(attributes["id"] for _, attributes in reader.elements if "id" in attributes)
    assert [name for name, times in ids.items() if times > 1] == []
    for _, attributes in reader.elements:
        assert attributes.get("aria-labelledby", next(iter(ids))) in ids


def test_is_accessible(reader: Reader) -> None:
    headings = [int(tag[1]) for tag, _ in reader.elements if tag in {"h1", "h2", "h3", "h4"}]
    assert headings[0] == 1 and headings.count(1) == 1
    assert all(after <= before + 1 for before, after in zip(headings, headings[1:], strict=False))
    assert all(a["scope"] in {"col", "row", "rowgroup"} for a in reader.all("th"))
    drawings = reader.all("svg")
    assert all(a.get("role") == "img" or a.get("aria-hidden") == "true" for a in drawings)
    assert sum(a.get("role") == "img" for a in drawings) == len(reader.all("figure")) == 2 + 3 * 4
    marks = [a["aria-label"] for a in reader.all("span") if "aria-label" in a]
    assert {"clearly better", "clearly worse"} == set(marks)


def test_rows_have_as_many_cells_as_the_heading(html: str) -> None:
    for table in re.findall(r"<table.*?</table>", html, flags=re.DOTALL):
        head, *bodies = re.split(r"<tbody>", table)
        columns = head.count('scope="col"')
        for row in re.findall(r"<tr.*?</tr>", "".join(bodies), flags=re.DOTALL):
            if "rowgroup" in row:
                assert f'colspan="{columns}"' in row
            else:
                assert row.count("<td") + row.count("<th") == columns


def test_shades_have_a_color(html: str) -> None:
    style = html[html.index("<style>") : html.index("</style>")]
    for step in re.findall(r"shade s(\d+)", html):
        assert f".s{step} {{" in style


@pytest.mark.parametrize(
    ("bases", "sections", "missing"),
    [
        ({"rm": None}, ["scores", "calibration", "abstention", "rewards", "measured"], 1),
        ({"a": None, "b": None}, [name for name in SECTIONS if name != "regressions"], 1),
        ({"a": None, "b": None, "b2": "b"}, SECTIONS, 0),
    ],
)
def test_what_there_is_decides_the_sections(
    make_evaluation: MakeEvaluation, bases: dict[str, str | None], sections: list[str], missing: int
) -> None:
    page = benchmark_page(make_evaluation(bases, {"RM-Bench": {"chat": [], "code": []}}))
    assert [section.id for section in page.sections] == sections
    assert len(page.missing) == missing and all(sentence.endswith(".") for sentence in page.missing)


def test_nothing_but_scores() -> None:
    rows: dict[str, small.Numbers] = {"rm": (0.5, None), "ebrm": (0.6, 0.01)}
    page = benchmark_page(small.overall_only([rows], {"rm": None, "ebrm": "rm"}))
    assert [section.id for section in page.sections] == ["scores", "changes", "measured"]
    assert [sentence.split(":")[0] for sentence in page.missing] == [
        "Calibration",
        "Leaving out uncertain pairs",
        "Margins, length and order",
        "Worst regressions",
    ]
    assert page.headline == "ebrm is better than rm on A"
    Reader(render_page(page))


def test_every_string_of_the_evaluation_is_escaped(make_evaluation: MakeEvaluation) -> None:
    nasty = "<i>\"'&\x00\ud800</i>"
    evaluation = make_evaluation(
        {nasty: None, nasty + "2": nasty, "third": None}, {nasty: {nasty: [nasty, nasty + "s"]}}
    )
    made = evaluation.benchmarks[0]
    regression = replace(made.regressions[0], item=nasty, group=nasty, prompt=nasty, right=nasty, wrong=nasty)
    scorers = {
        name: ScorerResult(
            r.cells, {**r.metrics, nasty: small.exact(1)}, r.best, r.not_worse, r.calibration, r.risk, r.margins
        )
        for name, r in made.scorers.items()
    }
    made = replace(
        made,
        scorers=scorers,
        regressions=(regression,),
        notes=(nasty,),
        origin=nasty,
        excluded={nasty: 1},
        unscored={nasty: {nasty: 1}},
        unscored_items=(nasty,),
    )
    evaluation = replace(
        evaluation,
        benchmarks=(made,),
        about={nasty: {nasty: nasty}},
        versions={nasty: nasty},
        seconds={nasty: 1.0},
    )
    html = render_page(benchmark_page(evaluation, notes=[nasty]))
    reader = Reader(html)
    assert "i" not in {tag for tag, _ in reader.elements} and "\x00" not in html
    assert html.encode().count(b"&lt;i&gt;") > 60


def test_long_texts_are_folded_and_very_long_ones_cut(make_evaluation: MakeEvaluation) -> None:
    evaluation = make_evaluation(shapes={"RM-Bench": {}})
    made = evaluation.benchmarks[0]
    long = replace(made.regressions[0], right="word " * 200 + "x" * 1_000_000)
    html = render_page(benchmark_page(replace(evaluation, benchmarks=(replace(made, regressions=(long,)),))))
    assert len(html) < 500_000 and "more characters not shown" in html and "the rest" in html


def test_numbers_that_are_not_there_can_be_shown(make_evaluation: MakeEvaluation) -> None:
    evaluation = make_evaluation(items=12, untested=True)
    page = benchmark_page(evaluation)
    assert page.headline == "Too few prompts to tell demo-ebrm and demo-rm apart on any of 4 benchmarks"
    text = Reader(render_page(page)).text
    assert "[no interval]" in text and "nan" not in text.lower().replace("nano", "")


def test_wide_tables_get_a_wide_page() -> None:
    for names, wide in (("abc", False), ("abcd", True)):
        page = benchmark_page(small.overall_only([dict.fromkeys(names, (0.5, 0.5))], dict.fromkeys(names)))
        assert page.wide == wide and ('<body class="wide">' in render_page(page)) == wide


def test_the_title_names_few_scorers_and_counts_many(make_evaluation: MakeEvaluation) -> None:
    row = {name: (0.5, 0.5) for name in "abcd"}
    few = small.overall_only([{name: row[name] for name in "abc"}], {"a": None, "b": None, "c": None})
    many = small.overall_only([row, row], {name: None for name in "abcd"})
    assert benchmark_page(few).title == "a, b and c on 1 benchmark"
    assert benchmark_page(many).title == "4 reward models on 2 benchmarks"


def test_there_must_be_something_to_report(evaluation: Evaluation, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text("old")
    with pytest.raises(DataError, match="no benchmark"):
        write_benchmark_report(path, replace(evaluation, benchmarks=()))
    with pytest.raises(DataError, match=r"reference 'x' is not among the scorers demo-rm, demo-ebrm"):
        write_benchmark_report(path, replace(evaluation, reference="x"))
    assert path.read_text() == "old"


def test_a_grid_cell_shows_all_its_parts() -> None:
    cells = [
        GridCell("1", "beside", "below", ("▲", "clearly better"), 3, True),
        GridCell("2", mark=("▼", "clearly worse")),
        GridCell("3", below="under"),
    ]
    grid = Grid(
        "caption", "corner", [("a", "detail"), ("b", ""), ("c", "")], [("group", [GridRow("row", cells, "small")])]
    )
    html = render_page(Page("t", "h", [], [], [Section("s", "S", grids=[grid, replace(grid, folded=True)])]))
    assert (
        '<td class="shade s3"><strong>1</strong> <small>beside</small><small class="below"><span role="img" '
        'aria-label="clearly better">▲</span> below</small></td>' in html
    )
    assert '<td><span role="img" aria-label="clearly worse">▼</span> 2</td>' in html
    assert '<td>3<small class="below">under</small></td>' in html
    assert html.count("<details") == 1 and html.count('colspan="4"') == 2
    assert Reader(html).text.count("corner a detail b c group row small") == 2


def test_a_report_of_many_scorers_and_benchmarks_is_no_giant(make_evaluation: MakeEvaluation) -> None:
    bases: dict[str, str | None] = {f"rm{n}": None for n in range(4)} | {f"e{n}": f"rm{n}" for n in range(4)}
    html = render_page(benchmark_page(make_evaluation(bases, {"B": {"": ["one", "two"]}}, items=60)))
    assert len(html) < 500_000
    assert len(np.unique(re.findall(r'<svg viewBox[^>]*aria-labelledby="([^"]+)"', html))) == 7 + 3 * 4


def test_names_break_at_slashes_first_and_stay_escaped() -> None:
    rows = [GridRow("owner/<b>_name/", [GridCell("1")]), GridRow("x" * 40, [GridCell("2")])]
    grid = Grid("c", "r", [("a/b", "x_y")], [("", rows)])
    html = render_page(Page("t", "h", [], [], [Section("s", "S", grids=[grid])]))
    assert "owner/&lt;b&gt;_<wbr>name/</span>" in html
    assert "a/<wbr>b</span>" in html and "x_<wbr>y</small>" in html
    assert f"{'x' * 16}<wbr>{'x' * 16}<wbr>{'x' * 8}</span>" in html
