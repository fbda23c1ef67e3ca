"""A reward model read from a running vLLM or SGLang server: its embeddings, and the checkpoint's own head on them."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ebrm.backbone.build import (
    base_name,
    behavior,
    find_head,
    full_name,
    load_config,
    load_tokenizer,
    model_limit,
    skeleton,
    weights_fingerprint,
    with_base,
)
from ebrm.backbone.checkpoint import Checkpoint, open_checkpoint
from ebrm.backbone.config import DEFAULT_LAYERS, BackboneConfig
from ebrm.backbone.families import StoredHead, find_family, plain_name, refuse_unknown_parts
from ebrm.backbone.forward import Head, InnerLayers, vocabulary_size
from ebrm.backbone.identity import SERVER, BackboneIdentity
from ebrm.backbone.pooling import PoolingServer, embeddings, probe, probe_texts
from ebrm.backbone.read import Backbone
from ebrm.data import TextConfig, TextRule, make_text_rule
from ebrm.errors import BackboneError, setting

logger = logging.getLogger(__name__)

# Heads whose input is not the state of the last token as it leaves the last block: encoders transform it first.
_TRANSFORMED = ("classifier", "classification_head", "logits_proj", "sequence_summary")
_STORED = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


class ServerBackbone(Backbone):
    """A frozen reward model in a vLLM or SGLang server; no `model` is here, and `token_budget` is a request's."""

    def __init__(  # not super().__init__: there is no model in this process
        self, server: PoolingServer, head: Head, tokenizer: Any, text_rule: TextRule, identity: BackboneIdentity, *,
        token_budget: int, limit: int | None, vocabulary: int | None,
    ) -> None:  # fmt: skip
        self.server, self.head = server, head
        self.layers = InnerLayers()
        self.embedding_size = head.weight.shape[1]
        self.tokenizer, self.text_rule, self.identity = tokenizer, text_rule, identity
        self.device, self.token_budget, self.limit = torch.device("cpu"), token_budget, limit
        self._vocabulary = vocabulary
        self._checked = False
        self._tokenizing, self._probing, self._looking = threading.Lock(), threading.Lock(), threading.Lock()

    def _embed(self, token_ids: Sequence[Sequence[int]]) -> Tensor:
        """As the server gives them; before the first, texts made for it tell how it pools (:func:`probe`)."""
        if not token_ids:
            return torch.empty(0, self.embedding_size)
        with self._looking:
            if not self._checked:
                texts = probe_texts(self.tokenizer, self.limit)
                answer = self.server.read(texts, self.token_budget)
                if not probe(self.server, self.head, self.head.weight, texts, answer):
                    logger.warning(
                        "%s has no classifier beside the embeddings: that they are un-normalized and of the last token "
                        "was checked, but nothing can tell whether its weights are those of %s.",
                        self.server.name, self.identity.name,
                    )  # fmt: skip
                self._checked = True
        answer = self.server.read(token_ids, self.token_budget)
        return embeddings(self.server, answer, token_ids, self.embedding_size)

    def _other_rewards(self) -> str:
        return (
            f"{self.server.name} has other weights than the checkpoint, or computes otherwise: start it with the files "
            f"of {self.identity.name} and the precision of then"
        )

    def _overflow(self) -> str:
        return "In float16 this is overflow: start the server with --dtype bfloat16; else its weights are damaged."


def load_server(settings: BackboneConfig, text: TextConfig, blocks: Sequence[int] | None = None) -> ServerBackbone:
    """Connect to the server of `settings.server`; tokenizer, configuration and head come from the checkpoint."""
    assert settings.server is not None
    _refuse_layers(settings, blocks)
    if settings.backbone == "demo":
        raise BackboneError(
            "The packaged model `demo` averages over all tokens before its head, which a pooling server does not do. "
            "Read it without `server`."
        )
    checkpoint = open_checkpoint(settings.backbone, settings.revision, settings.trust_remote_code)
    if find_family(checkpoint.config) is not None:
        raise BackboneError(
            f"{checkpoint.name} is read by a registered family, which knows how to load it but not how a server pools "
            "it. Read it without `server`."
        )
    server = PoolingServer(settings.server)
    server.refuse_other_model(checkpoint.name, checkpoint.folder, "reward model")
    sources = with_base(checkpoint, settings)
    owner, stored = find_head(sources, settings)
    config = load_config(sources[-1], settings.trust_remote_code)
    without = skeleton(sources[-1], config, settings)
    head = _read_head(owner, stored, config)
    inner = without
    if stored.name not in dict(without.named_modules()):
        refuse_unknown_parts(owner, stored)
        inner = getattr(without, getattr(without, "base_model_prefix", "") or "-", without)
    tokenizer = load_tokenizer(sources, settings.trust_remote_code)
    identity = BackboneIdentity(
        full_name(sources), checkpoint.revision, weights_fingerprint(sources), type(inner).__name__, stored.name,
        _dtype(sources[-1], config, settings), SERVER, base=base_name(sources, settings),
        **behavior(sources, settings, tokenizer),
    )  # fmt: skip
    limit = model_limit(without)
    rule = make_text_rule(tokenizer, text, limit)
    if server.limit is not None and server.limit < rule.max_length:
        logger.warning(
            "%s takes %d tokens, and texts may have %d (`max_length`): a longer one will stop the run. Start it with "
            "--max-model-len (vLLM) or --context-length (SGLang) %d.",
            server.name, server.limit, rule.max_length, rule.max_length,
        )  # fmt: skip
    return ServerBackbone(
        server, head, tokenizer, rule, identity,
        token_budget=settings.token_budget,
        limit=min((known for known in (limit, server.limit) if known is not None), default=None),
        vocabulary=vocabulary_size(without),
    )  # fmt: skip


def _refuse_layers(settings: BackboneConfig, blocks: Sequence[int] | None) -> None:
    """Refuse inner layers that were asked for; warn that the default ones are not read."""
    gives = f"a pooling server ({settings.server}) gives the last token's state only"
    if blocks:
        raise BackboneError(
            f"This was made with inner layers of the reward model (blocks {', '.join(map(str, blocks))}), and {gives}. "
            f"Score without `server`, or make it anew without them, with {setting('layers', [])}."
        )
    if blocks is None and settings.layers and settings.layers != DEFAULT_LAYERS:
        raise BackboneError(
            f"Inner layers are asked for ({setting('layers', settings.layers)}), and {gives}. Use "
            f"{setting('layers', [])}, or no `server`."
        )
    if blocks is None and settings.layers:
        logger.warning("No inner layers are read: %s (as with %s).", gives, setting("layers", []))


def _read_head(owner: Checkpoint, stored: StoredHead, config: Any) -> Head:
    """The head's tensors alone, float32."""
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    tensors = {plain_name(full): full for full in owner.tensors}
    weight = owner.read(tensors[stored.name + ".weight"]).float().clone()  # a copy: the file need not stay mapped
    if len(stored.linears) > 1 or stored.name.split(".")[0] in _TRANSFORMED:
        raise BackboneError(
            f"The head {stored.name} of {owner.name} does not take the last token's hidden state as it is (it comes "
            f"after {', '.join(stored.linears[:-1]) or 'other layers'}), and that is all a pooling server gives. Read "
            "this model without `server`."
        )
    if weight.shape[1] != getattr(text, "hidden_size", weight.shape[1]):
        raise BackboneError(
            f"The head {stored.name} of {owner.name} takes {weight.shape[1]} numbers, but its hidden states have "
            f"{text.hidden_size}. The head belongs to another model; give the folder they were saved in together."
        )
    bias = tensors.get(stored.name + ".bias")
    return Head(weight, None if bias is None else owner.read(bias).float().clone())


def _dtype(base: Checkpoint, config: Any, settings: BackboneConfig) -> str:
    """The precision that the model would have here: the server does not state its own."""
    if settings.dtype != "auto":
        return settings.dtype
    stated = getattr(config, "dtype", None)
    if stated is not None:
        return str(stated).removeprefix("torch.")
    kinds = [info.dtype for info in base.tensors.values() if info.dtype in _STORED]
    return _STORED[kinds[0]] if kinds else "float32"
