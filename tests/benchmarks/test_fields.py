from __future__ import annotations

import json
import math
from typing import Any

import pytest

from ebrm.benchmarks import Item, fields
from ebrm.benchmarks.read import Row
from ebrm.data import RowProblem

ASK = {"role": "user", "content": "why?"}


def row(**values: Any) -> Row:
    return Row("f.jsonl:3", "f.jsonl", values)


def problem(call: Any, *arguments: Any, **named: Any) -> tuple[str, str]:
    with pytest.raises(RowProblem) as caught:
        call(*arguments, **named)
    return caught.value.kind, caught.value.field


def test_value_steps_into_objects() -> None:
    assert fields.value(row(a={"b": {"c": 0}}), "a.b.c") == 0
    assert problem(fields.value, row(a={"b": 1}), "a.c") == ("no such column", "a.c")
    assert problem(fields.value, row(a="text"), "a.c") == ("no such column", "a.c")
    assert problem(fields.value, row(a=1), "b") == ("no such column", "b")
    assert problem(fields.value, row(a=None), "a") == ("missing", "a")
    assert problem(fields.value, row(a=None), "a.b") == ("no such column", "a.b")


def test_text_may_be_empty_but_must_be_a_string_with_a_form_in_utf8() -> None:
    assert fields.text(row(a=""), "a") == "" and fields.text(row(a="é\x00"), "a") == "é\x00"
    assert problem(fields.text, row(a=3), "a") == ("not a string", "a")
    assert problem(fields.text, row(a="\ud83d"), "a") == ("lone surrogate", "a")


def test_texts() -> None:
    assert fields.texts(row(a=["x", ""]), "a") == ("x", "")
    assert fields.texts(row(a='["x", "y"]'), "a") == ("x", "y")
    assert fields.texts(row(a=[{"answer": "x", "llm": 1}]), "a", key="answer") == ("x",)
    assert problem(fields.texts, row(a=[]), "a") == ("empty list", "a")
    assert problem(fields.texts, row(a=["x"]), "a", least=2) == ("a list of 1, expected at least 2", "a")
    assert problem(fields.texts, row(a="x, y"), "a") == ("not a list", "a")
    assert problem(fields.texts, row(a='"x"'), "a") == ("not a list", "a")
    assert problem(fields.texts, row(a={"x": 1}), "a") == ("not a list", "a")
    assert problem(fields.texts, row(a=["x", None]), "a") == ("missing", "a[1]")
    assert problem(fields.texts, row(a=["x", 2]), "a") == ("not a string", "a[1]")
    assert problem(fields.texts, row(a=[{"answer": "x"}, {"text": "y"}]), "a", key="answer")[0] == "no such column"
    assert problem(fields.texts, row(a=[{"answer": None}]), "a", key="answer") == ("missing", "a[0].answer")
    assert problem(fields.texts, row(b=1), "a") == ("no such column", "a")


def test_numbers() -> None:
    assert fields.numbers(row(a=[1, 0.5]), "a") == (1.0, 0.5)
    assert fields.numbers(row(a="[1, 2]"), "a") == (1.0, 2.0)
    assert problem(fields.numbers, row(a=[1, "2"]), "a") == ("not a number", "a[1]")
    assert problem(fields.numbers, row(a=[True]), "a") == ("not a number", "a[0]")
    assert problem(fields.numbers, row(a=[None]), "a") == ("not a number", "a[0]")
    assert problem(fields.numbers, row(a=[math.nan]), "a") == ("not a finite number", "a[0]")
    assert problem(fields.numbers, row(a=[1, -math.inf]), "a") == ("not a finite number", "a[1]")
    assert problem(fields.numbers, row(a=[1]), "a", least=2) == ("a list of 1, expected at least 2", "a")


def test_name() -> None:
    assert fields.name(row(a="x"), "a") == "x" and fields.name(row(a=12), "a") == "12"
    assert fields.name(row(a=None), "a", default="d") == fields.name(row(a=""), "a", default="d") == "d"
    assert fields.name(row(b=1), "a", default="d") == "d" and fields.name(row(a=0), "a", default="d") == "0"
    assert problem(fields.name, row(b=1), "a") == ("no such column", "a")
    assert problem(fields.name, row(a=None), "a") == ("missing", "a")
    assert problem(fields.name, row(a="  "), "a") == ("empty", "a")
    assert problem(fields.name, row(a=True), "a") == ("not a string", "a")
    assert problem(fields.name, row(a=["x"]), "a", default="") == ("not a string", "a")


def test_prompts_of_every_form_are_the_same() -> None:
    expected = (ASK,)
    assert fields.prompt(row(prompt="why?")) == expected
    assert fields.prompt(row(prompt=[ASK])) == expected
    assert fields.prompt(row(prompt=json.dumps([ASK]))) == expected
    assert fields.prompt(row(prompt=' [\n {"content": "why?", "role": "user"}]')) == expected
    assert fields.prompt(row(q=[ASK | {"language": "English"}]), "q") == expected


def test_turns_are_kept_as_they_are() -> None:
    turns = [
        {"role": "system", "content": ""},
        ASK,
        {"role": "assistant", "content": "so"},
        {"role": "user", "content": ""},
    ]
    assert list(fields.prompt(row(prompt=turns))) == turns


def test_equal_strings_give_one_object() -> None:
    text = json.dumps([ASK])
    assert fields.prompt(row(prompt=text)) is fields.prompt(row(prompt="".join(text)))


def test_text_that_only_resembles_messages_is_a_turn() -> None:
    for text in ("[1, 2] what is this?", '["role"]', "[]", '{"role": "user", "content": "x"}'):
        assert fields.prompt(row(prompt=text)) == ({"role": "user", "content": text},)


def test_prompts_that_cannot_be_used() -> None:
    def kind(value: Any) -> tuple[str, str]:
        return problem(fields.prompt, row(prompt=value))

    assert kind("") == kind(" \n") == kind([]) == kind([ASK | {"content": " "}]) == ("empty", "prompt")
    assert kind('[{"role": "user", "content": "cut o') == ("messages that are not JSON", "prompt")
    assert kind(3) == ("not a string or a list of messages", "prompt")
    assert kind(["hello"]) == ("not a message with role and content", "prompt[0]")
    assert kind([ASK, {"role": "user"}]) == ("not a message with role and content", "prompt[1]")
    assert kind([{"role": "human", "content": "x"}]) == ("unknown role", "prompt[0].role")
    assert kind([ASK, {"role": "user", "content": None}]) == ("missing", "prompt[1].content")
    assert kind([ASK, {"role": "user", "content": 4}]) == ("not a string", "prompt[1].content")
    assert kind([{"role": "assistant", "content": "x"}]) == ("empty", "prompt")
    assert kind([ASK, {"role": "assistant", "content": "x"}]) == ("prompt does not end in a user turn", "prompt")
    assert kind(None) == ("missing", "prompt")
    assert problem(fields.prompt, row(q="x")) == ("no such column", "prompt")


def test_pair() -> None:
    expected = Item("7", (ASK,), ("good", "bad"), (1.0, 0.0), "g", "f.jsonl:3")
    assert fields.pair(row(prompt="why?", chosen="good", rejected="bad"), "7", "g") == expected
    assert fields.pair(row(q="why?", x="bad", y="good"), "7", "g", ("q", "y", "x")) == expected
