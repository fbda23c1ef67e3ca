from __future__ import annotations

import csv
import io
import json

import pytest

from ebrm.cli.console import Console
from ebrm.utils.neutral import clean, csv_text, escape_markdown, printable

NAMES = ("\x1b[2J\x1b]0;x\x07", "a\u202eb", "x\n| y |\r\nz", "<img src=x>", "[a](javascript:1)", "\x9b31m", "\ud800")


@pytest.mark.parametrize("name", NAMES)
def test_a_terminal_gets_no_control_character(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert printable(name).isprintable()
    console = Console()
    console.table((name, "b"), [(name, 1)], name)
    console.facts([(name, name)])
    assert all(char.isprintable() or char == "\n" for char in capsys.readouterr().out)


def test_json_on_a_terminal_has_escapes_and_the_same_value(capsys: pytest.CaptureFixture[str]) -> None:
    Console(json=True).result({"a": list(NAMES[:-1]), "b": "é"})
    out = capsys.readouterr().out
    assert json.loads(out) == {"a": list(NAMES[:-1]), "b": "é"} and "é" in out
    assert all(char.isprintable() or char == "\n" for char in out)


@pytest.mark.parametrize("name", NAMES)
def test_markdown_is_one_line_without_markup(name: str) -> None:
    escaped = escape_markdown(name)
    assert "\n" not in escaped and "\x1b" not in escaped and "\u202e" not in escaped
    assert not any(char in escaped.replace(f"\\{char}", "") for char in "<|[]")


@pytest.mark.parametrize("text", ["=HYPERLINK(1)", "+1+2", "-2+3", "@SUM(1)", "\t=1", "\r=1", "  =1", "\uff1d1"])
def test_a_spreadsheet_computes_no_name(text: str) -> None:
    rows = list(csv.reader(io.StringIO(csv_text([[text, -1.5, "-1.5", "a=b"]]))))
    assert rows == [[f"'{clean(text)}", "-1.5", "-1.5", "a=b"]]
