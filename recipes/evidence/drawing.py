"""How the study's figures look: 800 px wide, drawn at twice that; colors that are told apart without red and green."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from ebrm.utils.files import atomic_path

WIDTH = 8.0  # inches, of 100 px each where it is shown
_DPI = 200
_COLOURS = 128
INK, MUTED, GRID = "#1b1f24", "#5b6470", "#dfe3e8"
#: Method to its color and dashes; a method is drawn the same in every figure.
LOOKS: Mapping[str, tuple[str, str]] = {
    "base": ("#666f7b", "--"),
    "EBRM": ("#0072b2", "-"),
    "EBRM, mean - 1 std": ("#56b4e9", "-"),
    "paper": ("#9b3d7c", "-"),
    "linear refit": ("#00805d", "-"),
    "SiLU head": ("#e69f00", "-"),
    "5 SiLU heads": ("#c24e00", "-"),
    "5 SiLU heads, WCO": ("#c24e00", ":"),
    "longest": ("#8a6d3b", ":"),
    "random": ("#a0a9b4", ":"),
}
_STYLE = {
    "font.size": 9.0,
    "axes.titlesize": 9.0,
    "axes.titlelocation": "left",
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "text.color": INK,
    "text.parse_math": False,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.major.size": 3.0,
    "ytick.major.size": 3.0,
}


@contextmanager
def drawn(path: Path, height: float) -> Iterator[Figure]:
    """A figure of that height in inches, written as PNG with a palette when all is drawn on it."""
    with matplotlib.rc_context(_STYLE):  # type: ignore[arg-type]
        figure = Figure(figsize=(WIDTH, height), dpi=_DPI, layout="constrained")
        canvas = FigureCanvasAgg(figure)
        yield figure
        canvas.draw()
        image = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
        # 128 colors are more than these drawings have, but for the edges of letters.
        with atomic_path(path) as partial:
            image.quantize(_COLOURS, dither=Image.Dither.NONE).save(partial, format="PNG", optimize=True)


def look(method: str) -> tuple[str, str]:
    """Color and dashes of a method: those of the first one that its name begins with, the longest name first."""
    known = [name for name in sorted(LOOKS, key=len, reverse=True) if method.startswith(name)]
    return LOOKS[known[0]] if known else (INK, "-")


def point(axes: Axes, x: float, y: float, ends: Sequence[float], color: str, filled: bool, across: bool) -> None:
    """A mark with its interval, along x (`across`) or along y."""
    if np.isfinite(ends).all():
        line = (ends, [y, y]) if across else ([x, x], ends)
        axes.plot(*line, color=color, linewidth=1.6, solid_capstyle="butt")
    axes.plot(x, y, "o", color=color, markerfacecolor=color if filled else "white", markersize=5.5)


def rows_axis(axes: Axes, labels: Sequence[str]) -> None:
    """Name rows on the left, the first at the top, with no marks and no spine."""
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.grid(False, axis="y")
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)


def label_ends(axes: Axes, ends: Mapping[str, float], gap: float) -> None:
    """Name lines at the right, where they end [y], in their colors, at least `gap` apart."""
    ordered = sorted(ends, key=lambda name: ends[name])
    places = np.array([ends[name] for name in ordered])
    for _ in range(200):  # neighbors push each other apart until none is too near
        short = gap - np.diff(places)
        if (short <= 1e-9).all():
            break
        push = np.maximum(short, 0) / 2
        places[1:] += push
        places[:-1] -= push
    side = axes.get_yaxis_transform()
    for name, y in zip(ordered, places, strict=True):
        axes.text(1.02, y, name, transform=side, va="center", color=look(name)[0])
