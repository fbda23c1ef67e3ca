"""Configuration of features: storage, and the engine that reads texts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from ebrm.errors import ConfigError

EngineName = Literal["local", "ray"]
EmbeddingDtype = Literal["float32", "float16", "bfloat16"]


@dataclass(frozen=True)
class FeatureConfig:
    """Storage of embeddings and rewards on disk.

    Attributes:
        embedding_dtype: Number type of stored embeddings: float32, float16 or bfloat16 (half the disk). Rewards are
            always float32, and all is read back as float32.
        shard_rows: Texts a shard. A shard is written whole or not at all, so a killed run may have to redo one a
            process.
        restart: Discard unfinished work there and begin anew; what is finished stays.

    Raises:
        ConfigError: a value outside its range.
    """

    embedding_dtype: EmbeddingDtype = "float32"
    shard_rows: int = 4096
    restart: bool = False

    def __post_init__(self) -> None:
        if self.embedding_dtype not in get_args(EmbeddingDtype):
            raise ConfigError(
                f"embedding_dtype is {self.embedding_dtype!r}; expected one of {', '.join(get_args(EmbeddingDtype))}."
            )
        if isinstance(self.shard_rows, bool) or not isinstance(self.shard_rows, int) or self.shard_rows < 1:
            raise ConfigError(f"shard_rows is {self.shard_rows!r}; expected a whole number of at least 1.")


@dataclass(frozen=True)
class EngineConfig:
    """Engine that reads texts: this process (and those of `accelerate launch`), or on a Ray cluster.

    Attributes:
        engine: Where texts are read: `local`, or `ray` for the machines of a Ray cluster (extra `ray`). All of them
            must see the reward model and the output folder under the same path.
        ray_address: The Ray cluster: `auto`, or host:port. Unset: RAY_ADDRESS, else the cluster that this machine is
            part of, else this machine alone.
        ray_actors: Processes on the cluster that hold the reward model. Unset: as many as its resources allow.
        ray_gpus: GPUs for each of them, possibly a part of one (0.5). Unset: 1 where the cluster has GPUs and the
            device is not the CPU, else 0.

    Raises:
        ConfigError: a value outside its range, or one for Ray without it.
    """

    engine: EngineName = "local"
    ray_address: str | None = None
    ray_actors: int | None = None
    ray_gpus: float | None = None

    def __post_init__(self) -> None:
        if self.engine not in get_args(EngineName):
            raise ConfigError(f"engine is {self.engine!r}; expected one of {', '.join(get_args(EngineName))}.")
        given = [n for n in ("ray_address", "ray_actors", "ray_gpus") if getattr(self, n) is not None]
        if self.engine != "ray" and given:
            raise ConfigError(
                f"{', '.join(f'`{name}`' for name in given)} is for engine ray, and `engine` is {self.engine!r}."
            )
        if self.ray_actors is not None and self.ray_actors < 1:
            raise ConfigError(f"ray_actors is {self.ray_actors}; expected a whole number of at least 1.")
        if self.ray_gpus is not None and not 0 <= self.ray_gpus < math.inf:
            raise ConfigError(f"ray_gpus is {self.ray_gpus}; expected 0 or more.")
