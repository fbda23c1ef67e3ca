from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from ebrm.data import Reader, RowProblem, find_layout
from ebrm.data.formats import prompt_end
from ebrm.data.schema import Preference


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def reply(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def take(row: dict[str, Any], label_map: dict[str, str] | None = None, **mapping: str) -> tuple[Preference, str]:
    layout = find_layout(row, mapping, label_map or {})
    assert layout is not None
    (found,) = Reader(layout, mapping).pairs(row, "f:1")
    if isinstance(found, RowProblem):
        raise found
    return found.preference, found.shape


def problem(row: dict[str, Any], **mapping: str) -> tuple[str, str]:
    with pytest.raises(RowProblem) as caught:
        take(row, **mapping)
    return caught.value.kind, caught.value.field


TURNS = [user("Hi"), reply("Hello"), user("2+2?")]
PLAIN = {"prompt": "2+2?", "chosen": "4", "rejected": "5"}


TALKS = {"chosen": [*TURNS, reply("4")], "rejected": [*TURNS, reply("5")]}
TRANSCRIPT = "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: 2+2?\n\nAssistant:"
REPEATED = "implicit prompt, conversational (repeated in the prompt column)"
AS_TRANSCRIPT = {"chosen": f"{TRANSCRIPT} 4", "rejected": f"{TRANSCRIPT} 5"}
AS_JSON = {side: json.dumps(talk) for side, talk in TALKS.items()}
LABELED = {"prompt": "2+2?", "a": "5", "b": "4", "label": "B>A"}


@pytest.mark.parametrize(
    ("row", "prompt", "shape"),
    [
        (PLAIN, [user("2+2?")], "explicit prompt, standard"),
        (PLAIN | {"prompt": TURNS}, TURNS, "explicit prompt, conversational"),
        (PLAIN | {"prompt": TURNS, "chosen": [reply("4")]}, TURNS, "explicit prompt, conversational"),
        (PLAIN | {"prompt": json.dumps(TURNS)}, TURNS, "explicit prompt, conversational (messages written as text)"),
        (
            PLAIN | {"prompt": TRANSCRIPT, "chosen": " 4"},
            TURNS, "explicit prompt, standard (Human/Assistant transcripts)",
        ),
        (TALKS, TURNS, "implicit prompt, conversational"),
        (AS_JSON, TURNS, "implicit prompt, conversational (messages written as text)"),
        (AS_TRANSCRIPT, TURNS, "implicit prompt, standard (Human/Assistant transcripts)"),
        (
            {"chosen": "Q: 2+2?\nA:\n4", "rejected": "Q: 2+2?\nA:\n5"},
            [user("Q: 2+2?\nA:\n")], "implicit prompt, standard (longest common beginning)",
        ),
        (TALKS | {"prompt": "2+2?"}, TURNS, REPEATED),
        (TALKS | {"prompt": None}, TURNS, REPEATED),
        (TALKS | {"prompt": TURNS}, TURNS, REPEATED),
        (LABELED, [user("2+2?")], "explicit prompt, standard"),
    ],
)  # fmt: skip
def test_every_shape(row, prompt, shape):
    preference, found = take(row)
    assert (list(preference.prompt), preference.chosen, preference.rejected) == (prompt, "4", "5")
    assert found == shape


@pytest.mark.parametrize(
    ("label", "chosen"),
    [
        ("A>B", "x"), ("B>A", "y"), ("A", "x"), ("b", "y"), ("[[A>>B]]", "x"), ("B > A", "y"), ("model_a", "x"),
        ("model_b", "y"), ("A<B", "y"), ("response_A", "x"), ("Response B", "y"), ("assistant_b", "y"),
    ],
)  # fmt: skip
def test_labels(label, chosen):
    row = {"question": "q", "response_A": "x", "response_B": "y", "label": label}
    mapping = {"prompt": "question", "a": "response_A", "b": "response_B", "label": "label"}
    preference, _ = take(row, **mapping)
    assert {preference.chosen, preference.rejected} == {"x", "y"}
    assert preference.chosen == chosen


@pytest.mark.parametrize(
    ("label", "kind"),
    [
        *((label, "label not understood") for label in ("C", 0, 1, "0", "1", 2, -1, True, "chosen")),
        *((label, "missing") for label in (None, "", float("nan"))),
        ([1], "label not understood"),
    ],
)
def test_labels_that_say_nothing(label, kind):
    assert problem({"prompt": "q", "a": "x", "b": "y", "label": label}) == (kind, "label")


@pytest.mark.parametrize(
    ("change", "kind", "field"),
    [
        ({"chosen": None}, "missing", "chosen"),
        ({"rejected": ""}, "empty", "rejected"),
        ({"rejected": " \n"}, "empty", "rejected"),
        ({"rejected": "4"}, "equal sides", "rejected"),
        ({"chosen": 4}, "not a string", "chosen"),
        ({"prompt": None}, "missing", "prompt"),
        ({"prompt": ""}, "empty", "prompt"),
        ({"prompt": 4}, "not a string", "prompt"),
        ({"prompt": []}, "empty", "prompt"),
        ({"prompt": [{"role": "system", "content": "s"}]}, "no user turn", "prompt"),
        ({"prompt": TURNS[:2]}, "prompt does not end in a user turn", "prompt"),
        ({"prompt": "[" + json.dumps(reply("x")) + "]"}, "no user turn", "prompt"),
        ({"prompt": "\ud83d"}, "lone surrogate", "prompt"),
        ({"chosen": "\udc00"}, "lone surrogate", "chosen"),
        ({"prompt": ["hello"]}, "not a message with role and content", "prompt[0]"),
        ({"prompt": [{"role": "user"}]}, "not a message with role and content", "prompt[0]"),
        ({"prompt": [{"role": "alien", "content": "x"}]}, "unknown role", "prompt[0].role"),
        ({"prompt": [user("x"), reply(" ")]}, "empty", "prompt[1].content"),
        ({"prompt": [{"role": "user", "content": [{"type": "text"}]}]}, "not a string", "prompt[0].content[0].text"),
        ({"prompt": [reply("x") | {"tool_calls": [{}]}]}, "tool call without a name", "prompt[0].tool_calls[0]"),
        ({"chosen": [user("x")]}, "reply is not an assistant message", "chosen"),
        ({"chosen": [reply("x"), reply("y")]}, "more than one reply message", "chosen"),
    ],
)
def test_bad_rows_with_an_explicit_prompt(change, kind, field):
    assert problem(PLAIN | change) == (kind, field)


@pytest.mark.parametrize(
    ("chosen", "rejected", "kind", "field"),
    [
        ([user("a"), reply("x")], [user("b"), reply("y")], "prompts differ between the sides", "rejected[0]"),
        ([*TURNS, reply("x")], [user("Hi"), reply("y")], "prompts differ between the sides", "rejected[1]"),
        ([user("a"), reply("x")], [user("a"), reply("x")], "equal sides", "rejected"),
        ([user("a"), reply("x")], [user("a"), user("y")], "reply is not an assistant message", "rejected[1].role"),
        ([reply("x")], [reply("y")], "no user turn", "chosen"),
        ([user("a"), reply("")], [user("a"), reply("y")], "empty", "chosen[1].content"),
        ([user("a"), reply("x")], "y", "the sides are not of one type", "rejected"),
        (3, "y", "not a string", "chosen"),
        ("one", "two", "no common prompt", "chosen"),
        ("same text", "same text", "equal sides", "rejected"),
        ("Human: a\n\nAssistant: x", "Human: b\n\nAssistant: y", "prompts differ between the sides", "rejected[0]"),
        ("\n\nHuman: a\n\nAssistant: x", "something else", "prompts differ between the sides", "rejected"),
        ("\n\nHuman: a\n\nAssistant: x", "\n\nHuman: a\n\nAssistant:", "empty", "rejected[1].content"),
    ],
)  # fmt: skip
def test_bad_rows_with_an_implicit_prompt(chosen, rejected, kind, field):
    assert problem({"chosen": chosen, "rejected": rejected}) == (kind, field)


def test_a_prompt_column_must_agree_with_the_conversations():
    assert problem(TALKS | {"prompt": "3+3?"}) == ("prompt column and conversation disagree", "prompt")


def test_a_field_is_named_as_the_data_name_it():
    row = {"q": "2+2?", "best": "", "worst": "5"}
    assert problem(row, prompt="q", chosen="best", rejected="worst") == ("empty", "best")


def test_strength_source_category_and_split_are_kept():
    kept = {"strength": 0.5, "source": "s", "category": "c", "split": "test"}
    preference, _ = take(PLAIN | kept | {"margin": 9})
    assert {name: getattr(preference, name) for name in kept} == kept
    assert take(PLAIN | {"margin": 2})[0].strength == 2.0
    assert take(PLAIN | {"score": 3}, strength="score")[0].strength == 3.0


def test_a_json_looking_prompt_that_is_no_message_list_is_text():
    for text in ('["role"]', '[{"role": "user"}]', '[{"role": "user", "content": ', '{"role": "user"}', "[1]"):
        preference, shape = take(PLAIN | {"prompt": text})
        assert (preference.prompt, shape) == ((user(text),), "explicit prompt, standard")


def test_messages_as_text_are_read_in_sides_as_in_prompts():
    for write in (json.dumps, repr):
        row = PLAIN | {"chosen": write([reply("4")]), "rejected": write([reply("5")])}
        preference, shape = take(row)
        assert (preference.prompt, preference.chosen, preference.rejected) == ((user("2+2?"),), "4", "5")
        assert shape == "explicit prompt, standard (messages written as text)"
        row = {"prompt": "2+2?", "chosen": write(TALKS["chosen"]), "rejected": write(TALKS["rejected"])}
        preference, shape = take(row)
        assert (list(preference.prompt), preference.chosen, preference.rejected) == (TURNS, "4", "5")
        assert shape == f"{REPEATED} (messages written as text)"


def test_transcript_turns_lose_one_space_and_nothing_else():
    row = {
        "chosen": "\n\nHuman:  a \n\nHuman: b\n\nAssistant:  x\n",
        "rejected": "\n\nHuman:  a \n\nHuman: b\n\nAssistant: y\n\nz",
    }
    preference, _ = take(row)
    assert list(preference.prompt) == [user(" a "), user("b")]
    assert (preference.chosen, preference.rejected) == (" x\n", "y\n\nz")


@pytest.mark.parametrize(
    ("chosen", "rejected", "prompt"),
    [
        ("Why?\nThe sky", "Why?\nThe sea", "Why?\n"),  # not "Why?\nThe s"
        ("Q: 2+2? A: 42", "Q: 2+2? A: 43", "Q: 2+2? A: "),  # no line break: the last white space
        ("Q\nYes", "Q\nYes\nand no", "Q\n"),  # one side begins the other: something must be left of both
        ("Q\n\nx", "Q\n\ny", "Q\n\n"),
        ("\n x", "\n y", None),  # a blank prompt is none
        ("Q\n", "Q\nx", None),
        ("abc", "abd", None),
    ],
)
def test_where_a_common_beginning_is_cut(chosen, rejected, prompt):
    end = prompt_end(chosen, rejected)
    assert (chosen[:end] if end is not None else None) == prompt


texts = st.text(st.sampled_from("ab \n👋é\x00"), max_size=8)


@given(texts, texts, texts)
def test_the_cut_loses_nothing_and_does_not_care_about_order(prompt, x, y):
    assume(x != y)
    end = prompt_end(prompt + x, prompt + y)
    assert end == prompt_end(prompt + y, prompt + x)
    if end is not None:
        assert (prompt + x)[:end] == (prompt + y)[:end]
        assert (prompt + x)[:end].strip() and (prompt + x)[end:].strip() and (prompt + y)[end:].strip()
        assert (prompt + x)[end - 1].isspace()


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), min_size=3, max_size=3))
def test_texts_pass_unchanged(said):
    assume(all(text.strip() for text in said) and said[1] != said[2])
    assume(not said[0].startswith(("[", "\n\nHuman:", "Human:")))
    preference, _ = take(dict(zip(("prompt", "chosen", "rejected"), said, strict=True)))
    assert [preference.prompt[0]["content"], preference.chosen, preference.rejected] == said


def test_a_mapping_to_labelled_columns_wins_over_other_columns():
    row = PLAIN | {"x": "1", "y": "2", "label": "B"}
    assert take(row, a="x", b="y")[0].chosen == "2"
    assert take(row)[0].chosen == "4"
