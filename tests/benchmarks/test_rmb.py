"""RMB: its files, items and scores by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.benchmarks.tiny import by_id, scores_of, user, write_json, write_parquet

from ebrm.benchmarks.rmb import load
from ebrm.errors import DataError

TURNS = [
    {"role": "user", "content": "one", "language": "English"},
    {"role": "assistant", "content": "two", "language": "English"},
    {"role": "user", "content": "three", "language": "English"},
]


def up_pair(uid: str, path: str) -> dict[str, Any]:
    sides = {"chosen": {"llm_name": "m", "answer": f"good {uid}"}, "reject": {"llm_name": "n", "answer": f"bad {uid}"}}
    return {"pair_uid": uid, "category_path": f"Pairwise_set/{path}", "conversation_input": TURNS, **sides}


def up_list(uid: int, path: str, losers: int = 2) -> dict[str, Any]:
    worse = [{"llm_name": "n", "answer": f"bad {uid} {n}"} for n in range(losers)]
    best = {"llm_name": "m", "answer": f"good {uid}"}
    return {
        "bon_uid": uid, "category_path": f"BoN_set/{path}", "conversation_input": TURNS, "bon_best": best,
        "loser_list": worse,
    }  # fmt: skip


def upstream(folder: Path) -> Path:
    data = folder / "RMB_dataset"
    for path, count in (("Helpfulness/Chat/Talk", 2), ("Helpfulness/Chat/Cheer up", 1), ("Harmlessness/S1", 1)):
        rows = [up_pair(f"{path}{n}", path) for n in range(count)]
        write_json(data / "Pairwise_set" / f"{path}.json", rows)
    rows = [up_list(n, "Helpfulness/Chat/Talk") for n in range(2)]
    write_json(data / "BoN_set" / "Helpfulness" / "Chat" / "Talk.json", rows)
    write_json(data / "BoN_set" / "Harmlessness" / "S1.json", [up_list(7, "Harmlessness/S1", 4)])
    return folder


def prepared_pair(name: str, category: str, subset: str, **changed: Any) -> dict[str, Any]:
    row = {
        "id": name, "category": category, "subset": subset, "prompt": user(name), "chosen": "good", "rejected": "bad",
    }  # fmt: skip
    return row | changed


def prepared_list(name: str, category: str, subset: str) -> dict[str, Any]:
    row = {"id": name, "category": category, "subset": subset, "prompt": user(name), "best": "good"}
    return row | {"losers": ["b", "c"]}


def test_a_clone(tmp_path: Path) -> None:
    benchmark = load(upstream(tmp_path))
    assert len(benchmark) == 7 and benchmark.name == "rmb"
    items = {item.id: item for item in benchmark.items}
    pair, best = items["pairwise/Helpfulness/Chat/Talk1"], items["bon/7"]
    assert pair.responses == ("good Helpfulness/Chat/Talk1", "bad Helpfulness/Chat/Talk1") and pair.gold == (1.0, 0.0)
    assert best.responses == ("good 7", "bad 7 0", "bad 7 1", "bad 7 2", "bad 7 3")
    assert best.gold == (1.0, 0.0, 0.0, 0.0, 0.0)
    assert [message["content"] for message in pair.prompt] == ["one", "two", "three"]
    assert [message["role"] for message in pair.prompt] == ["user", "assistant", "user"]
    assert pair.group == "pairwise/Helpfulness/Chat/Talk" and best.group == "bon/Harmlessness/S1"
    assert len(set(benchmark.clusters())) == 1
    assert benchmark.notes == (
        "Scenarios absent from the best-of-n set: Helpfulness/Chat/Cheer up.",
        "3 best-of-n lists of the published 3,786: not the numbers of the leaderboard.",
    )


def test_scores_by_hand(tmp_path: Path) -> None:
    benchmark = load(upstream(tmp_path))
    rewards = {
        "pairwise/Helpfulness/Chat/Talk0": [2, 1], "pairwise/Helpfulness/Chat/Talk1": [1, 1],
        "pairwise/Helpfulness/Chat/Cheer up0": [2, 1], "pairwise/Harmlessness/S10": [1, 2], "bon/0": [3, 2, 1],
        "bon/1": [2, 2, 1], "bon/7": [2, 1, 2, 2, 0],
    }  # fmt: skip
    found = scores_of(benchmark, by_id(benchmark, rewards))
    assert found == pytest.approx({
        "overall": (0.75 + 0 + 0.5 + 0) / 4,
        "Helpfulness pairwise": (0.5 + 1) / 2, "Helpfulness best-of-n": 0.5,
        "Harmlessness pairwise": 0, "Harmlessness best-of-n": 0,
        "Helpfulness/Chat pairwise": 0.75, "Helpfulness/Chat best-of-n": 0.5,
        "Harmlessness/S1 pairwise": 0, "Harmlessness/S1 best-of-n": 0,
    })  # fmt: skip
    shared = scores_of(benchmark, by_id(benchmark, rewards), "shared")
    assert shared["Helpfulness pairwise"] == pytest.approx((0.75 + 1) / 2)
    assert shared["Helpfulness best-of-n"] == pytest.approx(0.75)
    assert shared["Harmlessness best-of-n"] == pytest.approx(1 / 3)
    assert [score.kind for score in benchmark.scores] == ["overall"] + ["section"] * 4 + ["subset"] * 4


def test_prepared_files(tmp_path: Path) -> None:
    rows = [prepared_pair("a-1", "Helpfulness/Chat", "Talk"), prepared_pair("a-2", "Harmlessness/S1", "S1")]
    write_parquet(tmp_path / "rmb_pairwise.parquet", rows)
    write_parquet(tmp_path / "rmb_bon.parquet", [prepared_list("a-1", "Helpfulness/Chat", "Talk")])
    benchmark = load(tmp_path)
    groups = {item.id: item.group for item in benchmark.items}
    assert groups == {
        "pairwise/a-1": "pairwise/Helpfulness/Chat/Talk",
        "pairwise/a-2": "pairwise/Harmlessness/S1",
        "bon/a-1": "bon/Helpfulness/Chat/Talk",
    }
    prompts = {item.id: item.prompt for item in benchmark.items}
    assert prompts["pairwise/a-2"] == ({"role": "user", "content": "a-2"},)
    assert len(set(benchmark.clusters())) == 2
    assert benchmark.notes[0] == "Scenarios absent from the best-of-n set: Harmlessness/S1."
    assert benchmark.origin == f"2 files in {tmp_path}"


def test_the_pairs_alone_say_nothing_of_lists(tmp_path: Path) -> None:
    write_parquet(tmp_path / "rmb_pairwise.parquet", [prepared_pair("1", "Helpfulness/Chat", "Talk")])
    assert load(tmp_path).notes == ("The best-of-n set is absent, and so is its half of the overall score.",)


def test_one_set_alone(tmp_path: Path) -> None:
    write_parquet(tmp_path / "rmb_bon.parquet", [prepared_list("1", "Helpfulness/Chat", "Talk")])
    benchmark = load(tmp_path)
    names = [score.name for score in benchmark.scores]
    assert names == ["overall", "Helpfulness best-of-n", "Helpfulness/Chat best-of-n"]
    assert all(sum(score.weights.values()) == pytest.approx(1) for score in benchmark.scores)
    assert benchmark.notes[0] == "The pairwise set is absent, and so is its half of the overall score."


def test_a_list_without_losers(tmp_path: Path) -> None:
    write_json(tmp_path / "RMB_dataset" / "BoN_set" / "x.json", [up_list(1, "Harmlessness/S1", 0)])
    with pytest.raises(DataError, match=r"x\.json:1, loser_list: empty list"):
        load(tmp_path)


def test_a_goal_without_a_scenario(tmp_path: Path) -> None:
    write_json(tmp_path / "RMB_dataset" / "Pairwise_set" / "x.json", [up_pair("1", "Helpfulness")])
    with pytest.raises(DataError, match=r"x\.json:1, category_path: does not begin with"):
        load(tmp_path)


def test_the_prepared_files(data_folder: Path) -> None:
    benchmark = load(data_folder)
    assert len(benchmark) == 10_141 + 2_648 and len({item.group for item in benchmark.items}) == 46 + 49
    assert {len(item.responses) for item in benchmark.items} == {2, 3, 4, 5, 6, 7}
    assert any(len(item.prompt) == 5 for item in benchmark.items)
    assert benchmark.notes[1].startswith("2,648 best-of-n lists of the published 3,786")
    assert "Harmlessness/S11" in benchmark.notes[0] and "pairwise" in benchmark.notes[0]
