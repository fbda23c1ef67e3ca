from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.terminal import write_lines

from ebrm.errors import DataError
from ebrm.evaluation import read_pools
from ebrm.evaluation.best_of_n import INCOMPLETE

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
