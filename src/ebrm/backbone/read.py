"""Read embedding and reward of many texts from a frozen reward model, in one forward a batch."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ebrm.backbone.check import check_padding, check_reading, reported_reward
from ebrm.backbone.families import Loaded, last_position
from ebrm.backbone.identity import BackboneIdentity
from ebrm.backbone.layers import InnerLayers
from ebrm.errors import BackboneError
from ebrm.preferences import text
from ebrm.preferences.text import TextRule, TokenizedText

logger = logging.getLogger(__name__)

#: Most tokens in a batch on a CPU: what its caches hold. Four times as many take up to half as long again, 16,384 twice
#: as long (docs/performance.md).
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


@dataclass(frozen=True)
class Head:
    """The last linear map of a reward model, float32 on the CPU: weight [1, d], bias [1] or None.

    Its input are the first d numbers of an embedding; what follows them are means of inner layers.
    """

    weight: Tensor
    bias: Tensor | None

    def __call__(self, embedding: Tensor) -> Tensor:
        """Rewards [n] of embeddings [n, d] or longer, in float32."""
        pooled_position = embedding[..., : self.weight.shape[1]]
        return nn.functional.linear(pooled_position.float(), self.weight, self.bias).squeeze(-1)


class Backbone:
    """A frozen reward model: tokenises a prompt with a response, and reads (embedding, reward).

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
        self._head = loaded.head
        bias = None if loaded.head.bias is None else loaded.head.bias.detach().float().cpu().clone()
        self.head = Head(loaded.head.weight.detach().float().cpu().clone(), bias)
        self.layers = layers
        self.embedding_size = loaded.head.in_features + layers.size
        self.tokenizer, self.text_rule, self.identity = tokenizer, text_rule, identity
        self.device, self.limit = device, limit
        self.token_budget = min(token_budget, _CPU_BATCH_TOKENS) if device.type == "cpu" else token_budget
        for config in _configs(self.model):
            config.use_cache = False  # keys and values are for generating; here they would only fill memory
        self._pad = _pad_id(tokenizer, self.model)
        self._vocabulary = _vocabulary(self.model)
        self._checked = False

    def tokenize(
        self, prompt: Sequence[Mapping[str, str]] | str, response: str, where: str = ""
    ) -> TokenizedText | None:
        """Token ids of a prompt with its response under `text_rule` (see `ebrm.preferences.text.tokenize`).

        Raises:
            TextError: a text that cannot be written or is too long.
        """
        return text.tokenize(self.text_rule, self.tokenizer, prompt, response, where)

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
        self._refuse_ids(token_ids)
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

    def _refuse_ids(self, token_ids: Sequence[Sequence[int]]) -> None:
        for row, ids in enumerate(token_ids):
            if not len(ids):
                raise BackboneError(f"Row {row} has no tokens. Each text needs at least one; check the text rule.")
            if self.limit is not None and len(ids) > self.limit:
                raise BackboneError(
                    f"Row {row} has {len(ids)} tokens, and {self.identity.name} takes at most {self.limit}. Tokenise "
                    "with truncation='prompt_left' or 'drop'."
                )
            if min(ids) < 0 or (self._vocabulary is not None and max(ids) >= self._vocabulary):
                raise BackboneError(
                    f"Row {row} holds the token id {min(ids) if min(ids) < 0 else max(ids)}, but {self.identity.name} "
                    f"knows ids 0 to {(self._vocabulary or 0) - 1}. The tokenizer has tokens that the model lacks: use "
                    "the model's own tokenizer."
                )

    def _try(self, rows: list[Sequence[int]]) -> Tensor | None:
        """Embeddings of one batch, float32 on the CPU; None when memory ran out."""
        try:
            return self._forward(rows)
        except (torch.OutOfMemoryError, RuntimeError) as error:
            if not _out_of_memory(error):
                raise
        # Outside the except block: the error no longer keeps the batch's tensors alive.
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        return None

    def _forward(self, rows: list[Sequence[int]]) -> Tensor:
        ids, mask = self._pad_rows(rows)
        captured, means, output = self._capture(ids, mask)
        parts = [pooled(captured, mask), *means]
        if not self._checked:
            check_reading(self.identity.name, self._head, captured, mask, parts[0], reported_reward(output, mask))
            self._check_padding(rows, ids, mask, parts)
            self._checked = True
        return torch.cat([part.float() for part in parts], dim=1).cpu()

    def _capture(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, list[Tensor], Any]:
        """What went into the head, the mean of each inner layer [n, h], and what the model gave."""
        seen: list[Tensor] = []
        handle = self._head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        try:
            with torch.no_grad(), self.layers.averaging(mask) as means:
                output = self.model(input_ids=ids, attention_mask=mask)
        finally:
            handle.remove()
        if len(seen) != 1:
            raise BackboneError(
                f"{self.identity.name} ran its head {self.identity.head_module} {len(seen)} times in one forward, and "
                "once was expected. Name another head with head=…, or teach ebrm this model with register_family."
            )
        return seen[0], means, output

    def _check_padding(self, rows: list[Sequence[int]], ids: Tensor, mask: Tensor, parts: list[Tensor]) -> None:
        """Read the shortest text of the batch without padding, and compare it part by part."""
        shortest = min(range(len(rows)), key=lambda row: len(rows[row]))
        length = len(rows[shortest])
        if length < ids.shape[1]:
            text = slice(shortest, shortest + 1), slice(length)
            captured, means, _ = self._capture(ids[text], mask[text])
            alone = [pooled(captured, mask[text]), *means]
            called = ["embedding", *(f"mean of the hidden states after block {index}" for index in self.layers.indices)]
            for padded, single, part in zip(parts, alone, called, strict=True):
                check_padding(self.identity.name, padded[shortest], single[0], self._head.weight.dtype, part)

    def _pad_rows(self, rows: list[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Token ids and mask [n, L], padded on the right."""
        # transformers' own classes take the last token that is not the padding token for the end of the text. The
        # reward they report is right only if no text ends in that token, as it would where padding is the end of text.
        ends = {row[-1] for row in rows}
        pad = self._pad if self._pad not in ends else next(token for token in range(len(ends) + 1) if token not in ends)
        for config in _configs(self.model):
            config.pad_token_id = pad
        longest = max(map(len, rows))
        ids = torch.tensor([[*row, *[pad] * (longest - len(row))] for row in rows], dtype=torch.int64)
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows], dtype=torch.int64)
        return ids.to(self.device), mask.to(self.device)


def pooled(captured: Tensor, attention_mask: Tensor) -> Tensor:
    """The embeddings [n, d] in what went into the head.

    Args:
        captured: [n, L, d], the head ran on every token: read at the last position of each text; or [n, d], the model
            pooled before its head: taken as it is.
        attention_mask: [n, L].

    Raises:
        BackboneError: another shape.
    """
    n, length = attention_mask.shape
    if captured.ndim == 3 and captured.shape[:2] == (n, length):
        return captured[torch.arange(n, device=captured.device), last_position(attention_mask)]
    if captured.ndim == 3 and captured.shape[:2] == (n, 1):
        return captured[:, 0]
    if captured.ndim == 2 and len(captured) == n:
        return captured
    raise BackboneError(
        f"The head got a tensor of shape {list(captured.shape)} for {n} texts of {length} tokens; [{n}, {length}, d] "
        f"or [{n}, d] was expected. Teach ebrm this model with ebrm.backbone.families.register_family."
    )


def _next_batch(queue: list[int], token_ids: Sequence[Sequence[int]], budget: int) -> list[int]:
    return queue[: max(1, budget // len(token_ids[queue[0]]))]


def _out_of_memory(error: BaseException) -> bool:
    said = str(error).lower()
    return isinstance(error, torch.OutOfMemoryError) or "not enough memory" in said or "can't allocate memory" in said


def _configs(model: nn.Module) -> list[Any]:
    config = getattr(model, "config", None)
    if config is None:
        return []
    inner = config.get_text_config() if hasattr(config, "get_text_config") else config
    return [config] if inner is config else [config, inner]


def _pad_id(tokenizer: Any, model: nn.Module) -> int:
    configs = _configs(model)
    choices = [
        tokenizer.pad_token_id,
        *(getattr(config, "pad_token_id", None) for config in configs),
        tokenizer.eos_token_id,
    ]
    return next((int(token) for token in choices if isinstance(token, int) and token >= 0), 0)


def _vocabulary(model: nn.Module) -> int | None:
    try:
        table = model.get_input_embeddings()  # type: ignore[operator]
    except (AttributeError, NotImplementedError, TypeError):
        return None
    return int(table.weight.shape[0]) if isinstance(getattr(table, "weight", None), Tensor) else None
