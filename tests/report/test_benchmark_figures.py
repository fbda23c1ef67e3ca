from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from tests.report import small

from ebrm.metrics import Bootstrap, Estimate, calibration, risk_coverage
from ebrm.report import benchmark_figures as figures
from ebrm.report.benchmark_figures import ForestRow

GENERATOR = np.random.default_rng(0)
PROBABILITY = GENERATOR.random(300)
CURVE = calibration(PROBABILITY, np.arange(300), bootstrap=Bootstrap(20))
RISK = risk_coverage(GENERATOR.random(300), GENERATOR.random(300) < 0.3)


def texts(svg: str) -> list[str]:
    return [element.text or "" for element in ElementTree.fromstring(svg).iter("text")]


def paths(svg: str, role: str, dashed: bool | None = None) -> list[str]:
    found = re.findall(r'<path d="([^"]*)"[^>]*style="([^"]*)"', svg)
    drawn = [(d, style) for d, style in found if f"stroke: var(--{role})" in style]
    return [d for d, style in drawn if dashed is None or ("dasharray" in style) == dashed]


def rows(*values: float, clear: bool = False) -> list[ForestRow]:
    return [ForestRow(f"row {n}", {"difference": small.around(v)}, 1234 + n, clear) for n, v in enumerate(values)]


def test_all_figures_have_titles_and_only_the_pages_colors() -> None:
    drawn = [
        figures.score_forest(
            "a",
            "T <&>",
            [ForestRow("r", {"base": small.around(0.5), "refined": small.around(0.6)}, 3)],
            {"base": "x", "refined": "y"},
        ),
        figures.difference_forest("b", "T <&>", rows(0.1), (-1, 1)),
        figures.reliability_panel("c", "T <&>", {"base": CURVE, "refined": CURVE}),
        figures.risk_panel("d", "T <&>", {"base": {"confidence": RISK}, "refined": {"confidence": RISK, "std": RISK}}),
        figures.margin_panel("e", "T <&>", {"base": np.arange(-5.0, 5), "refined": np.arange(-3.0, 7)}),
    ]
    ids = re.findall(r'\bid="([^"]+)"', "".join(drawn))
    assert len(ids) == len(set(ids))
    for svg in drawn:
        title = ElementTree.fromstring(svg).find("title")
        assert title is not None and title.text == "T <&>"
        assert not re.search(r"#[0-9a-fA-F]{6}\b", svg) and len(svg) < 20_000
        used = re.findall(r'(?:href="#|url\(#)([^")]+)', svg)
        assert set(used) <= set(ids)


def test_clear_differences_are_filled_and_others_hollow() -> None:
    clear, unclear = (figures.difference_forest("f", "t", rows(0.1, clear=c), (-1, 1)) for c in (True, False))
    mixed = figures.difference_forest("f", "t", [*rows(0.1, clear=True), *rows(0.2)], (-1, 1))
    assert "clear" in texts(clear) and "not clear" not in texts(clear)
    assert "not clear" in texts(unclear) and "clear" not in texts(unclear)
    assert {"clear", "not clear"} <= set(texts(mixed))
    assert texts(figures.difference_forest("f", "t", rows(0.1, 0.2, clear=True), (-1, 1))).count("clear") == 1
    assert clear != unclear and "fill: var(--refined)" in clear and "fill: var(--refined)" not in unclear


def test_forests_name_rows_and_prompts() -> None:
    svg = figures.difference_forest("f", "t", rows(0.1, -0.2, 0.3), (-1, 1))
    assert {"row 0", "row 1", "row 2", "1,234", "1,235", "1,236", "prompts"} <= set(texts(svg))
    assert svg.index(">row 0<") < svg.index(">row 1<")


def test_forests_stand_missing_numbers() -> None:
    nothing = Estimate(np.nan, np.nan, np.nan)
    rows_ = [ForestRow("gone", {"difference": nothing}, 1), ForestRow("point", {"difference": small.exact(0.1)}, 1)]
    assert {"gone", "point"} <= set(texts(figures.difference_forest("f", "t", rows_, (-1, 1))))
    pair = [ForestRow("gone", {"base": nothing, "refined": small.exact(0.5)}, 1)]
    assert "gone" in texts(figures.score_forest("f", "t", pair, {"base": "b", "refined": "r"}))


def test_lines_differ_by_more_than_color() -> None:
    reliability = figures.reliability_panel("r", "t", {"base": CURVE, "refined": CURVE})
    risk = figures.risk_panel("r", "t", {"base": {"confidence": RISK}, "refined": {"confidence": RISK, "std": RISK}})
    margin = figures.margin_panel("m", "t", {"base": np.arange(5.0), "refined": np.arange(5.0)})
    for svg in (reliability, risk, margin):
        assert paths(svg, "base", dashed=True) and not paths(svg, "refined", dashed=True)
        assert paths(svg, "refined", dashed=False)
    assert paths(risk, "second", dashed=True)


def test_the_accuracy_axis_holds_everything_drawn() -> None:
    low = calibration(np.repeat(0.1, 50), np.arange(50), bootstrap=Bootstrap(20))
    assert "0%" in texts(figures.reliability_panel("r", "t", {"base": low}))
    rare = calibration(np.where(np.arange(100) < 15, 0.85, 0.15), np.arange(100), bootstrap=Bootstrap(50))
    assert rare.bins[0].accuracy.low > 0 and "0%" in texts(figures.reliability_panel("r", "t", {"base": rare}))
    high = calibration(np.repeat(0.9, 50), np.arange(50), bootstrap=Bootstrap(20))
    assert "40%" in texts(figures.reliability_panel("r", "t", {"base": high}))
    assert "20%" not in texts(figures.reliability_panel("r", "t", {"base": high}))
    bars = [d for d in paths(figures.reliability_panel("r", "t", {"base": CURVE}), "base", dashed=False) if "L" in d]
    assert sorted(d.count("M") for d in bars)[-1] == len(CURVE.bins)  # one stroke a bar, none from bar to bar
    lonely = calibration([0.9], ["one"], bootstrap=Bootstrap(20))
    assert figures.reliability_panel("r", "t", {"base": lonely})


def test_risk_curves_are_thinned_and_start_at_some_pairs() -> None:
    long = risk_coverage(GENERATOR.random(50_000), GENERATOR.random(50_000) < 0.3)
    (path,) = paths(figures.risk_panel("r", "t", {"refined": {"confidence": long}}), "refined")
    assert path.count("L") < 61
    short = risk_coverage(np.arange(3.0), np.array([True, False, True]))
    assert ">0%<" in figures.risk_panel("r", "t", {"refined": {"confidence": short}})


@pytest.mark.parametrize("values", [np.zeros(4), np.array([2.0]), np.array([-1.0, -2.0, 1e6])])
def test_any_margins_can_be_drawn(values: np.ndarray) -> None:
    svg = figures.margin_panel("m", "t", {"refined": values})
    assert "reward margin" in texts(svg) and paths(svg, "ink", dashed=True)  # the line at zero


def test_margins_count_every_pair() -> None:
    shares = figures.margin_shares(np.array([-100.0, -1.0, 0.5, 1.0, 100.0]), np.linspace(-2, 2, 5))
    assert shares == pytest.approx([0.2, 0.2, 0.2, 0.4])


def test_the_legend_says_role_and_name() -> None:
    both = figures.panel_legend({"base": "rm", "refined": "ebrm"}, "risk", ["refined"])
    assert [label for _, label in both] == [
        "base: rm, by confidence",
        "refined: ebrm, by confidence",
        "refined: ebrm, by std",
    ]
    assert ["dasharray" in mark and 'dasharray="none"' not in mark for mark, _ in both] == [True, False, True]
    (alone,) = figures.panel_legend({"base": "rm"}, "reliability", ["base"])
    assert alone[1] == "rm" and "<circle" in alone[0] and "var(--base)" in alone[0]
    (square,) = figures.panel_legend({"refined": "e"}, "reliability")
    assert "<rect" in square[0] and "var(--refined)" in square[0]
    (plain,) = figures.panel_legend({"refined": "e"}, "margin")
    assert "<rect" not in plain[0]
