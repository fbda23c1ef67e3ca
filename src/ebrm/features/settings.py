"""How features are stored."""

from __future__ import annotations

from dataclasses import dataclass, field

from ebrm.errors import SettingsError

EMBEDDING_DTYPES = ("float32", "float16", "bfloat16")


@dataclass(frozen=True)
class FeatureSettings:
    """How embeddings and rewards are laid out on disk.

    Attributes:
        embedding_dtype: What an embedding is stored as. Rewards are always float32, and whatever is stored is
            read back as float32.
        shard_rows: Texts a shard. A shard is written whole or not at all, so a killed run loses at most one
            shard a process.
    """

    embedding_dtype: str = field(
        default="float32",
        metadata={
            "help": "Number type of stored embeddings: float32, float16 or bfloat16 (half the disk). "
            "Rewards are always float32."
        },
    )
    shard_rows: int = field(
        default=4096,
        metadata={"help": "Texts a shard, the unit of work that a killed run may have to redo."},
    )

    def __post_init__(self) -> None:
        if self.embedding_dtype not in EMBEDDING_DTYPES:
            raise SettingsError(
                f"embedding_dtype is {self.embedding_dtype!r}; expected one of {', '.join(EMBEDDING_DTYPES)}."
            )
        if isinstance(self.shard_rows, bool) or not isinstance(self.shard_rows, int) or self.shard_rows < 1:
            raise SettingsError(f"shard_rows is {self.shard_rows!r}; expected a whole number of at least 1.")
