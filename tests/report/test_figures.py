from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from PIL import Image
from tests.report import small

from ebrm.evaluation import Selection, select
from ebrm.evaluation.best_of_n import ResponsePools
from ebrm.metrics import Bootstrap, Estimate, calibration, risk_coverage
from ebrm.report import figures, write_selection_figure
from ebrm.report.figures import LOOKS, ForestRow, look_of, selection_figure
from ebrm.report.svg import COLORS, line_mark, new_figure, style, to_svg

GENERATOR = np.random.default_rng(0)
CURVE = calibration(GENERATOR.random(300), np.arange(300), bootstrap=Bootstrap(20))
RISK = risk_coverage(GENERATOR.random(300), GENERATOR.random(300) < 0.3)
LONG = risk_coverage(GENERATOR.random(5_000), GENERATOR.random(5_000) < 0.3, bootstrap=Bootstrap(20))
BOTH = {"base": small.around(0.5), "refined": small.around(0.6), "difference": small.around(0.1)}
LABELS = {"base": "base", "refined": "refined"}


def texts(svg: str) -> list[str]:
    return [element.text or "" for element in ElementTree.fromstring(svg).iter("text")]


def paths(svg: str, role: str, dashed: bool | None = None) -> list[str]:
    found = re.findall(r'<path d="([^"]*)"[^>]*style="([^"]*)"', svg)
    drawn = [(d, style) for d, style in found if f"stroke: var(--{role})" in style]
    return [d for d, style in drawn if dashed is None or ("dasharray" in style) == dashed]


def rows(*values: float, clear: bool = False) -> list[ForestRow]:
    return [ForestRow(f"row {n}", {"difference": small.around(v)}, 1234 + n, clear) for n, v in enumerate(values)]


def difference(drawn: list[ForestRow]) -> str:
    return figures.difference_forest("f", "t", drawn, "prompts", bounds=(-1, 1))


def histogram(name: str = "h") -> str:
    return figures.reward_histogram(name, "T <&>", np.random.default_rng(0).normal(size=(200, 2)), (-3.0, 3.0), None)


def everything(title: str) -> list[str]:
    row = [ForestRow("r", BOTH, 3)]
    curves, risks = {"base": CURVE, "refined": CURVE}, {"base": {"confidence": RISK}, "refined": {"std": RISK}}
    return [
        figures.score_forest("a", title, row, LABELS, "official score", "prompts"),
        figures.difference_forest("b", title, row, "prompts"),
        *(figures.reliability(f"c{panel}", title, curves, panel=panel) for panel in (True, False)),
        *(figures.risk_curves(f"d{panel}", title, risks, panel=panel) for panel in (True, False)),
        figures.margin_panel("e", title, {"base": np.arange(-5.0, 5), "refined": np.arange(-3.0, 7)}),
        figures.confidence_histogram("g", title, {"base": np.full(9, 0.9), "refined": np.linspace(0.5, 1, 9)}),
        figures.training_curve("i", title, [1], [0.5], "accuracy", True, 1),
        figures.density_curve("j", title, np.arange(5.0), np.ones(5), 1.0, 2.0, (1.0, 3.0)),
        histogram(),
    ]


def test_all_figures_have_titles_ids_of_their_own_and_only_the_pages_colors() -> None:
    drawn = everything("T <&>")
    ids = re.findall(r'\bid="([^"]+)"', "".join(drawn))
    assert len(ids) == len(set(ids))
    for svg in drawn:
        root = ElementTree.fromstring(svg)
        title = root.find("title")
        assert title is not None and title.text == "T <&>" and root.get("aria-labelledby") == title.get("id")
        assert root.get("role") == "img" and len(svg) < 20_000
        assert not re.search(r"#[0-9a-fA-F]{6}\b", svg)
        assert {"ink"} <= set(re.findall(r"var\(--(\w+)\)", svg)) <= set(COLORS)
        assert set(re.findall(r'(?:href="#|url\(#)([^")]+)', svg)) <= set(ids)
    assert histogram() == histogram()


def test_labels_are_not_read_as_mathematics_or_markup() -> None:
    drawn = [ForestRow(name, BOTH, n) for n, name in enumerate(("all", "$x_1$ <b>&", "日本語 \x00🦜"), start=1)]
    svg = figures.score_forest("f", "t", drawn, LABELS, "pairs ranked correctly", "pairs")
    assert {"all", "$x_1$ <b>&", "日本語 \ufffd🦜", "pairs ranked correctly", "pairs", "3"} <= set(texts(svg))


def test_significant_differences_are_filled_and_others_hollow() -> None:
    clear, unclear = (difference(rows(0.1, clear=one)) for one in (True, False))
    assert "clear" in texts(clear) and "not clear" not in texts(clear)
    assert "not clear" in texts(unclear) and "clear" not in texts(unclear)
    assert {"clear", "not clear"} <= set(texts(difference([*rows(0.1, clear=True), *rows(0.2)])))
    assert texts(difference(rows(0.1, 0.2, clear=True))).count("clear") == 1
    assert "fill: var(--refined)" in clear and "fill: var(--refined)" not in unclear


def test_forests_name_rows_and_counts_and_stand_missing_numbers() -> None:
    svg = difference(rows(0.1, -0.2, 0.3))
    assert {"row 0", "row 1", "row 2", "1,234", "1,235", "1,236", "prompts"} <= set(texts(svg))
    assert svg.index(">row 0<") < svg.index(">row 1<")
    nothing = Estimate(np.nan, np.nan, np.nan)
    gone = [ForestRow("gone", {"difference": nothing}, 1), ForestRow("point", {"difference": small.exact(0.1)}, 1)]
    assert {"gone", "point"} <= set(texts(difference(gone)))
    pair = [ForestRow("gone", {"base": nothing, "refined": small.exact(0.5)}, 1)]
    assert "gone" in texts(figures.score_forest("f", "t", pair, LABELS, "x", "n"))


def test_lines_differ_by_more_than_color() -> None:
    reliability = figures.reliability("r", "t", {"base": CURVE, "refined": CURVE}, panel=True)
    both = {"base": {"confidence": RISK}, "refined": {"confidence": RISK, "std": RISK}}
    risk = figures.risk_curves("r", "t", both, panel=True)
    margin = figures.margin_panel("m", "t", {"base": np.arange(5.0), "refined": np.arange(5.0)})
    for svg in (reliability, risk, margin):
        assert paths(svg, "base", dashed=True) and not paths(svg, "refined", dashed=True)
        assert paths(svg, "refined", dashed=False)
    assert paths(risk, "second", dashed=True)


def test_the_accuracy_axis_holds_everything_drawn() -> None:
    def drawn(curve: object) -> str:
        return figures.reliability("r", "t", {"base": curve}, panel=True)  # type: ignore[dict-item]

    low = calibration(np.repeat(0.1, 50), np.arange(50), bootstrap=Bootstrap(20))
    rare = calibration(np.where(np.arange(100) < 15, 0.85, 0.15), np.arange(100), bootstrap=Bootstrap(50))
    high = calibration(np.repeat(0.9, 50), np.arange(50), bootstrap=Bootstrap(20))
    assert "0%" in texts(drawn(low)) and rare.bins[0].accuracy.low > 0 and "0%" in texts(drawn(rare))
    assert "40%" in texts(drawn(high)) and "20%" not in texts(drawn(high))
    bars = [d for d in paths(drawn(CURVE), "base", dashed=False) if "L" in d]
    assert sorted(d.count("M") for d in bars)[-1] == len(CURVE.bins)  # one stroke a bar, none from bar to bar
    assert drawn(calibration([0.9], ["one"], bootstrap=Bootstrap(20)))


@pytest.mark.parametrize("panel", [True, False])
def test_risk_curves_are_thinned_and_start_at_some_pairs(panel: bool) -> None:
    path = paths(figures.risk_curves("r", "t", {"refined": {"confidence": LONG}}, panel=panel), "refined")[0]
    assert path.count("L") < (61 if panel else 201)
    short = {"refined": {"std": risk_coverage(np.arange(3.0), np.array([True, False, True]))}}
    svg = figures.risk_curves("r", "t", short, panel=panel)
    assert ">0%<" in svg and ("at random" in texts(svg)) == (not panel)


@pytest.mark.parametrize("values", [np.zeros(4), np.array([2.0]), np.array([-1.0, -2.0, 1e6])])
def test_any_margins_can_be_drawn(values: np.ndarray) -> None:
    svg = figures.margin_panel("m", "t", {"refined": values})
    assert "reward margin" in texts(svg) and paths(svg, "ink", dashed=True)  # the line at zero


def test_histograms_count_every_value_once() -> None:
    found = figures.shares(np.array([-100.0, -1.0, 0.5, 1.0, 100.0]), np.linspace(-2, 2, 5))
    assert found == pytest.approx([0.2, 0.2, 0.2, 0.4])
    for reward in (0.0, 1e6):
        low, high = figures.reward_range(np.full((5, 2), reward))
        assert low < reward < high


def test_the_legend_says_role_and_name() -> None:
    both = figures.panel_legend({"base": "rm", "refined": "ebrm"}, "risk", ["refined"])
    said = ["base: rm, by confidence", "refined: ebrm, by confidence", "refined: ebrm, by std"]
    assert [label for _, label in both] == said
    assert ["dasharray" in mark and 'dasharray="none"' not in mark for mark, _ in both] == [True, False, True]
    (alone,) = figures.panel_legend({"base": "rm"}, "reliability", ["base"])
    assert alone[1] == "rm" and "<circle" in alone[0] and "var(--base)" in alone[0]
    (square,) = figures.panel_legend({"refined": "e"}, "reliability")
    assert "<rect" in square[0] and "var(--refined)" in square[0]
    (plain,) = figures.panel_legend({"refined": "e"}, "margin")
    assert "<rect" not in plain[0]


@pytest.mark.parametrize(("marker", "shape"), [("", "path"), ("o", "circle"), ("s", "rect")])
def test_legend_marks(marker: str, shape: str) -> None:
    root = ElementTree.fromstring(line_mark("base", "5 2.5", marker))
    assert root.get("aria-hidden") == "true" and root[-1].tag == shape
    assert root[0].get("stroke") == "var(--base)" and root[0].get("stroke-dasharray") == "5 2.5"
    assert ElementTree.fromstring(line_mark("second"))[0].get("stroke-dasharray") == "none"


def test_drawing_leaves_matplotlibs_settings_alone() -> None:
    before = dict(matplotlib.rcParams)
    with style():
        to_svg(new_figure(1.0), "x", "empty")
    assert dict(matplotlib.rcParams) == before


def test_svg_is_compact_but_its_text_is_left_alone() -> None:
    label = "font-family: 0.123456  two  spaces  transform="
    with style():
        figure = new_figure(1.0)
        figure.add_subplot().set(xlabel=label, ylabel="y")
        svg = to_svg(figure, "x", "title 0.123456")
    assert "title 0.123456" in svg and label.replace("  ", " ") in [" ".join(text.split()) for text in texts(svg)]
    tags = re.findall(r"<[^>]*>", svg)
    assert not any("font-family" in tag or re.search(r"\.\d{4}", tag) or "\n" in tag for tag in tags)
    assert "rotate(-90" in svg and not re.search(r"rotate\(-?0 ", svg)
    assert "> <" not in svg and ">\n" not in svg


def found(rewards: int, prompts: int = 12) -> Selection:
    draws = np.random.default_rng(1)
    gold = draws.normal(size=(prompts, 5))
    tables = {f"$r_{k}": gold + draws.normal(size=gold.shape) for k in range(rewards)}
    return select(ResponsePools(tables, gold, {}), bootstrap=Bootstrap(100))


@pytest.mark.parametrize("rewards", [1, 2, 9])
def test_selection_has_one_line_a_reward_with_its_peak(rewards: int) -> None:
    selection = found(rewards)
    figure = selection_figure(selection, "worth")
    panels = figure.axes
    assert len(panels) == (2 if rewards == 1 else 4)
    assert panels[0].get_ylabel() == "mean worth"
    for axes, axis in zip(panels[:2], ("n", "kl"), strict=True):
        lines = {line.get_label(): line for line in axes.get_lines()}
        marks = [(float(m.get_xdata()[0]), float(m.get_ydata()[0])) for m in axes.get_lines() if m.get_marker() == "o"]
        for name, along in selection.along.items():
            curve = along[axis]  # type: ignore[index]
            np.testing.assert_allclose(lines[name].get_ydata(), curve.gold.value)
            assert (curve.peak.x.value, curve.peak.gold.value) in marks
        assert len(axes.collections) == (rewards if rewards <= 3 else 0)
    assert {text.get_text() for text in figure.legends[0].texts} == {*selection.along, "any response", "highest"}


def test_looks_differ() -> None:
    assert len({color for color, _ in LOOKS}) == len(LOOKS)
    assert len({look_of(number) for number in range(2 * len(LOOKS))}) == 2 * len(LOOKS)


def test_the_selection_figure_is_a_picture_and_the_same_twice(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_selection_figure(tmp_path / f"{name}.png", found(2))
    with Image.open(tmp_path / "a.png") as image:
        assert image.width == 1600 and image.getpixel((2, 2))[:3] == (255, 255, 255)  # type: ignore[index]
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    write_selection_figure(tmp_path / "one.png", found(2, prompts=1))
    assert (tmp_path / "one.png").stat().st_size > 1000
