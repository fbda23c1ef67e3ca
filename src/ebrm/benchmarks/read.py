"""Reading benchmarks: rows of prepared files, a clone of the repository or the Hub, their fields, and items."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from ebrm.benchmarks.benchmark import Item
from ebrm.data import (
    EXAMPLES,
    BadRow,
    Message,
    RowProblem,
    check_encodable,
    check_messages,
    check_prompt,
    count_kinds,
    one_line,
    reader_of,
    reply_key,
)
from ebrm.errors import DataError

_DEPTH = 2  # folders below the one given that are searched for a benchmark's files
_PROMPTS = 4096  # parsed prompts kept: the same prompt often stands in many rows
_LOOKS_LIKE_MESSAGES = re.compile(r'\s*\[\s*\{\s*"(role|content)"\s*:')


@dataclass(frozen=True)
class Place:
    """Where a benchmark's rows are kept.

    Attributes:
        title: the benchmark as people write it, for messages.
        layouts: in order of preference, each the patterns of its files relative to one folder; one match is enough.
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
    """Read all rows of a benchmark from a folder, or from the Hub (None).

    The folder is that of the prepared files or of a clone, one of the two levels above it, or one inside a clone (then
    only the files inside it are read). DataError: nothing found there (what was looked for is named), found in several
    places, unreadable, or empty.
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
    """The files of a benchmark in or near the folder `data` (see `read_rows`); None if there are none."""
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


def renamed(values: Mapping[str, Any], columns: Mapping[str, str]) -> dict[str, Any]:
    """A row under our names; columns that are mapped to others lose their own, those of the same name theirs."""
    kept = {name: cell for name, cell in values.items() if name not in columns and name not in columns.values()}
    return {ours: values[theirs] for ours, theirs in columns.items() if theirs in values} | kept


# ---- fields of a row ----------------------------------------------------------------------------------------------


def value(row: Row, field: str) -> Any:
    """The value in a column; a dot steps into an object (`chosen.answer`). RowProblem: no such column, or null."""
    at: Any = row.values
    for name in field.split("."):
        if not isinstance(at, Mapping) or name not in at:
            raise RowProblem("no such column", field, None)
        at = at[name]
    if at is None:
        raise RowProblem("missing", field, None)
    return at


def text(row: Row, field: str) -> str:
    """A string; it may be empty, as some responses of public benchmarks are."""
    return _text(value(row, field), field)


def replies(row: Row, field: str, least: int = 1, alone: bool = False) -> tuple[str, ...]:
    """A list of `least` or more replies (also as JSON), each text, an assistant message, or a list that holds one.

    A reply that stands `alone` is a list of one.
    """
    given = value(row, field)
    if alone and (isinstance(given, Mapping) or (isinstance(given, str) and not given.lstrip().startswith("["))):
        given = [given]
    entries = _list(given, field, least)
    return tuple(_reply(entry, f"{field}[{number}]") for number, entry in enumerate(entries))


def _reply(given: Any, field: str) -> str:
    if isinstance(given, Sequence) and not isinstance(given, str | bytes):
        if len(given) != 1:
            raise RowProblem("not a reply of one message", field, given)
        given = given[0]
    if not isinstance(given, Mapping):
        return _text(given, field)
    if given.get("role") != "assistant":
        raise RowProblem("reply is not an assistant message", field, given)
    return _text(given.get("content"), f"{field}.content")


def texts(row: Row, field: str, least: int = 1, key: str | None = None) -> tuple[str, ...]:
    """A list of `least` or more strings (also as JSON, as CSV holds one), or of objects whose `key` is a string."""
    entries = _list(value(row, field), field, least)
    if key is None:
        return tuple(_text(entry, f"{field}[{number}]") for number, entry in enumerate(entries))
    return tuple(
        text(Row(row.where, row.part, {f"{field}[{number}]": entry}), f"{field}[{number}].{key}")
        for number, entry in enumerate(entries)
    )


def numbers(row: Row, field: str, least: int = 1) -> tuple[float, ...]:
    """A list of finite numbers (also as JSON)."""
    entries = _list(value(row, field), field, least)
    return tuple(_number(entry, f"{field}[{number}]") for number, entry in enumerate(entries))


def name(row: Row, field: str, default: str | None = None) -> str:
    """An id, a category or a split: a string that is not blank, or a whole number; `default` where there is none."""
    given = row.values.get(field) if default is not None else value(row, field)
    if default is not None and (given is None or given == ""):
        return default
    if isinstance(given, int) and not isinstance(given, bool):
        return str(given)
    said = _text(given, field)
    if not said.strip():
        raise RowProblem("empty", field, said)
    return said


def prompt(row: Row, field: str = "prompt") -> tuple[Message, ...]:
    """A conversation that asks for a reply: messages, messages as JSON, or a string, which means one user turn.

    All turns are kept, empty ones too, if one of the user's says something.
    """
    given = value(row, field)
    return _prompt_of_string(given, field) if isinstance(given, str) else _conversation(given, field)


def pair(row: Row, item_id: str, group: str, columns: tuple[str, str, str] = ("prompt", "chosen", "rejected")) -> Item:
    """An item of a right and a wrong response, from the `columns` of prompt, right and wrong response."""
    asked, right, wrong = columns
    return Item(item_id, prompt(row, asked), (text(row, right), text(row, wrong)), (1.0, 0.0), group, row.where)


@lru_cache(maxsize=_PROMPTS)
def _prompt_of_string(given: str, field: str) -> tuple[Message, ...]:
    if not _LOOKS_LIKE_MESSAGES.match(given):
        return _conversation([{"role": "user", "content": given}], field)
    try:
        return _conversation(json.loads(given), field)
    except (ValueError, RecursionError) as error:
        if isinstance(error, RowProblem):
            raise
        raise RowProblem("messages that are not JSON", field, given) from None


def _conversation(given: Any, field: str) -> tuple[Message, ...]:
    if not isinstance(given, Sequence) or isinstance(given, (str, bytes)):
        raise RowProblem("not a string or a list of messages", field, given)
    messages = check_messages(given, field, strict=False) if given else []
    for number, message in enumerate(messages):
        check_encodable(message["content"], f"{field}[{number}].content")
    if not any(message["role"] == "user" and message["content"].strip() for message in messages):
        raise RowProblem("empty", field, given)
    return check_prompt(messages, field)


def _text(given: Any, field: str) -> str:
    if given is None:
        raise RowProblem("missing", field, None)
    if not isinstance(given, str):
        raise RowProblem("not a string", field, given)
    return check_encodable(given, field)


def _list(given: Any, field: str, least: int) -> Sequence[Any]:
    if isinstance(given, str):
        try:
            given = json.loads(given)
        except (ValueError, RecursionError):
            raise RowProblem("not a list", field, given) from None
    if not isinstance(given, Sequence) or isinstance(given, (str, bytes)):
        raise RowProblem("not a list", field, given)
    if len(given) < least:
        kind = "empty list" if not given else f"a list of {len(given)}, expected at least {least}"
        raise RowProblem(kind, field, list(given))
    return given


def _number(given: Any, field: str) -> float:
    if isinstance(given, bool) or not isinstance(given, (int, float)):
        raise RowProblem("not a number", field, given)
    if not math.isfinite(given):
        raise RowProblem("not a finite number", field, given)
    return float(given)


# ---- rows to items ------------------------------------------------------------------------------------------------


def read_items(rows: Rows, make: Callable[[Row], Item], id_field: str = "id") -> tuple[Item, ...]:
    """Turn every row into an item (`make` raises RowProblem) and check that ids are unique (`id_field`: their column).

    Items of the same prompt share a cluster. A benchmark is scored whole, so one bad row is a DataError, which counts
    all of them by kind and names the first five.
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
            # Equal prompts given as strings are one object (see `prompt`): most ids are known already.
            known = clusters.get(id(item.prompt)) or item.prompt_id
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
    keys = [[reply_key(reply) for reply in item.responses] for item in items]
    empty = sum(any(not key.strip() for key in of_item) for of_item in keys)
    equal = sum(len(set(k)) < len(set(zip(k, item.gold, strict=True))) for k, item in zip(keys, items, strict=True))
    turns = sum(any(not message["content"].strip() for message in item.prompt) for item in items)
    found = (
        (empty, "an empty response; it is scored like any other"),
        (equal, "the same text as a better and a worse response: always a tie"),
        (turns, "an empty turn in the prompt; it is kept"),
    )
    return tuple(f"{count:,} of {len(items):,} items have {what}." for count, what in found if count)
