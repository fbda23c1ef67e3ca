"""What a command shows: notes and errors on stderr, results on stdout, or one JSON object on stdout for machines.

Tables have rules and colors on a terminal and are plain columns everywhere else; ``NO_COLOR`` is respected.
"""

from __future__ import annotations

import json as json_module
import logging
import os
import shutil
import sys
import textwrap
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TextIO

#: Keeps the libraries underneath quiet.
_ENVIRONMENT = {
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    # A forked data loader after tokenizing in threads would print a page of advice.
    "TOKENIZERS_PARALLELISM": "false",
}


@dataclass
class Console:
    """Where a command's words go. `kept` tells what an interruption leaves behind."""

    json: bool = False
    quiet: bool = False
    verbose: bool = False
    kept: str = ""

    def note(self, text: str) -> None:
        """A note on the run, on stderr; silent under --quiet."""
        if not self.quiet:
            write(sys.stderr, text)

    def print(self, text: str) -> None:
        """A line of the result for people, on stdout (also an empty one); silent under --json."""
        if not self.json:
            write(sys.stdout, text) if text.strip() else sys.stdout.write("\n")

    def block(self, text: str) -> None:
        """A result that is a document of its own (Markdown, CSV), on stdout as it stands; silent under --json."""
        if not self.json:
            sys.stdout.write(text)

    def table(self, header: Sequence[str], rows: Sequence[Sequence[Any]], title: str = "") -> None:
        """A table of the result for people, on stdout: first column left, the others right; silent under --json."""
        if self.json:
            return
        cells = [[str(cell) for cell in row] for row in rows]
        text = plain_table(header, cells, title)
        if not sys.stdout.isatty():
            sys.stdout.write(text)
        elif max(map(len, text.splitlines())) + len(header) > width(sys.stdout):
            sys.stdout.write(stacked_table(header, cells, title, width(sys.stdout)))
        else:
            _rich_table(header, cells, title)

    def facts(self, rows: Sequence[tuple[str, Any]], title: str = "") -> None:
        """Names with values, one a line, values wrapped to the width; silent under --json."""
        if self.json:
            return
        lines = facts_text(rows, width(sys.stdout))
        sys.stdout.write((f"{title}\n" if title else "") + lines)

    def result(self, value: dict[str, Any]) -> None:
        """The whole result for machines: one JSON object on stdout; silent without --json."""
        if self.json:
            sys.stdout.write(json_module.dumps(value, ensure_ascii=False, indent=2, allow_nan=False) + "\n")


def write(stream: TextIO, text: str) -> None:
    """One paragraph: its lines wrapped to a terminal's width, and left whole everywhere else (logs, pipes)."""
    for line in text.splitlines():
        if not line.strip():
            continue
        indent = " " * (len(line) - len(line.lstrip(" ")))
        shown = indent + printable(line)
        if stream.isatty():
            shown = textwrap.fill(
                shown, width(stream), subsequent_indent=indent + "  " * bool(indent), break_long_words=False,
                break_on_hyphens=False,
            )  # fmt: skip
        encoding = getattr(stream, "encoding", None) or "utf-8"
        stream.write(shown.encode(encoding, "backslashreplace").decode(encoding) + "\n")
    stream.flush()


def printable(text: str) -> str:
    """Line breaks and control characters (from data or file names) made visible: one paragraph stays one."""
    text = " ".join(text.split())
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def width(stream: TextIO) -> int:
    """Columns to fill: the terminal's or those of COLUMNS, and 100 where there is neither; at least 20."""
    return max(20, shutil.get_terminal_size((80 if stream.isatty() else 100, 24)).columns)


def plain_table(header: Sequence[str], rows: Sequence[Sequence[str]], title: str = "") -> str:
    """Aligned columns, two spaces apart, without rules or colors."""
    columns = [[name, *(row[k] for row in rows)] for k, name in enumerate(header)]
    widths = [max(map(len, column)) for column in columns]
    lines = [title] if title else []
    for line in zip(*columns, strict=True):
        cells = [
            cell.ljust(w) if k == 0 else cell.rjust(w) for k, (cell, w) in enumerate(zip(line, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines) + "\n"


def stacked_table(header: Sequence[str], rows: Sequence[Sequence[str]], title: str, columns: int) -> str:
    """A table too wide for the screen, row under row: its first cell, and the others with their names."""
    lines = textwrap.wrap(title, columns)
    for first, *cells in rows:
        named = [(f"  {name}", cell) for name, cell in zip(header[1:], cells, strict=True) if cell]
        lines += [first] * bool(first) + facts_text(named, columns).splitlines()
    return "\n".join(lines) + "\n"


def facts_text(rows: Sequence[tuple[str, Any]], columns: int) -> str:
    """``name  value`` lines; where the width is small, the value goes under the name."""
    longest = max((len(name) for name, _ in rows), default=0)
    lines = []
    for name, value in rows:
        text = printable(str(value))
        if longest + 2 + 24 <= columns:
            indent = " " * (longest + 2)
            lines += textwrap.wrap(
                text, columns, initial_indent=name.ljust(longest + 2), subsequent_indent=indent, break_on_hyphens=False
            ) or [name]
        else:
            lines += [name, *textwrap.wrap(text, columns, initial_indent="  ", subsequent_indent="  ")]
    return "\n".join(lines) + "\n" if lines else ""


def _rich_table(header: Sequence[str], rows: Sequence[Sequence[str]], title: str) -> None:
    from rich import box
    from rich import console as rich_console
    from rich.table import Table
    from rich.text import Text

    console = rich_console.Console(no_color=bool(os.environ.get("NO_COLOR")) or None)
    if title:
        console.print(Text(title, style="bold"))
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for k, name in enumerate(header):
        table.add_column(name, justify="left" if k == 0 else "right", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    console.print(table)


@contextmanager
def logging_to_stderr(quiet: bool, verbose: bool) -> Iterator[None]:
    """Send logs to stderr while the body runs: ours from INFO on, those of other libraries from ERROR on.

    Quiet: ours from WARNING on. Verbose: all of ours, others from INFO on.
    """
    root, ours = logging.getLogger(), logging.getLogger("ebrm")
    handler = _Stderr()
    levels = root.level, ours.level, ours.propagate
    set_here = {} if verbose else {k: v for k, v in _ENVIRONMENT.items() if k not in os.environ}
    os.environ.update(set_here)
    root.addHandler(handler)
    root.setLevel(logging.INFO if verbose else logging.ERROR)
    ours.setLevel(logging.DEBUG if verbose else logging.WARNING if quiet else logging.INFO)
    try:
        with warnings.catch_warnings():
            if not verbose and not sys.warnoptions:
                warnings.simplefilter("ignore")
            yield
    finally:
        root.removeHandler(handler)
        root.setLevel(levels[0])
        ours.setLevel(levels[1])
        for key in set_here:
            os.environ.pop(key, None)


class _Stderr(logging.Handler):
    """Log records as paragraphs on whatever stderr is at that moment.

    While a progress bar is shown that is rich's stand-in, which writes above the bar; a handler with a console of its
    own would write across it.
    """

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = self.format(record)
            write(sys.stderr, text if record.levelno == logging.INFO else f"{record.levelname.lower()}: {text}")
        except BrokenPipeError:
            raise
        except Exception:
            self.handleError(record)
