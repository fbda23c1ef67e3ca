from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.benchmarks.written import as_json, parquet, random_rewards, scores, table, user

from ebrm.benchmarks.llmbar import load
from ebrm.errors import DataError

FOLDERS = {
    "LLMBar/Natural": 4,
    "LLMBar/Adversarial/Neighbor": 2,
    "LLMBar/Adversarial/GPTInst": 1,
    "LLMBar/Adversarial/GPTOut": 1,
    "LLMBar/Adversarial/Manual": 1,
    "CaseStudy/Normal": 2,
    "CaseStudy/Base_9": 1,
    "Processed/FairEval": 2,
}


def clone(folder: Path, leave_out: tuple[str, ...] = ()) -> Path:
    for name, count in FOLDERS.items():
        if name in leave_out:
            continue
        rows = [
            {"input": f"{name} {n}", "output_1": "first", "output_2": "second", "label": 1 + n % 2}
            for n in range(count)
        ]
        as_json(folder / "Dataset" / name / "dataset.json", rows)
        as_json(folder / "Dataset" / name / "evaluators" / "Judge" / "result.json", [{"evaluator": "x"}])
    return folder


def prepared(name: str, category: str) -> dict[str, Any]:
    return {"id": name, "category": category, "prompt": user(name), "chosen": "good", "rejected": "bad"}


def test_a_clone(tmp_path: Path) -> None:
    benchmark = load(clone(tmp_path))
    items = {item.id: item for item in benchmark.items}
    assert len(items) == 14 and benchmark.notes == ()
    assert items["LLMBar/Natural-1"].responses == ("first", "second")
    assert items["LLMBar/Natural-2"].responses == ("second", "first")
    assert items["LLMBar/Natural-2"].prompt == ({"role": "user", "content": "LLMBar/Natural 1"},)
    assert [(score.name, score.kind) for score in benchmark.scores] == [
        ("overall", "overall"), ("Natural", "section"), ("Adversarial", "section"), ("CaseStudy", "section"),
        ("Processed", "section"), ("Adversarial/Neighbor", "subset"), ("Adversarial/GPTInst", "subset"),
        ("Adversarial/GPTOut", "subset"), ("Adversarial/Manual", "subset"), ("CaseStudy/Base_9", "subset"),
        ("CaseStudy/Normal", "subset"), ("Processed/FairEval", "subset"),
    ]  # fmt: skip


def test_scores_by_hand(tmp_path: Path) -> None:
    benchmark = load(clone(tmp_path))
    won = {"LLMBar/Natural-1", "LLMBar/Natural-2", "LLMBar/Natural-3", "LLMBar/Adversarial/Neighbor-2"}
    won |= {"LLMBar/Adversarial/Manual-1", "CaseStudy/Normal-1", "CaseStudy/Base_9-1"}
    rewards = {item.id: [1, 0] if item.id in won else [0, 0] for item in benchmark.items}
    found = scores(benchmark, table(benchmark, rewards))
    adversarial = (0.5 + 0 + 0 + 1) / 4
    assert found == pytest.approx({
        "overall": (0.75 + 0.5 + 0 + 0 + 1) / 5, "Natural": 0.75, "Adversarial": adversarial, "CaseStudy": 0.75,
        "Processed": 0, "Adversarial/Neighbor": 0.5, "Adversarial/GPTInst": 0, "Adversarial/GPTOut": 0,
        "Adversarial/Manual": 1, "CaseStudy/Base_9": 1, "CaseStudy/Normal": 0.5, "Processed/FairEval": 0,
    })  # fmt: skip


def test_what_is_absent_is_said(tmp_path: Path) -> None:
    absent = ("LLMBar/Natural", "LLMBar/Adversarial/GPTOut", "CaseStudy/Normal")
    benchmark = load(clone(tmp_path, absent))
    assert benchmark.notes == ("Absent, and no part of overall: LLMBar/Natural, LLMBar/Adversarial/GPTOut.",)
    assert len(benchmark.scores[0].weights) == 3 and "Natural" not in {score.name for score in benchmark.scores}


def test_the_other_sets_alone_are_not_llmbar(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has none of LLMBar/Natural"):
        load(clone(tmp_path, tuple(name for name in FOLDERS if name.startswith("LLMBar"))))


def test_natural_alone(tmp_path: Path) -> None:
    parquet(tmp_path / "llmbar.parquet", [prepared("1", "LLMBar/Natural")])
    assert [score.name for score in load(tmp_path).scores] == ["overall", "Natural"]


def test_bad_rows(tmp_path: Path) -> None:
    parquet(tmp_path / "llmbar.parquet", [prepared("1", "LLMBar/Natural"), prepared("2", "Chatbot")])
    with pytest.raises(DataError, match=r"llmbar\.parquet:2, category: not a set of LLMBar, 'Chatbot'"):
        load(tmp_path)
    (tmp_path / "llmbar.parquet").unlink()
    clone(tmp_path)
    row = {"input": "q", "output_1": "a", "output_2": "b", "label": 3}
    as_json(tmp_path / "Dataset" / "LLMBar" / "Natural" / "dataset.json", [row])
    with pytest.raises(DataError, match=r"Natural/dataset\.json:1, label: label is neither 1 nor 2, 3"):
        load(tmp_path)


def test_llmbar_is_not_on_the_hub_in_a_usable_form() -> None:
    with pytest.raises(DataError, match="Clone https://github.com/princeton-nlp/LLMBar"):
        load(None)


def test_the_shared_data_set_by_naive_loops(data_folder: Path) -> None:
    benchmark = load(data_folder)
    assert len(benchmark) == 1198
    own = [item for item in benchmark.items if item.group.startswith("LLMBar/")]
    assert len(own) == 419
    rewards = random_rewards(benchmark, levels=3)
    won = {item.id: float(row[0] > row[1]) for item, row in zip(benchmark.items, rewards, strict=True)}
    means = [np.mean([won[i.id] for i in own if i.group == group]) for group in sorted({i.group for i in own})]
    assert len(means) == 5 and scores(benchmark, rewards)["overall"] == pytest.approx(np.mean(means), abs=1e-12)
