"""Rows of files (JSON lines, JSON, CSV, Parquet), folders, globs, Hub data sets, tables or a list of dicts.

Every row comes with its place, `file.jsonl:12`. A file that is not what its name says stops the reading also under
`bad_rows="skip"`: past the damage nothing can be trusted to be a row.
"""

from __future__ import annotations

import csv
import glob
import gzip
import importlib
import io
import json
import os
import re
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any, cast

from ebrm.data.config import PreferenceConfig
from ebrm.data.schema import shorten
from ebrm.data.splits import NOT_DATA, file_splits, named_splits, part_of
from ebrm.data.tables import list_rows, open_table
from ebrm.errors import DataError, setting
from ebrm.utils.hub_names import hub_has_data, why_no_hub_name

Row = dict[str, Any]
LocatedRow = tuple[str, Row]  # ("file.jsonl:12", row)
Reader = Callable[[Path, str], Iterator[LocatedRow]]  # (the file, its name in `where`)

_PARQUET_BATCH = 256  # rows in memory at a time; a row may hold megabytes
_DAMAGE = (OSError, EOFError, zlib.error)
_PACKED = (".gz", ".zst")

_HUB_NAME = re.compile(
    r"(?P<name>[A-Za-z0-9][\w.-]*/[\w.-]+)(?::(?P<config>[^@:/\s]+))?(?:@(?P<revision>[^@\s]+))?", re.ASCII
)


@dataclass(frozen=True)
class Source:
    """A recognized source of rows, not yet read.

    Attributes:
        origin: Its name in messages.
        split: The Hub split being read; None for local data.
        parts: Starts reading; yields each file's (or table's) split, None where none is known, and its rows as (where,
            row): `file:N` (line or row, from 1), or `rows[i]`, `dataset[i]` from 0.
        left_out: Files of a folder that are in none of its splits, and are not read.
    """

    origin: str
    split: str | None
    parts: Callable[[], Iterator[tuple[str | None, Iterator[LocatedRow]]]]
    left_out: tuple[str, ...] = ()

    def rows(self) -> Iterator[LocatedRow]:
        """Start reading; the rows of all parts."""
        return (found for _, rows in self.parts() for found in rows)


def read_rows(source: Any, config: PreferenceConfig | None = None) -> Iterator[LocatedRow]:
    """Rows of a source (as of `load_preferences`) one by one, unchecked, each with its place; only JSON is read whole.

    Raises:
        DataError: no such source, or a file that is not what its name says, with the file and line.
    """
    return open_source(source, config).rows()


def open_source(source: Any, config: PreferenceConfig | None = None) -> Source:
    """Recognize a source, without reading it."""
    config = config or PreferenceConfig()
    if isinstance(source, (str, os.PathLike)):
        return _open_named(source, config)
    datasets = sys.modules.get("datasets")  # whoever holds a Dataset has imported it; no one else needs to
    if datasets is not None and isinstance(source, (datasets.DatasetDict, datasets.IterableDatasetDict)):
        return _open_dataset_dict(source, "DatasetDict", config)
    if datasets is not None and isinstance(source, (datasets.Dataset, datasets.IterableDataset)):
        return _local_rows(f"Dataset ({source.info.dataset_name or 'unnamed'})", _dataset(source, "dataset"), config)
    if isinstance(source, (list, tuple)) and source and all(isinstance(one, (str, os.PathLike)) for one in source):
        return _open_several(source, config)
    if (table := open_table(source)) is not None:
        return _local_rows(*table, config)
    if isinstance(source, (list, tuple)):
        return _local_rows(f"list of {len(source):,} rows", lambda: list_rows(source), config)
    raise DataError(
        f"The data are given as {type(source).__name__}; expected a path, a glob, a Hub name "
        "(owner/name[:config][@revision]), a list of these, a datasets.Dataset, a DataFrame or a list of dicts."
    )


def _open_several(names: Sequence[str | os.PathLike[str]], config: PreferenceConfig) -> Source:
    """Several sources one after the other; files alone are read like those that a glob finds."""
    paths = [Path(name).expanduser() for name in names]
    if all(path.is_file() for path in paths):
        root = Path(os.path.commonpath([path.absolute().parent for path in paths]))
        shown = ", ".join(str(os.fspath(name)) for name in names[:3]) + (", …" if len(names) > 3 else "")
        return _open_files(shown, [path.absolute() for path in paths], root, config)
    opened = [_open_named(name, config) for name in names]
    return Source(
        "; ".join(one.origin for one in opened),
        None,
        lambda: ((split or one.split, rows) for one in opened for split, rows in one.parts()),
        tuple(name for one in opened for name in one.left_out),
    )


def _open_named(source: str | os.PathLike[str], config: PreferenceConfig) -> Source:
    name = os.fspath(source)
    try:
        local = _open_local(name, config)
    except OSError as error:
        raise DataError(
            f"{name!r} cannot be looked at: {one_line(error)} Check the path and its permissions."
        ) from error
    if local is not None:
        return local
    absent = f"There is no file or folder {name!r} (looked for {Path(name).expanduser().absolute()})"
    if not isinstance(source, str):
        raise DataError(f"{absent}. Check the path. (A Hub data set is named by a string, not by a Path.)")
    hub = _HUB_NAME.fullmatch(name)
    if hub is None:
        raise DataError(
            f"{absent}, and it does not read as the name of a Hub data set either (owner/name[:config][@revision]). "
            "Check the path or the name."
        )
    why = why_no_hub_name(hub["name"], hub["revision"])
    if why and reader_of(Path(name)) is None:
        raise DataError(f"{absent}, and {why}. Check the path; for the Hub data set of this name write {name}@main.")
    if reader_of(Path(name)) is not None:
        raise DataError(
            f"{absent}. It could also be read as a Hub data set, but its ending says it is a file, so the Hub was not "
            f"tried. Check the path; for a Hub data set of exactly this name write {name}@main."
        )
    return _open_hub(hub, absent, config)


def _open_local(name: str, config: PreferenceConfig) -> Source | None:
    """What `name` is on this disk; None if it is nothing here."""
    if not name:
        raise DataError("The name of the data is empty; expected a path, a glob or a Hub name (owner/name).")
    path = Path(name).expanduser()
    if path.is_dir():
        if (path / "dataset_dict.json").exists() or (path / "state.json").exists():
            return _open_saved_dataset(path, config)
        return _open_files(name, _files_in(path), path, config, whole=True)
    if path.exists():
        return _open_files(name, [path], path.parent, config)
    if not glob.has_magic(name):
        return None
    found = sorted(Path(p) for p in glob.glob(str(path), recursive=True) if os.path.isfile(p))
    if not found:
        raise DataError(f"No file matches the pattern {name!r} (looked from {Path.cwd()}). Check the pattern.")
    return _open_files(name, found, Path(os.path.commonpath([p.parent for p in found])), config)


def _open_hub(hub: re.Match[str], absent: str, config: PreferenceConfig) -> Source:
    import datasets

    name, subset, revision = hub["name"], hub["config"], hub["revision"]
    split = config.split or "train"
    shown = name + (f", config {subset}" if subset else "") + (f", revision {revision}" if revision else "")
    try:
        with nullcontext() if hub_has_data(name, revision) else _offline():
            data = datasets.load_dataset(name, subset, split=split, revision=revision)
    except Exception as error:  # noqa: BLE001 - network, authorization, config and split names: all outside us
        raise DataError(
            f"{absent}, and read as a Hub data set, {shown}, split {split}, it could not be loaded: "
            f"{type(error).__name__}: {one_line(error)} Check the path or the name, choose another `split`, or a "
            "config with owner/name:config."
        ) from error
    return _split_of_set(f"Hub data set {shown}, split {split}", split, data, f"{name} {split}")


@contextmanager
def _offline() -> Iterator[None]:
    """The library looks at its cache alone, and does not ask a Hub that does not answer again and again."""
    import datasets
    import huggingface_hub.constants as constants

    places: tuple[Any, ...] = (datasets.config, constants)
    before = [place.HF_HUB_OFFLINE for place in places]
    for place in places:
        place.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        for place, value in zip(places, before, strict=True):
            place.HF_HUB_OFFLINE = value


def _open_saved_dataset(path: Path, config: PreferenceConfig) -> Source:
    import datasets

    try:
        data = datasets.load_from_disk(str(path))
    except Exception as error:  # noqa: BLE001 - a damaged or foreign folder; the library raises many types
        raise DataError(
            f"The folder {path} looks as if written by Dataset.save_to_disk, but could not be loaded: "
            f"{type(error).__name__}: {one_line(error)}"
        ) from error
    if isinstance(data, datasets.DatasetDict):
        return _open_dataset_dict(data, str(path), config)
    return _local_rows(str(path), _dataset(data, path.name), config)


def _open_dataset_dict(data: Mapping[Any, Any], origin: str, config: PreferenceConfig) -> Source:
    split = config.split or "train"
    if split not in data:
        raise DataError(
            f"{origin} has no split {split!r}; it has {', '.join(map(str, data))}. Set `split` to one of these."
        )
    return _split_of_set(f"{origin}, split {split}", split, data[split], f"dataset {split}")


def _split_of_set(origin: str, split: str, data: Any, label: str) -> Source:
    return Source(origin, split, lambda: iter([(split, _dataset(data, label)())]))


def _open_files(name: str, paths: list[Path], root: Path, config: PreferenceConfig, whole: bool = False) -> Source:
    """Files, with the splits that their names say: of a `whole` folder as `datasets` finds them.

    Files that were named one by one or by a pattern are all read, and their splits matter where they differ: a single
    `test.jsonl` is what the user wants to read.
    """
    readers = [(path, reader) for path in paths if (reader := reader_of(path)) is not None]
    if len(readers) < len(paths):
        other = next(path for path in paths if reader_of(path) is None)
        raise DataError(
            f"{other} is not a kind of file that can be read here: its name must end in {', '.join(READERS)} (text "
            "also in .gz and .zst). Rename it, or name the data files alone."
        )

    names = [_printable(path.relative_to(root).as_posix()) for path, _ in readers]
    found = file_splits(names, _card(root)) if whole else named_splits(names)
    files = [
        (split, partial(reader, path, label))
        for (path, reader), label, split, left_out in zip(readers, names, found.split, found.left_out, strict=True)
        if not left_out
    ]
    shown = _printable(name) + ("" if len(paths) == 1 else f" ({len(files):,} files)")
    if config.split is not None and any(split is not None for split, _ in files):
        files = [(split, rows) for split, rows in files if _is_split(config.split, split)]
        if not files:
            there = ", ".join(dict.fromkeys(split for split in found.split if split is not None))
            raise DataError(f"{shown} has no file of the split {config.split!r}; it has {there}. Set `split` to one.")
        return Source(f"{shown}, split {config.split}", None, lambda: ((split, rows()) for split, rows in files))
    left_out = tuple(label for label, out in zip(names, found.left_out, strict=True) if out)
    return _local(shown, lambda: ((split, rows()) for split, rows in files), config, left_out)


def _card(folder: Path) -> str:
    """The data card of a folder, such as a clone of a Hub data set; "" if there is none."""
    try:
        return (folder / "README.md").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""


def _is_split(wanted: str, split: str | None) -> bool:
    """Whether a file's split is the wanted one, by name or (validation for val) by what both mean."""
    return split is not None and (split == wanted or (part_of(wanted) is not None and split == part_of(wanted)))


def _files_in(folder: Path) -> list[Path]:
    """Data files below a folder, in order of their names; hidden ones and other kinds of file are not data."""
    shown = (p for p in sorted(folder.rglob("*")) if not any(n.startswith(".") for n in p.relative_to(folder).parts))
    found = [path for path in shown if path.is_file() and reader_of(path) is not None and path.name not in NOT_DATA]
    kinds = sorted({kind_of(path) for path in found})
    if not found:
        raise DataError(f"The folder {folder} holds no data file ({', '.join(READERS)}). Check the path.")
    if len(kinds) > 1:
        raise DataError(
            f"The folder {folder} holds several kinds of data file ({', '.join(kinds)}), so it is not clear which are "
            f"meant. Name the files with a glob, such as '{folder}/**/*{kinds[0]}'."
        )
    return found


def _local_rows(origin: str, rows: Callable[[], Iterator[LocatedRow]], config: PreferenceConfig) -> Source:
    return _local(origin, lambda: iter([(None, rows())]), config)


def _local(
    origin: str,
    parts: Callable[[], Iterator[tuple[str | None, Iterator[LocatedRow]]]],
    config: PreferenceConfig,
    left_out: tuple[str, ...] = (),
) -> Source:
    wanted, column = config.split, config.columns.get("split", "split")
    if wanted is None:
        return Source(origin, None, parts, left_out)
    named = f"{origin}, split {wanted}"
    rows = lambda: _only((found for _, rows in parts() for found in rows), column, wanted, origin)  # noqa: E731
    return Source(named, None, lambda: iter([(None, rows())]), left_out)


def _only(rows: Iterable[LocatedRow], column: str, wanted: str, origin: str) -> Iterator[LocatedRow]:
    seen: set[str] = set()
    matched = False
    for where, row in rows:
        if column not in row:
            raise DataError(
                f"Split {wanted!r} of {origin} is wanted, but {where} has no column {column!r} (columns: "
                f"{', '.join(map(str, row)) or 'none'}). Name the column with {setting('columns', {'split': '…'})}, "
                "name the file of that split itself, or leave `split` out to read every row."
            )
        if row[column] == wanted:
            matched = True
            yield where, row
        elif len(seen) < 20:
            seen.add(shorten(row[column]))
    if seen and not matched:
        raise DataError(
            f"No row of {origin} has {wanted!r} in its column {column!r}; it holds {', '.join(sorted(seen))}. "
            "Set `split` to one of these."
        )


def _dataset(data: Any, label: str) -> Callable[[], Iterator[LocatedRow]]:
    # A Dataset may be set to give arrays or tensors; plain Python values are wanted.
    return lambda: ((f"{label}[{i}]", dict(row)) for i, row in enumerate(data.with_format(None)))


def _printable(name: str) -> str:
    """A file name as text that can be written anywhere, though file names may hold any bytes."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def reader_of(path: Path) -> Reader | None:
    """The reader for a file by the ending of its name, or None if there is none."""
    packed = path.name.lower().endswith(_PACKED)
    return None if packed and kind_of(path) == ".parquet" else READERS.get(kind_of(path))


def kind_of(path: Path) -> str:
    """The ending that names a file's format, without `.gz` or `.zst`, in lower case: `.jsonl`."""
    name = path.name.lower()
    return os.path.splitext(os.path.splitext(name)[0] if name.endswith(_PACKED) else name)[1]


def one_line(error: BaseException) -> str:
    """An error's text as one sentence."""
    text = " ".join(str(error).split()) or "no reason given"
    return text if text.endswith((".", "!", "?")) else text + "."


def _jsonl(path: Path, label: str) -> Iterator[LocatedRow]:
    try:
        with _open(path) as handle:
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
        with _open(path) as handle:
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
        reason = f"{error.msg}, at column {error.colno}, near {near!r}."
        line += error.lineno - 1
    else:  # a number of thousands of digits, nesting without end
        reason = one_line(error)
    return DataError(f"{label}:{line} is not JSON that can be read: {reason}{hint} Correct or remove that line.")


def _csv(path: Path, label: str, delimiter: str = ",") -> Iterator[LocatedRow]:
    # The module's limit of 128 kB a field is there for all callers at once; a reply of 1 MB is a fair reply.
    csv.field_size_limit(max(csv.field_size_limit(), 2**31 - 1))
    line = 1
    try:
        with _open(path, "rt", encoding="utf-8-sig", newline="") as handle:
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
                        f"({', '.join(header)}). Correct that line; a field with a comma or line break needs quotes."
                    )
                if values:
                    yield f"{label}:{line}", dict(zip(header, values, strict=True))
                line = reader.line_num + 1
    except csv.Error as error:
        raise DataError(f"{label}:{line} is not CSV: {one_line(error)} Correct that line.") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{label}, near line {line}, is not UTF-8: {one_line(error)} Convert the file.") from error
    except _DAMAGE as error:
        raise _unreadable(path, error) from error


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
    ".jsonl": _jsonl, ".ndjson": _jsonl, ".json": _json, ".csv": _csv, ".tsv": partial(_csv, delimiter="\t"),
    ".parquet": _parquet,
}  # fmt: skip


def _open(path: Path, mode: str = "rb", **text: str) -> IO[Any]:
    name = path.name.lower()
    if name.endswith(".zst"):
        packed = _open_zst(path)
        return packed if mode == "rb" else io.TextIOWrapper(packed, **cast("Any", text))
    opener: Callable[..., Any] = gzip.open if name.endswith(".gz") else open
    return cast("IO[Any]", opener(path, mode, **text))


def _open_zst(path: Path) -> io.BufferedReader:
    """A file packed by Zstandard, unpacked as it is read: by pyarrow, or by the package zstandard."""
    import pyarrow

    if pyarrow.Codec.is_available("zstd"):
        return io.BufferedReader(cast("io.RawIOBase", pyarrow.input_stream(str(path), compression="zstd")))
    try:
        zstandard = importlib.import_module("zstandard")
    except ImportError:
        raise DataError(
            f"{path} is packed by Zstandard, which this pyarrow was built without. Run `pip install zstandard`, or "
            f"unpack it first: `zstd -d {path.name}`."
        ) from None
    packed = open(path, "rb")  # noqa: SIM115 - closed with what reads it
    return io.BufferedReader(zstandard.ZstdDecompressor().stream_reader(packed, read_across_frames=True, closefd=True))


def _decode(data: bytes, where: str, first: bool) -> str:
    try:
        return data.decode("utf-8-sig" if first else "utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{where} is not UTF-8: {one_line(error)} Convert the file to UTF-8.") from error


def _unreadable(path: Path, error: BaseException) -> DataError:
    kind = kind_of(path)
    return DataError(f"{path} cannot be read as {kind}: {type(error).__name__}: {one_line(error)} Is it complete?")
