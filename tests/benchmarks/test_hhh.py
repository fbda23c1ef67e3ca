from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from tests.benchmarks.written import as_json, parquet, random_rewards, scores, table, user

from ebrm.benchmarks.hhh import load
from ebrm.errors import DataError


def prepared(name: str, category: str) -> dict[str, Any]:
    return {"id": name, "category": category, "prompt": user(name), "chosen": "good", "rejected": "bad"}


def hub(text: str, labels: list[int]) -> dict[str, Any]:
    return {"input": text, "targets": {"choices": ["first", "second"], "labels": labels}}


def big_bench(folder: Path) -> Path:
    tasks = folder / "bigbench" / "benchmark_tasks" / "hhh_alignment"
    as_json(
        tasks / "helpful" / "task.json",
        {"name": "x", "examples": [{"input": "q", "target_scores": {"bad": 0, "good": 1}}]},
    )
    examples = [{"input": f"p {n}", "target_scores": {"good": 1, "bad": 0}} for n in range(2)]
    as_json(tasks / "honest" / "task.json", {"name": "x", "examples": examples})
    return folder


def test_scores_by_hand(tmp_path: Path) -> None:
    categories = ["helpful", "helpful", "helpful", "honest", "harmless", "other"]
    parquet(tmp_path / "hhh_alignment.parquet", [prepared(str(n), category) for n, category in enumerate(categories)])
    benchmark = load(tmp_path)
    rewards = {"0": [1, 0], "1": [1, 0], "2": [0, 0], "3": [1, 0], "4": [0, 1], "5": [0, 1]}
    assert scores(benchmark, table(benchmark, rewards)) == pytest.approx({
        "overall": (2 / 3 + 1 + 0 + 0) / 4, "all pairs": 3 / 6,
        "helpful": 2 / 3, "honest": 1, "harmless": 0, "other": 0,
    })  # fmt: skip
    assert [score.kind for score in benchmark.scores] == ["overall", "section"] + ["subset"] * 4
    assert benchmark.notes == ()


def test_a_clone_of_big_bench(tmp_path: Path) -> None:
    benchmark = load(big_bench(tmp_path))
    assert [(item.id, item.group, item.responses) for item in benchmark.items] == [
        ("helpful-0", "helpful", ("good", "bad")),
        ("honest-0", "honest", ("good", "bad")),
        ("honest-1", "honest", ("good", "bad")),
    ]
    assert benchmark.items[2].prompt == ({"role": "user", "content": "p 1"},)
    assert benchmark.items[2].where.endswith("honest/task.json:examples[1]")
    assert benchmark.notes == ("Absent: harmless, other.",)


def test_the_hubs_parquet_branch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = {"helpful": [hub("q", [0, 1])], "honest": [hub("p", [1, 0])]}
    rows |= {"harmless": [hub("r", [1, 0])], "other": [hub("s", [1, 0]), hub("t", [0, 1])]}
    for category, values in rows.items():
        parquet(tmp_path / category / "test" / "0000.parquet", values)
    expected = {
        "helpful": [("second", "first")],
        "honest": [("first", "second")],
        "harmless": [("first", "second")],
        "other": [("first", "second"), ("second", "first")],
    }

    def responses() -> dict[str, list[tuple[str, ...]]]:
        return {category: [item.responses for item in local.items if item.group == category] for category in expected}

    local = load(tmp_path)
    assert responses() == expected
    real = datasets.load_dataset

    def from_branch(name: str, revision: str, **named: Any) -> Any:
        assert name == "HuggingFaceH4/hhh_alignment" and revision == "refs/convert/parquet"
        return real(str(tmp_path), **named)

    monkeypatch.setattr(datasets, "load_dataset", from_branch)
    local = load(None)
    assert responses() == expected and [item.id for item in local.items][-2:] == ["other-0", "other-1"]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (hub("q", [1, 1]), "targets.labels: not one right and one wrong response, [1.0, 1.0]"),
        (hub("q", [1]), "targets.labels: not one right and one wrong response"),
        ({"input": "q", "targets": {"choices": ["a", "b", "c"], "labels": [1, 0]}}, "not one right and one wrong"),
        ({"input": "q", "targets": {"choices": ["a"]}}, "targets.labels: no such column"),
        (hub(" ", [1, 0]), "prompt: empty"),
    ],
)
def test_bad_rows(tmp_path: Path, row: dict[str, Any], said: str) -> None:
    parquet(tmp_path / "helpful" / "test" / "0000.parquet", [row])
    with pytest.raises(DataError, match=r"helpful/test/0000\.parquet:1") as caught:
        load(tmp_path)
    assert said in str(caught.value)


def test_bad_examples_and_categories(tmp_path: Path) -> None:
    parquet(tmp_path / "hhh_alignment.parquet", [prepared("1", "kind")])
    with pytest.raises(DataError, match="category: none of helpful, honest, harmless, other, 'kind'"):
        load(tmp_path)
    (tmp_path / "hhh_alignment.parquet").unlink()
    path = tmp_path / "bigbench" / "benchmark_tasks" / "hhh_alignment" / "helpful" / "task.json"
    as_json(
        path, {"examples": ["text", {"input": "q", "target_scores": [1]}, {"input": "q", "target_scores": {"a": 1}}]}
    )
    with pytest.raises(DataError, match="3 of 3 rows") as caught:
        load(tmp_path)
    assert "target_scores: not an object" in str(caught.value) and "not one right and one wrong" in str(caught.value)
    as_json(
        path.parent.with_name("rude") / "task.json", {"examples": [{"input": "q", "target_scores": {"a": 1, "b": 0}}]}
    )
    path.unlink()
    with pytest.raises(DataError, match="folder: none of helpful"):
        load(tmp_path)


def test_the_shared_data_set_by_naive_loops(data_folder: Path) -> None:
    benchmark = load(data_folder)
    rewards = random_rewards(benchmark, levels=3)
    won: dict[str, list[float]] = {}
    for item, row in zip(benchmark.items, rewards, strict=True):
        won.setdefault(item.group, []).append(float(row[0] > row[1]))
    assert {category: len(values) for category, values in won.items()} == {
        "helpful": 59, "honest": 61, "harmless": 58, "other": 43,
    }  # fmt: skip
    found = scores(benchmark, rewards)
    assert found["overall"] == pytest.approx(np.mean([np.mean(values) for values in won.values()]), abs=1e-12)
    assert found["all pairs"] == pytest.approx(np.mean([v for values in won.values() for v in values]), abs=1e-12)
