"""Finding and reading a benchmark's rows, their fields, and the items they make."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import datasets
import pytest
from tests.benchmarks.tiny import user, write_json, write_parquet

from ebrm.benchmarks import Item, read
from ebrm.benchmarks.read import Files, Place, Row, Rows, find_files, read_items, read_rows, remarks
from ebrm.data import RowProblem, prompt_id
from ebrm.errors import DataError

PLACE = Place("Made", (("made.parquet",), ("Set/A/*.json", "Set/B/**/*.json")), repository="some/made")
HUB = Place("Made", (("made.parquet",),), hub="some/made", splits=("en/test", "dev"))
ROW = {"id": "1", "prompt": user("q"), "chosen": "a", "rejected": "b"}


def make(row: Row) -> Item:
    return read.pair(row, read.name(row, "id"), "g")


def clone(folder: Path) -> Path:
    write_json(folder / "Set" / "A" / "one.json", [{"n": 1}, {"n": 2}])
    write_json(folder / "Set" / "B" / "deep" / "er" / "two.json", [{"n": 3}])
    write_json(folder / "Set" / "other.json", [{"n": 4}])
    return folder


def numbers(rows: Rows) -> list[int]:
    return [row.values["n"] for row in rows.rows]


# ---- finding ------------------------------------------------------------------------------------------------------


def test_prepared_files_win_over_a_clone(tmp_path: Path) -> None:
    clone(tmp_path)
    write_parquet(tmp_path / "made.parquet", [{"n": 9}])
    rows = read_rows(PLACE, tmp_path)
    assert rows.rows == (Row("made.parquet:1", "made.parquet", {"n": 9}),)
    assert rows.origin == f"made.parquet in {tmp_path}"


@pytest.mark.parametrize("above", [".", "..", "../.."])
def test_a_clone_is_found_from_above(tmp_path: Path, above: str) -> None:
    folder = clone(tmp_path / "x" / "clone")
    rows = read_rows(PLACE, folder / above)
    assert numbers(rows) == [1, 2, 3]
    assert [row.where for row in rows.rows] == ["Set/A/one.json:1", "Set/A/one.json:2", "Set/B/deep/er/two.json:1"]
    assert rows.rows[2].part == "Set/B/deep/er/two.json"
    assert rows.origin == f"2 files in {folder}"


def test_three_levels_above_is_too_far(tmp_path: Path) -> None:
    clone(tmp_path / "x" / "y" / "clone")
    assert find_files(PLACE, tmp_path) is None
    assert find_files(PLACE, tmp_path / "x") is not None


@pytest.mark.parametrize(("inside", "expected"), [("Set", [1, 2, 3]), ("Set/A", [1, 2]), ("Set/B/deep", [3])])
def test_inside_a_clone_only_what_is_inside_is_read(tmp_path: Path, inside: str, expected: list[int]) -> None:
    rows = read_rows(PLACE, clone(tmp_path / "clone") / inside)
    assert numbers(rows) == expected
    assert rows.rows[0].part.startswith("Set/")


def test_a_folder_beside_the_files_is_not_inside(tmp_path: Path) -> None:
    folder = clone(tmp_path / "clone")
    (folder / "Set" / "C").mkdir()
    assert find_files(PLACE, folder / "Set" / "C") is None


def test_the_nearest_is_read_and_two_of_a_level_are_an_error(tmp_path: Path) -> None:
    clone(tmp_path / "one")
    folder = tmp_path / "two"
    clone(folder)
    with pytest.raises(DataError, match=r"holds it 2 times: .*/one, .*/two\. Name one"):
        read_rows(PLACE, tmp_path)
    clone(folder / "again")
    assert find_files(PLACE, folder) == Files(folder, find_files(PLACE, folder / "Set").paths)


def test_a_link_is_not_a_second_copy(tmp_path: Path) -> None:
    clone(tmp_path / "one")
    (tmp_path / "two").symlink_to(tmp_path / "one")
    assert numbers(read_rows(PLACE, tmp_path)) == [1, 2, 3]


def test_hidden_files_and_folders_are_passed_over(tmp_path: Path) -> None:
    clone(tmp_path / ".git")
    assert find_files(PLACE, tmp_path) is None
    write_json(tmp_path / "Set" / "A" / ".hidden.json", [{"n": 1}])
    assert find_files(PLACE, tmp_path) is None


def test_nothing_found_says_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        read_rows(PLACE, tmp_path)
    said = str(caught.value)
    for part in (str(tmp_path), "made.parquet", "Set/A/*.json", "Set/B/**/*.json", "github.com/some/made", "2 levels"):
        assert part in said
    with pytest.raises(DataError, match="leave the folder out to load it from the Hub"):
        read_rows(HUB, tmp_path)


def test_data_must_be_a_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist; expected the folder"):
        read_rows(PLACE, tmp_path / "no")
    with pytest.raises(DataError, match="is a file; expected the folder"):
        read_rows(PLACE, write_parquet(tmp_path / "made.parquet", [ROW]))


def test_a_folder_that_cannot_be_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> Any:
        raise PermissionError("Permission denied")

    monkeypatch.setattr(read, "_match", refuse)
    with pytest.raises(DataError, match="cannot be looked at: Permission denied"):
        read_rows(PLACE, tmp_path)


def test_files_without_rows_and_damaged_ones(tmp_path: Path) -> None:
    write_json(tmp_path / "Set" / "A" / "one.json", [])
    with pytest.raises(DataError, match=r"Made: one\.json in .*not a single row"):
        read_rows(PLACE, tmp_path)
    (tmp_path / "Set" / "A" / "one.json").write_text('[{"n": 1}, ')
    with pytest.raises(DataError, match=r"Set/A/one\.json:1 is not JSON"):
        read_rows(PLACE, tmp_path)
    (tmp_path / "made.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(DataError, match=r"made\.parquet cannot be read"):
        read_rows(PLACE, tmp_path)


# ---- the Hub ------------------------------------------------------------------------------------------------------


def test_all_splits_are_loaded_from_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Any, ...]] = []

    def load(path: str, **named: Any) -> datasets.Dataset:
        asked.append((path, named))
        return datasets.Dataset.from_list([{"n": 10 * len(asked)}, {"n": 10 * len(asked) + 1}])

    monkeypatch.setattr(datasets, "load_dataset", load)
    rows = read_rows(HUB, None)
    assert numbers(rows) == [10, 11, 20, 21]
    assert [row.where for row in rows.rows[1:3]] == ["some/made en/test[1]", "some/made dev[0]"]
    assert [row.part for row in rows.rows[1:3]] == ["en/test", "dev"]
    assert rows.origin == "Hub data set some/made, en/test, dev"
    assert asked == [
        ("some/made", {"split": "test", "revision": None, "name": "en"}),
        ("some/made", {"split": "dev", "revision": None, "name": None}),
    ]
    asked.clear()
    read_rows(Place("Made", (("x",),), hub="some/made", splits=("en/test",), revision="branch"), None)
    assert asked == [("some/made", {"split": "test", "revision": "branch", "data_dir": "en"})]


def test_what_the_hub_does_not_give(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match=r"Made could not be loaded from the Hub \(data set some/made, split en/test\)"):
        read_rows(HUB, None)
    with pytest.raises(DataError, match=r"Made cannot be loaded from the Hub\. Clone https://github\.com/some/made"):
        read_rows(PLACE, None)
    with pytest.raises(DataError, match=r"Hub\. Name the folder that holds x\."):
        read_rows(Place("Made", (("x",),)), None)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: datasets.Dataset.from_list([]))
    with pytest.raises(DataError, match="not a single row in en/test, dev"):
        read_rows(HUB, None)


# ---- items --------------------------------------------------------------------------------------------------------


def rows_of(*values: dict[str, Any]) -> Rows:
    return Rows("here", tuple(Row(f"f:{number}", "f", row) for number, row in enumerate(values, 1)))


def test_items_of_one_prompt_share_a_cluster() -> None:
    second = ROW | {"id": "2", "prompt": "q", "chosen": "c"}
    third = ROW | {"id": "3", "prompt": user("other")}
    items = read_items(rows_of(ROW, second, third, ROW | {"id": "4"}), make)
    assert [item.cluster for item in items] == [prompt_id(item.prompt) for item in items]
    assert items[0].cluster == items[1].cluster == items[3].cluster != items[2].cluster
    assert [item.where for item in items] == ["f:1", "f:2", "f:3", "f:4"]


def test_conversations_that_begin_alike_are_different_prompts() -> None:
    turns = [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "x"},
        {"role": "user", "content": "and"},
    ]
    items = read_items(rows_of(ROW, ROW | {"id": "2", "prompt": turns}), make)
    assert items[0].cluster != items[1].cluster == prompt_id(turns)


def test_a_cluster_that_is_given_is_kept() -> None:
    def clustered(row: Row) -> Item:
        return Item("1", ({"role": "user", "content": "q"},), ("a", "b"), (1.0, 0.0), "", row.where, "mine")

    assert read_items(rows_of(ROW), clustered)[0].cluster == "mine"


def test_bad_rows_are_all_counted_and_five_are_named() -> None:
    bad = [ROW | {"id": str(n), "chosen": None} for n in range(6)] + [ROW | {"id": "9", "prompt": ""}]
    with pytest.raises(DataError) as caught:
        read_items(rows_of(ROW | {"id": "ok"}, *bad), make)
    said = str(caught.value)
    assert said.startswith("here: 7 of 8 rows cannot be used (6 missing, 1 empty). The first: ")
    assert re.findall(r"\n  (f:\d), chosen: missing, None", said) == ["f:2", "f:3", "f:4", "f:5", "f:6"]
    assert "f:7" not in said and said.endswith("mend these rows.")


def test_a_missing_column_says_what_columns_there_are() -> None:
    with pytest.raises(DataError, match=r"1 no such column\)\. The columns there are id, prompt, chosen\. They are:"):
        read_items(rows_of({key: value for key, value in ROW.items() if key != "rejected"}), make)


def test_repeated_ids_are_an_error() -> None:
    with pytest.raises(DataError) as caught:
        read_items(rows_of(ROW, ROW | {"id": "2"}, ROW, ROW), make, "pair_id")
    said = str(caught.value)
    assert "2 of 4 rows cannot be used (2 repeated id)" in said
    assert "f:3, pair_id: repeats the id of f:1, '1'" in said and "f:4, pair_id: repeats the id of f:1" in said


# ---- remarks ------------------------------------------------------------------------------------------------------


def test_remarks() -> None:
    ask = ({"role": "user", "content": "q"},)
    odd = ({"role": "user", "content": "q"}, {"role": "assistant", "content": ""}, {"role": "user", "content": "x"})
    plain = Item("1", ask, ("a", "b", "b"), (1.0, 0.0, 0.0), "", "f:1")
    assert remarks([plain]) == ()
    items = [plain, Item("2", odd, (" ", "b"), (1.0, 0.0), "", ""), Item("3", ask, ("a", "a"), (1.0, 0.0), "", "")]
    notes = remarks(items)
    assert len(notes) == 3 and all(note.startswith("1 of 3 items have") for note in notes)
    assert "empty response" in notes[0] and "same text" in notes[1] and "empty turn" in notes[2]


# ---- fields -------------------------------------------------------------------------------------------------------

ASK = {"role": "user", "content": "why?"}


def row(**values: Any) -> Row:
    return Row("f.jsonl:3", "f.jsonl", values)


def problem(call: Any, *arguments: Any, **named: Any) -> tuple[str, str]:
    with pytest.raises(RowProblem) as caught:
        call(*arguments, **named)
    return caught.value.kind, caught.value.field


def test_value_steps_into_objects() -> None:
    assert read.value(row(a={"b": {"c": 0}}), "a.b.c") == 0
    assert problem(read.value, row(a={"b": 1}), "a.c") == ("no such column", "a.c")
    assert problem(read.value, row(a="text"), "a.c") == ("no such column", "a.c")
    assert problem(read.value, row(a=1), "b") == ("no such column", "b")
    assert problem(read.value, row(a=None), "a") == ("missing", "a")
    assert problem(read.value, row(a=None), "a.b") == ("no such column", "a.b")


def test_text_may_be_empty_but_must_be_a_string_with_a_form_in_utf8() -> None:
    assert read.text(row(a=""), "a") == "" and read.text(row(a="é\x00"), "a") == "é\x00"
    assert problem(read.text, row(a=3), "a") == ("not a string", "a")
    assert problem(read.text, row(a="\ud83d"), "a") == ("lone surrogate", "a")


def test_texts() -> None:
    assert read.texts(row(a=["x", ""]), "a") == ("x", "")
    assert read.texts(row(a='["x", "y"]'), "a") == ("x", "y")
    assert read.texts(row(a=[{"answer": "x", "llm": 1}]), "a", key="answer") == ("x",)
    assert problem(read.texts, row(a=[]), "a") == ("empty list", "a")
    assert problem(read.texts, row(a=["x"]), "a", least=2) == ("a list of 1, expected at least 2", "a")
    assert problem(read.texts, row(a="x, y"), "a") == ("not a list", "a")
    assert problem(read.texts, row(a='"x"'), "a") == ("not a list", "a")
    assert problem(read.texts, row(a={"x": 1}), "a") == ("not a list", "a")
    assert problem(read.texts, row(a=["x", None]), "a") == ("missing", "a[1]")
    assert problem(read.texts, row(a=["x", 2]), "a") == ("not a string", "a[1]")
    assert problem(read.texts, row(a=[{"answer": "x"}, {"text": "y"}]), "a", key="answer")[0] == "no such column"
    assert problem(read.texts, row(a=[{"answer": None}]), "a", key="answer") == ("missing", "a[0].answer")
    assert problem(read.texts, row(b=1), "a") == ("no such column", "a")


def test_numbers() -> None:
    assert read.numbers(row(a=[1, 0.5]), "a") == (1.0, 0.5)
    assert read.numbers(row(a="[1, 2]"), "a") == (1.0, 2.0)
    assert problem(read.numbers, row(a=[1, "2"]), "a") == ("not a number", "a[1]")
    assert problem(read.numbers, row(a=[True]), "a") == ("not a number", "a[0]")
    assert problem(read.numbers, row(a=[None]), "a") == ("not a number", "a[0]")
    assert problem(read.numbers, row(a=[math.nan]), "a") == ("not a finite number", "a[0]")
    assert problem(read.numbers, row(a=[1, -math.inf]), "a") == ("not a finite number", "a[1]")
    assert problem(read.numbers, row(a=[1]), "a", least=2) == ("a list of 1, expected at least 2", "a")


def test_name() -> None:
    assert read.name(row(a="x"), "a") == "x" and read.name(row(a=12), "a") == "12"
    assert read.name(row(a=None), "a", default="d") == read.name(row(a=""), "a", default="d") == "d"
    assert read.name(row(b=1), "a", default="d") == "d" and read.name(row(a=0), "a", default="d") == "0"
    assert problem(read.name, row(b=1), "a") == ("no such column", "a")
    assert problem(read.name, row(a=None), "a") == ("missing", "a")
    assert problem(read.name, row(a="  "), "a") == ("empty", "a")
    assert problem(read.name, row(a=True), "a") == ("not a string", "a")
    assert problem(read.name, row(a=["x"]), "a", default="") == ("not a string", "a")


def test_prompts_of_every_form_are_the_same() -> None:
    expected = (ASK,)
    assert read.prompt(row(prompt="why?")) == expected
    assert read.prompt(row(prompt=[ASK])) == expected
    assert read.prompt(row(prompt=json.dumps([ASK]))) == expected
    assert read.prompt(row(prompt=' [\n {"content": "why?", "role": "user"}]')) == expected
    assert read.prompt(row(q=[ASK | {"language": "English"}]), "q") == expected


def test_turns_are_kept_as_they_are() -> None:
    turns = [
        {"role": "system", "content": ""}, ASK, {"role": "assistant", "content": "so"}, {"role": "user", "content": ""},
    ]  # fmt: skip
    assert list(read.prompt(row(prompt=turns))) == turns


def test_equal_strings_give_one_object() -> None:
    text = json.dumps([ASK])
    assert read.prompt(row(prompt=text)) is read.prompt(row(prompt="".join(text)))


def test_text_that_only_resembles_messages_is_a_turn() -> None:
    for text in ("[1, 2] what is this?", '["role"]', "[]", '{"role": "user", "content": "x"}'):
        assert read.prompt(row(prompt=text)) == ({"role": "user", "content": text},)


def test_prompts_that_cannot_be_used() -> None:
    def kind(value: Any) -> tuple[str, str]:
        return problem(read.prompt, row(prompt=value))

    assert kind("") == kind(" \n") == kind([]) == kind([ASK | {"content": " "}]) == ("empty", "prompt")
    assert kind('[{"role": "user", "content": "cut o') == ("messages that are not JSON", "prompt")
    assert kind(3) == ("not a string or a list of messages", "prompt")
    assert kind(["hello"]) == ("not a message with role and content", "prompt[0]")
    assert kind([ASK, {"role": "user"}]) == ("not a message with role and content", "prompt[1]")
    assert kind([{"role": "narrator", "content": "x"}]) == ("unknown role", "prompt[0].role")
    assert kind([ASK, {"role": "user", "content": None}]) == ("missing", "prompt[1].content")
    assert kind([ASK, {"role": "user", "content": 4}]) == ("not a string", "prompt[1].content")
    assert kind([{"role": "assistant", "content": "x"}]) == ("empty", "prompt")
    assert kind([ASK, {"role": "assistant", "content": "x"}]) == ("prompt does not end in a user turn", "prompt")
    assert kind(None) == ("missing", "prompt")
    assert problem(read.prompt, row(q="x")) == ("no such column", "prompt")


def test_pair() -> None:
    expected = Item("7", (ASK,), ("good", "bad"), (1.0, 0.0), "g", "f.jsonl:3")
    assert read.pair(row(prompt="why?", chosen="good", rejected="bad"), "7", "g") == expected
    assert read.pair(row(q="why?", x="bad", y="good"), "7", "g", ("q", "y", "x")) == expected
