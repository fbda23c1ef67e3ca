"""Inspection: what a fit would read, and the reward model's tokens."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.tiny import byte_tokenizer, save_rm

from ebrm import PreferenceConfig, TextConfig, inspect_data, load_backbone
from ebrm.errors import ConfigError, DataError

CHAT = (
    "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system turns') }}{% endif %}"
    "<|start|>{{ m['role'] }}\n{{ m['content'].split('</think>')[-1] }}<|end|>\n{% endfor %}"
)
ROWS = [
    {"prompt": "2 + 2?", "chosen": "4", "rejected": "5", "split": "train", "note": "x"},
    {"prompt": "2 + 2?", "chosen": "four", "rejected": "five", "split": "test"},
    {"prompt": "Why?", "chosen": "a</think>Because.", "rejected": "b</think>Because.", "split": "train"},
    {"prompt": "<|start|>user\nHi<|end|>", "chosen": "Hello!", "rejected": "No.", "split": "train"},
    {"prompt": "Long", "chosen": "word " * 60, "rejected": "No.", "split": "train"},
    {"prompt": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}],
     "chosen": "Hello.", "rejected": "No.", "split": "train"},
]  # fmt: skip


@pytest.fixture(scope="module")
def rm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = save_rm(tmp_path_factory.mktemp("rm"))
    byte_tokenizer(CHAT).save_pretrained(folder)
    return folder


def test_each_thing_that_would_go_wrong_in_a_fit_is_counted_and_named(rm: Path) -> None:
    found = inspect_data(ROWS, str(rm), rows=6)
    assert (found.prompts, found.shared) == (5, 1)
    texts = found.texts
    assert texts is not None and texts.template == "chat template" and texts.max_length == 128
    assert (texts.equal, texts.rendered, texts.too_long, texts.truncated) == (1, 2, 1, 0)
    assert list(texts.refused.values()) == [2] and "no system turns" in next(iter(texts.refused))
    said = str(found)
    for words in (
        "5 different, 1 of them in several splits", "note (1)", "1 of 6 pairs are the same text to this reward model",
        "2 texts hold special tokens", "too long: 1 texts", "the same tokens", "rows[0] (train)",
    ):  # fmt: skip
        assert words in said
    assert json.loads(json.dumps(found.to_dict()))["texts"]["equal"] == 1


def test_the_tokens_shown_are_those_that_a_fit_reads(rm: Path) -> None:
    (first, *_) = inspect_data(ROWS, str(rm), rows=1).pairs
    backbone = load_backbone(str(rm))
    ids = [backbone.tokenize("2 + 2?", reply).ids for reply in ("4", "5")]  # type: ignore[union-attr]
    assert first.tokens == tuple(map(len, ids))
    assert first.decoded[0] == backbone.tokenizer.decode(ids[0]) and "<|start|>assistant\n4<|end|>" in first.decoded[0]
    assert first.decoded[1] == "… 5<|end|>\n"


def test_settings_of_reading_and_of_texts_are_those_of_a_fit(rm: Path) -> None:
    rows = [{"asked": "Q", "chosen": "a", "rejected": "b"}]
    with pytest.raises(DataError, match="no common prompt"):
        inspect_data(rows)
    found = inspect_data(rows, str(rm), config=PreferenceConfig(columns={"prompt": "asked"}),
                         text=TextConfig(template="plain"))  # fmt: skip
    assert found.texts is not None and found.texts.template == "plain format"
    assert "User: Q\n\nAssistant: a" in found.pairs[0].decoded[0]


def test_weights_are_not_loaded(rm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def loaded(*_: object, **__: object) -> None:
        raise AssertionError("the weights were loaded")

    monkeypatch.setattr("ebrm.backbone.load.load_model", loaded)
    assert inspect_data(ROWS[:1], str(rm)).texts is not None


def test_more_rows_than_there_are_or_none_can_be_shown() -> None:
    assert [len(inspect_data(ROWS[:2], rows=rows).pairs) for rows in (0, 2, 9)] == [0, 2, 2]
    with pytest.raises(ConfigError, match="rows is -1; it must be 0 or more"):
        inspect_data(ROWS, rows=-1)
