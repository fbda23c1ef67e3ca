"""RewardMATH: one right solution against nine wrong ones (Kim et al. 2024, arXiv 2410.01729).

A problem is right if its right solution has a higher reward than all wrong ones; a tie is wrong. Overall is the share
of such problems. Upstream also prints that share with a tie at the top counted as right, and the mean reciprocal rank
of the right solution, where wrong solutions with the same reward rank before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy.special import binom

from ebrm.benchmarks import read
from ebrm.benchmarks.benchmark import Benchmark, Floats, Item, Terms, Ties, gold_table, item_success, mean_of_items
from ebrm.benchmarks.read import Place, Row, Rows, read_items, read_rows, remarks
from ebrm.data import RowProblem
from ebrm.metrics import leads, reciprocal_rank

PLACE = Place(
    "RewardMATH",
    (
        ("rewardmath.parquet",),
        ("rewardmath.jsonl",),
        ("dataset/benchmark/RewardMATH_direct.json",),
        ("RewardMATH_direct.json",),
        ("dataset/benchmark/RewardMATH_pairwise.json",),
        ("RewardMATH_pairwise.json",),
    ),
    hub="RewardMATH/RewardMATH",
    splits=("test",),
)

PROBLEMS = 483
WRONG = 9
_TERMS = ("right", "right or tied", "reciprocal rank")


def load(data: Path | None) -> Benchmark:
    """RewardMATH, in rows of three kinds.

    A prompt is the problem, a response the steps of a solution joined by line ends, as upstream gives them to reward
    models that classify. Rows may be one a solution (`problem`, `eval_solution`, `solution_type` chosen or rejected),
    one a pair (`eval_solution_A`, `eval_solution_B`, `chosen_position`), both grouped by `problem_id`, or one a problem
    (`prompt` or `problem`, `chosen`, `rejected` as a list). A clone of kimsh0507/RewardMATH_official has two samples.
    """
    rows = read_rows(PLACE, data)
    problems = _by_problem(rows)
    firsts = Rows(rows.origin, tuple(same[0] for same in problems.values()))
    items = read_items(firsts, lambda row: _item(problems[_key(row)]), "problem_id")
    notes = list(remarks(items))
    if len(items) != PROBLEMS:
        notes.append(f"{len(items):,} problems were read; RewardMATH has {PROBLEMS}.")
    odd = sum(sum(item.gold) != 1 or len(item.gold) != 1 + WRONG for item in items)
    if odd:
        notes.append(f"{odd:,} problems have not one right and {WRONG} wrong solutions.")
    scores = (
        mean_of_items("overall", "overall", "right"),
        mean_of_items("ties as right", "section", "right or tied"),
        mean_of_items("MRR", "section", "reciprocal rank"),
    )
    return Benchmark("rewardmath", "RewardMATH", rows.origin, items, scores, one_to_many_terms, tuple(notes))


def one_to_many_terms(items: Sequence[Item], rewards: Floats, ties: Ties | None = None) -> Terms:
    """Each problem's success, its success with a tie at the top as right, and its reciprocal rank.

    Under "wrong" (official, also None) ties are lost; under "shared" success and reciprocal rank are those with ties
    broken at random, in expectation. The second score stays as it is.
    """
    gold = gold_table(items, rewards)
    success = item_success(rewards, gold, ties or "wrong")
    lead, _ = leads(rewards, gold)
    value = np.stack([success, lead >= 0, expected_reciprocal_rank(rewards, gold, ties or "wrong")])
    every = np.arange(len(items), dtype=np.int64)
    return Terms(_TERMS, np.repeat(np.arange(3), len(items)), np.tile(every, 3), value.ravel())


def expected_reciprocal_rank(rewards: Floats, gold: Floats, ties: Ties = "wrong") -> Floats:
    """1 / rank of the first right response [n], from rewards and gold [n, r], NaN beyond an item's last.

    Under "wrong", wrong responses rank before right ones of the same reward. Under "shared", the a right and b wrong
    responses at the highest right reward are in random order: the first right one has j wrong ones before it with
    probability C(a + b - 1 - j, a - 1) / C(a + b, a).
    """
    if ties == "wrong":
        return reciprocal_rank(rewards, gold)
    right, wrong = gold == 1.0, gold == 0.0
    best = np.where(right, rewards, -np.inf).max(axis=1, initial=-np.inf)[:, None]
    above = (wrong & (rewards > best)).sum(axis=1)
    b = (wrong & (rewards == best)).sum(axis=1)
    a = (right & (rewards == best)).sum(axis=1)
    expected = np.zeros(len(rewards))
    for j in range(int(b.max(initial=0)) + 1):
        chance = binom(a + np.maximum(b - j, 0) - 1, a - 1) / binom(a + b, a)
        expected += np.where(j <= b, chance / (1 + above + j), 0.0)
    return expected


def _by_problem(rows: Rows) -> dict[str, list[Row]]:
    """The rows of every problem; a row with `rejected` is a whole problem."""
    problems: dict[str, list[Row]] = {}
    for row in rows.rows:
        problems.setdefault(_key(row), []).append(row)
    return problems


def _key(row: Row) -> str:
    known = row.values.get("problem_id")
    return row.where if "rejected" in row.values else str(row.values.get("problem") if known is None else known)


def _item(same: Sequence[Row]) -> Item:
    solutions: list[tuple[str, bool]] = []
    problems: dict[str, None] = {}
    for row in same:
        try:
            solutions += _solutions(row)
            problems[read.text(row, _prompt_field(row))] = None
        except RowProblem as problem:
            at = problem.field if row is same[0] else f"{problem.field} of {row.where}"
            raise RowProblem(problem.kind, at, problem.value) from None
    first = same[0]
    if len(problems) > 1:
        raise RowProblem("several problems with one id", "problem", list(problems))
    right = tuple(dict.fromkeys(text for text, is_right in solutions if is_right))  # pairs repeat it
    wrong = tuple(text for text, is_right in solutions if not is_right)
    if not right or not wrong:
        raise RowProblem(f"{len(right)} right and {len(wrong)} wrong solutions", "solution_type", None)
    name = read.name(first, "problem_id", default=read.name(first, "id", default=first.where))
    gold = (1.0,) * len(right) + (0.0,) * len(wrong)
    return Item(name, read.prompt(first, _prompt_field(first)), (*right, *wrong), gold, "", first.where)


def _prompt_field(row: Row) -> str:
    return "prompt" if "prompt" in row.values else "problem"


def _solutions(row: Row) -> list[tuple[str, bool]]:
    """The solutions in one row, each with whether it is right."""
    if "rejected" in row.values:
        return [(_steps(row, "chosen"), True), *((text, False) for text in read.texts(row, "rejected"))]
    if "chosen_position" in row.values:
        position = read.name(row, "chosen_position")
        if position not in ("A", "B"):
            raise RowProblem("neither A nor B", "chosen_position", position)
        return [(_steps(row, f"eval_solution_{side}"), side == position) for side in "AB"]
    kind = read.name(row, "solution_type")
    if kind not in ("chosen", "rejected"):
        raise RowProblem("neither chosen nor rejected", "solution_type", kind)
    return [(_steps(row, "eval_solution"), kind == "chosen")]


def _steps(row: Row, field: str) -> str:
    """A solution as one text; given as a list, its entries are lines."""
    if isinstance(read.value(row, field), str):
        return read.text(row, field)
    return "\n".join(read.texts(row, field))
