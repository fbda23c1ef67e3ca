"""Tiny fitted models of several families, and conversations tokenized the way TRL does it."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from tests.linear import QUICK
from tests.terminal import preference_rows
from tests.tiny import save_rm

from ebrm.data import TextConfig
from ebrm.fitting import fit
from ebrm.heads import Fusion
from ebrm.model import EnergyRewardModel

FAMILIES = ("llama", "qwen3", "gpt_neox", "bert")
TURNS = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello!"},
    {"role": "user", "content": "And?"},
]
#: Plain, conversational, several turns, unicode, empty, and of mixed lengths.
PROMPTS: list[Any] = ["Say hello", [{"role": "user", "content": "Say hello"}], TURNS, "Grüße 你好 🎉", "Say it", "x"]
RESPONSES = ["hello there, my friend", "hello there, my friend", "ok", "schön — 水 🎉", "", "a b c d e f g h i j k"]
LONG = "long " * 200


@cache
def fitted(root: Path, family: str = "llama", **text: Any) -> EnergyRewardModel:
    """A model fitted for a moment on a random RM of a family, which lies in a folder under `root`."""
    folder = root / "-".join([family, *map(str, text.values())])
    save_rm(folder, family)
    head = replace(QUICK, training=replace(QUICK.training, epochs=2))
    model = fit(str(folder), preference_rows(24), head=head, text=TextConfig(**text)).model
    model.head.fusion = Fusion(3.0, 2.0)  # so short a fit trusts the base reward almost wholly
    return model


def messages(prompt: Any, response: str) -> list[dict[str, str]]:
    """A prompt and a response as one conversation."""
    turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    return [*turns, {"role": "assistant", "content": response}]


def as_trl(tokenizer: Any, prompts: list[Any], responses: list[str], side: str = "right") -> dict[str, torch.Tensor]:
    """What TRL's trainers give a reward model for conversational data."""
    texts = [
        tokenizer.apply_chat_template(messages(*pair), tokenize=False) for pair in zip(prompts, responses, strict=True)
    ]
    return dict(tokenizer(texts, return_tensors="pt", padding=True, padding_side=side, add_special_tokens=False))
