"""Curating files: steps on the rows of a file, written as pairs that a fit reads, with a report."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from tests.terminal import read_lines, snapshot, write_lines

from ebrm import PreferenceConfig, curate_file, load_preferences
from ebrm.curate import CurateConfig, adaptive_margin, flip_weakest, preference_strength, soften_labels
from ebrm.errors import ConfigError, DataError
from ebrm.pairs import PreferencePairs

DIFFERENCES = (2.0, -1.5, 0.5, -0.25, 3.0, 1.0)


def pair_rows(differences: tuple[float, ...] = DIFFERENCES) -> list[dict[str, Any]]:
    return [
        {
            "id": k, "prompt": f"q{k // 2}", "chosen": f"good {k}", "rejected": f"bad {k}",
            "chosen_reward": difference, "rejected_reward": 0.0, "chosen_model": "A", "rejected_model": "B",
        }
        for k, difference in enumerate(differences)
    ]  # fmt: skip


def curated(tmp_path: Path, rows: list[dict[str, Any]], *steps: Any, **more: Any) -> tuple[dict[str, Any], Path]:
    data, out = more.pop("data", None), tmp_path / "out"
    source = write_lines(tmp_path / "in.jsonl", rows)
    config = CurateConfig(steps=steps, **({"column_rewards": ("reward",)} | more))
    return curate_file(source, out, config, data), out


def test_steps_change_a_file_as_their_functions_change_pairs(tmp_path: Path) -> None:
    steps, soft = ("flip", "soft-labels", "margin"), {"soft_smoothing": 0.2, "soft_strongest": 0.34}
    found, out = curated(tmp_path, pair_rows(), *steps, flip_fraction=0.34, flip_below=0.0, **soft)
    pairs = PreferencePairs.of(list(range(0, 12, 2)), list(range(1, 12, 2)))
    reward = torch.tensor([x for d in DIFFERENCES for x in (d, 0.0)])
    strength = lambda of: preference_strength(of.difference(reward[None]))  # noqa: E731
    pairs, _ = flip_weakest(pairs, strength(pairs), 0.34, 0.0)
    pairs, _ = soften_labels(pairs, strength(pairs), 0.2, strongest=0.34)
    pairs, _ = adaptive_margin(pairs, strength(pairs))
    rows = read_lines(out / "pairs.jsonl")
    assert [row["soft_label"] for row in rows] == pytest.approx(pairs.label.tolist())
    assert [row["reward_margin"] for row in rows] == pytest.approx(pairs.margin.tolist())
    assert "pair_weight" not in rows[0]
    flipped = [row["chosen"].startswith("bad") for row in rows]
    assert flipped == [False, True, False, True, False, False]
    assert [(row["chosen_model"], row["chosen_reward"]) for row in rows][:2] == [("A", 2.0), ("B", 0.0)]
    assert [row["id"] for row in rows] == list(range(6)) and found["pairs"] == 6
    read = load_preferences(out / "pairs.jsonl")
    assert [(pair.soft_label, pair.reward_margin) for pair in read] == [
        (row["soft_label"], row["reward_margin"]) for row in rows
    ]


def test_the_report_says_what_each_step_did_with_examples(tmp_path: Path) -> None:
    found, out = curated(tmp_path, pair_rows(), "filter-conflicts", "flip", flip_fraction=0.25)
    first, second = found["steps"]
    assert (first["given"], first["kept"], first["dropped"], second["flipped"]) == (6, 4, 2, 1)
    assert [(one["what"], one["where"], one["difference"]) for one in first["examples"]] == [
        ("dropped", "in.jsonl:2", [-1.5]),
        ("dropped", "in.jsonl:4", [-0.25]),
    ]
    assert [(one["what"], one["chosen"]) for one in second["examples"]] == [("flipped", "good 2")]
    text = (out / "report.txt").read_text()
    assert "4 pairs written of 6 read" in text and "dropped: in.jsonl:2 (difference of rewards -1.5)" in text
    stored = json.loads((out / "results.json").read_text())
    assert stored["steps"] == found["steps"] and set(stored["files"]) == {"pairs.jsonl", "report.txt"}


def test_several_rewards_vote(tmp_path: Path) -> None:
    rows = [
        {"prompt": "q", "chosen": f"c{k}", "rejected": "r", "a_chosen": a, "a_rejected": 0}
        | {"chosen_b": b, "rejected_b": 0}
        for k, (a, b) in enumerate(((2, 1), (-1, -3), (1, -1), (0.1, 4)))
    ]  # fmt: skip
    found, out = curated(
        tmp_path, rows, "consensus", column_rewards=("a_{side}", "b"), consensus_confidence=0.6, consensus_soft=True
    )
    kept = read_lines(out / "pairs.jsonl")
    assert [(row["chosen"], row["rejected"]) for row in kept] == [("c0", "r"), ("r", "c1")]
    votes = torch.tensor([[2.0, 1.0], [1.0, 3.0]]).sigmoid().mean(1)
    assert [row["soft_label"] for row in kept] == pytest.approx(votes.tolist())
    assert [(row["a_chosen"], row["chosen_b"]) for row in kept] == [(2, 1), (0, 0)]
    assert found["rewards"] == ["a_{side}", "b"]


def test_disputed_pairs_are_handed_back(tmp_path: Path) -> None:
    rows = [
        row | {"chosen_gold": gold, "rejected_gold": 0}
        for row, gold in zip(pair_rows(), (1, -1, -1, 1, 0, 2), strict=True)
    ]
    found, out = curated(tmp_path, rows, "dual-consistency", column_rewards=("reward", "gold"))
    assert [(row["id"], row["chosen"]) for row in read_lines(out / "pairs.jsonl")] == [
        (0, "good 0"), (1, "bad 1"), (5, "good 5"),
    ]  # fmt: skip
    assert [row["id"] for row in read_lines(out / "disputed.jsonl")] == [2, 3, 4] and found["disputed"] == 3
    with pytest.raises(ConfigError, match="rewards of two models, and there are 1.*`column_rewards`"):
        curated(tmp_path, rows, "dual-consistency")


def test_the_hardest_prompts_are_kept_whole(tmp_path: Path) -> None:
    _, out = curated(tmp_path, pair_rows(), "hard-subset", hard_count=2)  # means 0.25, 0.125 and 2
    assert [row["id"] for row in read_lines(out / "pairs.jsonl")] == [0, 1, 2, 3]


@pytest.mark.parametrize("format", ["jsonl", "csv", "parquet"])
def test_scored_responses_become_the_best_over_the_worst(tmp_path: Path, format: Any) -> None:
    rows = [
        {"prompt": "q0", "responses": ["a", "b", "c"], "reward": [1.0, 3.0, 2.0], "tag": "x"},
        {"prompt": "q1", "responses": ["d", "e"], "reward": [1.0, 1.0], "tag": "y"},
        {"prompt": "q2", "responses": ["f", "g"], "reward": [0.5, -0.5], "tag": "z"},
    ]
    source = write_lines(tmp_path / "in.jsonl", rows)
    config = CurateConfig(steps=("best-worst",), column_rewards=("reward",))
    found = curate_file(source, tmp_path / "out", config, format=format)
    path = tmp_path / "out" / f"pairs.{format}"
    made = (
        read_lines(path)
        if format == "jsonl"
        else list(csv.DictReader(path.read_text().splitlines()))
        if format == "csv"
        else pq.read_table(path).to_pylist()
    )
    expected = [("q0", "b", "a", 3.0, 1.0, "x"), ("q2", "f", "g", 0.5, -0.5, "z")]
    keys = ("prompt", "chosen", "rejected", "chosen_reward", "rejected_reward", "tag")
    assert [tuple(str(row[key]) for key in keys) for row in made] == [tuple(map(str, row)) for row in expected]
    assert (found["responses"], found["prompts"], found["pairs"]) == (7, 3, 2)
    assert [pair.chosen for pair in load_preferences(path)] == ["b", "f"]


def test_rows_of_one_response_each_are_paired_by_prompt(tmp_path: Path) -> None:
    rows = [
        {"question": "q", "answer": text, "reward": reward, "by": by}
        for text, reward, by in (("a", 1, "m"), ("b", None, "n"), ("c", 3, "o"))
    ]
    data = PreferenceConfig(bad_rows="skip")
    columns = {"prompt": "question", "response": "answer"}
    with pytest.raises(DataError, match=r"1 of 3 responses have no reward .the first: in.jsonl:2.*`bad_rows=\"skip\"`"):
        curated(tmp_path, rows, "best-worst", data=PreferenceConfig(columns=columns))
    found, out = curated(
        tmp_path, rows, "best-worst", "margin", data=PreferenceConfig(columns=columns, bad_rows=data.bad_rows)
    )
    assert read_lines(out / "pairs.jsonl") == [{
        "question": "q", "chosen": "c", "rejected": "a", "chosen_reward": 3, "rejected_reward": 1, "chosen_by": "o",
        "rejected_by": "m", "reward_margin": 2.0,
    }]  # fmt: skip
    assert found["skipped"] == {"responses without a reward": 1} and found["columns"] == {"prompt": "question"}


def test_a_labeled_row_keeps_its_columns_and_gets_both_sides(tmp_path: Path) -> None:
    sides = {"history": "q", "human_ref_A": "aa", "human_ref_B": "bb", "chosen_reward": 1, "rejected_reward": 2}
    rows = [{**sides, "labels": label} for label in (1, 0)]
    found, out = curated(tmp_path, rows, "flip", flip_fraction=1.0)
    made = read_lines(out / "pairs.jsonl")
    assert [(row["chosen"], row["rejected"], row["human_ref_A"]) for row in made] == [
        ("bb", "aa", "aa"),
        ("aa", "bb", "aa"),
    ]
    assert found["columns"] == {"prompt": "history"}
    read = load_preferences(out / "pairs.jsonl", PreferenceConfig(columns=found["columns"]))
    assert [(pair.prompt[-1]["content"], pair.chosen) for pair in read] == [("q", "bb"), ("q", "aa")]


def test_pairs_without_a_reward_stop_the_run_or_are_counted(tmp_path: Path) -> None:
    rows = pair_rows()
    rows[2]["chosen_reward"] = None
    with pytest.raises(DataError, match=r"1 of 6 pairs have no reward .the first: in.jsonl:3.*`bad_rows=\"skip\"`"):
        curated(tmp_path, rows, "filter-conflicts")
    assert set(snapshot(tmp_path)) == {"in.jsonl"}
    found, _ = curated(tmp_path, rows, "filter-conflicts", data=PreferenceConfig(bad_rows="skip"))
    assert found["skipped"] == {"without a reward": 1} and found["pairs"] == 3
    rows[2]["chosen_reward"] = "much"
    with pytest.raises(DataError, match="in.jsonl:3, chosen_reward: 'much' is no finite number"):
        curated(tmp_path, rows, "filter-conflicts")
    with pytest.raises(DataError, match="`column_rewards` has rewrad, and .* no column chosen_rewrad. Its columns: id"):
        curated(tmp_path, rows, "filter-conflicts", column_rewards=("rewrad",))


def test_a_row_with_several_pairs_is_refused(tmp_path: Path) -> None:
    rows = [{"prompt": "q", "chosen": "a", "rejected": ["b", "c"], "chosen_reward": 1, "rejected_reward": 0}]
    with pytest.raises(DataError, match="in.jsonl:1 is where 2 pairs were read, and a curated file has one pair a row"):
        curated(tmp_path, rows, "flip")


def test_a_step_that_leaves_no_pair_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="No pair is left after filter-conflicts: Conflict filter: kept 0 of 2"):
        curated(tmp_path, pair_rows((-1.0, 0.0)), "filter-conflicts")
    assert set(snapshot(tmp_path)) == {"in.jsonl"}


def test_only_what_curate_wrote_is_replaced(tmp_path: Path) -> None:
    _, out = curated(tmp_path, pair_rows(), "filter-conflicts")
    first = (out / "pairs.jsonl").read_bytes()
    curated(tmp_path, pair_rows(), "margin")
    assert (out / "pairs.jsonl").read_bytes() != first
    (out / "pairs.jsonl").write_text("mine\n")
    with pytest.raises(DataError, match="holds pairs.jsonl that `ebrm curate` did not write, or that changed since"):
        curated(tmp_path, pair_rows(), "margin")
    assert (out / "pairs.jsonl").read_text() == "mine\n"


def test_settings_that_contradict_each_other_are_refused(tmp_path: Path) -> None:
    for more, said in (
        ({"steps": ()}, "`steps` is empty"),
        ({"steps": ("flip", "flip")}, "each can be given once"),
        ({"steps": ("flip", "best-worst")}, "give it first"),
        ({"steps": ("polish",)}, "`steps` has polish; there are filter-conflicts"),
        ({"steps": ("soft-labels",)}, "needs `soft_smoothing=0.1`"),
        ({"steps": ("flip",), "flip_fraction": 1.5}, "flip_fraction is 1.5; it must be from 0 to 1"),
    ):
        with pytest.raises(ConfigError, match=said.replace("(", r"\(")):
            CurateConfig(**more)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="No rewards are given"):
        curate_file(tmp_path / "in.jsonl", tmp_path / "out", CurateConfig(steps=("flip",)))


def test_numbers_of_the_loss_are_read_and_checked(tmp_path: Path) -> None:
    rows = [
        {"prompt": "q", "chosen": "a", "rejected": "b", "soft_label": 0.75, "pair_weight": "2", "reward_margin": -1}
    ]
    pair = load_preferences(rows)[0]
    assert (pair.soft_label, pair.pair_weight, pair.reward_margin, pair.strength) == (0.75, 2.0, -1.0, None)
    assert load_preferences([{**rows[0], "soft_label": None}])[0].soft_label is None
    for name, value, said in (
        ("soft_label", 1.2, "not a probability"),
        ("pair_weight", -1, "below 0"),
        ("reward_margin", "x", "not a number"),
    ):
        with pytest.raises(DataError, match=f"{name}: {said}"):
            load_preferences([*rows, {**rows[0], name: value}])
    unread = load_preferences(rows, PreferenceConfig(columns={"soft_label": ""}))
    assert unread[0].soft_label is None and unread.fingerprint != load_preferences(rows).fingerprint
