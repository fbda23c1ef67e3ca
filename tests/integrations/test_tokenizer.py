"""A chat template alone writes what the text rule says."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.integrations.autos import PROMPTS, RESPONSES, messages
from tests.tiny import CHAT_TEMPLATE, byte_tokenizer, word_tokenizer

from ebrm.data import TextConfig, make_text_rule, tokenize
from ebrm.errors import ModelError
from ebrm.integrations.tokenizer import first_difference, make_tokenizer

BARE = "{% for m in messages %}<|start|>{{ m['role'] }}\n{{ m['content'] }}<|end|>\n{% endfor %}"
TWICE = "{{ bos_token }}" + CHAT_TEMPLATE
ENDED = "\n " + BARE + "{{ eos_token }}\n\n"
KINDS: dict[str, tuple[Any, dict[str, Any]]] = {
    "as it is": (byte_tokenizer(), {}),
    "start kept": (byte_tokenizer(), {"bos": "keep"}),
    "start stripped": (byte_tokenizer(), {"bos": "strip"}),
    "start added": (byte_tokenizer(BARE), {}),
    "start not added": (byte_tokenizer(BARE, adds_bos=False), {}),
    "two starts": (byte_tokenizer(TWICE), {}),
    "end appended": (byte_tokenizer(), {"eos": "append"}),
    "end appended once": (byte_tokenizer(ENDED), {"eos": "append"}),
    "line breaks": (byte_tokenizer(ENDED), {}),
    "arguments": (byte_tokenizer(), {"template_kwargs": {"thinking": "no 'quotes' \\ \n é"}}),
    "arguments, all kept": (byte_tokenizer("\n " + CHAT_TEMPLATE), {"template_kwargs": {"thinking": 1}, "bos": "keep"}),
    "another template": (byte_tokenizer(), {"template": BARE}),
    "dated": (byte_tokenizer("\n{{ strftime_now('%d %b %Y') }}" + CHAT_TEMPLATE), {"date": "2001-09-01"}),
    "folded": (byte_tokenizer(), {"system": "fold"}),
    "plain": (byte_tokenizer(), {"template": "plain"}),
    "plain, stripped, ended": (byte_tokenizer(), {"template": "plain", "bos": "strip", "eos": "append"}),
    "no start token": (byte_tokenizer(bos=None), {"eos": "append"}),
    "no padding token": (byte_tokenizer(pad=None), {}),
    "bert": (word_tokenizer(), {}),
    "roberta": (word_tokenizer("roberta"), {"bos": "strip", "eos": "append"}),
}


def ids(tokenizer: Any, prompt: Any, response: str) -> list[int]:
    text = tokenizer.apply_chat_template(messages(prompt, response), tokenize=False)
    bare = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer(text)["input_ids"] == bare  # it has none to add
    return bare


@pytest.mark.parametrize("kind", KINDS)
def test_ids_are_those_of_the_text_rule(kind: str) -> None:
    tokenizer, settings = KINDS[kind]
    rule = make_text_rule(tokenizer, TextConfig(max_length=500, **settings), None)
    before = tokenizer.chat_template
    made = make_tokenizer(rule, tokenizer)
    odd = ["</s>", "</s></s>", "x</s></s>", "<s>", "<s><s>yes", "a\n\n", "\n", " ", "{{ x }}{% raw %}", "[SEP]"]
    for prompt, response in [*zip(PROMPTS, RESPONSES, strict=True), *[("Hi", text) for text in odd]]:
        assert ids(made, prompt, response) == tokenize(rule, tokenizer, prompt, response).ids, (prompt, response)
    assert tokenizer.chat_template == before  # the base RM's own is left as it is
    assert made.pad_token is not None and "token_type_ids" not in made("a")


SOME = st.lists(st.sampled_from(["<s>", "</s>", "\n", " ", "a", "<|end|>", "é", "'"]), max_size=6).map("".join)


@given(kind=st.sampled_from(sorted(KINDS)), prompt=SOME.filter(str.strip), response=SOME)
def test_ids_of_odd_texts(kind: str, prompt: str, response: str) -> None:
    tokenizer, settings = KINDS[kind]
    rule = make_text_rule(tokenizer, TextConfig(max_length=500, **settings), None)
    made = make_tokenizer(rule, tokenizer)
    assert ids(made, prompt, response) == tokenize(rule, tokenizer, prompt, response).ids


def test_a_difference_is_told() -> None:
    tokenizer = byte_tokenizer(BARE)
    rule = make_text_rule(tokenizer, TextConfig(max_length=500), None)
    assert "and [0, " in str(first_difference(rule, tokenizer, tokenizer))
    assert "chat_template is not set" in str(first_difference(rule, tokenizer, byte_tokenizer(None)))
    assert first_difference(rule, tokenizer, make_tokenizer(rule, tokenizer)) is None


def test_a_tokenizer_that_cannot_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = byte_tokenizer()
    rule = make_text_rule(tokenizer, TextConfig(max_length=500, bos="strip"), None)
    monkeypatch.setattr("ebrm.integrations.tokenizer.write_template", lambda rule, tokenizer: rule.template)
    with pytest.raises(ModelError, match=r"cannot render texts .* of turns user → assistant it makes \[0, .* expected"):
        make_tokenizer(rule, tokenizer)
