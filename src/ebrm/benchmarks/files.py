"""A user's own file as a benchmark: pairs, best-of-n lists, or pools of responses with graded gold."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

from ebrm.benchmarks.benchmark import Benchmark, Item
from ebrm.benchmarks.fields import name, numbers, pair, prompt, text, texts
from ebrm.benchmarks.read import Files, Row, Rows, read_files, read_items, remarks
from ebrm.benchmarks.rules import item_success, mean_of_items, pair_agreement, terms_by_group
from ebrm.data import READERS, Columns, Layout, RowProblem, read_preference, reader_of
from ebrm.errors import DataError

Kind = Literal["pairwise", "best-of-n", "pool"]

SCHEMAS = (
    "pairwise: prompt, chosen, rejected (or any other form that `ebrm fit` reads as preference pairs); "
    "best-of-n: prompt, best, losers (or prompt, chosen and a list rejected); "
    "pool: prompt, responses, gold"
)

_ALL = "all items"


def open_file(path: Path) -> Benchmark:
    """Read a file as a benchmark that is called by the file's stem.

    Which kind it is follows from the columns: `SCHEMAS`. Prompts are strings or messages (also as JSON); lists may be
    JSON strings, as in CSV. Optional columns: `id` (unique; else the row's place), `category` (each gets a subset
    score) and `split` (all rows are used; the notes count them).

    A pair or list is right if the right response has a higher reward than every other. A pool item's success is the
    share of its response pairs with different gold that the rewards order the same way; items whose gold is all equal
    have no such pair and are left out, with their number in the notes. Overall is the mean over all items.

    Args:
        path: .jsonl, .ndjson, .json, .csv, .tsv or .parquet; text also in .gz.

    Raises:
        DataError: not such a file, no columns that make a schema, or rows that cannot be used.
    """
    stem = stem_of(path)
    if reader_of(path) is None:
        raise DataError(f"{path} is not a kind of file that can be read here: expected {', '.join(READERS)}.")
    rows = read_files(Files(path.parent.absolute(), (path.absolute(),)), stem)
    kind, make = _form(rows)
    items = read_items(rows, make)
    notes = [*_splits(rows)]
    if kind == "pool":
        kept = tuple(item for item in items if len(set(item.gold)) > 1)
        if len(kept) < len(items):
            notes.append(
                f"{len(items) - len(kept):,} of {len(items):,} items have equal gold for all responses, so there is no "
                "order to get right: they are left out."
            )
        if not kept:
            raise DataError(f"{rows.origin}: every item has equal gold for all its responses; nothing can be scored.")
        items = kept
    categories = sorted({item.group for item in items} - {""})
    of = {"": (_ALL,)} | {category: (_ALL, _term(category)) for category in categories}
    return Benchmark(
        name=stem,
        title=stem,
        origin=f"{rows.origin} ({kind})",
        items=items,
        scores=(
            mean_of_items("overall", "overall", _ALL),
            *(mean_of_items(_score_name(category), "subset", _term(category)) for category in categories),
        ),
        terms=terms_by_group(of, pair_agreement if kind == "pool" else item_success),
        notes=(*notes, *remarks(items)),
    )


def stem_of(path: Path) -> str:
    """A file's name without its endings: "mine" for mine.jsonl.gz."""
    return Path(path.name.removesuffix(".gz")).stem


def kind_of_columns(row: Mapping[str, Any]) -> Kind | None:
    """Which schema a row's columns (and whether they hold lists) make; None for none."""
    if {"responses", "gold"} <= row.keys():
        return "pool"
    if {"best", "losers"} <= row.keys():
        return "best-of-n"
    if {"prompt", "chosen", "rejected"} <= row.keys() and _strings(row["rejected"]) and not _strings(row["chosen"]):
        return "best-of-n"
    return "pairwise" if Columns({}).layout(row) is not None else None


def _strings(given: Any) -> bool:
    """Whether this is a list that does not hold messages."""
    return isinstance(given, Sequence) and not isinstance(given, str) and not any(isinstance(e, Mapping) for e in given)


def _form(rows: Rows) -> tuple[Kind, Callable[[Row], Item]]:
    first = rows.rows[0].values
    kind = kind_of_columns(first)
    if kind == "pool":
        return kind, _pool_item
    if kind == "best-of-n":
        return kind, partial(_best_item, ("best", "losers") if "best" in first else ("chosen", "rejected"))
    layout = Columns({}).layout(first)
    if kind is None or layout is None:
        raise DataError(
            f"{rows.origin}: the columns of its first row ({', '.join(map(str, first)) or 'none'}) are not those of a "
            f"benchmark. Expected {SCHEMAS}. Rename the columns."
        )
    plain = layout == "explicit" and isinstance(first["chosen"], str) and isinstance(first["rejected"], str)
    return kind, _pair_item if plain else partial(_preference_item, layout)


def _pair_item(row: Row) -> Item:
    return pair(row, _id(row), name(row, "category", default=""))


def _preference_item(layout: Layout, row: Row) -> Item:
    """Messages as sides, a prompt that both sides begin with, or two replies and a label."""
    read, _ = read_preference(row.values, row.where, Columns({}), layout)
    return Item(_id(row), read.prompt, (read.chosen, read.rejected), (1.0, 0.0), read.category or "", row.where)


def _best_item(columns: tuple[str, str], row: Row) -> Item:
    best, losers = text(row, columns[0]), texts(row, columns[1])
    gold = (1.0, *(0.0 for _ in losers))
    return Item(_id(row), prompt(row), (best, *losers), gold, name(row, "category", default=""), row.where)


def _pool_item(row: Row) -> Item:
    responses, gold = texts(row, "responses", least=2), numbers(row, "gold", least=2)
    if len(responses) != len(gold):
        raise RowProblem("not as many as responses", "gold", list(gold))
    return Item(_id(row), prompt(row), responses, gold, name(row, "category", default=""), row.where)


def _id(row: Row) -> str:
    return name(row, "id", default=row.where)


def _splits(rows: Rows) -> list[str]:
    splits = Counter(str(row.values["split"]) for row in rows.rows if row.values.get("split") not in (None, ""))
    if not splits:
        return []
    counts = ", ".join(f"{count:,} {split}" for split, count in sorted(splits.items()))
    return [f"Rows by split: {counts}; all are used." if len(splits) > 1 else f"All rows are of one split: {counts}."]


def _term(category: str) -> str:
    return f"category {category}"


def _score_name(category: str) -> str:
    return f"category {category}" if category == "overall" else category
