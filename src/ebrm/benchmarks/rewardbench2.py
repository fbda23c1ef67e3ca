"""RewardBench 2: best of four, and Ties (Malik et al. 2025, arXiv 2506.01937).

In five subsets one response of four is right. If it has the highest reward, alone or with k others, the item is worth
1 / (k + 1), else 0; a subset is the mean of its items.

In Ties, questions with several right answers (`tied:N`) stand beside one with a single right answer (`ref:N`): the
formula of `ebrm.metrics.ties_score`, whose last three terms are means over the N that have both. It goes from -0.01 to
1.01. (The package `rewardbench` up to 0.1.4 skips pairs without spread in the last term.)

Overall is the unweighted mean of the six subsets.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ebrm.benchmarks import read
from ebrm.benchmarks.benchmark import Benchmark, Floats, Item, Score, Terms, Ties, gold_table, item_success
from ebrm.benchmarks.read import Place, Row, read_items, read_rows, remarks
from ebrm.data import RowProblem
from ebrm.metrics import leads, ties_comparisons

PLACE = Place(
    "RewardBench 2",
    (
        ("rewardbench2.parquet",),
        ("rewardbench2.jsonl",),
        ("reward-bench-2/data/test-*.parquet",),
        ("reward-bench-2/test-*.parquet",),
    ),
    hub="allenai/reward-bench-2",
    splits=("test",),
)

BEST_OF_FOUR = ("Factuality", "Precise IF", "Math", "Safety", "Focus")
TIES = "Ties"
_SUBSETS = {subset.casefold(): subset for subset in (*BEST_OF_FOUR, TIES)}

#: The terms of Ties and their weights.
TIES_WEIGHTS = {
    "Ties: tied right": 0.30,
    "Ties: ref right": 0.30,
    "Ties: lead > spread": 0.20,
    "Ties: both leads > spread": 0.20,
    "Ties: margin": 0.01,
}
_TERMS = (*BEST_OF_FOUR, *TIES_WEIGHTS)
_TIES_ID = re.compile(r"(ref|tied):(\d+)", re.ASCII)


def load(data: Path | None) -> Benchmark:
    """RewardBench 2. Ids are the data set's with the subset before them; `ref:N` and `tied:N` share a cluster."""
    rows = read_rows(PLACE, data)
    items = read_items(rows, _item)
    groups = {item.group for item in items}
    present = [subset for subset in _SUBSETS.values() if subset in groups]
    notes = (*remarks(items), *_notes(items, present))
    scores, terms = _scores(present), ties_and_best_of_four
    return Benchmark("rewardbench2", "RewardBench 2", rows.origin, items, scores, terms, notes)


def ties_and_best_of_four(items: Sequence[Item], rewards: Floats, ties: Ties | None = None) -> Terms:
    """The values behind the scores of RewardBench 2 for rewards [n, r], by the rule at the top of this module.

    `ties` is between right and wrong responses. None is the official rule: "shared" in the best-of-four subsets,
    "wrong" in Ties. What Ties says of leads and spreads does not depend on it.
    """
    gold = gold_table(items, rewards)
    value = np.empty(len(items))
    in_ties = np.array([item.group == TIES for item in items], dtype=bool)
    value[~in_ties] = item_success(rewards[~in_ties], gold[~in_ties], ties or "shared")
    value[in_ties] = item_success(rewards[in_ties], gold[in_ties], ties or "wrong")
    names = [item.group if item.group != TIES else f"Ties: {_kind(item)} right" for item in items]
    term = [np.array([_TERMS.index(name) for name in names], dtype=np.int64)]
    index = [np.arange(len(items), dtype=np.int64)]
    values = [value]
    tied, ref = _pairs(items)
    lead, spread = leads(rewards, gold)
    compared = ties_comparisons(lead[tied], spread[tied], lead[ref])
    for name, of_pair in zip(list(TIES_WEIGHTS)[2:], compared, strict=True):
        term.append(np.full(len(tied), _TERMS.index(name), dtype=np.int64))
        index.append(tied)
        values.append(of_pair.astype(np.float64))
    return Terms(_TERMS, np.concatenate(term), np.concatenate(index), np.concatenate(values))


def _scores(present: Sequence[str]) -> tuple[Score, ...]:
    of = {subset: dict(TIES_WEIGHTS) if subset == TIES else {subset: 1.0} for subset in present}
    overall = {term: weight / len(present) for weights in of.values() for term, weight in weights.items()}
    return (Score("overall", "overall", overall), *(Score(subset, "subset", weights) for subset, weights in of.items()))


def _notes(items: Sequence[Item], present: Sequence[str]) -> list[str]:
    notes = []
    absent = [subset for subset in _SUBSETS.values() if subset not in present]
    if absent:
        notes.append(f"Subsets that are absent and not in the overall score: {', '.join(absent)}.")
    alone = sum(item.group == TIES for item in items) - 2 * len(_pairs(items)[0])
    if alone:
        notes.append(f"{alone:,} questions of Ties lack their partner (ref:N, tied:N) and are in its accuracies only.")
    if TIES in present:
        notes.append("Ties goes from -0.01 to 1.01, so overall can pass 1 a little.")
    return notes


def _kind(item: Item) -> str:
    """`ref` or `tied`."""
    return item.id.removeprefix(f"{TIES}/").partition(":")[0]


def _pairs(items: Sequence[Item]) -> tuple[np.ndarray, np.ndarray]:
    """Places of the `tied` and `ref` items that belong together, [p] each."""
    place = {item.id: number for number, item in enumerate(items) if item.group == TIES}
    pairs = [
        (number, place[partner])
        for name, number in place.items()
        if name.startswith(f"{TIES}/tied:") and (partner := name.replace("tied:", "ref:")) in place
    ]
    both = np.array(pairs, dtype=np.int64).reshape(-1, 2)
    return both[:, 0], both[:, 1]


def _item(row: Row) -> Item:
    given = read.name(row, "subset")
    subset = _SUBSETS.get(given.casefold())
    if subset is None:
        raise RowProblem("unknown subset", "subset", given)
    name = read.name(row, "id")
    chosen, rejected = read.texts(row, "chosen"), read.texts(row, "rejected")
    completions = _count(row, "total_completions", len(chosen) + len(rejected))
    if completions != len(chosen) + len(rejected):
        raise RowProblem("not the number of chosen and rejected", "total_completions", completions)
    right = len(chosen)
    cluster = ""
    if subset == TIES:
        match = _TIES_ID.fullmatch(name)
        if match is None:
            raise RowProblem("not ref:N or tied:N", "id", name)
        # Where the two differ, the number decides which completions count as right, as in the official code.
        right = _count(row, "num_correct", len(chosen))
        least = 2 if match[1] == "tied" else 1
        if not least <= right < completions:
            raise RowProblem(f"expected {least} or more right and 1 or more wrong", "num_correct", right)
        name = f"{match[1]}:{int(match[2])}"
        cluster = f"{TIES}:{int(match[2])}"
    elif len(chosen) != 1:
        raise RowProblem("expected exactly one", "chosen", chosen)
    gold = (1.0,) * right + (0.0,) * (completions - right)
    return Item(f"{subset}/{name}", read.prompt(row), (*chosen, *rejected), gold, subset, row.where, cluster)


def _count(row: Row, field: str, default: int) -> int:
    """A whole number in an optional column."""
    given = row.values.get(field)
    if given is None:
        return default
    if isinstance(given, bool) or not isinstance(given, int):
        raise RowProblem("not a whole number", field, given)
    return given
