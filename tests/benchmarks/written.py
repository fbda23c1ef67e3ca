"""Made-up files on disk, and a benchmark's scores worked out slowly."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ebrm.benchmarks import Benchmark, Ties

Rows = Sequence[Mapping[str, Any]]


def user(text: str) -> str:
    """A prompt of one turn as the prepared files hold it."""
    return json.dumps([{"role": "user", "content": text}])


def parquet(path: Path, rows: Rows) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist([dict(row) for row in rows]), path)
    return path


def as_json(path: Path, value: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")
    return path


def jsonl(path: Path, rows: Rows) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def comma(path: Path, rows: Rows) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", encoding="utf-8", newline="") as handle:
        writer = csv.DictWriter(handle, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def table(benchmark: Benchmark, rewards: Mapping[str, Sequence[float]]) -> np.ndarray:
    """Rewards by item id as a table."""
    wide = np.full((len(benchmark), max(len(item.responses) for item in benchmark.items)), np.nan)
    for number, item in enumerate(benchmark.items):
        wide[number, : len(item.responses)] = rewards[item.id]
    return wide


def random_rewards(benchmark: Benchmark, seed: int = 0, levels: int | None = None) -> np.ndarray:
    """Normal rewards, or whole numbers below `levels`, so that there are many ties."""
    generator = np.random.default_rng(seed)
    shape = benchmark.gold().shape
    drawn = generator.normal(size=shape) if levels is None else generator.integers(levels, size=shape).astype(float)
    return np.where(np.isnan(benchmark.gold()), np.nan, drawn)


def scores(benchmark: Benchmark, rewards: np.ndarray, ties: Ties | None = None) -> dict[str, float]:
    """Every score from its definition: weighted mean of term means, terms without values left out, NaN if all are."""
    terms = benchmark.terms(benchmark.items, rewards, ties)
    values: dict[str, list[float]] = {}
    for term, value in zip(terms.term, terms.value, strict=True):
        values.setdefault(terms.names[term], []).append(float(value))
    result = {}
    for score in benchmark.scores:
        present = {term: weight for term, weight in score.weights.items() if term in values}
        total = sum(weight * sum(values[term]) / len(values[term]) for term, weight in present.items())
        share = sum(present.values()) / sum(score.weights.values())
        result[score.name] = total / share if present else np.nan
    return result
