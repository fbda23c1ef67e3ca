"""Embeddings as a density reads them: rows of a matrix [n, d] that may be larger than memory."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from ebrm.errors import ModelError

#: Numbers read at a time where all rows are needed: 4 MiB, which stays in the processor's cache.
_READ_FLOATS = 2**20


class EmbeddingSource(Protocol):
    """Embeddings [n, d] in memory or on disk: indexed by a LongTensor or a slice, float32 out."""

    @property
    def shape(self) -> tuple[int, int]:
        """(n, d)."""
        ...

    def __getitem__(self, index: Any) -> Tensor: ...


def rows_at_once(embeddings: EmbeddingSource) -> int:
    """How many rows to read at a time where all are needed."""
    return max(2, _READ_FLOATS // max(embeddings.shape[1], 1))


class FiniteRows:
    """Embeddings that are looked at as they are read: those on disk are not read once more for it."""

    def __init__(self, rows: Tensor | EmbeddingSource) -> None:
        self._rows = rows
        self.shape = (int(rows.shape[0]), int(rows.shape[1]))

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> Tensor:
        some = self._rows[index].detach()
        if not bool(torch.isfinite(some).all()):
            few = rows_at_once(self)
            parts = (self._rows[first : first + few] for first in range(0, len(self), few))
            refuse_not_finite("embedding", torch.cat([torch.isfinite(part).all(1) for part in parts]))
        return some


def refuse_not_finite(what: str, finite: Tensor) -> None:
    """Raise a ModelError that names the first of the rows [n] that are not `finite`, if there is one."""
    if not bool(finite.all()):
        raise ModelError(
            f"The {what} of row {int((~finite).nonzero()[0, 0])} is not finite, so it has no refined reward. "
            f"{int((~finite).sum())} of {len(finite)} rows are so; find out where they come from, or leave them out."
        )
