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
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TextIO

from ebrm.utils.neutral import printable

#: Keeps the libraries underneath quiet.
_ENVIRONMENT = {
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_VERBOSITY": "error",
    "DATASETS_VERBOSITY": "error",
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

    def print(self, *lines: str) -> None:
        """Lines of the result for people, on stdout (also empty ones); silent under --json."""
        for line in () if self.json else lines:
            write(sys.stdout, line) if line.strip() else sys.stdout.write("\n")

    def block(self, text: str) -> None:
        """A result that is a document of its own (Markdown, CSV), on stdout as it stands; silent under --json."""
        sys.stdout.write("" if self.json else text)

    def table(self, head: Sequence[str], rows: Sequence[Sequence[Any]], title: str = "") -> None:
        """A table of the result for people, on stdout: first column left, the others right; silent under --json.

        Where it is wider than the terminal its rows stand one under another, each value with its name.
        """
        if self.json:
            return
        from rich import box
        from rich.console import Console as Rich
        from rich.table import Table
        from rich.text import Text

        terminal, columns = sys.stdout.isatty(), width(sys.stdout)
        rich = Rich(width=columns if terminal else 10_000, no_color=bool(os.environ.get("NO_COLOR")) or None)
        bold = "bold" if terminal else ""
        table = Table(box=box.SIMPLE_HEAD if terminal else None, pad_edge=False, header_style=bold)
        for k, name in enumerate(head):
            table.add_column(Text(printable(name)), justify="right" if k else "left", overflow="fold")
        for row in rows:
            table.add_row(*(Text(printable(str(cell))) for cell in row))
        if terminal and rich.measure(table, options=rich.options.update(max_width=10_000)).maximum > columns:
            self.print(*[title] * bool(title))
            for first, *cells in rows:
                named = [(f"  {name}", cell) for name, cell in zip(head[1:], cells, strict=True) if cell]
                sys.stdout.write(f"{printable(str(first))}\n" * bool(first) + facts_text(named, columns))
            return
        with rich.capture() as shown:
            if title:
                rich.print(Text(printable(title), style=bold))
            rich.print(table)
        sys.stdout.write("".join(f"{line.rstrip()}\n" for line in shown.get().splitlines()))

    def facts(self, rows: Sequence[tuple[str, Any]]) -> None:
        """Names with values, one a line, values wrapped to the width; silent under --json."""
        self.block(facts_text(rows, width(sys.stdout)))

    def result(self, value: dict[str, Any]) -> None:
        """The whole result for machines: one JSON object on stdout; silent without --json."""
        if self.json:
            text = json_module.dumps(value, ensure_ascii=False, indent=2, allow_nan=False)
            # What is left are strings: in those, an escape is the same character.
            lines = ("".join(c if c.isprintable() else json_module.dumps(c)[1:-1] for c in x) for x in text.split("\n"))
            sys.stdout.write("\n".join(lines) + "\n")


def write(stream: TextIO, text: str) -> None:
    """One paragraph: its lines wrapped to a terminal's width, and left whole everywhere else (logs, pipes)."""
    for line in filter(str.strip, text.splitlines()):
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


def width(stream: TextIO) -> int:
    """Columns to fill: the terminal's or those of COLUMNS, and 100 where there is neither; at least 20."""
    return max(20, shutil.get_terminal_size((80 if stream.isatty() else 100, 24)).columns)


def facts_text(rows: Sequence[tuple[str, Any]], columns: int) -> str:
    """``name  value`` lines; where the width is small, the value goes under the name."""
    rows = [(" " * (len(name) - len(name.lstrip(" "))) + printable(name), value) for name, value in rows]
    longest = max((len(name) for name, _ in rows), default=0)
    beside = longest + 2 + 24 <= columns
    indent = " " * (longest + 2 if beside else 2)
    lines = []
    for name, value in rows:
        wrapped = textwrap.wrap(
            printable(str(value)), columns, initial_indent=name.ljust(longest + 2) if beside else indent,
            subsequent_indent=indent, break_on_hyphens=False, break_long_words=False,
        )  # fmt: skip
        lines += ([] if beside and wrapped else [name]) + wrapped
    return "".join(f"{line}\n" for line in lines)


@contextmanager
def logging_to_stderr(quiet: bool, verbose: bool) -> Iterator[Stderr]:
    """Send logs to stderr while the body runs: ours from INFO on, those of other libraries from ERROR on.

    Quiet: ours from WARNING on. Verbose: all of ours, others from INFO on.
    """
    root, ours = logging.getLogger(), logging.getLogger("ebrm")
    handler, levels = Stderr(), (root.level, ours.level)
    set_here = {} if verbose else {k: v for k, v in _ENVIRONMENT.items() if k not in os.environ}
    os.environ.update(set_here)
    root.addHandler(handler)
    root.setLevel(logging.INFO if verbose else logging.ERROR)
    ours.setLevel(logging.DEBUG if verbose else logging.WARNING if quiet else logging.INFO)
    try:
        with warnings.catch_warnings():
            if not verbose and not sys.warnoptions:
                warnings.simplefilter("ignore")
            yield handler
    finally:
        root.removeHandler(handler)
        root.setLevel(levels[0])
        ours.setLevel(levels[1])
        for key in set_here:
            os.environ.pop(key, None)


class Stderr(logging.Handler):
    """Log records as paragraphs on whatever stderr is at that moment, such as rich's while it shows a progress bar.

    `translate` is what becomes of our own sentences: fields in them are shown as options.
    """

    translate: Callable[[str], str] | None = None

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record, unless its library writes to stderr itself."""
        library = record.name.partition(".")[0]
        if library != "ebrm" and logging.getLogger(library).handlers:
            return
        try:
            text = self.format(record)
            if library == "ebrm" and self.translate is not None:
                text = self.translate(text)
            write(sys.stderr, text if record.levelno == logging.INFO else f"{record.levelname.lower()}: {text}")
        except BrokenPipeError:
            raise
        except Exception:
            self.handleError(record)
