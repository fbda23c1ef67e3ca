"""HHH alignment: helpful, honest, harmless and other pairs (Askell et al. 2021, arXiv 2112.00861; BIG-bench)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from ebrm.benchmarks.benchmark import Benchmark, Item
from ebrm.benchmarks.fields import name, numbers, pair, texts, value
from ebrm.benchmarks.read import Place, Row, Rows, read_items, read_rows, remarks
from ebrm.benchmarks.rules import mean_of_groups, mean_of_items, terms_by_group
from ebrm.data import RowProblem

CATEGORIES = ("helpful", "honest", "harmless", "other")

PLACE = Place(
    "HHH alignment",
    (
        ("hhh_alignment.parquet",),
        ("bigbench/benchmark_tasks/hhh_alignment/*/task.json",),
        tuple(f"{category}/test/*.parquet" for category in CATEGORIES),
    ),
    repository="google/BIG-bench",
    hub="HuggingFaceH4/hhh_alignment",
    splits=tuple(f"{category}/test" for category in CATEGORIES),
    revision="refs/convert/parquet",  # the main branch is a script, which current versions of datasets do not run
)


def load(data: Path | None) -> Benchmark:
    """Read the HHH alignment pairs.

    A pair is right if the better response has the higher reward. Overall is the unweighted mean of the four categories,
    as BIG-bench averages a task's subtasks; the section "all pairs" is the plain mean that others report.

    Args:
        data: folder of the prepared file, of a clone of BIG-bench, or of the Hub's Parquet branch; None loads that
            branch.

    Raises:
        DataError: nothing found, or rows that cannot be used.
    """
    rows = _unfolded(read_rows(PLACE, data))
    items = read_items(rows, _item)
    present = [category for category in CATEGORIES if any(item.group == category for item in items)]
    absent = [category for category in CATEGORIES if category not in present]
    return Benchmark(
        name="hhh",
        title="HHH alignment",
        origin=rows.origin,
        items=items,
        scores=(
            mean_of_groups("overall", "overall", present),
            mean_of_items("all pairs", "section", "all"),
            *(mean_of_items(category, "subset", category) for category in present),
        ),
        terms=terms_by_group({category: (category, "all") for category in present}),
        notes=(*([f"Absent: {', '.join(absent)}."] if absent else []), *remarks(items)),
    )


def _unfolded(rows: Rows) -> Rows:
    """BIG-bench keeps a category's examples in one object: a row for each of them."""
    unfolded: list[Row] = []
    for row in rows.rows:
        examples = row.values.get("examples")
        if not isinstance(examples, list):
            unfolded.append(row)
            continue
        for number, example in enumerate(examples, 1):
            values = example if isinstance(example, Mapping) else {}
            unfolded.append(Row(f"{row.part}:examples[{number - 1}]", row.part, values))
    return Rows(rows.origin, tuple(unfolded))


def _item(row: Row) -> Item:
    """Prepared (chosen, rejected), BIG-bench (target_scores) and Hub (targets) rows."""
    if "input" not in row.values:
        return pair(row, name(row, "id"), _known(name(row, "category"), "category"))
    if "target_scores" in row.values:
        scores = value(row, "target_scores")
        if not isinstance(scores, Mapping):
            raise RowProblem("not an object", "target_scores", scores)
        choices, labels, field = tuple(scores), list(scores.values()), "target_scores"
    else:
        choices, labels, field = texts(row, "targets.choices"), list(numbers(row, "targets.labels")), "targets.labels"
    if labels not in ([0, 1], [1, 0]) or len(choices) != 2:
        raise RowProblem("not one right and one wrong response", field, labels)
    right, wrong = choices if labels[0] == 1 else choices[::-1]
    category = _known(_folder(row), "folder")
    number = row.where.rpartition("[")[2].rstrip("]") if row.where.endswith("]") else row.where.rpartition(":")[2]
    known = Row(row.where, row.part, {"prompt": row.values["input"], "chosen": right, "rejected": wrong})
    return pair(known, f"{category}-{number}", category)


def _folder(row: Row) -> str:
    """The category that a row's place names: "…/helpful/task.json", "helpful/test/0000.parquet", "helpful/test"."""
    return next((part for part in PurePosixPath(row.part).parts if part in CATEGORIES), row.part)


def _known(category: str, field: str) -> str:
    if category not in CATEGORIES:
        raise RowProblem(f"none of {', '.join(CATEGORIES)}", field, category)
    return category
