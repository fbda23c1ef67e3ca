"""Dynamic batching: texts of different requests share a batch, and each answer finds its way back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from time import monotonic
from typing import Generic, TypeVar

R = TypeVar("R")


class TextFailed(Exception):
    """One text of a request could not be scored, alone; `row` is its place in the request, `cause` the error."""

    def __init__(self, row: int, cause: Exception) -> None:
        super().__init__(f"text {row}: {cause}")
        self.row, self.cause = row, cause


@dataclass(frozen=True)
class Batch:
    """What was measured of one batch: its texts and tokens, how long each text waited, how long the model took."""

    texts: int
    tokens: int
    waited: tuple[float, ...]  # seconds, one a text
    seconds: float


@dataclass(eq=False)
class _Waiting(Generic[R]):
    ids: Sequence[int]
    answer: asyncio.Future[R]
    since: float


class Batcher(Generic[R]):
    """Scores texts of many requests in common batches, on one thread.

    All of its state is touched on the event loop only. It runs while there are texts and needs no starting or
    stopping.

    Args:
        run: scores token sequences: one result each, in order. Runs in `executor`.
        executor: the thread of the model.
        tokens: a batch is full at this many tokens (padding not counted); a longer text goes alone.
        max_wait: longest a text waits for its batch to fill, in seconds.
        most_texts: a batch is full at this many texts, too.
        measured: called with each batch that was run.
    """

    def __init__(
        self,
        run: Callable[[list[Sequence[int]]], Sequence[R]],
        executor: Executor,
        *,
        tokens: int,
        max_wait: float,
        most_texts: int = 2**31,
        measured: Callable[[Batch], None] = lambda batch: None,
    ) -> None:
        self._run, self._executor, self._measured = run, executor, measured
        self._budget, self._max_wait, self._most = tokens, max_wait, most_texts
        # A dictionary, because a text is taken out of its middle when its client is gone; it keeps the order of coming.
        self._waiting: dict[_Waiting[R], None] = {}
        self._tokens = 0  # of those waiting
        self._came = asyncio.Event()
        self._worker: asyncio.Task[None] | None = None

    def __len__(self) -> int:
        """Texts that wait for a batch."""
        return len(self._waiting)

    async def score(self, texts: Sequence[Sequence[int]]) -> list[R]:
        """One result a text, in order. Cancelled, it takes its waiting texts out of the queue.

        Raises:
            TextFailed: `run` raised an error for a text that ran alone; the first such text of this request.
        """
        loop, now = asyncio.get_running_loop(), monotonic()
        asked = [_Waiting(ids, loop.create_future(), now) for ids in texts]
        for item in asked:
            self._waiting[item] = None
            self._tokens += len(item.ids)
        self._came.set()
        if asked and (self._worker is None or self._worker.done() or self._worker.get_loop() is not loop):
            self._came = asyncio.Event()  # one of this loop
            self._worker = loop.create_task(self._work())
        try:
            return [await self._result(row, item) for row, item in enumerate(asked)]
        finally:
            for item in asked:
                self._take_out(item)
                if item.answer.done() and not item.answer.cancelled():
                    item.answer.exception()  # seen, should it have failed just as its client went away
                item.answer.cancel()

    @staticmethod
    async def _result(row: int, item: _Waiting[R]) -> R:
        try:
            return await item.answer
        except Exception as error:
            raise TextFailed(row, error) from error

    def _take_out(self, item: _Waiting[R]) -> None:
        if item in self._waiting:
            del self._waiting[item]
            self._tokens -= len(item.ids)

    async def _work(self) -> None:
        while self._waiting:
            await self._wait_for_batch()
            batch = self._next()
            if batch:
                await self._score(batch)

    async def _wait_for_batch(self) -> None:
        """Wait until a batch is full or its first text has waited long enough."""
        while self._waiting and self._tokens < self._budget and len(self._waiting) < self._most:
            first = next(iter(self._waiting))
            left = first.since + self._max_wait - monotonic()
            if left <= 0:
                return
            self._came.clear()
            try:
                async with asyncio.timeout(left):
                    await self._came.wait()
            except TimeoutError:
                return

    def _next(self) -> list[_Waiting[R]]:
        """The texts that came first, up to the budget; one at least."""
        batch: list[_Waiting[R]] = []
        tokens = 0
        for item in self._waiting:
            if batch and (tokens + len(item.ids) > self._budget or len(batch) == self._most):
                break
            batch.append(item)
            tokens += len(item.ids)
        for item in batch:
            self._take_out(item)
        return batch

    async def _score(self, batch: list[_Waiting[R]]) -> None:
        """Run a batch; where it fails, each of its texts alone, so that one text fails only its own request."""
        started = monotonic()
        loop = asyncio.get_running_loop()
        try:
            results = list(await loop.run_in_executor(self._executor, self._run, [item.ids for item in batch]))
            if len(results) != len(batch):
                raise RuntimeError(f"{len(batch)} texts were given and {len(results)} results came back")
        except Exception as error:
            if len(batch) == 1:
                if not batch[0].answer.done():
                    batch[0].answer.set_exception(error)
                return
            for item in batch:
                if not item.answer.done():  # its client may be gone by now
                    await self._score([item])
            return
        for item, result in zip(batch, results, strict=True):
            if not item.answer.done():
                item.answer.set_result(result)
        waited = tuple(started - item.since for item in batch)
        self._measured(Batch(len(batch), sum(len(item.ids) for item in batch), waited, monotonic() - started))
