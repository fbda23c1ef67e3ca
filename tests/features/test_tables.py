from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ebrm.errors import FeaturesError
from ebrm.features import read_items
from ebrm.features.tables import ITEM_SCHEMA, PAIR_SCHEMA, read_pairs, table_bytes

PAIRS = {
    "chosen": np.array([0, 2]),
    "rejected": np.array([1, 3]),
    "prompt_id": ["a", "b\0🙂"],
    "source": np.array(["s", None], dtype=object),
    "category": [None, None],
    "strength": np.array([np.nan, 0.25], dtype=np.float32),
    "split": ["train", "test"],
    "where": [None, "x:1"],
    "rm_training": np.array([True, False]),
}


def test_pairs_come_back_as_they_were(tmp_path):
    path = tmp_path / "key=value" / "pairs.parquet"  # a folder name that looks like a partition
    path.parent.mkdir()
    path.write_bytes(table_bytes(PAIRS, PAIR_SCHEMA))
    back = read_pairs(path)
    assert back["chosen"].dtype == np.int64
    assert {name: values.tolist() for name, values in back.items() if name != "strength"} == {
        name: list(values) for name, values in PAIRS.items() if name != "strength"
    }
    assert back["strength"].dtype == np.float32 and np.array_equal(back["strength"], PAIRS["strength"], equal_nan=True)


def test_equal_names_of_many_pairs_are_one_object(tmp_path):
    few = {name: list(values) * 50 for name, values in PAIRS.items()} | {"split": ["tr" + "ain", None] * 50}
    (tmp_path / "p").write_bytes(table_bytes(few, PAIR_SCHEMA))
    back = read_pairs(tmp_path / "p")
    for name in ("source", "split"):
        assert back[name].dtype == object and len({id(value) for value in back[name]}) == 2


def test_items_come_back_as_they_were(tmp_path):
    items = {"prompt_id": ["a", None], "tokens": np.array([3, 4]), "truncated": [None, 0], "text_id": ["x", None]}
    (tmp_path / "i").write_bytes(table_bytes(items, ITEM_SCHEMA))
    assert read_items(tmp_path / "i") == items | {"tokens": [3, 4]}


def test_items_of_features_made_before_texts_had_ids(tmp_path):
    schema = pa.schema([field for field in ITEM_SCHEMA if field.name != "text_id"])
    (tmp_path / "i").write_bytes(table_bytes({"prompt_id": ["a"], "tokens": [3], "truncated": [0]}, schema))
    assert read_items(tmp_path / "i")["text_id"] == [None]


def test_equal_tables_are_equal_bytes():
    assert table_bytes(PAIRS, PAIR_SCHEMA) == table_bytes(dict(reversed(PAIRS.items())), PAIR_SCHEMA)


def test_what_cannot_be_stored_is_named():
    with pytest.raises(FeaturesError, match="Column source"):
        table_bytes(PAIRS | {"source": ["\ud83d", None]}, PAIR_SCHEMA)


@pytest.mark.parametrize("content", [b"", b"PAR1 and then nothing", None])
def test_a_file_that_is_not_the_table_is_refused(tmp_path, content):
    path = tmp_path / "pairs.parquet"
    if content is None:
        pq.write_table(pa.table({"chosen": [1]}), path)
    else:
        path.write_bytes(content)
    with pytest.raises(FeaturesError, match="pairs.parquet cannot be read"):
        read_pairs(path)
