"""IFBench: pairs whose rejected response breaks some of the constraints (Peng et al. 2025, arXiv 2502.19328)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ebrm.benchmarks.benchmark import Benchmark, Item
from ebrm.benchmarks.fields import name, pair, value
from ebrm.benchmarks.read import Place, Row, read_items, read_rows, remarks
from ebrm.benchmarks.rules import mean_of_items, terms_by_group
from ebrm.data import RowProblem

PLACE = Place(
    "IFBench",
    (("ifbench.parquet",), ("data/IFBench/data.converted.json",), ("IFBench.json",)),
    repository="THU-KEG/Agentic-Reward-Modeling",
    hub="THU-KEG/IFBench",
    splits=("train",),
)

_LEVELS = ("level-1", "level-2", "level-3")


def load(data: Path | None) -> Benchmark:
    """Read IFBench's pairs.

    A pair is right if the response that keeps the constraints has the higher reward. Overall is the mean over all
    pairs. Subsets are the levels: the rejected response breaks three constraints or more (1), two (2) or one (3, the
    hardest).

    Args:
        data: folder of the prepared file or of a clone (of the repository or of the Hub data set); None loads from the
            Hub.

    Raises:
        DataError: nothing found, or rows that cannot be used.
    """
    rows = read_rows(PLACE, data)
    items = read_items(rows, _item)
    levels = [level for level in _LEVELS if any(item.group == level for item in items)]
    return Benchmark(
        name="ifbench",
        title="IFBench",
        origin=rows.origin,
        items=items,
        scores=(
            mean_of_items("overall", "overall", "all"),
            *(mean_of_items(level, "subset", level) for level in levels),
        ),
        terms=terms_by_group({level: ("all", level) for level in levels}),
        notes=remarks(items),
    )


def _item(row: Row) -> Item:
    """Prepared (chosen, rejected), repository (text_chosen, text_rejected) and Hub (chosen.content) rows."""
    if "text_chosen" in row.values:
        (asked, chosen), (same, rejected) = _split(row, "text_chosen"), _split(row, "text_rejected")
        if asked != same:
            raise RowProblem("prompts differ between the sides", "text_rejected", same)
        level, values = name(row, "domain"), {"prompt": asked, "chosen": chosen, "rejected": rejected}
    elif "instruction" in row.values:
        broken = value(row, "rejected.unsatisfied_constraints")
        if not isinstance(broken, list):
            raise RowProblem("not a list", "rejected.unsatisfied_constraints", broken)
        level = {1: "level-3", 2: "level-2"}.get(len(broken), "level-1")
        contents = {side: value(row, f"{side}.content") for side in ("chosen", "rejected")}
        values = {"prompt": row.values["instruction"], **contents}
    else:
        level, values = name(row, "subset"), dict(row.values)
    if level not in _LEVELS:
        raise RowProblem(f"none of {', '.join(_LEVELS)}", "level", level)
    return pair(Row(row.where, row.part, values), name(row, "id"), level)


def _split(row: Row, field: str) -> tuple[list[object], object]:
    """(the turns of the prompt, the response) of a conversation that ends in the response."""
    turns = value(row, field)
    last = turns[-1] if isinstance(turns, list) and turns else None
    if not isinstance(last, Mapping) or last.get("role") != "assistant":
        raise RowProblem("does not end in an assistant message", field, turns)
    return turns[:-1], last.get("content")
