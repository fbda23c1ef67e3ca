"""Figures of the reports: arrays in, inline SVG out. Long arrays are binned or thinned, never drawn point by point."""

from __future__ import annotations

import math
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator, StrMethodFormatter
from numpy.typing import NDArray

from ebrm.evaluation import Along, Axis, Selection
from ebrm.metrics import Calibration, ErrorBin, Estimate, MeanCurve, RiskCoverage
from ebrm.report.svg import CARD_WIDTH, COLORS, line_mark, new_figure, style, to_svg
from ebrm.report.words import decimal, shorten
from ebrm.utils.files import atomic_path

Floats = NDArray[np.float64]
PanelKind = Literal["reliability", "risk", "margin"]

#: The base reward is drawn dashed with hollow circles, the refined one solid with squares.
MARKER = {"base": "o", "refined": "s"}
#: Dashes of the first of two lines, which may be told apart by them as by their color.
DASHED: Any = (0, (3, 1.5))
#: Dashes of a line that is no data: no difference, perfect calibration.
GUIDE: Any = (0, (4, 2))
_DOTTED: Any = (0, (1, 1.2))
_NAME_LENGTH = 22
_PANEL_WIDTH = 2.7  # inches; shown 225 to 320 px wide
_CONFIDENCE = "confidence, max(p, 1 \u2212 p)"


def _dash(role: str) -> Any:
    return DASHED if role == "base" else "solid"


def _legend(figure: Figure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=len(handles), handlelength=1.6, columnspacing=1.4)


def _percent(axis: Any, digits: int = 0, sign: bool = False) -> None:
    """Percent on an axis of shares; signed, percentage points."""
    suffix = "" if sign else "%"
    axis.set_major_formatter(FuncFormatter(lambda v, _: decimal(100 * v, digits, sign) + suffix))


def _interval(
    axes: Axes, position: float, estimate: Estimate, role: str, label: str | None, *, across: bool, hollow: bool
) -> None:
    """Draw a point and its interval, along x (`across`) or along y."""
    color = COLORS[role]
    if np.isfinite([estimate.low, estimate.high]).all():
        ends = [estimate.low, estimate.high], [position] * 2
        axes.plot(*(ends if across else ends[::-1]), color=color, linewidth=1.8)
    point = (estimate.value, position) if across else (position, estimate.value)
    face = "none" if hollow else color
    axes.plot(*point, MARKER.get(role, "o"), color=color, markerfacecolor=face, markersize=5, label=label)


def _stairs(axes: Axes, shares: Floats, edges: Floats, role: str, label: str | None, filled: bool) -> None:
    if filled:
        axes.stairs(shares, edges, color=COLORS[role], fill=True, alpha=0.2)
    dash = DASHED if role in ("base", "rejected") else "solid"
    axes.stairs(shares, edges, color=COLORS[role], linewidth=1.5, linestyle=dash, label=label)


def _frame(panel: bool, height: float, panel_height: float = 2.1) -> tuple[Figure, Axes]:
    """Axes of a figure, or of a panel: small, with fixed margins, so that the labels of many are of one size."""
    if not panel:
        figure = new_figure(height)
        return figure, figure.add_subplot()
    figure = Figure(figsize=(_PANEL_WIDTH, panel_height))
    bottom, top = 0.42 / panel_height, 1 - 0.08 / panel_height
    return figure, figure.add_axes((0.21, bottom, 0.75, top - bottom))


def _upright(figure: Figure, axes: Axes, name: str, title: str, legend: bool = True) -> str:
    """A figure that is read upward: no vertical lines behind it."""
    axes.grid(False, axis="x")
    if legend:
        _legend(figure, axes)
    return to_svg(figure, name, title)


@dataclass(frozen=True)
class ForestRow:
    """A row of a forest plot."""

    name: str  # on the left
    estimates: Mapping[str, Estimate]  # by role: "base", "refined", "difference"
    count: int  # on the right, of pairs or prompts
    clear: bool = False  # whether the difference is significant; its mark is filled
    rule: bool = False  # whether a line is drawn above


def score_forest(
    name: str, title: str, rows: Sequence[ForestRow], labels: Mapping[str, str], xlabel: str, noun: str
) -> str:
    """Scores with intervals, one row a group and one mark a role; `labels` names the roles, `noun` what is counted."""
    with style():
        figure, axes = _forest(rows, noun)
        for position, row in enumerate(rows):
            for (role, label), shift in zip(labels.items(), (-0.14, 0.14), strict=True):
                shown = label if position == 0 else None
                _interval(axes, position + shift, row.estimates[role], role, shown, across=True, hollow=role == "base")
        _percent(axes.xaxis)
        axes.set_xlabel(xlabel)
        _legend(figure, axes)
        return to_svg(figure, name, title)


def difference_forest(
    name: str, title: str, rows: Sequence[ForestRow], noun: str,
    *, labels: Mapping[bool, str] | None = None, bounds: tuple[float, float] | None = None,
) -> str:  # fmt: skip
    """Differences with intervals, one row a group; `labels` of filled (True) and hollow marks, `bounds` of the axis."""
    left = dict(labels or {True: "clear", False: "not clear"})
    with style():
        figure, axes = _forest(rows, noun)
        axes.axvline(0, color=COLORS["ink"], linewidth=1, linestyle=GUIDE)
        for position, row in enumerate(rows):
            label = left.pop(row.clear, None)
            _interval(axes, position, row.estimates["difference"], "refined", label, across=True, hollow=not row.clear)
        if bounds is not None:
            axes.set_xlim(*bounds)
        _percent(axes.xaxis, sign=True)
        axes.set_xlabel("difference, percentage points")
        _legend(figure, axes)
        return to_svg(figure, name, title)


def gain_and_loss(
    name: str, title: str, methods: Sequence[tuple[str, Estimate, Estimate]], labels: tuple[str, str]
) -> str:
    """Methods as (name, gain, what is kept): a point each with both intervals, gain upward, loss to the left."""
    with style():
        figure = new_figure(3.2)
        axes = figure.add_subplot()
        for across in (axes.axhline, axes.axvline):
            across(0, color=COLORS["ink"], linewidth=1, linestyle=GUIDE)
        for number, (method, gain, kept) in enumerate(methods):
            color = look_of(number)[0]
            if np.isfinite([gain.low, gain.high, kept.low, kept.high]).all():
                axes.hlines(gain.value, kept.low, kept.high, color=color, linewidth=1.2)
                axes.vlines(kept.value, gain.low, gain.high, color=color, linewidth=1.2)
            axes.plot(kept.value, gain.value, "osD^vP"[number % 6], color=color, label=method, linestyle="none")
        _percent(axes.xaxis, sign=True)
        _percent(axes.yaxis, sign=True)
        axes.set_xlabel(labels[1])
        axes.set_ylabel(labels[0])
        handles, names = axes.get_legend_handles_labels()
        figure.legend(handles, names, loc="outside upper left", ncols=2, handlelength=1.2, columnspacing=1.2)
        return to_svg(figure, name, title)


def _forest(rows: Sequence[ForestRow], noun: str) -> tuple[Figure, Axes]:
    """Axes with the rows' names on the left, the first at the top, and their counts on the right."""
    figure = new_figure(0.95 + 0.3 * len(rows))
    axes = figure.add_subplot()
    axes.set_yticks(range(len(rows)), [shorten(row.name, _NAME_LENGTH) for row in rows])
    right: dict[str, Any] = {"transform": axes.get_yaxis_transform(), "ha": "right", "color": COLORS["muted"]}
    for position, row in enumerate(rows):
        axes.text(1.15, position, f"{row.count:,}", va="center", **right)
        if row.rule:
            axes.axhline(position - 0.5, color=COLORS["grid"], linewidth=0.8)
    axes.text(1.15, -0.75, noun, va="bottom", **right)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.grid(False, axis="y")
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    return figure, axes


def reward_range(*rewards: Floats) -> tuple[float, float]:
    """Bounds that hold all but the outermost 0.2% of the rewards on each side, never empty."""
    low, high = np.quantile(np.concatenate([np.ravel(r) for r in rewards]), [0.002, 0.998])
    pad = 0.02 * (high - low) or max(abs(low), 1.0)
    return float(low - pad), float(high + pad)


def shares(values: Floats, edges: Floats) -> Floats:
    """Share of the values [n] between each two edges; those beyond the ends are counted in the outermost bins."""
    return np.histogram(np.clip(values, edges[0], edges[-1]), edges)[0] / len(values)


def reward_edges(bounds: tuple[float, float]) -> Floats:
    """Edges of the bins of `reward_histogram`."""
    return np.linspace(*bounds, 41)


def reward_histogram(name: str, title: str, rewards: Floats, bounds: tuple[float, float], top: float | None) -> str:
    """Distribution of the rewards [p, 2] of chosen and rejected responses, up to `top`, with triangles at the means."""
    edges = reward_edges(bounds)
    heights = [shares(rewards[:, side], edges) for side in (0, 1)]
    with style():
        figure, axes = _frame(False, 2.7)
        for side, role in enumerate(("chosen", "rejected")):
            _stairs(axes, heights[side], edges, role, role, filled=side == 0)
            axes.plot(rewards[:, side].mean(), 0, "^v"[side], color=COLORS[role], clip_on=False, zorder=5)
        _percent(axes.yaxis, digits=0 if (top or np.max(heights)) > 0.05 else 1)
        axes.set(xlim=bounds, xlabel="reward, in the base reward model's units")
        axes.set(ylim=(0, top), ylabel="share of responses")
        return _upright(figure, axes, name, title)


def margin_panel(name: str, title: str, margins: Mapping[str, Floats]) -> str:
    """Distribution of the margins [p], right minus wrong response, by role; left of the dashed line are the errors."""
    low, high = np.quantile(np.concatenate(list(margins.values())), [0.005, 0.995])
    low, high = min(low, 0.0), max(high, 0.0)
    pad = 0.03 * (high - low) or 1.0
    edges = np.linspace(low - pad, high + pad, 31)
    with style():
        figure, axes = _frame(True, 0, 1.9)
        for role, margin in margins.items():
            _stairs(axes, shares(margin, edges), edges, role, None, filled=role == "refined")
        axes.axvline(0, color=COLORS["ink"], linewidth=1, linestyle=GUIDE)
        _percent(axes.yaxis)
        axes.set(xlim=(edges[0], edges[-1]), ylim=(0, None), xlabel="reward margin", ylabel="pairs")
        return _upright(figure, axes, name, title, legend=False)


def reliability(name: str, title: str, curves: Mapping[str, Calibration], *, panel: bool = False) -> str:
    """Accuracy against confidence, by role; on the dashed diagonal they agree."""
    with style():
        figure, axes = _frame(panel, 3.4)
        axes.plot([0.5, 1], [0.5, 1], color=COLORS["ink"], linewidth=1, linestyle=GUIDE)
        for role, curve in curves.items():
            x = [b.confidence for b in curve.bins]
            bars = [(b.confidence, b.accuracy) for b in curve.bins if math.isfinite(b.accuracy.low)]
            # One path for all bars: the ends of each, then a gap.
            ends = [np.repeat([at for at, _ in bars], 3), np.ravel([[e.low, e.high, np.nan] for _, e in bars])]
            axes.plot(*ends, color=COLORS[role], linewidth=1.4)
            axes.plot(
                x, [b.accuracy.value for b in curve.bins], color=COLORS[role], linewidth=1.1, linestyle=_dash(role),
                marker=MARKER[role], markersize=3.8 if panel else 5, label=role,
                markerfacecolor="none" if role == "base" else COLORS[role],
            )  # fmt: skip
        # The accuracy axis starts a tenth below everything drawn, at 0.4 at most.
        drawn = [end for curve in curves.values() for b in curve.bins for end in (b.accuracy.value, b.accuracy.low)]
        floor = min(0.4, math.floor(10 * min(end for end in drawn if math.isfinite(end))) / 10)
        _percent(axes.xaxis)
        _percent(axes.yaxis)
        axes.set(xlim=(0.48, 1.02), xlabel="confidence" if panel else _CONFIDENCE)
        axes.set(ylim=(floor, 1.03), ylabel="pairs right" if panel else "pairs ranked correctly")
        if not panel:
            _legend(figure, axes)
        return to_svg(figure, name, title)


def confidence_histogram(name: str, title: str, confidences: Mapping[str, Floats]) -> str:
    """How often each confidence [p], in [0.5, 1], occurs, by role."""
    edges = np.linspace(0.5, 1, 26)
    with style():
        figure, axes = _frame(False, 3.4)
        for role, confidence in confidences.items():
            _stairs(axes, shares(confidence, edges), edges, role, role, filled=role == "refined")
        _percent(axes.xaxis)
        _percent(axes.yaxis)
        axes.set(xlim=(0.49, 1.01), ylim=(0, None), xlabel=_CONFIDENCE, ylabel="share of pairs")
        return _upright(figure, axes, name, title)


def risk_curves(name: str, title: str, curves: Mapping[str, Mapping[str, RiskCoverage]], *, panel: bool = False) -> str:
    """Error rate against the share of pairs kept, from role to uncertainty ("confidence" or "std") to curve."""
    with style():
        figure, axes = _frame(panel, 3.0)
        for role, kind, curve in [(role, kind, kinds[kind]) for role, kinds in curves.items() for kind in kinds]:
            total = len(curve.risk)
            # An error rate among a handful of pairs is noise: start at one pair in fifty, and at 20 pairs.
            first = min(total - 1, max(total // 50, 20) - 1)
            kept = np.unique(np.linspace(first, total - 1, 60 if panel else 200).astype(int))
            axes.plot(
                curve.coverage[kept], curve.risk[kept], color=COLORS["second" if kind == "std" else role],
                linestyle=_DOTTED if kind == "std" else _dash(role), linewidth=1.6,
                marker="." if len(kept) == 1 else "", label=f"by {kind}",
            )  # fmt: skip
        if not panel:
            random = next(iter(next(iter(curves.values())).values())).random
            axes.axhline(random, color=COLORS["ink"], linewidth=1, linestyle=GUIDE, label="at random")
        _percent(axes.xaxis)
        _percent(axes.yaxis)
        axes.set(xlim=(0, 1), xlabel="pairs kept" if panel else "pairs kept, the most certain first")
        axes.set(ylim=(0, None), ylabel="wrong among them" if panel else "wrong among those kept")
        if not panel:
            _legend(figure, axes)
        return to_svg(figure, name, title)


def panel_legend(roles: Mapping[str, str], kind: PanelKind, std: Container[str] = ()) -> list[tuple[str, str]]:
    """Marks (SVG) of a panel and their labels; the roles in `std` have a second curve, by their std."""
    marker = MARKER if kind == "reliability" else {}
    legend = []
    for role, name in roles.items():
        mark = line_mark(role, "5 2.5" if role == "base" else "", marker.get(role, ""))
        label = f"{role}: {name}" if len(roles) > 1 else name
        legend.append((mark, label + (", by confidence" if kind == "risk" else "")))
        if kind == "risk" and role in std:
            legend.append((line_mark("second", "2 2"), label + ", by std"))
    return legend


def error_bins(name: str, title: str, bins: Sequence[ErrorBin], overall: float, digits: int) -> str:
    """Error rate of each group of pairs, from the most to the least certain."""
    with style():
        figure, axes = _frame(False, 3.0)
        axes.axhline(overall, color=COLORS["ink"], linewidth=1, linestyle=GUIDE, label="all pairs")
        for number, item in enumerate(bins):
            label = "this group" if number == 0 else None
            _interval(axes, number, item.error, "refined", label, across=False, hollow=False)
        ticks = range(0, len(bins), 2 if len(bins) > 6 else 1)
        axes.set_xticks(list(ticks), [decimal(bins[t].uncertainty, digits) for t in ticks])
        _percent(axes.yaxis)
        axes.set(ylim=(0, None), xlabel="mean std of the group's reward differences", ylabel="pairs ranked wrongly")
        return _upright(figure, axes, name, title)


def density_curve(
    name: str, title: str, nodes: Floats, density: Floats, base: float, refined: float, interval: tuple[float, float]
) -> str:
    """p(reward | response) at rising nodes [g] with the base and the refined reward; the interval is shaded."""
    with style():
        figure = new_figure(1.9, CARD_WIDTH)
        axes = figure.add_subplot()
        inside = (nodes >= interval[0]) & (nodes <= interval[1])
        axes.fill_between(nodes, density, where=inside.tolist(), color=COLORS["refined"], alpha=0.2, linewidth=0)
        axes.plot(nodes, density, color=COLORS["refined"], linewidth=1.4)
        axes.axvline(base, color=COLORS["base"], linestyle=DASHED, label="base")
        axes.axvline(refined, color=COLORS["refined"], label="refined")
        shown = density > 1e-3 * density.max()
        low, high = min(nodes[shown].min(), base, refined), max(nodes[shown].max(), base, refined)
        pad = 0.03 * (high - low)
        axes.set(xlim=(low - pad, high + pad), ylim=(0, None), yticks=[], xlabel="reward")
        axes.spines["left"].set_visible(False)
        axes.grid(False)
        _legend(figure, axes)
        return to_svg(figure, name, title)


def training_curve(
    name: str, title: str, epochs: Sequence[float], values: Sequence[float], what: str, percent: bool,
    best: float | None,
) -> str:  # fmt: skip
    """One quantity, called `what`, over the epochs; a vertical line marks the `best` epoch, whose weights were kept."""
    with style():
        figure, axes = _frame(False, 2.4)
        if best is not None:
            axes.axvline(best, color=COLORS["muted"], linestyle=DASHED, linewidth=1.2)
        marker = "s" if len(epochs) <= 40 else ""
        axes.plot(epochs, values, color=COLORS["refined"], marker=marker, markersize=4)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if percent:
            spread = max(values) - min(values)
            _percent(axes.yaxis, digits=0 if spread > 0.04 else 1 if spread > 0.004 else 2)
        axes.set(xlabel="epoch", ylabel=what)
        return _upright(figure, axes, name, title, legend=False)


#: Lines of the selection figure, told apart without red and green, and in print by their dashes.
LOOKS: tuple[tuple[str, Any], ...] = (
    ("#5b6470", (0, (4, 2))),
    ("#0072b2", "solid"),
    ("#c24e00", "solid"),
    ("#00805d", (0, (6, 1.5, 1, 1.5))),
    ("#9b3d7c", "solid"),
    ("#b58900", (0, (1, 1.2))),
)
_INK, _MUTED, _GRID = "#1b1f24", "#5b6470", "#dfe3e8"
_PRINTED = {
    "axes.edgecolor": _MUTED, "axes.labelcolor": _INK, "axes.facecolor": "white", "figure.facecolor": "white",
    "grid.color": _GRID, "text.color": _INK, "legend.labelcolor": _INK, "xtick.color": _MUTED,
    "ytick.color": _MUTED, "xtick.labelcolor": _INK, "ytick.labelcolor": _INK, "axes.titlesize": 9.0,
    "axes.titlelocation": "left",
}  # fmt: skip
_LABELS: Mapping[Axis, str] = {"n": "n, the best of which is taken", "kl": "KL from choosing at random, nats"}
_COLUMNS = 4  # of the legend
_BANDS = 3  # with more lines than this, bands hide one another


def look_of(number: int) -> tuple[str, Any]:
    """Color and dashes of a line; beyond the first six, dash-dotted in the same colors."""
    color, dash = LOOKS[number % len(LOOKS)]
    return color, dash if number < len(LOOKS) else (0, (5, 1.5, 1, 1.5, 1, 1.5))


def selection_figure(selection: Selection, gold: str = "gold") -> Figure:
    """Mean gold along n and along KL, one line a reward with its peak, over the differences to the first reward.

    The bands around gold are of its difference to that of any response: how prompts differ as a whole is not in them.
    """
    names = list(selection.along)
    heights = [2.6, 1.8] if len(names) > 1 else [2.6]
    with style(), matplotlib.rc_context(_PRINTED):  # type: ignore[arg-type]
        legend = -(-(len(names) + 2) // _COLUMNS)  # rows: every name, "any response" and "highest"
        figure = Figure(figsize=(8.0, sum(heights) + 0.6 + 0.2 * legend), dpi=200, layout="constrained")
        grid = figure.subplots(
            len(heights), 2, sharex="col", sharey="row", squeeze=False, gridspec_kw={"height_ratios": heights}
        )
        for column, axis in enumerate(_LABELS):
            upper, lower = grid[0, column], grid[-1, column]
            upper.axhline(selection.random[0], color=_INK, linewidth=1, linestyle=_DOTTED, label="any response")
            if len(heights) > 1:
                lower.axhline(0, color=_INK, linewidth=1, linestyle=_DOTTED)
            for number, name in enumerate(names):
                look, along = look_of(number), selection.along[name][axis]
                _gold(upper, along, selection.random[0], shorten(name, 40), look, len(names) <= _BANDS)
                if along.gain is not None:
                    _curve(lower, along.x, along.gain, 0.0, look, len(names) <= 1 + _BANDS)
            lower.set_xlabel(_LABELS[axis])
        _doubling(grid[0, 0], selection.along[names[0]]["n"].x)
        grid[0, 0].set_ylabel(f"mean {shorten(gold, 40)}")
        if len(heights) > 1:
            grid[1, 0].set_ylabel(f"minus {shorten(names[0], 16)}")
        handles, labels = grid[0, 0].get_legend_handles_labels()
        peak = Line2D([], [], color=_MUTED, marker="o", markerfacecolor="white", markersize=6.5, linestyle="none")
        figure.legend(
            [*handles[1:], handles[0], peak], [*labels[1:], labels[0], "highest"], loc="outside upper left",
            ncols=_COLUMNS, handlelength=2,
        )  # fmt: skip
    return figure


def write_selection_figure(path: Path, selection: Selection, gold: str = "gold") -> None:
    """Write the figure as PNG, 1600 pixels wide; the same selection gives the same bytes."""
    figure = selection_figure(selection, gold)
    with atomic_path(path) as partial, style():
        FigureCanvasAgg(figure).print_png(partial, metadata={"Software": None})


def _gold(axes: Axes, along: Along, random: float, name: str, look: tuple[str, Any], band: bool) -> None:
    (line,) = _curve(axes, along.x, along.above_random, random, look, band)
    line.set_label(name)
    at = (along.peak.x.value, along.peak.gold.value)
    axes.plot(*at, "o", color=look[0], markerfacecolor="white", markersize=6.5, zorder=5)


def _curve(axes: Axes, x: Floats, curve: MeanCurve, above: float, look: tuple[str, Any], band: bool) -> list[Line2D]:
    color, dash = look
    if band:
        axes.fill_between(x, above + curve.low, above + curve.high, color=color, alpha=0.13, linewidth=0)
    return axes.plot(x, above + curve.value, color=color, linestyle=dash)


def _doubling(axes: Axes, n: Floats) -> None:
    last = int(n[-1])
    ticks = [2**k for k in range(last.bit_length())]
    if last / ticks[-1] > 1.2:
        ticks.append(last)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:.0f}"))
