"""Read embedding and reward of many texts from a frozen reward model, in one forward a batch."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from ebrm.backbone.batches import in_batches, token_budget_on
from ebrm.backbone.families import Loaded
from ebrm.backbone.forward import Forward, Head, InnerLayers, configs, float32_head, unreadable, vocabulary_size
from ebrm.backbone.identity import BackboneIdentity
from ebrm.backbone.probe import fixed_texts, probe_mismatch
from ebrm.data import (
    Prompt,
    Reply,
    TextLook,
    TextRule,
    TokenizedText,
    look_at,
    rendered_already,
    tokenize,
    tokenize_rendered,
    warn_once,
)
from ebrm.errors import BackboneError, ConfigError, ModelError, TextError, TextTooLongError, setting

logger = logging.getLogger(__name__)

_BFLOAT16, _FLOAT32 = setting("dtype", "bfloat16"), setting("dtype", "float32")

logger = logging.getLogger(__name__)

#: What becomes of texts that cannot be read: an error, or rows of NaN with the reason.
OnError = Literal["raise", "nan"]


@dataclass(frozen=True)
class Reading:
    """Embeddings and base rewards of n texts, float32 on the CPU.

    Attributes:
        embedding: [n, d + k·h]: the head's input (d), then means of hidden states over the text's tokens, h a layer.
        reward: [n], the head applied in float32.
        truncated: tokens cut from the prompt of each, where texts were tokenized; else empty.
    """

    embedding: Tensor
    reward: Tensor
    truncated: tuple[int, ...] = ()


class Backbone:
    """A frozen reward model: tokenizes a prompt with a response, and reads (embedding, reward). Thread-safe.

    Attributes:
        model: the model, in evaluation mode, without gradients.
        tokenizer: its tokenizer.
        head: its last linear map, float32 on the CPU.
        layers: which blocks are averaged into the embedding, after the head's input.
        embedding_size: d + k·h, the head's input and the means of k layers.
        text_rule: how text becomes token ids.
        identity: which model this is.
        device: where it runs.
        token_budget: most tokens in a batch, padding counted; on a CPU at most 1,024, where larger batches are slower.
        limit: most tokens the model takes, None if unknown.
        forward: one batch through it.
    """

    _probe: tuple[tuple[float, ...], tuple[float, ...]] | None = None  # rewards of fixed texts, and their scale

    def __init__(
        self, loaded: Loaded, tokenizer: Any, text_rule: TextRule, identity: BackboneIdentity, *,
        device: torch.device, token_budget: int, limit: int | None, layers: InnerLayers,
    ) -> None:  # fmt: skip
        self.model = loaded.model.eval().requires_grad_(False).to(device)
        self.head: Head = float32_head(loaded.head)
        self.layers = layers
        self.embedding_size = loaded.head.in_features + layers.size
        self.tokenizer, self.text_rule, self.identity = tokenizer, text_rule, identity
        self.device, self.limit = device, limit
        self.token_budget = token_budget_on(device, token_budget)
        for config in configs(self.model):
            config.use_cache = False  # keys and values are for generating; here they would only fill memory
        self.forward = Forward(
            name=identity.name, head_module=identity.head_module, model=self.model, head=loaded.head, layers=layers,
            pad=pad_id(tokenizer, self.model), device=device, limit=limit,
        )  # fmt: skip
        self._vocabulary = vocabulary_size(self.model)
        self._checked = False
        self._tokenizing = threading.Lock()  # a tokenizer fails in two threads at once
        self._probing = threading.Lock()

    def check(
        self, identity: Mapping[str, Any], text_rule: Mapping[str, Any] | None, ignore: Sequence[str] = ()
    ) -> None:
        """Check that this is the reward model of an identity, read by the text rule (if any) that was stored with it.

        Fields of the text rule named in `ignore` may differ.

        Raises:
            ModelError: naming the difference.
        """
        stated = BackboneIdentity.from_dict(identity)
        difference = stated.mismatch(self.identity, ours="in the fitted model", theirs="now")
        if difference is not None:
            raise ModelError(
                f"This is not the reward model that the energy was fitted on: {difference}. Name no other reward model "
                "and no layers: the energy model then reads its own. If that one's files were changed, put back those "
                "that it was fitted on, or fit again."
            )
        if text_rule is not None:
            rule = TextRule.from_identity(text_rule)
            difference = rule.mismatch(self.text_rule, ours="in the fitted model", theirs="now", ignore=ignore)
            if difference is not None:
                raise ModelError(f"Scores would not be comparable with those the model was fitted on: {difference}.")
        if not stated.probe:
            logger.warning(
                "No rewards of fixed texts (probe) are stored with the model: that %s computes what it did then is "
                "known by its files alone. Make features and model again to have them.", self.identity.name,
            )  # fmt: skip
        elif (difference := self.probe_difference(stated, then="in the fitted model")) is not None:
            raise ModelError(
                f"This reward model gives other rewards than when the energy was fitted on it: {difference}. "
                f"{self._other_rewards()}, or make the features and the model again."
            )

    def probed(self) -> BackboneIdentity:
        """The identity with the probe: rewards of fixed texts, read once; without one where they are not finite."""
        with self._probing:
            if self._probe is None:
                with self._tokenizing:
                    ids = fixed_texts(self.tokenizer, self.limit)
                reading = self.read([one for one in ids if self._unreadable(one) is None], on_error="nan")
                first = reading.embedding[:, : self.head.weight.shape[1]]
                scale = reading.reward.abs() + (first * self.head.weight).norm(dim=1)
                finite = bool(scale.isfinite().all())
                self._probe = tuple(reading.reward.tolist()) if finite else (), tuple(scale.tolist())
        return replace(self.identity, probe=self._probe[0])

    def probe_difference(self, stated: BackboneIdentity, *, then: str = "then", now: str = "now") -> str | None:
        """Where this model's rewards of fixed texts are not the stated ones, beyond rounding; None where they are."""
        if not stated.probe:
            return None
        here = self.probed()
        assert self._probe is not None
        return probe_mismatch(stated, here, self._probe[1], then=then, now=now)

    def _other_rewards(self) -> str:
        """What to do where the files are the same and the rewards are not."""
        return (
            f"Its files are the same, so it is computed otherwise (here by transformers {version('transformers')}, "
            f"torch {torch.__version__}, on {self.device}): use the versions and the device of then"
        )

    def tokenize(self, prompt: Prompt, response: Reply, where: str = "") -> TokenizedText | None:
        """Token ids of a prompt with its response under `text_rule`; None or TextError as of `ebrm.data.tokenize`."""
        with self._tokenizing:
            return tokenize(self.text_rule, self.tokenizer, prompt, response, where)

    def look(self, prompt: Prompt, response: Reply) -> TextLook:
        """A prompt with a response as this reward model gets it, for people to look at (`ebrm.data.look_at`)."""
        with self._tokenizing:
            return look_at(self.text_rule, self.tokenizer, prompt, response)

    def tokenize_rendered(self, written: str, where: str = "") -> TokenizedText | None:
        """Token ids of a conversation that is already one text (`ebrm.data.tokenize_rendered`)."""
        with self._tokenizing:
            return tokenize_rendered(self.text_rule, self.tokenizer, written, where)

    def read_texts(
        self, prompts: Prompt | Sequence[Prompt], responses: Reply | Sequence[Reply], on_error: OnError = "raise"
    ) -> tuple[Reading, tuple[str | None, ...]]:
        """Embeddings and rewards of prompts with their responses, and for each row why it has none (None where it has).

        Args:
            prompts, responses: see :func:`pair_texts`.
            on_error: of texts that are refused, too long or not finite: "raise", or "nan" rows with reasons.

        Raises:
            TextError: prompts and responses that do not match; with "raise", a row that cannot be read.
            BackboneError, ServerError: as `read`, for what no single text is to blame for.
        """
        pairs = pair_texts(prompts, responses)
        return self._read_each([partial(self.tokenize, prompt, response) for prompt, response in pairs], on_error)

    def read_rendered(
        self, texts: str | Sequence[str], on_error: OnError = "raise"
    ) -> tuple[Reading, tuple[str | None, ...]]:
        """As `read_texts`, of conversations that are one text each (:func:`ebrm.data.text.tokenize_rendered`)."""
        given = [texts] if isinstance(texts, str) else as_list("texts", texts)
        return self._read_each([partial(self.tokenize_rendered, one) for one in given], on_error)

    def _read_each(
        self, texts: Sequence[Callable[[], TokenizedText | None]], on_error: OnError
    ) -> tuple[Reading, tuple[str | None, ...]]:
        if on_error not in get_args(OnError):
            raise ConfigError(f"`on_error` is {on_error!r}; it must be one of {', '.join(get_args(OnError))}.")
        errors: list[str | None] = [None] * len(texts)
        ids: dict[int, list[int]] = {}
        cut = [0] * len(texts)
        for row, tokens_of in enumerate(texts):
            try:
                tokens = tokens_of()
                if tokens is None:
                    raise dropped_text(self.text_rule)
                if tokens.marker is not None:
                    warn_once(rendered_already(tokens.marker))
                if (why := self._unreadable(tokens.ids)) is not None:
                    raise TextError(f"The text {why}")
            except TextError as error:
                if on_error == "raise":
                    raise type(error)(f"Text {row}: {error.fact}", error.advice) from error
                errors[row] = str(error)
                continue
            ids[row], cut[row] = tokens.ids, tokens.truncated
        embedding = torch.full((len(texts), self.embedding_size), torch.nan)
        reward = torch.full((len(texts),), torch.nan)
        rows = list(ids)
        found = self._embed(list(ids.values()))
        embedding[rows], reward[rows] = found, self.head(found)
        for row in rows:
            if not (reward[row].isfinite() and embedding[row].isfinite().all()):
                errors[row] = self.not_finite()
                if on_error == "raise":
                    raise TextError(f"Text {row}: {errors[row]}")
        bad = [row for row, error in enumerate(errors) if error is not None]
        embedding[bad], reward[bad] = torch.nan, torch.nan
        return Reading(embedding, reward, tuple(cut)), tuple(errors)

    def read(self, token_ids: Sequence[Sequence[int]], on_error: OnError = "raise") -> Reading:
        """Embeddings and rewards of n token sequences, in the order given; n may be 0.

        Batches of `token_budget` tokens, halved when memory runs out. On the first, the head on the embedding must give
        the reward the model reports, and padding must move no part of the embedding.

        Args:
            token_ids: the sequences.
            on_error: of rows that are not finite numbers: "raise", or "nan" in all their numbers.

        Raises:
            BackboneError: a bad sequence, numbers that are not finite, memory too small for one text (by row),
                a reading that is not the model's reward, or layers without hidden states.
        """
        for row, ids in enumerate(token_ids):
            if (why := self._unreadable(ids)) is not None:
                raise BackboneError(f"Row {row} {why}")
        embedding = self._embed(token_ids)
        reward = self.head(embedding)
        bad = ~(embedding.isfinite().all(dim=1) & reward.isfinite())
        if bool(bad.any()):
            if on_error == "nan":
                embedding[bad], reward[bad] = torch.nan, torch.nan
                return Reading(embedding, reward)
            row = int(bad.nonzero()[0])
            raise BackboneError(
                f"{self.identity.name} gives {int(bad.sum())} of {len(token_ids)} texts an embedding or reward that is "
                f"not a finite number, first row {row} ({len(token_ids[row])} tokens). {self._overflow()}"
            )
        return Reading(embedding, reward)

    def _unreadable(self, ids: Sequence[int]) -> str | None:
        return unreadable(self.identity.name, ids, self.limit, self._vocabulary)

    def not_finite(self) -> str:
        """Why a text has no reward where the model's numbers for it are NaN or infinite."""
        what = "gives this text an embedding or reward that is not a finite number."
        return f"{self.identity.name} {what} {self._overflow()}"

    def _overflow(self) -> str:
        if self.identity.dtype == "float16":
            return f"In float16 this is overflow, as a rule (above 65,504): use {_BFLOAT16} or {_FLOAT32}."
        return f"In {self.identity.dtype} this is hardly overflow: the model's weights hold NaN or infinite numbers."

    def _embed(self, token_ids: Sequence[Sequence[int]]) -> Tensor:
        """Embeddings [n, d + k·h] of sequences that the model can take."""
        embedding = torch.empty(len(token_ids), self.embedding_size)

        def read(rows: list[int]) -> Tensor:
            return self._read_batch([token_ids[row] for row in rows])

        for batch, found in in_batches([*map(len, token_ids)], self.token_budget, self.device, read):
            embedding[batch] = found
        return embedding

    def _read_batch(self, rows: list[Sequence[int]]) -> Tensor:
        """Embeddings of one batch, float32 on the CPU."""
        found = self.forward.embed(rows, check=not self._checked)
        # Rows that are not finite could not be checked.
        self._checked = self._checked or bool(found.isfinite().all(dim=1).any())
        return found

    def batch_drift(self, token_ids: Sequence[Sequence[int]]) -> float:
        """Largest difference between rewards read in batches and one by one, in their units; 0.0 for no texts."""
        if not token_ids:
            return 0.0
        together = self.read(token_ids, "nan").reward
        alone = torch.cat([self.read([ids], "nan").reward for ids in token_ids])
        return float((together - alone).abs().nan_to_num(0.0).max())


#: What the error of every such text has.
DROPPED = "and the text rule drops such texts"


def dropped_text(rule: TextRule) -> TextTooLongError:
    """The error of a text that the text rule drops."""
    return TextTooLongError(
        f"The text is longer than the {rule.max_length} tokens that the reward model reads, {DROPPED}.",
        f"Leave it out, or cut the prompt's beginning with {setting('truncation', 'prompt_left')}.",
    )


def pair_texts(prompts: Prompt | Sequence[Prompt], responses: Reply | Sequence[Reply]) -> list[tuple[Prompt, Reply]]:
    """The texts to score, one (prompt, response) a row.

    Args:
        prompts: one prompt (a string, messages, or a mapping of messages and tools), or a list of prompts.
        responses: one response (a string, or an assistant's message), or a list. One prompt is that of all responses.

    Raises:
        TextError: lists of different lengths, or a list of prompts with one response.
    """
    one = is_prompt(prompts)
    if one and isinstance(responses, str | Mapping):
        return [(prompts, responses)]  # type: ignore[list-item]
    if isinstance(responses, str | Mapping):
        count = len(as_list("prompts", prompts))
        raise TextError(
            f"There are {count} prompts in a list, but one response (not a list); give a list of responses."
        )
    answers = as_list("responses", responses)
    given = [prompts] * len(answers) if one else as_list("prompts", prompts)
    if len(given) != len(answers):
        raise TextError(f"There are {len(given)} prompts but {len(answers)} responses; give one each.")
    return list(zip(given, answers, strict=True))


def is_prompt(value: Any) -> bool:
    """Whether a value is one prompt, not a list of prompts: a string, messages, or a mapping of messages and tools."""
    if isinstance(value, str | Mapping):
        return True
    first = value[0] if isinstance(value, list | tuple) and value else None
    return isinstance(first, Mapping) and "messages" not in first


def as_list(name: str, value: Iterable[Any]) -> list[Any]:
    """A list of texts as a list; one text, or no list, is a TextError that names the argument."""
    found = value.tolist() if isinstance(value, np.ndarray) else value  # of no dimension: one text
    if isinstance(found, str | bytes | Mapping | Set) or not isinstance(found, Iterable):  # a set has no order
        one = name.removesuffix("s")
        what = f"one string; give a list, one {one} a row ([{one}] * n)" if isinstance(found, str) else None
        raise TextError(f"`{name}` is {what or f'a {type(found).__name__}; a list was expected'}.")
    return list(found)


def pad_id(tokenizer: Any, model: nn.Module) -> int:
    """The token to pad with: any that the model knows will do, since what pads is masked."""
    own = (getattr(config, "pad_token_id", None) for config in configs(model))
    choices = [tokenizer.pad_token_id, *own, tokenizer.eos_token_id]
    # A tokenizer may have been given a padding token without the model having been resized.
    size = vocabulary_size(model) or float("inf")
    return next((int(token) for token in choices if isinstance(token, int) and 0 <= token < size), 0)
