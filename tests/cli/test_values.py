from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ebrm.cli.values import read, read_items, show
from ebrm.errors import ConfigError


@pytest.mark.parametrize(
    ("value", "hint", "expected"),
    [
        ("3", int, 3), ("1e4", int, 10000), ("-7", int, -7), (3.0, int, 3),
        ("9007199254740993", int, 9007199254740993),  # beyond float64: must not pass through one
        ("1e-4", float, 1e-4),  # PyYAML reads this as text
        (2, float, 2.0),
        ("yes", bool, True), ("off", bool, False), (False, bool, False),
        ("x", str, "x"), ("none", str, "none"), ("a/b", Path, Path("a/b")),
        ("none", str | None, None), ("null", int | None, None), (None, int | None, None),
        ("12", int | None, 12), ("12", str | None, "12"),
        ("b", Literal["a", "b"], "b"), ("2", Literal[1, 2], 2), ("none", Literal["none", "b"], "none"),
        ("0.5, 1", tuple[float, ...], (0.5, 1.0)), ([1, 2], tuple[int, ...], (1, 2)), (4, tuple[int, ...], (4,)),
        (["a,b"], tuple[str, ...], ("a,b",)),  # a list's items are whole
        ("-2,2", tuple[float, float], (-2.0, 2.0)),
        *[(none, tuple[float, ...], ()) for none in ("none", "None", "", [])],
        ("none", tuple[int, ...] | None, None), ("16,32", tuple[int, ...] | None, (16, 32)),
        ({"a": "b"}, dict[str, str], {"a": "b"}), ({"a": [1]}, dict[str, Any], {"a": [1]}),
    ],
)  # fmt: skip
def test_reads(value: Any, hint: Any, expected: Any) -> None:
    found = read(value, hint, "--x")
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(
    ("value", "hint", "words"),
    [
        *[(wrong, int, "a whole number") for wrong in ("3.5", True, "inf", "nan")],
        ("x", int | None, "a whole number"), ("many", float, "a number"),
        ("maybe", bool, "true or false"), (1, bool, "true or false"),
        (12, str, "quotes"), (None, str, "text"), ([1], str, "a list"),
        ("skop", Literal["stop", "skip"], "Did you mean `stop`"), (True, Literal[1, 2], "one of 1, 2"),
        ("1", tuple[float, float], "expected 2"), ("none", tuple[float, float], "has 0 values"),
        *[(wrong, tuple[float, ...], "a number") for wrong in ("a,b", "none,0.5", None)],
        ("text", dict[str, str], "names with values"), ({"a": 1}, dict[str, str], "--x a"),
    ],
)  # fmt: skip
def test_refuses_and_names_the_place(value: Any, hint: Any, words: str) -> None:
    with pytest.raises(ConfigError, match="^--x") as caught:
        read(value, hint, "--x")
    assert words in str(caught.value)


@given(st.integers() | st.floats(allow_nan=False, allow_infinity=False))
def test_text_of_a_number_reads_back(number: float) -> None:
    assert read(repr(number), type(number), "--x") == number


def test_items_are_text_or_yaml_as_the_field_wants() -> None:
    text = read_items(["prompt=question", "n=1", "e=a=b"], dict[str, str], "--column")
    assert text == {"prompt": "question", "n": "1", "e": "a=b"}
    values = read_items(["think=false", "n=1", "s=on my way", "bad={"], dict[str, Any], "--kw")
    assert values == {"think": False, "n": 1, "s": "on my way", "bad": "{"}
    for item in ("prompt", "=question", " =x"):
        with pytest.raises(ConfigError, match="NAME=VALUE"):
            read_items([item], dict[str, str], "--column")
    with pytest.raises(ConfigError, match=r"--label-map is `1`; expected NAME=VALUE, as in --label-map 1=a\."):
        read_items(["1"], dict[str, str], "--label-map")


def test_show() -> None:
    assert (show((0.5, 1.0)), show(9e-05)) == ("0.5,1", "9e-05")
    assert len(show("x" * 200)) == 58
