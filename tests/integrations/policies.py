"""Tiny random policies and data for the trainers that are tested with refined rewards."""

from __future__ import annotations

from pathlib import Path

from datasets import Dataset
from tests.tiny import CHAT_TEMPLATE, build_model, byte_tokenizer

TEMPLATE = CHAT_TEMPLATE + "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
LONG = "a prompt with more tokens than the reward model reads " * 4


def save_policy(folder: Path) -> str:
    """Save a causal language model that has learned nothing, with its tokenizer, and give the folder back."""
    build_model("llama", "causal", seed=3).save_pretrained(folder)
    byte_tokenizer(template=TEMPLATE).save_pretrained(folder)
    return str(folder)


def prompts(kind: str) -> Dataset:
    """Four prompts: plain strings, or conversations (one with several turns); one is too long for the tiny RM."""
    texts = ["Hello", "Was für ein Tag? 🙂", LONG, "Say yes"]
    if kind == "plain":
        return Dataset.from_list([{"prompt": text, "topic": "t"} for text in texts])
    talks = [[{"role": "user", "content": text}] for text in texts]
    talks[0] += [{"role": "assistant", "content": "Hi."}, {"role": "user", "content": "How are you?"}]
    talks[3] = [{"role": "system", "content": "Be brief."}, *talks[3]]
    return Dataset.from_list([{"prompt": talk, "topic": "t"} for talk in talks])
