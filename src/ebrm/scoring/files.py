"""Files of rows, in and out: JSONL, CSV and Parquet, a chunk at a time, and the record that lets a run go on.

Parquet columns keep their types from file to file; CSV holds text only; JSONL keeps whatever JSON can say.
"""

from __future__ import annotations

import csv
import glob
import io
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from typing import Any

from ebrm.data import read_rows
from ebrm.errors import ConfigError, DataError, setting
from ebrm.utils.files import (
    atomic_path,
    cache_folder,
    changed,
    sha256_file,
    sha256_json,
    write_json,
    write_text,
)
from ebrm.utils.neutral import shorten_line
from ebrm.utils.outputs import tidy
from ebrm.utils.stored import read_json

Row = dict[str, Any]

_KINDS = {".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".parquet": "parquet"}
_LINE_ENDS = {ord(char): f"\\u{ord(char):04x}" for char in "\x85\u2028\u2029"}
# A group of joined Parquet files ends with the part that brings it to so many rows or bytes.
_ROW_GROUP = 32768
_GROUP_BYTES = 128 * 2**20
# What pyarrow raises for values that have no type in Arrow or Parquet: its own errors are of these kinds too.
_NOT_ARROW = (ValueError, TypeError, NotImplementedError, OverflowError)


@dataclass(frozen=True)
class Chunk:
    """Some consecutive rows: the first one's number (from 0), where each stands, and their Arrow form if any."""

    first: int
    rows: list[Row]
    where: list[str]  # "answers.jsonl:12", one a row
    table: Any = None  # pyarrow.Table, for Parquet


def file_kind(path: Path) -> str:
    """Tell "jsonl", "csv" and "parquet" by the name's ending; ConfigError for any other."""
    kind = _KINDS.get(path.suffix.lower())
    if kind is None:
        raise ConfigError(
            f"out is {path}; scored rows are written as .jsonl, .csv or .parquet, and this name ends in "
            f"{path.suffix or 'none of them'}."
        )
    return kind


def read_chunks(path: Path, size: int) -> Iterator[Chunk]:
    """Yield the rows of a file, `size` at a time (the last chunk may be shorter); DataError where it is damaged."""
    if not path.exists():
        raise DataError(f"{path}: there is no such file.")
    if path.is_dir():
        raise DataError(f"{path} is a folder; expected a .jsonl, .csv or .parquet file, or a features folder.")
    if path.suffix.lower() == ".parquet":
        yield from _parquet_chunks(path, size)
        return
    rows = read_rows(path)
    for first in count(0, size):
        chunk = Chunk(first, [], [])
        for where, row in islice(rows, size):
            chunk.rows.append(row)
            chunk.where.append(where)
            del row
        if not chunk.rows:
            return
        yield chunk
        del chunk


def write_part(
    path: Path, kind: str, chunk: Chunk, added: Sequence[Row], columns: Sequence[str], lists: bool = False
) -> None:
    """Write a chunk's rows with the columns of `added` after their own, atomically; `lists`: cells hold lists there.

    Its SHA-256 goes into a file beside it, before it.
    """
    with atomic_path(path) as partial:
        if kind == "parquet":
            import pyarrow.parquet as pq

            pq.write_table(_table(chunk, added, columns, lists), partial)
        elif kind == "csv":
            names = [*columns, *added[0]]
            with open(partial, "w", encoding="utf-8", newline="", errors="surrogatepass") as handle:
                writer = csv.writer(handle, lineterminator="\n")
                for row, more in zip(chunk.rows, added, strict=True):
                    writer.writerow([_csv_cell({**row, **more}.get(name)) for name in names])
        else:
            with open(partial, "wb") as handle:
                for row, more in zip(chunk.rows, added, strict=True):
                    handle.write(_json_line({**row, **more}))
        write_text(_digest_file(path), _digest(path.name, partial))


def write_rows(path: Path, kind: str, rows: Sequence[Row], where: Sequence[str]) -> None:
    """Write all rows of a file at once, atomically; its columns are those of the rows, in order of appearance.

    Args:
        path: the file.
        kind: "jsonl", "csv" or "parquet".
        rows: at least one.
        where: where each was read, for errors.

    Raises:
        DataError: a value that Parquet cannot hold.
    """
    columns = list(dict.fromkeys(name for row in rows for name in row))
    part = path.with_name(f".{path.name}.part")
    try:
        write_part(part, kind, Chunk(0, list(rows), list(where)), [{}] * len(rows), columns)
        join_parts([part], path, kind, columns)
    finally:
        part.unlink(missing_ok=True)
        _digest_file(part).unlink(missing_ok=True)


def drop_damaged(parts: Sequence[Path]) -> list[Path]:
    """Remove the parts that are not what :func:`write_part` wrote, so that they are made again; those removed."""
    damaged = [part for part in parts if part.exists() and not _is_sound(part)]
    for part in damaged:
        part.unlink()
    return damaged


def _digest_file(part: Path) -> Path:
    return part.with_name(part.name + ".sha256")


def _digest(name: str, file: Path) -> str:
    """Of a part's name and its file, so that it stands for no other part's."""
    return sha256_json([name, sha256_file(file)])


def _is_sound(part: Path) -> bool:
    try:
        return _digest_file(part).read_bytes() == _digest(part.name, part).encode()
    except OSError:
        return False


def join_parts(parts: Sequence[Path], out: Path, kind: str, header: Sequence[str]) -> None:
    """Put parts together as `out`, atomically: bytes after bytes, and row groups for Parquet."""
    with atomic_path(out) as partial:
        if kind == "parquet":
            _join_parquet(parts, partial)
            return
        with open(partial, "wb") as handle:
            if kind == "csv":
                handle.write((",".join(map(_quoted, header)) + "\n").encode())
            for part in parts:
                with open(part, "rb") as piece:
                    while block := piece.read(1 << 20):
                        handle.write(block)


class Journal:
    """Finished parts of a long job beside its output, so that a run that was stopped goes on; used under its lock.

    For `scored.jsonl` the folder `.scored.jsonl.progress` holds `job.json` and one file a finished chunk; it goes when
    the output is complete. The user's cache keeps the output's checksum then, by which the same job is known as done.

    Args:
        out: the output.
        job: what decides its bytes.
        shown: the same for people, by name; what an error says of another job's work.
    """

    def __init__(self, out: Path, job: dict[str, Any], shown: Mapping[str, Any] | None = None) -> None:
        self.out, self.job, self.shown = out, job, dict(shown or {})
        self.folder = out.with_name(f".{out.name}.progress")
        self.done = cache_folder() / "scored" / f"{sha256_json(str(out.absolute()))[:32]}.json"
        self.record: dict[str, Any] = {}

    def open(self, overwrite: bool, restart: bool = False) -> bool:
        """Start or take up the job; True if its output is there already, complete and unchanged.

        Args:
            overwrite: replace another output.
            restart: discard unfinished work, of this or another job.

        Raises:
            DataError: there is one or the other, and it is not to go.
        """
        tidy(self.out.parent, glob.escape(self.out.name))  # of runs killed while joining
        tidy(self.done.parent, self.done.name)
        tidy(self.folder)
        stored = _record(self.done, "Scored")
        if stored.pop("sha256", None) != sha256_json(stored):
            stored = {}
        if stored.get("job") == self.job and not overwrite and self._is_whole(stored["finished"]):
            self.record = stored
            # Killed at its very end, or while redoing it.
            if _record(self.folder / "job.json", "ScoreJob").get("job") == self.job:
                shutil.rmtree(self.folder, ignore_errors=True)
            return True
        if self.out.is_dir():
            raise DataError(f"out is {self.out}, a folder. Give the name of a file.")
        begun = _record(self.folder / "job.json", "ScoreJob")
        left = self._parts() and not restart
        same = begun.get("job") == self.job
        if self.out.exists() and not overwrite and not (left and same):  # what was stopped while joining goes on
            why = "was changed since ebrm wrote it" if stored.get("job") == self.job else "exists already"
            raise DataError(
                f"out is {self.out}, which {why}; it was left as it is. Choose another name, or "
                f"{setting('overwrite', True)} to replace it."
            )
        if left and not same:
            raise DataError(
                f"{self.folder} holds unfinished work of other rows or settings ({self._difference(begun)}). Give "
                f"those again to finish it, or {setting('restart', True)} to discard it and begin anew."
            )
        if not left:
            shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.folder / "job.json", {"job": self.job, "shown": self._now()})
        return False

    @contextmanager
    def keeping(self) -> Iterator[None]:
        """Where the body fails before the first part, nothing is left."""
        try:
            yield
        except BaseException:
            if not self._parts():
                shutil.rmtree(self.folder, ignore_errors=True)
            raise

    def part(self, number: int, ending: str) -> Path:
        """Where chunk `number` goes."""
        return self.folder / f"{number:08d}.{ending}"

    def finish(self, summary: dict[str, Any]) -> None:
        """Record the complete output, then let the parts go."""
        finished = {"bytes": self.out.stat().st_size, "sha256": sha256_file(self.out)}
        self.record = {"job": self.job, "finished": finished, "summary": summary}
        with suppress(OSError):  # without a place for it, the same job is refused instead of known as done
            write_json(self.done, self.record | {"sha256": sha256_json(self.record)})
        shutil.rmtree(self.folder, ignore_errors=True)

    def _now(self) -> dict[str, Any]:
        """`shown` as the record gives it back."""
        value: dict[str, Any] = json.loads(json.dumps(self.shown, default=str))
        return value

    def _parts(self) -> bool:
        return any(path.stem.isdigit() for path in self.folder.glob("*.*"))

    def _is_whole(self, finished: dict[str, Any]) -> bool:
        same_size = self.out.is_file() and self.out.stat().st_size == finished["bytes"]
        return same_size and sha256_file(self.out) == finished["sha256"]

    def _difference(self, begun: dict[str, Any]) -> str:
        if not begun:
            return "its record cannot be read"
        found = [
            f"`{name.partition('.')[0]}` was {_said(then)} and is {_said(this)}"
            for name, then, this in changed(begun["shown"], self._now())
        ]
        what = {"input": "the contents of the rows", "model": "the model", "version": "the version of ebrm"}
        names = [words for name, words in what.items() if begun["job"].get(name) != self.job.get(name)]
        return "; ".join(found or [f"{' and '.join(names) or 'a setting'} changed"])


def _record(path: Path, schema: str) -> dict[str, Any]:
    """A record of this schema; {} where there is none, or it cannot be read."""
    try:
        stored: dict[str, Any] = read_json(path, schema, error=DataError, do="")
    except DataError:
        return {}
    return stored


def _said(value: Any) -> str:
    return "unset" if value in (None, "", {}, []) else shorten_line(json.dumps(value, ensure_ascii=False), 200)


def _parquet_chunks(path: Path, size: int) -> Iterator[Chunk]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    first = 0
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=size):
                table = pa.Table.from_batches([batch])
                where = [f"{path.name}:{first + k + 1}" for k in range(table.num_rows)]
                yield Chunk(first, table.to_pylist(), where, table)
                first += table.num_rows
                del batch, table
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}, within {size:,} rows of row {first + 1}, holds text that is not UTF-8 ({error.reason}). Convert "
            "the file."
        ) from None
    except (pa.ArrowException, NotImplementedError, OverflowError) as error:
        if isinstance(error, OSError) and error.errno:
            raise
        raise DataError(f"{path} cannot be read as Parquet: {shorten_line(str(error), 300)}.") from None
    except OSError as error:
        if error.errno:
            raise
        raise DataError(f"{path} is damaged: {str(error).splitlines()[0]}.") from None


class ParquetCheck:
    """Whether rows that are no Arrow table yet can be written as Parquet: their columns have one type each.

    Give it every chunk, in order, and then `again` those that it names.
    """

    def __init__(self, columns: Sequence[str]) -> None:
        self.columns, self._schemas, self._first = tuple(columns), list[Any](), list[str]()

    def add(self, chunk: Chunk) -> None:
        """Raise a DataError for a column whose values in this chunk have no common type."""
        schema = _own_table(chunk, self.columns).schema
        if schema not in self._schemas:
            self._schemas.append(schema)
            self._first.append(chunk.where[0])

    def finish(self, chunks: Callable[[], Iterator[Chunk]]) -> None:
        """Raise a DataError for a column whose values in different chunks have none, or one that Parquet lacks."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        if not self._schemas:
            return
        for name in self.columns:
            fields = [pa.schema([schema.field(name)]) for schema in self._schemas]
            for last in range(1, len(fields) + 1):
                try:
                    merged = pa.unify_schemas(fields[:last], promote_options="permissive")
                    pq.ParquetWriter(io.BytesIO(), merged).close()
                except _NOT_ARROW as error:
                    raise _no_parquet(name, error, f"rows from {self._first[last - 1]}") from None
        if len(self._schemas) == 1:
            return
        schema = pa.unify_schemas(self._schemas, promote_options="permissive")
        for chunk in chunks():  # whole numbers beyond 2**53 beside fractions, say
            table = _own_table(chunk, self.columns)
            for name in self.columns:
                try:
                    table.column(name).cast(schema.field(name).type)
                except _NOT_ARROW as error:
                    raise _no_parquet(name, error, f"rows from {chunk.where[0]}") from None
            del chunk


def _own_table(chunk: Chunk, columns: Sequence[str]) -> Any:
    """The rows' own columns in Arrow; DataError for values that have no common type there."""
    import pyarrow as pa

    arrays = {}
    for name in columns:
        values = [row.get(name) for row in chunk.rows]
        try:
            name.encode()  # it becomes a field's name, which has a UTF-8 form
            arrays[name] = pa.array(values)
        except _NOT_ARROW as error:
            raise _no_parquet(name, error, _first_bad(values, chunk.where)) from None
    return pa.table(arrays)


def _first_bad(values: Sequence[Any], where: Sequence[str]) -> str:
    """The row with which a column can no longer be made."""
    import pyarrow as pa

    good, bad = 0, len(values)
    while bad - good > 1:  # the first `good` can be, the first `bad` cannot
        middle = (good + bad) // 2
        try:
            pa.array(values[:middle])
            good = middle
        except _NOT_ARROW:
            bad = middle
    return where[bad - 1]


def _no_parquet(name: str, error: Exception, where: str) -> DataError:
    why = str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__
    if isinstance(error, OverflowError):
        why = "a whole number that 64 bits do not hold"
    return DataError(
        f"The column {name!r} cannot be written as Parquet ({where}: {why}): a column has one type there. Give "
        "`out` a name ending in .jsonl."
    )


def _table(chunk: Chunk, added: Sequence[Row], columns: Sequence[str], lists: bool) -> Any:
    import pyarrow as pa

    table = chunk.table if chunk.table is not None else _own_table(chunk, columns)
    for name, sample in added[0].items():
        kind = pa.list_(pa.float32()) if lists else pa.float32()
        if name.endswith("error"):
            kind = pa.string()
        elif name.endswith("fitted_on"):
            kind = pa.bool_()
        elif isinstance(sample, int):
            kind = pa.int64()
        table = table.append_column(name, pa.array([row[name] for row in added], kind))
    return table


def _join_parquet(parts: Sequence[Path], out: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    schemas: list[Any] = []
    for part in parts:
        found = pq.read_schema(part)
        if found not in schemas:
            schemas.append(found)
    try:
        schema = pa.unify_schemas(schemas, promote_options="permissive")
        with pq.ParquetWriter(out, schema) as writer:
            held: list[Any] = []
            for k, part in enumerate(parts):
                held.append(pq.read_table(part).cast(schema))
                full = sum(table.num_rows for table in held) >= _ROW_GROUP
                full = full or sum(table.nbytes for table in held) >= _GROUP_BYTES
                if full or k == len(parts) - 1:
                    writer.write_table(pa.concat_tables(held), row_group_size=_ROW_GROUP)
                    held = []
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError) as error:
        raise DataError(
            f"The scored rows cannot be joined in one Parquet file ({str(error).splitlines()[0]}): a column has one "
            "type there, and these rows differ. Give `out` a name ending in .jsonl."
        ) from None


def _json_line(row: Row) -> bytes:
    # Some readers of lines break at these characters too; in JSON they can only stand inside strings.
    text = json.dumps(row, ensure_ascii=False, default=str).translate(_LINE_ENDS) + "\n"
    try:
        return text.encode()
    except UnicodeEncodeError:  # a lone surrogate, which only an escape can carry
        return (json.dumps(row, default=str) + "\n").encode()


def _csv_cell(value: Any) -> Any:
    if isinstance(value, dict | list):
        return json.dumps(value, ensure_ascii=False, default=str)
    return value


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"' if any(c in name for c in ',"\r\n') else name
