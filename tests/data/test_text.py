from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tests.tiny import CHAT_TEMPLATE, byte_tokenizer, word_tokenizer

from ebrm.data import TextConfig, TextRule, make_text_rule, render, template, tokenize, tokenize_rendered
from ebrm.errors import ConfigError, TextError, TextTooLongError

CHAT = byte_tokenizer()
PLAIN = byte_tokenizer(template=None)
WORDS = word_tokenizer()
BOS, EOS = CHAT.bos_token_id, CHAT.eos_token_id
TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hello?"},
    {"role": "assistant", "content": "Yes?"},
    {"role": "user", "content": "Sing."},
]


def rule_for(tokenizer: Any = CHAT, limit: int = 4096, **settings: Any) -> TextRule:
    return make_text_rule(tokenizer, TextConfig(**settings), limit)


def ids_of(rule: TextRule, prompt: Any, response: str, tokenizer: Any = CHAT) -> list[int]:
    found = tokenize(rule, tokenizer, prompt, response)
    assert found is not None
    return found.ids


class TestPlain:
    def test_writes_roles_and_turns_exactly(self):
        rule = rule_for(PLAIN)
        assert rule.template == "plain"
        written = render(rule, PLAIN, [*TALK, {"role": "assistant", "content": "La."}])
        assert written == "System: Be brief.\n\nUser: Hello?\n\nAssistant: Yes?\n\nUser: Sing.\n\nAssistant: La."

    def test_uses_the_tokenizers_own_special_tokens(self):
        ids = ids_of(rule_for(WORDS), "Hello", "the", WORDS)
        assert ids == WORDS("User: Hello\n\nAssistant: the")["input_ids"]
        assert ids[0] == WORDS.cls_token_id and ids[-1] == WORDS.sep_token_id

    def test_a_string_is_one_user_turn(self):
        rule = rule_for(PLAIN)
        as_messages = ids_of(rule, [{"role": "user", "content": "Hi"}], "Yes", PLAIN)
        assert ids_of(rule, "Hi", "Yes", PLAIN) == as_messages
        assert as_messages != ids_of(rule, "Yes", "Hi", PLAIN)

    def test_is_forced_on_a_tokenizer_with_a_template(self):
        rule = rule_for(CHAT, template="plain")
        assert rule.template == "plain"
        assert CHAT.decode(ids_of(rule, "Hi", "Yes")) == "<s>User: Hi\n\nAssistant: Yes"

    def test_refuses_a_role_it_does_not_know(self):
        with pytest.raises(TextError, match=r"data\.jsonl:3: .*role 'tool'; the plain format knows system, user"):
            tokenize(rule_for(PLAIN), PLAIN, [TALK[1], {"role": "tool", "content": "x"}], "y", "data.jsonl:3")


class TestTemplate:
    def test_is_the_tokenizers_own_by_default(self):
        rule = rule_for()
        assert rule.template == CHAT_TEMPLATE
        expected = "<s><|start|>user\nHi<|end|>\n<|start|>assistant\nYes<|end|>\n"
        turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes"}]
        assert render(rule, CHAT, turns) == expected
        assert ids_of(rule, "Hi", "Yes") == CHAT(expected, add_special_tokens=False)["input_ids"]

    def test_arguments_reach_it_and_the_identity(self):
        bare, thinking = rule_for(), rule_for(template_kwargs={"thinking": "hm"})
        assert CHAT.decode(ids_of(thinking, "Hi", "Yes")).endswith("<think>hm</think>")
        assert bare.mismatch(thinking) is not None

    def test_may_be_given_as_source(self):
        rule = rule_for(PLAIN, template="{% for m in messages %}[{{ m['content'] }}]{% endfor %}")
        assert PLAIN.decode(ids_of(rule, "Hi", "Yes", PLAIN)) == "<s>[Hi][Yes]"

    def test_that_refuses_a_conversation_is_an_error_with_the_place(self):
        stops = (
            "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system turn') }}{% endif %}{{ messages }}"
        )
        rule = rule_for(template=stops)
        with pytest.raises(TextError, match=r"rows:7: The chat template refuses .*system → user.*no system turn"):
            tokenize(rule, CHAT, TALK, "La", "rows:7")


class TestStartToken:
    ONE = "{{ bos_token }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
    NONE = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    TWO = "{{ bos_token }}" + ONE

    @pytest.mark.parametrize(
        ("template", "bos", "count"),
        [
            *((template, "auto", 1) for template in (ONE, TWO, NONE)),  # the tokenizer adds what a template forgot
            *((template, "keep", count) for template, count in ((ONE, 1), (TWO, 2), (NONE, 0))),
            *((template, "strip", 0) for template in (ONE, TWO, NONE)),
        ],
    )
    def test_appears_as_often_as_the_rule_says(self, template, bos, count):
        ids = ids_of(rule_for(template=template, bos=bos), "Hi", "Yes")
        assert ids == [BOS] * count + CHAT("HiYes", add_special_tokens=False)["input_ids"]

    def test_is_not_added_where_the_tokenizer_does_not_add_it(self):
        assert ids_of(rule_for(PLAIN), "Hi", "Yes", PLAIN).count(BOS) == 1  # once in the plain format
        quiet = byte_tokenizer(adds_bos=False)
        assert BOS not in ids_of(rule_for(quiet, template=self.NONE), "Hi", "Yes", quiet)

    def test_doubled_is_logged_once(self, caplog):
        template.warn_once.cache_clear()
        with caplog.at_level(logging.WARNING):
            for _ in range(3):
                ids_of(rule_for(template=self.TWO), "Hi", "Yes")
        assert [record.getMessage() for record in caplog.records] == [
            "Texts start with 2 start-of-text tokens ('<s>'); all but one are removed."
        ]

    def test_that_is_also_the_pooled_token_stays(self):
        roberta = word_tokenizer("roberta")
        ids = ids_of(rule_for(roberta, bos="strip"), "Hi", "the", roberta)
        assert ids[0] == roberta.cls_token_id and ids.count(roberta.cls_token_id) == 1


class TestEndToken:
    @pytest.mark.parametrize("end", ["", "</s>", "</s>\n", "\n"])
    def test_appended_is_there_exactly_once_after_a_template(self, end):
        template = TestStartToken.ONE + "{{ '" + end.replace("\n", "\\n") + "' }}"
        ids = ids_of(rule_for(template=template, eos="append"), "Hi", "Yes")
        assert ids[-1] == EOS and ids.count(EOS) == 1

    def test_appended_to_the_plain_format(self):
        kept = ids_of(rule_for(PLAIN), "Hi", "Yes", PLAIN)
        assert kept[-1] != EOS
        assert ids_of(rule_for(PLAIN, eos="append"), "Hi", "Yes", PLAIN) == [*kept, EOS]
        assert ids_of(rule_for(PLAIN, eos="append"), "Hi", "Yes</s></s>", PLAIN) == [*kept, EOS]

    def test_auto_leaves_what_is_there(self):
        roberta = word_tokenizer("roberta")
        assert ids_of(rule_for(roberta), "Hi", "the", roberta)[-1] == roberta.eos_token_id
        assert ids_of(rule_for(), "Hi", "Yes").count(EOS) == 0


class TestTooLong:
    PROMPT = "A long question, with many words, that nobody will ever read to its end."
    LONG = len(ids_of(rule_for(), PROMPT, "Yes"))

    def test_that_just_fits_is_left_alone_and_else_dropped(self):
        for truncation in ("error", "drop"):
            found = tokenize(rule_for(max_length=self.LONG, truncation=truncation), CHAT, self.PROMPT, "Yes")
            assert found is not None and len(found.ids) == self.LONG and found.truncated == 0
        assert tokenize(rule_for(max_length=self.LONG - 1, truncation="drop"), CHAT, self.PROMPT, "Yes") is None

    def test_error_names_place_lengths_and_options(self):
        rule = rule_for(max_length=self.LONG - 1)
        with pytest.raises(TextError) as caught:
            tokenize(rule, CHAT, self.PROMPT, "Yes", "pairs.jsonl:12")
        said = str(caught.value)
        assert said.startswith(f"pairs.jsonl:12: The text has {self.LONG} tokens, and the limit is {self.LONG - 1}.")
        options = ('`truncation="prompt_left"`', '`truncation="drop"`', '`truncation="prompt_left_or_drop"`')
        assert all(option in said for option in options)

    def test_prompt_left_keeps_the_start_token_and_the_end(self):
        whole = ids_of(rule_for(), self.PROMPT, "Yes")
        found = tokenize(rule_for(max_length=self.LONG - 5, truncation="prompt_left"), CHAT, self.PROMPT, "Yes")
        assert found is not None
        assert found.ids == [BOS, *whole[6:]] and found.truncated == 5

    @pytest.mark.parametrize(
        "tokenizer", [CHAT, PLAIN, WORDS, word_tokenizer("roberta")], ids=["chat", "plain", "bert", "roberta"]
    )
    @pytest.mark.parametrize("response", ["Yes, the other user.", "", " padded "])
    def test_prompt_left_never_cuts_the_response(self, tokenizer, response):
        rule = rule_for(tokenizer, truncation="prompt_left")
        # Known answer: the response as the format writes it, and what closes the text.
        written = f"{response.strip()}<|end|>\n" if tokenizer is CHAT else response
        tail = len(tokenizer(written, add_special_tokens=False)["input_ids"])
        closing = 0 if tokenizer in (CHAT, PLAIN) else 1
        shortest = 1 + tail + closing
        found = tokenize(replace(rule, max_length=shortest), tokenizer, self.PROMPT, response)
        assert found is not None and len(found.ids) == shortest
        with pytest.raises(TextError, match="The response alone has"):
            tokenize(replace(rule, max_length=shortest - 1), tokenizer, self.PROMPT, response)

    def test_prompt_left_counts_an_appended_end_token(self):
        rule = rule_for(PLAIN, truncation="prompt_left", eos="append")
        tail = len(PLAIN("Yes", add_special_tokens=False)["input_ids"]) + 1
        found = tokenize(replace(rule, max_length=1 + tail), PLAIN, self.PROMPT, "Yes")
        assert found is not None and found.ids[0] == BOS and found.ids[-1] == EOS
        with pytest.raises(TextError, match=f"The response alone has {tail} tokens"):
            tokenize(replace(rule, max_length=tail), PLAIN, self.PROMPT, "Yes")

    @given(prompt=st.text(max_size=60).filter(str.strip), response=st.text(max_size=12), length=st.integers(1, 80))
    def test_cut_texts_are_the_end_of_whole_ones(self, prompt, response, length):
        rule = rule_for(truncation="prompt_left")
        whole = ids_of(rule, prompt, response)
        try:
            found = tokenize(replace(rule, max_length=length), CHAT, prompt, response)
        except TextError as error:
            assert "The response alone" in str(error) and len(whole) > length
            return
        assert found is not None and len(found.ids) == min(length, len(whole))
        assert found.truncated == len(whole) - len(found.ids)
        if found.truncated:
            assert found.ids == [BOS, *whole[len(whole) - length + 1 :]]


class TestOddText:
    @pytest.mark.parametrize("tokenizer", [CHAT, PLAIN, WORDS], ids=["chat", "plain", "bert"])
    @given(prompt=st.text(max_size=40).filter(str.strip), response=st.text(max_size=40))
    def test_any_unicode_gives_the_same_ids_each_time(self, tokenizer, prompt, response):
        rule = rule_for(tokenizer)
        assert ids_of(rule, prompt, response, tokenizer) == ids_of(rule, prompt, response, tokenizer)

    @pytest.mark.parametrize("odd", ["\ud800", "a\udc00b", "nul \x00 byte", "👩‍👩‍👧‍👦", "\u202e rtl", "\ufeff"])
    def test_odd_characters_do_not_crash(self, odd):
        assert ids_of(rule_for(), odd, odd)
        assert ids_of(rule_for(WORDS), odd, odd, WORDS)

    def test_surrogates(self):
        rule = rule_for()
        assert ids_of(rule, "\ud83d\ude00", "x") == ids_of(rule, "😀", "x")  # a pair is the character it stands for
        assert ids_of(rule, "\ud83d", "x") == ids_of(rule, "\ufffd", "x")

    def test_an_empty_response_is_a_text(self):
        assert ids_of(rule_for(), "Hi", "") != ids_of(rule_for(), "Hi", "Yes")
        assert ids_of(rule_for(PLAIN), "Hi", "", PLAIN)

    def test_a_response_of_a_megabyte(self):
        huge = "x" * 1_000_000
        with pytest.raises(TextError, match=r"has 10000\d\d tokens, and the limit is 4096"):
            tokenize(rule_for(), CHAT, "Hi", huge)
        assert tokenize(rule_for(truncation="drop"), CHAT, "Hi", huge) is None
        assert len(ids_of(rule_for(WORDS), "Hi", huge, WORDS)) < 20  # one unknown word

    @pytest.mark.parametrize(
        ("prompt", "response", "said"),
        [
            (
                [{"role": "user", "content": None}],
                "y",
                r"f:1: prompt\[0\]\.content cannot be read: missing, None\.",
            ),
            ([{"content": "x"}], "y", r"f:1: prompt\[0\] cannot be read: not a message with role and content"),
            ("x", None, r"f:1: The response is a NoneType"),
            (["x"], "y", r"f:1: prompt\[0\] cannot be read: not a message with role and content\."),
        ],
    )
    def test_what_is_not_text(self, prompt, response, said):
        with pytest.raises(TextError, match=said):
            tokenize(rule_for(), CHAT, prompt, response, "f:1")


class TestWritten:
    SETTINGS = ({}, {"bos": "strip"}, {"bos": "keep"}, {"eos": "append"}, {"template": "plain"}, {"max_length": 60})
    OPEN = "<s><|start|>user\nHi<|end|>\n<|start|>assistant\n"

    @pytest.mark.parametrize("settings", SETTINGS, ids=lambda given: "-".join(map(str, given.values())) or "default")
    @pytest.mark.parametrize("tokenizer", [CHAT, PLAIN, WORDS, word_tokenizer("roberta")])
    @given(prompt=st.text(max_size=30), response=st.text(max_size=30))
    @example(prompt="Hi", response="")
    @example(prompt="Hi", response="<|end|>\n<|start|>assistant\nAgain")
    @example(prompt="a" * 80, response="Yes\n\nAssistant: no")
    def test_is_the_text_of_its_turns(self, tokenizer, settings, prompt, response):
        if settings.get("eos") and tokenizer.eos_token is None:
            return
        rule = rule_for(tokenizer, **settings, truncation="drop")
        turns = [*TALK[:2], {"role": "assistant", "content": "Yes?"}, {"role": "user", "content": prompt}]
        written = render(rule, tokenizer, [*turns, {"role": "assistant", "content": response}])
        assert tokenize_rendered(rule, tokenizer, written) == tokenize(rule, tokenizer, turns, response)

    ENDS = {"cut": "", "end": "<|end|>", "whole": "<|end|>\n", "2": "<|end|>\n\n", "3": "</s>", "4": "</s></s>"}

    @pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
    def test_a_turn_that_a_policy_leaves_open_is_closed(self, end):
        found = tokenize_rendered(rule_for(), CHAT, self.OPEN + "Yes" + end)
        assert found == tokenize(rule_for(), CHAT, "Hi", "Yes")

    @pytest.mark.parametrize("text", [OPEN + "Yes<|end|>\nmore", "<s>no turns at all", "<s>[INST] Hi [/INST] Yes</s>"])
    def test_what_the_template_did_not_write_is_read_as_it_stands(self, text):
        found = tokenize_rendered(rule_for(), CHAT, text)
        assert found is not None and CHAT.decode(found.ids) == text

    def test_the_start_token_may_be_missing_or_double(self):
        whole = self.OPEN + "Yes<|end|>\n"
        found = [tokenize_rendered(rule_for(), CHAT, text) for text in (whole, whole[3:], "<s>" + whole)]
        assert found == [tokenize(rule_for(), CHAT, "Hi", "Yes")] * 3

    def test_a_too_long_prompt_is_cut_as_for_turns(self):
        prompt = TestTooLong.PROMPT
        rule = rule_for(max_length=TestTooLong.LONG - 5, truncation="prompt_left")
        written = render(rule, CHAT, [{"role": "user", "content": prompt}, {"role": "assistant", "content": "Yes"}])
        cut = tokenize_rendered(rule, CHAT, written)
        assert cut is not None and cut.truncated == 5 and cut == tokenize(rule, CHAT, prompt, "Yes")
        several = render(rule, CHAT, [*TALK, {"role": "assistant", "content": "La."}])
        short = replace(rule, max_length=12)
        assert tokenize_rendered(short, CHAT, several) == tokenize(short, CHAT, TALK, "La.")
        with pytest.raises(TextTooLongError, match=r"row 3: The response alone has"):
            tokenize_rendered(replace(rule, max_length=5), CHAT, written, "row 3")
        with pytest.raises(TextTooLongError, match=r"row 3: .*cannot be cut: nothing shows where the response starts"):
            tokenize_rendered(replace(rule, max_length=20), CHAT, written.replace("assistant", "bot"), "row 3")

    def test_what_is_too_long_or_no_text(self):
        short = rule_for(max_length=10)
        with pytest.raises(TextTooLongError, match=r"row 3: The text has \d+ tokens, and the limit is 10"):
            tokenize_rendered(short, CHAT, self.OPEN, "row 3")
        assert tokenize_rendered(replace(short, truncation="drop"), CHAT, self.OPEN) is None
        with pytest.raises(TextError, match="row 3: The text is a list, not a string"):
            tokenize_rendered(short, CHAT, ["Hi"], "row 3")  # type: ignore[arg-type]
        with pytest.raises(TextError, match="row 3: The text '' has no tokens"):
            tokenize_rendered(rule_for(bos="strip"), CHAT, "", "row 3")

    def test_where_the_template_refuses_its_probe(self):
        refuses = "{% if messages|length < 3 %}{{ raise_exception('more') }}{% endif %}{{ messages[0]['content'] }}"
        found = tokenize_rendered(rule_for(template=refuses), CHAT, "<s>Hi")
        assert found is not None and CHAT.decode(found.ids) == "<s>Hi"


class TestMaking:
    @pytest.mark.parametrize(
        ("settings", "said"),
        [
            ({"template": "chatml"}, r"template is 'chatml'.*auto, plain"),
            ({"template_kwargs": {"tokenize": True}}, "sets tokenize, which ebrm decides"),
            ({"template": "plain", "template_kwargs": {"a": 1}}, "would have no effect"),
        ],
    )
    def test_settings_that_make_no_sense(self, settings, said):
        with pytest.raises(ConfigError, match=said):
            rule_for(CHAT, **settings)

    def test_named_ones(self):
        several = byte_tokenizer()
        several.chat_template = {"default": "d{{ messages }}", "tool_use": "t{{ messages }}"}
        assert rule_for(several).template == "d{{ messages }}"
        assert rule_for(several, template="tool_use").template == "t{{ messages }}"
        several.chat_template = {"rag": "r{{ messages }}", "tool_use": "t{{ messages }}"}
        with pytest.raises(ConfigError, match=r"several chat templates \(rag, tool_use\) and none is called default"):
            rule_for(several)

    def test_cannot_be_appended_without_one(self):
        with pytest.raises(ConfigError, match="eos is 'append', but this tokenizer has no end-of-text token"):
            rule_for(word_tokenizer(), eos="append")

    def test_the_limit_is_the_smallest_stated(self):
        short = byte_tokenizer()
        short.model_max_length = 64
        assert rule_for(CHAT, limit=128).max_length == 128
        assert rule_for(short, limit=128).max_length == 64
        assert rule_for(CHAT, limit=128, max_length=32).max_length == 32
        with pytest.raises(ConfigError, match="max_length is 129 tokens, but the model takes at most 128"):
            rule_for(CHAT, limit=128, max_length=129)
        with pytest.raises(ConfigError, match="Neither the model nor its tokenizer states how long"):
            make_text_rule(CHAT, TextConfig(), None)


class TestIdentity:
    def test_round_trip(self):
        rule = rule_for(template_kwargs={"thinking": "hm"}, max_length=99, truncation="drop")
        assert TextRule.from_identity(rule.identity()) == rule
        assert rule.mismatch(TextRule.from_identity(rule.identity())) is None

    OTHERS = {"template": "plain", "template_kwargs": {"thinking": "no"}, "bos": "strip", "eos": "append"}

    @pytest.mark.parametrize(("name", "value"), [*OTHERS.items(), ("truncation", "drop"), ("max_length", 77)])
    def test_a_mismatch_names_both_sides(self, name, value):
        rule = rule_for(max_length=99)
        other = replace(rule, **{name: value})
        said = rule.mismatch(other, ours="now", theirs="in the features")
        shown = "template_sha256" if name == "template" else name
        assert said is not None and f"{shown} is {rule.identity()[shown]!r} now" in said
        assert f"and {other.identity()[shown]!r} in the features" in said

    def test_a_changed_template_or_lost_field_is_seen(self):
        stored = rule_for().identity()
        with pytest.raises(TextError, match="does not match the SHA-256"):
            TextRule.from_identity({**stored, "template": "{{ 'other' }}"})
        with pytest.raises(TextError, match="no field 'bos'"):
            TextRule.from_identity({key: value for key, value in stored.items() if key != "bos"})
