"""The reward models of the study: the frozen encoder read at several layers, and fine-tuned ones."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoModel

from ebrm.backbone import (
    Backbone,
    BackboneConfig,
    Loaded,
    MeanPooledBert,
    adapter_folder,
    assemble,
    encoder_folder,
    load_model,
    open_checkpoint,
)
from ebrm.data import TextConfig

#: Layers whose hidden states are averaged over the text, 384 numbers each, in the order of the embedding.
LAYERS = (2, 4, 6)
#: Long prompts lose their beginning.
TEXT = TextConfig(template="plain", truncation="prompt_left")


class LayeredEncoder(nn.Module):
    """all-MiniLM-L6-v2 with the means of several layers side by side; its reward is 0 for every text."""

    def __init__(self) -> None:
        super().__init__()
        # bfloat16 is nearly three times as fast here.
        self.encoder = AutoModel.from_pretrained(encoder_folder(), dtype=torch.bfloat16)
        self.config = self.encoder.config
        self.head = nn.Linear(len(LAYERS) * self.config.hidden_size, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, **_: object) -> Tensor:
        """Rewards [n] of token ids [n, L]."""
        states = self.encoder(input_ids=input_ids, attention_mask=attention_mask, output_hidden_states=True)
        weight = attention_mask.unsqueeze(-1).float()
        means = [(states.hidden_states[layer].float() * weight).sum(1) / weight.sum(1) for layer in LAYERS]
        return self.head(torch.cat(means, dim=1)).squeeze(-1)


def load_encoder() -> Backbone:
    """The frozen encoder as a reward model without an opinion."""
    model = LayeredEncoder()
    settings = BackboneConfig(backbone="frozen-minilm", layers=(), token_budget=8192)
    sources = [open_checkpoint(str(encoder_folder()))]
    return assemble(Loaded(model, model.head, "head"), sources, settings, TEXT, name="frozen-minilm")


def load_finetuned(name: str) -> Backbone:
    """The demonstration RM ("demo"), or one that `finetune.py` put into a folder, read as ebrm reads any RM."""
    settings = BackboneConfig(backbone=name, dtype="bfloat16", token_budget=8192)
    folder = adapter_folder() if name == "demo" else Path(name)
    sources = [open_checkpoint(str(folder)), open_checkpoint(str(encoder_folder()))]
    loaded = load_model(sources, replace(settings, head=None), model_class=MeanPooledBert)
    return assemble(loaded, sources, settings, TEXT, name=folder.name if name != "demo" else name)
