from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from tests.tiny import byte_tokenizer, word_tokenizer

from ebrm.data import TextConfig, TextRule, make_text_rule
from ebrm.errors import ConfigError, TextError

CHAT = byte_tokenizer()


def rule_for(tokenizer: Any = CHAT, limit: int = 4096, **settings: Any) -> TextRule:
    return make_text_rule(tokenizer, TextConfig(**settings), limit)


class TestMaking:
    @pytest.mark.parametrize(
        ("settings", "said"),
        [
            ({"template": "chatml"}, r"template is 'chatml'.*auto, plain"),
            ({"template_kwargs": {"tokenize": True}}, "sets tokenize, which ebrm decides"),
            ({"template": "plain", "template_kwargs": {"a": 1}}, "would have no effect"),
        ],
    )
    def test_settings_that_make_no_sense(self, settings: dict[str, Any], said: str) -> None:
        with pytest.raises(ConfigError, match=said):
            rule_for(CHAT, **settings)

    def test_named_ones(self) -> None:
        several = byte_tokenizer()
        several.chat_template = {"default": "{{ 'd' }}", "tool_use": "{{ 't' }}"}
        assert rule_for(several).template == "{{ 'd' }}"
        assert rule_for(several, template="tool_use").template == "{{ 't' }}"
        several.chat_template = {"rag": "{{ 'r' }}", "tool_use": "{{ 't' }}"}
        with pytest.raises(ConfigError, match=r"several chat templates \(rag, tool_use\) and none is called default"):
            rule_for(several)

    def test_cannot_be_appended_without_one(self) -> None:
        with pytest.raises(ConfigError, match="eos is 'append', but this tokenizer has no end-of-text token"):
            rule_for(word_tokenizer(), eos="append")

    def test_the_limit_is_the_smallest_stated(self) -> None:
        short = byte_tokenizer()
        short.model_max_length = 64
        assert rule_for(CHAT, limit=128).max_length == 128
        assert rule_for(short, limit=128).max_length == 64
        assert rule_for(CHAT, limit=128, max_length=32).max_length == 32
        with pytest.raises(ConfigError, match="max_length is 129 tokens, but the model takes at most 128"):
            rule_for(CHAT, limit=128, max_length=129)
        with pytest.raises(ConfigError, match="Neither the model nor its tokenizer says how long"):
            make_text_rule(CHAT, TextConfig(), None)


class TestIdentity:
    def test_round_trip(self) -> None:
        rule = rule_for(template_kwargs={"thinking": "hm"}, max_length=99, truncation="drop")
        assert TextRule.from_identity(rule.identity()) == rule
        assert rule.mismatch(TextRule.from_identity(rule.identity())) is None

    @pytest.mark.parametrize(
        "change",
        [
            {"template": "plain"},
            {"template_kwargs": {"thinking": "no"}},
            {"bos": "strip"},
            {"eos": "append"},
            {"truncation": "drop"},
            {"max_length": 77},
        ],
    )
    def test_a_mismatch_names_both_sides(self, change: dict[str, Any]) -> None:
        rule = rule_for(max_length=99)
        other = replace(rule, **change)
        said = rule.mismatch(other, ours="now", theirs="in the features")
        (name,) = change
        shown = "template_sha256" if name == "template" else name
        assert said is not None and f"{shown} is {rule.identity()[shown]!r} now" in said
        assert f"and {other.identity()[shown]!r} in the features" in said

    def test_a_changed_template_or_lost_field_is_seen(self) -> None:
        stored = rule_for().identity()
        with pytest.raises(TextError, match="does not match the SHA-256"):
            TextRule.from_identity({**stored, "template": "{{ 'other' }}"})
        with pytest.raises(TextError, match="no field 'bos'"):
            TextRule.from_identity({key: value for key, value in stored.items() if key != "bos"})
