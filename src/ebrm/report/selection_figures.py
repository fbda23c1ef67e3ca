"""The picture of what selection does: gold along n and along KL, one line a reward, its peak marked."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, NullLocator, StrMethodFormatter

from ebrm.evaluation import Along, Axis, Selection
from ebrm.metrics import MeanCurve
from ebrm.optimize import Floats
from ebrm.report.svg import style
from ebrm.report.words import shorten
from ebrm.utils.files import atomic_path

#: Told apart without red and green, and in print by their dashes; the first is the reward that others are compared to.
LOOKS: tuple[tuple[str, Any], ...] = (
    ("#5b6470", (0, (4, 2))),
    ("#0072b2", "solid"),
    ("#c24e00", "solid"),
    ("#00805d", (0, (6, 1.5, 1, 1.5))),
    ("#9b3d7c", "solid"),
    ("#b58900", (0, (1, 1.2))),
)
_INK, _MUTED, _GRID = "#1b1f24", "#5b6470", "#dfe3e8"
_LABELS: Mapping[Axis, str] = {"n": "n, the best of which is taken", "kl": "KL from choosing at random, nats"}
_NAME_LENGTH = 40
_COLUMNS = 4  # of the legend
_BANDS = 3  # with more lines than this, bands hide one another
_GUIDE = (0, (1, 1.5))
_DPI = 200


def selection_figure(selection: Selection, gold: str = "gold") -> Figure:
    """Draw mean gold along both axes and, under it, the differences to the first reward.

    The bands around gold are of its difference to that of any response: how prompts differ as a whole is not in them.

    Args:
        selection: what was found.
        gold: name of gold, for the axis.
    """
    names = list(selection.along)
    light = {
        "axes.edgecolor": _MUTED, "axes.labelcolor": _INK, "axes.facecolor": "white", "figure.facecolor": "white",
        "grid.color": _GRID, "text.color": _INK, "legend.labelcolor": _INK, "xtick.color": _MUTED,
        "ytick.color": _MUTED, "xtick.labelcolor": _INK, "ytick.labelcolor": _INK, "axes.titlesize": 9.0,
        "axes.titlelocation": "left",
    }  # fmt: skip
    heights = [2.6, 1.8] if len(names) > 1 else [2.6]
    with style(), matplotlib.rc_context(light):  # type: ignore[arg-type]
        legend = -(-(len(names) + 2) // _COLUMNS)  # rows: every name, "any response" and "highest"
        figure = Figure(figsize=(8.0, sum(heights) + 0.6 + 0.2 * legend), dpi=_DPI, layout="constrained")
        grid = figure.subplots(
            len(heights), 2, sharex="col", sharey="row", squeeze=False, gridspec_kw={"height_ratios": heights}
        )
        for column, axis in enumerate(_LABELS):
            upper, lower = grid[0, column], grid[-1, column]
            upper.axhline(selection.random[0], color=_INK, linewidth=1, linestyle=_GUIDE, label="any response")
            if len(heights) > 1:
                lower.axhline(0, color=_INK, linewidth=1, linestyle=_GUIDE)
            for number, name in enumerate(names):
                look = look_of(number)
                along = selection.along[name][axis]
                _gold(upper, along, selection.random[0], shorten(name, _NAME_LENGTH), look, len(names) <= _BANDS)
                if along.gain is not None:
                    _line(lower, along.x, along.gain, 0.0, look, len(names) <= 1 + _BANDS)
            lower.set_xlabel(_LABELS[axis])
        _doubling(grid[0, 0], selection.along[names[0]]["n"].x)
        grid[0, 0].set_ylabel(f"mean {shorten(gold, _NAME_LENGTH)}")
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
    """Write the picture as PNG, 1600 pixels wide; the same selection gives the same bytes."""
    figure = selection_figure(selection, gold)
    with atomic_path(path) as partial, style():
        FigureCanvasAgg(figure).print_png(partial, metadata={"Software": None})


def look_of(number: int) -> tuple[str, Any]:
    """Color and dashes of a line; beyond the first six, dash-dotted in the same colors."""
    color, dash = LOOKS[number % len(LOOKS)]
    return color, dash if number < len(LOOKS) else (0, (5, 1.5, 1, 1.5, 1, 1.5))


def _gold(axes: Axes, along: Along, random: float, name: str, look: tuple[str, Any], band: bool) -> None:
    """Mean gold with its peak; the band is that of the difference to any response."""
    (line,) = _line(axes, along.x, along.above_random, random, look, band)
    line.set_label(name)
    at = (along.peak.x.value, along.peak.gold.value)
    axes.plot(*at, "o", color=look[0], markerfacecolor="white", markersize=6.5, zorder=5)


def _line(axes: Axes, x: Floats, curve: MeanCurve, above: float, look: tuple[str, Any], band: bool) -> list[Line2D]:
    color, dash = look
    if band:
        axes.fill_between(x, above + curve.low, above + curve.high, color=color, alpha=0.13, linewidth=0)
    return axes.plot(x, above + curve.value, color=color, linestyle=dash)


def _doubling(axes: Axes, n: Floats) -> None:
    """An axis on which n doubles at every mark."""
    last = int(n[-1])
    ticks = [2**k for k in range(last.bit_length())]
    if last / ticks[-1] > 1.2:
        ticks.append(last)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:.0f}"))
