"""The responses of a pool as rows of a features folder's reward model: read once, then kept in the cache."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ebrm.backbone import reload_backbone
from ebrm.benchmarks import Benchmark, Floats
from ebrm.errors import DataError
from ebrm.evaluation.cache import TextCache
from ebrm.evaluation.models import BenchmarkTexts
from ebrm.features import FeatureConfig, Features, read_items

NOT_READ = "a response that the reward model cannot read"


@dataclass(frozen=True, eq=False)
class ReadPool:
    """The responses of q prompts, in the order of prompts and responses [n].

    Attributes:
        embedding: [n, d].
        base: base rewards [n].
        length: tokens of prompt and response [n].
        gold: worth of the responses [q, m], NaN beyond a prompt's last.
        left_out: reason to number of prompts left out.
        count: how many texts had to be read.
    """

    embedding: Tensor
    base: Tensor
    length: Tensor
    gold: Floats
    left_out: dict[str, int]
    count: int

    @property
    def prompt(self) -> Tensor:
        """The prompt of each response [n]."""
        return torch.from_numpy(np.nonzero(np.isfinite(self.gold))[0])

    def table(self, values: Tensor) -> Floats:
        """Values of the responses [n] as a table [q, m], NaN beyond a prompt's last response."""
        table = np.full(self.gold.shape, np.nan)
        table[np.isfinite(self.gold)] = values.double().numpy()
        return table


def read_pool(features: Features, benchmark: Benchmark, cache: Path, reward_model: dict[str, Any]) -> ReadPool:
    """Read a pool's responses by the reward model that made the features.

    Args:
        features: of that reward model.
        benchmark: items with graded responses.
        cache: folder of all caches.
        reward_model: settings of `BackboneConfig` for where and how fast it runs.

    Raises:
        DataError: the features know no reward model, or none of the prompts can be read whole.
        ModelError: the reward model that is found is another one.
    """
    identity, rule = features.manifest.get("backbone"), features.manifest.get("text")
    if not identity or rule is None:
        raise DataError(
            "These features were made elsewhere, so that nobody knows which reward model reads the pool. Leave out the "
            "pool, or make the features with `ebrm features`."
        )
    texts = BenchmarkTexts.of(benchmark)
    kept = TextCache(cache, identity, rule)
    count = kept.read(
        texts.texts, lambda: reload_backbone(identity, rule, reward_model), FeatureConfig(shard_rows=1024)
    )
    rows = kept.rows(texts.ids)
    sizes = [len(item.responses) for item in benchmark.items]
    whole = np.array([(part >= 0).all() for part in np.split(rows, np.cumsum(sizes)[:-1])], dtype=bool)
    if not whole.any():
        raise DataError(f"The reward model can read no prompt of {benchmark.title} with all its responses.")
    rows = rows[np.repeat(whole, sizes)]
    left_out = {} if whole.all() else {NOT_READ: int((~whole).sum())}
    gold = benchmark.take(np.flatnonzero(whole)).gold()
    return ReadPool(
        _gather(kept, rows), torch.from_numpy(kept.reward[rows]).float(), _lengths(kept, rows), gold, left_out, count
    )


def tokens_of(features: Features) -> NDArray[np.int64] | None:
    """Tokens of every item [n]; None where the features do not hold them."""
    if features.path is None:
        return None
    tokens = read_items(features.path / "items.parquet")["tokens"]
    return None if any(value is None for value in tokens) else np.array(tokens, dtype=np.int64)


def _gather(texts: TextCache, rows: NDArray[np.int64]) -> Tensor:
    ends = np.cumsum([0, *(len(part) for part in texts.parts)])
    embedding = torch.empty(len(rows), texts.parts[0].embedding_size)
    for part, start, end in zip(texts.parts, ends[:-1], ends[1:], strict=True):
        here = np.flatnonzero((rows >= start) & (rows < end))
        if len(here):
            embedding[torch.from_numpy(here)] = part.embedding(torch.from_numpy(rows[here] - start)).float()
    return embedding


def _lengths(texts: TextCache, rows: NDArray[np.int64]) -> Tensor:
    tokens = [tokens_of(part) for part in texts.parts]
    known = [np.zeros(len(part)) if some is None else some for part, some in zip(texts.parts, tokens, strict=True)]
    return torch.from_numpy(np.concatenate(known)[rows]).double()
