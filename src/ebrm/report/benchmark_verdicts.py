"""What an evaluation says of each scorer beside the reference, for the sentences and the marks of the page."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from typing import Literal

from ebrm.benchmarks import Score
from ebrm.evaluation import SIGNIFICANT, BenchmarkResult, Cell, Evaluation

#: With fewer prompts a bootstrap interval is too narrow to rely on.
FEW_PROMPTS = 20

Verdict = Literal["better", "worse", "no clear difference", "not tested"]
MARKS: dict[Verdict, tuple[str, str]] = {"better": ("▲", "clearly better"), "worse": ("▼", "clearly worse")}


def verdict(cell: Cell | None) -> Verdict:
    """Whether a score is clearly above or below the reference's; "not tested" where there is no corrected p-value."""
    if cell is None or cell.difference is None or cell.p_holm is None or not math.isfinite(cell.p_holm):
        return "not tested"
    if cell.p_holm > SIGNIFICANT:
        return "no clear difference"
    return "better" if cell.difference.value > 0 else "worse"


def cell_of(benchmark: BenchmarkResult, scorer: str, score: str) -> Cell | None:
    """The cell of a scorer in a score, or None."""
    result = benchmark.scorers.get(scorer)
    return None if result is None else result.cells.get(score)


def overall(benchmark: BenchmarkResult) -> Score:
    """The score that stands for the whole benchmark."""
    return benchmark.scores[0]


def others(evaluation: Evaluation) -> list[str]:
    """The scorers that are compared with the reference, in the order of every table."""
    return [name for name in evaluation.bases if name != evaluation.reference]


def refined_scorers(evaluation: Evaluation) -> list[str]:
    """The scorers that refine another one of this evaluation."""
    return [name for name, base in evaluation.bases.items() if base in evaluation.bases]


def families(evaluation: Evaluation) -> list[dict[str, str]]:
    """What is drawn together: every refined scorer with its base, and each scorer that is in no such pair.

    Returns:
        Role ("base", "refined") to scorer, one mapping a drawing, in the order of the scorers.
    """
    refined = refined_scorers(evaluation)
    bases = {evaluation.bases[name] for name in refined}
    found = []
    for name, base in evaluation.bases.items():
        if name in refined and base is not None:
            found.append({"base": base, "refined": name})
        elif name not in bases:
            found.append({"base" if base is None else "refined": name})
    return found


def titles(evaluation: Evaluation) -> dict[str, str]:
    """Name to title of each benchmark; the name is added where two have the same title."""
    times = Counter(benchmark.title for benchmark in evaluation.benchmarks)
    return {b.name: b.title if times[b.title] == 1 else f"{b.title} ({b.name})" for b in evaluation.benchmarks}


def by_verdict(evaluation: Evaluation, scorer: str) -> dict[Verdict, list[BenchmarkResult]]:
    """The benchmarks on which `scorer` is better, worse and so on, by its overall scores."""
    found: dict[Verdict, list[BenchmarkResult]] = {
        "better": [],
        "worse": [],
        "no clear difference": [],
        "not tested": [],
    }
    for benchmark in evaluation.benchmarks:
        found[verdict(cell_of(benchmark, scorer, overall(benchmark).name))].append(benchmark)
    return found


def too_few_permutations(evaluation: Evaluation) -> list[str]:
    """What has so many tests that no p-value can be small enough: "the overall scores", and titles of benchmarks.

    The smallest p-value that n random permutations can give is 1 / (n + 1), and Holm's method multiplies the smallest
    of m by m. (Exact tests, where prompts are few, may go below.)
    """
    names = titles(evaluation)
    tests = {"the overall scores": len(evaluation.benchmarks)}
    tests |= {names[benchmark.name]: len(benchmark.scores) - 1 for benchmark in evaluation.benchmarks}
    most = SIGNIFICANT * (evaluation.permutations + 1) / max(1, len(others(evaluation)))
    return [name for name, number in tests.items() if number > most]


def part_cells(evaluation: Evaluation) -> Iterator[tuple[BenchmarkResult, Score, str, Cell]]:
    """Every section and subset of every benchmark with each scorer that is compared with the reference."""
    for benchmark in evaluation.benchmarks:
        for score in benchmark.scores[1:]:
            for scorer in others(evaluation):
                cell = cell_of(benchmark, scorer, score.name)
                if cell is not None and cell.difference is not None:
                    yield benchmark, score, scorer, cell
