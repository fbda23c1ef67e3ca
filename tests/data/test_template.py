from __future__ import annotations

import datetime
import logging
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.tiny import CHAT_TEMPLATE, byte_tokenizer

from ebrm.data import Prompt, Reply, TextConfig, TextRule, make_text_rule, render, template, text, tokenize
from ebrm.errors import ConfigError, TextError, TextRefusedError

CHAT = byte_tokenizer()
TURN = "<|start|>{{ m['role'] }}\n{{ m['content'] }}<|end|>\n"
LOOP = "{% for m in messages %}" + TURN + "{% endfor %}"
#: Writes everything: tools, calls with their arguments, and reasoning of the reply alone.
WHOLE = (
    "{% if tools %}{% for t in tools %}{{ t | tojson }}\n{% endfor %}{% endif %}{% for m in messages %}<|start|>"
    "{{ m['role'] }}\n{% if m.reasoning_content and loop.last %}<think>{{ m.reasoning_content }}</think>{% endif %}"
    "{{ m['content'] }}{% for c in m.tool_calls or [] %}<call>{{ c.function.name }} {{ c.function.arguments | tojson }}"
    "</call>{% endfor %}<|end|>\n{% endfor %}"
)
USER = {"role": "user", "content": "Weather in Oslo?"}


def rule_for(source: str, **settings: Any) -> TextRule:
    return make_text_rule(CHAT, TextConfig(template=source, **settings), 4096)


def called(name: str, **more: Any) -> dict[str, Any]:
    call = {"type": "function", "function": {"name": name, "arguments": {"city": "Oslo"}}}
    return {"role": "assistant", "content": "", "tool_calls": [call], **more}


def ids(rule: TextRule, prompt: Prompt, reply: Reply) -> list[int]:
    found = tokenize(rule, CHAT, prompt, reply)
    assert found is not None
    return found.ids


class TestMoreThanText:
    TOOL = {"type": "function", "function": {"name": "get_weather", "description": "Tells the weather"}}
    ANSWER = {"role": "tool", "name": "get_weather", "content": "22"}
    ROLLOUT: Prompt = (USER, called("get_weather"), ANSWER)

    def test_calls_tools_and_reasoning_reach_the_template(self):
        rule = rule_for(WHOLE)
        said = CHAT.decode(ids(rule, {"messages": [USER], "tools": [self.TOOL]}, called("get_weather")))
        assert '"description": "Tells the weather"' in said and '<call>get_weather {"city": "Oslo"}</call>' in said
        assert "<think>hm</think>22" in CHAT.decode(
            ids(rule, self.ROLLOUT, {"role": "assistant", "content": "22", "reasoning_content": "hm"})
        )

    def test_other_calls_are_other_ids(self):
        rule = rule_for(WHOLE)
        other = (USER, called("delete_files"), self.ANSWER)
        assert ids(rule, self.ROLLOUT, "22") != ids(rule, other, "22")
        assert ids(rule, [USER], called("get_weather")) != ids(rule, [USER], called("delete_files"))

    @pytest.mark.parametrize("content", [{"content": ""}, {"content": None}, {}])
    def test_no_content_beside_calls_is_an_empty_one(self, content):
        bare = {key: value for key, value in called("get_weather").items() if key != "content"}
        rule = rule_for(WHOLE)
        assert ids(rule, (USER, {**bare, **content}, self.ANSWER), "22") == ids(rule, self.ROLLOUT, "22")

    @pytest.mark.parametrize(
        ("source", "prompt", "reply", "said"),
        [
            (LOOP, ROLLOUT, "22", r"leaves out the tool call get_weather of message 2 \(assistant\)"),
            (LOOP, [USER], called("get_weather"), "leaves out the tool call get_weather of the reply"),
            (LOOP, {"messages": [USER], "tools": [TOOL]}, "22", "leaves out the tool get_weather"),
            (LOOP, [USER], called("f", content="x", tool_calls=[], thinking="hm"), r"the reasoning \(thinking\) of"),
            (
                LOOP.replace("<|end|>", "{% for c in m.tool_calls or [] %}{{ c.function.name }}{% endfor %}<|end|>"),
                [USER], called("get_weather"), "leaves out the arguments of the tool call get_weather of the reply",
            ),
            (
                LOOP.replace("{{ m['content'] }}", "{{ m.tool_calls | tojson if m.tool_calls else m['content'] }}"),
                [USER], called("f", content="Let me see."), "leaves out the text beside the tool calls of the reply",
            ),
            ("plain", [USER], called("f"), "The plain format has no place for the tool call f of the reply"),
            ("plain", {"messages": [USER], "tools": [TOOL]}, "22", "The plain format has no place for tools"),
            ("plain", [USER], called("f", tool_calls=[], content="x", thinking="y"), "no place for the reasoning"),
        ],
    )  # fmt: skip
    def test_what_would_be_left_out_is_refused_by_name(self, source, prompt, reply, said):
        with pytest.raises(TextRefusedError, match=said):
            tokenize(rule_for(source), CHAT, prompt, reply)

    def test_reasoning_before_the_reply_may_be_left_out_by_a_template_that_writes_the_replys(self, caplog):
        template.warn_once.cache_clear()
        thought = {"role": "assistant", "content": "A", "reasoning_content": "hm"}
        turns = [USER, thought, USER]
        with caplog.at_level(logging.WARNING):
            found = [ids(rule_for(WHOLE), turns, "B") for _ in range(2)]
        assert found[0] == ids(rule_for(WHOLE), [USER, {"role": "assistant", "content": "A"}, USER], "B")
        assert sum("leaves out the reasoning of turns before the reply" in r.getMessage() for r in caplog.records) == 1
        with pytest.raises(TextRefusedError, match=r"leaves out the reasoning \(reasoning_content\) of message 2"):
            tokenize(rule_for(LOOP), CHAT, turns, "B")

    def test_turns_and_labels_that_the_template_does_not_write_are_said_once(self, caplog):
        template.warn_once.cache_clear()
        only = LOOP.replace(TURN, "{% if m['role'] != 'system' %}" + TURN + "{% endif %}")
        turns = [{"role": "system", "content": "Be brief."}, {**USER, "name": "Ann"}]
        with caplog.at_level(logging.WARNING):
            for _ in range(2):
                ids(rule_for(only), turns, "22")
        assert sorted(record.getMessage().split(";")[0] for record in caplog.records) == [
            "The chat template does not write 'name' of messages",
            "The chat template writes nothing of a system turn where turns are system → user → assistant",
        ]

    def test_render_takes_tools_too(self):
        turns = [USER, {"role": "assistant", "content": "22"}]
        assert "Tells the weather" in render(rule_for(WHOLE), CHAT, turns, [self.TOOL])


class TestPrompts:
    @pytest.mark.parametrize(
        ("prompt", "said"),
        [
            ("", "The prompt is empty"),
            ([{"role": "user", "content": " "}], "The prompt is empty"),
            ([], "The prompt has no messages"),
            ({"messages": []}, "The prompt has no messages"),
            ([{"role": "system", "content": "x"}], r"no user turn \(its turns: system\)"),
            ([USER, {"role": "assistant", "content": "x"}], "does not end in a user turn"),
            ({"messages": [USER], "tool": []}, "The prompt has tool beside messages; it may have messages and tools"),
            ({"messages": [USER], "tools": "get_weather"}, "The prompt's tools cannot be read: not a list of tools"),
            ([{"role": "user", "content": [{"type": "image", "image": "x"}]}], "image: this reward model reads text"),
        ],
    )
    def test_that_nothing_can_answer_are_refused(self, prompt, said):
        with pytest.raises(TextError, match=said):
            tokenize(rule_for(LOOP), CHAT, prompt, "y")

    def test_come_in_any_form_that_data_have(self):
        rule = rule_for(LOOP)
        expected = ids(rule, "Weather in Oslo?", "22")
        forms: list[Any] = [
            USER, [USER], {"messages": [USER]}, {"messages": "Weather in Oslo?", "tools": None},
            [{"from": "human", "value": "Weather in Oslo?"}],
            [{"role": "user", "content": [{"type": "text", "text": "Weather "}, {"type": "text", "text": "in Oslo?"}]}],
        ]  # fmt: skip
        for form in forms:
            assert ids(rule, form, "22") == expected
        for reply in ([{"role": "assistant", "content": "22"}], {"role": "model", "content": "22"}):
            assert ids(rule, "Weather in Oslo?", reply) == expected  # type: ignore[arg-type]

    @pytest.mark.parametrize("reply", [[], [USER], [called("f"), called("g")], 7, [{"role": "assistant"}]])
    def test_replies_are_one_assistants_message(self, reply):
        with pytest.raises(TextError, match="response"):
            tokenize(rule_for(LOOP), CHAT, "Hi", reply)

    def test_errors_hold_no_text(self):
        secret = [{"role": "user", "content": {"secret": "xyzzy"}}]
        with pytest.raises(TextError) as caught:
            tokenize(rule_for(LOOP), CHAT, secret, "y")
        assert "xyzzy" not in str(caught.value)


class TestDate:
    ASKS = "{{ strftime_now('%d %b %Y') }}" + LOOP
    LLAMA = (
        "{% if not date_string is defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}"
        "Today Date: {{ date_string }}\n" + LOOP
    )

    @pytest.fixture(autouse=True)
    def _said(self):
        template.warn_once.cache_clear()

    def on(self, day: str, monkeypatch: pytest.MonkeyPatch) -> None:
        class Day(datetime.date):
            @classmethod
            def today(cls) -> datetime.date:
                return datetime.date.fromisoformat(day)

        monkeypatch.setattr(text, "date", Day)

    @pytest.mark.parametrize("source", [ASKS, LLAMA])
    def test_is_fixed_when_the_rule_is_made_and_kept_in_its_identity(self, source, monkeypatch, caplog):
        self.on("2026-09-01", monkeypatch)
        with caplog.at_level(logging.WARNING):
            rule = rule_for(source)
            rule_for(source)
        assert rule.date == rule.identity()["date"] == "2026-09-01"
        assert "01 Sep 2026" in CHAT.decode(ids(rule, "Hi", "Yes"))
        assert [record.getMessage().split(".")[0] for record in caplog.records] == [
            "The chat template writes today's date"
        ]
        self.on("2026-09-02", monkeypatch)
        stored = TextRule.from_identity(rule.identity())
        assert ids(stored, "Hi", "Yes") == ids(rule, "Hi", "Yes")
        later = rule_for(source)
        assert rule.mismatch(later) == "the text rule differs: date is '2026-09-01' here and '2026-09-02' there"
        assert ids(rule_for(source, date="2026-09-01"), "Hi", "Yes") == ids(rule, "Hi", "Yes")

    @pytest.mark.parametrize("settings", [{"template_kwargs": {"date_string": "26 Jul 2024"}}, {"date": "today"}])
    def test_is_not_fixed_where_nothing_depends_on_it_or_it_is_not_wanted(self, settings):
        rule = rule_for(self.LLAMA, **settings)
        assert rule.date is None and "date" not in rule.identity()
        expected = settings.get("template_kwargs", {}).get("date_string") or f"{datetime.datetime.now():%d %b %Y}"
        assert f"Today Date: {expected}" in CHAT.decode(ids(rule, "Hi", "Yes"))

    def test_of_a_branch_with_system_or_tools_counts(self):
        asks = "{% if tools %}{{ strftime_now('%Y') }}{{ tools | tojson }}{% endif %}" + LOOP
        assert rule_for("{% if true %}\n{{ strftime_now('%Y') }}{% endif %}" + LOOP).date is not None
        assert rule_for(asks).date is not None
        assert rule_for("{% if false %}{{ strftime_now('%Y') }}{% endif %}" + LOOP).date is None

    FORMS = ("%d", "%B", "%Y", "%A", "%%", "%%d", " ", "%-d", "%H:%M", "%j", "x")

    @given(st.lists(st.sampled_from(FORMS)).map("".join))
    def test_of_any_format_is_as_python_writes_it(self, form):
        source = "\n{{ strftime_now(form) }}|{% for m in messages %}{{ m }}{% endfor %}"
        rule = replace(rule_for(LOOP), template=source, template_kwargs={"form": form}, date="2026-09-01")
        written = datetime.datetime(2026, 9, 1).strftime(form)
        assert render(rule, CHAT, [USER]).split("|")[0] == "\n" + written

    @pytest.mark.parametrize("form", ["%k", "%l %P", "%5Y", "%_d", "%^a", "%e|%k"])
    def test_is_fixed_in_formats_that_only_some_systems_know(self, form):
        rule = rule_for(f"[{{{{ strftime_now('{form}') }}}}]" + LOOP, date="2026-09-01")
        assert rule.date == "2026-09-01"
        written = datetime.datetime(2026, 9, 1).strftime(form)
        assert f"[{written}]" in CHAT.decode(ids(rule, "Hi", "Yes"))

    def test_is_a_day(self):
        for wrong in ("1 Sep 2026", "2026-13-01", "tomorrow"):
            with pytest.raises(ConfigError, match="a day was expected"):
                TextConfig(date=wrong)


class TestSystem:
    REFUSES = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    TALK = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]

    def test_folds_into_the_users_turn_that_follows(self):
        source = self.REFUSES + CHAT_TEMPLATE
        with pytest.raises(TextRefusedError, match=r"\(turns: system → user → assistant\): System role not supported"):
            tokenize(rule_for(source), CHAT, self.TALK, "Yes")
        folded = rule_for(source, system="fold")
        assert ids(folded, self.TALK, "Yes") == ids(rule_for(source), "Be brief.\n\nHi", "Yes")
        assert folded.identity()["system"] == "fold" and TextRule.from_identity(folded.identity()) == folded
        turns = [{"role": "system", "content": ""}, USER, {"role": "assistant", "content": "A"}, *self.TALK]
        assert [m["content"] for m in template.fold_system(turns)] == [USER["content"], "A", "Be brief.\n\nHi"]

    def test_has_a_place_in_the_plain_format(self):
        with pytest.raises(ConfigError, match="system is 'fold', which would have no effect"):
            rule_for("plain", system="fold")


def test_a_template_for_lists_of_parts_writes_nothing_and_is_refused():
    parts = "{% for m in messages %}{% for p in m['content'] %}{{ p['text'] }}{% endfor %}{% endfor %}"
    with pytest.raises(ConfigError, match="writes nothing of a response that is text"):
        rule_for(parts)


def test_identities_of_before_stay_as_they_were():
    rule = rule_for(LOOP)
    names = {"template", "template_kwargs", "bos", "eos", "truncation", "max_length", "template_sha256"}
    assert rule.identity().keys() == names
    assert replace(rule, rendered="keep").mismatch(rule) is None
    assert replace(rule, rendered="parse").mismatch(rule) is not None


def test_a_date_without_effect_is_refused() -> None:
    for config in (TextConfig(date="2026-12-31"), TextConfig(template="plain", date="2026-12-31")):
        with pytest.raises(ConfigError, match="date is .* which would have no effect"):
            make_text_rule(CHAT, config, 128)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("{{ 1 / 0 }}", "ZeroDivisionError: division by zero"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError"),
        ("{{ messages.nothing.at.all }}", "has no attribute"),
        ("{% for _ in range(10 ** 9) %}{% endfor %}", "OverflowError: Range too big"),
        ("{{ '%d' | format(messages) }}", "TypeError"),
        ("{{ messages | map(attribute='a.b') | sum }}", ""), ("{{ ('%*d' % (10 ** 20, 1)) }}", "OverflowError"),
        ("{{ raise_exception('x' * 10000) }}", "xxx"),
        ("{{ messages[0].content.encode('ascii') }}", "UnicodeEncodeError"),
    ],
)  # fmt: skip
def test_whatever_a_template_raises_refuses_the_conversation(source: str, said: str) -> None:
    rule = TextRule(source, {}, "auto", "auto", "error", 99)
    with pytest.raises(TextRefusedError, match=r"^The chat template refuses this conversation \(turns: user") as found:
        template.apply_template(rule, byte_tokenizer(), [{"role": "user", "content": "é"}])
    assert said in str(found.value) and len(str(found.value)) < 500
