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
        ({"prompt": "Hi", "responses": None}, "responses", "missing"),
        ({"prompt": "Hi", "responses": "Yes"}, "responses", "not a list"),
        ({"prompt": "Hi", "responses": []}, "responses", "empty list"),
        ({"prompt": "", "responses": ["Yes"]}, "prompt", "empty"),
        ({"chosen": "a", "rejected": "a", "prompt": "Hi"}, "rejected", "equal"),
    ],
)
def test_rows_that_cannot_be_scored(row, field, kind):
    with pytest.raises(RowProblem) as caught:
        sides(row)
    assert caught.value.field.startswith(field)
    assert kind in caught.value.kind


EMPTY = {"role": "assistant", "content": ""}


@pytest.mark.parametrize(
    ("row", "found"),
    [
        ({"prompt": "Hi", "response": ""}, [""]),
        ({"prompt": "Hi", "response": " \n"}, [" \n"]),
        ({"prompt": [USER], "response": [EMPTY]}, [""]),
        ({"messages": [USER, EMPTY]}, [""]),
        ({"messages": json.dumps([USER, EMPTY])}, [""]),
        ({"prompt": "Hi", "responses": ["", "Yes", " "]}, ["", "Yes", " "]),
        ({"prompt": "Hi", "chosen": "", "rejected": "No"}, ["", "No"]),
        ({"prompt": "Hi", "a": "No", "b": "", "label": "B>A"}, ["", "No"]),
        ({"chosen": [USER, REPLY], "rejected": [USER, EMPTY]}, ["Yes", ""]),
        ({"chosen": json.dumps([USER, EMPTY]), "rejected": json.dumps([USER, REPLY])}, ["", "Yes"]),
        ({"chosen": "\n\nHuman: Hi\n\nAssistant:", "rejected": "\n\nHuman: Hi\n\nAssistant: No"}, ["", "No"]),
    ],
)
def test_an_empty_reply_is_a_text(row, found):
    assert [response for _, response in sides(row)] == found
    assert [prompt for prompt, _ in sides(row)] == [[USER]] * len(found)


@pytest.mark.parametrize(
    "responses",
    [
        ["Yes", "No"],
        json.dumps(["Yes", "No"]),
        ("Yes", "No"),
        [[REPLY], [{**REPLY, "content": "No"}]],
        [REPLY, {**REPLY, "content": "No"}],
    ],
)
def test_a_list_of_responses_to_one_prompt(responses):
    row = {"question": "Hi", "answers": responses}
    assert sides(row, prompt="question", responses="answers") == [([USER], "Yes"), ([USER], "No")]


def test_a_response_of_a_list_that_cannot_be_scored_leaves_the_others():
    shape = find_shape(["prompt", "responses"], {}, "f")
    first, second, third = shape.sides({"prompt": "Hi", "responses": ["Yes", None, 4]}, "f:1")
    assert first.response == "Yes"
    assert (second.field, second.kind) == ("responses[1]", "missing")
    assert (third.field, third.kind) == ("responses[2]", "not a string")


def test_a_row_may_lack_the_column():
    shape = find_shape(["prompt", "response"], {}, "f")
    with pytest.raises(RowProblem, match="missing"):
        shape.sides({"prompt": "Hi"}, "f:1")


def test_a_row_that_goes_with_an_image_is_refused_in_every_shape():
    turns = [{"role": "user", "content": "<image> What?"}, {"role": "assistant", "content": "A cat."}]
    for row in (
        {"prompt": "<image> What?", "response": "A cat."},
        {"prompt": "<image> What?", "responses": ["A cat.", "A dog."]},
        {"messages": turns},
        {"prompt": "<image> What?", "chosen": "A cat.", "rejected": "A dog."},
    ):
        shape = find_shape([*row, "images"], {}, "f")
        assert shape.sides({**row, "images": []}, "f:1")
        with pytest.raises(RowProblem, match="images: this reward model reads text"):
            shape.sides({**row, "images": ["cat.png"]}, "f:1")


def test_columns_that_hold_nothing_to_score():
    with pytest.raises(DataError, match=r"columns id, text.*`columns={.*\"response\": \"answer\"}`"):
        find_shape(["id", "text"], {}, "f")
    with pytest.raises(DataError, match=r"no column 'anwser'. Did you mean 'answer'"):
        find_shape(["prompt", "answer"], {"response": "anwser"}, "f")
    with pytest.raises(ConfigError, match="'reply' is not one of our names"):
        find_shape(["prompt", "answer"], {"reply": "answer"}, "f")
