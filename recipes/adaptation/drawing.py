"""How the study's figures look: SVG, 800 px wide, on light and on dark pages, without red beside green."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from ebrm.utils.files import atomic_path

WIDTH = 8.0  # inches
INK, MUTED, GRID = "#1b1f24", "#5b6470", "#dfe3e8"
BLUE, SKY, GREEN, ORANGE, RED, PURPLE, GRAY = (
    "#0072b2", "#4f9fd0", "#00805d", "#c98500", "#c24e00", "#9b3d7c", "#666f7b",
)  # fmt: skip
#: Every color on a dark page.
DARK = {
    INK: "#e6e9ee", MUTED: "#a3adb8", GRID: "#39414b", BLUE: "#5ab4f0", SKY: "#9ad0f5", GREEN: "#3fc39a",
    ORANGE: "#f0b440", RED: "#f58a4b", PURPLE: "#d98bc0", GRAY: "#a3adb8",
}  # fmt: skip
#: Method to its color and marker or dashes; a method is drawn the same in every figure.
LOOKS: Mapping[str, tuple[str, str]] = {
    "base": (GRAY, "--"),
    "EBRM": (BLUE, "-"),
    "EBRM, unseen": (SKY, "-"),
    "linear": (GREEN, "-"),
    "a r0 + ridge": (PURPLE, "-"),
    "SiLU head": (ORANGE, "-"),
    "5 SiLU heads, mean": (RED, "-"),
}
_STYLE = {
    "font.family": "sans-serif",
    "font.size": 9.0,
    "axes.titlesize": 9.0,
    "axes.titlelocation": "left",
    "axes.edgecolor": MUTED,
    "axes.facecolor": "none",
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "figure.facecolor": "none",
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "svg.fonttype": "none",
    "svg.hashsalt": "ebrm",
    "text.color": INK,
    "text.parse_math": False,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
}


@contextmanager
def drawn(path: Path, height: float) -> Iterator[Figure]:
    """A figure of that height in inches, written as SVG when all is drawn on it."""
    with matplotlib.rc_context(_STYLE):  # type: ignore[arg-type]
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        canvas = FigureCanvasSVG(figure)
        yield figure
        text = io.StringIO()
        canvas.print_svg(text, metadata={"Date": None})
    with atomic_path(path) as partial:
        partial.write_text(themed(text.getvalue()))


def themed(svg: str) -> str:
    """The drawing with colors that follow the reader's light or dark page."""
    names = {color: f"--c{number}" for number, color in enumerate(DARK)}
    for color, name in names.items():
        svg = svg.replace(color, f"var({name})")
    light = ";".join(f"{name}:{color}" for color, name in names.items())
    dark = ";".join(f"{name}:{DARK[color]}" for color, name in names.items())
    style = f"<style>svg{{{light}}}@media (prefers-color-scheme:dark){{svg{{{dark}}}}}</style>"
    return re.sub(r"(<svg[^>]*>)", lambda match: match[1] + style, svg, count=1)


def look(method: str) -> tuple[str, str]:
    """Color and dashes of a method: those of the longest name that its own begins with."""
    known = [name for name in sorted(LOOKS, key=len, reverse=True) if method.startswith(name)]
    return LOOKS[known[0]] if known else (GRAY, "-")


def apart(places: Sequence[float], gap: float) -> list[float]:
    """Places in the same order, moved as little as needed so that neighbors are at least `gap` apart."""
    order = np.argsort(places, kind="stable")
    moved = np.array(places, dtype=float)[order]
    for _ in range(400):  # neighbors push each other apart
        short = gap - np.diff(moved)
        if (short <= 1e-9).all():
            break
        push = np.maximum(short, 0) / 2
        moved[1:] += push
        moved[:-1] -= push
    found = np.empty_like(moved)
    found[order] = moved
    return found.tolist()


def within(places: Sequence[float], low: float, high: float) -> list[float]:
    """Places moved together until the highest and then the lowest is inside."""
    moved = np.array(places, dtype=float)
    moved -= max(0.0, moved.max(initial=low) - high)
    return (moved + max(0.0, low - moved.min(initial=high))).tolist()


def label_ends(axes: Axes, ends: Mapping[str, float]) -> None:
    """Name lines at the right, where they end [y], in their colors, and apart."""
    (low, high), side = axes.get_ylim(), axes.get_yaxis_transform()
    places = within(apart(list(ends.values()), (high - low) / 13), low, high)
    for name, y in zip(ends, places, strict=True):
        axes.text(1.02, y, name, transform=side, va="center", color=look(name)[0], fontsize=8)
