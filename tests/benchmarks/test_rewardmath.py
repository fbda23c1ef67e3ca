"""RewardMATH: one right solution against nine wrong ones, in every layout of its rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.benchmarks.tiny import FILES, scores_of, write_json, write_jsonl, write_parquet

from ebrm.benchmarks.rewardmath import expected_reciprocal_rank, load
from ebrm.errors import DataError

ROWS = FILES["rewardmath"]["rewardmath.parquet"]


def direct(problems: int = 3) -> list[dict[str, Any]]:
    """Rows as upstream keeps them, one a solution; the right one stands at another place in every problem."""
    rows = []
    for problem in range(problems):
        for place in range(10):
            right = place == problem
            rows.append(
                {
                    "problem": f"solve {problem}", "answer": "1",
                    "eval_solution": [f"step {problem} {place}", "so it is \\boxed{1}"],
                    "solution_reference": "human" if right else f"model {place}",
                    "solution_type": "chosen" if right else "rejected", "problem_id": 100 + problem, "id": len(rows),
                }
            )  # fmt: skip
    return rows


def pairs(problems: int = 3) -> list[dict[str, Any]]:
    """The same as pairs, the right solution on either side."""
    rows = []
    for problem in range(problems):
        same = [row for row in direct(problems) if row["problem_id"] == 100 + problem]
        (right,) = (row for row in same if row["solution_type"] == "chosen")
        for number, wrong in enumerate(row for row in same if row["solution_type"] == "rejected"):
            first, second = (right, wrong) if number % 2 else (wrong, right)
            rows.append(
                {
                    "problem": right["problem"], "eval_solution_A": first["eval_solution"],
                    "eval_solution_B": second["eval_solution"], "chosen_position": "A" if number % 2 else "B",
                    "problem_id": right["problem_id"], "id": len(rows),
                }
            )  # fmt: skip
    return rows


def test_solutions_of_one_problem_are_one_item(tmp_path: Path) -> None:
    write_json(tmp_path / "dataset/benchmark/RewardMATH_direct.json", direct())
    benchmark = load(tmp_path)
    assert [item.id for item in benchmark.items] == ["100", "101", "102"]
    item = benchmark.items[1]
    assert item.prompt == ({"role": "user", "content": "solve 1"},)
    assert item.responses[0] == "step 1 1\nso it is \\boxed{1}"
    assert item.responses[1:3] == ("step 1 0\nso it is \\boxed{1}", "step 1 2\nso it is \\boxed{1}")
    assert item.gold == (1.0, *[0.0] * 9)
    assert item.where.endswith("RewardMATH_direct.json:11")
    assert benchmark.notes == ("3 problems were read; RewardMATH has 483.",)


def test_pairs_make_the_same_items(tmp_path: Path) -> None:
    write_json(tmp_path / "one" / "RewardMATH_direct.json", direct())
    write_json(tmp_path / "two" / "RewardMATH_pairwise.json", pairs())
    for single, paired in zip(load(tmp_path / "one").items, load(tmp_path / "two").items, strict=True):
        assert (single.id, single.prompt, single.gold) == (paired.id, paired.prompt, paired.gold)
        assert single.responses == paired.responses


def test_rows_in_any_order(tmp_path: Path) -> None:
    """Rows of a problem belong together wherever they stand, with and without an id."""
    rows = [{key: value for key, value in row.items() if key != "problem_id"} for row in direct()]
    order = np.random.default_rng(0).permutation(len(rows))
    write_json(tmp_path / "RewardMATH_direct.json", [rows[int(place)] for place in order])
    benchmark = load(tmp_path)
    assert len(benchmark) == 3
    assert all(len(item.responses) == 10 and sum(item.gold) == 1 for item in benchmark.items)


def test_direct_rows_win_over_pairs(tmp_path: Path) -> None:
    write_json(tmp_path / "RewardMATH_direct.json", direct(2))
    write_json(tmp_path / "RewardMATH_pairwise.json", pairs(3))
    assert len(load(tmp_path)) == 2


def test_whole_rows(tmp_path: Path) -> None:
    write_jsonl(
        tmp_path / "rewardmath.jsonl", [{"problem": "a", "problem_id": 7, "chosen": ["x", "y"], "rejected": ["w"]}]
    )
    benchmark = load(tmp_path)
    (item,) = benchmark.items
    assert (item.id, item.responses, item.gold) == ("7", ("x\ny", "w"), (1.0, 0.0))
    assert benchmark.notes[1] == "1 problems have not one right and 9 wrong solutions."


def test_a_whole_set_needs_no_note(tmp_path: Path) -> None:
    rows = [{"id": n, "prompt": f"solve {n}", "chosen": "right", "rejected": ["wrong"] * 9} for n in range(483)]
    write_jsonl(tmp_path / "rewardmath.jsonl", rows)
    assert load(tmp_path).notes == ()


def test_known_scores(tmp_path: Path) -> None:
    write_parquet(tmp_path / "rewardmath.parquet", ROWS[:4])
    benchmark = load(tmp_path)
    rewards = np.zeros((4, 10))
    rewards[0, 0] = 1.0  # first
    rewards[1, 1:3] = 1.0  # third, and equal to seven others
    rewards[2, :2] = 5.0  # tied at the top
    rewards[3, 1:] = np.arange(1, 10)  # last
    found = scores_of(benchmark, rewards)
    assert found == pytest.approx({"overall": 1 / 4, "ties as right": 2 / 4, "MRR": (1 + 1 / 10 + 1 / 2 + 1 / 10) / 4})
    assert scores_of(benchmark, rewards, "wrong") == found
    shared = scores_of(benchmark, rewards, "shared")
    middle = sum(1 / rank for rank in range(3, 11)) / 8
    assert shared == pytest.approx(
        {"overall": 1.5 / 4, "ties as right": 2 / 4, "MRR": (1 + middle + 3 / 4 + 1 / 10) / 4}
    )


@given(
    st.lists(st.integers(0, 2).map(float), min_size=1, max_size=3),
    st.lists(st.integers(0, 2).map(float), min_size=1, max_size=4),
)
def test_reciprocal_rank_with_ties_at_random(right: list[float], wrong: list[float]) -> None:
    """The mean over many random orders of the tied, and the last place among them."""
    rewards, gold = np.array([right + wrong]), np.array([[1.0] * len(right) + [0.0] * len(wrong)])
    generator = np.random.default_rng(1)
    ranks = []
    for _ in range(3000):
        order = np.lexsort((generator.random(rewards.size), -rewards[0]))
        ranks.append(1 / (1 + np.flatnonzero(gold[0, order] == 1.0)[0]))
    expected = expected_reciprocal_rank(rewards, gold, "shared")[0]
    assert expected == pytest.approx(np.mean(ranks), abs=5 * np.std(ranks) / np.sqrt(len(ranks)) + 1e-9)
    worst = 1 / (1 + sum(one >= max(right) for one in wrong))
    assert expected_reciprocal_rank(rewards, gold)[0] == pytest.approx(worst)
    assert worst <= expected + 1e-12


def test_reciprocal_rank_of_items_of_different_size() -> None:
    rewards = np.array([[1.0, 1.0, 1.0, 1.0], [1.0, 1.0, np.nan, np.nan], [2.0, 2.0, 2.0, 3.0]])
    gold = np.array([[1.0, 0.0, 0.0, 0.0], [1.0, 0.0, np.nan, np.nan], [1.0, 1.0, 0.0, 0.0]])
    third = 2 / 3 * 1 / 2 + 1 / 3 * 1 / 3  # after one wrong: first with 2/3, second with 1/3
    expected = [(1 + 1 / 2 + 1 / 3 + 1 / 4) / 4, 3 / 4, third]
    assert expected_reciprocal_rank(rewards, gold, "shared") == pytest.approx(expected)
    assert expected_reciprocal_rank(rewards, gold) == pytest.approx([1 / 4, 1 / 2, 1 / 3])


@pytest.mark.parametrize(
    ("place", "change", "said", "where"),
    [
        (10, {"solution_type": "good"}, "neither chosen nor rejected", "json:11"),
        (13, {"solution_type": "good"}, "neither chosen nor rejected", "json:14"),
        (13, {"eval_solution": []}, "empty list", "json:14"),
        (13, {"eval_solution": None}, "missing", "json:14"),
        (13, {"problem": "another"}, "several problems with one id", "json:11"),
        (11, {"solution_type": "rejected"}, "0 right and 10 wrong", "json:11"),
        (10, {"problem": " "}, "empty", "json:11"),
    ],
)
def test_bad_rows(place: int, change: dict[str, Any], said: str, where: str, tmp_path: Path) -> None:
    rows = direct()
    rows[place] |= change
    if "problem" in change and said == "empty":
        rows = [row | {"problem": " "} if row["problem_id"] == 101 else row for row in rows]
    write_json(tmp_path / "RewardMATH_direct.json", rows)
    with pytest.raises(DataError, match=said) as raised:
        load(tmp_path)
    assert where in str(raised.value)


def test_bad_pairs(tmp_path: Path) -> None:
    rows = pairs()
    rows[4]["chosen_position"] = "C"
    write_json(tmp_path / "RewardMATH_pairwise.json", rows)
    with pytest.raises(DataError, match="neither A nor B"):
        load(tmp_path)
