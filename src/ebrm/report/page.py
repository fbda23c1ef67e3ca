"""A self-contained page of sections with text, figures, tables and cards, and how it becomes HTML.

Every string given here is plain text and is escaped; only the drawings of `Figure` and `Panel` are
markup, and come from `ebrm.report.svg`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import resources

from jinja2 import Environment, StrictUndefined, Template
from markupsafe import Markup, escape

from ebrm.report.words import clean, count


@dataclass(frozen=True)
class Figure:
    """A drawing with its heading and the sentence that says how to read it."""

    title: str
    svg: str
    caption: str


@dataclass(frozen=True)
class Table:
    """A table; the first column names its rows, the others hold numbers, aligned right, unless `text` is set."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    text: bool = False


@dataclass(frozen=True)
class GridCell:
    """A cell of a grid.

    Attributes:
        value: what is read first.
        beside: smaller, after the value; usually its interval.
        below: smaller, on a line of its own; usually a difference.
        mark: a sign before `below`, or before `value` if there is none, and what it means, for those who hear it.
        shade: 0 (none) to 10 (strongest), or None for a cell without a shade.
        strong: whether the value is set in bold.
    """

    value: str
    beside: str = ""
    below: str = ""
    mark: tuple[str, str] | None = None
    shade: int | None = None
    strong: bool = False


@dataclass(frozen=True)
class GridRow:
    """A row of a grid: its name, a smaller line below it, its cells, and whether it is a heading of others."""

    name: str
    cells: Sequence[GridCell]
    detail: str = ""
    strong: bool = False


@dataclass(frozen=True)
class Grid:
    """A table whose cells say more than one thing, and may be shaded by value.

    Attributes:
        caption: what it shows; of a folded grid, what is seen before it is opened.
        corner: heading of the column of names.
        columns: heading of each column of cells, and a smaller line below it.
        groups: rows under a title of their own, or under "".
        scale: what the faintest and the strongest shade stand for, if cells are shaded.
        folded: whether it is closed until somebody opens it.
        narrow: whether another may stand beside it.
    """

    caption: str
    corner: str
    columns: Sequence[tuple[str, str]]
    groups: Sequence[tuple[str, Sequence[GridRow]]]
    scale: tuple[str, str] | None = None
    folded: bool = False
    narrow: bool = False


@dataclass(frozen=True)
class Panel:
    """Small figures that are read together.

    Attributes:
        title: what they show; of a folded panel, what is seen before it is opened.
        caption: how to read them.
        legend: mark, as SVG, and what it stands for, for all figures.
        figures: title, a smaller line below it, and SVG of each.
        folded: whether it is closed until somebody opens it.
    """

    title: str
    caption: str
    legend: Sequence[tuple[str, str]]
    figures: Sequence[tuple[str, str, str]]
    folded: bool = False


@dataclass(frozen=True)
class Passage:
    """Someone's text and who says it (or ""); long ones are folded, very long ones cut, saying how much is missing."""

    speaker: str
    text: str


@dataclass(frozen=True)
class Card:
    """One example: what was said, passages to compare side by side, a line of numbers, and a figure or a table."""

    title: str
    passages: Sequence[Passage] = ()
    text: Sequence[str] = ()
    figure: Figure | None = None
    table: Table | None = None
    sides: Sequence[Passage] = ()


@dataclass(frozen=True)
class Section:
    """A part of the page, in the order: text, figures, panels, tables, grids, notes, cards."""

    id: str
    title: str
    text: Sequence[str] = ()
    figures: Sequence[Figure] = ()
    panels: Sequence[Panel] = ()
    tables: Sequence[Table] = ()
    grids: Sequence[Grid] = ()
    notes: Sequence[str] = ()
    cards: Sequence[Card] = ()


@dataclass(frozen=True)
class Tile:
    """A number worth a glance."""

    label: str
    value: str
    detail: str
    role: str = "ink"


@dataclass(frozen=True)
class Page:
    """The whole page.

    Attributes:
        title: its title.
        headline: the finding, in one sentence.
        summary: paragraphs below it.
        tiles: the numbers behind it.
        sections: everything else.
        missing: what is not on the page, and why, one sentence each.
        footer: small print.
        wide: whether wide tables may take more of a wide screen.
    """

    title: str
    headline: str
    summary: Sequence[str]
    tiles: Sequence[Tile]
    sections: Sequence[Section]
    missing: Sequence[str] = ()
    footer: Sequence[str] = field(default=())
    wide: bool = False


_FOLD_AT = 700
_CUT_AT = 6000


def _folded(text: str) -> tuple[str, str]:
    """Split a text into what is shown and what is folded away; cut the end of a very long one, saying so."""
    text = clean(text)
    if len(text) <= _FOLD_AT:
        return text, ""
    shown = text[:_FOLD_AT]
    if " " in shown[-80:]:  # not in the middle of a word
        shown = shown[: shown.rindex(" ")]
    rest = text[len(shown) : _CUT_AT]
    if len(text) > _CUT_AT:
        rest += f"\u2026 [{count(len(text) - _CUT_AT, 'more character')} not shown]"
    return shown, rest


def _breakable(text: str) -> Markup:
    """Let a name be broken after slashes and underscores, and in endless words, before it is broken anywhere else."""
    return Markup(re.sub(r"([/_]|[^\W_]{16})(?=\w)", r"\1<wbr>", str(escape(clean(text)))))  # noqa: S704 - escaped here


@cache
def _template() -> Template:
    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: clean(value) if type(value) is str else value,  # not Markup, which is ours
    )
    environment.filters["folded"] = _folded
    environment.filters["breakable"] = _breakable
    return environment.from_string(resources.files(__package__).joinpath("page.html").read_text(encoding="utf-8"))


def render_page(page: Page) -> str:
    """Turn a page into one HTML document that needs nothing else: no network, no script, no font."""
    style = resources.files(__package__).joinpath("page.css").read_text(encoding="utf-8")
    return _template().render(page=page, style=Markup(style), svg=Markup)  # noqa: S704 - both are our own markup
