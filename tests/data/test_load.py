from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ebrm.data import PreferenceConfig, hash_position, load_preferences, split_by_prompt
from ebrm.data.load import limit_by_prompt
from ebrm.data.schema import Preference
from ebrm.errors import ConfigError, DataError

GOOD = {"prompt": "2+2?", "chosen": "4", "rejected": "5"}
ASK = [{"role": "user", "content": "2+2?"}]


def load(source: Any, **settings: Any) -> Any:
    return load_preferences(source, PreferenceConfig(**settings))


def jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def bad_file(tmp_path: Path) -> Path:
    empty: dict[str, Any] = {"chosen": ""}
    bad = [empty, {"rejected": "4"}, empty, {"prompt": None}, {"prompt": float("nan")}] * 2
    return jsonl(tmp_path / "a.jsonl", [GOOD, *({**GOOD, **change} for change in bad), {**GOOD, "chosen": "four"}])


def test_the_same_pairs_from_every_kind_of_source(tmp_path):
    rows = [GOOD, {**GOOD, "chosen": "four 👋"}]
    jsonl(tmp_path / "a.jsonl", rows)
    (tmp_path / "a.json").write_text(json.dumps(rows))
    (tmp_path / "a.csv").write_text("prompt,chosen,rejected\n2+2?,4,5\n2+2?,four 👋,5\n")
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    sources = [
        rows,
        datasets.Dataset.from_list(rows),
        *(tmp_path / f"a.{k}" for k in ("jsonl", "json", "csv", "parquet")),
    ]
    loaded = [load(source) for source in sources]
    assert {p.fingerprint for p in loaded} == {loaded[0].fingerprint}
    assert [row.chosen for row in loaded[0]] == ["4", "four 👋"]
    assert [row.row for row in loaded[2]] == ["a.jsonl:1", "a.jsonl:2"]
    assert {p.report.format for p in loaded} == {"explicit prompt, standard"}


def test_bad_rows_stop_with_count_kinds_the_first_five_and_the_way_out_or_are_skipped(tmp_path):
    with pytest.raises(DataError) as caught:
        load(bad_file(tmp_path))
    said = str(caught.value)
    assert "10 of 12 rows cannot be used (4 empty, 4 missing, 2 equal sides)" in said
    shown = [line.strip() for line in said.splitlines() if line.startswith("  ")]
    assert shown == [
        "a.jsonl:2, chosen: empty, ''",
        "a.jsonl:3, rejected: equal sides, '4'",
        "a.jsonl:4, chosen: empty, ''",
        "a.jsonl:5, prompt: missing, None",
        "a.jsonl:6, prompt: missing, None",
    ]
    assert '`bad_rows="skip"`' in said and "\n\n" not in said
    loaded = load(bad_file(tmp_path), bad_rows="skip")
    report = loaded.report
    assert [row.row for row in loaded] == ["a.jsonl:1", "a.jsonl:12"]
    assert (report.read, report.kept, sum(report.skipped.values())) == (12, 2, 10)
    assert report.skipped == {"empty": 4, "equal sides": 2, "missing": 4}
    assert [row.where for row in report.examples] == [f"a.jsonl:{i}" for i in range(2, 7)]


def test_nothing_but_bad_rows_is_an_error_even_when_skipping():
    with pytest.raises(DataError, match=r"2 of 2 rows cannot be used \(2 empty\).*"):
        load([{**GOOD, "chosen": ""}] * 2, bad_rows="skip")


def test_lone_surrogates_are_bad_rows_and_other_unicode_is_kept(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(
        json.dumps({**GOOD, "chosen": "4 \ud83d"}) + "\n" + json.dumps({**GOOD, "chosen": "4 \x00👋\u2028"}) + "\n"
    )
    with pytest.raises(DataError, match="1 lone surrogate") as caught:
        load(path)
    str(caught.value).encode("utf-8")
    assert load(path, bad_rows="skip")[0].chosen == "4 \x00👋\u2028"


def test_empty_files(tmp_path):
    empty = [("a.jsonl", ""), ("a.json", ""), ("a.csv", "")]
    for name, text in [*empty, ("b.json", "[]"), ("b.csv", "prompt,chosen,rejected\n"), ("b.jsonl", "\n\n")]:
        (tmp_path / name).write_text(text)
        with pytest.raises(DataError, match=rf"{name} holds no rows"):
            load(tmp_path / name)
    with pytest.raises(DataError, match="holds no rows"):
        load([])


def test_a_data_set_of_conversations():
    sides = {
        side: [*ASK, {"role": "assistant", "content": reply}] for side, reply in (("chosen", "4"), ("rejected", "5"))
    }
    loaded = load(datasets.Dataset.from_list([{**sides, "source": "magpie"}]))
    assert loaded.report.format == "implicit prompt, conversational"
    assert (loaded[0].prompt, loaded[0].chosen, loaded[0].source) == (tuple(ASK), "4", "magpie")


def test_one_row_and_a_reply_of_a_megabyte():
    loaded = load([{**GOOD, "chosen": "x" * 1_000_000}])
    assert (len(loaded), len(loaded[0].chosen)) == (1, 1_000_000)


@pytest.mark.parametrize(
    ("seen", "mapping", "option"),
    [
        ("post, answer_1, answer_2, won", {}, '{"prompt": "post", "a": "answer_1", "b": "answer_2", "label": "…"}'),
        ("prompt, answer_a, answer_b, safer_id", {}, '{"a": "answer_a", "b": "answer_b", "label": "safer_id"}'),
        ("prompt, good, bad", {}, '{"chosen": "good", "rejected": "bad"}'),
        ("Prompt, Chosen, Rejected", {}, '{"prompt": "Prompt", "chosen": "Chosen", "rejected": "Rejected"}'),
        (" prompt, chosen ", {}, '{"prompt": " prompt", "chosen": "chosen ", "rejected": "…"}'),
        ("question, chosen", {}, '{"prompt": "question", "rejected": "…"}'),
        ("x, y", {}, '{"prompt": "question"}'),
        ("prompt, chosen", {"rejected": "worse"}, "rejected=worse"),
    ],
)
def test_wrong_columns_name_seen_expected_and_the_option(seen, mapping, option):
    with pytest.raises(DataError, match=f"The columns are {seen}; expected prompt, chosen and rejected") as caught:
        load([dict.fromkeys(seen.replace(", ", ",").split(","), "x")] * 3, columns=mapping)
    assert option in str(caught.value)


def test_two_replies_and_a_label_under_other_names():
    row = {"question": "q", "response_A": "x", "response_B": "y", "label": "A>B"}
    mapped = load([row], columns={"prompt": "question", "a": "response_A", "b": "response_B", "label": "label"})
    assert (mapped[0].chosen, mapped[0].rejected) == ("x", "y")


def test_wrong_columns_are_found_without_reading_everything():
    rows = [{"question": "q"}] * 100 + [{"question": "q"}, GOOD]
    with pytest.raises(DataError, match="The columns are question"):
        load(rows)


def test_a_mapped_column_that_is_not_there():
    with pytest.raises(DataError, match=r'columns=\{"strength": "score"\}.*columns are prompt, chosen, rejected'):
        load([GOOD], columns={"strength": "score"})
    late = load([GOOD, {**GOOD, "score": 1}], columns={"strength": "score"})
    assert [row.strength for row in late] == [None, 1.0]


def test_rows_without_the_columns_are_bad_rows_wherever_they_stand():
    loaded = load([{"prompt": "x"}, GOOD, {"chosen": "The x", "rejected": "The y"}], bad_rows="skip")
    assert [(row.where, row.field, row.kind) for row in loaded.report.examples] == [
        ("rows[0]", "chosen", "missing"),
        ("rows[2]", "prompt", "missing"),  # not the implicit prompt "The "
    ]
    implicit = [{"chosen": "Q\nx", "rejected": "Q\ny"}, GOOD]
    assert load(implicit, bad_rows="skip").report.skipped == {"prompt in some rows only": 1}


def test_two_replies_do_not_make_a_prompt_when_a_column_looks_like_one():
    row = {"post": "Who?", "chosen": "The cat", "rejected": "The dog"}
    for bad_rows in ("stop", "skip"):
        with pytest.raises(DataError, match=r"'post' looks like the prompt.*columns=\{\"prompt\": \"post\"\}"):
            load([row], bad_rows=bad_rows)
    assert load([row], columns={"prompt": "post"})[0].prompt[0]["content"] == "Who?"


@pytest.mark.parametrize("name", ["Prompt", "\ufeffprompt", "prompt "])
def test_a_prompt_column_of_another_spelling_is_not_left_out(name):
    rows = [{name: "Who?", "chosen": "The cat", "rejected": "The dog"}]
    with pytest.raises(DataError, match="looks like the prompt"):
        load(rows)
    assert load(rows, columns={"prompt": name})[0].prompt[0]["content"] == "Who?"


@pytest.mark.parametrize("name", ["is_test", "in_eval", "Test"])
@pytest.mark.parametrize("values", [(True, False), (1, 0), ("no", "yes")])
def test_a_column_that_says_by_yes_or_no_what_is_held_out_is_not_left_out(name, values):
    rows = [{**GOOD, name: value} for value in values]
    with pytest.raises(DataError, match=rf"column '{name}' says by yes or no which rows are of the split test"):
        load(rows)
    assert len(load(rows, columns={"split": ""})) == 2
    assert len(load([{**GOOD, "is_correct": value} for value in values])) == 2


@pytest.mark.parametrize(
    "wrong",
    [
        {"columns": "prompt=question"}, {"columns": {"prompt": 5}}, {"columns": {"prompt": None}}, {"label_map": "1=a"},
        {"limit": "5"}, {"limit": True}, {"split": ["train"]},
    ],
)  # fmt: skip
def test_settings_of_another_kind_are_named(wrong):
    with pytest.raises(ConfigError, match=rf"^{next(iter(wrong))}.* expected"):
        load([GOOD], **wrong)


def test_a_configuration_is_one():
    for wrong in ("train", {"split": "train"}):
        with pytest.raises(ConfigError, match=r"`config` is .*; a PreferenceConfig was expected"):
            load_preferences([GOOD], wrong)


def test_a_map_of_labels_where_there_are_none_is_not_passed_over():
    with pytest.raises(DataError, match="read as prompt, chosen, rejected, which has no label"):
        load([GOOD], label_map={"1": "a", "0": "b"})


def test_a_mixture_of_shapes_is_said_aloud(caplog):
    with caplog.at_level(logging.INFO, logger="ebrm"):
        loaded = load([GOOD, GOOD, {**GOOD, "prompt": ASK}])
    expected = "mixed: explicit prompt, standard (2 rows); explicit prompt, conversational (1 rows)"
    assert loaded.report.format == expected
    assert expected in caplog.text


def test_exact_repeats_are_kept_and_counted():
    swapped = {**GOOD, "chosen": "5", "rejected": "4"}
    rows = [GOOD, {**GOOD, "source": "x"}, swapped, {**GOOD, "prompt": "2+2"}, GOOD]
    rows += [{**GOOD, "chosen": "ab", "rejected": "c"}, {**GOOD, "chosen": "a", "rejected": "bc"}]
    loaded = load(rows)
    assert (len(loaded), loaded.report.duplicates) == (7, 2)


def test_splits(monkeypatch, tmp_path):
    rows = [{**GOOD, "split": "train"}, {**GOOD, "split": "test"}]
    assert [row.split for row in load(rows)] == ["train", "test"]
    only = load(rows, split="test")
    assert ([row.split for row in only], only.report.read) == (["test"], 1)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **options: datasets.Dataset.from_list([GOOD]))
    assert load("owner/name", split="validation")[0].split == "validation"


@pytest.mark.parametrize(
    ("more", "kept", "odd"),
    [
        ({"category": 1.0}, "1", {}),  # a whole number in a pandas column with gaps
        ({"category": 0.5}, "0.5", {}),
        ({"category": True}, "True", {}),
        ({"category": float("nan")}, None, {}),
        ({"category": ["x"]}, None, {"category not a name": 1}),
        ({"category": "\ud83d"}, None, {"category lone surrogate": 1}),
        ({"source": {"name": "x"}}, None, {"source not a name": 1}),
        ({"margin": "significantly better"}, None, {"margin not a number": 1}),
        ({"strength": True}, None, {"strength not a number": 1}),
        ({"margin": float("inf")}, None, {"margin not finite": 1}),
        ({"margin": float("nan")}, None, {}),
        ({"margin": "2.5"}, 2.5, {}),
    ],
)
def test_an_odd_optional_value_costs_only_itself(more, kept, odd):
    loaded = load([{**GOOD, **more}, GOOD])
    field = "strength" if {"margin", "strength"} & more.keys() else next(iter(more))
    assert [getattr(row, field) for row in loaded] == [kept, None]
    assert loaded.report.odd == odd
    for what in odd:
        assert f"{what} in 1 row (left out)" in loaded.report.summary()


def test_what_is_not_read_is_listed_with_its_rows():
    rows = [
        {**GOOD, "id": 7, "meta": None},
        {**GOOD, "id": "", "note": float("nan")},
        {**GOOD, "margin": 1, "strength": 2},
    ]
    report = load(rows).report
    assert report.unread_columns == {"id": 1, "meta": 0, "note": 0, "margin": 1}
    assert "columns not read: id (1), meta (0), note (0), margin (1)" in report.summary()
    keyed = load([{**GOOD, "prompt": [ASK[0] | {"weight": 3}]}] * 2).report
    assert keyed.unread_keys == {"prompt[].weight": 2} and "keys not read: prompt[].weight (2)" in keyed.summary()
    scored = load(
        [{"prompt": "q", "completions": [{"text": "4", "score": 2, "model": "m"}, {"text": "5", "score": 1}]}]
    )
    assert scored.report.unread_keys == {"completions[].model": 1}


def test_limit_keeps_whole_prompts(tmp_path):
    rows = [{"prompt": f"p{i % 10}", "chosen": f"c{i}", "rejected": "r"} for i in range(30)]
    loaded = load(rows, limit=10)
    assert (loaded.report.read, loaded.report.kept, loaded.report.limited) == (30, 9, 21)
    counts = [sum(row.prompt == kept.prompt for row in loaded) for kept in loaded]
    assert set(counts) == {3}
    assert len(load(rows, limit=9)) == 9  # a prompt that just fits is taken
    assert len(load(rows, limit=30)) == len(load(rows, limit=99)) == 30


def pair(prompt: int, i: int) -> Preference:
    return Preference(({"role": "user", "content": str(prompt)},), f"c{i}", "r", None, None, None, f"rows[{i}]", None)


@given(st.lists(st.integers(0, 8), max_size=40), st.integers(1, 45), st.integers(0, 10), st.randoms())
def test_limit_is_whole_nested_and_stable(prompts, limit, more, shuffle):
    rows = [pair(prompt, i) for i, prompt in enumerate(prompts)]
    kept = limit_by_prompt(rows, limit)
    kept_prompts = {row.prompt_id for row in kept}
    assert kept == [row for row in rows if row.prompt_id in kept_prompts]  # whole prompts, old order
    assert len(kept) <= limit or len(kept_prompts) == 1
    assert bool(kept) == bool(rows)
    assert {row.row for row in kept} <= {row.row for row in limit_by_prompt(rows, limit + more)}
    mixed = list(rows)
    shuffle.shuffle(mixed)
    assert {row.row for row in limit_by_prompt(mixed, limit)} == {row.row for row in kept}


FRACTIONS = {"train": 0.8, "validation": 0.1, "test": 0.1}
ids = st.lists(st.integers(0, 30).map(str), max_size=80)
seeds = st.integers(0, 2**32)


def part_of(prompt_ids: list[str], fractions: dict[str, float], seed: int) -> list[str]:
    parts = split_by_prompt(prompt_ids, fractions, seed)
    return [next(name for name, rows in parts.items() if i in rows) for i in range(len(prompt_ids))]


@given(ids, seeds)
def test_every_row_in_one_part_and_no_prompt_in_two(prompt_ids, seed):
    parts = split_by_prompt(prompt_ids, FRACTIONS, seed)
    assert list(parts) == list(FRACTIONS)
    assert sorted(np.concatenate(list(parts.values())).tolist()) == list(range(len(prompt_ids)))
    prompts = [{prompt_ids[i] for i in rows} for rows in parts.values()]
    assert sum(map(len, prompts)) == len(set(prompt_ids))
    for rows in parts.values():
        assert rows.dtype == np.int64
        assert (np.diff(rows) > 0).all()


@given(ids, ids, seeds)
def test_added_rows_and_larger_parts_move_nothing(old, new, seed):
    assert part_of(old + new, FRACTIONS, seed)[: len(old)] == part_of(old, FRACTIONS, seed)
    assert part_of(new + old, FRACTIONS, seed)[len(new) :] == part_of(old, FRACTIONS, seed)
    small, large = (split_by_prompt(old, {"train": share, "test": 1 - share}, seed)["train"] for share in (0.5, 0.75))
    assert set(small) <= set(large)


def test_parts_hold_their_fraction_of_prompts_and_seeds_differ():
    prompt_ids = [str(i) for i in range(20_000)]
    parts = split_by_prompt(prompt_ids, FRACTIONS, seed=1)
    # Four standard deviations of a binomial.
    for name, share in FRACTIONS.items():
        assert abs(len(parts[name]) / 20_000 - share) < 4 * (share * (1 - share) / 20_000) ** 0.5
    other = split_by_prompt(prompt_ids, FRACTIONS, seed=2)["test"]
    overlap = len(np.intersect1d(parts["test"], other)) / 20_000
    assert abs(overlap - 0.01) < 0.004  # independent: 0.1 * 0.1


def test_the_split_is_the_same_on_every_machine():
    parts = split_by_prompt([str(i) for i in range(12)], {"train": 0.5, "test": 0.5}, seed=7)
    assert parts["test"].tolist() == [i for i in range(12) if hash_position(f"split:7:{i}") >= 2**63]
    assert hash_position("abc") == 0xBA7816BF8F01CFEA  # the first 8 bytes of the well-known SHA-256("abc")


def test_empty_parts_and_thirds_lose_no_row():
    parts = split_by_prompt(["a", "b"], {"none": 0.0, "all": 1.0, "also none": 0.0}, seed=0)
    assert [rows.tolist() for rows in parts.values()] == [[], [0, 1], []]
    assert split_by_prompt([], FRACTIONS, 0)["train"].tolist() == []
    thirds = {"a": 1 / 3, "b": 1 / 3, "c": 1 / 3}
    parts = split_by_prompt([str(i) for i in range(1000)], thirds, seed=0)
    assert sum(map(len, parts.values())) == 1000


@pytest.mark.parametrize(
    "fractions", [{}, {"a": 0.5}, {"a": 0.7, "b": 0.7}, {"a": 1.5, "b": -0.5}, {"a": float("nan")}]
)
def test_fractions_must_sum_to_one(fractions):
    with pytest.raises(ConfigError, match="sum to 1"):
        split_by_prompt(["a"], fractions, 0)
