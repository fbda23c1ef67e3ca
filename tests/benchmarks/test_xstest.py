from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.benchmarks.written import comma, parquet, random_rewards, scores, table, user

from ebrm.benchmarks.xstest import load
from ebrm.errors import DataError


def prepared(name: str, category: str, subset: str) -> dict[str, Any]:
    return {"id": name, "category": category, "subset": subset, "prompt": user(name), "chosen": "y", "rejected": "n"}


PREPARED = [
    prepared("1", "should-respond", "homonyms"),
    prepared("2", "should-respond", "homonyms"),
    prepared("3", "should-respond", "definitions"),
    prepared("4", "should-refuse", "contrast_homonyms"),
]


def completion(name: str, kind: str, label: str, text: str) -> dict[str, Any]:
    return {"id": name, "type": kind, "prompt": f"q {name}", "completion": text, "final_label": label}


def clone(folder: Path) -> Path:
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
        comma(folder / "model_completions" / f"xstest_v2_completions_{model}.csv", rows)
    return folder


def test_scores_by_hand(tmp_path: Path) -> None:
    parquet(tmp_path / "xstest_pairs.parquet", PREPARED)
    benchmark = load(tmp_path)
    rewards = {"1": [1, 0], "2": [0, 1], "3": [0, 1], "4": [1, 1]}
    expected = {
        "overall": (1 / 3 + 0) / 2, "should-refuse": 0, "should-respond": 1 / 3,
        "should-refuse/contrast_homonyms": 0, "should-respond/definitions": 0, "should-respond/homonyms": 1 / 2,
    }  # fmt: skip
    assert scores(benchmark, table(benchmark, rewards)) == pytest.approx(expected)
    assert scores(benchmark, table(benchmark, rewards), "shared")["overall"] == pytest.approx((1 / 3 + 1 / 2) / 2)
    assert [score.kind for score in benchmark.scores] == ["overall", "section", "section"] + ["subset"] * 3
    assert benchmark.notes == ()


def test_pairs_are_made_from_a_clone(tmp_path: Path) -> None:
    benchmark = load(clone(tmp_path))
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
    benchmark = load(clone(tmp_path))
    for word in ("sure", "no"):
        rewards = {item.id: [float(text.startswith(word)) for text in item.responses] for item in benchmark.items}
        assert scores(benchmark, table(benchmark, rewards))["overall"] == 0.5


def test_a_half_that_is_absent_is_said(tmp_path: Path) -> None:
    parquet(tmp_path / "xstest_pairs.parquet", PREPARED[:3])
    benchmark = load(tmp_path)
    assert benchmark.notes == ("There are no should-refuse pairs, so overall is the other half.",)
    assert benchmark.scores[0].weights == {"should-respond": 1.0}


def test_bad_rows(tmp_path: Path) -> None:
    parquet(tmp_path / "xstest_pairs.parquet", [*PREPARED, prepared("5", "maybe", "x")])
    with pytest.raises(DataError, match=r"xstest_pairs\.parquet:5, category: neither should-refuse nor should-respond"):
        load(tmp_path)
    (tmp_path / "xstest_pairs.parquet").unlink()
    path = tmp_path / "model_completions" / "xstest_v2_completions_gpt4.csv"
    comma(path, [completion("v2-1", "homonyms", "yes", "sure")])
    with pytest.raises(DataError, match=r"gpt4\.csv:2, final_label: unknown label, 'yes'"):
        load(tmp_path)
    comma(path, [{"id": "v2-1", "final_label": "1_full_compliance"}])
    comma(path.with_name("xstest_v2_completions_x.csv"), [{"id": "v2-1", "final_label": "2_full_refusal"}])
    with pytest.raises(DataError, match="1 of 1 rows cannot be used"):
        load(tmp_path)


def test_xstest_pairs_are_not_on_the_hub() -> None:
    with pytest.raises(DataError, match="Clone https://github.com/paul-rottger/exaggerated-safety"):
        load(None)


def test_the_shared_data_set_by_naive_loops(data_folder: Path) -> None:
    benchmark = load(data_folder)
    assert len(benchmark) == 976
    rewards = random_rewards(benchmark, levels=5)
    won: dict[str, list[bool]] = {"should-refuse": [], "should-respond": []}
    for item, row in zip(benchmark.items, rewards, strict=True):
        won[item.group.split("/")[0]].append(row[0] > row[1])
    found = scores(benchmark, rewards)
    assert (len(won["should-refuse"]), len(won["should-respond"])) == (520, 456)
    assert found["overall"] == pytest.approx(np.mean([np.mean(half) for half in won.values()]), abs=1e-12)
