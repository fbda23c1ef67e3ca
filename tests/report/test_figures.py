from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from ebrm.metrics import Bootstrap, paired_accuracy, risk_coverage
from ebrm.report import figures
from ebrm.report.svg import COLOURS, line_mark, new_figure, style, to_svg


def texts(svg: str) -> list[str]:
    return [element.text or "" for element in ElementTree.fromstring(svg).iter("text")]


def histogram(name: str = "h") -> str:
    rewards = np.random.default_rng(0).normal(size=(200, 2))
    return figures.reward_histogram(name, "Rewards <&>", rewards, (-3.0, 3.0), None)


def test_svg_has_a_title_and_only_the_pages_colors() -> None:
    svg = histogram()
    root = ElementTree.fromstring(svg)
    title = root.find("title")
    assert root.get("role") == "img" and title is not None and title.text == "Rewards <&>"
    assert root.get("aria-labelledby") == title.get("id")
    assert not re.search(r"#[0-9a-fA-F]{6}\b", svg)
    assert {"chosen", "rejected", "ink", "grid"} <= set(re.findall(r"var\(--(\w+)\)", svg)) <= set(COLOURS)


def test_ids_are_unique_and_references_resolve() -> None:
    one, two = histogram("one"), histogram("two")
    ids = re.findall(r'\bid="([^"]+)"', one + two)
    assert len(ids) == len(set(ids)) and all(i.startswith(("one-", "two-")) for i in ids)
    used = re.findall(r'(?:href="#|url\(#)([^")]+)', one + two)
    assert used and set(used) <= set(ids)


def test_same_data_same_bytes() -> None:
    assert histogram() == histogram()


def test_labels_are_not_read_as_mathematics_or_markup() -> None:
    result = paired_accuracy([1, 0, 1], [0, 1, 0], [1, 1, 1], [0, 0, 0], [1, 2, 3], bootstrap=Bootstrap(20))
    svg = figures.accuracy_forest("f", "t", {"all pairs": result, "$x_1$ <b>&": result, "日本語 \x00🦜": result})
    assert {"all pairs", "$x_1$ <b>&", "日本語 \ufffd🦜"} <= set(texts(svg))


def test_forest_says_how_many_pairs() -> None:
    many = paired_accuracy(
        np.ones(1234), np.zeros(1234), np.ones(1234), np.zeros(1234), np.arange(1234), bootstrap=Bootstrap(5)
    )
    one = paired_accuracy([1], [0], [1], [0], [0])
    for draw in (figures.accuracy_forest, figures.difference_forest):
        assert {"1,234", "1"} <= set(texts(draw("f", "t", {"all pairs": many, "one": one})))


def test_histogram_counts_every_response_once() -> None:
    rewards = np.array([[-9.0, 0.1], [9.0, 0.1], [0.0, -99.0]])
    shares, edges = figures.histogram_shares(rewards, (-1.0, 1.0))
    assert shares.sum(axis=1) == pytest.approx([1, 1]) and len(edges) == shares.shape[1] + 1
    assert (shares[0, 0], shares[0, -1], shares[1, 0]) == pytest.approx((1 / 3, 1 / 3, 1 / 3))


def test_reward_range_is_never_empty() -> None:
    low, high = figures.reward_range(np.zeros((5, 2)))
    assert low < 0 < high
    low, high = figures.reward_range(np.full((5, 2), 1e6))
    assert low < 1e6 < high


def test_long_curves_are_thinned() -> None:
    generator = np.random.default_rng(0)
    sizes = []
    for pairs in (2_000, 50_000):
        curve = risk_coverage(generator.random(pairs), generator.random(pairs) < 0.3)
        sizes.append(len(figures.risk_coverage_curves("r", "t", {"by std": curve})))
    assert sizes[1] < 1.2 * sizes[0] < 40_000


def test_a_handful_of_pairs_can_be_drawn() -> None:
    curve = risk_coverage([1.0, 2.0], [True, False])
    assert "at random" in texts(figures.risk_coverage_curves("r", "t", {"by std": curve}))
    assert "epoch" in texts(figures.training_curve("t", "t", [1], [0.5], "accuracy", True, 1))


def test_drawing_leaves_matplotlibs_settings_alone() -> None:
    import matplotlib

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


@pytest.mark.parametrize(("marker", "shape"), [("", "path"), ("o", "circle"), ("s", "rect")])
def test_legend_marks(marker: str, shape: str) -> None:
    root = ElementTree.fromstring(line_mark("base", "5 2.5", marker))
    assert root.get("aria-hidden") == "true" and root[-1].tag == shape
    assert root[0].get("stroke") == "var(--base)" and root[0].get("stroke-dasharray") == "5 2.5"
    assert ElementTree.fromstring(line_mark("second"))[0].get("stroke-dasharray") == "none"
