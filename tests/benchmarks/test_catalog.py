"""Benchmarks by name, samples of them, and files of one's own."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.benchmarks.tiny import by_id, scores_of, user, write_csv, write_json, write_jsonl, write_parquet

from ebrm.benchmarks import NAMES, Benchmark, available, open_benchmark, open_file, sample_prompts
from ebrm.benchmarks.catalog import kind_of_columns, stem_of
from ebrm.errors import ConfigError, DataError

PAIR = {"prompt": user("p"), "chosen": "a", "rejected": "b"}
PREPARED = {
    "ifbench": PAIR | {"id": "1", "subset": "level-1"}, "hhh_alignment": PAIR | {"id": "1", "category": "helpful"},
    "mine_pairs": PAIR, "mine_pool": {"prompt": "p", "responses": ["a", "b"], "gold": [1.0, 0.0]},
    "mine_lists": {"prompt": "p", "best": "a", "losers": ["b"]}, "numbers": {"n": 1}, "train_mix": PAIR,
}  # fmt: skip


def folder(path: Path) -> Path:
    for name, row in PREPARED.items():
        write_parquet(path / f"{name}.parquet", [row])
    write_jsonl(path / "lines.jsonl", [PAIR])
    return path


def test_all_names_are_there_and_know_their_place() -> None:
    assert set(NAMES) == {
        "rmb", "rm-bench", "judgebench", "rewardbench", "rewardbench-legacy", "rewardbench2", "llmbar", "xstest", "hhh",
        "ifbench", "rewardmath",
    }  # fmt: skip
    assert all(entry.place.title and entry.place.layouts for entry in NAMES.values())


def test_what_a_folder_holds(tmp_path: Path) -> None:
    assert available(folder(tmp_path)) == ["hhh", "ifbench", "mine_lists", "mine_pairs", "mine_pool"]
    write_parquet(tmp_path / "rewardbench.parquet", [PAIR])  # of which there are two ways to score
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
        write_parquet(tmp_path / copy / "llmbar.parquet", [PAIR])
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
    return open_benchmark(str(write_jsonl(path, rows if order is None else [rows[i] for i in order])))


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
    with pytest.raises(ConfigError, match="prompts is 0, expected 1 or more"):
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


# ---- files of one's own -------------------------------------------------------------------------------------------

PAIRS = [
    {"prompt": "p1", "chosen": "good 1", "rejected": "bad 1"},
    {"prompt": "p2", "chosen": "good 2", "rejected": "bad 2"},
]
ASK = [{"role": "user", "content": "p"}]


def reply(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


@pytest.mark.parametrize(
    ("ending", "write"), [("jsonl", write_jsonl), ("json", write_json), ("csv", write_csv), ("parquet", write_parquet)]
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
        benchmark = open_file(write_jsonl(tmp_path / f"{name}.jsonl", [row | {"category": "c", "id": 3}]))
        item = benchmark.items[0]
        assert (item.id, item.prompt, item.responses, item.group) == ("3", tuple(ASK), ("good", "bad"), "c"), name


def test_a_csv_of_lists(tmp_path: Path) -> None:
    rows = [{"prompt": user("p"), "best": "x", "losers": json.dumps(["y", "z"])}]
    assert open_file(write_csv(tmp_path / "a.csv", rows)).items[0].responses == ("x", "y", "z")
    rows = [{"prompt": "p", "responses": json.dumps(["y", "z"]), "gold": "[0.5, 1]"}]
    assert open_file(write_csv(tmp_path / "b.csv", rows)).items[0].gold == (0.5, 1.0)


def test_best_of_n(tmp_path: Path) -> None:
    rows = [
        {"id": "a", "prompt": "p", "best": "x", "losers": ["y", "z"], "category": "c"},
        {"id": "b", "prompt": "q", "best": "x", "losers": ["y"], "category": None},
    ]
    benchmark = open_file(write_jsonl(tmp_path / "lists.jsonl", rows))
    assert [item.gold for item in benchmark.items] == [(1.0, 0.0, 0.0), (1.0, 0.0)]
    assert scores_of(benchmark, by_id(benchmark, {"a": [2, 1, 2], "b": [1, 0]})) == {"overall": 0.5, "c": 0.0}
    assert scores_of(benchmark, by_id(benchmark, {"a": [2, 1, 2], "b": [1, 0]}), "shared") == {
        "overall": 0.75,
        "c": 0.5,
    }
    rows = [{"prompt": "p", "chosen": "x", "rejected": ["y", "z"]}]
    assert open_file(write_jsonl(tmp_path / "other.jsonl", rows)).items[0].responses == ("x", "y", "z")
    assert benchmark.origin.endswith("(best-of-n)")


@pytest.mark.parametrize("form", ["strings", "messages", "single messages", "csv"])
def test_a_list_of_one_right_and_several_wrong_replies_is_best_of_n(tmp_path: Path, form: str) -> None:
    def as_form(texts: list[str]) -> Any:
        if form == "messages":
            return [reply(text) for text in texts]
        return [reply(text)[0] for text in texts] if form == "single messages" else texts

    rows = [{"prompt": f"q{k}", "chosen": as_form(["yes"]), "rejected": as_form(["no", "never"])} for k in range(3)]
    if form == "single messages":
        for row in rows:
            row["chosen"] = row["chosen"][0]
    if form == "csv":
        rows = [{name: json.dumps(cell) if name != "prompt" else cell for name, cell in row.items()} for row in rows]
    found = open_file(
        (write_csv if form == "csv" else write_jsonl)(tmp_path / ("b.csv" if form == "csv" else "b.jsonl"), rows)
    )
    assert "(best-of-n)" in found.origin
    assert [(item.responses, item.gold) for item in found.items] == [(("yes", "no", "never"), (1.0, 0.0, 0.0))] * 3


def test_several_right_replies_all_count_as_right(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "b.jsonl", [{"prompt": "q", "chosen": ["a", "b"], "rejected": ["c", "d"]}])
    assert open_file(path).items[0].gold == (1.0, 1.0, 0.0, 0.0)


def test_the_first_row_may_have_one_wrong_reply(tmp_path: Path) -> None:
    rows = [
        {"prompt": "p", "chosen": reply("a"), "rejected": reply("b")},
        {"prompt": "q", "chosen": reply("a"), "rejected": reply("b") + reply("c")},
    ]
    found = open_file(write_jsonl(tmp_path / "b.jsonl", rows))
    assert [item.responses for item in found.items] == [("a", "b"), ("a", "b", "c")]


def test_the_messages_of_one_reply_are_no_list_of_replies(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "q"}]
    rows = [
        {"prompt": "q", "chosen": reply("a"), "rejected": reply("b")},
        {"prompt": "q", "chosen": turns + reply("a"), "rejected": turns + reply("c")},
    ]
    assert "(pairwise)" in open_file(write_jsonl(tmp_path / "p.jsonl", rows)).origin


@pytest.mark.parametrize(
    ("row", "columns"),
    [
        (
            {"question": "q", "response_A": "no", "response_B": "yes", "label": "B>A", "chosen": "x", "rejected": "y"},
            {"prompt": "question", "a": "response_A", "b": "response_B"},
        ),
        ({"q": "q", "good": "yes", "bad": "no"}, {"prompt": "q", "chosen": "good", "rejected": "bad"}),
        ({"prompt": "old", "q": "q", "good": ["yes"], "bad": ["no"]}, {"prompt": "q", "best": "good", "losers": "bad"}),
        ({"q": "q", "texts": ["yes", "no"], "grade": [2, 1]}, {"prompt": "q", "responses": "texts", "gold": "grade"}),
    ],
)
def test_columns_of_other_names(tmp_path: Path, row: dict[str, Any], columns: dict[str, str]) -> None:
    path = write_jsonl(tmp_path / "mine.jsonl", [{**row, "key": "one", "kind": "k"}])
    (item,) = open_file(path, columns | {"id": "key", "category": "kind"}).items
    assert (item.id, item.group, item.prompt[0]["content"]) == ("one", "k", "q")
    assert item.responses == ("yes", "no") and item.gold[0] > item.gold[1]


def test_what_a_label_says_is_asked_for_and_ties_are_left_out(tmp_path: Path) -> None:
    rows = [{"prompt": f"q{k}", "a": "x", "b": "y", "label": label} for k, label in enumerate([7, 8, 9])]
    path = write_jsonl(tmp_path / "mine.jsonl", rows)
    with pytest.raises(DataError, match=r"label 'label' holds 7(?s:.)*`label_map="):
        open_file(path, {"a": "a"})
    found = open_file(path, {"a": "a"}, {"7": "a", "8": "b", "9": "tie"})
    assert [item.responses for item in found.items] == [("x", "y"), ("y", "x")]
    assert "1 of 3 rows are ties by their label, with no right side: left out." in found.notes
    with pytest.raises(DataError, match="each of the 3 rows is a tie"):
        open_file(path, {"a": "a"}, {"7": "tie", "8": "tie", "9": "tie"})


def test_a_mapping_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "mine.jsonl", [{"question": "q", "good": "a", "bad": None}])
    with pytest.raises(
        DataError, match=r"no column 'questoin'. Did you mean 'question'\? Its columns: question, good, bad"
    ):
        open_file(path, {"prompt": "questoin"})
    with pytest.raises(ConfigError, match=r"'query' is not one of our names \(prompt, chosen"):
        open_file(path, {"query": "question"})
    with pytest.raises(DataError, match=r"mine.jsonl:1, bad: missing"):  # under the file's own name
        open_file(path, {"prompt": "question", "chosen": "good", "rejected": "bad"})
    with pytest.raises(DataError, match=r"Name the columns of the data with `columns="):
        open_file(path)


def test_a_pool_by_hand(tmp_path: Path) -> None:
    rows = [
        {"id": "a", "prompt": "p", "responses": ["x", "y", "z"], "gold": [0.1, 0.9, 0.1], "category": "c"},
        {"id": "b", "prompt": "q", "responses": ["x", "y"], "gold": [1, 0], "category": "d"},
        {"id": "even", "prompt": "r", "responses": ["x", "y"], "gold": [0.5, 0.5], "category": "e"},
    ]
    benchmark = open_file(write_jsonl(tmp_path / "pool.jsonl", rows))
    assert [item.id for item in benchmark.items] == ["a", "b"] and [s.name for s in benchmark.scores] == [
        "overall",
        "c",
        "d",
    ]
    assert benchmark.notes[0].startswith("1 of 3 items have equal gold for all responses")
    rewards = by_id(benchmark, {"a": [3, 3, 1], "b": [2, 1]})
    assert scores_of(benchmark, rewards) == pytest.approx({"overall": 0.75, "c": 0.5, "d": 1})
    assert scores_of(benchmark, rewards, "shared") == pytest.approx({"overall": 0.875, "c": 0.75, "d": 1})
    assert benchmark.gold()[1].tolist()[:2] == [1, 0]
    with pytest.raises(DataError, match="every item has equal gold"):
        open_file(write_jsonl(tmp_path / "even.jsonl", rows[2:]))


def test_a_category_may_have_any_name(tmp_path: Path) -> None:
    rows = [row | {"category": name} for row, name in zip(PAIRS, ["overall", "all items"], strict=True)]
    benchmark = open_file(write_jsonl(tmp_path / "x.jsonl", rows))
    assert [score.name for score in benchmark.scores] == ["overall", "all items", "category overall"]
    rewards = {"x.jsonl:1": [1, 0], "x.jsonl:2": [0, 1]}
    found = scores_of(benchmark, by_id(benchmark, rewards))
    assert found == {"overall": 0.5, "all items": 0.0, "category overall": 1.0}


def test_splits_are_counted(tmp_path: Path) -> None:
    rows = [row | {"split": split} for row, split in zip(PAIRS, ["train", "test"], strict=True)]
    benchmark = open_file(write_jsonl(tmp_path / "x.jsonl", rows))
    assert len(benchmark) == 2 and benchmark.notes == ("Rows by split: 1 test, 1 train; all are used.",)
    one = open_file(write_jsonl(tmp_path / "y.jsonl", rows[:1] + [PAIRS[1] | {"split": ""}]))
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
    path = write_jsonl(tmp_path / "x.jsonl", [PAIRS[0] | {"id": "good"}, row])
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
        open_file(write_jsonl(tmp_path / "x.jsonl", [row]))
    assert said in str(caught.value)


def test_columns_that_make_no_schema(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"its first row \(prompt, answer\) are not those of a benchmark\. Expected pairwise"
    ):
        open_file(write_jsonl(tmp_path / "x.jsonl", [{"prompt": "p", "answer": "a"}]))
    with pytest.raises(DataError, match="not a kind of file that can be read here: expected .jsonl"):
        open_file(tmp_path / "x.txt")
    with pytest.raises(DataError, match="not a single row"):
        open_file(write_jsonl(tmp_path / "x.jsonl", []))


def test_kinds() -> None:
    assert kind_of_columns({"prompt": "", "chosen": "", "rejected": ""}) == "pairwise"
    assert kind_of_columns({"prompt": "", "chosen": "", "rejected": []}) == "best-of-n"
    assert kind_of_columns({"prompt": "", "chosen": "", "rejected": [{"role": "assistant"}]}) == "pairwise"
    assert kind_of_columns({"prompt": "", "chosen": [], "rejected": []}) == "pairwise"
    assert kind_of_columns({"prompt": "", "responses": [], "gold": []}) == "pool"
    assert kind_of_columns({"prompt": "", "text": ""}) is None


def test_stems() -> None:
    assert [stem_of(Path(name)) for name in ("a/b.jsonl", "b.json.gz", "b.v2.csv")] == ["b", "b", "b.v2"]


def test_the_shared_pools_by_naive_loops(data_folder: Path) -> None:
    benchmark = open_file(data_folder / "tulu_bon_pool.parquet")
    assert len(benchmark) == 788 and "17 of 805" in benchmark.notes[1]
    rewards = np.random.default_rng(0).integers(6, size=(788, 11)).astype(float)
    shares = []
    for item, row in zip(benchmark.items, rewards, strict=True):
        pairs = [(a, b) for a in range(11) for b in range(11) if item.gold[a] > item.gold[b]]
        shares.append(sum(row[a] > row[b] for a, b in pairs) / len(pairs))
    assert scores_of(benchmark, rewards)["overall"] == pytest.approx(np.mean(shares), abs=1e-12)
