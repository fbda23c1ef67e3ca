"""Scoring for the routes: admission, tokenization off the event loop, dynamic batching across requests, deadlines."""

from __future__ import annotations

import asyncio
import json
import logging
import math
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from time import monotonic
from typing import Any, Generic, TypeVar

import torch
from fastapi import Request
from torch import Tensor

from ebrm.data import Prompt, Reply, TokenizedText, rendered_already, warn_once
from ebrm.errors import EBRMError, ModelError, TextError
from ebrm.model import EnergyRewardModel
from ebrm.serve.bodies import JsonLimits
from ebrm.serve.config import ServeConfig
from ebrm.serve.metrics import Metrics
from ebrm.serve.requests import Refused
from ebrm.serve.threads import Worker

logger = logging.getLogger(__name__)

R = TypeVar("R")
T = TypeVar("T")

#: Texts, and characters, tokenized in a row for one request, before others get their turn.
_TOKENIZED, _CHARACTERS = 8, 2**15
#: Characters that a text may have for each token the reward model reads, and on average in a full request: a token has
#: 3 to 5 in most languages, and what is longer is cut anyway, or refused.
_A_TOKEN, _A_TOKEN_ON_AVERAGE = 32, 8
#: Characters that a text may have however few tokens the reward model reads.
_SHORT = 2**14
#: Characters that the markup of a turn counts for.
_TURN = 16
#: Where a request keeps its deadline.
_UNTIL = "ebrm.until"


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
        #: Requests whose answer has not begun; `give_up` refuses them.
        self.under_way: set[asyncio.Task[Any]] = set()
        self.over = False
        self._idle = asyncio.Event()
        self._idle.set()
        self._batcher: Batcher[Scored] | None = None
        self._fingerprint: tuple[EnergyRewardModel, str] | None = None
        self._loading: asyncio.Task[None] | None = None
        # One thread each, so that reading and tokenizing go on while the model runs.
        self.workers = [Worker(f"ebrm-{name}") for name in ("read", "tokenize", "model")]
        self._bodies, self._texts, self._model = self.workers

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

    @property
    def max_chars(self) -> int:
        """Most characters of a text, with its prompt."""
        return max(_SHORT, _A_TOKEN * self._max_length)

    @property
    def json_limits(self) -> JsonLimits:
        """Limits of what a body holds."""
        return JsonLimits(self.config.max_values, self.max_chars)

    @property
    def _max_length(self) -> int:
        return int((self.model.record.text_rule or {}).get("max_length", 0))

    def limits(self) -> dict[str, float]:
        """The limits that clients must keep to, for `/info`."""
        return self.config.limits() | {"max_chars": self.max_chars, "max_values": self.config.max_values}

    def fingerprint(self) -> str:
        """The model's fingerprint, computed once, since it is of all weights."""
        if self._fingerprint is None or self._fingerprint[0] is not self.model:
            self._fingerprint = self.model, self.model.fingerprint()
        return self._fingerprint[1]

    async def drain(self) -> None:
        """Accept no more, and wait until everything accepted is answered."""
        self.draining = True
        await self._idle.wait()

    def give_up(self) -> None:
        """Accept no more, and refuse every request whose answer has not begun: its client is to ask another server."""
        self.draining = self.over = True
        for task in list(self.under_way):
            task.cancel()

    def close(self) -> None:
        """End the threads once their current work is done."""
        for worker in self.workers:
            worker.shutdown(wait=False, cancel_futures=True)

    async def answer(self, request: Request, work: Callable[[], Awaitable[T]]) -> T:
        """Await `work()`, until the deadline (503) or until its client disconnects: its texts then leave the queue."""
        task = asyncio.ensure_future(work())
        gone = asyncio.ensure_future(_disconnected(request))
        try:
            seconds, now = self.config.deadline, monotonic()
            until = request.scope.setdefault(_UNTIL, now + seconds)  # one deadline, for its body and its texts
            await asyncio.wait({task, gone}, timeout=max(0, until - now), return_when=asyncio.FIRST_COMPLETED)
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
        sizes = _sizes(texts)
        self._check_sizes(sizes)
        self.admit(len(texts))
        self.held += len(texts)
        self._idle.clear()
        try:
            return await self._score(texts, sizes)
        finally:
            self.held -= len(texts)
            if not self.held:
                self._idle.set()

    def admit(self, count: int) -> None:
        """Refuse where the server ends, or its queue cannot take so many more texts."""
        if self.draining:
            raise Refused(503, "draining", "The server is ending. Use another one.", close=True)
        if self.held + count > self.config.queue:
            message = f"{self.held} texts wait, and at most {self.config.queue} may. Retry after a moment."
            raise Refused(503, "queue_full", message)

    def _check_sizes(self, sizes: Sequence[int]) -> None:
        for row, size in enumerate(sizes):
            if size > self.max_chars:
                self.metrics.refused.inc()
                message = f"Text {row} has {size:,} characters with its prompt, and the limit is {self.max_chars:,}."
                raise Refused(422, "text", message, row)
        most = max(self.config.max_body, _A_TOKEN_ON_AVERAGE * self._max_length * self.config.max_texts)
        if sum(sizes) > most:
            message = f"The texts have {sum(sizes):,} characters with their prompts, and a request may have {most:,}."
            raise Refused(422, "too_many_characters", f"{message} Send several requests.")

    async def _score(self, texts: Sequence[ScoreItem], sizes: Sequence[int]) -> list[Scored]:
        if self._batcher is None:
            try:
                # Shielded: one client that goes away must not stop the loading for all.
                await asyncio.shield(self.loading)
            except EBRMError as error:
                raise Refused(503, "loading", f"The reward model cannot be loaded: {error}") from error
        assert self._batcher is not None
        tokens = await self._tokenize(texts, sizes)
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

    async def _tokenize(self, texts: Sequence[ScoreItem], sizes: Sequence[int]) -> list[TokenizedText]:
        """Token ids of each text, a few at a time: a large request must not hold up a small one."""
        loop, tokens = asyncio.get_running_loop(), list[TokenizedText]()

        def some(rows: range) -> list[TokenizedText]:
            return [self._ids_of(row, texts[row]) for row in rows]

        for rows in _slices(sizes):
            tokens += await loop.run_in_executor(self._texts, some, rows)
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
        except MemoryError:
            raise
        except Exception as error:
            # Templates and tokenizers are others' work, and would fail on this text again. Their words may hold it.
            self.metrics.refused.inc()
            logger.warning("The chat template or tokenizer failed on a text, with %s.", type(error).__name__)
            message = f"{where}: the chat template or tokenizer failed on it ({type(error).__name__}). Leave it out."
            raise Refused(422, "text", message, row) from error
        return tokens

    async def on_reader(self, work: Callable[..., T], *given: Any) -> T:
        """Run `work(*given)` on the thread that reads bodies."""
        return await asyncio.get_running_loop().run_in_executor(self._bodies, work, *given)

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


def _sizes(texts: Sequence[ScoreItem]) -> list[int]:
    """Characters of each text with its prompt; a prompt of many responses is counted for each, but looked at once."""
    prompts = {id(text.prompt): text.prompt for text in texts}
    sizes = {which: _characters(prompt) for which, prompt in prompts.items()}
    return [_characters(text.response) + sizes[id(text.prompt)] for text in texts]


def _characters(value: Any) -> int:
    if isinstance(value, str):
        return len(value)
    if isinstance(value, Mapping):
        return _TURN + sum(len(name) + _characters(inside) for name, inside in value.items())
    return sum(map(_characters, value)) if isinstance(value, list | tuple) else 0


def _slices(sizes: Sequence[int]) -> Iterator[range]:
    """Rows in order, as many at a time as may be tokenized in a row; one at least."""
    start, held = 0, 0
    for row, size in enumerate(sizes):
        if row > start and (row - start == _TOKENIZED or held + size > _CHARACTERS):
            yield range(start, row)
            start, held = row, 0
        held += size
    if sizes:
        yield range(start, len(sizes))


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
