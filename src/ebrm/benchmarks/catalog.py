"""Benchmarks by name, and a user's own file as a benchmark: pairs, best-of-n lists, or pools with graded gold."""

from __future__ import annotations

import difflib
import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from ebrm.benchmarks import pairwise, read, rewardbench, rewardbench2, rewardmath, rm_bench, rmb
from ebrm.benchmarks.benchmark import Benchmark, Item, item_success, mean_of_items, pair_agreement, terms_by_group
from ebrm.benchmarks.read import (
    Files,
    Place,
    Row,
    Rows,
    find_files,
    read_files,
    read_items,
    remarks,
    renamed,
)
from ebrm.data import (
    READERS,
    Layout,
    Reader,
    RowProblem,
    check_columns,
    explain_columns,
    find_layout,
    hash_position,
    reader_of,
)
from ebrm.errors import ConfigError, DataError


@dataclass(frozen=True)
class Entry:
    """A public benchmark: how it is loaded (None: from the Hub) and where its rows are kept."""

    load: Callable[[Path | None], Benchmark]
    place: Place


NAMES: Mapping[str, Entry] = {
    "rmb": Entry(rmb.load, rmb.PLACE),
    "rm-bench": Entry(rm_bench.load, rm_bench.PLACE),
    "judgebench": Entry(pairwise.judgebench, pairwise.JUDGEBENCH),
    "rewardbench": Entry(rewardbench.load, rewardbench.PLACE),
    "rewardbench-legacy": Entry(rewardbench.load_legacy, rewardbench.PLACE),
    "rewardbench2": Entry(rewardbench2.load, rewardbench2.PLACE),
    "llmbar": Entry(pairwise.llmbar, pairwise.LLMBAR),
    "xstest": Entry(pairwise.xstest, pairwise.XSTEST),
    "hhh": Entry(pairwise.hhh, pairwise.HHH),
    "ifbench": Entry(pairwise.ifbench, pairwise.IFBENCH),
    "rewardmath": Entry(rewardmath.load, rewardmath.PLACE),
}

_VARIANTS = ("rewardbench-legacy",)  # the same items as another name, scored otherwise
_TRAINING = "train"  # files whose name begins so are no benchmarks

Kind = Literal["pairwise", "best-of-n", "pool"]

SCHEMAS = (
    "pairwise: prompt, chosen, rejected (or any other form that `ebrm fit` reads as preference pairs); "
    "best-of-n: prompt, best, losers (or prompt, chosen and a list rejected, as RewardBench 2 has them); "
    "pool: prompt, responses, gold"
)

#: Our names for the columns of a file.
FILE_COLUMNS = (
    "prompt", "chosen", "rejected", "a", "b", "label", "best", "losers", "responses", "gold", "id", "category", "split",
)  # fmt: skip
_ALL = "all items"


def open_benchmark(
    name: str,
    data: Path | None = None,
    columns: Mapping[str, str] = MappingProxyType({}),
    label_map: Mapping[str, str] = MappingProxyType({}),
) -> Benchmark:
    """Load a benchmark: one of `NAMES`, the stem of a file in the folder `data`, or a path to a file (`open_file`).

    `data` is a folder of prepared files or of clones; None loads named benchmarks from the Hub. `columns` (our name →
    the file's) and `label_map` (a label's value → a, b or tie) are for files. ConfigError: no such benchmark (the
    nearest name is suggested and all are listed). DataError: it cannot be found or read.
    """
    if name in NAMES:
        return NAMES[name].load(data)
    others = _others(data) if data is not None and data.expanduser().is_dir() else {}
    if name in others:
        return open_file(others[name], columns, label_map)
    path = Path(name).expanduser()
    if path.is_file():
        return open_file(path, columns, label_map)
    if path.is_dir():
        raise DataError(
            f"{name} is a folder. Name one file, or a benchmark ({', '.join(NAMES)}) with this as its data."
        )
    if path.name != name or reader_of(path) is not None:
        raise DataError(f"There is no file {name} (looked for {path.absolute()}). Check the path.")
    known = [*NAMES, *others]
    near = _nearest(name, known)
    meant = f" Did you mean {near}?" if near else ""
    raise ConfigError(
        f"{name!r} is not a benchmark.{meant} There are {', '.join(known)}; or give the path of a file of your own."
    )


def _nearest(name: str, known: Sequence[str]) -> str | None:
    """The known name that is most like this one, whatever its dashes and capitals; None if none is like it."""
    plain = {re.sub(r"[^a-z0-9]", "", other.lower()): other for other in reversed(known)}
    wanted = re.sub(r"[^a-z0-9]", "", name.lower())
    near = difflib.get_close_matches(wanted, plain, n=1)
    begin = [other for other in plain if wanted and (other.startswith(wanted) or wanted.startswith(other))]
    return next((plain[other] for other in (*near, *reversed(begin))), None)


def available(data: Path) -> list[str]:
    """Names of all benchmarks in a folder, in a fixed order: public ones first, then other Parquet files by stem.

    Of names with the same items only the first is given (not rewardbench-legacy). Files whose name begins with "train",
    and those whose columns make no schema (see `SCHEMAS`), are no benchmarks. DataError: `data` is not a folder, or
    holds a benchmark more than once.
    """
    found = [name for name, entry in NAMES.items() if name not in _VARIANTS and find_files(entry.place, data)]
    return [*found, *(name for name, path in _others(data).items() if _is_benchmark(path))]


def _others(data: Path) -> dict[str, Path]:
    """Parquet files in a folder that belong to no public benchmark and are not for training, by stem."""
    patterns = [pattern for entry in NAMES.values() for patterns in entry.place.layouts for pattern in patterns]
    return {
        stem_of(path): path
        for path in sorted(data.expanduser().glob("*.parquet"))
        if not any(path.match(pattern) for pattern in patterns if "/" not in pattern)
        and not path.name.startswith((".", _TRAINING))
        and stem_of(path) not in NAMES
    }


def _is_benchmark(path: Path) -> bool:
    """Whether the columns make a schema, from the file's footer alone."""
    import pyarrow
    import pyarrow.parquet
    import pyarrow.types

    try:
        schema = pyarrow.parquet.read_schema(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path} cannot be read as .parquet: {error}") from error
    lists = (pyarrow.types.is_list, pyarrow.types.is_large_list)
    row = {field.name: [] if any(is_list(field.type) for is_list in lists) else "" for field in schema}
    return kind_of_columns(row) is not None


def sample_prompts(benchmark: Benchmark, prompts: int, seed: int) -> Benchmark:
    """The items of a random sample of prompts (clusters); all are kept if there are no more than `prompts`.

    Which prompts are chosen depends on their content and the seed, not on the order or the number of items, and a
    larger sample contains a smaller one.
    """
    if prompts < 1:
        raise ConfigError(f"prompts is {prompts}, expected 1 or more.")
    clusters = benchmark.clusters()
    distinct = sorted(set(clusters), key=lambda cluster: (hash_position(f"sample {seed}: {cluster}"), cluster))
    if len(distinct) <= prompts:
        return benchmark
    kept = set(distinct[:prompts])
    sample = benchmark.take([number for number, cluster in enumerate(clusters) if cluster in kept])
    note = f"A random sample of {prompts:,} of {len(distinct):,} prompts (seed {seed})."
    return replace(sample, notes=(*benchmark.notes, note))


def open_file(
    path: Path, columns: Mapping[str, str] = MappingProxyType({}), label_map: Mapping[str, str] = MappingProxyType({})
) -> Benchmark:
    """Read a file (.jsonl, .ndjson, .json, .csv, .tsv or .parquet; text also in .gz) as a benchmark called by its stem.

    Which kind it is follows from the columns: `SCHEMAS`, under the names that `columns` (our name → the file's) gives
    them. Prompts are strings or messages (also as JSON), replies strings or assistant messages; lists may be JSON
    strings, as in CSV. Several right replies (a list `chosen`) must all be above all wrong ones. Optional columns:
    `id` (unique; else the row's place), `category` (each gets a subset score) and `split` (all rows are used; the notes
    count them). A pair or list is right if the right response has a higher reward than every other. A pool item's
    success is the share of its response pairs with different gold that the rewards order the same way; items whose gold
    is all equal have no such pair and are left out, as are pairs whose label is a tie, with their number in the notes.
    What the values of a label mean is known of common layouts, else `label_map` says it. Overall is the mean over all
    items.

    Raises:
        DataError: not such a file, no columns that make a schema, labels whose meaning is not known, or rows that
            cannot be used.
        ConfigError: `columns` has a name that is not ours.
    """
    stem = stem_of(path)
    if reader_of(path) is None:
        raise DataError(f"{path} is not a kind of file that can be read here: expected {', '.join(READERS)}.")
    rows = read_files(Files(path.parent.absolute(), (path.absolute(),)), stem)
    if columns:
        check_columns(
            columns, FILE_COLUMNS, list(dict.fromkeys(name for row in rows.rows for name in row.values)), stem
        )
        rows = Rows(rows.origin, tuple(Row(row.where, row.part, _renamed(row.values, columns)) for row in rows.rows))
    notes = _splits(rows)
    kind, make, reader = _form(rows, label_map)
    if reader is not None and reader.labels is not None:
        rows = _decided(rows, reader, notes)
    items = read_items(rows, partial(_under_its_name, columns, make), columns.get("id", "id"))
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
    subsets = (mean_of_items(_score_name(category), "subset", _term(category)) for category in categories)
    scores = (mean_of_items("overall", "overall", _ALL), *subsets)
    terms = terms_by_group(of, pair_agreement if kind == "pool" else item_success)
    return Benchmark(stem, stem, f"{rows.origin} ({kind})", items, scores, terms, (*notes, *remarks(items)))


def stem_of(path: Path) -> str:
    """A file's name without its endings: "mine" for mine.jsonl.gz."""
    return Path(path.name.removesuffix(".gz").removesuffix(".zst")).stem


def kind_of_columns(row: Mapping[str, Any], label_map: Mapping[str, str] = MappingProxyType({})) -> Kind | None:
    """Which schema a row's columns (and whether they hold lists) make; None for none."""
    if {"responses", "gold"} <= row.keys():
        return "pool"
    if {"best", "losers"} <= row.keys():
        return "best-of-n"
    if {"prompt", "chosen", "rejected"} <= row.keys() and _several(row["rejected"]):
        # Of two empty lists nobody knows what they would hold.
        return "best-of-n" if row["rejected"] or isinstance(row["chosen"], str) else "pairwise"
    return "pairwise" if _layout(row, label_map) is not None else None


def _layout(row: Mapping[str, Any], label_map: Mapping[str, str]) -> Layout | None:
    """How a row holds one pair; None if it does not."""
    layout = find_layout(row, {}, label_map)
    return None if layout is None or layout.kind in ("responses", "rated") else layout


def _several(given: Any) -> bool:
    """Whether this is a list of replies (also as JSON): not text, and not the messages of one conversation or reply."""
    if isinstance(given, str) and given.lstrip().startswith("["):
        try:
            given = json.loads(given)
        except (ValueError, RecursionError):
            return False
        # Text may look like JSON; a list of texts or of replies is none.
        return isinstance(given, list) and bool(given) and _several(given)
    if not isinstance(given, Sequence) or isinstance(given, str | bytes):
        return False
    messages = [each for each in given if isinstance(each, Mapping)]
    return not messages or (len(messages) > 1 and all(each.get("role") == "assistant" for each in messages))


def _renamed(values: Mapping[str, Any], columns: Mapping[str, str]) -> dict[str, Any]:
    """The row under our names; with two replies and a label mapped, other columns make no pair."""
    kept = renamed(values, columns)
    if {"a", "b", "label"} & columns.keys():
        kept = {name: cell for name, cell in kept.items() if name not in ("chosen", "rejected") or name in columns}
    return kept


def _under_its_name(columns: Mapping[str, str], make: Callable[[Row], Item], row: Row) -> Item:
    """The item of a row; what is wrong with it is told under the file's own names."""
    try:
        return make(row)
    except RowProblem as problem:
        ours = re.split(r"[.\[]", problem.field, maxsplit=1)[0]
        raise RowProblem(problem.kind, columns.get(ours, ours) + problem.field[len(ours) :], problem.value) from None


def _decided(rows: Rows, reader: Reader, notes: list[str]) -> Rows:
    """The rows whose label prefers one side; DataError for a label whose meaning is not known."""
    kept = tuple(row for row in rows.rows if list(reader.pairs(row.values, row.where)))
    if reader.labels is not None:
        reader.labels.check(rows.origin)
    if not kept:
        raise DataError(f"{rows.origin}: the label of each of the {len(rows.rows):,} rows is a tie; nothing to score.")
    if ties := len(rows.rows) - len(kept):
        notes.append(f"{ties:,} of {len(rows.rows):,} rows are ties by their label, with no right side: left out.")
    return Rows(rows.origin, kept)


def _form(rows: Rows, label_map: Mapping[str, str]) -> tuple[Kind, Callable[[Row], Item], Reader | None]:
    first = rows.rows[0].values
    kind = kind_of_columns(first, label_map)
    alone = kind == "pairwise" and isinstance(first.get("rejected"), list)
    if alone and any(kind_of_columns(row.values, label_map) == "best-of-n" for row in rows.rows):
        kind = "best-of-n"  # the first has a list of one
    if kind == "pool":
        return kind, _pool_item, None
    if kind == "best-of-n":
        return kind, partial(_best_item, ("best", "losers") if "best" in first else ("chosen", "rejected")), None
    layout = _layout(first, label_map)
    if kind is None or layout is None:
        raise DataError(
            f"{rows.origin}: the columns of its first row ({', '.join(map(str, first)) or 'none'}) are not those of a "
            f"benchmark. Expected {SCHEMAS}. {explain_columns(list(first), {}).rpartition('. ')[2]}"
        )
    named = dict(layout.fields) == {name: name for name in ("prompt", "chosen", "rejected")}
    plain = named and isinstance(first["chosen"], str) and isinstance(first["rejected"], str)
    reader = Reader(layout, {})
    return (kind, _pair_item, None) if plain else (kind, partial(_preference_item, reader), reader)


def _pair_item(row: Row) -> Item:
    return read.pair(row, _id(row), _category(row))


def _preference_item(reader: Reader, row: Row) -> Item:
    """Messages as sides, a prompt that both sides begin with, or two replies and a label."""
    pairs = list(reader.pairs(row.values, row.where))
    if len(pairs) != 1:
        name = reader.layout.fields.get("label") or reader.layout.fields.get("rejected", "")
        raise RowProblem("tie" if not pairs else "several pairs in one row", name, row.values.get(name))
    if isinstance(pairs[0], RowProblem):
        raise pairs[0]
    found = pairs[0].preference
    sides = (found.chosen, found.rejected)
    return Item(_id(row), found.prompt, sides, (1.0, 0.0), found.category or "", row.where, tools=found.tools)


def _best_item(columns: tuple[str, str], row: Row) -> Item:
    best, losers = read.replies(row, columns[0], alone=True), read.replies(row, columns[1])
    gold = (1.0,) * len(best) + (0.0,) * len(losers)
    return Item(_id(row), read.prompt(row), (*best, *losers), gold, _category(row), row.where)


def _pool_item(row: Row) -> Item:
    responses, gold = read.replies(row, "responses", least=2), read.numbers(row, "gold", least=2)
    if len(responses) != len(gold):
        raise RowProblem("not as many as responses", "gold", list(gold))
    return Item(_id(row), read.prompt(row), responses, gold, _category(row), row.where)


def _category(row: Row) -> str:
    return read.name(row, "category", default="")


def _id(row: Row) -> str:
    return read.name(row, "id", default=row.where)


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
