"""One forward through a reward model: the input of its head, and the means of its inner layers over each text."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ebrm.backbone.check import check_padding, check_reading, reported_reward
from ebrm.backbone.families import last_position
from ebrm.errors import BackboneError, setting

_WAY_OUT = f"Read the pooled position only, as the paper does: {setting('layers', [])}."


@dataclass(frozen=True)
class Head:
    """The last linear map of a reward model, over an embedding's first d numbers: weight [1, d], bias [1] or None."""

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


@dataclass(frozen=True, eq=False)
class InnerLayers:
    """Blocks of a model whose hidden states are averaged over the tokens of each text.

    Attributes:
        name: the model, for messages.
        indices: which blocks, counted from 1, ascending; () for none.
        blocks: the modules, in that order.
        width: h, the length of one hidden state.
    """

    name: str = ""
    indices: tuple[int, ...] = ()
    blocks: tuple[nn.Module, ...] = ()
    width: int = 0

    @property
    def size(self) -> int:
        """How many numbers the means have together: h for each block."""
        return self.width * len(self.indices)

    @contextmanager
    def averaging(self, attention_mask: Tensor) -> Iterator[list[Tensor]]:  # [n, L]
        """Average while the model runs inside this block; the list then holds one mean [n, h], float32, a block."""
        found: list[list[Tensor]] = [[] for _ in self.indices]
        means: list[Tensor] = []
        with ExitStack() as hooks:
            for block, index, own in zip(self.blocks, self.indices, found, strict=True):
                handle = block.register_forward_hook(partial(self._average, attention_mask, index, own))
                hooks.callback(handle.remove)
            yield means
        for index, own in zip(self.indices, found, strict=True):
            if len(own) != 1:
                raise BackboneError(
                    f"{self.name} ran its block {index} {len(own)} times in one forward, and once was expected, so "
                    f"there is no one mean of its hidden states. {_WAY_OUT}"
                )
            means += own

    def _average(
        self, mask: Tensor, index: int, found: list[Tensor], _module: nn.Module, _inputs: Any, output: Any
    ) -> None:
        hidden = output[0] if isinstance(output, tuple | list) and output else output
        if not isinstance(hidden, Tensor) or hidden.shape != (*mask.shape, self.width):
            seen = f"a tensor of shape {list(hidden.shape)}" if isinstance(hidden, Tensor) else type(hidden).__name__
            raise BackboneError(
                f"Block {index} of {self.name} gives {seen} for {mask.shape[0]} texts of {mask.shape[1]} tokens; "
                f"hidden states {[*mask.shape, self.width]} were expected. {_WAY_OUT}"
            )
        mask = mask.to(hidden.device)  # of a model that is spread over devices
        # Padding is put to zero, not multiplied by it: whatever a model computes there may be NaN.
        text = hidden.masked_fill(mask.unsqueeze(-1) == 0, 0.0)
        found.append(text.sum(dim=1, dtype=torch.float32) / mask.sum(dim=1, keepdim=True))


# Hooks sit on a model's modules, so a model is read by one thread at a time, whoever holds it.
_locks: WeakKeyDictionary[nn.Module, threading.Lock] = WeakKeyDictionary()


@dataclass(frozen=True, eq=False)
class Forward:
    """A frozen reward model that is read a batch at a time; safe to call from several threads.

    Attributes:
        name, head_module: the model and its head, for messages.
        model: the model.
        head: its last linear map, one of the model's modules.
        layers: which blocks are averaged.
        pad: the token that texts are padded with, unless one ends in it.
        device: where token ids go.
        limit: most tokens the model takes, None if unknown.
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
        """Embeddings [n, d + k·h] of one batch, float32 on the CPU, without gradients or autocast.

        With `check`, the head on the embedding must give the model's own reward, and padding must move no part of it.

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
            self._check(rows, ids, mask, captured, parts, reported_reward(output, mask))
        return torch.cat([part.float().cpu() for part in parts], dim=1)

    def _capture(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, list[Tensor], Any]:
        """The input of the head, the mean of each inner layer [n, h], and the model's output."""
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
                "Name another head with `head`, or teach ebrm this model with ebrm.backbone.register_family."
            )
        return seen[0], means, output

    def _check(
        self, rows: Sequence[Sequence[int]], ids: Tensor, mask: Tensor, captured: Tensor, parts: list[Tensor],
        reported: Tensor,
    ) -> None:  # fmt: skip
        """Check the rows that are finite; the others have no reward, and whoever reads them says so."""
        finite = torch.stack([part.isfinite().all(dim=1).cpu() for part in parts]).all(dim=0)
        lengths = mask.sum(dim=1).tolist()
        # A row that is finite only without padding has read the padding.
        padded = [row for row in range(len(rows)) if not finite[row] and lengths[row] < ids.shape[1]]
        self._check_padding(padded, ids, mask, parts)
        self._check_padding(finite.nonzero().flatten().tolist(), ids, mask, parts)
        reported = reported.to(captured.device)
        # The model's own head may overflow in float16 where the embedding does not; here it is applied in float32.
        over = reported.isinf() if self.head.weight.dtype == torch.float16 else torch.zeros_like(reported).bool()
        some = finite.to(captured.device) & ~over
        if bool(some.any()):
            check_reading(
                self.name, self.head, captured[some], mask.to(captured.device)[some], parts[0][some], reported[some]
            )

    def _check_padding(self, some: Sequence[int], ids: Tensor, mask: Tensor, parts: list[Tensor]) -> None:
        """Read the shortest text of some of the batch without padding, and compare it part by part."""
        if not some:
            return
        lengths = mask.sum(dim=1).tolist()
        shortest = min(some, key=lambda row: lengths[row])
        length = lengths[shortest]
        if length < ids.shape[1]:
            text = slice(shortest, shortest + 1), slice(length)
            captured, means, _ = self._capture(ids[text], mask[text])
            alone = [pooled(captured, mask[text]), *means]
            called = ["embedding", *(f"mean of the hidden states after block {index}" for index in self.layers.indices)]
            for padded, single, part in zip(parts, alone, called, strict=True):
                if bool(single.isfinite().all()):
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


def inner_layers(
    name: str, model: nn.Module, depths: Sequence[float], indices: Sequence[int] | None = None
) -> InnerLayers:
    """The blocks to read in a model of L blocks.

    Args:
        name: the model, for messages.
        model: any model that has a transformers configuration, itself or inside.
        depths: each in (0, 1]: block round(depth · L) (halves to even), at least 1.
        indices: the blocks themselves, counted from 1, instead of `depths`.

    Raises:
        BackboneError: the blocks cannot be told from the model's other parts, or it has fewer.
    """
    if not (depths if indices is None else indices):
        return InnerLayers(name)
    blocks, width = find_blocks(name, model)
    count = len(blocks)
    wanted = [max(1, round(depth * count)) for depth in depths] if indices is None else list(indices)
    chosen = tuple(sorted(set(wanted)))
    if chosen[0] < 1 or chosen[-1] > count:
        raise BackboneError(
            f"{name} has {count} blocks, and hidden states after block {chosen[-1] if chosen[0] >= 1 else chosen[0]} "
            "are asked for. It is another model than the one this was made with; give that one."
        )
    return InnerLayers(name, chosen, tuple(blocks[index - 1] for index in chosen), width)


def find_blocks(name: str, model: nn.Module) -> tuple[nn.ModuleList, int]:
    """The blocks (an encoder's, beside a decoder) and h: the outermost list as long as the configuration has it."""
    config = _stack_config(model)
    count, width = getattr(config, "num_hidden_layers", None), getattr(config, "hidden_size", None)
    if not isinstance(count, int) or not isinstance(width, int):
        raise BackboneError(
            f"The blocks of {name} cannot be found: its configuration does not say how many there are and how long a "
            f"hidden state is (num_hidden_layers, hidden_size). {_WAY_OUT}"
        )
    named = ((path, module) for path, module in model.named_modules() if isinstance(module, nn.ModuleList))
    lists = {path: module for path, module in named if len(module) == count}
    outermost = [path for path in lists if not any(path.startswith(other + ".") for other in lists)]
    if len(outermost) > 1 and getattr(config, "is_encoder_decoder", False):
        outermost = [path for path in outermost if "encoder" in path.split(".")]
    if len(outermost) != 1:
        what = f"several lists of that many modules ({', '.join(outermost)})" if outermost else "no list of that many"
        raise BackboneError(
            f"The blocks of {name} cannot be found: its configuration says {count}, and the model has {what}. "
            f"{_WAY_OUT}"
        )
    return lists[outermost[0]], width


def _stack_config(model: nn.Module) -> Any:
    """The configuration of the outermost part that states its number of layers; a family of one's own may have none."""
    for module in model.modules():
        config: Any = getattr(module, "config", None)
        config = config.get_text_config() if hasattr(config, "get_text_config") else config
        if isinstance(getattr(config, "num_hidden_layers", None), int):
            return config
    return None


def pooled(captured: Tensor, attention_mask: Tensor) -> Tensor:
    """The embeddings [n, d] in the head's input: [n, L, d] at the last position of each text, [n, d] as it is."""
    n, length = attention_mask.shape
    if captured.ndim == 3 and captured.shape[:2] == (n, length):
        return captured[torch.arange(n, device=captured.device), last_position(attention_mask).to(captured.device)]
    if captured.ndim == 3 and captured.shape[:2] == (n, 1):
        return captured[:, 0]
    if captured.ndim == 2 and len(captured) == n:
        return captured
    raise BackboneError(
        f"The head got a tensor of shape {list(captured.shape)} for {n} texts of {length} tokens; [{n}, {length}, d] "
        f"or [{n}, d] was expected. Teach ebrm this model with ebrm.backbone.register_family."
    )


def unreadable(name: str, ids: Sequence[int], limit: int | None, vocabulary: int | None) -> str | None:
    """Reason why a model cannot take token ids (a sentence without its subject), or None; unknown bounds are None."""
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
    """Vocabulary size of a model, None where it cannot be told."""
    try:
        table = model.get_input_embeddings()  # type: ignore[operator]
    except (AttributeError, NotImplementedError, TypeError):
        return None
    return int(table.weight.shape[0]) if isinstance(getattr(table, "weight", None), Tensor) else None
