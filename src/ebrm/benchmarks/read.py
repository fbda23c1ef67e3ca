"""A benchmark's rows, from prepared files, a clone of its repository or the Hub, and their fields, checked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ebrm.benchmarks.benchmark import Item
from ebrm.data import EXAMPLES, BadRow, RowProblem, count_kinds, one_line, prompt_id, reader_of
from ebrm.errors import DataError

_DEPTH = 2  # folders below the one given that are searched for a benchmark's files


@dataclass(frozen=True)
class Place:
    """Where a benchmark's rows are kept.

    Attributes:
        title: the benchmark as people write it, for messages.
        layouts: in order of preference, each the patterns of its files relative to one folder. A layout is found where
            at least one of its patterns matches.
        repository: what to clone ("owner/name" on GitHub), for messages.
        hub: Hub data set ("owner/name"); None where the benchmark is not on the Hub in a form that can be read.
        splits: of the Hub data set, each "split" or "config/split".
        revision: branch of the Hub data set; its configs are then folders.
    """

    title: str
    layouts: tuple[tuple[str, ...], ...]
    repository: str | None = None
    hub: str | None = None
    splits: tuple[str, ...] = ("test",)
    revision: str | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """One row as read, not yet checked.

    Attributes:
        where: `file.json:12` (line or row, from 1), or `owner/name split[11]` (from 0).
        part: the file it stands in, relative to the folder of the layout, or the Hub split.
        values: its columns.
    """

    where: str
    part: str
    values: Mapping[str, Any]


@dataclass(frozen=True)
class Rows:
    """All rows of a benchmark and, in words, where they were read."""

    origin: str
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Files:
    """The files of a benchmark that were found: paths in order of their names, all below `folder`."""

    folder: Path
    paths: tuple[Path, ...]


def read_rows(place: Place, data: Path | None) -> Rows:
    """Read all rows of a benchmark.

    Args:
        place: where they are kept.
        data: a folder: that of the prepared files or of a clone, one of the two levels above it, or one inside a clone
            (then only the files inside it are read). None: the Hub.

    Raises:
        DataError: nothing found there (what was looked for is named), found in several places, unreadable, or empty.
    """
    if data is None:
        return _read_hub(place)
    found = find_files(place, data)
    if found is None:
        wanted = "; or ".join(", ".join(patterns) for patterns in place.layouts)
        clone = f" Clone https://github.com/{place.repository}, or" if place.repository else ""
        choose = "choose another folder" if place.hub is None else "leave the folder out to load it from the Hub"
        raise DataError(
            f"{place.title}: nothing found in {data.absolute()}. Looked there and {_DEPTH} levels below it for "
            f"{wanted}.{clone or ' Check the path, or'} {choose}."
        )
    return read_files(found, place.title)


def read_files(found: Files, title: str) -> Rows:
    """Read the rows of files that were found."""
    rows = tuple(_file_rows(found))
    names = found.paths[0].name if len(found.paths) == 1 else f"{len(found.paths):,} files"
    origin = f"{names} in {found.folder}"
    if not rows:
        raise DataError(f"{title}: {origin}: there is not a single row. Is the download complete?")
    return Rows(origin, rows)


def find_files(place: Place, data: Path) -> Files | None:
    """The files of a benchmark in or near the folder `data` (see `read_rows`); None if there are none.

    Raises:
        DataError: `data` is not a folder, or holds the benchmark more than once.
    """
    try:
        folder = data.expanduser().resolve()
        if not folder.is_dir():
            kind = "is a file" if folder.exists() else "does not exist"
            raise DataError(f"{place.title}: {data} {kind}; expected the folder that holds the benchmark's files.")
        for patterns in place.layouts:
            for level in _levels(folder, place):
                # One folder may be reached in two ways, by a link.
                found = {base.resolve(): files for base in level if (files := _match(base, patterns, folder))}
                if len(found) > 1:
                    places = ", ".join(map(str, list(found)[:EXAMPLES]))
                    raise DataError(
                        f"{place.title}: {data} holds it {len(found)} times: {places}. Name one of these folders."
                    )
                if found:
                    return next(iter(found.values()))
    except OSError as error:
        raise DataError(
            f"{place.title}: {data} cannot be looked at: {one_line(error)} Check its permissions."
        ) from error
    return None


def _levels(folder: Path, place: Place) -> Iterator[list[Path]]:
    """Folders that a layout may be relative to, nearest first: this one, those above it, those below it."""
    yield [folder]
    longest = max(pattern.count("/") for patterns in place.layouts for pattern in patterns)
    yield from ([parent] for parent in list(folder.parents)[:longest])
    for depth in range(1, _DEPTH + 1):
        yield [below for below in sorted(folder.glob("/".join("*" * depth))) if _visible_folder(below, folder)]


def _visible_folder(path: Path, folder: Path) -> bool:
    return path.is_dir() and not any(part.startswith(".") for part in path.relative_to(folder).parts)


def _match(base: Path, patterns: Sequence[str], folder: Path) -> Files | None:
    paths = {path for pattern in patterns for path in base.glob(pattern) if path.is_file() and reader_of(path)}
    kept = sorted(path for path in paths if path.is_relative_to(folder) and not path.name.startswith("."))
    return Files(base, tuple(kept)) if kept else None


def _file_rows(found: Files) -> Iterator[Row]:
    for path in found.paths:
        reader = reader_of(path)
        if reader is None:
            raise DataError(f"{path} is not a kind of file that can be read here.")
        part = path.relative_to(found.folder).as_posix()
        for where, values in reader(path, part):
            yield Row(where, part, values)


def _read_hub(place: Place) -> Rows:
    if place.hub is None:
        raise DataError(
            f"{place.title} cannot be loaded from the Hub. "
            + (f"Clone https://github.com/{place.repository} and name" if place.repository else "Name")
            + f" the folder that holds {' or '.join(', '.join(patterns) for patterns in place.layouts)}."
        )
    import datasets

    rows: list[Row] = []
    for part in place.splits:
        config, _, split = part.rpartition("/")
        try:
            named = {"name": config or None} if place.revision is None else {"data_dir": config or None}
            data = datasets.load_dataset(place.hub, split=split, revision=place.revision, **named).with_format(None)
            rows += [Row(f"{place.hub} {part}[{number}]", part, dict(row)) for number, row in enumerate(data)]
        except Exception as error:  # noqa: BLE001 - network, authorization, renamed splits: all outside us
            raise DataError(
                f"{place.title} could not be loaded from the Hub (data set {place.hub}, split {part}): "
                f"{type(error).__name__}: {one_line(error)} Without a network, name a folder that holds "
                f"{' or '.join(', '.join(patterns) for patterns in place.layouts)}."
            ) from error
    if not rows:
        raise DataError(f"{place.title}: Hub data set {place.hub} has not a single row in {', '.join(place.splits)}.")
    return Rows(f"Hub data set {place.hub}, {', '.join(place.splits)}", tuple(rows))


# ---- rows to items ------------------------------------------------------------------------------------------------


def read_items(rows: Rows, make: Callable[[Row], Item], id_field: str = "id") -> tuple[Item, ...]:
    """Turn every row into an item and check that ids are unique.

    A benchmark is scored whole, so one bad row stops the reading. Items of the same prompt share a cluster.

    Args:
        rows: as read.
        make: from a row to its item, with the functions of `fields`, which raise RowProblem.
        id_field: the column that the id comes from, for messages.

    Raises:
        DataError: rows that cannot be used, all of them counted by kind and the first five named.
    """
    items: list[Item] = []
    kinds: Counter[str] = Counter()
    examples: list[BadRow] = []
    first: dict[str, str] = {}
    clusters: dict[int, str] = {}
    columns = ""
    for row in rows.rows:
        try:
            item = make(row)
            if item.id in first:
                raise RowProblem(f"repeats the id of {first[item.id]}", id_field, item.id)
        except RowProblem as problem:
            kind = "repeated id" if problem.kind.startswith("repeats the id") else problem.kind
            kinds[kind] += 1
            examples += [problem.at(row.where)] if len(examples) < EXAMPLES else []
            if kind == "no such column":
                columns = columns or ", ".join(map(str, row.values)) or "none"
            continue
        first[item.id] = row.where
        if not item.cluster:
            # Equal prompts given as strings are one object (see `fields.prompt`): most ids are known already.
            known = clusters.get(id(item.prompt)) or prompt_id(item.prompt)
            clusters[id(item.prompt)] = known
            item = replace(item, cluster=known)
        items.append(item)
    if kinds:
        raise DataError(_explain(rows, kinds, examples, columns))
    return tuple(items)


def _explain(rows: Rows, kinds: Counter[str], examples: Sequence[BadRow], columns: str) -> str:
    bad = sum(kinds.values())
    shown = "The first:" if bad > len(examples) else "They are:"
    has = f" The columns there are {columns}." if columns else ""
    return (
        f"{rows.origin}: {bad:,} of {len(rows.rows):,} rows cannot be used ({count_kinds(kinds)}).{has} {shown} (row, "
        f"field: kind, value)"
        + "".join(f"\n  {row}" for row in examples)
        + "\nA benchmark is scored whole: mend these rows."
    )


def remarks(items: Sequence[Item]) -> tuple[str, ...]:
    """Sentences about texts that are usable but odd: empty responses, equal right and wrong ones, empty turns."""
    notes: list[str] = []
    empty = sum(any(not text.strip() for text in item.responses) for item in items)
    if empty:
        notes.append(f"{empty:,} of {len(items):,} items have an empty response; it is scored like any other.")
    equal = sum(_has_equal_texts(item) for item in items)
    if equal:
        notes.append(
            f"{equal:,} of {len(items):,} items have the same text as a better and a worse response: always a tie."
        )
    turns = sum(any(not message["content"].strip() for message in item.prompt) for item in items)
    if turns:
        notes.append(f"{turns:,} of {len(items):,} items have an empty turn in the prompt; it is kept.")
    return tuple(notes)


def _has_equal_texts(item: Item) -> bool:
    return len(set(item.responses)) < len(set(zip(item.responses, item.gold, strict=True)))
