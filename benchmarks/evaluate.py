"""How long an evaluation takes once rewards are known, on made-up rewards for real benchmarks.

    python benchmarks/evaluate.py --data DATA

DATA is a folder with benchmarks, as `ebrm eval --data` takes it. Five reward models with random rewards are compared on
everything in it, with all tests and intervals, beside one bootstrap of 15,000 items: seconds, wall and processor.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from ebrm.benchmarks import available, open_benchmark
from ebrm.evaluation import ScoredBenchmark, Scores, evaluate_scores
from ebrm.metrics import Bootstrap, bootstrap_scores


@contextmanager
def timed(what: str) -> Iterator[None]:
    """Print how long the block took."""
    wall, processor = time.perf_counter(), time.process_time()
    yield
    print(f"{what:<58} {time.perf_counter() - wall:6.2f} s wall {time.process_time() - processor:6.2f} s processor")


def main() -> None:
    """Time the parts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--models", type=int, default=5)
    args = parser.parse_args()
    with timed("read every benchmark"):
        benchmarks = [open_benchmark(name, args.data) for name in available(args.data)]
    generator = np.random.default_rng(0)
    scored = []
    for benchmark in benchmarks:
        gold = benchmark.gold()
        rewards = [gold + 2 * generator.normal(size=gold.shape) for _ in range(args.models)]
        scored.append(ScoredBenchmark(benchmark, [Scores(f"model {k}", reward) for k, reward in enumerate(rewards)]))
    items = sum(len(benchmark) for benchmark in benchmarks)
    with timed(f"compare {args.models} models on {len(benchmarks)} benchmarks, {items:,} items"):
        evaluate_scores(scored, "model 0")
    rows, terms, models = 15_000, 50, 10
    term, value = generator.integers(0, terms, rows), generator.integers(0, 2, (rows, models))
    with timed(f"bootstrap {rows:,} items, {terms} terms, {models} models, 2,000 resamples"):
        bootstrap_scores(term, value, np.arange(rows), np.full((1, terms), 1 / terms), bootstrap=Bootstrap(2000))


if __name__ == "__main__":
    main()
