"""Embeddings of texts: by a reward model that is loaded already, or by a sentence encoder."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ebrm.backbone import Backbone
from ebrm.errors import ConfigError, DataError
from ebrm.utils.extras import install_hint

#: Texts to embeddings [n, d].
Embedder = Callable[[Sequence[str]], Tensor]
#: Texts to token embeddings [n, t, d], padded, and their mask [n, t], True for tokens.
TokenEmbedder = Callable[[Sequence[str]], tuple[Tensor, Tensor]]


def backbone_embedder(backbone: Backbone) -> Embedder:
    """Embeddings [n, d] by a reward model: what its head reads of each text as a prompt with an empty response.

    A reward model is made to tell good from bad, not near from far; a sentence encoder is the better embedder of
    meaning. The embedder raises TextError or DataError for empty texts and those over the model's limit: none is cut.
    """

    def embed(texts: Sequence[str]) -> Tensor:
        token_ids = []
        for row, text in enumerate(texts):
            tokenized = backbone.tokenize(text, "", where=f"texts[{row}]")
            if tokenized is None:
                raise DataError(f"texts[{row}] is longer than the text rule allows. Shorten it, or leave the row out.")
            if tokenized.truncated:
                raise DataError(
                    f"texts[{row}] is {tokenized.truncated:,} tokens longer than the text rule allows, which would cut "
                    "its beginning. Shorten it, or leave the row out."
                )
            token_ids.append(tokenized.ids)
        return backbone.read(token_ids).embedding

    return embed


def sentence_embedder(model: str, device: str | None = None, normalize: bool = False) -> Embedder:
    """Embeddings [n, d] by a sentence encoder of sentence-transformers (extra `references`).

    Args:
        model: a Hub name or folder. Code that comes with it is not run, and only safetensors are loaded.
        device: "cpu", "cuda", …; None: what the library chooses.
        normalize: bring embeddings to length 1, so that dot products are cosines.

    Raises:
        ConfigError: the extra is not installed. The embedder raises DataError for a text over the encoder's limit.
    """
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise ConfigError(f"Sentence encoders need sentence-transformers ({install_hint('references')}).") from error
    encoder = SentenceTransformer(model, device=device, trust_remote_code=False, model_kwargs={"use_safetensors": True})

    def embed(texts: Sequence[str]) -> Tensor:
        limit = encoder.get_max_seq_length()
        if limit is not None and limit < math.inf:  # the library cuts longer ones without a word
            for row, text in enumerate(texts):
                length = len(encoder.tokenizer(text, truncation=False, verbose=False)["input_ids"])
                if length > limit:
                    raise DataError(
                        f"texts[{row}] is {length:,} tokens long, and {model} reads {limit:,}. Shorten it, leave the "
                        "row out, or take an encoder of longer texts."
                    )
        found = encoder.encode(
            list(texts), convert_to_tensor=True, normalize_embeddings=normalize, show_progress_bar=False
        )
        return found.float().cpu()

    return embed


def token_embedder(backbone: Backbone) -> TokenEmbedder:
    """Token embeddings by a reward model's table of input embeddings, without its special tokens; no forward runs."""
    model: Any = backbone.model
    table = model.get_input_embeddings()

    def embed(texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        ids = [backbone.tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
        mask = torch.zeros(len(ids), max(map(len, ids), default=0), dtype=torch.bool)
        padded = torch.zeros(mask.shape, dtype=torch.int64)
        for row, tokens in enumerate(ids):
            mask[row, : len(tokens)] = True
            padded[row, : len(tokens)] = torch.tensor(tokens, dtype=torch.int64)
        with torch.no_grad():
            return table(padded.to(table.weight.device)).float().cpu(), mask

    return embed
