from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.benchmarks.written import as_json, comma, jsonl, parquet, random_rewards, scores, table, user

from ebrm.benchmarks.files import kind_of_columns, open_file, stem_of
from ebrm.errors import DataError

PAIRS = [
    {"prompt": "p1", "chosen": "good 1", "rejected": "bad 1"},
    {"prompt": "p2", "chosen": "good 2", "rejected": "bad 2"},
]
ASK = [{"role": "user", "content": "p"}]


def reply(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


@pytest.mark.parametrize(
    ("ending", "write"), [("jsonl", jsonl), ("json", as_json), ("csv", comma), ("parquet", parquet)]
)
def test_pairs_of_every_kind_of_file(tmp_path: Path, ending: str, write: Callable[..., Path]) -> None:
    benchmark = open_file(write(tmp_path / f"mine.{ending}", PAIRS))
    assert benchmark.name == benchmark.title == "mine"
    assert [item.responses for item in benchmark.items] == [("good 1", "bad 1"), ("good 2", "bad 2")]
    assert [item.gold for item in benchmark.items] == [(1.0, 0.0)] * 2
    assert benchmark.items[1].prompt == ({"role": "user", "content": "p2"},)
    assert [item.id for item in benchmark.items] == [item.where for item in benchmark.items]
    assert [score.name for score in benchmark.scores] == ["overall"]
    assert benchmark.origin == f"mine.{ending} in {tmp_path} (pairwise)" and benchmark.notes == ()


def test_pairs_in_the_other_forms_of_preference_data(tmp_path: Path) -> None:
    forms: dict[str, dict[str, Any]] = {
        "messages": {"prompt": ASK, "chosen": reply("good"), "rejected": reply("bad")},
        "implicit": {"chosen": ASK + reply("good"), "rejected": ASK + reply("bad")},
        "labeled": {"prompt": "p", "a": "bad", "b": "good", "label": "B>A"},
        "transcript": {"chosen": "\n\nHuman: p\n\nAssistant: good", "rejected": "\n\nHuman: p\n\nAssistant: bad"},
    }
    for name, row in forms.items():
        benchmark = open_file(jsonl(tmp_path / f"{name}.jsonl", [row | {"category": "c", "id": 3}]))
        item = benchmark.items[0]
        assert (item.id, item.prompt, item.responses, item.group) == ("3", tuple(ASK), ("good", "bad"), "c"), name


def test_a_csv_of_lists(tmp_path: Path) -> None:
    rows = [{"prompt": user("p"), "best": "x", "losers": json.dumps(["y", "z"])}]
    assert open_file(comma(tmp_path / "a.csv", rows)).items[0].responses == ("x", "y", "z")
    rows = [{"prompt": "p", "responses": json.dumps(["y", "z"]), "gold": "[0.5, 1]"}]
    assert open_file(comma(tmp_path / "b.csv", rows)).items[0].gold == (0.5, 1.0)


def test_best_of_n(tmp_path: Path) -> None:
    rows = [
        {"id": "a", "prompt": "p", "best": "x", "losers": ["y", "z"], "category": "c"},
        {"id": "b", "prompt": "q", "best": "x", "losers": ["y"], "category": None},
    ]
    benchmark = open_file(jsonl(tmp_path / "lists.jsonl", rows))
    assert [item.gold for item in benchmark.items] == [(1.0, 0.0, 0.0), (1.0, 0.0)]
    assert scores(benchmark, table(benchmark, {"a": [2, 1, 2], "b": [1, 0]})) == {"overall": 0.5, "c": 0.0}
    assert scores(benchmark, table(benchmark, {"a": [2, 1, 2], "b": [1, 0]}), "shared") == {"overall": 0.75, "c": 0.5}
    rows = [{"prompt": "p", "chosen": "x", "rejected": ["y", "z"]}]
    assert open_file(jsonl(tmp_path / "other.jsonl", rows)).items[0].responses == ("x", "y", "z")
    assert benchmark.origin.endswith("(best-of-n)")


def test_a_pool_by_hand(tmp_path: Path) -> None:
    rows = [
        {"id": "a", "prompt": "p", "responses": ["x", "y", "z"], "gold": [0.1, 0.9, 0.1], "category": "c"},
        {"id": "b", "prompt": "q", "responses": ["x", "y"], "gold": [1, 0], "category": "d"},
        {"id": "even", "prompt": "r", "responses": ["x", "y"], "gold": [0.5, 0.5], "category": "e"},
    ]
    benchmark = open_file(jsonl(tmp_path / "pool.jsonl", rows))
    assert [item.id for item in benchmark.items] == ["a", "b"] and [s.name for s in benchmark.scores] == [
        "overall",
        "c",
        "d",
    ]
    assert benchmark.notes[0].startswith("1 of 3 items have equal gold for all responses")
    rewards = table(benchmark, {"a": [3, 3, 1], "b": [2, 1]})
    assert scores(benchmark, rewards) == pytest.approx({"overall": 0.75, "c": 0.5, "d": 1})
    assert scores(benchmark, rewards, "shared") == pytest.approx({"overall": 0.875, "c": 0.75, "d": 1})
    assert benchmark.gold()[1].tolist()[:2] == [1, 0]
    with pytest.raises(DataError, match="every item has equal gold"):
        open_file(jsonl(tmp_path / "even.jsonl", rows[2:]))


def test_a_category_may_have_any_name(tmp_path: Path) -> None:
    rows = [row | {"category": name} for row, name in zip(PAIRS, ["overall", "all items"], strict=True)]
    benchmark = open_file(jsonl(tmp_path / "x.jsonl", rows))
    assert [score.name for score in benchmark.scores] == ["overall", "all items", "category overall"]
    rewards = {"x.jsonl:1": [1, 0], "x.jsonl:2": [0, 1]}
    found = scores(benchmark, table(benchmark, rewards))
    assert found == {"overall": 0.5, "all items": 0.0, "category overall": 1.0}


def test_splits_are_counted(tmp_path: Path) -> None:
    rows = [row | {"split": split} for row, split in zip(PAIRS, ["train", "test"], strict=True)]
    benchmark = open_file(jsonl(tmp_path / "x.jsonl", rows))
    assert len(benchmark) == 2 and benchmark.notes == ("Rows by split: 1 test, 1 train; all are used.",)
    one = open_file(jsonl(tmp_path / "y.jsonl", rows[:1] + [PAIRS[1] | {"split": ""}]))
    assert one.notes == ("All rows are of one split: 1 train.",)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": "", "chosen": "a", "rejected": "b"}, "prompt: empty"),
        ({"prompt": "p", "chosen": 3, "rejected": "b"}, "chosen: not a string"),
        ({"prompt": "p", "chosen": None, "rejected": "b"}, "chosen: missing"),
        ({"prompt": "p", "chosen": "a"}, "rejected: no such column"),
        ({"prompt": "p", "chosen": "a", "rejected": ["b"]}, "rejected: not a string"),
        ({"id": "good", "prompt": "p", "chosen": "a", "rejected": "b"}, "id: repeats the id of x.jsonl:1"),
    ],
)
def test_bad_pairs(tmp_path: Path, row: dict[str, Any], said: str) -> None:
    path = jsonl(tmp_path / "x.jsonl", [PAIRS[0] | {"id": "good"}, row])
    with pytest.raises(DataError, match=r"1 of 2 rows cannot be used.*") as caught:
        open_file(path)
    assert f"x.jsonl:2, {said}" in str(caught.value)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": "p", "best": "a", "losers": []}, "losers: empty list"),
        ({"prompt": "p", "best": "a", "losers": "b"}, "losers: not a list"),
        ({"best": "a", "losers": ["b"]}, "prompt: no such column"),
        ({"prompt": "p", "responses": ["a"], "gold": [1]}, "responses: a list of 1, expected at least 2"),
        ({"prompt": "p", "responses": ["a", "b"], "gold": [1]}, "gold: a list of 1, expected at least 2"),
        ({"prompt": "p", "responses": ["a", "b"], "gold": [1, 0, 2]}, "gold: not as many as responses"),
        ({"prompt": "p", "responses": ["a", "b"], "gold": [1, None]}, "gold[1]: not a number"),
    ],
)
def test_bad_lists(tmp_path: Path, row: dict[str, Any], said: str) -> None:
    with pytest.raises(DataError, match="1 of 1 rows cannot be used") as caught:
        open_file(jsonl(tmp_path / "x.jsonl", [row]))
    assert said in str(caught.value)


def test_columns_that_make_no_schema(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"its first row \(prompt, answer\) are not those of a benchmark\. Expected pairwise"
    ):
        open_file(jsonl(tmp_path / "x.jsonl", [{"prompt": "p", "answer": "a"}]))
    with pytest.raises(DataError, match="not a kind of file that can be read here: expected .jsonl"):
        open_file(tmp_path / "x.txt")
    with pytest.raises(DataError, match="not a single row"):
        open_file(jsonl(tmp_path / "x.jsonl", []))


def test_kinds() -> None:
    assert kind_of_columns({"prompt": "", "chosen": "", "rejected": ""}) == "pairwise"
    assert kind_of_columns({"prompt": "", "chosen": "", "rejected": []}) == "best-of-n"
    assert kind_of_columns({"prompt": "", "chosen": "", "rejected": [{"role": "assistant"}]}) == "pairwise"
    assert kind_of_columns({"prompt": "", "chosen": [], "rejected": []}) == "pairwise"
    assert kind_of_columns({"prompt": "", "responses": [], "gold": []}) == "pool"
    assert kind_of_columns({"prompt": "", "text": ""}) is None


def test_stems() -> None:
    assert [stem_of(Path(name)) for name in ("a/b.jsonl", "b.json.gz", "b.v2.csv")] == ["b", "b", "b.v2"]


def test_the_shared_pools_and_pairs_by_naive_loops(data_folder: Path) -> None:
    benchmark = open_file(data_folder / "tulu_bon_pool.parquet")
    assert len(benchmark) == 788 and "17 of 805" in benchmark.notes[1]
    rewards = random_rewards(benchmark, levels=6)
    shares = []
    for item, row in zip(benchmark.items, rewards, strict=True):
        pairs = [(a, b) for a in range(11) for b in range(11) if item.gold[a] > item.gold[b]]
        shares.append(sum(row[a] > row[b] for a, b in pairs) / len(pairs))
    assert scores(benchmark, rewards)["overall"] == pytest.approx(np.mean(shares), abs=1e-12)
    pairs = open_file(data_folder / "hh_harmless_test.parquet")
    assert len(pairs) == 2303
    won = [float(row[0] > row[1]) for row in random_rewards(pairs)]
    assert scores(pairs, random_rewards(pairs))["harmless-base"] == pytest.approx(np.mean(won), abs=1e-12)
