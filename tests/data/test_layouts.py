"""Layouts of other trainers and of public data sets: each is read as it is meant, or refused with the way out."""

from __future__ import annotations

import ast
from typing import Any

import pandas
import pytest

import ebrm
from ebrm.data import PreferenceConfig, load_preferences
from ebrm.errors import ConfigError, DataError

ASK = {"role": "user", "content": "2+2?"}
RULE = {"role": "system", "content": "Be brief."}


def say(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def load(rows: Any, **settings: Any) -> Any:
    return load_preferences(rows, PreferenceConfig(**settings))


def pairs(rows: list[dict[str, Any]], **settings: Any) -> list[tuple[list[dict[str, str]], Any, Any]]:
    return [(list(pair.prompt), pair.chosen, pair.rejected) for pair in load(rows, **settings)]


TWO = {"prompt": "2+2?", "response_1": "4", "response_2": "5"}
HUMAN, GPT = ({"from": "human", "value": "2+2?"}, {"from": "gpt", "value": "4"})
KAGGLE = {"id": 1, "prompt": '["2+2?"]', "response_a": '["4"]', "response_b": '["5"]'}


@pytest.mark.parametrize(
    "row",
    [
        # TRL
        {"prompt": "2+2?", "chosen": "4", "rejected": "5"},
        {"prompt": [ASK], "chosen": [say("4")], "rejected": [say("5")]},
        {"chosen": [ASK, say("4")], "rejected": [ASK, say("5")]},
        # LLaMA-Factory and Alpaca
        {"instruction": "2+2?", "input": "", "chosen": "4", "rejected": "5"},
        {"instruction": "2+2?", "chosen": "4", "rejected": "5"},
        {"conversations": [HUMAN], "chosen": GPT, "rejected": {"from": "gpt", "value": "5"}},
        {"messages": [ASK], "chosen": say("4"), "rejected": say("5")},
        # ms-swift
        {"messages": [ASK, say("4")], "rejected_response": "5"},
        {"messages": [ASK, say("4")], "rejected_messages": [ASK, say("5")]},
        {"query": "2+2?", "response": "4", "rejected_response": "5"},
        # axolotl, OpenRLHF, NeMo-RL
        {"system": "", "question": "2+2?", "chosen": "4", "rejected": "5"},
        {"input": "2+2?", "chosen": "4", "rejected": "5"},
        {"context": [ASK], "completions": [
            {"rank": 1, "completion": [say("5")]}, {"rank": 0, "completion": [say("4")]}]},
        {"prompt": "2+2?", "chosen_response": "4", "rejected_response": "5"},
        # distilabel, UltraFeedback, Nectar
        {"instruction": "2+2?", "generations": ["5", "4"], "ratings": [1, 5]},
        {"instruction": "2+2?", "chosen_response": "4", "rejected_response": "5"},
        {"instruction": "2+2?", "completions": [
            {"response": "5", "overall_score": 9.0, "fine-grained_score": 1.0},
            {"response": "4", "overall_score": 1.0, "fine-grained_score": 4.5}]},
        {"prompt": "\n\nHuman: 2+2?\n\nAssistant: ", "answers": [
            {"answer": "5", "rank": 2.0}, {"answer": "4", "rank": 1.0}]},
        {"prompt": "2+2?", "responses": ["4", "5"], "scores": [0.9, "0.1"]},
        {"prompt": "2+2?", "completions": ["5", "4"], "ranks": [2, 1]},
        {"prompt": "2+2?", "prompt_id": "x", "chosen": [ASK, say("4")], "rejected": [ASK, say("5")],
         "messages": [ASK, say("4")], "score_chosen": 8.0, "score_rejected": 3.0},
        # public data sets with labels
        {"history": "2+2?", "human_ref_A": "4", "human_ref_B": "5", "labels": 1, "score_A": 9, "score_B": 2},
        {"history": "2+2?", "human_ref_A": "5", "human_ref_B": "4", "labels": 0},
        TWO | {"preference_strength": -3},
        {"prompt": "2+2?", "response_1": "5", "response_2": "4", "preference_strength": 1},
        {"context": [ASK], "response1": "4", "response2": "5", "overall_preference": -1},
        {"context": [ASK], "response1": "5", "response2": "4", "overall_preference": 2},
        {"prompt": "2+2?", "response_0": "4", "response_1": "5", "better_response_id": 0, "safer_response_id": 1},
        {"conversation_a": [ASK, say("4")], "conversation_b": [ASK, say("5")], "winner": "model_a"},
        {"conversation_a": [ASK, say("5")], "conversation_b": [ASK, say("4")], "winner": "model_b"},
        KAGGLE | {"winner_model_a": 1, "winner_model_b": 0, "winner_tie": 0},
        {"question": "2+2?", "response_A": "5", "response_B": "4", "label": "B>A"},
        {"prompt": "2+2?", "response_a": "4", "response_b": "5", "winner": "model_a"},
        {"question": {"full_text": "2+2?", "id": "7"}, "answer_0": "5", "answer_1": "4", "score_0": -1, "score_1": 1},
        # RewardBench and its kind
        {"prompt": "2+2?", "chosen": "4", "rejected": "5", "subset": "math", "chosen_model": "x"},
        {"prompt": "2+2?", "chosen": ["4"], "rejected": ["5"], "subset": "math"},
        {"question": "2+2?", "response_j": "4", "response_k": "5"},
    ],
)  # fmt: skip
def test_every_layout_reads_as_it_is_meant(row):
    assert pairs([row]) == [([ASK], "4", "5")]


def test_an_input_goes_behind_the_instruction_and_system_and_history_before_it():
    row = {"instruction": "Add.", "input": "2 and 2", "chosen": "4", "rejected": "5"}
    asked = {"role": "user", "content": "Add.\n2 and 2"}
    assert pairs([row]) == pairs([row], columns={"prompt": "instruction"}) == [([asked], "4", "5")]
    history = [["1+1?", "2"]]
    turns = [RULE, {"role": "user", "content": "1+1?"}, say("2"), asked]
    assert pairs([row | {"system": "Be brief.", "history": history}]) == [(turns, "4", "5")]
    assert pairs([row | {"system": "Be brief.", "history": '[["1+1?", "2"]]'}]) == [(turns, "4", "5")]
    assert pairs([row | {"system": "Be brief."}], columns={"system": ""}) == [([asked], "4", "5")]
    with pytest.raises(DataError, match="history: not a list of questions and answers"):
        load([row | {"history": ["1+1?"]}])


def test_a_system_column_and_a_system_turn_must_agree():
    row = {"system": "Be brief.", "chosen": [RULE, ASK, say("4")], "rejected": [RULE, ASK, say("5")]}
    assert pairs([row]) == [([RULE, ASK], "4", "5")]
    with pytest.raises(DataError, match="system column and system turn disagree"):
        load([row | {"system": "Be long."}])


def test_several_responses_make_one_pair_each():
    row = {"prompt": "2+2?", "chosen": ["4", "four"], "rejected": ["5", "6"]}
    loaded = load([row])
    assert [(p.chosen, p.rejected) for p in loaded] == [("4", "5"), ("4", "6"), ("four", "5"), ("four", "6")]
    assert (loaded.report.read, loaded.report.pairs, loaded.report.kept) == (1, 4, 4)
    assert "4 pairs kept of 4 in 1 rows" in loaded.report.summary()
    assert len({p.prompt_id for p in loaded}) == 1
    ranked = {"prompt": "2+2?", "responses": ["5", "4", "four", "6"], "scores": [2, 9, 9, 1]}
    loaded = load([ranked])
    assert [(p.chosen, p.rejected) for p in loaded] == [("4", "5"), ("4", "6")]  # equal scores make no pair
    assert "the best by scores (highest) against each worse one" in loaded.report.summary()
    one_bad = load([row | {"rejected": ["5", "4"]}], bad_rows="skip").report
    assert (one_bad.pairs, one_bad.kept, one_bad.skipped) == (4, 3, {"equal sides": 1})


def test_responses_without_a_score_or_a_difference():
    row = {"prompt": "2+2?", "responses": ["4", "5", "6"], "ratings": [5, None, 1]}
    loaded = load([row, row | {"ratings": [3, 3, 3]}])
    assert [(p.chosen, p.rejected) for p in loaded] == [("4", "6")]
    assert (loaded.report.odd, loaded.report.ties) == ({"responses without ratings": 1}, 1)
    with pytest.raises(DataError, match="fewer than two responses with a score"):
        load([row, row | {"ratings": [3, None, "N/A"]}])
    with pytest.raises(DataError, match="ratings: not as many as responses"):
        load([row, row | {"ratings": [3]}])


def test_ratings_of_one_response_a_row_are_compared_within_a_prompt():
    def rated(prompt: str, response: str, score: int) -> dict[str, Any]:
        return {"prompt": prompt, "response": response, "helpfulness": score, "correctness": 1, "verbosity": 2}

    loaded = load([rated("2+2?", "5", 1), rated("2+2?", "4", 4), rated("3+3?", "6", 3), rated("3+3?", "six", 3)])
    assert [(p.prompt[0]["content"], p.chosen, p.rejected) for p in loaded] == [("2+2?", "4", "5")]
    report = loaded.report
    assert (report.read, report.pairs, report.kept, report.ties) == (4, 2, 1, 1)
    assert report.unread_columns == {"correctness": 4, "verbosity": 4}
    assert "by helpfulness (highest)" in report.summary()


def test_columns_mapped_to_lists_of_responses():
    row = {"q": "2+2?", "candidates_": ["5", "4"], "order": [2, 1]}
    columns = {"prompt": "q", "responses": "candidates_", "ranks": "order"}
    assert pairs([row], columns=columns) == [([ASK], "4", "5")]


# ---- labels ----


LABELED = {"prompt": "2+2?", "a": "4", "b": "5"}
SHP = {"history": "2+2?", "human_ref_A": "4", "human_ref_B": "5"}


@pytest.mark.parametrize("label", [0, 1, 2, "1", 0.0, True, "first", -3])
def test_a_label_that_does_not_say_what_it_means_stops_whatever_is_done_with_bad_rows(label):
    for bad_rows in ("stop", "skip"):
        with pytest.raises(DataError, match=r"what that says is not known.*a \(a\), b \(b\) or tie.*`label_map="):
            load([LABELED | {"label": "A"}, LABELED | {"label": label}], bad_rows=bad_rows)


def test_the_map_that_is_suggested_names_known_values_too_and_is_enough():
    rows = [{"prompt": "q", "a": "x", "b": "y", "label": label} for label in ("[[A]]", "[[C]]", "[[B]]")]
    with pytest.raises(DataError, match=r'label_map={"\[\[C\]\]": "tie", "a": "a", "b": "b"}'):
        load(rows)
    assert load(rows, label_map={"[[C]]": "tie", "a": "a", "b": "b"}).report.ties == 1
    assert load([{**rows[0], "label": tie} for tie in ("tie (both_bad)", "TIE_BOTHBAD")] + rows[:1]).report.ties == 2


def test_a_map_says_what_labels_mean_and_the_report_what_was_done():
    rows = [LABELED | {"label": label} for label in (1, 1.0, "1", 2, "both")]
    loaded = load(rows, label_map={"1": "b", "2": "a", "Both": "tie"})
    assert [pair.chosen for pair in loaded] == ["5", "5", "5", "4"]
    report = loaded.report
    assert report.labels is not None
    assert report.labels.counts == {"1": 3, "2": 1, "both": 1} and report.labels.source == "label_map"
    assert (report.ties, report.read, report.kept, report.skipped) == (1, 5, 4, {})
    said = "label 'label', read as label_map: 1 -> b better (3), 2 -> a better (1), both -> a tie (1); 1 ties left out"
    assert said in report.summary()
    with pytest.raises(DataError, match=r"holds 3 \(2 rows\).*1 is read as b"):
        load([*rows, LABELED | {"label": 3}, LABELED | {"label": 3}], label_map={"1": "b", "2": "a", "both": "tie"})


def test_a_scale_has_a_rule_by_comparisons():
    rows = [LABELED | {"label": n / 10} for n in (-30, -1, 0, 5, 30)]
    rule = {"<0": "a", ">0": "b", "0": "tie"}
    loaded = load(rows, label_map=rule)
    assert [pair.chosen for pair in loaded] == ["4", "4", "5", "5"]
    many = load([LABELED | {"label": n / 10} for n in range(-20, 21)], label_map=rule).report.labels
    assert many.counts == {"<0": 20, ">0": 20, "0": 1} and many.meaning == {"<0": "a", ">0": "b", "0": "tie"}
    with pytest.raises(DataError, match=r"`label_map=\{\"<0\": \"a\", \">0\": \"b\", \"0\": \"tie\"\}`"):
        load(rows)


@pytest.mark.parametrize(("key", "meaning"), [("1", "chosen"), (">", "a"), ("<x", "b"), (">=1", "a"), ("1", "")])
def test_a_map_that_cannot_be_read(key, meaning):
    with pytest.raises(ConfigError, match="label_map has"):
        PreferenceConfig(label_map={key: meaning})


def test_conventions_go_by_the_columns_also_when_these_are_mapped_even_turned_round():
    rows = [SHP | {"labels": 1}, SHP | {"human_ref_A": "5", "human_ref_B": "4", "labels": 0}]
    mapped = {"prompt": "history", "a": "human_ref_A", "b": "human_ref_B", "label": "labels"}
    turned = mapped | {"a": "human_ref_B", "b": "human_ref_A"}
    for columns in ({}, mapped, turned):
        loaded = load(rows, columns=columns)
        assert [pair.chosen for pair in loaded] == ["4", "4"]
        assert "label 'labels', read as SHP: " in loaded.report.summary()
    other = load(rows, columns=mapped, label_map={"1": "b", "0": "a"})  # the user knows better, and it is said
    assert [pair.chosen for pair in other] == ["5", "5"] and "read as label_map" in other.report.summary()


def test_words_do_not_decide_where_the_columns_are_mapped_against_them():
    row = {"prompt": "2+2?", "response_A": "4", "response_B": "5", "label": "A>B"}
    with pytest.raises(DataError, match="what that says is not known"):
        load([row], columns={"a": "response_B", "b": "response_A", "label": "label"})
    assert pairs([row | {"label": "response_a"}]) == [([ASK], "4", "5")]


def test_scores_beside_labels_are_a_check():
    good = SHP | {"labels": 1, "score_A": 9, "score_B": 2}
    turned = SHP | {"labels": 1, "score_A": 2, "score_B": 9}
    with pytest.raises(DataError, match=r"prefer different replies in 2 of 3 rows.*turned round"):
        load([good, turned, turned])
    assert load([good] * 3 + [turned]).report.odd == {"label and scores prefer different replies": 1}


@pytest.mark.parametrize(
    ("row", "value"),
    [(TWO, -100), (TWO, "much better"), ({"context": [ASK], "response1": "4", "response2": "5"}, 4)],
)
def test_a_value_outside_a_known_scale_stops(row, value):
    label = "overall_preference" if "context" in row else "preference_strength"
    with pytest.raises(DataError, match="what that says is not known"):
        load([row | {label: -1}, row | {label: value}], bad_rows="skip")


def test_ties_are_left_out_and_counted_and_nothing_but_ties_is_an_error():
    battle = {"conversation_a": [ASK, say("4")], "conversation_b": [ASK, say("5")]}
    rows = [battle | {"winner": winner} for winner in ("model_a", "tie", "tie (bothbad)")]
    assert (load(rows).report.ties, load(rows).report.kept) == (2, 1)
    with pytest.raises(DataError, match="all 2 rows are ties"):
        load(rows[1:])
    kaggle = [KAGGLE | dict(zip(("winner_model_a", "winner_model_b", "winner_tie"), won, strict=True))
              for won in ((1, 0, 0), ("0", "1", "0"), (0.0, 0.0, 1.0))]  # fmt: skip
    assert [p.chosen for p in load(kaggle)] == ["4", "5"]
    with pytest.raises(DataError, match="what that says is not known"):
        load([*kaggle, KAGGLE | {"winner_model_a": 1, "winner_model_b": 1, "winner_tie": 0}])


def test_the_strength_of_a_scale_is_its_size():
    rows = [TWO | {"preference_strength": n} for n in (-3, 1)]
    assert [p.strength for p in load(rows)] == [None, None]
    assert [p.strength for p in load(rows, columns={"strength": "preference_strength"})] == [3.0, 1.0]


# ---- what is refused ----


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": "p", "completion": "c", "label": True}, r"unpaired thumbs \(KTO.*pairs = .*load_preferences"),
        ({"prompt": "p", "completions": ["s"], "labels": [True]}, "stepwise labels"),
        ({"info": {"post": "p"}, "summaries": [], "choice": 0}, "OpenAI's summaries.*pairs = "),
        ({"instruction": "p", "output": ["4", "5"]}, "LLaMA-Factory before.*pairs = "),
        ({"prompt": "p", "response": "r", "score": 1.0}, "one scored response a row.*pairs = "),
        ({"chosen_ids": [1], "rejected_ids": [2]}, "token ids"),
        ({"messages": [ASK, say("4")], "label": True}, "unpaired thumbs"),
        ({"conversations": [HUMAN, GPT], "kto_tag": True}, "unpaired thumbs"),
        ({"instruction": "p", "question": "q", "chosen": "4", "rejected": "5"}, "Each of instruction, question may"),
    ],
)
def test_what_cannot_be_read_names_the_layout_and_converts_it(row, said):
    with pytest.raises(DataError, match=f"(?s){said}"):
        load([row] * 3)


def test_lists_written_as_text_are_not_taken_for_replies():
    row = {"prompt": "2+2?", "chosen": "4", "rejected": '["5", "6"]'}
    with pytest.raises(DataError, match=r"(?s)each rejected is a text that reads as a list of texts.*literal_eval"):
        load([row, row | {"rejected": "['7']"}])
    assert [p.rejected for p in load([row, row | {"rejected": "5"}])] == ['["5", "6"]', "5"]  # code, it seems
    both = row | {"chosen": '["4"]'}
    with pytest.raises(DataError, match=r"(?s)each chosen and rejected is.*'chosen': ast.*, 'rejected': ast"):
        load([both])
    with pytest.raises(DataError, match="each chosen is"):  # half of it was converted
        load([both | {"rejected": ["5", "6"]}])
    assert len(load([both | {"chosen": ["4"], "rejected": ["5", "6"]}])) == 2


def test_a_column_of_split_names_is_not_overlooked():
    rows = [{"prompt": str(i), "chosen": "4", "rejected": "5", "fold": "val" if i % 4 else "train"} for i in range(8)]
    with pytest.raises(DataError, match=r"'fold' holds train, val.*`columns=\{\"split\": \"fold\"\}`"):
        load(rows)
    assert {p.split for p in load(rows, columns={"split": "fold"})} == {"train", "val"}
    assert {p.split for p in load(rows, columns={"split": ""})} == {None}
    assert load([row | {"fold": "test"} for row in rows]).report.unread_columns == {"fold": 8}  # one value says little
    assert load([row | {"fold": row["fold"] + " drive"} for row in rows]).report.kept == 8


@pytest.mark.parametrize("name", ["images", "image", "Videos", "audio"])
def test_a_row_that_goes_with_an_image_is_refused_and_one_without_is_not(name: str) -> None:
    row = {"prompt": "<image> What is this?", "chosen": "A cat.", "rejected": "A dog."}
    for nothing in (None, [], "", "[]", False, float("nan")):
        assert load_preferences([{**row, name: nothing}])[0].chosen == "A cat."
    for something in (["cat.png"], "cat.png", {"bytes": b"x"}, [b"x"]):
        with pytest.raises(DataError, match=f"{name}: this reward model reads text"):
            load_preferences([{**row, name: something}, row])
    kept = load_preferences([{**row, name: ["cat.png"]}, row], PreferenceConfig(bad_rows="skip"))
    assert len(kept) == 1 and kept.report.skipped == {f"{name}: this reward model reads text": 1}


def test_parts_of_a_content_are_a_prompt_or_a_reply():
    def parts(text: str) -> list[dict[str, str]]:
        return [{"type": "text", "text": text[:1]}, {"type": "text", "text": text[1:]}]

    assert pairs([{"prompt": parts("2+2?"), "chosen": parts("4"), "rejected": "5"}]) == [([ASK], "4", "5")]
    with pytest.raises(DataError, match="image_url: this reward model reads text"):
        load([{"prompt": [{"type": "image_url", "image_url": "x"}], "chosen": "4", "rejected": "5"}])


def test_texts_that_look_like_part_of_the_prompt_are_not_left_out_unasked():
    row = {"question": "Who?", "context": "Ada wrote it.", "chosen": "Ada", "rejected": "Bob"}
    for more in (row, {"prompt": "Who?", "input": "Ada wrote it.", "chosen": "Ada", "rejected": "Bob"}):
        name = "context" if "context" in more else "input"
        with pytest.raises(DataError, match=rf"'{name}' holds texts that look like part of it.*\"input\": \"{name}\""):
            load([more])
        asked = {"role": "user", "content": "Who?\nAda wrote it."}
        assert pairs([more], columns={"input": name}) == [([asked], "Ada", "Bob")]
        assert pairs([more], columns={"input": ""}) == [([asked | {"content": "Who?"}], "Ada", "Bob")]
    assert load([row | {"context": None}]).report.unread_columns == {"context": 0}
    whole = {"chosen": [ASK, say("4")], "rejected": [ASK, say("5")], "context": "a note"}
    assert load([whole]).report.unread_columns == {"context": 1}


def test_a_prompt_column_with_another_case_or_a_space_is_not_overlooked():
    for name in ("Prompt", "prompt ", "QUESTION"):
        with pytest.raises(DataError, match=f"'{name}' looks like the prompt"):
            load([{name: "Who?", "chosen": "The cat", "rejected": "The dog"}])


def test_rows_inside_a_value_are_pointed_at():
    rows = [{"prompt": "2+2?", "chosen": "4", "rejected": "5"}] * 2
    with pytest.raises(DataError, match=r"(?s)rows seem to be in 'data'.*read_rows\(source\)"):
        load([{"data": rows, "version": 1}])
    with pytest.raises(DataError, match="rows seem to be in 'train'"):
        load([{"train": rows[:1]}])


def test_a_common_beginning_is_no_prompt_where_any_column_holds_what_may_be_one():
    sides = {"chosen": "The cat sat", "rejected": "The dog sat"}
    for more in ({"trajectory": [{"from": "human", "value": "Who?"}]}, {"title": "Who sat on it?"}):
        (name,) = more
        with pytest.raises(DataError, match=rf"'{name}' looks like the prompt.*`columns=\{{\"prompt\": \"\"\}}`"):
            load([sides | more] * 3)
        assert pairs([sides | more], columns={"prompt": ""})[0][0] == [{"role": "user", "content": "The "}]
    assert pairs([sides | {"trajectory": [{"from": "human", "value": "2+2?"}]}], columns={"prompt": "trajectory"}) == [
        ([ASK], "The cat sat", "The dog sat")
    ]
    assert load([sides | {"id": "x7", "model": "m"}]).report.kept == 1


def test_a_rejected_reply_of_ms_swift_in_messages_or_as_text():
    talk = [ASK, say("4")]
    for rejected in ("5", say("5"), [say("5")], '[{"role": "assistant", "content": "5"}]'):
        assert pairs([{"messages": talk, "rejected_response": rejected}]) == [([ASK], "4", "5")]
    assert len(pairs([{"messages": talk, "rejected_response": ["5", "6"]}])) == 2
    with pytest.raises(DataError, match="does not end in an assistant message"):
        load([{"messages": [ASK], "rejected_response": "5"}])
    keyed = load([{"messages": talk, "rejected_response": say("5") | {"loss": 1}}]).report
    assert keyed.unread_keys == {"rejected_response[].loss": 1}


@pytest.mark.parametrize(
    "rows",
    [
        [{"prompt": "2+2?", "completion": c, "label": c == "4"} for c in ("4", "5")],
        [{"info": {"post": "2+2?"}, "summaries": [{"text": "5"}, {"text": "4"}], "choice": 1}],
        [{"instruction": "2+2?", "input": "", "output": ["4", "5"]}],
        [{"prompt": "2+2?", "response": r, "score": s} for r, s in (("5", 0.1), ("4", 0.9))],
        [{"data": [{"prompt": "2+2?", "chosen": "4", "rejected": "5"}]}],
        [{"prompt": "2+2?", "chosen": "4", "rejected": '["5"]'}],
    ],
)
def test_the_lines_that_convert_a_layout_do_so(rows):
    with pytest.raises(DataError) as caught:
        load(rows)
    lines = [line.strip() for line in str(caught.value).splitlines() if line.startswith("  ")]
    names: dict[str, Any] = {"source": rows, "ebrm": ebrm, "pandas": pandas, "ast": ast}
    exec("\n".join(lines), names)  # noqa: S102 - our own message
    assert pairs(names.get("pairs", names["rows"])) == [([ASK], "4", "5")]
