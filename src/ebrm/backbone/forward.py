"""One batch through a reward model: what goes into its head, and the means of its inner layers."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ebrm.backbone.check import check_padding, check_reading, reported_reward
from ebrm.backbone.families import last_position
from ebrm.backbone.layers import InnerLayers
from ebrm.errors import BackboneError


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


def float32_head(head: nn.Linear) -> Head:
    """The head of a model as it is now, whatever its precision and device."""
    bias = None if head.bias is None else head.bias.detach().float().cpu().clone()
    return Head(head.weight.detach().float().cpu().clone(), bias)


# Hooks sit on a model's modules, so a model is read by one thread at a time, whoever holds it.
_locks: WeakKeyDictionary[nn.Module, threading.Lock] = WeakKeyDictionary()


@dataclass(frozen=True, eq=False)
class Forward:
    """A frozen reward model that is read a batch at a time; safe to call from several threads.

    Attributes:
        name: the model, for messages.
        head_module: its head's name, for messages.
        model: the model.
        head: its last linear map, one of the model's modules.
        layers: which blocks are averaged.
        pad: the token that texts are padded with, unless one ends in it.
        device: where token ids go.
        limit: most tokens the model takes, None when it does not say.
    """

    name: str
    head_module: str
    model: nn.Module
    head: nn.Linear
    layers: InnerLayers
    pad: int
    device: torch.device
    limit: int | None

    def embed(self, rows: Sequence[Sequence[int]], check: bool = False) -> Tensor:
        """Embeddings [n, d + k·h] of one batch of at least one text, float32 on the CPU.

        Texts are padded on the right. The model is read without gradients and in its own precision, whatever autocast
        the caller is in.

        Args:
            rows: the token ids of each text.
            check: also check that the head on the embedding gives the reward the model reports, and that padding, if
                there is any, moves no part of the embedding.

        Raises:
            BackboneError: a check that failed, a head that did not run once, or shapes that are not known.
        """
        with _locks.setdefault(self.model, threading.Lock()):
            return self._embed(rows, check)

    def _embed(self, rows: Sequence[Sequence[int]], check: bool) -> Tensor:
        ids, mask = self._pad_rows(rows)
        captured, means, output = self._capture(ids, mask)
        parts = [pooled(captured, mask), *means]
        if check:
            reported = reported_reward(output, mask).to(captured.device)
            check_reading(self.name, self.head, captured, mask.to(captured.device), parts[0], reported)
            self._check_padding(rows, ids, mask, parts)
        return torch.cat([part.float().cpu() for part in parts], dim=1)

    def _capture(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, list[Tensor], Any]:
        """What went into the head, the mean of each inner layer [n, h], and what the model gave."""
        seen: list[Tensor] = []
        handle = self.head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        try:
            with torch.no_grad(), torch.autocast(self.device.type, enabled=False), self.layers.averaging(mask) as means:
                output = self.model(input_ids=ids, attention_mask=mask)
        finally:
            handle.remove()
        if len(seen) != 1:
            raise BackboneError(
                f"{self.name} ran its head {self.head_module} {len(seen)} times in one forward, and once was expected. "
                "Name another head with head=…, or teach ebrm this model with register_family."
            )
        return seen[0], means, output

    def _check_padding(self, rows: Sequence[Sequence[int]], ids: Tensor, mask: Tensor, parts: list[Tensor]) -> None:
        """Read the shortest text of the batch without padding, and compare it part by part."""
        shortest = min(range(len(rows)), key=lambda row: len(rows[row]))
        length = len(rows[shortest])
        if length < ids.shape[1]:
            text = slice(shortest, shortest + 1), slice(length)
            captured, means, _ = self._capture(ids[text], mask[text])
            alone = [pooled(captured, mask[text]), *means]
            called = ["embedding", *(f"mean of the hidden states after block {index}" for index in self.layers.indices)]
            for padded, single, part in zip(parts, alone, called, strict=True):
                check_padding(self.name, padded[shortest], single[0], self.head.weight.dtype, part)

    def _pad_rows(self, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Token ids and mask [n, L], padded on the right."""
        # transformers' own classes take the last token that is not the padding token for the end of the text. The
        # reward they report is right only if no text ends in that token, as it would where padding is the end of text.
        ends = {row[-1] for row in rows}
        pad = self.pad if self.pad not in ends else next(token for token in range(len(ends) + 1) if token not in ends)
        for config in configs(self.model):
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
        return captured[torch.arange(n, device=captured.device), last_position(attention_mask).to(captured.device)]
    if captured.ndim == 3 and captured.shape[:2] == (n, 1):
        return captured[:, 0]
    if captured.ndim == 2 and len(captured) == n:
        return captured
    raise BackboneError(
        f"The head got a tensor of shape {list(captured.shape)} for {n} texts of {length} tokens; [{n}, {length}, d] "
        f"or [{n}, d] was expected. Teach ebrm this model with ebrm.backbone.families.register_family."
    )


def unreadable(name: str, ids: Sequence[int], limit: int | None, vocabulary: int | None) -> str | None:
    """Why a model cannot take a text's token ids (a sentence without its subject), or None.

    Args:
        name: the model, for messages.
        ids: token ids of one text.
        limit: most tokens the model takes, None when it does not say.
        vocabulary: how many token ids it knows, None where that cannot be told.
    """
    if not len(ids):
        return "has no tokens. Each text needs at least one; check the text rule."
    if limit is not None and len(ids) > limit:
        tokens = f"has {len(ids)} tokens, and {name} takes at most {limit}"
        return f'{tokens}. Tokenize with `truncation="prompt_left"` or `truncation="drop"`.'
    if min(ids) < 0 or (vocabulary is not None and max(ids) >= vocabulary):
        return (
            f"holds the token id {min(ids) if min(ids) < 0 else max(ids)}, but {name} knows ids 0 to "
            f"{(vocabulary or 0) - 1}. The tokenizer has tokens that the model lacks: use the model's own tokenizer."
        )
    return None


def configs(model: nn.Module) -> list[Any]:
    """A model's configuration, and that of its text part where that is another one; none for a model without."""
    config = getattr(model, "config", None)
    if config is None:
        return []
    inner = config.get_text_config() if hasattr(config, "get_text_config") else config
    return [config] if inner is config else [config, inner]


def vocabulary_size(model: nn.Module) -> int | None:
    """How many token ids a model knows, None where that cannot be told."""
    try:
        table = model.get_input_embeddings()  # type: ignore[operator]
    except (AttributeError, NotImplementedError, TypeError):
        return None
    return int(table.weight.shape[0]) if isinstance(getattr(table, "weight", None), Tensor) else None
