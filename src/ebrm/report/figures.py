"""The report's figures: arrays in, inline SVG out. Long arrays are binned, never drawn point by point."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import NDArray

from ebrm.metrics import Calibration, ErrorBin, Estimate, PairedAccuracy, RiskCoverage
from ebrm.report.svg import CARD_WIDTH, COLOURS, new_figure, style, to_svg
from ebrm.report.words import decimal, shorten

Floats = NDArray[np.float64]

#: The base reward is drawn dashed with hollow circles, the refined one solid with squares.
MARKER = {"base": "o", "refined": "s"}
#: Dashes of the first of two lines, which may be told apart by them as by their color.
DASHED = (0, (3, 1.5))
#: Dashes of a line that is no data: no difference, perfect calibration.
GUIDE = (0, (4, 2))
_NAME_LENGTH = 20
_HISTOGRAM_BINS = 40
_CURVE_POINTS = 200


def draw_legend(figure: Figure, axes: Axes) -> None:
    """Name what is drawn, above the axes."""
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=len(handles), handlelength=1.6, columnspacing=1.4)


def percent_axis(axis: object, digits: int = 0, sign: bool = False) -> None:
    """Write an axis of shares in percent; signed, it is one of percentage points."""
    suffix = "" if sign else "%"
    axis.set_major_formatter(FuncFormatter(lambda v, _: decimal(100 * v, digits, sign) + suffix))  # type: ignore[attr-defined]


def draw_interval(
    axes: Axes,
    position: float,
    estimate: Estimate,
    role: str,
    label: str | None,
    across: bool,
    hollow: bool | None = None,
) -> None:
    """Draw a point and its interval, along x (`across`) or along y; by default the base reward's mark is hollow."""
    color = COLOURS[role]
    at = {"y" if across else "x": position}
    if np.isfinite([estimate.low, estimate.high]).all():
        ends = [estimate.low, estimate.high]
        axes.plot(*((ends, [position] * 2) if across else ([position] * 2, ends)), color=color, linewidth=1.8)
    point = {"x" if across else "y": estimate.value, **at}
    face = "none" if (role == "base" if hollow is None else hollow) else color
    axes.plot(
        point["x"], point["y"], MARKER.get(role, "o"), color=color, markerfacecolor=face, markersize=5, label=label
    )


def _rows(axes: Axes, rows: Mapping[str, PairedAccuracy]) -> None:
    """Name the rows on the left, the first at the top, and write their numbers of pairs on the right."""
    axes.set_yticks(range(len(rows)), [shorten(label, _NAME_LENGTH) for label in rows])
    number = axes.get_yaxis_transform()
    for row, result in enumerate(rows.values()):
        axes.text(1.13, row, f"{result.pairs:,}", transform=number, ha="right", va="center", color=COLOURS["muted"])
    axes.text(1.13, -0.75, "pairs", transform=number, ha="right", va="bottom", color=COLOURS["muted"])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.grid(False, axis="y")
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    if len(rows) > 1:  # the first row is the overall result
        axes.axhline(0.5, color=COLOURS["muted"], linewidth=0.8)


def _forest_height(rows: int) -> float:
    return 0.95 + 0.3 * rows


def accuracy_forest(name: str, title: str, rows: Mapping[str, PairedAccuracy]) -> str:
    """Accuracy of base and refined with intervals, one row a group; the first row is the overall result."""
    with style():
        figure = new_figure(_forest_height(len(rows)))
        axes = figure.add_subplot()
        for row, result in enumerate(rows.values()):
            draw_interval(axes, row - 0.14, result.base, "base", "base" if row == 0 else None, True)
            draw_interval(axes, row + 0.14, result.refined, "refined", "refined" if row == 0 else None, True)
        _rows(axes, rows)
        percent_axis(axes.xaxis)
        axes.set_xlabel("pairs ranked correctly")
        draw_legend(figure, axes)
        return to_svg(figure, name, title)


def difference_forest(name: str, title: str, rows: Mapping[str, PairedAccuracy]) -> str:
    """Difference in accuracy, refined minus base, with intervals, one row a group."""
    with style():
        figure = new_figure(_forest_height(len(rows)))
        axes = figure.add_subplot()
        axes.axvline(0, color=COLOURS["ink"], linewidth=1, linestyle=GUIDE)
        for row, result in enumerate(rows.values()):
            draw_interval(axes, row, result.difference, "refined", "refined minus base" if row == 0 else None, True)
        _rows(axes, rows)
        percent_axis(axes.xaxis, sign=True)
        axes.set_xlabel("difference, percentage points")
        draw_legend(figure, axes)
        return to_svg(figure, name, title)


def reward_range(*rewards: Floats) -> tuple[float, float]:
    """Bounds that hold all but the outermost 0.2% of the rewards on each side, never empty."""
    low, high = np.quantile(np.concatenate([np.ravel(r) for r in rewards]), [0.002, 0.998])
    pad = 0.02 * (high - low) or max(abs(low), 1.0)
    return float(low - pad), float(high + pad)


def reward_histogram(name: str, title: str, rewards: Floats, bounds: tuple[float, float], top: float | None) -> str:
    """Distribution of the rewards of chosen and rejected responses.

    Args:
        name: id of the figure on the page.
        title: what it shows.
        rewards: rewards [p, 2], columns chosen and rejected; those outside `bounds` are counted in the outermost bins.
        bounds: ends of the reward axis.
        top: upper end of the share axis; None lets the data decide.
    """
    heights, edges = histogram_shares(rewards, bounds)
    with style():
        figure = new_figure(2.7)
        axes = figure.add_subplot()
        axes.stairs(heights[0], edges, color=COLOURS["chosen"], fill=True, alpha=0.25)
        axes.stairs(heights[0], edges, color=COLOURS["chosen"], linewidth=1.6, label="chosen")
        axes.stairs(heights[1], edges, color=COLOURS["rejected"], linewidth=1.6, linestyle=DASHED, label="rejected")
        for side, role in enumerate(("chosen", "rejected")):
            axes.plot(
                rewards[:, side].mean(), 0, "^v"[side], color=COLOURS[role], markersize=6, clip_on=False, zorder=5
            )
        axes.set_xlim(*bounds)
        axes.set_ylim(0, top)
        percent_axis(axes.yaxis, digits=0 if (top or heights.max()) > 0.05 else 1)
        axes.set_xlabel("reward, in the base reward model's units")
        axes.set_ylabel("share of responses")
        axes.grid(False, axis="x")
        draw_legend(figure, axes)
        return to_svg(figure, name, title)


def histogram_shares(rewards: Floats, bounds: tuple[float, float]) -> tuple[Floats, Floats]:
    """Shares of the chosen and of the rejected rewards in equal bins: ([2, bins], edges [bins + 1])."""
    edges = np.linspace(*bounds, _HISTOGRAM_BINS + 1)
    inside = np.clip(rewards, *bounds)
    return np.stack([np.histogram(inside[:, side], edges)[0] / len(inside) for side in range(2)]), edges


def reliability(name: str, title: str, refined: Calibration, base: Calibration) -> str:
    """Accuracy against confidence for both rewards; on the diagonal they agree."""
    with style():
        figure = new_figure(3.4)
        axes = figure.add_subplot()
        axes.plot([0.5, 1], [0.5, 1], color=COLOURS["ink"], linewidth=1, linestyle=GUIDE)
        for role, result in (("base", base), ("refined", refined)):
            x = [b.confidence for b in result.bins]
            dash = DASHED if role == "base" else "solid"
            axes.plot(x, [b.accuracy.value for b in result.bins], color=COLOURS[role], linewidth=1.2, linestyle=dash)
            for number, item in enumerate(result.bins):
                draw_interval(axes, item.confidence, item.accuracy, role, role if number == 0 else None, False)
        axes.set_xlim(0.49, 1.01)
        for axis in (axes.xaxis, axes.yaxis):
            percent_axis(axis)
        axes.set_xlabel("confidence, max(p, 1 \u2212 p)")
        axes.set_ylabel("pairs ranked correctly")
        draw_legend(figure, axes)
        return to_svg(figure, name, title)


def confidence_histogram(name: str, title: str, refined: Floats, base: Floats) -> str:
    """How often each confidence [p], in [0.5, 1], occurs under both rewards."""
    edges = np.linspace(0.5, 1, 26)
    with style():
        figure = new_figure(3.4)
        axes = figure.add_subplot()
        for role, confidence in (("base", base), ("refined", refined)):
            shares = np.histogram(confidence, edges)[0] / len(confidence)
            if role == "refined":
                axes.stairs(shares, edges, color=COLOURS[role], fill=True, alpha=0.2)
            dash = DASHED if role == "base" else "solid"
            axes.stairs(shares, edges, color=COLOURS[role], linewidth=1.6, linestyle=dash, label=role)
        axes.set_xlim(0.49, 1.01)
        axes.set_ylim(bottom=0)
        for axis in (axes.xaxis, axes.yaxis):
            percent_axis(axis)
        axes.set_xlabel("confidence, max(p, 1 \u2212 p)")
        axes.set_ylabel("share of pairs")
        axes.grid(False, axis="x")
        draw_legend(figure, axes)
        return to_svg(figure, name, title)


def risk_coverage_curves(name: str, title: str, curves: Mapping[str, RiskCoverage]) -> str:
    """Error rate against the share of pairs kept; the dashed line is an uncertainty that knows nothing."""
    with style():
        figure = new_figure(3.0)
        axes = figure.add_subplot()
        dashes = ("solid", DASHED)
        for (label, curve), role, dash in zip(curves.items(), ("refined", "second"), dashes, strict=False):
            total = len(curve.risk)
            # An error rate among a handful of pairs is noise: start at one pair in fifty, and at 20 pairs.
            first = min(total - 1, max(total // 50, 20) - 1)
            kept = np.unique(np.linspace(first, total - 1, _CURVE_POINTS).astype(int))
            axes.plot(curve.coverage[kept], curve.risk[kept], color=COLOURS[role], linestyle=dash, label=label)
        random = next(iter(curves.values())).random
        axes.axhline(random, color=COLOURS["ink"], linewidth=1, linestyle=GUIDE, label="at random")
        axes.set_xlim(0, 1)
        axes.set_ylim(bottom=0)
        for axis in (axes.xaxis, axes.yaxis):
            percent_axis(axis)
        axes.set_xlabel("pairs kept, the most certain first")
        axes.set_ylabel("wrong among those kept")
        draw_legend(figure, axes)
        return to_svg(figure, name, title)


def error_bins(name: str, title: str, bins: Sequence[ErrorBin], overall: float, digits: int) -> str:
    """Error rate of each group of pairs, from the most to the least certain."""
    with style():
        figure = new_figure(3.0)
        axes = figure.add_subplot()
        axes.axhline(overall, color=COLOURS["ink"], linewidth=1, linestyle=GUIDE, label="all pairs")
        for number, item in enumerate(bins):
            draw_interval(axes, number, item.error, "refined", "this group" if number == 0 else None, False)
        ticks = range(0, len(bins), 2 if len(bins) > 6 else 1)
        axes.set_xticks(list(ticks), [decimal(bins[t].uncertainty, digits) for t in ticks])
        axes.set_ylim(bottom=0)
        percent_axis(axes.yaxis)
        axes.set_xlabel("mean std of the group's reward differences")
        axes.set_ylabel("pairs ranked wrongly")
        axes.grid(False, axis="x")
        draw_legend(figure, axes)
        return to_svg(figure, name, title)


def density_curve(
    name: str, title: str, nodes: Floats, density: Floats, base: float, refined: float, interval: tuple[float, float]
) -> str:
    """p(reward | response) with the base and the refined reward and the central interval.

    Args:
        name: id of the figure on the page.
        title: what it shows.
        nodes: rewards [g], rising.
        density: density at the nodes [g], per unit of reward.
        base: base reward.
        refined: refined reward.
        interval: ends of the interval that is shaded.
    """
    with style():
        figure = new_figure(1.9, CARD_WIDTH)
        axes = figure.add_subplot()
        inside = (nodes >= interval[0]) & (nodes <= interval[1])
        axes.fill_between(nodes, density, where=inside.tolist(), color=COLOURS["refined"], alpha=0.2, linewidth=0)
        axes.plot(nodes, density, color=COLOURS["refined"], linewidth=1.4)
        axes.axvline(base, color=COLOURS["base"], linestyle=DASHED, label="base")
        axes.axvline(refined, color=COLOURS["refined"], label="refined")
        shown = density > 1e-3 * density.max()
        low, high = nodes[shown].min(), nodes[shown].max()
        low, high = min(low, base, refined), max(high, base, refined)
        axes.set_xlim(low - 0.03 * (high - low), high + 0.03 * (high - low))
        axes.set_ylim(bottom=0)
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        axes.grid(False)
        axes.set_xlabel("reward")
        draw_legend(figure, axes)
        return to_svg(figure, name, title)


def training_curve(
    name: str,
    title: str,
    epochs: Sequence[float],
    values: Sequence[float],
    what: str,
    percent: bool,
    best: float | None,
) -> str:
    """One quantity over the epochs; a vertical line marks the epoch that was kept.

    Args:
        name: id of the figure on the page.
        title: what it shows.
        epochs: epoch numbers.
        values: the quantity after each.
        what: its name, on the axis.
        percent: whether it is a share.
        best: the epoch whose weights were kept, or None.
    """
    with style():
        figure = new_figure(2.4)
        axes = figure.add_subplot()
        if best is not None:
            axes.axvline(best, color=COLOURS["muted"], linestyle=DASHED, linewidth=1.2, label="kept")
        few = len(epochs) <= 40
        axes.plot(epochs, values, color=COLOURS["refined"], marker="s" if few else "", markersize=4, label=what)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if percent:
            spread = max(values) - min(values)
            percent_axis(axes.yaxis, digits=0 if spread > 0.04 else 1 if spread > 0.004 else 2)
        axes.set_xlabel("epoch")
        axes.set_ylabel(what)
        axes.grid(False, axis="x")
        return to_svg(figure, name, title)
