"""The benchmark report's figures: arrays in, inline SVG out."""

from __future__ import annotations

import math
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ebrm.metrics import Calibration, Estimate, RiskCoverage
from ebrm.report.figures import DASHED, GUIDE, MARKER, draw_interval, draw_legend, percent_axis
from ebrm.report.svg import COLOURS, line_mark, new_figure, style, to_svg
from ebrm.report.words import shorten

Floats = NDArray[np.float64]
PanelKind = Literal["reliability", "risk", "margin"]

_NAME_LENGTH = 22
_PANEL_WIDTH = 2.7  # inches; shown 225 to 320 px wide
_CURVE_POINTS = 60
_BINS = 30


@dataclass(frozen=True)
class ForestRow:
    """A row of a forest plot: its name, what is drawn, its number of prompts, and whether the difference is clear."""

    name: str
    estimates: Mapping[str, Estimate]
    prompts: int
    clear: bool = False
    strong: bool = True


def _rows(axes: Axes, rows: Sequence[ForestRow]) -> None:
    """Name the rows on the left, the first at the top, and write their numbers of prompts on the right."""
    names = [shorten(row.name, _NAME_LENGTH) for row in rows]
    axes.set_yticks(range(len(rows)), names)
    number = axes.get_yaxis_transform()
    for position, row in enumerate(rows):
        axes.text(1.15, position, f"{row.prompts:,}", transform=number, ha="right", va="center", color=COLOURS["muted"])
        if row.strong and position:
            axes.axhline(position - 0.5, color=COLOURS["grid"], linewidth=0.8)
    axes.text(1.15, -0.75, "prompts", transform=number, ha="right", va="bottom", color=COLOURS["muted"])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.grid(False, axis="y")
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)


def _forest_height(rows: int) -> float:
    return 0.95 + 0.3 * rows


def score_forest(name: str, title: str, rows: Sequence[ForestRow], labels: Mapping[str, str]) -> str:
    """Scores of two scorers with intervals, one row a benchmark.

    Args:
        name: id of the figure on the page.
        title: what it shows.
        rows: with an estimate for each role of `labels`.
        labels: role ("base", "refined") to the scorer's name.
    """
    with style():
        figure = new_figure(_forest_height(len(rows)))
        axes = figure.add_subplot()
        for position, row in enumerate(rows):
            for (role, label), shift in zip(labels.items(), (-0.14, 0.14), strict=True):
                draw_interval(axes, position + shift, row.estimates[role], role, label if position == 0 else None, True)
        _rows(axes, rows)
        percent_axis(axes.xaxis)
        axes.set_xlabel("official score")
        draw_legend(figure, axes)
        return to_svg(figure, name, title)


def difference_forest(name: str, title: str, rows: Sequence[ForestRow], bounds: tuple[float, float]) -> str:
    """Differences of one scorer to the reference with intervals; the marks of clear ones are filled.

    Args:
        name: id of the figure on the page.
        title: what it shows.
        rows: with one estimate each, the difference.
        bounds: ends of the axis, the same for all scorers of a page.
    """
    with style():
        figure = new_figure(_forest_height(len(rows)))
        axes = figure.add_subplot()
        axes.axvline(0, color=COLOURS["ink"], linewidth=1, linestyle=GUIDE)
        labels = {True: "clear", False: "not clear"}
        for position, row in enumerate(rows):
            (estimate,) = row.estimates.values()
            label = labels.pop(row.clear, None)
            draw_interval(axes, position, estimate, "refined", label, True, hollow=not row.clear)
        _rows(axes, rows)
        axes.set_xlim(*bounds)
        percent_axis(axes.xaxis, sign=True)
        axes.set_xlabel("difference, percentage points")
        draw_legend(figure, axes)
        return to_svg(figure, name, title)


def _panel(height: float) -> tuple[Figure, Axes]:
    """An empty figure with fixed margins: there are many of them, and their labels are of one size."""
    figure = Figure(figsize=(_PANEL_WIDTH, height))
    bottom, top = 0.42 / height, 1 - 0.08 / height
    return figure, figure.add_axes((0.21, bottom, 0.75, top - bottom))


def panel_legend(roles: Mapping[str, str], kind: PanelKind, std: Container[str] = ()) -> list[tuple[str, str]]:
    """Marks of a panel and what they stand for.

    Args:
        roles: role to the scorer's name.
        kind: of the panel.
        std: roles that have a second curve, by their std.
    """
    marker = MARKER if kind == "reliability" else {}
    legend = []
    for role, name in roles.items():
        mark = line_mark(role, "5 2.5" if role == "base" else "", marker.get(role, ""))
        label = f"{role}: {name}" if len(roles) > 1 else name
        legend.append((mark, label + (", by confidence" if kind == "risk" else "")))
        if kind == "risk" and role in std:
            legend.append((line_mark("second", "2 2"), label + ", by std"))
    return legend


def reliability_panel(name: str, title: str, curves: Mapping[str, Calibration]) -> str:
    """Accuracy against confidence, by role; on the dashed diagonal they agree."""
    with style():
        figure, axes = _panel(2.1)
        axes.plot([0.5, 1], [0.5, 1], color=COLOURS["ink"], linewidth=1, linestyle=GUIDE)
        for role, curve in curves.items():
            x = [b.confidence for b in curve.bins]
            bars = [(b.confidence, b.accuracy) for b in curve.bins if math.isfinite(b.accuracy.low)]
            # One path for all bars: the ends of each, then a gap.
            ends = [np.repeat([at for at, _ in bars], 3), np.ravel([[e.low, e.high, np.nan] for _, e in bars])]
            axes.plot(*ends, color=COLOURS[role], linewidth=1.4)
            axes.plot(
                x,
                [b.accuracy.value for b in curve.bins],
                color=COLOURS[role],
                linewidth=1.1,
                linestyle=DASHED if role == "base" else "solid",
                marker=MARKER[role],
                markersize=3.8,
                markerfacecolor="none" if role == "base" else COLOURS[role],
            )
        axes.set_xlim(0.48, 1.02)
        axes.set_ylim(_floor(curves), 1.03)
        for axis in (axes.xaxis, axes.yaxis):
            percent_axis(axis)
        axes.set_xlabel("confidence")
        axes.set_ylabel("pairs right")
        return to_svg(figure, name, title)


def _floor(curves: Mapping[str, Calibration]) -> float:
    """Lower end of the accuracy axis: a tenth below everything drawn, 0.4 at most."""
    drawn = [end for curve in curves.values() for b in curve.bins for end in (b.accuracy.value, b.accuracy.low)]
    return min(0.4, math.floor(10 * min(end for end in drawn if math.isfinite(end))) / 10)


def risk_panel(name: str, title: str, curves: Mapping[str, Mapping[str, RiskCoverage]]) -> str:
    """Error rate against the share of pairs kept.

    Args:
        name: id of the figure on the page.
        title: what it shows.
        curves: role to curves by uncertainty, "confidence" or "std".
    """
    dotted = (0, (1, 1.2))
    with style():
        figure, axes = _panel(2.1)
        for role, kind, curve in (
            (role, kind, curve) for role, kinds in curves.items() for kind, curve in kinds.items()
        ):
            total = len(curve.risk)
            first = min(total - 1, max(total // 50, 20) - 1)  # an error rate among a handful of pairs is noise
            kept = np.unique(np.linspace(first, total - 1, _CURVE_POINTS).astype(int))
            color = "second" if kind == "std" else role
            dash = dotted if kind == "std" else DASHED if role == "base" else "solid"
            point = "." if len(kept) == 1 else ""
            axes.plot(
                curve.coverage[kept],
                curve.risk[kept],
                color=COLOURS[color],
                linestyle=dash,
                linewidth=1.5,
                marker=point,
            )
        axes.set_xlim(0, 1)
        axes.set_ylim(bottom=0)
        for axis in (axes.xaxis, axes.yaxis):
            percent_axis(axis)
        axes.set_xlabel("pairs kept")
        axes.set_ylabel("wrong among them")
        return to_svg(figure, name, title)


def margin_shares(margin: Floats, edges: Floats) -> Floats:
    """Share of the margins [p] between each two edges; those beyond the ends are counted in the outermost bins."""
    return np.histogram(np.clip(margin, edges[0], edges[-1]), edges)[0] / len(margin)


def margin_panel(name: str, title: str, margins: Mapping[str, Floats]) -> str:
    """Distribution of the margins [p], right minus wrong response, by role; left of the dashed line are the errors."""
    low, high = np.quantile(np.concatenate(list(margins.values())), [0.005, 0.995])
    low, high = min(low, 0.0), max(high, 0.0)
    pad = 0.03 * (high - low) or 1.0
    edges = np.linspace(low - pad, high + pad, _BINS + 1)
    with style():
        figure, axes = _panel(1.9)
        for role, margin in margins.items():
            shares = margin_shares(margin, edges)
            if role == "refined":
                axes.stairs(shares, edges, color=COLOURS[role], fill=True, alpha=0.2)
            dash = DASHED if role == "base" else "solid"
            axes.stairs(shares, edges, color=COLOURS[role], linewidth=1.4, linestyle=dash)
        axes.axvline(0, color=COLOURS["ink"], linewidth=1, linestyle=GUIDE)
        axes.set_xlim(edges[0], edges[-1])
        axes.set_ylim(bottom=0)
        percent_axis(axes.yaxis)
        axes.set_xlabel("reward margin")
        axes.set_ylabel("pairs")
        axes.grid(False, axis="x")
        return to_svg(figure, name, title)
