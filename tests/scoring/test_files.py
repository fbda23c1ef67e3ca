from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.terminal import read_lines, write_lines

from ebrm.errors import ConfigError, DataError
from ebrm.scoring.files import Chunk, file_kind, join_parts, read_chunks, write_part

ROWS: list[dict[str, Any]] = [
    {"id": 2**60, "prompt": 'a,b\n"c"', "response": "ü 🙂 \x00", "more": None},
    {"id": -1, "prompt": "", "response": " x ", "more": {"k": [1, 2.5, None]}},
    {"id": 0, "prompt": "p", "response": "\u2028", "more": {"k": []}},
]
ADDED = [{"reward": 0.1, "error": None}, {"reward": None, "error": "empty"}, {"reward": -2.5, "error": None}]


def save(path: Path, rows: list[dict[str, Any]]) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=2)
        return path
    return write_lines(path, rows)


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
@pytest.mark.parametrize("size", [1, 2, 3, 100])
def test_chunks_hold_every_row_in_order(tmp_path, ending, size):
    path = save(tmp_path / f"in.{ending}", ROWS)
    chunks = list(read_chunks(path, size))
    assert [row for chunk in chunks for row in chunk.rows] == ROWS
    assert [chunk.first for chunk in chunks] == list(range(0, 3, size))
    assert [where for chunk in chunks for where in chunk.where] == [f"in.{ending}:{n}" for n in (1, 2, 3)]


def write(tmp_path: Path, source: Path, ending: str, size: int = 2) -> Path:
    """Copy rows through parts, each with its share of ADDED."""
    parts, columns = [], list(ROWS[0])
    for number, chunk in enumerate(read_chunks(source, size)):
        parts.append(tmp_path / f"{number}.part")
        write_part(parts[-1], ending, chunk, ADDED[chunk.first : chunk.first + len(chunk.rows)], columns)
    out = tmp_path / f"out.{ending}"
    join_parts(parts, out, ending, [*columns, *ADDED[0]])
    return out


@pytest.mark.parametrize("source", ["jsonl", "parquet"])
@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_rows_come_out_as_they_went_in(tmp_path, source, ending):
    out = write(tmp_path, save(tmp_path / f"in.{source}", ROWS), ending)
    found = read_lines(out) if ending == "jsonl" else pq.read_table(out).to_pylist()
    assert [{name: row[name] for name in ROWS[0]} for row in found] == ROWS
    assert [row["error"] for row in found] == [None, "empty", None]
    assert found[0]["reward"] == pytest.approx(0.1)
    assert found[1]["reward"] is None
    assert list(found[0]) == [*ROWS[0], "reward", "error"]


def test_csv_out(tmp_path):
    import csv

    out = write(tmp_path, save(tmp_path / "in.jsonl", ROWS), "csv")
    with open(out, encoding="utf-8", newline="") as handle:
        found = list(csv.DictReader(handle))
    assert [row["response"] for row in found] == [row["response"] for row in ROWS]
    assert [row["prompt"] for row in found] == [row["prompt"] for row in ROWS]
    assert json.loads(found[1]["more"]) == ROWS[1]["more"]
    assert [row["reward"] for row in found] == ["0.1", "", "-2.5"]


def test_parquet_types_survive(tmp_path):
    table = pa.table(
        {"id": pa.array([1, 2], pa.int16()), "t": pa.array([0, 1], pa.timestamp("ms")), "response": ["a", "b"]}
    )
    pq.write_table(table, tmp_path / "in.parquet")
    parts = []
    for number, chunk in enumerate(read_chunks(tmp_path / "in.parquet", 1)):
        parts.append(tmp_path / f"{number}.part")
        write_part(parts[-1], "parquet", chunk, [{"reward": None, "error": None}], ["id", "t", "response"])
    join_parts(parts, tmp_path / "out.parquet", "parquet", [])
    schema = pq.read_schema(tmp_path / "out.parquet")
    assert schema.field("id").type == pa.int16()
    assert schema.field("t").type == pa.timestamp("ms")
    assert schema.field("reward").type == pa.float32()  # although every value is null
    assert schema.field("error").type == pa.string()


def test_columns_that_only_some_rows_have(tmp_path):
    write_part(tmp_path / "p", "parquet", Chunk(0, [{"a": 1}, {"b": "x"}], ["f:1", "f:2"]), ADDED[:2], ["a", "b"])
    rows = pq.read_table(tmp_path / "p").to_pylist()
    assert [(row["a"], row["b"]) for row in rows] == [(1, None), (None, "x")]


def test_mixed_types_cannot_be_parquet(tmp_path):
    with pytest.raises(DataError, match=r"'a'.*jsonl"):
        write_part(tmp_path / "p", "parquet", Chunk(0, [{"a": 1}, {"a": "x"}], ["f:1", "f:2"]), ADDED[:2], ["a"])
    for number, value in enumerate((1, "x")):
        write_part(tmp_path / str(number), "parquet", Chunk(0, [{"a": value}], ["f:1"]), ADDED[:1], ["a"])
    with pytest.raises(DataError, match=r"one\s+type.*jsonl"):
        join_parts([tmp_path / "0", tmp_path / "1"], tmp_path / "out.parquet", "parquet", [])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "0.sha256", "1", "1.sha256"]


def test_a_lone_surrogate_is_kept_in_json(tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_text('{"response": "\\ud83d"}\n', encoding="utf-8")
    (chunk,) = read_chunks(path, 5)
    write_part(tmp_path / "p", "jsonl", chunk, [{"error": "x"}], ["response"])
    assert json.loads((tmp_path / "p").read_text(encoding="utf-8"))["response"] == "\ud83d"


@pytest.mark.parametrize("name", ["a.txt", "a", "a.json", "a.jsonl.gz"])
def test_unknown_endings_for_output(name):
    with pytest.raises(ConfigError, match=r"\.jsonl, \.csv or \.parquet"):
        file_kind(Path(name))


def test_damaged_parquet(tmp_path):
    path = save(tmp_path / "in.parquet", ROWS)
    data = path.read_bytes()
    for broken in (b"", b"PAR1", data[: len(data) // 2], b"x" * 100):
        path.write_bytes(broken)
        with pytest.raises(DataError, match=r"in\.parquet"):
            list(read_chunks(path, 2))
