"""Rows out of one file: JSON lines, JSON, CSV and Parquet, each row with where it stands.

A file that is not what its name says stops the reading whatever is done about bad rows: past the damage nothing can be
trusted to be a row.
"""

from __future__ import annotations

import csv
import gzip
import json
import os
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, TextIO, cast

from ebrm.data.schema import shorten
from ebrm.errors import DataError

Row = dict[str, Any]
LocatedRow = tuple[str, Row]  # ("file.jsonl:12", row)
Reader = Callable[[Path, str], Iterator[LocatedRow]]  # (the file, its name in `where`)

_PARQUET_BATCH = 256  # rows in memory at a time; a row may hold megabytes
_DAMAGE = (OSError, EOFError, zlib.error)


def reader_of(path: Path) -> Reader | None:
    """The reader for a file by the ending of its name, or None if there is none."""
    if path.name.lower().endswith(".parquet.gz"):
        return None
    return READERS.get(kind_of(path))


def kind_of(path: Path) -> str:
    """The ending that says what a file holds, without `.gz`, in lower case: `.jsonl`."""
    return os.path.splitext(path.name.lower().removesuffix(".gz"))[1]


def one_line(error: BaseException) -> str:
    """An error's text as one sentence."""
    text = " ".join(str(error).split()) or "no reason given"
    return text if text.endswith((".", "!", "?")) else text + "."


def _jsonl(path: Path, label: str) -> Iterator[LocatedRow]:
    try:
        with _open_bytes(path) as handle:
            yield from _json_lines(handle, label)
    except _DAMAGE as error:
        raise _unreadable(path, error) from error


def _json_lines(lines: Iterable[bytes], label: str) -> Iterator[LocatedRow]:
    # Bytes, because a line ends at \n and nowhere else: text may hold U+2028 and its kin.
    for number, line in enumerate(lines, 1):
        text = _decode(line, f"{label}:{number}", first=number == 1).strip()
        if not text:
            continue
        hint = " If the file is one JSON array or object, name it .json." if text[0] == "[" or text == "{" else ""
        try:
            row = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise _not_json(error, text, label, number, hint) from error
        if not isinstance(row, dict):
            raise DataError(
                f"{label}:{number} holds {type(row).__name__} {shorten(row)}; every line must be one JSON object.{hint}"
            )
        yield f"{label}:{number}", row


def _json(path: Path, label: str) -> Iterator[LocatedRow]:
    """An array of objects, one object, or (as many files named .json are) one object a line."""
    try:
        with _open_bytes(path) as handle:
            data = handle.read()
    except _DAMAGE as error:
        raise _unreadable(path, error) from error
    text = _decode(data, label, first=True)
    if not text.strip():
        return
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        if isinstance(error, json.JSONDecodeError) and error.msg == "Extra data":
            yield from _json_lines(data.split(b"\n"), label)
            return
        raise _not_json(error, text, label, 1) from error
    for number, row in enumerate(value if isinstance(value, list) else [value], 1):
        if not isinstance(row, dict):
            raise DataError(
                f"{label}: element {number} is {type(row).__name__} {shorten(row)}; the file must hold an array of "
                "JSON objects."
            )
        yield f"{label}:{number}", row


def _not_json(error: BaseException, text: str, label: str, line: int, hint: str = "") -> DataError:
    if isinstance(error, json.JSONDecodeError):
        at = error.colno - 1
        near = text.split("\n")[error.lineno - 1][max(at - 30, 0) : at + 30]
        said = f"{error.msg}, at column {error.colno}, near {near!r}."
        line += error.lineno - 1
    else:  # a number of thousands of digits, nesting without end
        said = one_line(error)
    return DataError(f"{label}:{line} is not JSON that can be read: {said}{hint} Mend or remove that line.")


def _csv(path: Path, label: str, delimiter: str = ",") -> Iterator[LocatedRow]:
    # The module's limit of 128 kB a field is there for all callers at once; a reply of 1 MB is a fair reply.
    csv.field_size_limit(max(csv.field_size_limit(), 2**31 - 1))
    line = 1
    try:
        with _open_text(path) as handle:
            reader = csv.reader(handle, delimiter=delimiter, strict=True)
            header = next(reader, None)
            if header is None:
                return
            if len(set(header)) < len(header):
                raise DataError(f"{label}:1 names a column twice: {', '.join(header)}. Column names must differ.")
            line = reader.line_num + 1
            for values in reader:
                if values and len(values) != len(header):
                    raise DataError(
                        f"{label}:{line} has {len(values)} fields, the header has {len(header)} "
                        f"({', '.join(header)}). Mend that line; a field with a comma or line break needs quotes."
                    )
                if values:
                    yield f"{label}:{line}", dict(zip(header, values, strict=True))
                line = reader.line_num + 1
    except csv.Error as error:
        raise DataError(f"{label}:{line} is not CSV: {one_line(error)} Mend that line.") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{label}, near line {line}, is not UTF-8: {one_line(error)} Convert the file.") from error
    except _DAMAGE as error:
        raise _unreadable(path, error) from error


def _tsv(path: Path, label: str) -> Iterator[LocatedRow]:
    return _csv(path, label, delimiter="\t")


def _parquet(path: Path, label: str) -> Iterator[LocatedRow]:
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=_PARQUET_BATCH):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{label}:{number}", row
    except UnicodeDecodeError as error:
        raise DataError(
            f"{label}, within {_PARQUET_BATCH} rows of row {number + 1}, holds text that is not UTF-8: "
            f"{one_line(error)} Convert the file."
        ) from error
    except (pyarrow.ArrowException, *_DAMAGE) as error:
        raise _unreadable(path, error) from error


READERS: dict[str, Callable[[Path, str], Iterator[LocatedRow]]] = {
    ".jsonl": _jsonl,
    ".ndjson": _jsonl,
    ".json": _json,
    ".csv": _csv,
    ".tsv": _tsv,
    ".parquet": _parquet,
}


def _open_bytes(path: Path) -> BinaryIO:
    if path.name.lower().endswith(".gz"):
        return cast(BinaryIO, gzip.open(path, "rb"))
    return open(path, "rb")


def _open_text(path: Path) -> TextIO:
    if path.name.lower().endswith(".gz"):
        return cast(TextIO, gzip.open(path, "rt", encoding="utf-8-sig", newline=""))
    return open(path, encoding="utf-8-sig", newline="")


def _decode(data: bytes, where: str, first: bool) -> str:
    try:
        return data.decode("utf-8-sig" if first else "utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{where} is not UTF-8: {one_line(error)} Convert the file to UTF-8.") from error


def _unreadable(path: Path, error: BaseException) -> DataError:
    kind = kind_of(path)
    return DataError(f"{path} cannot be read as {kind}: {type(error).__name__}: {one_line(error)} Is it complete?")
