"""The two tables of a features folder, items.parquet and pairs.parquet: equal content gives equal bytes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ebrm.errors import FeaturesError

ITEM_SCHEMA = pa.schema(
    [("prompt_id", pa.string()), ("tokens", pa.int32()), ("truncated", pa.int32()), ("text_id", pa.string())]
)
PAIR_SCHEMA = pa.schema(
    [
        ("chosen", pa.int64()),
        ("rejected", pa.int64()),
        ("prompt_id", pa.string()),
        ("source", pa.string()),
        ("category", pa.string()),
        ("strength", pa.float32()),
        ("split", pa.string()),
        ("where", pa.string()),
        ("rm_training", pa.bool_()),
    ]
)


def table_bytes(columns: Mapping[str, Any], schema: pa.Schema) -> bytes:
    """A Parquet file's content; NaN is stored as null (`strength` that was not given)."""
    arrays = []
    for field in schema:
        try:
            arrays.append(pa.array(columns[field.name], field.type, from_pandas=True))
        except (UnicodeEncodeError, pa.ArrowException) as error:
            raise FeaturesError(
                f"Column {field.name} cannot be stored as {field.type}: {error}. Mend or leave out that column."
            ) from None
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_arrays(arrays, schema=schema), sink, compression="zstd")
    return sink.getvalue().to_pybytes()


def read_items(path: Path) -> dict[str, Any]:
    """Columns of items.parquet, as lists; `text_id` is None throughout in features made before it was kept.

    Raises:
        FeaturesError: A file that is not Parquet, or lacks a column.
    """
    return _read(path, ITEM_SCHEMA, optional="text_id").to_pydict()


def read_pairs(path: Path) -> dict[str, np.ndarray]:
    """Columns of pairs.parquet as arrays; text as str objects or None, a missing `strength` as NaN.

    Equal texts of a column with few of them (source, category, split) are one object, and no column passes through a
    list: a million pairs would otherwise take half a gigabyte.

    Raises:
        FeaturesError: A file that is not Parquet, or lacks a column.
    """
    table = _read(path, PAIR_SCHEMA)
    columns: dict[str, np.ndarray] = {}
    for name in PAIR_SCHEMA.names:
        column = table.column(name).combine_chunks()
        if name in ("source", "category", "split"):
            encoded = column.dictionary_encode()
            texts = np.array([*encoded.dictionary.to_pylist(), None], dtype=object)
            columns[name] = texts[encoded.indices.fill_null(len(texts) - 1).to_numpy()]
        else:
            columns[name] = column.to_numpy(zero_copy_only=False)
    return columns


def _read(path: Path, schema: pa.Schema, optional: str = "") -> pa.Table:
    try:
        # A file handle: given a path, pyarrow looks for partitions in the names of its folders.
        with open(path, "rb") as handle:
            table = pq.read_table(handle)
        if optional and optional not in table.column_names:
            table = table.append_column(schema.field(optional), pa.nulls(len(table), schema.field(optional).type))
        if not table.schema.equals(schema):
            raise pa.ArrowInvalid(
                f"it has the columns {', '.join(table.column_names)}, expected {', '.join(schema.names)}"
            )
    except (OSError, pa.ArrowException) as error:
        raise FeaturesError(
            f"{path} cannot be read: {error}. Delete this file and run the same command again: only it is made anew."
        ) from None
    return table
