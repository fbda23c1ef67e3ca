"""Scoring for the routes: admission, tokenization off the event loop, dynamic batching across requests, deadlines."""

from __future__ import annotations

import asyncio
import json
import logging
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from time import monotonic
from typing import Any, Generic, TypeVar

import torch
from fastapi import Request
from torch import Tensor

from ebrm.data import Prompt, Reply, TokenizedText, rendered_already, warn_once
from ebrm.errors import EBRMError, ModelError, TextError
from ebrm.model import EnergyRewardModel
from ebrm.serve.config import ServeConfig
from ebrm.serve.metrics import Metrics
from ebrm.serve.requests import Refused

logger = logging.getLogger(__name__)

R = TypeVar("R")
T = TypeVar("T")

#: Texts tokenized in a row for one request, before others get their turn.
_TOKENIZED = 8


@dataclass(frozen=True)
class ScoreItem:
    """A text to score: a prompt and its response, or without a prompt a whole text, rendered already."""

    response: Reply
    prompt: Prompt | None = None


@dataclass(frozen=True)
class Scored:
    """The numbers of one text; the tensors are for density curves and rankings."""

    values: dict[str, Any]  # a row of `RefinedReward.to_rows`, with its `interval`
    embedding: Tensor  # [d]
    base_reward: Tensor  # []
    tokens: int


class Scoring:
    """A model with its threads, its queue (`held` texts are accepted and not yet answered) and its metrics."""

    def __init__(
        self, model: EnergyRewardModel, config: ServeConfig, backbone: Mapping[str, Any] | None = None
    ) -> None:
        self.model, self.config, self._backbone = model, config, dict(backbone or {})
        self.metrics = Metrics(lambda: self.held)
        self.held, self.draining = 0, False
        self._idle = asyncio.Event()
        self._idle.set()
        self._batcher: Batcher[Scored] | None = None
        self._loading: asyncio.Task[None] | None = None
        # One thread each, so that tokenizing goes on while the model runs.
        self._texts = ThreadPoolExecutor(1, "ebrm-tokenize")
        self._model = ThreadPoolExecutor(1, "ebrm-model")

    def text_rule(self) -> dict[str, Any]:
        """Identity of the text rule that requests are read by."""
        changed = {name: value for name, value in self._backbone.items() if name in ("truncation", "rendered")}
        return {**(self.model.record.text_rule or {}), **changed}

    @property
    def ready(self) -> bool:
        """Whether a request would be scored now."""
        return self._batcher is not None and not self.draining

    @property
    def loading(self) -> asyncio.Task[None]:
        """The task that loads the reward model, started when it is first needed."""
        if self._loading is None or self._loading.cancelled():
            self._loading = asyncio.get_running_loop().create_task(self._load())
        return self._loading

    async def _load(self) -> None:
        if self._batcher is None:
            await self.on_model(self._first_reading)
            budget, wait = self.model.backbone.token_budget, self.config.max_wait / 1000
            self._batcher = Batcher(self._run, self._model, tokens=budget, max_wait=wait, measured=self.metrics.batch)

    def _first_reading(self) -> None:
        """Load the reward model and read one text, so that errors show early."""
        if self._backbone:
            self.model = self.model.with_backbone(**self._backbone)
        tokens = self.model.backbone.tokenize("Hello", "Hello")
        self._run([tokens.ids if tokens is not None else [0]])

    async def drain(self) -> None:
        """Accept no more, and wait until everything accepted is answered."""
        self.draining = True
        await self._idle.wait()

    def close(self) -> None:
        """End the threads once their current work is done."""
        self._texts.shutdown(wait=False)
        self._model.shutdown(wait=False)

    async def answer(self, request: Request, work: Callable[[], Awaitable[T]]) -> T:
        """Await `work()`, until the deadline (503) or until its client disconnects: its texts then leave the queue."""
        task = asyncio.ensure_future(work())
        gone = asyncio.ensure_future(_disconnected(request))
        try:
            seconds = self.config.deadline
            await asyncio.wait({task, gone}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
            if gone.done():
                raise Refused(499, "gone", "The client went away.")  # nobody receives it
            raise Refused(503, "deadline", f"The request was not answered within {seconds:g} seconds. Retry later.")
        finally:
            task.cancel()
            gone.cancel()
            await asyncio.gather(task, gone, return_exceptions=True)

    async def score(self, texts: Sequence[ScoreItem]) -> list[Scored]:
        """The numbers of each text, in order; Refused where the server or the reward model cannot take them."""
        if len(texts) > (limit := self.config.max_texts):
            message = f"The request holds {len(texts)} texts, and the limit is {limit}. Send several requests."
            raise Refused(422, "too_many_texts", message)
        if self.draining:
            raise Refused(503, "draining", "The server is ending. Use another one.", close=True)
        if self.held + len(texts) > self.config.queue:
            message = f"{self.held} texts wait, and at most {self.config.queue} may. Retry after a moment."
            raise Refused(503, "queue_full", message)
        self.held += len(texts)
        self._idle.clear()
        try:
            return await self._score(texts)
        finally:
            self.held -= len(texts)
            if not self.held:
                self._idle.set()

    async def _score(self, texts: Sequence[ScoreItem]) -> list[Scored]:
        if self._batcher is None:
            try:
                # Shielded: one client that goes away must not stop the loading for all.
                await asyncio.shield(self.loading)
            except EBRMError as error:
                raise Refused(503, "loading", f"The reward model cannot be loaded: {error}") from error
        assert self._batcher is not None
        tokens = await self._tokenize(texts)
        try:
            scored = await self._batcher.score([text.ids for text in tokens])
        except TextFailed as failed:
            if isinstance(failed.cause, EBRMError):
                self.metrics.refused.inc()
                message = f"Text {failed.row} cannot be scored: {failed.cause}"
                raise Refused(422, "text", message, failed.row) from failed
            raise failed.cause from None
        if self.config.log_texts:
            for text, numbers in zip(texts, scored, strict=True):
                logger.info("%s", json.dumps({**vars(text), **numbers.values}))
        return scored

    async def _tokenize(self, texts: Sequence[ScoreItem]) -> list[TokenizedText]:
        """Token ids of each text, a few at a time: a large request must not hold up a small one."""
        loop, numbered = asyncio.get_running_loop(), list(enumerate(texts))
        tokens: list[TokenizedText] = []

        def some(start: int) -> list[TokenizedText]:
            return [self._ids_of(*one) for one in numbered[start : start + _TOKENIZED]]

        for start in range(0, len(texts), _TOKENIZED):
            tokens += await loop.run_in_executor(self._texts, some, start)
        self.metrics.truncated.inc(sum(1 for text in tokens if text.truncated))
        return tokens

    def _ids_of(self, row: int, text: ScoreItem) -> TokenizedText:
        backbone, where = self.model.backbone, f"Text {row}"
        try:
            if text.prompt is None:
                tokens = backbone.tokenize_rendered(str(text.response), where)
            else:
                tokens = backbone.tokenize(text.prompt, text.response, where)
            if tokens is None:
                longest = f"the {backbone.text_rule.max_length} tokens that the reward model reads"
                rule = "and the server's text rule drops such texts. Leave it out."
                raise TextError(f"{where} is longer than {longest}, {rule}")
            if tokens.marker is not None:
                warn_once(rendered_already(tokens.marker))
        except TextError as error:
            self.metrics.refused.inc()
            raise Refused(422, "text", str(error), row) from error
        return tokens

    async def on_model(self, work: Callable[[], T]) -> T:
        """Run `work` on the model's thread."""
        return await asyncio.get_running_loop().run_in_executor(self._model, work)

    def _run(self, ids: list[Sequence[int]]) -> list[Scored]:
        """Read and refine one batch; as `EnergyRewardModel.score_ids`, with the embeddings for curves and rankings."""
        reading = self.model.backbone.read(ids)
        values: list[dict[str, Any]] = self.model.refine(reading.embedding, reading.reward).to_rows()
        for row in values:
            if not all(map(math.isfinite, row.values())):
                raise ModelError("The refined reward of this text is not a finite number.")
            row["interval"] = row["interval_low"], row["interval_high"]
        return [Scored(*one) for one in zip(values, reading.embedding, reading.reward, map(len, ids), strict=True)]

    def features(self, scored: Sequence[Scored]) -> tuple[Tensor, Tensor]:
        """(embedding [n, d], base reward [n]) of texts that were scored; n may be 0."""
        if not scored:
            return torch.empty(0, self.model.embedding_size), torch.empty(0)
        return torch.stack([s.embedding for s in scored]), torch.stack([s.base_reward for s in scored])


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


class TextFailed(Exception):
    """Text `row` of a request could not be scored, not even alone, for `cause`."""

    def __init__(self, row: int, cause: Exception) -> None:
        super().__init__(f"text {row}: {cause}")
        self.row, self.cause = row, cause


@dataclass(eq=False)
class _Waiting(Generic[R]):
    ids: Sequence[int]
    answer: asyncio.Future[R]
    since: float


class Batcher(Generic[R]):
    """Dynamic batching: texts of different requests share a batch, on one thread; state is the event loop's alone.

    Args:
        run: scores token sequences, one result each, in order; runs in `executor`.
        tokens: a batch is full at this many tokens (padding not counted); a longer text goes alone.
        max_wait: longest a text waits for its batch to fill, in seconds.
        measured: called with each batch: its tokens, seconds that each text waited, seconds that `run` took.
    """

    def __init__(
        self,
        run: Callable[[list[Sequence[int]]], Sequence[R]],
        executor: Executor,
        *,
        tokens: int,
        max_wait: float,
        measured: Callable[[int, Sequence[float], float], None] = lambda tokens, waited, seconds: None,
    ) -> None:
        self._run, self._executor, self._measured = run, executor, measured
        self._budget, self._max_wait = tokens, max_wait
        # A dictionary, since a text is taken out of its middle when its client is gone; it keeps the order of arrival.
        self._waiting: dict[_Waiting[R], None] = {}
        self._tokens = 0  # of those waiting
        self._arrived = asyncio.Event()
        self._worker: asyncio.Task[None] | None = None

    def __len__(self) -> int:
        return len(self._waiting)

    async def score(self, texts: Sequence[Sequence[int]]) -> list[R]:
        """One result a text, in order, or TextFailed for the first that fails alone; cancelled, it clears the queue."""
        loop, now = asyncio.get_running_loop(), monotonic()
        items = [_Waiting(ids, loop.create_future(), now) for ids in texts]
        for item in items:
            self._waiting[item] = None
            self._tokens += len(item.ids)
        self._arrived.set()
        if items and (self._worker is None or self._worker.done() or self._worker.get_loop() is not loop):
            self._arrived = asyncio.Event()  # one of this loop
            self._worker = loop.create_task(self._work())
        results = []
        try:
            for row, item in enumerate(items):
                try:
                    results.append(await item.answer)
                except Exception as error:
                    raise TextFailed(row, error) from error
            return results
        finally:
            for item in items:
                self._take_out(item)
                if item.answer.done() and not item.answer.cancelled():
                    item.answer.exception()  # retrieved, should it have failed just as its client went away
                item.answer.cancel()

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
        while self._waiting and self._tokens < self._budget:
            first = next(iter(self._waiting))
            left = first.since + self._max_wait - monotonic()
            if left <= 0:
                return
            self._arrived.clear()
            try:
                async with asyncio.timeout(left):
                    await self._arrived.wait()
            except TimeoutError:
                return

    def _next(self) -> list[_Waiting[R]]:
        """The texts that came first, up to the budget; one at least."""
        batch, tokens = list[_Waiting[R]](), 0
        for item in self._waiting:
            if batch and tokens + len(item.ids) > self._budget:
                break
            batch.append(item)
            tokens += len(item.ids)
        for item in batch:
            self._take_out(item)
        return batch

    async def _score(self, batch: list[_Waiting[R]]) -> None:
        """Run a batch; where it fails, each of its texts alone, so that one text fails only its own request."""
        started, loop = monotonic(), asyncio.get_running_loop()
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
        waited = [started - item.since for item in batch]
        self._measured(sum(len(item.ids) for item in batch), waited, monotonic() - started)
