from __future__ import annotations

import ast
import json
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ebrm.data import (
    RowProblem,
    as_reply,
    check_messages,
    check_tools,
    conversation,
    message_words,
    messages,
    messages_in,
)
from ebrm.data.messages import ROLE_NAMES

HI = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "Hello!"}]
CALL = {"type": "function", "function": {"name": "get_weather", "arguments": {"city": "Oslo"}}}


def read(value: Any, unread: Counter[str] | None = None) -> list[dict[str, Any]]:
    return check_messages(value, "prompt", unread)


def problem(value: Any) -> RowProblem:
    with pytest.raises(RowProblem) as caught:
        read(value)
    return caught.value


class TestForms:
    @pytest.mark.parametrize(
        "form",
        [
            HI, tuple(HI), np.array(HI, dtype=object), json.dumps(HI), json.dumps(HI, indent=2), repr(HI),
            f"  {json.dumps(HI)}\n", str(np.array(HI, dtype=object)), repr(np.array(HI, dtype=object)),
            [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "Hello!"}],
            [{"content": "hi", "role": "User"}, {"content": "Hello!", "role": "model"}],
            {"role": ["user", "assistant"], "content": ["hi", "Hello!"]},
            {"from": np.array(["human", "gpt"]), "value": np.array(["hi", "Hello!"])},
            [{"role": "user", "content": [{"type": "text", "text": "h"}, {"type": "text", "text": "i"}]}, HI[1]],
            [{"role": "user", "content": np.array([{"type": "text", "text": "hi", "image": None}])}, HI[1]],
            [{"role": "user", "content": ["h", {"type": "input_text", "text": "i"}]}, HI[1]],
            [{"role": "user", "content": {"type": "text", "text": "hi"}}, {**HI[1], "tool_calls": [], "name": None}],
        ],
    )  # fmt: skip
    def test_all_read_as_role_and_content(self, form):
        assert read(form) == HI

    @pytest.mark.parametrize("form", [HI[0], json.dumps(HI[0]), repr(HI[0]), {"from": "human", "value": "hi"}])
    def test_one_message_is_a_list_of_one(self, form):
        assert read(form) == HI[:1]

    @given(st.lists(st.tuples(st.sampled_from(["user", "assistant"]), st.text(min_size=1)), min_size=1, max_size=4))
    def test_reprs_of_lists_and_arrays_read_back(self, turns):
        turns = [(role, text) for role, text in turns if text.strip() and text.isprintable()]
        messages = [{"role": role, "content": text + "} {' \" array(["} for role, text in turns]
        if messages:
            array = np.array(messages, dtype=object)
            for form in (repr(messages), json.dumps(messages), str(array), repr(array)):
                assert read(form) == messages

    @pytest.mark.parametrize(
        "text",
        [
            "[1] is the first reference.", '[{"role": "user", "content": "hi"}] - what does this JSON mean? [1]',
            '{"role": "admin", "content": "x"}', '[{"name": "Ann", "role": "chief"}]', "[]", "{}", "[user]: hi",
            '{"answer": 4}', json.dumps(json.dumps(HI)), '{"role": "user"}', "[{'role'}]",
        ],
    )  # fmt: skip
    def test_ordinary_text_stays_text(self, text):
        assert messages_in(text) is None

    def test_a_list_that_cannot_be_parsed_is_refused_and_not_taken_for_text(self):
        broken = "[{'role': 'user', 'content': 'it's broken'}]"
        with pytest.raises(SyntaxError):
            ast.literal_eval(broken)
        assert problem(broken).kind == "messages that are neither JSON nor a Python list"


class TestRoles:
    def test_every_word_gives_a_role_that_templates_know(self):
        for word in set(ROLE_NAMES) - {"function_call", "tool_call"}:
            assert read([{"from": word.upper(), "value": "x"}])[0]["role"] == ROLE_NAMES[word]

    def test_an_unknown_one_is_named(self):
        assert (problem([{"role": "narrator", "content": "x"}]).kind) == "unknown role"

    @pytest.mark.parametrize("word", ["function_call", "tool_call"])
    def test_a_turn_that_is_a_call_becomes_a_tool_call(self, word):
        turn = {"from": word, "value": json.dumps({"name": "get_weather", "arguments": {"city": "Oslo"}})}
        assert read([turn]) == [{"role": "assistant", "content": "", "tool_calls": [CALL]}]
        assert problem([{"from": word, "value": "get_weather"}]).kind == "tool call that is not JSON"


class TestContents:
    @pytest.mark.parametrize("kind", ["image", "image_url", "input_audio", "video"])
    def test_a_part_that_is_no_text_is_refused_by_name(self, kind):
        parts = [{"type": "text", "text": "What is this?"}, {"type": kind, kind: "x"}]
        found = problem([{"role": "user", "content": parts}])
        assert (found.kind, found.field) == (f"{kind}: this reward model reads text", "prompt[0].content[1]")

    @pytest.mark.parametrize("content", [{}, {"content": None}, {"content": ""}])
    def test_beside_tool_calls_none_and_missing_are_empty(self, content):
        message = {"role": "assistant", **content, "tool_calls": [CALL]}
        assert read([message]) == [{"role": "assistant", "content": "", "tool_calls": [CALL]}]

    @pytest.mark.parametrize(
        ("message", "kind"),
        [
            ({"role": "assistant", "content": None}, "missing"),
            ({"role": "assistant"}, "not a message with role and content"),
            ({"role": "user", "content": " "}, "empty"),
            ({"role": "user", "content": 3}, "not a string"),
            ({"role": "assistant", "content": "", "tool_calls": [{"id": "1"}]}, "tool call without a name"),
            ({"role": "assistant", "content": "x", "reasoning_content": 3}, "not a string"),
        ],
    )
    def test_else_they_are_refused(self, message, kind):
        assert problem([message]).kind == kind

    def test_of_an_empty_system_message_and_an_empty_answer_of_a_tool_are_kept(self):
        turns = [{"role": "system", "content": ""}, *HI, {"role": "tool", "content": ""}]
        assert read(turns) == turns


class TestMoreThanText:
    def test_calls_reasoning_and_names_are_kept_in_one_form(self):
        as_json = {"type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Oslo"}'}}
        filled = {
            "type": "function",
            "id": None,
            "function": {**CALL["function"], "arguments": {"city": "Oslo", "x": None}},
        }
        for calls in ([CALL], [as_json], json.dumps([CALL]), np.array([CALL]), [filled]):
            turns = [
                {"role": "assistant", "content": "", "tool_calls": calls, "reasoning_content": "hm", "thinking": ""},
                {"role": "tool", "content": "22", "name": "get_weather", "tool_call_id": "1"},
            ]
            assert read(turns) == [
                {"role": "assistant", "content": "", "tool_calls": [CALL], "reasoning_content": "hm"},
                turns[1],
            ]
        legacy = {"role": "assistant", "content": None, "function_call": CALL["function"]}
        assert read([legacy]) == [{"role": "assistant", "content": "", "tool_calls": [CALL]}]

    def test_keys_that_are_not_read_are_counted(self):
        unread: Counter[str] = Counter()
        read([{**HI[0], "weight": 1, "images": [], "name": None}, {**HI[1], "weight": 0, "id": "a"}], unread)
        assert unread == {"prompt[].weight": 2, "prompt[].id": 1}

    def test_a_reply_is_text_unless_it_holds_more(self):
        assert as_reply(HI[1]) == "Hello!"
        more = {**HI[1], "tool_calls": [CALL]}
        assert as_reply(more) == more

    def test_tools_are_a_list_of_descriptions(self):
        tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
        filled = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "x": None}}}
        for given_as in ([tool], json.dumps([tool]), np.array([filled]), tool, [json.dumps(tool)]):
            assert check_tools(given_as, "tools") == (tool,)
        assert [check_tools(nothing, "tools") for nothing in (None, "", [], "[]", float("nan"))] == [None] * 5
        for wrong in ("get_weather", 3, ["f"], [{}]):
            with pytest.raises(RowProblem):
                check_tools(wrong, "tools")


def test_a_conversation_shows_its_roles_only_where_there_are_several_turns():
    assert conversation([{"role": "user", "content": "Hi"}]) == "Hi"
    turns = [{"role": role, "content": text} for role, text in (("user", "Hi"), ("assistant", "Yes?"), ("user", "Go"))]
    assert conversation(turns) == "user: Hi\n\nassistant: Yes?\n\nuser: Go"
    said = {"role": "assistant", "content": "Let me see.", "tool_calls": [CALL], "thinking": "hm"}
    assert message_words(said) == 'hm\nLet me see.\nget_weather({"city": "Oslo"})'


def test_a_string_that_does_not_end_is_looked_at_once():
    """Not from each quote in it: that takes time that grows with the square of its length."""
    assert [found.span() for found in messages._ARRAY.finditer("'" + "\\'" * 1000)] == [(0, 2001)]
    assert [found[0] for found in messages._ARRAY.finditer("""'a' "b\\"} {" 'c""")] == ["'a'", '"b\\"} {"', "'c"]
