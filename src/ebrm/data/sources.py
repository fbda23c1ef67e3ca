"""Rows out of whatever the user names: files, folders, globs, a Hub data set, a `Dataset`, a list of dicts.

Nothing here knows what a preference is: `read_rows` serves every command that takes rows in.
"""

from __future__ import annotations

import glob
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ebrm.data.config import PreferenceConfig
from ebrm.data.readers import READERS, LocatedRow, kind_of, one_line, reader_of
from ebrm.data.schema import shorten
from ebrm.errors import DataError

_HUB_NAME = re.compile(
    r"(?P<name>[A-Za-z0-9][\w.-]*/[\w.-]+)(?::(?P<config>[^@:/\s]+))?(?:@(?P<revision>[^@\s]+))?", re.ASCII
)


@dataclass(frozen=True)
class Source:
    """Where rows come from, decided but not yet read.

    Attributes:
        origin: The source, said in words.
        split: The Hub split being read; None for local data.
        rows: Starts reading; yields (where, row). `where` is `file:N` with N the line (JSONL, CSV) or the row (JSON,
            Parquet) from 1, or `rows[i]`, `dataset[i]`, `owner/name split[i]` with i from 0.

    """

    origin: str
    split: str | None
    rows: Callable[[], Iterator[LocatedRow]]


def read_rows(source: Any, settings: PreferenceConfig | None = None) -> Iterator[LocatedRow]:
    """Read rows one after another, with where each stands; the rows are not checked or changed.

    JSONL, CSV and Parquet are streamed; a JSON array is read whole. Of the settings only `split` matters here (and
    the name `columns` gives that column).

    Args:
        source: As for `open_source`.
        settings: See `PreferenceConfig`; defaults apply if None.

    Raises:
        DataError: no such source, or a file that is not what its name says, with the file and line.

    """
    return open_source(source, settings).rows()


def open_source(source: Any, settings: PreferenceConfig | None = None) -> Source:
    """Decide what `source` is.

    Args:
        source: A path to a file (.jsonl, .ndjson, .json, .csv, .tsv, .parquet; text also with .gz), a folder (one
            kind of file, searched recursively; or one written by `Dataset.save_to_disk`), a glob, a Hub name
            `owner/name[:config][@revision]`, a `datasets.Dataset`, or a list of dicts. What exists on disk wins over
            a Hub name; a `Path` is never a Hub name.
        settings: `split` picks a Hub split (unset: train) or filters local rows on their `split` column (unset: all).

    Raises:
        DataError: `source` is none of these, or the Hub does not give it.

    """
    settings = settings or PreferenceConfig()
    if isinstance(source, (str, os.PathLike)):
        return _open_named(source, settings)
    datasets = sys.modules.get("datasets")  # whoever holds a Dataset has imported it; no one else needs to
    if datasets is not None and isinstance(source, (datasets.DatasetDict, datasets.IterableDatasetDict)):
        return _open_dataset_dict(source, "DatasetDict", settings)
    if datasets is not None and isinstance(source, (datasets.Dataset, datasets.IterableDataset)):
        return _local(f"Dataset ({source.info.dataset_name or 'unnamed'})", _dataset(source, "dataset"), settings)
    if isinstance(source, (list, tuple)):
        return _local(f"list of {len(source):,} rows", lambda: _list(source), settings)
    raise DataError(
        f"The data are given as {type(source).__name__}; expected a path, a glob, a Hub name "
        "(owner/name[:config][@revision]), a datasets.Dataset or a list of dicts."
    )


# ---- names: disk first, then the Hub ------------------------------------------------------------------------------


def _open_named(source: str | os.PathLike[str], settings: PreferenceConfig) -> Source:
    name = os.fspath(source)
    try:
        local = _open_local(name, settings)
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
    if reader_of(Path(name)) is not None:
        raise DataError(
            f"{absent}. It could also be read as a Hub data set, but its ending says it is a file, so the Hub was not "
            f"asked. Check the path; for a Hub data set of exactly this name write {name}@main."
        )
    return _open_hub(hub, absent, settings)


def _open_local(name: str, settings: PreferenceConfig) -> Source | None:
    """What `name` is on this disk; None if it is nothing here."""
    if not name:
        raise DataError("The name of the data is empty; expected a path, a glob or a Hub name (owner/name).")
    path = Path(name).expanduser()
    if path.is_dir():
        if (path / "dataset_dict.json").exists() or (path / "state.json").exists():
            return _open_saved_dataset(path, settings)
        return _open_files(name, _files_in(path), path, settings)
    if path.exists():
        return _open_files(name, [path], path.parent, settings)
    if not glob.has_magic(name):
        return None
    found = sorted(Path(p) for p in glob.glob(str(path), recursive=True) if os.path.isfile(p))
    if not found:
        raise DataError(f"No file matches the pattern {name!r} (looked from {Path.cwd()}). Check the pattern.")
    return _open_files(name, found, Path(os.path.commonpath([p.parent for p in found])), settings)


def _open_hub(hub: re.Match[str], absent: str, settings: PreferenceConfig) -> Source:
    import datasets

    name, config, revision = hub["name"], hub["config"], hub["revision"]
    split = settings.split or "train"
    said = name + (f", config {config}" if config else "") + (f", revision {revision}" if revision else "")
    try:
        data = datasets.load_dataset(name, config, split=split, revision=revision)
    except Exception as error:  # noqa: BLE001 - network, authorization, config and split names: all outside us
        raise DataError(
            f"{absent}, and read as a Hub data set, {said}, split {split}, it could not be loaded: "
            f"{type(error).__name__}: {one_line(error)} Check the path or the name, choose another split with "
            "`--split`, or a config with owner/name:config."
        ) from error
    return Source(f"Hub data set {said}, split {split}", split, _dataset(data, f"{name} {split}"))


def _open_saved_dataset(path: Path, settings: PreferenceConfig) -> Source:
    import datasets

    try:
        data = datasets.load_from_disk(str(path))
    except Exception as error:  # noqa: BLE001 - a damaged or foreign folder, whatever the library makes of it
        raise DataError(
            f"The folder {path} looks as if written by Dataset.save_to_disk, but could not be loaded: "
            f"{type(error).__name__}: {one_line(error)}"
        ) from error
    if isinstance(data, datasets.DatasetDict):
        return _open_dataset_dict(data, str(path), settings)
    return _local(str(path), _dataset(data, path.name), settings)


def _open_dataset_dict(data: Mapping[Any, Any], said: str, settings: PreferenceConfig) -> Source:
    split = settings.split or "train"
    if split not in data:
        raise DataError(
            f"{said} has no split {split!r}; it has {', '.join(map(str, data))}. Choose one with `--split`."
        )
    return Source(f"{said}, split {split}", split, _dataset(data[split], f"dataset {split}"))


def _open_files(name: str, paths: list[Path], root: Path, settings: PreferenceConfig) -> Source:
    readers = []
    for path in paths:
        reader = reader_of(path)
        if reader is None:
            raise DataError(
                f"{path} is not a kind of file that can be read here: its name must end in {', '.join(READERS)} (text "
                "also in .gz). Rename it, or name the data files alone."
            )
        readers.append((path, reader))

    def rows() -> Iterator[LocatedRow]:
        for path, reader in readers:
            yield from reader(path, _printable(str(path.relative_to(root))))

    files = "" if len(paths) == 1 else f" ({len(paths):,} files)"
    return _local(_printable(name) + files, rows, settings)


def _files_in(folder: Path) -> list[Path]:
    """Data files below a folder, in order of their names; hidden ones and other kinds of file are not data."""
    found = [
        path
        for path in sorted(folder.rglob("*"))
        if path.is_file()
        and reader_of(path) is not None
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]
    kinds = sorted({kind_of(path) for path in found})
    if not found:
        raise DataError(f"The folder {folder} holds no data file ({', '.join(READERS)}). Check the path.")
    if len(kinds) > 1:
        raise DataError(
            f"The folder {folder} holds several kinds of data file ({', '.join(kinds)}), so it is not clear which are "
            f"meant. Name the files with a glob, such as '{folder}/**/*{kinds[0]}'."
        )
    return found


# ---- splits of local data -----------------------------------------------------------------------------------------


def _local(origin: str, rows: Callable[[], Iterator[LocatedRow]], settings: PreferenceConfig) -> Source:
    wanted = settings.split
    if wanted is None:
        return Source(origin, None, rows)
    column = settings.columns.get("split", "split")
    return Source(f"{origin}, split {wanted}", None, lambda: _only(rows(), column, wanted, origin))


def _only(rows: Iterable[LocatedRow], column: str, wanted: str, origin: str) -> Iterator[LocatedRow]:
    seen: set[str] = set()
    matched = False
    for where, row in rows:
        if column not in row:
            raise DataError(
                f"Split {wanted!r} is asked of {origin}, but {where} has no column {column!r} (columns: "
                f"{_listed(row)}). Name the column with `--column split=…`, name the file of that split itself, or "
                "leave `--split` out to read every row."
            )
        if row[column] == wanted:
            matched = True
            yield where, row
        elif len(seen) < 20:
            seen.add(shorten(row[column]))
    if seen and not matched:
        raise DataError(
            f"No row of {origin} has {wanted!r} in its column {column!r}; it holds {', '.join(sorted(seen))}. "
            "Choose one of these with `--split`."
        )


# ---- rows in memory --------------------------------------------------------------------------------------------


def _list(source: Iterable[Any]) -> Iterator[LocatedRow]:
    for i, row in enumerate(source):
        if not isinstance(row, Mapping):
            raise DataError(f"rows[{i}] is {type(row).__name__} {shorten(row)}; every row must be a dict.")
        yield f"rows[{i}]", dict(row)


def _dataset(data: Any, label: str) -> Callable[[], Iterator[LocatedRow]]:
    def rows() -> Iterator[LocatedRow]:
        # A Dataset may be set to give arrays or tensors; plain Python values are wanted.
        for i, row in enumerate(data.with_format(None)):
            yield f"{label}[{i}]", dict(row)

    return rows


def _listed(row: Mapping[str, Any]) -> str:
    return ", ".join(map(str, row)) or "none"


def _printable(name: str) -> str:
    """A file name as text that can be written anywhere, though file names may hold any bytes."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
