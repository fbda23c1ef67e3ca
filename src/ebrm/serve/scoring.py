"""Scoring for the routes: admission, tokenization off the event loop, batches across requests."""

from __future__ import annotations

import asyncio
import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from ebrm.backbone import Prompt
from ebrm.data import TokenizedText
from ebrm.errors import EBRMError, ModelError, TextError
from ebrm.model import EnergyRewardModel
from ebrm.serve.batching import Batcher, TextFailed
from ebrm.serve.config import ServeConfig
from ebrm.serve.errors import Refused
from ebrm.serve.metrics import Metrics

if TYPE_CHECKING:
    from ebrm.backbone import Backbone

logger = logging.getLogger(__name__)

T = TypeVar("T")

#: Texts tokenized in a row for one request, before others get their turn.
_TOKENISED = 8


@dataclass(frozen=True)
class ScoreItem:
    """A prompt and a response to score."""

    prompt: Prompt
    response: str

    def tokenize(self, backbone: Backbone, where: str) -> TokenizedText | None:
        """As offline."""
        return backbone.tokenize(self.prompt, self.response, where)


@dataclass(frozen=True)
class RenderedText:
    """A text to score that was put through a chat template already."""

    text: str

    def tokenize(self, backbone: Backbone, where: str) -> TokenizedText | None:
        """By the same rules for start and end tokens and for length."""
        return backbone.tokenize_rendered(self.text, where)


@dataclass(frozen=True)
class Scored:
    """One text's numbers.

    Attributes:
        values: as `RefinedReward.to_rows` gives them.
        embedding: [d]. base_reward: []. Both for what more is asked of the density.
        tokens: how many were read.
    """

    values: dict[str, float]
    embedding: Tensor
    base_reward: Tensor
    tokens: int


class Scoring:
    """A model with its threads, its queue and its meters.

    Args:
        model, settings: what is served, and its limits.
        backbone: fields of :class:`BackboneConfig` by which its reward model is loaded; others as saved.

    Attributes:
        model: what is served. Its reward model is loaded by :meth:`load`.
        settings: limits.
        meters: counts.
        held: texts accepted and not yet answered.
        draining: no more requests are accepted.
    """

    def __init__(
        self, model: EnergyRewardModel, settings: ServeConfig, backbone: Mapping[str, Any] | None = None
    ) -> None:
        self.model, self.settings = model, settings
        self._backbone = dict(backbone or {})
        self.meters = Metrics(lambda: self.held)
        self.held = 0
        self.draining = False
        self._idle = asyncio.Event()
        self._idle.set()
        self._batcher: Batcher[Scored] | None = None
        self._loading: asyncio.Task[None] | None = None
        # A thread each: a tokenizer is not safe in two, and neither is the device's memory.
        self._texts = ThreadPoolExecutor(1, "ebrm-tokenize")
        self._model = ThreadPoolExecutor(1, "ebrm-model")

    @property
    def ready(self) -> bool:
        """Whether a request would be scored now."""
        return self._batcher is not None and not self.draining

    @property
    def loading(self) -> asyncio.Task[None]:
        """The task that loads the reward model, started when first asked for."""
        if self._loading is None or self._loading.cancelled():
            self._loading = asyncio.get_running_loop().create_task(self._load())
        return self._loading

    async def _load(self) -> None:
        if self._batcher is None:
            await self.on_model(self._first_reading)
            self._batcher = Batcher(
                self._run,
                self._model,
                tokens=self.model.backbone.token_budget,
                max_wait=self.settings.max_wait / 1000,
                measured=self.meters.batch,
            )

    def _first_reading(self) -> None:
        """Load the reward model; read a text, so that what is wrong with it shows before a request comes."""
        if self._backbone:
            self.model = self.model.with_backbone(**self._backbone)
        tokens = self.model.backbone.tokenize("Hello", "Hello")
        self._run([tokens.ids if tokens is not None else [0]])

    async def on_model(self, work: Callable[[], T]) -> T:
        """Run `work` on the model's thread."""
        return await asyncio.get_running_loop().run_in_executor(self._model, work)

    async def score(self, texts: Sequence[ScoreItem | RenderedText]) -> list[Scored]:
        """Numbers of each text, in order; also of none.

        Raises:
            Refused: 422 too many texts or one that cannot be read, 503 when the queue is full or the server is ending.
        """
        if len(texts) > self.settings.max_texts:
            raise Refused(
                422, "too_many_texts",
                f"The request holds {len(texts)} texts, and the limit is {self.settings.max_texts}. Send several "
                "requests.",
            )  # fmt: skip
        if self.draining:
            raise Refused(503, "draining", "The server is ending. Ask another one.", close=True)
        if self.held + len(texts) > self.settings.queue:
            raise Refused(
                503, "queue_full",
                f"{self.held} texts wait, and at most {self.settings.queue} may. Come again after a moment.",
            )  # fmt: skip
        self.held += len(texts)
        self._idle.clear()
        try:
            return await self._score(texts)
        finally:
            self.held -= len(texts)
            if not self.held:
                self._idle.set()

    async def _score(self, texts: Sequence[ScoreItem | RenderedText]) -> list[Scored]:
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
                self.meters.refused.inc()
                message = f"Text {failed.row} cannot be scored: {failed.cause}"
                raise Refused(422, "text", message, failed.row) from failed
            raise failed.cause from None
        if self.settings.log_texts:
            for text, numbers in zip(texts, scored, strict=True):
                logger.info("%s", json.dumps({**vars(text), **numbers.values}))
        return scored

    async def _tokenize(self, texts: Sequence[ScoreItem | RenderedText]) -> list[TokenizedText]:
        """Token ids of each text, a few at a time: a large request must not hold up a small one."""
        loop = asyncio.get_running_loop()
        tokens: list[TokenizedText] = []
        for start in range(0, len(texts), _TOKENISED):
            tokens += await loop.run_in_executor(self._texts, self._ids, texts, start)
        self.meters.truncated.inc(sum(1 for text in tokens if text.truncated))
        return tokens

    def _ids(self, texts: Sequence[ScoreItem | RenderedText], start: int) -> list[TokenizedText]:
        return [self._ids_of(text, start + i) for i, text in enumerate(texts[start : start + _TOKENISED])]

    def _ids_of(self, text: ScoreItem | RenderedText, row: int) -> TokenizedText:
        try:
            tokens = text.tokenize(self.model.backbone, f"Text {row}")
        except TextError as error:
            self.meters.refused.inc()
            raise Refused(422, "text", str(error), row) from error
        if tokens is None:
            self.meters.refused.inc()
            raise Refused(
                422, "text",
                f"Text {row} is longer than the {self.model.backbone.text_rule.max_length} tokens that the reward "
                "model reads, and the model's text rule is to drop such texts. Leave it out.",
                row,
            )  # fmt: skip
        return tokens

    def _run(self, ids: list[Sequence[int]]) -> list[Scored]:
        """Read and refine one batch; on the model's thread."""
        reading = self.model.backbone.read(ids)
        refined = self.model.refine(reading.embedding, reading.reward)
        rows = refined.to_rows()
        for values in rows:
            if not all(map(math.isfinite, values.values())):
                raise ModelError("The density gives this text a reward that is not a finite number.")
        return [
            Scored(values, embedding, base, len(row))
            for values, embedding, base, row in zip(rows, reading.embedding, reading.reward, ids, strict=True)
        ]

    def features(self, scored: Sequence[Scored]) -> tuple[Tensor, Tensor]:
        """(embedding [n, d], base reward [n]) of texts that were scored; n may be 0."""
        if not scored:
            size = self.model.embedding_size
            return torch.empty(0, size), torch.empty(0)
        return torch.stack([s.embedding for s in scored]), torch.stack([s.base_reward for s in scored])

    async def drain(self) -> None:
        """Accept no more, and wait until what was accepted is answered."""
        self.draining = True
        await self._idle.wait()

    def close(self) -> None:
        """End the threads, when what they do is done."""
        self._texts.shutdown(wait=False)
        self._model.shutdown(wait=False)
