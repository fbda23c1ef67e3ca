from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from tests.benchmarks.written import as_json, parquet, random_rewards, scores, table, user

from ebrm.benchmarks.ifbench import load
from ebrm.errors import DataError


def prepared(name: str, level: str) -> dict[str, Any]:
    return {"id": name, "subset": level, "prompt": user(name), "chosen": "good", "rejected": "bad"}


def converted(number: int, level: str) -> dict[str, Any]:
    ask = {"role": "user", "content": f"do {number}"}
    sides = {
        f"text_{side}": [ask, {"role": "assistant", "content": text}]
        for side, text in (("chosen", "good"), ("rejected", "bad"))
    }
    return sides | {"id": number, "domain": level}


def hub(number: int, broken: int) -> dict[str, Any]:
    sides = {
        "chosen": {"content": "good", "unsatisfied_constraints": []},
        "rejected": {"content": "bad", "unsatisfied_constraints": ["c"] * broken},
    }
    return sides | {"id": number, "instruction": f"do {number}"}


def test_scores_by_hand(tmp_path: Path) -> None:
    levels = ["level-1", "level-2", "level-3", "level-3"]
    parquet(tmp_path / "ifbench.parquet", [prepared(str(n), level) for n, level in enumerate(levels)])
    benchmark = load(tmp_path)
    rewards = {"0": [1, 0], "1": [0, 0], "2": [1, 0], "3": [0, 1]}
    expected = {"overall": 2 / 4, "level-1": 1, "level-2": 0, "level-3": 1 / 2}
    assert scores(benchmark, table(benchmark, rewards)) == pytest.approx(expected)
    assert scores(benchmark, table(benchmark, rewards), "shared")["overall"] == pytest.approx(2.5 / 4)


def test_all_layouts_give_the_same_items(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [hub(4, 0), hub(5, 3), hub(6, 2), hub(7, 1), hub(8, 9)]
    levels = ["level-1", "level-1", "level-2", "level-3", "level-1"]
    expected = [
        (str(number), level, ("good", "bad"), f"do {number}") for number, level in zip(range(4, 9), levels, strict=True)
    ]

    def found(data: Path | None) -> list[tuple[Any, ...]]:
        return [(item.id, item.group, item.responses, item.prompt[0]["content"]) for item in load(data).items]

    as_json(
        tmp_path / "repository" / "data" / "IFBench" / "data.converted.json",
        [converted(number, level) for number, level in zip(range(4, 9), levels, strict=True)],
    )
    as_json(tmp_path / "hub" / "IFBench.json", rows)
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
    as_json(tmp_path / "data" / "IFBench" / "data.converted.json", [row])
    assert load(tmp_path).items[0].prompt == (system, {"role": "user", "content": "do 1"})


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
        (hub(1, 1) | {"rejected": {"content": "x"}}, "rejected.unsatisfied_constraints: no such column"),
        (
            hub(1, 1) | {"rejected": {"content": "x", "unsatisfied_constraints": 2}},
            "rejected.unsatisfied_constraints: not a list",
        ),
        (hub(1, 1) | {"chosen": {"text": "x"}}, "chosen.content: no such column"),
        ({"id": 1, "prompt": "q", "chosen": "a", "rejected": "b"}, "subset: no such column"),
    ],
)
def test_bad_rows(tmp_path: Path, row: dict[str, Any], said: str) -> None:
    as_json(tmp_path / "IFBench.json", [row])
    with pytest.raises(DataError, match=r"IFBench\.json:1") as caught:
        load(tmp_path)
    assert said in str(caught.value)


def test_the_shared_data_set_by_naive_loops(data_folder: Path) -> None:
    benchmark = load(data_folder)
    rewards = random_rewards(benchmark, levels=3)
    won = [float(row[0] > row[1]) for row in rewards]
    assert len(won) == 444 and scores(benchmark, rewards)["overall"] == pytest.approx(np.mean(won), abs=1e-12)
    hard = [value for value, item in zip(won, benchmark.items, strict=True) if item.group == "level-3"]
    assert len(hard) == 264 and scores(benchmark, rewards)["level-3"] == pytest.approx(np.mean(hard), abs=1e-12)
