"""RM-Bench: the 3 x 3 matrix of styles, domains, and all layouts of its files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.benchmarks.tiny import FILES, replies, scores_of, table, worth, write_json, write_parquet

from ebrm.benchmarks import Benchmark
from ebrm.benchmarks.rm_bench import load
from ebrm.errors import DataError

ROWS = FILES["rm-bench"]["rm_bench.parquet"]
LEVELS = ("easy", "normal", "hard")


def one(folder: Path, **change: Any) -> Benchmark:
    write_parquet(folder / "rm_bench.parquet", [ROWS[0] | change])
    return load(folder)


@pytest.mark.parametrize(
    ("chosen", "rejected", "easy", "normal", "hard"),
    [
        # a reward that only likes elaborateness
        ([0, 1, 2], [0, 1, 2], 3, 0, 0),
        # the same, a little for the right answer
        ([0.5, 1.5, 2.5], [0, 1, 2], 3, 3, 0),
        # enough for one step of style, not for two
        ([1.5, 2.5, 3.5], [0, 1, 2], 3, 3, 2),
        # a reward that only likes brevity
        ([2, 1, 0], [2, 1, 0], 0, 0, 3),
        # only the concise right answer wins, against all
        ([9, 0, 0], [1, 1, 1], 0, 1, 2),
        # only the fanciest wrong answer loses, against all
        ([1, 1, 1], [9, 9, 0], 0, 1, 2),
        # only the fanciest right answer beats the concise wrong one
        ([0, 0, 1], [0.5, 2, 2], 1, 0, 0),
    ],
)
def test_known_matrices(
    chosen: list[float], rejected: list[float], easy: float, normal: float, hard: float, tmp_path: Path
) -> None:
    benchmark = one(tmp_path)
    found = scores_of(benchmark, np.array([[*chosen, *rejected]], dtype=float))
    assert [found[level] for level in LEVELS] == pytest.approx([easy / 3, normal / 3, hard / 3])
    assert found["overall"] == found["chat"] == pytest.approx((easy + normal + hard) / 9)
    assert [found[f"chat/{level}"] for level in LEVELS] == pytest.approx([found[level] for level in LEVELS])


def test_parts_of_safety_are_pooled(tmp_path: Path) -> None:
    refuse = [ROWS[0] | {"id": f"r{n}", "domain": "safety-refuse", "chosen": replies(1.0, 3)} for n in range(3)]
    respond = ROWS[0] | {"id": "s", "domain": "safety-response", "chosen": replies(1.0, 3)}
    code = ROWS[0] | {"id": "c", "domain": "code", "chosen": replies(1.0, 3)}
    write_parquet(tmp_path / "rm_bench.parquet", [*refuse, respond, code])
    benchmark = load(tmp_path)
    rewards = np.array([[1, 1, 1, 0, 0, 0]] * 3 + [[0, 0, 0, 1, 1, 1]] + [[1, 1, 0, 0, 0, 0]], dtype=float)
    found = scores_of(benchmark, rewards)
    assert found["safety"] == pytest.approx(3 / 4)
    assert (found["safety-refuse"], found["safety-response"]) == (1.0, 0.0)
    assert found["code"] == pytest.approx(6 / 9)
    assert found["overall"] == pytest.approx((3 / 4 + 6 / 9) / 2)
    assert found["hard"] == pytest.approx((3 / 4 + 1) / 2)
    assert "chat, math" in benchmark.notes[0] and "code, safety" in benchmark.notes[0]
    assert len(benchmark.scores[0].weights) == 2 * 3


def test_items(tmp_path: Path) -> None:
    write_parquet(tmp_path / "rm_bench.parquet", ROWS)
    benchmark = load(tmp_path)
    item, row = benchmark.items[-1], ROWS[-1]
    assert item.responses == (*row["chosen"], *row["rejected"])
    assert item.gold == (1.0, 1.0, 1.0, 0.0, 0.0, 0.0)
    assert item.group == "safety-response"
    assert item.id == f"safety-response/{row['id']}"
    assert benchmark.notes == ()
    names = [score.name for score in benchmark.scores]
    assert names[:8] == ["overall", "chat", "code", "math", "safety", "easy", "normal", "hard"]
    assert names[8:10] == ["safety-refuse", "safety-response"]
    assert len(names) == 10 + 12


def upstream(row: dict[str, Any], number: int) -> dict[str, Any]:
    """A row as upstream keeps it: the prompt as a string, a numeric id."""
    return {
        "id": number, "prompt": f"styles {number}", "subset": row["subset"], "chosen": row["chosen"],
        "rejected": row["rejected"],
    }  # fmt: skip


@pytest.mark.parametrize("folder", ["data", "RM-Bench/data", "clones/RM-Bench/data", "."])
def test_files_of_the_repository(folder: str, tmp_path: Path) -> None:
    by_domain: dict[str, list[dict[str, Any]]] = {}
    for row in ROWS:
        part = by_domain.setdefault(row["domain"], [])
        part.append(upstream(row, len(part)))
    for domain, rows in by_domain.items():
        write_json(tmp_path / folder / f"{domain}_filtered.json", rows)
    from_parts = load(tmp_path)
    assert {item.group for item in from_parts.items} == set(by_domain)
    assert len(from_parts) == len(ROWS)
    total = [row | {"domain": domain} for domain, rows in by_domain.items() for row in rows]
    write_json(tmp_path / folder / "total_dataset.json", total)
    whole = load(tmp_path)
    assert "total_dataset.json" in whole.origin
    assert {item.id for item in whole.items} == {item.id for item in from_parts.items}
    assert scores_of(whole, table(whole, worth)) == scores_of(from_parts, table(from_parts, worth))


def test_part_of_safety_alone_is_said(tmp_path: Path) -> None:
    benchmark = one(tmp_path, domain="safety-response")
    assert benchmark.notes[-1] == "Of safety, only safety-response is present."
    assert [score.name for score in benchmark.scores][:2] == ["overall", "safety"]


def test_same_id_in_two_domains_is_fine(tmp_path: Path) -> None:
    write_json(tmp_path / "chat_filtered.json", [upstream(ROWS[0], 8)])
    write_json(tmp_path / "code_filtered.json", [upstream(ROWS[1], 8)])
    assert {item.id for item in load(tmp_path).items} == {"chat/8", "code/8"}
    write_json(tmp_path / "code_filtered.json", [upstream(ROWS[1], 8), upstream(ROWS[2], 8)])
    with pytest.raises(DataError, match="repeated id"):
        load(tmp_path)
