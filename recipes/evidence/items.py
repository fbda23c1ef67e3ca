"""OUT/items.parquet: whether every method gets every item of every test set right.

Success is by the official rule, under which a tie is wrong; of an item that counts in several terms it is their mean.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from reward_files import Refinements
from scores import ItemValues

from ebrm.utils.files import atomic_path

_TEXT = pa.dictionary(pa.int32(), pa.string())
SCHEMA = pa.schema(
    {
        "base_rm": _TEXT,
        "noise": pa.float32(),
        "seed": pa.int16(),
        "method": _TEXT,
        "benchmark": _TEXT,
        "item": _TEXT,
        "category": _TEXT,
        "success": pa.float32(),
    }
)


@contextmanager
def item_writer(path: Path) -> Iterator[pq.ParquetWriter]:
    """A file that is there only when it is whole."""
    with atomic_path(path) as partial, pq.ParquetWriter(partial, SCHEMA, compression="zstd") as out:
        yield out


def write_items(
    out: pq.ParquetWriter, cells: Sequence[Refinements], name: str, methods: Sequence[str], values: ItemValues
) -> None:
    """The items of one test set under base reward models of one kind and noise: a row group.

    Args:
        out: where to.
        cells: the base reward models, one a seed.
        name: the test set.
        methods: whose columns `values` has, all seeds of one together.
        values: as `scores.item_values` gives them.
    """
    items = cells[0].texts.tests[name].benchmark.items
    count = np.bincount(values.item, minlength=len(items))
    totals = np.stack([np.bincount(values.item, column, len(items)) for column in values.value.T])
    groups, group = np.unique([item.group for item in items], return_inverse=True)
    rows = totals.size
    columns = [
        _coded(np.zeros(rows), [cells[0].base_rm]),
        pa.array(np.full(rows, cells[0].noise, dtype=np.float32)),
        pa.array(np.tile(np.repeat([cell.seed for cell in cells], len(items)), len(methods)).astype(np.int16)),
        _coded(np.repeat(np.arange(len(methods)), len(cells) * len(items)), methods),
        _coded(np.zeros(rows), [name]),
        _coded(np.tile(np.arange(len(items)), len(totals)), [item.id for item in items]),
        _coded(np.tile(group, len(totals)), groups.tolist()),
        pa.array((totals / count).ravel().astype(np.float32)),
    ]
    out.write_table(pa.Table.from_arrays(columns, schema=SCHEMA))


def _coded(place: np.ndarray, names: Sequence[str]) -> pa.DictionaryArray:
    return pa.DictionaryArray.from_arrays(pa.array(place.astype(np.int32)), pa.array(names, pa.string()))
