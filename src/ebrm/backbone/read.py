"""Read embedding and reward of many texts from a frozen reward model, in one forward a batch."""

from __future__ import annotations

import logging
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ebrm.backbone.families import Loaded
from ebrm.backbone.forward import Forward, configs
from ebrm.backbone.identity import BackboneIdentity
from ebrm.backbone.layers import InnerLayers
from ebrm.backbone.threads import spread
from ebrm.errors import BackboneError
from ebrm.preferences import text
from ebrm.preferences.text import TextRule, TokenizedText

logger = logging.getLogger(__name__)

# On a CPU a core is busy with a few hundred tokens, and its caches hold what they need; more make it slower.
_CPU_BATCH_TOKENS = 512
# More workers than this would wait for each other in Python; each then has several threads.
_MOST_WORKERS = 8


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
        token_budget: most tokens in a batch, padding counted; on a CPU batches have at most 512 in any case.
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
        bias = None if loaded.head.bias is None else loaded.head.bias.detach().float().cpu().clone()
        self.head = Head(loaded.head.weight.detach().float().cpu().clone(), bias)
        self.layers = layers
        self.embedding_size = loaded.head.in_features + layers.size
        self.tokenizer, self.text_rule, self.identity = tokenizer, text_rule, identity
        self.device, self.token_budget, self.limit = device, token_budget, limit
        for config in configs(self.model):
            config.use_cache = False  # keys and values are for generating; here they would only fill memory
        pad = _pad_id(tokenizer, self.model)
        # The first is the model itself; twins follow when batches are read at the same time.
        self._forwards = [Forward(identity.name, identity.head_module, self.model, loaded.head, layers, pad, device)]
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
        On a CPU batches are small, and as many run at once as torch has threads (`torch.get_num_threads()`, at most
        8), each on one thread. The budget is halved when memory runs out. On the first batch with padding it is
        checked that the head on the embedding gives the reward the model reports, and that padding moves no part of the
        embedding.

        Raises:
            BackboneError: an empty or too long sequence, an unknown token id, an embedding or reward that is not
                finite, memory too small for a single text (all name the row), a reading that is not the model's
                reward, or inner layers that give no hidden states of the text.
        """
        n = len(token_ids)
        self._refuse_ids(token_ids)
        embedding = torch.empty(n, self.embedding_size)
        budget = self.token_budget if self.device.type != "cpu" else min(self.token_budget, _CPU_BATCH_TOKENS)
        # Longest first: if memory runs out, it does so at once.
        left = sorted(range(n), key=lambda row: -len(token_ids[row]))
        while left:
            batches = self._for_the_check_first(_batches(left, token_ids, budget), token_ids)
            done: set[int] = set()
            with closing(self._embeddings([[token_ids[row] for row in batch] for batch in batches])) as found:
                for batch, embeddings in zip(batches, found, strict=False):
                    if embeddings is None:
                        budget = self._smaller(batch, token_ids)
                        break
                    embedding[batch] = embeddings
                    done.update(batch)
            left = [row for row in left if row not in done]
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

    def _embeddings(self, batches: Sequence[list[Sequence[int]]]) -> Generator[Tensor | None, None, None]:
        """Embeddings of each batch; None for one for which memory ran out."""
        if not self._checked:
            first, *batches = batches
            found = self._forwards[0].embed(first, check=True)
            # Without padding only half of it was seen, and the next read checks again.
            self._checked = found is not None and _is_padded(first)
            yield found
        workers = 1 if self.device.type != "cpu" else min(torch.get_num_threads(), len(batches), _MOST_WORKERS)
        while len(self._forwards) < workers:
            self._forwards.append(self._forwards[0].twin())
        yield from spread([forward.embed for forward in self._forwards[: max(1, workers)]], batches)

    def _for_the_check_first(self, batches: list[list[int]], token_ids: Sequence[Sequence[int]]) -> list[list[int]]:
        """The same batches; until the model has been checked, one with padding comes first."""
        if self._checked:
            return batches
        padded = (place for place, rows in enumerate(batches) if _is_padded([token_ids[row] for row in rows]))
        place = next(padded, 0)
        return [batches[place], *batches[:place], *batches[place + 1 :]]

    def _smaller(self, batch: list[int], token_ids: Sequence[Sequence[int]]) -> int:
        """The token budget to go on with after memory ran out for a batch."""
        longest = len(token_ids[batch[0]])
        if len(batch) == 1:
            raise BackboneError(
                f"Memory on {self.device} is too small for a single text: row {batch[0]} has {longest} tokens. Lower "
                "max_length, use dtype='bfloat16', or a device with more memory."
            )
        budget = len(batch) // 2 * longest
        logger.warning("out of memory on %s; going on with batches of %d tokens", self.device, budget)
        return budget

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


def _batches(rows: list[int], token_ids: Sequence[Sequence[int]], budget: int) -> list[list[int]]:
    """`rows`, longest text first, cut into batches of at most `budget` tokens, padding counted, or of one text."""
    batches, start = [], 0
    while start < len(rows):
        size = max(1, budget // len(token_ids[rows[start]]))
        batches.append(rows[start : start + size])
        start += size
    return batches


def _is_padded(texts: Sequence[Sequence[int]]) -> bool:
    return len(set(map(len, texts))) > 1


def _pad_id(tokenizer: Any, model: nn.Module) -> int:
    choices = [
        tokenizer.pad_token_id,
        *(getattr(config, "pad_token_id", None) for config in configs(model)),
        tokenizer.eos_token_id,
    ]
    return next((int(token) for token in choices if isinstance(token, int) and token >= 0), 0)


def _vocabulary(model: nn.Module) -> int | None:
    try:
        table = model.get_input_embeddings()  # type: ignore[operator]
    except (AttributeError, NotImplementedError, TypeError):
        return None
    return int(table.weight.shape[0]) if isinstance(getattr(table, "weight", None), Tensor) else None
