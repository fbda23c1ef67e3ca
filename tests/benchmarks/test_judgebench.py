from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import pytest
from tests.benchmarks.written import jsonl, parquet, scores, table

from ebrm.benchmarks.judgebench import load
from ebrm.errors import DataError

GPT, CLAUDE = "gpt-4o-2024-05-13", "claude-3-5-sonnet-20240620"


def row(name: str, source: str, label: str = "A>B", model: str = GPT) -> dict[str, Any]:
    responses = {"response_A": f"first {name}", "response_B": f"second {name}", "label": label}
    return {"pair_id": name, "source": source, "question": f"q {name}", "response_model": model} | responses


GPT_ROWS = [
    row("1", "mmlu-pro-law"),
    row("2", "mmlu-pro-law", "B>A"),
    row("3", "mmlu-pro-math", "B>A"),
    row("4", "livebench-math"),
    row("5", "livecodebench"),
]
CLAUDE_ROWS = [row("1", "mmlu-pro-law", model=CLAUDE), row("6", "livebench-reasoning", "B>A", model=CLAUDE)]


def clone(folder: Path) -> Path:
    jsonl(folder / "data" / f"dataset=judgebench,response_model={GPT}.jsonl", GPT_ROWS)
    jsonl(folder / "data" / f"dataset=judgebench,response_model={CLAUDE}.jsonl", CLAUDE_ROWS)
    jsonl(folder / "outputs" / f"dataset=judgebench,response_model={GPT},judge_name=x.jsonl", GPT_ROWS)
    return folder


def test_a_clone(tmp_path: Path) -> None:
    benchmark = load(clone(tmp_path))
    items = {item.id: item for item in benchmark.items}
    assert len(items) == 7 and {f"{GPT}/1", f"{CLAUDE}/1"} <= items.keys()
    assert items[f"{GPT}/1"].responses == ("first 1", "second 1")
    assert items[f"{GPT}/2"].responses == ("second 2", "first 2")
    assert all(item.gold == (1.0, 0.0) for item in benchmark.items)
    assert items[f"{GPT}/3"].prompt == ({"role": "user", "content": "q 3"},)
    assert items[f"{GPT}/1"].cluster == items[f"{CLAUDE}/1"].cluster
    assert [(score.name, score.kind) for score in benchmark.scores] == [
        ("overall", "overall"), ("knowledge", "section"), ("reasoning", "section"), ("math", "section"),
        ("coding", "section"), (CLAUDE, "section"), (GPT, "section"),
        ("mmlu-pro-law", "subset"), ("mmlu-pro-math", "subset"),
    ]  # fmt: skip


def test_scores_by_hand(tmp_path: Path) -> None:
    benchmark = load(clone(tmp_path))
    won = {f"{GPT}/1", f"{GPT}/4", f"{CLAUDE}/1"}
    tied = {f"{GPT}/2"}
    rewards = {i.id: [1, 0] if i.id in won else [0, 0] if i.id in tied else [0, 1] for i in benchmark.items}
    assert scores(benchmark, table(benchmark, rewards)) == pytest.approx({
        "overall": 3 / 7, "knowledge": 2 / 4, "reasoning": 0, "math": 1, "coding": 0,
        CLAUDE: 1 / 2, GPT: 2 / 5, "mmlu-pro-law": 2 / 3, "mmlu-pro-math": 0,
    })  # fmt: skip
    assert scores(benchmark, table(benchmark, rewards), "shared")["overall"] == pytest.approx(3.5 / 7)


def test_one_response_model_alone(tmp_path: Path) -> None:
    (clone(tmp_path) / "data" / f"dataset=judgebench,response_model={CLAUDE}.jsonl").unlink()
    names = [score.name for score in load(tmp_path / "data").scores]
    assert GPT in names and CLAUDE not in names and "reasoning" not in names


def test_the_hub_has_a_split_for_each_response_model(monkeypatch: pytest.MonkeyPatch) -> None:
    splits = {"gpt": GPT_ROWS, "claude": CLAUDE_ROWS}
    monkeypatch.setattr(datasets, "load_dataset", lambda _, split, **__: datasets.Dataset.from_list(splits[split]))
    assert [item.id for item in load(None).items] == [f"{GPT}/{n}" for n in range(1, 6)] + [
        f"{CLAUDE}/1",
        f"{CLAUDE}/6",
    ]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"label": "A=B"}, "label: label is neither A>B nor B>A, 'A=B'"),
        ({"label": None}, "label: missing"),
        ({"source": "gsm8k"}, "source: begins with none of mmlu-pro"),
        ({"response_model": "org/model"}, "response_model: a name with a slash"),
        ({"response_B": None}, "response_B: missing"),
        ({"question": " "}, "question: empty"),
        ({"pair_id": "1"}, "pair_id: repeats the id of judgebench.parquet:1"),
    ],
)
def test_bad_rows(tmp_path: Path, changed: dict[str, Any], said: str) -> None:
    parquet(tmp_path / "judgebench.parquet", [GPT_ROWS[0], GPT_ROWS[1] | changed])
    with pytest.raises(DataError, match="1 of 2 rows") as caught:
        load(tmp_path)
    assert said in str(caught.value) and "judgebench.parquet:2" in str(caught.value)
