"""How far the base reward may be taken to be off: what was looked at on one half of the test prompts.

    python recipes/evidence/base_noise.py --data DATA --cache CACHE

The one thing about the default that was taken from test prompts (docs/evidence.md). Fits the density with clean labels
and with a quarter of them wrong, weighs it against the base reward with several fixed errors, and writes
results/base_noise.csv: the mean of the official scores of the test sets on that half, in percent, and its gain on the
base. A few minutes.
"""

from __future__ import annotations

import argparse
import csv
import math
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from choose_default import RESULTS, base_problem
from features import TESTS
from methods import Method, Refined, ebrm
from study import Study, open_study

from ebrm.heads import Fusion
from ebrm.metrics import score_values
from ebrm.utils.files import atomic_path

ERRORS = (0.7, 1.0, 1.4, 2.0, 2.8, math.inf)
METHODS: dict[str, Method] = {
    "base": lambda p: Refined(p.reward),
    **{f"EBRM, error {error:g}": lambda p, error=error: ebrm(p, fusion=Fusion(1.0, error)) for error in ERRORS},  # type: ignore[misc]
    "EBRM, pooled only, error 2": lambda p: ebrm(p, pooled=True, fusion=Fusion(1.0, 2.0)),
}


def mean_score(study: Study, reward: np.ndarray) -> float:
    """Mean of the test sets' overall scores."""
    scores = []
    for name in TESTS:
        test = study.tests[name]
        terms = test.benchmark.terms(test.benchmark.items, test.rewards(reward), None)
        weights = np.array([[test.benchmark.scores[0].weights.get(term, 0.0) for term in terms.names]])
        scores.append(score_values(terms.term, terms.value[:, None], weights)[0, 0])
    return float(np.mean(scores))


def main() -> None:
    """Fit, score, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    study = open_study(args.data, args.cache, looked_at=True)
    found: dict[tuple[float, str], list[float]] = defaultdict(list)
    for noise in (0.0, 0.25):
        for seed in range(args.seeds):
            train, held, places = study.split(noise, seed)
            problem = base_problem(study, train, held, study.prompt[places], seed)
            for name, method in METHODS.items():
                found[noise, name].append(100 * mean_score(study, method(problem).reward.numpy()))
    with atomic_path(RESULTS / "base_noise.csv") as path, open(path, "w", newline="") as handle:
        out = csv.writer(handle, lineterminator="\n")
        out.writerow(["noise", "method", "score", "gain", "error", "seeds"])
        for (noise, name), scores in found.items():
            gain = np.array(scores) - found[noise, "base"]
            error = gain.std(ddof=1) / len(gain) ** 0.5
            out.writerow(
                [noise, name, *(f"{number:.2f}" for number in (np.mean(scores), gain.mean(), error)), len(gain)]
            )


if __name__ == "__main__":
    main()
