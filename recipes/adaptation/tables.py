"""Cells to results/: summary.csv (every estimate), risk_coverage.csv, bars.json.

    python recipes/adaptation/tables.py --cells OUT [--results FOLDER]

Intervals are 95%, by a two-way bootstrap over prompts and seeds (1,000 draws; `measures.py`).
"""

from __future__ import annotations

import argparse
import csv
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bars import UNKNOWN, UNSEEN, bars
from measures import ABOVE_CHANCE, BASE, ELSEWHERE, VENDOR, Drawn, Key, Measured, by_key, measured

HERE = Path(__file__).parent
FIELDS = (
    "backbone", "base", "scenario", "n", "method", "measure", "value", "low", "high", "score", "seeds", "pairs",
    "prompts_read",
)  # fmt: skip
CONFIDENT = (BASE, "linear", "SiLU head", "5 SiLU heads, mean", UNKNOWN, UNSEEN)
BEST_OF = (2, 4, 8, 11)
COVERAGES = tuple(share / 20 for share in range(2, 21))


def estimates(key: Key, found: Measured, whole: bool) -> Iterator[dict[str, Any]]:
    """Rows of the summary. `whole`: also of confidence and pools."""
    meta = found.results[0].meta
    head = dict(zip(FIELDS, key, strict=False)) | {"seeds": len(found.results), "prompts_read": meta["prompts_read"]}

    def row(method: str, measure: str, drawn: Drawn, score: float | None = None) -> dict[str, Any]:
        e = drawn.estimate
        return head | {"method": method, "measure": measure, **vars(e), "score": score, "pairs": meta["pairs"]}

    for method in found.methods:
        yield row(method, "accuracy", found.accuracy(method, "target"))
        for measure in ("target", *found.sets):
            if method != BASE:
                yield row(method, measure, found.gain(method, measure), found.accuracy(method, measure).value)
            elif measure != "target":
                yield row(method, f"accuracy, {measure}", found.accuracy(method, measure))
        if method == BASE:
            continue
        for measure in (ELSEWHERE, ABOVE_CHANCE, VENDOR):
            drawn = found.gain(method, measure)
            if math.isfinite(drawn.value):
                yield row(method, measure, drawn)
        if "rmb" in found.sets:
            yield row(method, "RMB harmlessness", found.gain(method, "rmb", "Harmlessness"))
            yield row(method, "RMB helpfulness", found.gain(method, "rmb", "Helpfulness"))
        if "rm-bench" in found.sets:
            categories = sorted({str(one) for one in found.results[0].category[found.results[0].where("rm-bench")]})
            for category in categories:
                yield row(method, f"RM-Bench {category}", found.gain(method, "rm-bench", category))
    if not whole or key[3] not in (0, 100, 150, 300, 1000):
        return
    for method in CONFIDENT:
        if method not in found.methods:
            continue
        yield row(method, "log loss", found.log_loss(method))
        yield row(method, "error AUROC", found.auroc(method))
        ece, chance = found.calibration_error(method)
        yield head | {"method": method, "measure": "ECE", "value": ece, "low": None, "high": None, "score": chance}
        smallest = min(map(len, meta["pools"][method]), default=0)
        for n in (n for n in BEST_OF if n <= smallest):
            yield row(method, f"best of {n}", found.best_of(method, n))


def number(value: Any) -> Any:
    """Four decimals, whole numbers and texts as they are."""
    return f"{value:.4f}" if isinstance(value, float) else value


def main() -> None:
    """Write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=Path, required=True)
    parser.add_argument("--results", type=Path, default=HERE / "results")
    args = parser.parse_args()
    args.results.mkdir(parents=True, exist_ok=True)
    every, rows, coverage = {}, [], []
    for key, results in by_key(args.cells).items():
        for place, found in enumerate(measured(results)):
            if not place:
                every[key] = found
                if key[2] == "same domain":
                    for method in CONFIDENT:
                        for share, wrong in zip(COVERAGES, found.risk_coverage(method, COVERAGES), strict=True):
                            coverage.append([*key, method, f"{share:.2f}", f"{wrong:.3f}"])
            rows += estimates(key, found, whole=not place)
        print(*key, flush=True)
    with open(args.results / "summary.csv", "w", newline="") as handle:
        writer = csv.DictWriter(handle, FIELDS)
        writer.writeheader()
        writer.writerows({name: number(value) for name, value in row.items()} for row in rows)
    with open(args.results / "risk_coverage.csv", "w", newline="") as handle:
        csv.writer(handle).writerows([[*FIELDS[:5], "coverage", "wrong"], *coverage])
    made = [bar.to_dict() for bar in bars(every)]
    (args.results / "bars.json").write_text(json.dumps(made, indent=1) + "\n")
    print(f"{len(rows)} estimates; {sum(bar['met'] for bar in made)} of {len(made)} bars met")


if __name__ == "__main__":
    main()
