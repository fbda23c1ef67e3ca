"""Rated responses: thumbs and ratings in the layouts they come in, and what is refused."""

from __future__ import annotations

import json
import math

import pytest

from ebrm.data import PreferenceConfig, Ratings, holds_thumbs, load_preferences, load_ratings
from ebrm.errors import ConfigError, DataError

ASK, SAY = {"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}
KTO = {"prompt": "2 + 2?", "completion": "4", "label": True}
STEER = {"prompt": "2 + 2?", "response": "4", "helpfulness": 3, "correctness": 4, "coherence": None, "verbosity": 1}


def load(rows, **more) -> Ratings:
    return load_ratings(rows, PreferenceConfig(**more))


@pytest.mark.parametrize(
    "row",
    [
        KTO,
        {**KTO, "prompt": [ASK], "completion": [SAY]},  # TRL's conversations
        {"messages": [ASK, SAY], "label": True},  # ms-swift
        {"conversations": [{"from": "human", "value": "2 + 2?"}, {"from": "gpt", "value": "4"}], "kto_tag": "true"},
        {"instruction": "2 + 2?", "input": "", "response": "4", "label": 1},
        {"question": "2 + 2?", "response": "4", "label": "1.0"},
    ],
)
def test_thumbs_are_read_in_every_layout(row) -> None:
    found = load([row])
    assert found.rows[0].prompt == (ASK,) and found.rows[0].response == "4" and found.rows[0].ratings == (1.0,)
    assert found.report.layout.startswith("thumbs: ") and not found.report.unread_columns
    assert holds_thumbs([row]) and found.fingerprint != load([{**row, "source": "s"}]).fingerprint


def test_words_and_numbers_of_thumbs() -> None:
    found = load([{**KTO, "label": label} for label in (True, False, 1, 0, "True", "false", "yes", "no")])
    assert [row.ratings for row in found] == [(1.0,), (0.0,)] * 4


def test_ratings_by_attributes_keep_their_order_and_their_gaps() -> None:
    found = load([STEER, {**STEER, "response": "-", "helpfulness": math.nan, "correctness": "2"}])
    assert found.attributes == ("helpfulness", "correctness", "coherence", "verbosity")
    assert found.rows[0].ratings[:2] == (3, 4) and math.isnan(found.rows[0].ratings[2])
    assert math.isnan(found.rows[1].ratings[0]) and found.rows[1].ratings[1] == 2 and found.rows[1].response == "-"
    assert not holds_thumbs([STEER]) and "ratings: prompt, response" in found.report.summary()
    named = load([{"prompt": "p", "response": "r", "ratings_tone": 1, "ratings_style": 2, "rank": 3}])
    assert named.attributes == ("ratings_tone", "ratings_style") and named.report.unread_columns == {"rank": 1}


def test_columns_are_mapped_and_what_goes_with_a_pair_goes_with_a_rating() -> None:
    row = {"ask": "p", "answer": "r", "x": 1, "y": 2.5, "split": "test", "source": "s", "system": "Be brief."}
    found = load([row], columns={"prompt": "ask", "response": "answer", "ratings": "y, x"})
    assert found.attributes == ("y", "x") and found.rows[0].ratings == (2.5, 1.0)
    assert (found.rows[0].split, found.rows[0].source, found.rows[0].prompt[0]["role"]) == ("test", "s", "system")
    assert holds_thumbs([row], PreferenceConfig(columns={"prompt": "ask", "response": "answer", "ratings": "x"}))


def test_pairs_are_no_ratings_and_ratings_no_pairs() -> None:
    pair = {"prompt": "p", "chosen": "a", "rejected": "b", "label": True}
    assert not holds_thumbs([pair]) and not holds_thumbs([]) and len(load_preferences([pair])) == 1
    with pytest.raises(DataError, match=r"The head binary is fitted on them as they are; for other heads, where"):
        load_preferences([KTO])
    with pytest.raises(ConfigError, match="`columns` for ratings and response has no effect on preference pairs"):
        load_preferences([pair], PreferenceConfig(columns={"response": "a", "ratings": "b"}))
    for more, name in (
        ({"columns": {"label": "x"}}, "`columns` for label"),
        ({"label_map": {"1": "a"}}, "`label_map`"),
    ):
        with pytest.raises(ConfigError, match=f"{name} has no effect on rated responses"):
            load([KTO], **more)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"label": 2}, "label: not a thumb"),
        ({"label": "perhaps"}, "label: not a number"),
        ({"label": None}, "label: missing"),
        ({"completion": " "}, "completion: empty"),
        ({"completion": [ASK]}, "reply is not an assistant message"),
        ({"completion": ["4", "5"]}, "completion: more than one reply"),
        ({"prompt": None}, "prompt"),
    ],
)
def test_a_bad_row_stops_or_is_counted(row, said) -> None:
    rows = [KTO, {**KTO, **row}, {**KTO, "label": False}]
    with pytest.raises(DataError, match=rf"1 of 3 rows cannot be used[^\n]*\n[^\n]*rows\[1\], {said}|{said}"):
        load(rows)
    found = load(rows, bad_rows="skip")
    assert len(found) == 2 and sum(found.report.skipped.values()) == 1


def test_what_holds_no_ratings_says_what_was_expected(tmp_path) -> None:
    with pytest.raises(DataError, match="expected prompt and response"):
        load([{"prompt": "p", "response": "r", "stars": 3}])
    with pytest.raises(DataError, match=r'expected prompt.*"ratings": "clarity,tone"'):
        load([KTO], columns={"ratings": "label,tone"})
    with pytest.raises(DataError, match=r"names what no row of .* has"):
        load([KTO], columns={"source": "from"})
    with pytest.raises(DataError, match="look like splits"):
        load([{**KTO, "part": part} for part in ("train", "test")])
    (tmp_path / "none.jsonl").write_text("")
    with pytest.raises(DataError, match="holds no rows"):
        load(tmp_path / "none.jsonl")
    (tmp_path / "kto.jsonl").write_text("".join(json.dumps({**KTO, "prompt": f"{i}?"}) + "\n" for i in range(9)))
    assert len(load(tmp_path / "kto.jsonl", limit=4)) == 4
