"""RewardBench 2: best of four with shared credit, and Ties to the last term."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.benchmarks.rules_by_hand import ties_score
from tests.benchmarks.tiny import FILES, scores_of, table, worth, write_jsonl, write_parquet

from ebrm.benchmarks import Benchmark, Item, Score, padded
from ebrm.benchmarks.rewardbench2 import TIES_WEIGHTS, load, ties_and_best_of_four

ROWS = FILES["rewardbench2"]["rewardbench2.parquet"]


def question(name: str, right: int, wrong: int) -> Item:
    prompt = ({"role": "user", "content": name},)
    texts = tuple(f"{name} {number}" for number in range(right + wrong))
    return Item(f"Ties/{name}", prompt, texts, (1.0,) * right + (0.0,) * wrong, "Ties", name)


def ties_of(rewards: dict[str, tuple[list[float], list[float]]], ties: Any = None) -> float:
    """Ties of the module for rewards of (right, wrong) by id."""
    items = tuple(question(name, len(right), len(wrong)) for name, (right, wrong) in rewards.items())
    score = Score("overall", "overall", TIES_WEIGHTS)
    benchmark = Benchmark("x", "x", "x", items, (score,), ties_and_best_of_four)
    return scores_of(benchmark, padded([[*right, *wrong] for right, wrong in rewards.values()]), ties)["overall"]


@pytest.mark.parametrize(
    ("tied", "ref", "expected"),
    [
        # lead 1, spread 0: everything, and 1/0 is infinite
        (([1, 1], [0]), ([1], [0]), 0.3 + 0.3 + 0.2 + 0.2 + 0.01),
        # lead -1, spread 0: nothing, and -1/0 is minus infinity
        (([0, 0], [1]), ([0], [1]), -0.01),
        # all the same: 0/0 counts as 0
        (([0, 0], [0]), ([0], [0]), 0.0),
        # lead of tied 2, but of ref 0; spread 0: min(0, 2)/0 counts as 0
        (([2, 2], [0]), ([0], [0]), 0.3 + 0.2),
        # lead 2 over spread 1, ref's lead 3
        (([4, 3], [1]), ([3], [0]), 0.3 + 0.3 + 0.2 + 0.2 + 0.01 * math.tanh(1.0)),
        # lead 2 over spread 1, ref's lead 1: preferred, but not over ref too
        (([4, 3], [1]), ([1], [0]), 0.3 + 0.3 + 0.2 + 0.01 * math.tanh(0.0)),
        # lead 1 is not more than spread 1
        (([4, 3], [2]), ([9], [0]), 0.3 + 0.3 + 0.01 * math.tanh(0.0)),
        # ref wrong: lead -3
        (([4, 2], [1]), ([0], [3]), 0.3 + 0.01 * math.tanh(-3 / 2 - 1)),
        # the middle right answer plays no part
        (([4, 2.5, 2], [1, -7]), ([9], [0]), 0.3 + 0.3 + 0.01 * math.tanh(1 / 2 - 1)),
    ],
)
def test_known_ties(
    tied: tuple[list[float], list[float]], ref: tuple[list[float], list[float]], expected: float
) -> None:
    assert ties_of({"tied:7": tied, "ref:7": ref}) == pytest.approx(expected, abs=1e-12)


def test_questions_without_partner_count_for_accuracy_only() -> None:
    pair = {"tied:1": ([3.0, 2.0], [0.0]), "ref:1": ([2.0], [0.0])}
    margins = 0.2 + 0.2 + 0.01 * math.tanh(2.0 / 1.0 - 1)
    assert ties_of(pair) == pytest.approx(0.6 + margins)
    assert ties_of(pair | {"tied:2": ([0.0, 1.0], [1.0])}) == pytest.approx(0.3 / 2 + 0.3 + margins)
    assert ties_of(pair | {"ref:10": ([0.0], [1.0])}) == pytest.approx(0.3 + 0.3 / 2 + margins)


def test_comparisons_of_two_questions_belong_to_the_tied_one() -> None:
    items = [question("ref:1", 1, 2), question("tied:1", 2, 1)]
    terms = ties_and_best_of_four(items, np.array([[2.0, 1.0, 0.0], [2.0, 2.0, 0.0]]))
    of = {terms.names[term]: int(item) for term, item in zip(terms.term, terms.item, strict=True)}
    assert of == dict.fromkeys(TIES_WEIGHTS, 1) | {"Ties: ref right": 0}


numbers = st.integers(-3, 3).map(float)


@given(
    st.dictionaries(
        st.integers(0, 20),
        st.tuples(
            st.lists(numbers, min_size=2, max_size=4),
            st.lists(numbers, min_size=1, max_size=4),
            st.lists(numbers, min_size=1, max_size=1),
            st.lists(numbers, min_size=1, max_size=5),
        ),
        min_size=1,
        max_size=6,
    ),
    st.sampled_from([None, "wrong", "shared"]),
)
def test_ties_by_hand(drawn: dict[int, tuple[list[float], ...]], ties: Any) -> None:
    rewards = {f"tied:{number}": (each[0], each[1]) for number, each in drawn.items()}
    rewards |= {f"ref:{number}": (each[2], each[3]) for number, each in drawn.items()}
    correct = {name: right for name, (right, _) in rewards.items()}
    wrong = {name: each for name, (_, each) in rewards.items()}
    expected = ties_score(correct, wrong, shared=ties == "shared")
    assert ties_of(rewards, ties) == pytest.approx(expected, abs=1e-9)
    assert -0.01 - 1e-12 <= expected <= 1.01 + 1e-12


def test_rewards_close_together_make_no_warning() -> None:
    tiny = np.nextafter(0.0, 1.0)
    assert ties_of({"tied:1": ([1.0, 1.0 + 1e-16], [0.0]), "ref:1": ([1.0], [0.0])}) == pytest.approx(1.01)
    assert ties_of({"tied:1": ([tiny, 0.0], [-1e9]), "ref:1": ([1e9], [0.0])}) == pytest.approx(1.01)


def test_best_of_four_shares_the_top(tmp_path: Path) -> None:
    rows = [row for row in ROWS if row["subset"] == "Focus"][:2]
    write_parquet(tmp_path / "rewardbench2.parquet", rows)
    benchmark = load(tmp_path)
    assert [item.gold for item in benchmark.items] == [(1.0, 0.0, 0.0, 0.0)] * 2
    for first, expected in (([1, 0, 0, 0], 1), ([1, 1, 0, 0], 1 / 2), ([1, 1, 0, 1], 1 / 3), ([1, 1, 1, 1], 1 / 4)):
        rewards = np.array([first, [0, 1, 0, 0]], dtype=float)
        assert scores_of(benchmark, rewards)["Focus"] == pytest.approx(expected / 2)
        assert scores_of(benchmark, rewards, "wrong")["Focus"] == pytest.approx((expected == 1) / 2)


def test_items(tmp_path: Path) -> None:
    write_parquet(tmp_path / "rewardbench2.parquet", ROWS)
    benchmark = load(tmp_path)
    assert [score.name for score in benchmark.scores] == [
        "overall", "Factuality", "Precise IF", "Math", "Safety", "Focus", "Ties",
    ]  # fmt: skip
    assert len({item.id for item in benchmark.items}) == len(ROWS)
    clusters = dict(zip((item.id for item in benchmark.items), benchmark.clusters(), strict=True))
    assert clusters["Ties/tied:3"] == clusters["Ties/ref:3"] != clusters["Ties/ref:2"]
    assert "Factuality/0" in clusters and "Focus/0" in clusters
    (tied,) = (item for item in benchmark.items if item.id == "Ties/tied:1")
    assert tied.gold == (1.0, 1.0, 1.0, 0.0, 0.0)
    assert benchmark.notes == ("Ties goes from -0.01 to 1.01, so overall can pass 1 a little.",)


def test_absent_subsets_and_partners_are_named(tmp_path: Path) -> None:
    kept = [row for row in ROWS if row["subset"] in ("Math", "Ties") and row["id"] not in ("ref:0", "tied:2", "ref:1")]
    write_parquet(tmp_path / "rewardbench2.parquet", kept)
    benchmark = load(tmp_path)
    assert [score.name for score in benchmark.scores] == ["overall", "Math", "Ties"]
    assert "Factuality, Precise IF, Safety, Focus" in benchmark.notes[0]
    assert benchmark.notes[1].startswith("3 questions of Ties lack their partner")
    assert scores_of(benchmark, table(benchmark, worth))["overall"] == pytest.approx(2.01 / 2)


def test_subsets_in_any_case_and_plain_rows(tmp_path: Path) -> None:
    """Upstream's own code disagrees on "Ties" and "ties"; the two counts need not be there."""
    rows = [
        {key: value for key, value in row.items() if not key.startswith(("num", "total"))}
        | {"subset": row["subset"].lower(), "id": row["id"].replace(":", ":0")}
        for row in ROWS
    ]
    write_jsonl(tmp_path / "rewardbench2.jsonl", rows)
    benchmark = load(tmp_path)
    assert {item.group for item in benchmark.items} == {"Factuality", "Precise IF", "Math", "Safety", "Focus", "Ties"}
    assert {item.cluster for item in benchmark.items if item.group == "Ties"} == {f"Ties:{n}" for n in range(4)}
    assert scores_of(benchmark, table(benchmark, worth))["Ties"] == pytest.approx(1.01)


def test_num_correct_decides(tmp_path: Path) -> None:
    """As in the official code: the first `num_correct` of chosen and rejected are right."""
    row = next(row for row in ROWS if row["id"] == "tied:0") | {"num_correct": 3}
    write_parquet(tmp_path / "rewardbench2.parquet", [row])
    (item,) = load(tmp_path).items
    assert item.gold == (1.0, 1.0, 1.0, 0.0, 0.0)
