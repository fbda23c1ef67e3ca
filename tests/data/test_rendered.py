from __future__ import annotations

from typing import Any

import pytest
from tests.tiny import byte_tokenizer

from ebrm.data import TextConfig, TextRule, make_text_rule, render, tokenize
from ebrm.data.rendered import find_marker

CHAT = byte_tokenizer()
TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "hi"},
    {"role": "assistant", "content": "Yes?"},
    {"role": "user", "content": "Go on."},
]
#: How known templates write a turn; the last has a form of its own for every role.
WRITTEN = {
    "chatml": "<|im_start|>{role}\n{content}<|im_end|>\n",
    "llama-3": "<|start_header_id|>{role}<|end_header_id|>\n\n{content}<|eot_id|>",
    "llama-4": "<|header_start|>{role}<|header_end|>\n\n{content}<|eot|>",
    "gemma": "<start_of_turn>{role}\n{content}<end_of_turn>\n",
    "granite": "<|start_of_role|>{role}<|end_of_role|>{content}<|end_of_text|>\n",
    "zephyr": "<|{role}|>\n{content}</s>\n",
    "tulu": "<|{role}|>\n{content}\n",
}
INST = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]"
    "{% else %} {{ m['content'] }}</s>{% endif %}{% endfor %}"
)


def rule_for(template: str | None = None, **settings: Any) -> TextRule:
    return make_text_rule(CHAT, TextConfig(template=template, **settings), 4096)


def ids(rule: TextRule, prompt: Any, reply: str) -> list[int]:
    found = tokenize(rule, CHAT, prompt, reply)
    assert found is not None
    return found.ids


def opened(written: str, roles: dict[str, str] | None = None) -> tuple[str, str]:
    """The turns as a template writes them with the reply opened, and what ends a reply."""
    names = roles or {}
    text = "".join(written.format(role=names.get(m["role"], m["role"]), content=m["content"]) for m in TALK)
    start, _, end = written.partition("{content}")
    return text + start.format(role=names.get("assistant", "assistant")), end


@pytest.mark.parametrize("kind", WRITTEN)
def test_turns_of_known_templates_are_taken_apart(kind):
    text, end = opened(WRITTEN[kind], {"assistant": "model"} if kind == "gemma" else None)
    rule = rule_for(rendered="parse")
    expected = ids(rule, TALK, "Hello!")
    for prompt in (text, "<s>" + text, "<|begin_of_text|>" + text):
        for reply in ("Hello!" + end, "Hello!", "Hello!</s>", text + "Hello!" + end):
            assert ids(rule, prompt, reply) == expected, (prompt, reply)
    found = tokenize(rule_for(), CHAT, text, "Hello!" + end)
    assert found is not None and found.marked_prompt and found.ids != expected


@pytest.mark.parametrize("template", [None, INST])
def test_turns_of_the_reward_models_own_template_are_taken_apart(template):
    talk = TALK if template is None else TALK[1:]
    rule = rule_for(template, rendered="parse")
    whole = render(rule, CHAT, [*talk, {"role": "assistant", "content": "Hello!"}])
    prompt, end = whole.split("Hello!")
    for start in (prompt, prompt.removeprefix("<s>"), prompt.rstrip()):
        for reply in ("Hello!", "Hello!" + end, whole):
            assert ids(rule, start, reply) == ids(rule, talk, "Hello!")


@pytest.mark.parametrize(
    "prompt", ["Say hi.", "Say <s>hi</s> in HTML.", "<|im_start|> is a token of ChatML.", "[INST]"]
)
def test_ordinary_prompts_stay_as_they_are(prompt):
    assert ids(rule_for(rendered="parse"), prompt, "Hello!") == ids(rule_for(), prompt, "Hello!")


def test_a_prompt_repeated_by_the_reply_and_a_reply_begun_by_the_prompt():
    rule = rule_for(rendered="parse")
    assert ids(rule, "Say hi.", "Say hi.\nHello!") == ids(rule, "Say hi.", "Hello!")
    assert ids(rule, "Say hi.", "Say hi.") == ids(rule_for(), "Say hi.", "Say hi.")
    begun = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n<think>\n"
    assert ids(rule, begun, "Hello!<|im_end|>") == ids(rule, "hi", "<think>\nHello!")


@pytest.mark.parametrize(
    ("text", "marker"),
    [
        ("<|im_start|>user\nhi", "<|im_start|>"), ("a <|start|> b", "<|start|>"), ("<s>[INST] x", "<s>"),
        ("x [/INST]", "[/INST]"), ("Hello!</s>", "</s>"), ("<pad>", None), ("a < b | c > d", None),
    ],
)  # fmt: skip
def test_markers_are_the_tokenizers_special_tokens_and_those_of_known_templates(text, marker):
    assert find_marker(CHAT, text) == marker


def test_keep_looks_for_none():
    found = tokenize(rule_for(rendered="keep"), CHAT, "<|im_start|>user\nhi<|im_end|>", "x")
    assert found is not None and found.marker is None


DATED = (
    "{{ bos_token }}<|start_header_id|>system<|end_header_id|>\n\nToday Date: {{ strftime_now('%d %b %Y') }}\n\n"
    "{% if messages[0].role == 'system' %}{{ messages[0].content }}{% set messages = messages[1:] %}{% endif %}"
    "<|eot_id|>"
    "{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content }}<|eot_id|>{% endfor %}"
)


def test_what_the_template_adds_by_itself_is_not_added_twice():
    rule = rule_for(DATED, rendered="parse", date="2026-09-01")
    for talk in (TALK, TALK[1:]):
        prompt, end = render(rule, CHAT, [*talk, {"role": "assistant", "content": "Hello!"}]).split("Hello!")
        assert ids(rule, prompt, "Hello!" + end) == ids(rule, talk, "Hello!")


def test_turns_of_other_roles_are_taken_apart_where_the_format_names_them():
    turns = [*TALK[1:2], {"role": "assistant", "content": "Wait."}, {"role": "tool", "content": "22"}]
    text = "".join(f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in turns) + "<|im_start|>assistant\n"
    assert ids(rule_for(rendered="parse"), text, "22<|im_end|>") == ids(rule_for(), turns, "22")


@pytest.mark.parametrize(("prompt", "reply"), [("I", "I think"), ("Say", "Saying"), ("x", "x")])
def test_a_reply_that_happens_to_begin_like_the_prompt_stays(prompt, reply):
    assert ids(rule_for(rendered="parse"), prompt, reply) == ids(rule_for(), prompt, reply)
