from __future__ import annotations

from typing import get_args

import pytest

from ebrm.errors import ConfigError
from ebrm.features import EngineConfig, FeatureConfig
from ebrm.features.config import EmbeddingDtype
from ebrm.features.shards import DTYPES


def test_the_defaults_lose_no_precision():
    assert FeatureConfig() == FeatureConfig(embedding_dtype="float32", shard_rows=4096)


def test_every_offered_number_type_can_be_stored():
    assert set(get_args(EmbeddingDtype)) == set(DTYPES)


@pytest.mark.parametrize("name", ["float64", "int8", ""])
def test_another_number_type_is_refused(name):
    with pytest.raises(ConfigError, match="expected one of float32, float16, bfloat16"):
        FeatureConfig(embedding_dtype=name)


@pytest.mark.parametrize("rows", [0, -1, 2.5, True])
def test_a_shard_has_at_least_one_row(rows):
    with pytest.raises(ConfigError, match="shard_rows"):
        FeatureConfig(shard_rows=rows)


def test_texts_are_read_here_unless_ray_is_asked_for():
    assert EngineConfig() == EngineConfig("local", None, None, None)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"engine": "spark"}, "engine is 'spark'; expected one of local, ray"),
        ({"ray_actors": 2, "ray_gpus": 0}, "ray_actors, ray_gpus is for engine ray, and engine is 'local'"),
        ({"engine": "ray", "ray_actors": 0}, "ray_actors is 0"),
        ({"engine": "ray", "ray_gpus": -1}, "ray_gpus is -1"),
        ({"engine": "ray", "ray_gpus": float("nan")}, "ray_gpus is nan"),
    ],
)
def test_settings_of_ray_outside_their_range_or_without_it_are_refused(given, said):
    with pytest.raises(ConfigError, match=said):
        EngineConfig(**given)
