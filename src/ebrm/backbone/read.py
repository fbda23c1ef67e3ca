"""Read embedding and reward of many texts from a frozen reward model, in one forward a batch."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ebrm.backbone.families import Loaded
from ebrm.backbone.forward import Forward, Head, configs, float32_head, vocabulary_size
from ebrm.backbone.identity import BackboneIdentity
from ebrm.backbone.layers import InnerLayers
from ebrm.data import TextRule, TokenizedText, text
from ebrm.errors import BackboneError

__all__ = ["Backbone", "Head", "Reading", "vocabulary_size"]

logger = logging.getLogger(__name__)

#: Most tokens in a batch on a CPU: what its caches hold; 16,384 take about twice as long (docs/performance.md).
_CPU_BATCH_TOKENS = 1024


@dataclass(frozen=True)
class Reading:
    """What a reward model said about n texts, float32 on the CPU.

    Attributes:
        embedding: [n, d + k·h]: the input of its last linear map (d numbers), then, for each of k inner layers, the
            mean of the hidden states (h numbers) over the tokens of the text.
        reward: [n], that map applied in float32 to the first d numbers.
    """

    embedding: Tensor
    reward: Tensor


class Backbone:
    """A frozen reward model: tokenizes a prompt with a response, and reads (embedding, reward).

    Attributes:
        model: the model, in evaluation mode, without gradients.
        tokenizer: its tokenizer.
        head: its last linear map, float32 on the CPU.
        layers: which blocks are averaged into the embedding, after what goes into the head.
        embedding_size: d + k·h, the head's input and the means of k layers.
        text_rule: how text becomes token ids.
        identity: which model this is.
        device: where it runs.
        token_budget: most tokens in a batch, padding counted; on a CPU at most 1,024, where larger batches are slower.
        limit: most tokens the model takes, None when it does not say.
        forward: one batch through it.
    """

    def __init__(
        self,
        loaded: Loaded,
        tokenizer: Any,
        text_rule: TextRule,
        identity: BackboneIdentity,
        *,
        device: torch.device,
        token_budget: int,
        limit: int | None,
        layers: InnerLayers,
    ) -> None:
        self.model = loaded.model.eval().requires_grad_(False).to(device)
        self.head: Head = float32_head(loaded.head)
        self.layers = layers
        self.embedding_size = loaded.head.in_features + layers.size
        self.tokenizer, self.text_rule, self.identity = tokenizer, text_rule, identity
        self.device, self.limit = device, limit
        self.token_budget = min(token_budget, _CPU_BATCH_TOKENS) if device.type == "cpu" else token_budget
        for config in configs(self.model):
            config.use_cache = False  # keys and values are for generating; here they would only fill memory
        self.forward = Forward(
            name=identity.name, head_module=identity.head_module, model=self.model, head=loaded.head, layers=layers,
            pad=_pad_id(tokenizer, self.model), device=device, limit=limit,
        )  # fmt: skip
        self._checked = False

    def tokenize(
        self, prompt: Sequence[Mapping[str, str]] | str, response: str, where: str = ""
    ) -> TokenizedText | None:
        """Token ids of a prompt with its response under `text_rule` (see `ebrm.data.text.tokenize`).

        Raises:
            TextError: a text that cannot be written or is too long.
        """
        return text.tokenize(self.text_rule, self.tokenizer, prompt, response, where)

    def tokenize_rendered(self, written: str, where: str = "") -> TokenizedText | None:
        """Token ids of a conversation that is already one text (see `ebrm.data.text.tokenize_rendered`).

        Raises:
            TextError: a text that is not a string, has no tokens or is too long.
        """
        return text.tokenize_rendered(self.text_rule, self.tokenizer, written, where)

    def read(self, token_ids: Sequence[Sequence[int]]) -> Reading:
        """Embeddings and rewards of n token sequences, in the order given; n may be 0.

        Texts run sorted by length, in batches of at most `token_budget` tokens (padding counted), padded on the right.
        The budget is halved when memory runs out. On the first batch it is checked that the head on the embedding gives
        the reward the model reports, and that padding moves no part of the embedding.

        Raises:
            BackboneError: an empty or too long sequence, an unknown token id, an embedding or reward that is not
                finite, memory too small for a single text (all name the row), a reading that is not the model's
                reward, or inner layers that give no hidden states of the text.
        """
        n = len(token_ids)
        self.forward.refuse(token_ids)
        embedding = torch.empty(n, self.embedding_size)
        budget = self.token_budget
        # Longest first: if memory runs out, it does so at once.
        queue = sorted(range(n), key=lambda row: -len(token_ids[row]))
        while queue:
            batch = _next_batch(queue, token_ids, budget)
            found = self._try([token_ids[row] for row in batch])
            if found is None:
                if len(batch) == 1:
                    raise BackboneError(
                        f"Memory on {self.device} is too small for a single text: row {batch[0]} has "
                        f"{len(token_ids[batch[0]])} tokens. Lower max_length, use dtype='bfloat16', or a device with "
                        "more memory."
                    )
                budget = len(batch) // 2 * len(token_ids[batch[0]])
                logger.warning("out of memory on %s; going on with batches of %d tokens", self.device, budget)
                continue
            embedding[batch] = found
            queue = queue[len(batch) :]
        reward = self.head(embedding)
        bad = ~(embedding.isfinite().all(dim=1) & reward.isfinite())
        if bool(bad.any()):
            row = int(bad.nonzero()[0])
            raise BackboneError(
                f"{self.identity.name} gives {int(bad.sum())} of {n} texts an embedding or reward that is not a finite "
                f"number, first row {row} ({len(token_ids[row])} tokens). In float16 this is overflow: use "
                "dtype='bfloat16' or 'float32'; else the weights are damaged."
            )
        return Reading(embedding, reward)

    def batch_drift(self, token_ids: Sequence[Sequence[int]]) -> float:
        """Largest difference between rewards read in batches and one by one, in their units; 0.0 for no texts."""
        if not token_ids:
            return 0.0
        together = self.read(token_ids).reward
        alone = torch.cat([self.read([ids]).reward for ids in token_ids])
        return float((together - alone).abs().max())

    def _try(self, rows: list[Sequence[int]]) -> Tensor | None:
        """Embeddings of one batch, float32 on the CPU; None when memory ran out."""
        try:
            found = self.forward.embed(rows, check=not self._checked)
            self._checked = True
            return found
        except (torch.OutOfMemoryError, RuntimeError) as error:
            if not _out_of_memory(error):
                raise
        # Outside the except block: the error no longer keeps the batch's tensors alive.
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        return None


def _next_batch(queue: list[int], token_ids: Sequence[Sequence[int]], budget: int) -> list[int]:
    return queue[: max(1, budget // len(token_ids[queue[0]]))]


def _out_of_memory(error: BaseException) -> bool:
    said = str(error).lower()
    return isinstance(error, torch.OutOfMemoryError) or "not enough memory" in said or "can't allocate memory" in said


def _pad_id(tokenizer: Any, model: nn.Module) -> int:
    choices = [
        tokenizer.pad_token_id,
        *(getattr(config, "pad_token_id", None) for config in configs(model)),
        tokenizer.eos_token_id,
    ]
    return next((int(token) for token in choices if isinstance(token, int) and token >= 0), 0)
