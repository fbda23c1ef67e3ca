from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ebrm.cli.coerce import parse, parse_items, show
from ebrm.errors import ConfigError


@pytest.mark.parametrize(
    ("value", "hint", "expected"),
    [
        ("3", int, 3),
        ("1e4", int, 10000),
        ("-7", int, -7),
        (3.0, int, 3),
        ("9007199254740993", int, 9007199254740993),  # beyond float64: must not pass through one
        ("1e-4", float, 1e-4),  # PyYAML reads this as text
        (2, float, 2.0),
        ("yes", bool, True),
        ("off", bool, False),
        (False, bool, False),
        ("x", str, "x"),
        ("none", str | None, None),
        ("null", int | None, None),
        (None, int | None, None),
        ("12", int | None, 12),
        ("12", str | None, "12"),
        ("b", Literal["a", "b"], "b"),
        ("2", Literal[1, 2], 2),
        ("0.5, 1", tuple[float, ...], (0.5, 1.0)),
        ([1, 2], tuple[int, ...], (1, 2)),
        (4, tuple[int, ...], (4,)),
        ("-2,2", tuple[float, float], (-2.0, 2.0)),
        ("none", tuple[float, ...], ()),
        ("None", tuple[float, ...], ()),
        ("", tuple[float, ...], ()),
        ([], tuple[float, ...], ()),
        ("none", tuple[int, ...] | None, None),
        ("16,32", tuple[int, ...] | None, (16, 32)),
        ({"a": "b"}, dict[str, str], {"a": "b"}),
        ({"a": [1]}, dict[str, Any], {"a": [1]}),
        ("a/b", Path, Path("a/b")),
    ],
)
def test_reads(value: Any, hint: Any, expected: Any) -> None:
    found = parse(value, hint, "--x")
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(
    ("value", "hint", "words"),
    [
        ("3.5", int, "a whole number"),
        (True, int, "a whole number"),
        ("inf", int, "a whole number"),
        ("nan", int, "a whole number"),
        ("many", float, "a number"),
        ("maybe", bool, "true or false"),
        (1, bool, "true or false"),
        (12, str, "quotes"),
        (None, str, "text"),
        ("skop", Literal["stop", "skip"], "Did you mean `stop`"),
        (True, Literal[1, 2], "one of 1, 2"),
        ("1", tuple[float, float], "expected 2"),
        ("a,b", tuple[float, ...], "a number"),
        ("none,0.5", tuple[float, ...], "a number"),
        (None, tuple[float, ...], "a number"),
        ("none", tuple[float, float], "has 0 values"),
        ("text", dict[str, str], "names with values"),
        ({"a": 1}, dict[str, str], "--x a"),
        ("x", int | None, "a whole number"),
        ([1], str, "a list"),
    ],
)
def test_refuses_and_names_the_place(value: Any, hint: Any, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(value, hint, "--x")
    assert words in str(caught.value)
    assert "--x" in str(caught.value)


@given(st.integers() | st.floats(allow_nan=False, allow_infinity=False))
def test_text_of_a_number_reads_back(number: float) -> None:
    kind = type(number)
    assert parse(repr(number), kind, "--x") == number


def test_items_are_text_or_yaml_as_the_field_wants() -> None:
    assert parse_items(["prompt=question", "n=1", "e=a=b"], "--column", dict[str, str]) == {
        "prompt": "question", "n": "1", "e": "a=b",
    }  # fmt: skip
    assert parse_items(["think=false", "n=1", "s=on my way", "bad={"], "--kw", dict[str, Any]) == {
        "think": False, "n": 1, "s": "on my way", "bad": "{",
    }  # fmt: skip
    for item in ("prompt", "=question", " =x"):
        with pytest.raises(ConfigError, match="NAME=VALUE"):
            parse_items([item], "--column", dict[str, str])


def test_show() -> None:
    assert show((0.5, 1.0)) == "0.5,1"
    assert show(9e-05) == "9e-05"
    assert len(show("x" * 200)) == 58
