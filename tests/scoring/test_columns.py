from __future__ import annotations

import json
from typing import Any

import pytest

from ebrm.data import RowProblem
from ebrm.errors import ConfigError, DataError
from ebrm.scoring.columns import find_shape

USER = {"role": "user", "content": "Hi"}
REPLY = {"role": "assistant", "content": "Yes"}


def sides(row: dict[str, Any], **mapping: str) -> list[tuple[list[dict[str, str]], str]]:
    shape = find_shape(list(row), mapping, "f")
    return [(list(side.prompt), side.response) for side in shape.sides(row, "f:1")]


@pytest.mark.parametrize(
    ("row", "mapping"),
    [
        ({"prompt": "Hi", "response": "Yes"}, {}),
        ({"question": "Hi", "answer": "Yes", "response": 3}, {"prompt": "question", "response": "answer"}),
        ({"prompt": [USER], "response": "Yes"}, {}),
        ({"prompt": [USER], "response": [REPLY]}, {}),
        ({"prompt": json.dumps([USER]), "response": "Yes"}, {}),
        ({"messages": [USER, REPLY]}, {}),
        ({"messages": json.dumps([USER, REPLY])}, {}),
        ({"turns": [USER, REPLY], "prompt": "other"}, {"messages": "turns"}),
    ],
)
def test_one_response(row, mapping):
    assert sides(row, **mapping) == [([USER], "Yes")]


@pytest.mark.parametrize("response", ["-", "--", " Yes ", "ü\x00"])
def test_a_response_is_scored_as_it_stands(response):
    assert sides({"prompt": "Hi", "response": response}) == [([USER], response)]


def test_system_prompts_and_turns_are_kept():
    system = {"role": "system", "content": "Be kind"}
    turns = [system, USER, REPLY, USER]
    assert sides({"messages": [*turns, REPLY]}) == [(turns, "Yes")]
    assert sides({"prompt": turns, "response": "No"}) == [(turns, "No")]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Hi", "chosen": "Yes", "rejected": "No"},
        {"chosen": [USER, REPLY], "rejected": [USER, {**REPLY, "content": "No"}]},
        {"prompt": "Hi", "a": "No", "b": "Yes", "label": "B>A"},
        {"prompt": "Hi", "chosen": "Yes", "rejected": "No", "margin": "odd", "category": ["odd"]},
    ],
)
def test_pairs(row):
    assert sides(row) == [([USER], "Yes"), ([USER], "No")]
    assert find_shape(list(row), {}, "f").prefixes == ("chosen_", "rejected_")


def test_a_response_beside_a_pair_is_what_is_scored():
    assert sides({"prompt": "Hi", "response": "Yes", "chosen": "a", "rejected": "b"}) == [([USER], "Yes")]


@pytest.mark.parametrize(
    ("row", "field", "kind"),
    [
        ({"prompt": "Hi", "response": ""}, "response", "empty"),
        ({"prompt": "Hi", "response": " \n"}, "response", "empty"),
        ({"prompt": "Hi", "response": None}, "response", "missing"),
        ({"prompt": "Hi", "response": 4}, "response", "not a string"),
        ({"prompt": "Hi", "response": "\ud83d"}, "response", "lone surrogate"),
        ({"prompt": "", "response": "Yes"}, "prompt", "empty"),
        ({"prompt": None, "response": "Yes"}, "prompt", "missing"),
        ({"prompt": [], "response": "Yes"}, "prompt", "empty"),
        ({"prompt": [REPLY], "response": "Yes"}, "prompt", "no user turn"),
        ({"prompt": "Hi", "response": [USER]}, "response", "not an assistant message"),
        ({"messages": [USER]}, "messages", "does not end in an assistant"),
        ({"messages": [REPLY]}, "messages", "no user turn"),
        ({"messages": "Hi"}, "messages", "not a list"),
        ({"chosen": "", "rejected": "No", "prompt": "Hi"}, "chosen", "empty"),
        ({"chosen": "a", "rejected": "a", "prompt": "Hi"}, "rejected", "equal"),
    ],
)
def test_rows_that_cannot_be_scored(row, field, kind):
    with pytest.raises(RowProblem) as caught:
        sides(row)
    assert caught.value.field.startswith(field)
    assert kind in caught.value.kind


def test_a_row_may_lack_the_column():
    shape = find_shape(["prompt", "response"], {}, "f")
    with pytest.raises(RowProblem, match="missing"):
        shape.sides({"prompt": "Hi"}, "f:1")


def test_columns_that_hold_nothing_to_score():
    with pytest.raises(DataError, match=r"columns id, text.*`columns={.*\"response\": \"answer\"}`"):
        find_shape(["id", "text"], {}, "f")
    with pytest.raises(DataError, match=r"no column 'anwser'. Did you mean 'answer'"):
        find_shape(["prompt", "answer"], {"response": "anwser"}, "f")
    with pytest.raises(ConfigError, match="'reply' is not one of our names"):
        find_shape(["prompt", "answer"], {"reply": "answer"}, "f")
