"""Texts of others (names, errors, cells) made harmless where they are shown: terminal, Markdown, spreadsheets."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Sequence

# A cell that begins so is computed by spreadsheets. (https://owasp.org/www-community/attacks/CSV_Injection)
_FORMULA = re.compile(r"[\s\x00-\x1f]*[=+\-@\t\r\uff1d\uff0b\uff0d\uff20]")
# Controls but tab and newline, lone surrogates, and what turns the writing direction of the text that follows.
_DISGUISE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")


def printable(text: str) -> str:
    """One line for a terminal: line breaks as spaces, control characters and those of no shape as their escapes."""
    text = " ".join(text.split())
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def shorten_line(text: str, length: int) -> str:
    """One line of at most `length` characters, an ellipsis for the rest."""
    line = " ".join(text.split())
    return line if len(line) <= length else line[: length - 1].rstrip() + "\u2026"


def clean(text: str) -> str:
    """Characters that no document can carry, or that disguise text, as U+FFFD; every line end a newline."""
    return _DISGUISE.sub("\ufffd", text.replace("\r\n", "\n").replace("\r", "\n"))


def escape_markdown(text: str) -> str:
    """One line that Markdown, tables in it and the HTML inside it show as it is."""
    line = re.sub(r"[^\S\u00a0]+", " ", clean(text)).strip()  # white space other than the no-break space
    return re.sub(r"([\\`*_{}\[\]<>|~#$])", r"\\\1", line).replace("&", "&amp;")


def csv_text(rows: Iterable[Sequence[object]]) -> str:
    """Rows as CSV in which no text is a formula: a quote stands before it. Numbers stay, also as text."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([[_cell(value) for value in row] for row in rows])
    return text.getvalue()


def _cell(value: object) -> object:
    if not isinstance(value, str):
        return value
    value = clean(value)  # a carriage return alone would end the row
    if not _FORMULA.match(value):
        return value
    try:
        float(value)
    except ValueError:
        return f"'{value}"
    return value
