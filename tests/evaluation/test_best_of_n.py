from __future__ import annotations

import csv
import json
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.terminal import write_lines

from ebrm.errors import ConfigError, DataError
from ebrm.evaluation import gold_curves, longest_axis, read_pools, select, selection_axes
from ebrm.evaluation.best_of_n import FITTED_PROMPT, INCOMPLETE, ResponsePools
from ebrm.metrics import Bootstrap, mean_curve

ROWS: list[dict[str, Any]] = [
    {"prompt_id": "a", "base_reward": 1.0, "reward": 0.5, "gold": 0.0},
    {"prompt_id": "b", "base_reward": 3.0, "reward": 3.5, "gold": True},
    {"prompt_id": "a", "base_reward": 2.0, "reward": 1.5, "gold": 1.0},
    {"prompt_id": "a", "base_reward": 0, "reward": -0.5, "gold": 0.5},
]


def test_rows_of_a_prompt_come_together_wherever_they_stand(tmp_path: Path) -> None:
    pools = read_pools(str(write_lines(tmp_path / "p.jsonl", ROWS)))
    assert list(pools.reward) == ["base_reward", "reward"]
    np.testing.assert_array_equal(pools.gold, [[0, 1, 0.5], [1, np.nan, np.nan]])
    np.testing.assert_array_equal(pools.reward["reward"], [[0.5, 1.5, -0.5], [3.5, np.nan, np.nan]])
    assert pools.sizes.tolist() == [3, 1] and not pools.left_out


@pytest.mark.parametrize("ending", [".csv", ".parquet", ".jsonl"])
def test_kinds_of_file_say_the_same(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"p{ending}"
    rows = [{**row, "gold": float(row["gold"]), "base_reward": float(row["base_reward"])} for row in ROWS]
    if ending == ".csv":
        lines = [",".join(rows[0]), *(",".join(map(str, row.values())) for row in rows)]
        path.write_text("\n".join(lines) + "\n")
    elif ending == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        write_lines(path, rows)
    pools = read_pools(str(path), ["reward"])
    assert list(pools.reward) == ["reward"]
    np.testing.assert_array_equal(pools.reward["reward"], [[0.5, 1.5, -0.5], [3.5, np.nan, np.nan]])


def test_a_conversation_is_a_prompt(tmp_path: Path) -> None:
    prompt = [{"role": "user", "content": "x"}]
    turned = [dict(reversed(prompt[0].items()))]
    rows = [{"prompt": p, "reward": k, "gold": k} for k, p in enumerate([prompt, "x", turned])]
    pools = read_pools(str(write_lines(tmp_path / "p.jsonl", rows)))
    assert pools.sizes.tolist() == [2, 1] and list(pools.reward) == ["reward"]


@pytest.mark.parametrize("cell", [None, "", float("nan")])
def test_a_prompt_with_a_missing_number_is_left_out_whole(tmp_path: Path, cell: object) -> None:
    rows = [*ROWS[:3], {**ROWS[3], "reward": cell}]
    path = tmp_path / "p.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    pools = read_pools(str(path))
    assert pools.gold.tolist() == [[1.0]] and pools.left_out == {INCOMPLETE: 1}
    # Where the column is not compared, nothing is missing.
    assert not read_pools(str(path), ["base_reward"]).left_out


@pytest.mark.parametrize("ending", [".csv", ".jsonl"])
def test_a_row_may_hold_all_responses_to_a_prompt(tmp_path: Path, ending: str) -> None:
    rows = [
        {"prompt": "a", "reward": [0.5, 1.5, -0.5], "gold": [0, 1, 0.5], "fitted_on": False},
        {"prompt": "b", "reward": [3.5], "gold": [1], "fitted_on": False},
        {"prompt": "c", "reward": [1.0, None], "gold": [1, 2], "fitted_on": False},
        {"prompt": "d", "reward": None, "gold": [1, 2], "fitted_on": None},
        {"prompt": "e", "reward": [1.0, 2.0], "gold": [1, 2], "fitted_on": True},
    ]
    path = tmp_path / f"p{ending}"
    if ending == ".csv":
        with open(path, "w", newline="") as handle:
            writer = csv.writer(handle)
            writer.writerow(rows[0])
            writer.writerows([json.dumps(v) if isinstance(v, list) else v for v in row.values()] for row in rows)
    else:
        write_lines(path, rows)
    pools = read_pools(str(path))
    np.testing.assert_array_equal(pools.gold, [[0, 1, 0.5], [1, np.nan, np.nan]])
    np.testing.assert_array_equal(pools.reward["reward"], [[0.5, 1.5, -0.5], [3.5, np.nan, np.nan]])
    assert pools.left_out == {INCOMPLETE: 2, FITTED_PROMPT: 1}


@pytest.mark.parametrize("reward", [1.0, [1.0], [1.0, 2.0, 3.0]])
def test_lists_of_different_lengths_are_refused(tmp_path: Path, reward: object) -> None:
    path = write_lines(tmp_path / "p.jsonl", [{"prompt": "a", "reward": reward, "gold": [1, 2]}])
    with pytest.raises(DataError, match=r"p.jsonl:1: gold is a list of 2 and reward (one number|a list of [13])"):
        read_pools(str(path))


def test_columns_may_have_other_names(tmp_path: Path) -> None:
    rows = [{"q": p, "prompt_id": "x", "score": k, "worth": k} for k, p in enumerate("aabb")]
    path = str(write_lines(tmp_path / "p.jsonl", rows))
    pools = read_pools(path, columns={"prompt": "q", "reward": "score", "gold": "worth"})
    assert pools.sizes.tolist() == [2, 2] and list(pools.reward) == ["reward"]
    with pytest.raises(DataError, match="no column 'scroe'. Did you mean 'score'"):
        read_pools(path, columns={"reward": "scroe"})
    with pytest.raises(ConfigError, match="'length' is not one of our names"):
        read_pools(path, columns={"length": "score"})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"gold": "good"}, ("p.jsonl:4", "'good'", "number")),
        ({"reward": float("inf")}, ("p.jsonl:4", "inf", "finite")),
        ({"reward": [1]}, ("p.jsonl:4", "reward")),
    ],
)
def test_cells_that_are_no_numbers(tmp_path: Path, change: dict[str, Any], words: tuple[str, ...]) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in [*ROWS[:3], {**ROWS[3], **change}]))
    with pytest.raises(DataError) as error:
        read_pools(str(path))
    assert all(word in str(error.value) for word in words)


def test_columns_that_are_not_there(tmp_path: Path) -> None:
    path = str(write_lines(tmp_path / "p.jsonl", ROWS))
    for call in ({"reward": ["score"]}, {"gold": "score"}, {"prompt_column": "score"}):
        with pytest.raises(DataError, match="'score'; it has prompt_id, base_reward, reward, gold"):
            read_pools(path, **call)  # type: ignore[arg-type]
    (tmp_path / "none.jsonl").write_text("")
    with pytest.raises(DataError, match="no rows"):
        read_pools(str(tmp_path / "none.jsonl"))
    with pytest.raises(DataError, match="Each of the 1 prompts"):
        read_pools(str(write_lines(tmp_path / "n.jsonl", [{**ROWS[0], "gold": None}])))


def some_pools(prompts: int = 40, size: int = 6, seed: int = 0) -> ResponsePools:
    draws = np.random.default_rng(seed)
    gold = draws.normal(size=(prompts, size))
    noisy = gold + draws.normal(size=gold.shape)
    return ResponsePools({"noisy": noisy, "wrong": -gold}, gold, {"why": 3})


def test_gold_of_the_best_of_n_by_counting_all_sets() -> None:
    given = some_pools(5)
    found = select(given, bootstrap=Bootstrap(100)).along["noisy"]["n"]
    for n in range(1, 7):
        best = [
            np.mean([gold[max(drawn, key=lambda k: reward[k])] for drawn in combinations(range(6), n)])
            for reward, gold in zip(given.reward["noisy"], given.gold, strict=True)
        ]
        assert found.gold.value[n - 1] == pytest.approx(np.mean(best))


def test_curves_start_at_any_response_and_end_at_the_best() -> None:
    given = some_pools()
    found = select(given, bootstrap=Bootstrap(200))
    for axis, end in (("n", 6.0), ("kl", np.log(6))):
        for name, along in found.along.items():
            curve = along[axis]  # type: ignore[index]
            assert curve.x[-1] == pytest.approx(end)
            assert curve.gold.value[0] == pytest.approx(found.random[0])
            assert curve.above_random.value[0] == curve.above_random.low[0] == curve.above_random.high[0] == 0
            best = given.gold[np.arange(40), given.reward[name].argmax(1)]
            assert curve.gold.value[-1] == pytest.approx(best.mean())
        np.testing.assert_allclose(found.oracle[axis].value[-1], given.gold.max(1).mean())  # type: ignore[index]
    assert found.prompts == 40 and found.responses == 240 and found.left_out == {"why": 3}


def test_differences_in_gold_are_paired() -> None:
    given = some_pools()
    found = select(given, bootstrap=Bootstrap(300, seed=4))
    assert found.along["noisy"]["n"].gain is None
    axes = selection_axes(6)
    first, second = (gold_curves(table, given.gold, axes)["kl"] for table in given.reward.values())
    gain = found.along["wrong"]["kl"].gain
    assert gain is not None
    expected = mean_curve(second - first, bootstrap=Bootstrap(300, seed=4))
    np.testing.assert_array_equal(gain.low, expected.low)
    same = select(ResponsePools({"a": given.gold, "b": 2 * given.gold + 1}, given.gold, {}), bootstrap=Bootstrap(100))
    twin = same.along["b"]["n"].gain
    assert twin is not None
    np.testing.assert_allclose([twin.low, twin.high], 0, atol=1e-15)


def test_a_wrong_reward_peaks_at_the_start() -> None:
    found = select(some_pools(), bootstrap=Bootstrap(100))
    peak = found.along["wrong"]["n"].peak
    assert peak.x.value == 1 and peak.loss.value > 0.5
    assert found.along["noisy"]["n"].peak.x.value > 3


def test_small_pools_are_left_out_and_counted() -> None:
    given = some_pools(20)
    for table in (given.gold, *given.reward.values()):
        table[0, 3:] = np.nan
        table[1, 1:] = np.nan
    found = select(given, bootstrap=Bootstrap(100))
    assert len(found.along["noisy"]["n"].x) == 6 and found.prompts == 18
    assert found.left_out == {"why": 3, "fewer than 6 responses": 2}
    shorter = select(given, least=2, bootstrap=Bootstrap(100))
    assert len(shorter.along["noisy"]["n"].x) == 3 and shorter.prompts == 19
    with pytest.raises(DataError, match="No prompt has 7 responses or more; the most are 6"):
        select(given, least=7)
    assert longest_axis(np.full(10, 7)) == 7 and longest_axis(np.array([2, 3, *[7] * 8])) == 3


def test_one_prompt_has_no_interval_but_plain_json() -> None:
    found = select(some_pools(1), bootstrap=Bootstrap(100)).to_dict()
    text = json.dumps(found, allow_nan=False)
    assert found["rewards"]["noisy"]["n"]["gold"]["low"] == [None] * 6 and "kl_bound" in text
    assert found["rewards"]["noisy"]["n"]["peak"]["x"]["low"] is None
