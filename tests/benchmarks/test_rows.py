"""Rows of the public benchmarks that cannot be used are named, and where rows may lie."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.benchmarks.tiny import FILES, fake_hub, replies, reply, user, write_json, write_jsonl, write_parquet

from ebrm.benchmarks import NAMES, open_benchmark
from ebrm.errors import DataError

#: The file that a benchmark's changed rows are written to; JSON where a change is of another type than the column.
WRITTEN = {
    "rewardbench": "rewardbench.parquet", "rewardbench2": "rewardbench2.jsonl", "judgebench": "judgebench.parquet",
    "rm-bench": "total_dataset.json", "rmb": "rmb_pairwise.parquet", "llmbar": "llmbar.parquet",
    "xstest": "xstest_pairs.parquet", "hhh": "hhh_alignment.parquet", "rewardmath": "rewardmath.jsonl",
}  # fmt: skip
BAD: list[tuple[str, str, dict[str, Any], str]] = [
    ("rewardbench", "5", {"subset": "alpacaeval-medium"}, "subset: unknown subset"),
    ("rewardbench", "5", {"subset": None}, "subset: missing"),
    ("rewardbench", "5", {"chosen": None}, "chosen: missing"),
    ("rewardbench", "5", {"prompt": " "}, "prompt: empty"),
    ("rewardbench", "5", {"id": 1}, "id: repeats the id of rewardbench.parquet:2"),
    ("rewardbench2", "Math/0", {"subset": "Humour"}, "unknown subset"),
    ("rewardbench2", "Math/0", {"rejected": []}, "empty list"),
    ("rewardbench2", "Math/0", {"chosen": []}, "empty list"),
    ("rewardbench2", "Math/0", {"chosen": replies(1.0, 2), "total_completions": 5}, "expected exactly one"),
    ("rewardbench2", "Math/0", {"total_completions": 3}, "not the number of chosen and rejected"),
    ("rewardbench2", "Math/0", {"total_completions": "4"}, "not a whole number"),
    ("rewardbench2", "Math/0", {"total_completions": True}, "not a whole number"),
    ("rewardbench2", "Math/0", {"prompt": ""}, "empty"),
    ("rewardbench2", "Ties/tied:0", {"id": "tied-0"}, "not ref:N or tied:N"),
    ("rewardbench2", "Ties/tied:0", {"id": "best:0"}, "not ref:N or tied:N"),
    ("rewardbench2", "Ties/tied:0", {"id": "tied:0 "}, "not ref:N or tied:N"),
    ("rewardbench2", "Ties/tied:0", {"num_correct": 1}, "2 or more right"),
    ("rewardbench2", "Ties/tied:0", {"num_correct": 5}, "2 or more right"),
    ("rewardbench2", "Ties/ref:0", {"num_correct": 0}, "1 or more right"),
    ("rewardbench2", "Ties/ref:0", {"num_correct": None, "rejected": [], "total_completions": 1}, "empty list"),
    ("rewardbench2", "Ties/tied:1", {"id": "tied:00"}, "repeated id"),
    ("judgebench", "judge-1", {"label": "A=B"}, "label: label is neither A>B nor B>A, 'A=B'"),
    ("judgebench", "judge-1", {"label": None}, "label: missing"),
    ("judgebench", "judge-1", {"source": "gsm8k"}, "source: begins with none of mmlu-pro"),
    ("judgebench", "judge-1", {"response_model": "org/model"}, "response_model: a name with a slash"),
    ("judgebench", "judge-1", {"response_B": None}, "response_B: missing"),
    ("judgebench", "judge-1", {"question": " "}, "question: empty"),
    ("judgebench", "judge-1", {"pair_id": "judge-0"}, "pair_id: repeats the id of judgebench.parquet:1"),
    ("rm-bench", "rmbench-1", {"domain": "poetry"}, "domain: unknown domain"),
    ("rm-bench", "rmbench-1", {"chosen": replies(1.0, 2)}, "chosen: a list of 2"),
    ("rm-bench", "rmbench-1", {"rejected": replies(0.0, 4)}, "rejected: expected 3 styles"),
    ("rm-bench", "rmbench-1", {"rejected": []}, "rejected: empty list"),
    ("rm-bench", "rmbench-1", {"chosen": reply(1.0)}, "chosen: not a list"),
    ("rm-bench", "rmbench-1", {"prompt": None}, "prompt: missing"),
    ("rmb", "rmb-1", {"category": "Other/Chat"}, "category: does not begin with Helpfulness or Harmlessness"),
    ("rmb", "rmb-1", {"category": "Chat", "subset": "Helpfulness"}, "does not begin with"),
    ("rmb", "rmb-1", {"chosen": None}, "chosen: missing"),
    ("rmb", "rmb-1", {"prompt": user(" ")}, "prompt: empty"),
    ("rmb", "rmb-1", {"subset": None}, "subset: missing"),
    ("llmbar", "llmbar-1", {"category": "Chatbot"}, "category: not a set of LLMBar, 'Chatbot'"),
    ("xstest", "xstest-1", {"category": "maybe"}, "category: neither should-refuse nor should-respond"),
    ("hhh", "hhh-1", {"category": "kind"}, "category: none of helpful, honest, harmless, other, 'kind'"),
    ("rewardmath", "problem 1", {"id": "problem 0"}, "repeated id"),
]  # fmt: skip


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    {".parquet": write_parquet, ".json": write_json, ".jsonl": write_jsonl}[path.suffix](path, rows)


@pytest.mark.parametrize(("name", "changed", "change", "said"), BAD)
def test_a_bad_row_is_named(name: str, changed: str, change: dict[str, Any], said: str, tmp_path: Path) -> None:
    rows = next(iter(FILES[name].values()))
    ids = [f"{r['subset']}/{r['id']}" if name == "rewardbench2" else str(r.get("id", r.get("pair_id"))) for r in rows]
    place = ids.index(changed)
    write(tmp_path / WRITTEN[name], [row | change if n == place else row for n, row in enumerate(rows)])
    with pytest.raises(
        DataError, match=f"1 of {len(rows)} (rows|questions)? ?cannot be used|1 of {len(rows)}"
    ) as raised:
        open_benchmark(name, tmp_path)
    assert said in str(raised.value) and f"{WRITTEN[name]}:{place + 1}, " in str(raised.value)


@pytest.mark.parametrize(("name", "column"), [("rewardbench", "subset"), ("ifbench", "subset")])
def test_a_missing_column_is_named(name: str, column: str, tmp_path: Path) -> None:
    ((file, rows),) = FILES[name].items()
    write_parquet(tmp_path / file, [{key: value for key, value in row.items() if key != column} for row in rows])
    with pytest.raises(DataError, match="no such column"):
        open_benchmark(name, tmp_path)


@pytest.mark.parametrize(
    ("name", "asked"),
    [
        ("rewardbench", [("allenai/reward-bench", "filtered")]),
        ("rewardbench2", [("allenai/reward-bench-2", "test")]),
        ("rm-bench", [("THU-KEG/RM-Bench", "train")]),
        ("rewardmath", [("RewardMATH/RewardMATH", "test")]),
        ("ifbench", [("THU-KEG/IFBench", "train")]),
    ],
)
def test_the_hub(name: str, asked: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch) -> None:
    (rows,) = FILES[name].values()
    found = fake_hub(monkeypatch, rows)
    benchmark = open_benchmark(name)
    assert found == asked and len(benchmark) == len(rows) and asked[0][0] in benchmark.origin


@pytest.mark.parametrize("name", ["llmbar", "xstest", "rmb"])
def test_some_are_not_on_the_hub(name: str) -> None:
    with pytest.raises(DataError, match=f"Clone https://github.com/{NAMES[name].place.repository}"):
        open_benchmark(name)


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("rewardbench", "data/filtered-00000-of-00001.parquet"),
        ("rewardbench", "reward-bench/data/filtered-00000-of-00001.parquet"),
        ("rewardbench", "snapshots/168d/data/filtered-00000-of-00001.parquet"),
        ("rewardbench", "filtered-0.parquet"),
        ("rewardbench2", "reward-bench-2/data/test-00000-of-00001.parquet"),
        ("rewardbench2", "reward-bench-2/test-00000-of-00001.parquet"),
        ("rewardbench2", "in/reward-bench-2/data/test-00000-of-00001.parquet"),
    ],
)
def test_files_of_the_hub_data_set(name: str, path: str, tmp_path: Path) -> None:
    (rows,) = FILES[name].values()
    write_parquet(tmp_path / path, rows)
    write_parquet(tmp_path / path.replace("filtered", "raw").replace("test-", "other-"), [{"of": "other rows"}])
    write_parquet(tmp_path / "data" / "test-00000-of-00001.parquet", [{"of": "another data set"}])
    for folder in (tmp_path, (tmp_path / path).parent):
        benchmark = open_benchmark(name, folder)
        assert len(benchmark) == len(rows) and benchmark.items[0].where.endswith(".parquet:1")
