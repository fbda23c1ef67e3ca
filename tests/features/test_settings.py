from __future__ import annotations

import pytest

from ebrm.errors import SettingsError
from ebrm.features.settings import EMBEDDING_DTYPES, FeatureSettings
from ebrm.features.shards import DTYPES


def test_the_defaults_lose_no_precision():
    assert FeatureSettings() == FeatureSettings(embedding_dtype="float32", shard_rows=4096)


def test_every_offered_number_type_can_be_stored():
    assert set(EMBEDDING_DTYPES) == set(DTYPES)


@pytest.mark.parametrize("name", ["float64", "int8", ""])
def test_another_number_type_is_refused(name):
    with pytest.raises(SettingsError, match="expected one of float32, float16, bfloat16"):
        FeatureSettings(embedding_dtype=name)


@pytest.mark.parametrize("rows", [0, -1, 2.5, True])
def test_a_shard_has_at_least_one_row(rows):
    with pytest.raises(SettingsError, match="shard_rows"):
        FeatureSettings(shard_rows=rows)
