from __future__ import annotations

import io
import sys

import pytest

from ebrm.cli.console import Console, facts_text, write
from ebrm.utils.neutral import printable


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_lines_are_whole_where_there_is_no_terminal() -> None:
    stream = io.StringIO()
    write(stream, "word " * 60 + "\n\n  an item\x1b[31m\n")
    assert stream.getvalue() == ("word " * 60).strip() + "\n  an item\\x1b[31m\n"


@pytest.mark.parametrize("columns", [40, 80])
def test_lines_fit_a_terminal(monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    stream = Terminal()
    write(stream, "word " * 60 + "\n  " + "item " * 30)
    lines = stream.getvalue().splitlines()
    assert len(lines) > 2
    assert max(map(len, lines)) <= columns
    assert sum(line.startswith("    item") for line in lines) >= 1  # continued items stand deeper


def test_printable_shows_control_characters_and_keeps_unicode() -> None:
    assert printable("a\x00b\x1b[2J ü 🙂\tz") == "a\\x00b\\x1b[2J ü 🙂 z"


def test_a_stream_that_cannot_say_it_gets_an_escape() -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii", write_through=True)
    write(stream, "ü 🙂")
    assert raw.getvalue() == b"\\xfc \\U0001f642\n"


def test_a_table_wider_than_the_terminal_is_stacked(monkeypatch: pytest.MonkeyPatch) -> None:
    def shown(columns: int) -> str:
        monkeypatch.setenv("COLUMNS", str(columns))
        monkeypatch.setattr("sys.stdout", Terminal())
        rows = [("linear", "61.2", "58.0 to 64.1", "+1.2"), ("", "60.0", "", "")]
        Console().table(("head", "accuracy, %", "95% interval", "minus base"), rows, "Heads")
        return sys.stdout.getvalue()  # type: ignore[attr-defined, no-any-return]

    assert shown(60).index("accuracy") < shown(60).index("linear")
    stacked = "Heads|linear|  accuracy, %   61.2|  95% interval  58.0 to 64.1|  minus base    +1.2|  accuracy, %  60.0|"
    assert shown(40) == stacked.replace("|", "\n")


@pytest.mark.parametrize("columns", [20, 40, 80, 100])
def test_facts_fit(columns: int) -> None:
    text = facts_text([("a long name of a fact", "value " * 30), ("b", "x")], columns)
    assert max(map(len, text.splitlines())) <= max(columns, 21)  # a name is never cut
    assert text.split().count("value") == 30


@pytest.mark.parametrize("json", [True, False])
def test_machines_get_one_object_and_people_aligned_columns(capsys: pytest.CaptureFixture[str], json: bool) -> None:
    console = Console(json=json)
    console.print("yes", "")
    console.table(("", "n"), [("a", "1"), ("bcd", "23")], "T")
    console.facts([("a", "b")])
    console.note("aside")
    Console(quiet=True).note("nothing")
    console.result({"x": "ü"})
    shown = "yes\n\nT\n      n\na     1\nbcd  23\na  b\n"
    assert capsys.readouterr() == ('{\n  "x": "ü"\n}\n' if json else shown, "aside\n")
