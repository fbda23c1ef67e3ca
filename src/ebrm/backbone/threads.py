"""Several pieces of work at once on a CPU, each on one of torch's threads instead of one piece on all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from typing import TypeVar

import torch

T = TypeVar("T")
R = TypeVar("R")


def spread(workers: Sequence[Callable[[T], R]], items: Sequence[T]) -> Iterator[R]:
    """The results of `items` in their order; each worker takes the next item as soon as it is free.

    The threads that torch uses are divided among the workers, so that a result does not depend on which worker made
    it. A forward over few tokens keeps one core busy; of two it wastes a good part on handing over. When the iterator
    is closed or a worker raises, pieces that have begun come to their end, and no other is begun.

    Args:
        workers: functions that do the same and may run at the same time, at most as many as torch has threads. A
            single one is called here, without other threads.
        items: what they are called with.
    """
    if len(workers) == 1:
        yield from map(workers[0], items)
        return
    threads = torch.get_num_threads()
    free: SimpleQueue[Callable[[T], R]] = SimpleQueue()
    for worker in workers:
        free.put(worker)

    def work(item: T) -> R:
        worker = free.get()
        try:
            return worker(item)
        finally:
            free.put(worker)

    # torch keeps this number for the thread that sets it, and for threads that have not computed yet.
    share = threads // len(workers)
    try:
        with ThreadPoolExecutor(len(workers), "ebrm-read", torch.set_num_threads, (share,)) as pool:
            yield from pool.map(work, items)
    finally:
        torch.set_num_threads(threads)
