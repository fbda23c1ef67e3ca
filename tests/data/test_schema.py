from __future__ import annotations

import hashlib
import json
import re
from dataclasses import replace

import pytest

from ebrm.data import COLUMN_NAMES, BadRow, PreferenceConfig, Preferences, RowProblem, TextConfig, check_prompt, schema
from ebrm.data.schema import Preference, PreferenceReport
from ebrm.errors import ConfigError, setting

ASK = ({"role": "user", "content": "2+2?"},)
PAIR = Preference(ASK, "4", "5", 0.5, "sums", "maths", "f.jsonl:1", "train")
REPORT = PreferenceReport("f.jsonl", "explicit prompt, standard", 4, 1, {"empty": 2}, (), 0, limited=1)


def preferences(*rows: Preference) -> Preferences:
    return Preferences(rows, REPORT)


def test_prompt_id_is_the_hash_of_the_canonical_json():
    canonical = '[{"content":"2+2?","role":"user"}]'
    assert PAIR.prompt_id == hashlib.sha256(canonical.encode()).hexdigest()[:16]
    reordered = ({"content": "2+2?", "role": "user"},)
    assert replace(PAIR, prompt=reordered).prompt_id == PAIR.prompt_id
    assert replace(PAIR, prompt=({"role": "user", "content": "2+2? "},)).prompt_id != PAIR.prompt_id


@pytest.mark.parametrize(
    "change",
    [
        {"prompt": ({"role": "user", "content": "2+3?"},)}, {"chosen": "four"}, {"rejected": "six"},
        {"chosen": "5", "rejected": "4"}, {"strength": None}, {"source": None}, {"category": "x"}, {"split": "test"},
    ],
)  # fmt: skip
def test_fingerprint_changes_with_every_content(change):
    assert preferences(replace(PAIR, **change)).fingerprint != preferences(PAIR).fingerprint


def test_fingerprint_is_about_order_and_not_about_where_rows_were_read():
    other = replace(PAIR, chosen="four")
    assert preferences(PAIR, other).fingerprint != preferences(other, PAIR).fingerprint
    assert preferences(replace(PAIR, row="elsewhere:9")).fingerprint == preferences(PAIR).fingerprint
    assert len(preferences(PAIR).fingerprint) == 64


def test_preferences_are_a_sequence():
    other = replace(PAIR, chosen="four")
    both = preferences(PAIR, other)
    assert (len(both), list(both), both[1]) == (2, [PAIR, other], other)


def test_report_says_every_count_and_becomes_json():
    report = replace(REPORT, duplicates=3, examples=(BadRow("f.jsonl:2", "chosen", "''", "empty"),))
    assert report.summary() == (
        "f.jsonl: 1 of 4 rows kept (explicit prompt, standard); 2 skipped (2 empty); 1 beyond the limit; "
        "3 exact repeats among the kept"
    )
    as_json = json.loads(json.dumps(report.to_dict()))
    assert as_json["examples"] == [{"where": "f.jsonl:2", "field": "chosen", "value": "''", "kind": "empty"}]
    assert as_json["skipped"] == {"empty": 2}


def test_bad_row_shows_a_shortened_printable_value():
    row = RowProblem("lone surrogate", "chosen", "x" * 10_000 + "\ud83d").at("f.jsonl:3")
    assert len(row.value) < 90
    str(row).encode("utf-8")
    assert str(row).startswith("f.jsonl:3, chosen: lone surrogate, 'xxx")


def test_usable_prompts_numbers_and_names():
    system = {"role": "system", "content": "s"}
    assert check_prompt([system, *ASK], "p") == (system, *ASK)
    given: list[object] = [2, 0.5, "0.25", -1]
    assert [schema.number_of(v, "s") for v in given] == [2.0, 0.5, 0.25, -1.0]
    assert [schema.name_of(v, "c") for v in ("x", 3, 1.0, 0.5, True)] == ["x", "3", "1", "0.5", "True"]
    assert [schema.is_missing(v) for v in (None, "", float("nan"), 0, "x", [])] == [
        True,
        True,
        True,
        False,
        False,
        False,
    ]


def test_settings_refuse_what_they_do_not_know():
    assert PreferenceConfig().split is None
    assert TextConfig(template="auto").template is None
    for wrong in ({"bad_rows": "ignore"}, {"limit": 0}, {"columns": {"question": "prompt"}}):
        with pytest.raises(ConfigError):
            PreferenceConfig(**wrong)
    for wrong in ({"bos": "no"}, {"eos": "strip"}, {"truncation": "right"}, {"max_length": 0}):
        with pytest.raises(ConfigError):
            TextConfig(**wrong)


def test_the_docstring_of_the_columns_names_them_all():
    listed = re.search(r"Our names: (.*?)\.", " ".join((PreferenceConfig.__doc__ or "").split()))
    assert listed and listed[1].split(", ") == list(COLUMN_NAMES)


def test_an_error_writes_a_setting_as_python_in_backticks():
    assert setting("bad_rows", "skip") == '`bad_rows="skip"`'
    assert setting("columns", {"prompt": "Frage ü"}) == '`columns={"prompt": "Frage ü"}`'
