from __future__ import annotations

from typing import get_args

import pytest

from ebrm.errors import ConfigError
from ebrm.features import EngineConfig, FeatureConfig
from ebrm.features.config import EmbeddingDtype
from ebrm.features.shards import DTYPES


def test_the_defaults_lose_no_precision_and_read_texts_here():
    assert FeatureConfig() == FeatureConfig(embedding_dtype="float32", shard_rows=4096)
    assert EngineConfig() == EngineConfig("local", None, None, None)


def test_every_offered_number_type_can_be_stored():
    assert set(get_args(EmbeddingDtype)) == set(DTYPES)


@pytest.mark.parametrize(
    ("config", "given", "said"),
    [
        *((FeatureConfig, {"embedding_dtype": name}, "one of float32, float16") for name in ("float64", "int8", "")),
        *((FeatureConfig, {"shard_rows": rows}, "shard_rows") for rows in (0, -1, 2.5, True)),
        (EngineConfig, {"engine": "spark"}, "engine is 'spark'; expected one of local, ray"),
        (
            EngineConfig,
            {"ray_actors": 2, "ray_gpus": 0},
            "`ray_actors`, `ray_gpus` is for engine ray, and `engine` is 'local'",
        ),
        (EngineConfig, {"engine": "ray", "ray_actors": 0}, "ray_actors is 0"),
        (EngineConfig, {"engine": "ray", "ray_gpus": -1}, "ray_gpus is -1"),
        (EngineConfig, {"engine": "ray", "ray_gpus": float("nan")}, "ray_gpus is nan"),
    ],
)
def test_values_outside_their_range_or_without_ray_are_refused(config, given, said):
    with pytest.raises(ConfigError, match=said):
        config(**given)
