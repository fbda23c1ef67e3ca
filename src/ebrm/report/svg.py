"""Matplotlib figures as inline SVG that takes the page's colors and font, in light and in dark.

A figure is drawn with stand-in colors; in the SVG each becomes a CSS variable of the page (`var(--refined)`). Text
stays text. Nothing depends on the time, the machine or the order of drawing: the same data give the same bytes.
"""

from __future__ import annotations

import io
import re
import warnings
from contextlib import AbstractContextManager
from html import escape

import matplotlib
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from ebrm.utils.neutral import clean

#: Role to the stand-in color it is drawn with.
COLORS = {
    name: f"#0000{number:02x}"
    for number, name in enumerate(("ink", "muted", "grid", "base", "refined", "chosen", "rejected", "second"), start=1)
}

WIDTH = 4.0  # inches; shown 360 to 480 px wide, which makes 9 pt text 11 to 15 px tall
CARD_WIDTH = 3.4  # inches; shown 310 to 352 px wide

_STYLE = {
    "font.size": 9.0,
    "axes.labelsize": 9.0,
    "axes.edgecolor": COLORS["muted"],
    "axes.labelcolor": COLORS["ink"],
    "axes.facecolor": "none",
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "figure.facecolor": "none",
    "grid.color": COLORS["grid"],
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "legend.fontsize": 9.0,
    "legend.labelcolor": COLORS["ink"],
    "lines.linewidth": 1.8,
    "hatch.color": COLORS["muted"],
    "text.color": COLORS["ink"],
    "text.parse_math": False,  # a category may be called "$5"
    "xtick.color": COLORS["muted"],
    "ytick.color": COLORS["muted"],
    "xtick.labelcolor": COLORS["ink"],
    "ytick.labelcolor": COLORS["ink"],
    "xtick.major.size": 3.0,
    "ytick.major.size": 3.0,
    "svg.fonttype": "none",
    "svg.hashsalt": "ebrm",
}


def style() -> AbstractContextManager[None]:
    """Context in which figures are built and rendered."""
    return matplotlib.rc_context(_STYLE)  # type: ignore[arg-type]


def new_figure(height: float, width: float = WIDTH) -> Figure:
    """Make an empty figure of `height` by `width` inches; no global state of pyplot is touched."""
    return Figure(figsize=(width, height), layout="constrained")


def line_mark(role: str, dash: str = "", marker: str = "") -> str:
    """A short line of a role as in a figure, for a legend: `dash` as "5 2.5", `marker` "o" (hollow circle) or "s"."""
    color = f"var(--{role})"
    drawn = {
        "": "",
        "o": f'<circle cx="16" cy="6" r="3.5" fill="var(--paper)" stroke="{color}" stroke-width="1.5"/>',
        "s": f'<rect x="12.5" y="2.5" width="7" height="7" fill="{color}"/>',
    }[marker]
    return (
        f'<svg viewBox="0 0 32 12" width="32" height="12" aria-hidden="true"><path d="M0 6H32" stroke="{color}" '
        f'stroke-width="2" stroke-dasharray="{dash or "none"}"/>{drawn}</svg>'
    )


def to_svg(figure: Figure, name: str, title: str) -> str:
    """One `<svg>` element for an HTML page, of a figure drawn in `style()` with `COLORS`; `name` prefixes every id."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        # A label may be in any script; the browser has the fonts that matplotlib lacks for measuring it.
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from", category=UserWarning)
        warnings.filterwarnings("ignore", message=r"Matplotlib currently does not support", category=UserWarning)
        FigureCanvasSVG(figure).print_svg(
            buffer, metadata={"Date": None, "Creator": None, "Format": None, "Type": None}
        )
    text = buffer.getvalue().decode("utf-8")
    body = text[text.index(">", text.index("<svg")) + 1 : text.rindex("</svg>")]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = re.sub(r'<style type="text/css">(.*?)</style>', "", body, flags=re.DOTALL)
    body = re.sub(r'<g id="[a-zA-Z]+[a-z0-9_.]*">', "<g>", body)  # group names are of no use here
    body = re.sub(r'\bid="', f'id="{name}-', body)
    body = re.sub(r'(xlink:href="#|url\(#)', rf"\g<1>{name}-", body).replace("xlink:href", "href")
    body = re.sub(r"<[^>]*>", lambda tag: _compact(tag.group()), re.sub(r">\s+<", "><", body.strip()))
    for role, color in COLORS.items():
        body = body.replace(color, f"var(--{role})")
    width, height = (72 * inches for inches in figure.get_size_inches())
    return (
        f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-labelledby="{name}-title">'
        f'<title id="{name}-title">{escape(clean(title))}</title>{body}</svg>'
    )


def _compact(tag: str) -> str:
    """Leave out what the page overrides or nobody sees: fonts, turns by nothing, digits of no effect."""
    tag = re.sub(r'font-family: [^;"]*;? ?| transform="rotate\(-?0 [^"]*"', "", tag)
    tag = re.sub(r"\d+\.\d{4,}", lambda number: f"{float(number.group()):.3f}", tag)
    return re.sub(r"\s+", " ", tag)
