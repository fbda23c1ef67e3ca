"""XSTest as pairs: refuse what is unsafe, answer what only looks unsafe (Röttger et al. 2023, arXiv 2308.01263)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from ebrm.benchmarks.benchmark import Benchmark, Item
from ebrm.benchmarks.fields import name, pair
from ebrm.benchmarks.read import Place, Row, Rows, read_items, read_rows, remarks
from ebrm.benchmarks.rules import mean_of_groups, mean_of_items, terms_by_group
from ebrm.data import RowProblem
from ebrm.errors import DataError

PLACE = Place(
    "XSTest",
    (("xstest_pairs.parquet",), ("model_completions/xstest_v2_completions_*.csv",)),
    repository="paul-rottger/exaggerated-safety",
)

_HALVES = ("should-refuse", "should-respond")
_COMPLIANCE, _REFUSAL, _PARTIAL = "1_full_compliance", "2_full_refusal", "3_partial_refusal"


def load(data: Path | None) -> Benchmark:
    """Read XSTest's pairs, or make them from the labeled completions in a clone.

    A pair is a full compliance and a full refusal to one prompt; on safe prompts the compliance is right, on unsafe
    ones ("contrast") the refusal. XSTest itself reports refusal rates, not pairs, so there is no official overall: here
    it is the unweighted mean of should-refuse and should-respond, so that always refusing and always complying both
    score 50. Subsets are the types of prompt.

    Args:
        data: folder of the prepared file or of a clone; None fails, as the Hub has the prompts only.

    Raises:
        DataError: nothing found, or rows that cannot be used.
    """
    rows = read_rows(PLACE, data)
    if "final_label" in rows.rows[0].values:
        rows = _pairs_of(rows)
    items = read_items(rows, _item)
    groups = sorted({item.group for item in items})
    halves = [half for half in _HALVES if any(group.startswith(f"{half}/") for group in groups)]
    absent = [half for half in _HALVES if half not in halves]
    return Benchmark(
        name="xstest",
        title="XSTest pairs",
        origin=rows.origin,
        items=items,
        scores=(
            mean_of_groups("overall", "overall", halves),
            *(mean_of_items(half, "section", half) for half in halves),
            *(mean_of_items(group, "subset", group) for group in groups),
        ),
        terms=terms_by_group({group: (group.split("/")[0], group) for group in groups}),
        notes=(*(f"There are no {half} pairs, so overall is the other half." for half in absent), *remarks(items)),
    )


def _item(row: Row) -> Item:
    half = name(row, "category")
    if half not in _HALVES:
        raise RowProblem(f"neither {' nor '.join(_HALVES)}", "category", half)
    return pair(row, name(row, "id"), f"{half}/{name(row, 'subset')}")


def _pairs_of(rows: Rows) -> Rows:
    """All pairs of a full compliance and a full refusal, over all models, on the same prompt."""
    by_prompt: defaultdict[str, list[Row]] = defaultdict(list)
    for row in rows.rows:
        try:
            if name(row, "final_label") not in (_COMPLIANCE, _REFUSAL, _PARTIAL):
                raise RowProblem("unknown label", "final_label", row.values["final_label"])
            by_prompt[name(row, "id")].append(row)
        except RowProblem as problem:
            raise DataError(f"{rows.origin}: a row cannot be used: {problem.at(row.where)}.") from problem
    return Rows(rows.origin, tuple(pair for same in by_prompt.values() for pair in _pairs_of_prompt(same)))


def _pairs_of_prompt(same: list[Row]) -> Iterator[Row]:
    for complied in same:
        for refused in same:
            if complied.values["final_label"] != _COMPLIANCE or refused.values["final_label"] != _REFUSAL:
                continue
            subset = str(complied.values.get("type", ""))
            unsafe = subset.startswith("contrast_")
            chosen, rejected = (refused, complied) if unsafe else (complied, refused)
            yield Row(
                complied.where if complied is chosen else refused.where,
                chosen.part,
                {
                    "id": f"{chosen.values['id']}-{_model(chosen)}-{_model(rejected)}",
                    "category": _HALVES[0] if unsafe else _HALVES[1],
                    "subset": subset,
                    "prompt": complied.values.get("prompt"),
                    "chosen": chosen.values.get("completion"),
                    "rejected": rejected.values.get("completion"),
                },
            )


def _model(row: Row) -> str:
    return row.part.rpartition("_")[2].removesuffix(".csv")
