"""LLMBar, XSTest, JudgeBench, IFBench and HHH alignment: their files, items and scores by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import pytest
from tests.benchmarks.tiny import by_id, scores_of, user, write_csv, write_json, write_jsonl, write_parquet

from ebrm.benchmarks import Benchmark
from ebrm.benchmarks.pairwise import hhh, ifbench, judgebench, llmbar, xstest
from ebrm.errors import DataError


def prepared(name: str, **columns: str) -> dict[str, Any]:
    return {"id": name, "prompt": user(name), "chosen": "good", "rejected": "bad"} | columns


def kinds(benchmark: Benchmark) -> list[tuple[str, str]]:
    return [(score.name, score.kind) for score in benchmark.scores]


# ---- LLMBar -------------------------------------------------------------------------------------------------------

FOLDERS = {
    "LLMBar/Natural": 4, "LLMBar/Adversarial/Neighbor": 2, "LLMBar/Adversarial/GPTInst": 1,
    "LLMBar/Adversarial/GPTOut": 1, "LLMBar/Adversarial/Manual": 1, "CaseStudy/Normal": 2, "CaseStudy/Base_9": 1,
    "Processed/FairEval": 2,
}  # fmt: skip


def llmbar_clone(folder: Path, leave_out: tuple[str, ...] = ()) -> Path:
    for name, count in FOLDERS.items():
        if name in leave_out:
            continue
        rows = [
            {"input": f"{name} {n}", "output_1": "first", "output_2": "second", "label": 1 + n % 2}
            for n in range(count)
        ]
        write_json(folder / "Dataset" / name / "dataset.json", rows)
        write_json(folder / "Dataset" / name / "evaluators" / "Judge" / "result.json", [{"evaluator": "x"}])
    return folder


def test_llmbar_a_clone(tmp_path: Path) -> None:
    benchmark = llmbar(llmbar_clone(tmp_path))
    items = {item.id: item for item in benchmark.items}
    assert len(items) == 14 and benchmark.notes == ()
    assert items["LLMBar/Natural-1"].responses == ("first", "second")
    assert items["LLMBar/Natural-2"].responses == ("second", "first")
    assert items["LLMBar/Natural-2"].prompt == ({"role": "user", "content": "LLMBar/Natural 1"},)
    assert kinds(benchmark) == [
        ("overall", "overall"), ("Natural", "section"), ("Adversarial", "section"), ("CaseStudy", "section"),
        ("Processed", "section"), ("Adversarial/Neighbor", "subset"), ("Adversarial/GPTInst", "subset"),
        ("Adversarial/GPTOut", "subset"), ("Adversarial/Manual", "subset"), ("CaseStudy/Base_9", "subset"),
        ("CaseStudy/Normal", "subset"), ("Processed/FairEval", "subset"),
    ]  # fmt: skip


def test_llmbar_scores_by_hand(tmp_path: Path) -> None:
    benchmark = llmbar(llmbar_clone(tmp_path))
    won = {"LLMBar/Natural-1", "LLMBar/Natural-2", "LLMBar/Natural-3", "LLMBar/Adversarial/Neighbor-2"}
    won |= {"LLMBar/Adversarial/Manual-1", "CaseStudy/Normal-1", "CaseStudy/Base_9-1"}
    rewards = {item.id: [1, 0] if item.id in won else [0, 0] for item in benchmark.items}
    found = scores_of(benchmark, by_id(benchmark, rewards))
    adversarial = (0.5 + 0 + 0 + 1) / 4
    assert found == pytest.approx({
        "overall": (0.75 + 0.5 + 0 + 0 + 1) / 5, "Natural": 0.75, "Adversarial": adversarial, "CaseStudy": 0.75,
        "Processed": 0, "Adversarial/Neighbor": 0.5, "Adversarial/GPTInst": 0, "Adversarial/GPTOut": 0,
        "Adversarial/Manual": 1, "CaseStudy/Base_9": 1, "CaseStudy/Normal": 0.5, "Processed/FairEval": 0,
    })  # fmt: skip


def test_sets_absent_from_llmbar_are_said(tmp_path: Path) -> None:
    absent = ("LLMBar/Natural", "LLMBar/Adversarial/GPTOut", "CaseStudy/Normal")
    benchmark = llmbar(llmbar_clone(tmp_path, absent))
    assert benchmark.notes == ("Absent, and no part of overall: LLMBar/Natural, LLMBar/Adversarial/GPTOut.",)
    assert len(benchmark.scores[0].weights) == 3 and "Natural" not in {score.name for score in benchmark.scores}


def test_the_other_sets_alone_are_not_llmbar(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has none of LLMBar/Natural"):
        llmbar(llmbar_clone(tmp_path, tuple(name for name in FOLDERS if name.startswith("LLMBar"))))


def test_llmbars_natural_alone(tmp_path: Path) -> None:
    write_parquet(tmp_path / "llmbar.parquet", [prepared("1", category="LLMBar/Natural")])
    assert [score.name for score in llmbar(tmp_path).scores] == ["overall", "Natural"]


def test_llmbar_bad_rows(tmp_path: Path) -> None:
    llmbar_clone(tmp_path)
    row = {"input": "q", "output_1": "a", "output_2": "b", "label": 3}
    write_json(tmp_path / "Dataset" / "LLMBar" / "Natural" / "dataset.json", [row])
    with pytest.raises(DataError, match=r"Natural/dataset\.json:1, label: label is neither 1 nor 2, 3"):
        llmbar(tmp_path)


# ---- XSTest -------------------------------------------------------------------------------------------------------


XSTEST_ROWS = [
    prepared("1", category="should-respond", subset="homonyms"),
    prepared("2", category="should-respond", subset="homonyms"),
    prepared("3", category="should-respond", subset="definitions"),
    prepared("4", category="should-refuse", subset="contrast_homonyms"),
]


def completion(name: str, kind: str, label: str, text: str) -> dict[str, Any]:
    return {"id": name, "type": kind, "prompt": f"q {name}", "completion": text, "final_label": label}


def xstest_clone(folder: Path) -> Path:
    files = {
        "gpt4": [
            completion("v2-1", "homonyms", "1_full_compliance", "sure gpt4"),
            completion("v2-2", "contrast_homonyms", "2_full_refusal", "no gpt4"),
            completion("v2-3", "homonyms", "3_partial_refusal", "hm gpt4"),
        ],
        "llama": [
            completion("v2-1", "homonyms", "2_full_refusal", "no llama"),
            completion("v2-2", "contrast_homonyms", "1_full_compliance", "sure llama"),
            completion("v2-3", "homonyms", "1_full_compliance", "sure llama"),
        ],
        "mistral": [
            completion("v2-1", "homonyms", "2_full_refusal", "no mistral"),
            completion("v2-2", "contrast_homonyms", "1_full_compliance", "sure mistral"),
            completion("v2-3", "homonyms", "1_full_compliance", "sure mistral"),
        ],
    }
    for model, rows in files.items():
        write_csv(folder / "model_completions" / f"xstest_v2_completions_{model}.csv", rows)
    return folder


def test_xstest_scores_by_hand(tmp_path: Path) -> None:
    write_parquet(tmp_path / "xstest_pairs.parquet", XSTEST_ROWS)
    benchmark = xstest(tmp_path)
    rewards = {"1": [1, 0], "2": [0, 1], "3": [0, 1], "4": [1, 1]}
    expected = {
        "overall": (1 / 3 + 0) / 2, "should-refuse": 0, "should-respond": 1 / 3,
        "should-refuse/contrast_homonyms": 0, "should-respond/definitions": 0, "should-respond/homonyms": 1 / 2,
    }  # fmt: skip
    assert scores_of(benchmark, by_id(benchmark, rewards)) == pytest.approx(expected)
    assert scores_of(benchmark, by_id(benchmark, rewards), "shared")["overall"] == pytest.approx((1 / 3 + 1 / 2) / 2)
    assert [score.kind for score in benchmark.scores] == ["overall", "section", "section"] + ["subset"] * 3
    assert benchmark.notes == ()


def test_pairs_are_made_from_a_clone(tmp_path: Path) -> None:
    benchmark = xstest(xstest_clone(tmp_path))
    assert {item.id: (item.responses, item.group) for item in benchmark.items} == {
        "v2-1-gpt4-llama": (("sure gpt4", "no llama"), "should-respond/homonyms"),
        "v2-1-gpt4-mistral": (("sure gpt4", "no mistral"), "should-respond/homonyms"),
        "v2-2-gpt4-llama": (("no gpt4", "sure llama"), "should-refuse/contrast_homonyms"),
        "v2-2-gpt4-mistral": (("no gpt4", "sure mistral"), "should-refuse/contrast_homonyms"),
    }
    assert all(item.gold == (1.0, 0.0) for item in benchmark.items)
    item = next(item for item in benchmark.items if item.id == "v2-2-gpt4-llama")
    assert item.prompt == ({"role": "user", "content": "q v2-2"},)
    assert item.where == "model_completions/xstest_v2_completions_gpt4.csv:3"


def test_always_refusing_and_always_complying_are_both_half(tmp_path: Path) -> None:
    benchmark = xstest(xstest_clone(tmp_path))
    for word in ("sure", "no"):
        rewards = {item.id: [float(text.startswith(word)) for text in item.responses] for item in benchmark.items}
        assert scores_of(benchmark, by_id(benchmark, rewards))["overall"] == 0.5


def test_a_half_that_is_absent_is_said(tmp_path: Path) -> None:
    write_parquet(tmp_path / "xstest_pairs.parquet", XSTEST_ROWS[:3])
    benchmark = xstest(tmp_path)
    assert benchmark.notes == ("There are no should-refuse pairs, so overall is the other half.",)
    assert benchmark.scores[0].weights == {"should-respond": 1.0}


def test_xstest_bad_rows(tmp_path: Path) -> None:
    write_parquet(tmp_path / "xstest_pairs.parquet", [*XSTEST_ROWS, prepared("5", category="maybe", subset="x")])
    with pytest.raises(DataError, match=r"xstest_pairs\.parquet:5, category: neither should-refuse nor should-respond"):
        xstest(tmp_path)
    (tmp_path / "xstest_pairs.parquet").unlink()
    path = tmp_path / "model_completions" / "xstest_v2_completions_gpt4.csv"
    write_csv(path, [completion("v2-1", "homonyms", "yes", "sure")])
    with pytest.raises(DataError, match=r"gpt4\.csv:2, final_label: unknown label, 'yes'"):
        xstest(tmp_path)
    write_csv(path, [{"id": "v2-1", "final_label": "1_full_compliance"}])
    write_csv(path.with_name("xstest_v2_completions_x.csv"), [{"id": "v2-1", "final_label": "2_full_refusal"}])
    with pytest.raises(DataError, match="1 of 1 rows cannot be used"):
        xstest(tmp_path)


# ---- JudgeBench ---------------------------------------------------------------------------------------------------

GPT, CLAUDE = "gpt-4o-2024-05-13", "claude-3-5-sonnet-20240620"


def question(name: str, source: str, label: str = "A>B", model: str = GPT) -> dict[str, Any]:
    responses = {"response_A": f"first {name}", "response_B": f"second {name}", "label": label}
    return {"pair_id": name, "source": source, "question": f"q {name}", "response_model": model} | responses


GPT_ROWS = [
    question("1", "mmlu-pro-law"), question("2", "mmlu-pro-law", "B>A"), question("3", "mmlu-pro-math", "B>A"),
    question("4", "livebench-math"), question("5", "livecodebench"),
]  # fmt: skip
CLAUDE_ROWS = [question("1", "mmlu-pro-law", model=CLAUDE), question("6", "livebench-reasoning", "B>A", model=CLAUDE)]


def judgebench_clone(folder: Path) -> Path:
    write_jsonl(folder / "data" / f"dataset=judgebench,response_model={GPT}.jsonl", GPT_ROWS)
    write_jsonl(folder / "data" / f"dataset=judgebench,response_model={CLAUDE}.jsonl", CLAUDE_ROWS)
    write_jsonl(folder / "outputs" / f"dataset=judgebench,response_model={GPT},judge_name=x.jsonl", GPT_ROWS)
    return folder


def test_judgebench_a_clone(tmp_path: Path) -> None:
    benchmark = judgebench(judgebench_clone(tmp_path))
    items = {item.id: item for item in benchmark.items}
    assert len(items) == 7 and {f"{GPT}/1", f"{CLAUDE}/1"} <= items.keys()
    assert items[f"{GPT}/1"].responses == ("first 1", "second 1")
    assert items[f"{GPT}/2"].responses == ("second 2", "first 2")
    assert all(item.gold == (1.0, 0.0) for item in benchmark.items)
    assert items[f"{GPT}/3"].prompt == ({"role": "user", "content": "q 3"},)
    assert items[f"{GPT}/1"].cluster == items[f"{CLAUDE}/1"].cluster
    assert kinds(benchmark) == [
        ("overall", "overall"), ("knowledge", "section"), ("reasoning", "section"), ("math", "section"),
        ("coding", "section"), (CLAUDE, "section"), (GPT, "section"),
        ("mmlu-pro-law", "subset"), ("mmlu-pro-math", "subset"),
    ]  # fmt: skip


def test_judgebench_scores_by_hand(tmp_path: Path) -> None:
    benchmark = judgebench(judgebench_clone(tmp_path))
    won = {f"{GPT}/1", f"{GPT}/4", f"{CLAUDE}/1"}
    tied = {f"{GPT}/2"}
    rewards = {i.id: [1, 0] if i.id in won else [0, 0] if i.id in tied else [0, 1] for i in benchmark.items}
    assert scores_of(benchmark, by_id(benchmark, rewards)) == pytest.approx({
        "overall": 3 / 7, "knowledge": 2 / 4, "reasoning": 0, "math": 1, "coding": 0,
        CLAUDE: 1 / 2, GPT: 2 / 5, "mmlu-pro-law": 2 / 3, "mmlu-pro-math": 0,
    })  # fmt: skip
    assert scores_of(benchmark, by_id(benchmark, rewards), "shared")["overall"] == pytest.approx(3.5 / 7)


def test_one_response_model_alone(tmp_path: Path) -> None:
    (judgebench_clone(tmp_path) / "data" / f"dataset=judgebench,response_model={CLAUDE}.jsonl").unlink()
    names = [score.name for score in judgebench(tmp_path / "data").scores]
    assert GPT in names and CLAUDE not in names and "reasoning" not in names


def test_the_hub_has_a_split_for_each_response_model(monkeypatch: pytest.MonkeyPatch) -> None:
    splits = {"gpt": GPT_ROWS, "claude": CLAUDE_ROWS}
    monkeypatch.setattr(datasets, "load_dataset", lambda _, split, **__: datasets.Dataset.from_list(splits[split]))
    assert [item.id for item in judgebench(None).items] == [f"{GPT}/{n}" for n in range(1, 6)] + [
        f"{CLAUDE}/1",
        f"{CLAUDE}/6",
    ]


# ---- IFBench ------------------------------------------------------------------------------------------------------


def converted(number: int, level: str) -> dict[str, Any]:
    ask = {"role": "user", "content": f"do {number}"}
    sides = {
        f"text_{side}": [ask, {"role": "assistant", "content": text}]
        for side, text in (("chosen", "good"), ("rejected", "bad"))
    }
    return sides | {"id": number, "domain": level}


def constraints(number: int, broken: int) -> dict[str, Any]:
    sides = {
        "chosen": {"content": "good", "unsatisfied_constraints": []},
        "rejected": {"content": "bad", "unsatisfied_constraints": ["c"] * broken},
    }
    return sides | {"id": number, "instruction": f"do {number}"}


def test_ifbench_scores_by_hand(tmp_path: Path) -> None:
    levels = ["level-1", "level-2", "level-3", "level-3"]
    write_parquet(tmp_path / "ifbench.parquet", [prepared(str(n), subset=level) for n, level in enumerate(levels)])
    benchmark = ifbench(tmp_path)
    rewards = {"0": [1, 0], "1": [0, 0], "2": [1, 0], "3": [0, 1]}
    expected = {"overall": 2 / 4, "level-1": 1, "level-2": 0, "level-3": 1 / 2}
    assert scores_of(benchmark, by_id(benchmark, rewards)) == pytest.approx(expected)
    assert scores_of(benchmark, by_id(benchmark, rewards), "shared")["overall"] == pytest.approx(2.5 / 4)


def test_all_layouts_give_the_same_items(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [constraints(4, 0), constraints(5, 3), constraints(6, 2), constraints(7, 1), constraints(8, 9)]
    levels = ["level-1", "level-1", "level-2", "level-3", "level-1"]
    expected = [
        (str(number), level, ("good", "bad"), f"do {number}") for number, level in zip(range(4, 9), levels, strict=True)
    ]

    def found(data: Path | None) -> list[tuple[Any, ...]]:
        return [(item.id, item.group, item.responses, item.prompt[0]["content"]) for item in ifbench(data).items]

    write_json(
        tmp_path / "repository" / "data" / "IFBench" / "data.converted.json",
        [converted(number, level) for number, level in zip(range(4, 9), levels, strict=True)],
    )
    write_json(tmp_path / "hub" / "IFBench.json", rows)
    assert found(tmp_path / "repository") == expected
    assert found(tmp_path / "hub") == expected
    asked: list[Any] = []
    monkeypatch.setattr(
        datasets, "load_dataset", lambda path, **named: asked.append((path, named)) or datasets.Dataset.from_list(rows)
    )
    assert found(None) == expected
    assert asked == [("THU-KEG/IFBench", {"split": "train", "revision": None, "name": None})]


def test_all_turns_before_the_response_are_the_prompt(tmp_path: Path) -> None:
    system = {"role": "system", "content": "be brief"}
    row = converted(1, "level-1")
    row |= {f"text_{side}": [system, *row[f"text_{side}"]] for side in ("chosen", "rejected")}
    write_json(tmp_path / "data" / "IFBench" / "data.converted.json", [row])
    assert ifbench(tmp_path).items[0].prompt == (system, {"role": "user", "content": "do 1"})


def other_prompt() -> dict[str, Any]:
    row = converted(1, "level-1")
    row["text_rejected"] = [{"role": "user", "content": "another"}, row["text_rejected"][1]]
    return row


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (other_prompt(), "text_rejected: prompts differ between the sides"),
        (converted(1, "level-4"), "level: none of level-1, level-2, level-3, 'level-4'"),
        (converted(1, "level-1") | {"text_chosen": [{"role": "user", "content": "q"}]}, "does not end in an assistant"),
        (converted(1, "level-1") | {"text_chosen": []}, "text_chosen: does not end in an assistant"),
        (converted(1, "level-1") | {"text_chosen": ["x"]}, "text_chosen: does not end in an assistant"),
        (constraints(1, 1) | {"rejected": {"content": "x"}}, "rejected.unsatisfied_constraints: no such column"),
        (
            constraints(1, 1) | {"rejected": {"content": "x", "unsatisfied_constraints": 2}},
            "rejected.unsatisfied_constraints: not a list",
        ),
        (constraints(1, 1) | {"chosen": {"text": "x"}}, "chosen.content: no such column"),
        ({"id": 1, "prompt": "q", "chosen": "a", "rejected": "b"}, "subset: no such column"),
    ],
)
def test_ifbench_bad_rows(tmp_path: Path, row: dict[str, Any], said: str) -> None:
    write_json(tmp_path / "IFBench.json", [row])
    with pytest.raises(DataError, match=r"IFBench\.json:1") as caught:
        ifbench(tmp_path)
    assert said in str(caught.value)


# ---- HHH ----------------------------------------------------------------------------------------------------------


def choices(text: str, labels: list[int]) -> dict[str, Any]:
    return {"input": text, "targets": {"choices": ["first", "second"], "labels": labels}}


def big_bench(folder: Path) -> Path:
    tasks = folder / "bigbench" / "benchmark_tasks" / "hhh_alignment"
    write_json(
        tasks / "helpful" / "task.json",
        {"name": "x", "examples": [{"input": "q", "target_scores": {"bad": 0, "good": 1}}]},
    )
    examples = [{"input": f"p {n}", "target_scores": {"good": 1, "bad": 0}} for n in range(2)]
    write_json(tasks / "honest" / "task.json", {"name": "x", "examples": examples})
    return folder


def test_hhh_scores_by_hand(tmp_path: Path) -> None:
    categories = ["helpful", "helpful", "helpful", "honest", "harmless", "other"]
    write_parquet(
        tmp_path / "hhh_alignment.parquet",
        [prepared(str(n), category=category) for n, category in enumerate(categories)],
    )
    benchmark = hhh(tmp_path)
    rewards = {"0": [1, 0], "1": [1, 0], "2": [0, 0], "3": [1, 0], "4": [0, 1], "5": [0, 1]}
    assert scores_of(benchmark, by_id(benchmark, rewards)) == pytest.approx({
        "overall": (2 / 3 + 1 + 0 + 0) / 4, "all pairs": 3 / 6,
        "helpful": 2 / 3, "honest": 1, "harmless": 0, "other": 0,
    })  # fmt: skip
    assert [score.kind for score in benchmark.scores] == ["overall", "section"] + ["subset"] * 4
    assert benchmark.notes == ()


def test_a_clone_of_big_bench(tmp_path: Path) -> None:
    benchmark = hhh(big_bench(tmp_path))
    assert [(item.id, item.group, item.responses) for item in benchmark.items] == [
        ("helpful-0", "helpful", ("good", "bad")),
        ("honest-0", "honest", ("good", "bad")),
        ("honest-1", "honest", ("good", "bad")),
    ]
    assert benchmark.items[2].prompt == ({"role": "user", "content": "p 1"},)
    assert benchmark.items[2].where.endswith("honest/task.json:examples[1]")
    assert benchmark.notes == ("Absent: harmless, other.",)


def test_the_hubs_parquet_branch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = {"helpful": [choices("q", [0, 1])], "honest": [choices("p", [1, 0])]}
    rows |= {"harmless": [choices("r", [1, 0])], "other": [choices("s", [1, 0]), choices("t", [0, 1])]}
    for category, values in rows.items():
        write_parquet(tmp_path / category / "test" / "0000.parquet", values)
    expected = {
        "helpful": [("second", "first")],
        "honest": [("first", "second")],
        "harmless": [("first", "second")],
        "other": [("first", "second"), ("second", "first")],
    }

    def responses() -> dict[str, list[tuple[str, ...]]]:
        return {category: [item.responses for item in local.items if item.group == category] for category in expected}

    local = hhh(tmp_path)
    assert responses() == expected
    real = datasets.load_dataset

    def from_branch(name: str, revision: str, **named: Any) -> Any:
        assert name == "HuggingFaceH4/hhh_alignment" and revision == "refs/convert/parquet"
        return real(str(tmp_path), **named)

    monkeypatch.setattr(datasets, "load_dataset", from_branch)
    local = hhh(None)
    assert responses() == expected and [item.id for item in local.items][-2:] == ["other-0", "other-1"]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (choices("q", [1, 1]), "targets.labels: not one right and one wrong response, [1.0, 1.0]"),
        (choices("q", [1]), "targets.labels: not one right and one wrong response"),
        ({"input": "q", "targets": {"choices": ["a", "b", "c"], "labels": [1, 0]}}, "not one right and one wrong"),
        ({"input": "q", "targets": {"choices": ["a"]}}, "targets.labels: no such column"),
        (choices(" ", [1, 0]), "prompt: empty"),
    ],
)
def test_hhh_bad_rows(tmp_path: Path, row: dict[str, Any], said: str) -> None:
    write_parquet(tmp_path / "helpful" / "test" / "0000.parquet", [row])
    with pytest.raises(DataError, match=r"helpful/test/0000\.parquet:1") as caught:
        hhh(tmp_path)
    assert said in str(caught.value)


def test_bad_examples_and_categories(tmp_path: Path) -> None:
    path = tmp_path / "bigbench" / "benchmark_tasks" / "hhh_alignment" / "helpful" / "task.json"
    write_json(
        path, {"examples": ["text", {"input": "q", "target_scores": [1]}, {"input": "q", "target_scores": {"a": 1}}]}
    )
    with pytest.raises(DataError, match="3 of 3 rows") as caught:
        hhh(tmp_path)
    assert "target_scores: not an object" in str(caught.value) and "not one right and one wrong" in str(caught.value)
    write_json(
        path.parent.with_name("rude") / "task.json", {"examples": [{"input": "q", "target_scores": {"a": 1, "b": 0}}]}
    )
    path.unlink()
    with pytest.raises(DataError, match="folder: none of helpful"):
        hhh(tmp_path)
