"""A reward model that is arithmetic on token ids, preferences to read with it, and what a folder holds."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from ebrm.backbone import BackboneIdentity
from ebrm.backbone.probe import probe_mismatch
from ebrm.data import Preferences, TextRule, TokenizedText
from ebrm.data.schema import Preference, PreferenceReport
from ebrm.errors import TextTooLongError
from ebrm.features import FeatureConfig, extract_features
from ebrm.utils.files import sha256_file


class Reading:
    def __init__(self, embedding: torch.Tensor, reward: torch.Tensor) -> None:
        self.embedding, self.reward = embedding, reward


class FakeBackbone:
    """Token ids are code points. Embeddings depend, a little, on how many texts are read together, as real ones do."""

    def __init__(
        self,
        *,
        embedding_size: int = 5,
        token_budget: int = 64,
        max_length: int = 400,
        truncation: str = "error",
        fingerprint: str = "a" * 64,
        layers: tuple[int, ...] = (),
        offset: float = 0.5,
        on_read: Callable[[int], None] | None = None,
        on_tokenize: Callable[[int], None] | None = None,
    ) -> None:
        self.embedding_size = embedding_size
        self.token_budget = token_budget
        self.identity = BackboneIdentity(
            "fake/rm", "main", fingerprint, "FakeModel", "score", "float32", "eager", layers
        )
        self.text_rule = TextRule("plain", {}, "auto", "auto", truncation, max_length)
        self.offset = offset  # of what libraries and devices compute
        self.reads: list[list[list[int]]] = []
        self.tokenized = 0
        self.on_read, self.on_tokenize = on_read, on_tokenize

    def tokenize(self, prompt: Sequence[Any], response: str, where: str = "") -> TokenizedText | None:
        self.tokenized += 1
        if self.on_tokenize is not None:
            self.on_tokenize(self.tokenized)
        ids = [ord(char) % 997 for char in "\n".join(message["content"] for message in prompt) + "\0" + response]
        over = len(ids) - self.text_rule.max_length
        if over <= 0:
            return TokenizedText(ids, 0)
        if self.text_rule.truncation == "error":
            raise TextTooLongError(f"{where}{len(ids)} tokens, more than {self.text_rule.max_length}")
        return None if self.text_rule.truncation == "drop" else TokenizedText(ids[over:], over)

    def embed(self, ids: list[int]) -> torch.Tensor:
        """The embedding of one text read alone, less what its batch adds."""
        place = torch.arange(1, len(ids) + 1, dtype=torch.float64)
        token = torch.tensor(ids, dtype=torch.float64)
        scale = torch.arange(1, self.embedding_size + 1, dtype=torch.float64)
        return torch.sin(token[:, None] * scale + place[:, None] * 0.1).sum(0).float()

    def read(self, token_ids: list[list[int]], on_error: str = "raise") -> Reading:
        self.reads.append(token_ids)
        if self.on_read is not None:
            self.on_read(len(self.reads))
        embedding = torch.empty(len(token_ids), self.embedding_size)
        queue = sorted(range(len(token_ids)), key=lambda row: -len(token_ids[row]))
        while queue:
            batch = queue[: max(1, self.token_budget // len(token_ids[queue[0]]))]
            for row in batch:
                embedding[row] = self.embed(token_ids[row]) * (1 + 1e-5 * len(batch))
            queue = queue[len(batch) :]
        return Reading(embedding, embedding @ torch.arange(1.0, self.embedding_size + 1))

    def probed(self) -> BackboneIdentity:
        return replace(self.identity, probe=(self.offset, 1.0))

    def probe_difference(self, stated: BackboneIdentity, *, then: str = "then", now: str = "now") -> str | None:
        return probe_mismatch(stated, self.probed(), [1.0, 1.0], then=then, now=now)

    def batch_drift(self, token_ids: list[list[int]]) -> float:
        self.drift_ids = token_ids
        alone = torch.cat([self.read([ids], "nan").reward for ids in token_ids])
        return float((self.read(token_ids, "nan").reward - alone).abs().nan_to_num(0.0).max())


def ask(text: str) -> tuple[dict[str, str], ...]:
    return ({"role": "user", "content": text},)


def preferences(rows: Sequence[tuple[str, str, str]], **columns: Sequence[Any]) -> Preferences:
    """Preferences from (prompt, chosen, rejected), with optional columns strength, source, category and split."""
    made = tuple(
        Preference(
            ask(prompt),
            chosen,
            rejected,
            *(columns[name][i] if name in columns else None for name in ("strength", "source", "category")),
            f"train.jsonl:{i + 1}",
            columns["split"][i] if "split" in columns else None,
        )
        for i, (prompt, chosen, rejected) in enumerate(rows)
    )
    return Preferences(made, PreferenceReport("train.jsonl", "explicit prompt", len(made), len(made), {}, (), 0))


def some_preferences(count: int = 25, seed: int = 0) -> Preferences:
    """Pairs over few prompts and replies of many lengths, so that texts repeat across pairs."""
    draw = random.Random(seed)
    rows = []
    for _ in range(count):
        prompt = f"question {draw.randrange(6)}"
        left, right = draw.sample(range(1, 12), 2)
        rows.append((prompt, "é🙂x" * left, "no " * right))
    return preferences(
        rows,
        source=[draw.choice(["human", None]) for _ in rows],
        category=[draw.choice(["safe", "chat"]) for _ in rows],
        strength=[draw.choice([None, 0.5]) for _ in rows],
        split=[draw.choice(["train", "test"]) for _ in rows],
    )


def interrupted(out: Path, data: Preferences) -> None:
    """Stop a run, with shards of 8 texts, at its third read."""

    def stop(count: int) -> None:
        if count == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        extract_features(FakeBackbone(on_read=stop), data, out, FeatureConfig(shard_rows=8))


def contents(folder: Path) -> dict[str, str]:
    """SHA-256 of every file of a folder, hidden ones included."""
    return {str(path.relative_to(folder)): sha256_file(path) for path in folder.rglob("*") if path.is_file()}
