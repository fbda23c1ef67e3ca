"""Names of splits, and the splits that names of files say."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import pytest

from ebrm.data import PreferenceConfig, load_preferences, part_of
from ebrm.data.splits import file_splits, named_splits
from ebrm.errors import DataError

ROW = '{"prompt": "%s", "chosen": "4", "rejected": "5"}\n'


@pytest.mark.parametrize(
    ("part", "names"),
    [
        ("train", "train training Train train_prefs prefs_train train-00 train_1 train_sft dpo_train"),
        ("validation", "validation valid dev val VAL val_prefs dev-small validation_split"),
        ("test", "test testing eval evaluation test_prefs test_gen eval2 test/pairs"),
    ],
)
def test_the_words_of_datasets_mean_a_part(part, names):
    assert {part_of(name) for name in names.split()} == {part}


@pytest.mark.parametrize(
    "name", ["holdout", "train_holdout", "filtered", "0", "", None, "train_test", "contest", "trainer"]
)
def test_other_names_mean_none(name):
    assert part_of(name) is None


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (["train-00.jsonl", "test-00.jsonl"], ["train", "test"]),
        (["a_train.csv", "a_val.csv", "a.eval.csv"], ["train", "validation", "test"]),
        (["train/x.jsonl", "test/x.jsonl"], ["train", "test"]),
        (["en/train/x.jsonl", "en/dev/y.jsonl"], ["train", "validation"]),
        (["train/test.jsonl", "validation/train.jsonl"], ["train", "validation"]),  # folders go before files
        (["data/train_prefs-00000-of-00001.csv", "data/sealed-00000-of-00001.csv"], ["train_prefs", "sealed"]),
        (["part1.jsonl", "part2.jsonl"], [None, None]),
        (["contest.jsonl", "latest.jsonl", "trainer.jsonl"], [None, None, None]),
    ],
)  # fmt: skip
def test_files_of_a_folder(names, splits):
    assert list(file_splits(names).split) == splits
    assert not any(file_splits(names).left_out)


def test_files_are_divided_as_datasets_divides_them(tmp_path):
    from datasets.data_files import get_data_patterns, resolve_pattern

    folders = (
        ["train-0.jsonl", "test-0.jsonl"], ["a.train.jsonl", "dev.jsonl", "b_eval.jsonl"],
        ["train/a.jsonl", "val/b.jsonl"], ["a.jsonl", "b.jsonl"], ["train.jsonl", "other.jsonl"],
        ["data/train_gen-00000-of-00002.jsonl", "data/test_gen-00000-of-00002.jsonl"],
    )  # fmt: skip
    for k, names in enumerate(folders):
        folder = tmp_path / str(k)
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(ROW % name)
        theirs: dict[str, str] = {}
        for split, patterns in get_data_patterns(str(folder)).items():
            for pattern in patterns:
                with suppress(FileNotFoundError):
                    for path in resolve_pattern(pattern, str(folder)):
                        theirs.setdefault(os.path.relpath(path, folder), str(split))
        found = file_splits(names)
        if set(theirs.values()) == {"train"} and not any(found.split):
            continue  # no name says a split: all is training data there, and divided by prompt here
        assert {n: s for n, s, out in zip(names, found.split, found.left_out, strict=True) if not out} == theirs


def folder_of(tmp_path: Path, *names: str) -> Path:
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(ROW % name)
    return tmp_path


def test_a_folder_s_splits_are_those_of_its_files_and_one_can_be_read(tmp_path):
    folder = folder_of(tmp_path, "train-0.jsonl", "val-0.jsonl", "test-0.jsonl", "notes.jsonl", "dataset_info.json")
    loaded = load_preferences(folder)
    assert {p.row: p.split for p in loaded} == {
        "test-0.jsonl:1": "test", "train-0.jsonl:1": "train", "val-0.jsonl:1": "validation"
    }  # fmt: skip
    assert loaded.report.unread_files == ("notes.jsonl",) and "notes.jsonl" in loaded.report.summary()
    assert loaded.report.splits == {"test": 1, "train": 1, "validation": 1}
    for name in ("val", "validation", "dev"):
        assert [p.row for p in load_preferences(folder, PreferenceConfig(split=name))] == ["val-0.jsonl:1"]
    with pytest.raises(DataError, match="no file of the split 'sft'; it has test, train, validation"):
        load_preferences(folder, PreferenceConfig(split="sft"))
    assert {p.split for p in load_preferences(folder, PreferenceConfig(columns={"split": ""}))} == {None}


def test_a_file_or_files_named_one_by_one_are_all_read(tmp_path):
    folder = folder_of(tmp_path, "train.jsonl", "test.jsonl", "more.jsonl")
    assert load_preferences(folder / "test.jsonl")[0].split is None  # it is what the user wants to read
    assert {p.row: p.split for p in load_preferences([folder / "train.jsonl", str(folder / "test.jsonl")])} == {
        "train.jsonl:1": "train", "test.jsonl:1": "test"
    }  # fmt: skip
    assert {p.split for p in load_preferences(f"{folder}/*.jsonl")} == {"train", "test", None}
    assert named_splits(["test-0.jsonl", "test-1.jsonl"]).split == (None, None)


def test_a_folder_where_what_is_not_held_out_has_no_name_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"test\.jsonl is held out, and pairs\.jsonl is of no split"):
        load_preferences(folder_of(tmp_path, "pairs.jsonl", "test.jsonl"))


def test_a_column_goes_before_the_name_of_the_file(tmp_path):
    (tmp_path / "train.jsonl").write_text(ROW.replace("}", ', "split": "dev"}') % "a" + ROW % "b")
    (tmp_path / "test.jsonl").write_text(ROW % "c")
    assert [p.split for p in load_preferences(tmp_path)] == ["test", "dev", "train"]


def test_splits_that_are_no_names_are_kept_so_that_a_fit_stops():
    row = {"prompt": "p", "chosen": "4", "rejected": "5"}
    assert [p.split for p in load_preferences([row | {"split": s} for s in (0, {"x": 1}, None, "")])] == [
        "0", "{'x': 1}", None, None
    ]  # fmt: skip


CARD = """---
license: mit
configs:
- config_name: default
  data_files:
  - split: train
    path: some/a-*
  - split: holdout
    path: [some/b.jsonl, ./more/*.jsonl]
---
# Pairs
"""


def test_a_data_card_says_which_files_are_of_which_split(tmp_path):
    folder = folder_of(tmp_path, "some/a-1.jsonl", "some/b.jsonl", "more/train.jsonl", "c.jsonl")
    assert {p.split for p in load_preferences(folder)} == {"train"}  # by the one name that says it; others are left out
    (folder / "README.md").write_text(CARD)
    loaded = load_preferences(folder)
    assert {p.row: p.split for p in loaded} == {
        "some/a-1.jsonl:1": "train", "some/b.jsonl:1": "holdout", "more/train.jsonl:1": "holdout"
    }  # fmt: skip
    assert loaded.report.unread_files == ("c.jsonl",)
    for odd in (
        "---\nconfigs: 3\n---\n",
        "---\n[\n---\n",
        "---\nconfigs:\n- data_files: x\n---\n",
        "# no front matter",
    ):
        (folder / "README.md").write_text(odd)
        assert load_preferences(folder).report.splits == {"train": 1}


def test_splits_stop_a_fit_before_the_reward_model_reads(monkeypatch, tmp_path):
    import ebrm.fitting
    from ebrm.backbone import Backbone

    def read(*_: object, **__: object) -> None:
        raise AssertionError("texts were read")

    monkeypatch.setattr(ebrm.fitting, "extract_features", read)
    rows = [{"prompt": str(i), "chosen": "4", "rejected": "5", "split": "train" if i else "sealed"} for i in range(9)]
    with pytest.raises(DataError, match=r"not known: 'sealed' \(1 pairs\)"):
        ebrm.fitting.fit(Backbone.__new__(Backbone), rows)
