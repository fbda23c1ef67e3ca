from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from tests.benchmarks.written import jsonl, parquet, user

from ebrm.benchmarks import Benchmark, available, open_benchmark, sample_prompts
from ebrm.benchmarks.catalog import NAMES
from ebrm.errors import ConfigError, DataError

PAIR = {"prompt": user("p"), "chosen": "a", "rejected": "b"}
PREPARED = {
    "ifbench": PAIR | {"id": "1", "subset": "level-1"},
    "hhh_alignment": PAIR | {"id": "1", "category": "helpful"},
    "mine_pairs": PAIR,
    "mine_pool": {"prompt": "p", "responses": ["a", "b"], "gold": [1.0, 0.0]},
    "mine_lists": {"prompt": "p", "best": "a", "losers": ["b"]},
    "numbers": {"n": 1},
    "train_mix": PAIR,
}


def folder(path: Path) -> Path:
    for name, row in PREPARED.items():
        parquet(path / f"{name}.parquet", [row])
    jsonl(path / "lines.jsonl", [PAIR])
    return path


def test_all_names_are_there_and_know_their_place() -> None:
    assert set(NAMES) == {
        "rmb", "rm-bench", "judgebench", "rewardbench", "rewardbench-legacy", "rewardbench2", "llmbar", "xstest", "hhh",
        "ifbench", "rewardmath",
    }  # fmt: skip
    assert all(entry.place.title and entry.place.layouts for entry in NAMES.values())


def test_what_a_folder_holds(tmp_path: Path) -> None:
    assert available(folder(tmp_path)) == ["hhh", "ifbench", "mine_lists", "mine_pairs", "mine_pool"]
    parquet(tmp_path / "rewardbench.parquet", [PAIR])  # of which there are two ways to score
    assert available(tmp_path)[0] == "rewardbench" and "rewardbench-legacy" not in available(tmp_path)
    folder(tmp_path / "above" / "prepared")
    assert available(tmp_path / "above") == ["hhh", "ifbench"]
    with pytest.raises(DataError, match="does not exist"):
        available(tmp_path / "no")


def test_everything_available_can_be_opened(tmp_path: Path) -> None:
    folder(tmp_path)
    opened = {name: open_benchmark(name, tmp_path) for name in available(tmp_path)}
    assert {name: benchmark.name for name, benchmark in opened.items()} == {name: name for name in opened}
    assert all(len(benchmark) == 1 for benchmark in opened.values())


def test_a_path_is_a_benchmark_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder(tmp_path)
    assert open_benchmark(str(tmp_path / "lines.jsonl")).name == "lines"
    assert open_benchmark(str(tmp_path / "train_mix.parquet"), tmp_path).name == "train_mix"
    monkeypatch.chdir(tmp_path)
    assert open_benchmark("lines.jsonl").name == "lines"
    (tmp_path / "ifbench").mkdir()
    assert open_benchmark("ifbench", tmp_path).title == "IFBench"  # a name is a name, whatever lies about
    monkeypatch.setenv("HOME", str(tmp_path))
    assert open_benchmark("~/lines.jsonl").name == "lines"


def test_ones_own_file_opens_whatever_else_is_in_doubt(tmp_path: Path) -> None:
    folder(tmp_path)
    for copy in ("one", "two"):
        parquet(tmp_path / copy / "llmbar.parquet", [PAIR])
    assert open_benchmark("mine_pairs", tmp_path).name == "mine_pairs"
    with pytest.raises(DataError, match="LLMBar: .* holds it 2 times"):
        available(tmp_path)


def test_paths_that_are_no_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is a folder"):
        open_benchmark(str(tmp_path))
    with pytest.raises(DataError, match=f"There is no file {tmp_path}/no"):
        open_benchmark(str(tmp_path / "no"))
    with pytest.raises(DataError, match="There is no file mine.jsonl"):
        open_benchmark("mine.jsonl")


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("rmbench", "rm-bench"), ("RM_Bench", "rm-bench"), ("reward-bench-2", "rewardbench2"), ("RMB", "rmb"),
        ("RewardBench", "rewardbench"),
        ("judge-bench", "judgebench"), ("hhh_alignment", "hhh"), ("xstest_pairs", "xstest"), ("llm-bar", "llmbar"),
        ("reward_math", "rewardmath"), ("minepool", "mine_pool"), ("ifbnech", "ifbench"),
    ],
)  # fmt: skip
def test_an_unknown_name_suggests_the_nearest(tmp_path: Path, name: str, near: str) -> None:
    with pytest.raises(ConfigError) as caught:
        open_benchmark(name, folder(tmp_path))
    said = str(caught.value)
    assert f"{name!r} is not a benchmark. Did you mean {near}? There are rmb, rm-bench, " in said
    assert "mine_pool" in said and "train_mix" not in said


def test_a_name_like_none_lists_all() -> None:
    with pytest.raises(ConfigError, match=r"'zzz' is not a benchmark\. There are rmb, .*rewardmath; or give the path"):
        open_benchmark("zzz")
    with pytest.raises(ConfigError, match="'--' is not a benchmark") as caught:
        open_benchmark("--")
    assert "Did you mean" not in str(caught.value)


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.parquet").write_bytes(b"no")
    with pytest.raises(DataError, match=r"x\.parquet cannot be read"):
        available(tmp_path)


# ---- samples ------------------------------------------------------------------------------------------------------


def many(path: Path, order: np.ndarray | None = None, prompts: int = 40) -> Benchmark:
    rows = [{"id": n, "prompt": f"p{n % prompts}", "chosen": "a", "rejected": "b"} for n in range(3 * prompts)]
    return open_benchmark(str(jsonl(path, rows if order is None else [rows[i] for i in order])))


def ids(benchmark: Benchmark) -> list[str]:
    return [item.id for item in benchmark.items]


def test_a_sample_is_of_whole_prompts(tmp_path: Path) -> None:
    benchmark = many(tmp_path / "x.jsonl")
    sample = sample_prompts(benchmark, 10, seed=1)
    assert len(sample) == 30 and len(set(sample.clusters())) == 10
    assert ids(sample) == [name for name in ids(benchmark) if name in set(ids(sample))]
    assert sample.notes == ("A random sample of 10 of 40 prompts (seed 1).",)
    assert set(ids(sample_prompts(benchmark, 5, seed=1))) < set(ids(sample))
    assert ids(sample_prompts(benchmark, 10, seed=2)) != ids(sample)
    assert sample_prompts(benchmark, 40, seed=1) is benchmark and sample_prompts(benchmark, 99, seed=1) is benchmark
    with pytest.raises(ConfigError, match="0 prompts; it must be at least 1"):
        sample_prompts(benchmark, 0, seed=1)


def test_a_sample_does_not_depend_on_the_order(tmp_path: Path) -> None:
    order = np.random.default_rng(0).permutation(120)
    one = sample_prompts(many(tmp_path / "x.jsonl"), 10, seed=3)
    other = sample_prompts(many(tmp_path / "y.jsonl", order), 10, seed=3)
    assert set(ids(one)) == set(ids(other))


def test_every_prompt_is_as_likely_as_another(tmp_path: Path) -> None:
    benchmark = many(tmp_path / "x.jsonl", prompts=8)
    counts = np.zeros(8)
    for seed in range(400):
        counts[[int(name) for name in ids(sample_prompts(benchmark, 2, seed)) if int(name) < 8]] += 1
    assert counts.sum() == 800 and (np.abs(counts - 100) < 4 * np.sqrt(400 * 0.25 * 0.75)).all()


def test_the_shared_folder(data_folder: Path) -> None:
    names = available(data_folder)
    assert names == [
        "rmb", "rm-bench", "llmbar", "xstest", "hhh", "ifbench", "alpaca_eval_pairs", "alpaca_eval_pool",
        "arena_bench_pool", "hh_harmless_test", "mmlu_pro_pool", "tulu_bon_pool",
    ]  # fmt: skip
    stems = {name.removesuffix(".parquet") for name in os.listdir(data_folder) if name.endswith(".parquet")}
    named = {"rmb_pairwise", "rmb_bon", "rm_bench", "llmbar", "xstest_pairs", "hhh_alignment", "ifbench", "train_mix"}
    assert stems == named | set(names[6:])
