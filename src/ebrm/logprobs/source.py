"""What gives log-probabilities of responses: texts as token ids with the response's place, for any language model."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Protocol

import torch

from ebrm.backbone import dropped_text, pair_texts, unreadable
from ebrm.data import Prompt, Reply, ResponseTokens, TextRule, tokenize_response
from ebrm.errors import TextError
from ebrm.logprobs.tokens import TokenLogprobs


class LogprobSource(Protocol):
    """Anything that gives the log-probabilities of responses after their prompts."""

    def __call__(self, prompts: Prompt | Sequence[Prompt], responses: Reply | Sequence[Reply]) -> TokenLogprobs:
        """Log-probabilities of the tokens of each response, in the order given."""
        ...


class TextLogprobs(ABC):
    """What both producers share: how texts become token ids, and which of them are the response's.

    Attributes:
        name: the language model, for messages.
        tokenizer: its tokenizer, a fast one.
        text_rule: how text becomes token ids, as for reward models.
        limit: most tokens the model takes, None if unknown.
        closing: whether the tokens that close the response's turn count as the response's, too.
    """

    def __init__(self, name: str, tokenizer: Any, text_rule: TextRule, limit: int | None, closing: bool) -> None:
        self.name, self.tokenizer, self.text_rule = name, tokenizer, text_rule
        self.limit, self.closing = limit, closing
        self._tokenizing = threading.Lock()  # a tokenizer fails in two threads at once

    def __call__(
        self,
        prompts: Prompt | Sequence[Prompt],
        responses: Reply | Sequence[Reply],
        *,
        unconditional: bool = False,
        log_z: bool = False,
        temperature: float = 1.0,
    ) -> TokenLogprobs:
        """Log-probabilities of the tokens of n responses, float32 on the CPU, in the order given; n may be 0.

        The first token of a response stands first in its row, whatever its prompt.

        Args:
            prompts, responses: one prompt and one response, one prompt with a list of responses, or two lists.
            unconditional: leave the prompts out: after their system turns comes an empty user's turn (the self-aligned
                reward's ppl(y), as in the paper's code).
            log_z: also read log Z of the logits that each token was drawn from.
            temperature: what logits are divided by, above 0.

        Raises:
            TextError: prompts and responses that do not match; a row that cannot be written, is too long, or has
                nothing before its response.
            BackboneError, ServerError: a model or server that fails, or log-probabilities that are not finite, by row.
            ConfigError: what this producer does not give, by name.
        """
        pairs = pair_texts(prompts, responses)
        texts = [self._tokens(row, pair, unconditional=unconditional) for row, pair in enumerate(pairs)]
        return self._read(texts, log_z, temperature)

    def followup(
        self, prompts: Prompt | Sequence[Prompt], responses: Reply | Sequence[Reply], followup: str
    ) -> TokenLogprobs:
        """Log-probabilities of what a user says next, after each prompt and response (for `followup_likelihood`).

        Arguments and errors are those of a call; the follow-up's own tokens count, not those that close its turn.
        """
        if not followup.strip():
            raise TextError("The follow-up is empty; give what the user says next.")
        pairs = pair_texts(prompts, responses)
        texts = [self._tokens(row, pair, followup=followup) for row, pair in enumerate(pairs)]
        return self._read(texts, False, 1.0)

    def _tokens(
        self, row: int, pair: tuple[Prompt, Reply], *, followup: str | None = None, unconditional: bool = False
    ) -> ResponseTokens:
        """Token ids of one row whose response, closed if that counts, is `ids[start:end]`."""
        at = f"Text {row}"
        with self._tokenizing:
            found = tokenize_response(
                self.text_rule, self.tokenizer, *pair, at, followup=followup, unconditional=unconditional
            )
        if found is None:
            dropped = dropped_text(self.text_rule)
            raise type(dropped)(f"{at}: {dropped.fact}", dropped.advice)
        if (why := unreadable(self.name, found.ids, self.limit, self._vocabulary())) is not None:
            raise TextError(f"{at} {why}")
        end = len(found.ids) if self.closing and followup is None else found.end
        if not found.start and end:
            why = "its prompt is cut off" if found.truncated else "the text rule writes nothing there"
            raise TextError(
                f"{at}: nothing stands before the response ({why}), and a first token has no probability. Raise "
                "`max_length`, or use a template or a start-of-text token that stands before it."
            )
        return ResponseTokens(found.ids, found.start, end, found.truncated)

    def _vocabulary(self) -> int | None:
        return None

    @abstractmethod
    def _read(self, texts: Sequence[ResponseTokens], log_z: bool, temperature: float) -> TokenLogprobs:
        """Log-probabilities of the response's tokens of each text."""


def empty_table(texts: Sequence[ResponseTokens]) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities [n, T] to fill, float32, and the mask of the response's tokens."""
    lengths = torch.tensor([text.end - text.start for text in texts], dtype=torch.int64)
    most = int(lengths.max()) if len(texts) else 0
    return torch.zeros(len(texts), most), torch.arange(most) < lengths[:, None]
