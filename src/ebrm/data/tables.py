"""Rows of tables in memory: pandas, Arrow and polars tables, NumPy records, and lists of dicts."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from ebrm.data.schema import shorten
from ebrm.errors import DataError

LocatedRow = tuple[str, dict[str, Any]]


def open_table(source: Any) -> tuple[str, Callable[[], Iterator[LocatedRow]]] | None:
    """A table's name in messages, and what starts reading its rows; None for what is no table.

    Whoever holds a table has imported its library; no one else needs to.
    """
    pandas, arrow, polars, numpy = (sys.modules.get(name) for name in ("pandas", "pyarrow", "polars", "numpy"))
    if pandas is not None and isinstance(source, pandas.DataFrame):
        names = [str(name) for name in source.columns]
        if len(set(names)) < len(names):
            raise DataError(f"The DataFrame names a column twice: {', '.join(names)}. Column names must differ.")
        return f"DataFrame of {len(source):,} rows", lambda: _frame_rows(source, names, pandas)
    if arrow is not None and isinstance(source, arrow.Table):
        return f"Arrow table of {len(source):,} rows", lambda: _located("rows", _arrow_rows(source))
    if polars is not None and isinstance(source, polars.DataFrame):
        return f"polars table of {len(source):,} rows", lambda: _located("rows", source.iter_rows(named=True))
    if numpy is not None and isinstance(source, numpy.ndarray):
        if source.ndim != 1 or (source.dtype.names is None and source.dtype != object):
            raise DataError(
                f"The data are an array of shape {source.shape} and type {source.dtype}; expected one dimension of "
                "records (a structured array, as of DataFrame.to_records) or of dicts."
            )
        return f"array of {len(source):,} rows", lambda: list_rows(source)
    return None


def list_rows(source: Iterable[Any]) -> Iterator[LocatedRow]:
    """Rows given as dicts, or as records of a structured array."""
    for i, row in enumerate(source):
        names = getattr(getattr(row, "dtype", None), "names", None)
        if names is not None:
            row = {name: row[name] for name in names}
        elif type(row).__name__ == "Series" and hasattr(row, "to_dict"):  # as of DataFrame.iterrows
            row = row.to_dict()
        if not isinstance(row, Mapping):
            raise DataError(f"rows[{i}] is {type(row).__name__} {shorten(row)}; every row must be a dict.")
        yield f"rows[{i}]", {str(name): plain(value) for name, value in row.items()}


def _located(label: str, rows: Iterable[Mapping[str, Any]]) -> Iterator[LocatedRow]:
    return ((f"{label}[{i}]", {str(name): value for name, value in row.items()}) for i, row in enumerate(rows))


def _arrow_rows(table: Any) -> Iterator[dict[str, Any]]:
    for batch in table.to_batches(max_chunksize=1024):
        yield from batch.to_pylist()


def _frame_rows(frame: Any, names: list[str], pandas: Any) -> Iterator[LocatedRow]:
    columns = [frame.iloc[:, place] for place in range(len(names))]
    for i, values in enumerate(zip(*columns, strict=True)):
        row = {name: plain(value) for name, value in zip(names, values, strict=True)}
        yield f"rows[{i}]", {name: None if _is_na(value, pandas) else value for name, value in row.items()}


def _is_na(value: Any, pandas: Any) -> bool:
    """Whether a cell is pandas' NA, NaT or NaN."""
    return value is pandas.NA or value is pandas.NaT or (isinstance(value, float) and value != value)


def plain(value: Any) -> Any:
    """A value with NumPy's arrays and scalars as Python's lists and numbers, at any depth."""
    numpy = sys.modules.get("numpy")
    if numpy is None or isinstance(value, (str, int, float, bool)) or value is None:
        return value.item() if numpy is not None and isinstance(value, numpy.generic) else value
    if isinstance(value, numpy.generic):
        return value.item()
    if isinstance(value, numpy.ndarray):
        return [plain(one) for one in value.tolist()]
    if isinstance(value, Mapping):
        return {key: plain(one) for key, one in value.items()}
    return [plain(one) for one in value] if isinstance(value, (list, tuple)) else value
