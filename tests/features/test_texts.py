"""What becomes of pairs by their texts: refused, the same on both sides, rendered before, dated."""

from __future__ import annotations

import datetime
import logging
from typing import Any

import pytest
from tests.features.fakes import FakeBackbone, contents
from tests.tiny import CHAT_TEMPLATE, byte_tokenizer

from ebrm.data import Preferences, TextConfig, load_preferences, look_at, make_text_rule, template, text, tokenize
from ebrm.errors import FeaturesError, TextError, TextTooLongError
from ebrm.features import extract_features, extract_texts
from ebrm.features.extract import Text

CHAT = byte_tokenizer()
REFUSES = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
STRIPS = (
    "{{ bos_token }}{% for m in messages %}<|start|>{{ m['role'] }}\n{{ m['content'].split('</think>')[-1] | trim }}"
    "<|end|>\n{% endfor %}"
)


class TextBackbone(FakeBackbone):
    """Token ids are those of a tokenizer with a chat template."""

    def __init__(self, template: str = CHAT_TEMPLATE, limit: int = 400, **settings: Any) -> None:
        super().__init__(max_length=limit)
        self.tokenizer = CHAT
        self.text_rule = make_text_rule(CHAT, TextConfig(template=template, **settings), limit)

    def tokenize(self, prompt: Any, response: Any, where: str = "") -> Any:
        return tokenize(self.text_rule, self.tokenizer, prompt, response, where)


def pairs(*rows: tuple[Any, Any, Any]) -> Preferences:
    return load_preferences([{"prompt": p, "chosen": c, "rejected": r} for p, c, r in rows])


def plain(count: int) -> list[tuple[Any, Any, Any]]:
    return [(f"Say {n}.", f"{n}", f"no {n}") for n in range(count)]


SYSTEM = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]


class TestRefused:
    DATA = pairs(*plain(3), (SYSTEM, "a", "b"), *plain(2), (SYSTEM, "c", "d"))

    def test_all_are_counted_and_named_with_the_ways_out(self, tmp_path):
        with pytest.raises(TextError) as caught:
            extract_features(TextBackbone(REFUSES + CHAT_TEMPLATE), self.DATA, tmp_path / "f")
        said = str(caught.value)
        assert said.startswith("2 of 7 pairs cannot be read by the reward model (2 refused by the chat template). They")
        for part in ("rows[3], chosen: ", "rows[6], chosen: ", "System role not supported", 'bad_rows="skip"'):
            assert part in said
        assert '`system="fold"`' in said and "plain" not in said
        assert contents(tmp_path) == {}

    def test_skipped_they_are_left_out_and_counted(self, tmp_path, caplog):
        with caplog.at_level(logging.WARNING):
            made = extract_features(
                TextBackbone(REFUSES + CHAT_TEMPLATE), self.DATA, tmp_path / "f", bad_rows="skip"
            )  # fmt: skip
        assert made.manifest["bad_rows"] == {"refused by the chat template": 2} and made.manifest["dropped"] == 0
        assert made.pairs.where.tolist() == [f"rows[{n}]" for n in (0, 1, 2, 4, 5)]
        assert "2 pairs are left out: 2 refused by the chat template." in [r.getMessage() for r in caplog.records]

    def test_folded_none_is_refused(self, tmp_path):
        made = extract_features(TextBackbone(REFUSES + CHAT_TEMPLATE, system="fold"), self.DATA, tmp_path / "f")
        assert len(made.pairs) == 7 and "bad_rows" not in made.manifest

    def test_too_long_ones_likewise(self, tmp_path):
        data = pairs(*plain(2), ("p", "x" * 90, "y"), ("p", "z" * 90, "y"))
        with pytest.raises(TextTooLongError, match=r"2 of 4 pairs .*\(2 too long\)") as caught:
            extract_features(TextBackbone(limit=60), data, tmp_path / "f")
        for way in ('bad_rows="skip"', 'truncation="prompt_left_or_drop"', "`max_length`"):
            assert way in str(caught.value)
        made = extract_features(TextBackbone(limit=60), data, tmp_path / "f", bad_rows="skip")
        assert made.manifest["bad_rows"] == {"too long": 2} and len(made.pairs) == 2

    def test_where_none_is_left_no_way_out_is_promised(self, tmp_path):
        with pytest.raises(TextError, match="2 of 2 pairs.*\n.*\n.*\nNo pair is left to use") as caught:
            extract_features(
                TextBackbone(REFUSES + CHAT_TEMPLATE), pairs((SYSTEM, "a", "b"), (SYSTEM, "c", "d")), tmp_path / "f",
                bad_rows="skip",
            )  # fmt: skip
        assert "bad_rows" not in str(caught.value)

    def test_in_texts_without_pairs_the_reason_is_kept(self, tmp_path):
        texts = [Text("p", tuple(SYSTEM), "a", "here"), Text("q", ({"role": "user", "content": "u"},), "a", "there")]
        made = extract_texts(TextBackbone(REFUSES + CHAT_TEMPLATE), texts, tmp_path / "f")
        ((refused, why),) = made.manifest["refused"].items()
        assert refused == texts[0].id and "System role not supported" in why and len(made) == 1


class TestSameSides:
    @staticmethod
    def thoughts(same: int, other: int) -> Preferences:
        rows: list[tuple[Any, Any, Any]] = [
            (f"2+{n}?", f"<think>right {n}</think>{n + 2}", f"<think>wrong {n}</think>{n + 2}") for n in range(same)
        ]
        return pairs(*rows, *plain(other))

    def test_most_are_refused_with_what_is_left_out(self, tmp_path):
        with pytest.raises(FeaturesError, match="40 of 40 pairs are the same text to this reward model") as caught:
            extract_features(TextBackbone(STRIPS), self.thoughts(40, 0), tmp_path / "f")
        assert "right 0" in str(caught.value) and "wrong 0" in str(caught.value) and "rows[0]" in str(caught.value)
        assert contents(tmp_path) == {}

    def test_some_are_counted_and_said(self, tmp_path, caplog):
        with caplog.at_level(logging.WARNING):
            made = extract_features(TextBackbone(STRIPS), self.thoughts(2, 3), tmp_path / "f")
        assert made.manifest["same_sides"] == 2
        assert any("2 of 5 pairs are the same text to this reward model" in r.getMessage() for r in caplog.records)

    def test_none_is_not_mentioned(self, tmp_path, caplog):
        with caplog.at_level(logging.WARNING):
            made = extract_features(TextBackbone(), self.thoughts(2, 3), tmp_path / "f")
        assert not {"same_sides", "rendered", "repeated_prompts", "bad_rows"} & made.manifest.keys()
        assert caplog.records == []


class TestRendered:
    CHATML = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"

    def chatml(self) -> list[tuple[Any, Any, Any]]:
        return [(self.CHATML.format(n), "Hello!<|im_end|>", "No.<|im_end|>") for n in range(3)]

    def test_is_counted_by_prompts_and_replies_and_said_in_one_line(self, tmp_path, caplog):
        with caplog.at_level(logging.WARNING):
            made = extract_features(
                TextBackbone(), pairs(*self.chatml(), *plain(2), ("x", "</s>", "b")), tmp_path / "f"
            )
        assert made.manifest["rendered"] == {"prompts": 3, "replies": 1, "marker": "<|im_start|>"}
        (said,) = [record.getMessage() for record in caplog.records]
        assert said.startswith("3 prompts and 1 replies hold special tokens of a chat template (<|im_start|>) as text.")
        assert "Are they already rendered?" in said and '`rendered="parse"`' in said

    def test_parsed_it_is_the_same_as_never_rendered(self, tmp_path):
        data = pairs(*((self.CHATML.format(n), "Hello!<|im_end|>", "No.<|im_end|>") for n in range(3)))
        parsed = extract_features(TextBackbone(rendered="parse"), data, tmp_path / "parsed")
        bare = extract_features(
            TextBackbone(), pairs(*((f"{n}", "Hello!", "No.") for n in range(3))), tmp_path / "bare"
        )
        assert parsed.manifest["content"] == bare.manifest["content"] and "rendered" not in parsed.manifest

    def test_a_prompt_repeated_by_both_replies_is_counted(self, tmp_path, caplog):
        rows = [(f"Say {n}.", f"Say {n}. Yes", f"Say {n}. No") for n in range(3)]
        with caplog.at_level(logging.WARNING):
            made = extract_features(TextBackbone(), pairs(*rows, ("Say x.", "Say x. Yes", "No")), tmp_path / "f")
        assert made.manifest["repeated_prompts"] == 3
        assert "3 of 4 pairs repeat the prompt at the start of both replies" in caplog.records[-1].getMessage()
        parsed = extract_features(TextBackbone(rendered="parse"), pairs(*rows), tmp_path / "parsed")
        bare = extract_features(TextBackbone(), pairs(*((p, "Yes", "No") for p, _, _ in rows)), tmp_path / "bare")
        assert parsed.manifest["content"] == bare.manifest["content"]


def test_a_run_that_is_gone_on_with_on_another_day_keeps_its_date(tmp_path, monkeypatch):
    source = "{{ strftime_now('%d %b %Y') }}" + CHAT_TEMPLATE
    data = pairs(*plain(3))

    def on(day: str, **settings: Any) -> TextBackbone:
        class Day(datetime.date):
            @classmethod
            def today(cls) -> datetime.date:
                return datetime.date.fromisoformat(day)

        monkeypatch.setattr(text, "date", Day)
        template.warn_once.cache_clear()
        return TextBackbone(source, **settings)

    first = extract_features(on("2026-09-01"), data, tmp_path / "f")
    backbone = on("2026-09-02")
    assert extract_features(backbone, data, tmp_path / "f").manifest == first.manifest
    assert backbone.text_rule.date == first.manifest["text"]["date"] == "2026-09-01"
    with pytest.raises(FeaturesError, match="date"):
        extract_features(on("2026-09-02", date="2026-09-03"), data, tmp_path / "f")


def test_calls_are_part_of_a_text(tmp_path):
    def call(name: str) -> list[dict[str, Any]]:
        calls = [{"type": "function", "function": {"name": name, "arguments": {}}}]
        return [{"role": "assistant", "content": None, "tool_calls": calls}]

    data = pairs(("Weather?", call("get_weather"), call("delete_files")))
    source = CHAT_TEMPLATE.replace("<|end|>", "{{ m.tool_calls | tojson if m.tool_calls else '' }}<|end|>")
    made = extract_features(TextBackbone(source), data, tmp_path / "f")
    assert len(made) == 2 and "same_sides" not in made.manifest
    with pytest.raises(TextError, match=r"1 of 1 pairs .*\n.*leaves out the tool call get_weather of the reply"):
        extract_features(TextBackbone(), data, tmp_path / "g")


class TestLook:
    def test_shows_the_text_its_tokens_and_what_is_wrong(self):
        backbone = TextBackbone("{{ bos_token }}" + CHAT_TEMPLATE, limit=60, truncation="prompt_left")
        found = look_at(backbone.text_rule, CHAT, "Say <|end|>.", "Yes")
        assert found.rendered == "<s><s><|start|>user\nSay <|end|>.<|end|>\n<|start|>assistant\nYes<|end|>\n"
        assert found.decoded == found.rendered.removeprefix("<s>")
        assert (found.tokens, found.truncated, found.marker, found.error) == (len(found.ids), 0, "<|end|>", None)
        long = look_at(backbone.text_rule, CHAT, "x" * 80, "Yes")
        assert len(long.ids) == 60 and long.truncated == long.tokens - 60 and long.decoded.startswith("<s>xxx")
        assert "Yes<|end|>" in long.decoded

    def test_of_a_text_that_is_not_read_says_why(self):
        backbone = TextBackbone(REFUSES + CHAT_TEMPLATE, limit=60, truncation="drop")
        refused = look_at(backbone.text_rule, CHAT, SYSTEM, "a")
        assert refused.ids == () and refused.error is not None and "System role not supported" in refused.error
        dropped = look_at(backbone.text_rule, CHAT, "x" * 80, "Yes")
        assert dropped.ids == () and dropped.tokens > 80 and dropped.error is not None and "drops it" in dropped.error
        only = CHAT_TEMPLATE.replace("{% for m in messages %}", "{% for m in messages if m['role'] != 'system' %}")
        assert look_at(TextBackbone(only).text_rule, CHAT, SYSTEM, "a").left_out == ("system",)
