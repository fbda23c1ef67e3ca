"""Tables of text in Markdown and LaTeX."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ebrm.report.words import clean


@dataclass(frozen=True)
class Entry:
    """One cell: `text`, bold if `strong`, then a raised `mark`, then what goes `after`."""

    text: str
    after: str = ""
    strong: bool = False
    mark: str = ""


@dataclass(frozen=True)
class Table:
    """A table whose first column names the rows and is set left, the others right.

    Attributes:
        caption: what it shows.
        head: names of the columns.
        body: rows of as many entries.
    """

    caption: str
    head: Sequence[str]
    body: Sequence[Sequence[Entry]]


# Characters that Markdown or the HTML inside it would take for more than text.
_MARKDOWN = re.compile(r"([\\`*_{}\[\]<>|~#$])")
_LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", "`": r"\`{}", "[": "{[}", "]": "{]}", "*": r"\(\ast\)", "-": "{-}",
    "\u2212": r"\(-\)", "\u00a0": "~", "\u2013": "--", "\u2026": r"\ldots{}", "\u2020": r"\dag{}",
}  # fmt: skip


def markdown(tables: Sequence[Table], notes: Sequence[str]) -> str:
    """Write tables as GitHub-flavoured Markdown, each with its caption above it, and the notes as paragraphs below."""
    blocks = []
    for table in tables:
        head = [escape_markdown(name) for name in table.head]
        body = [[_entry(entry, escape_markdown, "**{}**", "{}") for entry in row] for row in table.body]
        rule = [":--", *["--:"] * (len(head) - 1)]
        lines = ["| " + " | ".join(row) + " |" for row in (head, rule, *body)]
        blocks.append(f"{escape_markdown(table.caption)}\n\n" + "\n".join(lines))
    blocks += [escape_markdown(note) for note in notes]
    return "\n\n".join(blocks) + "\n"


def latex(tables: Sequence[Table], notes: Sequence[str]) -> str:
    r"""Write tables for LaTeX with the package booktabs, and the notes as small paragraphs below.

    Characters outside ASCII that were in the names are kept; pdflatex knows the European ones, XeLaTeX and LuaLaTeX
    those of the font.
    """
    blocks = []
    for table in tables:
        head = [escape_latex(name) for name in table.head]
        body = [
            [_entry(entry, escape_latex, r"\textbf{{{}}}", r"\textsuperscript{{{}}}") for entry in row]
            for row in table.body
        ]
        rows = [" & ".join(row) + r" \\" for row in (head, *body)]
        blocks.append(
            "\n".join(
                [
                    r"\begin{table}[htbp]",
                    r"\centering",
                    rf"\caption{{{escape_latex(table.caption)}}}",
                    rf"\begin{{tabular}}{{l{'r' * (len(head) - 1)}}}",
                    r"\toprule",
                    rows[0],
                    r"\midrule",
                    *rows[1:],
                    r"\bottomrule",
                    r"\end{tabular}",
                    r"\end{table}",
                ]
            )
        )
    blocks += [rf"{{\footnotesize {escape_latex(note)}\par}}" for note in notes]
    return "\n\n".join(blocks) + "\n"


def escape_markdown(text: str) -> str:
    """The text on one line, so that Markdown shows it as it is."""
    return _MARKDOWN.sub(r"\\\1", _line(text)).replace("&", "&amp;")


def escape_latex(text: str) -> str:
    """The text on one line, so that LaTeX shows it as it is."""
    return "".join(_LATEX.get(character, character) for character in _line(text))


def _line(text: str) -> str:
    """One line: other white space than the no-break space becomes a space."""
    return re.sub(r"[^\S\u00a0]+", " ", clean(text)).strip()


def _entry(entry: Entry, escape: Callable[[str], str], strong: str, raised: str) -> str:
    text = strong.format(escape(entry.text)) if entry.strong else escape(entry.text)
    if entry.mark:
        text += raised.format(escape(entry.mark))
    return f"{text} {escape(entry.after)}" if entry.after else text
