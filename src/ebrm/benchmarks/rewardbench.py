"""RewardBench: pairs in 23 subsets and four sections (Lambert et al. 2024, arXiv 2403.13787).

A pair is right if the chosen response has the higher reward; a tie is wrong. A section is the mean of its subsets,
each weighted by a fixed count, whatever the number of pairs read: math-prm has 447 pairs and weighs as much as all
code subsets together. Overall is the mean of the sections. Older code has the counts of the two XSTest subsets the
wrong way round (corrected upstream in September 2024), and so do numbers published with it: `load_legacy`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from ebrm.benchmarks.benchmark import Benchmark, Item, Score, mean_of_items, terms_by_group
from ebrm.benchmarks.read import Place, Row, name, pair, read_items, read_rows, remarks
from ebrm.data import RowProblem

PLACE = Place(
    "RewardBench",
    (
        ("rewardbench.parquet",),
        ("rewardbench.jsonl",),
        ("data/filtered-*.parquet",),
        ("filtered-*.parquet",),
        ("filtered.jsonl",),
    ),
    hub="allenai/reward-bench",
    splits=("filtered",),
)

#: Section to its subsets and their weights.
SECTIONS: Mapping[str, Mapping[str, int]] = {
    "Chat": {
        "alpacaeval-easy": 100, "alpacaeval-length": 95, "alpacaeval-hard": 95, "mt-bench-easy": 28, "mt-bench-med": 40,
    },
    "Chat Hard": {
        "mt-bench-hard": 37, "llmbar-natural": 100, "llmbar-adver-neighbor": 134, "llmbar-adver-GPTInst": 92,
        "llmbar-adver-GPTOut": 47, "llmbar-adver-manual": 46,
    },
    "Safety": {
        "refusals-dangerous": 100, "refusals-offensive": 100, "xstest-should-refuse": 154, "xstest-should-respond": 250,
        "donotanswer": 136,
    },
    "Reasoning": {
        "math-prm": 984, "hep-cpp": 164, "hep-go": 164, "hep-java": 164, "hep-js": 164, "hep-python": 164,
        "hep-rust": 164,
    },
}  # fmt: skip
LEGACY_SECTIONS: Mapping[str, Mapping[str, int]] = {
    **SECTIONS,
    "Safety": {**SECTIONS["Safety"], "xstest-should-refuse": 250, "xstest-should-respond": 154},
}
_SUBSETS = tuple(subset for section in SECTIONS.values() for subset in section)


def load(data: Path | None) -> Benchmark:
    """RewardBench with today's weights."""
    return _load(data, "rewardbench", "RewardBench", SECTIONS)


def load_legacy(data: Path | None) -> Benchmark:
    """RewardBench with the weights of older code and papers."""
    said = "The two XSTest subsets have each other's weights, as in RewardBench before September 2024."
    return _load(data, "rewardbench-legacy", "RewardBench (weights before September 2024)", LEGACY_SECTIONS, said)


def section_scores(sections: Mapping[str, Mapping[str, int]], present: Sequence[str]) -> tuple[Score, ...]:
    """Overall, the sections and the subsets, over the subsets that are present and the sections that have some."""
    weights: dict[str, dict[str, float]] = {}
    for section, counts in sections.items():
        here = {subset: count for subset, count in counts.items() if subset in present}
        if here:
            weights[section] = {subset: count / sum(here.values()) for subset, count in here.items()}
    overall = {subset: share / len(weights) for shares in weights.values() for subset, share in shares.items()}
    return (
        Score("overall", "overall", overall),
        *(Score(section, "section", shares) for section, shares in weights.items()),
        *(mean_of_items(subset, "subset", subset) for subset in overall),
    )


def _load(
    data: Path | None, benchmark: str, title: str, sections: Mapping[str, Mapping[str, int]], *notes: str
) -> Benchmark:
    rows = read_rows(PLACE, data)
    items = read_items(rows, _item)
    groups = {item.group for item in items}
    absent = [subset for subset in _SUBSETS if subset not in groups]
    if absent:
        notes = (*notes, f"Subsets that are absent and in no score: {', '.join(absent)}.")
    scores = section_scores(sections, [subset for subset in _SUBSETS if subset in groups])
    terms = terms_by_group({subset: (subset,) for subset in _SUBSETS})
    return Benchmark(benchmark, title, rows.origin, items, scores, terms, (*notes, *remarks(items)))


def _item(row: Row) -> Item:
    subset = name(row, "subset")
    if subset not in _SUBSETS:
        raise RowProblem("unknown subset", "subset", subset)
    return pair(row, name(row, "id"), subset)
