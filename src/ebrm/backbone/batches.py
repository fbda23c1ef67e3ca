"""Token sequences in batches of a number of tokens, which are halved when memory runs out."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch

from ebrm.errors import BackboneError, setting

logger = logging.getLogger(__name__)

#: Most tokens in a batch on a CPU: what its caches hold; 16,384 take about twice as long (docs/performance.md).
_CPU_BATCH_TOKENS = 1024

Found = TypeVar("Found")


def token_budget_on(device: torch.device, budget: int) -> int:
    """The most tokens in a batch on a device, of a budget that was asked for."""
    return min(budget, _CPU_BATCH_TOKENS) if device.type == "cpu" else budget


def in_batches(
    lengths: Sequence[int], budget: int, device: torch.device, read: Callable[[list[int]], Found]
) -> Iterator[tuple[list[int], Found]]:
    """Rows of each batch, and what `read` gives for them; the longest rows come first.

    Args:
        lengths: tokens of each row, at least 1.
        budget: most tokens in a batch, padding counted; a longer sequence is a batch of its own.
        device: where they are read, for messages and its cache.
        read: called with the rows of a batch; again with half of them where it ran out of memory.

    Raises:
        BackboneError: memory is too small for one sequence.
    """
    # Longest first: if memory runs out, it does so at once.
    queue = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    while queue:
        batch = queue[: max(1, budget // lengths[queue[0]])]
        found = _try(read, batch, device)
        if found is None:
            if len(batch) == 1:
                raise BackboneError(
                    f"Memory on {device} is too small for a single text: row {batch[0]} has "
                    f"{lengths[batch[0]]} tokens. Lower `max_length`, use {setting('dtype', 'bfloat16')}, or a "
                    "device with more memory."
                )
            budget = len(batch) // 2 * lengths[batch[0]]
            logger.warning("out of memory on %s; going on with batches of %d tokens", device, budget)
            continue
        yield batch, found
        queue = queue[len(batch) :]


def _try(read: Callable[[list[int]], Found], rows: list[int], device: torch.device) -> Found | None:
    """What `read` gives; None when memory ran out."""
    try:
        return read(rows)
    except (torch.OutOfMemoryError, RuntimeError) as error:
        if not _out_of_memory(error):
            raise
    # Outside the except block: the error no longer keeps the batch's tensors alive.
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return None


def _out_of_memory(error: BaseException) -> bool:
    said = str(error).lower()
    return isinstance(error, torch.OutOfMemoryError) or "not enough memory" in said or "can't allocate memory" in said
